"""What a good engineer makes of a log in an hour: counts in windows, days since, rhythm, and SVDs of what a client met.

Fitted on one history, applied to any clients on any day; events at or after ``as_of`` play no part. Nothing here is
centred: that is the conditioning's part (`ubp.blocks.condition`). A client without events gets zeros, so zero stands
for never: how lately an event was is told by a number that falls with the days since.

Tables are aggregated in Polars' streaming engine, one event type after the other. What clients met is a sparse matrix
of so many values at most. So memory grows with the clients, and with the pairs of a client and a value.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Final, Self, TypeAlias

import numpy as np
import numpy.typing as npt
import polars as pl
from scipy.sparse import csr_matrix, hstack

from ubp.blocks.transformers import Arrays
from ubp.data import schema
from ubp.data.history import ChallengeData
from ubp.data.reading import collect
from ubp.data.schema import EventType
from ubp.io.errors import require

logger = logging.getLogger(__name__)

Ids: TypeAlias = npt.NDArray[np.int64]
Matrix: TypeAlias = npt.NDArray[np.float32]

COUNTS: Final = "counts"
LISTED: Final = "listed"
# What a client met, each a matrix of its own: skus and what they are, the subjects of its other events.
ITEM_VIEWS: Final = (schema.SKU, schema.CATEGORY, schema.PRICE, schema.NAME)
RECENT: Final = "recent_"  # before an item view in which an event counts the less the older it is
VIEWS: Final = (*ITEM_VIEWS, *(f"{RECENT}{view}" for view in ITEM_VIEWS), schema.URL, schema.QUERY)

_ROW, _VALUE, _AMOUNT = "row", "value", "amount"
_DAY: Final = timedelta(days=1)
_MILLION: Final = 1_000_000
SVD_ITERATIONS: Final = 5  # of the power method in an SVD
ROUNDING: Final = 1e-5  # of the largest singular value; what is smaller is float32's rounding
_PART_OF_DAY: Final = 4  # hours


@dataclass(frozen=True)
class WideSettings:
    """How wide features are made.

    Attributes:
        windows: days before ``as_of`` in which events are counted; beside them all events are.
        rhythm: whether gaps between days with events, days of the week and hours are among the counts.
        bought: what a purchase counts in the matrices of skus, categories, prices and names.
        added: the same of a cart addition.
        removed: the same of a removal from the cart.
        others: the same of events of a type that is the log's own, if they are about items.
        half_life: days in which an event comes to count half as much, in the matrices of what was met lately.
        components: of each SVD, at most.
        most_values: skus in their matrix, at most, those that most clients met; and urls, those with the most visits.
        half_lives: the same as ``half_life``, for the columns of listed values.
    """

    windows: tuple[int, ...] = (1, 3, 7, 14, 28, 60)
    rhythm: bool = False
    bought: float = 1.0
    added: float = 0.5
    removed: float = 0.25
    others: float = 0.5
    half_life: float = 30.0
    components: int = 32
    most_values: int = 20_000
    half_lives: tuple[float, ...] = (7.0, 30.0, 120.0)

    def __post_init__(self) -> None:
        """Refuse settings that make no sense.

        Raises:
            UserError: no window, one below a day, purchases that count nothing, a negative weight, no half-life, no
                component, no value.
        """
        require(bool(self.windows) and min(self.windows) > 0, "windows", self.windows, "one or more days, at least 1")
        for name in ("bought", "half_life"):
            require(getattr(self, name) > 0, name, getattr(self, name), "above 0")
        for name in ("added", "removed", "others"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "at least 0")
        for name in ("components", "most_values"):
            require(getattr(self, name) > 0, name, getattr(self, name), "at least 1")
        require(all(days > 0 for days in self.half_lives), "half_lives", self.half_lives, "above 0 each")

    def weights(self, item_types: Iterable[EventType]) -> dict[EventType, float]:
        """Of event types about items, what an event of each counts."""
        own = dict(zip(schema.ITEM_EVENTS, (self.bought, self.added, self.removed), strict=True))
        return {event_type: own.get(event_type, self.others) for event_type in item_types}


# The fitted features


@dataclass(frozen=True)
class View:
    """What clients met of one kind, and its main directions.

    Attributes:
        values: int64, ascending: of the columns of its matrix, see `item_values`; a code is one of its position.
        directions: float32 [values, components], orthonormal: the right singular vectors of the fit's matrix.
    """

    values: Ids
    directions: Matrix


@dataclass(frozen=True)
class WideFeatures:
    """Counts, the main directions of what clients met, and decayed amounts of listed values.

    Attributes:
        settings: how.
        span: days of the fit's history, by which it is told how lately an event was.
        scales: of the counts, by column: the standard deviations in the fit; constant columns are not there.
        views: by name, in the order of `VIEWS`.
        listed: by column of the properties, int64, ascending: whose amounts are columns of their own.
    """

    settings: WideSettings
    span: float
    scales: dict[str, float]
    views: dict[str, View]
    listed: dict[str, Ids]

    @classmethod
    def fit(
        cls, history: ChallengeData, clients: Ids, seed: int, settings: WideSettings, listed: Mapping[str, Ids]
    ) -> Self:
        """From the events of some clients; nothing after the history's ``as_of`` is read.

        Args:
            history: the events.
            clients: int64 [clients], each once.
            seed: of the SVDs.
            settings: how.
            listed: see the attribute.
        """
        span = length(history)
        deviations = client_counts(history, clients, settings, span).select(pl.all().cast(pl.Float64).std(ddof=0))
        scales = {name: value for name, value in deviations.row(0, named=True).items() if value > ROUNDING}
        views = {}
        for name, (values, matrix) in client_matrices(history, clients, settings):
            directions = right_directions(matrix, settings.components, seed)
            if directions.shape[1]:
                views[name] = View(values, directions)
            if directions.shape[1] < settings.components:
                logger.debug("%s: %d components; the data have no more", name, directions.shape[1])
        return cls(settings, span, scales, views, {column: values for column, values in listed.items() if len(values)})

    @property
    def widths(self) -> dict[str, int]:
        """Columns of each group, in the order of `groups`; a group without any is left out."""
        listed = len(self.settings.half_lives) * sum(map(len, self.listed.values()))
        views = {name: view.directions.shape[1] for name, view in self.views.items()}
        return {name: width for name, width in {COUNTS: len(self.scales), **views, LISTED: listed}.items() if width}

    def groups(self, history: ChallengeData, clients: Ids) -> dict[str, Matrix]:
        """All groups of columns: counts, projections of each view on its directions, listed values.

        Args:
            history: the events before its ``as_of``.
            clients: int64 [clients], each once, in any order; zeros for one without events. A client's numbers do not
                depend on the others, so many clients can be asked for in parts.

        Returns:
            `COUNTS`, each column with a variance of 1 in the fit; each view's name, log(1 + how much of each value)
            on its directions; `LISTED`, the same of the listed values by each half-life. Float32 [clients, columns]. A
            group without columns is left out.
        """
        return dict(self.each_group(history, clients))

    def each_group(self, history: ChallengeData, clients: Ids) -> Iterator[tuple[str, Matrix]]:
        """The same, one group after the other, so that not all are in memory."""
        if self.scales:
            yield COUNTS, self._counts(history, clients)
        items = ClientItems.of(history, clients, self.settings)
        for name, view in self.views.items():
            matrix = view_matrix(name, view.values, items, history, clients, self.settings)
            yield name, np.asarray(matrix @ view.directions, dtype=np.float32)
        if width := self.widths.get(LISTED):
            yield LISTED, self._listed(items, np.empty((len(clients), width), np.float32))

    def state(self) -> tuple[dict[str, Any], Arrays]:
        """What `from_state` makes the same features of: settings that JSON holds, and arrays."""
        arrays: Arrays = {f"listed.{column}": values for column, values in self.listed.items()}
        for name, view in self.views.items():
            arrays |= {f"{name}.values": view.values, f"{name}.directions": view.directions}
        names = {"views": list(self.views), "listed": list(self.listed)}
        return {"settings": asdict(self.settings), "span": self.span, "scales": self.scales, **names}, arrays

    @classmethod
    def from_state(cls, settings: Mapping[str, Any], arrays: Arrays) -> Self:
        """The features that gave this state."""
        given: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in settings["settings"].items()
        }
        views = {name: View(arrays[f"{name}.values"], arrays[f"{name}.directions"]) for name in settings["views"]}
        listed = {column: arrays[f"listed.{column}"] for column in settings["listed"]}
        return cls(WideSettings(**given), settings["span"], dict(settings["scales"]), views, listed)

    def _counts(self, history: ChallengeData, clients: Ids) -> Matrix:
        table = client_counts(history, clients, self.settings, self.span)
        absent = [name for name in self.scales if name not in table.columns]  # a type without events by this day
        table = table.with_columns(pl.lit(0, pl.Float32).alias(name) for name in absent)
        return np.ascontiguousarray(
            table.select(pl.col(name) / scale for name, scale in self.scales.items()).to_numpy()
        )

    def _listed(self, items: "ClientItems", matrix: Matrix) -> Matrix:
        end = 0
        for half_life in self.settings.half_lives:
            for column, values in self.listed.items():
                amounts = logarithms(items.by(column, half_life, values))
                matrix[:, end : end + len(values)] = amounts.toarray()
                end += len(values)
        return matrix


def view_matrix(
    name: str, values: Ids, items: "ClientItems", history: ChallengeData, clients: Ids, settings: WideSettings
) -> csr_matrix:
    """Of one of `VIEWS`, log(1 + how much of each) of some values: float32 [clients, values].

    Args:
        name: of the view.
        values: int64, ascending; what clients met of others is left out.
        items: the clients'.
        history: the events.
        clients: int64 [clients].
        settings: how.
    """
    if name == schema.URL:
        amounts = client_urls(history, clients, values)
    elif name == schema.QUERY:
        amounts = client_query_codes(history, clients)[:, values]
    else:
        half_life = settings.half_life if name.startswith(RECENT) else None
        amounts = items.by(name.removeprefix(RECENT), half_life, values)
    return logarithms(amounts)


def client_matrices(
    history: ChallengeData, clients: Ids, settings: WideSettings
) -> Iterator[tuple[str, tuple[Ids, csr_matrix]]]:
    """For each of `VIEWS` that has any: its values, and log(1 + how much of each), float32 [clients, values].

    One after the other, so that not all are in memory.
    """
    for name, values, matrix in _amounts(history, clients, settings):
        if len(values):
            yield name, (values, logarithms(matrix))


def _amounts(history: ChallengeData, clients: Ids, settings: WideSettings) -> Iterator[tuple[str, Ids, csr_matrix]]:
    items = ClientItems.of(history, clients, settings)
    for prefix, half_life in (("", None), (RECENT, settings.half_life)):
        for column in ITEM_VIEWS:
            values = items.values(column, settings.most_values)
            yield f"{prefix}{column}", values, items.by(column, half_life, values)
    del items
    urls = most_visited(url_visits(history, clients), settings.most_values)
    yield schema.URL, urls, client_urls(history, clients, urls)
    queries = client_query_codes(history, clients)
    codes = np.flatnonzero(queries.getnnz(axis=0))
    yield schema.QUERY, codes, queries[:, codes]


# Counts and days


def client_counts(history: ChallengeData, clients: Ids, settings: WideSettings, span: float) -> pl.DataFrame:
    """Float32, a row per client in their order, zeros for what it has not; types without events have no columns.

    For each event type the columns of `event_counts`, for those about items, without removals, those of `prices`; for
    each type those of `rhythm`, if it is asked for.

    Args:
        history: the events before its ``as_of``.
        clients: int64 [clients], each once.
        settings: which windows, and whether rhythm.
        span: days; an event as long ago counts as one that never was in ``nearness``.
    """
    every = history.event_types
    present = [event_type for event_type in every if history.has(event_type)]
    priced = tuple(event_type for event_type in history.item_types if event_type != EventType.REMOVE_FROM_CART)
    makers: list[tuple[Callable[[ChallengeData, Ids, EventType], pl.DataFrame], tuple[EventType, ...]]] = [
        (partial(event_counts, windows=settings.windows, span=span), every),
        (partial(prices, windows=settings.windows), priced),
        (rhythm, every if settings.rhythm else ()),
    ]
    parts = [
        made(history, clients, event_type).select(pl.all().name.prefix(f"{event_type}_"))
        for made, event_types in makers
        for event_type in event_types
        if event_type in present
    ]
    return pl.concat(parts, how="horizontal")


def event_counts(
    history: ChallengeData, clients: Ids, event_type: EventType, windows: Sequence[int], span: float
) -> pl.DataFrame:
    """Of one event type, the logarithms log(1 + x) of counts and of days. A row per client, Float32.

    - ``28d``: events in the last 28 days before ``as_of``; ``all``: all of them;
    - ``days``: days of the calendar with an event;
    - ``subjects``: different skus, urls or queries;
    - ``since_first``: days since the first event;
    - ``nearness``: log(1 + span) - log(1 + days since the last event), 0 at the least. The span is that of the fit: by
      each day's own history the same event a day ago would come out nearer the longer that history is.
    """
    time, as_of = pl.col(schema.TIMESTAMP), history.as_of
    table = of_rows(history, event_type, clients).group_by(_ROW).agg(
        **{f"{days}d": (time >= as_of - days * _DAY).sum() for days in windows},
        all=pl.len(),
        days=time.dt.date().n_unique(),
        subjects=pl.col(event_type.subject).n_unique(),
        since_first=days_until(as_of, time.min()),
        nearness=days_until(as_of, time.max()),
    )  # fmt: skip
    logs = table.select(_ROW, pl.exclude(_ROW).log1p())
    return filled(logs.with_columns((np.log1p(span) - pl.col("nearness")).clip(0)), len(clients))


def prices(history: ChallengeData, clients: Ids, event_type: EventType, windows: Sequence[int]) -> pl.DataFrame:
    """Of one item event type, prices in buckets. A row per client, Float32.

    - ``price``: mean bucket + 1, so that the cheapest is not as if there were none;
    - ``spend``: log(1 + sum of the buckets); ``spend_60d``: of the longest window.
    """
    price, longest = pl.col(schema.PRICE), max(windows)
    recent = pl.col(schema.TIMESTAMP) >= history.as_of - longest * _DAY
    bought = of_rows(history, event_type, clients).join(
        history.properties().select(schema.SKU, schema.PRICE), on=schema.SKU
    )
    table = bought.group_by(_ROW).agg(
        price=price.mean() + 1, spend=price.sum().log1p(), **{f"spend_{longest}d": (price * recent).sum().log1p()}
    )
    return filled(table, len(clients))


def rhythm(history: ChallengeData, clients: Ids, event_type: EventType) -> pl.DataFrame:
    """Of one event type, gaps between its days, and when in the week and the day. A row per client, Float32.

    - ``gap``: log(1 + mean days between two neighbouring days with an event), ``gap_spread``: of their standard
      deviation; 0 with fewer than two, three such days;
    - ``overdue``: log(1 + days since the last such day) - ``gap``; 0 with fewer than two such days;
    - ``weekday_1`` to ``weekday_7`` (Monday to Sunday), ``hours_0`` to ``hours_20``: log(1 + events) on that weekday,
      in the four hours from that hour on.
    """
    events, time = of_rows(history, event_type, clients), pl.col(schema.TIMESTAMP)
    gaps = pl.col("day").sort().diff().dt.total_days()
    by_day = events.select(_ROW, day=time.dt.truncate("1d")).unique().group_by(_ROW).agg(
        gap=gaps.mean().fill_null(0).log1p(),
        gap_spread=gaps.std(ddof=0).fill_null(0).log1p(),
        overdue=pl.when(pl.len() > 1).then(
            days_until(history.as_of, pl.col("day").max()).log1p() - gaps.mean().log1p()
        ).otherwise(0),
    )  # fmt: skip
    hours = range(0, 24, _PART_OF_DAY)
    by_time = events.group_by(_ROW).agg(
        **{f"weekday_{number}": (time.dt.weekday() == number).sum().log1p() for number in range(1, 8)},
        **{f"hours_{hour}": (time.dt.hour() // _PART_OF_DAY == hour // _PART_OF_DAY).sum().log1p() for hour in hours},
    )
    return filled(by_day.join(by_time, on=_ROW), len(clients))


def last_purchases(history: ChallengeData, clients: Ids) -> pl.DataFrame:
    """A row per client, Float32: ``recency`` and ``frequency``.

    log(1 + days from the last purchase to ``as_of``), or of the history's days where there is none, and
    log(1 + number of purchases).
    """
    bought = of_rows(history, EventType.PRODUCT_BUY, clients)
    table = bought.group_by(_ROW).agg(
        recency=days_until(history.as_of, pl.col(schema.TIMESTAMP).max()), frequency=pl.len()
    )
    return filled(table, len(clients), recency=length(history)).with_columns(pl.all().log1p())


def of_rows(history: ChallengeData, event_type: EventType, clients: Ids) -> pl.LazyFrame:
    """The events of one type of some clients, with each client's place among them as ``row``."""
    rows = pl.LazyFrame({schema.CLIENT_ID: clients, _ROW: np.arange(len(clients), dtype=np.uint32)})
    return history.events(event_type, clients).join(rows, on=schema.CLIENT_ID)


