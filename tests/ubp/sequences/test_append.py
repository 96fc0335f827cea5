"""A store that was continued is, byte for byte, the store that is built; what cannot be continued is built."""

import shutil
from datetime import timedelta

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.ubp.sequences.logs import BUY, SKUS, START, Event, histories, quick, read_back, reference, written
from ubp.data import schema
from ubp.data.growth import keep_growth
from ubp.data.history import ChallengeData
from ubp.data.schema import EventType
from ubp.sequences import append as appending
from ubp.sequences.append import append_or_build, earlier_store
from ubp.sequences.build import build_or_open
from ubp.sequences.layout import NOTE
from ubp.sequences.selection import select

DAY = timedelta(days=1)
LATER = START + 60 * DAY


def contents(data: ChallengeData) -> dict[str, bytes]:
    folder = data.paths.sequences(data.events_fingerprint)
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def moved(history: list[Event], by: timedelta) -> list[Event]:
    return [(kind, client, time + by, subject) for kind, client, time, subject in history]


def built_afresh(root, history: list[Event]) -> dict[str, bytes]:
    data = written(root, history)
    build_or_open(data)
    return contents(data)


@pytest.fixture
def no_building(monkeypatch):
    monkeypatch.setattr(appending, "build", lambda *_: pytest.fail("built anew"))


def said(caplog) -> str:
    return "\n".join(record.getMessage() for record in caplog.records)


@quick
@given(st.lists(histories, min_size=2, max_size=4), st.integers(1, 7), st.randoms())
def test_the_bytes_of_a_rebuild_whichever_days_it_grew_by(fresh, days, rows_at_once, shuffler):
    """Each day brings clients, urls and queries of its own; the first store is built, all others are continued."""
    root, log = fresh(), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(appending, "_BLOCK", rows_at_once)
        patch.setattr(appending, "_MOST_NEW", 1_000)
        for number, events in enumerate(days):
            log += moved(events, number * 20 * DAY)
            shuffler.shuffle(log)
            data = written(root, log)
            with pytest.MonkeyPatch.context() as inner:
                if number:
                    inner.setattr(appending, "build", lambda *_: pytest.fail("built anew"))
                store = append_or_build(data)
    assert read_back(select(store)) == reference(log)
    assert contents(data) == built_afresh(fresh(), log)


@pytest.mark.usefixtures("no_building")
def test_new_skus_shift_the_references(tmp_path, tmp_path_factory, history, monkeypatch):
    build_or_open(written(tmp_path, history))
    new = [(EventType.ADD_TO_CART, 99, LATER, 5), (EventType.PRODUCT_BUY, 3, LATER, 12)]
    monkeypatch.setitem(SKUS, 5, (1, 1, 1))
    monkeypatch.setitem(SKUS, -9, (2, 2, 2))
    data = written(tmp_path, [*history, *new])
    assert read_back(select(append_or_build(data))) == reference([*history, *new])
    assert contents(data) == built_afresh(tmp_path_factory.mktemp("again"), [*history, *new])


@pytest.mark.usefixtures("no_building")
def test_other_properties_alone_make_a_store_of_the_same_events(tmp_path, tmp_path_factory, history, monkeypatch):
    build_or_open(written(tmp_path, history))
    monkeypatch.setitem(SKUS, 7, (71, 4, 9))
    data = written(tmp_path, history)
    append_or_build(data)
    assert contents(data) == built_afresh(tmp_path_factory.mktemp("again"), history)


@pytest.mark.usefixtures("no_building")
def test_the_latest_of_several_stores_is_continued(tmp_path, history):
    for days in (3, 30, 12):
        build_or_open(written(tmp_path, [event for event in history if event[2] < START + days * DAY]))
    data = written(tmp_path, history)
    known = earlier_store(data)
    assert START + 29 * DAY < START + timedelta(seconds=known.last) < START + 30 * DAY
    append_or_build(data)


