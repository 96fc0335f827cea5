"""Every client's events as flat columns and offsets: built once per history, memory-mapped, never looped over.

The store holds all clients of the history. The events of client ``clients[i]`` are the rows
``offsets[i] : offsets[i + 1]`` of three columns:

- ``time`` int32: seconds since the midnight before the history's first event;
- ``event`` uint8: the event type's `ubp.schema.EventType.code`;
- ``subject`` int32: a row of the table of skus, of urls or of queries, whichever the event type is about.

An event is about one thing only, so one reference says it; nine bytes an event, 1.5 GB for the challenge.
`Selection.references` gives the reference to one of the tables with −1 elsewhere. The tables are sorted, so
that references compare as what they stand for does: skus and urls by id, queries by their codes.

Order: by client id, then time, then `ubp.schema.EVENT_ORDER`, then subject. Events equal in all of these
cannot be told apart, so the store does not depend on the order of rows in the files. Times are compared in
whole seconds, as they are published.

From the store to a batch:

    sequences = Sequences.build_or_open(data)
    chosen = sequences.select(schema.ITEM_EVENTS, clients=data.relevant_clients).newest(128)
    vocabulary = chosen.vocabulary(schema.SKU, top=5_000)
    columns = {"event": chosen.event_tokens(), "sku": chosen.tokens(schema.SKU, vocabulary)}
    for batch in length_buckets(chosen.lengths, batch_size=256, seed=1, epoch=0):
        gather(columns, chosen.starts[batch], chosen.lengths[batch], start=True, end=True)
"""

import json
import logging
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import polars as pl

from ubp import schema
from ubp.data import ChallengeData, collect
from ubp.errors import UserError
from ubp.files import locked, written_aside
from ubp.schema import FIRST_TOKEN, EventType, Token

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

Int64: TypeAlias = npt.NDArray[np.int64]
Mask: TypeAlias = npt.NDArray[np.bool_]
Array: TypeAlias = npt.NDArray[Any]

DAY = 86_400  # seconds
DAYS_A_WEEK = 7

_VERSION = 1  # of the files' layout; another one makes the store again
_NOTE = "store.json"
_COLUMNS = {"time": np.int32, "event": np.uint8, "subject": np.int32}
_TABLE_OF = {schema.SKU: "skus", schema.URL: "urls", schema.QUERY: "queries"}

# Sorted at once, 17 M rows took 1.5 GB and 2 s a million (two cores); in parts of this size, 0.6 GB and 0.5 s.
_ROWS_A_PART = 2_000_000
_MOST_PARTS = 128  # each is an open file while the events are dealt out
_SAMPLE = 200_000  # rows a file that the parts' limits are drawn from
_PART = "part"
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
    def build_or_open(cls, data: ChallengeData) -> "Sequences":
        """The sequences of a history, from the cache or built now.

        Processes that ask at the same time wait for the one that builds.

        Raises:
            UserError: the history is longer than 68 years, or its files changed meanwhile.
        """
        folder = data.paths.sequences(data.fingerprint)
        with locked(folder.with_name(f"{folder.name}.lock"), f"the sequence store of {data.folder}"):
            if not _built(folder):
                _remove_abandoned(folder)
                with written_aside(folder) as aside:
                    _build(data, aside)
                    data.require_unchanged()  # or the store would mix two histories, under the first one's name
        return cls.open(folder)

    @classmethod
    def open(cls, folder: Path) -> "Sequences":
        """A store that was built before; its columns stay on disk until they are read."""
        note = json.loads((folder / _NOTE).read_text())
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
        places, known = _find(self.clients, ids)
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
        places, known = _find(self.clients, np.asarray(client_ids, dtype=np.int64))
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
        kept = _ranges(self.offsets[1:] - lengths, lengths)
        return Selection(self.sequences, self.clients, _offsets(lengths), self._rows_at(kept))

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
        """The events in pieces of `_BLOCK`, without their clients: what one step holds in memory."""
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
        rows = self._rows_at(_ranges(self.starts[keep], lengths[keep])) if lengths[~keep].any() else self.rows
        return Selection(self.sequences, self.clients[keep], _offsets(lengths[keep]), rows)

    def _rows_at(self, places: Int64) -> Array | slice:
        """The store's rows of some of these events, in four bytes each where they suffice."""
        if isinstance(self.rows, slice):  # of `Sequences.all`, or of clients beside some without events
            return places.astype(np.int32 if len(self.sequences.time) < 2**31 else np.int64)
        return self.rows[places]


EVENT_TOKENS = FIRST_TOKEN + len(EventType)


