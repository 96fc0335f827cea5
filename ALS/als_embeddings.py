"""Implicit ALS over client × category or client × url.

    python ALS/als_embeddings.py --config-name=als_buy_add_categories     -> als_64_buy_add_categories
    python ALS/als_embeddings.py --config-name=als_visits_relevant        -> als_64_visits_relevant

A client's vector is its factor in the weighted factorisation of Hu, Koren and Volinsky, "Collaborative
Filtering for Implicit Feedback Datasets" (2008), as the library implicit computes it: on the GPU where it
finds CUDA, else on the CPU. On a CPU the same seed gives the same bits.
"""

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
from omegaconf import DictConfig
from scipy.sparse import csr_matrix
from threadpoolctl import threadpool_limits

from ubp import schema
from ubp.config import parse
from ubp.data import ChallengeData, collect
from ubp.errors import UserError, require_positive
from ubp.run import command, embedding_run
from ubp.schema import EventType

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Interactions:
    """What is factorised.

    Attributes:
        column: the items: ``category``, ``sku`` or ``url``.
        weights: event type to the weight of one event; weights of a client and an item add up.
        relevant_only: leave out the events of clients that need no profile.
        transform: of the summed weight: ``none`` or ``log1p``.
    """

    column: str
    weights: dict[str, float]
    relevant_only: bool
    transform: str


@dataclass(frozen=True)
class AlsSettings:
    """Numbers of the factorisation; see implicit's documentation."""

    factors: int
    regularization: float
    alpha: float
    iterations: int
    threads: int

    def __post_init__(self) -> None:
        """Refuse numbers that make no sense.

        Raises:
            UserError: no factors or no iterations.
        """
        require_positive(self, "als", "factors", "iterations")


@dataclass(frozen=True)
class WeightedInteractions:
    """A sparse matrix and its rows' meaning: ``matrix`` float32 [clients, items], ``clients`` int64 [clients]."""

    matrix: csr_matrix
    clients: npt.NDArray[np.int64]


def weighted_interactions(data: ChallengeData, settings: Interactions) -> WeightedInteractions:
    """Sum the weights of a client's events with an item.

    Raises:
        UserError: an unknown event type or transform, a column that an event type does not have, or no
            events at all.
    """
    known = [event_type.value for event_type in EventType]
    if unknown := [name for name in settings.weights if name not in known]:
        raise UserError(f"interactions.weights.{unknown[0]}: no such event type; known: {', '.join(known)}")
    if settings.transform not in ("none", "log1p"):
        raise UserError(f"interactions.transform={settings.transform}: must be none or log1p")
    frames = [
        _items(data, EventType(name), settings.column).with_columns(weight=pl.lit(weight, pl.Float64))
        for name, weight in settings.weights.items()
    ]
    events = pl.concat(frames)
    if settings.relevant_only:
        events = data.of_relevant(events)
    weight = pl.col("weight").log1p() if settings.transform == "log1p" else pl.col("weight")
    # Sorted, so that the same history gives the same matrix and the same seed the same factors.
    summed = collect(
        events.group_by(schema.CLIENT_ID, settings.column)
        .agg(pl.col("weight").sum())
        .with_columns(weight.cast(pl.Float32))
        .sort(schema.CLIENT_ID, settings.column)
    )
    if summed.is_empty():
        raise UserError(f"{data.folder}: no events of {', '.join(settings.weights)}; this embedding needs some")
    clients, rows = np.unique(summed[schema.CLIENT_ID].to_numpy(), return_inverse=True)
    items, columns = np.unique(summed[settings.column].to_numpy(), return_inverse=True)
    matrix = csr_matrix((summed["weight"].to_numpy(), (rows, columns)), (len(clients), len(items)))
    return WeightedInteractions(matrix, clients)


def _items(data: ChallengeData, event_type: EventType, column: str) -> pl.LazyFrame:
    in_properties = column in (schema.CATEGORY, schema.PRICE)
    if column != event_type.subject and not (in_properties and event_type.has_sku):
        raise UserError(f"interactions.column={column}: events of {event_type} have no such column")
    events = data.with_properties(event_type) if in_properties else data.events(event_type)
    return events.select(schema.CLIENT_ID, column)


def factorise(interactions: WeightedInteractions, settings: AlsSettings, seed: int) -> npt.NDArray[np.float32]:
    """Factor the matrix; the clients' side: float32 [clients, factors].

    Raises:
        UserError: the factorisation fails, as with settings that overflow.
    """
    # Here, not above: implicit looks for GPUs when it is imported, and by now it is known which it may see.
    import implicit.gpu
    from implicit.als import AlternatingLeastSquares
    from implicit.recommender_base import ModelFitError

    arguments: dict[str, Any] = {
        "factors": settings.factors,
        "regularization": settings.regularization,
        "alpha": settings.alpha,
        "iterations": settings.iterations,
        "random_state": seed,
    }
    users, items = interactions.matrix.shape
    on_gpu = implicit.gpu.HAS_CUDA
    logger.info(
        "implicit ALS on the %s: %s clients x %s items, %s pairs",
        "GPU" if on_gpu else "CPU (implicit finds no CUDA: a GPU needs the package rmm-cu13)",
        f"{users:,}", f"{items:,}", f"{interactions.matrix.nnz:,}",
    )  # fmt: skip
    if not on_gpu:
        arguments["num_threads"] = settings.threads
    # implicit has threads of its own: those of BLAS would get in their way.
    with threadpool_limits(1, "blas"):
        model = AlternatingLeastSquares(use_gpu=on_gpu, **arguments)
        try:
            model.fit(interactions.matrix)
        except ModelFitError as error:
            raise UserError(f"als: {error}; try a larger regularization or a smaller alpha") from error
    factors = model.user_factors
    return np.asarray(factors.to_numpy() if on_gpu else factors, dtype=np.float32)


@command("ALS", "als_buy_add_categories")
def main(config: DictConfig) -> None:
    settings, als = parse(Interactions, config, at="interactions"), parse(AlsSettings, config, at="als")
    with embedding_run(config) as run:
        interactions = weighted_interactions(run.data, settings)
        factors = factorise(interactions, als, run.seed)
        relevant = np.isin(interactions.clients, run.data.relevant_clients)
        run.save(interactions.clients[relevant], factors[relevant])


if __name__ == "__main__":
    main()
