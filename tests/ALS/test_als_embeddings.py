"""What is factorised, against a dict; factors that are repeatable and belong to the right client."""

import dataclasses
import logging
import math
from collections import defaultdict

import numpy as np
import polars as pl
import pytest
from scipy.sparse import csr_matrix

from ALS import als_embeddings
from ALS.als_embeddings import (
    AlsSettings,
    Interactions,
    Strength,
    WeightedInteractions,
    factorise,
    strength,
    weighted_interactions,
)
from ALS.implicit_gpu import gpu_fault
from ubp.blocks.health import health_of
from ubp.cli.config import composed, parse
from ubp.data.history import ChallengeData
from ubp.data.paths import CONFIGS
from ubp.data.schema import EventType
from ubp.io.errors import UserError

BUY, ADD, VISIT = EventType.PRODUCT_BUY, EventType.ADD_TO_CART, EventType.PAGE_VISIT
CATEGORIES = Interactions("category", {"product_buy": 3.0, "add_to_cart": 1.0}, relevant_only=False, transform="none")
VISITS = Interactions("url", {"page_visit": 1.0}, relevant_only=True, transform="log1p")
RULE = {"confidence": 1.0, "shrinkage": 0.3, "alpha": None, "regularization": None}
SMALL = AlsSettings(factors=8, iterations=10, threads=1, **{**RULE, "alpha": 1.0, "regularization": 0.1})


@pytest.fixture
def tiny(make_history, tmp_path):
    history = make_history()
    paths = history.write(tmp_path)
    clients = history.events[VISIT]["client_id"].unique().sort()
    paths.input.mkdir()
    np.save(paths.relevant_clients, clients[::3].to_numpy())
    return history, ChallengeData(paths, True)


def as_dict(found: WeightedInteractions) -> dict[tuple[int, int], float]:
    """``{(client, column of the matrix): weight}``."""
    matrix = found.matrix.tocoo()
    return {
        (int(found.clients[row]), int(column)): float(weight)
        for row, column, weight in zip(matrix.row, matrix.col, matrix.data, strict=True)
    }


def slow_weights(events: list[tuple[int, int, float]]) -> dict[tuple[int, int], float]:
    """The same of (client, item, weight); items are numbered in ascending order."""
    number = {item: column for column, item in enumerate(sorted({item for _, item, _ in events}))}
    weights = defaultdict(float)
    for client, item, weight in events:
        weights[client, number[item]] += weight
    return weights


def test_weights_of_categories(tiny):
    history, data = tiny
    category = dict(history.properties.select("sku", "category").iter_rows())
    events = [(client, category[sku], 3.0) for client, _, sku in history.events[BUY].iter_rows()]
    events += [(client, category[sku], 1.0) for client, _, sku in history.events[ADD].iter_rows()]
    assert as_dict(weighted_interactions(data, CATEGORIES)) == slow_weights(events)


def test_weights_of_relevant_clients_visits(tiny):
    history, data = tiny
    relevant = set(data.relevant_clients.tolist())
    events = [(client, url, 1.0) for client, _, url in history.events[VISIT].iter_rows() if client in relevant]
    wanted = {key: math.log1p(weight) for key, weight in slow_weights(events).items()}
    found = weighted_interactions(data, VISITS)
    assert as_dict(found) == pytest.approx(wanted)
    assert found.matrix.dtype == np.float32
    assert set(found.clients.tolist()) == {client for client, _, _ in events}


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (Interactions("category", {"buy": 1.0}, False, "none"), "weights.buy: no such event type; known: product_buy"),
        (Interactions("url", {"product_buy": 1.0}, False, "none"), "column=url: events of product_buy have no such"),
        (Interactions("category", {"page_visit": 1.0}, False, "none"), "column=category: events of page_visit"),
        (Interactions("sku", {"product_buy": 1.0}, False, "log"), "transform=log: must be none or log1p"),
    ],
)
def test_settings_that_make_no_sense(tiny, settings, says):
    with pytest.raises(UserError, match=says):
        weighted_interactions(tiny[1], settings)


