"""A store of a log that has grown, from the earlier store and the new events alone.

What comes out is, byte for byte, what `ubp.sequences.build` makes of the grown files. An earlier store in the cache can
be continued where its events are all still in the files and every other event is later than its last one. Both are
looked up in one pass over the files, by a digest of the earlier events that does not depend on their order; whatever
cannot be continued is built anew, with a line that says why.

New clients, urls, queries and skus shift the references to the rows of the tables: each earlier reference is mapped to
its new row. The earlier columns are streamed in blocks; memory goes with the tables, the clients and the new events.
"""

import logging
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import polars as pl

from ubp.data import schema
from ubp.data.history import ChallengeData
from ubp.data.reading import collect
from ubp.data.schema import EventType
from ubp.sequences.arrays import Array, Int64, offsets_of
from ubp.sequences.build import build, made_once, seconds_since, subject_keys, write_header, write_items
from ubp.sequences.layout import COLUMNS, NOTE, TABLE_OF, VERSION, read_note, write_note
from ubp.sequences.store import Sequences

logger = logging.getLogger(__name__)

_BLOCK: Final = 1 << 22  # rows of the earlier columns that are worked on at a time
_MOST_NEW: Final = 10_000_000  # events that are put in order at once, in about 1 GB
_HASHED: Final = [schema.CLIENT_ID, "time", "event", "first", "second"]
_HALF: Final = 2**32

Keys = npt.NDArray[np.uint64]


def append_or_build(history: ChallengeData) -> Sequences:
    """The store of all events in a history's files: from the cache, or an earlier one continued, or built.

    Raises:
        UserError: see `ubp.sequences.build.build_or_open`.
    """
    return made_once(history, _append_or_build)


def _append_or_build(data: ChallengeData, folder: Path) -> None:
    earlier = earlier_store(data)
    if earlier is None:
        build(data, folder)
        return
    try:
        append(data, earlier, folder)
    except NotContinued as reason:
        logger.info("%s: %s; the sequence store is built anew", data.folder, reason)
        build(data, folder)


class NotContinued(Exception):
    """An earlier store cannot be continued; the message says why."""


def earlier_store(data: ChallengeData) -> Sequences | None:
    """Of the stores in the cache that begin on the history's first day and end before it does, the latest."""
    found = []
    for note in data.paths.sequences("").glob(f"*/{NOTE}"):
        try:
            known = read_note(note.parent)
        except (ValueError, TypeError, OSError):  # of another layout, or removed meanwhile
            continue
        if known.version == VERSION and datetime.fromisoformat(known.start) == data.start:
            found.append((known.last, note.parent))
    ends = int((data.as_of - data.start).total_seconds())
    earlier = [(last, folder) for last, folder in found if last < ends]
    return Sequences.open(max(earlier)[1]) if earlier else None


def append(data: ChallengeData, earlier: Sequences, folder: Path) -> None:
    """Write the store of a whole history from an earlier one.

    Args:
        data: the whole history.
        earlier: a store of some of its events.
        folder: to write to; not there yet.

    Raises:
        NotContinued: the earlier store's events are not those of the files up to its last one, or the new ones are so
            many that memory should not hold them. Nothing is written then.
        UserError: the files' events span more than 68 years.
    """
    rows = sum(data.rows(event_type) for event_type in data.event_types)
    if (more := rows - len(earlier.time)) > _MOST_NEW:
        raise NotContinued(f"{more:,} new events")
    earlier.seconds_until(data.as_of)  # refuses what does not fit
    _require_same_events(data, earlier)
    new = {event_type: _new_events(data, event_type, earlier) for event_type in data.event_types}
    logger.info("%s: %s new events are put in order", data.folder, f"{sum(map(len, new.values())):,}")
    folder.mkdir()
    maps, added = _write_tables(data, earlier, new, folder)
    _write_columns(earlier, added, _References(data, maps), folder)
    last = int(added["time"].max()) if len(added) else earlier.last  # type: ignore[arg-type]
    write_note(folder, earlier.start, max(last, earlier.last))


# --- are the earlier events still there? ------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Digest:
    """Of events in any order: their number, and the sum of their hashes, in halves so that it cannot overflow."""

    rows: int
    low: int
    high: int

    def __add__(self, other: "_Digest") -> "_Digest":
        return _Digest(self.rows + other.rows, self.low + other.low, self.high + other.high)


_NO_EVENTS: Final = _Digest(0, 0, 0)


