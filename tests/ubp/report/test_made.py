"""What was made of a log, as the commands leave it, and what is broken among it."""

import json
from dataclasses import replace

import numpy as np
import pytest

from tests.ubp.blocks.toy import make_purchases
from tests.ubp.data import small_logs
from ubp.blocks.embeddings import EmbeddingTable
from ubp.blocks.entry import write_entry
from ubp.blocks.fitted import lineage_of, load, save
from ubp.evaluation.ablation import Change
from ubp.evaluation.reference import REFERENCES, reference_folder
from ubp.evaluation.scores import Scores, scores_file
from ubp.io.rows import write_rows
from ubp.report.made import (
    BLOCK,
    MERGE,
    REFERENCE,
    DriftDay,
    ablations_of,
    best,
    curve_of,
    drift_of,
    made_of,
    numbers_in,
    thinned,
    trainings,
)

TASKS = ("churn", "conversion", "propensity_category", "propensity_sku", "propensity_new_sku", "propensity_price")


def score(path, probe="quick", total=4.5):
    """What scripts/evaluate.py would leave."""
    tasks = dict.fromkeys(TASKS, total / 6)
    Scores(path.stem, 3, probe, tasks, total, 0.0, {}).write(scores_file(path, probe))


@pytest.fixture
def paths(tmp_path):
    return small_logs.write(small_logs.random_log(0), tmp_path / "data")


@pytest.fixture
def made(paths):
    """Two blocks, a merge and a reference row; the registry knows one block."""
    ids, vectors = np.arange(10), np.ones((10, 4), np.float32)
    lineage = {"report": {"warnings": ["<odd>"], "health": {"collapsed": ["one direction"]}}}
    for name in ("somebody_elses", "stat_features"):
        EmbeddingTable(ids, vectors, lineage).write(paths.block(name, submit=False))
    write_entry(paths.embeddings(submit=False) / "merged", ids[:7], vectors[:7])
    folder = reference_folder(REFERENCES[0], paths)
    write_entry(folder, ids, vectors)
    score(folder)
    return paths


def test_rows_are_blocks_merges_and_reference_rows(made):
    rows = made_of(made, submit=False)
    assert [(row.name, row.kind) for row in rows] == [
        ("stat_features", BLOCK), ("somebody_elses", BLOCK), ("merged", MERGE), (REFERENCES[0], REFERENCE),
    ]  # fmt: skip
    assert [(row.columns, row.clients) for row in rows] == [
        (4, 10),
        (4, 10),
        (4, 7),
        (3, 10),
    ]  # a reference row as it was scored
    assert rows[0].what == "43 counts, rhythms, popularities, spending"
    assert rows[0].warnings == ("collapsed: one direction", "<odd>")
    assert rows[0].seconds is None
    assert made_of(made, submit=True) == []


def test_what_cannot_be_read_is_left_out_with_a_line(made, caplog):
    made.block("broken", submit=False).write_bytes(b"no parquet")
    score_of = scores_file(made.block("stat_features", submit=False), "quick")
    score_of.write_text("{")
    rows = made_of(made, submit=False)
    assert "broken" not in [row.name for row in rows]
    assert rows[0].scores == {}
    assert len(caplog.messages) == 2


def test_the_cost_is_that_of_the_fit(paths):
    make_purchases(paths)
    folder = paths.model("purchases", submit=True)
    (row,) = made_of(paths, submit=True)
    assert (row.seconds, row.megabytes) == (None, None)
    lineage = lineage_of(folder) | {"report": {"cost": {"seconds": 12.5, "megabytes": 300}}}
    save(load(folder), folder, lineage)
    (row,) = made_of(paths, submit=True)
    assert (row.seconds, row.megabytes) == (12.5, 300)
    assert row.fingerprint == lineage["fingerprint"]


def test_scores_of_every_probe(made):
    path = made.block("stat_features", submit=False)
    for probe, total in (("tiny", 1.0), ("judge", 2.0), ("quick", 3.0)):
        score(path, probe, total)
    score(made.block("stat_features_wide", submit=False), "quick", 9.0)  # another block's
    (row, *_) = made_of(made, submit=False)
    assert {probe: scores.total for probe, scores in row.scores.items()} == {"judge": 2.0, "quick": 3.0, "tiny": 1.0}
    assert list(row.scores) == ["judge", "quick", "tiny"]


# --- which one shows clients ----------------------------------------------------------------------------


