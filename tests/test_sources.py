"""Every neural model's data can be given to a process that is spawned, and gathers there what it gathers here."""

import importlib
import pickle

import numpy as np
import polars as pl
import pytest
import torch
from omegaconf import OmegaConf

from tests.test_commands import EMBEDDINGS
from tests.ubp.training.host_reads import host_reads
from ubp.cli.config import composed
from ubp.data import schema
from ubp.data.history import ChallengeData
from ubp.data.paths import CONFIGS
from ubp.data.schema import EVENT_TYPES
from ubp.training.model import in_micro_batches, losses_of

# By the folder of a command, its recipe.
RECIPES = {
    "gru_autoencoder": ("gru_autoencoder.recipe", "AutoencoderRecipe"),
    "next_sku": ("next_sku.recipe", "NextSkuRecipe"),
    "next_url": ("next_url.recipe", "NextUrlRecipe"),
}
NEURAL = {name: words for name, words in EMBEDDINGS.items() if words[0].split("/")[0] in RECIPES}


def prepared(name, history):
    """The block and the data of a command on the tiny history."""
    program, *words = NEURAL[name]
    folder, file = program.removesuffix(".py").split("/")
    named = [word.partition("=")[2] for word in words if word.startswith("--config-name=")]
    config = composed(
        CONFIGS / folder,
        named[0] if named else file.removesuffix("_embeddings"),
        [word for word in words if not word.startswith("--")],
    )
    OmegaConf.resolve(config)
    module, recipe = RECIPES[folder]
    return getattr(importlib.import_module(module), recipe).of(config).prepare(ChallengeData(history, True), seed=0)


def give_clients(history):
    """Every client is a relevant one."""
    history.relevant_clients.parent.mkdir()
    clients = pl.concat(
        pl.read_parquet(history.raw / kind.file_name, columns=[schema.CLIENT_ID]) for kind in EVENT_TYPES
    )
    np.save(history.relevant_clients, clients[schema.CLIENT_ID].unique().sort().to_numpy())


@pytest.mark.parametrize("name", NEURAL)
def test_a_step_reads_nothing_back_from_the_device(name, history):
    give_clients(history)
    made = prepared(name, history)
    made.block.model.train()
    batch = made.train_source.batch(np.arange(12), np.random.default_rng(7))
    micro_batches = in_micro_batches(batch, 8, made.block.model.on_host)
    with host_reads() as reads:
        for loss, _ in losses_of(made.block.model, micro_batches):
            loss.backward()
    assert reads == []


@pytest.mark.parametrize("name", NEURAL)
def test_what_loader_processes_are_given_can_be_pickled(name, history):
    give_clients(history)
    made = prepared(name, history)
    source, on_host = pickle.loads(pickle.dumps((made.train_source, made.block.model.on_host)))  # noqa: S301
    rows = np.arange(5)
    one, other = (
        finish(data.batch(rows, np.random.default_rng(7)))
        for data, finish in ((made.train_source, made.block.model.on_host), (source, on_host))
    )
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)
