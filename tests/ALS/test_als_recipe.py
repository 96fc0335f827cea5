"""What is factorised, against a dict; a fitted block on any day, for any clients."""

import math
from collections import defaultdict
from dataclasses import replace
from datetime import timedelta

import numpy as np
import polars as pl
import pytest

from ALS.model import AlsSettings, client_factors, factorise
from ALS.recipe import (
    AlsBlock,
    AlsRecipe,
    Interactions,
    WeightedInteractions,
    memory_of,
    weighted_interactions,
)
from ubp.blocks.fitted import load, save
from ubp.cli.config import composed
from ubp.data.history import ChallengeData
from ubp.data.pair_counts import PairCounts
from ubp.data.paths import CONFIGS
from ubp.data.schema import EVENT_TYPES, EventType
from ubp.io.errors import NoUsableEvents, UserError

BUY, ADD, VISIT = EventType.PRODUCT_BUY, EventType.ADD_TO_CART, EventType.PAGE_VISIT
CATEGORIES = Interactions("category", {"product_buy": 3.0, "add_to_cart": 1.0}, relevant_only=False, transform="none")
VISITS = Interactions("url", {"page_visit": 1.0}, relevant_only=True, transform="log1p")
SMALL = AlsSettings(factors=8, confidence=1.0, shrinkage=0.3, alpha=1.0, regularization=0.1, iterations=10, threads=1)


@pytest.fixture
def tiny(make_history, tmp_path):
    history = make_history()
    paths = history.write(tmp_path)
    clients = history.events[VISIT]["client_id"].unique().sort()
    paths.input.mkdir()
    np.save(paths.relevant_clients, clients[::3].to_numpy())
    return history, ChallengeData(paths, True)


def as_dict(found: WeightedInteractions) -> dict[tuple[int, int], float]:
    """``{(client, item): weight}``."""
    matrix = found.matrix.tocoo()
    return {
        (int(found.clients[row]), int(found.items[column])): float(weight)
        for row, column, weight in zip(matrix.row, matrix.col, matrix.data, strict=True)
    }


def slow_weights(events: list[tuple[int, int, float]]) -> dict[tuple[int, int], float]:
    """The same of (client, item, weight)."""
    weights = defaultdict(float)
    for client, item, weight in events:
        weights[client, item] += weight
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
        (("category", {"buy": 1.0}, False, "none"), "interactions.weights: no event type buy; known: product_buy"),
        (("url", {"product_buy": 1.0}, False, "none"), "column=url: events of product_buy have no such"),
        (("category", {"page_visit": 1.0}, False, "none"), "column=category: events of page_visit"),
        (("sku", {"product_buy": 1.0}, False, "log"), "transform=log: must be none or log1p"),
        (("sku", {}, False, "none"), r"interactions.weights=\{\}: must be the weight of one event type at least"),
    ],
)
def test_settings_that_make_no_sense(settings, says):
    with pytest.raises(UserError, match=says):
        Interactions(*settings).event_types(EVENT_TYPES)


def test_no_events_of_the_kind(make_history, tmp_path):
    data = ChallengeData(make_history(empty=[VISIT]).write(tmp_path, null_typed=True), True)
    settings = Interactions("url", {"page_visit": 1.0}, relevant_only=False, transform="none")
    data.paths.input.mkdir()
    np.save(data.paths.relevant_clients, np.array([1]))
    says = (
        r"raw: no usable events: 0 events of page_visit before .*, 0 of them by relevant clients; leave the block out"
    )
    with pytest.raises(NoUsableEvents, match=says):
        weighted_interactions(data, settings)


# --- fit, keep, encode -------------------------------------------------------------------------------


def fitted(data: ChallengeData, interactions: Interactions = CATEGORIES, seed: int = 0) -> AlsBlock:
    block = AlsRecipe(interactions, SMALL).fit(data, seed, data.paths.cache).block
    assert isinstance(block, AlsBlock)
    return block


@pytest.mark.parametrize("interactions", [CATEGORIES, VISITS])
def test_what_it_needs_is_told_by_the_matrix_that_it_makes(tiny, interactions):
    _, data = tiny
    matrix = weighted_interactions(data, interactions).matrix
    need = AlsRecipe(interactions, SMALL).need(data)
    (clients, items), pairs = matrix.shape, f"{matrix.nnz:,} pairs of {matrix.shape[0]} clients and {matrix.shape[1]}"
    assert f"about {pairs} " in need.counts
    assert need.counts.endswith("8 factors")
    assert need.settings == "als.factors"
    many, more = (AlsRecipe(interactions, replace(SMALL, factors=factors)).need(data) for factors in (800, 801))
    assert more.memory - many.memory == 2 * 4 * (clients + items)


# MB that whole commands held on the synthetic log at 0.1 and 1.0 (docs/performance.md): all purchases and additions,
# the relevant clients' visits; and all visits of all clients at 0.1, which were only read.
@pytest.mark.parametrize(
    ("pairs", "clients", "items", "megabytes"),
    [
        (348_428, 289_749, 2_214, 375),
        (1_457_161, 88_199, 643_848, 530),
    ],
)
def test_what_was_measured_is_told(pairs, clients, items, megabytes):
    told = memory_of(PairCounts(0, pairs, clients, items), 64) / 1e6
    assert megabytes < told < 1.4 * megabytes


