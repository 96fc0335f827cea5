"""How well a saved model's profiles still say what comes next: a probe on a window that the model has not seen.

Profiles as of a day, made by the saved model; half of the clients teach the probe what they did in the fortnight after,
by the other half it is scored. At training, that fortnight is the first one after the model's own day, not the last one
before it: that it may have learned from. So a model's scores begin a fortnight after its day.
"""

import logging
import time
import warnings
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, Self

import numpy as np
import numpy.typing as npt
import polars as pl
import torch

from ubp.blocks.embeddings import EmbeddingTable
from ubp.blocks.fitted import FittedBlock
from ubp.data import schema
from ubp.data.history import ChallengeData
from ubp.data.reading import collect, within
from ubp.data.schema import EventType
from ubp.data.split import DAYS_IN_TARGET
from ubp.data.targets import TASKS, Targets, Task, load_targets, target_files
from ubp.evaluation.evaluate import choose_device, deterministic
from ubp.evaluation.judge import TaskData, judge
from ubp.evaluation.metrics import TaskScore
from ubp.evaluation.probes import Probe
from ubp.evaluation.scores import Scores
from ubp.evaluation.scoring import best_epoch, summed, workers_of
from ubp.evaluation.tasks import labels

logger = logging.getLogger(__name__)

WINDOW: Final = timedelta(days=DAYS_IN_TARGET)

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class WindowScores:
    """Scores on one window.

    Attributes:
        start: the day of the profiles, ISO 8601; the window begins with it.
        clients: half of them taught, half were scored.
        tasks: the scores; None for a task that cannot be scored.
        mean: over the tasks that can.
        seconds: that it took.
    """

    start: str
    clients: int
    tasks: dict[str, float | None]
    mean: float
    seconds: float

    @classmethod
    def of(cls, start: datetime, clients: int, scores: Scores, seconds: float) -> Self:
        """From scores."""
        mean = round(scores.total / max(scores.n_tasks, 1), 4)
        return cls(start.isoformat(sep=" "), clients, scores.tasks, mean, round(seconds, 1))

    def fell_to(self, other: "WindowScores") -> float:
        """By how much the mean over the tasks that both have is lower in another window."""
        pairs = [(score, other.tasks[task]) for task, score in self.tasks.items()]
        shared = [(one, two) for one, two in pairs if one is not None and two is not None]
        return sum(one - two for one, two in shared) / max(len(shared), 1)


def score_window(
    fitted: FittedBlock, log: ChallengeData, start: datetime, probe: Probe, clients: int, seed: int
) -> WindowScores:
    """Score the profiles as of a day on the window after it.

    Args:
        fitted: the saved model.
        log: goes on at least to the window's end.
        start: the day.
        probe: by what.
        clients: a sample of so many, at most, of those with an event before the day.
        seed: of the sample.
    """
    began = time.perf_counter()
    known = log.before(start)
    every = known.seen()
    draw = np.random.default_rng(seed)
    chosen = np.sort(draw.choice(every, min(clients, len(every)), replace=False))
    table = fitted.encode(known, chosen)
    teaches = draw.permutation(len(table)) < len(table) // 2
    window = _purchases(log, start, start + WINDOW)
    buyers = collect(known.events(EventType.PRODUCT_BUY).select(schema.CLIENT_ID).unique())[schema.CLIENT_ID].to_numpy()
    device = choose_device("auto")
    is_buyer = np.isin(table.client_ids, buyers)
    runs = dict[str, list[Future[list[TaskScore]]]]()
    with deterministic(device.type == "cpu"), workers_of(probe, device) as (pool, _), warnings.catch_warnings():
        # A label that nobody bought counts as torchmetrics counts it.
        warnings.filterwarnings("ignore", message="No (positive|negative) samples in targets")
        for task in TASKS:
            part = is_buyer if task.active_only else np.ones(len(table), bool)
            if task.name == "conversion" and "churn" in runs and is_buyer.all():
                runs[task.name] = runs["churn"]  # the same question about the same clients
            elif data := _task_data(task, log, table, (part & teaches, part & ~teaches), window, device):
                runs[task.name] = [pool.submit(judge, data, probe, each, lambda: None) for each in probe.seeds]
        details = {
            task: [best_epoch(run.result(), each) for run, each in zip(of_task, probe.seeds, strict=True)]
            for task, of_task in runs.items()
        }
    scores = summed("profiles", table.columns, probe, details)
    found = WindowScores.of(start, len(table), scores, time.perf_counter() - began)
    logger.info("the window from %s: %.4f over %d tasks in %.1f s", start, found.mean, scores.n_tasks, found.seconds)
    return found


def _task_data(
    task: Task,
    log: ChallengeData,
    table: EmbeddingTable,
    parts: tuple[Mask, Mask],
    window: pl.DataFrame,
    device: torch.device,
) -> TaskData | None:
    """What one task is taught and scored by; None where it has no targets, or one part nothing to learn from.

    Args:
        task: the task.
        log: that has its targets.
        table: the profiles.
        parts: bool [clients], who teaches and who is scored.
        window: the purchases.
        device: to train on.
    """
    targets = _targets(log, task)
    if task.is_propensity and (targets is None or not len(targets.values)):
        return None
    answers = [labels(task, table.client_ids[part], window, targets) for part in parts]
    if not all(answer.any() for answer in answers):
        return None
    taught, scored = (torch.from_numpy(table.vectors[part]).to(device) for part in parts)
    given, held_out = (torch.from_numpy(answer).to(device) for answer in answers)
    return TaskData(task, taught, given, held_out, targets, scored)


def _targets(log: ChallengeData, task: Task) -> Targets | None:
    there = task.is_propensity and all(file.exists() for file in target_files(log.paths, task))
    return load_targets(log.paths, task) if there else None


def _purchases(log: ChallengeData, start: datetime, end: datetime) -> pl.DataFrame:
    """Those of a window, as `ubp.evaluation.tasks.load_window` gives a split's."""
    columns = (schema.CLIENT_ID, schema.SKU, schema.CATEGORY, schema.PRICE)
    return collect(log.with_properties(EventType.PRODUCT_BUY).filter(within(start, end)).select(columns))
