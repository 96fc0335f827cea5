"""Scores: what is written, read back, compared and shown in a table."""

import json
from dataclasses import replace

import pytest
from rich.console import Console

from ubp.data.targets import TASKS
from ubp.evaluation.probes import Probe, probe_title
from ubp.evaluation.scores import Scores, scores_file, shared_totals
from ubp.evaluation.tables import scores_table
from ubp.io.errors import UserError

HALVES = {task.name: 0.5 for task in TASKS}
WHOLE = Scores("a", 3, "quick", HALVES, 3.0, 0.1, {"churn": []})
FIVE = Scores("b", 3, "quick", HALVES | {"propensity_new_sku": None}, 2.5, 0.0, {"churn": []})


@pytest.mark.parametrize("scores", [WHOLE, FIVE])
def test_scores_are_written_and_read(tmp_path, scores):
    file = scores_file(tmp_path / "a.parquet", "quick")
    assert file == tmp_path / "a.scores_quick.json"
    scores.write(file)
    assert Scores.load(file) == scores
    written = json.loads(file.read_text())
    assert {task.name: written[task.name] for task in TASKS} == scores.tasks
    assert (written["sum"], written["n_tasks"]) == (scores.total, len(scores.scored))


def test_a_missing_task_is_null_in_the_file(tmp_path):
    FIVE.write(tmp_path / "scores.json")
    assert '"propensity_new_sku": null' in (tmp_path / "scores.json").read_text()
    assert '"n_tasks": 5' in (tmp_path / "scores.json").read_text()


def test_scores_of_before_there_was_n_tasks_are_read(tmp_path):
    WHOLE.write(tmp_path / "scores.json")
    written = json.loads((tmp_path / "scores.json").read_text())
    del written["n_tasks"]
    (tmp_path / "scores.json").write_text(json.dumps(written))
    assert Scores.load(tmp_path / "scores.json").n_tasks == 6


def test_the_judges_scores_are_named_as_the_organisers(tmp_path):
    assert scores_file(tmp_path / "entry", "judge") == tmp_path / "entry" / "scores.json"


def test_only_sums_of_equal_tasks_and_probes_are_compared():
    assert WHOLE.lead(replace(WHOLE, total=2.75)) == 0.25
    assert WHOLE.lead(FIVE) is None
    assert WHOLE.lead(replace(WHOLE, probe="judge")) is None
    other = replace(FIVE, tasks=HALVES | {"churn": None})
    assert FIVE.lead(other) is None
    assert shared_totals([WHOLE, FIVE, other]) == [2.0, 2.0, 2.0]


def shown(*rows: Scores, **given) -> str:
    console = Console(width=200)
    with console.capture() as captured:
        console.print(scores_table(list(rows), "title", **given))
    return captured.get()


def test_a_missing_task_is_a_dash_and_the_sum_says_over_how_many():
    whole, five = shown(WHOLE), shown(FIVE)
    assert "–" not in whole
    assert "3.0000 ±0.100" in whole
    assert " of 6" not in whole
    assert five.count("–") == 1
    assert "2.5000 (5 of 6)" in five


def test_what_lies_below_a_reference_row_is_marked_and_explained():
    assert "▼" not in shown(WHOLE, FIVE)
    rows = [WHOLE, FIVE, replace(WHOLE, name="c")]
    references = {"a": "recency and frequency", "c": "recency and frequency", "not shown": "x"}
    text = shown(*rows, below=references)
    marked = [line for line in text.splitlines() if " ▼ " in line and "quick" in line]
    assert len(marked) == 2
    assert "▼ below recency and frequency: a, c" in text
    assert "not shown" not in text
    two = shown(*rows, below={"a": "recency and frequency, SVDs and counts", "b": "SVDs and counts"})
    assert "▼ below recency and frequency, SVDs and counts: a" in two
    assert "▼ below SVDs and counts: b" in two


def test_a_title_says_how_many_seeds():
    assert probe_title(Probe()) == "by the judge: the organisers' model, higher is better"
    assert "mean of 3 seeds ± the sum's spread" in probe_title(Probe(seeds=(1278, 1, 2)))
    quick = Probe("quick", 512, 1024, seeds=(1278, 1))
    assert "the quick probe: the judge's procedure at a width of 512" in probe_title(quick)
    assert "seeds" not in probe_title(replace(quick, seeds=(1278,)))


@pytest.mark.parametrize(
    ("probe", "clients", "doubted"),
    [
        (Probe("quick", 512, 1024, like_width=2048), 498, True),  # 4 batches, 3 epochs
        (Probe("quick", 512, 1024, like_width=2048), 11 * 128, True),
        (Probe("quick", 512, 1024, like_width=2048), 11 * 128 + 1, False),  # 12 batches: 36 steps
        (Probe("quick", 512, 1024, like_width=2048, epochs=9), 498, False),
        (Probe(), 498, False),
    ],
)
def test_smaller_models_are_doubted_where_they_take_few_steps(probe, clients, doubted):
    line = probe.doubt(clients)
    assert (line is not None) == doubted
    if clients == 498 and line:
        assert line.startswith("498 clients give the quick probe 12 steps; with fewer than 36 it ranks otherwise")


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"seeds": ()}, r"probe.seeds=\[\]: must be one seed or several"),
        ({"seeds": (1, 1)}, r"probe.seeds=\[1, 1\]: must be"),
        ({"epochs": 0}, "probe.epochs=0: must be at least 1"),
        ({"batch_size": 0}, "probe.batch_size=0: must be at least 1"),
    ],
)
def test_a_probe_that_makes_no_sense_is_one_line(change, line):
    with pytest.raises(UserError, match=line):
        replace(Probe(), **change)
