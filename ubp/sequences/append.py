"""A store of a log that has grown, from the earlier store and the new events alone.

What comes out is, byte for byte, what `ubp.sequences.build` makes of the grown files. An earlier store in the cache can
be continued where its events are all still in the files and every other event is later than its last one. Who let the
files grow may have kept what they grew by (`ubp.data.growth`); else one pass over the files compares the earlier
events, by a digest that does not depend on their order. Whatever cannot be continued is built anew, with a line that
says why.

New clients, urls, queries and skus shift the references to the rows of the tables: each earlier reference is mapped to
its new row. The earlier columns are streamed in blocks; memory goes with the tables, the clients and the new events.
"""

import logging
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final, Self

import numpy as np
import numpy.typing as npt
import polars as pl

from ubp.data import schema
from ubp.data.event_types import by_code, own_types
from ubp.data.growth import Growth
from ubp.data.history import ChallengeData
from ubp.data.reading import collect
from ubp.data.schema import EventType
from ubp.io.arrays import append_array, save_array, write_header
from ubp.sequences.arrays import Array, Int64, offsets_of
from ubp.sequences.build import build, made_once, seconds_since, subject_keys, write_items
from ubp.sequences.layout import COLUMNS, NOTE, TABLE_OF, VERSION, Note, read_note, write_note
from ubp.sequences.store import Sequences

logger = logging.getLogger(__name__)

_BLOCK: Final = 1 << 22  # rows of the earlier columns that are worked on at a time
_MOST_NEW: Final = 10_000_000  # events that are put in order at once, in about 1 GB
_HASHED: Final = [schema.CLIENT_ID, "time", "event", "first", "second"]
_HALF: Final = 2**32

Keys = npt.NDArray[np.uint64]
NewEvents = dict[EventType, pl.DataFrame]  # with the columns `_HASHED`


def append_or_build(history: ChallengeData) -> Sequences:
    """The store of all events in a history's files: from the cache, or an earlier one continued, or built.

    Raises:
        UserError: see `ubp.sequences.build.build_or_open`.
    """
    return made_once(history, _append_or_build)


def _append_or_build(data: ChallengeData, folder: Path) -> None:
    found = known_growth(data) or compared_growth(data)
    if found is None:
        build(data, folder)
    else:
        append(data, *found, folder)


def earlier_store(data: ChallengeData) -> Sequences | None:
    """Of the stores in the cache that begin on the history's first day and end before it does, the latest.

    One of a log with other event types is none: its codes mean others.
    """
    notes = {path.parent: _note_of(path.parent) for path in data.paths.sequences("").glob(f"*/{NOTE}")}
    ends = int((data.as_of - data.start).total_seconds())
    earlier = [
        (note.last, folder)
        for folder, note in notes.items()
        if note
        and datetime.fromisoformat(note.start) == data.start
        and note.last < ends
        and note.event_types == own_types(data.event_types)
    ]
    return Sequences.open(max(earlier)[1]) if earlier else None


def _note_of(folder: Path) -> Note | None:
    """The note of a store; None where none lies there, or one of another layout."""
    try:
        note = read_note(folder)
    except (ValueError, TypeError, OSError):
        return None
    return note if note.version == VERSION else None


def append(data: ChallengeData, earlier: Sequences, new: NewEvents, folder: Path) -> None:
    """Write the store of a whole history from an earlier one.

    Args:
        data: the whole history.
        earlier: a store of all its events but the new ones.
        new: later than all others.
        folder: to write to; not there yet.

    Raises:
        UserError: the files' events span more than 68 years.
    """
    earlier.seconds_until(data.as_of)  # refuses what does not fit
    logger.info("%s: %s new events are put in order", data.folder, f"{sum(map(len, new.values())):,}")
    folder.mkdir()
    maps, added = _write_tables(data, earlier, new, folder)
    _write_columns(earlier, added, _ByType.of(data, maps), folder)
    write_note(folder, earlier.start, int(added["time"].to_numpy().max(initial=earlier.last)), data.event_types)


