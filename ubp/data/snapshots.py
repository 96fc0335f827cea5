"""Days inside a history from which to learn: what was known on each, and what came in the window after it.

A snapshot never reads past the history that it was taken from, so nothing learned from snapshots has seen an event at
or after its ``as_of``. The split's windows are such windows too: that of the train labels follows the snapshot of the
train window's start.
"""

import logging
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from typing import Final

import numpy as np
import numpy.typing as npt
import polars as pl

from ubp.data import schema
from ubp.data.history import ChallengeData
from ubp.data.reading import collect, within
from ubp.data.schema import EventType
from ubp.io.errors import LEAVE_OUT, NoUsableEvents, UserError, require_positive

logger = logging.getLogger(__name__)

Clients = npt.NDArray[np.int64]

_DAY: Final = timedelta(days=1)
_EVENT, _PURCHASE = "event", "purchase"


@dataclass(frozen=True)
class SnapshotSettings:
    """Which days of a history become snapshots.

    Attributes:
        count: of them, at most: the newest.
        stride: days from one to the next.
        horizon: days of the window after each.
        least_history: days of history that lie before the earliest. Two weeks hold every weekday twice, and fill the
            short windows of features; on an earlier day clients that are old look new, as they never will again.
    """

    count: int = 26
    stride: int = 7
    horizon: int = 14
    least_history: int = 14

    def __post_init__(self) -> None:
        """Refuse settings that make no sense.

        Raises:
            UserError: one of them is below 1.
        """
        require_positive(self, "snapshots", "count", "stride", "horizon", "least_history")


class FirstEvents:
    """When each relevant client was first seen, and first bought: read once, and asked by every snapshot.

    Args:
        history: nothing at or after its ``as_of`` counts.
    """

    def __init__(self, history: ChallengeData) -> None:
        self.history = history

    def clients(self, day: datetime) -> Clients:
        """Those with an event before a moment: int64, ascending."""
        return self._earlier(_EVENT, day)

    def buyers(self, day: datetime) -> Clients:
        """Those with a purchase before a moment: int64, ascending."""
        return self._earlier(_PURCHASE, day)

    def _earlier(self, column: str, day: datetime) -> Clients:
        return self._moments.filter(pl.col(column) < day)[schema.CLIENT_ID].to_numpy()

    @cached_property
    def _moments(self) -> pl.DataFrame:
        """``client_id``, ascending, of the relevant clients with an event; ``event`` and ``purchase``, the first."""
        time = pl.col(schema.TIMESTAMP)
        firsts = [
            self.history.events(event_type, self.history.relevant_clients)
            .group_by(schema.CLIENT_ID)
            .agg(event=time.min())
            .with_columns(purchase=pl.col(_EVENT) if event_type == EventType.PRODUCT_BUY else None)
            .cast({_PURCHASE: schema.TIMESTAMP_DTYPE})
            for event_type in self.history.event_types
        ]
        first_of_all = pl.concat(firsts).group_by(schema.CLIENT_ID).agg(pl.col(_EVENT, _PURCHASE).min())
        return collect(first_of_all.sort(schema.CLIENT_ID))


@dataclass(frozen=True)
class Snapshot:
    """A day inside a history, and the window after it.

    Attributes:
        history: as it was known on the day, which is its ``as_of``.
        end: of the window, exclusive.
        first_events: of the history that the snapshot was taken from.
    """

    history: ChallengeData
    end: datetime
    first_events: FirstEvents

    @classmethod
    def at(cls, day: datetime, end: datetime, first_events: FirstEvents) -> "Snapshot":
        """The snapshot of any day.

        Args:
            day: a whole second; the window's first moment.
            end: the first moment after the window.
            first_events: of the history that it is taken from.

        Raises:
            UserError: the window is empty or reaches beyond the history, or no event lies before the day.
        """
        source = first_events.history
        if not day < end <= source.as_of:
            raise UserError(
                f"snapshot of {day}: its window must end after it, at {source.as_of} or before, where the history of "
                f"{source.folder} ends; not at {end}"
            )
        return cls(source.before(day), end, first_events)

    @property
    def day(self) -> datetime:
        """The first moment that is not known: the history ends before it, the window starts at it."""
        return self.history.as_of

    @property
    def source(self) -> ChallengeData:
        """The history that the snapshot was taken from; it goes on at least to the window's end."""
        return self.first_events.history

    @property
    def clients(self) -> Clients:
        """The relevant clients with an event before the day, ``history.clients``: int64, ascending."""
        return self.first_events.clients(self.day)

    @property
    def active(self) -> Clients:
        """The relevant clients with a purchase before the day, those that can churn: int64, ascending."""
        return self.first_events.buyers(self.day)

    def after(self, event_type: EventType, clients: Clients | None = None) -> pl.LazyFrame:
        """Events of the window, of some clients or of any; columns as `ChallengeData.events` gives them."""
        return self.source.events(event_type, clients).filter(within(self.day, self.end))


def snapshots(history: ChallengeData, settings: SnapshotSettings) -> list[Snapshot]:
    """The newest days whose windows lie in a history, from the earliest to the latest.

    The last window ends with the history. Where there are fewer days than asked for, all are taken.

    Args:
        history: what is known; nothing at or after its ``as_of`` is read.
        settings: how many, how far apart, how long.

    Raises:
        NoUsableEvents: the history is too short for one.
    """
    earliest = history.start + settings.least_history * _DAY
    latest = history.as_of - settings.horizon * _DAY
    if latest < earliest:
        raise NoUsableEvents(
            f"{history.folder}: from {history.start:%Y-%m-%d} to {history.as_of:%Y-%m-%d %H:%M} there is no day with "
            f"{settings.least_history} days before it and {settings.horizon} after it to learn from "
            f"(snapshots.least_history, snapshots.horizon); {LEAVE_OUT}"
        )
    possible = (latest - earliest) // (settings.stride * _DAY) + 1
    if possible < settings.count:
        logger.info("snapshots: %d instead of %d, the history has no more", possible, settings.count)
    first_events, window = FirstEvents(history), settings.horizon * _DAY
    days = [latest - place * settings.stride * _DAY for place in reversed(range(min(possible, settings.count)))]
    return [Snapshot.at(day, day + window, first_events) for day in days]
