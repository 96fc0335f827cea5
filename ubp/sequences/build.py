"""Building the sequence store: events partitioned by client, each part sorted and appended.

`events_of` is how models get their sequences; the store is built when it is first asked for.
"""

import logging
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from ubp.data import schema
from ubp.data.history import ChallengeData
from ubp.data.reading import collect
from ubp.data.schema import EventType
from ubp.io.arrays import append_array, save_array, write_header
from ubp.io.errors import UserError
from ubp.io.files import atomic_write, remove_abandoned
from ubp.io.stage import AlreadyDone, Stage
from ubp.sequences.arrays import Int64, offsets_of
from ubp.sequences.layout import COLUMNS, TABLE_OF, VERSION, write_note
from ubp.sequences.selection import Selection, select
from ubp.sequences.store import Sequences

logger = logging.getLogger(__name__)

# Sorted at once, 17 M rows took 1.5 GB and 2 s a million (two cores); in parts of this size, 0.6 GB and 0.5 s.
_ROWS_PER_PART = 2_000_000
_MOST_PARTS = 128  # each is an open file while the events are partitioned
_SAMPLE = 200_000  # rows per file that the parts' limits are drawn from
_PART = "part"


def events_of(
    history: ChallengeData, event_types: Collection[EventType] | None = None, clients: npt.ArrayLike | None = None
) -> Selection:
    """Events before the history's ``as_of``.

    Args:
        history: whose.
        event_types: of these types; None for all.
        clients: of these clients, in any order, known or not; None for all.

    Returns:
        Clients without such an event are left out.

    Raises:
        UserError: see `build_or_open`.
    """
    chosen = select(build_or_open(history), history.as_of, clients)
    if history.mask is not None:
        chosen = chosen.masked(history.mask).at_least(1)
    return chosen if event_types is None else chosen.of_types(event_types).at_least(1)


def build_or_open(history: ChallengeData) -> Sequences:
    """The store of all events in a history's files, whatever its ``as_of``: from the cache, or built now.

    Processes that ask at the same time wait for the one that builds. To read events, use `events_of`: it ends at
    ``as_of``.

    Raises:
        UserError: the files' events span more than 68 years, or the files changed meanwhile.
    """
    return made_once(history, build)


def made_once(history: ChallengeData, make: Callable[[ChallengeData, Path], None]) -> Sequences:
    """The store of a history's files: from the cache, or made now.

    Args:
        history: whose.
        make: writes the store of a whole history to a folder that is not there yet.

    Raises:
        UserError: see `build_or_open`.
    """
    folder = history.paths.sequences(history.events_fingerprint)
    made_from = {"events": history.events_fingerprint, "version": VERSION}
    stage = Stage(f"the sequence store of {history.folder}", (folder,), lambda: made_from)
    with suppress(AlreadyDone), stage.once(overwrite=False):
        remove_abandoned(folder)
        with atomic_write(folder) as aside:
            make(history.whole, aside)
            history.require_unchanged()  # or the store would mix two histories, under the first one's name
    return Sequences.open(folder)


def build(data: ChallengeData, folder: Path) -> None:
    """Write a whole history's store: subjects to references, events partitioned by client, each part sorted, in turn.

    Needs 20 bytes per event on disk besides the store until it is done.
    """
    require_span(data)
    logger.info("%s: putting the events in order (once for these files)", data.folder)
    folder.mkdir()
    last = write_events(data, _tables_written(data, folder), folder)
    write_note(folder, data.start, last, data.event_types)


def _tables_written(data: ChallengeData, folder: Path) -> Iterator[tuple[str, pl.DataFrame]]:
    """Write the table of each kind of subject when its references are asked for."""
    yield schema.SKU, write_items(data, folder)
    for subject in (schema.URL, schema.QUERY):
        yield subject, write_subjects(met(data, subject), subject, folder)


