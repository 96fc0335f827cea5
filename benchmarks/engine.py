"""What spreading a block's own work over machines costs and gains: engine=ray beside engine=local, by workers.

    python benchmarks/engine.py                       blocks fitted on the log below $CHALLENGE_DATA_PATH
    python benchmarks/engine.py names=[stat_features] workers=[1,2,4]
    python benchmarks/engine.py names=[stat_features] shards=32 local=False report=null   where one process has no room
        -> its part of docs/performance.md

Every client with an event is encoded by each fitted block (``names``): first by the command alone, one thread; then by
clusters of so many nodes of one core each, all on this machine, which has to have as many cores for the figures to mean
anything. The partition of the log by clients begins with nothing in the cache each time. The vectors must have the same
bytes. *Moved* is what is written for other machines to read and read back from there: the shards and the parts.
"""

import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig
from rich.table import Table

from benchmarks.measuring import as_markdown, marks_of, run_apart, write_report
from ubp.blocks.embeddings import EmbeddingTable
from ubp.cli.chosen import choose_fit
from ubp.cli.command import command
from ubp.cli.config import Common, parse
from ubp.cli.output import closing_line, show
from ubp.cli.ray_spread import Cost, RaySpread
from ubp.cli.ray_tasks import THREADS, Resources, cluster
from ubp.data.history import ChallengeData
from ubp.data.paths import REPOSITORY, DataPaths
from ubp.data.shards import sharded
from ubp.io.errors import require, require_positive
from ubp.training.encode_in_parts import InParts

MARKS = marks_of("benchmarks/engine.py")
HEADINGS = ("block", "engine", "s", "of it partitioning", "CPU s", "MB, one process", "MB moved")
_STORE = 80 * 2**20  # bytes of a node's object store: nothing large goes through it


@dataclass
class Settings:
    """What is measured.

    Attributes:
        names: of fitted blocks.
        workers: numbers of nodes.
        shards: parts; None: one a worker.
        runs: of each; the median counts.
        local: measure one process too, for which a large log may have too many clients.
        report: the file whose part is written anew.
    """

    names: list[str]
    workers: list[int]
    shards: int | None
    runs: int
    local: bool
    report: str | None

    def __post_init__(self) -> None:
        """Refuse numbers that make no sense.

        Raises:
            UserError: a number below 1.
        """
        require_positive(self, "", "runs", *([] if self.shards is None else ["shards"]))
        require(bool(self.workers) and min(self.workers) >= 1, "workers", self.workers, "at least 1 each")


@dataclass(frozen=True)
class Figures:
    """What one way took.

    Attributes:
        seconds: by the clock.
        partitioning: of these; 0 where nothing was partitioned.
        cpu: seconds, of all processes that did the work.
        megabytes: the most that one of them held.
        moved: MB, see the module.
    """

    seconds: float
    partitioning: float
    cpu: float
    megabytes: float
    moved: float

    def row(self) -> list[str]:
        """The table's cells."""
        partitioned = f"{self.partitioning:.1f}" if self.partitioning else ""
        moved = f"{self.moved:,.0f}" if self.moved else ""
        return [f"{self.seconds:.1f}", partitioned, f"{self.cpu:.1f}", f"{self.megabytes:,.0f}", moved]


def alone(paths: DataPaths, name: str, out: Path) -> Figures:
    """The command on this machine, a process of its own with one thread."""
    words = [f"name={name}", f"out={out}", "overwrite=True"]
    threads = dict.fromkeys(THREADS, "1")
    log = paths.root / "logs" / f"engine_{name}.log"
    seconds, cpu, megabytes = run_apart(
        REPOSITORY / "scripts" / "encode.py", words, paths.root, log, environment=threads
    )
    return Figures(seconds, 0.0, cpu, megabytes, 0.0)


