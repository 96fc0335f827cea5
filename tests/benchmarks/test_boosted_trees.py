"""Boosted trees on snapshots: each pair's numbers against plain Python, no future in them, and something is learned."""

import math
from datetime import timedelta
from itertools import pairwise

import numpy as np
import polars as pl
import pytest

from benchmarks.boosted_trees import (
    Asked,
    Past,
    TreeSettings,
    days_of,
    directions_of,
    drawn,
    fitted,
    pairs_of,
    predictions,
)
from scripts.split import split
from ubp.blocks.wide_features import View, WideFeatures, WideSettings
from ubp.data.history import ChallengeData
from ubp.data.schema import EVENT_TYPES, EventType
from ubp.data.split import SplitDates
from ubp.data.targets import TargetRules
from ubp.evaluation.tasks import GroundTruth
from ubp.io.errors import UserError

DAY = timedelta(days=1)
SETTINGS = TreeSettings(days=2, least_history=7, pairs=2000, rounds=5, least_rows=5)
WEIGHTS = {EventType.PRODUCT_BUY: 1.0, EventType.ADD_TO_CART: 0.5, EventType.REMOVE_FROM_CART: 0.25}


def cut(history, root):
    """The history split below a folder, with its targets."""
    paths = history.write(root)
    data = ChallengeData(paths, submit=True)
    split(data, SplitDates.of(data), TargetRules(per_task=5), overwrite=False)
    return paths


@pytest.fixture(scope="module")
def paths(make_history, tmp_path_factory):
    return cut(make_history(), tmp_path_factory.mktemp("trees") / "shop")


@pytest.fixture(scope="module")
def history(paths):
    return ChallengeData(paths, submit=False)


@pytest.fixture(scope="module")
def past(history, paths):
    return Past.of(history, GroundTruth.load(paths), SETTINGS)


@pytest.mark.parametrize("gap", [0, 14])
def test_the_last_window_that_is_learned_is_the_train_window(history, gap):
    settings = TreeSettings(days=50, gap=gap, least_history=1)
    days = days_of(history, settings)
    assert days[0] + gap * DAY == history.as_of
    assert all(later - earlier == 14 * DAY for later, earlier in pairwise(days))
    assert min(days) - history.start >= DAY
    assert len(days_of(history, TreeSettings(days=2, gap=gap, least_history=1))) == 2
    with pytest.raises(UserError, match="least_history=500"):
        days_of(history, TreeSettings(least_history=500))


@pytest.mark.parametrize("column", ["sku", "category", "price"])
def test_a_pairs_numbers_are_those_of_plain_python(make_history, history, past, column):
    day = past.days[1]
    tables = make_history()
    properties = {row["sku"]: row for row in tables.properties.iter_rows(named=True)}
    values = sorted({row[column] for row in properties.values()})[:3]
    asked = Asked.of(history, column, np.array(values[::-1]))
    numbers = np.stack(list(pairs_of(day, asked, past.features)), axis=-1)
    of_kind = ["sku", "category", "price"] if column == "sku" else [column]
    clients, targets = day.clients.tolist(), values[::-1]
    for row, place in ((0, 0), (7, 2), (20, 1)):
        own = {name: properties[targets[place]][name] if column == "sku" else targets[place] for name in of_kind}
        expected = []
        for name in of_kind:
            for half_life in day.items.amounts:
                amount = 0.0
                for kind, weight in WEIGHTS.items():
                    for event in tables.events[kind].filter(pl.col("client_id") == clients[row]).iter_rows(named=True):
                        age = (day.day - event["timestamp"]) / DAY
                        if age > 0 and properties[event["sku"]][name] == own[name]:
                            amount += weight * (1 if half_life is None else 0.5 ** (age / half_life))
                expected.append(math.log1p(amount))
        assert numbers[row, place, : len(expected)] == pytest.approx(expected, abs=1e-4)
        bought = [
            event
            for event in tables.events[EventType.PRODUCT_BUY].iter_rows(named=True)
            if event["timestamp"] < day.day and properties[event["sku"]][column] == targets[place]
        ]
        counts = sum(name.startswith("product_buy_") for name in past.features.scales)
        tail = numbers[row, place, : numbers.shape[2] - counts]
        tail = tail[-4:-1] if column == "sku" else tail[-3:]
        for days, found in zip((14, 28, 112), tail, strict=True):
            buyers = {event["client_id"] for event in bought if event["timestamp"] >= day.day - days * DAY}
            assert found == pytest.approx(math.log(max(len(buyers) / len(clients), 1e-5)), abs=1e-5)


