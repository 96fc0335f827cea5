"""The last stage of a merge: a profile that a short training can read, and two figures that say whether one can.

Most of a raw profile is the same for every client, and a training of few steps spends itself on that part. So each
column is centred, the blocks get the same length, and one constant column takes the place of what was common: by it the
model's outputs fall to the base rates at once. A small part of what was common stays in every column: it keeps the
steps of the columns small afterwards (docs/models.md, What a short training can read).
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt

from ubp.blocks.transformers import Arrays, FittedTransformer, Matrix
from ubp.io.errors import UserError, name_some, require

logger = logging.getLogger(__name__)

# Root mean square length of a conditioned row, without its constant. The first layer of a model has a bias, which acts
# as a constant of 1 beside the row: at this length it counts little beside the constant column. And values stay where
# float16 is accurate: about 1 in a thousand columns, 22 in two.
LENGTH: Final = 32.0

COMMON_LIMIT: Final = 0.5
RATIO_LIMIT: Final = 12.0
RATIO: Final = 9.0  # of rows, to which a constant that is not given brings them
_CONSTANTS: Final = (2.0, 3.0)  # least and largest of those

OFFSET: Final = 0.4  # of a wide profile, where none is given
WIDE: Final = 500  # columns; up to 300 the training was steady without an offset, at 940 not (docs/ablations.md)

_SCALES: Final = ("equal", "none")
_ROUNDING: Final = 1e-12  # of a mean square: float32 has 24 bits
_ROWS: Final = 4_096  # summed up at a time, in float64


@dataclass  # not frozen: OmegaConf cannot fill a frozen one that may be None
class ConditionSettings:
    """How a merge's profiles are conditioned, in this order.

    Attributes:
        centre: subtract each column's mean.
        block_scale: ``equal``: every block to the same root mean square length, times its weight; ``none``: the
            blocks keep the lengths that they have to one another, times their weights.
        rotate: principal components to keep of the whole; None: the columns stay as they are.
        constant: value of one further column, in root mean square lengths of a row; 0 for no such column. None: the
            least from 2 to 3 at which the rows' ratio (`Figures.row_ratio`) is `RATIO` or less: the wider a profile,
            the larger.
        offset: added to each column of what is left, in its standard deviations; 0 for none. All rows share it, so the
            first steps' gradients are large for every weight of the first layer; Adam remembers their squares and
            takes smaller steps along what tells clients apart. None: `OFFSET` where more than `WIDE` columns are left.
    """

    centre: bool = True
    block_scale: str = "equal"
    rotate: int | None = None
    constant: float | None = None
    offset: float | None = None

    def __post_init__(self) -> None:
        """Refuse settings that make no sense.

        Raises:
            UserError: an unknown scale, a negative constant or offset, fewer than one component.
        """
        require(self.block_scale in _SCALES, "condition.block_scale", self.block_scale, " or ".join(_SCALES))
        require(self.constant is None or self.constant >= 0, "condition.constant", self.constant, "at least 0, or null")
        require(self.rotate is None or self.rotate > 0, "condition.rotate", self.rotate, "at least 1, or null")
        require(self.offset is None or self.offset >= 0, "condition.offset", self.offset, "at least 0, or null")

    def columns(self, columns: int) -> int:
        """Of a conditioned profile, for those of the blocks together."""
        kept = columns if self.rotate is None else min(self.rotate, columns)
        return kept + (self.constant is None or self.constant > 0)


@dataclass(frozen=True)
class FittedCondition:
    """The conditioning as it was fitted on the clients of an entry; it does the same to any others.

    Attributes:
        mean: float32 [columns], subtracted first.
        scale: float32 [columns], multiplied by then.
        rotation: a PCA, fitted; None for none.
        offset: float32 [columns kept by the rotation], added to them.
        constant: the value of the constant column; 0 for no such column.
    """

    mean: npt.NDArray[np.float32]
    scale: npt.NDArray[np.float32]
    rotation: FittedTransformer | None
    offset: npt.NDArray[np.float32]
    constant: float

    @classmethod
    def fit(
        cls, settings: ConditionSettings, matrix: Matrix, widths: Sequence[int], weights: Sequence[float] | None = None
    ) -> Self:
        """Fit on profiles, which are left as they are.

        Args:
            settings: what is done.
            matrix: float32 [clients, columns], finite.
            widths: columns of each block, in order; they sum up to the matrix's.
            weights: of each block, beside the others; None: all 1.

        Raises:
            UserError: all columns are constant, so there is nothing that tells clients apart.
            ValueError: the widths or weights do not fit.
        """
        chosen = [1.0] * len(widths) if weights is None else list(weights)
        if sum(widths) != matrix.shape[1] or len(chosen) != len(widths):
            raise ValueError(f"{sum(widths)} columns and {len(chosen)} weights for {matrix.shape[1]} columns")
        mean = column_means(matrix) if settings.centre else np.zeros(matrix.shape[1], np.float32)
        squares = _mean_squares(matrix, mean)
        starts = np.cumsum([0, *widths[:-1]])
        of_block, of_mean = (np.add.reduceat(values, starts) for values in (squares, np.square(mean, dtype=np.float64)))
        of_block[of_block <= _ROUNDING * of_mean] = 0  # a block without any spread, but for what its mean is rounded by
        factors = np.asarray(chosen)
        if settings.block_scale == "equal":
            factors = np.divide(factors, np.sqrt(of_block), out=np.zeros_like(factors), where=of_block > 0)
        length = np.sqrt((factors**2 * of_block).sum())
        if length == 0:
            raise UserError("condition: all clients have the same profile; there is nothing to tell them apart by")
        scale = np.repeat(factors * LENGTH / length, widths).astype(np.float32)
        rotation, deviations = None, np.sqrt(squares) * scale
        if settings.rotate is not None:
            rotation = _rotation(settings.rotate, _scaled(matrix, mean, scale))
        some = _scaled(matrix[:: 1 + (len(matrix) - 1) // _ROWS], mean, scale)
        if rotation is not None:
            some = rotation.apply(some)
            deviations = some.std(axis=0)
        constant = constant_by_rule(some) if settings.constant is None else settings.constant
        offset = offset_by_rule(len(deviations)) if settings.offset is None else settings.offset
        return cls(mean, scale, rotation, (offset * deviations).astype(np.float32), constant * LENGTH)

    @property
    def columns(self) -> int:
        """Of a conditioned profile, with the constant."""
        kept = len(self.mean) if self.rotation is None else int(self.rotation.settings["n_components"])
        return kept + (self.constant > 0)

    def apply(self, matrix: Matrix, room: Matrix | None = None) -> Matrix:
        """Conditioned profiles of any clients; the same rows give the same bits but for what a PCA rounds.

        Args:
            matrix: float32 [clients, columns], overwritten.
            room: float32 [clients, `columns`] that the result may be written to; it may begin with ``matrix``, so
                that a large profile needs no copy. None: a new one.

        Returns:
            float32 [clients, `columns`].
        """
        matrix -= self.mean
        matrix *= self.scale
        found = matrix if self.rotation is None or len(matrix) == 0 else self.rotation.apply(matrix)
        if room is None:
            room = np.empty((len(matrix), self.columns), np.float32)
        kept = self.columns - (self.constant > 0)
        np.add(found[:, :kept], self.offset, out=room[:, :kept])
        room[:, kept:] = self.constant
        return room

    def state(self, name: str, arrays: Arrays) -> dict[str, Any]:
        """What `from_state` makes the same of, as JSON; arrays are added to those given, under the name."""
        arrays |= {f"{name}.mean": self.mean, f"{name}.scale": self.scale, f"{name}.offset": self.offset}
        rotation = self.rotation and self.rotation.state(f"{name}.rotation", arrays)
        return {"name": name, "constant": self.constant, "rotation": rotation}

    @classmethod
    def from_state(cls, state: dict[str, Any], arrays: Arrays) -> Self:
        """The conditioning that gave this state."""
        rotation = state["rotation"] and FittedTransformer.from_state(state["rotation"], arrays)
        name = state["name"]
        offset = arrays.get(f"{name}.offset", np.zeros(1, np.float32))  # older merges have none
        return cls(arrays[f"{name}.mean"], arrays[f"{name}.scale"], rotation, offset, state["constant"])


def _scaled(matrix: Matrix, mean: npt.NDArray[np.float32], scale: npt.NDArray[np.float32]) -> Matrix:
    scaled = matrix - mean
    scaled *= scale
    return scaled


def constant_by_rule(rows: Matrix) -> float:
    """The constant of `ConditionSettings` where none is given, to two decimals.

    Args:
        rows: float32 [clients, columns] at a root mean square length of `LENGTH`, without a constant.
    """
    sums = np.abs(rows).sum(axis=1, dtype=np.float64)
    squares = np.square(rows, dtype=np.float64).sum(axis=1)
    for constant in np.arange(*_CONSTANTS, 0.01):
        value = constant * LENGTH
        if ((sums + value) / np.sqrt(squares + value**2)).mean() <= RATIO:
            return float(round(constant, 2))
    return _CONSTANTS[1]


def offset_by_rule(columns: int) -> float:
    """The offset of `ConditionSettings` where none is given, by the columns without the constant."""
    return OFFSET if columns > WIDE else 0.0


def _rotation(components: int, matrix: Matrix) -> FittedTransformer:
    kept = min(components, *matrix.shape)
    settings = {"_target_": "sklearn.decomposition.PCA", "n_components": kept, "svd_solver": "covariance_eigh"}
    return FittedTransformer.fit(settings, matrix)


def column_means(matrix: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float32]:
    """Summed in float64: float32 [columns]."""
    total = sum((part.sum(axis=0, dtype=np.float64) for part in _parts(matrix)), np.zeros(matrix.shape[1]))
    return np.asarray(total / max(len(matrix), 1), dtype=np.float32)


def _mean_squares(matrix: Matrix, mean: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Of each column less its mean: float64 [columns]."""
    squares = (np.square(part - mean, dtype=np.float64).sum(axis=0) for part in _parts(matrix))
    return np.asarray(sum(squares, np.zeros(matrix.shape[1])) / max(len(matrix), 1))


