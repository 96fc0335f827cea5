"""The benchmark of the standings: scores by the judge's metrics, rows by log, a figure of all of them."""

from unittest.mock import MagicMock

import numpy as np
import pytest

from benchmarks import standings
from benchmarks.standings import CHANCE, SUM, TREES, Row, auroc_cells, chance, measured, rows_of, score_cells, several
from scripts.split import split
from ubp.blocks.embeddings import EmbeddingTable
from ubp.cli.config import composed
from ubp.data.history import ChallengeData
from ubp.data.paths import CONFIGS
from ubp.data.split import SplitDates
from ubp.data.targets import TASKS, TargetRules
from ubp.evaluation.probes import Probe
from ubp.evaluation.scores import Scores
from ubp.evaluation.tasks import GroundTruth
from ubp.io.errors import UserError
from ubp.io.rows import read_rows

TINY = [
    *("probe.width=8", "probe.hidden=8", "probe.epochs=1", "seeds=[0,1]"),
    *("trees.days=1", "trees.rounds=2", "trees.pairs=500", "trees.least_rows=5", "trees.least_history=7"),
]


@pytest.fixture(scope="module")
def paths(make_history, tmp_path_factory):
    paths = make_history().write(tmp_path_factory.mktemp("standings") / "shop")
    data = ChallengeData(paths, submit=True)
    split(data, SplitDates.of(data), TargetRules(per_task=20), overwrite=False)
    data = ChallengeData(paths, submit=False)
    vectors = np.random.default_rng(0).normal(size=(len(data.clients), 3)).astype(np.float32)
    table = EmbeddingTable(data.clients, vectors, {"name": "dcn", "fingerprint": data.fingerprint})
    table.write(paths.block("dcn", submit=False))
    return paths


@pytest.fixture(scope="module")
def data(paths):
    return ChallengeData(paths, submit=False)


@pytest.fixture(scope="module")
def truth(paths):
    return GroundTruth.load(paths)


def test_what_comes_is_predicted_without_fault_and_its_opposite_wholly_wrong(data, truth):
    for task in TASKS:
        label = truth.labels(task, data.clients)[1].astype(float)
        varied = np.ptp(label, axis=0) > 0
        assert measured(task, label, data, truth).auroc == pytest.approx(varied.mean())
        assert measured(task, 1 - label, data, truth).auroc == pytest.approx(0)


def test_chance_knows_nothing_of_a_client(data, truth):
    found = chance(data, truth)
    assert found.columns == 0
    for task in TASKS:
        label = truth.labels(task, data.clients)[1]
        varied = np.ptp(label, axis=0) > 0  # a label without buyers counts as 0
        assert found.details[task.name][0]["auroc"] == pytest.approx(0.5 * varied.mean())
        alike = np.full((len(data.clients), label.shape[1]), 0.1)
        assert measured(task, alike, data, truth).auroc == pytest.approx(0.5 * varied.mean(), abs=0.01)


def test_a_row_is_a_tasks_mean_and_the_last_one_their_sum():
    runs = [
        {"seed": seed, "auroc": auroc, "novelty": 0.5, "diversity": 0.75, "score": auroc / 2}
        for seed, auroc in ((1, 0.75), (2, 0.25))
    ]
    plain = [run | {"novelty": None, "diversity": None} for run in runs]
    scores = Scores("dcn", 128, "quick", {}, 0.5, 0.02, {"churn": plain, "propensity_sku": runs})
    churn, sku, whole = rows_of("demo", 9, scores)
    assert (churn.score, churn.auroc, churn.novelty, churn.seeds) == (0.25, 0.5, None, 2)
    assert churn.spread == pytest.approx(0.1768)
    assert (sku.task, sku.novelty, sku.diversity, sku.columns) == ("propensity_sku", 0.5, 0.75, 128)
    assert (whole.task, whole.score, whole.spread, whole.auroc) == (SUM, 0.5, 0.02, 0.5)
    assert score_cells([churn, sku, whole]) == [
        ["demo", "dcn", "128", "0.2500", "–", "–", "0.2500", "–", "–", "0.5000 ±0.0200"]
    ]
    assert auroc_cells([churn, sku, whole]) == [["demo", "dcn", "0.5000", "–", "–", "0.5000", "–", "–", "0.5000"]]


def test_other_seeds_have_scores_of_their_own():
    probe = Probe(name="quick", seeds=(1278, 1))
    assert several(probe, [1278, 1]) is probe
    assert several(probe, [1, 2, 3]).name == "quick_3_seeds"
    assert several(probe, [1, 2, 3]).seeds == (1, 2, 3)


def run(paths, folder, *words):
    words = [f"data_path={paths.root}", *TINY, f"table={folder}/standings.csv", *words]
    return standings.main(composed(CONFIGS / "scripts", "standings", words))


