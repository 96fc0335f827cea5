"""The few directions in which answers differ between clients."""

from typing import Final

import numpy as np
import numpy.typing as npt

Matrix = npt.NDArray[np.float64]

_ROUNDING: Final = 1e-9  # share of a variance below which it is what rounding left of none


def deviations(covariance: Matrix) -> npt.NDArray[np.float64]:
    """Of each variable, 0 where nothing but rounding is left of it: float64 [variables].

    Args:
        covariance: float64 [variables, variables].
    """
    variances = np.diag(covariance)
    differs = variances > _ROUNDING * variances.max(initial=0.0)
    found: npt.NDArray[np.float64] = np.sqrt(np.where(differs, variances, 0.0))
    return found


def main_directions(covariance: Matrix, beside: int, most: int, least: float = 0.0) -> Matrix:
    """Coefficients of the main directions of variables, without what the first of them say.

    The first variables are taken as they are. What they predict of the others, linearly, is subtracted; the directions
    are the principal components of what is left. They are correlated neither with one another nor with the first, and
    have a variance of 1 each.

    Args:
        covariance: float64 [variables, variables]; give correlations where all variables shall count alike.
        beside: how many are the first.
        most: directions at most; fewer where what is left has fewer.
        least: share of the others' variance that a direction must have.

    Returns:
        float64 [variables, directions].
    """
    first, others = covariance[:beside], covariance[beside:]
    # What is left of each of the others, in coefficients of all variables.
    left = np.zeros((len(covariance), len(others)))
    left[beside:] = np.eye(len(others))
    left[:beside] = -np.linalg.pinv(first[:, :beside], rcond=_ROUNDING, hermitian=True) @ first[:, beside:]
    shared = left.T @ covariance @ left
    values, vectors = np.linalg.eigh((shared + shared.T) / 2)
    order = np.argsort(values)[::-1][:most]
    whole = float(np.trace(others[:, beside:]))
    order = order[values[order] > max(least, _ROUNDING) * whole]
    found = left @ vectors[:, order] / np.sqrt(values[order])
    # The sign of a component is the library's choice: the largest coefficient shall be positive on every machine.
    signed: Matrix = found * np.sign(found[np.abs(found).argmax(axis=0), np.arange(found.shape[1])])
    return signed
