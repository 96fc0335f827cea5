"""Statistics of a client's history: how much, how often, how lately, of what.

43 columns, named by `columns`; a log with event types of its own has some more of each. Nothing here is learned,
scaled or cut: that is merge's part. Times are in days, prices in price buckets, popularities in log(1 + events).
Popularities are counted over all clients in the history that the block is fitted to and kept: a client's later events
are measured by them, and a value that was not there then has a popularity of 0.

The first and the last event are dated in days from ``as_of``, so below 0. Counted from the history's start, the
last events of a later day would lie beyond all that a merge's quantiles were fitted to, and look alike.

month_change begins anew with each calendar month: on its first days a client's vector is further from that of the day
before than on others.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Final, Self

import numpy as np
import polars as pl

from ubp.blocks.fitted import Clients, FittedBlock, State, Vectors
from ubp.cli.recipe import Fit, SpreadRecipe
from ubp.data import schema
from ubp.data.event_types import kept, require_same, restored
from ubp.data.history import ChallengeData, of_clients
from ubp.data.reading import collect, within
from ubp.data.schema import EventType
from ubp.io.spread import Spread

# Of each event type: see `timing`.
TIMING: Final = ("count", "mean_interval", "week_change", "month_change", "first_day", "last_day")
WHOLE: Final = ("active_weeks", "active_months", "spend", "mean_price", "added_skus_bought", "added_categories_bought")
_POPULAR: Final = {schema.SKU: (schema.SKU, schema.CATEGORY), schema.URL: (schema.URL,), schema.QUERY: ()}

ABSENT_DAYS: Final = 1.0  # before the history's start: when a client without an event had its first and last one
ABSENT_PRICE: Final = -1.0

EventTypes = Sequence[EventType]

_DAY = timedelta(days=1)
_WEEK = timedelta(days=7)


def popular_values(event_types: EventTypes) -> tuple[tuple[EventType, str], ...]:
    """Of which types' events the mean popularity is taken, by which value; it is counted among the same events."""
    by_subject = [each for subject in _POPULAR for each in event_types if each.subject == subject]
    return tuple((event_type, column) for event_type in by_subject for column in _POPULAR[event_type.subject])


def columns(event_types: EventTypes = schema.EVENT_TYPES) -> tuple[str, ...]:
    """The columns' names, in their order, for a log with these event types."""
    return (
        *(f"{event_type}_{name}" for event_type in event_types for name in TIMING),
        *(popularity_name(event_type, column) for event_type, column in popular_values(event_types)),
        *WHOLE,
    )


def timing(data: ChallengeData, clients: Clients, event_type: EventType, start: datetime) -> pl.LazyFrame:
    """A row for each client with such events; ``client_id`` and the columns of `TIMING`.

    - count: events;
    - mean_interval: days between neighbouring events; the history's length where there is only one;
    - week_change: the events in the last 7 days before ``as_of`` less those in the 7 days before;
    - month_change: the events in the last calendar month, as far as it goes, less those in the month before;
    - first_day, last_day: of the first and the last event, in days from ``as_of``: -1.5 is a day and a half before.
    """
    time = pl.col(schema.TIMESTAMP)
    events = of_clients(data.events(event_type), clients)
    summed = events.group_by(schema.CLIENT_ID).agg(
        count=pl.len(),
        first=time.min(),
        last=time.max(),
        **{name: within(*window).sum().cast(pl.Int64) for name, window in _windows(data.as_of).items()},
    )
    gaps = pl.when(pl.col("count") > 1).then(_days(pl.col("last") - pl.col("first")) / (pl.col("count") - 1))
    return summed.select(
        schema.CLIENT_ID,
        "count",
        mean_interval=gaps.otherwise((data.as_of - start) / _DAY),
        week_change=pl.col("this_week") - pl.col("week_before"),
        month_change=pl.col("this_month") - pl.col("month_before"),
        first_day=_days(pl.col("first") - data.as_of),
        last_day=_days(pl.col("last") - data.as_of),
    )


def _windows(as_of: datetime) -> dict[str, tuple[datetime, datetime]]:
    """The two last weeks and calendar months before a moment, each from its first moment to the one after its last."""
    month = (as_of - timedelta.resolution).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    month_before = (month - _DAY).replace(day=1)
    return {
        "this_week": (as_of - _WEEK, as_of),
        "week_before": (as_of - 2 * _WEEK, as_of - _WEEK),
        "this_month": (month, as_of),
        "month_before": (month_before, month),
    }


