"""LightFM's matrices against the library's own builders and a dict; clients' vectors on any day against a loop."""

import dataclasses
import math
from collections import defaultdict
from dataclasses import dataclass
from datetime import timedelta

import numpy as np
import polars as pl
import pytest
from lightfm import LightFM
from lightfm.data import Dataset
from scipy.sparse import coo_matrix, csr_matrix

from LightFM.features import feature_matrix, numbers
from LightFM.model import ModelSettings, learn
from LightFM.recipe import (
    Features,
    FoldIn,
    Interactions,
    LightFmBlock,
    LightFmRecipe,
    Pairs,
    explained,
    memory_of,
    positive_pairs,
    prepare,
    root_mean_square,
)
from ubp.blocks.fitted import load, save
from ubp.cli.config import composed
from ubp.data.history import ChallengeData
from ubp.data.pair_counts import PairCounts
from ubp.data.paths import CONFIGS
from ubp.data.schema import EventType
from ubp.io.errors import NoUsableEvents, UserError

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


def fitted(data, features=BOTH, seed=0) -> LightFmBlock:
    block = LightFmRecipe(PAIRS, features, SMALL).fit(data, seed, data.paths.cache).block
    assert isinstance(block, LightFmBlock)
    return block


# --- what is learned from ----------------------------------------------------------------------------


def test_pairs_of_the_relevant_clients(tiny):
    history, data = tiny
    found = positive_pairs(data, PAIRS, data.relevant_clients)
    wanted = slow_pairs(history, set(data.relevant_clients.tolist()))
    assert {(client, sku): weight for client, sku, weight in found.iter_rows()} == pytest.approx(wanted)
    assert found["weight"].dtype == pl.Float32
    assert found.equals(found.sort("client_id", "sku"))


def test_pairs_of_all_clients(tiny):
    history, data = tiny
    everybody = {client for events in history.events.values() for client in events["client_id"]}
    found = positive_pairs(data, Interactions(WEIGHTS, "log1p", 1.0, "all"), None)
    wanted = {pair: math.log1p(weight) for pair, weight in slow_pairs(history, everybody).items()}
    assert {(client, sku): weight for client, sku, weight in found.iter_rows()} == pytest.approx(wanted)
    assert set(positive_pairs(data, Interactions(WEIGHTS, "one", 0.5, "all"), None)["weight"]) == {0.5}


def test_what_it_needs_is_told_by_what_it_reads(tiny):
    history, data = tiny
    clients = set(data.relevant_clients.tolist())
    met = {(client, sku) for name in WEIGHTS for client, _, sku in history.events[EventType(name)].iter_rows()}
    met = {(client, sku) for client, sku in met if client in clients}
    searches = sum(client in clients for client in history.events[SEARCH]["client_id"])
    need = LightFmRecipe(PAIRS, BOTH, SMALL).need(data)
    sides = len({client for client, _ in met}), len({sku for _, sku in met})
    assert f"about {len(met):,} pairs of {sides[0]} clients and {sides[1]} skus, {searches:,} searches" in need.counts
    bare = LightFmRecipe(PAIRS, Features(0.0, 0.0), SMALL).need(data)
    assert "0 searches" in bare.counts
    assert bare.memory < need.memory
    assert LightFmRecipe(PAIRS, BOTH, dataclasses.replace(SMALL, components=80)).need(data).memory > need.memory


# MB that whole commands held on the synthetic log at 0.1: of the relevant clients, without codes, of all clients.
@pytest.mark.parametrize(
    ("pairs", "clients", "skus", "queries", "names", "megabytes"),
    [
        (173_970, 51_974, 81_750, 99_320, 81_750, 381),
        (173_970, 51_974, 81_750, 0, 0, 299),
        (574_343, 343_212, 116_136, 793_614, 116_136, 1028),
    ],
)
def test_what_was_measured_is_told(pairs, clients, skus, queries, names, megabytes):
    told = memory_of(PairCounts(0, pairs, clients, skus), queries, names, 64) / 1e6
    assert megabytes < told < 1.4 * megabytes


