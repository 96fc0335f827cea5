"""What is factorised, against a dict; factors that are repeatable and belong to the right client."""

import math
from collections import defaultdict

import numpy as np
import polars as pl
import pytest
from scipy.sparse import csr_matrix

from ALS.als_embeddings import AlsSettings, Interactions, WeightedInteractions, factorise, weighted_interactions
from ubp.data import ChallengeData
from ubp.errors import UserError
from ubp.schema import EventType

BUY, ADD, VISIT = EventType.PRODUCT_BUY, EventType.ADD_TO_CART, EventType.PAGE_VISIT
CATEGORIES = Interactions("category", {"product_buy": 3.0, "add_to_cart": 1.0}, relevant_only=False, transform="none")
VISITS = Interactions("url", {"page_visit": 1.0}, relevant_only=True, transform="log1p")
SMALL = AlsSettings(factors=8, regularization=0.1, alpha=1.0, iterations=10, threads=1)


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
    many = AlsSettings(**{**vars(SMALL), "threads": 0})
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
        factorise(interactions, AlsSettings(8, 0.0, 1e30, 5, 1), seed=0)