def popularity_name(event_type: EventType, column: str) -> str:
    """The column of a mean popularity."""
    return f"{event_type}_{column}_popularity"


def _values(data: ChallengeData, event_type: EventType, column: str) -> pl.LazyFrame:
    """``client_id`` and ``value`` of each event."""
    events = data.events(event_type)
    if column == schema.CATEGORY:
        events = events.join(data.properties().select(schema.SKU, schema.CATEGORY), on=schema.SKU)
    return events.select(schema.CLIENT_ID, value=pl.col(column))


def value_counts(data: ChallengeData) -> dict[str, pl.DataFrame]:
    """For each of `popular_values` by its column's name: ``value`` and ``count``, events of the type with the value."""
    return {
        popularity_name(event_type, column): collect(
            _values(data, event_type, column).group_by("value").agg(count=pl.len().cast(pl.UInt64))
        )
        for event_type, column in popular_values(data.event_types)
    }


def popularities(counts: Sequence[Mapping[str, pl.DataFrame]]) -> dict[str, pl.DataFrame]:
    """For each of `popular_values` by its column's name: ``value`` and ``popularity``, log(1 + events with the value).

    Only events of the type count: what is often put into carts may sell seldom.

    Args:
        counts: as `value_counts` gives them, of shards of a log; one at least.
    """
    return {
        name: pl.concat([each[name] for each in counts])
        .group_by("value")
        .agg(popularity=pl.col("count").sum().log1p())
        .sort("value")
        for name in counts[0]
    }


def popularity(
    data: ChallengeData, clients: Clients, event_type: EventType, column: str, popular: pl.DataFrame
) -> pl.LazyFrame:
    """``client_id`` and the mean popularity over its events; 0 for a value that is not among the popular."""
    own = of_clients(_values(data, event_type, column), clients)
    found = own.join(popular.lazy(), on="value", how="left").with_columns(pl.col("popularity").fill_null(0.0))
    return found.group_by(schema.CLIENT_ID).agg(pl.col("popularity").mean().alias(popularity_name(event_type, column)))


def activity(data: ChallengeData, clients: Clients, start: datetime) -> pl.LazyFrame:
    """``client_id``, weeks since the history's start and calendar months with an event of any type."""
    day = pl.col(schema.TIMESTAMP).dt.date().alias("day")
    # Days first: a client has far fewer of them than events.
    days = pl.concat(
        [
            of_clients(data.events(event_type), clients).select(schema.CLIENT_ID, day).unique()
            for event_type in data.event_types
        ]
    )
    week = (pl.col("day") - start.date()).dt.total_days() // 7
    month = pl.col("day").dt.year().cast(pl.Int32) * 12 + pl.col("day").dt.month()
    distinct = [week.n_unique().alias("active_weeks"), month.n_unique().alias("active_months")]
    return days.unique().group_by(schema.CLIENT_ID).agg(distinct)


def spending(data: ChallengeData, clients: Clients) -> pl.LazyFrame:
    """``client_id``, sum and mean of the price buckets of its purchases."""
    prices = data.properties().select(schema.SKU, schema.PRICE)
    bought = of_clients(data.events(EventType.PRODUCT_BUY), clients).join(prices, on=schema.SKU)
    price = pl.col(schema.PRICE)
    return bought.group_by(schema.CLIENT_ID).agg(spend=price.sum(), mean_price=price.mean())


def bought_of_added(data: ChallengeData, clients: Clients) -> pl.LazyFrame:
    """``client_id``, the share of the distinct skus (categories) it put into the cart that it also bought."""

    def pairs(event_type: EventType) -> pl.LazyFrame:
        events = of_clients(data.events(event_type), clients).select(schema.CLIENT_ID, schema.SKU)
        flags = {"bought": event_type == EventType.PRODUCT_BUY, "added": event_type == EventType.ADD_TO_CART}
        return events.with_columns(**{name: pl.lit(flag) for name, flag in flags.items()})

    def marked(events: pl.LazyFrame, column: str) -> pl.LazyFrame:
        return events.group_by(schema.CLIENT_ID, column).agg(pl.col("bought").any(), pl.col("added").any())

    def shares(events: pl.LazyFrame, name: str) -> pl.LazyFrame:
        return events.filter("added").group_by(schema.CLIENT_ID).agg(pl.col("bought").mean().alias(name))

    skus = marked(pl.concat([pairs(EventType.PRODUCT_BUY), pairs(EventType.ADD_TO_CART)]), schema.SKU)
    categories = data.properties().select(schema.SKU, schema.CATEGORY)
    by_category = marked(skus.join(categories, on=schema.SKU), schema.CATEGORY)
    return shares(skus, "added_skus_bought").join(shares(by_category, "added_categories_bought"), on=schema.CLIENT_ID)


