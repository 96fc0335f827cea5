"""Profiles in, scores out: the six tasks by one probe."""

import logging
import statistics
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from ubp.data import schema
from ubp.data.paths import DataPaths
from ubp.data.reading import load_clients
from ubp.data.targets import TASKS, Task
from ubp.evaluation.judge import TaskData, judge
from ubp.evaluation.metrics import TaskScore
from ubp.evaluation.probes import Probe
from ubp.evaluation.profiles import Profiles
from ubp.evaluation.scores import Scores
from ubp.evaluation.tasks import labels, load_targets, load_window
from ubp.io.errors import UserError
from ubp.io.progress import progress_bar

logger = logging.getLogger(__name__)

_PLACES = 4  # scores are rounded to
_LONG = 10.0  # seconds after which a task gets a line of its own


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
    with progress_bar() as progress, warnings.catch_warnings():
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
