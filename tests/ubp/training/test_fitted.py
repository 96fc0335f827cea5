"""What the three families of sequence models promise as fitted blocks; with their first weights, which is enough."""

from dataclasses import replace
from datetime import datetime, timedelta

import numpy as np
import polars as pl
import pytest
import torch

from gru_autoencoder.recipe import AutoencoderNetwork, AutoencoderRecipe
from gru_autoencoder.report import ReportSettings
from gru_autoencoder.tokens import AutoencoderSequences, FeatureSettings
from next_sku.recipe import NextSkuNetwork, NextSkuRecipe, NextSkuSequences
from next_url.recipe import NextUrlNetwork, NextUrlRecipe, NextUrlSequences
from tests.conftest import START
from ubp.blocks.fitted import load, save
from ubp.data import schema
from ubp.data.history import ChallengeData
from ubp.data.schema import EventType
from ubp.training.settings import TrainerSettings

TRAINER = TrainerSettings(max_epochs=1, patience=1, batch_size=16, accelerator="cpu", threads=1)
FIT_DAY = START + timedelta(days=50)
FEATURES = {name: FeatureSettings(4) for name in ("day", "week", "event", "category", "price", "sku", "url")}
TRANSFORMER = {
    "layers": 1,
    "heads": 2,
    "dropout": 0.1,
    "attention_dropout": 0.1,
    "profile": "sum",
    "half_life": 7.0,
}


def autoencoder(features=FEATURES, day="age"):
    sequences = AutoencoderSequences(None, "relevant", None, 20, 8, day)
    network = AutoencoderNetwork("concat", 8, 1, 0.1, 0.1, profile="sum", features=features)
    return AutoencoderRecipe("gru", TRAINER, {}, sequences, network, ReportSettings(4, 1))


RECIPES = {
    "gru": autoencoder(),
    "gru codes": autoencoder({"event": FeatureSettings(4), "codes": FeatureSettings(2)}, day="absolute"),
    "next_sku": NextSkuRecipe(
        "next_sku", TRAINER, {},
        NextSkuSequences(2, 6, 12, None, "all", 1),
        NextSkuNetwork(category_width=5, event_width=2, **TRANSFORMER),
    ),
    "next_url": NextUrlRecipe(
        "next_url", TRAINER, {},
        NextUrlSequences(2, 6, 12, None, 5),
        NextUrlNetwork(
            width=8, negatives=4, negatives_for="batch", sampling="frequency", log_q=True, **TRANSFORMER
        ),
    ),
}  # fmt: skip


def give_relevant(paths, clients):
    paths.relevant_clients.parent.mkdir(parents=True, exist_ok=True)
    np.save(paths.relevant_clients, clients)


@pytest.fixture(scope="module")
def data(make_history, tmp_path_factory):
    """Half of the clients are relevant."""
    paths = make_history().write(tmp_path_factory.mktemp("fitted"))
    give_relevant(paths, np.array([1]))
    give_relevant(paths, ChallengeData(paths, submit=True).seen()[::2])
    return ChallengeData(paths, submit=True)


@pytest.fixture(scope="module")
def fitted(data):
    """Each recipe's block on day 50."""
    return {name: recipe.prepare(data.before(FIT_DAY), seed=3).block for name, recipe in RECIPES.items()}


def same(one, other):
    np.testing.assert_array_equal(one.client_ids, other.client_ids)
    np.testing.assert_array_equal(one.vectors, other.vectors)
    assert one.vectors.dtype == np.float32


@pytest.mark.parametrize("name", RECIPES)
def test_a_loaded_block_encodes_the_same_bits_on_any_day_and_for_any_clients(name, data, fitted, tmp_path):
    block = fitted[name]
    save(block, tmp_path / "block", {})
    loaded = load(tmp_path / "block")
    assert type(loaded) is type(block)
    assert loaded.runtime == block.runtime
    for day, clients in ((FIT_DAY, data.relevant_clients), (FIT_DAY - timedelta(days=9), None)):
        same(loaded.encode(data, clients, day), block.encode(data, clients, day))
    buffers = dict(block.model.named_buffers())
    assert all(torch.equal(values, buffers[key]) for key, values in loaded.model.named_buffers())


@pytest.mark.parametrize("name", RECIPES)
def test_loading_draws_no_random_numbers_of_the_users(name, fitted, tmp_path):
    save(fitted[name], tmp_path / "block", {})
    before = torch.get_rng_state()
    load(tmp_path / "block")
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", RECIPES)
def test_clients_that_were_never_seen_are_encoded_and_those_without_events_are_not(name, data, fitted):
    others = np.setdiff1d(data.before(FIT_DAY).seen(), data.relevant_clients)
    found = fitted[name].encode(data, [*others, -5], FIT_DAY)
    assert len(others) * 0.8 <= len(found.client_ids) <= len(others)
    assert set(found.client_ids) <= set(others)
    assert np.isfinite(found.vectors).all()
    assert found.vectors.std(axis=0).max() > 0
    nobody = fitted[name].encode(data, [-5], FIT_DAY)
    assert nobody.vectors.shape == (0, found.vectors.shape[1])