def statistics(
    data: ChallengeData, clients: Clients, popular: Mapping[str, pl.DataFrame], start: datetime
) -> tuple[Clients, Vectors]:
    """All columns for some clients.

    Args:
        data: the history.
        clients: int64, ascending.
        popular: as `popularities` gives them.
        start: the day that days are counted from.

    Returns:
        int64, ascending, those of the clients that have an event, and float32 [clients, columns] in the order of
        `columns`.
    """
    days = (data.as_of - start) / _DAY
    parts = [
        activity(data, clients, start),
        *(
            timing(data, clients, event_type, start).rename({name: f"{event_type}_{name}" for name in TIMING})
            for event_type in data.event_types
        ),
        *(
            popularity(data, clients, event_type, column, popular[popularity_name(event_type, column)])
            for event_type, column in popular_values(data.event_types)
        ),
        spending(data, clients),
        bought_of_added(data, clients),
    ]
    # One after the other: at once is no faster, each is parallel in itself, and takes half as much memory again.
    # Every client with any event is in the first part, the others follow it.
    first, *others = (collect(part) for part in parts)
    table = first.sort(schema.CLIENT_ID)
    for part in others:
        table = table.join(part, on=schema.CLIENT_ID, how="left", maintain_order="left")
    filled = table.select(
        pl.col(name).fill_null(absent_value(name, days)).cast(pl.Float32) for name in columns(data.event_types)
    )
    return table[schema.CLIENT_ID].to_numpy(), np.ascontiguousarray(filled.to_numpy())


def absent_value(column: str, days: float) -> float:
    """What stands in a column where a client has no such event; the history has so many days."""
    if column.endswith("_mean_interval"):
        return days
    if column.endswith(("_first_day", "_last_day")):
        return -(days + ABSENT_DAYS)
    return ABSENT_PRICE if column == "mean_price" else 0.0


def _days(duration: pl.Expr) -> pl.Expr:
    return duration.dt.total_microseconds() / (_DAY / timedelta(microseconds=1))


@dataclass(frozen=True)
class StatFeatures(FittedBlock):
    """What clients' events are measured by.

    Attributes:
        popular: see `popularities`.
        start: the day that days are counted from.
        event_types: of the fit's log.
    """

    popular: dict[str, pl.DataFrame]
    start: datetime
    event_types: EventTypes

    def vectors(self, history: ChallengeData, clients: Clients) -> tuple[Clients, Vectors]:
        """See `ubp.blocks.fitted.FittedBlock.vectors`."""
        require_same("stat_features", self.event_types, history.event_types)
        return statistics(history, clients, self.popular, self.start)

    def state(self) -> State:
        """See `ubp.blocks.fitted.FittedBlock.state`."""
        return State({"start": self.start.isoformat(), **kept(self.event_types)}, tables=self.popular)

    @classmethod
    def from_state(cls, state: State) -> Self:
        """See `ubp.blocks.fitted.FittedBlock.from_state`."""
        return cls(state.tables, datetime.fromisoformat(state.settings["start"]), restored(state.settings))


@dataclass(frozen=True)
class StatFeaturesRecipe(SpreadRecipe):
    """Nothing to set."""

    def fit(self, history: ChallengeData, seed: int, folder: Path) -> Fit:  # noqa: ARG002 (those that draw or train)
        """See `ubp.cli.recipe.Recipe.fit`."""
        return self._fit(history, [value_counts(history)])

    def fit_by_shards(
        self,
        history: ChallengeData,
        views: Sequence[ChallengeData],
        seed: int,  # noqa: ARG002 (those that draw or train)
        spread: Spread,
        folder: Path,  # noqa: ARG002 (those whose shards keep something)
    ) -> Fit:
        """See `ubp.cli.recipe.SpreadRecipe.fit_by_shards`: counts are summed."""
        return self._fit(history, spread("counting values", [partial(value_counts, view) for view in views]))

    def _fit(self, history: ChallengeData, counts: Sequence[Mapping[str, pl.DataFrame]]) -> Fit:
        return Fit(StatFeatures(popularities(counts), history.start, history.event_types))
