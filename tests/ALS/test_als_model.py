"""The factorisation and its strength; clients' factors by those of the items; CPU and GPU."""

import dataclasses
import logging
import math

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from ALS import model
from ALS.implicit_gpu import gpu_fault
from ALS.model import AlsSettings, Strength, client_factors, factorise, strength
from ubp.blocks.health import health_of
from ubp.cli.config import composed, parse
from ubp.data.paths import CONFIGS
from ubp.io.errors import UserError

RULE = {"confidence": 1.0, "shrinkage": 0.3, "alpha": None, "regularization": None}
SMALL = AlsSettings(factors=8, iterations=10, threads=1, **{**RULE, "alpha": 1.0, "regularization": 0.1})
TOLERANCE = 0.05


def preset(name: str, config: str = "als_buy_add_categories", *overrides: str) -> AlsSettings:
    found = composed(CONFIGS / "ALS", config, [f"preset={name}", "als.threads=1", *overrides])
    return parse(AlsSettings, found, at="als")


def sparse_log(clients: int, items: int, each: int, seed: int = 0) -> csr_matrix:
    """Clients with ``each`` events: a fifth weigh 3, the others 1; an item's popularity falls with its rank."""
    rng = np.random.default_rng(seed)
    popularity = 1 / (np.arange(items) + 10.0) ** 0.8
    chosen = rng.choice(items, clients * each, p=popularity / popularity.sum())
    weights = np.where(rng.random(clients * each) < 0.2, 3.0, 1.0).astype(np.float32)
    return csr_matrix((weights, (np.repeat(np.arange(clients), each), chosen)), (clients, items))


def uneven_log(clients: int, items: int) -> csr_matrix:
    """Two or three purchases a client on average, most clients one, a few up to fifty; of items at random."""
    rng = np.random.default_rng(0)
    owners = np.repeat(np.arange(clients), 1 + np.minimum(rng.pareto(1.2, clients), 49).astype(int))
    chosen = rng.integers(items, size=len(owners))
    return csr_matrix((np.full(len(owners), 3.0, np.float32), (owners, chosen)), (clients, items))


# --- the fit -----------------------------------------------------------------------------------------


def test_same_seed_same_bits_another_seed_others():
    log = sparse_log(60, 20, 3)
    first = factorise(log, SMALL, seed=1)
    assert (first.clients.dtype, first.items.dtype) == (np.float32, np.float32)
    assert (first.clients.shape, first.items.shape) == ((60, 8), (20, 8))
    for again in (factorise(log, SMALL, seed=1), factorise(log, dataclasses.replace(SMALL, threads=0), seed=1)):
        assert again.clients.tobytes() == first.clients.tobytes()
        assert again.items.tobytes() == first.items.tobytes()
    assert factorise(log, SMALL, seed=2).items.tobytes() != first.items.tobytes()


def test_factors_are_in_the_matrixs_order():
    matrix = np.kron(np.eye(2, dtype=np.float32), np.ones((5, 3), np.float32))
    order = np.random.default_rng(0).permutation(10)
    vectors = factorise(csr_matrix(matrix[order]), SMALL, seed=0).clients
    group = order // 5
    centre = [vectors[group == number].mean(axis=0) for number in (0, 1)]
    nearest = np.argmin([np.linalg.norm(vectors - point, axis=1) for point in centre], axis=0)
    assert nearest.tolist() == group.tolist()


def test_settings_that_overflow_are_one_line():
    with pytest.raises(UserError, match="try a larger regularization or a smaller alpha"):
        factorise(sparse_log(60, 20, 5), dataclasses.replace(SMALL, regularization=0.0, alpha=1e30, iterations=5), 0)


# --- clients' factors by those of the items ----------------------------------------------------------


def test_client_factors_solve_the_papers_equations():
    """x = (Y'CY + λI)⁻¹ Y'Cp, with C = alpha × weight where a pair was seen and 1 elsewhere."""
    log = sparse_log(40, 20, 5)
    log[3, 2] = -2.0  # implicit: a confidence in not liking it
    log.eliminate_zeros()
    items = np.random.default_rng(0).normal(size=(20, 8)).astype(np.float32)
    found = client_factors(log, items, Strength(0.7, 0.5), threads=1)
    assert found.dtype == np.float32
    for row, weights in zip(found, log.toarray().astype(float), strict=True):
        confidence = np.where(weights != 0, np.abs(0.7 * weights), 1.0)
        left = items.T @ (confidence[:, None] * items) + 0.5 * np.eye(8)
        wanted = np.linalg.solve(left, items.T @ (confidence * (weights > 0)))
        np.testing.assert_allclose(row, wanted, rtol=1e-3, atol=1e-5)