@dataclass(frozen=True)
class Vocabulary:
    """Values and their tokens: ``values[i]`` has the token ``FIRST_TOKEN + i``, so none has a special one.

    Attributes:
        values: int64 [values], the most frequent first; of equally frequent ones, the smallest.
        counts: int64 [values], how often each occurred.
    """

    values: Int64
    counts: Int64

    @classmethod
    def of_counts(cls, values: Int64, counts: Int64, top: int | None = None, min_count: int = 1) -> "Vocabulary":
        """The most frequent values.

        Args:
            values: int64 [n], each once.
            counts: int64 [n]; a value that never occurred gets no token.
            top: how many at most; None for all.
            min_count: leave out what occurs less often.
        """
        often = np.flatnonzero(counts >= max(min_count, 1))
        order = often[np.lexsort((values[often], -counts[often]))][:top]
        return cls(values[order], counts[order])

    @property
    def size(self) -> int:
        """One more than the largest token: the rows of an embedding table."""
        return FIRST_TOKEN + len(self.values)

    @property
    def dtype(self) -> type[np.uint16] | type[np.int32]:
        """The narrowest of the two dtypes that hold every token."""
        return np.uint16 if self.size <= 2**16 else np.int32

    def encode(self, values: npt.ArrayLike) -> Array:
        """Tokens of values, ``Token.OTHER`` for one that is not here: uint16 or int32, of the same shape."""
        asked = np.asarray(values, dtype=np.int64)
        if not len(self.values):
            return np.full(asked.shape, Token.OTHER, dtype=self.dtype)
        order = np.argsort(self.values)
        places, known = _find(self.values[order], asked)
        return np.where(known, order[places] + FIRST_TOKEN, Token.OTHER).astype(self.dtype)

    def decode(self, tokens: npt.ArrayLike) -> Int64:
        """Values of tokens: int64, of the same shape.

        Raises:
            ValueError: a token stands for no value.
        """
        places = np.asarray(tokens, dtype=np.int64) - FIRST_TOKEN
        if places.size and not (places.min() >= 0 and places.max() < len(self.values)):
            raise ValueError(f"only tokens from {FIRST_TOKEN} to {self.size - 1} stand for a value")
        return self.values[places]


@dataclass(frozen=True)
class Batch:
    """Sequences side by side, filled up to the longest.

    Attributes:
        columns: by name; int64 [batch, time] of tokens, ``Token.PADDING`` after the end; float32 [batch, time]
            of numbers, 0 after the end; a column with more dimensions keeps them behind these two.
        lengths: int64 [batch], start and end tokens counted.
    """

    columns: dict[str, Array]
    lengths: Int64

    @property
    def mask(self) -> Mask:
        """True where there is something, false after the end: bool [batch, time]."""
        time = max((column.shape[1] for column in self.columns.values()), default=0)
        return np.arange(time) < self.lengths[:, None]

    def tensors(self) -> tuple[dict[str, "torch.Tensor"], "torch.Tensor"]:
        """Columns and lengths as tensors that share this batch's memory."""
        import torch

        return {name: torch.from_numpy(column) for name, column in self.columns.items()}, torch.from_numpy(self.lengths)


def gather(
    columns: Mapping[str, Array],
    starts: Int64,
    lengths: Int64,
    *,
    start: bool = False,
    end: bool = False,
    pad_to: int = 0,
) -> Batch:
    """A batch out of flat columns, by array operations alone; the columns stay as they are.

    Args:
        columns: by name, [events, ...]; integers are tokens, floats are numbers.
        starts: int64 [batch], each sequence's first event in the columns.
        lengths: int64 [batch], how many events it has; may be 0.
        start: put ``Token.START`` (number: 0) before each sequence.
        end: put ``Token.END`` (number: 0) behind it.
        pad_to: the least length of the time axis.
    """
    events = _ranges(starts, lengths)
    full = lengths + int(start) + int(end)
    time = max(int(full.max(initial=0)), pad_to)
    firsts = np.arange(len(starts), dtype=np.int64) * time
    places = _ranges(firsts + int(start), lengths)
    filled = {}
    for name, column in columns.items():
        tokens = not np.issubdtype(column.dtype, np.floating)
        flat = np.zeros((len(starts) * time, *column.shape[1:]), dtype=np.int64 if tokens else np.float32)
        flat[places] = column[events]
        if start and tokens:
            flat[firsts] = Token.START
        if end and tokens:
            flat[firsts + full - 1] = Token.END
        filled[name] = flat.reshape(len(starts), time, *column.shape[1:])
    return Batch(filled, full)


