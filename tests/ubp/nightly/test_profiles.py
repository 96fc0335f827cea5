"""Profiles day by day: what is written is what polars and pandas read, and the newest of each client is found."""

from datetime import date

import numpy as np
import polars as pl
import pytest

from ubp.blocks import embeddings
from ubp.blocks.embeddings import EmbeddingTable
from ubp.nightly.profiles import ProfileDays, in_space, space_of

DAYS = [date(2022, 11, day) for day in (7, 8, 9)]


def table(ids, value) -> EmbeddingTable:
    vectors = np.arange(len(ids) * 3, dtype=np.float32).reshape(-1, 3) + np.float32(value)
    return EmbeddingTable(np.array(ids, dtype=np.int64), vectors, {"name": "x"})


@pytest.fixture
def days(tmp_path) -> ProfileDays:
    found = ProfileDays(tmp_path / "profiles" / "x")
    for day, ids, version in zip(DAYS, ([1, 2, 3, 5], [5, 2], [3]), ("a", "a", "b"), strict=True):
        found.write(day, table(ids, 100 * day.day), version, None)
    return found


def test_polars_reads_all_days_with_one_line(days):
    found = pl.scan_parquet(f"{days.folder}/**/*.parquet", hive_partitioning=True).collect()
    assert found.schema == {
        "client_id": pl.Int64, "version": pl.String, "embedding": pl.Array(pl.Float32, 3), "day": pl.Date
    }  # fmt: skip
    assert found.select("client_id", "version", "day").rows() == [
        *((client, "a", DAYS[0]) for client in (1, 2, 3, 5)), (5, "a", DAYS[1]), (2, "a", DAYS[1]), (3, "b", DAYS[2])
    ]  # fmt: skip
    newest = found.sort("day").unique("client_id", keep="last").sort("client_id")
    assert newest["day"].to_list() == [DAYS[0], DAYS[1], DAYS[2], DAYS[1]]
    assert newest["embedding"].to_list()[1] == [803.0, 804.0, 805.0]


def test_groups_of_rows_do_not_show(tmp_path, monkeypatch):
    monkeypatch.setattr(embeddings, "_GROUP", 6)
    days, wanted = ProfileDays(tmp_path), table(range(7), 0)
    days.write(DAYS[0], wanted, "a", None)
    found = days.read(DAYS[0])
    assert found["client_id"].to_list() == list(range(7))
    assert np.array_equal(found["embedding"].to_numpy(), wanted.vectors)


@pytest.mark.parametrize("own", [["x", "y", "z"], [11, 12, 13]])
def test_the_logs_own_ids_stand_beside(tmp_path, own):
    days = ProfileDays(tmp_path)
    days.write(DAYS[0], table([3, 1], 0), "a", pl.DataFrame({"id": [1, 2, 3], "original": own}))
    assert pl.read_parquet(days.file(DAYS[0]))["original"].to_list() == [own[2], own[0]]


def test_the_newest_of_a_version_before_a_day(days):
    found = days.newest(np.array([1, 2, 4, 5]), DAYS[2], "a")
    assert found.client_ids.tolist() == [1, 2, 5]
    assert found.vectors[:, 0].tolist() == [700.0, 803.0, 800.0]
    assert days.newest(np.array([2]), DAYS[1], "a").vectors[:, 0].tolist() == [703.0]
    assert days.newest(np.array([3]), date(2023, 1, 1), "b").vectors[:, 0].tolist() == [900.0]
    assert days.newest(np.array([4]), DAYS[2], "a") is None
    assert days.newest(np.array([1]), DAYS[0], "a") is None


def test_days_and_lineage(days):
    (days.folder / "day=soon").mkdir()
    (days.of_day(date(2022, 12, 1))).mkdir()  # begun, not finished
    assert days.days() == DAYS[::-1]
    assert days.lineage(DAYS[2]) == {"name": "x", "version": "b"}


def test_spaces():
    assert space_of("a") == space_of("b@a") == "a"
    assert in_space("c", space_of("b@a")) == "c@a"
