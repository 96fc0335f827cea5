"""Histories as sequences of moments, gathered from the store a batch at a time.

A token is a moment: the events of one client that lie within some seconds of each other, a basket, or with no such
seconds a single event. Nothing is kept of an event between two batches: they are read from the memory-mapped store,
merged and put side by side by array operations.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from itertools import pairwise
from typing import Final, Self

import numpy as np
import numpy.typing as npt
import torch

from ubp.data import schema
from ubp.data.history import ChallengeData
from ubp.data.schema import EventType
from ubp.data.snapshots import Snapshot
from ubp.io.errors import require, require_positive
from ubp.sequences.arrays import Array, Int64, Mask, find, offsets_of, ranges
from ubp.sequences.build import events_of
from ubp.sequences.layout import DAY
from ubp.sequences.selection import Selection
from ubp.training.content import CODE, IDS, PRICE, Contents
from ubp.training.model import LENGTHS, Batch, Rows
from ubp.training.snapshot_source import LABELS, SCALARS, SnapshotSource

# Keys of a batch. Of each event, [rows, events]:
EVENT, SUBJECT, TOKEN = "event", "subject", "token"
# of each token, [rows, tokens]:
AGE, GAP, WAIT, HOUR, WEEKDAY, COUNTS = "age", "gap", "wait", "hour", "weekday", "counts"
IS_TARGET, ITEM_TARGETS, URL_TARGETS = "is_target", "item_targets", "url_targets"
# of each day that is asked about, [rows, days]:
DAY_AGE, DAY_TOKENS = "day_age", "day_tokens"
# and of each negative, [rows, negatives a row].
ITEM, URL = "item", "url"
LOG_SHARE: Final = "log_share"
POPULARITY: Final = "popularity"  # of each event, [rows, events], and of each negative

HOUR_SECONDS: Final = 3600
KIND_BITS: Final = 40  # a subject's code: its kind above so many bits of its row in the table of the kind
KINDS: Final = (schema.SKU, schema.URL, schema.QUERY)
_BLOCK: Final = 1 << 22  # events whose times are read at a time


@dataclass
class SequenceSettings:
    """What is read of a history.

    Attributes:
        merge: seconds; a client's events within them are one token. They divide a day, so that no token lies across
            two. 0: each event is a token.
        tokens: the newest of a history that are read, at the most; in training so many from anywhere in it.
        events: the same of events, which bounds what a batch takes.
        targets: items of a token that the state before it is asked for, drawn from all of them; and urls.
        days: of a client that a step asks about, drawn from all; they are much alike.
    """

    merge: int
    tokens: int
    events: int
    targets: int
    days: int

    def __post_init__(self) -> None:
        """Refuse numbers that make no sense.

        Raises:
            UserError: a number out of its range.
        """
        require_positive(self, "sequences", "tokens", "events", "targets", "days")
        fits = self.merge == 0 or (self.merge > 0 and DAY % self.merge == 0)
        require(fits, "sequences.merge", self.merge, "0, or a divisor of 86400")


@dataclass(frozen=True)
class Span:
    """Clients' histories up to a moment, and the days in them that something is asked about.

    Attributes:
        chosen: the events before the end.
        end: seconds since the store's start.
        since: the same; only what happens from there on is to be predicted event by event.
        days: int64 [days], the same; none after the end, and each a number of whole days before it.
        labels: int64 [clients, days], rows of what came in the windows; -1 where a client has none.
    """

    chosen: Selection
    end: int
    since: int
    days: Int64
    labels: npt.NDArray[np.int64]

    @classmethod
    def asked_at_its_end(cls, history: ChallengeData, clients: npt.ArrayLike) -> Self:
        """The histories of some clients, to be encoded as of their end."""
        chosen = events_of(history, clients=clients)
        end = chosen.sequences.seconds_until(history.as_of)
        return cls(chosen, end, end, np.array([end]), np.zeros((len(chosen.clients), 1), np.int64))

    @classmethod
    def of(cls, history: ChallengeData, taken: Mapping[int, Snapshot], starts: Rows, since: datetime | None) -> Self:
        """The histories of the relevant clients, asked about on the days of some snapshots.

        Args:
            history: what is read.
            taken: snapshots of it by their places among all.
            starts: int64 [all snapshots + 1], the first row of each in the source of labels.
            since: see the attributes; None: from the beginning.
        """
        chosen = events_of(history, clients=history.relevant_clients)
        seconds = chosen.sequences.seconds_until
        labels = np.full((len(chosen.clients), len(taken)), -1, np.int64)
        for column, (place, snapshot) in enumerate(taken.items()):
            rows, known = find(snapshot.clients, chosen.clients)
            labels[known, column] = rows[known] + starts[place]
        days = np.array([seconds(snapshot.day) for snapshot in taken.values()], np.int64)
        return cls(chosen, seconds(history.as_of), seconds(since) if since else 0, days, labels)

    def __len__(self) -> int:
        return len(self.chosen.clients)


@dataclass(frozen=True)
class Catalogue:
    """The contents of all that a store's events are about, by kind, in the order of the store's tables."""

    kinds: tuple[Contents, ...]

    @classmethod
    def of(cls, chosen: Selection, rows: int) -> Self:
        """Of a store; ``rows`` are those of the encoder's table."""
        store = chosen.sequences
        items = Contents.of_items(
            np.asarray(store.skus), np.asarray(store.categories), np.asarray(store.prices), store.names, rows
        )
        urls = Contents.of_urls(np.asarray(store.urls), rows)
        return cls((items, urls, Contents.of_queries(store.queries)))

    def take(self, kinds: Int64, places: Int64) -> Contents:
        """Contents of any kinds, in the order asked for: int64 [n] and int64 [n]."""
        found = Contents.empty(len(kinds))
        for kind, contents in enumerate(self.kinds):
            asked = np.flatnonzero(kinds == kind)
            part = contents.take(places[asked])
            found.ids[asked], found.price[asked], found.codes[asked] = part.ids, part.price, part.codes
        return found


