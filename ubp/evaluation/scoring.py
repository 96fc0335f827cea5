"""Profiles in, scores out: loading, the six tasks by one probe, what is written and shown."""

import json
import logging
import statistics
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from ubp import schema
from ubp.data import ChallengeData, load_clients
from ubp.embeddings import EmbeddingTable
from ubp.entry import read_entry, violations
from ubp.errors import UserError, name_some
from ubp.evaluation.judge import Probe, TaskData, judge
from ubp.evaluation.metrics import TaskScore
from ubp.evaluation.tasks import TASKS, Task, labels, load_targets, load_window
from ubp.files import written_aside
from ubp.merge import align
from ubp.paths import DataPaths

logger = logging.getLogger(__name__)

_PLACES = 4  # scores are rounded to
_LONG = 10.0  # seconds after which a task gets a line of its own


@dataclass(frozen=True)
class Profiles:
    """What is scored.

    Attributes:
        name: of the block or entry.
        path: where it lies.
        client_ids: int64 [clients].
        vectors: float32 [clients, columns].
    """

    name: str
    path: Path
    client_ids: npt.NDArray[np.int64]
    vectors: npt.NDArray[np.float32]


def scores_file(path: Path, probe: str) -> Path:
    """``scores.json`` (the judge's) or ``scores_light.json`` beside an entry's files, a block's by its name."""
    kind = "scores" if probe == "judge" else f"scores_{probe}"
    return path.with_suffix(f".{kind}.json") if path.suffix == ".parquet" else path / f"{kind}.json"


def load_profiles(name_or_path: str, folder: Path, data: ChallengeData) -> Profiles:
    """A block or an entry, by its name or its path.

    A block is scored over the same clients as an entry: the relevant ones with an event in the history, those
    without the block as zeros.

    Args:
        name_or_path: as the user gave it.
        folder: where names are looked up.
        data: the history.

    Raises:
        UserError: there is no such thing, or it cannot be used.
    """
    path = _find(name_or_path, folder)
    if path.is_dir():
        if faults := violations(path, data.relevant_clients, local=True):
            raise UserError(faults)
        client_ids, halves = read_entry(path)
        return Profiles(path.name, path, client_ids, halves.astype(np.float32))
    table = EmbeddingTable.read(path)
    if table.lineage and table.lineage.get("fingerprint") != data.fingerprint:
        logger.warning(
            "%s: made from another history than %s: if it saw the target windows, its scores mean nothing",
            path, data.folder,
        )  # fmt: skip
    vectors = np.zeros((len(data.clients), table.columns), np.float32)
    rows, places = align(table, data.clients)
    vectors[places] = table.vectors[rows]
    if absent := len(data.clients) - len(places):
        logger.info("%s: %s of %s clients are without it: zeros", path.stem, f"{absent:,}", f"{len(data.clients):,}")
    return Profiles(path.stem, path, data.clients, vectors)


def _find(name_or_path: str, folder: Path) -> Path:
    for path in (folder / name_or_path, folder / f"{name_or_path}.parquet", Path(name_or_path)):
        if path.is_file() or (path / schema.ENTRY_EMBEDDINGS).is_file():
            return path
    entries = [path.parent.name for path in folder.glob(f"*/{schema.ENTRY_EMBEDDINGS}")]
    there = sorted([*entries, *(path.stem for path in folder.glob("*.parquet") if not path.name.startswith("."))])
    raise UserError(
        f"embeddings={name_or_path}: neither a block or entry of {folder} nor a path of one; there are: "
        f"{name_some(there, 50) or 'none'}"
    )


def task_data(task: Task, profiles: Profiles, paths: DataPaths, device: torch.device) -> TaskData:
    """The task's clients with their labels, on the device.

    Raises:
        UserError: targets or windows are missing.
    """
    client_ids, vectors = profiles.client_ids, profiles.vectors
    if task.active_only:
        active = np.isin(client_ids, load_clients(paths.active_clients))
        client_ids, vectors = client_ids[active], vectors[active]
        if len(client_ids) == 0:
            raise UserError(f"{paths.active_clients}: none of the clients of {profiles.path} is active; make it again")
    targets = load_targets(paths, task) if task.is_propensity else None
    if targets is not None and len(targets.values) == 0:
        raise UserError(f"{paths.target / task.name}.npy: no targets; give it some, or score a log with more purchases")
    windows = [
        torch.from_numpy(labels(task, client_ids, load_window(paths, name), targets)).to(device)
        for name in (schema.TRAIN_TARGET, schema.VALIDATION_TARGET)
    ]
    return TaskData(task, torch.from_numpy(vectors).to(device), windows[0], windows[1], targets)


