"""Learning the factorisation with LightFM."""

import logging
import time
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_matrix, csr_matrix

from ubp.io import machine
from ubp.io.errors import UserError, require, require_positive

logger = logging.getLogger(__name__)

Vectors = npt.NDArray[np.float32]


@dataclass(frozen=True)
class ModelSettings:
    """Numbers of the factorisation; see LightFM's documentation.

    Attributes:
        epochs: passes over the pairs; with ``steps`` the most of them.
        steps: about how many pairs to visit in all, whatever their number; None: as many as the epochs have.
        threads: 0 for `machine.threads`.
    """

    components: int
    loss: str
    epochs: int
    learning_schedule: str
    learning_rate: float
    item_alpha: float
    user_alpha: float
    max_sampled: int
    threads: int
    steps: int | None = None

    def __post_init__(self) -> None:
        """Refuse numbers that make no sense.

        Raises:
            UserError: a number out of its range, an unknown choice.
        """
        # k-OS WARP takes no weights, and the logistic loss needs negatives, of which there are none here.
        require(self.loss in ("warp", "bpr"), "model.loss", self.loss, "warp or bpr")
        schedules = ("adagrad", "adadelta")
        require(
            self.learning_schedule in schedules,
            "model.learning_schedule",
            self.learning_schedule,
            " or ".join(schedules),
        )
        require_positive(self, "model", "components", "epochs", "max_sampled")
        require(self.steps is None or self.steps >= 1, "model.steps", self.steps, "at least 1, or null")
        require(self.learning_rate > 0, "model.learning_rate", self.learning_rate, "above 0")
        for name in ("item_alpha", "user_alpha", "threads"):
            require(getattr(self, name) >= 0, f"model.{name}", getattr(self, name), "at least 0")

    def epochs_over(self, pairs: int) -> int:
        """How often so many pairs are passed over: at least once, and as near to ``steps`` as ``epochs`` allow."""
        if self.steps is None:
            return self.epochs
        return min(max(1, round(self.steps / max(pairs, 1))), self.epochs)


@dataclass(frozen=True)
class Prepared:
    """What LightFM learns from.

    Attributes:
        weights: float32 [clients, skus], a positive weight for each pair.
        client_features: float32 [clients, client features].
        sku_features: float32 [skus, sku features].
    """

    weights: coo_matrix
    client_features: csr_matrix
    sku_features: csr_matrix


@dataclass(frozen=True)
class Learned:
    """What was learned in so many passes.

    Attributes:
        clients: float32 [client features, components].
        skus: float32 [sku features, components].
        epochs: passes over the pairs.
    """

    clients: Vectors
    skus: Vectors
    epochs: int


def learn(prepared: Prepared, settings: ModelSettings, seed: int) -> Learned:
    """Learn the factorisation.

    Raises:
        UserError: it diverges, as with settings that overflow.
    """
    from lightfm import LightFM  # two seconds, which a block that is there does not need

    model = LightFM(
        no_components=settings.components,
        loss=settings.loss,
        learning_schedule=settings.learning_schedule,
        learning_rate=settings.learning_rate,
        item_alpha=settings.item_alpha,
        user_alpha=settings.user_alpha,
        max_sampled=settings.max_sampled,
        random_state=seed,
    )
    weights, threads = prepared.weights, settings.threads or machine.threads()
    positive = coo_matrix((np.ones(weights.nnz, np.float32), (weights.row, weights.col)), weights.shape)
    epochs = settings.epochs_over(weights.nnz)
    if settings.steps is not None:
        logger.info(
            "model.steps=%s: %d epochs of %s pairs, %d at the most",
            f"{settings.steps:,}", epochs, f"{weights.nnz:,}", settings.epochs,
        )  # fmt: skip
    for epoch in range(1, epochs + 1):
        started = time.perf_counter()
        try:
            with np.errstate(invalid="ignore"):  # it looks for infinities by adding them up
                model.fit_partial(
                    positive,
                    user_features=prepared.client_features,
                    item_features=prepared.sku_features,
                    sample_weight=weights,
                    num_threads=threads,
                )
        except ValueError as error:  # what LightFM says of vectors that are no longer finite
            raise UserError(f"model: {error}; try a smaller learning_rate or transform=log1p") from error
        logger.info("epoch %d of %d: %.1f s", epoch, epochs, time.perf_counter() - started)
    return Learned(np.asarray(model.user_embeddings, np.float32), np.asarray(model.item_embeddings, np.float32), epochs)
