"""A client's events as text, one line an event, and the parquet that holds the texts of all clients.

A line, the fields in the config's order and only those that the event has:

    buy 3 category 2023 price 57 sku 25671 name 41 233 7 ...
    visit 12 url 766
    search 40 query 81 77 146 ...

The number behind the event's word is its age: whole days from the event to the history's end, 0 on the last
day. An age says what the next weeks hang on, is short where it matters, and means the same in every history; a
date would do neither. Numbers stand as they are: they are ids, so nothing is gained by more words around them,
and each token costs. Codes follow each other in the order of their code books, always all 16.

Events stand as in `ubp.sequences.store`: oldest first, the newest last, because the last token of a causal model is
the one that has read everything, and what it has read lately it remembers best. What does not fit a model's
window is cut off on the left, at the old end (`LLM.tokens`).
"""

import json
import logging
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import polars as pl
from omegaconf import DictConfig

from ubp.cli.config import Common, parse
from ubp.cli.output import closing_line
from ubp.data import schema
from ubp.data.history import ChallengeData
from ubp.data.schema import EventType
from ubp.io.errors import UserError, require, require_positive
from ubp.io.files import atomic_write
from ubp.io.stage import Stage
from ubp.sequences.build import build_or_open
from ubp.sequences.layout import DAY
from ubp.sequences.store import Selection, Sequences

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
TEXTS_AT_ONCE: Final = 8192  # rows a row group: what a reader has to hold
_EVENTS_A_BLOCK = 4_000_000  # of the history, worked on at a time: some 0.5 GB
_NEWLINE = "\n"


@dataclass(frozen=True)
class TextSettings:
    """Which events a text is made of, and what a line says of one.

    Attributes:
        event_types: None for all five.
        newest: events a client at the most, the latest ones.
        distinct: of events of one type about one thing only the newest counts.
        fields: what a line says, in this order.
        labels: put the field's name before what is neither event type nor age.
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
        types = [event_type.value for event_type in EventType]
        for setting, names, known in (("event_types", self.event_types, types), ("fields", self.fields, FIELDS)):
            if unknown := [name for name in names or [] if name not in known]:
                raise UserError(f"text.{setting}: no {unknown[0]}; known: {', '.join(known)}")
            if names is not None and len(set(names)) < len(names):
                raise UserError(f"text.{setting}: {', '.join(names)} repeats one; name each once")


def make_texts(config: DictConfig) -> None:
    """The command: a history in, its clients' texts out.

    Raises:
        UserError: a fault in config or data, or no client has such events.
        AlreadyDone: the texts are there, from the same history and settings; see `ubp.io.stage.Stage.once`.
    """
    common, settings = Common.of(config), parse(TextSettings, config, at="text")
    data = common.data()
    path = common.paths.texts(common.submit) / f"{config.name}.parquet"
    lineage = {
        "name": config.name,
        "command": config.command,
        "text": asdict(settings),
        "fingerprint": data.fingerprint,
    }
    with Stage(config.name, (path,), lambda: lineage).once(common.overwrite, waited=data.require_unchanged):
        clients = write_texts(data, settings, path, lineage)
    closing_line(config.name, path, clients, 1)


def write_texts(data: ChallengeData, settings: TextSettings, path: Path, lineage: dict[str, Any]) -> int:
    """Write ``client_id`` Int64 and ``text`` String of the relevant clients with such events, ascending.

    Clients are worked on in blocks of so many events that memory does not grow with the history.

    Returns:
        How many clients there are.

    Raises:
        UserError: there are none.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".parts") as parts:
        clients = 0
        for number, texts in enumerate(_text_blocks(data, settings)):
            texts.write_parquet(Path(parts, f"{number:05d}.parquet"), compression="lz4")
            clients += texts.height
        if not clients:
            raise UserError(f"{data.folder}: no relevant client has such events; this text needs some")
        with atomic_write(path) as aside:
            metadata = {_LINEAGE: json.dumps(lineage)}
            pl.scan_parquet(parts).sink_parquet(aside, row_group_size=TEXTS_AT_ONCE, metadata=metadata)
    return clients


def _text_blocks(data: ChallengeData, settings: TextSettings) -> Iterator[pl.DataFrame]:
    sequences = build_or_open(data)
    end = int((data.as_of - sequences.start).total_seconds())
    event_types = None if settings.event_types is None else [EventType(name) for name in settings.event_types]
    clients = np.sort(data.relevant_clients)
    _, lengths = sequences.rows_of(clients)
    blocks = np.cumsum(lengths) // _EVENTS_A_BLOCK
    for block in np.split(clients, np.flatnonzero(np.diff(blocks)) + 1):
        chosen = sequences.select(event_types, clients=block)
        if settings.distinct:
            kinds = chosen.subject.astype(np.int64) * len(EventType) + chosen.event
            chosen = chosen.distinct(kinds, keep="last")
        yield texts_of(chosen.newest(settings.newest).at_least(1), settings, end)


def texts_of(chosen: Selection, settings: TextSettings, end: int) -> pl.DataFrame:
    """The texts of a selection's clients.

    Args:
        chosen: the events.
        settings: what a line says.
        end: the history's end, in seconds since the store's start.

    Returns:
        ``client_id`` Int64, ascending, and ``text`` String.
    """
    lines = pl.concat_str(
        [_field(chosen, name, settings.labels, end) for name in settings.fields], separator=" ", ignore_nulls=True
    )
    owners = pl.Series(schema.CLIENT_ID, np.repeat(chosen.clients, chosen.lengths))
    table = pl.select(owners, lines.alias(TEXT)).filter(pl.col(TEXT) != "")  # events without any of the fields
    return table.group_by(schema.CLIENT_ID, maintain_order=True).agg(pl.col(TEXT).str.join(_NEWLINE))


def _field(chosen: Selection, name: str, label: bool, end: int) -> pl.Expr:
    """What the lines say of one field: String, null where the event has none."""
    if name == EVENT:
        words = pl.Series([WORDS[event_type] for event_type in schema.EVENT_ORDER])
        return pl.lit(words.gather(pl.Series(chosen.event)))
    if name == AGE:
        return pl.lit(pl.Series((end - 1 - chosen.time) // DAY).cast(pl.String))
    subject, table = _tables(chosen.sequences)[name]
    references = chosen.references(subject)
    value = _spelled(table[references[references >= 0]], f"{name} " if label else "")
    places = np.where(references >= 0, np.cumsum(references >= 0) - 1, 0)
    there = pl.lit(pl.Series(references >= 0))
    return pl.when(there).then(pl.lit(value.gather(places)) if len(value) else None)


def _tables(sequences: Sequences) -> dict[str, tuple[str, npt.NDArray[Any]]]:
    """For each field what an event must be about to have it, and its value in each row of that thing's table."""
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
