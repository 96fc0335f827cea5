"""Bring in your own events by a schema that says which column is what; check them, show what was understood.

    python scripts/import_log.py schema=bank source=/exports           -> $CHALLENGE_DATA_PATH/raw
    python scripts/import_log.py schema=bank source=/exports bad_rows=drop
    python scripts/import_log.py --config-dir=. schema=mine            ./schema/mine.yaml, a schema of your own

The schema names files (parquet or CSV, or a pattern of several), and for each kind of event the columns of client,
time, item, url or text, and value; configs/schema/ has three that work, docs/own-log.md takes you through one. What
comes out is the raw layout of docs/data.md: `scripts/split.py` and all that follows read it. Ids that are no integers
are numbered; ``raw/ids_client.parquet`` (and ``item``, ``url``, ``category``) has for each ``id`` your own,
``original``. Names and searches become 16 codes, close texts with many in common. Files are streamed: memory goes with
the ids, not the events.
"""

import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from omegaconf import DictConfig
from rich.markup import escape
from rich.table import Table

from ubp.cli.command import command
from ubp.cli.config import Common, config_names, parse, resolved
from ubp.cli.output import closing_line, say, show
from ubp.data.event_types import own_types
from ubp.data.item_attributes import MIDDLE, NO_CATEGORY
from ubp.data.log_schema import SUBJECT_KEYS, LogSchema, schema_of
from ubp.data.own_log import Files, ImportSettings, OwnLog, SourceFigures, all_files, import_log, outputs
from ubp.data.paths import CONFIGS, DataPaths
from ubp.data.schema import CATEGORY, EVENT_TYPES, NAME, PRICE
from ubp.data.text_codes import Embed, TextSettings
from ubp.io.errors import UserError, require
from ubp.io.files import fingerprint
from ubp.io.stage import Stage

logger = logging.getLogger(__name__)

_VERSION = 1  # raised whenever the same files give another log


@dataclass
class Order:
    """What is asked for besides the schema; see the config."""

    source: str
    bad_rows: str

    def __post_init__(self) -> None:
        """Refuse what is not known.

        Raises:
            UserError: another way with bad rows.
        """
        require(self.bad_rows in ("error", "drop"), "bad_rows", self.bad_rows, "error or drop")


def schema_in(config: DictConfig) -> LogSchema:
    """The schema that the config names.

    Raises:
        UserError: none is named, or it makes no sense.
    """
    if not config.schema:
        known = ", ".join(config_names(CONFIGS / "schema"))
        raise UserError(f"schema: name one: schema=NAME, a file of configs/schema/ ({known}) or of --config-dir=FOLDER")
    return schema_of(resolved(config)["schema"])


def _refuse_to_replace(stage: Stage, paths: DataPaths, log: LogSchema) -> None:
    """Leave events alone that this command did not write.

    Raises:
        UserError: there are some.
    """
    if not stage.is_begun() and any(path.exists() for path in outputs(paths, log.event_types)):
        raise UserError(
            f"{paths.raw}: holds data that this command did not make; set CHALLENGE_DATA_PATH to another folder, or "
            "delete the parquets there"
        )


def content(files: Files) -> dict[str, str]:
    """What tells one content of files from another, by their paths."""
    return {str(file): fingerprint(file) for file in sorted({file for some in files.values() for file in some})}


# --- what is shown --------------------------------------------------------------------------------------------------


def understood(log: LogSchema, found: OwnLog) -> Table:
    """What became of each source, and of the items."""
    title = f"the log as understood, times in {log.zone}" if log.zone else "the log as understood"
    table = Table(title=title, title_justify="left")
    for column in ("events", "as", "from"):
        table.add_column(column)
    for column in ("rows", "clients", "about"):
        table.add_column(column, justify="right")
    for column in ("first", "last", "example"):
        table.add_column(column)
    for each in found.sources:
        table.add_row(*map(escape, _row(each)))
    table.add_section()
    table.add_row(*map(escape, _items_row(log, found)))
    return table


