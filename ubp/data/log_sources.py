"""The files of somebody's log, read as its schema says, and every row that cannot be used found.

Each file is parsed once, streamed, into a parquet with these columns: ``client`` and ``subject`` Int64 or String,
``timestamp`` Datetime(us) in the log's zone, ``value`` Float64. Null is what is missing or cannot be read; a value that
is no number is NaN. Columns of a CSV are read as text, so that no digit is lost by a guess at their types.
"""

import glob
import sqlite3
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import numpy as np
import polars as pl
from polars.io.plugins import register_io_source

from ubp.data import schema
from ubp.data.log_schema import EPOCHS, SUBJECT_KEYS, EventSource, FileSource, ItemSource
from ubp.data.reading import YEARS, as_filed, collect, datetimes
from ubp.io.errors import UserError, name_some, shown

CLIENT: Final = "client"
SUBJECT: Final = "subject"
VALUE: Final = "value"
DROP: Final = "bad_rows=drop"

DATABASES: Final = (".sqlite", ".db")
READABLE: Final = (".parquet", ".csv", ".csv.gz", *DATABASES)
_ROW: Final = "#row"
_RAW: Final = "#raw"
_ROWS_AT_ONCE: Final = 200_000  # of a database
_PIECE: Final = 5_000_000  # rows of a staged file that are looked through at a time
_EXACT: Final = 2.0**53  # below it every whole number is a float of its own
_JOINED: Final = " "  # between the columns that make up a name
_LEVELS: Final = " / "  # between those that make up a category


# --- files ----------------------------------------------------------------------------------------------------------


def files_of(source: FileSource, folder: Path) -> list[Path]:
    """The files of a source, by name.

    Args:
        source: its ``file`` is a path or a pattern.
        folder: that a relative one begins at.

    Raises:
        UserError: there is none, or one of another kind.
    """
    path = folder / source.file
    matches = sorted(glob.glob(str(path), recursive=True))  # noqa: PTH207 (which takes no absolute pattern)
    found = [path] if path.is_file() else [Path(each) for each in matches if Path(each).is_file()]
    if not found:
        raise UserError(
            f"{path}: no such file; put it there, or say where it lies: source=FOLDER, or file: of {source.name} in "
            "the schema"
        )
    if other := [each for each in found if not each.name.endswith(READABLE)]:
        raise UserError(f"{other[0]}: must end with {', '.join(READABLE)}; export it so")
    return found


def opened(source: FileSource, file: Path, columns: Collection[str]) -> pl.LazyFrame:
    """A file with these columns.

    Raises:
        UserError: it is empty or unreadable, or lacks one of them.
    """
    with readable(file):
        if file.name.endswith(".parquet"):
            frame = pl.scan_parquet(file, glob=False)
        elif file.name.endswith(DATABASES):
            frame = _table_of(file, source)
        else:
            frame = pl.scan_csv(file, separator=source.separator, infer_schema=False, glob=False)
        found = frame.collect_schema().names()
    wanted = dict.fromkeys([*columns, *source.where])
    if missing := [column for column in wanted if column not in found]:
        raise UserError(
            f"{file}: column {missing[0]} missing (it has {name_some(found, 20)}); correct {source.name} in the schema"
            + (f", or its separator, which is {source.separator!r}" if len(found) == 1 else "")
        )
    return frame


def _table_of(file: Path, source: FileSource) -> pl.LazyFrame:
    """A table of an SQLite database, all columns as text: its columns hold values of any type.

    Raises:
        UserError: none is named, or there is no such table.
    """

    def connected() -> sqlite3.Connection:
        # Polars asks for one chunk after the other, but not always from the same thread.
        return sqlite3.connect(f"{file.resolve().as_uri()}?mode=ro", uri=True, check_same_thread=False)

    table = source.table or ""
    with closing(connected()) as connection:
        tables = [
            row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type IN ('table', 'view')")
        ]
        if table not in tables:
            asked = f"no table {table}" if table else "a database: say which table"
            raise UserError(
                f"{file}: {asked} (it has {', '.join(sorted(tables))}); table: of {source.name} in the schema"
            )
        columns = [row[1] for row in connection.execute(f"PRAGMA table_info({_quoted(table)})")]
    texts = ", ".join(f"CAST({_quoted(column)} AS TEXT) AS {_quoted(column)}" for column in columns)
    query, types = f"SELECT {texts} FROM {_quoted(table)}", dict.fromkeys(columns, pl.String)  # noqa: S608

    def chunks(
        wanted: list[str] | None, predicate: pl.Expr | None, at_most: int | None, _: int | None
    ) -> Iterator[pl.DataFrame]:
        with closing(connected()) as connection:
            for chunk in pl.read_database(
                query, connection, iter_batches=True, batch_size=_ROWS_AT_ONCE, schema_overrides=types
            ):
                some = chunk if predicate is None else chunk.filter(predicate)
                yield (some if at_most is None else some.head(at_most)).select(wanted or pl.all())

    return register_io_source(chunks, schema=types)