class TestBuiltAnew:
    """Each time the result is right, and one line says why."""

    @pytest.fixture
    def grown(self, tmp_path, history):
        """Writes another log where the store of the history lies."""
        build_or_open(written(tmp_path, history))
        return lambda log: written(tmp_path, log)

    def check(self, data, log, caplog, reason):
        caplog.set_level("INFO")
        assert read_back(select(append_or_build(data))) == reference(log)
        assert reason in said(caplog)

    def test_an_event_not_later_than_the_last_one(self, grown, history, caplog):
        last = max(event[2] for event in history)
        log = [*history, (EventType.PAGE_VISIT, 2, last, 1), (EventType.PAGE_VISIT, 2, LATER, 1)]
        self.check(grown(log), log, caplog, "there are 602 events now, not 601 as before; the sequence store is built")

    def test_an_event_that_is_gone(self, grown, history, caplog):
        log = [*history[1:], (EventType.PAGE_VISIT, 2, LATER, 1)]
        self.check(grown(log), log, caplog, "there are 600 events now, not 601")

    @pytest.mark.parametrize("field", range(4))
    def test_an_event_that_changed(self, grown, history, caplog, field):
        place = next(place for place, event in enumerate(history) if event[0] == EventType.ADD_TO_CART)
        kind, client, time, sku = history[place]
        others = (EventType.REMOVE_FROM_CART, client + 1, time + timedelta(seconds=1), 7 if sku != 7 else 3)
        changed = [kind, client, time, sku]
        changed[field] = others[field]
        log = [*history[:place], tuple(changed), *history[place + 1 :], (EventType.PAGE_VISIT, 2, LATER, 1)]
        self.check(grown(log), log, caplog, "events that were there before have changed; the sequence store is built")

    def test_an_earlier_first_day(self, grown, history, caplog):
        log = [*history, (EventType.PAGE_VISIT, 2, START - DAY, 1)]
        data = grown(log)
        assert earlier_store(data) is None
        self.check(data, log, caplog, "putting the events in order (once for these files)")

    def test_more_new_events_than_are_quickly_added(self, grown, history, caplog, monkeypatch):
        monkeypatch.setattr(appending, "_MOST_NEW", 3)
        log = [*history, *moved(history[:4], 60 * DAY)]
        self.check(grown(log), log, caplog, "4 new events")

    def test_a_store_of_another_layout(self, grown, history, caplog):
        log = [*history, (EventType.PAGE_VISIT, 2, LATER, 1)]
        data = grown(log)
        for note in data.paths.sequences("").glob(f"*/{NOTE}"):
            note.write_text('{"version": 1}')
        self.check(data, log, caplog, "putting the events in order")


def test_unknown_skus_that_get_properties_are_noticed(tmp_path, history, monkeypatch):
    """Left out of the earlier store, they belong into the new one."""
    monkeypatch.delitem(SKUS, 12)
    paths = written(tmp_path, [event for event in history if event[3] != 12]).paths
    log = [*history, (EventType.PAGE_VISIT, 2, LATER, 1)]
    monkeypatch.setitem(SKUS, 12, (70, 0, 3))
    written(tmp_path, history)
    known = pl.read_parquet(paths.properties)
    known.filter(pl.col(schema.SKU) != 12).write_parquet(paths.properties)
    build_or_open(ChallengeData(paths, True, "drop"))
    written(tmp_path, log)
    assert read_back(select(append_or_build(ChallengeData(paths, True, "drop")))) == reference(log)


def test_what_was_continued_is_found_by_everyone(tmp_path, history, monkeypatch):
    build_or_open(written(tmp_path, history))
    data = written(tmp_path, [*history, (EventType.PAGE_VISIT, 2, LATER, 1)])
    append_or_build(data)
    monkeypatch.setattr(appending, "append", lambda *_: pytest.fail("made again"))
    shutil.rmtree(tmp_path / "raw" / "input")
    assert len(build_or_open(data).time) == len(history) + 2
    assert BUY in read_back(select(build_or_open(data)))[1]


class TestKeptGrowth:
    """Where a step was kept, its events are taken, and the rest of the files is not looked at."""

    NEW = ((EventType.PAGE_VISIT, 2, LATER, 77), (EventType.SEARCH_QUERY, 98, LATER, (0, *[9] * 15)))

    def grown(self, tmp_path, history, new=NEW) -> ChallengeData:
        before = written(tmp_path, history)
        build_or_open(before)
        first = before.files_fingerprint
        data = written(tmp_path, [*history, *new])
        filed = {
            kind: pl.scan_parquet(data.file(kind)).filter(pl.col("timestamp") >= str(min(event[2] for event in new)))
            for kind in data.event_types
        }
        keep_growth(data.paths, first, data.files_fingerprint, filed)
        return data

    @pytest.mark.usefixtures("no_building")
    def test_the_bytes_of_a_rebuild(self, tmp_path, tmp_path_factory, history, monkeypatch):
        data = self.grown(tmp_path, history)
        monkeypatch.setattr(appending, "compared_growth", lambda _: pytest.fail("compared"))
        append_or_build(data)
        assert contents(data) == built_afresh(tmp_path_factory.mktemp("again"), [*history, *self.NEW])

    @pytest.mark.parametrize("lost", ["growth", "sequences"])
    def test_without_the_step_or_the_store_before(self, tmp_path, history, lost):
        data = self.grown(tmp_path, history)
        shutil.rmtree(data.paths.cache / lost)
        assert read_back(select(append_or_build(data))) == reference([*history, *self.NEW])

    def test_new_events_in_the_second_of_the_last_one(self, tmp_path, history):
        last = max(event[2] for event in history)
        new = [(EventType.PAGE_VISIT, 2, last, 77)]
        data = self.grown(tmp_path, history, new)
        assert read_back(select(append_or_build(data))) == reference([*history, *new])
