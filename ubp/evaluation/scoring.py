"""Profiles in, scores out: the six tasks by one probe, some things at once where its runs go side by side."""

import logging
import statistics
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from math import ceil
from typing import Any, ParamSpec, TypeVar

import torch
from rich.progress import Progress, TaskID

from ubp.data.paths import DataPaths
from ubp.data.targets import TASKS, Task
from ubp.evaluation.judge import TaskData, judge
from ubp.evaluation.metrics import TaskScore
from ubp.evaluation.probes import Probe
from ubp.evaluation.profiles import Profiles
from ubp.evaluation.scores import Scores
from ubp.evaluation.tasks import GroundTruth
from ubp.io import machine
from ubp.io.errors import UserError
from ubp.io.progress import progress_bar

logger = logging.getLogger(__name__)

Given = ParamSpec("Given")
Made = TypeVar("Made")

_PLACES = 4  # scores are rounded to
_LONG = 10.0  # seconds after which a run gets a line of its own
# Free memory, in sizes of the largest vectors so far, that lets another thing be begun beside those that run: its
# vectors as they are read and as float32, the active clients' of them, labels and predictions.
_ROOM = 4


def task_data(task: Task, profiles: Profiles, truth: GroundTruth, device: torch.device) -> TaskData:
    """The task's clients with their labels, on the device."""
    client_ids, vectors = profiles.client_ids, profiles.vectors
    chosen = truth.takes_part(task, client_ids)
    if not chosen.all():  # only then a copy
        client_ids, vectors = client_ids[chosen], vectors[chosen]
    train, validation = (torch.from_numpy(window).to(device) for window in truth.labels(task, client_ids))
    return TaskData(task, torch.from_numpy(vectors).to(device), train, validation, truth.targets.get(task.name))


def score(profiles: Profiles, probe: Probe, paths: DataPaths, device: torch.device) -> Scores:
    """Score a block or an entry on the six tasks: see `Scorer.begin`."""
    with scorer(probe, paths, device) as begun:
        scores, _ = begun.begin(profiles)()
    return scores


@contextmanager
def scorer(probe: Probe, paths: DataPaths, device: torch.device) -> Iterator["Scorer"]:
    """What scores by one probe.

    Args:
        probe: by what.
        paths: of targets and windows.
        device: to train on.

    Raises:
        UserError: targets or windows are missing, or cannot be used.
    """
    truth, stop = GroundTruth.load(paths), threading.Event()
    with workers_of(probe, device) as (pool, workers), progress_bar() as progress, warnings.catch_warnings():
        # A label that nobody bought counts as torchmetrics counts it; a line for each would bury the table.
        warnings.filterwarnings("ignore", message="No (positive|negative) samples in targets")
        try:
            yield Scorer(probe, truth, device, pool, workers, progress, stop)
        finally:
            stop.set()  # runs still under way are of no use to anybody: the pool need not wait for their ends


@contextmanager
def workers_of(probe: Probe, device: torch.device) -> Iterator[tuple[Executor, int]]:
    """What runs are given to, and how many it does at once; 0: in the caller's own thread."""
    if not probe.side_by_side or device.type != "cpu":
        yield _InTurn(), 0
        return
    workers, before = machine.threads(), torch.get_num_threads()
    # One thread a run, also where there is one core: the order of a sum's terms depends on the number of threads.
    torch.set_num_threads(1)
    pool = ThreadPoolExecutor(workers)
    try:
        yield pool, workers
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(before)


class _InTurn(Executor):
    """Does what it is given at once, in the caller's thread."""

    def submit(self, fn: Callable[Given, Made], /, *args: Given.args, **kwargs: Given.kwargs) -> Future[Made]:
        future: Future[Made] = Future()
        future.set_result(fn(*args, **kwargs))
        return future


class _Shared:
    """A task's data, made by the first of its runs and let go by the last: it may be as large as the profiles."""

    def __init__(self, make: Callable[[], TaskData], runs: int) -> None:
        self._make, self._runs = make, runs
        self._data: TaskData | None = None
        self._lock = threading.Lock()

    @contextmanager
    def taken(self) -> Iterator[TaskData]:
        with self._lock:
            data = self._data = self._data or self._make()
        yield data
        with self._lock:
            self._runs -= 1
            if not self._runs:
                self._data = None


@dataclass(frozen=True)
class _Run:
    """One seed's run of one task: the scores epoch by epoch, when it began and ended (`time.perf_counter`)."""

    epochs: list[TaskScore]
    began: float
    ended: float


