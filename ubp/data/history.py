"""One history as lazy Polars frames, validated when it is opened.

Whoever reads a history may rely on: the columns and dtypes of `ubp.data.schema`, timestamps that are times,
ids that are never null, codes that are 16 numbers, skus that have properties. Nobody else parses
strings.
"""

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import polars as pl

from ubp.data import schema
from ubp.data.event_types import named, read_event_types
from ubp.data.paths import DataPaths
from ubp.data.reading import collect, load_clients, scan, times_parsed, typed
from ubp.data.relevant_events import RelevantEvents
from ubp.data.schema import EventType
from ubp.data.shards import Shard
from ubp.data.validation import FileSummary, check, require_files, summary_of
from ubp.io.errors import UserError
from ubp.io.files import atomic_write, digest_of, fingerprint
from ubp.io.together import finish

logger = logging.getLogger(__name__)

UnknownSku = Literal["error", "drop"]

_READ_AGAIN = ("clients", "relevant_clients", "_relevant_ascending", "_relevant_events")  # from the files, when asked
_DRAWS = 1_000_000  # different shares of events that can be masked


@dataclass(frozen=True)
class Mask:
    """Which events of a history are left out.

    Attributes:
        share: of them.
        seed: of the draw.
    """

    share: float
    seed: int

    def keeps(self, event_type: EventType) -> pl.Expr:
        """True for the events that stay."""
        fields = [schema.CLIENT_ID, schema.TIMESTAMP, *({event_type.subject} & {schema.SKU, schema.URL})]
        drawn = pl.struct(fields).hash(self.seed) % _DRAWS
        return drawn >= round(self.share * _DRAWS)


