"""The rows that blocks are held against: how they are made, kept and compared."""

from dataclasses import replace

import numpy as np
import pytest

from ubp.blocks.condition import ConditionSettings
from ubp.blocks.wide_features import WideFeatures, last_purchases
from ubp.data.history import ChallengeData
from ubp.data.schema import EVENT_TYPES, EventType
from ubp.data.split import SplitDates, write_split
from ubp.data.targets import TASKS, TargetRules, make_targets
from ubp.evaluation import reference
from ubp.evaluation.reference import (
    REFERENCES,
    ReferenceSettings,
    below,
    conditioned,
    marks,
    reference_folder,
    reference_rows,
)
from ubp.evaluation.scores import Scores

SETTINGS = ReferenceSettings()


def correlation(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.corrcoef(one, other)[0, 1])


def test_the_rows_are_of_the_clients_that_are_scored(local):
    first, second = reference_rows(local, SETTINGS)
    assert (first.name, second.name) == REFERENCES == ("recency and frequency", "SVDs and counts")
    for row in (first, second):
        assert row.client_ids.tolist() == local.clients.tolist()
        assert row.vectors.dtype == np.float32
        assert row.path == reference_folder(row.name, local.paths)
        assert row.path.parent == local.paths.cache / "references"
        assert " " not in row.path.name
        assert np.isfinite(row.vectors).all()
        np.testing.assert_allclose(row.vectors[:, :-1].mean(axis=0), 0, atol=1e-2)
        assert len(set(row.vectors[:, -1])) == 1


def test_two_columns_as_long_as_each_other_and_a_constant(local):
    vectors = reference_rows(local, SETTINGS)[0].vectors
    wanted = last_purchases(local, local.clients)
    assert vectors.shape[1] == 3
    for column, name in enumerate(wanted.columns):
        assert correlation(vectors[:, column], wanted[name].to_numpy()) == pytest.approx(1, abs=1e-5)
    lengths = np.sqrt(np.square(vectors).mean(axis=0))
    assert lengths[0] == pytest.approx(lengths[1], rel=1e-3)
    rows = np.sqrt(np.square(vectors[:, :2]).sum(axis=1).mean())
    assert lengths[2] == pytest.approx(SETTINGS.condition.constant * rows, rel=1e-3)


def test_each_group_is_as_long_as_its_weight_says(local):
    groups = WideFeatures.fit(local, local.clients, SETTINGS.seed, SETTINGS.wide, {}).groups(local, local.clients)
    vectors = reference_rows(local, replace(SETTINGS, counts_weight=3.0))[1].vectors
    widths = [group.shape[1] for group in groups.values()]
    assert vectors.shape[1] == sum(widths) + 1
    parts = np.split(vectors[:, :-1], np.cumsum(widths)[:-1], axis=1)
    lengths = {name: np.sqrt(np.square(part).sum(axis=1).mean()) for name, part in zip(groups, parts, strict=True)}
    for name, length in lengths.items():
        assert length == pytest.approx(lengths["sku"] * (3 if name == "counts" else 1), rel=1e-3)


def test_a_second_evaluation_reads_what_the_first_one_made(local, monkeypatch):
    made = []
    monkeypatch.setattr(reference, "conditioned", lambda *given: made.append(1) or conditioned(*given))
    first, second = reference_rows(local, SETTINGS), reference_rows(local, SETTINGS)
    assert len(made) == 2
    for one, other in zip(first, second, strict=True):
        assert (one.vectors == other.vectors).all()
    reference_rows(local, replace(SETTINGS, seed=1))
    assert len(made) == 4
    reference_rows(local.before(local.as_of.replace(day=1)), SETTINGS)
    assert len(made) == 6


def test_clients_that_are_all_alike_are_told_by_a_constant_alone():
    groups = {"recency": np.full((4, 1), 2.0, np.float32), "frequency": np.full((4, 1), 5.0, np.float32)}
    assert (conditioned(groups, ConditionSettings(), {}) == np.ones((4, 1))).all()


@pytest.mark.parametrize("kept", [{EventType.PRODUCT_BUY}, {EventType.PRODUCT_BUY, EventType.PAGE_VISIT}])
def test_logs_without_some_event_types_have_both_rows(make_history, tmp_path, kept):
    paths = make_history(empty=set(EVENT_TYPES) - kept).write(tmp_path / "few")
    data = ChallengeData(paths, True)
    write_split(data, SplitDates.of(data))
    make_targets(data, SplitDates.of(data), TargetRules(), overwrite=False)
    rows = reference_rows(ChallengeData(paths, False), SETTINGS)
    assert [row.vectors.shape[1] > 2 for row in rows] == [True, True]


def scores(name: str, total: float, probe: str = "judge", **tasks: float | None) -> Scores:
    return Scores(name, 3, probe, {task.name: total / 6 for task in TASKS} | tasks, total, 0.0, {})


def test_what_is_below_names_the_references_above_it():
    references = [scores("two columns", 4.1), scores("many", 4.5)]
    rows = [scores("low", 4.0), scores("middle", 4.1), scores("high", 4.6)]
    assert below(rows, references) == {"low": ["two columns", "many"], "middle": ["many"]}
    assert marks(rows, references) == {"low": "two columns and many", "middle": "many"}
    assert below([*references, *rows], references) == {"two columns": ["many"], **below(rows, references)}


def test_sums_by_another_probe_or_over_other_tasks_are_not_compared():
    references = [scores("many", 4.5)]
    assert below([scores("low", 4.0, probe="quick"), scores("five", 4.0, churn=None)], references) == {}