def test_no_events_of_the_kind(make_history, tmp_path):
    data = ChallengeData(make_history(empty=[VISIT]).write(tmp_path, null_typed=True), True)
    settings = Interactions("url", {"page_visit": 1.0}, relevant_only=False, transform="none")
    with pytest.raises(UserError, match="no events of page_visit; this embedding needs some"):
        weighted_interactions(data, settings)


def test_same_seed_same_bits_another_seed_others(tiny):
    data = tiny[1]
    interactions = weighted_interactions(data, CATEGORIES)
    first = factorise(interactions, SMALL, seed=1)
    assert first.dtype == np.float32
    assert first.shape == (len(interactions.clients), 8)
    again = factorise(weighted_interactions(data, CATEGORIES), SMALL, seed=1)
    assert again.tobytes() == first.tobytes()
    many = dataclasses.replace(SMALL, threads=0)
    assert factorise(interactions, many, seed=1).tobytes() == first.tobytes()
    assert factorise(interactions, SMALL, seed=2).tobytes() != first.tobytes()


def test_vectors_belong_to_the_right_client(tmp_path, make_history):
    """Even clients buy in one half of the categories, odd ones in the other: the halves stand apart."""
    history = make_history()
    rng = np.random.default_rng(0)
    category = history.properties["category"]
    halves = [history.properties.filter((category % 2) == odd)["sku"].to_numpy() for odd in (0, 1)]
    clients = rng.permutation(np.repeat(rng.permutation(40), 20))
    skus = [rng.choice(halves[client % 2]) for client in clients]
    bought = history.events[BUY]["timestamp"].sample(len(clients), with_replacement=True, seed=0)
    history.events[BUY] = pl.DataFrame({"client_id": clients, "timestamp": bought, "sku": skus})
    history.events[ADD] = history.events[ADD].clear()
    interactions = weighted_interactions(ChallengeData(history.write(tmp_path), True), CATEGORIES)
    assert interactions.clients.tolist() == sorted(set(clients.tolist()))
    vectors = factorise(interactions, SMALL, seed=0)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    alike = vectors @ vectors.T
    same_half = (interactions.clients[:, None] % 2) == (interactions.clients % 2)
    assert alike[same_half].min() > alike[~same_half].max()


def test_factors_come_back_in_the_matrixs_order():
    matrix = np.kron(np.eye(2, dtype=np.float32), np.ones((5, 3), np.float32))
    order = np.random.default_rng(0).permutation(10)
    vectors = factorise(WeightedInteractions(csr_matrix(matrix[order]), order), SMALL, seed=0)
    group = order // 5
    centre = [vectors[group == number].mean(axis=0) for number in (0, 1)]
    nearest = np.argmin([np.linalg.norm(vectors - point, axis=1) for point in centre], axis=0)
    assert nearest.tolist() == group.tolist()


def test_settings_that_overflow_are_one_line(tiny):
    interactions = weighted_interactions(tiny[1], CATEGORIES)
    with pytest.raises(UserError, match="try a larger regularization or a smaller alpha"):
        factorise(interactions, dataclasses.replace(SMALL, regularization=0.0, alpha=1e30, iterations=5), seed=0)


# --- the rule ----------------------------------------------------------------------------------------


def preset(name: str, config: str = "als_buy_add_categories", *overrides: str) -> AlsSettings:
    found = composed(CONFIGS / "ALS", config, [f"preset={name}", "als.threads=1", *overrides])
    return parse(AlsSettings, found, at="als")


def sparse_log(clients: int, items: int, each: int, seed: int = 0) -> WeightedInteractions:
    """Clients with ``each`` events: a fifth weigh 3, the others 1; an item's popularity falls with its rank."""
    rng = np.random.default_rng(seed)
    popularity = 1 / (np.arange(items) + 10.0) ** 0.8
    chosen = rng.choice(items, clients * each, p=popularity / popularity.sum())
    weights = np.where(rng.random(clients * each) < 0.2, 3.0, 1.0).astype(np.float32)
    matrix = csr_matrix((weights, (np.repeat(np.arange(clients), each), chosen)), (clients, items))
    return WeightedInteractions(matrix, np.arange(clients))


