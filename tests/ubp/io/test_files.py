"""Files appear whole or not at all; fingerprints tell contents apart."""

import fcntl
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ubp.io import files
from ubp.io.files import (
    atomic_write,
    digest_of,
    fingerprint,
    forget_killed_holder,
    locked,
    remove_abandoned,
    scratch_folder,
    stamp,
)


class Halfway(Exception):
    """Stands for a crash while a file is written."""


def crash_while_writing(path, file=None):
    """Begin to write a file, or a file of a folder, and fail."""
    with atomic_write(path) as aside:
        if file is not None:
            aside.mkdir()
            aside = aside / file
        aside.write_text("half of the n")
        raise Halfway


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_replaced_on_success(tmp_path):
    path = tmp_path / "made" / "here" / "a.txt"
    for text in ("old", "new"):
        with atomic_write(path) as aside:
            assert aside.parent == path.parent
            assert aside.suffix == path.suffix
            aside.write_text(text)
        assert path.read_text() == text
    assert names(path.parent) == ["a.txt"]


def test_a_file_stays_as_it_was_on_an_error(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(Halfway):
        crash_while_writing(path)
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_a_new_file_does_not_appear_on_an_error(tmp_path):
    with pytest.raises(Halfway):
        crash_while_writing(tmp_path / "a.txt")
    assert names(tmp_path) == []


def test_a_folder_is_replaced_whole(tmp_path):
    folder = tmp_path / "entry"
    for name in ("old.npy", "new.npy"):
        with atomic_write(folder) as aside:
            aside.mkdir()
            (aside / name).write_text(name)
    assert names(folder) == ["new.npy"]
    assert names(tmp_path) == ["entry"]


def test_a_folder_stays_as_it_was_on_an_error(tmp_path):
    folder = tmp_path / "entry"
    folder.mkdir()
    (folder / "old.npy").write_text("old")
    with pytest.raises(Halfway):
        crash_while_writing(folder, "new.npy")
    assert names(folder) == ["old.npy"]
    assert names(tmp_path) == ["entry"]


@pytest.fixture
def dead():
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-S", "-c", ""])
    process.wait()
    return process.pid


def test_what_killed_runs_left_aside_is_removed_by_the_next_that_writes(tmp_path, dead):
    path = tmp_path / "a.txt"
    place = aside_of(path).name.split(".")[1].partition("-")[2]
    for left in (f".{os.getpid()}-{place}.a.txt", f".{dead}-{place}.a.txt", f".{dead}-{place}-old.a.txt"):
        (tmp_path / left).mkdir()
        (tmp_path / left / "junk").write_text("junk")
    kept = [f".1-{place}.a.txt", f".{dead}-0000.a.txt", f".{dead}-{place}.b.a.txt", f".{dead}.a.txt"]
    for other in kept:  # of a process that lives, of another machine, of other paths
        (tmp_path / other).write_text("at work")
    with atomic_write(path) as aside:
        aside.write_text("new")
    assert path.read_text() == "new"
    assert names(tmp_path) == sorted(["a.txt", *kept])


def test_a_scratch_folder_goes_and_those_of_killed_runs(tmp_path, dead):
    place = aside_of(tmp_path / "a.txt").name.split(".")[1].partition("-")[2]
    kept = [f".1-{place}.texts-abc", f".{dead}-0000.texts-abc", f".{dead}-{place}.other-abc"]
    for left in (f".{dead}-{place}.texts-x_1y", *kept):
        (tmp_path / left).mkdir()
    with scratch_folder(tmp_path, "texts") as folder, scratch_folder(tmp_path, "texts") as second:
        assert folder != second
        (folder / "junk").write_text("junk")
        assert len(names(tmp_path)) == len(kept) + 2
    assert names(tmp_path) == sorted(kept)


def aside_of(path):
    """Where a process writes what will lie there."""
    with pytest.raises(Halfway), atomic_write(path) as aside:
        raise Halfway
    return aside


@pytest.mark.parametrize("exchanges", [True, False])
def test_a_folder_is_there_at_every_moment(tmp_path, monkeypatch, exchanges):
    """Whoever looks before any step finds the old one or the new one, where the system can exchange two."""
    folder, seen = tmp_path / "entry", []
    folder.mkdir()
    (folder / "old.npy").write_text("old")
    if not exchanges:
        monkeypatch.setattr(files, "_exchanged", lambda *_: False)

    def looking(function):
        def look(*arguments, **settings):
            seen.append(tuple(names(folder)) if folder.exists() else ())
            return function(*arguments, **settings)

        return look

    for owner, name in ((Path, "replace"), (shutil, "rmtree"), (files, "flush"), (files, "_exchanged")):
        monkeypatch.setattr(owner, name, looking(getattr(owner, name)))
    with atomic_write(folder) as aside:
        aside.mkdir()
        (aside / "new.npy").write_text("new")
    assert {("old.npy",), ("new.npy",)} <= set(seen)
    assert (() in seen) == (not exchanges)
    assert names(tmp_path) == ["entry"]


def test_what_other_killed_runs_left_aside_is_removed(tmp_path):
    path = tmp_path / "store"
    kept = [".1-a0.another.store", ".store", "store"]
    for left in (".1-a0.store", ".22-b1-old.store", *kept):
        (tmp_path / left).mkdir()
        (tmp_path / left / "junk").write_text("junk")
    (tmp_path / ".3-a0.store").write_text("a file")
    remove_abandoned(path)
    assert names(tmp_path) == kept
    remove_abandoned(tmp_path / "nowhere" / "store")


def test_fingerprint_is_of_the_content_not_of_name_or_date(tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    a.write_bytes(b"1234")
    b.write_bytes(b"1234")
    os.utime(b, (1, 1))
    assert fingerprint(a) == fingerprint(b)
    b.write_bytes(b"1235")
    assert fingerprint(a) != fingerprint(b)


@pytest.mark.parametrize("at", [0, 40, 99])
def test_fingerprint_of_a_large_file_samples_its_blocks(tmp_path, monkeypatch, at):
    monkeypatch.setattr(files, "_BLOCK", 10)
    monkeypatch.setattr(files, "_BLOCKS", 4)  # of 100 bytes: 0..9, 30..39, 60..69, 90..99
    path = tmp_path / "large"
    content = bytearray(range(100))
    path.write_bytes(content)
    before = fingerprint(path)
    assert fingerprint(path) == before
    content[at] ^= 255
    path.write_bytes(content)
    assert (fingerprint(path) != before) == (at != 40)  # 40 lies between the blocks
    path.write_bytes(content + b"x")
    assert fingerprint(path) != before


def test_a_folder_replaced_while_it_is_read_is_read_again(tmp_path):
    folder, seen = tmp_path / "entry", []
    put(folder, "1")

    def read():
        first = (folder / "a").read_text()
        if len(seen) < 2:
            seen.append(first)
            put(folder, str(len(seen) + 1))
            if len(seen) == 2:
                raise ValueError("half of the one, half of the other")
        return first + (folder / "b").read_text()

    assert files.read_whole(folder, read) == "33"
    assert seen == ["1", "2"]


def put(folder, text):
    with atomic_write(folder) as aside:
        aside.mkdir()
        for name in "ab":
            (aside / name).write_text(text)


def test_an_error_of_a_folder_that_stays_is_raised(tmp_path):
    with pytest.raises(FileNotFoundError):
        files.read_whole(tmp_path / "none", (tmp_path / "none" / "a").read_text)


def test_digest_tells_parts_apart():
    assert digest_of("ab", "c") != digest_of("a", "bc")
    assert digest_of(1, None) == digest_of(1, None)


def test_a_lock_says_who_holds_it_and_nobody_afterwards(tmp_path):
    path = tmp_path / "made" / "here"
    for _ in range(2):
        with locked(path, "a block") as waited:
            assert not waited
            holder = path.with_name("here-holder").read_text()
            assert holder.startswith(f"PID {os.getpid()} on {os.uname().nodename}, which is making a block")
            with path.open() as other, pytest.raises(BlockingIOError):
                fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert not path.with_name("here-holder").exists()


def test_what_a_killed_holder_wrote_is_removed_and_a_living_ones_stays(tmp_path):
    path, holder = tmp_path / "lock", tmp_path / "lock-holder"
    forget_killed_holder(path)
    assert names(tmp_path) == []
    with locked(path, "a block"):
        forget_killed_holder(path)
        assert holder.exists()
    holder.write_text("PID 1")
    forget_killed_holder(path)
    assert not holder.exists()


def test_a_lock_is_given_back_though_a_forked_child_lives(tmp_path):
    path = tmp_path / "lock"
    with locked(path, "a block"):
        child = os.fork()
        if not child:
            time.sleep(60)
            os._exit(0)
    try:
        with path.open() as other:
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)  # raises where it is held
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)


def test_a_stamp_changes_with_what_is_replaced(tmp_path):
    path = tmp_path / "a.txt"
    assert stamp(path) is None
    path.write_text("1")
    before = stamp(path)
    assert stamp(path) == before
    with atomic_write(path) as aside:
        aside.write_text("1")
    assert stamp(path) != before
