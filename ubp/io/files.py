"""Files that appear whole or not at all, that one process makes at a time, and their fingerprints."""

import ctypes
import hashlib
import logging
import os
import platform
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final, TypeVar

from filelock import FileLock, Timeout

from ubp.io.faults import refusal

logger = logging.getLogger(__name__)

Read = TypeVar("Read")

# A file of up to 16 MiB is hashed whole; of a larger one, 256 blocks spread evenly over it, its first and
# last among them. A parquet file's last block holds the footer: sizes, offsets and extremes of every chunk.
_BLOCK = 64 * 1024
_BLOCKS = 256

# Of renameat2 in Linux.
_HERE: Final = -100  # AT_FDCWD: paths begin at the working directory
_EXCHANGE: Final = 2  # RENAME_EXCHANGE


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a path to write a file or a folder to; on success it replaces ``path``, flushed to disk.

    On an error or a kill ``path`` is as it was before. Where the file system cannot exchange two folders (Linux can), a
    kill between two renames leaves none, and the earlier one beside it, as ``.PID-PLACE-old.NAME``. What killed
    processes left aside is removed by the next that writes the same path. The name aside begins with a dot and ends
    like ``path``, so that libraries that look at the ending are content.

    Raises:
        UserError: the disk is full, or may not be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.parent / f"{_mark()}.{path.name}"
    _remove(aside)
    _remove_killed(path.parent, re.escape(path.name))
    try:
        yield aside
        for file in [aside, *sorted(aside.rglob("*"))] if aside.is_dir() else [aside]:
            flush(file)
        _put_in_place(aside, path)
        flush(path.parent)
    except Exception as error:
        if (refused := refusal(error, path)) is not None:
            raise refused from error
        raise
    finally:
        _remove(aside)


def remove_abandoned(path: Path) -> None:
    """Remove what killed processes left beside a path that they wrote with `atomic_write`, perhaps gigabytes.

    To be called with the path's lock held: then nobody else is at work on it, here or on another machine.
    """
    for left, _, _ in _marked(path.parent, re.escape(path.name)):
        _remove(left)


@contextmanager
def scratch_folder(parent: Path, name: str) -> Iterator[Path]:
    """Yield an empty folder for what is needed for a while, and remove it; and those of killed processes.

    Args:
        parent: in which it is; made where it is not there.
        name: of what it is for.
    """
    parent.mkdir(parents=True, exist_ok=True)
    _remove_killed(parent, rf"{re.escape(name)}-\w+")
    with TemporaryDirectory(dir=parent, prefix=f"{_mark()}.{name}-") as folder:
        yield Path(folder)


def _mark() -> str:
    """What the names begin with of that which this process makes for a while."""
    return f".{os.getpid()}-{_place()}"


def _remove_killed(folder: Path, name: str) -> None:
    """Remove what processes of this place made for a while, and left because they were killed.

    Args:
        folder: where it lies.
        name: a regular expression, of their names without the mark.
    """
    for left, process, place in _marked(folder, name):
        if place == _place() and not _is_alive(process):
            _remove(left)


def _marked(folder: Path, name: str) -> list[tuple[Path, int, str | None]]:
    """What lies in a folder with the mark of a process, this one or another: with the process, and where it runs."""
    if not folder.is_dir():
        return []
    pattern = re.compile(rf"\.(\d+)(?:-([0-9a-f]+))?(?:[-.]old)?\.{name}")  # older versions gave no place
    found = ((left, pattern.fullmatch(left.name)) for left in folder.iterdir())
    return [(left, int(match[1]), match[2]) for left, match in found if match]


@cache
def _place() -> str:
    """Where a process's number means this process: the machine, and on it the container."""
    try:
        space = str(Path("/proc/self/ns/pid").readlink())
    except OSError:  # no Linux
        space = ""
    return digest_of(platform.node(), space)[:8]


def _is_alive(process: int) -> bool:
    """Whether a process of this place runs."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _put_in_place(aside: Path, path: Path) -> None:
    if not path.is_dir():
        aside.replace(path)
    elif not _exchanged(aside, path):
        # A folder that is not empty cannot be replaced in one step: move it away first.
        old = path.parent / f"{_mark()}-old.{path.name}"
        path.replace(old)
        aside.replace(path)
        shutil.rmtree(old)


def _exchanged(one: Path, other: Path) -> bool:
    """Give each of two paths the other's content in one step, where system and file system can."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    return rename is not None and rename(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE) == 0


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)  # another process may remove the same
    else:
        path.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Have the operating system write a file or folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def locked(path: Path, what: str) -> Iterator[bool]:
    """Hold the lock of a file; the operating system gives it back even if the process is killed.

    A process that has to wait logs one line: who holds the lock, and since when.

    Args:
        path: the lock's file. It stays when the lock is given back.
        what: is made meanwhile, for the line of those who wait.

    Yields:
        Whether another process held it first.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock, holder = FileLock(path), path.with_name(f"{path.name}-holder")
    waited = False
    try:
        lock.acquire(blocking=False)
    except Timeout:
        waited = True
        # Absent for a moment only: after the other one took the lock, before it wrote who it is.
        who = holder.read_text() if holder.exists() else f"another process, which is making {what}"
        logger.info("waiting for %s", who)
        lock.acquire()
    try:
        since = time.strftime("%F %T")
        holder.write_text(f"PID {os.getpid()} on {platform.node()}, which is making {what} since {since}")
        yield waited
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


def forget_killed_holder(path: Path) -> None:
    """Remove what a killed process wrote of itself beside a lock; not where a living one holds it.

    Args:
        path: see `locked`.
    """
    holder = path.with_name(f"{path.name}-holder")
    if holder.exists():
        try:
            with FileLock(path).acquire(blocking=False):
                holder.unlink(missing_ok=True)
        except Timeout:
            return


def stamp(path: Path) -> tuple[int, int] | None:
    """Another one after the file or folder was replaced; None where there is nothing."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_mtime_ns


def read_whole(path: Path, read: Callable[[], Read]) -> Read:
    """What a function reads of a folder that another process may replace meanwhile: again where it did.

    Args:
        path: of the folder, replaced by `atomic_write`.
        read: its files, in any order.
    """
    while True:
        before = stamp(path)
        try:
            found = read()
        except Exception:
            if stamp(path) == before:
                raise
        else:
            if stamp(path) == before:
                return found
        logger.info("%s was replaced while it was read: reading it again", path)


def fingerprint(path: Path) -> str:
    """32 hexadecimal digits that tell one content from another, whatever the file's name and date.

    Costs at most 16 MiB of reading a file (see the note on blocks above).
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size  # of what was opened: another file may have taken its place
        digest = hashlib.blake2b(str(size).encode(), digest_size=16)
        if size <= _BLOCK * _BLOCKS:
            digest.update(file.read())
        else:
            for block in range(_BLOCKS):
                file.seek((size - _BLOCK) * block // (_BLOCKS - 1))
                digest.update(file.read(_BLOCK))
    return digest.hexdigest()


def digest_of_files(files: Iterable[Path], folder: Path) -> str:
    """32 hexadecimal digits that tell one content of some files below a folder from another, their names included."""
    return digest_of(*(f"{file.relative_to(folder)}:{fingerprint(file)}" for file in files))


def digest_of(*parts: object) -> str:
    """32 hexadecimal digits of the parts' text, for joining fingerprints and settings into one."""
    return hashlib.blake2b("\x1f".join(map(str, parts)).encode(), digest_size=16).hexdigest()
