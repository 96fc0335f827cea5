"""What the command keeps of the answers of other blocks, whose own tests say what these know."""

from dataclasses import dataclass

import numpy as np
import pytest

import ubp
from stacker.recipe import FittedStacker, StackerRecipe, StackerSettings, answering, mean_answers
from tests.conftest import synthetic
from tests.dcn.test_dcn_recipe import WORDS, with_input, written
from ubp.blocks.fitted import Clients, State, Vectors, load, save
from ubp.data.history import ChallengeData
from ubp.io.errors import NoUsableEvents, UserError
from ubp.training.answers import AnsweringBlock

SETTINGS = StackerSettings({"churn": 2.0}, ["bought_category", "bought_sku"], 3, 0.0)


@dataclass(frozen=True)
class Said(AnsweringBlock):
    """A block that answers by heart, about the first clients; categories come in threes."""

    churn: np.ndarray
    categories: np.ndarray

    @property
    def asked(self) -> tuple[str, ...]:
        return ("churn", "bought_category")

    def vectors(self, history, clients) -> tuple[Clients, Vectors]:
        raise NotImplementedError

    def answers(self, history, clients, names) -> tuple[Clients, Vectors]:  # noqa: ARG002
        parts = {"churn": self.churn[:, None], "bought_category": self.categories}
        found = np.concatenate([parts[name] for name in names], axis=1).astype(np.float32)
        own = clients[: len(found)]
        return own, found[: len(own)]

    def state(self) -> State:
        raise NotImplementedError

    @classmethod
    def from_state(cls, state):
        raise NotImplementedError


@pytest.fixture(scope="module")
def history(tmp_path_factory) -> ChallengeData:
    paths = written(synthetic(), tmp_path_factory.mktemp("stacker") / "data")
    history = with_input(ChallengeData(paths, submit=True))
    block = ubp.fit("dcn", history, *WORDS)
    save(block, history.paths.model("dcn", history.submit), {"name": "dcn", "fingerprint": history.fingerprint})
    return history


@pytest.fixture(scope="module")
def block(history) -> FittedStacker:
    block = ubp.fit("stacker", history, "~inputs.sequential_encoder")
    assert isinstance(block, FittedStacker)
    return block


def said(clients: int, seed: int = 0) -> Said:
    random = np.random.default_rng(seed)
    return Said(random.normal(size=clients), random.normal(size=(clients, 3)))


def given(monkeypatch, **blocks: AnsweringBlock) -> None:
    monkeypatch.setattr("stacker.recipe.fitted_inputs", lambda _, names: {name: blocks[name] for name in names})
    monkeypatch.setattr("stacker.recipe.registered", lambda name: name)


def test_the_columns_are_the_answer_and_directions_of_one_length(history, block):
    table = block.encode(history, history.relevant_clients)
    assert block.names[0] == "churn"
    assert list(block.descriptions()) == list(block.names)
    centred = table.vectors - table.vectors.mean(axis=0)
    expected = np.diag([4.0, *np.ones(len(block.names) - 1)])
    np.testing.assert_allclose(centred.T @ centred / len(centred), expected, atol=2e-3)


def test_the_first_column_is_what_the_network_answers(history, block):
    table = block.encode(history, history.relevant_clients)
    _, answers = block.blocks["dcn"].answers(history, table.client_ids, ("churn",))
    wanted = (answers[:, 0] - answers.mean()) / answers.std()
    np.testing.assert_allclose(table.vectors[:, 0], 2 * wanted, atol=1e-3)


def test_a_kept_block_encodes_the_same_bits(history, block, tmp_path):
    save(block, tmp_path / "stacker", {"name": "stacker"})
    before, after = (some.encode(history) for some in (block, load(tmp_path / "stacker")))
    np.testing.assert_array_equal(before.vectors, after.vectors)
    np.testing.assert_array_equal(before.client_ids, after.client_ids)


def test_no_clients_no_rows(history, block):
    ids, vectors = block.vectors(history, np.empty(0, np.int64))
    assert (ids.shape, vectors.shape) == ((0,), (0, len(block.names)))


def test_answers_are_means_by_weight_over_clients_that_all_know():
    blocks = {"one": said(5), "other": said(3, seed=1)}
    weights = {"one": 3.0, "other": 1.0}
    ids, answers = mean_answers(blocks, weights, ("churn",), None, np.arange(10, 16))
    assert list(ids) == [10, 11, 12]
    wanted = 0.75 * blocks["one"].churn[:3] + 0.25 * blocks["other"].churn
    np.testing.assert_allclose(answers[:, 0], wanted, rtol=1e-5)


def test_blocks_that_answer_about_other_numbers_of_labels_are_refused():
    other = said(5)
    blocks = {"one": said(5), "other": Said(other.churn, other.categories[:, :2])}
    with pytest.raises(UserError, match=r"inputs: different numbers of answers: one 4, other 3; fit them with"):
        mean_answers(blocks, {"one": 1.0, "other": 1.0}, ("churn", "bought_category"), None, np.arange(5))


def test_what_not_every_input_answers_is_said_and_left_out(history, monkeypatch, caplog, tmp_path):
    given(monkeypatch, heart=said(10**6))
    with caplog.at_level("INFO"):
        fit = StackerRecipe({"heart": 1.0}, SETTINGS).fit(history, 0, tmp_path)
    assert "not answered by every input: bought_sku" in caplog.text
    assert fit.block.asked == ("churn", "bought_category")


def test_an_answer_that_is_the_same_for_all_has_no_column(history, monkeypatch, tmp_path):
    block = said(10**4)
    given(monkeypatch, heart=Said(np.ones(10**4), block.categories))
    fit = StackerRecipe({"heart": 1.0}, SETTINGS).fit(history, 0, tmp_path)
    assert fit.block.names == ("direction_00", "direction_01", "direction_02")


@pytest.mark.parametrize(
    ("clients", "line"), [(0, "no client that the inputs answer about"), (10**4, "answer the same about every client")]
)
def test_without_anything_to_tell_apart_the_block_is_to_be_left_out(clients, line, history, monkeypatch, tmp_path):
    given(monkeypatch, heart=Said(np.ones(clients), np.ones((clients, 3))))
    with pytest.raises(NoUsableEvents, match=rf"{line}; leave the block out"):
        StackerRecipe({"heart": 1.0}, SETTINGS).fit(history, 0, tmp_path)


def test_a_block_that_gives_no_answers_is_named(history):
    with pytest.raises(UserError, match=r"inputs: stat_features give no answers .* such as dcn"):
        answering({"stat_features": ubp.fit("stat_features", history)})


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("~inputs.dcn", "~inputs.sequential_encoder"), r"inputs=\{\}: must be one block at least"),
        (("inputs.dcn=0",), "inputs.dcn=0: must be above 0"),
        (("+inputs.nothing=1",), "nothing: no such block"),
        (("+model.questions.chrun=1",), "model.questions=chrun: must be some of churn"),
        (("model.questions.churn=0",), "model.questions.churn=0.0: must be above 0"),
        (("model.groups=[colour]",), "model.groups=colour: must be some of bought_category"),
        (("model.least=1",), "model.least=1.0: must be at least 0 and below 1"),
        (("model.directions=-1",), "model.directions=-1: must be at least 0"),
        (("~model.questions.churn", "model.directions=0"), r"model.questions=\{\}: must be one question at least"),
    ],
)
def test_settings_that_make_no_sense_are_refused(words, line, history):
    with pytest.raises(UserError, match=line):
        ubp.fit("stacker", history, *words)