@pytest.mark.parametrize("name", ["full", "demo"])
@pytest.mark.parametrize("config", ["als_buy_add_categories", "als_visits_relevant"])
def test_factors_of_a_sparse_log_keep_their_rank(name, config):
    found = health_of(factorise(sparse_log(19_000, 500, each=3), preset(name, config), seed=0))
    assert found.collapsed == []
    assert found.effective_rank > 32
    assert found.median_norm > 1e-3


def test_numbers_tuned_on_a_dense_log_collapse_on_a_sparse_one():
    dense = preset("full", "als_buy_add_categories", "als.alpha=0.1", "als.regularization=10")
    found = health_of(factorise(sparse_log(19_000, 500, 3), dense, seed=0))
    assert found.effective_rank < 1.1
    assert found.median_norm < 1e-6
    assert len(found.collapsed) == 2


def test_the_rule_against_the_whole_gradient():
    log = sparse_log(40, 9, 5)
    found = strength(log.matrix, AlsSettings(8, 4.0, 0.5, None, None, 1, 1))
    weights = log.matrix.toarray().astype(float)
    assert found.alpha == pytest.approx(4.0 / weights[weights > 0].mean())
    gradient = np.zeros_like(weights)
    for item in range(9):
        seen = weights[:, item] > 0
        confidence = np.where(seen, found.alpha * weights[:, item], 1.0)
        popularity = confidence[seen].sum() / confidence.sum()
        gradient[:, item] = confidence * (seen - popularity)
    by_chance = np.linalg.norm(gradient) * (1 / math.sqrt(40) + 1 / math.sqrt(9))
    assert found.regularization == pytest.approx(0.5 * by_chance)


def test_factors_of_a_small_dense_log_keep_their_rank():
    """Sixty clients who met a third of thirty items, at random: what the strongest items take does not take all."""
    found = health_of(factorise(sparse_log(60, 30, 12), preset("full"), seed=0))
    assert found.collapsed == []
    assert found.effective_rank > 3


def test_weights_of_nothing():
    with pytest.raises(UserError, match=r"interactions\.weights: all events weigh 0"):
        strength(sparse_log(40, 9, 5).matrix * np.float32(0), preset("full"))


def test_given_numbers_are_taken_to_the_letter():
    matrix = sparse_log(50, 20, 3).matrix
    assert strength(matrix, AlsSettings(8, 1.0, 0.3, 0.7, 0.02, 1, 1)) == Strength(0.7, 0.02)
    assert strength(matrix, AlsSettings(8, 1.0, 0.3, 1.0, None, 1, 1)).alpha == 1.0
    assert strength(matrix, AlsSettings(8, 1.0, 0.3, None, 0.0, 1, 1)).regularization == 0.0


def test_other_units_give_the_same_factors():
    """Weights of 30 and 10 instead of 3 and 1 say the same."""
    one = sparse_log(300, 40, 6)
    ten = WeightedInteractions(one.matrix * np.float32(8), one.clients)
    settings = AlsSettings(8, iterations=5, threads=1, **RULE)
    np.testing.assert_allclose(factorise(one, settings, 0), factorise(ten, settings, 0), rtol=1e-3, atol=1e-6)


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
    before = WeightedInteractions(0.1 * log.matrix, log.clients)
    assert factorise(before, SMALL, seed=3).tobytes() == found.tobytes()
    library = AlternatingLeastSquares(8, 0.1, alpha=0.1, iterations=10, num_threads=1, random_state=3)
    library.fit(log.matrix, show_progress=False)
    assert library.user_factors.tobytes() == found.tobytes()


class OnHost:
    """In place of ``implicit.gpu.Matrix``: an array that says it is on the GPU."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = values

    def to_numpy(self) -> np.ndarray:
        return self.values


class FakeGpuModel:
    """Takes what implicit's GPU class takes; keeps what `fit` is given and gives ``result``."""

    result: np.ndarray | None = None

    def __init__(self, use_gpu, factors, regularization, alpha, iterations, random_state):
        assert use_gpu
        self.settings = (factors, regularization, alpha, iterations, random_state)
        type(self).last = self

    def fit(self, matrix):
        self.matrix, self.first = matrix.copy(), (self.user_factors.to_numpy().copy(), self.item_factors.to_numpy())
        if self.result is not None:
            self.user_factors = OnHost(self.result)


