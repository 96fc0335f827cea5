"""Drift: indices and cosines as plain Python computes them, none by chance, and a planted one found."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.ubp.blocks.toy import Purchases
from ubp.blocks.embeddings import EmbeddingTable
from ubp.io.errors import UserError
from ubp.nightly.drift import (
    BINS,
    Canaries,
    Columns,
    DriftSettings,
    Moved,
    Reference,
    binned,
    column_names,
    cosines,
    stability,
)

RNG = np.random.default_rng(4)


def normal(clients, columns=40) -> np.ndarray:
    return RNG.normal(size=(clients, columns)).astype(np.float32)


counts = st.lists(st.integers(0, 50), min_size=BINS, max_size=BINS)


@settings(max_examples=60, deadline=None)
@given(counts, counts)
def test_the_index_is_that_of_its_definition(before, now):
    bins = [(b + 0.5, n + 0.5) for b, n in zip(before, now, strict=True) if b + n]
    found = stability(np.array([before]).T, np.array([now]).T)
    if not bins:
        return
    total, other = sum(b for b, _ in bins), sum(n for _, n in bins)
    wanted = sum((n / other - b / total) * math.log((n / other) / (b / total)) for b, n in bins)
    wanted -= (len(bins) - 1) * (1 / total + 1 / other)
    assert found[0] == pytest.approx(wanted, abs=1e-9)


@pytest.mark.parametrize("clients", [50, 400, 5_000])
def test_chance_alone_is_no_drift(clients):
    """Without what chance makes of it, fifty clients would have an index of 0.36 in every column."""
    reference = Reference.of(normal(clients), normal(clients))
    index = stability(reference.counts, binned(normal(clients), reference.edges))
    assert abs(index.mean()) < 5 / clients
    assert (index < 0.4).all()


def test_a_column_that_moved_is_found_and_named():
    reference = Reference.of(normal(3_000), normal(3_000))
    tonight = normal(3_000)
    tonight[:, 7] += 1
    tonight[:, 30] *= 1.5
    names = [f"block: {place}" for place in range(40)]
    found = Columns.compared(reference, tonight, names, DriftSettings(stability=0.1))
    assert (found.clients, found.drifted, found.of, found.share) == (3_000, 2, 40, 0.05)
    assert list(found.worst)[:2] == ["block: 7", "block: 30"]
    assert found.worst["block: 7"] > 0.5


def test_columns_of_few_values_and_of_one():
    values = RNG.integers(0, 3, (1_000, 2)).astype(np.float32)
    values[:, 1] = 4
    reference = Reference.of(values, values)
    assert reference.counts.sum(axis=0).tolist() == [1_000, 1_000]
    assert (stability(reference.counts, binned(values, reference.edges)) <= 0).all()
    moved = values.copy()
    moved[:, 1] = 5
    index = stability(reference.counts, binned(moved, reference.edges))
    assert index[0] <= 0
    # A value above the only one there was lies in the same bin as that; one below it does not.
    moved[:, 1] = 3
    assert stability(reference.counts, binned(moved, reference.edges))[1] > 1


def test_the_reference_is_kept(tmp_path):
    reference = Reference.of(normal(100), normal(30))
    reference.write(tmp_path / "x" / "r.npz")
    again = Reference.read(tmp_path / "x" / "r.npz")
    assert all(np.array_equal(getattr(again, name), getattr(reference, name)) for name in ("mean", "edges", "counts"))
    with pytest.raises(UserError, match="not readable"):
        Reference.read(tmp_path / "r.npz")


def test_cosines_of_the_clients_in_both():
    one = EmbeddingTable(np.array([5, 1, 3]), np.array([[3, 1], [2, 2], [1, 1]], np.float32), {})
    other = EmbeddingTable(np.array([1, 2, 3, 5]), np.array([[1, 3], [9, 9], [1, 1], [5, 1]], np.float32), {})
    ids, found = cosines(one, other, np.array([1.0, 1.0]))
    assert ids.tolist() == [1, 3, 5]
    assert found.tolist() == pytest.approx([1 / math.sqrt(2), 1.0, 1.0])


def test_a_common_part_hides_nothing():
    one = EmbeddingTable(np.array([1]), np.array([[100, 1, 0]], np.float32), {})
    other = EmbeddingTable(np.array([1]), np.array([[100, 0, 1]], np.float32), {})
    assert cosines(one, other, np.array([100.0, 0, 0]))[1][0] == pytest.approx(0)


def test_quiet_canaries_are_named_first_and_the_farthest_before():
    ids, found = np.arange(5), np.array([0.999, 0.2, 0.9, 0.5, 1.0])
    seen = Canaries.of(ids, found, changed=np.array([1]), limit=0.99)
    assert (seen.clients, seen.least, seen.below, seen.quiet_below, seen.named) == (5, 0.2, 3, 2, [3, 2, 1])
    assert Canaries.of(np.zeros(0, np.int64), np.zeros(0), np.zeros(0), 0.99).least == 1.0


def test_moved():
    assert Moved.of(np.zeros(0)).quantiles == {}
    assert Moved.of(np.linspace(0, 1, 101)).quantiles == {"0.01": 0.01, "0.05": 0.05, "0.25": 0.25, "0.5": 0.5}


def test_columns_without_names_have_places():
    block = Purchases(np.ones(3, np.float32))
    assert column_names(block, "x", 3) == ["x: 0", "x: 1", "x: 2"]


@pytest.mark.parametrize(("name", "value"), [("canaries", 0), ("columns", 0.0), ("columns", 1.5), ("stability", -1.0)])
def test_settings_that_make_no_sense(name, value):
    with pytest.raises(UserError, match=f"drift.{name}={value}: must be"):
        DriftSettings(**{name: value})
