"""Ablation's command: tables, plot and refusals, on a tiny log; a second run makes nothing again."""

import csv
from unittest.mock import MagicMock

import numpy as np
import pytest

from scripts import ablate
from scripts.split import split
from ubp.blocks.embeddings import EmbeddingTable
from ubp.cli.config import composed
from ubp.data.history import ChallengeData
from ubp.data.paths import CONFIGS
from ubp.data.schema import EventType
from ubp.data.split import SplitDates
from ubp.data.targets import TASKS, TargetRules
from ubp.evaluation import ablation as measuring
from ubp.evaluation.ablation import Change
from ubp.io.errors import UserError

STATISTICS, CATEGORIES, VISITS = "stat_features", "als_64_buy_add_categories", "als_64_visits_relevant"
COLUMNS = {STATISTICS: 3, CATEGORIES: 2, VISITS: 4}
TINY = ["probe.width=8", "probe.hidden=8", "probe.epochs=1", "probe.seeds=[0,1]"]


@pytest.fixture(scope="module")
def split_log(make_history, tmp_path_factory):
    paths = make_history().write(tmp_path_factory.mktemp("ablate") / "shop")
    data = ChallengeData(paths, submit=True)
    split(data, SplitDates.of(data), TargetRules(), overwrite=False)
    return paths


@pytest.fixture
def paths(split_log):
    """The split log and the blocks of `basics`, made of nothing; what a test leaves is removed."""
    for name in COLUMNS:
        make(split_log, name)
    yield split_log
    for file in (split_log.root / "ablations").rglob("*.*"):
        if file.is_file():
            file.unlink()


def make(paths, name):
    data = ChallengeData(paths, submit=False)
    rng = np.random.default_rng(len(name))
    vectors = rng.normal(1, 1, (len(data.clients), COLUMNS[name])).astype(np.float32)
    EmbeddingTable(data.clients, vectors, {"name": name, "fingerprint": data.fingerprint}).write(
        paths.block(name, submit=False)
    )


def run(paths, *words, ensemble="basics"):
    words = [f"data_path={paths.root}", *TINY, "plot=false", *words]
    return ablate.main(composed(CONFIGS / "scripts", "ablate", [f"ensemble={ensemble}", *words]))


def lines(file):
    with file.open(newline="") as text:
        return list(csv.DictReader(text))


@pytest.fixture
def no_scoring(monkeypatch):
    monkeypatch.setattr(measuring, "score_each", MagicMock(side_effect=AssertionError("scored again")))


def test_tables_of_what_was_measured_and_of_the_changes(paths, capsys, monkeypatch):
    found = run(paths, "order=greedy")
    folder = paths.root / "ablations" / "basics"
    assert sorted(file.name for file in folder.iterdir()) == ["changes_quick.csv", "scores_quick.csv"]
    rows, changes = lines(folder / "scores_quick.csv"), lines(folder / "changes_quick.csv")
    assert len(rows) == 2 * 7  # seeds, and every choice of three blocks
    totals = {(row["blocks"], row["seed"]): float(row["total"]) for row in rows}
    assert [(row["kind"], row["block"]) for row in changes] == [(change.kind, change.block) for change in found]
    assert [change.kind for change in found] == ["without"] * 3 + ["alone"] * 3 + ["greedy"] * 3
    whole = "+".join(COLUMNS)
    for row in changes[:3]:
        rest = "+".join(name for name in COLUMNS if name != row["block"])
        by_seed = [totals[rest, seed] - totals[whole, seed] for seed in "01"]
        assert float(row["change"]) == pytest.approx(np.mean(by_seed), abs=1e-5)
        assert float(row["spread"]) == pytest.approx(np.std(by_seed, ddof=1), abs=1e-5)
        assert sum(float(row[task.name]) for task in TASKS) == pytest.approx(float(row["change"]), abs=1e-5)
    for row in changes[3:6]:
        assert float(row["total"]) == pytest.approx(np.mean([totals[row["block"], seed] for seed in "01"]), abs=1e-5)
        assert int(row["columns"]) == COLUMNS[row["block"]] + 1  # the constant
    out = capsys.readouterr().out
    assert all(name in out for name in COLUMNS)
    assert f"{found[0].change:+.4f} ±{found[0].spread:.4f}" in out
    assert out.splitlines()[-1].startswith("basics taken apart · ")

    monkeypatch.setattr(measuring, "score_each", MagicMock(side_effect=AssertionError("scored again")))
    assert run(paths, "order=greedy") == found
    with pytest.raises(AssertionError, match="scored again"):
        run(paths, "order=greedy", "overwrite=True")