def _digest(events: pl.LazyFrame) -> _Digest:
    """Of events with the columns `_HASHED`."""
    hashed = events.select(pl.struct(_HASHED).hash(0).alias("hash"))
    low, high = pl.col("hash") % _HALF, pl.col("hash") // _HALF
    rows, *halves = collect(hashed.select(pl.len(), low=low.sum(), high=high.sum())).row(0)
    return _Digest(rows, *halves)


def _require_same_events(data: ChallengeData, earlier: Sequences) -> None:
    """Compare the files' events up to the earlier store's last one with the store's.

    Raises:
        NotContinued: they differ.
    """
    filed = _NO_EVENTS
    for event_type in data.event_types:
        filed += _digest(_keyed(data, event_type).filter(pl.col("time") <= earlier.last))
    if filed.rows != len(earlier.time):
        last = f"{earlier.start + earlier.last * _SECOND:%Y-%m-%d %H:%M:%S}"
        raise NotContinued(f"up to {last} there are {filed.rows:,} events now, not {len(earlier.time):,} as before")
    kept = sum((_digest(block.lazy()) for block in _stored(data, earlier)), _NO_EVENTS)
    if kept != filed:
        raise NotContinued("events that were there before have changed")


_SECOND: Final = datetime(1970, 1, 1, 0, 0, 1) - datetime(1970, 1, 1)


def _keyed(data: ChallengeData, event_type: EventType) -> pl.LazyFrame:
    """Events of the files: `_HASHED`, each subject as one or two numbers without a sign."""
    keys = subject_keys(event_type.subject)
    if event_type.subject != schema.QUERY:
        keys = [keys[0].reinterpret(signed=False), pl.lit(0, pl.UInt64)]
    return data.events(event_type).select(
        schema.CLIENT_ID,
        seconds_since(data.start).alias("time"),
        pl.lit(event_type.code, pl.UInt8).alias("event"),
        keys[0].alias("first"),
        keys[1].alias("second"),
    )


def _stored(data: ChallengeData, store: Sequences) -> Iterator[pl.DataFrame]:
    """The events of a store, block by block, as `_keyed` gives those of the files."""
    tables = {subject: _table_keys(subject, store) for subject in TABLE_OF}
    kinds = {subject: [each.code for each in data.event_types if each.subject == subject] for subject in TABLE_OF}
    for start in range(0, len(store.time), _BLOCK):
        rows = slice(start, min(start + _BLOCK, len(store.time)))
        event, subject = store.event[rows], store.subject[rows]
        keys = np.zeros((2, len(event)), np.uint64)
        for kind, codes in kinds.items():
            own = np.isin(event, codes)
            keys[:, own] = tables[kind][:, subject[own]]
        columns = (_clients_of(store, rows), store.time[rows], event, *keys)
        yield pl.DataFrame(dict(zip(_HASHED, columns, strict=True)))


def _clients_of(store: Sequences, rows: slice) -> Int64:
    """The client of each of some rows of a store: int64 [rows]."""
    first, end = np.searchsorted(store.offsets, [rows.start, rows.stop - 1], side="right")
    borders = np.clip(store.offsets[first - 1 : end + 1], rows.start, rows.stop)
    return np.repeat(store.clients[first - 1 : end], np.diff(borders))


def _table_keys(subject: str, store: Sequences) -> Keys:
    """What `_keyed` gives for each row of a table: uint64 [2, rows]."""
    table: Array = getattr(store, TABLE_OF[subject])
    if subject == schema.QUERY:
        return np.ascontiguousarray(table).view(">u8").reshape(-1, 2).T.astype(np.uint64)
    return np.stack([table.view(np.uint64), np.zeros(len(table), np.uint64)])


# --- new tables, new columns ------------------------------------------------------------------------------------------


def _new_events(data: ChallengeData, event_type: EventType, earlier: Sequences) -> pl.DataFrame:
    """Those after the earlier store's last event: ``client_id``, ``time``, ``event`` and their subjects' keys."""
    events = data.events(event_type).select(
        schema.CLIENT_ID,
        seconds_since(data.start).alias("time"),
        pl.lit(event_type.code, pl.UInt8).alias("event"),
        *subject_keys(event_type.subject),
    )
    return collect(events.filter(pl.col("time") > earlier.last))


