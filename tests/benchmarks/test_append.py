"""The benchmark of a store of one more day, on the tiny history."""

from benchmarks.append import WAYS, grown, measure
from ubp.data.history import ChallengeData


def test_three_ways_to_the_same_store(history):
    whole = ChallengeData(history, submit=True)
    with grown(whole, 2) as (data, new):
        seconds = measure(data, 2)
        assert 0 < new < sum(data.rows(each) for each in data.event_types)
        assert sum(data.rows(each) for each in data.event_types) == sum(whole.rows(each) for each in whole.event_types)
    assert {way: len(each) for way, each in seconds.items()} == dict.fromkeys(WAYS, 2)
    assert not (history.cache / "append").exists()
