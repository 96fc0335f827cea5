"""What a neural recipe reports of its model."""

from dataclasses import dataclass
from typing import Any

import pytest

from tests.ubp.training.toy import Copier, Numbers, settings
from ubp.cli.neural import NeuralRecipe, Prepared
from ubp.training.encode import Runtime
from ubp.training.fitted import FittedSequenceModel
from ubp.training.ranking import MODEL, POPULAR


class Ranked(Copier):
    headline = "mrr@10"


@dataclass(frozen=True)
class Block(FittedSequenceModel):
    def source(self, history, clients):  # noqa: ARG002
        return Numbers()

    def settings(self):
        return {}

    def tables(self):
        return {}

    @classmethod
    def make(cls, settings, tables, runtime):  # noqa: ARG003
        return cls(Copier(), runtime)


@dataclass(frozen=True)
class Toy(NeuralRecipe):
    model: Any
    scores: dict[str, dict[str, float]]

    def prepare(self, history, seed):  # noqa: ARG002
        return Prepared(Block(self.model, Runtime(8)), Numbers(), lambda _: self.scores)


@pytest.mark.parametrize(
    ("model", "own", "warnings"),
    [
        (Ranked, 0.6069, ["BELOW POPULARITY: mrr@10 0.607 against 0.611"]),
        (Ranked, 0.62, []),
        (Copier, 0.6069, []),  # claims no ranking
    ],
)
def test_a_model_below_popularity_on_held_out_clients_has_a_warning(model, own, warnings, tmp_path):
    scores = {"mrr@10": {MODEL: own, POPULAR: 0.6111}, "ndcg@10": {MODEL: 0.0, POPULAR: 1.0}}
    recipe = Toy("toy", settings(max_epochs=1), {}, model(), scores)
    report = recipe.fit(None, 1, tmp_path).report
    assert report["warnings"] == warnings
    assert report["mrr@10"] == scores["mrr@10"]
    assert report["epochs"] == 1
