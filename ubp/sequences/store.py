"""Every client's events as flat columns and offsets: built once per history, memory-mapped, never looped over.

The store holds all clients of the history. The events of client ``clients[i]`` are the rows
``offsets[i] : offsets[i + 1]`` of three columns:

- ``time`` int32: seconds since the midnight before the history's first event;
- ``event`` uint8: the event type's `ubp.data.schema.EventType.code`;
- ``subject`` int32: a row of the table of skus, of urls or of queries, whichever the event type is about.

An event is about one thing only, so one reference says it; nine bytes an event, 1.5 GB for the challenge.
`Selection.references` gives the reference to one of the tables with −1 elsewhere. The tables are sorted, so
that references compare as what they stand for does: skus and urls by id, queries by their codes.

Order: by client id, then time, then `ubp.data.schema.EVENT_ORDER`, then subject. Events equal in all of these
cannot be told apart, so the store does not depend on the order of rows in the files. Times are compared in
whole seconds, as they are published.

From the store to a batch:

    sequences = build_or_open(data)
    chosen = sequences.select(schema.ITEM_EVENTS, clients=data.relevant_clients).newest(128)
    vocabulary = chosen.vocabulary(schema.SKU, top=5_000)
    columns = {"event": chosen.event_tokens(), "sku": chosen.tokens(schema.SKU, vocabulary)}
    for batch in length_buckets(chosen.lengths, batch_size=256, seed=1, epoch=0):
        gather(columns, chosen.starts[batch], chosen.lengths[batch], start=True, end=True)
"""

import json
import logging
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import polars as pl

from ubp.data import schema
from ubp.data.schema import FIRST_TOKEN, EventType, Token
from ubp.sequences.arrays import Array, Int64, Mask, find, offsets_of, ranges
from ubp.sequences.layout import DAY, DAYS_A_WEEK, NOTE
from ubp.sequences.vocabulary import Vocabulary

logger = logging.getLogger(__name__)
_BLOCK = 1 << 24  # rows that are worked on at a time where a column of the whole history goes in


@dataclass(frozen=True)
class Sequences:
    """The events of all clients of one history; see the module for the layout.

    Attributes:
        start: the midnight before the first event.
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
        note = json.loads((folder / NOTE).read_text())
        arrays = {file.stem: np.load(file, mmap_mode="r") for file in sorted(folder.glob("*.npy"))}
        return cls(start=datetime.fromisoformat(note["start"]), **arrays)

    @cached_property
    def lengths(self) -> Int64:
        """Events of each client: int64 [clients]."""
        return np.diff(self.offsets)

    @cached_property
    def days(self) -> int:
        """Days from the first event's to the last one's, both counted."""
        return int(self.time.max()) // DAY + 1

    @property
    def weeks(self) -> int:
        """Weeks of seven days from the first event's day on, the last one perhaps not full."""
        return (self.days - 1) // DAYS_A_WEEK + 1

    @property
    def all(self) -> "Selection":
        """Every event of every client."""
        return Selection(self, self.clients, self.offsets)

    def rows_of(self, client_ids: npt.ArrayLike) -> tuple[Int64, Int64]:
        """Where the events of some clients lie.

        Args:
            client_ids: [n], in any order.

        Returns:
            The first row of each client and how many follow on, int64 [n]; none for a client that is not here.
        """
        ids = np.asarray(client_ids, dtype=np.int64)
        places, known = find(self.clients, ids)
        return self.offsets[places], np.where(known, self.offsets[places + 1] - self.offsets[places], 0)

    def select(
        self,
        event_types: Collection[EventType] | None = None,
        clients: npt.ArrayLike | None = None,
        min_events: int = 1,
    ) -> "Selection":
        """Some events of some clients.

        Args:
            event_types: of these types; None for all.
            clients: of these clients, in any order, known or not; None for all.
            min_events: clients with fewer such events are left out.
        """
        selection = self.all
        if clients is not None:
            selection = selection.of_clients(clients)
        if event_types is not None:
            wanted = np.zeros(len(EventType), dtype=bool)
            wanted[[event_type.code for event_type in event_types]] = True
            selection = selection.where(wanted[selection.event])
        return selection.at_least(min_events)