@contextmanager
def nodes(count: int) -> Iterator[None]:
    """A cluster of so many nodes of one core, on this machine, that `cluster` connects to."""
    from ray.cluster_utils import Cluster

    each = {"num_cpus": 1, "object_store_memory": _STORE}
    before = os.environ.get("RAY_ADDRESS")
    made: Any = Cluster(initialize_head=True, head_node_args={**each, "include_dashboard": False})
    try:
        for _ in range(count - 1):
            made.add_node(**each)
        made.wait_for_nodes()
        os.environ["RAY_ADDRESS"] = made.address
        yield
    finally:
        made.shutdown()
        os.environ.pop("RAY_ADDRESS")
        if before is not None:
            os.environ["RAY_ADDRESS"] = before


def on_cluster(history: ChallengeData, name: str, shards: int, wanted: dict[str, EmbeddingTable]) -> Figures:
    """Partition and encode on the cluster that there is.

    Args:
        history: whose events.
        name: of the fitted block.
        shards: of them.
        wanted: the vectors by name; those of this run where there are none yet.

    Raises:
        RuntimeError: the vectors are others.
    """
    paths, spread = history.paths, RaySpread(Resources(cpus=1, gpus=0, memory=0))
    folder = paths.shards(history.events_fingerprint, shards)
    shutil.rmtree(folder, ignore_errors=True)
    work = InParts(choose_fit(paths, name, None), history, None, shards, paths.parts_of(folder), {"of": name})
    work.forget()
    began = time.perf_counter()
    sharded(history, shards, spread)
    partitioning = time.perf_counter() - began
    table, _ = work.encode(spread)
    seconds = time.perf_counter() - began
    moved = 2 * (_size(folder) + _size(work.folder)) / 1e6
    work.forget()
    _require_same(table, wanted.setdefault(name, table), name)
    return Figures(seconds, partitioning, *_spent(spread.costs), moved)


def _spent(costs: Sequence[Cost]) -> tuple[float, float]:
    """Seconds of CPU of all, and the MB of the largest."""
    return sum(cost.cpu for cost in costs), max(cost.megabytes for cost in costs)


def _require_same(table: EmbeddingTable, wanted: EmbeddingTable, name: str) -> None:
    same = np.array_equal(table.client_ids, wanted.client_ids) and np.array_equal(table.vectors, wanted.vectors)
    if not same:
        raise RuntimeError(f"{name}: the vectors of the parts are others than before")


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def median(figures: Sequence[Figures]) -> Figures:
    """The run whose time is in the middle."""
    return sorted(figures, key=lambda each: each.seconds)[(len(figures) - 1) // 2]


def measured(common: Common, settings: Settings) -> list[list[str]]:
    """A row for each block and way: see `HEADINGS`."""
    history = common.data(submit=True)
    paths = common.paths
    found: dict[tuple[str, str], Figures] = {}
    tables: dict[str, EmbeddingTable] = {}
    for name in settings.names if settings.local else ():
        out = paths.cache / "engine" / f"{name}.parquet"
        found[name, "local"] = median([alone(paths, name, out) for _ in range(settings.runs)])
        tables[name] = EmbeddingTable.read(out)
    shutil.rmtree(paths.cache / "engine", ignore_errors=True)
    for workers in settings.workers:
        with nodes(workers), cluster():
            for name in settings.names:
                run = partial(on_cluster, history, name, settings.shards or workers, tables)
                found[name, f"ray, {workers} workers"] = median([run() for _ in range(settings.runs)])
    return [[*key, *found[key].row()] for key in sorted(found, key=lambda key: settings.names.index(key[0]))]


@command("scripts", "engine")
def main(config: DictConfig) -> None:
    common, settings = Common.of(config), parse(Settings, config, list(Settings.__annotations__))
    history = common.data(submit=True)
    events = sum(history.rows(each) for each in history.event_types)
    rows = measured(common, settings)
    title = f"{common.paths.log}, {events:,} events"
    table = Table(*HEADINGS, title=title)
    for row in rows:
        table.add_row(*row)
    show(table)
    if settings.report:
        write_report(REPOSITORY / settings.report, [as_markdown(title, HEADINGS, rows)], MARKS)
    closing_line(f"{len(rows)} ways measured", REPOSITORY / settings.report if settings.report else common.paths.root)


if __name__ == "__main__":
    main()
