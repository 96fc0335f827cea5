"""What a disk refuses is one line, whoever met it; other errors are left as they are."""

import errno
import shutil
from types import SimpleNamespace

import polars as pl
import pytest

from ubp.io.errors import UserError
from ubp.io.faults import no_room, refusal
from ubp.io.files import atomic_write


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "no space left on the disk; make room"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "your quota of the disk is used up"),
        (OSError(errno.EFBIG, "File too large"), "the file would be larger than the system allows (ulimit -f)"),
        (OSError(errno.EROFS, "Read-only file system"), "the disk can only be read"),
        (PermissionError(errno.EACCES, "Permission denied"), "no permission; have it opened to you"),
        (pl.exceptions.ComputeError("parquet: IO error: No space left on device (os error 28)"), "no space left"),
        (RuntimeError("I/O error: Disk quota exceeded (os error 122)"), "your quota"),
    ],
)
def test_a_line_says_what_and_where(tmp_path, error, says):
    found = refusal(error, tmp_path / "a.parquet")
    assert str(found).startswith(f"{tmp_path / 'a.parquet'}: {says}")
    assert str(found).endswith("what was finished before is kept")


def test_an_error_that_names_a_file_speaks_of_it(tmp_path):
    found = refusal(PermissionError(errno.EACCES, "Permission denied", "/x/b.npy"), tmp_path)
    assert str(found).startswith("/x/b.npy: no permission")
    full = (errno.ENOSPC, "No space left on device")
    assert str(refusal(OSError(*full, f"{tmp_path}/b.npy"), tmp_path)).startswith(f"{tmp_path}/b.npy: no space")
    assert str(refusal(OSError(*full, "/x/b.npy"), tmp_path)).startswith(f"{tmp_path}: no space")


def test_what_it_came_from_counts(tmp_path):
    error = ValueError("could not write")
    error.__cause__ = OSError(errno.ENOSPC, "No space left on device")
    assert "no space left" in str(refusal(error, tmp_path))


def test_an_error_without_words_on_a_full_disk_is_that(tmp_path, monkeypatch):
    error = RuntimeError("basic_ios::clear: iostream error")  # torch's
    assert refusal(error, tmp_path / "new" / "a.pt") is None
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=100))
    assert "no space left" in str(refusal(error, tmp_path / "new" / "a.pt"))
    assert refusal(ValueError("something else"), tmp_path / "a.pt") is None


def test_a_disk_with_room_and_a_full_one(tmp_path, monkeypatch):
    assert no_room(tmp_path / "a.log") is None
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    assert str(no_room(tmp_path / "a.log")).startswith(f"{tmp_path / 'a.log'}: no space left on the disk; make room")


def test_other_errors_stay(tmp_path):
    for error in (OSError(errno.ENOENT, "No such file"), ValueError("odd"), UserError("a line: permission denied")):
        assert refusal(error, tmp_path) is None


def test_a_file_that_is_written(tmp_path):
    def fill():
        with atomic_write(tmp_path / "a.txt") as aside:
            aside.write_text("half")
            raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "a.txt").write_text("old")
    with pytest.raises(UserError, match=r"a\.txt: no space left on the disk"):
        fill()
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a.txt", "old")]