@dataclass(frozen=True)
class Sampler:
    """Draws negatives of one kind by how often events were about them.

    Attributes:
        places: int64 [values], rows of the store's table.
        shares: float64 [values], how likely each is drawn; they add up to 1.
        popularity: float32 [rows of the store's table], log of the share of the events that are about each, of one
            more of them than there are.
    """

    places: Int64
    shares: npt.NDArray[np.float64]
    popularity: npt.NDArray[np.float32]

    @classmethod
    def of(cls, chosen: Selection, column: str, power: float) -> Self:
        """By the number of a selection's events to a power: of ``sku`` or ``url``."""
        vocabulary = chosen.vocabulary(column)
        table = {schema.SKU: chosen.sequences.skus, schema.URL: chosen.sequences.urls}[column]
        places, _ = find(np.asarray(table), vocabulary.values)
        weights = vocabulary.counts.astype(np.float64) ** power
        counts = np.ones(len(table))
        counts[places] += vocabulary.counts
        return cls(places, weights / max(weights.sum(), 1.0), np.log(counts / counts.sum()).astype(np.float32))

    @cached_property
    def _limits(self) -> npt.NDArray[np.float64]:
        return np.cumsum(self.shares)

    def draw(self, shape: tuple[int, ...], generator: np.random.Generator) -> tuple[Int64, npt.NDArray[np.float32]]:
        """Places int64 and the logarithms of their shares float32, both of a shape; there must be a value."""
        drawn = np.minimum(np.searchsorted(self._limits, generator.random(shape)), len(self.places) - 1)
        return self.places[drawn], np.log(self.shares[drawn]).astype(np.float32)


@dataclass(frozen=True)
class Types:
    """What the events of each type are, by its code.

    Attributes:
        kind: int64 [types], the place of what they are about among `KINDS`.
        items: bool [types], whether their items are predicted: all about items but removals from the cart.
        urls: bool [types], the same of urls.
    """

    kind: Int64
    items: Mask
    urls: Mask

    @classmethod
    def of(cls, event_types: Sequence[EventType]) -> Self:
        """Of event types in the order of their codes."""
        kind = np.array([KINDS.index(event_type.subject) for event_type in event_types], np.int64)
        removed = np.array([event_type == EventType.REMOVE_FROM_CART for event_type in event_types])
        return cls(kind, (kind == KINDS.index(schema.SKU)) & ~removed, kind == KINDS.index(schema.URL))

    def __len__(self) -> int:
        return len(self.kind)