def filled(table: pl.LazyFrame, rows: int, **absent: float) -> pl.DataFrame:
    """A table by ``row`` as one with a row for each number, Float32; ``absent`` or zero where it has none."""
    whole = pl.LazyFrame({_ROW: np.arange(rows, dtype=np.uint32)})
    joined = collect(whole.join(table, on=_ROW, how="left", maintain_order="left")).drop(_ROW)
    return joined.select(pl.col(name).fill_null(absent.get(name, 0)).cast(pl.Float32) for name in joined.columns)


def days_until(as_of: datetime, moment: pl.Expr) -> pl.Expr:
    """Days from a moment to ``as_of``, with their fraction."""
    return (as_of - moment).dt.total_microseconds() / (_DAY / timedelta(microseconds=1))


def length(history: ChallengeData) -> float:
    """Of the history, in days."""
    return (history.as_of - history.start) / _DAY


# What clients met


@dataclass(frozen=True)
class ClientItems:
    """How much each client had to do with each sku.

    Attributes:
        items: the skus' properties, by ascending sku.
        amounts: by half-life in days, None for none: float32 [clients, skus], sums of the events' weights.
    """

    items: pl.DataFrame
    amounts: dict[float | None, csr_matrix]

    @classmethod
    def of(cls, history: ChallengeData, clients: Ids, settings: WideSettings) -> Self:
        """From all item events of some clients.

        Args:
            history: of the events.
            clients: int64 [clients].
            settings: the event types' weights, and the half-lives.
        """
        half_lives = (None, *dict.fromkeys((settings.half_life, *settings.half_lives)))
        weighted = pl.concat(
            of_rows(history, event_type, clients).select(
                _ROW, schema.SKU, schema.TIMESTAMP, pl.lit(weight, pl.Float64).alias(_AMOUNT)
            )
            for event_type, weight in settings.weights(history.item_types).items()
            if weight
        )
        sums = {f"{place}": faded(history.as_of, half_life).sum() for place, half_life in enumerate(half_lives)}
        pairs = collect(weighted.group_by(_ROW, schema.SKU).agg(**sums).sort(_ROW, schema.SKU))
        skus = pairs[schema.SKU].unique().sort()
        shape = (len(clients), len(skus))
        starts = np.searchsorted(pairs[_ROW].to_numpy(), np.arange(len(clients) + 1))
        places = np.searchsorted(skus.to_numpy(), pairs[schema.SKU].to_numpy())
        amounts = {
            half_life: csr_matrix(((pairs[f"{place}"].to_numpy() / _MILLION).astype(np.float32), places, starts), shape)
            for place, half_life in enumerate(half_lives)
        }
        return cls(history.properties_of(skus, *ITEM_VIEWS[1:]), amounts)

    def values(self, column: str, most: int) -> Ids:
        """The values of a column of the properties that were met; of skus those that most clients met, so many."""
        if column != schema.SKU:
            return np.unique(item_values(self.items, column))
        clients = self.amounts[None].getnnz(axis=0)
        return np.sort(self.items[schema.SKU].to_numpy()[np.argsort(-clients, kind="stable")[:most]])

    def by(self, column: str, half_life: float | None, values: Ids) -> csr_matrix:
        """Amounts of some values of a column of the properties: float32 [clients, values].

        A row's values are in an order that depends on the row alone, so that sums over them are the same bits for
        whatever other clients are asked for.
        """
        if column == schema.SKU:
            return self._of_skus(half_life, values)
        own = item_values(self.items, column)
        rows = np.repeat(np.arange(len(own)), own.shape[1])
        places, known = places_among(values, own.ravel())
        ones = np.ones(len(places), np.float32)
        return self.amounts[half_life] @ csr_matrix((ones, (rows[known], places)), shape=(len(own), len(values)))

    def _of_skus(self, half_life: float | None, skus: Ids) -> csr_matrix:
        """The same of skus, each a column that is there or not: nothing to add up."""
        places, known = places_among(skus, self.items[schema.SKU].to_numpy())
        place_of = np.full(len(known), -1, np.int64)
        place_of[known] = places
        amounts = self.amounts[half_life]
        moved = place_of[amounts.indices]
        kept = moved >= 0
        starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(kept)])[amounts.indptr]
        return csr_matrix((amounts.data[kept], moved[kept], starts), shape=(amounts.shape[0], len(skus)))


