"""The factorisation of Hu, Koren and Volinsky by the library implicit, and clients' factors by fitted items.

Y. Hu, Y. Koren and C. Volinsky, "Collaborative Filtering for Implicit Feedback Datasets" (2008). `factorise` runs on
the GPU where its libraries are (`ALS.implicit_gpu`), else on the CPU. `client_factors` always runs on the CPU.
"""

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_matrix
from threadpoolctl import threadpool_limits

from ALS.implicit_gpu import INSTALL, gpu_fault
from ubp.io.errors import UserError, require, require_positive
from ubp.io.progress import progress_bar

logger = logging.getLogger(__name__)

_ADVICE = "try a larger regularization or a smaller alpha"


@dataclass(frozen=True)
class AlsSettings:
    """Numbers of the factorisation; `strength` says what the rule makes of them.

    Attributes:
        factors: columns of the embedding.
        confidence: mean confidence of a client's pair with an item; that of a pair not seen is 1.
        shrinkage: regularization, in units of the smallest singular value that can be told from chance.
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
class Factors:
    """What was fitted.

    Attributes:
        clients: float32 [clients, factors], in the order of the matrix's rows.
        items: float32 [items, factors], in the order of its columns.
        strength: that it was fitted with.
    """

    clients: npt.NDArray[np.float32]
    items: npt.NDArray[np.float32]
    strength: Strength


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
        regularization = shrinkage × ‖G‖ / (clients × items)^¼

    with the Frobenius norm. What stands after ``shrinkage`` is σ (clients × items)^¼, with σ² the mean square of G's
    entries: in noise of that size, a direction can be told from chance if its singular value is larger (Benaych-Georges
    and Nadakuditi, "The Singular Values and Vectors of Low Rank Perturbations of Large Rectangular Random Matrices",
    2012). The largest singular value of the noise, σ (√clients + √items), is no measure: of a matrix with many clients
    and few items, all singular values lie near σ √clients, those of chance as those of structure, and a share of 0.8
    of it takes them all. Without p, a dense log's staples would count as if they were informative, and the
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
    # An item that all clients met, each time with a weight of 0, has no popularity.
    popularity = np.divide(total, total + never, out=np.zeros(items), where=total + never > 0)
    squares = ((confidence * (1 - popularity[matrix.indices])) ** 2).sum() + (never * popularity**2).sum()
    detectable = float(np.sqrt(squares)) / (clients * items) ** 0.25
    return Strength(alpha, settings.shrinkage * detectable)


def factors_of(matrix: csr_matrix, settings: AlsSettings) -> int:
    """How many factors are made of a matrix: as many as asked for, at most as many as its smaller side has rows.

    More could not tell more apart: the rank of a matrix is at most its smaller side.
    """
    return int(min(settings.factors, *matrix.shape))


def factorise(matrix: csr_matrix, settings: AlsSettings, seed: int) -> Factors:
    """Factor a matrix of weights into `factors_of` factors; where that is fewer than asked for, on the CPU.

    The same settings mean the same on CPU and GPU. implicit 0.7.3's two classes differ, so here

    - the matrix is multiplied by alpha before `fit`, for the GPU's `fit` leaves alpha out;
    - both begin from the factors that the CPU's class would draw, for the GPU's draws others (around zero, by
      curand), and with seed 0 by the time of day;
    - what did not come out finite is looked for, for the GPU's class does not look: its kernel writes zeros there
      and goes on.

    Alike in both are the loss, the order of the two sides, three steps of conjugate gradients and float32; not the
    order of the sums, so the GPU's bits are its own.

    Args:
        matrix: float32 [clients, items].
        settings: numbers of the factorisation.
        seed: of the first factors.

    Raises:
        UserError: the factorisation fails, as with settings that overflow; or it is too large for the GPU's code.
    """
    # Here, not above: it looks for GPUs when it is imported, and by now it is known which it may see.
    fault, made = gpu_fault(), factors_of(matrix, settings)
    if fault is None and made < settings.factors:
        fault = f"{made} factors: a matrix so small"
    from implicit.als import AlternatingLeastSquares
    from implicit.recommender_base import ModelFitError

    on_gpu = fault is None
    found = strength(matrix, settings)
    _log_size(matrix, found, fault)
    arguments: dict[str, Any] = {
        "factors": made,
        "regularization": found.regularization,
        "alpha": 1.0,
        "iterations": settings.iterations,
        "random_state": seed,
    }
    if on_gpu:
        _require_fits_gpu(matrix, settings.factors)
    else:
        arguments["num_threads"] = settings.threads
    # implicit has threads of its own: those of BLAS would get in their way.
    with threadpool_limits(1, "blas"):
        model = AlternatingLeastSquares(use_gpu=on_gpu, **arguments)
        model.user_factors, model.item_factors = _first_factors(matrix.shape, made, seed, on_gpu)
        try:
            # float(): numpy's numbers are float64, and would make the matrix so.
            with progress_bar() as progress:
                task = progress.add_task("ALS", total=settings.iterations)
                model.fit(
                    float(found.alpha) * matrix,
                    show_progress=False,
                    callback=lambda *_: progress.advance(task),
                )
        except ModelFitError as error:
            raise UserError(f"als: {error}; {_ADVICE}") from error
    if not on_gpu:
        return Factors(_float32(model.user_factors), _float32(model.item_factors), found)
    factors = Factors(_float32(model.user_factors.to_numpy()), _float32(model.item_factors.to_numpy()), found)
    _require_solved(factors.clients, matrix.getnnz(axis=1) > 0, "clients")
    _require_solved(factors.items, matrix.getnnz(axis=0) > 0, "items")
    return factors


def client_factors(
    matrix: csr_matrix, items: npt.NDArray[np.float32], strength: Strength, threads: int = 0
) -> npt.NDArray[np.float32]:
    """The factors of any clients, given those of the items: implicit's ``recalculate_user`` on the CPU.

    The least squares of each client are solved exactly (Cholesky) and by themselves: the same weights give the same
    bits, whatever the other clients and the threads. A fit ends otherwise, with three steps of conjugate gradients
    for the clients and then one more half step for the items; so a client of the fit gets nearly the factors that
    the fit left, not the same ones. On the demo's log the difference is 1.8 % of the factors (categories) and 1.1 %
    (urls), both by the Frobenius norm; a few clients whose steps had not come near their solution differ wholly.

    The loop over clients is the library's compiled one. Memory beside the matrix and the result is a few vectors a
    thread.

    Args:
        matrix: float32 [clients, items], the weights.
        items: float32 [items, factors], fitted.
        strength: of the fit.
        threads: of the CPU; 0 for all cores.

    Returns:
        float32 [clients, factors]; zeros for a client without weights.

    Raises:
        UserError: a client's equations have no finite solution.
    """
    gpu_fault()  # loads the GPU's libraries, where there are any: a fit that follows would not find them otherwise
    from implicit.cpu.als import AlternatingLeastSquares
    from implicit.recommender_base import ModelFitError

    with threadpool_limits(1, "blas"):  # see above
        model = AlternatingLeastSquares(items.shape[1], strength.regularization, alpha=1.0, num_threads=threads)
        model.item_factors = items
        try:
            found = model.recalculate_user(np.arange(matrix.shape[0]), float(strength.alpha) * matrix)
        except ModelFitError as error:
            raise UserError(f"als: {error}; {_ADVICE}") from error
    factors = _float32(found)
    if not np.isfinite(factors).all():
        raise UserError(
            f"als: the factors of {int((~np.isfinite(factors)).any(axis=1).sum()):,} clients are not finite; {_ADVICE}"
        )
    return factors


def _float32(factors: npt.ArrayLike) -> npt.NDArray[np.float32]:
    return np.asarray(factors, dtype=np.float32)


def _log_size(matrix: csr_matrix, found: Strength, fault: str | None) -> None:
    device = "GPU" if fault is None else f"CPU ({fault})"
    # A driver without what implicit needs: the user expects the GPU to be used.
    may_surprise = fault is not None and INSTALL in fault
    clients, items = matrix.shape
    logger.log(
        logging.WARNING if may_surprise else logging.INFO,
        "implicit ALS on the %s: %s clients x %s items, %s pairs, alpha %.4g, regularization %.4g",
        device, f"{clients:,}", f"{items:,}", f"{matrix.nnz:,}", found.alpha, found.regularization,
    )  # fmt: skip


def _require_solved(factors: npt.NDArray[np.float32], met: npt.NDArray[np.bool_], side: str) -> None:
    """Refuse factors that the GPU left at zero, or not finite, for clients or items that have events."""
    failed = ~np.isfinite(factors).all(axis=1) | ((factors == 0).all(axis=1) & met)
    if failed.any():
        raise UserError(f"als: the factors of {int(failed.sum()):,} {side} are zero or not finite; {_ADVICE}")


def _first_factors(shape: tuple[int, int], factors: int, seed: int, on_gpu: bool) -> tuple[Any, Any]:
    """What both sides start from: the draw of implicit's CPU class, float32 [clients, factors] and [items, factors]."""
    rng = np.random.default_rng(seed)
    drawn = [rng.random((rows, factors), dtype=np.float32) * 0.01 for rows in shape]
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
