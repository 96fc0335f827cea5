"""Wide features of shards put together, against those of one process: values, scales, and each view's directions."""

from datetime import timedelta

import numpy as np
import pytest

from ubp.blocks.wide_features import VIEWS, ClientItems, WideFeatures, WideSettings, view_matrix
from ubp.blocks.wide_features_by_shards import features_by_shards
from ubp.data import schema
from ubp.data.history import ChallengeData
from ubp.data.schema import EVENT_TYPES, EventType
from ubp.data.shards import sharded
from ubp.io.spread import in_turn

BUY, ADD, REMOVE, VISIT, SEARCH = EVENT_TYPES
# Values that most clients met are cut here, of skus and urls; so are directions.
SETTINGS = WideSettings(rhythm=True, components=5, most_values=12)
TOLERANCE = 1e-4  # of lengths 1: float32's sums over dozens of clients, by scikit-learn


@pytest.fixture
def opened(make_history, tmp_path):
    """The tiny history, its first clients relevant, on a day before its end."""

    def open_(relevant=None, **changes):
        paths = make_history(**changes).write(tmp_path / "data")
        paths.relevant_clients.parent.mkdir(exist_ok=True)
        whole = ChallengeData(paths, submit=True)
        np.save(paths.relevant_clients, whole.seen()[:relevant])
        return whole.before(whole.as_of - timedelta(days=5))

    return open_


def both(data: ChallengeData, shards: int, folder, settings=SETTINGS) -> tuple[WideFeatures, WideFeatures]:
    """Of shards, and of one process."""
    listed = {schema.CATEGORY: np.array([1, 3]), schema.SKU: np.array([], np.int64)}
    views = [data.of_shard(shard) for shard in sharded(data, shards, in_turn)]
    found = features_by_shards(data, views, 0, settings, listed, in_turn, folder)
    return found, WideFeatures.fit(data, data.clients, 0, settings, listed)


# More clients than values of most views, and fewer: scikit-learn takes the shorter side. More shards than clients.
@pytest.mark.parametrize(
    ("shards", "relevant", "most"),
    [
        (2, None, 12),
        pytest.param(7, None, 12, marks=pytest.mark.long),
        pytest.param(7, 20, 1000, marks=pytest.mark.full),
        (7, 4, 1000),
    ],
)
def test_values_scales_and_directions_are_those_of_one_process(opened, tmp_path, shards, relevant, most):
    data = opened(relevant)
    settings = WideSettings(rhythm=True, components=5, most_values=most)
    found, whole = both(data, shards, tmp_path / "fit", settings)
    assert (found.settings, found.span) == (whole.settings, whole.span)
    assert list(found.scales) == list(whole.scales)
    assert found.scales == pytest.approx(whole.scales, rel=1e-6)
    assert list(found.listed) == [schema.CATEGORY]
    assert list(found.views) == list(whole.views) == list(VIEWS)
    items = ClientItems.of(data, data.clients, settings)
    for name, view in whole.views.items():
        own = found.views[name]
        assert own.values.tolist() == view.values.tolist()
        assert own.directions.dtype == np.float32
        assert own.directions.shape == view.directions.shape
        np.testing.assert_allclose(own.directions.T @ own.directions, np.eye(own.directions.shape[1]), atol=1e-5)
        matrix = view_matrix(name, view.values, items, data, data.clients, settings).toarray().astype(np.float64)
        lengths, wanted = (np.linalg.norm(matrix @ each.directions, axis=0) for each in (own, view))
        np.testing.assert_allclose(lengths, wanted, rtol=TOLERANCE)
        projections = [matrix @ each.directions @ each.directions.T for each in (own, view)]
        assert np.linalg.norm(projections[0] - projections[1]) < TOLERANCE * np.linalg.norm(projections[1]), name


@pytest.mark.full
def test_the_same_shards_give_the_same_bits(opened, tmp_path):
    data = opened()
    first, second = (both(data, 3, tmp_path / folder)[0].state() for folder in ("a", "b"))
    assert first[0] == second[0]
    assert {name: array.tobytes() for name, array in first[1].items()} == {
        name: array.tobytes() for name, array in second[1].items()
    }


@pytest.mark.full
@pytest.mark.parametrize("empty", [[ADD, REMOVE, VISIT, SEARCH], [EventType.SEARCH_QUERY]])
def test_a_log_without_some_events(opened, tmp_path, empty):
    found, whole = both(opened(empty=empty), 3, tmp_path / "fit")
    assert list(found.views) == list(whole.views)
    assert list(found.scales) == list(whole.scales)
