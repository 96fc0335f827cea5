"""The numbers in figures, and that names are no tags."""

from collections import Counter

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ubp.evaluation.ablation import Change
from ubp.evaluation.scores import Scores
from ubp.report import figures
from ubp.report.made import BLOCK, MERGE, REFERENCE, AblationTable, Curve, DriftDay, Made

TASKS = ("churn", "conversion", "propensity_category", "propensity_sku", "propensity_new_sku", "propensity_price")


def scored(name, kind, **totals):
    """Something whose task scores are all a sixth of its sum."""
    scores = {
        probe: Scores(name, 3, probe, dict.fromkeys(TASKS, total / 6), total, 0.0, {})
        for probe, total in totals.items()
    }
    return Made(name, kind, "", 3, 10, None, None, (), scores, None)


def change(kind, block, value, spread=None):
    return Change(kind, block, 2, 30, 1, 4.4, value, spread, *[value / 6] * 5, None)


# --- the log --------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(1, 7), st.integers(0, 23), st.integers(0, 9)), max_size=60))
def test_shares_of_the_week(rows):
    """An hour may stand in several rows: one of each event type."""
    table = pl.DataFrame(rows, schema=["weekday", "hour", "events"], orient="row")
    found = figures.week_shares(table)
    total = sum(events for *_, events in rows)
    wanted = np.zeros((7, 24))
    for weekday, hour, events in rows:
        wanted[weekday - 1, hour] += 100 * events / max(total, 1)
    np.testing.assert_allclose(found, wanted, atol=1e-4)


@given(st.lists(st.integers(1, 500), min_size=1, max_size=40))
def test_shares_of_gaps(days):
    counts = Counter(days)
    table = pl.DataFrame({"days": list(counts), "times": list(counts.values())}).sort("days")
    labels, shares = figures.gap_shares(table)
    assert labels == ["1", "2", "3", "4–7", "8–14", "15–30", "31–60", "61+"]
    edges = [(1, 1), (2, 2), (3, 3), (4, 7), (8, 14), (15, 30), (31, 60), (61, 9**9)]
    wanted = [100 * sum(low <= day <= high for day in days) / len(days) for low, high in edges]
    assert shares == pytest.approx(wanted, abs=1e-3)


@given(st.lists(st.integers(1, 3000), min_size=1, max_size=200))
def test_the_line_of_a_tail(events):
    counts = pl.DataFrame(sorted(Counter(events).items()), schema=["events", "clients"], orient="row")
    found = figures.survival(counts, most=20)
    assert len(found) <= 20
    assert (found[0][0], found[-1][0]) == (min(events), max(events))
    for number, share in found:
        assert share == pytest.approx(sum(count >= number for count in events) / len(events))


# --- scores ---------------------------------------------------------------------------------------------


def test_scores_are_sorted_with_the_most_scored_probe_first():
    rows = [
        scored("low", BLOCK, quick=3.0),
        scored("best", MERGE, quick=5.0, judge=4.0),
        scored("middle", BLOCK, quick=4.5),
        scored("reference", REFERENCE, quick=4.2),
    ]
    drawn = figures.scores(rows)
    labels = [choice.label for choice in drawn.choices]
    assert labels[0] == "sum, quick"
    assert labels[7] == "sum, judge"
    assert len(labels) == 14
    quick, judge = drawn.choices[0], drawn.choices[7]
    assert quick.layout["yaxis.categoryarray"] == ["low", "middle", "best"]
    assert quick.data["x"] == [[3.0, 4.5], [5.0], [4.2, 4.2]]
    assert quick.data["y"] == [["low", "middle"], ["best"], ["low", "best"]]
    assert judge.data["x"] == [[], [4.0], [None, None]]
    assert judge.height < quick.height
    shown = [list(trace.x) for trace in drawn.figure.data]
    assert shown == quick.data["x"]


def test_without_scores_there_is_no_figure():
    assert figures.scores([]) is None
    assert figures.scores([scored("block", BLOCK)]) is None
    assert figures.scores([scored("reference", REFERENCE, quick=4.2)]) is None


# --- ablations, curves, drift ---------------------------------------------------------------------------


