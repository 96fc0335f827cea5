"""How many pairs of a client and an item a log has, about: what a matrix of them takes is told before it is made."""

from dataclasses import dataclass
from typing import Final, Self

import polars as pl

from ubp.data import schema
from ubp.data.reading import collect
from ubp.data.shards import shard_of_client

ITEM: Final = "item"
PROCESS: Final = 250_000_000  # bytes: of a process with the libraries, and of Polars' buffers
READ: Final = 100  # bytes of a pair while a table of them becomes a sparse matrix
_AT_ONCE: Final = 2_000_000  # events of the clients whose pairs are counted; of fewer events all are


@dataclass(frozen=True)
class PairCounts:
    """Of some events.

    Attributes:
        events: all of them.
        pairs: of a client and an item, about.
        clients: with an event, about.
        items: of them.
    """

    events: int
    pairs: int
    clients: int
    items: int

    @classmethod
    def of(cls, events: pl.LazyFrame) -> Self:
        """Count, in two passes.

        Pairs and clients are counted for a share of the clients, by the hash of `ubp.data.shards`: all pairs would take
        as much memory as what is to be found out. Of up to two million events the numbers are exact.

        Args:
            events: ``client_id`` and ``item``.
        """
        whole = collect(events.select(pl.len(), items=pl.col(ITEM).n_unique()))
        rows, items = whole.row(0)
        parts = max(1, rows // _AT_ONCE)
        pairs = events.filter(shard_of_client(parts) == 0).select(schema.CLIENT_ID, ITEM).unique()
        some = collect(pairs.select(pl.len(), clients=pl.col(schema.CLIENT_ID).n_unique())).row(0)
        return cls(rows, some[0] * parts, some[1] * parts, items)

    def words(self, items: str) -> str:
        """The numbers as a line has them; ``items`` is what they are called."""
        pairs = f"about {self.pairs:,} pairs of {self.clients:,} clients and {self.items:,} {items}"
        return f"{self.events:,} events, {pairs}"
