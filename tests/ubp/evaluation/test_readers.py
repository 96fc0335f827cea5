"""Readers: a logistic regression written out plainly, whom it learns from, and what it leaves out."""

import numpy as np
import polars as pl
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from ubp.blocks.embeddings import EmbeddingTable
from ubp.data.paths import DataPaths
from ubp.data.targets import TASKS, Targets
from ubp.evaluation.readers import ReaderSettings, fit_readers
from ubp.evaluation.tasks import GroundTruth
from ubp.io.errors import UserError

CLIENTS = 120
SETTINGS = ReaderSettings(clients=1000, categories=2, strength=0.5)


@pytest.fixture
def log(tmp_path):
    """Clients with a positive first column buy; those with a positive second one buy category 5; few buy 6."""
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(CLIENTS, 4)).astype(np.float32)
    vectors[:, 3] = 7  # the same for all
    ids = np.arange(CLIENTS) * 2

    def window(noise):
        noisy = vectors + noise * rng.normal(size=vectors.shape)
        rows = []
        for client, row in zip(ids.tolist(), noisy, strict=True):
            if row[0] > 0:
                rows.append((client, 1, 5 if row[1] > 0 else 4, 3))
            if client < 6:
                rows.append((client, 1, 6, 3))
        return pl.DataFrame(rows, schema=["client_id", "sku", "category", "price"], orient="row")

    targets = {task.name: Targets(np.array([6, 5, 9]), np.ones(3)) for task in TASKS if task.is_propensity}
    truth = GroundTruth(DataPaths(tmp_path), window(0.3), window(0.3), ids[:100], targets)
    return EmbeddingTable(ids, vectors, {}), truth


def test_a_reader_is_scikit_learns_on_standardised_columns(log):
    table, truth = log
    churn, category = fit_readers(table, truth, SETTINGS, seed=0)
    assert (churn.name, category.name) == ("churn", "category 5")
    active, columns = table.vectors[:100].astype(np.float64), slice(0, 3)
    standard = (active[:, columns] - active[:, columns].mean(0)) / active[:, columns].std(0)
    bought = {file: set(frame["client_id"].to_list()) for file, frame in (("a", truth.train), ("b", truth.validation))}
    label = {file: [client not in who for client in table.client_ids[:100].tolist()] for file, who in bought.items()}
    plain = LogisticRegression(C=0.5, max_iter=1000).fit(standard, label["a"]).predict_proba(standard)[:, 1]
    np.testing.assert_allclose(churn.probability(table.vectors[:100]), plain, atol=1e-4)
    assert churn.auroc == pytest.approx(roc_auc_score(label["b"], plain), abs=1e-3)
    assert churn.share == pytest.approx(np.mean(label["a"]))
    assert churn.auroc > 0.9
    assert category.auroc > 0.75


def test_a_constant_column_and_too_few_buyers_say_nothing(log):
    table, truth = log
    readers = fit_readers(table, truth, SETTINGS, seed=0)
    assert all(reader.weights[3] == 0 for reader in readers)
    assert "category 6" not in [reader.name for reader in readers]  # three buyers


def test_no_more_than_asked_for_learn_and_the_seed_draws_them(log):
    table, truth = log
    some = ReaderSettings(clients=60, categories=0, strength=0.5)
    (one,), (same,), (other,) = (fit_readers(table, truth, some, seed) for seed in (0, 0, 1))
    assert one.weights.tobytes() == same.weights.tobytes()
    assert one.weights.tobytes() != other.weights.tobytes()


def test_a_vector_that_is_gone_has_no_probability(log):
    table, truth = log
    (churn, _) = fit_readers(table, truth, SETTINGS, seed=0)
    assert np.isnan(churn.probability(np.full((1, 4), np.nan, np.float32))).all()


@pytest.mark.parametrize(("name", "value"), [("clients", -1), ("categories", -1), ("strength", 0.0)])
def test_settings_that_make_no_sense(name, value):
    with pytest.raises(UserError, match=rf"readers\.{name}={value}: must be"):
        ReaderSettings(**{**vars(SETTINGS), name: value})