def _row(each: SourceFigures) -> list[str]:
    source, key = each.source, SUBJECT_KEYS[each.source.kind.subject]
    where = [f"{column}: {', '.join(accepted)}" for column, accepted in source.where.items()]
    origin = source.file + (f" ({each.files} files)" if each.files > 1 else "") + "".join(f"\n{one}" for one in where)
    rows = f"{each.rows:,}" + (f"\n{each.dropped:,} left out" if each.dropped else "")
    words = [str(value) for value in each.example if value is not None]
    times = [f"{time:%Y-%m-%d}\n{time:%H:%M:%S}" if time else "–" for time in (each.first, each.last)]
    about = f"{each.subjects:,} {key}{'s' if each.subjects != 1 else ''}"
    return [source.name, source.kind, origin, rows, f"{each.clients:,}", about, *times, "\n".join(words)]


def _items_row(log: LogSchema, found: OwnLog) -> list[str]:
    items, total = found.items, len(found.items.table)
    given = {
        CATEGORY: (f"{len(items.categories):,} different", f"given {NO_CATEGORY}"),
        PRICE: ("middle of what was paid" if items.by_amounts else "from the list", f"given bucket {MIDDLE}"),
        NAME: ("as codes", "left empty"),
    }
    lines = [log.items.file if log.items else "the events"]
    for column, (what, instead) in given.items():
        without = items.without[column]
        parts = [what] if without < total else []
        parts += [f"{without:,} without, {instead}"] if without else []
        lines.append(f"{column}: {'; '.join(parts)}")
    example = ""
    if total:
        first = items.table.row(0, named=True)
        example = "\n".join([str(found.example), f"category {first[CATEGORY]}, bucket {first[PRICE]}", first[NAME]])
    return ["items", "product_properties", "\n".join(lines), f"{total:,}", "", "", "", "", example]


def remarks(found: OwnLog, paths: DataPaths, targets_before: bool) -> Iterator[str]:
    """Lines below the table."""
    lacking = [kind for kind in EVENT_TYPES if all(each.source.kind != kind for each in found.sources)]
    if lacking:
        yield f"no source of {', '.join(lacking)}: blocks that need such events are left out"
    own = own_types(each.source.kind for each in found.sources)
    if own:
        words = (f"{name} (about {SUBJECT_KEYS[subject]}s)" for name, subject in own.items())
        yield f"event types of the log's own: {', '.join(words)}"
    for each in found.sources:
        if not each.rows:
            yield f"warning: {each.source.name}: no rows; is where: right?"
    for line in found.warnings:
        yield f"warning: {line}"
    if targets_before:
        yield (
            f"warning: {paths.relevant_clients} and {paths.target} were chosen for an earlier log; delete them to have "
            "clients and targets chosen anew"
        )


@command("scripts", "import_log")
def main(config: DictConfig) -> OwnLog:
    common, order = Common.of(config), parse(Order, config, ["source", "bad_rows"])
    log, text, paths = schema_in(config), parse(TextSettings, config, at="text"), common.paths
    files = all_files(log, Path(order.source))
    settings = ImportSettings(order.bad_rows == "drop", text, common.seed, now_in(log.zone), embedder)
    made_from = {"version": _VERSION, "seed": common.seed, "text": asdict(text), "bad_rows": order.bad_rows}
    made_from |= {"schema": resolved(config)["schema"]}

    def sources() -> dict[str, Any]:
        return {**made_from, "files": content(files)}

    stage = Stage("imported log", tuple(outputs(paths, log.event_types)), sources)
    targets_before = paths.relevant_clients.exists() or paths.active_clients.exists()
    with stage.once(common.overwrite):
        _refuse_to_replace(stage, paths, log)
        found = import_log(log, files, paths, settings, stage.begin)
    show(understood(log, found))
    for line in remarks(found, paths, targets_before):
        say(line)
    events = sum(each.rows for each in found.sources)
    closing_line(f"imported log · {events:,} events", paths.raw)
    return found


def embedder(name: str) -> Embed:
    """A language model by its name."""
    from LLM.embedder import open_embedder  # torch takes seconds to import

    return open_embedder(name)


def now_in(zone: str | None) -> datetime:
    """The time in the log's zone, as its events have it."""
    return datetime.now(ZoneInfo(zone) if zone else None).replace(tzinfo=None)


if __name__ == "__main__":
    main()
