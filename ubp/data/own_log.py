"""Somebody's log brought into the raw layout, by a schema of theirs (`ubp.data.log_schema`).

Every file is parsed once, streamed, into the cache (`ubp.data.log_sources`); then ids become integers, texts codes, and
the event files are streamed to their place. Memory holds the distinct ids and texts, and the items. All files of the
layout change, or none.
"""

import json
import logging
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

import polars as pl
from rich.progress import Progress

from ubp.data import log_checks, own_ids, schema
from ubp.data.event_types import own_types, read_event_types
from ubp.data.item_attributes import ItemAttributes, attributes
from ubp.data.log_schema import EventSource, LogSchema
from ubp.data.log_sources import CLIENT, SUBJECT, VALUE, StagedEvents, files_of, stage_events, stage_items
from ubp.data.own_ids import together, with_ids
from ubp.data.paths import DataPaths
from ubp.data.reading import collect
from ubp.data.schema import EventType
from ubp.data.text_codes import TextCodes, TextSettings, codes_text
from ubp.io.errors import UserError
from ubp.io.files import atomic_write
from ubp.io.progress import progress_bar

logger = logging.getLogger(__name__)

STEPS: Final = 4  # after the files: ids, items, texts, writing
_ROW_GROUP: Final = 1_000_000
_CODES: Final = "#codes"
_ITEMS: Final = "items"


@dataclass(frozen=True)
class SourceFigures:
    """What a source of events holds.

    Attributes:
        source: which.
        files: how many.
        rows: that were taken.
        dropped: that could not be used.
        clients: distinct ones.
        subjects: distinct items, urls or texts.
        first: time of the earliest event; None without rows.
        last: of the latest.
        example: client, time, subject and value of the first row, as the user wrote them.
    """

    source: EventSource
    files: int
    rows: int
    dropped: int
    clients: int
    subjects: int
    first: datetime | None
    last: datetime | None
    example: tuple[object, ...]


@dataclass(frozen=True)
class OwnLog:
    """What was brought in.

    Attributes:
        sources: in the order of the schema.
        items: their attributes.
        example: id of an item, as the user wrote it; None without items.
        warnings: lines.
    """

    sources: list[SourceFigures]
    items: ItemAttributes
    example: object
    warnings: list[str]


@dataclass(frozen=True)
class ImportSettings:
    """How a log is brought in.

    Attributes:
        drop: leave out rows that cannot be used, which are an error otherwise.
        text: how texts become codes.
        seed: of the codes.
        now: in the log's zone; later events are warned of.
    """

    drop: bool
    text: TextSettings
    seed: int
    now: datetime


Files = Mapping[str, Sequence[Path]]


def all_files(log: LogSchema, folder: Path) -> Files:
    """The files of each source by its name, those of the items as ``items``.

    Args:
        log: the sources.
        folder: that relative paths begin at.

    Raises:
        UserError: a line for each source without any.
    """
    found, faults = {}, []
    for source in [*log.events, *([log.items] if log.items else [])]:
        try:
            found[_key(source.name, source is log.items)] = files_of(source, folder)
        except UserError as error:
            faults += error.messages
    if faults:
        raise UserError(faults)
    return found


def _key(name: str, is_items: bool) -> str:
    """Events that are called ``items`` are no list of items."""
    return _ITEMS if is_items else f"events/{name}"


def outputs(paths: DataPaths, event_types: Sequence[EventType]) -> list[Path]:
    """The tables that an import writes; beside them ``event_types.json``, where a log has types of its own."""
    ids = [paths.raw / f"ids_{name}.parquet" for name in ("client", "item", "url", "category")]
    return [*(paths.raw / event_type.file_name for event_type in event_types), paths.properties, *ids]


def import_log(
    log: LogSchema, files: Files, paths: DataPaths, settings: ImportSettings, begin: Callable[[], None]
) -> OwnLog:
    """Read a log and write the raw layout.

    Args:
        log: the schema.
        files: see `all_files`.
        paths: where to.
        settings: see there.
        begin: called before the first file is replaced.

    Raises:
        UserError: one line for each fault of the files; nothing is written then.
    """
    with progress_bar() as bar, _staging(paths.cache / "import_log") as folder:
        task = bar.add_task("reading", total=sum(map(len, files.values())) + STEPS)

        def advance(next_step: str | None = None) -> None:
            bar.update(task, advance=1, description=next_step)

        staged, listed = _staged(log, files, folder, settings.drop, advance)
        bar.update(task, description="ids")
        met = [_Met.of(each) for each in staged]
        ids = _Ids.of(met, listed)
        advance("items")
        items = attributes(ids.items, listed, _amounts(staged), by_amounts=not (log.items and log.items.price))
        advance("texts")
        codes = _text_codes(items.table[schema.NAME], _searches(met), settings, bar)
        advance("writing")
        figures = [_figures(*each) for each in zip(staged, met, strict=True)]
        warnings = _write(
            paths,
            log.event_types,
            _tables(log.event_types, staged, ids, items, codes),
            ids.clients,
            settings.now,
            begin,
        )
        advance()
    example = ids.items[own_ids.ORIGINAL].first() if len(ids.items) else None
    return OwnLog(figures, items, example, warnings)


