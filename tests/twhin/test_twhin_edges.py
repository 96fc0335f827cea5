"""Edges out of a history, the clients that are trained on, and whose items are nobody's negatives."""

from datetime import datetime, timedelta

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import synthetic
from tests.twhin.graphs import graph, source
from twhin.edges import (
    CLIENT,
    ITEM,
    OTHER,
    OTHER_ITEM,
    OTHER_RELATION,
    OWN,
    RELATION,
    EdgeSettings,
    Graph,
    clients_to_train,
    edges_of,
)
from ubp.data import schema
from ubp.data.history import ChallengeData
from ubp.data.schema import EventType
from ubp.io.errors import UserError

BUY, ADD = EventType.PRODUCT_BUY, EventType.ADD_TO_CART
DAY = timedelta(days=1)


def edge_settings(**changed) -> EdgeSettings:
    return EdgeSettings(**({"types": [BUY, ADD], "clients": 1000, "half_life": None, "repeats": "one"} | changed))


@pytest.fixture(scope="module")
def history(tmp_path_factory) -> ChallengeData:
    log = synthetic()
    paths = log.write(tmp_path_factory.mktemp("edges"))
    paths.relevant_clients.parent.mkdir()
    np.save(paths.relevant_clients, np.unique(log.events[BUY][schema.CLIENT_ID].to_numpy())[::3])
    return ChallengeData(paths, submit=True)


def slow_edges(history: ChallengeData, names: list[str]) -> dict[tuple[int, int, int], list[datetime]]:
    """By client, sku and relation the times of its events, as plain Python finds them."""
    found: dict[tuple[int, int, int], list[datetime]] = {}
    for place, name in enumerate(names):
        for client, time, sku in history.events(EventType(name)).collect().iter_rows():
            if time < history.as_of:
                found.setdefault((client, sku, place), []).append(time)
    return found


@pytest.mark.parametrize("names", [[BUY], [ADD, BUY]])
def test_an_edge_is_a_client_a_sku_and_a_type_once(history, names):
    table = edges_of(history, edge_settings(types=names), None)
    keys = list(table.select(schema.CLIENT_ID, schema.SKU, RELATION).iter_rows())
    assert keys == sorted(slow_edges(history, names))
    assert set(table["weight"]) == {1.0}


def test_weights_halve_with_age_and_grow_with_repeats(history):
    settings = edge_settings(half_life=7.0, repeats="log1p")
    table = edges_of(history, settings, None)
    wanted = [
        max(0.5 ** ((history.as_of - max(times)) / DAY / 7), 0.005) * np.log2(1 + len(times))
        for _, times in sorted(slow_edges(history, settings.types).items())
    ]
    np.testing.assert_allclose(table["weight"].to_numpy(), wanted, rtol=1e-5)


def test_no_edge_of_later_days_is_read(history):
    earlier = history.before(history.as_of - 20 * DAY)
    keys = edges_of(earlier, edge_settings(), None).select(schema.CLIENT_ID, schema.SKU, RELATION)
    assert set(keys.iter_rows()) == slow_edges(earlier, [BUY, ADD]).keys()
    assert len(keys) < len(edges_of(history, edge_settings(), None))


def test_relevant_clients_come_first_then_the_most_active(history):
    table = pl.concat(history.events(kind).select(schema.CLIENT_ID) for kind in (BUY, ADD)).collect()
    counts = dict(table.group_by(schema.CLIENT_ID).len().iter_rows())
    relevant = {client for client in history.relevant_clients.tolist() if client in counts}
    others = sorted(counts.keys() - relevant, key=lambda client: (counts[client], -client), reverse=True)
    for most in (len(relevant) + 7, len(relevant), 1):
        wanted = sorted([*relevant, *others[: max(most - len(relevant), 0)]])
        assert clients_to_train(history, edge_settings(clients=most)).tolist() == wanted


