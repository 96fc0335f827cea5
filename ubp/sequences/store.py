"""An open sequence store: the events of all clients as flat, memory-mapped columns.

`ubp.sequences.layout` says how it lies on disk, `ubp.sequences.build` makes it, `ubp.sequences.selection` takes
events from it. From the store to a batch:

    chosen = events_of(history, history.item_types, clients).newest(128)
    vocabulary = chosen.vocabulary(schema.SKU, top=5_000)
    columns = {"event": chosen.event_tokens(), "sku": chosen.tokens(schema.SKU, vocabulary)}
    for batch in length_buckets(chosen.lengths, batch_size=256, seed=1, epoch=0):
        gather(columns, chosen.starts[batch], chosen.lengths[batch], start=True, end=True)
"""

from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ubp.data.event_types import by_code, with_own
from ubp.data.schema import EventType
from ubp.io.errors import UserError
from ubp.sequences.arrays import Int64
from ubp.sequences.layout import read_note


@dataclass(frozen=True)
class Sequences:
    """All events of all clients in the event files, those after a history's ``as_of`` too.

    Models read a `ubp.sequences.selection.Selection` of it (`ubp.sequences.build.events_of`), which ends at
    ``as_of``; only its tables and ``start`` are read directly.

    Attributes:
        start: the midnight before the first event.
        last: the last event's ``time``.
        event_types: in the order of their codes.
        clients: int64 [clients], ascending.
        offsets: int64 [clients + 1].
        time: int32 [events], seconds since ``start``.
        event: uint8 [events], codes of event types.
        subject: int32 [events], rows of the tables below.
        skus: int64 [skus], ascending: all that have properties.
        categories: int64 [skus].
        prices: int64 [skus], price buckets.
        names: uint8 [skus, 16].
        urls: int64 [urls], ascending.
        queries: uint8 [queries, 16], in the order of their codes.
    """

    start: datetime
    last: int
    event_types: tuple[EventType, ...]
    clients: Int64
    offsets: Int64
    time: npt.NDArray[np.int32]
    event: npt.NDArray[np.uint8]
    subject: npt.NDArray[np.int32]
    skus: Int64
    categories: Int64
    prices: Int64
    names: npt.NDArray[np.uint8]
    urls: Int64
    queries: npt.NDArray[np.uint8]

    @classmethod
    def open(cls, folder: Path) -> "Sequences":
        """A store that was built before; its columns stay on disk until they are read."""
        note = read_note(folder)
        arrays = {file.stem: np.load(file, mmap_mode="r") for file in sorted(folder.glob("*.npy"))}
        event_types = tuple(by_code(with_own(note.event_types)))
        return cls(start=datetime.fromisoformat(note.start), last=note.last, event_types=event_types, **arrays)

    def about(self, subject: str) -> npt.NDArray[np.bool_]:
        """By the code of an event type, whether its events are about ``sku``, ``url`` or ``query``: bool [types]."""
        return np.array([event_type.subject == subject for event_type in self.event_types])

    @cached_property
    def lengths(self) -> Int64:
        """Events of each client: int64 [clients]."""
        return np.diff(self.offsets)

    def seconds_until(self, moment: datetime) -> int:
        """Whole seconds from ``start`` to a moment: events before it have a smaller ``time``.

        Raises:
            UserError: they do not fit into ``time``'s dtype.
        """
        seconds = int((moment - self.start).total_seconds())
        if seconds > np.iinfo(np.int32).max:
            raise UserError(f"as_of={moment}: more than 68 years after the log's first day, {self.start:%Y-%m-%d}")
        return seconds
