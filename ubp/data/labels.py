"""What is asked of the window after a snapshot: who bought what, what was put into the cart, how much and how soon.

The questions, a `LabelSpace`, are chosen once from a history. The answers, `WindowLabels`, are read from one window at
a time: memory grows with the clients and with the window's purchases and cart additions.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Final, Self

import numpy as np
import numpy.typing as npt
import polars as pl
from scipy.sparse import csr_matrix

from ubp.data import schema
from ubp.data.history import ChallengeData
from ubp.data.name_clusters import NameClusters
from ubp.data.reading import collect
from ubp.data.schema import EventType
from ubp.data.snapshots import Clients, Snapshot
from ubp.io.errors import name_some, require

Numbers = npt.NDArray[np.float32]

CLUSTER: Final = "cluster"  # of a name; the other columns are the schema's
_BUY, _ADD = EventType.PRODUCT_BUY, EventType.ADD_TO_CART
# The groups of labels in their order: each the event type and the column that it asks about.
GROUPS: Final = {
    "bought_category": (_BUY, schema.CATEGORY),
    "bought_sku": (_BUY, schema.SKU),
    "added_category": (_ADD, schema.CATEGORY),
    "added_sku": (_ADD, schema.SKU),
    "price": (_BUY, schema.PRICE),
    "cluster": (_BUY, CLUSTER),
    "categories": (_BUY, schema.CATEGORY),
    "skus": (_BUY, schema.SKU),
}
_ROW, _VALUE, _PLACE, _BUYERS = "row", "value", "place", "buyers"
_DAY: Final = timedelta(days=1)


@dataclass(frozen=True)
class LabelSettings:
    """What is asked.

    Attributes:
        categories: the most bought ones, beside those listed by the open tasks; 0 for none.
        skus: the same of skus.
        clusters: of names; 0 for none.
        groups: that are on, of `GROUPS`.
    """

    categories: int = 300
    skus: int = 300
    clusters: int = 32
    groups: tuple[str, ...] = tuple(GROUPS)

    def __post_init__(self) -> None:
        """Refuse settings that make no sense.

        Raises:
            UserError: a negative number, or an unknown group.
        """
        for name in ("categories", "skus", "clusters"):
            require(getattr(self, name) >= 0, f"labels.{name}", getattr(self, name), "at least 0")
        unknown = sorted(set(self.groups) - GROUPS.keys())
        require(not unknown, "labels.groups", name_some(unknown), f"some of {', '.join(GROUPS)}")


@dataclass(frozen=True)
class Group:
    """Labels of one kind: whether a client has an event with each of some values in the window.

    Attributes:
        name: one of `GROUPS`.
        event_type: purchases or cart additions.
        column: ``category``, ``sku``, ``price`` or ``cluster``.
        values: int64, ascending, at least one.
    """

    name: str
    event_type: EventType
    column: str
    values: Clients


@dataclass(frozen=True)
class LabelSpace:
    """All labels that are asked for.

    Attributes:
        groups: in the order of `GROUPS`.
        names: the clusters of names; None where no group asks for them.
        has_additions: whether cart additions were known when it was made; if not, nothing is asked about them.
    """

    groups: tuple[Group, ...]
    names: NameClusters | None
    has_additions: bool

    @classmethod
    def of(cls, history: ChallengeData, listed: Mapping[str, Clients], settings: LabelSettings, seed: int) -> Self:
        """From the purchases of relevant clients; groups that are off or have no values are left out.

        Args:
            history: nothing at or after its ``as_of`` is read.
            listed: what the open tasks ask for, by column (`ubp.data.targets.open_targets`); may be empty.
            settings: what is asked.
            seed: of the clusters.
        """
        has_additions = history.has(_ADD)
        values: dict[str, Clients] = {f"bought_{column}": np.unique(listed[column]) for column in listed}
        if has_additions:
            values |= {f"added_{column}": np.unique(listed[column]) for column in listed}
        bought = relevant_purchases(history)
        values["price"] = bought[schema.PRICE].unique().sort().to_numpy()
        for group, most in (("categories", settings.categories), ("skus", settings.skus)):
            column = GROUPS[group][1]
            is_asked = f"bought_{column}" in settings.groups and column in listed
            values[group] = most_bought(bought, column, most, listed[column] if is_asked else ())
        names = None
        if settings.clusters and CLUSTER in settings.groups and len(bought):
            codes = history.properties_of(bought[schema.SKU].unique(), schema.NAME)[schema.NAME].to_numpy()
            names = NameClusters.fit(codes, settings.clusters, seed)
            values[CLUSTER] = np.unique(names.of(codes))
        groups = (
            Group(name, *GROUPS[name], values[name])
            for name in GROUPS
            if name in settings.groups and len(values.get(name, ()))
        )
        return cls(tuple(groups), names, has_additions)


def relevant_purchases(history: ChallengeData) -> pl.DataFrame:
    """``sku``, ``category``, ``price`` and ``client_id`` of the relevant clients' purchases, each once."""
    pairs = history.events(_BUY, history.relevant_clients).select(schema.CLIENT_ID, schema.SKU).unique()
    properties = history.properties().select(schema.SKU, schema.CATEGORY, schema.PRICE)
    return collect(pairs.join(properties, on=schema.SKU))


