"""How the sequence store lies on disk.

A store is a folder of ``.npy`` files and a note, built once for the event files of a history and memory-mapped. It
holds every event of every client: neither the day (``as_of``) nor the clients wanted change it, so both are
selections (`ubp.sequences.selection`). The events of client ``clients[i]`` are the rows
``offsets[i] : offsets[i + 1]`` of three columns:

- ``time`` int32: seconds since the midnight before the first event;
- ``event`` uint8: the event type's `ubp.data.schema.EventType.code`;
- ``subject`` int32: a row of the table of skus, of urls or of queries, whichever the event type is about.

An event is about one thing only, so one reference says it; nine bytes per event, 1.5 GB for the challenge. The
tables are sorted, so that references compare as what they stand for does: skus and urls by id, queries by their
codes. The table of skus has columns: ``skus``, ``categories``, ``prices``, ``names``.

Order: by client id, then time, then the event type's code, then subject. Events equal in all of these
cannot be told apart, so the store does not depend on the order of rows in the files. Times are compared in
whole seconds, as they are published. Each client's times ascend, so a client's events before a moment are its
first so many rows.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path

import numpy as np

from ubp.data import schema
from ubp.data.event_types import own_types
from ubp.data.schema import EventType

DAY = 86_400  # seconds
DAYS_A_WEEK = 7

VERSION = 2  # of the files' layout; a store of another one is built again
COLUMNS = {"time": np.int32, "event": np.uint8, "subject": np.int32}
TABLE_OF = {schema.SKU: "skus", schema.URL: "urls", schema.QUERY: "queries"}
NOTE = "store.json"


@dataclass(frozen=True)
class Note:
    """What is noted of a store.

    Attributes:
        start: the midnight before the first event, ISO 8601.
        last: the last event's ``time``.
        version: of the layout.
        event_types: the log's own, see `ubp.data.event_types.with_own`.
    """

    start: str
    last: int
    version: int
    event_types: dict[str, str] = field(default_factory=dict)


def write_note(folder: Path, start: datetime, last: int, event_types: Iterable[EventType]) -> None:
    """Note that the store in ``folder`` is complete; written last."""
    note = Note(start.isoformat(), last, VERSION, own_types(event_types))
    (folder / NOTE).write_text(json.dumps(asdict(note)))


def read_note(folder: Path) -> Note:
    """The note of a store that is built."""
    return Note(**json.loads((folder / NOTE).read_text()))
