"""The data's door: lazy Polars frames over one history, checked where they enter.

Everything behind the door may rely on: the columns and dtypes of `ubp.schema`, timestamps that are times,
ids that are never null, codes that are 16 numbers, skus that have properties. Nothing behind it parses
strings.
"""

import json
import logging
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import polars as pl

from ubp import schema
from ubp.errors import UserError
from ubp.files import digest_of, fingerprint, written_aside
from ubp.paths import DataPaths
from ubp.schema import EventType

logger = logging.getLogger(__name__)

UnknownSku = Literal["error", "drop"]

_YEARS = (1970, 2199)  # a time outside is a sentinel, not a time

_CODES_PATTERN = rf"^\s*\[\s*[0-9]{{1,3}}(\s+[0-9]{{1,3}}){{{schema.CODES - 1}}}\s*\]\s*$"


def collect(frame: pl.LazyFrame) -> pl.DataFrame:
    """Run a lazy query in Polars' streaming engine."""
    return frame.collect(engine="streaming")


@dataclass(frozen=True)
class FileSummary:
    """What the door saw of one event file.

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


class ChallengeData:
    """One history, checked: all events (``submit=True``) or those before the train-target start.

    Args:
        paths: where the data lies.
        submit: True reads ``raw/``, False ``raw/input/``.
        unknown_sku: what to do with events whose sku has no properties: stop, or leave them out.
        as_of: only events before this moment; None for the whole history.

    Raises:
        UserError: one line for each fault that was found (see `check`).
    """

    def __init__(
        self,
        paths: DataPaths,
        submit: bool,
        unknown_sku: UnknownSku = "error",
        as_of: datetime | None = None,
    ) -> None:
        if unknown_sku not in ("error", "drop"):
            raise UserError(f"unknown_sku={unknown_sku}: must be error or drop")
        self.paths = paths
        self.submit = submit
        self.unknown_sku = unknown_sku
        self._as_of = as_of
        self.folder = paths.history(submit)
        self._summaries = self._checked()
        if as_of is not None and (self.start >= as_of or self.rows(EventType.PRODUCT_BUY) == 0):
            raise UserError(f"as_of={as_of}: {self.folder} has no purchase before it; choose a later day")

    def _checked(self) -> dict[EventType, FileSummary]:
        """The summaries of the event files, from the cache where this very content was checked before."""
        _require_files(self)
        seal = self.paths.cache / "checked" / f"{self.files_fingerprint}-{self.unknown_sku}.json"
        if seal.exists():
            return {EventType(name): _summary(**fields) for name, fields in json.loads(seal.read_text()).items()}
        summaries = check(self)
        with written_aside(seal) as aside:
            text = json.dumps({event_type: asdict(summary) for event_type, summary in summaries.items()}, default=str)
            aside.write_text(text)
        return summaries

    def events(self, event_type: EventType) -> pl.LazyFrame:
        """Events of one type before ``as_of``.

        Columns: ``client_id`` Int64, ``timestamp`` Datetime(us), then ``sku`` or ``url`` Int64, or
        ``query`` Array(UInt8, 16). Unsorted, as in the file.
        """
        frame = _typed(_scan(self.file(event_type)), schema.event_columns(event_type))
        if self._as_of is not None:
            frame = frame.filter(pl.col(schema.TIMESTAMP) < self._as_of)
        if event_type.has_sku and self._summaries[event_type].unknown_skus:
            frame = frame.join(self.properties().select(schema.SKU), on=schema.SKU, how="semi")
        return frame

    def properties(self) -> pl.LazyFrame:
        """``sku``, ``category``, ``price`` Int64 and ``name`` Array(UInt8, 16); a sku occurs once."""
        return _typed(_scan(self.paths.properties), schema.PROPERTY_COLUMNS)

    def with_properties(self, event_type: EventType) -> pl.LazyFrame:
        """Item events with ``category``, ``price`` and ``name`` of their sku."""
        return self.events(event_type).join(self.properties(), on=schema.SKU, how="left")

    def as_filed(self, event_type: EventType) -> pl.LazyFrame:
        """Every column and row of an event file; only ``timestamp`` is read, as Datetime(us)."""
        return _times_parsed(_scan(self.file(event_type)))

    def properties_as_filed(self) -> pl.LazyFrame:
        """Every column and row of the properties, codes as text."""
        return _scan(self.paths.properties)

    def file(self, event_type: EventType) -> Path:
        return self.folder / event_type.file_name

    def rows(self, event_type: EventType) -> int:
        """Events of one type in the history."""
        if self._as_of is None and not self._summaries[event_type].unknown_skus:
            return self._summaries[event_type].rows
        return int(collect(self.events(event_type).select(pl.len())).item())

    def first(self, event_type: EventType) -> datetime:
        """The earliest event of one type in the files; the type must have events."""
        return _present(self._summaries[event_type].first)

    def last(self, event_type: EventType) -> datetime:
        """The latest event of one type in the files; the type must have events."""
        return _present(self._summaries[event_type].last)

    @cached_property
    def start(self) -> datetime:
        """Midnight of the day of the first event of any type."""
        return _midnight(min(summary.first for summary in self._summaries.values() if summary.first))

    @cached_property
    def as_of(self) -> datetime:
        """The moment the history ends: as asked for, else the midnight after its last event."""
        if self._as_of is not None:
            return self._as_of
        last = max(summary.last for summary in self._summaries.values() if summary.last)
        return _midnight(last) + timedelta(days=1)

    @cached_property
    def relevant_clients(self) -> npt.NDArray[np.int64]:
        """The clients that must get a profile, as in the file: int64, each once.

        Raises:
            UserError: the file is absent, not int64, not one-dimensional, or repeats a client.
        """
        return load_clients(self.paths.relevant_clients)

    def of_relevant(self, events: pl.LazyFrame) -> pl.LazyFrame:
        """Only the events of relevant clients."""
        return events.join(pl.LazyFrame({schema.CLIENT_ID: self.relevant_clients}), on=schema.CLIENT_ID, how="semi")

    @cached_property
    def clients(self) -> npt.NDArray[np.int64]:
        """The relevant clients with an event in this history, ascending."""
        # Only relevant clients are told apart: there may be twenty times as many others.
        seen = [self.of_relevant(self.events(event_type).select(schema.CLIENT_ID)) for event_type in EventType]
        known = collect(pl.concat(seen).unique())
        clients: npt.NDArray[np.int64] = np.sort(known[schema.CLIENT_ID].to_numpy())
        return clients

    @cached_property
    def fingerprint(self) -> str:
        """Tells one history from another: files, relevant clients, ``as_of``, ``unknown_sku``."""
        return digest_of(self.files_fingerprint, self.relevant_clients.tobytes(), self._as_of, self.unknown_sku)

    @cached_property
    def files_fingerprint(self) -> str:
        """Of the content of the event files and the properties, when it was first asked for."""
        return self._fingerprint_now()

    def require_unchanged(self) -> None:
        """Make sure that the files are what they were when the history was opened, as far as `fingerprint` sees.

        Raises:
            UserError: they are not.
        """
        if self._fingerprint_now() != self.files_fingerprint:
            raise UserError(
                f"{self.folder}: its event files, or {self.paths.properties.name}, changed while they were read; "
                "give the command again"
            )

    def _fingerprint_now(self) -> str:
        files = [*(self.file(event_type) for event_type in EventType), self.paths.properties]
        return digest_of(*(f"{file.name}:{fingerprint(file)}" for file in files))


def load_clients(path: Path) -> npt.NDArray[np.int64]:
    """A file of client ids: int64, one dimension, each once.

    Raises:
        UserError: it is absent, unreadable, of another dtype or shape, or repeats a client.
    """
    if not path.exists():
        raise UserError(f"{path}: file missing; put it there, or make it with: python scripts/make_targets.py")
    try:
        clients: npt.NDArray[np.int64] = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise UserError(f"{path}: not a readable .npy file of client ids ({error})") from error
    if not isinstance(clients, np.ndarray):
        raise UserError(f"{path}: an archive of arrays; must be one array: np.save(path, ids.astype(np.int64))")
    if clients.dtype != np.int64 or clients.ndim != 1:
        raise UserError(
            f"{path}: {clients.dtype} with {clients.ndim} dimensions; must be int64 with one: "
            "np.save(path, ids.astype(np.int64))"
        )
    if len(clients) == 0:
        raise UserError(f"{path}: no clients; delete it and make it with: python scripts/make_targets.py")
    values, counts = np.unique(clients, return_counts=True)
    if len(values) < len(clients):
        raise UserError(
            f"{path}: {(counts > 1).sum():,} of {len(values):,} clients are repeated "
            f"(the first: {values[counts > 1][0]}); keep each once: np.save(path, np.unique(ids))"
        )
    return clients


def check(data: ChallengeData) -> dict[EventType, FileSummary]:
    """Check every file of a history in one streamed pass each, and sum it up.

    Raises:
        UserError: a line for each fault: a column missing or of a wrong type, unreadable timestamps, null
            ids, codes that are not 16 numbers in 0..255, a sku twice in the properties, events whose sku
            has no properties (unless they are to be dropped), no purchases at all.
    """
    wanted: dict[Path, tuple[str, ...]] = {
        data.file(event_type): schema.event_columns(event_type) for event_type in EventType
    }
    wanted[data.paths.properties] = schema.PROPERTY_COLUMNS
    _raise_all(_type_faults(wanted))
    seen = _all_looked_at(wanted)
    _raise_all(fault for file, columns in wanted.items() for fault in _value_faults(file, columns, seen[file]))
    _raise_all(_repeated_skus(data.paths.properties))

    summaries = {event_type: _summarise(data, event_type, seen[data.file(event_type)]) for event_type in EventType}
    faults = [fault for event_type in schema.ITEM_EVENTS for fault in _unknown_skus(data, event_type, summaries)]
    purchases = summaries[EventType.PRODUCT_BUY]
    if purchases.rows == purchases.unknown_skus:
        faults.append(
            f"{data.file(EventType.PRODUCT_BUY)}: no purchases at all; tasks and profiles need some: check the export"
        )
    _raise_all(faults)
    return summaries


def _raise_all(faults: Iterable[str]) -> None:
    if messages := list(faults):
        raise UserError(messages)


def _require_files(data: ChallengeData) -> None:
    if not data.paths.raw.is_dir():
        raise UserError(
            f"{data.paths.raw}: folder missing; put the data there, or set CHALLENGE_DATA_PATH to the folder "
            "above raw/ (`make demo` fetches data to try)"
        )
    files = [*(data.file(event_type) for event_type in EventType), data.paths.properties]
    missing = [file for file in files if not file.is_file()]
    if not missing:
        return
    if not data.submit and all(data.paths.raw / file.name not in missing for file in missing):
        remedy = "make it with: python scripts/split.py"
    else:
        remedy = "put it there; where the shop has no such events, a table without rows"
    raise UserError([f"{file}: file missing; {remedy}" for file in missing])


def _type_faults(wanted: dict[Path, tuple[str, ...]]) -> Iterator[str]:
    for file, columns in wanted.items():
        try:
            found = pl.read_parquet_schema(file)
        except (pl.exceptions.PolarsError, OSError) as error:
            yield f"{file}: not a readable parquet file ({str(error).splitlines()[0]}); export it again"
            continue
        for column in columns:
            if column not in found:
                yield f"{file}: column {column} missing (it has {', '.join(found)}); add or rename it"
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


def _numbers(column: str) -> pl.Expr:
    """The numbers in a text of codes, as a list of texts."""
    return pl.col(column).cast(pl.String).str.extract_all(r"[0-9]{1,18}")


def _faulty(column: str) -> pl.Expr:
    """True where a raw value cannot be used; for columns whose dtype passed `_expected`."""
    if column == schema.TIMESTAMP:
        year = pl.col(column).dt.year()
        return pl.col(column).is_null() | ~year.is_between(*_YEARS)
    if column in schema.CODE_COLUMNS:
        in_book = (_numbers(column).cast(pl.List(pl.Int64)).list.max() < schema.CODE_BOOK).fill_null(False)
        return ~(pl.col(column).cast(pl.String).str.contains(_CODES_PATTERN).fill_null(False) & in_book)
    return pl.col(column).is_null()


_FAULTS = {
    schema.TIMESTAMP: f"are no time of the form YYYY-MM-DD HH:mm:ss in the years {_YEARS[0]} to {_YEARS[1]}",
    schema.NAME: f"are not {schema.CODES} numbers in 0..{schema.CODE_BOOK - 1}",
    schema.QUERY: f"are not {schema.CODES} numbers in 0..{schema.CODE_BOOK - 1}",
}


def _all_looked_at(wanted: dict[Path, tuple[str, ...]]) -> dict[Path, dict[str, Any]]:
    """See `_looked_at`; raises a line for each file that breaks while it is read."""
    seen, broken = {}, []
    for file, columns in wanted.items():
        try:
            seen[file] = _looked_at(file, columns)
        except pl.exceptions.PolarsError as error:
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
    return _times_parsed(_scan(file).select(columns))


def _value_faults(file: Path, columns: tuple[str, ...], seen: dict[str, Any]) -> Iterator[str]:
    for column in columns:
        if count := seen[column]:
            # Only now, on the way out, a second look for the first example.
            faulty = _parsed(file, columns).select(_faulty(column)).collect()[column]
            row = int(faulty.arg_true()[0])
            example = _scan(file).select(column).slice(row, 1).collect().item()
            fault = _FAULTS.get(column, "are null")
            yield (
                f"{file}: column {column}: {count:,} of {seen['#rows']:,} rows {fault} "
                f"(the first: row {row:,}, {example!r}); mend or remove them"
            )


def _repeated_skus(file: Path) -> Iterator[str]:
    repeated = _scan(file).group_by(schema.SKU).len().filter(pl.col("len") > 1)
    found = collect(repeated.select(pl.len(), first=pl.col(schema.SKU).min()))
    if count := found["len"].item():
        yield (
            f"{file}: column sku: {count:,} skus have more than one row (the first: {found['first'].item()}); "
            "keep one row a sku"
        )


def _unknown_skus(data: ChallengeData, event_type: EventType, summaries: dict[EventType, FileSummary]) -> Iterator[str]:
    summary = summaries[event_type]
    if not summary.unknown_skus:
        return
    share = f"{summary.unknown_skus:,} of {summary.rows:,} rows"
    if data.unknown_sku == "drop":
        logger.warning("%s: left out %s: their sku has no properties", data.file(event_type), share)
        return
    first = _without_properties(data, event_type).select(schema.SKU).first().collect().item()
    yield (
        f"{data.file(event_type)}: column sku: {share} have a sku that is not in {data.paths.properties.name} "
        f"(the first: {first}); add its properties, or leave those events out with unknown_sku=drop"
    )


def _without_properties(data: ChallengeData, event_type: EventType) -> pl.LazyFrame:
    known = _scan(data.paths.properties).select(pl.col(schema.SKU).cast(pl.Int64))
    events = _scan(data.file(event_type)).select(pl.col(schema.SKU).cast(pl.Int64))
    return events.join(known, on=schema.SKU, how="anti", maintain_order="left")


def _summarise(data: ChallengeData, event_type: EventType, seen: dict[str, Any]) -> FileSummary:
    unknown = 0
    if event_type.has_sku:
        unknown = int(collect(_without_properties(data, event_type).select(pl.len())).item())
    return _summary(seen["#rows"], seen["#first"], seen["#last"], unknown)


def _summary(rows: int, first: datetime | str | None, last: datetime | str | None, unknown_skus: int) -> FileSummary:
    def moment(value: datetime | str | None) -> datetime | None:
        return datetime.fromisoformat(value) if isinstance(value, str) else value

    return FileSummary(rows, moment(first), moment(last), unknown_skus)


def _scan(file: Path) -> pl.LazyFrame:
    return pl.scan_parquet(file, glob=False)


def _times_parsed(frame: pl.LazyFrame) -> pl.LazyFrame:
    """Both forms of timestamps as Datetime(us); null where text is no time."""
    dtype = frame.collect_schema().get(schema.TIMESTAMP)
    if dtype is None:
        return frame
    time = pl.col(schema.TIMESTAMP)
    if dtype == pl.String:
        # Seconds of half a year hardly repeat: looking each up takes twice as long as reading it.
        time = time.str.to_datetime(schema.TIMESTAMP_FORMAT, strict=False, time_unit="us", cache=False)
    return frame.with_columns(time.cast(schema.TIMESTAMP_DTYPE))


def _typed(frame: pl.LazyFrame, columns: tuple[str, ...]) -> pl.LazyFrame:
    """The columns with the dtypes that `ubp.schema` promises; for a file that passed `check`."""
    integers = [pl.col(column).cast(pl.Int64) for column in columns if column in schema.INTEGER_COLUMNS]
    codes = [
        _numbers(column).cast(pl.List(pl.UInt8)).list.to_array(schema.CODES)
        for column in columns
        if column in schema.CODE_COLUMNS
    ]
    return _times_parsed(frame.select(columns)).with_columns(integers + codes)


def _present(moment: datetime | None) -> datetime:
    if moment is None:
        raise ValueError("an event type without events has no first or last one")
    return moment


def _midnight(moment: datetime) -> datetime:
    return moment.replace(hour=0, minute=0, second=0, microsecond=0)
