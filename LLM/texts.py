"""A client's events as text, one line per event, and the parquet that holds the texts of all clients.

A line holds the fields in the config's order, and only those that the event has:

    buy 3 category 2023 price 57 sku 25671 name 41 233 7 ...
    visit 12 url 766
    search 40 query 81 77 146 ...

The number after the event's word is its age: whole days from the event to the history's ``as_of``, 0 in the last
24 hours. Recency matters most for the next weeks. An age is short for recent events and means the same in every
history; a date is neither. Numbers are not put into sentences: they are ids, and each token costs time. All 16 codes
are written, in the order of their code books.

The order of events is that of `ubp.sequences.layout`: the oldest first, the newest last. The last token of a causal
model is the only one that depends on the whole text. What does not fit into a model's window is cut off on the left,
at the old end (`LLM.tokens`).
"""

import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import polars as pl
from omegaconf import DictConfig

from ubp.blocks.embeddings import read_lineage
from ubp.cli.config import Common, parse, value_at
from ubp.cli.output import closing_line
from ubp.data import schema
from ubp.data.event_types import chosen as chosen_types
from ubp.data.history import ChallengeData
from ubp.data.lacking import no_events
from ubp.data.paths import DataPaths
from ubp.data.schema import EventType
from ubp.io.errors import UserError, require, require_positive
from ubp.io.files import atomic_write, scratch_folder
from ubp.io.stage import Stage
from ubp.sequences.arrays import Int64
from ubp.sequences.build import events_of
from ubp.sequences.selection import Selection
from ubp.sequences.store import Sequences

logger = logging.getLogger(__name__)

TEXT: Final = "text"
AGE: Final = "age"
EVENT: Final = "event"
WORDS: Final = {
    EventType.PRODUCT_BUY: "buy",
    EventType.ADD_TO_CART: "add",
    EventType.REMOVE_FROM_CART: "remove",
    EventType.PAGE_VISIT: "visit",
    EventType.SEARCH_QUERY: "search",
}
FIELDS: Final = (EVENT, AGE, schema.CATEGORY, schema.PRICE, schema.SKU, schema.NAME, schema.URL, schema.QUERY)

_LINEAGE = "lineage"  # key in the parquet's metadata, as that of a block
TEXTS_AT_ONCE: Final = 8192  # rows per row group: what a reader has to hold
_EVENTS_PER_CHUNK = 4_000_000  # of the history, processed at a time: some 0.5 GB
_NEWLINE = "\n"


@dataclass(frozen=True)
class TextSettings:
    """Which events a text is made of, and which of their fields a line holds.

    Attributes:
        event_types: None for all.
        newest: events per client at most, the latest ones.
        distinct: of events of one type about the same subject only the newest is kept.
        fields: of a line, in this order.
        labels: write the field's name before its value, except for event type and age.
    """

    event_types: list[str] | None
    newest: int
    distinct: bool
    fields: list[str]
    labels: bool

    def __post_init__(self) -> None:
        """Refuse settings that make no sense.

        Raises:
            UserError: no events or fields, or an unknown one.
        """
        require_positive(self, "text", "newest")
        require(len(self.fields) >= 1, "text.fields", self.fields, "at least one field")
        if unknown := [name for name in self.fields if name not in FIELDS]:
            raise UserError(f"text.fields: no {unknown[0]}; known: {', '.join(FIELDS)}")
        for setting, names in (("event_types", self.event_types), ("fields", self.fields)):
            if names is not None and len(set(names)) < len(names):
                raise UserError(f"text.{setting}: {', '.join(names)} repeats one; name each once")


def make_texts(config: DictConfig) -> Path:
    """The body of both commands: write the texts of a history's relevant clients.

    Returns:
        The parquet of the texts.

    Raises:
        UserError: a fault in config or data, or no client has such events.
        AlreadyDone: the texts are there, from the same history and settings; see `ubp.io.stage.Stage.once`.
    """
    common, settings = Common.of(config), parse(TextSettings, config, at="text")
    data = common.data()
    path = common.paths.texts(common.submit) / f"{config.name}.parquet"
    lineage = {
        "name": config.name,
        "command": value_at(config, "command", str),
        "text": asdict(settings),
        "fingerprint": data.fingerprint,
    }
    stage = Stage(config.name, (path,), lambda: lineage)
    with stage.once(common.overwrite, waited=data.require_unchanged), data.unchanged():
        clients = write_texts(data, settings, path, lineage)
    closing_line(config.name, path, clients, 1)
    return path


def write_texts(data: ChallengeData, settings: TextSettings, path: Path, lineage: dict[str, Any]) -> int:
    """Write the texts of the relevant clients; see `save_texts`.

    Returns:
        How many clients have a text.

    Raises:
        NoUsableEvents: none has.
    """
    clients = save_texts(data, settings, data.relevant_clients, path, lineage)
    if not clients:
        raise no_events(data, settings.event_types or ())
    return clients