def require_span(data: ChallengeData) -> None:
    """Refuse a history whose times do not fit into the store's column.

    Raises:
        UserError: its events span more than 68 years.
    """
    if data.as_of - data.start > timedelta(seconds=2**31 - 1):
        having = [event_type for event_type in data.event_types if data.has(event_type)]
        early, late = min(having, key=data.first), max(having, key=data.last)
        raise UserError(
            f"{data.file(late)}: events until {data.last(late)}, more than 68 years after the first, "
            f"{data.first(early)} in {data.file(early)}; fix the timestamps"
        )


def _part_limits(data: ChallengeData) -> Int64:
    """Client ids that cut the events into parts of about the same size: int64, ascending.

    Drawn from a sample: another cut changes the time and memory that sorting takes, never the result.
    """
    rows = {event_type: data.rows(event_type) for event_type in data.event_types}
    parts = min(-(-sum(rows.values()) // _ROWS_PER_PART), _MOST_PARTS)
    ids, weights = [], []
    for event_type, count in rows.items():
        step = max(count // _SAMPLE, 1)
        sample = data.events(event_type).select(schema.CLIENT_ID).with_row_index().filter(pl.col("index") % step == 0)
        ids.append(collect(sample)[schema.CLIENT_ID].to_numpy())
        weights.append(np.full(len(ids[-1]), step))
    order = np.argsort(np.concatenate(ids))
    share = np.cumsum(np.concatenate(weights)[order])
    at = np.searchsorted(share, share[-1] * np.arange(1, parts) / parts)
    return np.unique(np.concatenate(ids)[order][at])


def subject_keys(subject: str) -> list[pl.Expr]:
    """What tells one subject from another and puts them in order: the id, or codes as two numbers.

    The first code of a query is the highest byte, so that the numbers compare as the codes do, one by one.
    """
    if subject != schema.QUERY:
        return [pl.col(subject)]
    codes = pl.col(subject).arr
    half = schema.CODES // 2
    return [
        pl.sum_horizontal(
            codes.get(first + place).cast(pl.UInt64) * 2 ** (8 * (half - 1 - place)) for place in range(half)
        ).alias(f"{subject}_{first}")
        for first in (0, half)
    ]


def seconds_since(start: datetime) -> pl.Expr:
    """The time of events in whole seconds from a store's start, Int32."""
    return (pl.col(schema.TIMESTAMP) - start).dt.total_seconds().cast(pl.Int32)


def write_items(data: ChallengeData, folder: Path) -> pl.DataFrame:
    """Write the table of skus; returns skus and their references."""
    items = collect(data.properties()).sort(schema.SKU)
    save_array(folder / "skus.npy", items[schema.SKU].to_numpy())
    save_array(folder / "categories.npy", items[schema.CATEGORY].to_numpy())
    save_array(folder / "prices.npy", items[schema.PRICE].to_numpy())
    save_array(folder / "names.npy", items[schema.NAME].to_numpy())
    return _referenced(items.select(schema.SKU))


def met(data: ChallengeData, subject: str) -> pl.LazyFrame:
    """The keys of the urls or of the queries in a history, each once, in any order."""
    kinds = data.about(subject)
    return pl.concat(data.events(event_type).select(subject_keys(subject)) for event_type in kinds).unique()


def write_subjects(keys: pl.LazyFrame, subject: str, folder: Path) -> pl.DataFrame:
    """Write the table of urls or of queries.

    Args:
        keys: theirs, each once.
        subject: ``url`` or ``query``.
        folder: of the store.

    Returns:
        Keys and references.
    """
    found = collect(keys)
    keys_in_order = found.sort(found.columns)
    values = np.ascontiguousarray(keys_in_order.to_numpy())
    # The bytes of a query's two numbers are its codes.
    table = values.astype(">u8").view(np.uint8) if subject == schema.QUERY else values[:, 0]
    save_array(folder / f"{TABLE_OF[subject]}.npy", table)
    return _referenced(keys_in_order)


def tables_read(folder: Path) -> Iterator[tuple[str, pl.DataFrame]]:
    """What `write_items` and `write_subjects` gave back, from the tables that they wrote, in turn."""
    for subject, table in TABLE_OF.items():
        values = np.load(folder / f"{table}.npy")
        names = [key.meta.output_name() for key in subject_keys(subject)]
        columns = values.view(">u8").astype(np.uint64).T if subject == schema.QUERY else [values]
        yield subject, _referenced(pl.DataFrame(dict(zip(names, columns, strict=True))))


def _referenced(keys: pl.DataFrame) -> pl.DataFrame:
    return keys.with_columns(subject=pl.int_range(keys.height, dtype=pl.Int32))


def _partition(
    data: ChallengeData, event_types: Sequence[EventType], references: pl.DataFrame, limits: Int64, parts: Path
) -> None:
    """Write events of some types about one kind of subject, in narrow columns, into a folder per part."""

    def part_of(clients: pl.Series) -> pl.Series:
        return pl.Series(np.searchsorted(limits, clients.to_numpy(), side="right").astype(np.uint8))

    for event_type in event_types:
        events = data.events(event_type).select(
            schema.CLIENT_ID,
            seconds_since(data.start).alias("time"),
            pl.lit(event_type.code, dtype=pl.UInt8).alias("event"),
            *subject_keys(event_type.subject),
            pl.col(schema.CLIENT_ID).map_batches(part_of, return_dtype=pl.UInt8, is_elementwise=True).alias(_PART),
        )
        keys = references.drop("subject").columns
        referenced = events.join(references.lazy(), on=keys, how="left", maintain_order="none").drop(keys)
        partitioned = pl.PartitionBy(parts / event_type.value, key=_PART, include_key=False)
        referenced.sink_ipc(
            partitioned, compression="uncompressed", maintain_order=False, mkdir=True, engine="streaming"
        )


def write_events(data: ChallengeData, references: Iterable[tuple[str, pl.DataFrame]], folder: Path) -> int:
    """Write columns, clients and offsets of all events of a history, or of one shard of it; at least one.

    Args:
        data: whose.
        references: of subjects, with what they are.
        folder: of the store; it has a folder of parts meanwhile.

    Returns:
        The last event's time.
    """
    parts, limits = folder / "parts", _part_limits(data)
    for subject, known in references:
        _partition(data, data.about(subject), known, limits, parts)
    last = _write_parts(parts, len(limits) + 1, folder)
    shutil.rmtree(parts)
    return last


def _write_parts(parts: Path, count: int, folder: Path) -> int:
    """Sort the parts, one after the other, and write columns, clients and offsets; returns the last event's time."""
    files = [sorted(parts.glob(f"*/{_PART}={part}/*.ipc")) for part in range(count)]
    frames = [pl.scan_ipc(part, hive_partitioning=False) for part in files if part]
    rows = sum(int(collect(frame.select(pl.len())).item()) for frame in frames)
    clients, lengths, last = [], [], 0
    with ExitStack() as stack:
        columns = {name: stack.enter_context((folder / f"{name}.npy").open("wb")) for name in COLUMNS}
        for name, file in columns.items():
            write_header(file, np.dtype(COLUMNS[name]), (rows,))
        for frame in frames:
            events = frame.collect().sort(schema.CLIENT_ID, *COLUMNS)
            for name, file in columns.items():
                append_array(file, events[name].to_numpy())
            last = max(last, int(events["time"].to_numpy().max()))
            runs = events[schema.CLIENT_ID].rle()
            clients.append(runs.struct.field("value").to_numpy())
            lengths.append(runs.struct.field("len").to_numpy())
    save_array(folder / "clients.npy", np.concatenate(clients))
    save_array(folder / "offsets.npy", offsets_of(np.concatenate(lengths)))
    return last