def test_directions_of_unknown_values_are_zeros_and_of_codes_their_mean():
    view = View(np.array([3, 5, 8]), np.array([[1, 0], [0, 1], [2, 2]], np.float32))
    features = WideFeatures(WideSettings(), 1.0, {}, {"sku": view}, {})
    assert directions_of(features, "sku", np.array([8, 4, 3])).tolist() == [[2, 2], [0, 0], [1, 0]]
    assert directions_of(features, "sku", np.array([[3, 5], [8, 9]])).tolist() == [[0.5, 0.5], [1, 1]]


@pytest.mark.parametrize(("positives", "most"), [(10, 1000), (10, 100), (90, 100), (0, 50), (200, 50)])
def test_a_draw_stands_for_all_pairs_of_each_class(positives, most):
    wanted = np.zeros(200, np.uint8)
    wanted[:positives] = 1
    np.random.default_rng(0).shuffle(wanted)
    places, weights = drawn(wanted, most, np.random.default_rng(1))
    assert len(places) <= most
    assert (np.diff(places) > 0).all()
    for label in (0, 1):
        assert weights[wanted[places] == label].sum() == pytest.approx((wanted == label).sum())
    if positives <= most // 2:
        assert wanted[places].sum() == positives


@pytest.mark.full
def test_nothing_is_read_after_the_train_window(make_history, paths, tmp_path):
    """Of the validation window nothing, of the train window its purchases alone."""
    tables, dates = make_history(), SplitDates.of(ChallengeData(paths, submit=True))
    changed = make_history()
    time = pl.col("timestamp")
    for kind in EVENT_TYPES:
        border = dates.validation_start if kind is EventType.PRODUCT_BUY else dates.train_start
        last = tables.events[kind]["timestamp"].max()
        later = (time >= border) & (time < last)
        subject = kind.subject
        value = tables.events[kind][subject][0]
        changed.events[kind] = tables.events[kind].with_columns(
            pl.when(later).then(pl.lit(value)).otherwise(pl.col(subject)).alias(subject)
        )
    other = cut(changed, tmp_path / "changed")
    for file in paths.target.glob("*.npy"):  # the choice of targets may look into both windows
        (other.target / file.name).write_bytes(file.read_bytes())
    found = []
    for each in (paths, other):
        truth, data = GroundTruth.load(each), ChallengeData(each, submit=False)
        past = Past.of(data, truth, SETTINGS)
        found.append([predicted for _, predicted in predictions(past, data, truth.targets, SETTINGS, 0)])
    for one, another in zip(*found, strict=True):
        np.testing.assert_array_equal(one, another)


@pytest.mark.full
def test_predictions_are_probabilities_of_each_client_and_target(history, past, paths):
    truth = GroundTruth.load(paths)
    found = {task.name: predicted for task, predicted in predictions(past, history, truth.targets, SETTINGS, 0)}
    assert list(found)[:2] == ["churn", "conversion"]
    for name, predicted in found.items():
        targets = len(truth.targets[name].values) if name in truth.targets else 1
        assert predicted.shape == (len(history.clients), targets)
        assert ((predicted > 0) & (predicted < 1)).all()
    # Clients have favourite categories: what they met most is what they buy.
    asked = Asked.of(history, "category", truth.targets["propensity_category"].values)
    met = next(iter(pairs_of(past.end, asked, past.features)))
    assert np.corrcoef(met.ravel(), found["propensity_category"].ravel())[0, 1] > 0.3


def test_alike_labels_are_refused():
    with pytest.raises(UserError, match="all of the 4 labels"):
        fitted([np.zeros((4, 2), np.float32)], [np.ones(4, np.uint8)], None, SETTINGS, 0)
