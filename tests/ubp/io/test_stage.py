"""A stage is made once, and made again when its sources, its settings or its outputs change."""

import json
import logging

import pytest

from ubp.io.stage import AlreadyDone, Stage, content_of


class Made:
    """A stage of two files in a folder that counts how often it was made."""

    def __init__(self, folder, **made_from):
        self.made_from, self.times = made_from, 0
        self.outputs = (folder / "a", folder / "b")
        self.stage = Stage("thing", self.outputs, lambda: self.made_from)

    def make(self, overwrite=False, **hooks):
        with self.stage.once(overwrite, **hooks):
            self.times += 1
            for output in self.outputs:
                output.write_text(f"{output.name} {self.made_from}")


@pytest.fixture
def made(tmp_path):
    return Made(tmp_path, seed=0, config={"rows": [1, 2]}, history="h")


def test_done_once_is_skipped_with_one_message(made, tmp_path):
    made.make()
    with pytest.raises(AlreadyDone) as found:
        made.make()
    assert str(found.value) == f"thing · done before · {tmp_path / 'a'} (overwrite=True makes it again)"
    assert made.times == 1


def test_the_remark_stands_behind_the_name(made):
    made.make()
    with pytest.raises(AlreadyDone, match="thing, but small · done before"):
        made.make(remark=lambda: ", but small")


def test_overwrite_makes_it_again(made):
    made.make()
    made.make(overwrite=True)
    assert made.times == 2


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"seed": 1}, "made with another seed: making it again"),
        ({"seed": 1, "history": "i"}, "made with another history and seed"),
        ({"config": {"rows": [1, 3]}}, "made with another config"),
        ({"new": True}, "made with another new"),
    ],
)
def test_what_it_is_made_from_counts(made, change, says, caplog):
    made.make()
    made.made_from |= change
    with caplog.at_level(logging.INFO):
        made.make()
    assert made.times == 2
    assert says in caplog.text.replace("seed and history", "history and seed")


def test_outputs_count(made, caplog):
    made.make()
    made.outputs[1].write_text("changed")
    with caplog.at_level(logging.INFO):
        assert not made.stage.is_done()
    assert f"{made.outputs[1]} changed since" in caplog.text
    made.make()
    made.outputs[0].unlink()
    assert not made.stage.is_done()


def test_a_folder_counts_with_what_is_in_it(tmp_path):
    folder = tmp_path / "folder"
    (folder / "inner").mkdir(parents=True)
    (folder / "inner" / "file").write_text("1")
    stage = Stage("folder", (folder,), dict)
    stage.finish()
    assert stage.is_done()
    (folder / "inner" / "file").write_text("2")
    assert not stage.is_done()


def test_what_fails_is_not_done(made):
    made.outputs[0].write_text("half")
    with pytest.raises(ZeroDivisionError), made.stage.once(overwrite=False):
        raise ZeroDivisionError
    assert not made.stage.is_done()
    made.make()
    assert made.times == 1


def test_what_killed_runs_left_is_removed(made, tmp_path):
    left = [tmp_path / ".7-a0.a", tmp_path / ".done" / ".8-b1.a.json"]
    (tmp_path / ".done").mkdir()
    for path in left:
        path.write_text("half")
    made.make()
    assert not any(path.exists() for path in left)
    holder = tmp_path / ".done" / "a.lock-holder"
    holder.write_text("PID 7")
    with pytest.raises(AlreadyDone):
        made.make()
    assert not holder.exists()


def test_a_broken_note_is_no_note(made):
    made.make()
    note = made.outputs[0].parent / ".done" / "a.json"
    assert json.loads(note.read_text())["made_from"]["seed"] == 0
    note.write_text("{")
    assert not made.stage.is_done()
    assert not made.stage.is_begun()


def test_sources_that_change_while_it_is_made_do_not_count_as_seen(made):
    with made.stage.once(overwrite=False):
        for output in made.outputs:
            output.write_text("from the old history")
        made.made_from["history"] = "new"
    assert not made.stage.is_done()


def test_begun_and_finished(made):
    assert not made.stage.is_begun()
    made.stage.begin()
    assert (made.stage.is_begun(), made.stage.has_finished(), made.stage.is_done()) == (True, False, False)
    made.make()
    made.made_from["seed"] = 5
    assert (made.stage.has_finished(), made.stage.is_finished(), made.stage.is_done()) == (True, True, False)


def test_the_note_lies_beside_what_it_is_of(tmp_path):
    entry = tmp_path / "entry"
    entry.mkdir()
    (entry / "file").write_text("x")
    stage = Stage("entry", (entry / "file",), dict, of=entry)
    stage.finish()
    assert (tmp_path / ".done" / "entry.json").exists()
    with pytest.raises(AlreadyDone, match=f"{entry} "):
        stage.once(overwrite=False).__enter__()


def test_processes_for_further_devices_neither_wait_nor_note(made, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    made.make()
    assert not made.stage.is_begun()


def test_a_folder_counts_wherever_it_lies(tmp_path):
    """Only notes inside the folder are left out, not what lies below a folder of that name."""
    folder = tmp_path / ".done" / "folder"
    folder.mkdir(parents=True)
    (folder / "file").write_text("1")
    before = content_of(folder)
    (folder / "file").write_text("2")
    assert content_of(folder) != before


@pytest.mark.parametrize(
    "note", ["", "[]", "null", '{"made_from": 3}', '{"made_from": {}}', '{"outputs": {"a": 1}}', "[" * 100_000]
)
def test_a_note_that_says_nothing_is_no_note(made, note):
    made.make()
    (file,) = made.outputs[0].parent.glob(".done/*.json")
    file.write_text(note)
    assert not made.stage.is_done()
    made.make()
    assert made.times == 2
    assert made.stage.is_done()