@dataclass(frozen=True)
class EventSource:
    """A `ubp.training.model.ClientSource` of tokens: a row for each client of each span.

    A batch, of rows of one span, holds

    - of each event ``event`` (the type's code), ``subject`` (kind and row of the store's table as one number, -1 at
      padding), ``token`` (its place in the row) and its contents (`Contents`);
    - of each token ``age`` (days before the end), ``gap`` and ``wait`` (hours since the token before and until the
      next, or, at the last one, until nothing more is known), ``hour``, ``weekday``, ``counts`` of each event type;
    - where there is something to learn, ``is_target`` (the next token is to be predicted), ``item_targets`` and
      ``url_targets`` (places among the row's events, -1 for none), ``popularity`` of what each event is about, and
      negatives with the logarithms of their shares and their popularity;
    - of each day ``day_age`` and ``day_tokens``, how many tokens lie before it: 0 where nothing is asked; and
      labels and scalars as `ubp.training.snapshot_source.SnapshotSource` has them.

    Attributes:
        spans: of one store.
        catalogue: of the same store.
        settings: what is read.
        asked: the labels; None where nothing is learned.
        samplers: of negatives by `ITEM` and `URL`; those that have no values are left out.
        negatives: how many a row.
    """

    spans: tuple[Span, ...]
    catalogue: Catalogue
    settings: SequenceSettings
    asked: SnapshotSource | None = None
    samplers: Mapping[str, Sampler] | None = None
    negatives: int = 0

    @cached_property
    def starts(self) -> Rows:
        """Each span's first row, and the end of the last: int64 [spans + 1]."""
        return offsets_of(np.array([len(span) for span in self.spans], np.int64))

    @cached_property
    def clients(self) -> Rows:
        """Of each row: int64 [rows]."""
        clients: Rows = np.concatenate([span.chosen.clients for span in self.spans])
        return clients

    @property
    def lengths(self) -> Rows:
        """By which rows share a batch: the tokens that are read of each to be encoded; int64 [rows].

        To learn from all are alike. A batch of clients of one length draws the answers towards these, the next one
        towards others. So a batch is drawn from all, in the order of their tokens: micro-batches have little padding.
        """
        return self.tokens if self.asked is None else np.ones(len(self.tokens), np.int64)

    @cached_property
    def tokens(self) -> Rows:
        """That are read of each row, about: int64 [rows]; if not all events are, what is left is not counted anew."""
        counts: Rows = np.concatenate([tokens_of(span, self.settings.merge) for span in self.spans])
        return np.minimum(counts, self.settings.tokens)

    def rows_of(self, span: int) -> Rows:
        """The rows of a span: int64."""
        return np.arange(self.starts[span], self.starts[span + 1])

    def batch(self, rows: Rows, generator: np.random.Generator | None = None) -> Batch:
        """See `EventSource`.

        Raises:
            ValueError: rows of several spans.
        """
        numbers = np.unique(np.searchsorted(self.starts, rows, side="right") - 1)
        if len(numbers) != 1:
            raise ValueError("a batch has rows of one span")
        if generator is not None:
            rows = rows[np.argsort(self.tokens[rows], kind="stable")]
        span, inside = self.spans[numbers[0]], rows - self.starts[numbers[0]]
        moments = Moments.read(span, inside, self.settings, generator)
        found = moments.tokens() | self._contents(moments) | self._days(span, inside, moments, generator)
        if self.asked is not None:
            drawing = generator or np.random.default_rng(0)
            found |= moments.targets(span.since, self.settings.targets, generator) | self._negatives(len(rows), drawing)
            found[POPULARITY] = moments.padded(self._popularity(moments))
        return {name: torch.from_numpy(values) for name, values in found.items()}

    def _contents(self, moments: "Moments") -> dict[str, Array]:
        kinds = moments.types.kind[moments.event]
        contents = self.catalogue.take(kinds, moments.subject)
        return {
            EVENT: moments.padded(moments.event.astype(np.int64)),
            SUBJECT: moments.padded(kinds << KIND_BITS | moments.subject, empty=-1),
            TOKEN: moments.padded(moments.place),
            IDS: moments.padded(contents.ids),
            PRICE: moments.padded(contents.price),
            CODE: moments.padded(contents.codes),
        }

    def _days(
        self, span: Span, inside: Rows, moments: "Moments", generator: np.random.Generator | None
    ) -> dict[str, Array]:
        labels, before = span.labels[inside], moments.tokens_before(span.days)
        tokens = np.where((labels >= 0) & (moments.until[:, None] >= span.days), before, 0)
        ages = np.broadcast_to((span.end - span.days) / DAY, tokens.shape).astype(np.float32)
        if generator is not None and tokens.shape[1] > self.settings.days:
            # Days that nothing is asked about come last.
            order = np.argsort(generator.random(tokens.shape) + (tokens == 0), axis=1)[:, : self.settings.days]
            labels, tokens, ages = (np.take_along_axis(values, order, axis=1) for values in (labels, tokens, ages))
        found: dict[str, Array] = {DAY_AGE: ages, DAY_TOKENS: tokens}
        if self.asked is not None:
            real = tokens > 0
            batch = self.asked.batch(labels[real])
            for name in (LABELS, *SCALARS):
                values = batch[name].numpy()
                found[name] = np.zeros((*tokens.shape, *values.shape[1:]), values.dtype)
                found[name][real] = values
        return found

    def _popularity(self, moments: "Moments") -> npt.NDArray[np.float32]:
        """Of what each event is about, 0 where there is no sampler of its kind."""
        kinds, found = moments.types.kind[moments.event], np.zeros(len(moments.event), np.float32)
        for kind, name in enumerate((ITEM, URL)):
            if self.samplers is not None and name in self.samplers:
                own = kinds == kind
                found[own] = self.samplers[name].popularity[moments.subject[own]]
        return found

    def _negatives(self, rows: int, generator: np.random.Generator) -> dict[str, Array]:
        found: dict[str, Array] = {}
        for kind, name in enumerate((ITEM, URL)):
            if self.samplers is None or name not in self.samplers:
                continue
            places, log_shares = self.samplers[name].draw((rows, self.negatives), generator)
            contents = self.catalogue.take(np.full(places.size, kind), places.ravel())
            found |= {
                f"{name}:{SUBJECT}": kind << KIND_BITS | places,
                f"{name}:{LOG_SHARE}": log_shares,
                f"{name}:{POPULARITY}": self.samplers[name].popularity[places],
                f"{name}:{IDS}": contents.ids.reshape(*places.shape, -1),
                f"{name}:{PRICE}": contents.price.reshape(places.shape),
                f"{name}:{CODE}": contents.codes.reshape(*places.shape, -1),
            }
        return found


