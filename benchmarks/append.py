"""What a sequence store of one more day costs: built, continued after a comparison, continued from a known step.

    python benchmarks/append.py                    on all events below $CHALLENGE_DATA_PATH
    python benchmarks/append.py days=7 runs=5

Cuts the log's last ``days`` days off, in ``cache/append`` below the data path, which is deleted at the end, and makes
the store of the whole log each way in turn, ``runs`` times. All three must have the same bytes.
"""

import shutil
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import polars as pl
from omegaconf import DictConfig
from rich.table import Table

from ubp.cli.command import command
from ubp.cli.config import Common, parse
from ubp.cli.output import closing_line, show
from ubp.data import schema
from ubp.data.growth import keep_growth
from ubp.data.history import ChallengeData
from ubp.data.paths import DataPaths
from ubp.data.schema import EventType
from ubp.io.errors import require_positive
from ubp.sequences.append import NewEvents, append, compared_growth, known_growth
from ubp.sequences.build import build, build_or_open
from ubp.sequences.store import Sequences


@dataclass
class Settings:
    """What is measured.

    Attributes:
        runs: of each way.
        days: by which the log grows.
    """

    runs: int
    days: int

    def __post_init__(self) -> None:
        """Refuse numbers that make no sense.

        Raises:
            UserError: a number below 1.
        """
        require_positive(self, "", "runs", "days")


Way = Callable[[ChallengeData, Path], None]


def _continued(find: Callable[[ChallengeData], tuple[Sequences, NewEvents] | None]) -> Way:
    def make(data: ChallengeData, folder: Path) -> None:
        found = find(data)
        if found is None:
            raise RuntimeError("the store cannot be continued")
        append(data, *found, folder)

    return make


WAYS: dict[str, Way] = {
    "built": build,
    "continued, compared": _continued(compared_growth),
    "continued, known": _continued(known_growth),
}


def measure(data: ChallengeData, runs: int) -> dict[str, list[float]]:
    """Seconds of CPU of each way and run; the store before lies in the cache.

    Raises:
        RuntimeError: two ways gave different bytes.
    """
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    folder = data.paths.cache / "made"
    for _ in range(runs):
        contents = []
        for way, make in WAYS.items():
            shutil.rmtree(folder, ignore_errors=True)
            began = time.process_time()
            make(data, folder)
            seconds[way].append(time.process_time() - began)
            contents.append({file.name: file.read_bytes() for file in folder.iterdir()})
        if any(content != contents[0] for content in contents):
            raise RuntimeError("the stores differ")
    return seconds


@contextmanager
def grown(whole: ChallengeData, days: int) -> Iterator[tuple[ChallengeData, int]]:
    """The log in a folder of its own, with the store of it without its last days, and how many events these have."""
    paths = DataPaths(whole.paths.cache / "append")
    shutil.rmtree(paths.root, ignore_errors=True)
    paths.raw.mkdir(parents=True)
    try:
        shutil.copy(whole.paths.properties, paths.properties)
        cut = whole.as_of - timedelta(days=days)
        for event_type in whole.event_types:
            _filed(whole, event_type, cut, before=True).sink_parquet(paths.raw / event_type.file_name)
        before = ChallengeData(paths, submit=True, unknown_sku=whole.unknown_sku)
        build_or_open(before)
        fingerprint = before.files_fingerprint
        for event_type in whole.event_types:
            shutil.copy(whole.file(event_type), paths.raw / event_type.file_name)
        after = ChallengeData(paths, submit=True, unknown_sku=whole.unknown_sku)
        new = {each: _filed(whole, each, cut, before=False) for each in whole.event_types}
        keep_growth(paths, fingerprint, after.files_fingerprint, new)
        yield after, sum(after.rows(each) - before.rows(each) for each in whole.event_types)
    finally:
        shutil.rmtree(paths.root, ignore_errors=True)


def _filed(data: ChallengeData, event_type: EventType, cut: datetime, before: bool) -> pl.LazyFrame:
    time_of = pl.col(schema.TIMESTAMP)
    return data.as_filed(event_type).filter(time_of < cut if before else time_of >= cut)


@command("scripts", "append")
def main(config: DictConfig) -> None:
    common, settings = Common.of(config), parse(Settings, config, ["runs", "days"])
    with grown(common.whole_log(), settings.days) as (data, new):
        seconds = measure(data, settings.runs)
        rows = sum(data.rows(each) for each in data.event_types)
    medians = {way: statistics.median(each) for way, each in seconds.items()}
    table = Table("store", "seconds of CPU", "× faster", title=f"{rows:,} events, {new:,} of them new")
    for way, median in medians.items():
        table.add_row(way, f"{median:.2f}", f"{medians['built'] / median:.1f}")
    show(table)
    closing_line("stores of one more day measured", Path(common.data_path))


if __name__ == "__main__":
    main()
