"""Array operations on flat columns against slow loops."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ubp.sequences.arrays import count_below, find, offsets_of, ranges


@given(st.lists(st.lists(st.integers(-5, 20), max_size=9).map(sorted), max_size=8), st.integers(-6, 22))
def test_count_below_is_the_slow_loop(runs, limit):
    values = np.array([value for run in runs for value in run], dtype=np.int32)
    lengths = np.array([len(run) for run in runs], dtype=np.int64)
    counts = count_below(values, offsets_of(lengths)[:-1], lengths, limit)
    assert counts.tolist() == [sum(value < limit for value in run) for run in runs]


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_ranges(dtype):
    numbers = ranges(np.array([7, 0, 3]), np.array([2, 0, 3]), dtype)
    assert numbers.tolist() == [7, 8, 3, 4, 5]
    assert numbers.dtype == dtype


def test_find():
    places, known = find(np.array([2, 5, 9]), np.array([5, 1, 10, 9]))
    assert places.tolist() == [1, 0, 0, 2]
    assert known.tolist() == [True, False, False, True]
    assert not find(np.zeros(0, dtype=np.int64), np.array([1]))[1].any()