def _quoted(name: str) -> str:
    """As SQL writes a name."""
    return '"' + name.replace('"', '""') + '"'


@contextmanager
def readable(file: Path) -> Iterator[None]:
    """While a file is read: Polars' errors become one line."""
    try:
        yield
    except pl.exceptions.NoDataError as error:
        raise UserError(f"{file}: empty, without even names of columns; export it again") from error
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, sqlite3.Error, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{file}: not readable ({reason}); export it again, a CSV in UTF-8") from error


def chosen(source: FileSource, frame: pl.LazyFrame) -> pl.LazyFrame:
    """The rows that ``where`` asks for."""
    for column, accepted in source.where.items():
        frame = frame.filter(pl.col(column).cast(pl.String).is_in(accepted))
    return frame


# --- columns --------------------------------------------------------------------------------------------------------


def id_of(column: str, dtype: pl.DataType, at: str) -> pl.Expr:
    """An id of any type as Int64 or String, null where there is none.

    Args:
        column: its name.
        dtype: its type.
        at: file and column, for messages.

    Raises:
        UserError: a type that is no id.
    """
    value = pl.col(column)
    if dtype.is_integer() and dtype not in (pl.UInt64, pl.Int128, pl.UInt128):
        return value.cast(pl.Int64)
    if dtype.is_float():  # what pandas makes of integers where some are missing
        whole = value.is_finite() & (value == value.round()) & (value.abs() < _EXACT)
        return pl.when(whole).then(value).cast(pl.Int64, strict=False)
    if dtype == pl.Null:
        return value.cast(pl.String)
    if dtype == pl.Binary:
        return value.bin.encode("hex")
    if dtype.is_integer() or dtype in (pl.String, pl.Categorical, pl.Enum, pl.Boolean, pl.Date):
        return _text_of(column)
    raise UserError(f"{at}: type {dtype} is no id; export integers or text")


def number_of(column: str, dtype: pl.DataType, at: str) -> pl.Expr:
    """A number as Float64, null where there is none, NaN where what is there is no number.

    Raises:
        UserError: a type that is no number.
    """
    if not (dtype.is_numeric() or dtype in (pl.String, pl.Null)):
        raise UserError(f"{at}: type {dtype} is no number; export one")
    text = _text_of(column) if dtype == pl.String else pl.col(column)
    number = text.cast(pl.Float64, strict=False)
    return pl.when(text.is_not_null() & ~number.is_finite().fill_null(False)).then(float("nan")).otherwise(number)


def time_of(source: EventSource, dtype: pl.DataType, zone: str | None, at: str) -> pl.Expr:
    """A time as Datetime(us) of the log's zone, null where it is missing or cannot be read.

    An hour that a zone has twice in autumn is taken as the first; one that it leaves out in spring is no time.

    Args:
        source: its column, format and zone.
        dtype: of the column.
        zone: the log's.
        at: file and column, for messages.

    Raises:
        UserError: a type that is no time, or times of a zone where the log's is not known.
    """
    time = _parsed_time(source, dtype, at)
    aware = isinstance(dtype, pl.Datetime) and dtype.time_zone is not None
    aware |= source.format in EPOCHS and not isinstance(dtype, pl.Datetime)
    aware |= dtype == pl.String and "%z" in source.format
    if aware and zone is None:
        raise UserError(f"{at}: its times have a zone; say in which zone the log's days begin and end: schema.zone=...")
    if not aware and source.zone not in (None, zone):
        time = time.dt.replace_time_zone(source.zone, ambiguous="earliest", non_existent="null")
        aware = True
    if aware:
        time = time.dt.convert_time_zone(str(zone)).dt.replace_time_zone(None)
    return pl.when(time.dt.year().is_between(*YEARS)).then(time).cast(schema.TIMESTAMP_DTYPE)


