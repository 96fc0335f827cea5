"""The wide block: its groups' lengths, its columns' names, what it lists where no task does."""

from datetime import timedelta

import numpy as np
import polars as pl
import pytest

from numeric_features import wide
from numeric_features.wide import GroupSettings, NumericFeaturesWideRecipe, factors_of, listed_values
from ubp.blocks.moments import Moments, put_together
from ubp.blocks.wide_features import COUNTS, LISTED, WideFeatures, WideSettings
from ubp.data.history import ChallengeData
from ubp.data.labels import most_bought, relevant_purchases
from ubp.data.schema import EVENT_TYPES
from ubp.data.shards import sharded
from ubp.io.errors import NoUsableEvents, UserError
from ubp.io.spread import in_turn

BUY, *OTHERS = EVENT_TYPES


@pytest.fixture
def data(make_history, tmp_path):
    """The tiny history, all of its clients relevant, and no file of a task."""

    def opened(**changes):
        made = make_history(**changes)
        paths = made.write(tmp_path / "data")
        clients = pl.concat(table["client_id"] for table in made.events.values()).unique().sort().to_numpy()
        paths.relevant_clients.parent.mkdir(exist_ok=True)
        np.save(paths.relevant_clients, clients)
        return ChallengeData(paths, submit=True), made

    return opened


def recipe(**weights):
    return NumericFeaturesWideRecipe(WideSettings(components=4, rhythm=True), GroupSettings(weights, 5))


@pytest.mark.full
def test_each_group_has_a_length_of_its_weight_and_each_column_a_name(data, tmp_path):
    history, _ = data()
    block = recipe(counts=4.0).fit(history, 0, tmp_path).block
    clients, vectors = block.vectors(history, history.clients)
    assert clients.tolist() == history.clients.tolist()
    names = list(block.descriptions())
    assert len(set(names)) == len(names) == vectors.shape[1]
    widths = {name: group.shape[1] for name, group in block.features.groups(history, clients).items()}
    at = 0
    for name, width in widths.items():
        length = np.sqrt(vectors[:, at : at + width].var(axis=0).sum())
        assert length == pytest.approx(4 if name == COUNTS else 1, rel=1e-4)
        at += width
    assert names[-1].endswith("_120d")


@pytest.mark.full
def test_the_events_that_are_kept_give_the_bits_of_the_event_files(data, tmp_path, monkeypatch):
    history, _ = data()
    block = recipe().fit(history, 0, tmp_path).block
    for known in (history, history.before(history.as_of - timedelta(days=20)), history.masked(0.3, seed=1)):
        kept = block.vectors(known, history.clients)
        with monkeypatch.context() as patch:
            patch.setattr(ChallengeData, "_are_relevant", lambda *_: False)
            read = block.vectors(known, history.clients)
        np.testing.assert_array_equal(kept[0], read[0])
        np.testing.assert_array_equal(kept[1], read[1])


def test_without_lists_of_tasks_the_most_bought_values_are_listed(data):
    history, made = data()
    bought = made.events[BUY].join(made.properties, on="sku")
    for column in ("category", "sku"):
        pairs = bought.select("client_id", column).unique()
        counts = pairs.group_by(column).len().sort("len", column, descending=[True, False]).head(5)
        assert listed_values(history, 5)[column].tolist() == sorted(counts[column].to_list())
    assert listed_values(history, 5)["price"].tolist() == sorted(set(bought["price"].to_list()))


def test_the_open_tasks_lists_are_taken_where_there_are_any(data):
    history, _ = data()
    history.paths.target.mkdir()
    np.save(history.paths.target / "propensity_sku.npy", np.array([7, 3, 5]))
    for hidden in ("propensity_new_sku", "propensity_price"):
        (history.paths.target / f"{hidden}.npy").mkdir()  # opening one would fail
    assert listed_values(history, 5)["sku"].tolist() == [3, 5, 7]
    assert (
        listed_values(history, 5)["category"].tolist()
        == most_bought(relevant_purchases(history), "category", 5).tolist()
    )


