"""What a log is, in figures small enough for a page whatever its size.

One pass over the times of each event type, one over its clients, one over what it is about. Memory goes with the
clients and with the different skus and urls, not with the events.
"""

from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Final, Self

import polars as pl

from ubp.data import schema
from ubp.data.history import ChallengeData
from ubp.data.reading import collect

ANY: Final = "any type"  # of event, beside the names of the types

# Columns of the tables.
TYPE: Final = "event_type"
EVENTS: Final = "events"
CLIENTS: Final = "clients"
PERIOD: Final = "period"
WEEKDAY: Final = "weekday"
HOUR: Final = "hour"

_MOST_BARS: Final = 400  # days on an axis; longer logs are shown by weeks, then by months
_AT_ONCE: Final = 20_000_000  # events; of a log with few a client that is as many clients in memory
_DAY: Final = timedelta(days=1)
_BUSIEST: Final = 0.01  # share of the clients


@dataclass(frozen=True)
class Tail:
    """How many events of one type clients have: of those with one at least.

    Attributes:
        event_type: its name, or `ANY`.
        events: all of them.
        clients: that have some.
        median: events of the client in the middle.
        p90: nine of ten clients have so many at the most.
        p99: likewise of a hundred.
        largest: of any client.
        busiest: the share of all events that belongs to the busiest 1 % of the clients, one client at least.
    """

    event_type: str
    events: int
    clients: int
    median: int
    p90: int
    p99: int
    largest: int
    busiest: float

    @classmethod
    def of(cls, event_type: str, counts: pl.DataFrame) -> Self:
        """From how many clients have how many events.

        Args:
            event_type: its name.
            counts: ``events``, ascending, and ``clients``; a row at least.
        """
        number, clients = counts[EVENTS].cast(pl.Int64), counts[CLIENTS].cast(pl.Int64)
        return cls(
            event_type=event_type,
            events=int((number * clients).sum()),
            clients=int(clients.sum()),
            median=quantile(counts, 0.5),
            p90=quantile(counts, 0.9),
            p99=quantile(counts, 0.99),
            largest=int(number[-1]),
            busiest=share_of_busiest(counts, _BUSIEST),
        )


def quantile(counts: pl.DataFrame, share: float) -> int:
    """The smallest number of events that at least this share of the clients does not exceed.

    Args:
        counts: ``events``, ascending, and ``clients``.
        share: above 0, 1 at the most.
    """
    reached = counts[CLIENTS].cast(pl.Int64).cum_sum()
    wanted = share * int(reached[-1])
    return int(counts.filter(reached >= wanted)[EVENTS][0])


def share_of_busiest(counts: pl.DataFrame, share: float) -> float:
    """Which share of all events the busiest clients have.

    Args:
        counts: ``events``, ascending, and ``clients``.
        share: of the clients, rounded down; one client at least.
    """
    left = max(1, int(share * int(counts[CLIENTS].sum())))
    taken, total = 0, 0
    for number, clients in counts.select(EVENTS, CLIENTS).reverse().iter_rows():
        total += number * clients
        taken += number * min(left, clients)
        left -= min(left, clients)
    return taken / total


@dataclass(frozen=True)
class About:
    """An event type's row in the table of the log.

    Attributes:
        event_type: its name.
        events: of the type.
        clients: with one.
        subject: what they are about: ``sku``, ``url`` or ``query``.
        subjects: different ones; None for queries, which are not counted.
        first: day of the first event.
        last: day of the last one.
    """

    event_type: str
    events: int
    clients: int
    subject: str
    subjects: int | None
    first: date
    last: date