def _parts(matrix: npt.NDArray[np.floating[Any]]) -> Iterator[npt.NDArray[np.floating[Any]]]:
    for start in range(0, len(matrix), _ROWS):
        yield matrix[start : start + _ROWS]


@dataclass(frozen=True)
class Figures:
    """What a short training will make of profiles.

    Attributes:
        common: the share of a row's length that all rows have in common: the length of the mean row, in root mean
            square lengths of the rows; columns of one value do not count.
        constant: the length of the columns of one value, in root mean square lengths of the others.
        row_ratio: mean over the rows of Σ|x| / √Σx². Adam moves every weight of a model's first layer by about the
            same step, so the layer's steps beside what it puts out grow with it.
    """

    common: float
    constant: float
    row_ratio: float

    def __str__(self) -> str:
        """As it stands in a log."""
        constant = f", a constant of {self.constant:.2f} lengths" if self.constant else ""
        return f"common to all {self.common:.2f} of the length{constant}, row ratio {self.row_ratio:.1f}"


def warnings_of(figures: Mapping[str, Figures]) -> list[str]:
    """A line for each figure that lies outside of what was found good, with what to do; see docs/models.md.

    Args:
        figures: by the name of the block or merge.
    """
    found = []
    if common := {name: f.common for name, f in figures.items() if f.common > COMMON_LIMIT}:
        found.append(
            f"{name_some(list(common))}: up to {max(common.values()):.0%} of a row's length is common to all clients; "
            "a short training may spend itself on that part: try condition=default"
        )
    if ratios := {name: f.row_ratio for name, f in figures.items() if f.row_ratio > RATIO_LIMIT}:
        found.append(
            f"{name_some(list(ratios))}: row ratio up to {max(ratios.values()):.1f}, above {RATIO_LIMIT:g}: the judge "
            "may learn too fast to be steady, and the quick judge does not show that; score it by probe=judge, try "
            "condition=default condition.constant=3, or leave blocks out with ~blocks.NAME"
        )
    return found