def _write(
    paths: DataPaths,
    event_types: Sequence[EventType],
    contents: Iterable[pl.LazyFrame],
    clients: pl.DataFrame,
    now: datetime,
    begin: Callable[[], None],
) -> list[str]:
    """Write all files, or none, and look at the events before they take their place.

    Args:
        paths: where to.
        event_types: of the log.
        contents: of the `outputs`.
        clients: their ids.
        now: in the log's zone.
        begin: called before the first file is replaced.

    Returns:
        A line for each thing that should be looked at.
    """
    tables, own = dict(zip(outputs(paths, event_types), contents, strict=True)), own_types(event_types)
    with ExitStack() as stack:
        if own:
            stack.enter_context(atomic_write(paths.event_types)).write_text(json.dumps(own))
        asides = {path: stack.enter_context(atomic_write(path)) for path in tables}
        for path, table in tables.items():
            table.sink_parquet(asides[path], row_group_size=_ROW_GROUP)
        by_name = {path.name: aside for path, aside in asides.items()}
        warnings = list(log_checks.warnings({kind: by_name[kind.file_name] for kind in event_types}, clients, now))
        begin()
        _remove_others(paths, event_types)
        return warnings


def _remove_others(paths: DataPaths, event_types: Sequence[EventType]) -> None:
    """Remove the events of types that a log which was there before had, and this one has not."""
    before = read_event_types(paths.event_types)
    paths.event_types.unlink(missing_ok=True)
    for event_type in before:
        if event_type not in event_types:
            (paths.raw / event_type.file_name).unlink(missing_ok=True)


