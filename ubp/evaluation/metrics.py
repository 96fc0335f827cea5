"""What a task is scored by: AUROC, novelty, diversity and their weighted sum."""

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor
from torchmetrics.classification import BinaryAUROC, MultilabelAUROC

from ubp.data.targets import Targets, Task

AUROC_WEIGHT: Final = 0.8
NOVELTY_WEIGHT: Final = 0.1
DIVERSITY_WEIGHT: Final = 0.1

_TOP: Final = 10  # of a row's predictions, for novelty
_EPSILON: Final = 1e-9
_NOVELTY_POWER: Final = 100


@dataclass(frozen=True)
class TaskScore:
    """A task's metrics after one epoch; ``novelty`` and ``diversity`` are None for churn and conversion."""

    auroc: float
    novelty: float | None = None
    diversity: float | None = None

    @property
    def score(self) -> float:
        """The figure that counts, not rounded."""
        if self.novelty is None or self.diversity is None:
            return self.auroc
        return AUROC_WEIGHT * self.auroc + NOVELTY_WEIGHT * self.novelty + DIVERSITY_WEIGHT * self.diversity


def entropies(logits: Tensor) -> Tensor:
    """Entropy in bits of each row's sigmoids, divided by their sum: float [rows].

    docs/judge.md, Scores: −Σ p·log2(p + 1e-9).
    """
    shares = torch.sigmoid(logits)
    shares = shares / shares.sum(dim=-1, keepdim=True)
    return -(shares * torch.log2(shares + _EPSILON)).sum(dim=-1)


def top_popularities(logits: Tensor, popularity: Tensor) -> Tensor:
    """The popularity of each row's highest predictions, weighted by their sigmoids: float [rows].

    Args:
        logits: [rows, targets].
        popularity: [targets], divided by the sum of its 10 largest values.
    """
    values, columns = torch.topk(torch.sigmoid(logits), min(_TOP, len(popularity)), dim=-1)
    return (values * popularity[columns]).sum(dim=-1)


def normalised_popularity(targets: Targets) -> Tensor:
    """Popularity divided by the sum of its 10 largest values: float64 [targets]; zeros where all are zero."""
    popularity = torch.from_numpy(targets.popularity)
    largest = torch.topk(popularity, min(_TOP, len(popularity))).values.sum()
    return popularity / largest if largest > 0 else torch.zeros_like(popularity)


class TaskMetrics:
    """Collects a validation window's predictions batch by batch.

    torchmetrics takes the sigmoid of a batch only if some logit of that batch lies outside 0..1. The
    organisers fed it batches of 128, so the scores depend, a little, on these batches: feed it the same.

    Args:
        task: what is scored.
        targets: of a propensity task.
        device: where the predictions are.
    """

    def __init__(self, task: Task, targets: Targets | None, device: torch.device) -> None:
        self._popularity: Tensor | None = None
        self._auroc: MultilabelAUROC | BinaryAUROC
        if task.is_propensity and targets is not None:
            self._auroc = MultilabelAUROC(len(targets.values), validate_args=False).to(device)
            # MPS has no float64; the sums below are float32 as the organisers' are.
            self._popularity = normalised_popularity(targets).to(torch.float32).to(device)
        else:
            self._auroc = BinaryAUROC(validate_args=False).to(device)
        self._device = device
        self._reset()

    def _reset(self) -> None:
        self._auroc.reset()
        self._entropy = torch.zeros((), device=self._device)
        self._top = torch.zeros((), device=self._device)
        self._rows = 0

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Add a batch: float logits and 0/1 labels, both [rows, targets]."""
        self._auroc.update(logits, labels.long())
        self._rows += len(logits)
        if self._popularity is not None:
            self._entropy += entropies(logits).sum()
            self._top += top_popularities(logits, self._popularity).sum()

    def compute(self) -> TaskScore:
        """The metrics of all batches since the last call, and a fresh start."""
        auroc = float(self._auroc.compute())
        if self._popularity is None:
            score = TaskScore(auroc)
        else:
            bits = torch.log2(torch.tensor(float(len(self._popularity)))).item()
            novelty = (1 - float(self._top) / self._rows) ** _NOVELTY_POWER
            score = TaskScore(auroc, novelty, float(self._entropy) / self._rows / bits if bits else 0.0)
        self._reset()
        return score