def figures_of(matrix: npt.NDArray[np.floating[Any]]) -> Figures:
    """The figures of profiles: float [clients, columns], at least one client."""
    varies = (matrix != matrix[:1]).any(axis=0)
    mean = column_means(matrix).astype(np.float64)
    squares = np.zeros(matrix.shape[1])
    ratios = 0.0
    for part in _parts(matrix):
        row_squares = np.square(part, dtype=np.float64)
        squares += row_squares.sum(axis=0)
        lengths = np.sqrt(row_squares.sum(axis=1))
        sums = np.abs(part).sum(axis=1, dtype=np.float64)
        ratios += np.divide(sums, lengths, out=np.zeros_like(sums), where=lengths > 0).sum()
    length = np.sqrt(squares[varies].sum() / len(matrix))
    if not length:
        return Figures(1.0, 0.0, ratios / len(matrix))
    common = np.sqrt(np.square(mean[varies]).sum()) / length
    return Figures(float(common), float(np.sqrt(squares[~varies].sum() / len(matrix)) / length), ratios / len(matrix))


def report(figures: Mapping[str, Figures]) -> None:
    """Log the figures of profiles by their names, and what to do where they are not good."""
    for name, found in figures.items():
        logger.info("%s: %s", name, found)
    for warning in warnings_of(figures):
        logger.warning("%s", warning)