def _parsed_time(source: EventSource, dtype: pl.DataType, at: str) -> pl.Expr:
    value, factor = pl.col(source.time), EPOCHS.get(source.format)
    if isinstance(dtype, pl.Datetime):
        return datetimes(source.time, dtype)
    if dtype == pl.Date:
        return value.cast(pl.Datetime("us"))
    if factor is not None and (dtype.is_numeric() or dtype == pl.String):
        number = value.cast(pl.Int64 if dtype.is_integer() else pl.Float64, strict=False)
        # Multiplied, a number of a narrower type or a finer unit could come round to a time that looks right.
        small = number.is_between(0, np.iinfo(np.int64).max // factor)
        micros = (pl.when(small).then(number) * factor).cast(pl.Int64, strict=False)
        return micros.cast(pl.Datetime("us")).dt.replace_time_zone("UTC")
    if dtype in (pl.String, pl.Null):
        # Seconds of half a year hardly repeat: looking each up takes twice as long as reading it.
        return value.cast(pl.String).str.to_datetime(source.format, strict=False, time_unit="us", cache=False)
    known = ", ".join(EPOCHS)
    raise UserError(f"{at}: type {dtype} is no time; where it counts from 1970 on, say so: format: one of {known}")


def _text_of(column: str) -> pl.Expr:
    text = pl.col(column).cast(pl.String)
    return pl.when(text.str.strip_chars() != "").then(text)


# --- events ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StagedEvents:
    """The events of a source, parsed.

    Attributes:
        source: of which.
        files: of the user's.
        parts: a parquet for each, and its rows.
        rows: that can be used.
        dropped: that cannot.
        wanted: True for the rows that are meant.
    """

    source: EventSource
    files: tuple[Path, ...]
    parts: tuple[tuple[Path, int], ...]
    rows: int
    dropped: int
    wanted: pl.Expr = field(default_factory=lambda: pl.lit(True))

    def frames(self) -> list[pl.LazyFrame]:
        """The rows that can be used and are meant, in `pieces`; ids Int64 or String."""
        usable = ~_unusable() & self.wanted
        return [piece.filter(usable) for part, rows in self.parts for piece in pieces(part, rows)]

    def only(self, wanted: pl.Expr) -> "StagedEvents":
        """Those for which this is true."""
        some = replace(self, wanted=wanted)
        counts = (collect(frame.select(pl.len())).item() for frame in some.frames())
        return replace(some, rows=sum(counts))


def pieces(part: Path, rows: int) -> list[pl.LazyFrame]:
    """A staged file in pieces of a bounded size, at least one."""
    return [pl.scan_parquet(part, glob=False).slice(start, _PIECE) for start in range(0, max(rows, 1), _PIECE)]


def stage_events(
    source: EventSource, files: Sequence[Path], zone: str | None, folder: Path, drop: bool, advance: Callable[[], None]
) -> StagedEvents:
    """Parse the files of a source.

    Args:
        source: its columns.
        files: of it.
        zone: the log's.
        folder: to write to; made here.
        drop: leave out rows that cannot be used.
        advance: called after each file.

    Raises:
        UserError: one line for each fault of a column; without ``drop`` also for rows that cannot be used.
    """
    folder.mkdir(parents=True)
    parts, faults, rows, dropped = list[tuple[Path, int]](), list[str](), 0, 0
    for number, file in enumerate(files):
        frame = opened(source, file, _own_columns(source).values())
        columns = _event_columns(source, file, frame, zone)
        part = folder / f"{number:06}.parquet"
        with readable(file):
            chosen(source, frame).select(**columns).sink_parquet(part)
        bad = {column: mask.sum() for column, mask in _FAULTY.items()}
        look = pl.scan_parquet(part, glob=False).select(pl.len().alias("rows"), _unusable().sum().alias("bad"), **bad)
        seen = collect(look).row(0, named=True)
        rows, dropped = rows + seen["rows"] - seen["bad"], dropped + seen["bad"]
        if not drop:
            faults += _faults(source, file, frame, columns, seen)
        parts.append((part, seen["rows"]))
        advance()
    if faults:
        raise UserError(faults)
    return StagedEvents(source, tuple(files), tuple(parts), rows, dropped)


# True where a parsed value cannot be used.
_FAULTY: Final = {
    CLIENT: pl.col(CLIENT).is_null(),
    schema.TIMESTAMP: pl.col(schema.TIMESTAMP).is_null(),
    SUBJECT: pl.col(SUBJECT).is_null(),
    VALUE: pl.col(VALUE).is_nan().fill_null(False),
}


def _unusable() -> pl.Expr:
    return pl.any_horizontal(_FAULTY.values())


def _own_columns(source: EventSource) -> dict[str, str]:
    """The user's column of each of ours."""
    own = {CLIENT: source.client, schema.TIMESTAMP: source.time, SUBJECT: source.subject}
    return own | ({VALUE: source.value} if source.value else {})


def _event_columns(source: EventSource, file: Path, frame: pl.LazyFrame, zone: str | None) -> dict[str, pl.Expr]:
    """What makes our columns of the user's.

    Raises:
        UserError: a column's type cannot be what it should.
    """
    own, types = _own_columns(source), frame.collect_schema()
    at = {column: f"{file}: column {name}" for column, name in own.items()}
    columns = {
        CLIENT: id_of(source.client, types[source.client], at[CLIENT]),
        schema.TIMESTAMP: time_of(source, types[source.time], zone, at[schema.TIMESTAMP]),
        SUBJECT: _text_of(source.subject),
        VALUE: pl.lit(None, pl.Float64),
    }
    if source.kind.subject != schema.QUERY:
        columns[SUBJECT] = id_of(source.subject, types[source.subject], at[SUBJECT])
    if source.value:
        columns[VALUE] = number_of(source.value, types[source.value], at[VALUE])
    return columns


def _faults(
    source: EventSource, file: Path, frame: pl.LazyFrame, columns: Mapping[str, pl.Expr], seen: Mapping[str, int]
) -> Iterator[str]:
    """A line for each of our columns with values that cannot be used."""
    key = SUBJECT_KEYS[source.kind.subject]
    words = {
        CLIENT: "have no client",
        schema.TIMESTAMP: f"have no time of the form {source.format} in the years {YEARS[0]} to {YEARS[1]}",
        SUBJECT: f"have no {key}",
        VALUE: "have no number",
    }
    hints = {schema.TIMESTAMP: f"correct format: or zone: of {source.name} in the schema"}
    for column, name in _own_columns(source).items():
        if not seen[column]:
            continue
        # Only now, on the way out, a second look for the first example.
        numbered = chosen(source, frame.with_row_index(_ROW)).select(_ROW, pl.col(name).alias(_RAW), **columns)
        first = collect(numbered.filter(_FAULTY[column]).select(_ROW, _RAW).head(1))
        row, example = first[_ROW].item(), shown(as_filed(first[_RAW]))
        yield (
            f"{file}: column {name}: {seen[column]:,} of {seen['rows']:,} rows {words[column]} "
            f"(the first: row {row:,}, {example}); {hints.get(column, 'correct them')}, or leave them out with {DROP}"
        )


# --- items ----------------------------------------------------------------------------------------------------------


def stage_items(
    source: ItemSource, files: Sequence[Path], folder: Path, advance: Callable[[], None]
) -> list[pl.LazyFrame]:
    """Parse the files of the items' attributes, rows without an item left out.

    Columns: ``subject`` Int64 or String, ``category`` Int64 or String, ``price`` Float64, ``name`` String; null is what
    is missing, and what is no number. In `pieces`.

    Args:
        source: its columns.
        files: of it.
        folder: to write to; made here.
        advance: called after each file.

    Raises:
        UserError: a file cannot be read, lacks a column, or has one of a wrong type.
    """
    folder.mkdir(parents=True)
    staged = list[pl.LazyFrame]()
    for number, file in enumerate(files):
        own = [source.item, *source.category, *source.text, *([source.price] if source.price else [])]
        frame = opened(source, file, own)
        types = frame.collect_schema()

        def at(column: str, file: Path = file) -> str:
            return f"{file}: column {column}"

        if len(source.category) == 1:
            category = id_of(source.category[0], types[source.category[0]], at(source.category[0]))
        else:
            category = _joined(source.category, _LEVELS)
        price = number_of(source.price, types[source.price], at(source.price)) if source.price else pl.lit(None)
        part = folder / f"{number:06}.parquet"
        columns = {
            SUBJECT: id_of(source.item, types[source.item], at(source.item)),
            schema.CATEGORY: category,
            schema.PRICE: price.cast(pl.Float64).fill_nan(None),
            schema.NAME: _joined(source.text, _JOINED),
        }
        with readable(file):
            chosen(source, frame).select(**columns).drop_nulls(SUBJECT).sink_parquet(part)
        staged += pieces(part, collect(pl.scan_parquet(part, glob=False).select(pl.len())).item())
        advance()
    return staged


def _joined(columns: Sequence[str], between: str) -> pl.Expr:
    """Several columns as one text, null where all of them are missing."""
    if not columns:
        return pl.lit(None, pl.String)
    texts = [_text_of(column) for column in columns]
    joined = pl.concat_str(texts, separator=between, ignore_nulls=True)
    return pl.when(pl.any_horizontal(text.is_not_null() for text in texts)).then(joined)
