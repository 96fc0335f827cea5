"""What the command does with a history: whose content encoder it takes, what it keeps apart, what it never reads."""

from datetime import timedelta

import numpy as np
import polars as pl
import pytest
import torch

import ubp
from tests.conftest import synthetic
from tests.twhin.graphs import graph
from twhin.recipe import FittedTwhin, parts_of
from twhin.report import ALS, AUROC, BOTH, HIT_RATE, below_popularity, beside, best_weight, ranked
from ubp.blocks.embeddings import EmbeddingTable
from ubp.blocks.fitted import FittedBlock, save
from ubp.data import schema
from ubp.data.history import ChallengeData
from ubp.data.schema import EventType
from ubp.io.errors import NoUsableEvents, UserError
from ubp.training.content import ContentEncoder
from ubp.training.settings import TrainerSettings

BUY, ADD = EventType.PRODUCT_BUY, EventType.ADD_TO_CART
ALONE = "~inputs.sequential_encoder"
WORDS = (
    *("logger=none", "content.width=8", "content.rows=64", "content.id_width=4", "content.token_width=4"),
    *("model.width=6", "fold_in.negatives=64", "trainer.max_epochs=1", "trainer.batch_size=64", "report.als_factors=4"),
)
DAY = timedelta(days=1)
RNG = np.random.default_rng(0)


def opened(log, root) -> ChallengeData:
    paths = log.write(root)
    paths.relevant_clients.parent.mkdir()
    np.save(paths.relevant_clients, np.unique(log.events[BUY][schema.CLIENT_ID].to_numpy()))
    return ChallengeData(paths, submit=True)


def fitted(history: ChallengeData, *words: str, seed: int = 0) -> FittedTwhin:
    block = ubp.fit("twhin", history, *WORDS, *words, seed=seed)
    assert isinstance(block, FittedTwhin)
    return block


@pytest.fixture(scope="module")
def history(tmp_path_factory) -> ChallengeData:
    return opened(synthetic(), tmp_path_factory.mktemp("twhin") / "data")


@pytest.fixture(scope="module")
def block(history) -> FittedTwhin:
    return fitted(history, ALONE)


# --- whose content encoder -------------------------------------------------------------------------------


def test_an_encoder_that_is_not_there_is_one_line_with_the_command(history):
    with pytest.raises(UserError) as caught:
        fitted(history)
    (line,) = caught.value.messages
    folder = history.paths.model("sequential_encoder", history.submit)
    assert f"inputs.sequential_encoder: no fitted block {folder}" in line
    assert "python sequential_encoder/sequential_encoder_embeddings.py submit=True" in line


class Encoder(FittedBlock):
    """Stands for a fitted sequential encoder: what twhin reads of it is its content encoder."""

    def __init__(self, content: ContentEncoder) -> None:
        self.content = content

    def state(self):
        raise NotImplementedError

    @classmethod
    def from_state(cls, state):
        raise NotImplementedError

    def vectors(self, history, clients):
        raise NotImplementedError


@pytest.mark.parametrize("frozen", [True, pytest.param(False, marks=pytest.mark.full)])
def test_the_encoder_of_the_input_is_taken_and_only_trained_unless_frozen(history, block, frozen, monkeypatch):
    given = Encoder(block.items.encoder)
    before = {name: weight.clone() for name, weight in given.content.state_dict().items()}
    monkeypatch.setattr("twhin.recipe.fitted_inputs", lambda history, names: dict.fromkeys(names, given))  # noqa: ARG005
    made = fitted(history, f"inputs.sequential_encoder.frozen={frozen}")
    same = [torch.equal(weight, before[name]) for name, weight in made.items.encoder.state_dict().items()]
    assert all(same) == frozen
    assert all(torch.equal(weight, before[name]) for name, weight in given.content.state_dict().items())
    assert made.encode(history).vectors.tobytes() != block.encode(history).vectors.tobytes()


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("+inputs.stat_features={}",), "inputs.stat_features"),
        (("inputs.sequential_encoder.frozen=3",), "inputs.sequential_encoder"),
        (("+inputs.sequential_encoder.cold=true",), "inputs.sequential_encoder"),
        ((ALONE, "trainer.micro_batch=8"), "trainer.micro_batch"),
    ],
)
def test_what_does_not_fit_together_is_refused(history, words, line):
    with pytest.raises(UserError, match=line):
        fitted(history, *words)


# --- what is learned from --------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_bits_and_another_one_others(history, block):
    def bits(made: FittedTwhin) -> dict[str, bytes]:
        return {name: array.tobytes() for name, array in made.state().arrays.items()}

    assert bits(fitted(history, ALONE)) == bits(block)
    assert bits(fitted(history, ALONE, seed=1)) != bits(block)


def test_a_log_without_edges_says_what_it_lacks(tmp_path):
    log = synthetic(empty=[ADD])
    history = opened(log, tmp_path)
    with pytest.raises(NoUsableEvents, match="add_to_cart"):
        fitted(history, ALONE, "edges.types=[add_to_cart]")


def test_edges_of_one_client_and_item_are_kept_apart_together():
    rng = np.random.default_rng(0)
    edges = {(int(client), int(item), int(kind)) for client, item, kind in rng.integers(0, (20, 30, 2), (600, 3))}
    whole = graph(sorted(edges), 20, 30)
    parts = parts_of(whole, TrainerSettings(1, 1, 8, held_out=0.2, validation=0.2), seed=0)
    chosen = [parts.train, parts.validation, parts.held_out]
    assert np.sort(np.concatenate(chosen)).tolist() == list(range(len(whole)))
    pairs = [set(zip(whole.rows[part].tolist(), whole.columns[part].tolist(), strict=True)) for part in chosen]
    assert len(set.union(*pairs)) == sum(map(len, pairs))
    assert all(pairs)


