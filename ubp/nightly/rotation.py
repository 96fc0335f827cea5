"""A retrained space turned onto the one before, so that whoever has stored profiles can go on comparing them.

The orthogonal Procrustes problem (Schönemann, Psychometrika 1966): of all rotations and reflections the one that brings
the new profiles of some clients, less their mean, closest to the old profiles of the same clients on the same day.
Distances and angles among new profiles stay what they are.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt

from ubp.io.arrays import read_arrays, write_arrays
from ubp.io.errors import UserError
from ubp.nightly.profiles import BEGIN_ANEW

Floats = npt.NDArray[np.float64]
Matrix = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Rotation:
    """How new profiles become ones in old coordinates.

    Attributes:
        mean: float64 [new columns], of the new profiles.
        turn: float64 [new columns, old columns]; its rows are orthonormal.
        onto: float64 [old columns], the mean of the old profiles.
        residual: the root mean square distance of the turned profiles from the old ones, in root mean square lengths
            of these less their mean: 0 is the same space, about 1.4 one that has nothing to do with it.
        clients: that it was learned from.
    """

    mean: Floats
    turn: Floats
    onto: Floats
    residual: float
    clients: int

    @classmethod
    def fit(cls, new: Matrix, old: Matrix) -> Self:
        """Learn it from the same clients' profiles.

        Args:
            new: float32 [clients, new columns]; at most as many columns as the old ones.
            old: float32 [clients, old columns].

        Raises:
            UserError: the new profiles have more columns: their distances would be lost.
        """
        if new.shape[1] > old.shape[1]:
            raise UserError(
                f"rotate=True: the new profiles have {new.shape[1]:,} columns, the old ones {old.shape[1]:,}: they do "
                "not fit into the old space; rotate=False begins a new one"
            )
        from scipy.linalg import orthogonal_procrustes

        mean, onto = new.mean(axis=0, dtype=np.float64), old.mean(axis=0, dtype=np.float64)
        centred, wanted = new - mean, old - onto
        padded = np.zeros(wanted.shape)
        padded[:, : new.shape[1]] = centred
        turn = orthogonal_procrustes(padded, wanted)[0][: new.shape[1]]
        length = np.linalg.norm(wanted)
        residual = float(np.linalg.norm(centred @ turn - wanted) / length) if length else 0.0
        return cls(mean, turn, onto, residual, len(new))

    def apply(self, vectors: Matrix) -> Matrix:
        """Profiles in old coordinates: float32 [clients, old columns]."""
        turned = np.empty((len(vectors), self.turn.shape[1]), np.float32)
        for start in range(0, len(vectors), 65_536):
            rows = slice(start, start + 65_536)
            turned[rows] = (vectors[rows] - self.mean) @ self.turn + self.onto
        return turned

    def write(self, file: Path) -> None:
        """Keep it; plain numbers."""
        numbers = {"residual": np.float64(self.residual), "clients": np.int64(self.clients)}
        write_arrays(file, {"mean": self.mean, "turn": self.turn, "onto": self.onto, **numbers})

    @classmethod
    def read(cls, file: Path) -> Self:
        """What `write` kept.

        Raises:
            UserError: it cannot be read.
        """
        arrays = read_arrays(file, ("mean", "turn", "onto", "residual", "clients"), BEGIN_ANEW)
        rest = float(arrays["residual"]), int(arrays["clients"])
        return cls(arrays["mean"], arrays["turn"], arrays["onto"], *rest)
