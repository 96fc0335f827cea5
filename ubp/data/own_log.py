"""Somebody's log brought into the raw layout, by a schema of theirs (`ubp.data.log_schema`).

Every file is parsed once, streamed, into the cache (`ubp.data.log_sources`); then ids become integers, texts codes, and
the event files are streamed to their place. Memory holds the distinct ids and texts, and the items. All files of the
layout change, or none.
"""

import json
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

import polars as pl
from rich.progress import Progress, TaskID

from ubp.data import log_checks, own_ids, schema
from ubp.data.event_types import own_types, read_event_types
from ubp.data.import_state import ImportState
from ubp.data.item_attributes import ItemAttributes, KnownAttributes, attributes
from ubp.data.log_schema import EventSource, LogSchema
from ubp.data.log_sources import CLIENT, SUBJECT, VALUE, StagedEvents, files_of, stage_events, stage_items
from ubp.data.own_ids import together, with_ids
from ubp.data.paths import DataPaths
from ubp.data.reading import collect
from ubp.data.schema import EventType
from ubp.data.text_codes import LETTERS, Embed, TextCodes, TextSettings, codes_text
from ubp.io.errors import UserError
from ubp.io.progress import progress_bar
from ubp.io.together import replaced_together

logger = logging.getLogger(__name__)

