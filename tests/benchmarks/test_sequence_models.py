"""What is measured of a sequence model's training: every model is known, one is measured."""

import pytest
import torch
from torch import nn

from benchmarks.sequence_models import RECIPES, load, measure, take_step
from ubp.config import composed
from ubp.data import ChallengeData
from ubp.evaluation.tasks import TargetRules, make_targets
from ubp.paths import CONFIGS
from ubp.split import SplitDates, write_split
from ubp.training import LENGTHS, SequenceModel

MODELS = composed(CONFIGS / "scripts", "sequence_models").models


def config_of(model: str, root):
    words = [f"model={model}", f"data_path={root}", "sizes=demo", "steps=1"]
    return composed(CONFIGS / "scripts", "sequence_models", words)


@pytest.mark.parametrize("model", MODELS)
def test_every_model_is_known(model):
    folder, name = model.split("/")
    assert folder in RECIPES
    assert (CONFIGS / folder / f"{name}.yaml").exists()


def test_an_epoch_is_all_clients(history):
    data = ChallengeData(history, submit=True)
    write_split(data, SplitDates.of(data))
    make_targets(data, SplitDates.of(data), TargetRules(), overwrite=False)
    config = config_of("gru_autoencoder/gru_ae_day_event", history.root)
    prepared, _ = load(config)
    figures = measure(config)
    assert figures["events"] == pytest.approx(prepared.taught.lengths.sum(), rel=0.5)  # from two of its batches
    assert min(figures.values()) > 0
    # Each event passes at least the recurrent weights of encoder and decoder: 2 operations forward, 4 back.
    recurrent = sum(weight.numel() for name, weight in prepared.model.named_parameters() if "weight_hh" in name)
    assert figures["operations"] > 6 * recurrent * figures["events"] * 0.9


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
    take_step(model, model.optimizers(0.1), batch, piece=2)
    assert model.level.item() == pytest.approx(0.1)  # Adam's first step is the learning rate
