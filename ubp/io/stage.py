"""Stages of work: made once, skipped when done, by one process at a time."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ubp.io.files import atomic_write, digest_of, fingerprint, locked, stamp


def mark_done(at: Path, key: str, outputs: Sequence[Path]) -> None:
    """Note at ``at`` that the outputs, as they are now, were made from what ``key`` stands for."""
    with atomic_write(at) as aside:
        aside.write_text(_mark_text(key, outputs))


def is_done(at: Path, key: str, outputs: Sequence[Path]) -> bool:
    """Whether the outputs are there, unchanged, and were made from what ``key`` stands for."""
    there = at.exists() and all(path.exists() for path in outputs)
    return there and at.read_text() == _mark_text(key, outputs)


def _mark_text(key: str, outputs: Sequence[Path]) -> str:
    return digest_of(key, *(f"{path.name}:{fingerprint(path)}" for path in outputs))


class AlreadyDone(Exception):
    """The result is there, made from the same history with the same settings; nothing is left to do."""


@contextmanager
def made_once(
    name: str,
    path: Path,
    lock: Path,
    done: Callable[[], bool],
    overwrite: bool,
    waited: Callable[[], None],
    remark: Callable[[], str] = lambda: "",
) -> Iterator[None]:
    """Hold the lock of what a command makes, unless it is done: nothing is made by two processes at a time.

    The second process waits. It then finds done what the first one made, even with ``overwrite``; where the first
    one failed or was killed, it takes over.

    Args:
        name: of the block, the entry or the texts.
        path: where they come to lie.
        lock: the file that a process locks meanwhile.
        done: says whether what lies there is what is asked for.
        overwrite: make it although it is done.
        waited: called when another process was waited for, to look whether its sources are what they were.
        remark: what is to be said behind the name of one that is done.

    Raises:
        AlreadyDone: it is, and ``overwrite`` is off or it was made meanwhile.
        UserError: the history changed while this process waited.
    """
    before = stamp(path)

    def already() -> AlreadyDone:
        return AlreadyDone(f"{name}{remark()} · done before · {path} (overwrite=True makes it again)")

    if before is not None and not overwrite and done():
        raise already()
    if not is_first_process():
        yield  # the first one holds the lock, and waits for this one
        return
    with locked(lock, name) as had_to_wait:
        if had_to_wait:
            waited()
        if stamp(path) not in (None, before) and done():
            raise already()
        yield


def is_first_process() -> bool:
    """False in the processes that Lightning starts for further devices."""
    ranks = ("LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "RANK", "SLURM_PROCID")
    return all(os.environ.get(rank, "0") == "0" for rank in ranks)
