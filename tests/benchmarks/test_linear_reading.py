from pathlib import Path

import numpy as np
import pytest

from benchmarks.linear_reading import even, reading
from ubp.evaluation.scoring import Profiles

STRENGTHS = (0.001, 0.1)


def columns_of(rows=400, columns=6, seed=0):
    values = np.random.default_rng(seed).normal(size=(rows, columns))
    return values - values.mean(axis=0)


def test_what_is_in_the_columns_is_read_and_what_is_not_is_not():
    columns, random = columns_of(), np.random.default_rng(1)
    planted = (columns[:, [0]] > 0).astype(np.uint8)
    noise = random.integers(0, 2, (len(columns), 1)).astype(np.uint8)
    other = random.integers(0, 2, (len(columns), 1)).astype(np.uint8)
    assert reading(columns, planted, planted, STRENGTHS) > 0.98
    assert 0.4 < reading(columns, noise, other, STRENGTHS) < 0.6


def test_labels_that_nobody_has_do_not_count():
    columns = columns_of()
    planted = (columns[:, [0]] > 0).astype(np.uint8)
    absent = np.zeros_like(planted)
    with_absent = np.concatenate([planted, absent], axis=1)
    assert reading(columns, with_absent, with_absent, STRENGTHS) == reading(columns, planted, planted, STRENGTHS)
    assert np.isnan(reading(columns, absent, absent, STRENGTHS))


def test_one_strength_is_ridge_regression():
    """Against the normal equations and a count of pairs."""
    columns = columns_of(rows=60)
    rng = np.random.default_rng(2)
    train, validation = rng.integers(0, 2, (2, 60, 1)).astype(np.uint8)
    scale = 0.5 * (columns**2).sum() / 6
    weights = np.linalg.solve(columns.T @ columns + scale * np.eye(6), columns.T @ (train - train.mean()))
    predicted, positive = (columns @ weights)[:, 0], validation[:, 0] == 1
    pairs = predicted[positive][:, None] > predicted[~positive][None, :]
    assert reading(columns, train, validation, [0.5]) == pytest.approx(pairs.mean())


def test_blocks_are_read_at_the_same_length():
    vectors = columns_of().astype(np.float32) * 1000 + 5
    found = even(Profiles("block", Path("x"), np.arange(400), vectors))
    np.testing.assert_allclose(found.mean(axis=0), 0, atol=1e-9)
    assert (found**2).sum(axis=1).mean() == pytest.approx(1)