def test_the_recipe_reads_the_config():
    config = composed(CONFIGS / "ALS", "als_visits_relevant", ["preset=demo", "als.alpha=2"])
    recipe = AlsRecipe.of(config)
    assert recipe.interactions == Interactions("url", {"page_visit": 1.0}, relevant_only=True, transform="none")
    assert recipe.als.alpha == 2.0


def test_the_command_writes_recalculated_factors_of_the_relevant_clients(tiny):
    data = tiny[1]
    found = weighted_interactions(data, CATEGORIES)
    factors = factorise(found.matrix, SMALL, seed=0)
    wanted = client_factors(found.matrix, factors.items, factors.strength, threads=1)
    table = fitted(data).encode(data, data.relevant_clients)
    relevant = np.isin(found.clients, data.relevant_clients)
    assert table.client_ids.tolist() == found.clients[relevant].tolist()
    assert table.vectors.tobytes() == wanted[relevant].tobytes()
    assert AlsRecipe(CATEGORIES, SMALL).fit(data, 0, data.paths.cache).report == {
        "alpha": 1.0,
        "regularization": 0.1,
        "columns_asked": 8,
        "columns": 8,
    }


def test_more_factors_than_categories_are_cut_with_a_line(tiny, caplog):
    data = tiny[1]
    fit = AlsRecipe(CATEGORIES, replace(SMALL, factors=64)).fit(data, 0, data.paths.cache)
    assert "als.factors: 64 asked, 8 categories in the history: 8 factors" in caplog.text
    assert (fit.report["columns_asked"], fit.report["columns"]) == (64, 8)
    assert fit.block.encode(data).columns == 8
    caplog.clear()
    AlsRecipe(VISITS, SMALL).fit(data, 0, data.paths.cache)
    assert "asked" not in caplog.text


@pytest.mark.parametrize("interactions", [CATEGORIES, VISITS])
def test_a_kept_block_encodes_the_same_bits(tiny, tmp_path, interactions):
    data = tiny[1]
    block = fitted(data, interactions)
    save(block, tmp_path / "kept", {})
    again = load(tmp_path / "kept")
    for as_of in (None, data.as_of - timedelta(days=9)):
        first, second = block.encode(data, as_of=as_of), again.encode(data, as_of=as_of)
        assert len(first) > 0
        assert first.client_ids.tolist() == second.client_ids.tolist()
        assert first.vectors.tobytes() == second.vectors.tobytes()


def test_a_client_that_was_not_in_the_fit(tiny):
    """Visits are fitted to the relevant clients; others are encoded all the same, each by itself."""
    history, data = tiny
    block = fitted(data, VISITS)
    others = np.setdiff1d(history.events[VISIT]["client_id"].to_numpy(), data.relevant_clients)
    table = block.encode(data, others)
    assert len(table) > 10
    assert np.isfinite(table.vectors).all()
    one = block.encode(data, others[4:5])
    assert one.vectors.tobytes() == table.vectors[table.client_ids == others[4]].tobytes()


def test_an_earlier_day_has_other_vectors(tiny):
    data = tiny[1]
    block = fitted(data)
    now, before = block.encode(data), block.encode(data, as_of=data.as_of - timedelta(days=30))
    assert set(before.client_ids.tolist()) <= set(now.client_ids.tolist())
    same = np.isin(now.client_ids, before.client_ids)
    assert (now.vectors[same] != before.vectors).any(axis=1).mean() > 0.5


def test_items_that_the_fit_did_not_know_are_left_out(make_history, tmp_path):
    """A later visit to a new url changes nothing; a client with no other visits has no vector."""
    history = make_history()
    visits = history.events[VISIT]
    late = visits["timestamp"].max() + timedelta(days=3)
    owner, unknown = int(visits["client_id"].mode().min()), 20_000
    more = pl.DataFrame([(owner, late, 999), (unknown, late, 999)], visits.schema, orient="row")
    history.events[VISIT] = pl.concat([visits, more])
    paths = history.write(tmp_path)
    paths.input.mkdir()
    np.save(paths.relevant_clients, visits["client_id"].unique().to_numpy())
    data = ChallengeData(paths, True)
    day_before = late - timedelta(days=1)
    block = fitted(data.before(day_before), VISITS)
    assert 999 not in block.items.tolist()
    asked = [owner, unknown]
    after, before = block.encode(data, asked), block.encode(data, asked, as_of=day_before)
    assert after.client_ids.tolist() == before.client_ids.tolist() == [owner]
    assert after.vectors.tobytes() == before.vectors.tobytes()


def test_nobody_to_encode(tiny):
    table = fitted(tiny[1]).encode(tiny[1], [77_777])
    assert table.vectors.shape == (0, 8)


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
    data = ChallengeData(history.write(tmp_path), True)
    owners, vectors = fitted(data).vectors(data, np.unique(clients))
    assert owners.tolist() == sorted(set(clients.tolist()))
    vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    alike = vectors @ vectors.T
    same_half = (owners[:, None] % 2) == (owners % 2)
    assert alike[same_half].min() > alike[~same_half].max()