@pytest.mark.full
def test_a_log_is_measured_once_and_another_keeps_its_rows(paths, tmp_path, monkeypatch, capsys, caplog):
    rows = run(paths, tmp_path, "embeddings=[dcn,combined]", f"report={tmp_path}/report.md")
    assert list(dict.fromkeys(row.name for row in rows)) == [
        *(CHANCE, "recency and frequency", "SVDs and counts", "dcn", TREES)
    ]
    assert {row.log for row in rows} == {"shop"}
    assert "combined is left out" in caplog.text
    assert "| shop | boosted trees |" in (tmp_path / "report.md").read_text()
    monkeypatch.setattr(standings.Past, "of", None)  # nothing is trained again
    assert run(paths, tmp_path, "embeddings=dcn", "log=twin") == [
        *rows, *(standings.replace(row, log="twin") for row in rows)
    ]  # fmt: skip
    run(paths, tmp_path, "embeddings=dcn", "log=twin")
    assert len(read_rows(tmp_path / "standings.csv", Row)) == 2 * len(rows)
    assert "scores of the six tasks" in capsys.readouterr().out


def test_nothing_there_is_an_error(paths, tmp_path):
    with pytest.raises(UserError, match="none of a, b is in"):
        run(paths, tmp_path, "embeddings=[a,b]")


def row_of(log, name, task, score):
    return Row(log, 9, name, "quick", 2, 3, task, score, 0.01, score, None, None)


def test_the_figure_has_a_panel_for_each_task_and_a_line_for_the_trees(tmp_path, monkeypatch):
    plt = MagicMock()
    grid = np.empty((2, 3), object)
    grid[:] = [[MagicMock() for _ in range(3)] for _ in range(2)]
    plt.subplots.return_value = MagicMock(), grid
    monkeypatch.setattr(standings, "pyplot", lambda: plt)
    plt.subplots.return_value[0].savefig.side_effect = lambda file, **_: file.write_bytes(b"png")
    rows = [
        row_of(log, name, task, score)
        for log in ("demo", "cut")
        for name, score in ((CHANCE, 0.5), ("dcn", 0.7), (TREES, 0.8))
        for task in ("churn", "propensity_sku", SUM)
    ]
    standings.draw(rows, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").exists()
    for axis in grid.ravel():
        assert [call.args[0] for call in axis.errorbar.call_args_list] == [0.7, 0.7]  # a log each
        assert [call.args[0] for call in axis.axvline.call_args_list] == [0.8, 0.8]
        axis.set_yticks.assert_called_once_with(range(1), ["dcn"])
    titles = [[axis.set_title.call_args.args[0] for axis in line] for line in grid]
    assert titles[0] == ["sum\nchance 0.50", "churn\nchance 0.50", "sku\nchance 0.50"]
    assert titles[1] == ["mean AUROC\nchance 0.50", "churn: AUROC\nchance 0.50", "sku: AUROC\nchance 0.50"]


def of_clients(log, clients, name, score):
    return standings.replace(row_of(log, name, "churn", score), clients=clients)


def test_leads_are_over_the_reference_row_of_the_same_log_by_the_number_of_clients():
    rows = [
        of_clients(log, clients, name, score)
        for log, clients, scores in (
            ("demo, all", 2464, (0.70, 0.75)), ("demo, some", 500, (0.60, 0.59)), ("other", 9, (0.50, 0.50)),
        )
        for name, score in zip(("SVDs and counts", "dcn"), scores, strict=True)
    ]  # fmt: skip
    found = standings.leads([*rows, of_clients("lonely", 3, "dcn", 0.9), of_clients("other", 9, TREES, 0.9)])
    assert list(found) == [("other", "dcn"), ("demo", "dcn")]
    assert list(found["demo", "dcn"]["churn"].items()) == [(500, pytest.approx(-0.01)), (2464, pytest.approx(0.05))]
    assert found["other", "dcn"] == {"churn": {9: 0.0}}


def test_the_figure_by_clients_has_a_line_for_each_shop(tmp_path, monkeypatch):
    plt, axis = MagicMock(), MagicMock()
    grid = np.empty((1, 1), object)
    grid[0, 0] = axis
    plt.subplots.return_value = MagicMock(), grid
    plt.subplots.return_value[0].savefig.side_effect = lambda file, **_: file.write_bytes(b"png")
    monkeypatch.setattr(standings, "pyplot", lambda: plt)
    rows = [
        of_clients(log, clients, name, score)
        for log, clients in (("demo, some", 500), ("demo, all", 2464), ("other", 900))
        for name, score in (("SVDs and counts", 0.5), ("dcn", 0.5 + clients / 2**14))
    ]
    standings.draw_by_clients(rows, tmp_path / "growth.png")
    assert (tmp_path / "growth.png").read_bytes() == b"png"
    assert [call.args for call in axis.plot.call_args_list] == [
        ([500, 2464], [500 / 2**14, 2464 / 2**14], "o-"),
        ([900], [900 / 2**14], "s--"),
    ]
