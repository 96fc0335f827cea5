"""Numbers of a client's history, standardised: 41 in each of five windows, 141 of name clusters and price groups.

The 4th place's numeric features are "simple counters and averages calculated over five
different time windows" and "aggregations over thematic and price-based clusters" with "exponential weighting". Its list
of them is not published in the talk: which 41 stand here is declared in `numeric_features.aggregates`.

Clusters, price groups, means and deviations belong to the fit; a later day's events are measured by them.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt
import polars as pl

from numeric_features.aggregates import DAY, EVENING, SATURDAY, Column, Source, group_columns, window_columns
from numeric_features.item_groups import CLUSTER, PRICE_GROUP, ItemGroups, item_events
from ubp.blocks.fitted import Clients, FittedBlock, State, Vectors, portions
from ubp.blocks.wide_features import of_rows
from ubp.cli.recipe import Fit, SpreadRecipe
from ubp.data import schema
from ubp.data.event_types import kept, require_same, restored
from ubp.data.history import ChallengeData
from ubp.data.lacking import no_events
from ubp.data.reading import collect
from ubp.data.schema import EventType
from ubp.io.errors import require, require_positive
from ubp.io.spread import Spread, in_turn

_ROW: Final = "row"
_MILLION: Final = 1_000_000
# Encoded at a time: their (client, url) pairs must fit into memory. Fewer would read the log more often.
_CLIENTS: Final = 1_000_000
_ROUNDING: Final = 1e-6  # of a column's mean: deviations below it are float32's


@dataclass(frozen=True)
class FeatureSettings:
    """The config's part `features`; the config says what each is."""

    clusters: int
    price_groups: int
    decay: float
    most_skus: int
    most_clients: int
    limit: float

    def __post_init__(self) -> None:
        """Refuse numbers that make no sense.

        Raises:
            UserError: no cluster, no price group, no sku, no client, no decay, no limit.
        """
        require_positive(self, "features", "clusters", "price_groups", "most_skus", "most_clients")
        for name in ("decay", "limit"):
            require(getattr(self, name) > 0, f"features.{name}", getattr(self, name), "above 0")


# Tables of a client's events, one event type at a time


def ages(history: ChallengeData) -> pl.Expr:
    """Microseconds from an event to ``as_of``."""
    return (history.as_of - pl.col(schema.TIMESTAMP)).dt.total_microseconds()