def test_a_block_that_is_not_made_is_left_out_with_the_command_that_makes_it(paths, caplog):
    paths.block(CATEGORIES, submit=False).unlink()
    found = run(paths, "leave_out=false")
    assert sorted(change.block for change in found) == sorted([STATISTICS, VISITS])
    (line,) = [message for message in caplog.messages if "left out" in message]
    assert line == (
        f"{CATEGORIES} is left out: {paths.block(CATEGORIES, submit=False)} is not there; make it with: "
        "python ALS/als_embeddings.py --config-name=als_buy_add_categories submit=False"
    )


def test_a_block_that_the_log_has_no_events_for_is_said_to_be_that(make_history, tmp_path, caplog):
    paths = make_history(empty=[EventType.PAGE_VISIT]).write(tmp_path / "data")
    data = ChallengeData(paths, submit=True)
    split(data, SplitDates.of(data), TargetRules(), overwrite=False)
    for name in (STATISTICS, CATEGORIES):
        make(paths, name)
    assert {change.block for change in run(paths, "leave_out=false", "probe.seeds=[0]")} == {STATISTICS, CATEGORIES}
    assert f"{VISITS} is left out: {paths.input} has no events of page_visit" in caplog.messages


@pytest.mark.parametrize("there", [[], [STATISTICS]])
def test_fewer_than_two_blocks(paths, there):
    for name in COLUMNS.keys() - set(there):
        paths.block(name, submit=False).unlink()
    with pytest.raises(UserError) as refused:
        run(paths)
    *missing, last = refused.value.messages
    assert len(missing) == 3 - len(there)
    assert all("make it with: python " in line for line in missing)
    assert last.startswith("ensemble: nothing to leave out where there are fewer than two blocks")


def test_a_block_of_another_history_is_refused(paths):
    EmbeddingTable(np.array([1]), np.ones((1, 2), np.float32), {"fingerprint": "then"}).write(
        paths.block(VISITS, submit=False)
    )
    with pytest.raises(UserError, match="made from another history"):
        run(paths)


def test_the_merge_is_that_of_its_config_and_of_the_overrides(paths, monkeypatch):
    seen = []
    monkeypatch.setattr(ablate, "those_made", lambda settings, _: seen.append(settings) or stop())
    for words in (
        [],
        [f'overrides=["condition.constant=3","~blocks.{VISITS}","blocks.{STATISTICS}.weight=5"]'],
        ["preset=demo"],
    ):
        with pytest.raises(InterruptedError):
            run(paths, *words, ensemble="best_solution_conditioned" if words == ["preset=demo"] else "basics")
    assert (seen[0].condition.constant, list(seen[0].blocks)) == (None, list(COLUMNS))
    assert (seen[1].condition.constant, list(seen[1].blocks)) == (3.0, [STATISTICS, CATEGORIES])
    assert (seen[0].blocks[STATISTICS].weight, seen[1].blocks[STATISTICS].weight) == (2.0, 5.0)
    assert seen[2].blocks["gru_ae_day_event"].scaler == {"_target_": "ubp.blocks.transformers.RootMeanSquare"}


def stop():
    raise InterruptedError


