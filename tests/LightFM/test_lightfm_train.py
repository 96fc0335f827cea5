"""LightFM's matrices against the library's own builders and a dict; vectors that belong to the right client."""

import dataclasses
import math
from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import polars as pl
import pytest
from lightfm import LightFM
from lightfm.data import Dataset
from scipy.sparse import coo_matrix, csr_matrix

from LightFM.lightfm_train import (
    Features,
    Interactions,
    ModelSettings,
    centred,
    feature_matrix,
    learn,
    numbers,
    prepare,
    weighted_pairs,
)
from ubp.data.history import ChallengeData
from ubp.data.schema import EventType
from ubp.io.errors import UserError

BUY, ADD, REMOVE, SEARCH = (
    EventType.PRODUCT_BUY,
    EventType.ADD_TO_CART,
    EventType.REMOVE_FROM_CART,
    EventType.SEARCH_QUERY,
)
WEIGHTS = {"product_buy": 1.0, "add_to_cart": 0.7, "remove_from_cart": -0.5}
PAIRS = Interactions(WEIGHTS, transform="none", scale=1.0, clients="relevant")
BOTH = Features(names=2.0, searches=1.0)
SMALL = ModelSettings(
    components=8,
    loss="warp",
    epochs=3,
    learning_schedule="adagrad",
    learning_rate=0.05,
    item_alpha=0.0,
    user_alpha=0.0,
    max_sampled=10,
    threads=1,
)


@pytest.fixture
def tiny(make_history, tmp_path):
    history = make_history()
    paths = history.write(tmp_path)
    clients = history.events[EventType.PAGE_VISIT]["client_id"].unique().sort()
    paths.input.mkdir()
    np.save(paths.relevant_clients, clients[::2].to_numpy())
    return history, ChallengeData(paths, True)


def slow_pairs(history, clients):
    """``{(client, sku): summed weight}`` of the pairs above nothing."""
    summed = defaultdict(float)
    for name, weight in WEIGHTS.items():
        for client, _, sku in history.events[EventType(name)].iter_rows():
            if client in clients:
                summed[client, sku] += weight
    return {pair: weight for pair, weight in summed.items() if weight > 1e-6}


def codes_of(text):
    return [int(code) for code in text.strip("[]").split()]


# --- what is learned from ----------------------------------------------------------------------------


def test_pairs_of_the_relevant_clients(tiny):
    history, data = tiny
    found = weighted_pairs(data, PAIRS)
    wanted = slow_pairs(history, set(data.relevant_clients.tolist()))
    assert {(client, sku): weight for client, sku, weight in found.iter_rows()} == pytest.approx(wanted)
    assert found["weight"].dtype == pl.Float32
    assert found.equals(found.sort("client_id", "sku"))


def test_pairs_of_all_clients(tiny):
    history, data = tiny
    everybody = {client for events in history.events.values() for client in events["client_id"]}
    found = weighted_pairs(data, Interactions(WEIGHTS, "log1p", 1.0, "all"))
    wanted = {pair: math.log1p(weight) for pair, weight in slow_pairs(history, everybody).items()}
    assert {(client, sku): weight for client, sku, weight in found.iter_rows()} == pytest.approx(wanted)
    assert set(weighted_pairs(data, Interactions(WEIGHTS, "one", 0.5, "all"))["weight"]) == {0.5}


def test_what_is_taken_out_of_the_cart_counts_against_the_pair(make_history, tmp_path):
    """Added and removed: 0.2 is left; added once and removed twice, or removed only: no pair."""
    history = make_history()
    second = history.events[BUY]["timestamp"][0]
    columns = ("client_id", "timestamp", "sku")
    rows = {BUY: [(1, 1000)], ADD: [(1, 1007), (1, 1014)], REMOVE: [(1, 1007), (1, 1014), (1, 1014), (1, 1021)]}
    for event_type, pairs in rows.items():
        table = [(client, second, sku) for client, sku in pairs]
        history.events[event_type] = pl.DataFrame(table, columns, orient="row")
    found = weighted_pairs(ChallengeData(history.write(tmp_path), True), Interactions(WEIGHTS, "none", 1.0, "all"))
    assert found["sku"].to_list() == [1000, 1007]
    assert found["weight"].to_list() == pytest.approx([1.0, 0.2])


