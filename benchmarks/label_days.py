"""What label days cost: one sequence store and a selection for each day, against a store for each day.

    python benchmarks/label_days.py                 on the history below $CHALLENGE_DATA_PATH
    python benchmarks/label_days.py scale=0.1       on a synthetic shop, a tenth of the challenge's size
    python benchmarks/label_days.py days=40 spacing=2

Builds the store once, in ``cache/label_days`` below the data path, which is deleted at the end. Then, for each of
the last ``days`` label days, ``spacing`` days apart, selects the relevant clients' newest events before it. What a
store for each day would cost is estimated as the one build times the days; earlier days have fewer events.
"""

import shutil
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

from omegaconf import DictConfig
from rich.table import Table

from scripts.make_synthetic_data import Shop, SyntheticShop, write
from ubp.cli.command import command
from ubp.cli.config import Common, composed, parse
from ubp.cli.output import closing_line, show
from ubp.data.history import ChallengeData
from ubp.data.paths import CONFIGS, DataPaths
from ubp.io.errors import require_positive
from ubp.sequences.build import build_or_open, events_of


@dataclass
class LabelDays:
    """What is measured.

    Attributes:
        scale: of a synthetic shop; None: the history below the data path.
        days: label days.
        spacing: days from one to the next.
        newest: events per client that a selection ends with.
    """

    scale: float | None
    days: int
    spacing: int
    newest: int

    def __post_init__(self) -> None:
        """Refuse numbers that make no sense.

        Raises:
            UserError: a number below 1.
        """
        require_positive(self, "", "days", "spacing", "newest")

    def before(self, end: datetime) -> list[datetime]:
        """The label days of a history with this end, the latest first."""
        return [end - timedelta(days=self.spacing * day) for day in range(1, self.days + 1)]


@dataclass
class Costs:
    """Seconds.

    Attributes:
        build: of building the store.
        selections: of each day's selection: its clients, their numbers of events, their newest ones.
        columns: of reading the types and subjects of each day's newest events.
        events: how many each selection has before it is cut to the newest.
    """

    build: float
    selections: list[float] = field(default_factory=list)
    columns: list[float] = field(default_factory=list)
    events: list[int] = field(default_factory=list)


def measure(history: ChallengeData, settings: LabelDays) -> Costs:
    """Build a history's store, which must not be there yet, and select from it on every label day."""
    clients = history.relevant_clients
    started = time.perf_counter()
    build_or_open(history)
    costs = Costs(time.perf_counter() - started)
    for day in settings.before(history.as_of):
        started = time.perf_counter()
        chosen = events_of(history.before(day), clients=clients)
        newest = chosen.newest(settings.newest)
        costs.events.append(int(chosen.lengths.sum()))
        selected = time.perf_counter()
        _ = newest.event, newest.subject
        costs.selections.append(selected - started)
        costs.columns.append(time.perf_counter() - selected)
    return costs


def table_of(costs: Costs, settings: LabelDays) -> Table:
    """What one store and its selections cost, and what a store for each day would."""
    table = Table("step", "seconds", title=f"{settings.days} label days, {max(costs.events):,} events on the last one")
    rows = {
        "one build": costs.build,
        "a selection, median": statistics.median(costs.selections),
        "a selection, slowest": max(costs.selections),
        f"types and subjects of the newest {settings.newest}, median": statistics.median(costs.columns),
        f"one build and {settings.days} selections": costs.build + sum(costs.selections) + sum(costs.columns),
        f"{settings.days} builds, estimated from one": costs.build * settings.days,
    }
    for step, seconds in rows.items():
        table.add_row(step, f"{seconds:.4f}")
    return table


@contextmanager
def without_store(common: Common, scale: float | None) -> Iterator[DataPaths]:
    """A data path without a store, deleted at the end: the log below the real one, or a synthetic shop."""
    paths = DataPaths(common.paths.cache / "label_days")
    shutil.rmtree(paths.root, ignore_errors=True)
    paths.root.mkdir(parents=True)
    try:
        if scale is None:
            paths.raw.symlink_to(common.paths.raw.resolve())
        else:
            _write_shop(paths, scale, common.seed)
        yield paths
    finally:
        shutil.rmtree(paths.root, ignore_errors=True)


def _write_shop(paths: DataPaths, scale: float, seed: int) -> None:
    config = composed(CONFIGS / "scripts", "make_synthetic_data")
    shop = parse(Shop, config, at="shop").scaled(scale)
    paths.raw.mkdir()
    write(SyntheticShop(shop, seed, config.chunk), paths, config.timestamps)


def open_log(common: Common, paths: DataPaths, scale: float | None) -> ChallengeData:
    """The log as the config names it; all of a synthetic shop, which is not split."""
    return Common(**{**vars(common), "data_path": str(paths.root)}).data(submit=True if scale is not None else None)


@command("scripts", "label_days")
def main(config: DictConfig) -> None:
    common, settings = Common.of(config), parse(LabelDays, config, ["scale", "days", "spacing", "newest"])
    with without_store(common, settings.scale) as paths:
        show(table_of(measure(open_log(common, paths, settings.scale), settings), settings))
    closing_line("label days measured", Path(common.data_path))


if __name__ == "__main__":
    main()