def length_buckets(
    lengths: Int64,
    batch_size: int,
    *,
    seed: int = 0,
    epoch: int = 0,
    shuffle: bool = True,
    rank: int = 0,
    world: int = 1,
    pool: int = 64,
) -> list[Int64]:
    """One epoch's batches of clients of similar length: over all ranks each client exactly once.

    The batches' sizes differ by at most one, and every rank gets the same number of batches, so that none
    waits for another at the epoch's end; in each step the ranks' batches are neighbours in length. (With fewer
    clients than ranks the last ranks get none.)

    Args:
        lengths: [clients].
        batch_size: the most clients a batch; one more where so few clients do not go round the ranks else.
        seed: of the order; with ``epoch`` it alone decides it.
        epoch: each gives another order.
        shuffle: False for one fixed order, the longest clients first: what does not fit fails at once.
        rank: whose batches.
        world: how many ranks there are.
        pool: lengths are sorted within so many batches of randomly drawn clients.

    Returns:
        Places in ``lengths``, int64 [clients of the batch] each.
    """
    clients = len(lengths)
    batches = min(-(-clients // batch_size) + world - 1, clients)
    batches -= batches % world if batches >= world else 0
    limits = np.arange(batches + 1) * clients // max(batches, 1)
    steps = np.arange(-(-batches // world))
    random = np.random.default_rng([seed, epoch])
    order = random.permutation(clients) if shuffle else np.arange(clients)
    # Pools of about the same size, each of whole steps.
    pools = -(-batches // pool) if shuffle else 1
    pool_of_batch = np.repeat(steps * pools // max(len(steps), 1), world)[:batches]
    pool_of_client = np.repeat(pool_of_batch, np.diff(limits))
    order = order[np.lexsort((-np.asarray(lengths)[order], pool_of_client))]
    if shuffle:
        random.shuffle(steps)
    mine = steps * world + rank
    return [order[limits[batch] : limits[batch + 1]] for batch in mine[mine < batches]]


def _find(ascending: Int64, asked: Int64) -> tuple[Int64, Mask]:
    """For each id its place and whether it is there; place 0 where it is not."""
    if not len(ascending):
        return np.zeros(asked.shape, dtype=np.int64), np.zeros(asked.shape, dtype=bool)
    places = np.minimum(np.searchsorted(ascending, asked), len(ascending) - 1)
    known = ascending[places] == asked
    return np.where(known, places, 0), known


def _offsets(lengths: Int64) -> Int64:
    return np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths, dtype=np.int64)])


def _ranges(starts: Int64, lengths: Int64) -> Int64:
    """The numbers from each start on, as many as its length says, one range after the other."""
    offsets = _offsets(lengths)
    ranges = np.repeat(starts - offsets[:-1], lengths)
    ranges += np.arange(offsets[-1])
    return ranges


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


# Building ---------------------------------------------------------------------------------------------------


def _built(folder: Path) -> bool:
    note = folder / _NOTE
    return note.exists() and json.loads(note.read_text())["version"] == _VERSION


def _remove_abandoned(folder: Path) -> None:
    """What killed builds left beside the store, gigabytes each; with the lock held, nobody is at work on it."""
    for left in folder.parent.glob(f".*.{folder.name}"):
        shutil.rmtree(left)


def _build(data: ChallengeData, folder: Path) -> None:
    """Write the store: subjects to references, events dealt out by client, each part sorted and appended.

    Needs 20 bytes an event on disk besides the store until it is done.
    """
    if data.as_of - data.start > timedelta(seconds=2**31 - 1):
        raise UserError(f"{data.folder}: events from {data.start} to {data.as_of}; mend the timestamps")
    logger.info("%s: putting the events in order (once for this history)", data.folder)
    folder.mkdir()
    parts = folder / "parts"
    limits = _part_limits(data)
    _deal_out(data, schema.ITEM_EVENTS, _write_items(data, folder), limits, parts)
    for event_type in (EventType.PAGE_VISIT, EventType.SEARCH_QUERY):
        _deal_out(data, [event_type], _write_subjects(data, event_type, folder), limits, parts)
    _write_events(parts, len(limits) + 1, folder)
    shutil.rmtree(parts)
    (folder / _NOTE).write_text(json.dumps({"version": _VERSION, "start": data.start.isoformat()}))


def _part_limits(data: ChallengeData) -> Int64:
    """Client ids that cut the events into parts of about the same size: int64, ascending.

    Drawn from a sample: another cut changes the time and memory that sorting takes, never the result.
    """
    rows = {event_type: data.rows(event_type) for event_type in EventType}
    parts = min(-(-sum(rows.values()) // _ROWS_A_PART), _MOST_PARTS)
    ids, weights = [], []
    for event_type, count in rows.items():
        step = max(count // _SAMPLE, 1)
        sample = data.events(event_type).select(schema.CLIENT_ID).with_row_index().filter(pl.col("index") % step == 0)
        ids.append(collect(sample)[schema.CLIENT_ID].to_numpy())
        weights.append(np.full(len(ids[-1]), step))
    order = np.argsort(np.concatenate(ids))
    share = np.cumsum(np.concatenate(weights)[order])
    at = np.searchsorted(share, share[-1] * np.arange(1, parts) / parts)
    return np.unique(np.concatenate(ids)[order][at])


def _keys(subject: str) -> list[pl.Expr]:
    """What tells one subject from another and puts them in order: the id, or codes as two numbers.

    The first code of a query is the highest byte, so that the numbers compare as the codes do, one by one.
    """
    if subject != schema.QUERY:
        return [pl.col(subject)]
    codes = pl.col(subject).arr
    half = schema.CODES // 2
    return [
        pl.sum_horizontal(
            codes.get(first + place).cast(pl.UInt64) * 2 ** (8 * (half - 1 - place)) for place in range(half)
        ).alias(f"{subject}_{first}")
        for first in (0, half)
    ]


def _write_items(data: ChallengeData, folder: Path) -> pl.DataFrame:
    """Write the table of skus; returns skus and their references."""
    items = collect(data.properties()).sort(schema.SKU)
    np.save(folder / "skus.npy", items[schema.SKU].to_numpy())
    np.save(folder / "categories.npy", items[schema.CATEGORY].to_numpy())
    np.save(folder / "prices.npy", items[schema.PRICE].to_numpy())
    np.save(folder / "names.npy", items[schema.NAME].to_numpy())
    return _referenced(items.select(schema.SKU))


def _write_subjects(data: ChallengeData, event_type: EventType, folder: Path) -> pl.DataFrame:
    """Write the table of urls or of queries; returns their keys and references."""
    subject = event_type.subject
    keys = collect(data.events(event_type).select(_keys(subject)).unique())
    keys = keys.sort(keys.columns)
    values = np.ascontiguousarray(keys.to_numpy())
    # The bytes of a query's two numbers are its codes.
    table = values.astype(">u8").view(np.uint8) if subject == schema.QUERY else values[:, 0]
    np.save(folder / f"{_TABLE_OF[subject]}.npy", table)
    return _referenced(keys)


def _referenced(keys: pl.DataFrame) -> pl.DataFrame:
    return keys.with_columns(subject=pl.int_range(keys.height, dtype=pl.Int32))


def _deal_out(
    data: ChallengeData, event_types: Sequence[EventType], references: pl.DataFrame, limits: Int64, parts: Path
) -> None:
    """Write events of some types about one kind of subject, as narrow as can be, into a folder a part."""

    def part_of(clients: pl.Series) -> pl.Series:
        return pl.Series(np.searchsorted(limits, clients.to_numpy(), side="right").astype(np.uint8))

    for event_type in event_types:
        events = data.events(event_type).select(
            schema.CLIENT_ID,
            (pl.col(schema.TIMESTAMP) - data.start).dt.total_seconds().cast(pl.Int32).alias("time"),
            pl.lit(event_type.code, dtype=pl.UInt8).alias("event"),
            *_keys(event_type.subject),
            pl.col(schema.CLIENT_ID).map_batches(part_of, return_dtype=pl.UInt8, is_elementwise=True).alias(_PART),
        )
        keys = references.drop("subject").columns
        referenced = events.join(references.lazy(), on=keys, how="left", maintain_order="none").drop(keys)
        dealt = pl.PartitionBy(parts / event_type.value, key=_PART, include_key=False)
        referenced.sink_ipc(dealt, compression="uncompressed", maintain_order=False, mkdir=True, engine="streaming")


def _write_events(parts: Path, count: int, folder: Path) -> None:
    """Sort the parts, one after the other, and write columns, clients and offsets."""
    files = [sorted(parts.glob(f"*/{_PART}={part}/*.ipc")) for part in range(count)]
    frames = [pl.scan_ipc(part, hive_partitioning=False) for part in files if part]
    rows = sum(int(collect(frame.select(pl.len())).item()) for frame in frames)
    clients, lengths = [], []
    with ExitStack() as stack:
        columns = {name: stack.enter_context((folder / f"{name}.npy").open("wb", buffering=0)) for name in _COLUMNS}
        for name, file in columns.items():
            _write_header(file, np.dtype(_COLUMNS[name]), rows)
        for frame in frames:
            events = frame.collect().sort(schema.CLIENT_ID, *_COLUMNS)
            for name, file in columns.items():
                events[name].to_numpy().tofile(file)
            runs = events[schema.CLIENT_ID].rle()
            clients.append(runs.struct.field("value").to_numpy())
            lengths.append(runs.struct.field("len").to_numpy())
    np.save(folder / "clients.npy", np.concatenate(clients))
    np.save(folder / "offsets.npy", _offsets(np.concatenate(lengths)))


def _write_header(file: IO[bytes], dtype: np.dtype[Any], rows: int) -> None:
    """Begin a .npy file whose numbers are appended afterwards."""
    head = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (rows,)}
    np.lib.format.write_array_header_1_0(file, head)