@pytest.mark.parametrize("shards", [2, pytest.param(7, marks=pytest.mark.long)])
def test_fitted_by_shards_clients_are_as_far_apart_as_by_one_process(data, tmp_path, shards):
    history, _ = data()
    chosen = recipe(counts=4.0)
    views = [history.of_shard(shard) for shard in sharded(history, shards, in_turn)]
    found = chosen.fit_by_shards(history, views, 0, in_turn, tmp_path / "fit")
    whole = chosen.fit(history, 0, tmp_path).block
    assert found.report == {"shards": shards}
    assert list(found.block.descriptions()) == list(whole.descriptions())
    assert found.block.factors == pytest.approx(whole.factors, rel=1e-5)
    (ids, vectors), (wanted_ids, wanted) = (block.vectors(history, history.clients) for block in (found.block, whole))
    assert ids.tolist() == wanted_ids.tolist()
    products, wanted_products = (each.astype(np.float64) @ each.T for each in (vectors, wanted))
    np.testing.assert_allclose(products, wanted_products, atol=1e-4 * np.abs(wanted_products).max())


def test_no_shard_has_a_client_with_an_event(data, tmp_path):
    history, _ = data()
    np.save(history.paths.relevant_clients, np.array([-1]))
    history = ChallengeData(history.paths, submit=True)
    views = [history.of_shard(shard) for shard in sharded(history, 2, in_turn)]
    with pytest.raises(NoUsableEvents, match="no usable events"):
        recipe().fit_by_shards(history, views, 0, in_turn, tmp_path / "fit")


def test_purchases_only(data, tmp_path):
    history, _ = data(empty=OTHERS)
    block = recipe().fit(history, 0, tmp_path).block
    _, vectors = block.vectors(history, history.clients)
    assert np.isfinite(vectors).all()
    assert not any(name.startswith(("page_visit", "url", "query")) for name in block.descriptions())
    assert LISTED in block.factors


def test_a_group_without_spread_counts_nothing():
    groups = {"a": np.ones((3, 2), np.float32), "b": np.array([[0.0], [2.0], [4.0]], np.float32)}
    assert factors_of({name: Moments.of(group) for name, group in groups.items()}, {}) == {
        "a": 0.0,
        "b": pytest.approx(1 / np.sqrt(8 / 3)),
    }


def test_no_relevant_client_has_an_event(data, tmp_path):
    history, _ = data()
    np.save(history.paths.relevant_clients, np.array([-1]))
    with pytest.raises(NoUsableEvents, match="no usable events"):
        recipe().fit(ChallengeData(history.paths, submit=True), 0, tmp_path)


@pytest.mark.parametrize(("weights", "values"), [({"counts": 0.0}, 5), ({}, -1)])
def test_settings_that_make_no_sense(weights, values):
    with pytest.raises(UserError, match="groups"):
        GroupSettings(weights, values)


@pytest.mark.parametrize("sizes", [(1, 99), (30, 30, 40), (100,)])
def test_factors_of_parts_are_those_of_the_whole(sizes):
    group = (np.random.default_rng(0).normal(size=(100, 3)) * (1, 5, 0) + 7).astype(np.float32)
    parts = np.split(group, np.cumsum(sizes)[:-1])
    wanted = 2 / np.sqrt(group.var(axis=0, dtype=np.float64).sum())
    assert factors_of(put_together(("a", Moments.of(part)) for part in parts), {"a": 2.0}) == {
        "a": pytest.approx(wanted, rel=1e-12)
    }


@pytest.mark.full
def test_many_clients_are_encoded_in_parts_with_the_same_bits(data, tmp_path, monkeypatch):
    history, _ = data()
    block = recipe(counts=4.0).fit(history, 0, tmp_path).block
    clients, wanted = block.vectors(history, history.clients)
    asked = []

    def watched(self, history, clients):
        asked.append(len(clients))
        return each_group(self, history, clients)

    each_group = WideFeatures.each_group
    monkeypatch.setattr(wide, "_CLIENTS", 7)
    monkeypatch.setattr(WideFeatures, "each_group", watched)
    for day in (history, history.before(history.as_of - timedelta(days=40))):
        known, found = block.vectors(day, clients)
        assert known.tolist() == day.seen(clients).tolist()
        monkeypatch.setattr(wide, "_CLIENTS", 1_000)
        assert found.tobytes() == block.vectors(day, clients)[1].tobytes()
        monkeypatch.setattr(wide, "_CLIENTS", 7)
    assert block.vectors(history, clients)[1].tobytes() == wanted.tobytes()
    asked.clear()
    again = recipe(counts=4.0).fit(history, 0, tmp_path).block
    assert again.factors == pytest.approx(block.factors)
    assert max(asked) == block.at_a_time == 7