def item_values(items: pl.DataFrame, column: str) -> Ids:
    """The values of skus in a column: int64 [skus, 1], of names [skus, 16], each position with codes of its own."""
    width = schema.CODES if column == schema.NAME else 1  # not -1: there may be no skus
    values = items[column].to_numpy().reshape(len(items), width).astype(np.int64)
    return values + np.arange(schema.CODES) * schema.CODE_BOOK if column == schema.NAME else values


def places_among(ascending: Ids, asked: Ids) -> tuple[Ids, npt.NDArray[np.bool_]]:
    """The places of those that are there, int64 [known], and which are: bool [asked]."""
    places = np.searchsorted(ascending, asked)
    known = places < len(ascending)
    known[known] = ascending[places[known]] == asked[known]
    return places[known], known


def _about(history: ChallengeData, clients: Ids, subject: str) -> pl.LazyFrame:
    """The events about urls, or about queries: rows of `of_rows` of all such types."""
    return pl.concat(of_rows(history, event_type, clients) for event_type in history.about(subject))


def url_visits(history: ChallengeData, clients: Ids) -> pl.LazyFrame:
    """``url`` and ``visits`` of it by these clients."""
    return _about(history, clients, schema.URL).group_by(schema.URL).agg(visits=pl.len())


def most_visited(visits: pl.LazyFrame, most: int) -> Ids:
    """The urls with the most visits, at most so many: int64, ascending; the lower number settles ties."""
    often = visits.sort("visits", schema.URL, descending=[True, False])
    return np.sort(collect(often.head(most).select(schema.URL))[schema.URL].to_numpy())