def _write_tables(
    data: ChallengeData, earlier: Sequences, new: dict[EventType, pl.DataFrame], folder: Path
) -> tuple[dict[str, Array], pl.DataFrame]:
    """Write the tables of subjects.

    Args:
        data: the history.
        earlier: the store that is continued.
        new: the events that it lacks.
        folder: to write to.

    Returns:
        By kind of subject the new row of each row of the earlier table, int32; and the new events in the store's
        order, ``client_id`` and its columns.
    """
    maps, frames = dict[str, Array](), list[pl.DataFrame]()
    for subject in TABLE_OF:
        own = [events for event_type, events in new.items() if event_type.subject == subject]
        before = _ordered(subject, earlier)
        if subject == schema.SKU:
            write_items(data, folder)
            table = np.load(folder / f"{TABLE_OF[subject]}.npy")
        else:
            table = np.unique(np.concatenate([before, *(_ordered_keys(subject, events) for events in own)]))
            as_kept = table.view(np.uint8).reshape(-1, schema.CODES) if subject == schema.QUERY else table
            np.save(folder / f"{TABLE_OF[subject]}.npy", as_kept)
        # A sku that has gone from the properties has no events any more, as was compared: nobody refers to it.
        maps[subject] = np.searchsorted(table, before).astype(np.int32)
        for events in own:
            references = np.searchsorted(table, _ordered_keys(subject, events)).astype(np.int32)
            columns = events.select(schema.CLIENT_ID, "time", "event")
            frames.append(columns.with_columns(pl.Series("subject", references, dtype=pl.Int32)))
    return maps, pl.concat(frames).sort(schema.CLIENT_ID, *COLUMNS)


def _ordered(subject: str, store: Sequences) -> Array:
    """A table's rows as values that numpy orders as the table is: ids, or codes as 16 bytes."""
    table: Array = getattr(store, TABLE_OF[subject])
    return _as_bytes(np.ascontiguousarray(table)) if subject == schema.QUERY else np.asarray(table)


def _ordered_keys(subject: str, events: pl.DataFrame) -> Array:
    """The same for events, from the keys of their subjects."""
    keys = events.select(pl.exclude(schema.CLIENT_ID, *COLUMNS)).to_numpy()
    if subject != schema.QUERY:
        return np.ascontiguousarray(keys[:, 0])
    return _as_bytes(np.ascontiguousarray(keys.astype(">u8")).view(np.uint8))


def _as_bytes(codes: npt.NDArray[np.uint8]) -> Array:
    """Codes [rows, 16] as one value each; zeros at its end, which numpy does not count, cannot make two equal."""
    return codes.view(f"S{schema.CODES}").reshape(-1)


@dataclass(frozen=True)
class _References:
    """What becomes of the earlier references: by the kind of subject of each event type, the new rows."""

    data: ChallengeData
    maps: dict[str, Array]

    def mapped(self, event: Array, subject: Array) -> Array:
        """The new references of some rows: int32 [rows]."""
        found = np.empty(len(subject), np.int32)
        for kind, rows in self.maps.items():
            own = np.isin(event, [each.code for each in self.data.event_types if each.subject == kind])
            found[own] = rows[subject[own]]
        return found


def _write_columns(earlier: Sequences, new: pl.DataFrame, references: _References, folder: Path) -> None:
    """Write clients, offsets and the columns: new events behind the earlier ones of their clients."""
    runs = new[schema.CLIENT_ID].rle()
    ids, counts = (np.asarray(runs.struct.field(name).to_numpy(), np.int64) for name in ("value", "len"))
    clients = np.union1d(earlier.clients, ids)
    lengths = np.zeros(len(clients), np.int64)
    lengths[np.searchsorted(clients, earlier.clients)] = earlier.lengths
    lengths[np.searchsorted(clients, ids)] += counts
    np.save(folder / "clients.npy", clients)
    np.save(folder / "offsets.npy", offsets_of(lengths))
    # Before which of the earlier rows each new event comes; ascending, as both are ordered by client.
    before = np.repeat(earlier.offsets[np.searchsorted(earlier.clients, ids, side="right")], counts)
    added = {name: new[name].to_numpy() for name in COLUMNS}
    with ExitStack() as stack:
        files = {name: stack.enter_context((folder / f"{name}.npy").open("wb", buffering=0)) for name in COLUMNS}
        for name, file in files.items():
            write_header(file, np.dtype(COLUMNS[name]), len(earlier.time) + len(new))
        for start in range(0, len(earlier.time), _BLOCK):
            rows = slice(start, min(start + _BLOCK, len(earlier.time)))
            first, end = np.searchsorted(before, [rows.start, rows.stop])
            if rows.stop == len(earlier.time):
                end = len(new)
            kept: dict[str, Array] = {"time": earlier.time[rows], "event": earlier.event[rows]}
            kept["subject"] = references.mapped(kept["event"], earlier.subject[rows])
            for name, file in files.items():
                np.insert(kept[name], before[first:end] - rows.start, added[name][first:end]).tofile(file)
