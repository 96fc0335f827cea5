"""What a log is warned of: repeated rows, crowded clients, empty days, clocks ahead."""

from datetime import date, datetime, timedelta

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ubp.data import log_checks
from ubp.data.log_checks import gaps_between, repeated, warnings
from ubp.data.schema import EventType

NOON = datetime(2025, 3, 1, 12)
KIND = EventType.PRODUCT_BUY


def lines(tmp_path, rows, now=datetime(2026, 1, 1)) -> list[str]:
    file = tmp_path / "buy.parquet"
    table = pl.DataFrame(rows, schema=["client_id", "timestamp", "sku"], orient="row")
    table.write_parquet(file)
    ids = table["client_id"].unique().sort()
    return list(warnings({KIND: file}, pl.DataFrame({"id": ids, "original": [f"c{each}" for each in ids]}), now))


def test_nothing_to_say_of_a_plain_log(tmp_path):
    assert lines(tmp_path, [(1, NOON, 5), (1, NOON, 6), (2, NOON, 5), (1, NOON + timedelta(1), 5)]) == []


def test_repeated_rows(tmp_path):
    (line,) = lines(tmp_path, [(1, NOON, 5), (1, NOON, 5), (1, NOON, 5), (2, NOON, 5)])
    assert line.startswith("product_buy: 2 rows repeat another one (the same client, time and sku); they stay;")


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2), st.integers(0, 2)), max_size=40))
def test_repeated_rows_are_all_but_one_of_each_also_in_parts(tmp_path_factory, rows):
    file = tmp_path_factory.mktemp("parts") / "buy.parquet"
    columns = {"client_id": pl.Int64, "timestamp": pl.Int64, "sku": pl.Int64}
    pl.DataFrame(rows, schema=columns, orient="row").write_parquet(file)
    wanted = len(rows) - len(set(rows))
    assert repeated(file, KIND) == wanted
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(log_checks, "_ROWS_AT_ONCE", 7)
        assert repeated(file, KIND) == wanted


def test_crowded_clients_by_their_own_names(tmp_path, monkeypatch):
    monkeypatch.setattr(log_checks, "CROWDED", 3)
    rows = [(client, NOON, item) for client, count in ((1, 3), (2, 2), (3, 4)) for item in range(count)]
    (line,) = lines(tmp_path, rows)
    assert line.startswith("clients with 3 events or more: 2 (c3 with 4, c1 with 3); where they are machines")


def test_empty_days_are_named_the_longest_first(tmp_path):
    rows = [(1, NOON + timedelta(days), 5) for days in (0, 2, 3, 7, 9, 20)]
    (line,) = lines(tmp_path, rows)
    assert line.startswith("15 days inside the log have no events at all (the longest: 2025-03-11 to 2025-03-20, ")
    assert "2025-03-05 to 2025-03-07, 2025-03-02)" in line


@given(st.sets(st.integers(0, 60), min_size=1, max_size=40))
def test_gaps_are_the_days_that_are_not_there(offsets):
    start = date(2025, 1, 1)
    days = sorted(start + timedelta(offset) for offset in offsets)
    found = gaps_between(pl.Series(days))
    between = {days[0] + timedelta(n) for n in range((days[-1] - days[0]).days)} - set(days)
    assert {first + timedelta(n) for first, last in found for n in range((last - first).days + 1)} == between
    assert all(first - timedelta(1) in days and last + timedelta(1) in days for first, last in found)


def test_clocks_ahead(tmp_path):
    (line,) = lines(tmp_path, [(1, NOON, 5), (1, NOON + timedelta(hours=1), 5)], now=NOON)
    assert line.startswith(
        "product_buy: 1 events lie ahead of now (2025-03-01 12:00), the last at 2025-03-01 13:00:00;"
    )


def test_a_file_without_rows_is_no_reason(tmp_path):
    file = tmp_path / "buy.parquet"
    pl.DataFrame(schema={"client_id": pl.Int64, "timestamp": pl.Datetime("us"), "sku": pl.Int64}).write_parquet(file)
    assert list(warnings({KIND: file}, pl.DataFrame(schema={"id": pl.Int64, "original": pl.Int64}), NOON)) == []
