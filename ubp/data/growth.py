"""What a log's files grew by, kept in the cache by who let them grow: so that nobody need compare all of the rest.

A folder by the fingerprint of the grown files: the new events of each type as they were filed, and a note with the
fingerprint of the files before.
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import numpy as np
import polars as pl

from ubp.data import schema
from ubp.data.history import ChallengeData
from ubp.data.paths import DataPaths
from ubp.data.reading import scan, typed
from ubp.data.schema import EventType
from ubp.io.files import atomic_write, digest_of

_NOTE: Final = "growth.json"


@dataclass(frozen=True)
class Growth:
    """The step from one content of a log's files to the next: events were added, none was changed or taken away.

    Attributes:
        before: ``files_fingerprint`` of the history before.
        folder: of the new events.
    """

    before: str
    folder: Path

    @classmethod
    def to(cls, history: ChallengeData) -> Self | None:
        """The step that led to a history's files; None where nobody has kept it."""
        return cls._kept_in(_folder(history.paths, history.files_fingerprint))

    @classmethod
    def _kept_in(cls, folder: Path) -> Self | None:
        try:
            return cls(json.loads((folder / _NOTE).read_text())["before"], folder)
        except (OSError, ValueError, KeyError):
            return None

    def and_earlier(self) -> Iterator[Self]:
        """This step, and those before it that nobody has forgotten yet, the latest first."""
        step: Self | None = self
        seen = set[Path]()
        while step is not None and step.folder not in seen:
            yield step
            seen.add(step.folder)
            step = self._kept_in(self.folder.parent / step.before)

    def events_fingerprint(self, history: ChallengeData) -> str:
        """That of the history before; see `ubp.data.history.ChallengeData.events_fingerprint`."""
        return digest_of(self.before, history.unknown_sku)

    def events(self, event_type: EventType) -> pl.LazyFrame:
        """The new events of a type, columns as `ubp.data.history.ChallengeData.events` gives them."""
        return typed(scan(self.folder / event_type.file_name), schema.event_columns(event_type))


def keep_growth(paths: DataPaths, before: str, after: str, new: Mapping[EventType, pl.LazyFrame]) -> None:
    """Keep what files grow by.

    Args:
        paths: of the log.
        before: ``files_fingerprint`` of the files without the new events.
        after: the same with them.
        new: of each event type of the log, as in its file.
    """
    folder = _folder(paths, after)
    with atomic_write(folder) as aside:
        aside.mkdir()
        for event_type, events in new.items():
            events.sink_parquet(aside / event_type.file_name)
        (aside / _NOTE).write_text(json.dumps({"before": before}))


def forget_before(history: ChallengeData) -> None:
    """Remove from the cache what belongs to the files before they grew: nobody will ask for it again.

    Also to those before these, where a night was killed after it had taken in its day and was not given again.

    Args:
        history: of the grown files; nothing happens where nobody has kept the step to them.
    """
    growth = Growth.to(history)
    if growth is None:
        return
    relevant = np.sort(history.relevant_clients) if history.paths.relevant_clients.exists() else np.zeros(0, np.int64)
    for step in list(growth.and_earlier()):
        events = step.events_fingerprint(history)
        picked = history.paths.relevant_events(digest_of(events, relevant.tobytes()))
        for folder in (history.paths.sequences(events), picked):
            shutil.rmtree(folder, ignore_errors=True)
    # The steps go last, the latest stays: killed meanwhile, the next finds the same folders to remove.
    for folder in [folder for folder in growth.folder.parent.iterdir() if folder != growth.folder]:
        shutil.rmtree(folder, ignore_errors=True)


def _folder(paths: DataPaths, fingerprint: str) -> Path:
    return paths.cache / "growth" / fingerprint
