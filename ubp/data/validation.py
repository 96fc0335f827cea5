"""Every file of a history, checked in one streamed pass each, and summed up."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import polars as pl

from ubp.data import schema
from ubp.data.paths import DataPaths
from ubp.data.reading import YEARS, as_filed, collect, datetimes, numbers_in, scan, times_parsed
from ubp.data.schema import EventType
from ubp.io.errors import UserError, name_some, shown

logger = logging.getLogger(__name__)


_CODES_PATTERN = rf"^\s*\[\s*[0-9]{{1,3}}(\s+[0-9]{{1,3}}){{{schema.CODES - 1}}}\s*\]\s*$"


@dataclass(frozen=True)
class FileSummary:
    """What validation saw of one event file.

    Attributes:
        rows: events in the file.
        first: the earliest time in it, None where it is empty.
        last: the latest.
        unknown_skus: rows whose sku has no properties.
    """

    rows: int
    first: datetime | None
    last: datetime | None
    unknown_skus: int = 0


def check(
    folder: Path, properties: Path, unknown_sku: str, event_types: Sequence[EventType]
) -> dict[EventType, FileSummary]:
    """Check every file of a history in one streamed pass each, and sum it up.

    Args:
        folder: of the event files.
        properties: the file of the skus' properties.
        unknown_sku: ``error`` or ``drop``: what to do with events whose sku has no properties.
        event_types: each has a file.

    Raises:
        UserError: a line for each fault: a column missing or of a wrong type, unreadable timestamps, null
            ids, codes that are not 16 numbers in 0..255, a sku twice in the properties, events whose sku
            has no properties (unless they are to be dropped), no purchases at all.
    """
    wanted: dict[Path, tuple[str, ...]] = {
        folder / event_type.file_name: schema.event_columns(event_type) for event_type in event_types
    }
    wanted[properties] = schema.PROPERTY_COLUMNS
    _raise_all(_type_faults(wanted))
    seen = _all_looked_at(wanted)
    _raise_all(fault for file, columns in wanted.items() for fault in _value_faults(file, columns, seen[file]))
    _raise_all(_repeated_skus(properties))

    summaries = {
        event_type: _summarise(event_type, folder, properties, seen[folder / event_type.file_name])
        for event_type in event_types
    }
    faults = [
        fault
        for event_type in event_types
        if event_type.has_sku
        for fault in _unknown_skus(folder / event_type.file_name, properties, summaries[event_type], unknown_sku)
    ]
    purchases = summaries[EventType.PRODUCT_BUY]
    if purchases.rows == purchases.unknown_skus:
        faults.append(
            f"{folder / EventType.PRODUCT_BUY.file_name}: no purchases at all; tasks and profiles need some: "
            "check the export"
        )
    _raise_all(faults)
    return summaries


def _raise_all(faults: Iterable[str]) -> None:
    if messages := list(faults):
        raise UserError(messages)


def require_files(paths: DataPaths, submit: bool, event_types: Sequence[EventType]) -> None:
    """Refuse a history that lacks a file.

    Args:
        paths: of the log.
        submit: the history of all events, or that before the train window.
        event_types: each has a file.

    Raises:
        UserError: a line for each file, with how to get it.
    """
    if not paths.raw.is_dir():
        raise UserError(
            f"{paths.raw}: folder missing; put the data there, or set CHALLENGE_DATA_PATH to the folder "
            "above raw/ (`make demo` fetches data to try)"
        )
    folder = paths.history(submit)
    files = [*(folder / event_type.file_name for event_type in event_types), paths.properties]
    missing = [file for file in files if not file.is_file()]
    if not missing:
        return
    if not submit and all(paths.raw / file.name not in missing for file in missing):
        remedy = "make it with: python scripts/split.py"
    else:
        remedy = "put it there; where the shop has no such events, a table without rows"
    raise UserError([f"{file}: file missing; {remedy}" for file in missing])


def _type_faults(wanted: dict[Path, tuple[str, ...]]) -> Iterator[str]:
    for file, columns in wanted.items():
        try:
            found = scan(file).collect_schema()
        except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
            yield f"{file}: not a readable parquet file ({str(error).splitlines()[0]}); export it again"
            continue
        for column in columns:
            if column not in found:
                yield f"{file}: column {column} missing (it has {name_some(list(found), 20)}); add or rename it"
            elif (expected := _expected(column, found[column])) is not None:
                yield f"{file}: column {column}: wrong type {found[column]}; must be {expected}: convert it"


def _expected(column: str, dtype: pl.DataType) -> str | None:
    """What the column should be, None where its dtype will do."""
    if dtype == pl.Null:  # what some writers make of a column without rows
        return None
    if column in schema.INTEGER_COLUMNS:
        return None if dtype.is_integer() and dtype != pl.UInt64 else "an integer (int64)"
    if column == schema.TIMESTAMP:
        without_zone = isinstance(dtype, pl.Datetime) and dtype.time_zone is None
        return None if without_zone or dtype == pl.String else "text YYYY-MM-DD HH:mm:ss or a datetime without a zone"
    return None if dtype == pl.String else f"text that holds {schema.CODES} numbers: [11 2 201 ...]"


def _faulty(column: str) -> pl.Expr:
    """True where a raw value cannot be used; for columns whose dtype passed `_expected`."""
    if column == schema.TIMESTAMP:
        return ~pl.col(column).dt.year().is_between(*YEARS).fill_null(False)
    if column in schema.CODE_COLUMNS:
        in_book = (numbers_in(column).cast(pl.List(pl.Int64)).list.max() < schema.CODE_BOOK).fill_null(False)
        return ~(pl.col(column).cast(pl.String).str.contains(_CODES_PATTERN).fill_null(False) & in_book)
    return pl.col(column).is_null()


_FAULTS = {
    schema.TIMESTAMP: f"are no time of the form YYYY-MM-DD HH:mm:ss in the years {YEARS[0]} to {YEARS[1]}",
    schema.NAME: f"are not {schema.CODES} numbers in 0..{schema.CODE_BOOK - 1}",
    schema.QUERY: f"are not {schema.CODES} numbers in 0..{schema.CODE_BOOK - 1}",
}


def _all_looked_at(wanted: dict[Path, tuple[str, ...]]) -> dict[Path, dict[str, Any]]:
    """See `_looked_at`; raises a line for each file that breaks while it is read."""
    seen, broken = {}, []
    for file, columns in wanted.items():
        try:
            seen[file] = _looked_at(file, columns)
        except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
            broken.append(f"{file}: not a readable parquet file ({str(error).splitlines()[0]}); export it again")
    _raise_all(broken)
    return seen


def _looked_at(file: Path, columns: tuple[str, ...]) -> dict[str, Any]:
    """One pass over a file: its rows, the faulty values of each column, the first and the last time.

    Rows and times are under ``#rows``, ``#first`` and ``#last``.
    """
    time = pl.col(schema.TIMESTAMP)
    extremes = {"#first": time.min(), "#last": time.max()} if schema.TIMESTAMP in columns else {}
    faulty = (_faulty(column).sum() for column in columns)
    return collect(_parsed(file, columns).select(pl.len().alias("#rows"), *faulty, **extremes)).row(0, named=True)


def _parsed(file: Path, columns: tuple[str, ...]) -> pl.LazyFrame:
    """Unreadable times become null when they are parsed, as codes cannot: those are looked at as text."""
    frame = scan(file).select(columns)
    dtype = frame.collect_schema().get(schema.TIMESTAMP)
    if isinstance(dtype, pl.Datetime):
        return frame.with_columns(datetimes(schema.TIMESTAMP, dtype))
    return times_parsed(frame)


def _value_faults(file: Path, columns: tuple[str, ...], seen: dict[str, Any]) -> Iterator[str]:
    for column in columns:
        if count := seen[column]:
            # Only now, on the way out, a second look for the first example.
            faulty = _parsed(file, columns).select(_faulty(column)).collect()[column]
            row = int(faulty.arg_true()[0])
            example = as_filed(scan(file).select(column).slice(row, 1).collect()[column])
            fault = _FAULTS.get(column, "are null")
            yield (
                f"{file}: column {column}: {count:,} of {seen['#rows']:,} rows {fault} "
                f"(the first: row {row:,}, {shown(example)}); fix or remove them"
            )


def _repeated_skus(file: Path) -> Iterator[str]:
    repeated = scan(file).group_by(schema.SKU).len().filter(pl.col("len") > 1)
    found = collect(repeated.select(pl.len(), first=pl.col(schema.SKU).min()))
    if count := found["len"].item():
        yield (
            f"{file}: column sku: {count:,} skus have more than one row (the first: {found['first'].item()}); "
            "keep one row a sku"
        )


def _unknown_skus(file: Path, properties: Path, summary: FileSummary, unknown_sku: str) -> Iterator[str]:
    if not summary.unknown_skus:
        return
    share = f"{summary.unknown_skus:,} of {summary.rows:,} rows"
    if unknown_sku == "drop":
        logger.warning("%s: left out %s: their sku has no properties", file, share)
        return
    first = _without_properties(file, properties).select(schema.SKU).first().collect().item()
    yield (
        f"{file}: column sku: {share} have a sku that is not in {properties.name} "
        f"(the first: {first}); add its properties, or leave those events out with unknown_sku=drop"
    )


def _without_properties(file: Path, properties: Path) -> pl.LazyFrame:
    known = scan(properties).select(pl.col(schema.SKU).cast(pl.Int64))
    events = scan(file).select(pl.col(schema.SKU).cast(pl.Int64))
    return events.join(known, on=schema.SKU, how="anti", maintain_order="left")


def _summarise(event_type: EventType, folder: Path, properties: Path, seen: dict[str, Any]) -> FileSummary:
    unknown = 0
    if event_type.has_sku:
        unknown = int(collect(_without_properties(folder / event_type.file_name, properties).select(pl.len())).item())
    return summary_of(seen["#rows"], seen["#first"], seen["#last"], unknown)


def summary_of(rows: int, first: datetime | str | None, last: datetime | str | None, unknown_skus: int) -> FileSummary:
    """A summary whose times may be text."""

    def moment(value: datetime | str | None) -> datetime | None:
        return datetime.fromisoformat(value) if isinstance(value, str) else value

    return FileSummary(rows, moment(first), moment(last), unknown_skus)
