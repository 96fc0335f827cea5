"""Building the sequence store by shards of clients, on as many machines as there are: the bytes of one process.

What a store says of all clients, its tables of urls and queries, is the union of what the shards met. Then each shard
puts its own events in order (`ubp.sequences.build.write_events`), with references to these tables; and the shards'
clients, which are spread over all ids, are laid side by side, some millions of events at a time.
"""

import logging
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl

from ubp.data import schema
from ubp.data.history import ChallengeData
from ubp.data.shards import Shards, sharded
from ubp.io.arrays import append_array, save_array, write_header
from ubp.io.files import atomic_write
from ubp.io.spread import Spread
from ubp.sequences.arrays import Int64, offsets_of, ranges
from ubp.sequences.build import (
    made_once,
    met,
    require_span,
    tables_read,
    write_events,
    write_items,
    write_subjects,
)
from ubp.sequences.layout import COLUMNS, write_note
from ubp.sequences.store import Sequences

logger = logging.getLogger(__name__)

_ROWS: int = 4_000_000  # laid side by side at a time, or one client's where it has more


def built_by_shards(history: ChallengeData, shards: int, spread: Spread) -> Sequences:
    """`ubp.sequences.build.build_or_open`, where the store is built by tasks.

    Args:
        history: whose files.
        shards: how many.
        spread: does them.

    Raises:
        UserError: see `ubp.sequences.build.build_or_open`.
    """
    return made_once(history, partial(build_by_shards, shards=shards, spread=spread))


def build_by_shards(data: ChallengeData, folder: Path, shards: int, spread: Spread) -> None:
    """Write a whole history's store; see `ubp.sequences.build.build`.

    Args:
        data: the history.
        folder: to be made.
        shards: how many.
        spread: does them.
    """
    require_span(data)
    events = sharded(data, shards, spread)
    logger.info("%s: putting the events in order by %d shards (once for these files)", data.folder, shards)
    folder.mkdir()
    work = folder / "shards"
    work.mkdir()
    _write_tables(data, events, folder, work, spread)
    lasts = spread(
        "putting the events in order", [_Ordered(view, folder, out) for view, out in _views(data, events, work)]
    )
    _lay_side_by_side([out for _, out in _views(data, events, work)], folder)
    shutil.rmtree(work)
    write_note(folder, data.start, max(lasts), data.event_types)


def _views(data: ChallengeData, events: Shards, work: Path) -> Iterator[tuple[ChallengeData, Path]]:
    """The history of each shard, and the folder that it writes."""
    return ((data.of_shard(shard), work / f"{shard.number:04d}") for shard in events)


def _write_tables(data: ChallengeData, events: Shards, folder: Path, work: Path, spread: Spread) -> None:
    """Write the tables of skus, urls and queries."""
    write_items(data, folder)
    for subject in (schema.URL, schema.QUERY):
        pieces = [
            _Met(view, subject, work / f"{subject}_{out.name}.parquet") for view, out in _views(data, events, work)
        ]
        spread(f"finding each {subject}", pieces)
        write_subjects(pl.scan_parquet([piece.out for piece in pieces], glob=False).unique(), subject, folder)


@dataclass(frozen=True)
class _Met:
    """The urls or the queries of one shard.

    Attributes:
        view: the history of the shard.
        subject: ``url`` or ``query``.
        out: the parquet to write.
    """

    view: ChallengeData
    subject: str
    out: Path

    def __call__(self) -> None:
        with atomic_write(self.out) as aside:
            met(self.view, self.subject).sink_parquet(aside, compression="lz4", engine="streaming")


@dataclass(frozen=True)
class _Ordered:
    """The events of one shard.

    Attributes:
        view: the history of the shard.
        tables: the folder of the tables that references are to.
        out: the folder to write.
    """

    view: ChallengeData
    tables: Path
    out: Path

    def __call__(self) -> int:
        """Write columns, clients and offsets as a store has them; the last event's time, -1 where there is none."""
        with atomic_write(self.out) as aside:
            aside.mkdir()
            if any(self.view.rows(event_type) for event_type in self.view.event_types):
                return write_events(self.view, tables_read(self.tables), aside)
            for name, kind in {**COLUMNS, "clients": np.int64}.items():
                save_array(aside / f"{name}.npy", np.empty(0, kind))
            save_array(aside / "offsets.npy", np.zeros(1, np.int64))
            return -1


@dataclass(frozen=True)
class _Side:
    """One shard's events, to be laid beside the others.

    Attributes:
        folder: of its columns.
        places: int64 [clients of the shard], ascending: of all clients.
        offsets: int64 [clients of the shard + 1].
    """

    folder: Path
    places: Int64
    offsets: Int64


def _lay_side_by_side(folders: Sequence[Path], folder: Path) -> None:
    """Write clients, offsets and columns of all shards, by ascending client."""
    clients = [np.load(each / "clients.npy") for each in folders]
    own_offsets = [np.load(each / "offsets.npy") for each in folders]
    every = np.concatenate(clients)
    order = np.argsort(every, kind="stable")
    save_array(folder / "clients.npy", every[order])
    offsets = offsets_of(np.concatenate([np.diff(each) for each in own_offsets])[order])
    save_array(folder / "offsets.npy", offsets)
    places = np.empty(len(every), np.int64)
    places[order] = np.arange(len(every))
    cuts = np.cumsum([len(each) for each in clients])[:-1]
    sides = [_Side(*each) for each in zip(folders, np.split(places, cuts), own_offsets, strict=True)]
    with ExitStack() as stack:
        files = {name: stack.enter_context((folder / f"{name}.npy").open("wb")) for name in COLUMNS}
        for name, file in files.items():
            write_header(file, np.dtype(COLUMNS[name]), (int(offsets[-1]),))
        for first, last in _chunks(offsets):
            for name, file in files.items():
                append_array(file, _side_by_side(sides, name, offsets, first, last))


def _chunks(offsets: Int64) -> Iterator[tuple[int, int]]:
    """Clients in turn, one at least: the first of each chunk, and the first behind it."""
    first = 0
    while first < len(offsets) - 1:
        last = max(first + 1, int(np.searchsorted(offsets, offsets[first] + _ROWS, side="right")) - 1)
        yield first, last
        first = last


def _side_by_side(sides: Sequence[_Side], name: str, offsets: Int64, first: int, last: int) -> np.ndarray:
    """A column of the clients from one place on and before another."""
    found = np.empty(offsets[last] - offsets[first], COLUMNS[name])
    for side in sides:
        begin, end = np.searchsorted(side.places, (first, last))
        starts = offsets[side.places[begin:end]] - offsets[first]
        own = np.load(side.folder / f"{name}.npy", mmap_mode="r")[side.offsets[begin] : side.offsets[end]]
        found[ranges(starts, np.diff(side.offsets[begin : end + 1]))] = own
    return found