@dataclass(frozen=True)
class LogSummary:
    """What a page shows of a log.

    Attributes:
        start: midnight of the day of the first event.
        end: the first moment after it.
        relevant: clients that are to get a profile; None where no file says which.
        skus: different ones among the events about items.
        categories: different ones of these skus.
        period: that the bars stand for: ``day``, ``week`` or ``month``.
        types: of the event types that have events.
        by_period: ``period`` (its first day), ``event_type``, ``events``.
        rhythm: ``event_type``, ``weekday`` (1 is Monday), ``hour``, ``events``.
        counts: by the name of the event type, and of `ANY`: ``events``, ascending, and the ``clients`` that have
            so many.
        tails: of these counts, in the same order.
    """

    start: datetime
    end: datetime
    relevant: int | None
    skus: int
    categories: int
    period: str
    types: tuple[About, ...]
    by_period: pl.DataFrame
    rhythm: pl.DataFrame
    counts: dict[str, pl.DataFrame]
    tails: tuple[Tail, ...]

    @classmethod
    def of(cls, history: ChallengeData) -> Self:
        """Count the events of a history; it has some."""
        present = [event_type for event_type in history.event_types if history.has(event_type)]
        hours = {str(event_type): hourly(history.events(event_type)) for event_type in present}
        ids = {str(event_type): history.events(event_type).select(schema.CLIENT_ID) for event_type in present}
        counts = {ANY: counts_of_counts(pl.concat(ids.values()))}
        counts |= {name: counts_of_counts(frame) for name, frame in ids.items()}
        tails = tuple(Tail.of(name, table) for name, table in counts.items())
        clients = {tail.event_type: tail.clients for tail in tails}
        period = period_of(history.as_of - history.start)
        skus, categories = items_met(history)
        return cls(
            start=history.start,
            end=history.as_of,
            relevant=len(history.relevant_clients) if history.paths.relevant_clients.exists() else None,
            skus=skus,
            categories=categories,
            period=period,
            types=tuple(
                About(
                    event_type=str(event_type),
                    events=int(hours[event_type][EVENTS].sum()),
                    clients=clients[event_type],
                    subject=event_type.subject,
                    subjects=distinct(history.events(event_type), event_type.subject),
                    first=hours[event_type][HOUR][0].date(),
                    last=hours[event_type][HOUR][-1].date(),
                )
                for event_type in present
            ),
            by_period=_joined({name: by_period(table, period) for name, table in hours.items()}),
            rhythm=_joined({name: rhythm(table) for name, table in hours.items()}),
            counts=counts,
            tails=tails,
        )

    @property
    def days(self) -> int:
        """Of the history, the last one begun."""
        return -((self.start - self.end) // _DAY)

    @property
    def events(self) -> int:
        """Of all types."""
        return self.tails[0].events

    @property
    def clients(self) -> int:
        """With an event of any type."""
        return self.tails[0].clients


def period_of(length: timedelta) -> str:
    """What a bar stands for, so that there are not too many of them."""
    days = length / _DAY
    if days <= _MOST_BARS:
        return "day"
    return "week" if days <= 7 * _MOST_BARS else "month"


def hourly(events: pl.LazyFrame) -> pl.DataFrame:
    """Events in each hour of the log that has some: ``hour`` Datetime, ``events`` Int64."""
    hour = pl.col(schema.TIMESTAMP).dt.truncate("1h").alias(HOUR)
    counted = events.select(hour).group_by(HOUR).agg(pl.len().cast(pl.Int64).alias(EVENTS))
    return collect(counted).sort(HOUR)


def by_period(hours: pl.DataFrame, period: str) -> pl.DataFrame:
    """Events in each day, week (from Monday) or month: ``period`` Date, ``events``.

    Args:
        hours: see `hourly`.
        period: see `period_of`.
    """
    every = {"day": "1d", "week": "1w", "month": "1mo"}[period]
    first = pl.col(HOUR).dt.truncate(every).dt.date().alias(PERIOD)
    return hours.group_by(first).agg(pl.col(EVENTS).sum()).sort(PERIOD)


def rhythm(hours: pl.DataFrame) -> pl.DataFrame:
    """Events by ``weekday`` and ``hour`` of the day, both Int8.

    Args:
        hours: see `hourly`.
    """
    keys = [pl.col(HOUR).dt.weekday().alias(WEEKDAY), pl.col(HOUR).dt.hour().alias(HOUR)]
    return hours.group_by(keys).agg(pl.col(EVENTS).sum()).sort(WEEKDAY, HOUR)


def counts_of_counts(ids: pl.LazyFrame, at_once: int = _AT_ONCE) -> pl.DataFrame:
    """How many clients have how many events: ``events``, ascending, and ``clients``.

    Args:
        ids: ``client_id``, a row an event.
        at_once: events whose clients are counted together; of more, the clients are taken in parts.
    """
    parts = -(-int(collect(ids.select(pl.len())).item()) // at_once)
    part = pl.col(schema.CLIENT_ID).hash() % max(parts, 1)
    tables = []
    for place in range(parts):
        a_client = ids.filter(part == place).group_by(schema.CLIENT_ID).agg(pl.len().cast(pl.Int64).alias(EVENTS))
        tables.append(collect(a_client.group_by(EVENTS).agg(pl.len().cast(pl.Int64).alias(CLIENTS))))
    return pl.concat(tables).group_by(EVENTS).agg(pl.col(CLIENTS).sum()).sort(EVENTS)


def distinct(events: pl.LazyFrame, column: str) -> int | None:
    """Different values of a column; None for codes of texts."""
    if column in schema.CODE_COLUMNS:
        return None
    return int(collect(events.select(pl.col(column).n_unique())).item())


def items_met(history: ChallengeData) -> tuple[int, int]:
    """Different skus among the events about items, and different categories of these."""
    about = [history.events(event_type) for event_type in history.event_types if event_type.has_sku]
    met = collect(pl.concat(frame.select(schema.SKU) for frame in about).unique())
    known = history.properties_of(met[schema.SKU], schema.CATEGORY)
    return len(met), known[schema.CATEGORY].n_unique()


def _joined(tables: dict[str, pl.DataFrame]) -> pl.DataFrame:
    """Tables below one another, the name of each in front."""
    return pl.concat(table.select(pl.lit(name).alias(TYPE), pl.all()) for name, table in tables.items())
