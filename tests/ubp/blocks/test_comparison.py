"""Two makings of the same vectors: held against a comparison value by value."""

import math
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ubp.blocks import comparison
from ubp.blocks.comparison import compare

IDS = np.array([4, 7, 9, 20], np.int64)
VALUES = np.arange(12, dtype=np.float32).reshape(4, 3)


def slowly(ids, values, other_ids, other_values):
    """How many values of the clients in both are other bytes, and by how much at most."""
    form = {2: "e", 4: "f"}[values.dtype.itemsize]
    others = {client: row for client, row in zip(other_ids.tolist(), other_values, strict=True)}  # noqa: C416
    differing, largest = 0, 0.0
    for client, row in zip(ids.tolist(), values, strict=True):
        for one, other in zip(row, others.get(client, row), strict=True):
            if struct.pack(form, one) != struct.pack(form, other):
                gap = abs(float(one) - float(other))
                differing, largest = differing + 1, max(largest, gap if math.isfinite(gap) else math.inf)
    return differing, largest


@st.composite
def makings(draw):
    """Ids and values, and others that are nearly the same."""
    dtype = draw(st.sampled_from([np.float16, np.float32]))
    ids = draw(st.lists(st.integers(0, 20), min_size=1, max_size=8, unique=True))
    others = draw(st.sampled_from([ids, ids[::-1], ids[1:], [*ids, 99]]))
    values = {client: draw(st.lists(st.sampled_from([0.0, 1.5, -2.0]), min_size=2, max_size=2)) for client in ids}
    changed = {
        client: [draw(st.sampled_from([value, value, value, -0.0, 1.25, np.nan, 6e4])) for value in row]
        for client, row in values.items()
    } | {99: [0.0, 0.0]}

    def table(of, rows):
        found = np.array([rows[client] for client in of], dtype).reshape(len(of), 2)
        return np.array(of, np.int64), found

    return *table(ids, values), *table(others, changed)


@given(makings())
def test_against_value_by_value(made):
    ids, values, other_ids, other_values = made
    found = compare(*made)
    assert (found.differing, found.largest) == slowly(*made)
    assert found.in_one == len(set(ids) ^ set(other_ids))
    same = ids.tobytes() == other_ids.tobytes() and values.tobytes() == other_values.tobytes()
    assert found.same == same
    assert (str(found) == "same bits") == same


def test_stretches_of_rows_make_no_difference(monkeypatch):
    other = VALUES.copy()
    other[0, 0], other[3, 2] = 8, 11.5
    whole = compare(IDS, VALUES, IDS, other)
    monkeypatch.setattr(comparison, "_ROWS", 3)
    assert compare(IDS, VALUES, IDS, other) == whole
    assert str(whole) == "2 values (16.67%) differ, by at most 8"


@pytest.mark.parametrize(
    ("ids", "values", "said"),
    [
        (IDS[::-1], VALUES[::-1], "the clients in another order"),
        (IDS[:3], VALUES[:3], "1 clients in one of both only"),
        (IDS, VALUES[:, :2], "2 columns, not 3"),
        (IDS, np.where(VALUES == 5, np.float32(np.inf), VALUES), "1 values (8.33%) differ, by at most inf"),
    ],
)
def test_what_is_said(ids, values, said):
    found = compare(IDS, VALUES, ids, values)
    assert not found.same
    assert str(found) == said


def test_other_dtypes_are_no_comparison():
    with pytest.raises(ValueError, match="no bits in common"):
        compare(IDS, VALUES, IDS, VALUES.astype(np.float16))
