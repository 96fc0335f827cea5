"""The events kept of relevant clients: those in the files on any day, row by row; made once, whole or not at all."""

from collections import Counter
from datetime import timedelta

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.conftest import few
from tests.ubp.data.small_logs import CLIENTS, DAYS, RELEVANT, START, random_log, write
from ubp.data import history as history_module
from ubp.data import relevant_events as module
from ubp.data import schema
from ubp.data.history import ChallengeData
from ubp.data.schema import EVENT_TYPES, EventType
from ubp.io.errors import UserError

VISIT, ADD = EventType.PAGE_VISIT, EventType.ADD_TO_CART
ALL, HOUR, DAY = np.arange(CLIENTS, dtype=np.int64), timedelta(hours=1), timedelta(days=1)


def opened(log, root, **given) -> ChallengeData:
    return ChallengeData(write(log, root), submit=True, **given)


def listed(frame: pl.LazyFrame) -> Counter:
    """Events, codes as text: how often each occurs."""
    return Counter(tuple(map(str, row)) for row in frame.collect().iter_rows())


def from_files(data: ChallengeData, event_type: EventType, clients, as_of=None) -> Counter:
    """The same read from the whole files, row by row."""
    wanted = set(np.asarray(clients).tolist())
    rows = data.whole.events(event_type).collect().iter_rows()
    return Counter(tuple(map(str, row)) for row in rows if row[0] in wanted and (as_of is None or row[1] < as_of))


def folders(data: ChallengeData) -> list[str]:
    """Names of what is kept, without the folder of notes."""
    kept = data.paths.relevant_events("x").parent
    return sorted(path.name for path in kept.iterdir() if path.name != ".done") if kept.exists() else []


@pytest.fixture
def data(tmp_path) -> ChallengeData:
    return opened(random_log(0), tmp_path)


class TestEvents:
    @settings(max_examples=few(12), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        seed=st.integers(0, 5),
        hours=st.integers(24, 24 * DAYS + 30),
        clients=st.sets(st.sampled_from(RELEVANT.tolist())),
        rows_per_part=st.sampled_from([7, 30, 1000]),
        row_group=st.sampled_from([3, 1000]),
    )
    def test_those_in_the_files_on_any_day(
        self, seed, hours, clients, rows_per_part, row_group, tmp_path_factory, monkeypatch
    ):
        monkeypatch.setattr(module, "_ROWS_PER_PART", rows_per_part)
        monkeypatch.setattr(module, "_ROW_GROUP", row_group)
        data = opened(random_log(seed), tmp_path_factory.mktemp("log"))
        asked, day = np.array(sorted(clients), np.int64), START + hours * HOUR
        for event_type in EVENT_TYPES:
            found = data.before(day).events(event_type, asked)
            assert listed(found) == from_files(data, event_type, asked, day)
            assert found.collect_schema() == data.events(event_type).collect_schema()
        assert folders(data)

    @pytest.mark.parametrize("rows_per_part", [9, 1000])
    @pytest.mark.parametrize("timestamps", ["text", "ms", "ns"])
    def test_logs_of_any_form(self, timestamps, rows_per_part, tmp_path, monkeypatch):
        monkeypatch.setattr(module, "_ROWS_PER_PART", rows_per_part)
        log = random_log(3, empty=(EventType.SEARCH_QUERY, EventType.REMOVE_FROM_CART))
        paths = write(log, tmp_path)
        log.write(tmp_path, timestamps, null_typed=True)
        data = ChallengeData(paths, submit=True)
        for event_type in EVENT_TYPES:
            found = data.events(event_type, RELEVANT)
            assert listed(found) == from_files(data, event_type, RELEVANT)
            assert found.collect_schema() == data.events(event_type).collect_schema()

    def test_skus_without_properties_are_dropped(self, tmp_path):
        log = random_log(1)
        log.properties = log.properties.filter(pl.col("sku") != 103)
        data = opened(log, tmp_path, unknown_sku="drop")
        found = data.events(ADD, RELEVANT).collect()
        assert 103 not in found["sku"]
        assert listed(found.lazy()) == from_files(data, ADD, RELEVANT)

    def test_a_mask_takes_the_same_events(self, data):
        masked = data.before(START + 40 * DAY).masked(0.4, seed=2)
        for event_type in EVENT_TYPES:
            whole = masked.events(event_type).filter(pl.col("client_id").is_in(RELEVANT.tolist()))
            assert listed(masked.events(event_type, RELEVANT)) == listed(whole)
        assert 0 < masked.events(ADD, RELEVANT).collect().height < data.events(ADD, RELEVANT).collect().height

    def test_of_clients_that_are_not_all_relevant_nothing_is_kept(self, data):
        for clients in (ALL, ALL[-1:], np.array([*RELEVANT, 10**12]), np.array([-1])):
            assert listed(data.events(VISIT, clients)) == from_files(data, VISIT, clients)
        assert folders(data) == []

    def test_before_there_are_relevant_clients_nothing_is_kept(self, data):
        data.paths.relevant_clients.unlink()
        assert listed(data.events(VISIT, RELEVANT)) == from_files(data, VISIT, RELEVANT)
        assert folders(data) == []