def days_of(history: ChallengeData) -> pl.Expr:
    """Whole days before ``as_of``: 0 for the last 24 hours, both their ends included."""
    return ((ages(history) - 1) // DAY).cast(pl.Int32).alias("day")


def daily(history: ChallengeData, clients: Clients, event_type: EventType, items: pl.LazyFrame) -> pl.LazyFrame:
    """The rows of `Source.DAYS` and what `any_type` needs; ``spent`` and ``squares`` are of item events alone."""
    events, age, time = of_rows(history, event_type, clients), ages(history), pl.col(schema.TIMESTAMP)
    counted = {
        "events": pl.len().cast(pl.Int64),
        "youngest": age.min(),
        "oldest": age.max(),
        "weekend": (time.dt.weekday() >= SATURDAY).sum().cast(pl.Int64),
        "evening": (time.dt.hour() >= EVENING).sum().cast(pl.Int64),
    }
    if event_type.has_sku:
        events, price = events.join(items.select(schema.SKU, schema.PRICE), on=schema.SKU), pl.col(schema.PRICE)
        counted |= {"spent": price.sum(), "squares": (price * price).sum()}
    return events.group_by(_ROW, days_of(history)).agg(**counted)


def any_type(by_type: dict[EventType, pl.DataFrame]) -> pl.LazyFrame:
    """The rows of `Source.ANY`, from those of `daily` of all types."""
    events = pl.col("events")
    parts = [
        table.lazy().select(
            *(_ROW, "day", "events", "weekend", "evening"),
            bought=events * (event_type == EventType.PRODUCT_BUY),
            added=events * (event_type == EventType.ADD_TO_CART),
        )
        for event_type, table in by_type.items()
    ]
    return pl.concat(parts).group_by(_ROW, "day").agg(pl.all().sum())


def last_days(
    history: ChallengeData, clients: Clients, event_type: EventType, source: Source, items: pl.LazyFrame
) -> pl.LazyFrame:
    """The rows of `Source.SUBJECTS` or `Source.CATEGORIES`.

    A subject was met inside a window where the last event about it lies there: one row says it of all windows.
    """
    events, value = of_rows(history, event_type, clients), event_type.subject
    if source is Source.CATEGORIES:
        events, value = events.join(items.select(schema.SKU, schema.CATEGORY), on=schema.SKU), schema.CATEGORY
    return events.select(_ROW, value, days_of(history)).group_by(_ROW, value).agg(pl.col("day").min())


def weighted(
    history: ChallengeData, clients: Clients, event_type: EventType, items: pl.LazyFrame, decay: float
) -> pl.DataFrame:
    """``row``, ``cluster``, ``price_group`` and the ``weight`` of such events, exp(-age / decay) each, in millionths.

    Whole numbers: their sums are the same in whatever order Polars adds them up.
    """
    weight = ((-ages(history) / (DAY * decay)).exp() * _MILLION).round().cast(pl.Int64)
    events = of_rows(history, event_type, clients)
    known = events.join(items.select(schema.SKU, CLUSTER, PRICE_GROUP), on=schema.SKU)
    return collect(known.group_by(_ROW, CLUSTER, PRICE_GROUP).agg(weight=weight.sum()))


# Their columns


def windows(
    history: ChallengeData, clients: Clients, items: pl.LazyFrame, start: datetime, matrix: Vectors
) -> npt.NDArray[np.bool_]:
    """Write the columns of the windows before they are standardised; which clients have an event at all.

    Args:
        history: the events before its ``as_of``.
        clients: int64 [clients], ascending.
        items: as `ItemGroups.of` gives them.
        start: of the whole history; its length stands where an event is absent from all of it.
        matrix: float32 [clients, columns], written to, in the order of `window_columns`; NaN for `Absent.MEAN`.

    Returns:
        bool [clients].
    """
    length = max((history.as_of - start) / timedelta(days=1), 0.0)
    columns = window_columns(history.event_types)
    absent = np.array([column.absent(length) for column in columns], np.float32)
    matrix[:] = absent
    by_type = {
        event_type: collect(daily(history, clients, event_type, items)) for event_type in history.event_types
    }  # fmt: skip
    active = np.zeros(len(clients), bool)
    for event_type, table in by_type.items():
        active[table[_ROW].to_numpy()] = True
        _fill(matrix, absent, columns, Source.DAYS, event_type, table.lazy())
    _fill(matrix, absent, columns, Source.ANY, None, any_type(by_type))
    del by_type
    for event_type in history.event_types:
        sources = (Source.SUBJECTS, Source.CATEGORIES) if event_type.has_sku else (Source.SUBJECTS,)
        for source in sources:
            met = last_days(history, clients, event_type, source, items)
            _fill(matrix, absent, columns, source, event_type, met)
    for place, column in enumerate(columns):
        if column.aggregate.logarithm:
            matrix[:, place] = np.log1p(matrix[:, place])
    return active


def _fill(
    matrix: Vectors,
    absent: Vectors,
    columns: Sequence[Column],
    source: Source,
    event_type: EventType | None,
    table: pl.LazyFrame,
) -> None:
    """Write the columns that are taken over a table, for the clients it has."""
    places = [
        place
        for place, column in enumerate(columns)
        if column.event_type == event_type and column.aggregate.source is source
    ]
    values = {str(place): columns[place].aggregate.of(columns[place].window) for place in places}
    found = collect(table.group_by(_ROW).agg(**values))
    rows = found[_ROW].to_numpy()
    for place in places:
        matrix[rows, place] = found[str(place)].cast(pl.Float32).fill_null(float(absent[place])).to_numpy()


def grouped(
    history: ChallengeData, clients: Clients, items: pl.LazyFrame, settings: FeatureSettings, matrix: Vectors
) -> None:
    """Write the columns of clusters and price groups before they are standardised: float32 [clients, columns]."""
    end = 0
    for event_type in history.item_types:
        table = weighted(history, clients, event_type, items, settings.decay)
        rows, weights = table[_ROW].to_numpy().astype(np.int64), table["weight"].to_numpy()
        for kind, number in ((CLUSTER, settings.clusters), (PRICE_GROUP, settings.price_groups)):
            cells = rows * number + table[kind].to_numpy()
            # Sums of whole numbers below 2^53 are exact in float64.
            summed = np.bincount(cells, weights, minlength=len(clients) * number).reshape(len(clients), number)
            matrix[:, end : end + number] = np.log1p(summed / _MILLION)
            end += number


def raw_features(
    history: ChallengeData,
    clients: Clients,
    items: pl.DataFrame,
    start: datetime,
    settings: FeatureSettings,
    matrix: Vectors,
) -> Clients:
    """Write all columns before they are standardised.

    Args:
        history: the events before its ``as_of``.
        clients: int64 [clients], ascending.
        items: as `ItemGroups.of` gives them.
        start: see `windows`.
        settings: of clusters and price groups.
        matrix: float32 [clients, columns], written to: first the rows of the clients with an event.

    Returns:
        int64: the clients with an event.
    """
    in_windows = len(window_columns(history.event_types))
    active = windows(history, clients, items.lazy(), start, matrix[:, :in_windows])
    grouped(history, clients, items.lazy(), settings, matrix[:, in_windows:])
    if not active.all():
        matrix[: active.sum()] = matrix[active]
    return clients[active]


@dataclass(frozen=True)
class Standard:
    """A column's mean, and 1 over its standard deviation; 0 for one that was constant.

    Attributes:
        mean: float32 [columns], over the values that are there.
        scale: float32 [columns].
    """

    mean: npt.NDArray[np.float32]
    scale: npt.NDArray[np.float32]

    @classmethod
    def fit(cls, matrix: Vectors) -> Self:
        """Of float32 [clients, columns]; NaN is a value that is not there."""
        mean, scale = np.zeros((2, matrix.shape[1]), np.float32)
        for place in range(matrix.shape[1]):  # a column at a time: no float64 copy of the whole
            values = matrix[:, place].astype(np.float64)
            values = values[~np.isnan(values)]
            if len(values):
                mean[place], deviation = values.mean(), values.std()
                scale[place] = 1 / deviation if deviation > _ROUNDING * max(1.0, abs(mean[place])) else 0
        return cls(mean, scale)

    def apply(self, matrix: Vectors, limit: float) -> None:
        """Standardise in place: NaN becomes 0, what lies beyond so many deviations is cut."""
        matrix -= self.mean
        matrix *= self.scale
        np.nan_to_num(matrix, copy=False, nan=0.0)
        np.clip(matrix, -limit, limit, out=matrix)


@dataclass(frozen=True)
class NumericFeatures(FittedBlock):
    """What clients' events are measured by.

    Attributes:
        groups: name clusters and price groups.
        standard: of the columns.
        start: the day that the whole history is counted from.
        settings: of the fit.
        event_types: of the fit's log.
    """

    groups: ItemGroups
    standard: Standard
    start: datetime
    settings: FeatureSettings
    event_types: tuple[EventType, ...]

    def descriptions(self) -> dict[str, str]:
        """See `ubp.blocks.fitted.FittedBlock.descriptions`."""
        return column_descriptions(self.settings, self.event_types)

    @property
    def at_a_time(self) -> int:
        """See `ubp.blocks.fitted.FittedBlock.at_a_time`."""
        return _CLIENTS

    def vectors(self, history: ChallengeData, clients: Clients) -> tuple[Clients, Vectors]:
        """See `ubp.blocks.fitted.FittedBlock.vectors`."""
        require_same("numeric_features", self.event_types, history.event_types)
        items = self.groups.of(history)
        ids, matrix = np.empty(len(clients), np.int64), np.empty((len(clients), len(self.standard.mean)), np.float32)
        end = 0
        for part in portions(len(clients), self.at_a_time):
            some = clients[part]
            room = matrix[end : end + len(some)]
            found = raw_features(history, some, items, self.start, self.settings, room)
            self.standard.apply(room[: len(found)], self.settings.limit)
            ids[end : end + len(found)] = found
            end += len(found)
        return ids[:end], matrix[:end]

    def state(self) -> State:
        """See `ubp.blocks.fitted.FittedBlock.state`."""
        settings = {"start": self.start.isoformat(), "features": asdict(self.settings), **kept(self.event_types)}
        arrays: dict[str, npt.NDArray[Any]] = {
            "centres": self.groups.centres,
            "limits": self.groups.limits,
            "mean": self.standard.mean,
            "scale": self.standard.scale,
        }
        return State(settings, arrays)

    @classmethod
    def from_state(cls, state: State) -> Self:
        """See `ubp.blocks.fitted.FittedBlock.from_state`."""
        arrays, start = state.arrays, datetime.fromisoformat(state.settings["start"])
        groups = ItemGroups(arrays["centres"], arrays["limits"])
        settings = FeatureSettings(**state.settings["features"])
        return cls(groups, Standard(arrays["mean"], arrays["scale"]), start, settings, restored(state.settings))


def column_descriptions(
    settings: FeatureSettings, event_types: tuple[EventType, ...] = schema.EVENT_TYPES
) -> dict[str, str]:
    """Each column's name, and one line that says what it is, for a log with these event types."""
    in_windows = {column.name: column.says for column in window_columns(event_types)}
    items = [event_type for event_type in event_types if event_type.has_sku]
    return in_windows | group_columns(settings.clusters, settings.price_groups, settings.decay, items)


@dataclass(frozen=True)
class NumericFeaturesRecipe(SpreadRecipe):
    """A field for each part of the config."""

    features: FeatureSettings

    def fit(self, history: ChallengeData, seed: int, folder: Path) -> Fit:
        """See `ubp.cli.recipe.Recipe.fit`."""
        return self.fit_by_shards(history, [history], seed, in_turn, folder)

    def fit_by_shards(
        self,
        history: ChallengeData,
        views: Sequence[ChallengeData],
        seed: int,
        spread: Spread,
        folder: Path,  # noqa: ARG002 (those whose shards keep something)
    ) -> Fit:
        """See `ubp.cli.recipe.SpreadRecipe.fit_by_shards`: counts are summed, clients' numbers put side by side.

        A shard gives back the numbers of its own among at most ``features.most_clients`` clients.
        """
        settings = self.features
        found = spread("finding clients and items", [partial(_clients_and_items, view) for view in views])
        clients = np.sort(np.concatenate([clients for clients, _ in found]))
        if not len(clients):
            raise no_events(history, (), "numeric_features: no relevant client has an event")
        if len(clients) > settings.most_clients:
            clients = np.sort(np.random.default_rng(seed).choice(clients, settings.most_clients, replace=False))
        counts = [counts for _, counts in found]
        groups = ItemGroups.fit(history, counts, settings.clusters, settings.price_groups, settings.most_skus, seed)
        some = [clients[np.isin(clients, own)] for own, _ in found]
        pieces = [
            partial(_raw, view, own, groups, history.start, settings) for view, own in zip(views, some, strict=True)
        ]
        matrix = np.empty((len(clients), len(column_descriptions(settings, history.event_types))), np.float32)
        for own, numbers in zip(some, spread("working out clients' numbers", pieces), strict=True):
            matrix[np.searchsorted(clients, own)] = numbers
        return Fit(NumericFeatures(groups, Standard.fit(matrix), history.start, settings, history.event_types))


def _clients_and_items(view: ChallengeData) -> tuple[Clients, pl.DataFrame]:
    """The relevant clients with an event, int64 ascending, and how many events each sku has."""
    return view.clients, item_events(view)


def _raw(
    view: ChallengeData, clients: Clients, groups: ItemGroups, start: datetime, settings: FeatureSettings
) -> Vectors:
    """All columns of clients with an event, before they are standardised: float32 [clients, columns]."""
    matrix = np.empty((len(clients), len(column_descriptions(settings, view.event_types))), np.float32)
    raw_features(view, clients, groups.of(view), start, settings, matrix)
    return matrix
