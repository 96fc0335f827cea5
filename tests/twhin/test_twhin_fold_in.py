"""Folding in: the minimum of its loss, the same for each client whoever else is asked for, near what was learned."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from tests.twhin.graphs import graph, model, source
from tests.twhin.test_twhin_model import planted, trained
from twhin.edges import Graph
from twhin.fold_in import FoldIn, FoldInSettings, chunks
from twhin.recipe import fold_in_of
from ubp.io.errors import UserError
from ubp.training.encode import Runtime

CPU = Runtime(64, 1, "cpu")
WIDTH = 5


def fold_in(seed: int = 0, steps: int = 200, offset: float = -0.4, weight: float = 2.0, **changed) -> FoldIn:
    rng = np.random.default_rng(seed)
    negatives = rng.normal(size=(16, WIDTH)).astype(np.float32)
    negatives /= np.linalg.norm(negatives, axis=1, keepdims=True)
    relations = rng.normal(size=(2, WIDTH)).astype(np.float32)
    given = {"steps": steps, "penalty": 0.5, "negatives": 16, "length": "free"} | changed
    return FoldIn(FoldInSettings(**given), negatives, rng.integers(-1, 6, 16), relations, offset, weight)


def items(count: int = 6, seed: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, WIDTH)).astype(np.float32)


def slow_loss(found: FoldIn, vectors: torch.Tensor, whole: Graph, of_items: np.ndarray) -> torch.Tensor:
    """The definition in float64, one edge after the other."""
    total = vectors.new_zeros(())
    negatives = torch.from_numpy(found.negatives).double()
    met = set(zip(whole.rows.tolist(), whole.columns.tolist(), strict=True))
    for row, column, relation, weight in zip(whole.rows, whole.columns, whole.relations, whole.weights, strict=True):
        moved = torch.from_numpy(of_items[column] + found.relations[relation]).double()
        logit = vectors[row] @ (moved / moved.norm()) + found.offset
        strange = [vector for vector, sku in zip(negatives, found.skus, strict=True) if (row, sku) not in met]
        strange = functional.softplus(torch.stack(strange) @ vectors[row] + found.offset).sum() / len(negatives)
        total = total + float(weight) * (functional.softplus(-logit) + found.weight * strange)
    return total + found.settings.penalty / 2 * (vectors**2).sum()


EDGES = [(0, 0, 0), (0, 1, 1), (0, 3, 0), (1, 1, 0), (2, 2, 1), (2, 4, 1), (2, 5, 0), (3, 0, 1), (3, 4, 0)]
WEIGHTS = [1.0, 0.5, 2.0, 1.0, 0.1, 1.0, 3.0, 0.7, 1.0]


def test_a_vector_is_the_minimum_of_its_loss():
    found, of_items, whole = fold_in(), items(), graph(EDGES, 4, 6, WEIGHTS)
    vectors = torch.from_numpy(found(whole, of_items, CPU)).double().requires_grad_()
    slow_loss(found, vectors, whole, of_items).backward()
    assert vectors.detach().norm(dim=1).min() > 0.1
    np.testing.assert_allclose(vectors.grad.numpy(), 0, atol=2e-4)


def test_no_step_of_the_descent_goes_up():
    of_items, whole = items(), graph(EDGES, 4, 6, WEIGHTS)
    losses = [
        slow_loss(found, torch.from_numpy(found(whole, of_items, CPU)).double(), whole, of_items).item()
        for found in (fold_in(steps=steps) for steps in range(1, 12))
    ]
    assert (np.diff(losses) < 1e-6).all()
    assert losses[-1] < losses[0]


def test_a_vector_is_the_same_whoever_else_is_asked_for():
    found, of_items = fold_in(steps=7), items()
    together = found(graph(EDGES, 4, 6), of_items, CPU)
    for client in range(4):
        own = [(0, item, relation) for row, item, relation in EDGES if row == client]
        np.testing.assert_allclose(found(graph(own, 1, 6), of_items, CPU)[0], together[client], rtol=1e-4, atol=1e-6)


def test_lengths_are_free_1_or_by_the_weights():
    of_items = items()
    few, many = (fold_in()(graph([(0, 1, 0)], 1, 6, [weight]), of_items, CPU) for weight in (1.0, 20.0))
    assert np.linalg.norm(few) < np.linalg.norm(many)
    unit = fold_in(length="one")(graph(EDGES, 4, 6), of_items, CPU)
    np.testing.assert_allclose(np.linalg.norm(unit, axis=1), 1, rtol=1e-5)
    logs = fold_in(length="log")(graph(EDGES, 4, 6, WEIGHTS), of_items, CPU)
    np.testing.assert_allclose(np.linalg.norm(logs, axis=1), np.log1p([3.5, 1.0, 4.1, 1.7]), rtol=1e-5)


def test_folded_in_clients_are_near_what_was_learned_for_them():
    count, number = 60, 60
    whole = graph(planted(count, number, 3), count, number)
    twhin = trained(model(count, number, width=4, temperature=0.4, learn_temperature=False), source(whole), 200)
    folded = fold_in_of(twhin, whole, FoldInSettings(40, 0.1, 1024, "one"), seed=0)
    with torch.no_grad():
        vectors = folded(whole, twhin.item_vectors(torch.arange(number)).numpy(), CPU)
        cosines = vectors @ torch.nn.functional.normalize(twhin.clients.weight, dim=1).T.numpy()
    assert cosines.diagonal().mean() > 0.95
    strange = np.arange(count)[:, None] % 3 != np.arange(count) % 3
    assert cosines[strange].mean() < 0


@given(st.lists(st.integers(1, 9), max_size=30), st.integers(1, 5), st.integers(1, 20))
def test_chunks_hold_each_client_once_and_not_too_much(lengths, most_clients, most_edges):
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    found = chunks(offsets, most_clients, most_edges)
    assert [client for first, last in found for client in range(first, last)] == list(range(len(lengths)))
    for first, last in found:
        assert last - first <= most_clients
        assert last - first == 1 or offsets[last] - offsets[first] <= most_edges


@pytest.mark.parametrize("name", ["steps", "penalty", "negatives", "length"])
def test_settings_that_make_no_sense_are_refused(name):
    with pytest.raises(UserError, match=f"fold_in.{name}"):
        FoldInSettings(**({"steps": 1, "penalty": 1.0, "negatives": 1, "length": "free"} | {name: 0}))
