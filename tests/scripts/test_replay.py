"""The replay's command: what is tried, what is run, what is refused; and once all of it, on a tiny log."""

import csv
import shutil
from datetime import datetime
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from scripts import replay as module
from scripts.replay import Replay, Tried, commands_of, other_name
from scripts.split import split
from ubp.cli.config import composed
from ubp.cli.ensembles import merge_named
from ubp.data import schema
from ubp.data.history import ChallengeData
from ubp.data.paths import CONFIGS, DataPaths
from ubp.data.schema import EVENT_TYPES
from ubp.data.split import SplitDates
from ubp.data.targets import TargetRules
from ubp.io.errors import UserError

WORDS = ("submit=False", "preset=demo", "seed=0")
TINY = ["probe.width=8", "probe.hidden=8", "probe.epochs=1", "probe.seeds=[0,1]"]


def replay_of(name, tried, root="past"):
    merge = ("preset=demo", "seed=0")
    return Replay(name, merge, merge_named(name, merge), DataPaths(Path(root)), tried, WORDS)


def test_each_setting_is_tried_that_the_ensemble_does_not_have_already():
    tried = Tried([1.0, 1.5], [0.5, 1.0], {"stacker": {"model.directions": [2, 6]}, "dcn": {}, "lightfm": {"a": [1]}})
    replay = replay_of("combined", tried)
    assert replay.of_merge() == [
        ("condition.constant=1.5",),
        ("blocks.stacker.weight=0.5",),
        ("blocks.dcn.weight=0.075",),
        ("blocks.sequential_encoder.weight=0.05",),
    ]
    assert replay.of_blocks == {("stacker: model.directions=2",): ("stacker", "model.directions=2")}


def test_an_ensemble_that_is_not_conditioned_has_neither_constant_nor_weights():
    assert replay_of("best_solution", Tried([1.0], [0.5])).of_merge() == []


def test_settings_become_overrides_of_the_merge_and_another_blocks_file():
    replay = replay_of("combined", Tried([1.5], [], {"stacker": {"model.directions": [2]}}))
    other = other_name("stacker", "model.directions=2")
    assert replay.overrides(("condition.constant=1.5", "stacker: model.directions=2")) == [
        "++condition.constant=1.5",
        f'++blocks.stacker.path="past/embeddings_local/{other}.parquet"',
    ]
    merge = merge_named("combined", replay.overrides(("blocks.dcn.weight=0.5",)))
    assert merge.blocks["dcn"].weight == 0.5
    spaced = merge_named(
        "combined", replay_of("combined", replay.tried, "a past").overrides(("stacker: model.directions=2",))
    )
    assert spaced.blocks["stacker"].path == f"a past/embeddings_local/{other}.parquet"


def test_the_commands_make_blocks_and_then_the_merge_on_the_history_that_was_asked_for():
    replay = replay_of("combined", Tried([1.5], [], {"stacker": {"model.directions": [2]}}, {"stacker": ["seed=3"]}))
    block, merge = commands_of(replay, ("condition.constant=1.5", "stacker: model.directions=2"), submit=True)
    assert block[:2] == ["python", "stacker/stack_embeddings.py"]
    assert {"submit=True", "preset=demo", "model.directions=2", "seed=3"} <= set(block)
    assert merge[:3] == ["python", "scripts/merge.py", "--config-name=combined"]
    assert {"submit=True", "preset=demo", "++condition.constant=1.5"} <= set(merge)
    assert not any("submit=False" in word or "path" in word for word in [*block, *merge])


@pytest.fixture
def split_history(history):
    data = ChallengeData(history, submit=True)
    split(data, SplitDates.of(data), TargetRules(), overwrite=False)
    return history


def run(paths, *words):
    words = [f"data_path={paths.root}", "ensemble=basics", *TINY, "submit=False", *words]
    return module.main(composed(CONFIGS / "scripts", "replay", words))


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["ensemble=bascis"], r"no such merge \(did you mean basics\?\)"),
        (["probe.seeds=[1]"], "two at least, to tell gain from luck"),
        (["weights=[0]"], "must be above 0"),
        (["errors=-1"], "errors=-1"),
        (["least=-1"], "least=-1"),
        (["overrides=['+blocks.mine={}']"], "mine: no command here makes it"),
        (["++blocks={stakcer: {model.directions: [2]}}"], "stakcer: no such block; known: "),
        (["block_overrides={stakcer: []}"], "stakcer: no such block; known: "),
    ],
)
def test_refusals_before_anything_is_made(split_history, words, line):
    with pytest.raises(UserError, match=line):
        run(split_history, *words)
    assert not (split_history.cache / "replays").exists()


def test_an_ensemble_whose_blocks_are_not_there_is_refused_before_the_long_work(split_history):
    with pytest.raises(UserError, match=r"(?s)no such block \(stat_features\).*choose without making.*make=False"):
        run(split_history)
    assert not (split_history.cache / "replays").exists()


def test_a_history_too_short_for_windows_of_its_own_is_refused_in_a_line(split_history, capfd):
    for event_type in EVENT_TYPES:
        file = split_history.input / event_type.file_name
        table = pl.read_parquet(file)
        table.filter(pl.col(schema.TIMESTAMP) >= datetime(2022, 12, 28)).write_parquet(file)
    with pytest.raises(UserError, match=r"split\.py: failed with exit code 1, see above"):
        run(split_history, "make=False")
    assert "leave no history before the train window" in capfd.readouterr().err


@pytest.mark.full
def test_blocks_of_the_past_are_merged_scored_and_the_choice_is_made(split_history, capfd):
    words = ["constants=[2.0]", "weights=[1.0]", "errors=0", "least=0"]
    found = run(split_history, *words, "make=False")
    (past,) = (split_history.cache / "replays").iterdir()
    history = ChallengeData(split_history, submit=False)
    paths = DataPaths(past)
    # Nothing at or after the history's end, and both windows inside it.
    for event_type in history.event_types:
        raw = pl.read_parquet(paths.raw / event_type.file_name)
        assert len(raw) == history.rows(event_type)
        assert raw[schema.TIMESTAMP].max() < history.as_of
    assert len(np.load(paths.relevant_clients)) == len(history.clients)
    (change,) = found
    assert (change.kind, change.block, change.blocks, change.seeds) == ("set", "condition.constant=2", 3, 2)
    with (split_history.ablations("basics") / "replay_half.csv").open(newline="") as file:
        assert [line["block"] for line in csv.DictReader(file)] == ["condition.constant=2"]
    said = capfd.readouterr().out
    taken, command, closing = said.splitlines()[-3:]
    assert taken == ("taken: condition.constant=2" if change.change > 0 else taken)
    assert command.startswith("$ python scripts/merge.py --config-name=basics missing=skip submit=False")
    assert ("++condition.constant=2" in command) == (change.change > 0)
    assert closing.startswith("basics replayed · ")
    assert not (split_history.embeddings(submit=False)).exists()  # make=False
    shutil.rmtree(paths.target)  # the scores are there, so nothing of it is read again but by the split
    assert run(split_history, *words, "make=False") == found
