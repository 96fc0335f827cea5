"""Whether a block's vectors tell clients apart: effective rank, norms, columns that say nothing."""

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

# Rows looked at. A covariance of 512 columns from 20,000 rows takes half a second on one core, whatever the block's
# size, and its effective rank comes out 2 % too low at the most (columns / rows).
_SAMPLE = 20_000
_CHUNK = 4_096  # rows held as float64 at a time

# A block has collapsed...
# ... where its standardised columns have an effective rank below 1.5: one direction has more than 86 % of the variance,
# if there is only one other. That is said only where more could be expected of the rows and columns there are.
_LEAST_RANK, _FROM_COLUMNS = 1.5, 4
# ... where half of its vectors are shorter than the smallest normal number of float16, in which an entry is written.
_LEAST_NORM = float(np.finfo(np.float16).tiny)
# A column counts as constant where its standard deviation is within float32's rounding of its values.
_CONSTANT = 1e-6


@dataclass(frozen=True)
class Health:
    """How much a block's vectors differ.

    The effective rank is that of Roy and Vetterli, "The effective rank: a measure of effective dimensionality"
    (EUSIPCO 2007), of the covariance: exp of the entropy of its eigenvalues divided by their sum. From 1 (all clients
    on one line) to the number of columns (spread alike in all directions); 0 where all vectors are equal.

    Attributes:
        rows: how many were looked at.
        columns: of the block.
        effective_rank: of the centred vectors as they are.
        scaled_rank: of the centred vectors with each column divided by its standard deviation, constant columns left
            out: what collapse is judged by, since in a block of statistics a few columns have nearly all the variance.
        median_norm: of the vectors as they are.
        constant_columns: columns that are the same for all clients.
        collapsed: what is wrong, in words; empty where nothing is.
    """

    rows: int
    columns: int
    effective_rank: float
    scaled_rank: float
    median_norm: float
    constant_columns: int
    collapsed: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """For the lineage."""
        return asdict(self)


def health_of(vectors: npt.NDArray[np.float32], seed: int = 0) -> Health:
    """Measure a block's vectors, in float64 on a sample of at most 20,000 rows.

    Args:
        vectors: float32 [clients, columns], finite.
        seed: of the sample.
    """
    rows, columns = vectors.shape
    if rows > _SAMPLE:
        # Sorted, so that the block is read from front to back.
        vectors = vectors[np.sort(np.random.default_rng(seed).choice(rows, _SAMPLE, replace=False))]
    norms, squares, covariance = _moments(vectors)
    deviation = np.sqrt(np.diag(covariance))
    varying = deviation > _CONSTANT * np.sqrt(squares)
    scaled = covariance[np.ix_(varying, varying)] / np.outer(deviation[varying], deviation[varying])
    measured = Health(
        rows=len(vectors),
        columns=columns,
        effective_rank=effective_rank(covariance) if varying.any() else 0.0,
        scaled_rank=effective_rank(scaled),
        median_norm=float(np.median(norms)) if len(norms) else 0.0,
        constant_columns=int((~varying).sum()),
    )
    measured.collapsed.extend(_complaints(measured))
    return measured


def effective_rank(covariance: npt.NDArray[np.float64]) -> float:
    """The effective rank of a covariance matrix (see `Health`).

    Args:
        covariance: float64 [columns, columns], symmetric; 0 comes out where it is empty or zero.
    """
    # Rounding can make the smallest eigenvalues slightly negative.
    eigenvalues = np.linalg.eigvalsh(covariance).clip(min=0) if covariance.size else np.zeros(0)
    if not eigenvalues.sum() > 0:
        return 0.0
    shares = eigenvalues / eigenvalues.sum()
    shares = shares[shares > 0]
    return float(np.exp(-(shares * np.log(shares)).sum()))


def _moments(
    vectors: npt.NDArray[np.float32],
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """The rows' norms [rows], the columns' mean squares [columns] and their covariance [columns, columns]."""
    rows, columns = vectors.shape
    mean = vectors.mean(axis=0, dtype=np.float64) if rows else np.zeros(columns)
    norms, squares, covariance = np.zeros(rows), np.zeros(columns), np.zeros((columns, columns))
    for start in range(0, rows, _CHUNK):
        part = vectors[start : start + _CHUNK].astype(np.float64)
        norms[start : start + _CHUNK] = np.linalg.norm(part, axis=1)
        squares += (part**2).sum(axis=0)
        part -= mean
        covariance += part.T @ part
    return norms, squares / max(rows, 1), covariance / max(rows, 1)


def _complaints(health: Health) -> list[str]:
    found = []
    expected = min(health.columns, health.rows - 1)  # centred rows span one direction less than there are
    if health.rows > 1 and health.constant_columns == health.columns:
        found.append("the same vector for all clients")
    elif expected >= _FROM_COLUMNS and health.scaled_rank < _LEAST_RANK:
        found.append(f"effective rank {health.scaled_rank:.1f} in {health.columns} columns")
    if health.rows and health.median_norm < _LEAST_NORM:
        found.append(f"median norm {health.median_norm:.1g}")
    return found
