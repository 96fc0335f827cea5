"""A further day taken into a log that was brought in before (`ubp.data.own_log`), so that fitted models still read it.

What the log has is not touched: clients, items, urls and categories keep their numbers and new ones get higher ones,
items keep their properties, new items get theirs by the price buckets and the quantiser of the first import. The files
of ``raw/`` change all together, and what they grew by is kept for the sequence store (`ubp.data.growth`).
"""

import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from pathlib import Path

import polars as pl

from ubp.data import schema
from ubp.data.event_types import own_types
from ubp.data.growth import keep_growth
from ubp.data.history import ChallengeData
from ubp.data.import_state import ImportState
from ubp.data.item_attributes import KnownAttributes
from ubp.data.log_schema import LogSchema
from ubp.data.log_sources import CLIENT
from ubp.data.own_log import (
    ITEM,
    ROW_GROUP,
    BroughtIn,
    Files,
    Ids,
    ImportSettings,
    KnownLog,
    SourceFigures,
    brought_in,
    id_tables,
)
from ubp.data.paths import DataPaths
from ubp.data.reading import collect, scan
from ubp.data.text_codes import Embed
from ubp.io.errors import UserError, name_some
from ubp.io.files import locked
from ubp.io.together import replaced_together

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TakenDay:
    """What a day brought.

    Attributes:
        sources: rows of each source; those that were new.
        events: of them all.
        clients: that the log did not have before.
        items: the same of items.
    """

    sources: list[SourceFigures]
    events: int
    clients: int
    items: int


def take_day(log: LogSchema, files: Files, paths: DataPaths, settings: ImportSettings, day: date) -> TakenDay:
    """Take the rows after a log's last event, up to the end of a day, into its files.

    The same day a second time brings nothing. A run that was killed is finished, or begun anew, by the next.

    Args:
        log: the schema that the log was brought in by.
        files: see `ubp.data.own_log.all_files`; they may hold rows that the log has, and rows of later days.
        paths: of the log.
        settings: whether to leave out rows that cannot be used.
        day: in the log's zone.

    Raises:
        UserError: the log ends after the day, it was not brought in by a schema, or a line for each fault of the files.
    """
    with locked(paths.lock, f"a day of {paths.raw}"):
        history = ChallengeData(paths, submit=True)
        shutil.rmtree(paths.new_files[0], ignore_errors=True)  # what a killed run had not written all of
        _require_same_types(log, history)
        last = history.latest
        if day < last.date():
            raise UserError(f"day={day}: the log goes on until {last.date()} already; name that day or a later one")
        end = datetime.combine(day, time()) + timedelta(days=1)
        known = known_log(paths, last, end, settings.embedder)
        with brought_in(log, files, paths, settings, known) as found:
            events = sum(each.rows for each in found.figures)
            taken = TakenDay(
                found.figures,
                events,
                len(found.ids.clients) - len(known.ids.clients),
                len(found.items.table) if events else 0,
            )
            if events:
                _append(found, paths, history)
    return taken


def _require_same_types(log: LogSchema, history: ChallengeData) -> None:
    own, known = own_types(log.event_types), own_types(history.event_types)
    if own != known:
        here, asked = (name_some(list(each), 20) or "none" for each in (known, own))
        raise UserError(
            f"{history.paths.event_types}: the log's own event types are {here}, the schema's {asked}; bring the "
            "whole log in anew: scripts/import_log.py"
        )


def known_log(paths: DataPaths, after: datetime, end: datetime, embedder: Callable[[str], Embed]) -> KnownLog:
    """What a log has fixed.

    Args:
        paths: of the log.
        after: rows at or before this moment are not new.
        end: nor are those at or after this one.
        embedder: see `ubp.data.own_log.ImportSettings`.

    Raises:
        UserError: it was not brought in by a schema.
    """
    state = ImportState.read(paths.import_state, embedder)
    clients, items, urls, categories = (
        pl.read_parquet(paths.ids(name), glob=False) for name in (CLIENT, ITEM, schema.URL, schema.CATEGORY)
    )
    moment = pl.col(schema.TIMESTAMP)
    attributes = KnownAttributes(categories, state.prices)
    return KnownLog(Ids(clients, items, urls), attributes, state.codes, (moment > after) & (moment < end))


def _append(found: BroughtIn, paths: DataPaths, history: ChallengeData) -> None:
    """Write the new rows behind those of the files, and keep what these grow by.

    That is kept before the new files count: a run that is killed in between leaves a step that nobody asks for, and not
    grown files whose step nobody keeps.
    """
    by_type = {each: paths.raw / each.file_name for each in history.event_types}
    new = {path: collect(table) for path, table in found.tables.items()}
    ids = {path: table for path, table in id_tables(found, paths).items() if len(table) > _rows(path)}
    changed = [*(path for path, table in new.items() if len(table)), *ids]
    with replaced_together(changed, paths.new_files[0]) as asides:
        for path in changed:
            if path in ids:
                ids[path].write_parquet(asides[path], row_group_size=ROW_GROUP)
                continue
            grown = pl.concat([scan(path), new[path].lazy()])
            if path == paths.properties:
                grown = grown.sort(schema.SKU)
            grown.sink_parquet(asides[path], row_group_size=ROW_GROUP)
        events = {each: new.get(path, pl.read_parquet(path, n_rows=0)).lazy() for each, path in by_type.items()}
        keep_growth(paths, history.files_fingerprint, history.fingerprint_with(asides), events)


def _rows(path: Path) -> int:
    return int(collect(scan(path).select(pl.len())).item())
