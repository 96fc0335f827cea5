"""A history's events by shards of clients: partitioned once by a hash of the client, kept in the cache.

A folder with, for each event type, a folder for each slice of its file, and in that a folder of parquet for each shard
(``page_visit/000/shard=3/``): columns and values as `ubp.data.history.ChallengeData.events` gives them, times and codes
parsed. Whatever is worked out client by client can be worked out shard by shard, by as many machines as there are
shards: each reads its own files alone (`ubp.data.history.ChallengeData.of_shard`).

The hash is Knuth's multiplicative one ("The Art of Computer Programming", volume 3, section 6.4): the upper half of the
product of the id and 2^64 divided by the golden ratio, modulo the number of shards. Which shard a client is in depends
on its id alone, so clients that come later move no other.
"""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt
import polars as pl

from ubp.data import schema
from ubp.data.schema import EventType
from ubp.io.errors import require
from ubp.io.files import atomic_write, remove_abandoned
from ubp.io.spread import Spread
from ubp.io.stage import AlreadyDone, Stage

if TYPE_CHECKING:
    from ubp.data.history import ChallengeData

Ids = npt.NDArray[np.int64]

MOST_SHARDS: Final = 1024  # each is an open file of every task that partitions

_VERSION: Final = 1  # of the folder's layout; one of another is made again
_MULTIPLIER: Final = 0x9E3779B97F4A7C15
_UPPER_HALF: Final = 2**32
_SHARD: Final = "shard"
# Partitioned by one task. More rows would keep machines idle, fewer give many small files: one for each shard and
# slice.
_ROWS_PER_SLICE: Final = 20_000_000
_MOST_SLICES: Final = 64


def shards_of(clients: Ids, count: int) -> Ids:
    """The shard of each client, of so many: int64 [clients]."""
    upper = (clients.view(np.uint64) * np.uint64(_MULTIPLIER)) >> np.uint64(32)  # wraps at 2^64
    return (upper % np.uint64(count)).astype(np.int64)


def shard_of_client(count: int) -> pl.Expr:
    """The same of a column of clients, UInt16."""
    upper = pl.col(schema.CLIENT_ID).reinterpret(signed=False) * pl.lit(_MULTIPLIER, pl.UInt64) // _UPPER_HALF
    return (upper % count).cast(pl.UInt16)


@dataclass(frozen=True)
class Shards:
    """A history's events by shards, made by `sharded`.

    Attributes:
        folder: see the module.
        count: of the shards.
    """

    folder: Path
    count: int

    def __iter__(self) -> Iterator["Shard"]:
        return (Shard(self.folder, number, self.count) for number in range(self.count))


@dataclass(frozen=True)
class Shard:
    """One shard of a history's events.

    Attributes:
        folder: of all shards.
        number: of this one, from 0 on.
        count: of all.
    """

    folder: Path
    number: int
    count: int

    def events(self, event_type: EventType) -> pl.LazyFrame:
        """Events of one type, whatever the day."""
        files = sorted(self.folder.glob(f"{event_type}/[0-9]*/{_SHARD}={self.number}/*.parquet"))
        if files:
            return pl.scan_parquet(files, glob=False, hive_partitioning=False)
        return pl.LazyFrame(schema=_columns(event_type))

    def own(self, clients: Ids) -> Ids:
        """Those of some clients that are in this shard, in their order."""
        found: Ids = clients[shards_of(clients, self.count) == self.number]
        return found


def _columns(event_type: EventType) -> pl.Schema:
    kinds = {schema.CLIENT_ID: pl.Int64(), schema.TIMESTAMP: schema.TIMESTAMP_DTYPE}
    subject = pl.Array(pl.UInt8, schema.CODES) if event_type.subject == schema.QUERY else pl.Int64()
    return pl.Schema(kinds | {event_type.subject: subject})


def sharded(history: "ChallengeData", count: int, spread: Spread) -> Shards:
    """All events in a history's files by shards: from the cache, or made now.

    Each slice of a file is read once, in one streaming pass. Memory grows with the shards, not with the events.
    Processes that ask at the same time wait for the one that makes them.

    Args:
        history: whose; neither its day nor its mask matters.
        count: of the shards.
        spread: does the slices.

    Raises:
        UserError: there are no or too many shards, or the files changed meanwhile.
    """
    require(1 <= count <= MOST_SHARDS, "shards", count, f"from 1 to {MOST_SHARDS}")
    folder = history.paths.shards(history.events_fingerprint, count)
    made_from = {"events": history.events_fingerprint, "version": _VERSION}
    stage = Stage(f"the events of {history.folder} by shards", (folder,), lambda: made_from)
    with suppress(AlreadyDone), stage.once(overwrite=False):
        remove_abandoned(folder)
        with atomic_write(folder) as aside:
            aside.mkdir()
            slices = _slices(history.whole, count, aside)
            spread("partitioning the events", slices)
            for each in slices:
                remove_abandoned(each.out)
            history.require_unchanged()  # or two logs would be mixed, under the first one's name
    return Shards(folder, count)


@dataclass(frozen=True)
class _Slice:
    """Rows of one file, to be partitioned.

    Attributes:
        history: the whole log.
        event_type: of the file.
        number: of the slice.
        begin: its first row.
        rows: their number.
        shards: number of shards.
        folder: of all event types.
    """

    history: "ChallengeData"
    event_type: EventType
    number: int
    begin: int
    rows: int
    shards: int
    folder: Path

    @property
    def out(self) -> Path:
        """Its folder."""
        return self.folder / self.event_type / f"{self.number:03d}"

    def __call__(self) -> None:
        """Write the folder of this slice: whole or not at all."""
        events = self.history.filed(self.event_type, self.begin, self.rows).with_columns(
            shard_of_client(self.shards).alias(_SHARD)
        )
        with atomic_write(self.out) as aside:
            aside.mkdir()
            partitioned = pl.PartitionBy(aside, key=_SHARD, include_key=False, approximate_bytes_per_file=None)
            events.sink_parquet(partitioned, compression="lz4", maintain_order=True, mkdir=True, engine="streaming")


def _slices(history: "ChallengeData", count: int, folder: Path) -> list[_Slice]:
    """All events in slices of the same number of rows, those of one type at least one."""
    found = []
    for event_type in history.event_types:
        rows = history.rows_filed(event_type)
        slices = min(max(1, -(-rows // _ROWS_PER_SLICE)), _MOST_SLICES)
        limits = [rows * number // slices for number in range(slices + 1)]
        found += [
            _Slice(history, event_type, number, begin, end - begin, count, folder)
            for number, (begin, end) in enumerate(pairwise(limits))
        ]
    return found
