"""Helpers for flat arrays with offsets."""

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


def offsets_of(lengths: Int64) -> Int64:
    return np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths, dtype=np.int64)])


def ranges(starts: Int64, lengths: Int64) -> Int64:
    """The numbers from each start on, as many as its length says, one range after the other."""
    offsets = offsets_of(lengths)
    ranges = np.repeat(starts - offsets[:-1], lengths)
    ranges += np.arange(offsets[-1])
    return ranges
