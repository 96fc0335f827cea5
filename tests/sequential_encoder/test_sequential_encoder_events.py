"""Moments and their batches against plain Python."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sequential_encoder.events import (
    AGE,
    COUNTS,
    DAY_TOKENS,
    GAP,
    HOUR,
    KIND_BITS,
    SUBJECT,
    TOKEN,
    WAIT,
    WEEKDAY,
    Moments,
    Sampler,
    SequenceSettings,
    merged,
    tokens_of,
)
from tests.sequential_encoder.small_log import DAYS, SETTINGS, samplers, source, span, store
from ubp.data import schema
from ubp.data.schema import EVENT_TYPES, EventType
from ubp.io.errors import UserError
from ubp.sequences.layout import DAY
from ubp.training.model import LENGTHS

END = DAYS * DAY


def plain_tokens(times: list[int], end: int, seconds: int) -> list[list[int]]:
    """Places of the events of each token of one client."""
    tokens: list[list[int]] = []
    for place, time in enumerate(times):
        same = bool(tokens) and seconds > 0 and (end - 1 - time) // seconds == (end - 1 - times[place - 1]) // seconds
        if same:
            tokens[-1].append(place)
        else:
            tokens.append([place])
    return tokens


@pytest.mark.parametrize("merge", [0, 60, 3600, DAY])
def test_tokens_are_those_of_plain_python(merge: int) -> None:
    sequences = store()
    whole = span(sequences)
    settings = replace(SETTINGS, merge=merge)
    batch = source(whole, settings).batch(np.arange(len(whole)))
    for row in range(len(whole)):
        own = slice(int(sequences.offsets[row]), int(sequences.offsets[row + 1]))
        times, events = sequences.time[own].tolist(), sequences.event[own].tolist()
        tokens = plain_tokens(times, END, merge)
        assert int(batch[LENGTHS][row]) == len(tokens)
        for number, places in enumerate(tokens):
            last, first = times[places[-1]], times[places[0]]
            before = times[tokens[number - 1][-1]] if number else first
            after = times[tokens[number + 1][0]] if number + 1 < len(tokens) else END
            assert float(batch[AGE][row, number]) == pytest.approx((END - last) / DAY)
            assert float(batch[GAP][row, number]) == pytest.approx((first - before) / 3600)
            assert float(batch[WAIT][row, number]) == pytest.approx((after - last) / 3600)
            assert int(batch[HOUR][row, number]) == last % DAY // 3600
            assert int(batch[WEEKDAY][row, number]) == (last // DAY + 2) % 7  # the log begins on a Wednesday
            kinds = [events[place] for place in places]
            assert batch[COUNTS][row, number].tolist() == [kinds.count(kind) for kind in range(len(EVENT_TYPES))]
        assert batch[TOKEN][row, : len(times)].tolist() == [n for n, places in enumerate(tokens) for _ in places]
        assert (batch[SUBJECT][row, : len(times)] % 2**KIND_BITS).tolist() == sequences.subject[own].tolist()
        assert (batch[SUBJECT][row, len(times) :] == -1).all()
    np.testing.assert_array_equal(tokens_of(whole, merge), batch[LENGTHS])


@given(st.lists(st.integers(0, 9_999), min_size=1, max_size=30), st.integers(0, 99), st.sampled_from([10, 100]))
def test_no_token_lies_across_a_moment_whole_stretches_before_the_end(times, stretches, seconds):
    time, end = np.sort(np.array(times)), 10_000
    token, _ = merged(np.zeros(len(time), np.int64), time, end, seconds, 1)
    moment = end - stretches * seconds
    assert not set(token[time < moment]) & set(token[time >= moment])


def test_days_count_the_tokens_before_them_and_none_after() -> None:
    sequences = store()
    days = (10 * DAY, 25 * DAY, END)
    batch = source(span(sequences, days=days)).batch(np.arange(7))
    for row in range(7):
        times = sequences.time[sequences.offsets[row] : sequences.offsets[row + 1]].tolist()
        tokens = plain_tokens(times, END, SETTINGS.merge)
        wanted = [sum(times[places[-1]] < day for places in tokens) for day in days]
        assert batch[DAY_TOKENS][row].tolist() == wanted


@pytest.mark.parametrize("settings", [replace(SETTINGS, tokens=5), replace(SETTINGS, events=6)])
def test_the_newest_are_read_and_in_training_a_random_stretch(settings: SequenceSettings) -> None:
    whole = span(store(most=80))
    rows = np.arange(len(whole))
    everything = Moments.read(whole, rows, SETTINGS, None)
    newest = Moments.read(whole, rows, settings, None)
    assert (newest.counts <= min(settings.tokens, settings.events)).all()
    assert (newest.until == END).all()
    for row in rows:
        kept = newest.time[newest.row == row]
        np.testing.assert_array_equal(kept, everything.time[everything.row == row][-len(kept) :])
    starts = set()
    for seed in range(30):
        drawn = Moments.read(whole, rows, settings, np.random.default_rng(seed))
        for row in rows:
            own, part = everything.time[everything.row == row], drawn.time[drawn.row == row]
            begin = [at for at in range(len(own) - len(part) + 1) if (own[at : at + len(part)] == part).all()]
            assert begin  # one stretch of what is there
            ends = [int(own[at + len(part)]) if at + len(part) < len(own) else END for at in begin]
            assert int(drawn.until[row]) in ends  # nothing is known from the first event on that is not read
            starts.add((int(row), begin[0]))
    assert len(starts) > 2 * len(rows)


@pytest.mark.parametrize("seed", [None, 1])
def test_targets_are_items_and_urls_of_the_next_token_from_a_moment_on(seed: int | None) -> None:
    sequences = store(most=200)
    whole = span(sequences)
    moments = Moments.read(whole, np.arange(7), SETTINGS, None)
    generator = None if seed is None else np.random.default_rng(seed)
    since = 20 * DAY
    found = moments.targets(since, 4, generator)
    wanted_types = {
        "item_targets": {EventType.ADD_TO_CART.code, EventType.PRODUCT_BUY.code},
        "url_targets": {EventType.PAGE_VISIT.code},
    }
    asked = 0
    for row in range(7):
        own = np.flatnonzero(moments.row == row)
        place, event, time = moments.place[own], moments.event[own], moments.time[own]
        for number in range(found["is_target"].shape[1]):
            following = np.flatnonzero(place == number + 1) if number < moments.counts[row] else np.array([], int)
            expected = bool(len(following)) and bool(time[following[0]] >= since)
            assert bool(found["is_target"][row, number]) == expected
            for name, types in wanted_types.items():
                allowed = [int(at) for at in following if event[at] in types] if expected else []
                drawn = found[name][row, number].tolist()
                assert set(drawn) <= set(allowed) if allowed else set(drawn) == {-1}
                asked += len(allowed)
    assert asked > 20


def test_negatives_are_drawn_by_their_shares() -> None:
    sampler = samplers(span(store(clients=40)))["item"]
    assert sampler.shares.sum() == pytest.approx(1)
    places, logs = sampler.draw((300, 100), np.random.default_rng(0))
    share_of = dict(zip(sampler.places.tolist(), sampler.shares.tolist(), strict=True))
    for place in sampler.places[:5]:
        assert (places == place).mean() == pytest.approx(share_of[int(place)], rel=0.15)
    np.testing.assert_allclose(np.exp(logs.ravel()[:50]), [share_of[int(place)] for place in places.ravel()[:50]], 1e-5)


def test_a_power_flattens_the_shares() -> None:
    whole = span(store(clients=40)).chosen
    even, steep = Sampler.of(whole, schema.URL, 0.0), Sampler.of(whole, schema.URL, 2.0)
    assert even.shares.max() == pytest.approx(even.shares.min())
    assert steep.shares.max() > 1.5 * steep.shares.min()


def test_seconds_that_do_not_divide_a_day_are_refused() -> None:
    with pytest.raises(UserError, match=r"sequences\.merge=7: must be 0, or a divisor of 86400"):
        replace(SETTINGS, merge=7)
