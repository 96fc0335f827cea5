"""Files of somebody's log, parsed: times of every form, ids of every type, and what cannot be used."""

import gzip
import sqlite3
import uuid
from contextlib import closing
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ubp.data import log_sources
from ubp.data.log_schema import schema_of
from ubp.data.log_sources import files_of, stage_events, stage_items
from ubp.io.errors import UserError

LIMITS = [-(2**63), 2**63 - 1]


def source_of(log_zone=None, **fields):
    log = {"zone": log_zone, "events": {"sales": {"as": "product_buy", "file": "f", "client": "who", "time": "when", "item": "what", **fields}}}  # noqa: E501  # fmt: skip
    return schema_of(log).events[0]


def staged(tmp_path, table, log_zone=None, drop=False, name="f.parquet", **fields) -> pl.DataFrame:
    file = tmp_path / name
    table.write_parquet(file) if name.endswith(".parquet") else table.write_csv(file)
    return parsed(tmp_path, [file], source_of(log_zone, **fields), log_zone, drop)


def parsed(tmp_path, files, source, log_zone=None, drop=False) -> pl.DataFrame:
    folder = tmp_path / "staged" / uuid.uuid4().hex
    found = stage_events(source, files, log_zone, folder, drop, lambda: None)
    table = pl.concat([frame.collect() for frame in found.frames()])
    assert len(table) == found.rows
    return table


def table(times, whos=7, whats=3, **columns) -> pl.DataFrame:
    who, what = ([each] * len(times) if isinstance(each, int) else each for each in (whos, whats))
    return pl.DataFrame({"when": times, "who": who, "what": what, **columns})


def refused(*arguments, **keywords) -> list[str]:
    with pytest.raises(UserError) as error:
        staged(*arguments, **keywords)
    return error.value.messages


# --- times -----------------------------------------------------------------------------------------------------------

MOMENT = datetime(2025, 7, 9, 16, 30, 5)


@pytest.mark.parametrize(
    ("written", "fields"),
    [
        ("2025-07-09 16:30:05", {}),
        ("09.07.2025 16:30:05", {"format": "%d.%m.%Y %H:%M:%S"}),
        ("2025-07-09T14:30:05Z", {"format": "%Y-%m-%dT%H:%M:%SZ", "zone": "UTC"}),
        ("2025-07-09T10:30:05-0400", {"format": "%Y-%m-%dT%H:%M:%S%z"}),
        ("1752071405", {"format": "epoch"}),
        ("1752071405000", {"format": "epoch_ms"}),
        (1752071405, {"format": "epoch"}),
        (1752071405.0, {"format": "epoch"}),
        (1752071405000000, {"format": "epoch_us"}),
        (datetime(2025, 7, 9, 16, 30, 5), {}),
        (datetime(2025, 7, 9, 14, 30, 5), {"zone": "UTC"}),
        (datetime(2025, 7, 9, 14, 30, 5, tzinfo=UTC), {}),
        (datetime(2025, 7, 9, 14, 30, 5, tzinfo=UTC), {"zone": "America/New_York"}),  # its own zone holds
    ],
)
def test_every_form_of_time_is_read_to_the_second(tmp_path, written, fields):
    found = staged(tmp_path, table([written]), "Europe/Berlin", **fields)
    assert found["timestamp"].to_list() == [MOMENT]
    assert found["timestamp"].dtype == pl.Datetime("us")


def test_days_are_midnights(tmp_path):
    assert staged(tmp_path, table([date(2025, 7, 9)]))["timestamp"].to_list() == [datetime(2025, 7, 9)]
    days = staged(tmp_path, table(["9/7/2025"]), format="%d/%m/%Y", name="f.csv")
    assert days["timestamp"].to_list() == [datetime(2025, 7, 9)]