@contextmanager
def _staging(folder: Path) -> Iterator[Path]:
    """An empty folder, removed in the end; what a killed run left in it goes too."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _staged(
    log: LogSchema, files: Files, folder: Path, drop: bool, advance: Callable[[], None]
) -> tuple[list[StagedEvents], list[pl.LazyFrame]]:
    """All events and the list of items, parsed.

    Raises:
        UserError: the faults of all files, or no purchases.
    """
    staged, faults, listed = list[StagedEvents](), list[str](), list[pl.LazyFrame]()
    for number, source in enumerate(log.events):
        try:
            part = folder / f"{number:06}"
            staged.append(stage_events(source, files[_key(source.name, False)], log.zone, part, drop, advance))
            logger.info("%s: %s rows", source.name, f"{staged[-1].rows:,}")
        except UserError as error:
            faults += error.messages
    if log.items:
        try:
            listed = stage_items(log.items, files[_ITEMS], folder / _ITEMS, advance)
        except UserError as error:
            faults += error.messages
    bought = [each for each in staged if each.source.kind == EventType.PRODUCT_BUY]
    if not faults and not any(each.rows for each in bought):
        names = ", ".join(f"{each.source.name} ({each.files[0]})" for each in bought)
        faults.append(
            f"{names}: no purchases at all; tasks and profiles need some: correct file: or where: in the schema"
        )
    if faults:
        raise UserError(faults)
    return staged, listed


@dataclass(frozen=True)
class _Met:
    """The distinct values of a source, Int64 or String."""

    source: EventSource
    clients: pl.Series
    subjects: pl.Series

    @classmethod
    def of(cls, staged: StagedEvents) -> "_Met":
        frames = staged.frames()
        values = (own_ids.distinct(frame.select(column) for frame in frames) for column in (CLIENT, SUBJECT))
        return cls(staged.source, *values)


@dataclass(frozen=True)
class _Ids:
    """The tables of `ubp.data.own_ids`."""

    clients: pl.DataFrame
    items: pl.DataFrame
    urls: pl.DataFrame

    @classmethod
    def of(cls, met: Sequence[_Met], listed: Sequence[pl.LazyFrame]) -> "_Ids":
        def of_subject(column: str) -> list[pl.LazyFrame]:
            return [each.subjects.to_frame().lazy() for each in met if each.source.kind.subject == column]

        in_list = [piece.select(SUBJECT) for piece in listed]
        clients = own_ids.numbered([each.clients.to_frame().lazy() for each in met])
        items, urls = own_ids.numbered([*of_subject(schema.SKU), *in_list]), own_ids.numbered(of_subject(schema.URL))
        logger.info("%s clients, %s items, %s urls", *(f"{len(table):,}" for table in (clients, items, urls)))
        return cls(clients, items, urls)


def _of_kind(staged: Sequence[StagedEvents], kind: EventType) -> list[pl.LazyFrame]:
    return [frame for each in staged if each.source.kind == kind for frame in each.frames()]


def _amounts(staged: Sequence[StagedEvents]) -> pl.LazyFrame:
    """What was paid for items: ``subject`` and ``value`` of the purchases."""
    frames = [frame.select(SUBJECT, VALUE) for frame in _of_kind(staged, EventType.PRODUCT_BUY)]
    return together(frames, (SUBJECT,)).drop_nulls(VALUE)


def _searches(met: Sequence[_Met]) -> list[pl.Series]:
    """The distinct texts that each source has searches for, or other events about texts."""
    return [each.subjects for each in met if each.source.kind.subject == schema.QUERY]


def _text_codes(
    names: pl.Series, searches: Sequence[pl.Series], settings: ImportSettings, bar: Progress
) -> pl.DataFrame:
    """``subject``, a distinct text, and its codes as the challenge writes them; names and searches by one quantiser."""
    texts = pl.concat([each.rename(SUBJECT) for each in (names, *searches)]).unique().sort()
    every = texts.to_list()
    logger.info("quantising %s texts", f"{len(every):,}")
    task = bar.add_task("texts", total=len(every))
    codes = TextCodes.fit(every, settings.text, settings.seed).of(every, lambda done: bar.advance(task, done))
    return pl.DataFrame({SUBJECT: texts, _CODES: codes_text(codes)})


def _tables(
    event_types: Sequence[EventType],
    staged: Sequence[StagedEvents],
    ids: _Ids,
    items: ItemAttributes,
    codes: pl.DataFrame,
) -> Iterator[pl.LazyFrame]:
    """What goes into each of the `outputs`."""
    for kind in event_types:
        yield _events(_of_kind(staged, kind), kind, ids, codes)
    properties = items.table.lazy().rename({schema.NAME: SUBJECT})
    yield _coded(properties, codes).rename({SUBJECT: schema.NAME}).select(schema.PROPERTY_COLUMNS)
    for table in (ids.clients, ids.items, ids.urls, items.categories):
        yield table.lazy()


def _events(frames: Sequence[pl.LazyFrame], kind: EventType, ids: _Ids, codes: pl.DataFrame) -> pl.LazyFrame:
    columns = schema.event_columns(kind)
    if not frames:
        subject = pl.String if kind.subject == schema.QUERY else pl.Int64
        types = dict(zip(columns, (pl.Int64, schema.TIMESTAMP_DTYPE, subject), strict=True))
        return pl.LazyFrame(schema=types)
    events = with_ids(together(frames, (CLIENT, SUBJECT)), CLIENT, ids.clients)
    if kind.subject == schema.QUERY:
        events = _coded(events, codes)
    else:
        events = with_ids(events, SUBJECT, ids.items if kind.has_sku else ids.urls)
    return events.select(pl.col(CLIENT).alias(schema.CLIENT_ID), schema.TIMESTAMP, pl.col(SUBJECT).alias(kind.subject))


def _coded(frame: pl.LazyFrame, codes: pl.DataFrame) -> pl.LazyFrame:
    """A frame with the codes of ``subject`` in its place, in the same order."""
    joined = frame.join(codes.lazy(), on=SUBJECT, how="left", maintain_order="left")
    return joined.with_columns(pl.col(_CODES).alias(SUBJECT)).drop(_CODES)


def _figures(staged: StagedEvents, met: _Met) -> SourceFigures:
    time, pieces = pl.col(schema.TIMESTAMP), staged.frames()
    events = pl.concat([piece.select(schema.TIMESTAMP) for piece in pieces])
    first, last = collect(events.select(first=time.min(), last=time.max())).row(0)
    examples = (row for piece in pieces for row in piece.head(1).collect().iter_rows())
    return SourceFigures(
        source=staged.source,
        files=len(staged.files),
        rows=staged.rows,
        dropped=staged.dropped,
        clients=len(met.clients),
        subjects=len(met.subjects),
        first=first,
        last=last,
        example=next(examples, ()),
    )
