"""Events by shards of clients: every event in the shard of its client, once; made once, whole or not at all."""

import pickle
from collections import Counter

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.ubp.data.small_logs import CLIENTS, DAYS, RELEVANT, START, random_log, write
from ubp.data import schema
from ubp.data import shards as module
from ubp.data.history import ChallengeData
from ubp.data.schema import EventType
from ubp.data.shards import Shards, sharded, shards_of
from ubp.io.errors import UserError
from ubp.io.spread import in_turn

ALL = np.arange(CLIENTS, dtype=np.int64)


def plain_shard(client: int, count: int) -> int:
    """The same in whole numbers of any size."""
    return (client * 0x9E3779B97F4A7C15 % 2**64 >> 32) % count


def listed(frame: pl.LazyFrame) -> Counter:
    """Events, codes as text: how often each occurs."""
    return Counter(tuple(map(str, row)) for row in frame.collect().iter_rows())


def opened(root, log=None, **given) -> ChallengeData:
    return ChallengeData(write(log or random_log(0), root), submit=True, **given)


@pytest.fixture
def data(tmp_path) -> ChallengeData:
    return opened(tmp_path)


class TestHash:
    @given(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=20), st.integers(1, module.MOST_SHARDS))
    def test_that_of_plain_integers_in_numpy_and_in_polars(self, clients, count):
        wanted = [plain_shard(client, count) for client in clients]
        assert shards_of(np.array(clients, np.int64), count).tolist() == wanted
        frame = pl.DataFrame({schema.CLIENT_ID: clients}, schema={schema.CLIENT_ID: pl.Int64})
        assert frame.select(module.shard_of_client(count)).to_series().to_list() == wanted

    @pytest.mark.parametrize("step", [1, 2, 64, 1000, 2**20])
    def test_shards_of_about_the_same_size_whatever_the_step_of_the_ids(self, step):
        counts = np.bincount(shards_of(np.arange(16_000, dtype=np.int64) * step, 16), minlength=16)
        assert 700 < counts.min() <= counts.max() < 1300


class TestSharded:
    @pytest.mark.parametrize("count", [1, 3, 40])
    @pytest.mark.parametrize("rows", [7, 1000])
    def test_each_event_is_in_its_clients_shard(self, data, monkeypatch, count, rows):
        monkeypatch.setattr(module, "_ROWS_PER_SLICE", rows)
        for event_type in data.event_types:
            wanted = [Counter() for _ in range(count)]
            for row, times in listed(data.events(event_type)).items():
                wanted[plain_shard(int(row[0]), count)][row] = times
            found = [listed(data.of_shard(shard).events(event_type)) for shard in sharded(data, count, in_turn)]
            assert found == wanted

    def test_columns_are_as_promised_also_of_a_shard_without_events(self, tmp_path):
        data = opened(tmp_path, random_log(0, empty=(EventType.SEARCH_QUERY,)))
        (shard,) = sharded(data, 1, in_turn)
        for event_type in data.event_types:
            promised = data.events(event_type).collect_schema()
            assert data.of_shard(shard).events(event_type).collect_schema() == promised

    def test_skus_without_properties_are_left_out(self, tmp_path):
        log = random_log(0)
        bought = log.events[EventType.PRODUCT_BUY]
        log.events[EventType.PRODUCT_BUY] = pl.concat([bought, bought.head(3).with_columns(sku=pl.lit(5, pl.Int64))])
        data = opened(tmp_path, log, unknown_sku="drop")
        found = sum(
            (listed(data.of_shard(shard).events(EventType.PRODUCT_BUY)) for shard in sharded(data, 3, in_turn)),
            Counter(),
        )
        assert found == listed(data.events(EventType.PRODUCT_BUY))
        assert found.total() == len(bought)

    def test_made_once(self, data):
        def never(*_):
            raise AssertionError

        made = sharded(data, 3, in_turn)
        assert sharded(data, 3, never) == made

    def test_a_piece_of_work_can_be_sent_and_done_again(self, data):
        """As a worker of Ray has it: pickled, and once more after the first one was lost."""

        def lost_once(_, pieces):
            return [pickle.loads(pickle.dumps(piece))() for piece in pieces for _ in range(2)]  # noqa: S301 (our own)

        for shard in sharded(data, 3, lost_once):
            for event_type in data.event_types:
                clients = shard.own(ALL)
                found = data.of_shard(shard).events(event_type)
                assert listed(found) == listed(data.events(event_type, clients))

    def test_nothing_is_kept_of_files_that_changed_meanwhile(self, data):
        def changing(_, pieces):
            random_log(1).write(data.paths.root)
            return [piece() for piece in pieces]

        with pytest.raises(UserError, match="changed while they were read"):
            sharded(data, 3, changing)
        assert not data.paths.shards(data.events_fingerprint, 3).exists()

    @pytest.mark.parametrize("count", [0, module.MOST_SHARDS + 1])
    def test_too_few_and_too_many(self, data, count):
        with pytest.raises(UserError, match=f"shards={count}: must be from 1 to {module.MOST_SHARDS}"):
            sharded(data, count, in_turn)


class TestHistoryOfAShard:
    def test_the_day_and_the_mask_hold(self, data):
        day = START + (DAYS // 2) * (data.as_of - START) / DAYS
        day = day.replace(hour=0, minute=0, second=0)
        view = data.before(day).masked(0.4, 1)
        for event_type in data.event_types:
            found = [listed(view.of_shard(shard).events(event_type, RELEVANT)) for shard in sharded(data, 3, in_turn)]
            assert sum(found, Counter()) == listed(view.events(event_type, np.sort(RELEVANT)))

    def test_its_clients_are_those_of_the_shard(self, data):
        views = [data.of_shard(shard) for shard in sharded(data, 3, in_turn)]
        for number, view in enumerate(views):
            assert all(plain_shard(client, 3) == number for client in view.seen().tolist())
            assert view.clients.tolist() == np.intersect1d(view.seen(), RELEVANT).tolist()
        assert np.sort(np.concatenate([view.seen() for view in views])).tolist() == data.seen().tolist()

    def test_what_is_said_of_the_history_is_said_of_all_clients(self, data):
        for view in (data.of_shard(shard) for shard in sharded(data, 40, in_turn)):
            assert (view.start, view.as_of, view.latest) == (data.start, data.as_of, data.latest)
            assert (view.fingerprint, view.events_fingerprint) == (data.fingerprint, data.events_fingerprint)
            assert all(view.has(event_type) == data.has(event_type) for event_type in data.event_types)
            masked = view.masked(0.5, 0)
            assert all(masked.has(event_type) == data.has(event_type) for event_type in data.event_types)

    def test_its_rows_are_its_own_and_the_whole_is_of_all_clients(self, data):
        kind = EventType.PRODUCT_BUY
        views = [data.of_shard(shard) for shard in sharded(data, 3, in_turn)]
        assert sum(view.rows(kind) for view in views) == data.rows(kind)
        assert listed(views[0].whole.events(kind)) == listed(data.events(kind))

    def test_sent_elsewhere_it_is_the_same(self, data):
        assert len(data.clients)
        data.seen(np.sort(RELEVANT))  # opens what cannot be sent
        for sent in (pickle.loads(pickle.dumps(view)) for view in (data, data.before(data.as_of).masked(0.3, 1))):  # noqa: S301
            assert sent.clients.tolist() == sent.seen(np.sort(RELEVANT)).tolist()
        assert isinstance(sharded(data, 2, in_turn), Shards)