@settings(max_examples=25, deadline=None)
@given(
    seconds=st.lists(st.integers(100_000, 4_000_000_000), min_size=1, max_size=30),
    zone=st.sampled_from(["UTC", "Europe/Berlin", "America/New_York", "Asia/Kathmandu", "Australia/Lord_Howe"]),
)
def test_any_second_comes_out_as_the_standard_library_has_it(tmp_path_factory, seconds, zone):
    wanted = [datetime.fromtimestamp(each, ZoneInfo(zone)).replace(tzinfo=None) for each in seconds]
    found = staged(tmp_path_factory.mktemp("any"), table(seconds), zone, format="epoch")
    assert found["timestamp"].to_list() == wanted


def test_the_hour_that_comes_twice_is_taken_as_the_first(tmp_path):
    times = ["2025-10-26 01:59:59", "2025-10-26 02:30:00", "2025-10-26 03:00:00"]
    found = staged(tmp_path, table(times), "UTC", zone="Europe/Berlin")
    assert found["timestamp"].dt.hour().to_list() == [23, 0, 2]


def test_the_hour_that_is_left_out_is_no_time(tmp_path):
    times = ["2025-03-30 01:59:59", "2025-03-30 02:30:00", "2025-03-30 03:00:00"]
    (line,) = refused(tmp_path, table(times), "UTC", zone="Europe/Berlin")
    assert "column when: 1 of 3 rows have no time" in line
    assert "(the first: row 1, '2025-03-30 02:30:00')" in line
    # In the log's own zone nothing is converted, so nothing can be lost.
    assert len(staged(tmp_path, table(times), "Europe/Berlin", zone="Europe/Berlin")) == 3


def test_times_of_a_zone_need_the_logs(tmp_path):
    (line,) = refused(tmp_path, table([datetime(2025, 7, 9, tzinfo=UTC)]))
    assert line.endswith(
        "f.parquet: column when: its times have a zone; say in which zone the log's days begin and end: schema.zone=..."
    )


def test_another_format_is_one_line(tmp_path):
    (line,) = refused(tmp_path, table(["31.12.2024", "30.12.2024"]), name="f.csv")
    assert (
        "f.csv: column when: 2 of 2 rows have no time of the form %Y-%m-%d %H:%M:%S in the years 1970 to 2199" in line
    )
    assert "(the first: row 0, '31.12.2024'); correct format: or zone: of sales in the schema, or leave" in line


def test_a_number_that_is_no_epoch_and_a_year_that_is_none(tmp_path):
    (line,) = refused(tmp_path, table([20250709]))
    assert (
        "type Int64 is no time; where it counts from 1970 on, say so: format: one of epoch, epoch_ms, epoch_us" in line
    )
    (line,) = refused(tmp_path, table(["9999-12-31 00:00:00"]))
    assert "1 of 1 rows have no time" in line


@pytest.mark.parametrize("dtype", [pl.Int32, pl.UInt32, pl.Int64, pl.UInt64, pl.Int128, pl.Float64])
def test_an_epoch_of_any_width_is_the_same_time(tmp_path, dtype):
    seconds = pl.Series([1752071405], dtype=dtype)
    assert staged(tmp_path, table(seconds), "Europe/Berlin", format="epoch")["timestamp"].to_list() == [MOMENT]