def test_an_ablation_shows_the_changes_of_one_kind():
    rows = [change("without", "a", -0.2, 0.1), change("without", "b", 0.1), change("alone", "a", -1.0)]
    drawn = figures.ablation(AblationTable("merge", "quick", rows), "without")
    (bars,) = drawn.figure.data
    assert (list(bars.y), list(bars.x)) == (["a", "b"], [-0.2, 0.1])
    assert list(bars.error_x.array) == [0.1, 0.0]
    assert bars.marker.color == (figures.FIRST, figures.SECOND)
    assert [choice.label for choice in drawn.choices] == ["sum", "churn", "conversion", "category", "sku", "new sku"]
    churn = drawn.choices[1].data
    assert churn["x"] == [pytest.approx([-0.2 / 6, 0.1 / 6])]
    assert churn["error_x.visible"] == [False]


def test_a_block_that_was_trained_twice_has_two_lines_of_each_kind():
    curve = Curve("dcn", [[(1, 2.0)], [(1, 3.0)]], [[(5, 2.0)]], [[(5, 1.0)], [(6, 1.5)]])
    traces = figures.curve(curve).figure.data
    assert [(trace.name, trace.x) for trace in traces] == [
        ("training, at steps", (1,)), ("training, at steps", (1,)), ("training, mean of an epoch", (5,)),
        ("held out", (5,)), ("held out", (6,)),
    ]  # fmt: skip


def test_drift_needs_two_days():
    days = [DriftDay("a", "2022-02-01", {"psi": 0.1}), DriftDay("a", "2022-02-02", {"psi": 0.3, "moved": 2.0})]
    assert figures.drift(days[:1]) is None
    drawn = figures.drift(days)
    assert [choice.label for choice in drawn.choices] == ["psi", "moved"]
    assert list(drawn.figure.data[0].y) == [0.1, 0.3]
    assert drawn.choices[1].data == {"y": [[None, 2.0]]}


# --- clients --------------------------------------------------------------------------------------------


@given(st.lists(st.none() | st.integers(1, 6), max_size=40), st.integers(1, 4))
def test_groups_of_the_most_frequent_categories(categories, most):
    counted = Counter(category for category in categories if category is not None)
    top = sorted(counted, key=lambda category: (-counted[category], category))[:most]
    wanted = {category: [place for place, each in enumerate(categories) if each == category] for category in top}
    wanted[-1] = [place for place, each in enumerate(categories) if each is not None and each not in top]
    wanted[None] = [place for place, each in enumerate(categories) if each is None]
    found = figures.top_groups(pl.Series(categories, dtype=pl.Int64), most)
    assert found == [(category, places) for category, places in wanted.items() if places]


def test_points_are_coloured_on_a_logarithmic_scale():
    look = figures.by_number(pl.Series([0.0, 9.0, None, 99.0]))["marker"]
    assert look["color"] == [0.0, 1.0, None, 2.0]
    assert (look["cmin"], look["cmax"]) == (0.0, 2.0)
    assert look["colorbar"]["ticktext"] == ["0", "1", "10"]
    assert look["colorbar"]["tickvals"] == pytest.approx([0, np.log10(2), np.log10(11)])
    nothing = figures.by_number(pl.Series([None, None], dtype=pl.Float64))["marker"]
    assert nothing["color"] == [None, None]
    assert nothing["cmax"] > nothing["cmin"]


# --- names ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["<b>bold</b>", "<a href='https://example.com'>x</a>", "a & b"])
def test_a_name_is_no_tag(name):
    assert "<" not in figures.text(name)
    drawn = figures.scores([scored(name, BLOCK, quick=4.0), scored(name, REFERENCE, quick=4.2)])
    drift = figures.drift([DriftDay(name, "1", {name: 1.0}), DriftDay(name, "2", {name: 2.0})])
    ablation = figures.ablation(AblationTable("m", "quick", [change("without", name, 0.1)]), "without")
    for figure in (drawn, drift, ablation):
        assert name not in str(figure.as_json())


def test_long_names_are_cut():
    assert figures.shortened("a" * 28) == "a" * 28
    assert figures.shortened("a" * 29) == "a" * 27 + "…"


def test_a_figure_has_no_theme_of_its_own():
    drawn = figures.Drawn(figures.drawn([], xaxis={"title": {"text": "a day"}}))
    values = drawn.as_json()
    assert "layout" not in values["layout"]["template"]
    assert values["layout"]["xaxis"]["title"]["text"] == "a day"
