"""Profiles read a part at a time: which clients they have, some of their rows, and who is nearest to whom.

A page needs the vectors of a sample, and the nearest of all clients to a few: no more than a part of the rows and the
sample are in memory at a time.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import polars as pl

from ubp.blocks.steps import columns_of
from ubp.data import schema
from ubp.io.errors import UserError

_PART: Final = 2**24  # numbers read at a time: 64 MB as float32
_ROWS: Final = 2**16  # likewise rows: a few columns need cosines of as many clients

Ids = npt.NDArray[np.int64]
Matrix = npt.NDArray[np.float32]


@dataclass(frozen=True)
class ProfileFile:
    """A block's parquet or an entry's folder.

    Attributes:
        path: where it lies.
        client_ids: int64 [clients], in the order of the rows.
        columns: of a vector.
    """

    path: Path
    client_ids: Ids
    columns: int

    @classmethod
    def open(cls, path: Path) -> "ProfileFile":
        """Read which clients there are.

        Raises:
            UserError: it is no usable block or entry.
        """
        try:
            if path.is_dir():
                client_ids = np.load(path / schema.ENTRY_CLIENT_IDS, allow_pickle=False).astype(np.int64, copy=False)
            else:
                client_ids = pl.read_parquet(path, columns=[schema.CLIENT_ID], glob=False)[schema.CLIENT_ID].to_numpy()
            return cls(path, client_ids, columns_of(path))
        except (ValueError, OSError, EOFError, pl.exceptions.PolarsError) as error:
            raise UserError(f"{path}: not a usable block or entry ({str(error).splitlines()[0]})") from error

    @property
    def name(self) -> str:
        return self.path.name if self.is_merge else self.path.stem

    @property
    def is_merge(self) -> bool:
        """Whether it is an entry, not a single block."""
        return self.path.is_dir()

    def parts(self) -> Iterator[tuple[int, Matrix]]:
        """The vectors in order: the row that a part begins with, and float32 [rows, columns]."""
        step = min(max(_PART // self.columns, 1), _ROWS)
        if self.is_merge:
            vectors = np.load(self.path / schema.ENTRY_EMBEDDINGS, mmap_mode="r", allow_pickle=False)
            for start in range(0, len(vectors), step):
                yield start, vectors[start : start + step].astype(np.float32)
            return
        import pyarrow.parquet as pq

        start = 0
        with pq.ParquetFile(self.path) as file:
            for batch in file.iter_batches(step, columns=[schema.EMBEDDING]):
                yield start, batch.column(0).flatten().to_numpy().reshape(-1, self.columns)
                start += len(batch)

    def rows(self, places: npt.NDArray[np.int64]) -> Matrix:
        """Some vectors.

        Args:
            places: int64 [n], ascending, of the rows.

        Returns:
            float32 [n, columns].
        """
        found = np.empty((len(places), self.columns), np.float32)
        for start, part in self.parts():
            first, last = np.searchsorted(places, [start, start + len(part)])
            found[first:last] = part[places[first:last] - start]
        return found


@dataclass(frozen=True)
class Scale:
    """What makes vectors comparable: each column less its mean, and over its deviation where columns have units.

    Attributes:
        mean: float32 [columns].
        deviation: float32 [columns]; ones for a merge, whose blocks have the lengths that they should have.
    """

    mean: Matrix
    deviation: Matrix

    @classmethod
    def of(cls, sample: Matrix, by_column: bool) -> "Scale":
        """From a sample.

        Args:
            sample: float32 [clients, columns].
            by_column: whether columns are brought to one deviation: those of a single block may be counts beside days.
        """
        mean = sample.mean(axis=0, dtype=np.float64).astype(np.float32)
        if not by_column:
            return cls(mean, np.ones_like(mean))
        deviation = sample.std(axis=0, dtype=np.float64).astype(np.float32)
        deviation[deviation < 1e-6 * max(float(np.abs(mean).max(initial=0)), 1e-6)] = 1  # of a constant column
        return cls(mean, deviation)

    def apply(self, vectors: Matrix) -> Matrix:
        """The vectors on this scale."""
        scaled: Matrix = (vectors - self.mean) / self.deviation
        return scaled


def cosines(vectors: Matrix, others: Matrix) -> Matrix:
    """The cosine of each of some vectors with each of others, float32 [vectors, others]; 0 for a vector of zeros."""
    found: Matrix = _of_length_1(vectors) @ _of_length_1(others).T
    return found


def _of_length_1(vectors: Matrix) -> Matrix:
    lengths: Matrix = np.linalg.norm(vectors, axis=1, keepdims=True).astype(np.float32)
    lengths[lengths == 0] = 1
    return vectors / lengths


def nearest(
    profiles: ProfileFile, scale: Scale, places: npt.NDArray[np.int64], count: int
) -> tuple[npt.NDArray[np.int64], Matrix]:
    """The clients whose vectors have the largest cosine with those of some clients, themselves left out.

    Args:
        profiles: among all of them.
        scale: of the vectors.
        places: int64 [n], ascending, rows of the clients asked for.
        count: of neighbours.

    Returns:
        Their rows, int64 [n, neighbours], the nearest first and the smaller row where two are as near, and the
        cosines, float32 of the same shape. Fewer neighbours where there are not as many clients.
    """
    asked = scale.apply(profiles.rows(places))
    best = np.full((len(places), 0), -np.inf, np.float32)
    rows = np.full((len(places), 0), -1, np.int64)
    for start, part in profiles.parts():
        found = cosines(asked, scale.apply(part))
        inside = (places >= start) & (places < start + len(part))
        found[np.flatnonzero(inside), places[inside] - start] = -np.inf
        best = np.concatenate([best, found], axis=1)
        rows = np.concatenate([rows, np.broadcast_to(np.arange(start, start + len(part)), found.shape)], axis=1)
        order = np.argsort(-best, axis=1, kind="stable")[:, :count]
        best, rows = np.take_along_axis(best, order, axis=1), np.take_along_axis(rows, order, axis=1)
    others = min(count, len(profiles.client_ids) - 1)
    return rows[:, :others], best[:, :others]


def plane(vectors: Matrix, seed: int) -> tuple[Matrix, tuple[float, float]]:
    """The two directions in which vectors differ most (principal components).

    Args:
        vectors: float32 [clients, columns].
        seed: of the solver, where there are many columns.

    Returns:
        float32 [clients, 2], zeros for a direction that there is not; and the share of the variance in each.
    """
    from sklearn.decomposition import PCA

    found, shares = np.zeros((len(vectors), 2), np.float32), np.zeros(2)
    if (vectors != vectors[:1]).any():
        width = min(2, *vectors.shape)
        fitted = PCA(width, random_state=seed).fit(vectors)
        found[:, :width], shares[:width] = fitted.transform(vectors), fitted.explained_variance_ratio_
    return found, (float(shares[0]), float(shares[1]))


def neighbourhood_map(vectors: Matrix, seed: int) -> Matrix:
    """Two dimensions in which near clients stay near (t-SNE, of the 50 main directions).

    Args:
        vectors: float32 [clients, columns], four clients at least.
        seed: of its start.

    Returns:
        float32 [clients, 2].
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    main = PCA(min(50, *vectors.shape), random_state=seed).fit_transform(vectors)
    perplexity = min(30.0, (len(main) - 1) / 3)
    found: Matrix = TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(main).astype(np.float32)
    return found
