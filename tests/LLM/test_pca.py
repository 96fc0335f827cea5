"""The PCA over clients against plain scikit-learn, its draw of clients, and its limits."""

import numpy as np
import pytest
from sklearn.decomposition import PCA

from LLM.pca import fit_pca
from ubp.blocks.widths import CUT
from ubp.io.errors import NoUsableEvents


def test_the_pca_against_plain_scikit_learn():
    rng = np.random.default_rng(0)
    vectors = (rng.normal(size=(50, 12)) @ rng.normal(size=(12, 12)) + 1000.0).astype(np.float32)
    text_of = rng.integers(0, 50, 300)
    fitted, share = fit_pca(vectors, text_of, 5, pca_clients=1000, seed=0)
    reduced = fitted.reduce(vectors)
    assert (reduced.dtype, fitted.mean.dtype, fitted.components.dtype) == (np.float32, np.float64, np.float64)
    plain = PCA(5, svd_solver="full")
    wanted = plain.fit_transform(vectors[text_of].astype(np.float64))
    signs = np.sign((wanted * reduced[text_of]).sum(axis=0))
    np.testing.assert_allclose(reduced[text_of] * signs, wanted, atol=1e-3)
    assert share == pytest.approx(plain.explained_variance_ratio_.sum())


def test_a_pca_of_drawn_clients_is_repeatable():
    rng = np.random.default_rng(0)
    vectors = (rng.normal(size=(400, 6)) * [9, 5, 3, 1, 1, 1]).astype(np.float32)
    first, again, other = (fit_pca(vectors, np.arange(400), 2, 200, seed)[0].reduce(vectors) for seed in (1, 1, 2))
    assert first.tobytes() == again.tobytes()
    assert first.tobytes() != other.tobytes()
    for column in range(2):  # much the same axes
        assert abs(np.corrcoef(first[:, column], other[:, column])[0, 1]) > 0.95


@pytest.mark.parametrize(
    ("clients", "pca_clients", "made", "line"),
    [
        (4, 100, 4, "n_components: 9 asked, 4 clients to fit on: 4 columns"),
        (20, 3, 3, "n_components: 9 asked, 3 clients to fit on: 3 columns"),
        (20, 100, 6, "n_components: 9 asked, 6 columns of the model: 6 columns"),
    ],
)
def test_too_few_for_so_many_components_make_fewer_with_a_line(caplog, clients, pca_clients, made, line):
    vectors = np.random.default_rng(0).normal(size=(20, 6)).astype(np.float32)
    pca, share = fit_pca(vectors, np.arange(clients), 9, pca_clients, 0)
    assert pca.reduce(vectors).shape == (20, made)
    assert share == pytest.approx(1)
    assert [message for message in caplog.messages if CUT in message] == [line]


def test_a_single_client_has_no_pca():
    with pytest.raises(
        NoUsableEvents, match="1 relevant clients have a text, and a PCA takes two at least; set n_comp"
    ):
        fit_pca(np.ones((1, 3), np.float32), np.arange(1), 1, 100, 0)
