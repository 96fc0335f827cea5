"""Two makings of the same vectors side by side: the same bits, or how far apart."""

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int64]
Values = npt.NDArray[np.float32] | npt.NDArray[np.float16]

_ROWS: Final = 65_536  # compared at a time
_BITS: Final = {2: np.uint16, 4: np.uint32}  # by the bytes of a value


@dataclass(frozen=True)
class Comparison:
    """How far two makings are apart.

    Attributes:
        clients: of the first.
        columns: of the first and of the second.
        in_one: clients that only one of them has.
        reordered: the same clients, in another order.
        differing: values of the clients in both that are other bits; 0 where the columns are not as many.
        values: that were compared.
        largest: absolute difference of two values; infinite where one of them is not finite.
    """

    clients: int
    columns: tuple[int, int]
    in_one: int
    reordered: bool
    differing: int
    values: int
    largest: float

    @property
    def same(self) -> bool:
        """Whether ids and values are the same bits in the same order."""
        return not (self.in_one or self.reordered or self.differing or self.columns[0] != self.columns[1])

    def __str__(self) -> str:
        if self.same:
            return "same bits"
        found = []
        if self.columns[0] != self.columns[1]:
            found.append(f"{self.columns[1]:,} columns, not {self.columns[0]:,}")
        if self.in_one:
            found.append(f"{self.in_one:,} clients in one of both only")
        if self.reordered:
            found.append("the clients in another order")
        if self.differing:
            share = self.differing / self.values
            found.append(f"{self.differing:,} values ({share:.2%}) differ, by at most {self.largest:.3g}")
        return "; ".join(found)


def compare(ids: Ids, values: Values, other_ids: Ids, other_values: Values) -> Comparison:
    """Compare vectors client by client, bit by bit; a zero and a negative zero are other bits.

    Args:
        ids: int64 [clients], each once.
        values: float32 or float16 [clients, columns].
        other_ids: int64 [other clients], each once.
        other_values: [other clients, other columns], of the same dtype.

    Raises:
        ValueError: the dtypes are not the same.
    """
    if values.dtype != other_values.dtype:
        raise ValueError(f"{values.dtype} and {other_values.dtype} have no bits in common")
    shared, places, other_places = np.intersect1d(ids, other_ids, assume_unique=True, return_indices=True)
    columns = int(values.shape[1]), int(other_values.shape[1])
    in_one = len(ids) + len(other_ids) - 2 * len(shared)
    differing, largest, compared = 0, 0.0, 0
    if columns[0] == columns[1]:
        compared = len(shared) * columns[0]
        for start in range(0, len(shared), _ROWS):
            rows = slice(start, start + _ROWS)
            one, other = values[places[rows]], other_values[other_places[rows]]
            count, apart = _apart(one, other)
            differing, largest = differing + count, max(largest, apart)
    reordered = not in_one and not np.array_equal(ids, other_ids)
    return Comparison(len(ids), columns, in_one, reordered, differing, compared, largest)


def _apart(one: Values, other: Values) -> tuple[int, float]:
    """How many values are other bits, and the largest absolute difference."""
    bits = _BITS[one.dtype.itemsize]
    differ = np.ascontiguousarray(one).view(bits) != np.ascontiguousarray(other).view(bits)
    if not differ.any():
        return 0, 0.0
    # As float64: the difference of two float16 may be beyond float16.
    gaps = np.abs(one[differ].astype(np.float64) - other[differ].astype(np.float64))
    return int(differ.sum()), float(np.where(np.isfinite(gaps), gaps, np.inf).max())