@pytest.mark.parametrize("number", [1752071405 * 10**9, 2**63 - 1, -(2**63), 2**63 // 1_000_000 + 1])
@pytest.mark.parametrize("form", ["epoch", "epoch_ms"])
def test_a_number_too_large_for_its_unit_is_no_time(tmp_path, number, form):
    (line,) = refused(tmp_path, table([number]), "UTC", format=form)
    assert f"column when: 1 of 1 rows have no time of the form {form}" in line
    assert str(number) in line


@pytest.mark.parametrize("unit", ["ms", "us", "ns"])
@pytest.mark.parametrize("number", LIMITS)
def test_a_datetime_that_has_no_date_is_no_time(tmp_path, unit, number):
    times = pl.Series([number, 0]).cast(pl.Datetime(unit))
    (line,) = refused(tmp_path, table(times))
    assert "column when: 1 of 2 rows have no time" in line
    assert f"the first: row 0, '{number} {unit} after 1970'" in line


# --- ids and values --------------------------------------------------------------------------------------------------

WHEN = ["2025-01-01 00:00:00"] * 2


@pytest.mark.parametrize(
    ("ids", "wanted"),
    [
        (pl.Series(LIMITS), LIMITS),
        (pl.Series([0, 255], dtype=pl.UInt8), [0, 255]),
        (pl.Series([1.0, -(2.0**52)]), [1, -(2**52)]),
        (pl.Series([2**64 - 1, 1], dtype=pl.UInt64), [str(2**64 - 1), "1"]),
        (pl.Series(["a", "ä"], dtype=pl.Categorical), ["a", "ä"]),
        (pl.Series([b"\x00\xff", b"\x01"]), ["00ff", "01"]),
        (pl.Series([True, False]), ["true", "false"]),
    ],
)
def test_ids_of_every_type(tmp_path, ids, wanted):
    found = staged(tmp_path, table(WHEN, whos=ids, whats=ids))
    assert found["client"].to_list() == found["subject"].to_list() == wanted


def test_ids_of_no_type(tmp_path):
    (line,) = refused(tmp_path, table(WHEN, whos=[[1], [2]]))
    assert "column who: type List(Int64) is no id; export integers or text" in line


def test_no_digit_of_a_csv_is_lost(tmp_path):
    found = staged(tmp_path, table(WHEN, whos=["007", "1e5"], whats=LIMITS), name="f.csv")
    assert found["client"].to_list() == ["007", "1e5"]
    assert found["subject"].to_list() == list(map(str, LIMITS))


def test_values(tmp_path):
    found = staged(tmp_path, table(WHEN, paid=["3.50", None]), name="f.csv", value="paid")
    assert found["value"].to_list() == [3.5, None]
    (line,) = refused(tmp_path, table(WHEN, paid=["3,50", "1"]), name="f.csv", value="paid", separator=",")
    assert "column paid: 1 of 2 rows have no number (the first: row 0, '3,50')" in line
    (line,) = refused(tmp_path, table(WHEN, paid=[date(2025, 1, 1)] * 2), value="paid")
    assert "column paid: type Date is no number" in line


# --- rows ------------------------------------------------------------------------------------------------------------


def test_rows_that_cannot_be_used_are_refused_each_column_in_one_line_or_left_out(tmp_path):
    rows = table(
        ["2025-01-01 00:00:00", "soon", "2025-01-01 00:00:02", None, "2025-01-01 00:00:04"],
        whos=["a", "b", None, None, " "], whats=[1, 2, 3, 4, 5], paid=["1", "x", "3", "4", "5"],
    )  # fmt: skip
    messages = refused(tmp_path, rows, value="paid")
    assert [line.split(": ", 2)[2].split(" (")[0] for line in messages] == [
        "3 of 5 rows have no client",
        "2 of 5 rows have no time of the form %Y-%m-%d %H:%M:%S in the years 1970 to 2199",
        "1 of 5 rows have no number",
    ]
    assert "(the first: row 2, None)" in messages[0]
    assert all("leave them out with bad_rows=drop" in line for line in messages)
    found = staged(tmp_path, rows, drop=True, value="paid")
    assert found["subject"].to_list() == [1]


def test_only_the_rows_that_are_meant(tmp_path):
    rows = table([WHEN[0]] * 4, whos=[1, 2, 3, 4], kind=["sale", "refund", "gift", None], shop=[1, 1, 2, 1])
    found = staged(tmp_path, rows, where={"kind": ["sale", "gift"], "shop": 1})
    assert found["client"].to_list() == [1]


def test_users_columns_may_have_our_names(tmp_path):
    file = tmp_path / "f.csv"
    rows = {"subject": [3], "client": ["2025-01-01 00:00:00"], "timestamp": [7], "value": [1.5]}
    pl.DataFrame(rows).write_csv(file)
    source = source_of(client="timestamp", time="client", item="subject", value="value", where={"value": "1.5"})
    (row,) = parsed(tmp_path, [file], source).rows()
    assert row == ("7", datetime(2025, 1, 1), "3", 1.5)


# --- files -----------------------------------------------------------------------------------------------------------


def test_a_pattern_is_all_its_files_by_name(tmp_path):
    (tmp_path / "days").mkdir()
    for day in (2, 1, 3):
        table([f"2025-01-0{day} 00:00:00"], whos=[day]).write_csv(tmp_path / f"days/{day}.csv")
    packed = tmp_path / "days/4.csv.gz"
    packed.write_bytes(gzip.compress(b"what,other,who,when\n3,x,4,2025-01-04 00:00:00\n"))  # in another order
    source = source_of(file="days/*")
    files = files_of(source, tmp_path)
    assert [file.name for file in files] == ["1.csv", "2.csv", "3.csv", "4.csv.gz"]
    found = parsed(tmp_path, files, source)
    assert found["client"].to_list() == ["1", "2", "3", "4"]


def test_files_that_are_not_there_or_of_another_kind(tmp_path):
    with pytest.raises(UserError, match=r"nothing.csv: no such file; put it there, or say where it lies"):
        files_of(source_of(file="nothing.csv"), tmp_path)
    (tmp_path / "log.xlsx").touch()
    with pytest.raises(UserError, match=r"must end with .parquet, .csv, .csv.gz, .sqlite, .db; export it so"):
        files_of(source_of(file="log.*"), tmp_path)


def test_an_absolute_path_stays(tmp_path):
    file = tmp_path / "f.parquet"
    table(WHEN).write_parquet(file)
    assert files_of(source_of(file=str(file)), Path("/elsewhere")) == [file]


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"", "empty, without even names of columns"),
        (b"who,when\n1,2\n", "column what missing (it has who, when); correct sales in the schema"),
        (b"who;when;what\n1;2;3\n", "or its separator, which is ','"),
        (b"who,when,what\n1,\xe9,3\n", "not readable (invalid utf-8 sequence); export it again, a CSV in UTF-8"),
    ],
)
def test_a_csv_that_cannot_be_read_is_one_line(tmp_path, content, line):
    file = tmp_path / "f.csv"
    file.write_bytes(content)
    with pytest.raises(UserError) as error:
        parsed(tmp_path, [file], source_of())
    assert len(error.value.messages) == 1
    assert line in error.value.messages[0]
    assert error.value.messages[0].startswith(str(file))


