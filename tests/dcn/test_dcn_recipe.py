"""What the command does with a history: which inputs it takes, what it learns from, and what it never reads."""

import re
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta

import numpy as np
import pytest

import ubp
from dcn.model import CONTRASTIVE
from dcn.recipe import FittedDcn, Inputs
from tests.conftest import synthetic
from tests.ubp.data.small_logs import HIDDEN, shifted
from ubp.blocks.fitted import FittedBlock, lineage_of, load, save
from ubp.cli.config import composed
from ubp.cli.run import embedding_run
from ubp.data import schema
from ubp.data.history import ChallengeData
from ubp.data.paths import CONFIGS, DataPaths
from ubp.data.schema import EVENT_TYPES, EventType
from ubp.io.errors import UserError

INPUT = "stat_features"  # the fastest block of the registry
WORDS = (
    *("~inputs.numeric_features_wide", f"+inputs.{INPUT}.form=numbers", "logger=none"),
    *("snapshots.count=4", "snapshots.horizon=7", "labels.categories=3", "labels.skus=4", "labels.clusters=2"),
    *("model.network.width=4", "model.network.hidden=[8]", "trainer.max_epochs=1", "trainer.batch_size=64"),
)
DAY = timedelta(days=1)
LISTED = {schema.CATEGORY: [501, 503], schema.SKU: [1007, 1014, 1021]}


def written(log, root) -> DataPaths:
    """The log, its clients and what the open tasks list; the hidden tasks' lists cannot be read."""
    paths = log.write(root)
    paths.relevant_clients.parent.mkdir()
    np.save(paths.relevant_clients, np.unique(log.events[EventType.PRODUCT_BUY][schema.CLIENT_ID].to_numpy()))
    paths.target.mkdir(parents=True)
    for column, values in LISTED.items():
        np.save(paths.target / f"propensity_{column}.npy", np.array(values))
    for name in HIDDEN:
        (paths.target / f"{name}.npy").mkdir()
    return paths


def with_input(history: ChallengeData, note: str = "") -> ChallengeData:
    """The history, and what the input block's command would leave beside it."""
    block = ubp.fit(INPUT, history)
    lineage = {"name": INPUT, "fingerprint": history.fingerprint, "note": note}
    save(block, history.paths.model(INPUT, history.submit), lineage)
    return history


def fitted(history: ChallengeData, *words: str, seed: int = 0) -> FittedDcn:
    block = ubp.fit("dcn", history, *WORDS, *words, seed=seed)
    assert isinstance(block, FittedDcn)
    return block


def one_line(capsys) -> str:
    """What was printed; a table breaks its title where it likes."""
    return " ".join(capsys.readouterr().out.split())


def bits(block: FittedDcn) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in block.state().arrays.items()}


@pytest.fixture(scope="module")
def history(tmp_path_factory) -> ChallengeData:
    paths = written(synthetic(), tmp_path_factory.mktemp("dcn") / "data")
    return with_input(ChallengeData(paths, submit=True))


@pytest.fixture(scope="module")
def block(history) -> FittedDcn:
    return fitted(history)


# --- what it reads ---------------------------------------------------------------------------------------


def test_an_input_that_is_not_there_is_one_line_with_the_command(tmp_path):
    history = ChallengeData(written(synthetic(), tmp_path), submit=True)
    with pytest.raises(UserError) as caught:
        fitted(history)
    (line,) = caught.value.messages
    folder = history.paths.model(INPUT, submit=True)
    assert f"inputs.{INPUT}: no fitted block {folder}" in line
    assert "python stat_features/stat_features.py submit=True" in line
    assert "\n" not in line


