"""What single clients did: for colouring a map of a sample, and for showing some of them with their neighbours."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from typing import Any, Final, Self

import numpy as np
import polars as pl

from ubp.data import schema
from ubp.data.event_types import by_code
from ubp.data.history import ChallengeData
from ubp.data.own_ids import ID, ORIGINAL
from ubp.data.paths import DataPaths
from ubp.data.reading import collect
from ubp.data.schema import EventType
from ubp.io.errors import UserError, require, require_positive
from ubp.report.log import EVENTS
from ubp.report.profiles import Ids, Matrix, ProfileFile, Scale, nearest, neighbourhood_map, plane

# Columns of `facts`.
PURCHASES: Final = "purchases"
SINCE: Final = "days_since_event"
SINCE_PURCHASE: Final = "days_since_purchase"
CATEGORY: Final = schema.CATEGORY

PCA, TSNE = MAPS = ("pca", "tsne")

_DAY: Final = timedelta(days=1)
_SECONDS: Final = 86_400  # of a day
_LEAST: Final = 4  # clients of a t-SNE
_MOST: Final = 20_000  # clients on a map
_BIN, _TYPE, _TIME, _ABOUT = "bin", "event_type", "time", "subjects"
_SUBJECTS: Final = 2  # named of a moment's events


# --- what a client did --------------------------------------------------------------------------------


def facts(history: ChallengeData, clients: Ids) -> pl.DataFrame:
    """A row for each of some clients, by ascending id.

    Columns: ``client_id``; ``events`` and ``purchases`` Int64; ``days_since_event`` and ``days_since_purchase``
    Float64, before the history's end, null where there is none; ``category`` Int64, of the most events about items,
    the smallest where several have as many, null without any.

    Args:
        history: whose events count.
        clients: int64, each once.
    """
    tables = []
    for event_type in history.event_types:
        time = pl.col(schema.TIMESTAMP).max()
        is_purchase = event_type == EventType.PRODUCT_BUY
        bought = [pl.len().alias(PURCHASES), time.alias(SINCE_PURCHASE)] if is_purchase else []
        events = history.events(event_type, clients)
        tables.append(events.group_by(schema.CLIENT_ID).agg(pl.len().alias(EVENTS), time.alias(SINCE), *bought))
    counts = [pl.col(name).sum().cast(pl.Int64) for name in (EVENTS, PURCHASES)]
    since = [
        ((history.as_of - pl.col(name).max()).dt.total_seconds() / _SECONDS).alias(name)
        for name in (SINCE, SINCE_PURCHASE)
    ]
    every = pl.concat(tables, how="diagonal").group_by(schema.CLIENT_ID).agg(*counts, *since)
    asked = pl.LazyFrame({schema.CLIENT_ID: np.sort(clients)})
    joined = asked.join(every, on=schema.CLIENT_ID, how="left").join(
        top_categories(history, clients), on=schema.CLIENT_ID, how="left"
    )
    return collect(joined.with_columns(pl.col(EVENTS, PURCHASES).fill_null(0))).sort(schema.CLIENT_ID)


def top_categories(history: ChallengeData, clients: Ids) -> pl.LazyFrame:
    """``client_id`` and the ``category`` of most of its events about items; the smallest of several."""
    about = [history.events(event_type, clients) for event_type in history.event_types if event_type.has_sku]
    skus = pl.concat(frame.select(schema.CLIENT_ID, schema.SKU) for frame in about)
    met = skus.join(history.properties().select(schema.SKU, CATEGORY), on=schema.SKU)
    counted = met.group_by(schema.CLIENT_ID, CATEGORY).agg(pl.len())
    ordered = counted.sort(["len", CATEGORY], descending=[True, False])
    return ordered.group_by(schema.CLIENT_ID, maintain_order=True).agg(pl.col(CATEGORY).first())


def gaps(history: ChallengeData, clients: Ids) -> pl.DataFrame:
    """How often so many days lie between one day with events of a client and the next: ``days`` and ``times``."""
    day = pl.col(schema.TIMESTAMP).dt.date().alias("day")
    frames = [history.events(event_type, clients).select(schema.CLIENT_ID, day) for event_type in history.event_types]
    days = collect(pl.concat(frames).unique()).sort(schema.CLIENT_ID, "day")
    between = days.select(pl.col("day").diff().over(schema.CLIENT_ID).dt.total_days().alias("days")).drop_nulls()
    return between.group_by("days").agg(pl.len().alias("times")).sort("days")


# --- the user's own ids -------------------------------------------------------------------------------


@dataclass(frozen=True)
class OwnIds:
    """What ids were in the user's own files, where ``scripts/import_log.py`` brought them in.

    Attributes:
        paths: where the log lies.
    """

    paths: DataPaths

    def names(self, kind: str, ids: Sequence[int]) -> dict[int, str]:
        """The originals of some ids; an id without one as it is.

        Args:
            kind: ``client``, ``item``, ``url`` or ``category``.
            ids: of that kind.
        """
        found = {id_: str(id_) for id_ in ids}
        if (file := self.paths.ids(kind)).exists():
            table = pl.scan_parquet(file, glob=False).filter(pl.col(ID).is_in(list(found)))
            found |= {id_: str(original) for id_, original in collect(table.select(ID, ORIGINAL)).iter_rows()}
        return found

    def client(self, asked: str) -> int:
        """The id of a client as the user calls it.

        Raises:
            UserError: it has none.
        """
        if (file := self.paths.ids("client")).exists():
            of_name = pl.scan_parquet(file, glob=False).filter(pl.col(ORIGINAL).cast(pl.String) == asked)
            if len(found := collect(of_name.select(ID))):
                return int(found.item(0, 0))
            raise UserError(f"client={asked}: not in {file}; give an id as your own files have it")
        try:
            return int(asked)
        except ValueError as error:
            raise UserError(f"client={asked}: not an integer, as this log's ids are") from error


# --- histories of a few clients -----------------------------------------------------------------------


@dataclass(frozen=True)
class Histories:
    """What a few clients did.

    Attributes:
        width: of a bin of time, in days.
        bins: how many of them the history has.
        counts: ``client_id``, ``event_type``, ``bin`` and ``events``; bins without events are left out.
        newest: each client's newest moments with events, the newest first, and of one moment the type that comes last
            first: ``client_id``, ``time``, ``event_type``, ``events``, and ``subjects``, the smallest few of
            what they are about (list of Int64; empty for queries).
    """

    width: int
    bins: int
    counts: pl.DataFrame
    newest: pl.DataFrame

    @classmethod
    def of(cls, history: ChallengeData, clients: Ids, bins: int, newest: int) -> Self:
        """Read them.

        Args:
            history: whose events before its end.
            clients: int64, each once.
            bins: at most so many of equal length, of whole days.
            newest: moments and types listed of each client.
        """
        days = -((history.start - history.as_of) // _DAY)
        width = -(-days // bins)
        place = ((pl.col(schema.TIMESTAMP) - history.start).dt.total_days() // width).alias(_BIN)
        counted, listed = [], []
        for event_type in reversed(by_code(history.event_types)):
            events, name = history.events(event_type, clients), pl.lit(str(event_type)).alias(_TYPE)
            keys = [pl.col(schema.CLIENT_ID), name, place]
            counted.append(events.group_by(keys).agg(pl.len().alias(EVENTS)))
            moments = moments_of(events, event_type).with_columns(name)
            listed.append(newest_of(moments, newest))
        order = [schema.CLIENT_ID, _TYPE, _BIN]
        return cls(
            width=width,
            bins=-(-days // width),
            counts=collect(pl.concat(counted)).sort(order),
            newest=collect(newest_of(pl.concat(listed), newest)),
        )


def moments_of(events: pl.LazyFrame, event_type: EventType) -> pl.LazyFrame:
    """Each moment of a client with events of a type: ``client_id``, ``time``, ``events`` and ``subjects``."""
    column = event_type.subject
    none = pl.lit([], dtype=pl.List(pl.Int64))
    about = none if column in schema.CODE_COLUMNS else pl.col(column).unique().sort().head(_SUBJECTS)
    time = pl.col(schema.TIMESTAMP).alias(_TIME)
    grouped = events.group_by(schema.CLIENT_ID, time).agg(pl.len().alias(EVENTS), about.alias(_ABOUT))
    return grouped.with_columns(none.alias(_ABOUT)) if column in schema.CODE_COLUMNS else grouped


def newest_of(moments: pl.LazyFrame, count: int) -> pl.LazyFrame:
    """Each client's newest moments, the newest first; of one time in the order in which they lie."""
    ordered = moments.sort(_TIME, descending=True, maintain_order=True)
    return ordered.group_by(schema.CLIENT_ID, maintain_order=True).head(count)