def test_what_is_taken_out_of_the_cart_counts_against_the_pair(make_history, tmp_path):
    """Added and removed: 0.2 is left; added once and removed twice, or removed only: no pair."""
    history = make_history()
    second = history.events[BUY]["timestamp"][0]
    columns = ("client_id", "timestamp", "sku")
    rows = {BUY: [(1, 1000)], ADD: [(1, 1007), (1, 1014)], REMOVE: [(1, 1007), (1, 1014), (1, 1014), (1, 1021)]}
    for event_type, pairs in rows.items():
        table = [(client, second, sku) for client, sku in pairs]
        history.events[event_type] = pl.DataFrame(table, columns, orient="row")
    found = positive_pairs(
        ChallengeData(history.write(tmp_path), True), Interactions(WEIGHTS, "none", 1.0, "all"), None
    )
    assert found["sku"].to_list() == [1000, 1007]
    assert found["weight"].to_list() == pytest.approx([1.0, 0.2])


def test_no_pair_at_all(make_history, tmp_path):
    history = make_history()
    history.events[EventType.ADD_TO_CART] = history.events[EventType.ADD_TO_CART].clear()
    paths = history.write(tmp_path)
    paths.relevant_clients.parent.mkdir()
    np.save(paths.relevant_clients, np.arange(10_000))
    recipe = LightFmRecipe(Interactions({"add_to_cart": 1.0}, "none", 1.0, "all"), BOTH, SMALL)
    wanted = "no client has a positive weight of a sku: 0 events of add_to_cart before .*; leave the block"
    with pytest.raises(NoUsableEvents, match=wanted):
        recipe.fit(ChallengeData(paths, submit=True), 0, paths.cache)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Interactions({}, "none", 1.0, "all"), "interactions.weights={}: must be"),
        (lambda: Interactions({"remove_from_cart": -0.5}, "none", 1.0, "all"), "must be one weight above 0 at least"),
        (lambda: Interactions(WEIGHTS, "log", 1.0, "all"), "transform=log: must be none or log1p or one"),
        (lambda: Interactions(WEIGHTS, "none", 1.0, "some"), "clients=some: must be relevant or all"),
        (lambda: Interactions(WEIGHTS, "none", 0.0, "all"), "interactions.scale=0.0: must be above 0"),
        (lambda: Features(-1.0, 0.0), "features.names=-1.0: must be at least 0"),
        (lambda: ModelSettings(**{**vars(SMALL), "loss": "warp-kos"}), "model.loss=warp-kos: must be warp or bpr"),
        (lambda: ModelSettings(**{**vars(SMALL), "epochs": 0}), "model.epochs=0: must be at least 1"),
        (lambda: ModelSettings(**{**vars(SMALL), "steps": 0}), "model.steps=0: must be at least 1, or null"),
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


def test_only_events_about_items_have_a_weight(history):
    settings = Interactions({"page_visit": 1.0}, "none", 1.0, "all")
    with pytest.raises(UserError, match="weights: no event type page_visit; known: product_buy, add"):
        positive_pairs(ChallengeData(history, True), settings, None)


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


def prepared(data, features=BOTH):
    pairs = Pairs.of(positive_pairs(data, PAIRS, data.relevant_clients))
    return pairs, prepare(data, pairs, features)


def test_matrices_are_those_that_the_library_builds(tiny):
    history, data = tiny
    (pairs, found), wanted = prepared(data), librarys_own(history, data, BOTH)
    clients, _, skus, _ = wanted.mapping.mapping()
    assert (pairs.clients.tolist(), pairs.skus.tolist()) == (list(clients), list(skus))
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


def test_numbers_are_places_among_the_known_ones():
    known = np.array([-5, 7, 30])
    assert numbers(known, np.array([7, 7, -5, 30])).tolist() == [1, 1, 0, 2]
    assert numbers(known, np.array([], np.int64)).tolist() == []
    for unknown in (8, 31, -6):
        with pytest.raises(KeyError, match="1 ids are not known"):
            numbers(known, np.array([7, unknown]))


def test_without_codes_only_a_feature_of_its_own(tiny):
    _, found = prepared(tiny[1], Features(names=0.0, searches=0.0))
    for matrix in (found.client_features, found.sku_features):
        assert (matrix.toarray() == np.eye(len(matrix.toarray()))).all()


