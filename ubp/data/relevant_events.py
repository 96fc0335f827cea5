"""The relevant clients' events in a history's files: picked and parsed once, in the order of time, kept in the cache.

Features as of many days would read the whole log for each, whose other clients have most of the events, and parse its
times and codes again. Here a day reads what lies before it, and parses nothing.

A folder with a note, and for each event type a folder of parquet files, columns as
`ubp.data.history.ChallengeData.events` gives them, rows by ascending time in small row groups: the groups at or after
a day are left out by their extremes, before they are read. All days share them: ``as_of`` and a mask are applied to
what is read from here.
"""

import json
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import Final

import polars as pl

from ubp.data import schema
from ubp.data.schema import EventType
from ubp.data.validation import FileSummary
from ubp.io.files import atomic_write, remove_abandoned
from ubp.io.stage import AlreadyDone, Stage

logger = logging.getLogger(__name__)

NOTE: Final = "events.json"

_VERSION: Final = 1  # of the files' layout; a folder of another one is made again
# Sorted at once. More rows are first put into parts by time, each an open file meanwhile: 128 of this size hold
# 256 M events of one type, and of more the parts are larger.
_ROWS_PER_PART: Final = 2_000_000
_MOST_PARTS: Final = 128
_ROW_GROUP: Final = 100_000  # rows; twenty weekly days read half a group too many each
_PART: Final = "part"
_MICROSECOND: Final = timedelta(microseconds=1)


@dataclass(frozen=True)
class RelevantEvents:
    """Some clients' events, made when they are first asked for.

    Attributes:
        folder: of the parquet files; its name tells these events from any others.
        source: the folder of the event files, for lines in the log.
        summaries: of the event files; of all their clients, so they bound what is kept.
        read: the events to keep, of one type, from the event files.
        require_unchanged: raises `ubp.io.errors.UserError` where the event files changed since they were opened.
    """

    folder: Path
    source: Path
    summaries: Mapping[EventType, FileSummary]
    read: Callable[[EventType], pl.LazyFrame]
    require_unchanged: Callable[[], None]

    def events(self, event_type: EventType) -> pl.LazyFrame:
        """Events of one type, by ascending time.

        Raises:
            UserError: the event files changed while these were made.
        """
        return pl.scan_parquet(sorted((self._made / event_type).iterdir()), glob=False, hive_partitioning=False)

    @cached_property
    def _made(self) -> Path:
        """The folder, when all is in it. Processes that ask at the same time wait for the one that makes it."""
        made_from = {"events": self.folder.name, "version": _VERSION}
        name = f"the relevant clients' events of {self.source}"
        stage = Stage(name, (self.folder,), lambda: made_from)
        with suppress(AlreadyDone), stage.once(overwrite=False):
            remove_abandoned(self.folder)
            with atomic_write(self.folder) as aside:
                self._make(aside)
                self.require_unchanged()  # or two logs would be mixed, under the first one's name
        return self.folder

    def _make(self, folder: Path) -> None:
        """Write all event types; needs some 30 bytes an event on disk besides until one is written."""
        logger.info("%s: picking the relevant clients' events (once for these files)", self.source)
        folder.mkdir()
        for event_type in self.summaries:
            target, parts = folder / event_type, folder / "parts"
            target.mkdir()
            for number, part in enumerate(self._by_time(event_type, parts)):
                part.sort(schema.TIMESTAMP).sink_parquet(
                    target / f"{number:03d}.parquet", compression="lz4", row_group_size=_ROW_GROUP, engine="streaming"
                )
            shutil.rmtree(parts, ignore_errors=True)
        (folder / NOTE).write_text(json.dumps({"version": _VERSION}))

    def _by_time(self, event_type: EventType, folder: Path) -> Iterator[pl.LazyFrame]:
        """The events of one type in parts, each of them before the next; more than one lie in a folder meanwhile."""
        summary, events = self.summaries[event_type], self.read(event_type)
        count = min(-(-summary.rows // _ROWS_PER_PART), _MOST_PARTS)
        if count < 2 or summary.first is None or summary.last is None:
            yield events
            return
        length = (summary.last - summary.first) // _MICROSECOND // count + 1
        since = (pl.col(schema.TIMESTAMP) - summary.first).dt.total_microseconds()
        partitioned = pl.PartitionBy(folder, key=_PART, include_key=False)
        events.with_columns((since // length).cast(pl.UInt8).alias(_PART)).sink_ipc(
            partitioned, compression="uncompressed", maintain_order=False, mkdir=True, engine="streaming"
        )
        for part in range(count):
            if files := sorted(folder.glob(f"{_PART}={part}/*.ipc")):
                yield pl.scan_ipc(files, hive_partitioning=False)