REFUSED = {
    "ensemble=basix": r"ensemble=basix: no such merge \(did you mean basics\?\); known: ",
    'overrides=["conditoin=none"]': r"overrides: .*conditoin",
    "submit=True": "submit=True: must be False",
    "order=best": "order=best: must be greedy or none",
    "steps=0": "steps=0: must be at least 1, or null",
    "base=[lightfm]": "base: lightfm: not among the ensemble's blocks that are there: stat_features, ",
    f"base=[{','.join(COLUMNS)}]": "fewer than all blocks",
    "leave_out=false alone=false": "nothing to measure",
}


@pytest.mark.parametrize("words", REFUSED)
@pytest.mark.usefixtures("no_scoring")
def test_what_makes_no_sense_is_one_line(paths, words):
    with pytest.raises(UserError, match=REFUSED[words]) as refused:
        run(paths, *words.split())
    assert len(refused.value.messages) == 1


def test_no_ensemble_is_one_line_that_names_the_known_ones(paths):
    with pytest.raises(UserError, match=r"ensemble: name a merge: ensemble=NAME; known: basics, best_solution, "):
        ablate.main(composed(CONFIGS / "scripts", "ablate", [f"data_path={paths.root}"]))


# --- the plot -----------------------------------------------------------------------------------------


def change(kind, block, value, spread, price=0.1):
    return Change(kind, block, 2, 7, 2, 4.0, value, spread, -0.2, 0.0, 0.1, 0.1, 0.1, price)


FOUND = {
    "without": [change("without", "a", -0.3, 0.01), change("without", "b", 0.1, 0.02)],
    "alone": [change("alone", "b", -0.4, 0.01)],
}


def test_a_plot_has_a_panel_for_the_sum_with_whiskers_and_one_for_each_task(tmp_path, monkeypatch):
    plt = MagicMock()
    axes = np.empty((2, 7), object)
    for place in np.ndindex(axes.shape):
        axes[place] = MagicMock()
    figure = MagicMock()
    figure.savefig.side_effect = lambda file, **_: file.write_bytes(b"PNG")
    plt.subplots.return_value = figure, axes
    monkeypatch.setattr(ablate, "pyplot", lambda: plt)
    ablate.draw(FOUND, ablate.TITLES, "basics", tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes() == b"PNG"
    assert plt.subplots.call_args.args == (2, 7)
    (whole,) = axes[0, 0].barh.call_args_list
    assert list(whole.args[1]) == [-0.3, 0.1]
    assert list(whole.kwargs["xerr"]) == [0.01, 0.02]
    assert axes[0, 0].set_yticks.call_args.args[1] == ["a", "b"]
    churn = axes[0, 1].barh.call_args
    assert list(churn.args[1]) == [-0.2, -0.2]
    assert "xerr" not in churn.kwargs
    assert len({axis.set_xlim.call_args.args for axis in axes[0, 1:]}) == 1  # tasks on one scale
    assert axes[0, 1].set_xlim.call_args.args[0] < -0.2


def test_a_task_that_is_not_scored_has_no_panel(tmp_path, monkeypatch):
    plt = MagicMock()
    plt.subplots.side_effect = InterruptedError
    monkeypatch.setattr(ablate, "pyplot", lambda: plt)
    with pytest.raises(InterruptedError):
        ablate.draw({"alone": [change("alone", "b", -0.4, None, price=None)]}, ablate.TITLES, "", tmp_path / "x.png")
    assert plt.subplots.call_args.args == (1, 6)


@pytest.mark.full
def test_without_matplotlib_the_tables_are_there_and_a_line_says_what_is_missing(paths, monkeypatch, caplog, capsys):
    def missing():
        raise UserError("matplotlib is missing: pip install it")

    monkeypatch.setattr(ablate, "pyplot", missing)
    run(paths, "alone=false", "plot=true")
    assert "no plot: matplotlib is missing: pip install it" in caplog.messages
    assert capsys.readouterr().out.splitlines()[-1].endswith("changes_quick.csv")
    assert (paths.root / "ablations" / "basics" / "changes_quick.csv").exists()


def test_a_real_plot(tmp_path):
    pytest.importorskip("matplotlib")
    ablate.draw(FOUND, ablate.TITLES, "basics", tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
