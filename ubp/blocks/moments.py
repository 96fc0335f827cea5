"""Means and variances of columns, of parts that are put together."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Moments:
    """Of some clients' numbers.

    Attributes:
        count: of the clients.
        mean: float64 [columns].
        variance: float64 [columns].
    """

    count: int
    mean: npt.NDArray[np.float64]
    variance: npt.NDArray[np.float64]

    @classmethod
    def of(cls, group: npt.NDArray[np.float32]) -> Self:
        """Of float32 [clients, columns]."""
        return cls(len(group), group.mean(axis=0, dtype=np.float64), group.var(axis=0, dtype=np.float64))

    def __or__(self, other: Self) -> Self:
        """Of both together (Chan et al. 1979, "Updating Formulae and a Pairwise Algorithm", equation 2.1)."""
        count = self.count + other.count
        mine, theirs = self.count / count, other.count / count
        apart = other.mean - self.mean
        variance = mine * self.variance + theirs * other.variance + mine * theirs * apart**2
        return type(self)(count, self.mean + theirs * apart, variance)


def put_together(parts: Iterable[tuple[str, Moments]]) -> dict[str, Moments]:
    """Those of all parts by their names, which come once for each part; added up in the order given."""
    found: dict[str, Moments] = {}
    for name, own in parts:
        found[name] = found[name] | own if name in found else own
    return found
