"""The model that scores a profile, and how it is trained: docs/judge.md, The judge's model.

A loop of its own, not Lightning: its exact steps are the specification, and the quick probe takes thousands
of steps of a few milliseconds each.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ubp.data.targets import Targets, Task
from ubp.evaluation.metrics import TaskMetrics, TaskScore
from ubp.evaluation.probes import Probe

# torch's seed is the whole process's: nobody else may draw while a model draws its first weights.
_SEEDING = threading.Lock()


class _Block(nn.Module):
    """LayerNorm's output goes in, what is added to the residual stream comes out."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        down: Tensor = self.down(functional.gelu(self.up(x)))
        return down


class JudgeModel(nn.Module):
    """Residual network of three inverted bottlenecks over one profile.

    The order in which the modules are made decides which random numbers each gets: do not change it.
    """

    def __init__(self, columns: int, targets: int, width: int, hidden: int) -> None:
        super().__init__()
        self.project = nn.Linear(columns, width)
        self.norm_in = nn.LayerNorm(width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.blocks = nn.ModuleList(_Block(width, hidden) for _ in range(3))
        self.norm_out = nn.LayerNorm(width)
        self.out = nn.Linear(width, targets)

    @property
    def inner(self) -> list[nn.Linear]:
        """The layers whose inputs are as many as the width or the hidden units."""
        return [
            module for part in (*self.blocks, self.out) for module in part.modules() if isinstance(module, nn.Linear)
        ]

    def forward(self, profiles: Tensor) -> Tensor:
        """Logits [rows, targets] of profiles [rows, columns]."""
        x = self.norm_in(self.project(profiles))
        for norm, block in zip(self.norms, self.blocks, strict=True):
            x = x + block(norm(x))
        logits: Tensor = self.out(self.norm_out(x))
        return logits


@dataclass(frozen=True)
class TaskData:
    """One task's data, on the device that trains.

    Attributes:
        task: the task.
        profiles: float32 [clients, columns].
        train: uint8 labels [clients, targets] of the train window.
        validation: the same of the validation window.
        targets: of a propensity task.
        scored: profiles of the clients that ``validation`` is about, float32 [others, columns]; None: of the same.
    """

    task: Task
    profiles: Tensor
    train: Tensor
    validation: Tensor
    targets: Targets | None
    scored: Tensor | None = None


def judge(
    data: TaskData,
    probe: Probe,
    seed: int,
    after_epoch: Callable[[], None],
    before_batch: Callable[[], None] = lambda: None,
) -> list[TaskScore]:
    """Train the probe's model on the train window and score it on the validation window after each epoch.

    Args:
        data: the task.
        probe: sizes and procedure.
        seed: of the model's first weights.
        after_epoch: called when an epoch is scored.
        before_batch: called before each batch of rows; what it raises ends the run.

    Returns:
        The scores, epoch by epoch.
    """
    device = data.profiles.device
    with _SEEDING:
        torch.manual_seed(seed)
        model = JudgeModel(data.profiles.shape[1], data.train.shape[1], probe.width, probe.hidden)
    model.to(device)
    optimizer = optimizer_of(model, probe)
    metrics = TaskMetrics(data.task, data.targets, device)
    scores = []
    for _ in range(probe.epochs):
        model.train()
        for rows in batches(data.profiles, probe):
            before_batch()
            loss = functional.binary_cross_entropy_with_logits(model(data.profiles[rows]), data.train[rows].float())
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        scores.append(_score(model, data, probe, metrics, before_batch))
        after_epoch()
    return scores


def optimizer_of(model: JudgeModel, probe: Probe) -> torch.optim.Optimizer:
    """AdamW; with a rate of their own for weights whose inputs are as many as the width or the hidden units."""
    faster = {linear.weight for linear in model.inner}
    groups: list[dict[str, Any]] = [
        {"params": [weight for weight in model.parameters() if weight not in faster]},
        {"params": [weight for weight in model.parameters() if weight in faster], "lr": probe.rate_of_the_width},
    ]
    # The fused form does the same sums in one pass over the weights: a third off the judge's time on a CPU.
    return torch.optim.AdamW(groups, lr=probe.learning_rate, fused=True)


def batches(profiles: Tensor, probe: Probe) -> list[slice]:
    """The rows of each batch, in the order of the profiles."""
    return [slice(start, start + probe.batch_size) for start in range(0, len(profiles), probe.batch_size)]


def _score(
    model: nn.Module, data: TaskData, probe: Probe, metrics: TaskMetrics, before_batch: Callable[[], None]
) -> TaskScore:
    model.eval()
    profiles = data.profiles if data.scored is None else data.scored
    with torch.inference_mode():
        for rows in batches(profiles, probe):
            before_batch()
            metrics.update(model(profiles[rows]), data.validation[rows])
        return metrics.compute()