def client_urls(history: ChallengeData, clients: Ids, urls: Ids) -> csr_matrix:
    """Visits of some urls: float32 [clients, urls]."""
    visits = _about(history, clients, schema.URL)
    known = visits.join(pl.LazyFrame({schema.URL: urls}), on=schema.URL, how="semi")
    pairs = collect(known.group_by(_ROW, pl.col(schema.URL).alias(_VALUE)).agg(pl.len().alias(_AMOUNT)))
    return sparse(pairs, len(clients), urls)


def client_query_codes(history: ChallengeData, clients: Ids) -> csr_matrix:
    """Codes of a client's queries, by position: float32 [clients, 16 × 256]."""
    searches = collect(_about(history, clients, schema.QUERY).select(_ROW, schema.QUERY))
    rows, ones = searches[_ROW].to_numpy(), np.ones(len(searches), np.float32)
    # One position at a time: all of them would be a list of sixteen times the searches.
    positions = searches[schema.QUERY].to_numpy().reshape(len(searches), schema.CODES).T
    shape = (len(clients), schema.CODE_BOOK)
    codes = hstack([csr_matrix((ones, (rows, codes)), shape=shape) for codes in positions], format="csr")
    codes.sort_indices()
    return codes


def faded(as_of: datetime, half_life: float | None) -> pl.Expr:
    """What is left of an event's weight: half of it after so many days, a quarter after twice as many; None: all.

    In whole millionths: sums of integers are the same in whatever order Polars adds them up.
    """
    left = pl.col(_AMOUNT)
    if half_life is not None:
        left = left * 0.5 ** (days_until(as_of, pl.col(schema.TIMESTAMP)) / half_life)
    return (left * _MILLION).round().cast(pl.Int64)