def save_texts(
    history: ChallengeData, settings: TextSettings, clients: Int64, path: Path, lineage: Mapping[str, Any]
) -> int:
    """Write ``client_id`` Int64, ascending, and ``text`` String of the clients that have a text.

    Clients are processed in chunks of limited numbers of events, so that memory does not grow with the history.

    Args:
        history: events before its ``as_of`` are read.
        settings: of the texts.
        clients: int64, in any order, known or not.
        path: the parquet; it is not written if no client has a text.
        lineage: for the parquet's metadata.

    Returns:
        How many clients have a text.
    """
    with scratch_folder(path.parent, f"{path.name}.parts") as parts:
        written = 0
        for number, texts in enumerate(_chunks(history, settings, clients)):
            texts.write_parquet(parts / f"{number:05d}.parquet", compression="lz4")
            written += texts.height
        if written:
            with atomic_write(path) as aside:
                metadata = {_LINEAGE: json.dumps(dict(lineage))}
                pl.scan_parquet(parts, glob=False).sink_parquet(aside, row_group_size=TEXTS_AT_ONCE, metadata=metadata)
    return written


def _chunks(history: ChallengeData, settings: TextSettings, clients: Int64) -> Iterator[pl.DataFrame]:
    event_types = chosen_types("text.event_types", settings.event_types or (), history.event_types)
    known = events_of(history, clients=clients)
    chunks = np.cumsum(known.lengths) // _EVENTS_PER_CHUNK
    for chunk in np.split(known.clients, np.flatnonzero(np.diff(chunks)) + 1):
        chosen = known.of_clients(chunk)
        if event_types:
            chosen = chosen.of_types(event_types)
        if settings.distinct:
            kinds = chosen.subject.astype(np.int64) * len(history.event_types) + chosen.event
            chosen = chosen.distinct(kinds, keep="last")
        yield texts_of(chosen.newest(settings.newest).at_least(1), settings, history.as_of)


def texts_of(chosen: Selection, settings: TextSettings, as_of: datetime) -> pl.DataFrame:
    """The texts of a selection's clients.

    Args:
        chosen: the events.
        settings: the fields of a line.
        as_of: ages are counted from this moment.

    Returns:
        ``client_id`` Int64, ascending, and ``text`` String.
    """
    lines = pl.concat_str(
        [_field(chosen, name, settings.labels, as_of) for name in settings.fields], separator=" ", ignore_nulls=True
    )
    owners = pl.Series(schema.CLIENT_ID, np.repeat(chosen.clients, chosen.lengths))
    table = pl.select(owners, lines.alias(TEXT)).filter(pl.col(TEXT) != "")  # events without any of the fields
    return table.group_by(schema.CLIENT_ID, maintain_order=True).agg(pl.col(TEXT).str.join(_NEWLINE))


def _field(chosen: Selection, name: str, label: bool, as_of: datetime) -> pl.Expr:
    """One field of all lines: String, null where the event has none."""
    if name == EVENT:
        words = pl.Series([WORDS.get(event_type, event_type.value) for event_type in chosen.sequences.event_types])
        return pl.lit(words.gather(pl.Series(chosen.event)))
    if name == AGE:
        return pl.lit(pl.Series(chosen.ages(as_of)).cast(pl.String))
    subject, table = _tables(chosen.sequences)[name]
    references = chosen.references(subject)
    value = _spelled(table[references[references >= 0]], f"{name} " if label else "")
    places = np.where(references >= 0, np.cumsum(references >= 0) - 1, 0)
    there = pl.lit(pl.Series(references >= 0))
    return pl.when(there).then(pl.lit(value.gather(places)) if len(value) else None)


def _tables(sequences: Sequences) -> dict[str, tuple[str, npt.NDArray[Any]]]:
    """For each field the subject of the events that have it, and its value in each row of the subject's table."""
    return {
        schema.CATEGORY: (schema.SKU, sequences.categories),
        schema.PRICE: (schema.SKU, sequences.prices),
        schema.SKU: (schema.SKU, sequences.skus),
        schema.NAME: (schema.SKU, sequences.names),
        schema.URL: (schema.URL, sequences.urls),
        schema.QUERY: (schema.QUERY, sequences.queries),
    }


def _spelled(values: npt.NDArray[Any], before: str) -> pl.Series:
    """Values [n] or codes [n, 16] as text."""
    columns = [values] if values.ndim == 1 else list(values.T)
    numbers = [pl.lit(pl.Series(np.ascontiguousarray(column)).cast(pl.String)) for column in columns]
    return pl.select(pl.lit(before) + pl.concat_str(numbers, separator=" ")).to_series()


def find_texts(paths: DataPaths, submit: bool, file: str) -> Path:
    """The parquet of the texts.

    Raises:
        UserError: it is missing; the line names the commands that write texts.
    """
    path = paths.texts(submit) / file
    if not path.is_file():
        words = f"submit={submit}"
        raise UserError(
            f"{path}: file missing; make search.parquet with: python LLM/preprocessing_search.py {words}, "
            f"all_interactions_64.parquet with: python LLM/convert_to_text.py {words}"
        )
    return path


def require_same_history(texts: Path, history: ChallengeData, as_of: str | None) -> dict[str, Any]:
    """Refuse texts of another history.

    Args:
        texts: the parquet.
        history: the texts must be made from it.
        as_of: the setting of the command, for the line that says how to make the texts again.

    Returns:
        The texts' lineage.

    Raises:
        UserError: they are of another history.
    """
    lineage = read_lineage(texts)
    if lineage.get("fingerprint") != history.fingerprint:
        words = [lineage.get("command", "the command that wrote it"), f"submit={history.submit}"]
        words += [f"as_of={as_of}"] if as_of else []
        again = " ".join(words)
        raise UserError(
            f"{texts}: made from another history than {history.folder} as asked for; make it again: {again}"
        )
    return lineage
