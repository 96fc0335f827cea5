"""How large a log is, and how dense: what decides which models it can bear."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Self

import numpy as np
import polars as pl

from ubp.data import schema
from ubp.data.history import ChallengeData, of_clients
from ubp.data.reading import collect
from ubp.data.schema import EventType
from ubp.data.snapshots import Clients

_DAY = timedelta(days=1)


@dataclass(frozen=True)
class LogFigures:
    """Of one history.

    Attributes:
        start: midnight of the day of the first event.
        end: the first moment after it.
        counts: events of each type of the log, by any client.
        by_client: a row per client that gets a profile: ``client_id``, and by the name of each event type its events,
            UInt32. These are the relevant clients; all of them where no file says which are relevant.
        are_relevant: whether there is such a file.
        skus: different ones among the item events of these clients.
        categories: different ones of these skus.
        pairs: of a client and a category that it met.
    """

    start: datetime
    end: datetime
    counts: dict[EventType, int]
    by_client: pl.DataFrame
    are_relevant: bool
    skus: int
    categories: int
    pairs: int

    @classmethod
    def of(cls, history: ChallengeData) -> Self:
        """Count; a pass over each event type, memory by the clients and by the pairs of a client and a sku."""
        are_relevant = history.paths.relevant_clients.exists()
        relevant = history.relevant_clients if are_relevant else None
        met = _met(history, relevant)
        return cls(
            start=history.start,
            end=history.as_of,
            counts={event_type: history.rows(event_type) for event_type in history.event_types},
            by_client=_by_client(history, relevant),
            are_relevant=are_relevant,
            skus=met[schema.SKU].n_unique(),
            categories=met[schema.CATEGORY].n_unique(),
            pairs=len(met.select(schema.CLIENT_ID, schema.CATEGORY).unique()),
        )

    @property
    def days(self) -> float:
        """Of the history."""
        return (self.end - self.start) / _DAY

    @property
    def clients(self) -> int:
        """That get a profile: with an event of any type."""
        return len(self.by_client)

    @property
    def buyers(self) -> int:
        """Of these, with a purchase."""
        return int((self.by_client[EventType.PRODUCT_BUY] > 0).sum())

    @property
    def present(self) -> tuple[EventType, ...]:
        """The event types of which these clients have some."""
        return tuple(event_type for event_type in self.counts if self.by_client[event_type].sum())

    @property
    def density(self) -> float:
        """Which share of all pairs of a client and a category occurs."""
        return self.pairs / max(1, self.clients * self.categories)

    def events(self, event_types: Iterable[EventType] | None = None, newest: int | None = None) -> int:
        """Events by these clients.

        Args:
            event_types: that count; None for all.
            newest: of each client so many at most; None: all.
        """
        total = self._of_each(self.counts if event_types is None else event_types)
        return int((total if newest is None else total.clip(upper_bound=newest)).sum())

    def median_events(self) -> float:
        """Events of any type by the client in the middle."""
        return float(np.median(self._of_each(self.counts).to_numpy())) if self.clients else 0.0

    def _of_each(self, event_types: Iterable[EventType]) -> pl.Series:
        """Events of some types by each client: Int64 [clients]."""
        total = pl.zeros(len(self.by_client), pl.Int64, eager=True)
        for event_type in event_types:
            total = total + self.by_client[event_type]
        return total


def _by_client(history: ChallengeData, relevant: Clients | None) -> pl.DataFrame:
    tables = []
    for event_type in history.event_types:
        ids = history.events(event_type).select(schema.CLIENT_ID)
        chosen = ids if relevant is None else of_clients(ids, relevant)
        tables.append(chosen.group_by(schema.CLIENT_ID).agg(pl.len().cast(pl.UInt32).alias(event_type)))
    every = pl.concat(tables, how="diagonal").group_by(schema.CLIENT_ID).agg(pl.exclude(schema.CLIENT_ID).sum())
    return collect(every.sort(schema.CLIENT_ID))


def _met(history: ChallengeData, relevant: Clients | None) -> pl.DataFrame:
    """``client_id``, ``sku`` and ``category``, each pair of a client and a sku once."""
    pairs = pl.concat(
        history.events(event_type).select(schema.CLIENT_ID, schema.SKU) for event_type in history.item_types
    )
    chosen = pairs if relevant is None else of_clients(pairs, relevant)
    properties = history.properties().select(schema.SKU, schema.CATEGORY)
    return collect(chosen.unique().join(properties, on=schema.SKU, how="left"))