class ChallengeData:
    """One history, checked: all events (``submit=True``) or those before the train-target start.

    Attributes:
        event_types: of the log: the challenge's in the published order, then its own. Each has a file.

    Args:
        paths: where the data lies.
        submit: True reads ``raw/``, False ``raw/input/``.
        unknown_sku: what to do with events whose sku has no properties: stop, or leave them out.
        as_of: only events before this moment, a whole second; None for the whole history.

    Raises:
        UserError: one line for each fault that was found (see `check`).
    """

    def __init__(
        self,
        paths: DataPaths,
        submit: bool,
        unknown_sku: UnknownSku = "error",
        as_of: datetime | None = None,
    ) -> None:
        if unknown_sku not in ("error", "drop"):
            raise UserError(f"unknown_sku={unknown_sku}: must be error or drop")
        self.paths = paths
        self.submit = submit
        self.unknown_sku = unknown_sku
        self._as_of = _whole_second(as_of)
        self._mask: Mask | None = None
        self._shard: Shard | None = None
        self.folder = paths.history(submit)
        for new in paths.new_files:
            finish(new)
        self.event_types = read_event_types(paths.event_types)
        self._summaries = self._checked()
        if as_of is not None and (self.start >= as_of or not self.has(EventType.PRODUCT_BUY)):
            raise UserError(f"as_of={as_of}: {self.folder} has no purchase before it; choose a later day")

    def _checked(self) -> dict[EventType, FileSummary]:
        """The summaries of the event files, from the cache where this very content was checked before."""
        require_files(self.paths, self.submit, self.event_types)
        note = self.paths.cache / "checked" / f"{self.files_fingerprint}-{self.unknown_sku}.json"
        if (noted := _noted(note)) is not None:
            return {event_type: summary_of(**noted[event_type]) for event_type in self.event_types}
        summaries = check(self.folder, self.paths.properties, self.unknown_sku, self.event_types)
        text = json.dumps({event_type: asdict(summary) for event_type, summary in summaries.items()}, default=str)
        with atomic_write(note) as aside:
            aside.write_text(json.dumps([text, digest_of(text)]))
        return summaries

    def events(self, event_type: EventType, clients: npt.NDArray[np.int64] | None = None) -> pl.LazyFrame:
        """Events of one type before ``as_of``.

        Columns: ``client_id`` Int64, ``timestamp`` Datetime(us), then ``sku`` or ``url`` Int64, or
        ``query`` Array(UInt8, 16). In any order.

        Args:
            event_type: their type.
            clients: int64, whose events alone; None for all. If all are relevant, their events are read from
                `ubp.data.relevant_events`, which parses the log once for all days and callers.
        """
        if self._shard is not None:
            frame = self._shard.events(event_type)
            frame = frame if clients is None else of_clients(frame, clients)
        elif clients is not None and self._are_relevant(clients):
            frame = of_clients(self._relevant_events.events(event_type), clients)
        else:
            frame = self._from_files(event_type, clients)
        if self._as_of is not None:
            frame = frame.filter(pl.col(schema.TIMESTAMP) < self._as_of)
        if self._mask is not None:
            frame = frame.filter(self._mask.keeps(event_type))
        return frame

    def _from_files(self, event_type: EventType, clients: npt.NDArray[np.int64] | None) -> pl.LazyFrame:
        """Events of one type, whatever the day and the mask; of some clients alone, or of all.

        The times and codes of other clients are not parsed, who may have ten times as many.
        """
        filed = scan(self.file(event_type))
        if clients is not None:
            filed = of_clients(filed.with_columns(pl.col(schema.CLIENT_ID).cast(pl.Int64)), clients)
        return self._of_known_skus(filed, event_type)

    def filed(self, event_type: EventType, begin: int, rows: int) -> pl.LazyFrame:
        """Events at some rows of a file, whatever the day and the mask; see `events`."""
        return self._of_known_skus(scan(self.file(event_type)).slice(begin, rows), event_type)

    def rows_filed(self, event_type: EventType) -> int:
        """Rows of an event file."""
        return self._summaries[event_type].rows

    def _of_known_skus(self, filed: pl.LazyFrame, event_type: EventType) -> pl.LazyFrame:
        """Rows of an event file with the promised columns, those left out whose sku has no properties."""
        frame = typed(filed, schema.event_columns(event_type))
        if event_type.has_sku and self._summaries[event_type].unknown_skus:
            frame = frame.join(self.properties().select(schema.SKU), on=schema.SKU, how="semi")
        return frame

    def _are_relevant(self, clients: npt.NDArray[np.int64]) -> bool:
        """Whether all of some clients are; no where the file of those that are is still to be made."""
        if not self.paths.relevant_clients.exists():
            return False
        relevant = self._relevant_ascending
        places = np.minimum(np.searchsorted(relevant, clients), len(relevant) - 1)
        return bool((relevant[places] == clients).all())

    @cached_property
    def _relevant_ascending(self) -> npt.NDArray[np.int64]:
        return np.sort(self.relevant_clients)

    @cached_property
    def _relevant_events(self) -> RelevantEvents:
        clients = self._relevant_ascending
        return RelevantEvents(
            folder=self.paths.relevant_events(digest_of(self.events_fingerprint, clients.tobytes())),
            source=self.folder,
            summaries=self._summaries,
            read=lambda event_type: self._from_files(event_type, clients),
            require_unchanged=self.require_unchanged,
        )

    def properties(self) -> pl.LazyFrame:
        """``sku``, ``category``, ``price`` Int64 and ``name`` Array(UInt8, 16); a sku occurs once."""
        return typed(scan(self.paths.properties), schema.PROPERTY_COLUMNS)

    def properties_of(self, skus: pl.Series, *columns: str) -> pl.DataFrame:
        """``sku`` and some properties of some skus, by ascending sku, each once.

        The codes of their names alone are parsed: those of all products may take longer than what they are read for.

        Args:
            skus: Int64, each once.
            columns: of the properties.
        """
        filed = self.properties_as_filed().with_columns(pl.col(schema.SKU).cast(pl.Int64))
        wanted = filed.join(pl.LazyFrame({schema.SKU: skus}), on=schema.SKU, how="semi")
        return collect(typed(wanted, (schema.SKU, *columns))).sort(schema.SKU)

    def with_properties(self, event_type: EventType) -> pl.LazyFrame:
        """Item events with ``category``, ``price`` and ``name`` of their sku."""
        return self.events(event_type).join(self.properties(), on=schema.SKU, how="left")

    def as_filed(self, event_type: EventType) -> pl.LazyFrame:
        """Every column and row of an event file; only ``timestamp`` is read, as Datetime(us)."""
        return times_parsed(scan(self.file(event_type)))

    def properties_as_filed(self) -> pl.LazyFrame:
        """Every column and row of the properties, codes as text."""
        return scan(self.paths.properties)

    @property
    def item_types(self) -> tuple[EventType, ...]:
        """The event types whose events are about a sku."""
        return self.about(schema.SKU)

    def about(self, subject: str) -> tuple[EventType, ...]:
        """The event types whose events are about ``sku``, ``url`` or ``query``."""
        return tuple(event_type for event_type in self.event_types if event_type.subject == subject)

    def event_type(self, name: str) -> EventType:
        """The event type of that name.

        Raises:
            UserError: the log has none.
        """
        return named(name, self.event_types)

    def file(self, event_type: EventType) -> Path:
        return self.folder / event_type.file_name

    def rows(self, event_type: EventType) -> int:
        """Events of one type in the history."""
        everything = self._as_of is None and self._mask is None and self._shard is None
        if everything and not self._summaries[event_type].unknown_skus:
            return self._summaries[event_type].rows
        return int(collect(self.events(event_type).select(pl.len())).item())

    def has(self, event_type: EventType) -> bool:
        """Whether the history has an event of one type: where none is left out, without reading any.

        Of one shard it is asked about all clients: what a block reads must not depend on the shard.
        """
        summary = self._summaries[event_type]
        if summary.first is None or (self._as_of is not None and summary.first >= self._as_of):
            return False
        if self._mask is None and not summary.unknown_skus:
            return True
        return len(collect(self._of_all().events(event_type).select(schema.CLIENT_ID).head(1))) > 0

    def first(self, event_type: EventType) -> datetime:
        """The earliest event of one type in the files; the type must have events."""
        return _present(self._summaries[event_type].first)

    def last(self, event_type: EventType) -> datetime:
        """The latest event of one type in the files; the type must have events."""
        return _present(self._summaries[event_type].last)

    @property
    def latest(self) -> datetime:
        """The last event in the files, of the types that have one before ``as_of``."""
        return max(self.last(event_type) for event_type in self.event_types if self.has(event_type))

    @cached_property
    def start(self) -> datetime:
        """Midnight of the day of the first event of any type."""
        return _midnight(min(summary.first for summary in self._summaries.values() if summary.first))

    @cached_property
    def as_of(self) -> datetime:
        """The moment the history ends: as asked for, else the midnight after its last event."""
        if self._as_of is not None:
            return self._as_of
        last = max(summary.last for summary in self._summaries.values() if summary.last)
        return _midnight(last) + timedelta(days=1)

    @cached_property
    def relevant_clients(self) -> npt.NDArray[np.int64]:
        """The clients that must get a profile, as in the file: int64, each once.

        Raises:
            UserError: the file is absent, not int64, not one-dimensional, or repeats a client.
        """
        return load_clients(self.paths.relevant_clients)

    @cached_property
    def clients(self) -> npt.NDArray[np.int64]:
        """The relevant clients with an event in this history: int64, ascending."""
        return self.seen(self.relevant_clients)

    def seen(self, clients: npt.NDArray[np.int64] | None = None) -> npt.NDArray[np.int64]:
        """Those of some clients that have an event in this history.

        Args:
            clients: int64 [n]; None for all.

        Returns:
            int64, ascending, each once.
        """
        frames = [self.events(event_type, clients).select(schema.CLIENT_ID) for event_type in self.event_types]
        known: npt.NDArray[np.int64] = np.sort(collect(pl.concat(frames).unique())[schema.CLIENT_ID].to_numpy())
        return known

    def before(self, as_of: datetime) -> "ChallengeData":
        """The same history as it was known on another day; its files are not validated again.

        Raises:
            UserError: no event lies before the day, or this history itself ends before it.
        """
        if self._as_of is not None and as_of > self._as_of:
            raise UserError(f"as_of={as_of}: the history was opened as of {self._as_of}; open it as of a later day")
        if self.start >= as_of:
            raise UserError(f"as_of={as_of}: {self.folder} has no event before it; choose a later day")
        return self._until(as_of)

    @property
    def day(self) -> datetime | None:
        """The ``as_of`` that was asked for; None for the whole history."""
        return self._as_of

    def masked(self, share: float, seed: int) -> "ChallengeData":
        """The same history without some of its events, drawn by the seed; each client loses about that share.

        An event is drawn by what it is, so it is masked on every day or on none. Events of one client, time and
        subject are masked together.

        Args:
            share: of the events that are left out, from 0 to 1.
            seed: of the draw.
        """
        view = self._until(self._as_of)
        view._mask = Mask(share, seed)
        return view

    @property
    def mask(self) -> Mask | None:
        """Which of its events are left out; None for none."""
        return self._mask

    @property
    def is_masked(self) -> bool:
        """Whether some of its events are left out."""
        return self._mask is not None

    @property
    def whole(self) -> "ChallengeData":
        """All events of the files, masked ones and those at or after ``as_of`` too: for what belongs to the files."""
        if self._as_of is None and self._mask is None and self._shard is None:
            return self
        view = self._of_all()._until(None)
        view._mask = None
        return view

    def of_shard(self, shard: Shard) -> "ChallengeData":
        """The same history with the events of one shard's clients alone; what it says of all stays as it is.

        Args:
            shard: of these very files (`ubp.data.shards.sharded`).
        """
        view = self._until(self._as_of)
        view._shard = shard
        return view

    def _of_all(self) -> "ChallengeData":
        """The same history with the events of all clients."""
        if self._shard is None:
            return self
        view = self._until(self._as_of)
        view._shard = None
        return view

    def __getstate__(self) -> dict[str, Any]:
        """What a process of another machine opens the history by: without arrays, which it reads itself."""
        return {name: value for name, value in self.__dict__.items() if name not in _READ_AGAIN}

    def _until(self, as_of: datetime | None) -> "ChallengeData":
        view = object.__new__(type(self))
        view.__dict__.update(self.__dict__)  # what was read stays; a copy would do as `__getstate__` says
        view._as_of = _whole_second(as_of)
        for name in ("as_of", "clients", "fingerprint"):  # what depends on the day
            view.__dict__.pop(name, None)
        return view

    @cached_property
    def fingerprint(self) -> str:
        """Tells one history from another: files, relevant clients, ``as_of``, ``unknown_sku``."""
        mask = [] if self._mask is None else [self._mask]
        return digest_of(self.files_fingerprint, self.relevant_clients.tobytes(), self._as_of, self.unknown_sku, *mask)

    @property
    def events_fingerprint(self) -> str:
        """Tells the events of the files from others, whatever the day and the relevant clients."""
        return digest_of(self.files_fingerprint, self.unknown_sku)

    @cached_property
    def files_fingerprint(self) -> str:
        """Of the content of the event files and the properties, when it was first asked for."""
        return self._fingerprint_now()

    def require_unchanged(self) -> None:
        """Make sure that the files are what they were when the history was opened, as far as `fingerprint` sees.

        Raises:
            UserError: they are not.
        """
        if self._fingerprint_now() != self.files_fingerprint:
            raise UserError(
                f"{self.folder}: its event files, or {self.paths.properties.name}, changed while they were read; "
                "give the command again"
            )

    @contextmanager
    def unchanged(self) -> Iterator[None]:
        """Say of an error while the files are read that they changed, where they did: it came from that.

        Raises:
            UserError: they changed, and something failed.
        """
        try:
            yield
        except UserError:
            raise
        except Exception:
            self.require_unchanged()
            raise

    def _fingerprint_now(self) -> str:
        return self.fingerprint_with({})

    def fingerprint_with(self, new: Mapping[Path, Path]) -> str:
        """What ``files_fingerprint`` is when new files have taken the places of some.

        Args:
            new: by the file in whose place it is to be, where it lies now.
        """
        files = [*(self.file(event_type) for event_type in self.event_types), self.paths.properties]
        return digest_of(*(f"{file.name}:{fingerprint(new.get(file, file))}" for file in files))


def _noted(note: Path) -> dict[str, Any] | None:
    """The summaries in a note; None where there is none that can be read and is as it was written."""
    try:
        text, digest = json.loads(note.read_text())
        return json.loads(text) if digest_of(text) == digest else None
    except (OSError, ValueError, TypeError, RecursionError):
        return None


def of_clients(events: pl.LazyFrame, clients: npt.NDArray[np.int64]) -> pl.LazyFrame:
    """Only the events of some clients."""
    return events.join(pl.LazyFrame({schema.CLIENT_ID: clients}), on=schema.CLIENT_ID, how="semi")


def _present(moment: datetime | None) -> datetime:
    if moment is None:
        raise ValueError("an event type without events has no first or last one")
    return moment


def _whole_second(as_of: datetime | None) -> datetime | None:
    """The moment itself; the sequence store keeps times in whole seconds, so a fraction would cut it elsewhere."""
    if as_of is not None and as_of.microsecond:
        raise UserError(f"as_of={as_of}: has a fraction of a second; choose a whole second")
    return as_of


def _midnight(moment: datetime) -> datetime:
    return moment.replace(hour=0, minute=0, second=0, microsecond=0)