def test_client_factors_depend_neither_on_the_other_clients_nor_on_threads():
    log = sparse_log(300, 40, 6)
    items = factorise(log, SMALL, seed=0).items
    found = client_factors(log, items, Strength(1.0, 0.1), threads=1)
    assert client_factors(log[::7], items, Strength(1.0, 0.1), threads=2).tobytes() == found[::7].tobytes()


@pytest.mark.parametrize("name", ["full", "demo"])
def test_client_factors_of_the_fits_clients_are_near_the_fits(name):
    """Within 5 %; on the demo's log, as the docstring says, within 2 %."""
    log = sparse_log(2_000, 200, 12)
    settings = preset(name)
    fitted = factorise(log, settings, seed=0)
    found = client_factors(log, fitted.items, fitted.strength, threads=1)
    apart = np.linalg.norm(found - fitted.clients) / np.linalg.norm(fitted.clients)
    assert 0 < apart < TOLERANCE, apart


def test_a_client_without_weights_has_zeros():
    items = np.random.default_rng(0).normal(size=(20, 8)).astype(np.float32)
    log = csr_matrix((np.ones(1, np.float32), ([1], [4])), (3, 20))
    found = client_factors(log, items, Strength(1.0, 0.1))
    assert found.any(axis=1).tolist() == [False, True, False]


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_client_factors_that_are_not_finite_are_one_line(broken):
    items = np.ones((20, 8), np.float32)
    items[0, 0] = broken
    with pytest.raises(UserError, match=r"als: .*try a larger regularization or a smaller alpha"):
        client_factors(sparse_log(40, 20, 5), items, Strength(1.0, 0.1), threads=1)


# --- the rule ----------------------------------------------------------------------------------------


@pytest.mark.full
@pytest.mark.parametrize("name", ["full", "demo"])
@pytest.mark.parametrize("config", ["als_buy_add_categories", "als_visits_relevant"])
def test_factors_of_a_sparse_log_keep_their_rank(name, config):
    found = health_of(factorise(sparse_log(19_000, 500, each=3), preset(name, config), seed=0).clients)
    assert found.collapsed == []
    assert found.effective_rank > 32
    assert found.median_norm > 1e-3


def test_numbers_tuned_on_a_dense_log_collapse_on_a_sparse_one():
    dense = preset("full", "als_buy_add_categories", "als.alpha=0.1", "als.regularization=10")
    found = health_of(factorise(sparse_log(19_000, 500, 3), dense, seed=0).clients)
    assert found.effective_rank < 1.1
    assert found.median_norm < 1e-6
    assert len(found.collapsed) == 2


def test_the_rule_against_the_whole_gradient():
    log = sparse_log(40, 9, 5)
    found = strength(log, AlsSettings(8, 4.0, 0.5, None, None, 1, 1))
    weights = log.toarray().astype(float)
    assert found.alpha == pytest.approx(4.0 / weights[weights > 0].mean())
    gradient = np.zeros_like(weights)
    for item in range(9):
        seen = weights[:, item] > 0
        confidence = np.where(seen, found.alpha * weights[:, item], 1.0)
        popularity = confidence[seen].sum() / confidence.sum()
        gradient[:, item] = confidence * (seen - popularity)
    detectable = np.linalg.norm(gradient) / math.sqrt(math.sqrt(40 * 9))
    assert found.regularization == pytest.approx(0.5 * detectable)


def test_factors_of_a_small_dense_log_keep_their_rank():
    """Sixty clients who met a third of thirty items, at random: what the strongest items take does not take all."""
    found = health_of(factorise(sparse_log(60, 30, 12), preset("full"), seed=0).clients)
    assert found.collapsed == []
    assert found.effective_rank > 3


@pytest.mark.parametrize(("clients", "categories"), [(2_000, 10), (4_000, 30)])
def test_factors_of_few_categories_keep_their_rank(clients, categories):
    """Clients of one category each have factors of their own, although a few clients have most of the events."""
    log = uneven_log(clients, categories)
    fitted = factorise(log, preset("full"), seed=0)
    found = health_of(client_factors(log, fitted.items, fitted.strength, threads=1))
    assert found.collapsed == []
    assert found.effective_rank > categories / 2
    one_each = csr_matrix(3 * np.eye(categories, dtype=np.float32))
    vectors = client_factors(one_each, fitted.items, fitted.strength, threads=1)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    assert (vectors @ vectors.T - np.eye(categories)).max() < 0.8


