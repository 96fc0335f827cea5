"""What a good engineer makes of a log in an hour: counts in windows, days since, and SVDs of what a client met.

Functions of a history and some clients; events at or after ``as_of`` play no part. Nothing here is centred: that is
the conditioning's part (`ubp.blocks.condition`). A client without events gets zeros, so zero stands for never: how
lately an event was is told by a number that falls with the days since.

Tables are aggregated in Polars' streaming engine, one event type after the other. What clients met is a sparse matrix
of so many values at most. So memory grows with the clients, and with the pairs of a client and a value.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, Self, TypeAlias

import numpy as np
import numpy.typing as npt
import polars as pl
from scipy.sparse import csr_matrix, hstack

from ubp.data import schema
from ubp.data.history import ChallengeData
from ubp.data.reading import collect
from ubp.data.schema import EventType
from ubp.io.errors import require
from ubp.sequences.arrays import find

logger = logging.getLogger(__name__)

Clients: TypeAlias = npt.NDArray[np.int64]
Matrix: TypeAlias = npt.NDArray[np.float32]

COUNTS: Final = "counts"
# What a client met, each a matrix of its own: skus and what they are, the subjects of its other events.
ITEM_VIEWS: Final = (schema.SKU, schema.CATEGORY, schema.PRICE, schema.NAME)
RECENT: Final = "recent_"  # before an item view in which an event counts the less the older it is
VIEWS: Final = (*ITEM_VIEWS, *(f"{RECENT}{view}" for view in ITEM_VIEWS), schema.URL, schema.QUERY)

_ROW, _VALUE, _AMOUNT = "row", "value", "amount"
_DAY: Final = timedelta(days=1)
_MILLION: Final = 1_000_000
_ITERATIONS: Final = 5  # of the power method in an SVD
_ROUNDING: Final = 1e-5  # of the largest singular value; what is smaller is float32's rounding


@dataclass(frozen=True)
class WideSettings:
    """How wide features are made.

    Attributes:
        windows: days before ``as_of`` in which events are counted; beside them all events are.
        bought: what a purchase counts in the matrices of skus, categories, prices and names.
        added: the same of a cart addition.
        removed: the same of a removal from the cart.
        half_life: days in which an event comes to count half as much, in the matrices of what was met lately.
        components: of each SVD, at most.
        most_values: skus, urls in their matrix, at most: those with the most events.
    """

    windows: tuple[int, ...] = (1, 3, 7, 14, 28, 60)
    bought: float = 1.0
    added: float = 0.5
    removed: float = 0.25
    half_life: float = 30.0
    components: int = 32
    most_values: int = 20_000

    def __post_init__(self) -> None:
        """Refuse settings that make no sense.

        Raises:
            UserError: no window, one below a day, purchases that count nothing, a negative weight, no half-life, no
                component, no value.
        """
        require(bool(self.windows) and min(self.windows) > 0, "windows", self.windows, "one or more days, at least 1")
        for name in ("bought", "half_life"):
            require(getattr(self, name) > 0, name, getattr(self, name), "above 0")
        for name in ("added", "removed"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "at least 0")
        for name in ("components", "most_values"):
            require(getattr(self, name) > 0, name, getattr(self, name), "at least 1")

    @property
    def weights(self) -> dict[EventType, float]:
        """Of the item events, what each type counts."""
        return dict(zip(schema.ITEM_EVENTS, (self.bought, self.added, self.removed), strict=True))


def wide_features(history: ChallengeData, clients: Clients, seed: int, settings: WideSettings) -> dict[str, Matrix]:
    """All groups: the counts, each column with a variance of 1, then an SVD of each view.

    Args:
        history: the events before its ``as_of``.
        clients: int64 [clients], each once, in any order.
        seed: of the SVDs.
        settings: how.

    Returns:
        `COUNTS` or the view, to float32 [clients, columns]. A view of which these clients have no event is left out.
    """
    groups = {COUNTS: scaled(client_counts(history, clients, settings.windows))}
    for view, matrix in client_matrices(history, clients, settings):
        groups[view] = svd(matrix, settings.components, seed)
        if groups[view].shape[1] < settings.components:
            logger.debug("%s: %d components; the data have no more", view, groups[view].shape[1])
    for name in {COUNTS, *VIEWS} - {name for name, group in groups.items() if group.shape[1]}:
        logger.debug("%s: left out; the clients have no such events", name)
    return {name: group for name, group in groups.items() if group.shape[1]}


# Counts and days


def client_counts(history: ChallengeData, clients: Clients, windows: Sequence[int]) -> pl.DataFrame:
    """Float32, a row per client in their order, zeros for what it has not; types without events have no columns.

    For each event type the columns of `event_counts`, for purchases and cart additions those of `prices`.
    """
    parts = [
        made(history, clients, event_type, windows).select(pl.all().name.prefix(f"{event_type}_"))
        for made, event_types in ((event_counts, EventType), (prices, schema.ITEM_EVENTS[:2]))
        for event_type in event_types
        if history.rows(event_type)
    ]
    return pl.concat(parts, how="horizontal")


def event_counts(
    history: ChallengeData, clients: Clients, event_type: EventType, windows: Sequence[int]
) -> pl.DataFrame:
    """Of one event type, the logarithms log(1 + x) of counts and of days. A row per client, Float32.

    - ``28d``: events in the last 28 days before ``as_of``; ``all``: all of them;
    - ``days``: days of the calendar with an event;
    - ``subjects``: different skus, urls or queries;
    - ``since_first``: days since the first event;
    - ``nearness``: log(1 + days of the history) - log(1 + days since the last event).
    """
    time, as_of = pl.col(schema.TIMESTAMP), history.as_of
    table = of_rows(history.events(event_type), clients).group_by(_ROW).agg(
        **{f"{days}d": (time >= as_of - days * _DAY).sum() for days in windows},
        all=pl.len(),
        days=time.dt.date().n_unique(),
        subjects=pl.col(event_type.subject).n_unique(),
        since_first=days_until(as_of, time.min()),
        nearness=days_until(as_of, time.max()),
    )  # fmt: skip
    logs = table.select(_ROW, pl.exclude(_ROW).log1p())
    return filled(logs.with_columns(np.log1p(length(history)) - pl.col("nearness")), len(clients))


def prices(history: ChallengeData, clients: Clients, event_type: EventType, windows: Sequence[int]) -> pl.DataFrame:
    """Of one item event type, prices in buckets. A row per client, Float32.

    - ``price``: mean bucket + 1, so that the cheapest is not as if there were none;
    - ``spend``: log(1 + sum of the buckets); ``spend_60d``: of the longest window.
    """
    price, longest = pl.col(schema.PRICE), max(windows)
    recent = pl.col(schema.TIMESTAMP) >= history.as_of - longest * _DAY
    bought = of_rows(history.events(event_type), clients).join(
        history.properties().select(schema.SKU, schema.PRICE), on=schema.SKU
    )
    table = bought.group_by(_ROW).agg(
        price=price.mean() + 1, spend=price.sum().log1p(), **{f"spend_{longest}d": (price * recent).sum().log1p()}
    )
    return filled(table, len(clients))


def last_purchases(history: ChallengeData, clients: Clients) -> pl.DataFrame:
    """A row per client, Float32: ``recency`` and ``frequency``.

    log(1 + days from the last purchase to ``as_of``), or of the history's days where there is none, and
    log(1 + number of purchases).
    """
    bought = of_rows(history.events(EventType.PRODUCT_BUY), clients)
    table = bought.group_by(_ROW).agg(
        recency=days_until(history.as_of, pl.col(schema.TIMESTAMP).max()), frequency=pl.len()
    )
    return filled(table, len(clients), recency=length(history)).with_columns(pl.all().log1p())


def scaled(table: pl.DataFrame) -> Matrix:
    """Each column to a variance of 1, constant ones left out: float32 [clients, columns]."""
    matrix = np.ascontiguousarray(table.to_numpy())
    deviations = matrix.std(axis=0, dtype=np.float64)
    kept = deviations > _ROUNDING
    return np.asarray(matrix[:, kept] / deviations[kept], dtype=np.float32)


def of_rows(events: pl.LazyFrame, clients: Clients) -> pl.LazyFrame:
    """The events of some clients, with each client's place among them as ``row``."""
    rows = pl.LazyFrame({schema.CLIENT_ID: clients, _ROW: np.arange(len(clients), dtype=np.uint32)})
    return events.join(rows, on=schema.CLIENT_ID)


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
        skus: int64, ascending.
        amounts: float32 [clients, skus], sums of the events' weights.
    """

    skus: Clients
    amounts: csr_matrix

    @classmethod
    def of(cls, history: ChallengeData, clients: Clients, settings: WideSettings, recent: bool) -> Self:
        """From all item events of some clients.

        Args:
            history: of the events.
            clients: int64 [clients].
            settings: the event types' weights, and the half-life.
            recent: an event's weight falls with the days from it to ``as_of``.
        """
        amount = faded(history.as_of, settings.half_life) if recent else pl.len()
        pairs = {
            event_type: collect(pairs_of(of_rows(history.events(event_type), clients), pl.col(schema.SKU), amount))
            for event_type, weight in settings.weights.items()
            if weight
        }
        skus = np.unique(np.concatenate([table[_VALUE].to_numpy() for table in pairs.values()]))
        amounts = csr_matrix((len(clients), len(skus)), dtype=np.float32)
        for event_type, table in pairs.items():
            amounts = amounts + sparse(table, len(clients), skus) * np.float32(settings.weights[event_type])
        return cls(skus, amounts)

    def by(self, properties: pl.DataFrame, column: str) -> csr_matrix:
        """Amounts of categories, of price buckets, or of the codes of names: float32 [clients, values]."""
        own = properties.join(pl.DataFrame({schema.SKU: self.skus}), on=schema.SKU, how="semi").sort(schema.SKU)
        values = own[column].to_numpy().reshape(len(own), -1).astype(np.int64)
        if column == schema.NAME:
            values = values + np.arange(schema.CODES) * schema.CODE_BOOK  # one code book a position
        names, places = np.unique(values, return_inverse=True)
        ones = np.ones(values.size, np.float32)
        rows = np.repeat(np.arange(len(own)), values.shape[1])
        amounts = self.amounts @ csr_matrix((ones, (rows, places.ravel())), shape=(len(own), len(names)))
        amounts.sort_indices()
        return amounts

    def most_met(self, most: int) -> csr_matrix:
        """Amounts of the skus that most clients met: float32 [clients, at most so many]."""
        clients = self.amounts.getnnz(axis=0)
        return self.amounts[:, np.sort(np.argsort(-clients, kind="stable")[:most])]


def client_matrices(
    history: ChallengeData, clients: Clients, settings: WideSettings
) -> Iterator[tuple[str, csr_matrix]]:
    """For each of `VIEWS` log(1 + how much of it): float32 [clients, values], one after the other."""
    properties = collect(history.properties())
    for recent, prefix in ((False, ""), (True, RECENT)):
        items = ClientItems.of(history, clients, settings, recent)
        yield f"{prefix}{schema.SKU}", logarithms(items.most_met(settings.most_values))
        for view in ITEM_VIEWS[1:]:
            yield f"{prefix}{view}", logarithms(items.by(properties, view))
    del items, properties
    yield schema.URL, logarithms(client_urls(history, clients, settings.most_values))
    yield schema.QUERY, logarithms(client_query_codes(history, clients))


def client_urls(history: ChallengeData, clients: Clients, most: int) -> csr_matrix:
    """Visits of the urls with the most visits by these clients: float32 [clients, at most so many]."""
    visits = of_rows(history.events(EventType.PAGE_VISIT), clients)
    often = visits.group_by(schema.URL).agg(visits=pl.len()).sort("visits", schema.URL, descending=[True, False])
    urls = collect(often.head(most).select(schema.URL))
    pairs = collect(pairs_of(visits.join(urls.lazy(), on=schema.URL, how="semi"), pl.col(schema.URL), pl.len()))
    return sparse(pairs, len(clients), np.sort(urls[schema.URL].to_numpy()))


def client_query_codes(history: ChallengeData, clients: Clients) -> csr_matrix:
    """Codes of a client's queries, by position: float32 [clients, 16 × 256]."""
    searches = collect(of_rows(history.events(EventType.SEARCH_QUERY), clients).select(_ROW, schema.QUERY))
    rows, ones = searches[_ROW].to_numpy(), np.ones(len(searches), np.float32)
    # One position at a time: all of them would be a list of sixteen times the searches.
    positions = searches[schema.QUERY].to_numpy().reshape(-1, schema.CODES).T
    shape = (len(clients), schema.CODE_BOOK)
    return hstack([csr_matrix((ones, (rows, codes)), shape=shape) for codes in positions], format="csr")


