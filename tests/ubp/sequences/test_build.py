"""The store is built once, whole or not at all, and holds the reference."""

import multiprocessing
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.ubp.sequences.logs import BUY, START, histories, quick, read_back, reference, written
from ubp.data import schema
from ubp.data.history import ChallengeData
from ubp.data.paths import DataPaths
from ubp.data.schema import EventType, Token
from ubp.io.errors import UserError
from ubp.sequences import build as building
from ubp.sequences.build import build_or_open
from ubp.sequences.selection import select


class TestStore:
    @quick
    @given(histories, st.integers(1, 5), st.randoms())
    def test_is_the_reference_whatever_the_order_of_rows(self, fresh, history, rows_a_part, shuffler):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(building, "_ROWS_PER_PART", rows_a_part)
            built = build_or_open(written(fresh(), history))
        assert read_back(select(built)) == reference(history)
        shuffled = list(history)
        shuffler.shuffle(shuffled)
        again = build_or_open(written(fresh(), shuffled))
        for column in ("clients", "offsets", "time", "event", "subject", "urls", "queries"):
            np.testing.assert_array_equal(getattr(built, column), getattr(again, column))

    def test_layout(self, store, history):
        assert store.last == store.time.max() == max((event[2] - START).total_seconds() for event in history)
        dtypes = {"clients": "int64", "offsets": "int64", "time": "int32", "event": "uint8", "subject": "int32"}
        assert {name: str(getattr(store, name).dtype) for name in dtypes} == dtypes
        assert isinstance(store.time, np.memmap)
        assert not store.time.flags.writeable
        assert store.names.dtype == store.queries.dtype == np.uint8
        assert store.queries.shape == (3, 16)
        assert (np.diff(store.clients) > 0).all()
        assert (np.diff(store.urls) > 0).all()

    def test_properties_by_reference(self, store):
        assert store.skus.tolist() == [-5, 3, 7, 12]
        assert store.categories.tolist() == [31, 30, 70, 70]
        assert store.prices.tolist() == [3, 99, 3, 0]
        assert store.names[:, 0].tolist() == [250, 2, 1, 3]

    @pytest.mark.parametrize("name", ["time.npy", "clients.npy", "queries.npy", "store.json"])
    def test_a_store_that_was_spoilt_is_built_again(self, tmp_path, history, name):
        opened = written(tmp_path, history)
        build_or_open(opened)
        file = opened.paths.sequences(opened.events_fingerprint) / name
        whole = file.read_bytes()
        for content in (whole[:-1], whole[:-3] + b"\xff" + whole[-2:], b"", None):
            file.unlink()
            if content is not None:
                file.write_bytes(content)
            assert read_back(select(build_or_open(opened))) == reference(history)
            assert file.read_bytes() == whole

    def test_single_purchase_and_nothing_else(self, tmp_path):
        built = build_or_open(written(tmp_path, []))
        assert read_back(select(built)) == {1: [BUY]}
        assert built.urls.shape == (0,)
        assert built.queries.shape == (0, 16)
        visits = select(built).of_types([EventType.PAGE_VISIT]).at_least(1)
        assert len(visits) == 0
        assert visits.vocabulary(schema.URL).size == schema.FIRST_TOKEN
        assert select(built).tokens(schema.URL, visits.vocabulary(schema.URL)).tolist() == [Token.NONE]

    def test_parts_do_not_show(self, store, history, tmp_path, monkeypatch):
        monkeypatch.setattr(building, "_ROWS_PER_PART", 20)
        monkeypatch.setattr(building, "_SAMPLE", 10)
        built = build_or_open(written(tmp_path, history))
        for column in ("clients", "offsets", "time", "event", "subject"):
            np.testing.assert_array_equal(getattr(built, column), getattr(store, column))