def test_codes_are_labels_of_their_position():
    """A code twice as large, or at another place, is another feature, not more of the same."""
    names = pl.LazyFrame(
        {"sku": [1, 2, 3], "codes": [[4] * 16, [8] * 16, [4] * 15 + [5]]},
        schema_overrides={"codes": pl.Array(pl.UInt8, 16)},
    )
    matrix = feature_matrix(np.array([1, 2, 3]), names, weight=1.0).toarray()
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
    found = learn(prepared(data)[1], SMALL, seed=3)
    _, wanted = model.get_user_representations(theirs.client_features)
    assert theirs.client_features @ found.clients == pytest.approx(wanted, abs=1e-4)
    _, wanted = model.get_item_representations(theirs.sku_features)
    assert theirs.sku_features @ found.skus == pytest.approx(wanted, abs=1e-4)


def test_same_seed_same_bits_another_seed_others(tiny):
    data = tiny[1]
    first = fitted(data, seed=1).encode(data)
    assert first.vectors.dtype == np.float32
    assert first.columns == 8
    assert fitted(data, seed=1).encode(data).vectors.tobytes() == first.vectors.tobytes()
    assert fitted(data, seed=2).encode(data).vectors.tobytes() != first.vectors.tobytes()


def test_settings_that_overflow_are_one_line(tiny):
    with pytest.raises(UserError, match="try a smaller learning_rate") as caught:
        learn(prepared(tiny[1])[1], dataclasses.replace(SMALL, learning_rate=1e38), seed=0)
    assert len(caught.value.messages) == 1


def test_pairs_in_contiguous_memory_can_be_learned_from(tiny):
    """As Polars gives them with one thread: numpy then sees memory that must not be written to."""
    data = tiny[1]
    pairs = Pairs.of(positive_pairs(data, PAIRS, data.relevant_clients).rechunk())
    assert np.isfinite(learn(prepare(data, pairs, BOTH), SMALL, seed=1).clients).all()


@pytest.mark.parametrize(
    ("pairs", "steps", "epochs"),
    [
        (807_446, None, 30),
        (807_446, 400_000, 1),  # less than half of them: still each once
        (400_000, 400_000, 1),
        (200_001, 400_000, 2),  # the nearest number
        (53_450, 100_000, 2),
        (1_000, 100_000, 30),  # no more than the epochs
        (0, 400_000, 30),
    ],
)
def test_epochs_by_steps(pairs, steps, epochs):
    assert dataclasses.replace(SMALL, epochs=30, steps=steps).epochs_over(pairs) == epochs


def test_steps_are_passed_over_and_said(tiny, caplog):
    """So many steps give the bits of so many epochs; the log and the report say how many those were."""
    data = tiny[1]
    pairs = len(positive_pairs(data, PAIRS, data.relevant_clients))
    by_steps = dataclasses.replace(SMALL, epochs=9, steps=4 * pairs + 3)
    with caplog.at_level("INFO", logger="LightFM.model"):
        found = LightFmRecipe(PAIRS, BOTH, by_steps).fit(data, 0, data.paths.cache)
    assert found.report["epochs"] == 4
    [said] = [line for line in caplog.messages if line.startswith("model.steps")]
    assert said == f"model.steps={4 * pairs + 3:,}: 4 epochs of {pairs:,} pairs, 9 at the most"
    assert [line.partition(":")[0] for line in caplog.messages if line.startswith("epoch")][-1] == "epoch 4 of 4"
    wanted = LightFmRecipe(PAIRS, BOTH, dataclasses.replace(SMALL, epochs=4)).fit(data, 0, data.paths.cache)
    assert wanted.report["epochs"] == 4
    assert found.block.encode(data).vectors.tobytes() == wanted.block.encode(data).vectors.tobytes()


def test_the_demo_counts_steps_and_the_published_epochs_stay():
    demo, full = (
        LightFmRecipe.of(composed(CONFIGS / "LightFM", "lightfm_train", [f"preset={preset}"])).model
        for preset in ("demo", "full")
    )
    assert (full.epochs, full.steps) == (30, None)
    assert demo.epochs_over(807_446) == 1  # the demo's log
    assert demo.epochs_over(40_000) > 1


# --- clients' own parts by the skus they met ---------------------------------------------------------


