"""What the judge's training makes of a profile, step by step: where a score breaks down within an epoch, and by what.

    python benchmarks/judge_steps.py embeddings=best_solution_conditioned
    python benchmarks/judge_steps.py embeddings=best_solution task=churn seed=1 every=5 table=steps.csv

Trains one task's model as the judge does and scores all clients after every few steps. A propensity task's logits are
mostly one factor that all labels share, so the table follows that: its spread, its share of the logits' variance, and
its largest value. A minute and a half on one thread, twice that with ``every=1``.
"""

import csv
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
from omegaconf import DictConfig
from rich.table import Table
from torch import Tensor
from torch.nn import functional

from ubp.cli.command import command
from ubp.cli.config import Common, parse
from ubp.cli.output import closing_line, show
from ubp.data.targets import TASKS
from ubp.evaluation.evaluate import choose_device
from ubp.evaluation.judge import JudgeModel, TaskData, batches, optimizer_of
from ubp.evaluation.metrics import TaskMetrics
from ubp.evaluation.probes import Probe
from ubp.evaluation.profiles import load_profiles
from ubp.evaluation.scoring import task_data
from ubp.evaluation.tasks import GroundTruth
from ubp.io.errors import require


@dataclass(frozen=True)
class Step:
    """What all clients' logits are like after a step.

    Attributes:
        epoch: from 1.
        step: from 1.
        loss: of the step's batch, before the step; one far above its neighbours' turns the training round.
        moved: how far the step moved the first layer's output, root mean square, beside its size.
        mean: of the logits.
        spread: their root mean square deviation from each label's mean.
        common: the share of the squared deviations that all labels have in common.
        largest: the largest of the clients' mean logits.
        auroc: on the validation window.
    """

    epoch: int
    step: int
    loss: float
    moved: float
    mean: float
    spread: float
    common: float
    largest: float
    auroc: float


def steps_of(data: TaskData, probe: Probe, seed: int, every: int) -> Iterator[Step]:
    """Train as `ubp.evaluation.judge.judge` does, and look after every few steps and at each epoch's end.

    Args:
        data: the task.
        probe: sizes and procedure.
        seed: of the model's first weights.
        every: steps from one look to the next.
    """
    torch.manual_seed(seed)
    model = JudgeModel(data.profiles.shape[1], data.train.shape[1], probe.width, probe.hidden).to(data.profiles.device)
    optimizer, metrics = optimizer_of(model, probe), TaskMetrics(data.task, data.targets, data.profiles.device)
    rows_of_steps = batches(data.profiles, probe)
    for number in range(probe.epochs * len(rows_of_steps)):
        rows = rows_of_steps[number % len(rows_of_steps)]
        loss = functional.binary_cross_entropy_with_logits(model(data.profiles[rows]), data.train[rows].float())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        before = model.project.weight.detach().clone()
        optimizer.step()
        epoch, step = number // len(rows_of_steps) + 1, number + 1
        if step % every == 0 or step % len(rows_of_steps) == 0:
            yield Step(
                epoch,
                step,
                loss.item(),
                _moved(model, before, data.profiles[rows]),
                *_look(model, data, probe, metrics),
            )


@torch.inference_mode()
def _moved(model: JudgeModel, before: Tensor, profiles: Tensor) -> float:
    moved, size = profiles @ (model.project.weight - before).T, profiles @ before.T
    return float(moved.norm() / size.norm())


@torch.inference_mode()
def _look(
    model: JudgeModel, data: TaskData, probe: Probe, metrics: TaskMetrics
) -> tuple[float, float, float, float, float]:
    every = []
    for rows in batches(data.profiles, probe):
        every.append(model(data.profiles[rows]))
        metrics.update(every[-1], data.validation[rows])
    logits = torch.cat(every)
    varied = logits - logits.mean(dim=0)
    shared, square = varied.mean(dim=1), varied.square().mean()
    common = float(shared.square().mean() / square) if square > 0 else 0.0
    largest = float(logits.mean(dim=1).max())
    return float(logits.mean()), float(square.sqrt()), common, largest, metrics.compute().auroc


@command("scripts", "judge_steps")
def main(config: DictConfig) -> list[Step]:
    common = Common.of(config)
    data, probe, names = common.data(), parse(Probe, config, at="probe"), [task.name for task in TASKS]
    require(config.task in names, "task", config.task, f"one of {', '.join(names)}")
    profiles = load_profiles(config.embeddings, common.paths.embeddings(common.submit), data)
    task = TASKS[names.index(config.task)]
    labelled = task_data(task, profiles, GroundTruth.load(data.paths), choose_device(config.device))
    found = list(steps_of(labelled, probe, config.model_seed, config.every))
    columns = [field.name for field in fields(Step)]
    table = Table(*columns)
    for step in found:
        table.add_row(*(f"{value:.4f}" if isinstance(value, float) else str(value) for value in asdict(step).values()))
    show(table)
    with Path(config.table).open("w", newline="") as lines:
        writer = csv.DictWriter(lines, columns)
        writer.writeheader()
        writer.writerows(asdict(step) for step in found)
    closing_line(f"{profiles.name}: {len(found)} looks at {task.name}", Path(config.table))
    return found


if __name__ == "__main__":
    main()