class TestOrder:
    @pytest.mark.parametrize("rows_per_part", [7, 1000])
    def test_by_time_over_all_parts(self, rows_per_part, data, monkeypatch):
        monkeypatch.setattr(module, "_ROWS_PER_PART", rows_per_part)
        for event_type in EVENT_TYPES:
            data.events(event_type, RELEVANT).collect()
            files = sorted((data.paths.relevant_events(folders(data)[0]) / event_type).iterdir())
            times = pl.concat([pl.read_parquet(file)["timestamp"] for file in files])
            assert times.is_sorted()
            assert not times.is_empty()
            assert len(files) > 1 or rows_per_part == 1000

    def test_what_lies_after_a_day_is_not_read(self, data, monkeypatch):
        """Later row groups are spoilt on disk: whoever has opened a day before them does not notice."""
        monkeypatch.setattr(module, "_ROW_GROUP", 5)
        day = START + 30 * DAY
        earlier = data.before(day)
        expected = listed(earlier.events(ADD, RELEVANT))
        (file,) = (data.paths.relevant_events(folders(data)[0]) / ADD).iterdir()
        content, groups = bytearray(file.read_bytes()), pq.ParquetFile(file).metadata
        spoilt = 0
        for group in map(groups.row_group, range(groups.num_row_groups)):
            columns = [group.column(number) for number in range(group.num_columns)]
            if columns[1].statistics.min >= day:
                for column in columns:
                    start = column.dictionary_page_offset or column.data_page_offset
                    content[start : start + column.total_compressed_size] = b"\xff" * column.total_compressed_size
                    spoilt += 1
        file.write_bytes(content)
        assert spoilt
        assert listed(earlier.events(ADD, RELEVANT)) == expected
        with pytest.raises(pl.exceptions.PolarsError):
            pl.read_parquet(file)

    def test_files_that_were_spoilt_since_are_made_again(self, data):
        expected = listed(data.events(ADD, RELEVANT))
        (file,) = (data.paths.relevant_events(folders(data)[0]) / ADD).iterdir()
        for content in (b"", file.read_bytes()[:-20], None):
            file.unlink()
            if content is not None:
                file.write_bytes(content)
            again = ChallengeData(data.paths, True)
            assert listed(again.events(ADD, RELEVANT)) == expected


class TestMaking:
    def test_the_files_are_read_once(self, data, monkeypatch):
        expected = listed(data.events(VISIT, RELEVANT))
        monkeypatch.setattr(history_module, "typed", lambda *_: pytest.fail("parsed again"))
        assert listed(ChallengeData(data.paths, submit=True).events(VISIT, RELEVANT)) == expected
        assert data.before(START + 20 * DAY).events(VISIT, RELEVANT[:3]).collect().height

    def test_a_changed_log_is_read_anew(self, tmp_path):
        log = random_log(0)
        before = listed(opened(log, tmp_path).events(VISIT, RELEVANT))
        log.events[VISIT] = log.events[VISIT][1:]
        changed = ChallengeData(log.write(tmp_path), submit=True)
        after = listed(changed.events(VISIT, RELEVANT))
        assert after == from_files(changed, VISIT, RELEVANT) != before
        assert len(folders(changed)) == 2

    def test_other_relevant_clients_have_events_of_their_own(self, data):
        data.events(VISIT, RELEVANT).collect()
        np.save(data.paths.relevant_clients, ALL)
        other = ChallengeData(data.paths, submit=True)
        assert listed(other.events(VISIT, ALL)) == from_files(other, VISIT, ALL)
        assert len(folders(data)) == 2
        np.save(data.paths.relevant_clients, ALL[::-1])
        ChallengeData(data.paths, submit=True).events(VISIT, ALL).collect()
        assert len(folders(data)) == 2  # the order of the ids does not matter

    def test_killed_half_way(self, data, monkeypatch):
        with monkeypatch.context() as patch:
            patch.setattr(module.shutil, "rmtree", lambda *_, **__: None)  # nothing tidies up after a kill
            patch.setattr(module, "NOTE", "no folder/of this name")  # all is written but the note
            with pytest.raises(FileNotFoundError):
                data.events(VISIT, RELEVANT)
        folder = data._relevant_events.folder
        (half,) = folder.parent.glob(f".*.{folder.name}")
        assert len(list(half.glob("*/*.parquet"))) == len(EVENT_TYPES)
        half.rename(half.with_name(f".1.{folder.name}"))  # as if another process had left it
        assert not folder.exists()
        assert listed(data.events(VISIT, RELEVANT)) == from_files(data, VISIT, RELEVANT)
        assert folders(data) == [folder.name]

    def test_a_log_that_changes_meanwhile_is_not_kept(self, tmp_path, monkeypatch):
        log = random_log(0)
        data = opened(log, tmp_path)
        make = module.RelevantEvents._make

        def changed_meanwhile(events, folder):
            make(events, folder)
            log.events[VISIT] = log.events[VISIT][1:]
            log.write(tmp_path)

        monkeypatch.setattr(module.RelevantEvents, "_make", changed_meanwhile)
        with pytest.raises(UserError, match="changed while they were read"):
            data.events(VISIT, RELEVANT)
        assert folders(data) == []

    def test_all_types_and_no_more_lie_there(self, data, monkeypatch):
        monkeypatch.setattr(module, "_ROWS_PER_PART", 10)
        data.events(VISIT, RELEVANT)
        folder = data._relevant_events.folder
        assert {path.name for path in folder.iterdir()} == {*map(str, EVENT_TYPES), module.NOTE}
        for event_type, table in random_log(0).events.items():
            kept = sum(len(pl.read_parquet(file)) for file in (folder / event_type).glob("*.parquet"))
            assert kept == table[schema.CLIENT_ID].is_in(RELEVANT.tolist()).sum()