def test_the_fold_in_finds_a_linear_rule():
    rng = np.random.default_rng(0)
    sums, slope, intercept = rng.normal(size=(500, 4)) * 9 + 5, rng.normal(size=(4, 4)), rng.normal(size=4)
    learned = (sums @ slope + intercept).astype(np.float32)
    fold_in = FoldIn.fit(sums, learned)
    np.testing.assert_allclose(fold_in(sums), learned, rtol=0.02, atol=0.1)
    assert explained(fold_in(sums), learned) > 0.999
    noise = rng.normal(size=(500, 4)).astype(np.float32)
    assert 0 <= explained(FoldIn.fit(sums, noise)(sums), noise) < 0.1


def test_a_vector_is_its_skus_and_searches_less_the_mean(tiny):
    """Against a loop over a client's pairs and searches."""
    history, data = tiny
    block = fitted(data)
    table = block.encode(data, data.relevant_clients)
    names = dict(history.properties.select("sku", "name").iter_rows())
    pairs = slow_pairs(history, set(table.client_ids.tolist()))
    codes = len(block.skus)
    for client, vector in list(zip(table.client_ids.tolist(), table.vectors, strict=True))[:10]:
        total = np.zeros(8)
        for (owner, sku), weight in pairs.items():
            if owner == client:
                described = sum(block.sku_vectors[codes + 256 * n + c] for n, c in enumerate(codes_of(names[sku])))
                total += weight * (block.sku_vectors[block.skus.tolist().index(sku)] + described * BOTH.names / 16)
        wanted = block.fold_in(total) - block.mean
        texts = history.events[SEARCH].filter(pl.col("client_id") == client)["query"].to_list()
        for text in texts:
            described = sum(block.search_vectors[256 * n + c] for n, c in enumerate(codes_of(text)))
            wanted = wanted + described * BOTH.searches / 16 / len(texts)
        np.testing.assert_allclose(vector, wanted, rtol=1e-3, atol=1e-5)


def test_the_trainings_clients_have_a_mean_of_zero(tiny):
    data = tiny[1]
    table = fitted(data).encode(data, data.relevant_clients)
    assert np.abs(table.vectors.mean(axis=0)).max() < 1e-5
    assert np.abs(table.vectors).max() > 0.01


@pytest.mark.parametrize("features", [BOTH, Features(names=0.0, searches=0.0)])
@pytest.mark.parametrize("epochs", [1, 20])
def test_the_trainings_clients_have_a_length_of_one_however_far_they_were_learned(epochs, features, tiny):
    """Root mean square: one number for all, so that who met more stays the longer."""
    data = tiny[1]
    block = (
        LightFmRecipe(PAIRS, features, dataclasses.replace(SMALL, epochs=epochs)).fit(data, 0, data.paths.cache).block
    )
    lengths = np.linalg.norm(block.encode(data, data.relevant_clients).vectors, axis=1)
    assert np.sqrt((lengths**2).mean()) == pytest.approx(1, rel=1e-4)
    assert lengths.std() > 0.1


def test_one_client_alone_has_no_length_to_scale_by():
    assert root_mean_square(np.zeros((1, 8))) == 1.0
    assert root_mean_square(np.array([[3.0, 4.0], [0.0, 0.0]])) == pytest.approx(math.sqrt(12.5))


def test_the_fold_in_is_near_what_was_learned(tiny):
    """On random purchases; the recipe reports how near."""
    data = tiny[1]
    found = LightFmRecipe(PAIRS, BOTH, dataclasses.replace(SMALL, epochs=10)).fit(data, 0, data.paths.cache)
    assert 0.5 < found.report["fold_in_r2"] <= 1


# --- a fitted block on any day -----------------------------------------------------------------------


@pytest.mark.parametrize("features", [BOTH, Features(names=0.0, searches=0.0)])
def test_a_kept_block_encodes_the_same_bits(tiny, tmp_path, features):
    data = tiny[1]
    block = fitted(data, features=features)
    save(block, tmp_path / "kept", {})
    again = load(tmp_path / "kept")
    for as_of in (None, data.as_of - timedelta(days=9)):
        first, second = block.encode(data, as_of=as_of), again.encode(data, as_of=as_of)
        assert len(first) > 0
        assert first.client_ids.tolist() == second.client_ids.tolist()
        assert first.vectors.tobytes() == second.vectors.tobytes()