def test_no_pair_at_all(tiny):
    with pytest.raises(UserError, match="no client has a sku with a positive weight"):
        weighted_pairs(tiny[1], Interactions({"remove_from_cart": -0.5}, "none", 1.0, "all"))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (
            lambda: Interactions({"page_visit": 1.0}, "none", 1.0, "all"),
            "weights=page_visit: must be of product_buy, add",
        ),
        (lambda: Interactions({}, "none", 1.0, "all"), "interactions.weights={}: must be"),
        (lambda: Interactions(WEIGHTS, "log", 1.0, "all"), "transform=log: must be none or log1p or one"),
        (lambda: Interactions(WEIGHTS, "none", 1.0, "some"), "clients=some: must be relevant or all"),
        (lambda: Interactions(WEIGHTS, "none", 0.0, "all"), "interactions.scale=0.0: must be above 0"),
        (lambda: Features(-1.0, 0.0), "features.names=-1.0: must be at least 0"),
        (lambda: ModelSettings(**{**vars(SMALL), "loss": "warp-kos"}), "model.loss=warp-kos: must be warp or bpr"),
        (lambda: ModelSettings(**{**vars(SMALL), "epochs": 0}), "model.epochs=0: must be at least 1"),
        (lambda: ModelSettings(**{**vars(SMALL), "learning_rate": 0.0}), "learning_rate=0.0: must be above 0"),
        (
            lambda: ModelSettings(**{**vars(SMALL), "learning_schedule": "sgd"}),
            "learning_schedule=sgd: must be adagrad",
        ),
    ],
)
def test_settings_that_make_no_sense(make, says):
    with pytest.raises(UserError, match=says):
        make()


# --- matrices, against the library -------------------------------------------------------------------


@dataclass
class LibrarysOwn:
    """The same by LightFM's own builders, which go through tuples and dicts one by one."""

    mapping: Dataset
    interactions: coo_matrix
    weights: coo_matrix
    client_features: csr_matrix
    sku_features: csr_matrix


def librarys_own(history, data, features):
    pairs = sorted(slow_pairs(history, set(data.relevant_clients.tolist())).items())
    clients, skus = (sorted({pair[side] for pair, _ in pairs}) for side in (0, 1))
    named = [(position, code) for position in range(16) for code in range(256)]
    mapping = Dataset()
    mapping.fit(clients, skus, named, named)
    searched, called = {}, {}
    for client in clients:
        texts = history.events[SEARCH].filter(pl.col("client_id") == client)["query"].to_list()
        searched[client] = defaultdict(float)
        for text in texts:
            for named_code in enumerate(codes_of(text)):
                searched[client][named_code] += features.searches / 16 / len(texts)
    for sku, text in history.properties.select("sku", "name").iter_rows():
        if sku in skus:
            called[sku] = dict.fromkeys(enumerate(codes_of(text)), features.names / 16)
    return LibrarysOwn(
        mapping,
        *mapping.build_interactions((client, sku, weight) for (client, sku), weight in pairs),
        mapping.build_user_features(searched.items(), normalize=False),
        mapping.build_item_features(called.items(), normalize=False),
    )


def test_matrices_are_those_that_the_library_builds(tiny):
    history, data = tiny
    found, wanted = prepare(data, weighted_pairs(data, PAIRS), BOTH), librarys_own(history, data, BOTH)
    assert found.mapping.mapping() == wanted.mapping.mapping()
    assert (found.weights.row.dtype, found.weights.col.dtype, found.weights.dtype) == (np.int32, np.int32, np.float32)
    assert found.weights.shape == wanted.weights.shape
    np.testing.assert_allclose(found.weights.toarray(), wanted.weights.toarray(), rtol=1e-6)
    assert ((found.weights.toarray() > 0) == (wanted.interactions.toarray() > 0)).all()
    for ours, theirs in (
        (found.client_features, wanted.client_features),
        (found.sku_features, wanted.sku_features),
    ):
        assert ours.dtype == np.float32
        assert ours.shape == theirs.shape
        np.testing.assert_allclose(ours.toarray(), theirs.toarray(), rtol=1e-5)


def test_clients_and_their_rows_are_the_mappings(tiny):
    data = tiny[1]
    found = prepare(data, weighted_pairs(data, PAIRS), BOTH)
    number_of, _, _, _ = found.mapping.mapping()
    assert [number_of[client] for client in found.clients.tolist()] == list(range(len(number_of)))
    assert found.weights.shape[0] == len(number_of)


def test_numbers_are_those_of_the_mapping_in_whatever_order():
    mapping = {30: 0, -5: 2, 7: 1}
    assert numbers(mapping, np.array([7, 7, -5, 30])).tolist() == [1, 1, 2, 0]
    for unknown in (8, 31, -6):
        with pytest.raises(KeyError, match="1 ids are not in the mapping"):
            numbers(mapping, np.array([7, unknown]))


def test_without_codes_only_a_feature_of_its_own(tiny):
    data = tiny[1]
    found = prepare(data, weighted_pairs(data, PAIRS), Features(names=0.0, searches=0.0))
    for matrix in (found.client_features, found.sku_features):
        assert (matrix.toarray() == np.eye(len(matrix.toarray()))).all()