def test_weights_of_nothing():
    with pytest.raises(UserError, match=r"interactions\.weights: all events weigh 0"):
        strength(sparse_log(40, 9, 5) * np.float32(0), preset("full"))


def test_given_numbers_are_taken_to_the_letter():
    matrix = sparse_log(50, 20, 3)
    assert strength(matrix, AlsSettings(8, 1.0, 0.3, 0.7, 0.02, 1, 1)) == Strength(0.7, 0.02)
    assert strength(matrix, AlsSettings(8, 1.0, 0.3, 1.0, None, 1, 1)).alpha == 1.0
    assert strength(matrix, AlsSettings(8, 1.0, 0.3, None, 0.0, 1, 1)).regularization == 0.0


def test_other_units_give_the_same_factors():
    """Weights of 30 and 10 instead of 3 and 1 say the same."""
    one = sparse_log(300, 40, 6)
    ten = one * np.float32(8)
    settings = AlsSettings(8, iterations=5, threads=1, **RULE)
    found, wanted = (factorise(log, settings, 0) for log in (one, ten))
    np.testing.assert_allclose(found.clients, wanted.clients, rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(found.items, wanted.items, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("als.confidence=0", "als.confidence=0.0: must be more than 0"),
        ("als.shrinkage=-1", "als.shrinkage=-1.0: must be at least 0"),
        ("als.alpha=0", "als.alpha=0.0: must be more than 0, or null for the rule"),
        ("als.regularization=-1", "als.regularization=-1.0: must be at least 0, or null for the rule"),
        ("als.factors=0", "als.factors=0: must be at least 1"),
    ],
)
def test_numbers_that_make_no_sense(setting, says):
    with pytest.raises(UserError, match=says):
        preset("full", "als_buy_add_categories", setting)


# --- CPU and GPU -------------------------------------------------------------------------------------


def test_alpha_is_a_factor_of_the_matrix_as_in_the_librarys_cpu_code():
    from implicit.cpu.als import AlternatingLeastSquares

    log = sparse_log(300, 40, 6)
    tenth = dataclasses.replace(SMALL, alpha=0.1)
    found = factorise(log, tenth, seed=3)
    before = 0.1 * log
    assert factorise(before, SMALL, seed=3).items.tobytes() == found.items.tobytes()
    library = AlternatingLeastSquares(8, 0.1, alpha=0.1, iterations=10, num_threads=1, random_state=3)
    library.fit(log, show_progress=False)
    assert library.user_factors.tobytes() == found.clients.tobytes()
    assert library.item_factors.tobytes() == found.items.tobytes()


class OnHost:
    """In place of ``implicit.gpu.Matrix``: an array that says it is on the GPU."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = values

    def to_numpy(self) -> np.ndarray:
        return self.values


class FakeGpuModel:
    """Takes what implicit's GPU class takes; keeps what `fit` is given, and gives ``clients`` and ``items``."""

    clients: np.ndarray | None = None
    items: np.ndarray | None = None

    def __init__(self, use_gpu, factors, regularization, alpha, iterations, random_state):
        assert use_gpu
        self.settings = (factors, regularization, alpha, iterations, random_state)
        type(self).last = self

    def fit(self, matrix, **_):
        self.matrix, self.first = matrix.copy(), (self.user_factors.to_numpy().copy(), self.item_factors.to_numpy())
        if self.clients is not None:
            self.user_factors = OnHost(self.clients)
        if self.items is not None:
            self.item_factors = OnHost(self.items)


@pytest.fixture
def fake_gpu(monkeypatch):
    import implicit.als
    import implicit.gpu

    fake = type("Model", (FakeGpuModel,), {})
    monkeypatch.setattr(model, "gpu_fault", lambda: None)
    monkeypatch.setattr(implicit.als, "AlternatingLeastSquares", fake)
    monkeypatch.setattr(implicit.gpu, "Matrix", OnHost, raising=False)
    return fake


