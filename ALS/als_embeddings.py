"""Implicit ALS over client × category or client × url.

    python ALS/als_embeddings.py --config-name=als_buy_add_categories     -> als_64_buy_add_categories
    python ALS/als_embeddings.py --config-name=als_visits_relevant        -> als_64_visits_relevant

A client's vector is its factor in the weighted factorisation of Hu, Koren and Volinsky, "Collaborative
Filtering for Implicit Feedback Datasets" (2008), as the library implicit computes it: on the GPU where its
libraries are (`ALS.implicit_gpu`), else on the CPU. On a CPU the same seed gives the same bits.
"""

import logging
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
from omegaconf import DictConfig
from scipy.sparse import csr_matrix
from threadpoolctl import threadpool_limits

from ALS.implicit_gpu import INSTALL, gpu_fault
from ubp.cli.command import command
from ubp.cli.config import parse
from ubp.cli.run import embedding_run
from ubp.data import schema
from ubp.data.history import ChallengeData
from ubp.data.reading import collect
from ubp.data.schema import EventType
from ubp.io.errors import UserError, require, require_positive

logger = logging.getLogger(__name__)

_TAME = "try a larger regularization or a smaller alpha"


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
    """Numbers of the factorisation; `strength` says what the rule makes of them.

    Attributes:
        factors: columns of the embedding.
        confidence: mean confidence of a client's pair with an item; that of a pair not seen is 1.
        shrinkage: regularization as a share of the singular value that chance alone would give.
        alpha: confidence of a pair is alpha × its weight; None for what ``confidence`` gives.
        regularization: of implicit; None for what ``shrinkage`` gives.
        iterations: of both sides.
        threads: of the CPU; 0 for all cores.
    """

    factors: int
    confidence: float
    shrinkage: float
    alpha: float | None
    regularization: float | None
    iterations: int
    threads: int

    def __post_init__(self) -> None:
        """Refuse numbers that make no sense.

        Raises:
            UserError: no factors, no iterations, no confidence, or a negative regularization.
        """
        require_positive(self, "als", "factors", "iterations")
        require(self.confidence > 0, "als.confidence", self.confidence, "more than 0")
        require(self.shrinkage >= 0, "als.shrinkage", self.shrinkage, "at least 0")
        require(self.alpha is None or self.alpha > 0, "als.alpha", self.alpha, "more than 0, or null for the rule")
        least = "at least 0, or null for the rule"
        require(
            self.regularization is None or self.regularization >= 0, "als.regularization", self.regularization, least
        )


@dataclass(frozen=True)
class Strength:
    """implicit's two numbers, as they were used."""

    alpha: float
    regularization: float


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


def strength(matrix: csr_matrix, settings: AlsSettings) -> Strength:
    """The confidence of a weight and the regularization, from the log's own size, weights and popular items.

    Fixed numbers do not carry over from one log to another. Near where the factors say nothing but how popular an
    item is, a direction grows where its singular value in the loss's gradient G is above the regularization, and
    dies out where it is below (the sum of both sides' squared norms is the nuclear norm: Srebro, Rennie and
    Jaakkola, "Maximum-Margin Matrix Factorization", 2004). So both numbers are relative to the weights W
    [clients, items]. With C = alpha × W the confidences of the pairs seen and 1 that of the others:

        alpha = confidence / mean(W's entries that are not zero)
        p[i] = sum(C[:, i]) / (sum(C[:, i]) + clients who never met i)    popularity: the best constant for item i
        G[u, i] = C[u, i] × (1 - p[i]) where seen, -p[i] where not
        regularization = shrinkage × ‖G‖ × (1 / √clients + 1 / √items)

    with the Frobenius norm. What stands after ``shrinkage`` is about the largest singular value of a matrix whose
    entries have the mean square of G's, but no structure (σ (√clients + √items); Candès and Plan, "Matrix
    Completion With Noise", 2010). Without p, a dense log's staples would count as if they said much, and the
    regularization would take everything else.

    Args:
        matrix: float32 [clients, items], with entries.
        settings: where they give alpha or the regularization, it is taken as it is.

    Raises:
        UserError: all weights are zero.
    """
    weights = np.abs(matrix.data.astype(np.float64))  # implicit reads a weight below 0 as confidence in a dislike
    if not weights.any():
        raise UserError("interactions.weights: all events weigh 0; one kind at least must count")
    alpha = settings.confidence / float(weights.mean()) if settings.alpha is None else settings.alpha
    if settings.regularization is not None:
        return Strength(alpha, settings.regularization)
    clients, items = matrix.shape
    confidence = alpha * weights
    total = np.bincount(matrix.indices, confidence, minlength=items)
    never = clients - np.bincount(matrix.indices, minlength=items)
    # An item that all clients met, each time with a weight of 0, is popular with nobody.
    popularity = np.divide(total, total + never, out=np.zeros(items), where=total + never > 0)
    squares = ((confidence * (1 - popularity[matrix.indices])) ** 2).sum() + (never * popularity**2).sum()
    by_chance = float(np.sqrt(squares)) * (clients**-0.5 + items**-0.5)
    return Strength(alpha, settings.shrinkage * by_chance)