def sparse(pairs: pl.DataFrame, rows: int, values: Ids) -> csr_matrix:
    """Amounts by row and value as float32 [rows, values]; all values are among those given, which ascend."""
    places = np.searchsorted(values, pairs[_VALUE].to_numpy())
    amounts = pairs[_AMOUNT].to_numpy().astype(np.float32)
    matrix = csr_matrix((amounts, (pairs[_ROW].to_numpy(), places)), shape=(rows, len(values)))
    matrix.sort_indices()  # Polars gives the pairs in any order, and sums are rounded in theirs
    return matrix


def logarithms(matrix: csr_matrix) -> csr_matrix:
    """log(1 + x) of the values that are there; the matrix is overwritten."""
    np.log1p(matrix.data, out=matrix.data)
    return matrix


def right_directions(matrix: csr_matrix, components: int, seed: int) -> Matrix:
    """The right singular vectors of a truncated SVD (Halko et al. 2009, arXiv 0909.4061).

    Returns:
        float32 [columns of the matrix, directions]: so many components, or what the matrix's sides and rank allow.
    """
    from sklearn.utils.extmath import randomized_svd

    if not matrix.nnz:
        return np.zeros((matrix.shape[1], 0), np.float32)
    _, singular, right = randomized_svd(
        matrix, min(components, *matrix.shape), n_iter=SVD_ITERATIONS, random_state=seed
    )
    kept = singular > singular[0] * ROUNDING
    return np.ascontiguousarray(right[kept].T, dtype=np.float32)