def test_the_gpu_gets_the_matrix_times_alpha_and_the_cpus_first_factors(fake_gpu):
    log = sparse_log(60, 40, 3)
    settings = dataclasses.replace(SMALL, factors=32, alpha=0.1)
    factors = factorise(log, settings, seed=0)
    assert fake_gpu.last.settings == (32, 0.1, 1.0, 10, 0)
    assert fake_gpu.last.matrix.dtype == np.float32
    assert (fake_gpu.last.matrix != np.float32(0.1) * log).nnz == 0
    rng = np.random.default_rng(0)
    for side, rows in zip(fake_gpu.last.first, (60, 40), strict=True):
        assert side.dtype == np.float32
        np.testing.assert_array_equal(side, rng.random((rows, 32), dtype=np.float32) * 0.01)
    for side, rows in ((factors.clients, 60), (factors.items, 40)):
        assert side.dtype == np.float32
        assert side.shape == (rows, 32)


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
@pytest.mark.parametrize(("side", "rows"), [("clients", 60), ("items", 40)])
def test_what_the_gpu_could_not_solve_is_one_line(fake_gpu, value, side, rows):
    factors = np.ones((rows, 32), np.float32)
    factors[7] = value
    setattr(fake_gpu, side, factors)
    with pytest.raises(UserError, match=f"factors of 1 {side} are zero or not finite; try a larger regularization"):
        factorise(sparse_log(60, 40, 3), dataclasses.replace(SMALL, factors=32), seed=0)


@pytest.mark.usefixtures("fake_gpu")
@pytest.mark.parametrize("factors", [48, 2048])
def test_factors_that_the_gpus_kernel_would_get_wrong(factors):
    with pytest.raises(UserError, match=f"als.factors={factors}: must be a multiple of 32 up to 1024 on a GPU"):
        factorise(sparse_log(2100, 2100, 3), dataclasses.replace(SMALL, factors=factors), seed=0)


@pytest.mark.usefixtures("fake_gpu")
def test_a_log_beyond_the_gpus_32_bits():
    wide = csr_matrix((np.ones(1, np.float32), ([0], [40_000_000 - 1])), (64, 40_000_000))
    with pytest.raises(UserError, match="64 clients x 40,000,000 items with 1 pairs are too many"):
        factorise(wide, dataclasses.replace(SMALL, factors=64), seed=0)


def test_the_log_says_why_there_is_no_gpu(monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    for fault, level in (
        ("no CUDA driver: x", "INFO"),
        ("No module named 'rmm' (" + model.INSTALL, "WARNING"),
    ):
        monkeypatch.setattr(model, "gpu_fault", lambda fault=fault: fault)
        caplog.clear()
        factorise(sparse_log(60, 20, 3), SMALL, seed=0)
        lines = [record for record in caplog.records if "implicit ALS" in record.message]
        assert [record.levelname for record in lines] == [level]
        assert f"on the CPU ({fault})" in lines[0].message
        assert "alpha 1, regularization 0.1" in lines[0].message


@pytest.mark.parametrize("on_gpu", [False, True])
def test_no_more_factors_than_the_smaller_side(monkeypatch, caplog, on_gpu):
    """On the CPU even where there is a GPU, whose kernel takes multiples of 32 alone."""
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(model, "gpu_fault", lambda: None if on_gpu else "no CUDA driver: x")
    for log, made in ((sparse_log(60, 10, 3), 10), (sparse_log(7, 40, 3), 7)):
        factors = factorise(log, dataclasses.replace(SMALL, factors=32), seed=0)
        assert factors.items.shape == (log.shape[1], made)
        assert factors.clients.shape == (log.shape[0], made)
        assert client_factors(log, factors.items, factors.strength, threads=1).shape == factors.clients.shape
    assert ("on the CPU (10 factors: a matrix so small)" in caplog.text) == on_gpu


@pytest.mark.gpu
def test_a_gpu_gives_the_cpus_factors(monkeypatch):
    if fault := gpu_fault():
        pytest.skip(fault)
    log = sparse_log(2_000, 200, 12)
    settings = AlsSettings(64, iterations=15, threads=1, **RULE)
    on_gpu = factorise(log, settings, seed=0)
    monkeypatch.setattr(model, "gpu_fault", lambda: "hidden by the test")
    on_cpu = factorise(log, settings, seed=0)
    # The same start, so no rotation between them: only the order of the sums differs.
    for found, wanted in ((on_gpu.clients, on_cpu.clients), (on_gpu.items, on_cpu.items)):
        apart = np.linalg.norm(found - wanted) / np.linalg.norm(wanted)
        assert apart < 0.02, apart
