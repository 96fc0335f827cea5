"""The long part of a run: every text through the model, in shards that a killed run leaves on disk.

Texts are sorted by length, the longest first: batches hold little padding, and what does not fit into memory
fails at once. A shard is a file of ``shard_size`` texts' vectors; it appears whole or not at all, and a run that is
started again continues after the last one. No batch spans two shards, so that the same settings give the same
vectors however often the run was killed.
"""

import logging
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from LLM.backends import Backend, Vectors
from LLM.tokens import Tokens
from ubp.io.arrays import save_array
from ubp.io.errors import UserError
from ubp.io.files import atomic_write

logger = logging.getLogger(__name__)

_LOG_INTERVAL: Final = 30.0  # seconds between two lines of progress in a log


class Meter:
    """Tokens per second and the time left: a progress bar on a terminal, else a log line every 30 seconds."""

    def __init__(self, total: int, done: int) -> None:
        self.total = total
        self.done = done
        self._done_before = done
        self._started = self._last_line = time.monotonic()
        self._bar: Progress | None = None
        self._task = TaskID(0)
        if sys.stderr.isatty():
            columns = (TextColumn("reading texts"), BarColumn(), TextColumn("{task.fields[rate]}"))
            self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
            self._task = self._bar.add_task("", total=total, completed=done, rate="")

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._started

    @property
    def rate(self) -> float:
        """Tokens per second since this process began to read."""
        return (self.done - self._done_before) / max(self.seconds, 1e-9)

    def advance(self, tokens: int) -> None:
        """Count further tokens as read."""
        self.done += tokens
        line = f"{self.rate:,.0f} tokens/s, {clock((self.total - self.done) / max(self.rate, 1e-9))} left"
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done, rate=line)
        elif time.monotonic() - self._last_line >= _LOG_INTERVAL:
            self._last_line = time.monotonic()
            logger.info("%s of %s tokens, %s", f"{self.done:,}", f"{self.total:,}", line)


def clock(seconds: float) -> str:
    """``1:02:03`` or ``2:03``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def encode_all(tokens: Tokens, backend: Backend, folder: Path, shard_size: int) -> tuple[Vectors, float]:
    """The vectors of all texts.

    Args:
        tokens: the texts.
        backend: runs the model.
        folder: for the shards alone; shards that are there are not made again.
        shard_size: texts per shard.

    Returns:
        float32 [texts, width], and the tokens per second of this process.

    Raises:
        UserError: the model returned numbers that are not finite.
    """
    order = np.argsort(-tokens.lengths, kind="stable")
    folder.mkdir(parents=True, exist_ok=True)
    shards = _shards(folder)
    begin = _end(shards[-1]) if shards else 0
    read = int(tokens.lengths[order[:begin]].sum())
    if begin:
        logger.info("resuming the run in %s after %s of %s texts", folder, f"{begin:,}", f"{len(order):,}")
    with Meter(int(tokens.lengths.sum()), read) as meter:
        for first in range(begin, len(order), shard_size):
            texts = order[first : first + shard_size]
            vectors = backend.encode(tokens, texts, meter.advance)
            _save(vectors, folder / f"{first:010d}-{first + len(texts):010d}.npy")
    return _concatenated(_shards(folder), order), meter.rate


def _save(vectors: Vectors, path: Path) -> None:
    faulty = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if len(faulty):
        raise UserError(
            f"the model returned numbers that are not finite for {len(faulty):,} of {len(vectors):,} texts; "
            "try dtype=float32, and if that does not help, another model"
        )
    with atomic_write(path) as aside:
        save_array(aside, vectors)


def _shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("[0-9]*.npy"))


def _end(shard: Path) -> int:
    return int(shard.stem.split("-")[1])


def _concatenated(shards: list[Path], order: npt.NDArray[np.int64]) -> Vectors:
    parts = [np.load(shard, mmap_mode="r") for shard in shards]
    vectors = np.empty((len(order), parts[0].shape[1]), np.float32)
    for shard, part in zip(shards, parts, strict=True):
        vectors[order[_end(shard) - len(part) : _end(shard)]] = part
    return vectors
