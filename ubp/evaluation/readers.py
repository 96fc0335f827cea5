"""Simple readers of profiles: what a logistic regression takes from a vector, for a few of the open tasks."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from ubp.blocks.embeddings import EmbeddingTable
from ubp.data.targets import TASKS, Task
from ubp.evaluation.tasks import GroundTruth
from ubp.io.errors import require

logger = logging.getLogger(__name__)

CHURN, CATEGORY = "churn", "category"
_TASKS: Final = {task.name: task for task in TASKS}
_FEWEST: Final = 10  # clients with and without a label that a reader learns from
_STEPS: Final = 1000  # of L-BFGS, at most

Labels = npt.NDArray[np.uint8]
Vectors = npt.NDArray[np.float32]


@dataclass
class ReaderSettings:
    """Which readers, and how they learn.

    Attributes:
        clients: that they learn from, at most, drawn by the seed.
        categories: that the most clients buy, each with a reader of its own.
        strength: of the fit against the regularization: scikit-learn's ``C``.
    """

    clients: int
    categories: int
    strength: float

    def __post_init__(self) -> None:
        """Refuse what makes no sense.

        Raises:
            UserError: a number out of its range.
        """
        require(self.clients >= 0, "readers.clients", self.clients, "at least 0")
        require(self.categories >= 0, "readers.categories", self.categories, "at least 0")
        require(self.strength > 0, "readers.strength", self.strength, "above 0")


@dataclass(frozen=True)
class Reader:
    """A logistic regression over standardised columns.

    Attributes:
        name: ``churn``, or ``category 17``.
        mean: float64 [columns].
        weights: float64 [columns], of the columns as they are.
        bias: of a vector at the mean.
        auroc: on the window after the one that it learned from; NaN where all or none have the label there.
        share: of the clients that it learned from which have the label.
    """

    name: str
    mean: npt.NDArray[np.float64]
    weights: npt.NDArray[np.float64]
    bias: float
    auroc: float
    share: float

    def probability(self, vectors: Vectors) -> npt.NDArray[np.float64]:
        """Of the label: float32 [rows, columns] to float64 [rows]; NaN for a row of NaN."""
        logits = (vectors.astype(np.float64) - self.mean) @ self.weights + self.bias
        answers: npt.NDArray[np.float64] = 1 / (1 + np.exp(-logits))
        return answers


def fit_readers(table: EmbeddingTable, truth: GroundTruth, settings: ReaderSettings, seed: int) -> list[Reader]:
    """Readers of churn and of some categories; without those that have too few clients with or without the label.

    Args:
        table: vectors of clients as of the day before the train window.
        truth: what they did in the two windows.
        settings: which.
        seed: of the draw of clients.
    """
    drawn = table.client_ids
    if len(drawn) > settings.clients:
        drawn = np.sort(np.random.default_rng(seed).choice(drawn, settings.clients, replace=False))
    chosen = np.isin(table.client_ids, drawn)
    clients, vectors, found = table.client_ids[chosen], table.vectors[chosen], []
    for name, task, train, validation in _asked(truth, clients, settings):
        rows = truth.takes_part(task, clients)
        made = _fit(name, vectors[rows], train[rows], validation[rows], settings.strength)
        if made is None:
            logger.info("%s is not read: %d clients at least must have it, and %d not", name, _FEWEST, _FEWEST)
        else:
            found.append(made)
    return found


def _asked(
    truth: GroundTruth, clients: npt.NDArray[np.int64], settings: ReaderSettings
) -> Iterator[tuple[str, Task, Labels, Labels]]:
    """Name, task and the labels of both windows: uint8 [clients]."""
    churn = _TASKS[CHURN]
    train, validation = truth.labels(churn, clients)
    yield CHURN, churn, train[:, 0], validation[:, 0]
    task = _TASKS[f"propensity_{CATEGORY}"]
    train, validation = truth.labels(task, clients)
    buyers = train.sum(axis=0, dtype=np.int64)
    for place in np.argsort(-buyers, kind="stable")[: settings.categories]:
        yield f"{CATEGORY} {truth.targets[task.name].values[place]}", task, train[:, place], validation[:, place]


def _fit(name: str, vectors: Vectors, train: Labels, validation: Labels, strength: float) -> Reader | None:
    """None where there is too little to learn from."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score

    some = int(train.sum())
    if min(some, len(train) - some) < _FEWEST:
        return None
    mean, deviation = vectors.mean(axis=0, dtype=np.float64), vectors.std(axis=0, dtype=np.float64)
    deviation[deviation <= 1e-6 * np.maximum(np.abs(mean), 1e-6)] = np.inf  # a constant column says nothing
    model = LogisticRegression(C=strength, max_iter=_STEPS).fit((vectors - mean) / deviation, train)
    made = Reader(name, mean, model.coef_[0] / deviation, float(model.intercept_[0]), float("nan"), some / len(train))
    if 0 < validation.sum() < len(validation):
        auroc = float(roc_auc_score(validation, made.probability(vectors)))
        made = Reader(name, mean, made.weights, made.bias, auroc, made.share)
    return made