def test_an_input_of_another_history_or_day_is_refused(history):
    with pytest.raises(UserError, match=rf"inputs\.{INPUT}: .* was fitted on another history, or as of another day"):
        fitted(history.before(history.as_of - 10 * DAY))


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ((f"inputs.{INPUT}.form=picture",), f"inputs.{INPUT}.form=picture: must be numbers or vector"),
        ((f"+inputs.{INPUT}.size=3",), f"inputs.{INPUT}: .*size.*; known: form, width"),
        ((f"~inputs.{INPUT}",), "inputs={}: must be one block at least"),
        (("+inputs.nothing.form=vector",), "nothing: no such block"),
        (("+model.losses.weights.chrun=2",), "model.losses.weights=chrun: must be some of .*churn"),
        (("+model.losses.weights.churn=-1",), "model.losses.weights.churn=-1.0: must be at least 0"),
        (("model.numbers.form=raw",), "model.numbers.form=raw: must be standardised or quantiles or both"),
        (("model.network.dropout=1",), "model.network.dropout=1.0: must be at least 0 and below 1"),
        (("model.losses.weights.contrastive=1", "model.losses.mask=0"), "model.losses.mask=0.0: must be above 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(words, line, history):
    with pytest.raises(UserError, match=re.sub(r"(?<!\.)([{}])", r"\\\1", line)):
        fitted(history, *words)


def test_the_hidden_tasks_lists_are_not_read_the_open_ones_are(history, block):
    assert all((history.paths.target / f"{name}.npy").is_dir() for name in HIDDEN)
    assert block.model.groups["bought_category"] == len(LISTED[schema.CATEGORY])
    assert block.model.groups["added_sku"] == len(LISTED[schema.SKU])


def test_nothing_at_or_after_the_day_is_read(tmp_path):
    """Two logs that differ from a day on give the same bits: of the inputs, the network and its vectors."""
    log = synthetic()
    first = ChallengeData(written(log, tmp_path / "log"), submit=True)
    day = first.as_of - 12 * DAY
    later = written(shifted(log, day, seed=3), tmp_path / "later")
    np.save(later.relevant_clients, first.relevant_clients)
    histories = [with_input(ChallengeData(paths, submit=True, as_of=day)) for paths in (first.paths, later)]
    assert histories[0].fingerprint != histories[1].fingerprint
    blocks = [fitted(history, "snapshots.count=3", "model.refit=false") for history in histories]
    assert bits(blocks[0]) == bits(blocks[1])
    tables = [block.encode(history) for block, history in zip(blocks, histories, strict=True)]
    assert tables[0].client_ids.tobytes() == tables[1].client_ids.tobytes()
    assert tables[0].vectors.tobytes() == tables[1].vectors.tobytes()


# --- what it learns from ---------------------------------------------------------------------------------


@pytest.mark.full
def test_one_snapshot_is_enough(history, capsys):
    table = fitted(history, "snapshots.count=1").encode(history)
    assert np.isfinite(table.vectors).all()
    assert "held-out rows: clients on days, none of these clients learned from" in one_line(capsys)


@pytest.mark.full
def test_what_it_is_judged_by_is_said(history, capsys):
    fitted(history, "model.refit=false")
    assert "held-out clients, in the newest window" in one_line(capsys)


def test_the_same_seed_gives_the_same_bits_and_another_seed_others(history, block):
    assert bits(fitted(history)) == bits(block)
    assert bits(fitted(history, seed=1)) != bits(block)


@pytest.mark.full
def test_it_is_learned_once_more_from_all_snapshots(history, block):
    once = fitted(history, "model.refit=false")
    shares = [each.model.shares.tolist() for each in (once, block)]
    assert shares[0] != shares[1]  # the second counts the newest window too
    names = bits(block).keys()
    assert {name for name in names if name.startswith("dcn.inputs") and bits(once)[name] != bits(block)[name]}


@pytest.mark.full
def test_with_the_contrastive_loss_it_learns_something_else(history, block):
    other = fitted(history, f"model.losses.weights.{CONTRASTIVE}=1")
    assert np.isfinite(other.encode(history).vectors).all()
    assert bits(other) != bits(block)


@pytest.mark.full
def test_every_form_of_input_trains(history):
    words = ("model.numbers.form=both", "model.network.cross_layers=1", "model.network.head=4", "model.losses.rare=0.5")
    table = fitted(history, *words, "model.refit=false").encode(history)
    assert np.isfinite(table.vectors).all()
    vector = fitted(history, f"inputs.{INPUT}.form=vector", f"+inputs.{INPUT}.width=3", "model.refit=false")
    assert next(iter(vector.model.inputs.values())).width == 3


@pytest.mark.full
def test_a_log_of_purchases_only(tmp_path):
    others = [kind for kind in EVENT_TYPES if kind is not EventType.PRODUCT_BUY]
    paths = written(synthetic(empty=others), tmp_path)
    history = with_input(ChallengeData(paths, submit=True))
    block = fitted(history, f"model.losses.weights.{CONTRASTIVE}=1")
    assert not [name for name in (*block.model.groups, *block.model.asked) if name.startswith("added")]
    assert np.isfinite(block.encode(history).vectors).all()


# --- the fitted block ------------------------------------------------------------------------------------


def test_its_inputs_are_kept_with_it(history, block, tmp_path):
    save(block, tmp_path / "dcn", {"name": "dcn"})
    again = load(tmp_path / "dcn")
    assert list(again.blocks) == [INPUT]
    day = history.as_of - 20 * DAY
    one, other = block.encode(history, as_of=day), again.encode(history, as_of=day)
    assert one.vectors.tobytes() == other.vectors.tobytes()
    assert one.columns == block.model.width == 8  # two networks side by side


@dataclass
class InParts(FittedBlock):
    """Another block, asked for five clients at a time."""

    block: FittedBlock
    asked: list[int] = field(default_factory=list)

    @property
    def at_a_time(self):
        return 5

    def vectors(self, history, clients):
        self.asked.append(len(clients))
        return self.block.vectors(history, clients)

    def state(self):
        raise NotImplementedError

    from_state = None


@pytest.mark.full
def test_inputs_are_encoded_in_parts_with_the_same_bits(history, block):
    """Parts are no batches: the network's are the same."""
    small = replace(block, runtime=replace(block.runtime, batch_size=4))
    parts = InParts(block.blocks[INPUT])
    apart = replace(small, blocks={INPUT: parts})
    clients = history.seen()
    one, other = small.vectors(history, clients), apart.vectors(history, clients)
    assert one[0].tolist() == other[0].tolist() == clients.tolist()
    assert one[1].tobytes() == other[1].tobytes()
    assert set(parts.asked[:-1]) == {5}
    assert len(parts.asked) > 5
    # Beside a block that encodes all clients at once, which is asked once.
    both = Inputs({"parts": parts, "whole": block.blocks[INPUT]}, history, clients)
    for rows in np.split(np.arange(len(clients)), [4, 8, 12]):
        batch = both.batch(rows)
        assert batch["parts"].tolist() == batch["whole"].tolist()
    assert len(vars(both)["_whole"]["whole"]) == len(clients)


def test_an_input_that_was_fitted_anew_makes_it_another_block(history):
    """Its command is not "already done", and what was prepared with the other fit is not taken."""
    config = composed(CONFIGS / "dcn", "dcn", [f"data_path={history.paths.root}", *WORDS, f"submit={history.submit}"])
    folder = history.paths.model(INPUT, history.submit)
    kept, lineage = load(folder), lineage_of(folder)
    runs = []
    try:
        for note in ({}, {"report": {"seconds": 3}}, {"note": "fitted anew"}):
            save(kept, folder, lineage | note)
            with suppress(KeyboardInterrupt), embedding_run(config) as run:
                runs.append(run)
                raise KeyboardInterrupt  # as if it were stopped: nothing is written
    finally:
        save(kept, folder, lineage)
    assert runs[0].lineage == runs[1].lineage != runs[2].lineage
    assert runs[0].folder == runs[1].folder != runs[2].folder