def pairs_of(events: pl.LazyFrame, value: pl.Expr, amount: pl.Expr) -> pl.LazyFrame:
    """``row``, ``value`` and the ``amount`` of a client's events with the value."""
    return events.group_by(_ROW, value.alias(_VALUE)).agg(amount.alias(_AMOUNT))


def faded(as_of: datetime, half_life: float) -> pl.Expr:
    """Events counted as what is left of them: half after so many days, a quarter after twice as many.

    In whole millionths: sums of integers are the same in whatever order Polars adds them up.
    """
    left = 0.5 ** (days_until(as_of, pl.col(schema.TIMESTAMP)) / half_life)
    return (left * _MILLION).round().cast(pl.Int64).sum() / _MILLION


def sparse(pairs: pl.DataFrame, rows: int, values: Clients) -> csr_matrix:
    """Amounts by row and value as float32 [rows, values]; all values are among those given, which ascend."""
    places, _ = find(values, pairs[_VALUE].to_numpy())
    amounts = pairs[_AMOUNT].to_numpy().astype(np.float32)
    matrix = csr_matrix((amounts, (pairs[_ROW].to_numpy(), places)), shape=(rows, len(values)))
    matrix.sort_indices()  # Polars gives the pairs in any order, and sums are rounded in theirs
    return matrix


def logarithms(matrix: csr_matrix) -> csr_matrix:
    """log(1 + x) of the values that are there; the matrix is overwritten."""
    np.log1p(matrix.data, out=matrix.data)
    return matrix


def svd(matrix: csr_matrix, components: int, seed: int) -> Matrix:
    """Rows by their largest singular values, U · S of a truncated SVD (Halko et al. 2009, arXiv 0909.4061).

    Returns:
        float32 [rows, columns]: so many components, or what the matrix's sides and its rank allow.
    """
    from sklearn.utils.extmath import randomized_svd

    if not matrix.nnz:
        return np.zeros((matrix.shape[0], 0), np.float32)
    left, singular, _ = randomized_svd(matrix, min(components, *matrix.shape), n_iter=_ITERATIONS, random_state=seed)
    kept = singular > singular[0] * _ROUNDING
    return np.asarray(left[:, kept] * singular[kept], dtype=np.float32)
