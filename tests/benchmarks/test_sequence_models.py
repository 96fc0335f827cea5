"""What is measured of a sequence model's training: every model is known, one is measured."""

from dataclasses import asdict

import pytest
import torch
from torch import nn

from benchmarks.sequence_models import measure
from benchmarks.steps import load, operations_counter, recipe_of, take_step
from gru_autoencoder.gru import StackedGru
from ubp.cli.config import composed
from ubp.data.history import ChallengeData
from ubp.data.paths import CONFIGS
from ubp.data.split import SplitDates, write_split
from ubp.data.targets import TargetRules, make_targets
from ubp.io.errors import UserError
from ubp.training.model import LENGTHS, SequenceModel, in_micro_batches
from ubp.training.nn import linear_cross_entropy
from ubp.training.settings import TrainerSettings

MODELS = composed(CONFIGS / "scripts", "sequence_models").models


def config_of(model: str, root):
    words = [f"model={model}", f"data_path={root}", "sizes=demo", "steps=1"]
    return composed(CONFIGS / "scripts", "sequence_models", words)


@pytest.mark.parametrize("model", MODELS)
def test_every_model_is_known(model):
    assert recipe_of(model, ["preset=demo"]).logger == {}


@pytest.mark.parametrize("model", ["stat_features/stat_features", "next_sku/next_skus"])
def test_what_is_no_model_is_refused(model):
    with pytest.raises(UserError, match=f"^model={model}: no block that trains a model"):
        recipe_of(model)


@pytest.mark.full
def test_an_epoch_is_all_clients(history):
    data = ChallengeData(history, submit=True)
    write_split(data, SplitDates.of(data))
    make_targets(data, SplitDates.of(data), TargetRules(), overwrite=False)
    config = config_of("gru_autoencoder/gru_ae_day_event", history.root)
    first = load(config.model, ChallengeData(history, submit=False), history.cache, ["preset=demo"])
    figures = measure(config)
    assert figures["events"] == first.source.lengths.sum()
    assert min(figures.values()) > 0


@pytest.mark.parametrize("model", ["gru_autoencoder/gru_ae_day_event", "sequential_encoder/sequential_encoder"])
def test_without_dropout_nothing_is_drawn_away(model):
    def shares(settings) -> list[float]:
        own = [value for name, value in settings.items() if "dropout" in name]
        return own + [share for value in settings.values() if isinstance(value, dict) for share in shares(value)]

    assert any(shares(asdict(recipe_of(model))))
    assert not any(shares(asdict(recipe_of(model, dropout=False))))


def test_all_products_of_a_step_are_counted():
    """Each step in time passes every weight: 2 operations forward, 4 back, 2 for the input if it needs no gradient."""
    x, gru, classes = torch.randn(5, 3, 8), StackedGru(8, 4, 1, 0.0), torch.randint(6, (15, 1))
    head = nn.Linear(4, 6)
    with operations_counter() as counter:
        linear_cross_entropy(gru(x)[0].reshape(15, 4), head, classes, [6]).backward()
    passed = 15 * (4 * 3 * 4 * 8 + 6 * 3 * 4 * 4 + 6 * 6 * 4)
    assert counter.get_total_flops() == passed
    q = torch.randn(2, 1, 4, 8, requires_grad=True)
    with operations_counter() as counter:
        nn.functional.scaled_dot_product_attention(q, q, q, is_causal=True).sum().backward()
    assert counter.get_total_flops() > 0


def test_a_step_moves_the_weights():
    class Mean(SequenceModel):
        def __init__(self) -> None:
            super().__init__()
            self.level, self.width = nn.Parameter(torch.zeros(())), 1

        def loss(self, batch):
            return ((batch["values"] - self.level) ** 2).mean()

        def encode(self, batch):
            return batch["values"][:, :1]

    model = Mean()
    batch = {"values": torch.ones(5, 2), LENGTHS: torch.full((5,), 2)}
    trainer = TrainerSettings(max_epochs=1, patience=1, batch_size=5)
    take_step(model, model.optimizers(0.1), in_micro_batches(batch, 2, model.on_host), trainer)
    assert model.level.item() == pytest.approx(0.1)  # Adam's first step is the learning rate