class TestBuilding:
    def test_half_built_is_never_read(self, tmp_path, monkeypatch):
        data = written(tmp_path, [])
        with monkeypatch.context() as patch:
            patch.setattr(building, "write_header", lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                build_or_open(data)
        assert not data.paths.sequences(data.events_fingerprint).exists()
        assert read_back(select(build_or_open(data))) == {1: [BUY]}

    def test_what_a_kill_left_is_removed(self, tmp_path):
        data = written(tmp_path, [])
        folder = data.paths.sequences(data.events_fingerprint)
        left = folder.with_name(f".123.{folder.name}")
        left.mkdir(parents=True)
        (left / "time.npy").write_text("half")
        build_or_open(data)
        assert sorted(path.name for path in folder.parent.iterdir()) == [".done", folder.name]
        assert not (folder / "parts").exists()

    def test_built_once(self, tmp_path, monkeypatch):
        data = written(tmp_path, [])
        build_or_open(data)
        monkeypatch.setattr(building, "build", lambda *_: pytest.fail("built again"))
        build_or_open(ChallengeData(data.paths, submit=True))

    def test_as_of_and_relevant_clients_do_not_change_it(self, tmp_path, history, monkeypatch):
        data = written(tmp_path, history)
        whole = read_back(select(build_or_open(data.before(START + timedelta(days=9)))))
        assert whole == reference(history)
        monkeypatch.setattr(building, "build", lambda *_: pytest.fail("built again"))
        np.save(data.paths.relevant_clients, np.array([0, 3], dtype=np.int64))
        build_or_open(ChallengeData(data.paths, submit=True))
        build_or_open(ChallengeData(data.paths, submit=True, as_of=START + timedelta(days=20)))

    def test_what_to_do_with_unknown_skus_does(self, tmp_path):
        paths = written(tmp_path, []).paths
        unknown = (EventType.PRODUCT_BUY, 1, START, 7)
        written(tmp_path, [unknown])
        pl.read_parquet(paths.properties).filter(pl.col("sku") != 12).write_parquet(paths.properties)
        stores = [build_or_open(ChallengeData(paths, True, choice)) for choice in ("error", "drop")]
        assert [len(store.time) for store in stores] == [2, 2]
        assert len(list((tmp_path / "cache" / "sequences").glob("*/store.json"))) == 2

    @pytest.mark.parametrize("note", ['{"version": 1, "start": "2022-12-27T00:00:00"}', '{"version": 99}'])
    def test_built_again_when_the_layout_changes(self, tmp_path, note):
        data = written(tmp_path, [])
        folder = data.paths.sequences(data.events_fingerprint)
        folder.mkdir(parents=True)
        (folder / "store.json").write_text(note)
        assert read_back(select(build_or_open(data))) == {1: [BUY]}

    def test_built_again_when_the_history_changes(self, tmp_path):
        build_or_open(written(tmp_path, []))
        more = (EventType.PAGE_VISIT, 1, START, 8)
        assert read_back(select(build_or_open(written(tmp_path, [more])))) == {1: [more, BUY]}

    def test_files_that_change_while_they_are_read_make_no_store(self, tmp_path, monkeypatch):
        data = written(tmp_path, [BUY])
        build = building.build

        def change_then_build(data: ChallengeData, folder: Path) -> None:
            written(tmp_path, [BUY, BUY])
            build(data, folder)

        monkeypatch.setattr(building, "build", change_then_build)
        with pytest.raises(UserError, match="changed while they were read; give the command again"):
            build_or_open(data)
        assert not list((tmp_path / "cache" / "sequences").glob("*/store.json"))

    def test_times_that_cannot_be_are_refused(self, tmp_path):
        data = written(tmp_path, [(EventType.PAGE_VISIT, 1, datetime(2150, 1, 1), 8)])
        with pytest.raises(UserError, match="fix the timestamps"):
            build_or_open(data)

    def test_processes_at_the_same_time_wait(self, tmp_path):
        written(tmp_path, [])
        with multiprocessing.get_context("spawn").Pool(2) as workers:
            assert workers.map(_build_in_a_process, [tmp_path] * 2) == [1, 1]
        assert len(list((tmp_path / "cache" / "sequences").glob("*/store.json"))) == 1


def _build_in_a_process(root: Path) -> int:
    return len(select(build_or_open(ChallengeData(DataPaths(root), submit=True))))
