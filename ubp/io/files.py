"""Files that appear whole or not at all, that one process makes at a time, and their fingerprints."""

import hashlib
import logging
import os
import platform
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

logger = logging.getLogger(__name__)

# A file of up to 16 MiB is hashed whole; of a larger one, 256 blocks spread evenly over it, its first and
# last among them. A parquet file's last block holds the footer: sizes, offsets and extremes of every chunk.
_BLOCK = 64 * 1024
_BLOCKS = 256


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a path to write a file or a folder to; on success it replaces ``path``, flushed to disk.

    On an error ``path`` is as it was before; on a kill too, but for a folder between two renames: then the
    earlier one lies beside it as ``.PID.old.NAME``. The name aside begins with a dot and ends like ``path``,
    so that libraries that look at the ending are content.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.parent / f".{os.getpid()}.{path.name}"
    _remove(aside)
    try:
        yield aside
        for file in [aside, *sorted(aside.rglob("*"))] if aside.is_dir() else [aside]:
            flush(file)
        _put_in_place(aside, path)
        flush(path.parent)
    finally:
        _remove(aside)


def remove_abandoned(path: Path) -> None:
    """Remove what killed processes left beside a path that they wrote with `atomic_write`, perhaps gigabytes.

    To be called with the path's lock held: then nobody else is at work on it.
    """
    for left in path.parent.glob(f".*.{path.name}"):
        _remove(left)


def _put_in_place(aside: Path, path: Path) -> None:
    if not path.is_dir():
        aside.replace(path)
        return
    # A folder that is not empty cannot be replaced in one step: move it away first.
    old = path.parent / f".{os.getpid()}.old.{path.name}"
    path.replace(old)
    aside.replace(path)
    shutil.rmtree(old)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
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


def stamp(path: Path) -> tuple[int, int] | None:
    """Another one after the file or folder was replaced; None where there is nothing."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_mtime_ns


def fingerprint(path: Path) -> str:
    """32 hexadecimal digits that tell one content from another, whatever the file's name and date.

    Costs at most 16 MiB of reading a file (see the note on blocks above).
    """
    size = path.stat().st_size
    digest = hashlib.blake2b(str(size).encode(), digest_size=16)
    with path.open("rb") as file:
        if size <= _BLOCK * _BLOCKS:
            digest.update(file.read())
        else:
            for block in range(_BLOCKS):
                file.seek((size - _BLOCK) * block // (_BLOCKS - 1))
                digest.update(file.read(_BLOCK))
    return digest.hexdigest()


def digest_of(*parts: object) -> str:
    """32 hexadecimal digits of the parts' text, for joining fingerprints and settings into one."""
    return hashlib.blake2b("\x1f".join(map(str, parts)).encode(), digest_size=16).hexdigest()