class Scorer:
    """Scores things by one probe; `scorer` makes one."""

    def __init__(
        self,
        probe: Probe,
        truth: GroundTruth,
        device: torch.device,
        pool: Executor,
        workers: int,
        progress: Progress,
        stop: threading.Event,
    ) -> None:
        self._probe, self._truth, self._device = probe, truth, device
        self._pool, self._workers, self._progress, self._stop = pool, workers, progress, stop
        self._said: set[str] = set()  # lines
        self._largest = 0  # bytes of vectors; 0 before the first thing

    def has_room(self, begun: int) -> bool:
        """Whether to begin another thing beside those that are begun and not finished: cores would idle without it.

        Args:
            begun: their number.
        """
        enough = ceil(self._workers / (len(TASKS) * len(self._probe.seeds)))
        return begun == 0 or (begun <= enough and machine.free_memory() > _ROOM * self._largest)

    def begin(self, profiles: Profiles) -> Callable[[], tuple[Scores, float]]:
        """Begin to score a thing; where runs do not go side by side, do it.

        Args:
            profiles: what is scored; rows in the order in which the model sees them.

        Returns:
            What waits for the end, and gives the scores (of each task the best epoch's, the mean over the probe's
            seeds) and the seconds from the first run's beginning to the last one's end.

        Raises:
            UserError: there is nothing to score it on.
        """
        lacking = self._truth.lacking(profiles.client_ids)
        if len(lacking) == len(TASKS):
            raise UserError(list(lacking.values()))
        self._truth.require_purchases(profiles.client_ids)
        self._remark(profiles, lacking)
        self._largest = max(self._largest, profiles.vectors.nbytes)
        a_task = len(self._probe.seeds) * self._probe.epochs
        bar = self._progress.add_task(profiles.name, total=(len(TASKS) - len(lacking)) * a_task)
        runs: dict[str, list[Future[_Run]]] = {}
        for task in TASKS:
            if task.name in lacking:
                continue
            if task.name == "conversion" and "churn" in runs and self._all_active(profiles):
                runs[task.name] = runs["churn"]  # the same model would be trained twice on the same rows
                self._progress.advance(bar, a_task)
            else:
                runs[task.name] = self._submit(task, profiles, lambda: self._progress.advance(bar))
        return partial(self._finish, profiles.name, profiles.vectors.shape[1], runs, bar)

    def _remark(self, profiles: Profiles, lacking: Mapping[str, str]) -> None:
        """Say what the scores do not show: what is not scored, and of the first thing what counts as 0."""
        zeros = [] if self._largest else self._truth.counted_as_zero(profiles.client_ids)
        for line in [*lacking.values(), *zeros]:
            if line not in self._said:
                logger.warning("%s", line)
                self._said.add(line)

    def _all_active(self, profiles: Profiles) -> bool:
        return all(bool(self._truth.takes_part(task, profiles.client_ids).all()) for task in TASKS)

    def _submit(self, task: Task, profiles: Profiles, after_epoch: Callable[[], None]) -> list[Future[_Run]]:
        seeds = self._probe.seeds
        shared = _Shared(partial(task_data, task, profiles, self._truth, self._device), len(seeds))
        what = f"{profiles.name} · {task.name}"
        return [self._pool.submit(self._run, what, shared, seed, after_epoch) for seed in seeds]

    def _run(self, what: str, shared: _Shared, seed: int, after_epoch: Callable[[], None]) -> _Run:
        began = time.perf_counter()
        with shared.taken() as data:
            epochs = judge(data, self._probe, seed, after_epoch, self._go_on)
        run = _Run(epochs, began, time.perf_counter())
        if (seconds := run.ended - run.began) > _LONG:
            best = max(epoch.score for epoch in epochs)
            logger.info("%s, seed %d: %.4f after %.0f s", what, seed, best, seconds)
        return run

    def _go_on(self) -> None:
        if self._stop.is_set():
            raise CancelledError

    def _finish(
        self, name: str, columns: int, runs: Mapping[str, Sequence[Future[_Run]]], bar: TaskID
    ) -> tuple[Scores, float]:
        done = {task: [future.result() for future in futures] for task, futures in runs.items()}
        self._progress.remove_task(bar)
        every = [run for of_task in done.values() for run in of_task]
        seconds = max(run.ended for run in every) - min(run.began for run in every)
        details = {
            task: [best_epoch(run.epochs, seed) for run, seed in zip(of_task, self._probe.seeds, strict=True)]
            for task, of_task in done.items()
        }
        return summed(name, columns, self._probe, details), seconds


def best_epoch(epochs: Sequence[TaskScore], seed: int) -> dict[str, Any]:
    """The metrics of a run's best epoch, as `summed` takes them."""
    number, best = max(enumerate(epochs), key=lambda item: item[1].score)
    return {"seed": seed, "epoch": number + 1, "score": best.score} | asdict(best)


def summed(name: str, columns: int, probe: Probe, details: dict[str, list[dict[str, Any]]]) -> Scores:
    """The means over the seeds and their sum.

    Args:
        name: of what was scored.
        columns: its columns.
        probe: by what.
        details: task to the metrics of each seed's best epoch; without the tasks that cannot be scored.
    """
    means = {task: round(statistics.fmean(run["score"] for run in runs), _PLACES) for task, runs in details.items()}
    sums = [sum(runs[number]["score"] for runs in details.values()) for number in range(len(probe.seeds))]
    spread = round(statistics.stdev(sums), _PLACES) if len(sums) > 1 else 0.0
    tasks = {task.name: means.get(task.name) for task in TASKS}
    return Scores(name, columns, probe.name, tasks, round(sum(means.values()), _PLACES), spread, details)