@dataclass(frozen=True)
class Scores:
    """The scores of one block or entry by one probe.

    Attributes:
        name: of the block or entry.
        columns: its columns.
        probe: the probe's name.
        tasks: task to score, rounded to four places.
        total: their sum.
        spread: standard deviation of the sum over the probe's seeds; 0 for one seed.
        details: task to the metrics of each seed's best epoch.
    """

    name: str
    columns: int
    probe: str
    tasks: dict[str, float]
    total: float
    spread: float
    details: dict[str, list[dict[str, Any]]]

    def write(self, path: Path, made_from: str) -> None:
        """Write ``scores.json``: a key a task as the organisers', then sum, spread, probe and details."""
        figures = self.tasks | {"sum": self.total, "spread": self.spread, "probe": self.probe}
        rest = {"name": self.name, "columns": self.columns, "made_from": made_from, "details": self.details}
        with written_aside(path) as aside:
            aside.write_text(json.dumps(figures | rest, indent=2) + "\n")

    @classmethod
    def read(cls, path: Path, made_from: str) -> "Scores | None":
        """Scores made before from the same things; None where there are none."""
        made = path.exists() and json.loads(path.read_text()).get("made_from") == made_from
        return cls.load(path) if made else None

    @classmethod
    def load(cls, path: Path) -> "Scores":
        """The scores in a file that `write` wrote."""
        file = json.loads(path.read_text())
        tasks = {task.name: file[task.name] for task in TASKS}
        return cls(file["name"], file["columns"], file["probe"], tasks, file["sum"], file["spread"], file["details"])


def score(profiles: Profiles, probe: Probe, paths: DataPaths, device: torch.device) -> Scores:
    """Score a block or an entry on the six tasks.

    Args:
        profiles: what is scored; rows in the order in which the model sees them.
        probe: by what.
        paths: of targets and windows.
        device: to train on.

    Returns:
        For each task the best epoch's score, the mean over the probe's seeds.
    """
    details: dict[str, list[dict[str, Any]]] = {}
    with _progress() as progress, warnings.catch_warnings():
        # A label that nobody bought counts as torchmetrics counts it; a line for each would bury the table.
        warnings.filterwarnings("ignore", message="No (positive|negative) samples in targets")
        epochs = progress.add_task(profiles.name, total=len(TASKS) * len(probe.seeds) * probe.epochs)
        before: tuple[TaskData, list[list[TaskScore]]] | None = None
        for task in TASKS:
            progress.update(epochs, description=f"{profiles.name} · {task.name}")
            data = task_data(task, profiles, paths, device)
            started = time.perf_counter()
            runs = before[1] if before and _come_to_the_same(before[0], data) else None
            before = None  # its data may be as large as the profiles
            if runs is None:
                runs = _runs(data, probe, lambda: progress.advance(epochs))
            else:
                progress.advance(epochs, len(probe.seeds) * probe.epochs)
            if not task.is_propensity:
                before = data, runs
            details[task.name] = best = [_best(run, seed) for run, seed in zip(runs, probe.seeds, strict=True)]
            if (seconds := time.perf_counter() - started) > _LONG:
                logger.info("%s · %s: %.4f after %.0f s", profiles.name, task.name, best[0]["score"], seconds)
    tasks = {name: round(statistics.fmean(run["score"] for run in runs), _PLACES) for name, runs in details.items()}
    sums = [sum(runs[number]["score"] for runs in details.values()) for number in range(len(probe.seeds))]
    spread = round(statistics.stdev(sums), _PLACES) if len(sums) > 1 else 0.0
    total = round(sum(tasks.values()), _PLACES)
    return Scores(profiles.name, profiles.vectors.shape[1], probe.name, tasks, total, spread, details)


def _come_to_the_same(one: TaskData, other: TaskData) -> bool:
    """Churn is conversion where all clients are active: the same model would be trained twice on the same rows."""
    if one.targets is not None or other.targets is not None:
        return False
    pairs = ((one.profiles, other.profiles), (one.train, other.train), (one.validation, other.validation))
    return all(torch.equal(left, right) for left, right in pairs)


def _runs(data: TaskData, probe: Probe, after_epoch: Callable[[], None]) -> list[list[TaskScore]]:
    """The scores of each seed's run, epoch by epoch."""
    cores = torch.get_num_threads()
    if not probe.side_by_side or data.profiles.device.type != "cpu" or cores == 1:
        return [judge(data, probe, seed, after_epoch) for seed in probe.seeds]
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(cores) as pool:
            return list(pool.map(lambda seed: judge(data, probe, seed, after_epoch), probe.seeds))
    finally:
        torch.set_num_threads(cores)


def _best(epochs: list[TaskScore], seed: int) -> dict[str, Any]:
    number, best = max(enumerate(epochs), key=lambda item: item[1].score)
    return {"seed": seed, "epoch": number + 1, "score": best.score} | asdict(best)


def _progress() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def scores_table(scores: list[Scores], title: str) -> Table:
    """A row a block or entry, a column a task, the sum last."""
    table = Table(title=title, title_justify="left")
    table.add_column("block or entry")
    table.add_column("probe")
    table.add_column("columns", justify="right")
    for task in TASKS:
        table.add_column(task.name.removeprefix("propensity_").replace("_", " "), justify="right")
    table.add_column("sum", justify="right")
    for row in scores:
        spread = f" ±{row.spread:.3f}" if row.spread else ""
        figures = [f"{row.tasks[task.name]:.4f}" for task in TASKS]
        table.add_row(row.name, row.probe, f"{row.columns:,}", *figures, f"{row.total:.4f}{spread}")
    return table


def probe_title(probe: Probe) -> str:
    """What stands above a table: which probe it shows."""
    if probe.name == "judge":
        return "by the judge: the organisers' model, higher is better"
    return (
        f"by the {probe.name} probe: {probe.thin} hidden units, {probe.epochs} epochs, mean of {len(probe.seeds)} "
        "seeds ± the sum's spread; not the judge's figures"
    )