def test_the_best_is_that_of_the_judge_then_of_the_quick_probe_then_the_newest_merge(made):
    assert best([]) is None
    assert best(made_of(made, submit=False)).name == "merged"
    folder = made.embeddings(submit=False)
    score(folder / "somebody_elses.parquet", total=4.2)
    score(folder / "merged", total=4.1)
    assert best(made_of(made, submit=False)).name == "somebody_elses"  # never a reference row
    score(folder / "merged", "judge", 4.0)
    assert best(made_of(made, submit=False)).name == "merged"


def test_a_sum_over_fewer_tasks_is_no_better(made):
    rows = made_of(made, submit=False)[:2]
    whole = Scores("a", 3, "quick", dict.fromkeys(TASKS, 0.5), 3.0, 0.0, {})
    fewer = replace(whole, tasks=dict.fromkeys(TASKS, 0.5) | {"churn": None}, total=2.5)
    assert best([replace(rows[0], scores={"quick": whole}), replace(rows[1], scores={"quick": fewer})]) == replace(
        rows[0], scores={"quick": whole}
    )


# --- curves ---------------------------------------------------------------------------------------------


def write_curve(folder, version, lines):
    file = folder / f"version_{version}" / "metrics.csv"
    file.parent.mkdir(parents=True)
    file.write_text("epoch,step,train_loss,train_loss_step,validation_loss\n" + "\n".join(lines) + "\n")


def test_a_curve_is_that_of_the_newest_version(tmp_path):
    write_curve(tmp_path, 9, ["0,9,,5.0,"])
    write_curve(tmp_path, 10, ["0,9,,4.0,", "0,19,,nan,", "0,19,,,3.5", "0,19,3.75,,"])
    curve = curve_of(tmp_path, "block")
    assert curve.steps == [[(9.0, 4.0)]]
    assert curve.validation == [[(19.0, 3.5)]]
    assert curve.train == [[(19.0, 3.75)]]


def test_there_may_be_no_curve(tmp_path, caplog):
    assert curve_of(tmp_path / "none", "block") is None
    write_curve(tmp_path, 0, [])
    assert curve_of(tmp_path, "block") is None
    write_curve(tmp_path, 1, ["0,9,,four,"])
    assert curve_of(tmp_path, "block") is None
    assert "no training curve" in caplog.text


def test_a_new_training_begins_anew():
    points = [(9, 1.0), (19, 2.0), (9, 3.0), (19, 4.0), (29, 5.0), (9, 6.0)]
    assert trainings(points) == [points[:2], points[2:5], points[5:]]
    assert trainings([]) == []


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 100])
def test_a_long_line_is_thinned_to_means(count):
    points = [(float(step), float(step) ** 2) for step in range(count)]
    found = thinned(points, 8)
    assert len(found) <= 8
    assert (found == points) == (count <= 8)
    if count:
        assert found[-1][0] == count - 1
    if count == 100:
        assert found[0] == (12, pytest.approx(sum(step**2 for step in range(13)) / 13))


# --- ablations and drift --------------------------------------------------------------------------------


def test_ablations(paths, caplog):
    change = Change("without", "dcn", 2, 30, 1, 4.4, -0.1, None, *[0.0] * 6)
    write_rows(paths.ablations("combined") / "changes_quick.csv", [change], Change)
    write_rows(paths.ablations("empty") / "changes_quick.csv", [], Change)
    (paths.ablations("empty") / "changes_odd.csv").write_text("a,b\n1,2\n")
    (found,) = ablations_of(paths)
    assert (found.ensemble, found.probe, found.changes) == ("combined", "quick", [change])
    assert "has the columns a, b" in caplog.text


def test_drift(paths, caplog):
    assert drift_of(paths) == []
    reports = {
        "2022-02-02": {"clients": 3, "canaries": {"below": 1, "other": 2}, "verdict": "fine"},
        "2022-02-01": {"psi": {"a": 0.1}},  # somebody else's report
        "2022-02-03": {"due": True},
    }
    for day, report in reports.items():
        folder = paths.root / "profiles" / "combined" / f"day={day}"
        folder.mkdir(parents=True)
        (folder / "drift.json").write_text(json.dumps(report))
    (folder.parent / "day=x").mkdir()
    (folder.parent / "day=x" / "drift.json").write_text("{")
    assert drift_of(paths) == [
        DriftDay("combined", "2022-02-01", {"psi.a": 0.1}),
        DriftDay("combined", "2022-02-02", {"clients that came": 3, "canaries that moved": 1}, "fine"),
    ]
    assert "not readable" in caplog.text


def test_numbers_are_found_wherever_they_lie():
    report = {"a": 1, "b": {"c": {"d": 0.5}, "e": [1, 2], "f": None}, "g": "1", "h": float("nan"), "i": False}
    assert numbers_in(report) == {"a": 1.0, "b.c.d": 0.5}
