"""Some events of some clients, chosen from a store: by day, client, type, number or key; then as tokens.

A selection never sees an event at or after its ``as_of``: what it gives equals what a store of the log cut there
would give, but for the numbers of the tables' rows.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt
import polars as pl

from ubp.data import schema
from ubp.data.history import Mask as EventMask
from ubp.data.schema import FIRST_TOKEN, EventType, Token
from ubp.sequences.arrays import Array, Int64, Mask, count_below, find, offsets_of, ranges
from ubp.sequences.layout import DAY, DAYS_A_WEEK
from ubp.sequences.store import Sequences
from ubp.sequences.vocabulary import Vocabulary

_BLOCK = 1 << 24  # rows that are worked on at a time where a column of the whole history goes in


def select(sequences: Sequences, as_of: datetime | None = None, clients: npt.ArrayLike | None = None) -> "Selection":
    """Events before a moment: each client's first so many, found by binary search.

    Costs time and memory by the clients wanted, not by their events: rows are listed when a column is read.

    Args:
        sequences: the store.
        as_of: only events before this moment, a whole second; None for all.
        clients: ids of these clients, in any order, known or not; None for all.

    Returns:
        Clients without such an event are left out.
    """
    ids, firsts, lengths = sequences.clients, sequences.offsets[:-1], sequences.lengths
    if clients is not None:
        ids = np.unique(np.asarray(clients, dtype=np.int64))
        places, known = find(sequences.clients, ids)
        ids, places = ids[known], places[known]
        firsts = sequences.offsets[places]
        lengths = sequences.offsets[places + 1] - firsts
    if as_of is not None and (end := sequences.seconds_until(as_of)) <= sequences.last:
        lengths = count_below(sequences.time, firsts, lengths, end)
    return Selection(sequences, ids, offsets_of(lengths), firsts).at_least(1)


@dataclass(frozen=True)
class Selection:
    """Some events of some clients, as flat columns and offsets; the store's order is kept.

    A selection holds no column: each access to one gathers it anew, so keep what is used again.

    Attributes:
        sequences: the store.
        clients: int64 [clients], ascending.
        offsets: int64 [clients + 1]; the events of ``clients[i]`` are ``offsets[i] : offsets[i + 1]`` of every
            column that this selection gives.
        firsts: int64 [clients], the place of each client's first event in ``picked``; the others follow on.
        picked: integers, rows of the store; None: all of them.
    """

    sequences: Sequences
    clients: Int64
    offsets: Int64
    firsts: Int64
    picked: Array | None = None

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

    @cached_property
    def rows(self) -> Array | slice:
        """The store's row of each event: integers [events], of four bytes where they suffice.

        A slice where the events of one client follow on those of the one before.
        """
        places = self._places()
        return places if self.picked is None else self.picked[places]

    def _places(self) -> Array | slice:
        """The place of each event in ``picked``: integers [events], or a slice."""
        there = self.lengths > 0
        firsts, starts = self.firsts[there], self.starts[there]
        if not len(firsts):
            return slice(0, 0)
        if (firsts - starts == firsts[0]).all():
            return slice(int(firsts[0]), int(firsts[0]) + len(self))
        return ranges(firsts, self.lengths[there], self._row_dtype)

    @property
    def _row_dtype(self) -> type[np.int32] | type[np.int64]:
        return np.int32 if len(self.sequences.time) < 2**31 else np.int64

    # Narrower selections --------------------------------------------------------------------------------------

    def of_clients(self, client_ids: npt.ArrayLike) -> "Selection":
        """Only these clients; ids that are not here are left out."""
        places, known = find(self.clients, np.unique(np.asarray(client_ids, dtype=np.int64)))
        places = places[known]
        return self._windows(places, self.starts[places], self.lengths[places])

    def of_types(self, event_types: Collection[EventType]) -> "Selection":
        """Only events of these types; clients stay, even without an event."""
        wanted = np.zeros(len(self.sequences.event_types), dtype=bool)
        wanted[[event_type.code for event_type in event_types]] = True
        return self.where(wanted[self.event])

    def at_least(self, events: int) -> "Selection":
        """Only clients with so many events."""
        keep = self.lengths >= events
        if keep.all():
            return self
        places = np.flatnonzero(keep)
        return self._windows(places, self.starts[places], self.lengths[places])

    def where(self, mask: Mask) -> "Selection":
        """Only events where the mask [events] is true; clients stay, even without an event."""
        kept = np.flatnonzero(mask)
        offsets = np.searchsorted(kept, self.offsets)
        return Selection(self.sequences, self.clients, offsets, offsets[:-1], self._rows_at(kept))

    def masked(self, mask: EventMask) -> "Selection":
        """Only events that a mask keeps, the same as `ubp.data.history.ChallengeData.masked`; clients stay."""
        kept = [self._kept(mask, rows, number * _BLOCK) for number, rows in enumerate(self._row_blocks())]
        return self.where(np.concatenate([np.empty(0, bool), *kept]))

    def _kept(self, mask: EventMask, rows: Array | slice, first: int) -> Mask:
        """Which events of a block the mask keeps: bool [events]; ``first`` is the place of the first of them."""
        event, subject = self.sequences.event[rows], self.sequences.subject[rows]
        owners = np.searchsorted(self.offsets, np.arange(first, first + len(event)), side="right") - 1
        time = np.datetime64(self.sequences.start, "us") + self.sequences.time[rows].astype("timedelta64[s]")
        frame = pl.DataFrame({schema.CLIENT_ID: self.clients[owners], schema.TIMESTAMP: time.astype("datetime64[us]")})
        kept = np.empty(len(event), bool)
        for event_type in self.sequences.event_types:
            own = np.flatnonzero(event == event_type.code)
            part = frame[own]
            if event_type.subject != schema.QUERY:  # a query's codes are not drawn by
                _, values = _values(self.sequences, event_type.subject)
                part = part.with_columns(pl.Series(event_type.subject, values[subject[own]]))
            kept[own] = part.select(keeps=mask.keeps(event_type))["keeps"].to_numpy()
        return kept

    def newest(self, events: int) -> "Selection":
        """Only each client's last so many events."""
        lengths = np.minimum(self.lengths, events)
        return self._windows(slice(None), self.offsets[1:] - lengths, lengths)

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

    def _windows(self, places: Int64 | slice, begin: Int64, lengths: Int64) -> "Selection":
        """Of the clients at ``places`` [n], each the events from ``begin`` [n] on, so many as ``lengths`` [n] says."""
        firsts = self.firsts[places] + (begin - self.starts[places])
        chosen = Selection(self.sequences, self.clients[places], offsets_of(lengths), firsts, self.picked)
        if self.picked is None or len(chosen) == len(self):
            return chosen
        # Rows that are left out take no memory.
        return replace(chosen, firsts=chosen.starts, picked=self.picked[chosen._places()])

    def _rows_at(self, places: Int64) -> Array:
        """The store's rows of some of these events."""
        rows = self.rows
        found: Array = places + rows.start if isinstance(rows, slice) else rows[places]
        return found.astype(self._row_dtype, copy=False)

    # Columns --------------------------------------------------------------------------------------------------

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
        """Days since the log's first day: int32 [events]."""
        return self.time // DAY

    @property
    def week(self) -> npt.NDArray[np.int32]:
        """Weeks since the log's first day, on and on across New Year: int32 [events]."""
        return self.day // DAYS_A_WEEK

    def ages(self, as_of: datetime) -> npt.NDArray[np.int32]:
        """Whole days from each event to a moment after it, 0 in the last 24 hours: int32 [events]."""
        return (self.sequences.seconds_until(as_of) - 1 - self.time) // DAY

    def references(self, subject: str) -> npt.NDArray[np.int32]:
        """Rows of the table of ``sku``, ``url`` or ``query``, −1 where an event is about another thing.

        Returns:
            int32 [events].
        """
        return np.where(self.sequences.about(subject)[self.event], self.subject, np.int32(-1))

    # Tokens ---------------------------------------------------------------------------------------------------

    def event_tokens(self) -> npt.NDArray[np.uint8]:
        """Event types as tokens: uint8 [events], below `ubp.sequences.vocabulary.event_tokens`."""
        return self.event + np.uint8(FIRST_TOKEN)

    def vocabulary(self, column: str, top: int | None = None, min_count: int = 1) -> Vocabulary:
        """The most frequent values of a column over these events.

        Args:
            column: ``sku``, ``category``, ``price`` or ``url``.
            top: how many at most; None for all.
            min_count: leave out what occurs less often.
        """
        subject, values = _values(self.sequences, column)
        about = self.sequences.about(subject)
        of_rows = np.zeros(len(values), dtype=np.int64)
        for rows in self._row_blocks():
            mask = about[self.sequences.event[rows]]
            of_rows += np.bincount(self.sequences.subject[rows][mask], minlength=len(values))
        distinct, places = np.unique(values, return_inverse=True)
        counts = np.zeros(len(distinct), dtype=np.int64)
        np.add.at(counts, places, of_rows)
        return Vocabulary.of_counts(distinct, counts, top, min_count)

    def tokens(self, column: str, vocabulary: Vocabulary) -> Array:
        """A column as tokens; ``Token.NONE`` where an event has no such value, ``Token.OTHER`` for a rare one.

        Args:
            column: ``sku``, ``category``, ``price`` or ``url``.
            vocabulary: of that column, from this selection or another.

        Returns:
            uint16 [events] where the vocabulary's size allows it, else int32.
        """
        subject, values = _values(self.sequences, column)
        about = self.sequences.about(subject)
        token_of_row = vocabulary.encode(values)
        tokens = np.full(len(self), Token.NONE, dtype=token_of_row.dtype)
        for position, rows in enumerate(self._row_blocks()):
            mask = about[self.sequences.event[rows]]
            block = tokens[position * _BLOCK : (position + 1) * _BLOCK]
            block[mask] = token_of_row[self.sequences.subject[rows][mask]]
        return tokens

    def _row_blocks(self) -> Iterator[Array | slice]:
        """The store's rows in blocks of `_BLOCK` events: what one step holds in memory."""
        rows = self.rows
        for begin in range(0, len(self), _BLOCK):
            end = min(begin + _BLOCK, len(self))
            yield slice(rows.start + begin, rows.start + end) if isinstance(rows, slice) else rows[begin:end]


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