@dataclass(frozen=True)
class Moments:
    """The events of some rows and the tokens that they are merged into, flat: one row after the other.

    Attributes:
        types: of the store's events.
        end: of the span, seconds since the store's start.
        weekday: of the store's first day, 0 for Monday.
        row: int64 [events], which row an event belongs to, ascending.
        time: int64 [events], seconds since the store's start.
        event: uint8 [events], codes of types.
        subject: int64 [events], rows of the store's tables.
        token: int64 [events], the number of its token, over all rows.
        counts: int64 [rows], tokens of each.
        until: int64 [rows], up to when all is known of a row: its next event that is not read, or the span's end.
    """

    types: Types
    end: int
    weekday: int
    row: Int64
    time: Int64
    event: npt.NDArray[np.uint8]
    subject: Int64
    token: Int64
    counts: Int64
    until: Int64

    @classmethod
    def read(
        cls, span: Span, inside: Rows, settings: SequenceSettings, generator: np.random.Generator | None
    ) -> "Moments":
        """The newest events and tokens of some clients of a span; with a generator those of a random stretch."""
        chosen, store = span.chosen, span.chosen.sequences
        whole = chosen.lengths[inside]
        lengths = np.minimum(whole, settings.events)
        begin = whole - lengths if generator is None else generator.integers(0, whole - lengths, endpoint=True)
        events = _rows_of_store(chosen, ranges(chosen.firsts[inside] + begin, lengths))
        until = np.full(len(inside), span.end, np.int64)
        cut = np.flatnonzero(begin + lengths < whole)
        until[cut] = store.time[_rows_of_store(chosen, (chosen.firsts[inside] + begin + lengths)[cut])]
        row = np.repeat(np.arange(len(inside)), lengths)
        time = store.time[events].astype(np.int64)
        token, counts = merged(row, time, span.end, settings.merge, len(inside))
        read = cls(
            Types.of(store.event_types),
            span.end,
            store.start.weekday(),
            row,
            time,
            store.event[events],
            store.subject[events].astype(np.int64),
            token,
            counts,
            until,
        )
        return read.cut_to(settings.tokens, generator)

    @cached_property
    def starts(self) -> Int64:
        """The first token of each row, and the end of the last: int64 [rows + 1]."""
        return offsets_of(self.counts)

    @cached_property
    def firsts(self) -> Int64:
        """The first event of each token: int64 [tokens]."""
        return np.flatnonzero(np.diff(self.token, prepend=-1))

    @cached_property
    def lasts(self) -> Int64:
        """The last event of each token: int64 [tokens]."""
        return np.append(self.firsts[1:], len(self.token)) - 1

    @cached_property
    def place(self) -> Int64:
        """Of each event's token in its row: int64 [events]."""
        return self.token - self.starts[self.row]

    def cut_to(self, tokens: int, generator: np.random.Generator | None) -> "Moments":
        """At most so many tokens of each row: the newest, or with a generator those of a random stretch."""
        over = self.counts - tokens
        if not (over > 0).any():
            return self
        first = np.maximum(over, 0)
        if generator is not None:
            first = generator.integers(0, first, endpoint=True)
        kept = np.minimum(self.counts, tokens)
        inside = (self.place >= first[self.row]) & (self.place < (first + kept)[self.row])
        until, next_tokens = self.until.copy(), self.starts[:-1] + first + kept
        cut = np.flatnonzero(next_tokens < self.starts[1:])
        until[cut] = self.time[self.firsts[next_tokens[cut]]]
        row = self.row[inside]
        token = self.place[inside] - first[row] + offsets_of(kept)[row]
        columns = (row, self.time[inside], self.event[inside], self.subject[inside], token)
        return Moments(self.types, self.end, self.weekday, *columns, kept, until)

    def padded(self, values: Array, empty: int = 0) -> Array:
        """What stands for events, [events, ...], as [rows, events of the longest, ...]."""
        lengths = np.bincount(self.row, minlength=len(self.counts))
        found = np.full((len(lengths), int(lengths.max(initial=1)), *values.shape[1:]), empty, values.dtype)
        found[self.row, self.in_row] = values
        return found

    @cached_property
    def in_row(self) -> Int64:
        """Each event's place among those of its row: int64 [events]."""
        lengths = np.bincount(self.row, minlength=len(self.counts))
        return np.arange(len(self.row)) - offsets_of(lengths)[self.row]

    def _side_by_side(self, values: Array, empty: int = 0) -> Array:
        """What stands for tokens, [tokens, ...], as [rows, tokens of the longest, ...]."""
        shape = (len(self.counts), int(self.counts.max(initial=1)), *values.shape[1:])
        found = np.full(shape, empty, values.dtype)
        row = self.row[self.firsts]
        found[row, np.arange(len(row)) - self.starts[row]] = values
        return found

    def tokens(self) -> dict[str, Array]:
        """What a batch holds of each token, and the number of tokens of each row."""
        begin, last = self.time[self.firsts], self.time[self.lasts]
        row = self.row[self.firsts]
        own = row[1:] == row[:-1]  # whose next token is of the same row
        between = np.where(own, begin[1:] - last[:-1], 0)
        wait = np.append(between, 0)
        ends = self.starts[1:] - 1
        wait[ends] = self.until - last[ends]
        types = len(self.types)
        counts = np.bincount(self.token * types + self.event, minlength=len(begin) * types).reshape(-1, types)
        columns: dict[str, Array] = {
            AGE: ((self.end - last) / DAY).astype(np.float32),
            GAP: (np.append(0, between) / HOUR_SECONDS).astype(np.float32),
            WAIT: (wait / HOUR_SECONDS).astype(np.float32),
            HOUR: last % DAY // HOUR_SECONDS,
            WEEKDAY: (last // DAY + self.weekday) % 7,
            COUNTS: counts.astype(np.float32),
        }
        return {LENGTHS: self.counts, **{name: self._side_by_side(values) for name, values in columns.items()}}

    def tokens_before(self, days: Int64) -> Int64:
        """How many tokens of each row lie before each day: int64 [rows, days]."""
        row, begin = self.row[self.firsts], self.time[self.firsts]
        found = [np.bincount(row[begin < day], minlength=len(self.counts)) for day in days]
        return np.stack(found, axis=1).astype(np.int64)

    def targets(self, since: int, count: int, generator: np.random.Generator | None) -> dict[str, Array]:
        """What is to be predicted at each token: see `EventSource`."""
        row, begin = self.row[self.firsts], self.time[self.firsts]
        is_target = np.append((row[1:] == row[:-1]) & (begin[1:] >= since), [False] * min(len(row), 1))
        items, visits = self.types.items[self.event], self.types.urls[self.event]
        return {
            IS_TARGET: self._side_by_side(is_target),
            ITEM_TARGETS: self._side_by_side(self._of_next_token(items, is_target, count, generator), empty=-1),
            URL_TARGETS: self._side_by_side(self._of_next_token(visits, is_target, count, generator), empty=-1),
        }

    def _of_next_token(self, wanted: Mask, is_target: Mask, count: int, generator: np.random.Generator | None) -> Int64:
        """Places in the row of some of the next token's wanted events, -1 for none: int64 [tokens, count].

        Drawn, the same one perhaps twice: so their mean is in expectation that over all of them. Without a generator
        they are spread evenly.
        """
        events = np.flatnonzero(wanted)
        limits = np.searchsorted(self.token[events], np.arange(len(is_target) + 1))
        many, first = np.diff(limits)[1:], limits[1:-1]  # of the token after each but the last
        shape = (len(many), count)
        drawn = (
            np.broadcast_to((np.arange(count) + 0.5) / count, shape) if generator is None else generator.random(shape)
        )
        places = np.minimum((drawn * many[:, None]).astype(np.int64), np.maximum(many - 1, 0)[:, None])
        found = np.full((len(is_target), count), -1, np.int64)
        there = np.flatnonzero(is_target[:-1] & (many > 0))
        found[there] = self.in_row[events[first[there, None] + places[there]]]
        return found


def merged(row: Int64, time: Int64, end: int, seconds: int, rows: int) -> tuple[Int64, Int64]:
    """Events as tokens: those of one row and of the same stretch of so many seconds, counted back from the end.

    So a token lies before or after each moment that is whole stretches before the end, and never across it.

    Args:
        row: int64 [events], ascending.
        time: int64 [events], ascending within a row, before the end.
        end: where the last stretch ends.
        seconds: of a stretch; 0: each event is a token.
        rows: how many there are.

    Returns:
        The number of each event's token, ascending: int64 [events]; and the tokens of each row: int64 [rows].
    """
    if seconds == 0:
        return np.arange(len(row)), np.bincount(row, minlength=rows)
    stretch = (end - 1 - time) // seconds
    first = np.ones(len(row), bool)
    first[1:] = (row[1:] != row[:-1]) | (stretch[1:] != stretch[:-1])
    return np.cumsum(first) - 1, np.bincount(row[first], minlength=rows)


def tokens_of(span: Span, seconds: int) -> Int64:
    """How many tokens each client of a span has: int64 [clients]; some clients' events in memory at a time."""
    chosen = span.chosen
    if seconds == 0:
        return chosen.lengths
    found = np.empty(len(span), np.int64)
    limits = np.searchsorted(chosen.offsets, np.arange(0, len(chosen) + _BLOCK, _BLOCK)).clip(max=len(span))
    for begin, end in pairwise(limits):
        lengths = chosen.lengths[begin:end]
        times = chosen.sequences.time[_rows_of_store(chosen, ranges(chosen.firsts[begin:end], lengths))]
        row = np.repeat(np.arange(end - begin), lengths)
        found[begin:end] = merged(row, times.astype(np.int64), span.end, seconds, int(end - begin))[1]
    return found


def _rows_of_store(chosen: Selection, places: Int64) -> Array:
    return places if chosen.picked is None else chosen.picked[places]