def test_a_graph_numbers_clients_and_skus_in_order(history):
    table = edges_of(history, edge_settings(), history.relevant_clients)
    found = Graph.of(table)
    assert found.clients[found.rows].tolist() == table[schema.CLIENT_ID].to_list()
    assert found.skus[found.columns].tolist() == table[schema.SKU].to_list()
    starts = [int(np.searchsorted(found.rows, row)) for row in range(len(found.clients) + 1)]
    assert found.offsets.tolist() == starts


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 7), st.integers(0, 1)), min_size=1, unique=True), st.data())
def test_no_own_item_is_a_negative_whatever_the_relation(edges, data):
    whole = graph(edges, clients=6, items=8)
    chosen = data.draw(st.lists(st.integers(0, len(edges) - 1), unique=True))
    known = whole.part(np.array(sorted(chosen), np.int64))
    rows = data.draw(st.lists(st.integers(0, len(edges) - 1), min_size=1))
    most = data.draw(st.integers(1, 5))
    batch = source(whole, known, most).batch(np.array(rows))
    pairs = {(int(row), int(column)) for row, column in zip(known.rows, known.columns, strict=True)}
    ordered = sorted(edges)
    assert batch[CLIENT].tolist() == [ordered[row][0] for row in rows]
    assert batch[ITEM].tolist() == [ordered[row][1] for row in rows]
    assert batch[RELATION].tolist() == [ordered[row][2] for row in rows]
    wanted = [
        [(ordered[row][0], ordered[other][1]) in pairs or ordered[row][1] == ordered[other][1] for other in rows[:most]]
        for row in rows
    ]
    assert batch[OWN].tolist() == wanted


@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 7), st.integers(0, 1)), min_size=1, unique=True),
    st.integers(1, 6),
    st.booleans(),
    st.data(),
)
def test_others_are_known_edges_of_the_client_to_other_items(edges, count, at_random, data):
    whole, ordered = graph(edges, clients=6, items=8), sorted(edges)
    chosen = data.draw(st.lists(st.integers(0, len(edges) - 1), unique=True))
    known = whole.part(np.array(sorted(chosen), np.int64))
    there = {ordered[place] for place in chosen}
    rows = data.draw(st.lists(st.integers(0, len(edges) - 1), min_size=1))
    batch = source(whole, known, others=count).batch(np.array(rows), np.random.default_rng(0) if at_random else None)
    for number, (client, item, _) in enumerate(ordered[row] for row in rows):
        usable = {edge for edge in there if edge[0] == client and edge[1] != item}
        only = usable == {edge for edge in there if edge[0] == client}
        counts = batch[OTHER][number].tolist()
        drawn = zip(batch[OTHER_ITEM][number].tolist(), batch[OTHER_RELATION][number].tolist(), strict=True)
        found = {(client, *edge) for edge, counted in zip(drawn, counts, strict=True) if counted}
        assert found <= usable
        if usable and only:
            assert all(counts)
        if not usable:
            assert not any(counts)


def test_others_are_drawn_by_their_weights():
    whole = graph([(0, 0, 0), (0, 1, 0), (0, 2, 0), (1, 0, 0)], 2, 3, [1.0, 6.0, 3.0, 9.0])
    batch = source(whole, others=10_000).batch(np.array([3, 0]), np.random.default_rng(0))
    assert not batch[OTHER][0].any()  # its only edge is the one that is asked for
    shares = np.bincount(batch[OTHER_ITEM][1].numpy(), minlength=3) / 10_000
    np.testing.assert_allclose(shares, [0.1, 0.6, 0.3], atol=0.02)
    even = source(whole, others=10).batch(np.array([0]))
    assert np.bincount(even[OTHER_ITEM][0].numpy()).tolist() == [1, 6, 3]
    assert even[OTHER][0].tolist() == [False] + [True] * 9


@pytest.mark.parametrize(
    ("changed", "word"),
    [
        ({"types": []}, "edges.types"),
        ({"types": [BUY, BUY]}, "each once"),
        ({"clients": 0}, "edges.clients"),
        ({"half_life": 0.0}, "edges.half_life"),
        ({"repeats": "twice"}, "edges.repeats"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changed, word):
    with pytest.raises(UserError, match=word):
        edge_settings(**changed)


def test_only_events_about_items_make_an_edge(history):
    with pytest.raises(UserError, match=r"edges\.types: no event type page_visit; known: product_buy, add"):
        edges_of(history, edge_settings(types=["page_visit"]), None)