# --- all of it ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ClientSettings:
    """How many clients are shown, and how.

    Attributes:
        sample: clients on the map.
        drawn: clients to look at, drawn by the seed.
        neighbours: of each, by the cosine of their profiles.
        newest: events listed of each client.
        bins: of time in a client's history, at most.
        explained: of the clients to look at, the first so many are shown with what their profile rests on.
        map: ``pca`` (fast, and distances mean something) or ``tsne`` (near ones stay near).

    Raises:
        UserError: a number or the map makes no sense.
    """

    sample: int = 4000
    drawn: int = 20
    neighbours: int = 5
    newest: int = 12
    bins: int = 180
    explained: int = 1
    map: str = PCA

    def __post_init__(self) -> None:
        require_positive(self, "view", "drawn", "neighbours", "newest", "bins")
        require(self.explained >= 0, "view.explained", self.explained, "at least 0")
        require(1 < self.sample <= _MOST, "view.sample", self.sample, f"from 2 to {_MOST:,}, as a page can bear")
        require(self.map in MAPS, "view.map", self.map, f"{PCA} or {TSNE}")


@dataclass(frozen=True)
class ClientView:
    """A profile's sample as a map, and some clients beside their neighbours.

    Attributes:
        profiles: where the vectors lie.
        history: whose events are shown.
        client_ids: int64 [sample], ascending; the clients to look at and their neighbours are among them.
        points: float32 [sample, 2].
        shares: of the variance, of the two directions; None for t-SNE.
        facts: a row for each of the sample, see `facts`.
        gaps: see `gaps`, of the sample.
        drawn: the clients to look at, the first one shown first.
        neighbours: of each its neighbours and their cosines, the nearest first.
        histories: of all of these.
        own: the user's own ids.
    """

    profiles: ProfileFile
    history: ChallengeData
    client_ids: Ids
    points: Matrix
    shares: tuple[float, float] | None
    facts: pl.DataFrame
    gaps: pl.DataFrame
    drawn: list[int]
    neighbours: dict[int, list[tuple[int, float]]]
    histories: Histories
    own: OwnIds

    @classmethod
    def of(
        cls, profiles: ProfileFile, history: ChallengeData, settings: ClientSettings, client: int | None, seed: int
    ) -> Self:
        """Read, sample and compare.

        Args:
            profiles: of clients of the history.
            history: that they were made from.
            settings: how many.
            client: to show first; None: drawn as the others.
            seed: of the sample, the draw and the map.

        Raises:
            UserError: the client has no profile, or the profiles cannot be read.
        """
        rng = np.random.default_rng(seed)
        order = rng.permutation(len(profiles.client_ids))
        drawn = _drawn(profiles, order[: settings.drawn], client)
        sampled = np.unique(np.concatenate([order[: settings.sample], drawn]))
        scale = Scale.of(profiles.rows(sampled), by_column=not profiles.is_merge)
        rows, near = nearest(profiles, scale, np.sort(drawn), settings.neighbours)
        places = np.unique(np.concatenate([sampled, rows.ravel()]))
        points, shares = _mapped(scale.apply(profiles.rows(places)), settings.map, seed)
        beside = dict(zip(profiles.client_ids[np.sort(drawn)].tolist(), zip(rows, near, strict=True), strict=True))
        neighbours = {
            id_: list(zip(profiles.client_ids[others].tolist(), map(float, cosine), strict=True))
            for id_, (others, cosine) in beside.items()
        }
        sample = profiles.client_ids[places]
        shown = np.unique([*neighbours, *(other for found in neighbours.values() for other, _ in found)])
        by_id = np.argsort(sample)
        return cls(
            profiles=profiles,
            history=history,
            client_ids=sample[by_id],
            points=points[by_id],
            shares=shares,
            facts=facts(history, sample),
            gaps=gaps(history, sample),
            drawn=profiles.client_ids[drawn].tolist(),
            neighbours=neighbours,
            histories=Histories.of(history, shown.astype(np.int64), settings.bins, settings.newest),
            own=OwnIds(history.paths),
        )

    @cached_property
    def shown(self) -> list[int]:
        """The clients whose histories are shown, ascending."""
        return sorted({*self.drawn, *(other for found in self.neighbours.values() for other, _ in found)})

    @cached_property
    def client_names(self) -> dict[int, str]:
        """The user's own ids of all clients on the map and beside it."""
        return self.own.names("client", sorted({*self.client_ids.tolist(), *self.shown}))

    @cached_property
    def category_names(self) -> dict[int, str]:
        """Likewise of the categories that are met."""
        met = pl.concat([self.facts[CATEGORY], self.items[CATEGORY]]).drop_nulls().unique().sort()
        return self.own.names("category", met.to_list())

    @cached_property
    def items(self) -> pl.DataFrame:
        """``sku``, ``category`` and ``price`` of the items that are named."""
        return self.history.properties_of(pl.Series(self._named("item"), dtype=pl.Int64), CATEGORY, schema.PRICE)

    @cached_property
    def subjects(self) -> dict[tuple[str, int], str]:
        """What the listed events are about, in words, by the kind (``item`` or ``url``) and the id."""
        found = {("url", id_): f"url {name}" for id_, name in self.own.names("url", self._named("url")).items()}
        names = self.own.names("item", self._named("item"))
        found |= {("item", id_): f"item {name}" for id_, name in names.items()}
        for sku, category, price in self.items.iter_rows():
            found["item", sku] += f" (category {self.category_names[category]}, price {price})"
        return found

    def _named(self, kind: str) -> list[int]:
        """The ids of a kind among the listed events."""
        types = [str(each) for each in self.history.event_types if kind_of(each) == kind]
        listed = self.histories.newest.filter(pl.col(_TYPE).is_in(types))[_ABOUT]
        return listed.explode().drop_nulls().unique().sort().to_list()

    def as_records(self) -> dict[int, dict[str, Any]]:
        """Each shown client's history as plain values: counts by type, and the newest events in words."""
        kinds = {str(each): kind_of(each) for each in self.history.event_types}
        found: dict[int, dict[str, Any]] = {id_: {"counts": {}, "newest": []} for id_ in self.shown}
        for id_, name, place, events in self.histories.counts.iter_rows():
            found[id_]["counts"].setdefault(name, []).append((place, events))
        for row in self.histories.newest.iter_rows(named=True):
            named = [self.subjects[kinds[row[_TYPE]], id_] for id_ in row[_ABOUT]]
            listed = (f"{row[_TIME]:%Y-%m-%d %H:%M}", row[_TYPE], row[EVENTS], named)
            found[row[schema.CLIENT_ID]]["newest"].append(listed)
        return found


def kind_of(event_type: EventType) -> str:
    """What its events are about, as a file of own ids is called: ``item``, ``url`` or ``query``."""
    return "item" if event_type.has_sku else event_type.subject


def _drawn(profiles: ProfileFile, places: Ids, client: int | None) -> Ids:
    """The rows of the clients to look at, the one that was asked for in front."""
    if client is None:
        return places
    found = np.flatnonzero(profiles.client_ids == client)
    if not len(found):
        raise UserError(f"client={client}: has no vector in {profiles.path}; choose another, or another name=")
    return np.concatenate([found, places[places != found[0]]])[: max(len(places), 1)]


def _mapped(vectors: Matrix, how: str, seed: int) -> tuple[Matrix, tuple[float, float] | None]:
    if how == TSNE and len(vectors) >= _LEAST:
        return neighbourhood_map(vectors, seed), None
    return plane(vectors, seed)