def test_codes_are_labels_of_their_position():
    """A code twice as large, or at another place, is another feature, not more of the same."""
    names = pl.LazyFrame(
        {"sku": [1, 2, 3], "codes": [[4] * 16, [8] * 16, [4] * 15 + [5]]},
        schema_overrides={"codes": pl.Array(pl.UInt8, 16)},
    )
    mapping = Dataset()
    mapping.fit([0], [1, 2, 3], None, [(position, code) for position in range(16) for code in range(256)])
    _, _, ids, features = mapping.mapping()
    matrix = feature_matrix(ids, features, names, weight=1.0).toarray()
    shared = [(matrix[a] * matrix[b] > 0).sum() for a, b in ((0, 1), (0, 2), (1, 2))]
    assert shared == [0, 15, 0]
    assert set(matrix.ravel()) == {0.0, 1 / 16, 1.0}


# --- learning ----------------------------------------------------------------------------------------


def test_vectors_are_the_librarys_of_its_own_matrices(tiny):
    """Our whole way against the library's: builders, fit, representations."""
    history, data = tiny
    theirs = librarys_own(history, data, BOTH)
    model = LightFM(no_components=8, loss="warp", random_state=3)
    weights = theirs.weights
    model.fit(theirs.interactions, theirs.client_features, theirs.sku_features, sample_weight=weights, epochs=3)
    _, wanted = model.get_user_representations(theirs.client_features)
    found = learn(prepare(data, weighted_pairs(data, PAIRS), BOTH), SMALL, seed=3)
    assert found == pytest.approx(wanted, abs=1e-4)


def test_same_seed_same_bits_another_seed_others(tiny):
    data = tiny[1]
    prepared = prepare(data, weighted_pairs(data, PAIRS), BOTH)
    first = learn(prepared, SMALL, seed=1)
    assert first.dtype == np.float32
    assert first.shape == (len(prepared.clients), 8)
    again = learn(prepare(data, weighted_pairs(data, PAIRS), BOTH), SMALL, seed=1)
    assert again.tobytes() == first.tobytes()
    assert learn(prepared, SMALL, seed=2).tobytes() != first.tobytes()


def test_vectors_belong_to_the_right_client(tmp_path, make_history):
    """Even clients buy one half of the skus, odd ones the other: the halves stand apart."""
    history = make_history()
    rng = np.random.default_rng(0)
    skus = history.properties["sku"].to_numpy()
    clients = rng.permutation(np.repeat(rng.permutation(40), 20))
    bought = [rng.choice(skus[client % 2 :: 2]) for client in clients]
    times = history.events[BUY]["timestamp"].sample(len(clients), with_replacement=True, seed=0)
    history.events[BUY] = pl.DataFrame({"client_id": clients, "timestamp": times, "sku": bought})
    for event_type in (ADD, REMOVE):
        history.events[event_type] = history.events[event_type].clear()
    data = ChallengeData(history.write(tmp_path), True)
    prepared = prepare(data, weighted_pairs(data, Interactions(WEIGHTS, "log1p", 1.0, "all")), BOTH)
    vectors = learn(prepared, dataclasses.replace(SMALL, epochs=30), seed=0)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    alike = vectors @ vectors.T
    same_half = (prepared.clients[:, None] % 2) == (prepared.clients % 2)
    assert alike[same_half].mean() > alike[~same_half].mean() + 0.5
    np.fill_diagonal(alike, -np.inf)
    nearest = prepared.clients[alike.argmax(axis=1)]
    assert (nearest % 2 == prepared.clients % 2).all()


def test_centring_takes_off_what_all_have_in_common():
    own = np.random.default_rng(0).normal(size=(1000, 4)).astype(np.float32)
    found = centred(own + np.float32(50))
    assert found.dtype == np.float32
    assert np.abs(found.mean(axis=0)).max() < 1e-4
    assert found == pytest.approx(own - own.mean(axis=0), abs=1e-4)


def test_settings_that_overflow_are_one_line(tiny):
    data = tiny[1]
    prepared = prepare(data, weighted_pairs(data, PAIRS), BOTH)
    with pytest.raises(UserError, match="try a smaller learning_rate") as caught:
        learn(prepared, dataclasses.replace(SMALL, learning_rate=1e38), seed=0)
    assert len(caught.value.messages) == 1


def test_pairs_in_one_piece_of_memory_can_be_learnt_from(tiny):
    """As Polars gives them with one thread: numpy then sees memory that must not be written to."""
    data = tiny[1]
    pairs = weighted_pairs(data, PAIRS).rechunk()
    assert np.isfinite(learn(prepare(data, pairs, BOTH), SMALL, seed=1)).all()