@pytest.mark.parametrize("name", ["gru", "next_sku", "next_url"])
def test_a_later_day_gives_other_vectors(name, data, fitted):
    early, late = (fitted[name].encode(data, data.relevant_clients, day) for day in (FIT_DAY, data.as_of))
    both = np.isin(late.client_ids, early.client_ids)
    moved = np.abs(late.vectors[both] - early.vectors).max(axis=1) > 1e-4
    assert moved.mean() > 0.8


@pytest.mark.parametrize("name", RECIPES)
def test_nothing_after_the_day_is_read(name, make_history, tmp_path, data, fitted):
    """Neither by the fit nor to encode: a log that ends on that day gives the same."""
    history = make_history()
    history.events = {
        event_type: table.filter(pl.col(schema.TIMESTAMP) < FIT_DAY) for event_type, table in history.events.items()
    }
    paths = history.write(tmp_path / "data")
    give_relevant(paths, data.relevant_clients)
    shorter = ChallengeData(paths, submit=True)
    assert shorter.as_of == FIT_DAY
    block = RECIPES[name].prepare(shorter, seed=3).block
    one, other = block.state(), fitted[name].state()
    assert one.settings == other.settings
    assert one.tables.keys() == other.tables.keys()
    assert all(table.equals(other.tables[key]) for key, table in one.tables.items())
    assert all(np.array_equal(array, other.arrays[key]) for key, array in one.arrays.items())
    same(block.encode(shorter, data.relevant_clients), fitted[name].encode(data, data.relevant_clients, FIT_DAY))


@pytest.mark.parametrize("name", ["next_sku", "gru"])
def test_a_value_that_the_fit_had_not_becomes_other(name, data, fitted, make_history, tmp_path):
    history = make_history()
    history.properties = history.properties.with_columns(category=pl.lit(99_999))
    paths = history.write(tmp_path / "data")
    give_relevant(paths, data.relevant_clients)
    source = fitted[name].source(ChallengeData(paths, submit=True).before(FIT_DAY), data.relevant_clients)
    assert set(np.unique(source.columns[schema.CATEGORY])) <= {schema.Token.OTHER, schema.Token.NONE}


def test_visits_to_unknown_urls_are_left_out(data, fitted, make_history, tmp_path):
    """And so are clients who have no other visits; the rest is as if those visits had not been."""
    history = make_history()
    visits = history.events[EventType.PAGE_VISIT]
    added = visits.filter(pl.col(schema.TIMESTAMP) < FIT_DAY).with_columns(url=pl.lit(777_777, pl.Int64))
    newcomer = added.head(3).with_columns(client_id=pl.lit(1_000_000, pl.Int64))
    history.events[EventType.PAGE_VISIT] = pl.concat([visits, added, newcomer])
    paths = history.write(tmp_path / "data")
    clients = np.append(data.relevant_clients, 1_000_000)
    give_relevant(paths, clients)
    found = fitted["next_url"].encode(ChallengeData(paths, submit=True), clients, FIT_DAY)
    same(found, fitted["next_url"].encode(data, clients, FIT_DAY))


def test_a_fit_gives_a_block_that_computes_as_it_was_trained(data, tmp_path):
    recipe = RECIPES["next_url"]
    made = replace(recipe, trainer=replace(TRAINER, threads=None)).fit(data.before(FIT_DAY), 3, tmp_path)
    assert made.block.runtime.threads == 1  # products so small
    assert made.report["epochs"] == 1
    assert 0 <= made.report["validation_ndcg"] <= 1
    first = recipe.prepare(data.before(FIT_DAY), seed=3).block
    trained, untrained = (block.encode(data, data.relevant_clients, FIT_DAY) for block in (made.block, first))
    assert np.abs(trained.vectors - untrained.vectors).max() > 1e-4


def test_first_weights_are_the_seeds_whatever_was_drawn_before(data):
    history, recipe = data.before(FIT_DAY), RECIPES["next_url"]
    torch.manual_seed(99)
    state = torch.get_rng_state()
    one = recipe.prepare(history, seed=3).block.model.state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(5)
    other = recipe.prepare(history, seed=3).block.model.state_dict()
    assert all(torch.equal(values, other[name]) for name, values in one.items())
    third = recipe.prepare(history, seed=4).block.model.state_dict()
    assert not torch.equal(third["url.weight"], one["url.weight"])


def test_the_day_that_a_fit_was_made_on_comes_back(fitted, tmp_path):
    save(fitted["gru"], tmp_path / "block", {})
    calendar = load(tmp_path / "block").tokeniser.calendar
    assert calendar == fitted["gru"].tokeniser.calendar
    assert (calendar.first_day, calendar.as_of) == (START, FIT_DAY)
    assert isinstance(calendar.as_of, datetime)
