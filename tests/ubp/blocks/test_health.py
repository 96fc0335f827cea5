"""A block's health against a slow reference; what counts as collapsed and what does not."""

import math
import time

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from ubp.blocks.health import Health, effective_rank, health_of


def slow_rank(vectors: np.ndarray, scaled: bool) -> float:
    """From the singular values of the centred rows, one sum after the other."""
    centred = vectors.astype(np.float64) - vectors.astype(np.float64).mean(axis=0)
    if scaled:
        centred = centred[:, centred.std(axis=0) > 0]
        centred = centred / centred.std(axis=0)
    eigenvalues = [float(value) ** 2 for value in np.linalg.svd(centred, compute_uv=False)]
    entropy = 0.0
    for value in eigenvalues:
        share = value / sum(eigenvalues)
        entropy -= share * math.log(share) if share > 0 else 0.0
    return math.exp(entropy)


def uneven(rows: int = 500, columns: int = 12, seed: int = 0) -> np.ndarray:
    """Columns of unequal scale, correlated, far from zero; one is constant."""
    rng = np.random.default_rng(seed)
    mixed = rng.normal(size=(rows, columns)) @ rng.normal(size=(columns, columns)) * 10.0 ** rng.uniform(-3, 3, columns)
    vectors = (mixed + 100).astype(np.float32)
    vectors[:, 4] = 7.0
    return vectors


@pytest.mark.parametrize("rows", [2, 13, 500, 9_000])
def test_against_a_slow_reference(rows):
    vectors = uneven(rows)
    found = health_of(vectors)
    assert (found.rows, found.columns, found.constant_columns) == (rows, 12, 1)
    assert found.effective_rank == pytest.approx(slow_rank(vectors, scaled=False), rel=1e-6)
    assert found.scaled_rank == pytest.approx(slow_rank(vectors, scaled=True), rel=1e-6)
    norms = sorted(math.sqrt(sum(float(value) ** 2 for value in row)) for row in vectors)
    assert found.median_norm == pytest.approx((norms[(rows - 1) // 2] + norms[rows // 2]) / 2)


def test_effective_ranks_known_by_heart():
    assert effective_rank(np.eye(7)) == pytest.approx(7)
    assert effective_rank(np.diag([5.0, 5.0, 0.0, 0.0])) == pytest.approx(2)
    assert effective_rank(np.diag([3.0, 0.0])) == pytest.approx(1)
    assert effective_rank(np.zeros((3, 3))) == effective_rank(np.zeros((0, 0))) == 0


def test_a_large_block_is_sampled_by_the_seed():
    vectors = np.random.default_rng(0).normal(size=(30_000, 8)).astype(np.float32)
    found = health_of(vectors, seed=1)
    assert found.rows == 20_000
    assert found == health_of(vectors, seed=1)
    assert found != health_of(vectors, seed=2)
    assert found.effective_rank == pytest.approx(8, abs=0.02)


def test_nothing_is_wrong_with_columns_of_unequal_scale():
    """As in a block of statistics: one column holds nearly all the variance, and the block is sound."""
    vectors = np.random.default_rng(0).normal(size=(300, 10)).astype(np.float32) * 10.0 ** np.arange(10)
    found = health_of(vectors.astype(np.float32))
    assert found.effective_rank < 1.1
    assert found.scaled_rank > 9
    assert found.collapsed == []


def on_a_line(scale: float) -> np.ndarray:
    rng = np.random.default_rng(0)
    return (scale * (rng.random((400, 1)) * rng.normal(size=64) + 1e-4 * rng.normal(size=(400, 64)))).astype(np.float32)


@pytest.mark.parametrize(
    ("vectors", "says"),
    [
        (on_a_line(1.0), ["effective rank 1.0 in 64 columns"]),
        (on_a_line(1e-13), ["effective rank 1.0 in 64 columns", "median norm"]),
        (np.zeros((50, 8), np.float32), ["the same vector for all clients", "median norm 0"]),
        (np.full((50, 8), 0.3, np.float32), ["the same vector for all clients"]),
        (np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32) * 1e-7, ["median norm"]),
    ],
    ids=["line", "line of no length", "zeros", "constant", "no length"],
)
def test_collapsed(vectors, says):
    found = health_of(vectors).collapsed
    assert len(found) == len(says)
    assert all(complaint.startswith(start) for complaint, start in zip(found, says, strict=True)), found


@pytest.mark.parametrize(
    "vectors",
    [
        np.ones((1, 8), np.float32),  # one client: nothing to compare
        np.zeros((0, 8), np.float32),
        np.random.default_rng(0).normal(size=(3, 64)).astype(np.float32),  # three points span two directions
        np.random.default_rng(0).normal(size=(100, 1)).astype(np.float32),  # one column has one
        np.random.default_rng(0).normal(size=(100, 3)).astype(np.float32).cumsum(axis=1) * [1, 1e-3, 1e3],
    ],
    ids=["one client", "none", "few clients", "one column", "three columns"],
)
def test_too_little_to_judge(vectors):
    assert health_of(vectors.astype(np.float32)).collapsed == []


def test_a_rotation_changes_nothing_that_matters():
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(500, 16)) @ np.diag(0.5 ** np.arange(16))
    turned = vectors @ np.linalg.qr(rng.normal(size=(16, 16)))[0]
    first, second = health_of(vectors.astype(np.float32)), health_of(turned.astype(np.float32))
    assert first.effective_rank == pytest.approx(second.effective_rank, rel=1e-4)
    assert first.median_norm == pytest.approx(second.median_norm, rel=1e-4)


def test_the_lineage_can_hold_it():
    found = health_of(uneven())
    assert Health(**found.as_dict()) == found


def test_a_million_rows_cost_no_more_than_a_sample():
    """512 columns without the memory for a million rows: rows that repeat, by a view."""
    vectors = np.lib.stride_tricks.as_strided(
        np.random.default_rng(0).normal(size=(1_000_512)).astype(np.float32), (1_000_000, 512), (4, 4), writeable=False
    )
    with threadpool_limits(1):
        started = time.process_time()
        found = health_of(vectors)
    assert time.process_time() - started < 6  # 1 s on a core of 2.5 GHz; room for a busy machine
    assert found.rows == 20_000
    assert found.scaled_rank > 400