def test_a_parquet_that_is_none(tmp_path):
    file = tmp_path / "f.parquet"
    file.write_bytes(b"PAR1 or not")
    with pytest.raises(UserError, match=r"f.parquet: not readable"):
        parsed(tmp_path, [file], source_of())


def test_pieces_are_all_rows_in_their_order(tmp_path, monkeypatch):
    monkeypatch.setattr(log_sources, "_PIECE", 3)
    found = staged(tmp_path, table([WHEN[0]] * 10, whos=[*range(9), None]), drop=True)
    assert found["client"].to_list() == list(range(9))


def test_a_file_without_rows(tmp_path):
    (tmp_path / "f.csv").write_text("who,when,what\n")
    assert parsed(tmp_path, [tmp_path / "f.csv"], source_of()).is_empty()


@pytest.fixture
def database(tmp_path):
    """With a table whose name and columns need quoting, and with values of several types in one column."""
    file = tmp_path / "shop.sqlite"
    with closing(sqlite3.connect(file)) as connection:
        connection.execute('CREATE TABLE "the sales" (who, "when" TEXT, what INTEGER, "paid in €" REAL)')
        rows = [(7, "2025-01-01 00:00:00", 2**63 - 1, 2.5), ("a7", "2025-01-02 00:00:00", 3, None), (7, None, 4, 1)]
        connection.executemany('INSERT INTO "the sales" VALUES (?, ?, ?, ?)', rows)
        connection.commit()
    return file


