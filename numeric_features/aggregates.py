"""The declared columns: event type × aggregate × window, and event type × (name cluster, price group).

Of a client's events four tables are made, small beside the events (`Source`), each row with its ``day``: whole days
before ``as_of``, 0 for the last 24 hours. An aggregate is an expression over the rows of one of them that lie inside a
window. So each event is read once, whatever the number of windows.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import Enum, StrEnum
from functools import cache
from typing import Final

import polars as pl

from ubp.data import schema
from ubp.data.schema import EventType

WINDOWS: Final = (7, 14, 28, 60, None)  # days before as_of; None: all events
DAY: Final = 86_400_000_000  # microseconds
EVENING, SATURDAY = 18, 6  # first hour, first weekday (Polars counts from 1)

SUBJECTS: Final = {schema.SKU: "skus", schema.URL: "urls", schema.QUERY: "queries"}


class Source(StrEnum):
    """What an aggregate is taken over; the columns that its rows have beside ``row`` (of the client) and ``day``."""

    DAYS = "days"  # a row per client and day with such events: events, youngest, oldest (ages), spent, squares
    SUBJECTS = "subjects"  # a row per client and subject: the day of its last such event
    CATEGORIES = "categories"  # likewise per client and category
    ANY = "any"  # a row per client and day with events of any type: events, weekend, evening, bought, added


class Over(Enum):
    """Which events an aggregate is taken over, each with columns of its own."""

    EACH = "each event type"
    ITEMS = "each item event type"
    ALL = "all types together"


class Absent(Enum):
    """What stands where a client has nothing to take the aggregate over, and what is said of it."""

    ZERO = "0"
    WINDOW = "the window's length: longer ago, or rarer, than any"
    MEAN = "the mean of those that have one, so 0 once standardised"


Inside = Callable[[str], pl.Expr]  # a column of the source, null where the row lies outside of the window


@dataclass(frozen=True)
class Aggregate:
    """A number of each client in each window.

    Attributes:
        name: of the column, between event type and window.
        says: what it is; ``{events}`` stands for the event type's name, ``{subjects}`` for what its events are about.
        source: of the rows.
        value: an expression over a client's rows; it gets the columns inside the window.
        absent: what stands for null.
        logarithm: of 1 + the number, for those with a heavy tail.
        over: which event types have its columns.
    """

    name: str
    says: str
    source: Source
    value: Callable[[Inside], pl.Expr]
    absent: Absent = Absent.ZERO
    logarithm: bool = True
    over: Over = Over.EACH

    def has(self, event_type: EventType | None) -> bool:
        """Whether it has columns of an event type; None stands for all of them at once."""
        if event_type is None or self.over is Over.ALL:
            return event_type is None and self.over is Over.ALL
        return self.over is Over.EACH or event_type.has_sku

    def of(self, window: int | None) -> pl.Expr:
        """The expression for one window."""
        days = pl.col("day")
        within = days >= 0 if window is None else days < window
        return self.value(lambda column: pl.when(within).then(pl.col(column)))


@dataclass(frozen=True)
class Column:
    """One aggregate of one event type in one window; the event type is None for one over all."""

    aggregate: Aggregate
    event_type: EventType | None
    window: int | None

    @property
    def name(self) -> str:
        """``product_buy_count_7d``, ``active_days_all``."""
        before = f"{self.event_type}_" if self.event_type else ""
        return f"{before}{self.aggregate.name}_{f'{self.window}d' if self.window else 'all'}"

    @property
    def says(self) -> str:
        """One line: what it is, in which window, what stands where there is none."""
        words = {"events": self.event_type or "any type"}
        if self.event_type:
            words["subjects"] = SUBJECTS[self.event_type.subject]
        within = f"in the last {self.window} days" if self.window else "in the whole history"
        logarithm = "; log(1 + x)" if self.aggregate.logarithm else ""
        return f"{self.aggregate.says.format(**words)}, {within}{logarithm}; none: {self.aggregate.absent.value}"

    def absent(self, days: float) -> float:
        """What stands for null, before any logarithm; NaN for the mean, which is not known yet.

        Args:
            days: of the whole history.
        """
        if self.aggregate.absent is Absent.WINDOW:
            return days if self.window is None else float(self.window)
        return float("nan") if self.aggregate.absent is Absent.MEAN else 0.0


def _days_between(later: pl.Expr, earlier: pl.Expr) -> pl.Expr:
    return (later - earlier) / DAY


def _mean_interval(inside: Inside) -> pl.Expr:
    events = inside("events").sum()
    whole = _days_between(inside("oldest").max(), inside("youngest").min())
    return pl.when(events > 1).then(whole / (events - 1))


def _ratio(of: pl.Expr, to: pl.Expr) -> pl.Expr:
    return pl.when(to > 0).then(of / to)


def _spread(inside: Inside) -> pl.Expr:
    """Standard deviation. In whole numbers up to the root: the same in whatever order Polars adds them up."""
    events, spent, squares = (inside(name).sum() for name in ("events", "spent", "squares"))
    return _ratio((events * squares - spent * spent).sqrt(), events)


_TYPES: Final = (
    Aggregate("count", "number of {events} events", Source.DAYS, lambda inside: inside("events").sum()),
    Aggregate(
        "days", "days (24 hours, back from as_of) with {events} events", Source.DAYS,
        lambda inside: inside("day").count(),
    ),
    Aggregate(
        "subjects", "different {subjects} of {events} events", Source.SUBJECTS,
        lambda inside: inside("day").count(),
    ),
    Aggregate(
        "since_last", "days since the last {events} event", Source.DAYS,
        lambda inside: inside("youngest").min() / DAY, Absent.WINDOW,
    ),
    Aggregate("mean_interval", "days between neighbouring {events} events", Source.DAYS, _mean_interval, Absent.WINDOW),
)  # fmt: skip
_ITEMS: Final = (
    Aggregate(
        "categories", "different categories of {events} events", Source.CATEGORIES,
        lambda inside: inside("day").count(), over=Over.ITEMS,
    ),
    Aggregate(
        "mean_price", "mean price bucket of {events} events", Source.DAYS,
        lambda inside: _ratio(inside("spent").sum(), inside("events").sum()), Absent.MEAN, False, Over.ITEMS,
    ),
    Aggregate(
        "price_spread", "standard deviation of the price buckets of {events} events", Source.DAYS, _spread,
        Absent.MEAN, False, Over.ITEMS,
    ),
    Aggregate(
        "spend", "sum of the price buckets of {events} events", Source.DAYS,
        lambda inside: inside("spent").sum(), over=Over.ITEMS,
    ),
)  # fmt: skip
_ALL: Final = (
    Aggregate(
        "active_days", "days (24 hours, back from as_of) with events of {events}", Source.ANY,
        lambda inside: inside("day").count(), over=Over.ALL,
    ),
    Aggregate(
        "weekend_share", "share of events of {events} on Saturdays and Sundays", Source.ANY,
        lambda inside: _ratio(inside("weekend").sum(), inside("events").sum()), Absent.MEAN, False, Over.ALL,
    ),
    Aggregate(
        "evening_share", "share of events of {events} from 18 to 24 o'clock", Source.ANY,
        lambda inside: _ratio(inside("evening").sum(), inside("events").sum()), Absent.MEAN, False, Over.ALL,
    ),
    Aggregate(
        "bought_share", "share of purchases among purchases and cart additions", Source.ANY,
        lambda inside: _ratio(inside("bought").sum(), inside("bought").sum() + inside("added").sum()),
        Absent.MEAN, False, Over.ALL,
    ),
)  # fmt: skip
AGGREGATES: Final = (*_TYPES, *_ITEMS, *_ALL)


def _declared(event_types: Iterable[EventType]) -> Iterator[Column]:
    for event_type in (*event_types, None):
        for aggregate in AGGREGATES:
            if aggregate.has(event_type):
                for window in WINDOWS:
                    yield Column(aggregate, event_type, window)


@cache
def window_columns(event_types: tuple[EventType, ...] = schema.EVENT_TYPES) -> tuple[Column, ...]:
    """The columns of the windows, in the order in which they stand in a vector, for a log with these event types."""
    return tuple(_declared(event_types))


def group_columns(
    clusters: int, price_groups: int, decay: float, item_types: Iterable[EventType] = schema.ITEM_EVENTS
) -> dict[str, str]:
    """Names and descriptions of the columns after the windows': each item event type's clusters, then its groups.

    Args:
        clusters: of names.
        price_groups: of price buckets.
        decay: days in which an event comes to weigh 1/e.
        item_types: of the log, those about items.
    """
    found = {}
    for event_type in item_types:
        weighed = f"each weighing exp(-days ago / {decay:g}); log(1 + x); none: 0"
        for kind, whose, number in (
            ("name_cluster", "of skus whose name is in cluster", clusters),
            ("price_group", "of skus whose price is in group", price_groups),
        ):
            for place in range(number):
                found[f"{event_type}_{kind}_{place:02d}"] = f"{event_type} events {whose} {place}, {weighed}"
    return found
