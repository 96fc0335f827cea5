"""Several files change together, whenever the process dies."""

import errno

import pytest

from ubp.io import together
from ubp.io.errors import UserError
from ubp.io.together import finish, replaced_together


@pytest.fixture
def paths(tmp_path):
    files = [tmp_path / name for name in ("a.parquet", "b.parquet", "c.parquet")]
    for file in files[:2]:
        file.write_text("old")
    return files


def write_new(paths, folder):
    with replaced_together(paths, folder) as asides:
        for aside in asides.values():
            aside.write_text("new")


def texts(paths) -> list[str]:
    return [path.read_text() if path.exists() else "-" for path in paths]


def test_all_of_them(paths, tmp_path):
    write_new(paths, tmp_path / ".aside")
    assert texts(paths) == ["new", "new", "new"]
    assert not (tmp_path / ".aside").exists()


def test_one_that_is_not_written_stays(paths, tmp_path):
    with replaced_together(paths, tmp_path / ".aside") as asides:
        asides[paths[1]].write_text("new")
    assert texts(paths) == ["old", "new", "-"]


def test_an_error_leaves_all_as_they_were(paths, tmp_path):
    def break_off():
        with replaced_together(paths, tmp_path / ".aside") as asides:
            asides[paths[0]].write_text("new")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        break_off()
    assert texts(paths) == ["old", "old", "-"]
    assert not (tmp_path / ".aside").exists()


@pytest.mark.parametrize("killed_at", range(1, 8))
def test_killed_at_any_file_that_is_flushed(paths, tmp_path, monkeypatch, killed_at):
    """A kill runs nothing further: not even what cleans up."""
    count, flush = [0], together.flush

    def killing(path):
        count[0] += 1
        if count[0] == killed_at:
            monkeypatch.setattr(together.shutil, "rmtree", lambda *_, **__: None)
            raise KeyboardInterrupt
        flush(path)

    with monkeypatch.context() as patch:
        patch.setattr(together, "flush", killing)
        if killed_at <= 6:
            with pytest.raises(KeyboardInterrupt):
                write_new(paths, tmp_path / ".aside")
        else:
            write_new(paths, tmp_path / ".aside")
    monkeypatch.undo()
    elsewhere = tmp_path.rename(tmp_path.with_name(f"{tmp_path.name}_moved"))
    moved, aside = [elsewhere / path.name for path in paths], elsewhere / ".aside"
    assert finish(aside) == (3 < killed_at <= 6)
    assert texts(moved) in (["old", "old", "-"], ["new", "new", "new"])
    assert (texts(moved)[0] == "new") == (killed_at > 3)
    assert not finish(aside)
    write_new(moved, aside)
    assert texts(moved) == ["new", "new", "new"]
    assert not aside.exists()


def test_files_that_go_with_the_old_ones(paths, tmp_path):
    with replaced_together(paths[:1], tmp_path / ".aside", [paths[1], tmp_path / "nothing"]) as asides:
        asides[paths[0]].write_text("new")
        assert texts(paths) == ["old", "old", "-"]
    assert texts(paths) == ["new", "-", "-"]


def test_a_full_disk_is_one_line_that_names_the_file(paths, tmp_path):
    def fill():
        with replaced_together(paths, tmp_path / ".aside") as asides:
            asides[paths[0]].write_text("new")
            asides[paths[1]].write_text("ne")
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(UserError, match=f"^{paths[1]}: no space left on the disk; "):
        fill()
    assert texts(paths) == ["old", "old", "-"]
