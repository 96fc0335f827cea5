"""What a profile rests on: a client's events left out one at a time, one day and one event type at a time.

A small history holds copies of the client under other ids, each without something, so that encoding it once gives all
the vectors. A block that reads of a client what it would read of him alone gives an undisturbed copy the client's own
vector; `Occluded.undisturbed` is there to tell.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import polars as pl

from ubp.blocks.fitted import FittedBlock
from ubp.data import schema
from ubp.data.history import ChallengeData, of_clients
from ubp.data.paths import DataPaths
from ubp.data.reading import collect, scan, times_parsed
from ubp.data.schema import EventType
from ubp.io.arrays import save_array
from ubp.io.errors import UserError
from ubp.io.files import scratch_folder

logger = logging.getLogger(__name__)

EVENT, DAY, TYPE = KINDS = ("event", "day", "event type")
PLACE: Final = "place"  # of an event among all of the client's, oldest first
EVENT_TYPE: Final = "event_type"
_COPY: Final = "#copy"
_ABOUT: Final = (schema.SKU, schema.URL, schema.QUERY, schema.CATEGORY, schema.PRICE)

Ids = npt.NDArray[np.int64]
Vectors = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Part:
    """Some of a client's events, to be left out together.

    Attributes:
        kind: ``event``, ``day`` or ``event type``.
        name: a place, a day or a type's name.
        places: int64, of its events among the client's.
    """

    kind: str
    name: str
    places: Ids


@dataclass(frozen=True)
class ClientEvents:
    """A client's events before a day.

    Attributes:
        client: whose.
        table: by time, oldest first; ``place`` Int64 from 0 on, ``timestamp``, ``event_type`` String, and what the
            event is about where it has that: ``sku``, ``url``, ``query`` (text), ``category``, ``price``.
        filed: by event type the rows of the log's files as they stand, with ``place``.
    """

    client: int
    table: pl.DataFrame
    filed: dict[EventType, pl.DataFrame]

    @classmethod
    def of(cls, history: ChallengeData, client: int) -> "ClientEvents":
        """The events of one client.

        Raises:
            UserError: there are none.
        """
        filed = {kind: collect(_filed(history, kind, np.array([client]))) for kind in history.event_types}
        rows = [
            table.select(
                schema.TIMESTAMP,
                pl.lit(str(kind)).alias(EVENT_TYPE),
                pl.lit(kind.code).alias("code"),
                pl.int_range(pl.len()).alias("row"),
                pl.col(kind.subject).cast(pl.String if kind.subject == schema.QUERY else pl.Int64),
            )
            for kind, table in filed.items()
        ]
        subjects = sorted({kind.subject for kind in filed})
        table = pl.concat(rows, how="diagonal").sort(schema.TIMESTAMP, "code", *subjects, "row")
        if table.is_empty():
            raise UserError(f"client={client}: no event before {history.as_of:%Y-%m-%d %H:%M}")
        table = table.with_row_index(PLACE).with_columns(pl.col(PLACE).cast(pl.Int64))
        if schema.SKU in table.columns:
            skus = table[schema.SKU].drop_nulls().unique()
            known = history.properties_of(skus, schema.CATEGORY, schema.PRICE)
            table = table.join(known, on=schema.SKU, how="left", maintain_order="left")
        places = {kind: table.filter(pl.col(EVENT_TYPE) == str(kind)).sort("row")[PLACE] for kind in filed}
        with_places = {kind: rows.with_columns(places[kind].alias(PLACE)) for kind, rows in filed.items()}
        about = [column for column in _ABOUT if column in table.columns]
        return cls(client, table.select(PLACE, schema.TIMESTAMP, EVENT_TYPE, *about), with_places)

    def parts(self, events: int, days: int) -> list[Part]:
        """What is left out, one after the other.

        Args:
            events: single events, the newest, at most.
            days: with events, the newest, at most.

        Returns:
            Single events, days and all event types, each oldest first, types in the order of their names.
        """
        places = self.table[PLACE].to_numpy()
        single = [Part(EVENT, str(place), places[place : place + 1]) for place in places[len(places) - events :]]
        by_day = self.table.group_by(pl.col(schema.TIMESTAMP).dt.date().alias(DAY)).agg(PLACE).sort(DAY).tail(days)
        by_type = self.table.group_by(EVENT_TYPE).agg(PLACE).sort(EVENT_TYPE)
        grouped = ((DAY, by_day), (TYPE, by_type))
        return single + [
            Part(kind, str(name), np.sort(np.array(some, np.int64)))
            for kind, table in grouped
            for name, some in table.iter_rows()
        ]


@dataclass(frozen=True)
class Occluded:
    """A client's vector, and those without something of the client's.

    Attributes:
        own: float32 [columns], of the undisturbed copy.
        left_out: float32 [parts, columns]; NaN where the block gives no vector any more.
        others: float32 [n, columns], of other clients.
        other_ids: int64 [n], ascending.
    """

    own: Vectors
    left_out: Vectors
    others: Vectors
    other_ids: Ids


def occluded(
    fitted: FittedBlock, history: ChallengeData, events: ClientEvents, parts: Sequence[Part], others: Ids
) -> Occluded:
    """The vectors of a client without one part of its events after the other, by one encoding.

    Args:
        fitted: a block or a merge.
        history: as known on the day.
        events: of the client, in this history.
        parts: what is left out.
        others: int64, clients that are encoded beside it, as they are.

    Raises:
        UserError: the client has no vector, or see `ubp.blocks.fitted.FittedBlock.vectors`.
    """
    others = np.setdiff1d(others, [events.client])
    companions = np.union1d(others, _landmarks(history))
    # None of the ids stands for two: neither the companions' nor the client's own.
    taken = np.union1d(companions, [events.client])
    free = np.setdiff1d(np.arange(1, len(parts) + 2 + len(taken)), taken)[: len(parts) + 1]
    with _small_history(history, events, parts, free, companions) as small:
        table = fitted.encode(small, np.union1d(free, others))
    rows = {client: row for row, client in enumerate(table.client_ids.tolist())}
    if int(free[0]) not in rows:
        raise UserError(f"client={events.client}: no vector: it has no event that the block reads")
    left_out = np.full((len(parts), table.columns), np.nan, np.float32)
    for place, client in enumerate(free[1:].tolist()):
        if client in rows:
            left_out[place] = table.vectors[rows[client]]
    found = np.array([client for client in others.tolist() if client in rows], np.int64)
    beside = table.vectors[[rows[client] for client in found.tolist()]]
    return Occluded(table.vectors[rows[int(free[0])]], left_out, beside, found)


@contextmanager
def _small_history(
    history: ChallengeData, events: ClientEvents, parts: Sequence[Part], ids: Ids, companions: Ids
) -> Iterator[ChallengeData]:
    """A history of the copies and their companions alone, in a folder that is removed afterwards.

    Args:
        history: the whole one.
        events: of the client.
        parts: what each copy but the first lacks.
        ids: int64 [1 + parts], of the copies.
        companions: int64, clients as they are.
    """
    with scratch_folder(history.paths.cache, "occlusion") as folder:
        paths = DataPaths(folder)
        paths.relevant_clients.parent.mkdir(parents=True)
        for file in (history.paths.properties, history.paths.event_types):
            if file.exists():
                (paths.raw / file.name).symlink_to(file.resolve())
        lacking = pl.concat(
            [
                pl.DataFrame({_COPY: np.full(len(part.places), copy), PLACE: part.places})
                for copy, part in zip(ids[1:], parts, strict=True)
            ]
        )
        for kind, rows in events.filed.items():
            every = pl.LazyFrame({_COPY: ids}).join(rows.lazy(), how="cross")
            copies = (
                every.join(lacking.lazy(), on=[_COPY, PLACE], how="anti")
                .with_columns(pl.col(_COPY).alias(schema.CLIENT_ID))
                .select(rows.drop(PLACE).columns)
            )
            beside = _filed(history, kind, companions)
            pl.concat([copies, beside]).sink_parquet(paths.raw / kind.file_name)
        save_array(paths.relevant_clients, np.union1d(ids, companions))
        yield ChallengeData(paths, submit=True, unknown_sku=history.unknown_sku, as_of=history.as_of)


def _filed(history: ChallengeData, kind: EventType, clients: Ids) -> pl.LazyFrame:
    """Events of some clients before the day as the log's file has them: client, time, subject."""
    columns = pl.col(schema.CLIENT_ID).cast(pl.Int64), schema.TIMESTAMP, kind.subject
    events = of_clients(scan(history.file(kind)).select(columns), clients)  # before times are parsed: few are left
    return times_parsed(events).filter(pl.col(schema.TIMESTAMP) < history.as_of)


def _landmarks(history: ChallengeData) -> Ids:
    """A client of the earliest event, so that the small history begins on the same day, and one with a purchase."""
    first = min((kind for kind in history.event_types if history.has(kind)), key=history.first)
    wanted = {first: history.first(first), EventType.PRODUCT_BUY: None}
    found = []
    for kind, moment in wanted.items():
        rows = times_parsed(history.as_filed(kind)).filter(pl.col(schema.TIMESTAMP) < history.as_of)
        rows = rows if moment is None else rows.filter(pl.col(schema.TIMESTAMP) == moment)
        found.append(collect(rows.select(pl.col(schema.CLIENT_ID).cast(pl.Int64)).head(1)).to_series())
    return np.unique(pl.concat(found).to_numpy())
