"""Directions of answers: against the residuals of regressions and their principal components, computed row by row."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.decomposition import PCA
from sklearn.linear_model import LinearRegression

from stacker.directions import deviations, main_directions


def rows(seed: int, variables: int, count: int = 300) -> np.ndarray:
    random = np.random.default_rng(seed)
    mixed = random.normal(size=(count, variables)) @ random.normal(size=(variables, variables))
    return mixed - mixed.mean(axis=0)


def covariance(values: np.ndarray) -> np.ndarray:
    return values.T @ values / len(values)


@given(st.integers(0, 50), st.integers(0, 2), st.integers(1, 4))
def test_they_are_the_principal_components_of_what_the_first_do_not_say(seed, beside, most):
    values = rows(seed, 6)
    found = values @ main_directions(covariance(values), beside, most)
    first, others = values[:, :beside], values[:, beside:]
    left = others - LinearRegression().fit(first, others).predict(first) if beside else others
    wanted = PCA(most).fit_transform(left)
    wanted /= wanted.std(axis=0)
    likeness = np.abs((found * wanted).mean(axis=0))
    np.testing.assert_allclose(likeness, 1, atol=1e-6)  # the sign is free


@given(st.integers(0, 50), st.integers(0, 3))
def test_they_have_one_length_and_are_correlated_with_nothing(seed, beside):
    values = rows(seed, 7)
    directions = values @ main_directions(covariance(values), beside, 3)
    together = np.concatenate([values[:, :beside], directions], axis=1)
    np.testing.assert_allclose(covariance(together)[beside:, beside:], np.eye(3), atol=1e-7)
    np.testing.assert_allclose(covariance(together)[:beside, beside:], 0, atol=1e-7)


def test_the_signs_are_those_of_the_largest_coefficients():
    found = main_directions(covariance(rows(3, 5)), 1, 3)
    assert (found[np.abs(found).argmax(axis=0), np.arange(3)] > 0).all()


@pytest.mark.parametrize("beside", [0, 1, 2])
def test_variables_that_say_the_same_give_one_direction_not_two(beside):
    values = rows(1, 2)
    twice = np.concatenate([values, values], axis=1)
    assert main_directions(covariance(twice), beside, 4).shape == (4, 2 - beside)


def test_nothing_is_left_of_variables_that_do_not_differ():
    assert main_directions(np.zeros((3, 3)), 1, 2).shape == (3, 0)


def test_a_deviation_that_rounding_left_is_none():
    values = rows(2, 3)
    values[:, 1] = 1e-7 * values[:, 0]
    values[:, 2] = 0
    found = deviations(covariance(values))
    assert found[0] == pytest.approx(values[:, 0].std())
    assert list(found[1:]) == [0, 0]


def test_a_direction_of_too_small_a_share_is_left_out():
    values = np.random.default_rng(0).normal(size=(1000, 4)) * [3, 1, 2, 0.2]
    shares = np.array([4, 1, 0.04]) / 5.04  # of the last three variables, once they are sorted
    for least, count in ((0.0, 3), (0.5 * shares[2], 3), (2 * shares[2], 2), (2 * shares[1], 1), (0.99, 0)):
        assert main_directions(covariance(values), 1, 3, least).shape == (4, count)