@dataclass(frozen=True)
class Selection:
    """Some events of some clients, as flat columns and offsets again; the store's order is kept.

    A selection holds row numbers only: each access to a column gathers it anew, so keep what is used again.

    Attributes:
        sequences: the store.
        clients: int64 [clients], ascending.
        offsets: int64 [clients + 1]; the events of ``clients[i]`` are ``offsets[i] : offsets[i + 1]`` of every
            column that this selection gives.
        rows: integers [events], the store's row of each event; a slice where they follow on.
    """

    sequences: Sequences
    clients: Int64
    offsets: Int64
    rows: Array | slice = field(default_factory=lambda: slice(None))

    def __len__(self) -> int:
        """Events, not clients."""
        return int(self.offsets[-1])

    @property
    def starts(self) -> Int64:
        """The first event of each client: int64 [clients]."""
        return self.offsets[:-1]

    @cached_property
    def lengths(self) -> Int64:
        """Events of each client: int64 [clients]."""
        return np.diff(self.offsets)

    def of_clients(self, client_ids: npt.ArrayLike) -> "Selection":
        """Only these clients; ids that are not here are passed over."""
        places, known = find(self.clients, np.asarray(client_ids, dtype=np.int64))
        keep = np.zeros(len(self.clients), dtype=bool)
        keep[places[known]] = True
        return self._only(keep)

    def at_least(self, events: int) -> "Selection":
        """Only clients with so many events."""
        return self._only(self.lengths >= events)

    def where(self, mask: Mask) -> "Selection":
        """Only events where the mask [events] is true; clients stay, even without an event."""
        kept = np.flatnonzero(mask)
        return Selection(self.sequences, self.clients, np.searchsorted(kept, self.offsets), self._rows_at(kept))

    def newest(self, events: int) -> "Selection":
        """Only each client's last so many events."""
        lengths = np.minimum(self.lengths, events)
        kept = ranges(self.offsets[1:] - lengths, lengths)
        return Selection(self.sequences, self.clients, offsets_of(lengths), self._rows_at(kept))

    def distinct(self, keys: Array, keep: Literal["first", "last"] = "first") -> "Selection":
        """One event for each client and key: its first one, or its last.

        The distinct skus of each client in order of first occurrence: ``items.distinct(items.subject)`` of a
        selection ``items`` of item events.

        Args:
            keys: integers [events] from 0 to 2^31 − 1.
            keep: which one stays.

        Raises:
            ValueError: a key is out of range.
        """
        if len(keys) and not (keys.min() >= 0 and keys.max() < 2**31):
            raise ValueError("keys of distinct must be from 0 to 2^31 - 1; use references or tokens")
        owners = np.repeat(np.arange(len(self.clients), dtype=np.int64), self.lengths)
        pairs = pl.Series(owners << 31 | keys)
        mask = pairs.is_first_distinct() if keep == "first" else pairs.is_last_distinct()
        return self.where(mask.to_numpy())

    @property
    def time(self) -> npt.NDArray[np.int32]:
        """Seconds since the store's start: int32 [events]."""
        return self.sequences.time[self.rows]

    @property
    def event(self) -> npt.NDArray[np.uint8]:
        """Codes of the event types: uint8 [events]."""
        return self.sequences.event[self.rows]

    @property
    def subject(self) -> npt.NDArray[np.int32]:
        """What each event is about, by reference into the table of its type: int32 [events]."""
        return self.sequences.subject[self.rows]

    @property
    def day(self) -> npt.NDArray[np.int32]:
        """Days since the history's first day: int32 [events]."""
        return self.time // DAY

    @property
    def week(self) -> npt.NDArray[np.int32]:
        """Weeks since the history's first day, on and on across New Year: int32 [events]."""
        return self.day // DAYS_A_WEEK

    def ages(self, as_of: datetime) -> npt.NDArray[np.int32]:
        """Whole days from each event to a moment after it, 0 in the last 24 hours: int32 [events]."""
        end = int((as_of - self.sequences.start).total_seconds())
        return (end - 1 - self.time) // DAY

    def references(self, subject: str) -> npt.NDArray[np.int32]:
        """Rows of the table of ``sku``, ``url`` or ``query``, −1 where an event is about another thing.

        Returns:
            int32 [events].
        """
        return np.where(_about(subject)[self.event], self.subject, np.int32(-1))

    def event_tokens(self) -> npt.NDArray[np.uint8]:
        """Event types as tokens: uint8 [events], below `EVENT_TOKENS`."""
        return self.event + np.uint8(FIRST_TOKEN)

    def day_tokens(self) -> npt.NDArray[np.uint16]:
        """Days as tokens: uint16 [events], below ``FIRST_TOKEN + sequences.days``."""
        return (self.day + FIRST_TOKEN).astype(np.uint16)

    def week_tokens(self) -> npt.NDArray[np.uint16]:
        """Weeks as tokens: uint16 [events], below ``FIRST_TOKEN + sequences.weeks``."""
        return (self.week + FIRST_TOKEN).astype(np.uint16)

    def vocabulary(self, column: str, top: int | None = None, min_count: int = 1) -> "Vocabulary":
        """The most frequent values of a column over these events.

        Args:
            column: ``sku``, ``category``, ``price`` or ``url``.
            top: how many at most; None for all.
            min_count: leave out what occurs less often.
        """
        subject, values = _values(self.sequences, column)
        about = _about(subject)
        of_rows = np.zeros(len(values), dtype=np.int64)
        for block in self._blocks():
            of_rows += np.bincount(block.subject[about[block.event]], minlength=len(values))
        distinct, places = np.unique(values, return_inverse=True)
        counts = np.zeros(len(distinct), dtype=np.int64)
        np.add.at(counts, places, of_rows)
        return Vocabulary.of_counts(distinct, counts, top, min_count)

    def tokens(self, column: str, vocabulary: "Vocabulary") -> Array:
        """A column as tokens; ``Token.NONE`` where an event has no such value, ``Token.OTHER`` for a rare one.

        Args:
            column: ``sku``, ``category``, ``price`` or ``url``.
            vocabulary: of that column, from this selection or another.

        Returns:
            uint16 [events] where the vocabulary's size allows it, else int32.
        """
        subject, values = _values(self.sequences, column)
        about = _about(subject)
        token_of_row = vocabulary.encode(values)
        tokens = np.full(len(self), Token.NONE, dtype=token_of_row.dtype)
        for position, block in enumerate(self._blocks()):
            mask = about[block.event]
            tokens[position * _BLOCK : (position + 1) * _BLOCK][mask] = token_of_row[block.subject[mask]]
        return tokens

    def _blocks(self) -> Iterator["Selection"]:
        """The events in blocks of `_BLOCK`, without their clients: what one step holds in memory."""
        for begin in range(0, len(self), _BLOCK):
            end = min(begin + _BLOCK, len(self))
            rows = slice(begin, end) if isinstance(self.rows, slice) else self.rows[begin:end]
            yield Selection(self.sequences, self.clients[:0], np.array([end - begin]), rows)

    def _only(self, keep: Mask) -> "Selection":
        """The clients where ``keep`` [clients] is true."""
        if keep.all():
            return self
        lengths = self.lengths
        # Clients without events take no row with them.
        rows = self._rows_at(ranges(self.starts[keep], lengths[keep])) if lengths[~keep].any() else self.rows
        return Selection(self.sequences, self.clients[keep], offsets_of(lengths[keep]), rows)

    def _rows_at(self, places: Int64) -> Array | slice:
        """The store's rows of some of these events, in four bytes each where they suffice."""
        if isinstance(self.rows, slice):  # of `Sequences.all`, or of clients beside some without events
            return places.astype(np.int32 if len(self.sequences.time) < 2**31 else np.int64)
        return self.rows[places]


def _about(subject: str) -> Mask:
    """By the code of an event type, whether its events are about the subject."""
    return np.array([event_type.subject == subject for event_type in schema.EVENT_ORDER])


def _values(sequences: Sequences, column: str) -> tuple[str, Int64]:
    """The subject that has a column, and the column's value for each row of the subject's table."""
    known = {
        schema.SKU: (schema.SKU, sequences.skus),
        schema.CATEGORY: (schema.SKU, sequences.categories),
        schema.PRICE: (schema.SKU, sequences.prices),
        schema.URL: (schema.URL, sequences.urls),
    }
    if column not in known:
        raise ValueError(f"{column}: no column with a vocabulary; known: {', '.join(known)}")
    return known[column]