def most_bought(bought: pl.DataFrame, column: str, most: int, others: npt.ArrayLike = ()) -> Clients:
    """The values that most clients bought, without some others: int64, ascending.

    Args:
        bought: as `relevant_purchases` gives it.
        column: of the values.
        most: so many at most. The value itself settles ties.
        others: left out.
    """
    left_out = pl.LazyFrame({column: np.asarray(others, dtype=np.int64)})
    counted = bought.lazy().group_by(column).agg(buyers=pl.col(schema.CLIENT_ID).n_unique())
    ranked = counted.join(left_out, on=column, how="anti").sort(_BUYERS, column, descending=[True, False])
    return collect(ranked.head(most))[column].sort().to_numpy()


@dataclass(frozen=True)
class WindowLabels:
    """What came in the window after a snapshot, a row for each of its clients.

    Attributes:
        clients: int64 [clients], ascending.
        groups: by name, in the space's order: uint8 [clients, values] of zeros and ones, sparse.
        churn: float32 [clients]: 1 for an active client that bought nothing, 0 for one that bought; NaN for one that
            never bought before.
        bought: float32 [clients]: 1 with a purchase, else 0.
        added: the same with a cart addition; None where the space has none.
        baskets: float32 [clients]: different moments of purchases.
        days_to_purchase: float32 [clients]: from the day to the first purchase in the window, or, where there is none,
            to the window's end.
        censored: bool [clients]: no purchase came before that end.
    """

    clients: Clients
    groups: dict[str, csr_matrix]
    churn: Numbers
    bought: Numbers
    added: Numbers | None
    baskets: Numbers
    days_to_purchase: Numbers
    censored: npt.NDArray[np.bool_]


def labels(snapshot: Snapshot, space: LabelSpace) -> WindowLabels:
    """The answers of one window.

    Nothing at or after the window's end is read: a later window may be what a model is validated by.
    """
    clients = snapshot.clients
    rows = pl.LazyFrame({schema.CLIENT_ID: clients, _ROW: np.arange(len(clients), dtype=np.uint32)})
    next_purchases, events = _next_purchases(snapshot, rows), _window_events(snapshot, rows, space)
    baskets = next_purchases["baskets"].to_numpy()
    bought = (baskets > 0).astype(np.float32)
    churn = np.where(np.isin(clients, snapshot.active, assume_unique=True), 1 - bought, np.float32(np.nan))
    added = None
    if space.has_additions:
        added = np.zeros(len(clients), np.float32)
        added[events.filter(event=_ADD.code)[_ROW].to_numpy()] = 1
    return WindowLabels(
        clients=clients,
        groups=dict(_of_groups(events, space, len(clients))),
        churn=churn,
        bought=bought,
        added=added,
        baskets=baskets,
        days_to_purchase=next_purchases["days"].to_numpy(),
        censored=next_purchases["censored"].to_numpy(),
    )


def _next_purchases(snapshot: Snapshot, rows: pl.LazyFrame) -> pl.DataFrame:
    """A row per client: ``baskets`` Float32, ``days`` Float32 and ``censored`` (see `WindowLabels`)."""
    time = pl.col(schema.TIMESTAMP)
    bought = snapshot.after(_BUY, snapshot.clients).join(rows, on=schema.CLIENT_ID)
    table = bought.group_by(_ROW).agg(next=time.min(), baskets=time.n_unique())
    wait = pl.col("next").fill_null(snapshot.end) - snapshot.day
    return collect(
        rows.join(table, on=_ROW, how="left", maintain_order="left").select(
            baskets=pl.col("baskets").fill_null(0).cast(pl.Float32),
            days=(wait.dt.total_microseconds() / (_DAY / timedelta.resolution)).cast(pl.Float32),
            censored=pl.col("next").is_null(),
        )
    )


def _window_events(snapshot: Snapshot, rows: pl.LazyFrame, space: LabelSpace) -> pl.DataFrame:
    """``row``, ``event`` (the type's code), ``sku``, each once, with what the groups ask about the sku."""
    pairs = collect(
        pl.concat(
            snapshot.after(event_type, snapshot.clients)
            .join(rows, on=schema.CLIENT_ID)
            .select(_ROW, schema.SKU, event=pl.lit(event_type.code, pl.UInt8))
            .unique()
            for event_type in ((_BUY, _ADD) if space.has_additions else (_BUY,))
        )
    )
    columns = [schema.CATEGORY, schema.PRICE] + ([schema.NAME] if space.names is not None else [])
    items = snapshot.source.properties_of(pairs[schema.SKU].unique(), *columns)
    if space.names is not None:
        items = items.with_columns(pl.Series(CLUSTER, space.names.of(items[schema.NAME].to_numpy()))).drop(schema.NAME)
    return pairs.join(items, on=schema.SKU)


def _of_groups(events: pl.DataFrame, space: LabelSpace, clients: int) -> Iterator[tuple[str, csr_matrix]]:
    for group in space.groups:
        places = pl.DataFrame({group.column: group.values, _PLACE: np.arange(len(group.values), dtype=np.int32)})
        own = events.filter(event=group.event_type.code).select(_ROW, group.column)
        hits = own.join(places, on=group.column).select(_ROW, _PLACE).unique()
        coordinates = (hits[_ROW].to_numpy(), hits[_PLACE].to_numpy())
        matrix = csr_matrix((np.ones(len(hits), np.uint8), coordinates), shape=(clients, len(group.values)))
        matrix.sort_indices()  # Polars gives the pairs in any order
        yield group.name, matrix
