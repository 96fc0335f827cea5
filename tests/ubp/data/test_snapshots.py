"""Snapshots at borders to the second, of growing histories, and never beyond the history that they are taken from."""

import logging
from datetime import timedelta

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from tests.ubp.data.small_logs import DAYS, RELEVANT, START, random_log, rows, shifted, write
from ubp.data.history import ChallengeData
from ubp.data.schema import EVENT_TYPES, EventType
from ubp.data.snapshots import FirstEvents, Snapshot, SnapshotSettings, snapshots
from ubp.data.split import SplitDates, write_split
from ubp.io.errors import NoUsableEvents, UserError

BUY, VISIT = EventType.PRODUCT_BUY, EventType.PAGE_VISIT
SECOND, DAY = timedelta(seconds=1), timedelta(days=1)
MIDDLE = START + 45 * DAY


def opened(log, root, **settings) -> ChallengeData:
    return ChallengeData(write(log, root), submit=True, **settings)


def with_purchases(log, moments, client=0):
    """The log with no other purchases than those of one client at some moments."""
    log.events[BUY] = pl.DataFrame(
        {"client_id": [client] * len(moments), "timestamp": moments, "sku": [100] * len(moments)}
    )
    return log


def test_the_days(tmp_path):
    history = opened(random_log(0), tmp_path, as_of=MIDDLE)
    found = snapshots(history, SnapshotSettings(count=3, stride=5, horizon=10))
    assert [snapshot.day for snapshot in found] == [MIDDLE - 20 * DAY, MIDDLE - 15 * DAY, MIDDLE - 10 * DAY]
    assert [snapshot.end for snapshot in found] == [MIDDLE - 10 * DAY, MIDDLE - 5 * DAY, MIDDLE]
    assert [snapshot.history.as_of for snapshot in found] == [snapshot.day for snapshot in found]


def test_a_history_that_ends_within_a_day(tmp_path):
    end = MIDDLE + timedelta(hours=7, seconds=1)
    history = opened(random_log(0), tmp_path, as_of=end)
    (found,) = snapshots(history, SnapshotSettings(count=1, horizon=10))
    assert (found.day, found.end) == (end - 10 * DAY, end)


def test_at_borders_to_the_second(tmp_path):
    day, end = MIDDLE - 14 * DAY, MIDDLE
    moments = [day - SECOND, day, day + SECOND, end - SECOND, end, end + SECOND]
    history = opened(with_purchases(random_log(0), moments), tmp_path, as_of=MIDDLE)
    (found,) = snapshots(history, SnapshotSettings(count=1))
    assert sorted(found.after(BUY).collect()["timestamp"]) == moments[1:4]
    assert found.history.events(BUY).collect()["timestamp"].to_list() == moments[:1]


def test_neighbouring_windows_share_no_event_and_miss_none(tmp_path):
    log = random_log(1)
    history = opened(log, tmp_path)
    found = snapshots(history, SnapshotSettings(count=3, stride=7, horizon=7))
    for event_type in EVENT_TYPES:
        parts = pl.concat([snapshot.after(event_type) for snapshot in found]).collect()
        last_weeks = log.events[event_type].filter(pl.col("timestamp") >= found[0].day)
        assert parts["timestamp"].sort().equals(last_weeks["timestamp"].sort())
        assert parts.schema == history.events(event_type).collect_schema()


@pytest.mark.parametrize("seed", range(3))
def test_clients_are_those_known_on_the_day(seed, tmp_path):
    log = random_log(seed)
    events, bought = rows(log, *EVENT_TYPES), rows(log, BUY)
    found = snapshots(opened(log, tmp_path), SnapshotSettings(count=6, stride=6))
    for snapshot in found:
        assert snapshot.clients.tolist() == sorted({client for client, time, _ in events if time < snapshot.day})
        assert snapshot.active.tolist() == sorted({client for client, time, _ in bought if time < snapshot.day})
        assert snapshot.clients.tolist() == snapshot.history.clients.tolist()
        assert snapshot.clients.dtype == snapshot.active.dtype == np.int64
    assert len(found[0].clients) < len(found[-1].clients) == len(RELEVANT)


def test_a_client_who_joined_between_two_snapshots(tmp_path):
    log, joined = random_log(0), START + DAYS * DAY - 18 * DAY
    for event_type, table in log.events.items():
        log.events[event_type] = table.filter(pl.col("client_id") != 5)
    visit = pl.DataFrame({"client_id": [5], "timestamp": [joined], "url": [1]}).cast(log.events[VISIT].schema)
    log.events[VISIT] = pl.concat([log.events[VISIT], visit])
    history = opened(log, tmp_path)
    firsts = FirstEvents(history)
    before, on, after = (Snapshot.at(joined + shift, history.as_of, firsts) for shift in (-DAY, 0 * DAY, SECOND))
    assert [5 in snapshot.clients for snapshot in (before, on, after)] == [False, False, True]
    assert not any(5 in snapshot.active for snapshot in (before, on, after))
    weekly = snapshots(history, SnapshotSettings(count=2))
    assert [5 in snapshot.clients for snapshot in weekly] == [False, True]


