"""What scale.py compares with does the same work: the pandas versions give what ours gives."""

import numpy as np
import pytest

from stat_features.recipe import StatFeaturesRecipe, columns
from ubp.data import schema
from ubp.data.history import ChallengeData
from ubp.data.schema import EVENT_TYPES
from ubp.data.split import SplitDates, write_split
from ubp.data.targets import TargetRules, make_targets
from ubp.sequences.build import build_or_open

pytest.importorskip("pandas", reason="pip install -r benchmarks/requirements.txt")
pytest.importorskip("pyarrow", reason="pip install -r benchmarks/requirements.txt")


@pytest.fixture
def local(history):
    data = ChallengeData(history, submit=True)
    write_split(data, SplitDates.of(data))
    make_targets(data, SplitDates.of(data), TargetRules(relevant_clients=40), overwrite=False)
    return ChallengeData(history, submit=False)


def test_the_same_statistics(local):
    from benchmarks.pandas_stat_features import statistics as by_pandas

    block = StatFeaturesRecipe().fit(local, 0, local.paths.cache).block
    clients, ours = block.vectors(local, local.clients)
    others, theirs = by_pandas(local.paths)
    np.testing.assert_array_equal(clients, others)
    for column, name in enumerate(columns()):
        np.testing.assert_allclose(ours[:, column], theirs[:, column], rtol=1e-4, atol=1e-5, err_msg=name)


def test_the_same_sequences(local):
    from benchmarks.pandas_sequences import sequences

    store, events = build_or_open(local), sequences(local.paths)
    owners = np.repeat(store.clients, store.lengths)
    np.testing.assert_array_equal(owners, events[schema.CLIENT_ID])
    np.testing.assert_array_equal(store.event, events["event"])
    np.testing.assert_array_equal(store.subject, events["subject"])
    seconds = (events[schema.TIMESTAMP] - np.datetime64(store.start)).dt.total_seconds()
    np.testing.assert_array_equal(store.time, seconds)
    assert set(np.unique(store.event)) == {event_type.code for event_type in EVENT_TYPES}