def test_a_table_of_a_database(tmp_path, database):
    source = source_of(table="the sales", value="paid in €", where={"what": [2**63 - 1, 3]})
    found = parsed(tmp_path, [database], source)
    assert found.rows() == [
        ("7", datetime(2025, 1, 1), str(2**63 - 1), 2.5),
        ("a7", datetime(2025, 1, 2), "3", None),
    ]
    with pytest.raises(UserError, match=r"column when: 1 of 3 rows have no time .* \(the first: row 2, None\)"):
        parsed(tmp_path, [database], source_of(table="the sales"))


def test_a_table_that_is_not_there(tmp_path, database):
    with pytest.raises(
        UserError, match=r"shop.sqlite: no table sale \(it has the sales\); table: of sales in the schema"
    ):
        parsed(tmp_path, [database], source_of(table="sale"))
    with pytest.raises(UserError, match="a database: say which table"):
        parsed(tmp_path, [database], source_of())
    (tmp_path / "other.db").write_text("no database, but long enough to be looked at as one" * 40)
    with pytest.raises(UserError, match=r"other.db: not readable \(file is not a database\)"):
        parsed(tmp_path, [tmp_path / "other.db"], source_of(table="x"))


# --- items -----------------------------------------------------------------------------------------------------------


def listed(tmp_path, rows, **fields) -> pl.DataFrame:
    file = tmp_path / "items.csv"
    rows.write_csv(file)
    values = {"events": {"sales": {"as": "product_buy", "file": "f", "client": "c", "time": "t", "item": "i"}}}
    log = schema_of(values | {"items": {"file": "items.csv", "item": "item", **fields}})
    pieces = stage_items(log.items, [file], tmp_path / uuid.uuid4().hex, lambda: None)
    return pl.concat([piece.collect() for piece in pieces])


def test_items_with_several_columns_for_category_and_name(tmp_path):
    rows = pl.DataFrame(
        {"item": ["a", "b", None], "kind": ["x", None, "z"], "sort": ["1", None, "3"], "cost": ["2.5", "none", "1"]}
    )
    found = listed(tmp_path, rows, category=["kind", "sort"], text=["sort", "kind"], price="cost")
    assert found.rows() == [("a", "x / 1", 2.5, "1 x"), ("b", None, None, None)]


def test_items_of_which_nothing_is_known(tmp_path):
    assert listed(tmp_path, pl.DataFrame({"item": [5]})).rows() == [("5", None, None, None)]


def test_nothing_earlier_than_a_moment_is_lost_between_two_files(tmp_path):
    """Rows come out in the order of the files, and within a file in its own."""
    begin = datetime(2025, 1, 1)
    for number in range(2):
        times = [begin + timedelta(seconds=100 * number - second) for second in range(50)]
        table(times, whats=[f"{number}-{second}" for second in range(50)]).write_parquet(tmp_path / f"{number}.parquet")
    source = source_of(file="*.parquet")
    found = parsed(tmp_path, files_of(source, tmp_path), source)
    assert found["subject"].to_list() == [f"{number}-{second}" for number in range(2) for second in range(50)]


def test_a_long_value_is_cut_in_a_message(tmp_path):
    (line,) = refused(tmp_path, table(["x" * 100_000]))
    assert len(line) < 700
    assert "xxx… (100,002 characters)); correct format:" in line


def test_names_of_columns_that_cannot_be_shown_are_cut(tmp_path):
    file = tmp_path / "f.csv"
    file.write_bytes(bytes(4096))
    with pytest.raises(UserError, match="column who missing") as error:
        parsed(tmp_path, [file], source_of())
    (line,) = error.value.messages
    assert len(line) < 700
    assert line.isprintable()