@pytest.fixture
def fake_gpu(monkeypatch):
    import implicit.als
    import implicit.gpu

    model = type("Model", (FakeGpuModel,), {})
    monkeypatch.setattr(als_embeddings, "gpu_fault", lambda: None)
    monkeypatch.setattr(implicit.als, "AlternatingLeastSquares", model)
    monkeypatch.setattr(implicit.gpu, "Matrix", OnHost, raising=False)
    return model


def test_the_gpu_gets_the_matrix_times_alpha_and_the_cpus_first_factors(fake_gpu):
    log = sparse_log(60, 20, 3)
    settings = dataclasses.replace(SMALL, factors=32, alpha=0.1)
    factors = factorise(log, settings, seed=0)
    assert fake_gpu.last.settings == (32, 0.1, 1.0, 10, 0)
    assert fake_gpu.last.matrix.dtype == np.float32
    assert (fake_gpu.last.matrix != np.float32(0.1) * log.matrix).nnz == 0
    rng = np.random.default_rng(0)
    for side, rows in zip(fake_gpu.last.first, (60, 20), strict=True):
        assert side.dtype == np.float32
        np.testing.assert_array_equal(side, rng.random((rows, 32), dtype=np.float32) * 0.01)
    assert factors.dtype == np.float32
    assert factors.shape == (60, 32)


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_what_the_gpu_could_not_solve_is_one_line(fake_gpu, value):
    fake_gpu.result = np.ones((60, 32), np.float32)
    fake_gpu.result[7] = value
    with pytest.raises(UserError, match="factors of 1 clients are zero or not finite; try a larger regularization"):
        factorise(sparse_log(60, 20, 3), dataclasses.replace(SMALL, factors=32), seed=0)


@pytest.mark.usefixtures("fake_gpu")
@pytest.mark.parametrize("factors", [48, 2048])
def test_factors_that_the_gpus_kernel_would_get_wrong(factors):
    with pytest.raises(UserError, match=f"als.factors={factors}: must be a multiple of 32 up to 1024 on a GPU"):
        factorise(sparse_log(60, 20, 3), dataclasses.replace(SMALL, factors=factors), seed=0)


@pytest.mark.usefixtures("fake_gpu")
def test_a_log_beyond_the_gpus_32_bits():
    wide = csr_matrix((np.ones(1, np.float32), ([0], [40_000_000 - 1])), (1, 40_000_000))
    with pytest.raises(UserError, match="1 clients x 40,000,000 items with 1 pairs are too many"):
        factorise(WeightedInteractions(wide, np.arange(1)), dataclasses.replace(SMALL, factors=64), seed=0)


def test_the_log_says_why_there_is_no_gpu(monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    for fault, level in (
        ("no CUDA driver: x", "INFO"),
        ("No module named 'rmm' (" + als_embeddings.INSTALL, "WARNING"),
    ):
        monkeypatch.setattr(als_embeddings, "gpu_fault", lambda fault=fault: fault)
        caplog.clear()
        factorise(sparse_log(60, 20, 3), SMALL, seed=0)
        said = [record for record in caplog.records if "implicit ALS" in record.message]
        assert [record.levelname for record in said] == [level]
        assert f"on the CPU ({fault})" in said[0].message
        assert "alpha 1, regularization 0.1" in said[0].message


@pytest.mark.gpu
def test_a_gpu_gives_the_cpus_factors(monkeypatch):
    if fault := gpu_fault():
        pytest.skip(fault)
    log = sparse_log(2_000, 200, 12)
    settings = AlsSettings(64, iterations=15, threads=1, **RULE)
    on_gpu = factorise(log, settings, seed=0)
    monkeypatch.setattr(als_embeddings, "gpu_fault", lambda: "hidden by the test")
    on_cpu = factorise(log, settings, seed=0)
    # The same start, so no rotation between them: only the order of the sums differs.
    apart = np.linalg.norm(on_gpu - on_cpu) / np.linalg.norm(on_cpu)
    assert apart < 0.02, apart