def known_growth(data: ChallengeData) -> tuple[Sequences, NewEvents] | None:
    """The store of the files before they grew, and the new events, where who let them grow has kept these.

    Returns:
        None where nobody has, the store is gone, or new events are not later than its last one.
    """
    growth = Growth.to(data)
    # With drop, events left out before may now have properties.
    if growth is None or data.unknown_sku == "drop":
        return None
    folder = data.paths.sequences(growth.events_fingerprint(data))
    if _note_of(folder) is None:
        return None
    earlier = Sequences.open(folder)
    new = {each: collect(_keyed(growth.events(each), each, data.start)) for each in data.event_types}
    later = all((events["time"] > earlier.last).all() for events in new.values())
    same = earlier.start == data.start and earlier.event_types == tuple(by_code(data.event_types))
    return (earlier, new) if later and same else None


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


def _digest(events: pl.LazyFrame) -> pl.LazyFrame:
    """One row, the fields of a `_Digest`, of events with the columns `_HASHED`."""
    hashed = events.select(pl.struct(_HASHED).hash(0).alias("hash"))
    low, high = pl.col("hash") % _HALF, pl.col("hash") // _HALF
    return hashed.select(pl.len().cast(pl.UInt64), low=low.sum(), high=high.sum())


def compared_growth(data: ChallengeData) -> tuple[Sequences, NewEvents] | None:
    """The latest earlier store, and the events after its last one, where those before it are in the files as they were.

    Returns:
        None where there is none, or they are not; then a line says why.
    """
    earlier = earlier_store(data)
    if earlier is None:
        return None
    more = sum(data.rows(event_type) for event_type in data.event_types) - len(earlier.time)
    reason, new = f"{more:,} new events", NewEvents()
    if more <= _MOST_NEW:
        reason, new = _compared(data, earlier)
    if reason:
        logger.info("%s: %s; the sequence store is built anew", data.folder, reason)
        return None
    return earlier, new


def _compared(data: ChallengeData, earlier: Sequences) -> tuple[str, NewEvents]:
    """Why a store cannot be continued, or nothing; and the events after its last one."""
    filed, new = _NO_EVENTS, NewEvents()
    for event_type in data.event_types:
        events = _keyed(data.events(event_type), event_type, data.start)
        is_new = pl.col("time") > earlier.last
        # Both in one pass over the file.
        frames = [_digest(events.filter(~is_new)), events.filter(is_new)]
        digest, new[event_type] = pl.collect_all(frames, engine="streaming")
        filed += _Digest(*digest.row(0))
    if filed.rows != len(earlier.time):
        last = f"{earlier.start + timedelta(seconds=earlier.last):%Y-%m-%d %H:%M:%S}"
        return f"up to {last} there are {filed.rows:,} events now, not {len(earlier.time):,} as before", new
    stored = (_Digest(*_digest(block.lazy()).collect().row(0)) for block in _stored(data, earlier))
    same = sum(stored, _NO_EVENTS) == filed
    return "" if same else "events that were there before have changed", new


def _keyed(events: pl.LazyFrame, event_type: EventType, start: datetime) -> pl.LazyFrame:
    """Events as a history gives them, with the columns `_HASHED`: each subject as one or two numbers without a sign."""
    keys = subject_keys(event_type.subject)
    if event_type.subject != schema.QUERY:
        keys = [keys[0].reinterpret(signed=False), pl.lit(0, pl.UInt64)]
    return events.select(
        schema.CLIENT_ID,
        seconds_since(start).alias("time"),
        pl.lit(event_type.code, pl.UInt8).alias("event"),
        keys[0].alias("first"),
        keys[1].alias("second"),
    )


