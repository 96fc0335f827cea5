"""Array operations on flat columns with offsets: no loop over clients."""

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Int64: TypeAlias = npt.NDArray[np.int64]
Mask: TypeAlias = npt.NDArray[np.bool_]
Array: TypeAlias = npt.NDArray[Any]


def find(ascending: Int64, asked: Int64) -> tuple[Int64, Mask]:
    """For each id its place and whether it is there; place 0 where it is not."""
    if not len(ascending):
        return np.zeros(asked.shape, dtype=np.int64), np.zeros(asked.shape, dtype=bool)
    places = np.minimum(np.searchsorted(ascending, asked), len(ascending) - 1)
    known = ascending[places] == asked
    return np.where(known, places, 0), known


def count_below(values: Array, firsts: Int64, lengths: Int64, limit: int) -> Int64:
    """How many values of each run are below a limit: a binary search in all runs at once.

    Args:
        values: [n], ascending within each run.
        firsts: int64 [runs], the place of each run's first value.
        lengths: int64 [runs], how many values it has; may be 0.
        limit: the values counted are smaller.

    Returns:
        int64 [runs]. Reads about log2(length) values of each run.
    """
    counts = np.zeros(len(firsts), dtype=np.int64)
    step = 1 << int(lengths.max(initial=0)).bit_length()
    while step := step >> 1:
        runs = np.flatnonzero(counts + step <= lengths)
        below = runs[values[firsts[runs] + counts[runs] + (step - 1)] < limit]
        counts[below] += step
    return counts


def offsets_of(lengths: Int64) -> Int64:
    """Where each run begins, and the end of the last one: int64 [runs + 1]."""
    return np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths, dtype=np.int64)])


def ranges(starts: Int64, lengths: Int64, dtype: type[np.int32] | type[np.int64] = np.int64) -> Array:
    """The numbers from each start on, as many as its length says, one range after the other.

    Args:
        starts: int64 [ranges].
        lengths: int64 [ranges].
        dtype: of the numbers; must hold them and how many there are.
    """
    offsets = offsets_of(lengths)
    numbers = np.repeat((starts - offsets[:-1]).astype(dtype), lengths)
    numbers += np.arange(offsets[-1], dtype=dtype)
    return numbers