def factorise(interactions: WeightedInteractions, settings: AlsSettings, seed: int) -> npt.NDArray[np.float32]:
    """Factor the matrix; the clients' side: float32 [clients, factors].

    The same settings mean the same on CPU and GPU. implicit 0.7.3's two classes differ, so here

    - the matrix is multiplied by alpha before `fit`, for the GPU's `fit` leaves alpha out;
    - both begin from the factors that the CPU's class would draw, for the GPU's draws others (around zero, by
      curand), and with seed 0 by the time of day;
    - what did not come out finite is looked for, for the GPU's class does not look: its kernel writes zeros there
      and goes on.

    Alike in both are the loss, the order of the two sides, three steps of conjugate gradients and float32; not the
    order of the sums, so the GPU's bits are its own.

    Raises:
        UserError: the factorisation fails, as with settings that overflow; or it is too large for the GPU's code.
    """
    # Here, not above: it looks for GPUs when it is imported, and by now it is known which it may see.
    fault = gpu_fault()
    from implicit.als import AlternatingLeastSquares
    from implicit.recommender_base import ModelFitError

    on_gpu = fault is None
    found = strength(interactions.matrix, settings)
    users, items = interactions.matrix.shape
    device = "GPU" if on_gpu else f"CPU ({fault})"
    # A driver without what implicit needs: somebody expects the GPU to be used.
    may_surprise = not on_gpu and INSTALL in str(fault)
    logger.log(
        logging.WARNING if may_surprise else logging.INFO,
        "implicit ALS on the %s: %s clients x %s items, %s pairs, alpha %.4g, regularization %.4g",
        device, f"{users:,}", f"{items:,}", f"{interactions.matrix.nnz:,}", found.alpha, found.regularization,
    )  # fmt: skip
    arguments: dict[str, Any] = {
        "factors": settings.factors,
        "regularization": found.regularization,
        "alpha": 1.0,
        "iterations": settings.iterations,
        "random_state": seed,
    }
    if on_gpu:
        _require_fits_gpu(interactions.matrix, settings.factors)
    else:
        arguments["num_threads"] = settings.threads
    # implicit has threads of its own: those of BLAS would get in their way.
    with threadpool_limits(1, "blas"):
        model = AlternatingLeastSquares(use_gpu=on_gpu, **arguments)
        model.user_factors, model.item_factors = _first_factors(users, items, settings.factors, seed, on_gpu)
        try:
            # float(): numpy's numbers are float64, and would make the matrix so.
            model.fit(float(found.alpha) * interactions.matrix)
        except ModelFitError as error:
            raise UserError(f"als: {error}; {_TAME}") from error
    if not on_gpu:
        return np.asarray(model.user_factors, dtype=np.float32)
    factors = np.asarray(model.user_factors.to_numpy(), dtype=np.float32)
    failed = ~np.isfinite(factors).all(axis=1) | (
        (factors == 0).all(axis=1) & (np.diff(interactions.matrix.indptr) > 0)
    )
    if failed.any():
        raise UserError(f"als: the factors of {int(failed.sum()):,} clients are zero or not finite; {_TAME}")
    return factors


def _first_factors(users: int, items: int, factors: int, seed: int, on_gpu: bool) -> tuple[Any, Any]:
    """What both sides start from: implicit's CPU class' own draw, float32 [users, factors] and [items, factors]."""
    rng = np.random.default_rng(seed)
    drawn = [rng.random((rows, factors), dtype=np.float32) * 0.01 for rows in (users, items)]
    if on_gpu:
        import implicit.gpu

        drawn = [implicit.gpu.Matrix(side) for side in drawn]
    return drawn[0], drawn[1]


def _require_fits_gpu(matrix: csr_matrix, factors: int) -> None:
    """Refuse what implicit's GPU code would compute wrongly without a word.

    Its kernel has one thread a factor, 1,024 at the most and summed in warps of 32, and finds a row of factors by
    a 32-bit product.
    """
    require(factors <= 1024 and factors % 32 == 0, "als.factors", factors, "a multiple of 32 up to 1024 on a GPU")
    if max(matrix.shape) * factors >= 2**31 or matrix.nnz >= 2**31:
        raise UserError(
            f"als.factors={factors}: {matrix.shape[0]:,} clients x {matrix.shape[1]:,} items with {matrix.nnz:,} pairs "
            "are too many for implicit's 32-bit GPU code; fewer factors, or cuda_visible_devices= for the CPU"
        )


@command("ALS", "als_buy_add_categories")
def main(config: DictConfig) -> None:
    settings, als = parse(Interactions, config, at="interactions"), parse(AlsSettings, config, at="als")
    with embedding_run(config) as run:
        interactions = weighted_interactions(run.data, settings)
        factors = factorise(interactions, als, run.seed)
        used = asdict(strength(interactions.matrix, als))
        relevant = np.isin(interactions.clients, run.data.relevant_clients)
        run.save(interactions.clients[relevant], factors[relevant], used)


if __name__ == "__main__":
    main()