@pytest.mark.parametrize("seed", range(3))
def test_events_at_or_after_as_of_play_no_part(seed, tmp_path):
    log = random_log(seed)
    settings = SnapshotSettings(count=4, stride=6, horizon=9)
    one = snapshots(opened(log, tmp_path / "one", as_of=MIDDLE), settings)
    other = snapshots(opened(shifted(log, MIDDLE, seed), tmp_path / "other", as_of=MIDDLE), settings)
    for first, second in zip(one, other, strict=True):
        assert (first.day, first.end) == (second.day, second.end)
        assert first.clients.tolist() == second.clients.tolist()
        assert first.active.tolist() == second.active.tolist()
        for event_type in EVENT_TYPES:
            assert_frame_equal(first.after(event_type), second.after(event_type))
            assert_frame_equal(first.history.events(event_type), second.history.events(event_type))


@pytest.mark.parametrize("stride", [1, 4, 7])
@pytest.mark.parametrize("horizon", [1, 14, 20])
def test_every_window_lies_in_the_history(stride, horizon, tmp_path):
    history = opened(random_log(2), tmp_path, as_of=MIDDLE)
    settings = SnapshotSettings(count=100, stride=stride, horizon=horizon)
    found = snapshots(history, settings)
    days = [snapshot.day for snapshot in found]
    assert days == sorted(set(days))
    assert found[-1].end == MIDDLE
    earliest = START + settings.least_history * DAY
    assert earliest <= days[0] < earliest + stride * DAY
    for snapshot in found:
        assert snapshot.end == snapshot.day + horizon * DAY <= MIDDLE
        last = snapshot.after(VISIT).collect()["timestamp"].max()
        assert last is None or last < MIDDLE


def test_a_window_beyond_the_history_is_refused(tmp_path):
    firsts = FirstEvents(opened(random_log(0), tmp_path, as_of=MIDDLE))
    day = MIDDLE - 14 * DAY
    assert Snapshot.at(day, MIDDLE, firsts).end == MIDDLE
    for start, end in ((day, MIDDLE + SECOND), (day, day), (MIDDLE, MIDDLE + DAY)):
        with pytest.raises(UserError, match="its window must end after it"):
            Snapshot.at(start, end, firsts)
    with pytest.raises(UserError, match="no event before it"):
        Snapshot.at(START, MIDDLE, firsts)


def test_fewer_than_asked_for_are_said(tmp_path, caplog):
    history = opened(random_log(0), tmp_path, as_of=START + 35 * DAY)
    with caplog.at_level(logging.INFO):
        assert len(snapshots(history, SnapshotSettings(count=2))) == 2
        assert not caplog.messages
        assert len(snapshots(history, SnapshotSettings(count=3))) == 2
    assert caplog.messages == ["snapshots: 2 instead of 3, the history has no more"]


def test_a_history_just_long_enough_and_one_too_short(tmp_path):
    history = opened(random_log(0), tmp_path)
    settings = SnapshotSettings(horizon=10, least_history=8)
    (only,) = snapshots(history.before(START + 18 * DAY), settings)
    assert only.day == START + 8 * DAY
    with pytest.raises(NoUsableEvents, match="no day with 8 days before it and 10 after it") as caught:
        snapshots(history.before(START + 18 * DAY - SECOND), settings)
    (message,) = caught.value.messages
    assert "\n" not in message
    assert str(history.folder) in message


@pytest.mark.parametrize("name", ["count", "stride", "horizon", "least_history"])
def test_settings_below_one_are_refused(name):
    with pytest.raises(UserError, match=rf"snapshots\.{name}=0: must be at least 1"):
        SnapshotSettings(**{name: 0})


def test_the_split_is_made_of_such_windows(history):
    data = ChallengeData(history, submit=True)
    dates = SplitDates.of(data)
    write_split(data, dates)
    history.input.mkdir(exist_ok=True)
    np.save(history.relevant_clients, data.seen())
    firsts = FirstEvents(data)
    train = Snapshot.at(dates.train_start, dates.validation_start, firsts)
    validation = Snapshot.at(dates.validation_start, data.as_of, firsts)
    for snapshot, name in ((train, "train_target"), (validation, "validation_target")):
        filed = pl.read_parquet(history.target / f"{name}.parquet").select("client_id", "timestamp", "sku")
        assert_frame_equal(snapshot.after(BUY).collect(), filed, check_row_order=False)
    local = ChallengeData(history, submit=False)
    for event_type in EVENT_TYPES:
        assert_frame_equal(train.history.events(event_type), local.events(event_type))


def test_first_events_are_read_once(tmp_path, monkeypatch):
    history = opened(random_log(0), tmp_path)
    found = snapshots(history, SnapshotSettings(count=4))
    counts = [len(snapshot.clients) for snapshot in found]
    monkeypatch.setattr(ChallengeData, "events", lambda *_: pytest.fail("read again"))
    assert [len(snapshot.clients) for snapshot in found] == counts
