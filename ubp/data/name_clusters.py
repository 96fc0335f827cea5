"""Names of products in clusters: k-means over their codes.

A code is a label, not a quantity: a name's vector has a one for each of its 16 codes, at the place of that code in
its position's code book, and zeros elsewhere.
"""

from dataclasses import dataclass
from typing import Final, Self

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_matrix

from ubp.data.schema import CODE_BOOK, CODES

Codes = npt.NDArray[np.uint8]

_NAMES: Final = 65_536  # that are put into clusters at a time


def one_hot(codes: Codes) -> csr_matrix:
    """Names as vectors of zeros and ones: uint8 [names, 16] to float32 [names, 16 × 256]."""
    names = len(codes)
    ones = np.ones(names * CODES, np.float32)
    return csr_matrix(
        (ones, _places(codes).ravel(), np.arange(names + 1) * CODES), shape=(names, CODES * CODE_BOOK), copy=False
    )


def _places(codes: Codes) -> npt.NDArray[np.int32]:
    """The column of each code in the one-hot vectors: int32 [names, 16]."""
    return codes.astype(np.int32) + np.arange(CODES, dtype=np.int32) * CODE_BOOK


@dataclass(frozen=True)
class NameClusters:
    """The centres; any name has a nearest one, whether it was in the fit or not.

    Attributes:
        centres: float32 [clusters, 16 × 256].
    """

    centres: npt.NDArray[np.float32]

    @classmethod
    def fit(cls, codes: Codes, count: int, seed: int) -> Self:
        """Mini-batch k-means (Sculley, WWW 2010) over the distinct names, from k-means++ centres.

        Args:
            codes: uint8 [names, 16], at least one name; a name may occur more than once.
            count: of clusters; fewer where there are fewer distinct names.
            seed: of the first centres and of the batches.
        """
        from sklearn.cluster import MiniBatchKMeans
        from threadpoolctl import threadpool_limits

        distinct = np.unique(codes, axis=0)
        # On a busy machine the threads of so small batches wait for one another: 10 s instead of half a second.
        with threadpool_limits(limits=1):
            means = MiniBatchKMeans(min(count, len(distinct)), random_state=seed, n_init=1).fit(one_hot(distinct))
        return cls(np.ascontiguousarray(means.cluster_centers_, dtype=np.float32))

    def of(self, codes: Codes) -> npt.NDArray[np.int64]:
        """See `nearest`."""
        return nearest(self.centres, codes)


def nearest(centres: npt.NDArray[np.float32], codes: Codes) -> npt.NDArray[np.int64]:
    """The cluster of each name, of equally near ones the first: int64 [names].

    All names are equally long vectors, so that ``|name - centre|² = 16 - 2 name · centre + |centre|²``: the nearest
    centre has the largest ``name · centre - |centre|² / 2``. The product is a sum of sixteen of the centre's values.

    Args:
        centres: float32 [clusters, 16 × 256].
        codes: uint8 [names, 16].
    """
    values = np.ascontiguousarray(centres.T)
    halves = np.square(centres, dtype=np.float64).sum(axis=1) / 2
    found = np.empty(len(codes), np.int64)
    for start in range(0, len(codes), _NAMES):
        some = codes[start : start + _NAMES]
        nearness = np.tile(-halves, (len(some), 1))
        for places in _places(some).T:
            nearness += values[places]
        found[start : start + len(some)] = nearness.argmax(axis=1)
    return found