STEPS: Final = 4  # after the files: ids, items, texts, writing
ROW_GROUP: Final = 1_000_000
_CODES: Final = "#codes"
_ITEMS: Final = "items"
ITEM: Final = "item"


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
        embedder: a language model by its name, for texts that one is to read.
    """

    drop: bool
    text: TextSettings
    seed: int
    now: datetime
    embedder: Callable[[str], Embed]

    def embed(self) -> Embed | None:
        """The language model that reads texts; None where letters are read."""
        return None if self.text.reader == LETTERS else self.embedder(self.text.reader)


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
    """The files that an import writes; beside them ``event_types.json``, where a log has types of its own."""
    ids = [paths.ids(name) for name in (CLIENT, ITEM, schema.URL, schema.CATEGORY)]
    tables = [*(paths.raw / event_type.file_name for event_type in event_types), paths.properties, *ids]
    return [*tables, paths.import_state]


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
    with brought_in(log, files, paths, settings, None) as found:
        found.bar.update(found.task, description="writing")
        warnings = _write(found, paths, settings.now, begin)
        found.bar.update(found.task, advance=1)
    example = found.ids.items[own_ids.ORIGINAL].first() if len(found.ids.items) else None
    return OwnLog(found.figures, found.items, example, warnings)


@dataclass(frozen=True)
class KnownLog:
    """What a log that was brought in before has fixed, for rows that come later.

    Attributes:
        ids: of its clients, items and urls.
        attributes: its categories and prices.
        codes: of texts.
        wanted: True for the rows that are new.
    """

    ids: "Ids"
    attributes: KnownAttributes
    codes: TextCodes
    wanted: pl.Expr


@dataclass(frozen=True)
class BroughtIn:
    """The rows of a log, read; what is lazy can be read while `brought_in` is open.

    Attributes:
        figures: of each source.
        ids: of all clients, items and urls, those known before among them.
        items: attributes of those that were not known before.
        codes: of texts.
        tables: rows of each of the event files and the properties.
        event_types: of the log.
        bar: of progress.
        task: of the bar.
    """

    figures: list[SourceFigures]
    ids: "Ids"
    items: ItemAttributes
    codes: TextCodes
    tables: dict[Path, pl.LazyFrame]
    event_types: tuple[EventType, ...]
    bar: Progress
    task: TaskID


@contextmanager
def brought_in(
    log: LogSchema, files: Files, paths: DataPaths, settings: ImportSettings, known: KnownLog | None
) -> Iterator[BroughtIn]:
    """Read the rows of a log.

    Args:
        log: the schema.
        files: see `all_files`.
        paths: where they are meant for.
        settings: see there.
        known: of the log that they follow on; None: they are a log of their own.

    Raises:
        UserError: one line for each fault of the files.
    """
    with progress_bar() as bar, _staging(paths.cache / "import_log") as folder:
        task = bar.add_task("reading", total=sum(map(len, files.values())) + STEPS)

        def advance(next_step: str | None = None) -> None:
            bar.update(task, advance=1, description=next_step)

        staged, listed = _staged(log, files, folder, settings.drop, advance)
        if known is None:
            _require_purchases(staged)
        else:
            staged = [each.only(known.wanted) for each in staged]
        bar.update(task, description="ids")
        met = [_Met.of(each) for each in staged]
        ids = Ids.of(met, listed, known.ids if known else None)
        advance("items")
        new = ids.items.join(known.ids.items, on=own_ids.ID, how="anti") if known else ids.items
        by_amounts = not (log.items and log.items.price)
        items = attributes(new, listed, _amounts(staged), by_amounts, known.attributes if known else None)
        advance("texts")
        codes, coded = _text_codes(
            items.table[schema.NAME], _searches(met), settings, known.codes if known else None, bar
        )
        advance()
        figures = [_figures(*each) for each in zip(staged, met, strict=True)]
        tables = _tables(log.event_types, staged, ids, items, coded, paths)
        yield BroughtIn(figures, ids, items, codes, tables, log.event_types, bar, task)


def _write(found: BroughtIn, paths: DataPaths, now: datetime, begin: Callable[[], None]) -> list[str]:
    """Write all files, or none, and look at the events before they take their place.

    Args:
        found: the log.
        paths: where to.
        now: in the log's zone.
        begin: called before the first file is replaced.

    Returns:
        A line for each thing that should be looked at.
    """
    own = own_types(found.event_types)
    files = [*outputs(paths, found.event_types), *([paths.event_types] if own else [])]
    with replaced_together(files, paths.new_files[0], _others(paths, found.event_types)) as asides:
        if own:
            asides[paths.event_types].write_text(json.dumps(own))
        for path, table in found.tables.items():
            table.sink_parquet(asides[path], row_group_size=ROW_GROUP)
        for path, ids in id_tables(found, paths).items():
            ids.lazy().sink_parquet(asides[path], row_group_size=ROW_GROUP)
        ImportState(found.codes, found.items.prices).write(asides[paths.import_state])
        by_name = {path.name: aside for path, aside in asides.items()}
        written = {kind: by_name[kind.file_name] for kind in found.event_types}
        warnings = list(log_checks.warnings(written, found.ids.clients, now))
        begin()
    return warnings


def _others(paths: DataPaths, event_types: Sequence[EventType]) -> list[Path]:
    """The files of types that a log which was there before had, and this one has not."""
    gone = [kind for kind in read_event_types(paths.event_types) if kind not in event_types]
    return [*(paths.raw / kind.file_name for kind in gone), *([] if own_types(event_types) else [paths.event_types])]


def id_tables(found: BroughtIn, paths: DataPaths) -> dict[Path, pl.DataFrame]:
    """The tables of ids by their files."""
    tables = (found.ids.clients, found.ids.items, found.ids.urls, found.items.categories)
    return dict(zip(map(paths.ids, (CLIENT, ITEM, schema.URL, schema.CATEGORY)), tables, strict=True))


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
        UserError: the faults of all files.
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
    if faults:
        raise UserError(faults)
    return staged, listed


def _require_purchases(staged: Sequence[StagedEvents]) -> None:
    """Refuse a log without any.

    Raises:
        UserError: with the sources that should have them.
    """
    bought = [each for each in staged if each.source.kind == EventType.PRODUCT_BUY]
    if not any(each.rows for each in bought):
        names = ", ".join(f"{each.source.name} ({each.files[0]})" for each in bought)
        raise UserError(
            f"{names}: no purchases at all; tasks and profiles need some: correct file: or where: in the schema"
        )


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
class Ids:
    """The tables of `ubp.data.own_ids`."""

    clients: pl.DataFrame
    items: pl.DataFrame
    urls: pl.DataFrame

    @classmethod
    def of(cls, met: Sequence[_Met], listed: Sequence[pl.LazyFrame], known: "Ids | None") -> "Ids":
        """Of all values; those that are known keep their numbers.

        Raises:
            UserError: a value cannot be numbered behind those that are known.
        """

        def of_subject(column: str) -> list[pl.LazyFrame]:
            return [each.subjects.to_frame().lazy() for each in met if each.source.kind.subject == column]

        in_list = [piece.select(SUBJECT) for piece in listed]
        found = {
            CLIENT: [each.clients.to_frame().lazy() for each in met],
            ITEM: [*of_subject(schema.SKU), *in_list],
            schema.URL: of_subject(schema.URL),
        }
        if known is None:
            clients, items, urls = map(own_ids.numbered, found.values())
        else:
            tables = (known.clients, known.items, known.urls)
            clients, items, urls = (
                own_ids.extended(table, frames, name)
                for table, (name, frames) in zip(tables, found.items(), strict=True)
            )
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
    names: pl.Series,
    searches: Sequence[pl.Series],
    settings: ImportSettings,
    known: TextCodes | None,
    bar: Progress,
) -> tuple[TextCodes, pl.DataFrame]:
    """The quantiser of names and searches, learned from these unless it is known.

    Returns:
        The quantiser; ``subject``, a distinct text, and its codes as the challenge writes them.
    """
    texts = pl.concat([each.cast(pl.String).rename(SUBJECT) for each in (names, *searches)]).unique().sort()
    every = texts.to_list()
    logger.info("quantising %s texts", f"{len(every):,}")
    task = bar.add_task("texts", total=len(every))
    quantiser = known or TextCodes.fit(every, settings.text, settings.seed, settings.embed())
    codes = quantiser.of(every, lambda done: bar.advance(task, done))
    return quantiser, pl.DataFrame({SUBJECT: texts, _CODES: codes_text(codes)})


def _tables(
    event_types: Sequence[EventType],
    staged: Sequence[StagedEvents],
    ids: Ids,
    items: ItemAttributes,
    codes: pl.DataFrame,
    paths: DataPaths,
) -> dict[Path, pl.LazyFrame]:
    """The rows of the event files and of the properties."""
    tables = {paths.raw / kind.file_name: _events(_of_kind(staged, kind), kind, ids, codes) for kind in event_types}
    properties = items.table.lazy().rename({schema.NAME: SUBJECT})
    tables[paths.properties] = _coded(properties, codes).rename({SUBJECT: schema.NAME}).select(schema.PROPERTY_COLUMNS)
    return tables


def _events(frames: Sequence[pl.LazyFrame], kind: EventType, ids: Ids, codes: pl.DataFrame) -> pl.LazyFrame:
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
