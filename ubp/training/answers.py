"""What a model answers about the window after a day, and what it loses where it is wrong.

Groups of labels (`ubp.data.labels.GROUPS`): a logit for each. Questions: yes or no, a count, a time.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Final, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torchmetrics.functional.classification import binary_auroc

from ubp.blocks.fitted import Clients, FittedBlock, Vectors
from ubp.data.history import ChallengeData
from ubp.training.encode import Asked
from ubp.training.model import Batch
from ubp.training.snapshot_source import ADDED, BASKETS, BOUGHT, CENSORED, CHURN, DAYS

# What is asked beside the groups of labels: yes or no, a count, a time.
QUESTIONS: Final = (CHURN, BOUGHT, ADDED, BASKETS, DAYS)
_RATE: Final = (-10.0, 5.0)  # logarithms of a rate a day, beyond which a loss would overflow
_LEAST: Final = 1  # rows with and without a label that an AUROC needs


class Answering(Protocol):
    """A model that answers about windows."""

    @property
    def groups(self) -> Mapping[str, int]:
        """How many labels each group has."""

    def by_group(self, labels: Tensor) -> dict[str, Tensor]:
        """What stands for all labels in the last dimension, in parts: of each group."""

    def answers(self, batch: Batch) -> dict[str, Tensor]:
        """Logits of each group, float [rows, labels], and the answer to each question, float [rows, 1]."""


class AnsweringBlock(FittedBlock):
    """A fitted block that answers about the window after the history's ``as_of``."""

    @property
    @abstractmethod
    def asked(self) -> tuple[str, ...]:
        """The groups of labels and the `QUESTIONS` that it answers."""

    @abstractmethod
    def answers(self, history: ChallengeData, clients: Clients, names: Sequence[str]) -> tuple[Clients, Vectors]:
        """What it answers about some clients.

        Args:
            history: as known on the day of its ``as_of``; events after it are not in it.
            clients: int64 [n], ascending, each once.
            names: groups and questions, of `asked`.

        Returns:
            int64 [m], ascending, those of the clients that have events which the block reads, and
            float32 [m, answers]: of each group a logit a label, of each question one number, in the order of the names.
        """


def wanted_of(model: Answering, names: Sequence[str]) -> Asked:
    """A model's answers to some groups and questions side by side, in the order of the names."""

    def answers(batch: Batch) -> Tensor:
        found = model.answers(batch)
        return torch.cat([found[name] for name in names], dim=1)

    return Asked(answers, sum(model.groups.get(name, 1) for name in names))


def answer_losses(
    answers: Mapping[str, Tensor], labels: Mapping[str, Tensor], weights: Mapping[str, Tensor], batch: Batch
) -> dict[str, Tensor]:
    """By group and question: the mean over the rows, and over the group's labels; scalars.

    So a group weighs the same however many labels it has. In a sum over all labels churn, one of some thousand,
    was hardly learned (docs/ablations.md).

    Args:
        answers: by group, float [rows, labels], logits; by question, float [rows, 1].
        labels: by group, 0 or 1: [rows, labels].
        weights: by group, of each label: float [labels] (`rarity`).
        batch: by question, float [rows], NaN where a row has no answer; and `CENSORED`.
    """
    found = {}
    for name, answer in answers.items():
        if name in labels:
            wanted = labels[name].float()
            each = functional.binary_cross_entropy_with_logits(answer, wanted, reduction="none")
            found[name] = (each * weights[name]).mean()
        else:
            found[name] = question_loss(name, answer.squeeze(1), batch)
    return found


def rarity(shares: Tensor, power: float) -> Tensor:
    """Weights p^-power of labels, on average 1; labels that no row has count as the rarest that one has."""
    if not power:
        return torch.ones_like(shares)
    present = shares[shares > 0]
    least = present.min() if len(present) else shares.new_ones(())
    weights = shares.clamp(min=float(least)) ** -power
    return weights / weights.mean()


def question_loss(name: str, answer: Tensor, batch: Batch) -> Tensor:
    """The loss of a question's answer, summed over the rows that have one, by the number of all rows: a scalar.

    So parts of a batch add up to it by their rows; it is 0 where no row has an answer.

    - yes or no: binary cross-entropy of a logit;
    - `BASKETS`: Poisson, the answer is the rate's logarithm;
    - `DAYS`: exponential with a censored end, the answer is the logarithm of the rate a day: rate × days - its
      logarithm where the purchase came.
    """
    wanted = batch[name]
    real = ~wanted.isnan()
    wanted = wanted.nan_to_num()
    if name == BASKETS:
        each = functional.poisson_nll_loss(answer.clamp(*_RATE), wanted, reduction="none")
    elif name == DAYS:
        rate = answer.clamp(*_RATE)
        each = rate.exp() * wanted - (1 - batch[CENSORED]) * rate
    else:
        each = functional.binary_cross_entropy_with_logits(answer, wanted, reduction="none")
    return (each * real).sum() / len(each)


def mean_auroc(answers: Tensor, wanted: Tensor) -> float | None:
    """Over the labels that some rows have and some have not; None where there is no such label.

    Args:
        answers: float [rows, labels].
        wanted: 0, 1, or NaN for a row without an answer: [rows, labels].
    """
    found = []
    for answer, label in zip(answers.T, wanted.T.float(), strict=True):
        real = ~label.isnan()
        positive = int(label[real].sum())
        if min(positive, int(real.sum()) - positive) >= _LEAST:
            found.append(float(binary_auroc(answer[real], label[real].int())))
    return float(np.mean(found)) if found else None