def _stored(data: ChallengeData, store: Sequences) -> Iterator[pl.DataFrame]:
    """The events of a store, block by block, as `_keyed` gives those of the files."""
    keys = [_ByType.of(data, {kind: _table_keys(kind, store)[place] for kind in TABLE_OF}) for place in (0, 1)]
    for start in range(0, len(store.time), _BLOCK):
        rows = slice(start, min(start + _BLOCK, len(store.time)))
        event, subject = store.event[rows], store.subject[rows]
        columns = (_clients_of(store, rows), store.time[rows], event, *(key.at(event, subject) for key in keys))
        yield pl.DataFrame(dict(zip(_HASHED, columns, strict=True)))


@dataclass(frozen=True)
class _ByType:
    """Something of each row of the tables of subjects, asked for by the event type that refers to the row.

    Attributes:
        values: [rows], the tables one after the other.
        firsts: int64 [256], by an event type's code where its table begins.
    """

    values: Array
    firsts: Int64

    @classmethod
    def of(cls, data: ChallengeData, values: dict[str, Array]) -> Self:
        """By kind of subject its table's."""
        starts = dict(zip(values, offsets_of(np.array([len(table) for table in values.values()])), strict=False))
        firsts = np.zeros(256, np.int64)
        for event_type in data.event_types:
            firsts[event_type.code] = starts[event_type.subject]
        return cls(np.concatenate(list(values.values())), firsts)

    def at(self, event: Array, subject: Array) -> Array:
        """Of the subjects of some events: [events]."""
        places = self.firsts[event]
        places += subject
        return self.values[places]


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


def _write_tables(
    data: ChallengeData, earlier: Sequences, new: NewEvents, folder: Path
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
            save_array(folder / f"{TABLE_OF[subject]}.npy", as_kept)
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
    """The same for events as `_keyed` gives them."""
    if subject != schema.QUERY:
        return events["first"].reinterpret(signed=True).to_numpy()
    keys = np.ascontiguousarray(events.select("first", "second").to_numpy(), dtype=">u8")
    return _as_bytes(keys.view(np.uint8))


def _as_bytes(codes: npt.NDArray[np.uint8]) -> Array:
    """Codes [rows, 16] as one value each; zeros at its end, which numpy does not count, cannot make two equal."""
    return codes.view(f"S{schema.CODES}").reshape(-1)


def _write_columns(earlier: Sequences, new: pl.DataFrame, references: _ByType, folder: Path) -> None:
    """Write clients, offsets and the columns: new events behind the earlier ones of their clients."""
    runs = new[schema.CLIENT_ID].rle()
    ids, counts = (np.asarray(runs.struct.field(name).to_numpy(), np.int64) for name in ("value", "len"))
    clients = np.union1d(earlier.clients, ids)
    lengths = np.zeros(len(clients), np.int64)
    lengths[np.searchsorted(clients, earlier.clients)] = earlier.lengths
    lengths[np.searchsorted(clients, ids)] += counts
    save_array(folder / "clients.npy", clients)
    save_array(folder / "offsets.npy", offsets_of(lengths))
    # Before which of the earlier rows each new event comes; ascending, as both are ordered by client.
    before = np.repeat(earlier.offsets[np.searchsorted(earlier.clients, ids, side="right")], counts)
    added = {name: new[name].to_numpy() for name in COLUMNS}
    with ExitStack() as stack:
        files = {name: stack.enter_context((folder / f"{name}.npy").open("wb")) for name in COLUMNS}
        for name, file in files.items():
            write_header(file, np.dtype(COLUMNS[name]), (len(earlier.time) + len(new),))
        for start in range(0, len(earlier.time), _BLOCK):
            rows = slice(start, min(start + _BLOCK, len(earlier.time)))
            first, end = np.searchsorted(before, [rows.start, rows.stop])
            if rows.stop == len(earlier.time):
                end = len(new)
            kept: dict[str, Array] = {"time": earlier.time[rows], "event": earlier.event[rows]}
            kept["subject"] = references.at(kept["event"], earlier.subject[rows])
            for name, file in files.items():
                append_array(file, np.insert(kept[name], before[first:end] - rows.start, added[name][first:end]))