# --- what it encodes -------------------------------------------------------------------------------------


def with_an_edge(history: ChallengeData) -> np.ndarray:
    tables = [history.events(kind).select(schema.CLIENT_ID) for kind in (BUY, ADD)]
    return pl.concat(tables).unique().sort(schema.CLIENT_ID).collect()[schema.CLIENT_ID].to_numpy()


def test_clients_without_an_edge_are_missing(history, block):
    assert len(history.seen()) > len(with_an_edge(history))  # one has searches only, one a visit
    assert block.encode(history).client_ids.tolist() == with_an_edge(history).tolist()


def test_an_earlier_day_reads_nothing_after_it(block, history, tmp_path):
    """The same bits as from a log that ends there, also for clients that were trained on with later edges."""
    day = history.as_of - 25 * DAY
    log = synthetic()
    for kind, table in log.events.items():
        log.events[kind] = table.filter(pl.col(schema.TIMESTAMP) < day)
    ended, earlier = opened(log, tmp_path / "data"), history.before(day)
    one, other = block.encode(ended, as_of=day), block.encode(earlier)
    assert one.client_ids.tolist() == other.client_ids.tolist() == with_an_edge(earlier).tolist()
    assert one.vectors.tobytes() == other.vectors.tobytes()


def test_a_new_item_is_known_by_its_content(block, tmp_path):
    """A client whose only edge is to a sku that the fit never saw has a vector."""
    log = synthetic()
    new = log.properties.head(1).with_columns(sku=pl.lit(5, pl.Int64))
    log.properties = pl.concat([log.properties, new.select(log.properties.columns)])
    edge = log.events[BUY].head(1).with_columns(client_id=pl.lit(77_777, pl.Int64), sku=pl.lit(5, pl.Int64))
    log.events[BUY] = pl.concat([log.events[BUY], edge])
    found = block.encode(opened(log, tmp_path / "data"), [77_777])
    assert len(found) == 1
    assert np.abs(found.vectors).max() > 0


def test_saved_and_loaded_it_gives_the_same_bits(history, block, tmp_path):
    save(block, tmp_path / "block", {"name": "twhin"})
    again: EmbeddingTable = ubp.load(tmp_path / "block").encode(history)
    assert again.vectors.tobytes() == block.encode(history).vectors.tobytes()


# --- the report ------------------------------------------------------------------------------------------


def test_ranks_leave_out_known_items_and_count_ties_as_halves():
    known = graph([(0, 0, 0), (0, 1, 0), (1, 2, 0)], 2, 6)
    held_out = graph([(0, 2, 0), (1, 0, 0)], 2, 6)
    scores = np.array([[9, 9, 5, 5, 7, 1], [3, 3, 9, 1, 2, 0]], np.float32)
    shares, hits = ranked(lambda rows, relation: scores[rows], known, held_out, 0)  # noqa: ARG005
    # Of the first one's candidates 3, 4 and 5 one scores less, one the same; of the second's 1, 3, 4 and 5 three less.
    np.testing.assert_allclose(shares, [(1 + 0.5) / 3, (3 + 0.5) / 4])
    assert hits.all()  # there are fewer than ten


def test_the_weight_beside_popularity_is_chosen_by_the_validation():
    """A model that knows the edges gets all of it, one that ranks them last none."""
    known = graph([(0, 0, 0), (1, 1, 0), (2, 1, 0)], 3, 6)
    apart = graph([(0, 2, 0), (1, 4, 0), (2, 5, 0)], 3, 6)
    right = np.zeros((3, 6), np.float32)
    right[[0, 1, 2], [2, 4, 5]] = 1

    def popularity(rows, relation):  # noqa: ARG001
        return np.repeat(np.log([[9, 8, 4, 3, 2, 1]]).astype(np.float32), len(rows), axis=0)

    for sign, wanted in ((3, 1.0), (-9, 0.0)):

        def model(rows, relation, sign=sign):  # noqa: ARG001
            return sign * right[rows]

        found = best_weight(model, popularity, known, apart, 10, RNG)
        assert found == wanted
        scores = beside(model, popularity, found)(np.arange(3), 0)
        np.testing.assert_allclose(scores, found * sign * right + popularity(np.arange(3), 0))


def test_a_model_that_adds_nothing_to_popularity_is_named():
    scores = {"a": {BOTH: 0.8, "popularity": 0.7}, "b": {BOTH: 0.6, "popularity": 0.71}}
    assert below_popularity(scores) == ["BELOW POPULARITY: b auroc 0.600 against 0.710"]


def test_the_report_has_each_edge_type_beside_popularity_and_als(history, tmp_path):
    from twhin.recipe import TwhinRecipe
    from ubp.cli.config import composed
    from ubp.data.paths import CONFIGS

    words = [f"data_path={history.paths.root}", ALONE, *WORDS, "trainer.held_out=0.2", "model.client_vectors=learned"]
    made = TwhinRecipe.of(composed(CONFIGS / "twhin", "twhin", words)).fit(history, 0, tmp_path)
    for metric in (AUROC, HIT_RATE):
        for name in (BUY, ADD):
            scores = made.report[metric][name]
            assert {"model", "popularity", ALS} <= scores.keys()
            assert all(0 <= value <= 1 for value in scores.values())
    assert -1 <= made.report["fold_in_cosine"] <= 1