def test_clients_that_were_not_in_the_training(tiny):
    """Each by itself, near the training's clients that met the same skus."""
    history, data = tiny
    block = fitted(data)
    everybody = block.encode(data)
    others = np.setdiff1d(everybody.client_ids, data.relevant_clients)
    table = block.encode(data, others)
    assert len(table) > 10
    for row in (0, 5):
        alone = block.encode(data, others[row : row + 1])
        assert alone.vectors.tobytes() == table.vectors[row : row + 1].tobytes()
    # The purchases and searches of a client of the training, under another id.
    client, twin = int(table.client_ids[3]), 20_000
    for event_type, events in history.events.items():
        own = events.filter(pl.col("client_id") == client).with_columns(client_id=pl.lit(twin, pl.Int64))
        history.events[event_type] = pl.concat([events, own])
    both = block.encode(ChallengeData(history.write(data.paths.root), True), [client, twin])
    assert both.vectors[0].tobytes() == both.vectors[1].tobytes()


def test_an_earlier_day_has_other_vectors(tiny):
    data = tiny[1]
    block = fitted(data)
    now, before = block.encode(data), block.encode(data, as_of=data.as_of - timedelta(days=30))
    assert set(before.client_ids.tolist()) <= set(now.client_ids.tolist())
    same = np.isin(now.client_ids, before.client_ids)
    assert (now.vectors[same] != before.vectors).any(axis=1).mean() > 0.5


@pytest.mark.parametrize("names", [2.0, 0.0])
def test_a_new_sku_is_described_by_its_name(make_history, tmp_path, names):
    """Without names nothing is known of it, and a client that met nothing else has no vector."""
    history = make_history()
    bought = history.events[BUY]
    late = bought["timestamp"].max() + timedelta(days=3)
    new, named_alike, client = 9_999, int(bought["sku"].mode().min()), 20_000
    like = history.properties.filter(pl.col("sku") == named_alike)
    history.properties = pl.concat([history.properties, like.with_columns(sku=pl.lit(new, pl.Int64))])
    more = pl.DataFrame([(client, late, new)], bought.schema, orient="row")
    history.events[BUY] = pl.concat([bought, more])
    paths = history.write(tmp_path)
    paths.input.mkdir()
    np.save(paths.relevant_clients, bought["client_id"].unique().to_numpy())
    data = ChallengeData(paths, True)
    block = fitted(data.before(late - timedelta(days=1)), features=Features(names, 1.0))
    assert new not in block.skus.tolist()
    table = block.encode(data, [client])
    if not names:
        assert len(table) == 0
        return
    codes = [block.sku_vectors[len(block.skus) + 256 * n + c] for n, c in enumerate(codes_of(like["name"].item()))]
    wanted = block.fold_in(sum(codes).astype(float) * names / 16) - block.mean
    np.testing.assert_allclose(table.vectors[0], wanted, rtol=1e-3, atol=1e-5)


def test_nobody_to_encode(tiny):
    assert fitted(tiny[1]).encode(tiny[1], [77_777]).vectors.shape == (0, 8)


def test_the_recipe_reads_the_config():
    recipe = LightFmRecipe.of(composed(CONFIGS / "LightFM", "lightfm_train", ["preset=demo", "features.names=4"]))
    assert recipe.interactions.weights == WEIGHTS
    assert recipe.features == Features(names=4.0, searches=1.0)
    assert recipe.model.loss == "warp"


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
    recipe = LightFmRecipe(Interactions(WEIGHTS, "log1p", 1.0, "all"), BOTH, dataclasses.replace(SMALL, epochs=30))
    owners, vectors = recipe.fit(data, 0, data.paths.cache).block.vectors(data, np.unique(clients))
    vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    alike = vectors @ vectors.T
    same_half = (owners[:, None] % 2) == (owners % 2)
    assert alike[same_half].mean() > alike[~same_half].mean() + 0.5
    np.fill_diagonal(alike, -np.inf)
    nearest = owners[alike.argmax(axis=1)]
    assert (nearest % 2 == owners % 2).all()
