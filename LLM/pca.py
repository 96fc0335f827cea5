"""A PCA over clients whose texts have vectors; fitted once, applied to any vectors afterwards."""

import logging
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from ubp.blocks.widths import cut_line
from ubp.io.errors import LEAVE_OUT, NoUsableEvents

logger = logging.getLogger(__name__)

_AT_ONCE: Final = 65_536  # vectors that are converted to float64

Vectors = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Pca:
    """A fitted PCA.

    Attributes:
        mean: float64 [width].
        components: float64 [n_components, width], orthonormal rows.
    """

    mean: npt.NDArray[np.float64]
    components: npt.NDArray[np.float64]

    def reduce(self, vectors: Vectors) -> Vectors:
        """Vectors of fewer columns.

        Args:
            vectors: float32 [n, width].

        Returns:
            float32 [n, n_components].
        """
        reduced = np.empty((len(vectors), len(self.components)), np.float32)
        for begin in range(0, len(vectors), _AT_ONCE):
            centred = vectors[begin : begin + _AT_ONCE].astype(np.float64) - self.mean
            reduced[begin : begin + _AT_ONCE] = centred @ self.components.T
        return reduced


def fit_pca(
    vectors: Vectors, text_of: npt.NDArray[np.int64], n_components: int, pca_clients: int, seed: int
) -> tuple[Pca, float]:
    """Fit a PCA over clients.

    The covariance is taken in float64: language models have single dimensions whose mean is a thousand times the
    spread of others.

    Args:
        vectors: float32 [texts, width].
        text_of: int64 [clients], each client's text; a text counts as often as it has clients.
        n_components: columns; fewer, with a line, where there are fewer clients or columns of the model.
        pca_clients: clients to fit on, at most.
        seed: draws them.

    Returns:
        The PCA, and the share of the variance that its components keep.

    Raises:
        NoUsableEvents: fewer than two clients have a text.
    """
    from sklearn.decomposition import PCA

    if len(text_of) < 2:
        raise NoUsableEvents(
            f"n_components={n_components}: {len(text_of)} relevant clients have a text, and a PCA takes two at least; "
            f"set n_components=null, or {LEAVE_OUT}"
        )
    limits = {"clients to fit on": min(len(text_of), pca_clients), "columns of the model": vectors.shape[1]}
    for what, most in limits.items():
        if n_components > most:
            logger.warning(cut_line("n_components", n_components, f"{most} {what}", f"{most} columns"))
            n_components = most
    if len(text_of) > pca_clients:
        text_of = np.sort(np.random.default_rng(seed).choice(text_of, pca_clients, replace=False))
    pca = PCA(n_components, svd_solver="covariance_eigh").fit(vectors[text_of].astype(np.float64))
    return Pca(pca.mean_, pca.components_), float(pca.explained_variance_ratio_.sum())
