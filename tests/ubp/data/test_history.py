"""Validation of a history: every fault is one clear line, every form of the data gives the same frames."""

import re
from collections import Counter
from datetime import datetime, timedelta

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from ubp.data import history as history_module
from ubp.data import schema
from ubp.data.history import ChallengeData
from ubp.data.paths import DataPaths
from ubp.data.reading import load_clients
from ubp.data.schema import EVENT_TYPES, EventType
from ubp.io.errors import UserError
from ubp.sequences.build import events_of

BUY, VISIT, SEARCH = EventType.PRODUCT_BUY, EventType.PAGE_VISIT, EventType.SEARCH_QUERY


def faults(paths: DataPaths, **settings) -> list[str]:
    with pytest.raises(UserError) as caught:
        ChallengeData(paths, **({"submit": True} | settings))
    for message in caught.value.messages:
        assert "\n" not in message
    return caught.value.messages


def fault(paths: DataPaths, **settings) -> str:
    """The one line."""
    (message,) = faults(paths, **settings)
    return message


def says(message: str, *parts: object) -> bool:
    """Whether the line holds all parts, in this order."""
    return re.search(".*".join(re.escape(str(part)) for part in parts), message) is not None


def set_rows(table: pl.DataFrame, column: str, rows: list[int], value: object) -> pl.DataFrame:
    chosen = pl.int_range(pl.len()).is_in(rows)
    return table.with_columns(pl.when(chosen).then(pl.lit(value)).otherwise(pl.col(column)).alias(column))


# --- the faults, one line each -----------------------------------------------------------------------


def test_folder_missing(tmp_path):
    message = fault(DataPaths(tmp_path / "nowhere"))
    assert says(message, tmp_path / "nowhere" / "raw", "folder missing", "CHALLENGE_DATA_PATH")


@pytest.mark.parametrize("name", ["page_visit.parquet", "product_properties.parquet"])
def test_file_missing(history, name):
    (history.raw / name).unlink()
    assert says(fault(history), history.raw / name, "file missing", "put it there")


def test_every_missing_file_has_its_line(history):
    for name in ("page_visit.parquet", "add_to_cart.parquet"):
        (history.raw / name).unlink()
    assert len(faults(history)) == 2


def test_input_missing_names_the_split(history):
    messages = faults(history, submit=False)
    assert len(messages) == len(EVENT_TYPES)
    assert says(messages[0], history.input / "product_buy.parquet", "file missing", "scripts/split.py")


@pytest.mark.parametrize(
    ("event_type", "column"), [(BUY, "client_id"), (BUY, "timestamp"), (VISIT, "url"), (SEARCH, "query")]
)
def test_column_missing(history, event_type, column):
    file = history.raw / event_type.file_name
    pl.read_parquet(file).rename({column: "other"}).write_parquet(file)
    assert says(fault(history), file, f"column {column} missing", "other", "add or rename")


def test_column_of_the_properties_missing(make_history, tmp_path):
    history = make_history()
    history.properties = history.properties.drop("price")
    message = fault(history.write(tmp_path))
    assert says(message, "product_properties.parquet", "column price missing", "sku, category, name")


@pytest.mark.parametrize(
    ("event_type", "column", "dtype", "wanted"),
    [
        (BUY, "client_id", pl.Float64, "integer"),
        (BUY, "sku", pl.String, "integer"),
        (VISIT, "timestamp", pl.Int64, "YYYY-MM-DD HH:mm:ss"),
        (VISIT, "timestamp", pl.Datetime("us", "UTC"), "without a zone"),
        (SEARCH, "query", pl.Int64, "16 numbers"),
    ],
)
def test_wrong_type(history, event_type, column, dtype, wanted):
    file = history.raw / event_type.file_name
    table = pl.read_parquet(file)
    if column == "timestamp":
        table = table.with_columns(pl.col(column).str.to_datetime(time_unit="us").cast(dtype))
    else:
        table = table.with_columns(pl.lit(1).cast(dtype).alias(column))
    table.write_parquet(file)
    assert says(fault(history), file, f"column {column}", "wrong type", table[column].dtype, wanted, "convert it")


def test_not_a_parquet_file(history):
    file = history.raw / "page_visit.parquet"
    file.write_text("client_id,timestamp,url\n")
    assert says(fault(history), file, "not a readable parquet file", "export it again")


@pytest.mark.parametrize("text", ["2022-13-01 00:00:00", "01/02/2022", "", "2022-12-01"])
def test_unreadable_timestamp(history, text):
    file = history.raw / "add_to_cart.parquet"
    table = set_rows(pl.read_parquet(file), "timestamp", [3, 7, 11], text)
    table.write_parquet(file)
    message = fault(history)
    assert says(message, file, "column timestamp", f"3 of {len(table)} rows", "YYYY-MM-DD HH:mm:ss")
    assert says(message, "the first: row 3", repr(text), "fix or remove")


def test_null_timestamp_among_datetimes(make_history, tmp_path):
    history = make_history()
    history.events[VISIT] = set_rows(history.events[VISIT], "timestamp", [5], None)
    message = fault(history.write(tmp_path, "ns"))
    assert says(message, "page_visit.parquet", "column timestamp", "1 of", "row 5", "None")


@pytest.mark.parametrize(("event_type", "column"), [(BUY, "client_id"), (BUY, "sku"), (VISIT, "url")])
def test_null_id(make_history, tmp_path, event_type, column):
    history = make_history()
    history.events[event_type] = set_rows(history.events[event_type], column, [2, 4], None)
    message = fault(history.write(tmp_path))
    assert says(message, event_type.file_name, f"column {column}", "2 of", "are null", "row 2", "fix or remove")


BAD_CODES = {
    "15 numbers": f"[{' '.join(['7'] * 15)}]",
    "17 numbers": f"[{' '.join(['7'] * 17)}]",
    "256": f"[{' '.join(['7'] * 15)} 256]",
    "negative": f"[{' '.join(['7'] * 15)} -1]",
    "letters": f"[{' '.join(['7'] * 15)} x]",
    "other digits": f"[{' '.join(['7'] * 15)} ٣]",
    "no brackets": " ".join(["7"] * 16),
    "commas": f"[{','.join(['7'] * 16)}]",
    "null": None,
}


@pytest.mark.parametrize("text", BAD_CODES.values(), ids=BAD_CODES.keys())
@pytest.mark.parametrize("column", ["query", "name"])
def test_codes_that_are_not_16_numbers(history, column, text):
    file = history.raw / ("search_query.parquet" if column == "query" else "product_properties.parquet")
    table = set_rows(pl.read_parquet(file), column, [6, 9], text)
    table.write_parquet(file)
    message = fault(history)
    assert says(message, file, f"column {column}", f"2 of {len(table)} rows", "16 numbers in 0..255")
    assert says(message, "the first: row 6", repr(text), "fix or remove")


def test_sku_without_properties(history):
    file = history.raw / "product_buy.parquet"
    table = set_rows(pl.read_parquet(file), "sku", [10, 20], 77)
    table.write_parquet(file)
    message = fault(history)
    assert says(message, file, "column sku", f"2 of {len(table)} rows", "product_properties.parquet", "77")
    assert "unknown_sku=drop" in message


def test_sku_without_properties_dropped(history, caplog):
    file = history.raw / "product_buy.parquet"
    before = ChallengeData(history, True)
    rows = before.events(BUY).collect()
    set_rows(pl.read_parquet(file), "sku", [10, 20], 77).write_parquet(file)
    after = ChallengeData(history, True, unknown_sku="drop")
    assert says(caplog.text, "product_buy.parquet", "left out 2 of")
    kept = rows.filter(~pl.int_range(pl.len()).is_in([10, 20]))
    assert_frame_equal(after.events(BUY).collect(), kept, check_row_order=False)
    assert after.rows(BUY) == len(kept)
    assert after.with_properties(BUY).collect()["category"].null_count() == 0
    assert after.files_fingerprint != before.files_fingerprint


def test_unknown_sku_setting(history):
    assert says(fault(history, unknown_sku="ignore"), "unknown_sku=ignore", "error or drop")


def test_sku_twice_in_the_properties(make_history, tmp_path):
    history = make_history()
    history.properties = pl.concat([history.properties, history.properties[[4, 8]]])
    message = fault(history.write(tmp_path))
    assert says(message, "product_properties.parquet", "column sku", "2 skus", history.properties["sku"][4], "one row")


def test_no_purchases(make_history, tmp_path):
    message = fault(make_history(empty=[BUY]).write(tmp_path))
    assert says(message, "product_buy.parquet", "no purchases at all", "check the export")


def test_no_purchases_of_known_skus(history):
    file = history.raw / "product_buy.parquet"
    pl.read_parquet(file).with_columns(sku=pl.lit(77, pl.Int64)).write_parquet(file)
    assert "no purchases at all" in fault(history, unknown_sku="drop")


def test_faults_of_several_files_come_together(history):
    for name in ("page_visit", "add_to_cart"):
        file = history.raw / f"{name}.parquet"
        set_rows(pl.read_parquet(file), "client_id", [0], None).write_parquet(file)
    assert len(faults(history)) == 2


def test_a_fault_leaves_no_mark_that_it_was_checked(history):
    file = history.raw / "page_visit.parquet"
    set_rows(pl.read_parquet(file), "client_id", [0], None).write_parquet(file)
    assert fault(history) == fault(history)


CLIENT_FAULTS = {
    "repeated": (np.array([5, 6, 5, 5, 6, 7]), ["2 of 3 clients are repeated", "5", "np.unique"]),
    "int32": (np.array([5, 6], np.int32), ["int32", "must be int64"]),
    "float": (np.array([5.0, 6.0]), ["float64", "must be int64"]),
    "two dimensions": (np.array([[5, 6]]), ["2 dimensions", "must be int64 with one"]),
}


@pytest.mark.parametrize(("ids", "parts"), CLIENT_FAULTS.values(), ids=CLIENT_FAULTS.keys())
def test_relevant_clients(history, ids, parts):
    history.relevant_clients.parent.mkdir()
    np.save(history.relevant_clients, ids)
    with pytest.raises(UserError) as caught:
        _ = ChallengeData(history, True).relevant_clients
    (message,) = caught.value.messages
    assert says(message, history.relevant_clients, *parts)


def test_relevant_clients_absent(history):
    with pytest.raises(UserError, match=r"file missing.*make_targets"):
        _ = ChallengeData(history, True).relevant_clients


def test_relevant_clients_unreadable(tmp_path):
    file = tmp_path / "relevant_clients.npy"
    for content in (b"5\n6\n", b""):
        file.write_bytes(content)
        with pytest.raises(UserError, match="not a readable"):
            load_clients(file)


# --- the frames --------------------------------------------------------------------------------------


def frames(paths: DataPaths) -> dict[str, pl.DataFrame]:
    data = ChallengeData(paths, True)
    tables = {event_type: data.events(event_type).collect() for event_type in EVENT_TYPES}
    return tables | {"properties": data.properties().collect(), "joined": data.with_properties(BUY).collect()}


@pytest.mark.parametrize("form", ["ms", "us", "ns"])
@pytest.mark.parametrize("empty", [[], [SEARCH, EventType.REMOVE_FROM_CART]], ids=["full", "two empty"])
def test_both_forms_of_timestamps_give_the_same_frames(make_history, tmp_path, form, empty):
    history = make_history(empty=empty)
    text = frames(history.write(tmp_path / "text"))
    other = frames(history.write(tmp_path / form, form, null_typed=True))
    assert text.keys() == other.keys()
    for name, table in text.items():
        assert_frame_equal(table, other[name], check_row_order=name != "joined")


def test_the_frames_have_the_promised_columns_and_values(make_history, tmp_path):
    history = make_history()
    tables = frames(history.write(tmp_path))
    assert dict(tables[SEARCH].schema) == {
        "client_id": pl.Int64, "timestamp": pl.Datetime("us"), "query": pl.Array(pl.UInt8, 16)
    }  # fmt: skip
    assert_frame_equal(tables[BUY], history.events[BUY])
    for table, column, texts in (
        (tables[SEARCH], "query", history.events[SEARCH]["query"]),
        (tables["properties"], "name", history.properties["name"]),
    ):
        assert table[column].to_list() == [[int(code) for code in text.strip("[]").split()] for text in texts]


def test_codes_may_be_spaced_in_any_way(history, code_text):
    file = history.raw / "search_query.parquet"
    codes = np.arange(240, 256)
    wide, lines = "   ".join(map(str, codes)), "\n ".join(map(str, codes))
    written = [code_text(codes), f"[{wide}  ]", f" [ {lines}]"]
    table = pl.read_parquet(file).head(3).with_columns(query=pl.Series(written))
    table.write_parquet(file)
    assert ChallengeData(history, True).events(SEARCH).collect()["query"].to_list() == [codes.tolist()] * 3


def test_integers_of_any_width_become_int64(history):
    file = history.raw / "page_visit.parquet"
    before = frames(history)[VISIT]
    pl.read_parquet(file).cast({"client_id": pl.Int32, "url": pl.UInt8}).write_parquet(file)
    assert_frame_equal(frames(history)[VISIT], before)


def test_more_columns_than_needed_do_not_matter(history):
    file = history.raw / "page_visit.parquet"
    before = frames(history)[VISIT]
    pl.read_parquet(file).with_columns(session=pl.lit("x")).select("session", *before.columns).write_parquet(file)
    assert_frame_equal(frames(history)[VISIT], before)


def test_start_and_end_of_a_history(make_history, tmp_path):
    history = make_history()
    data = ChallengeData(history.write(tmp_path), True)
    times = pl.concat([table["timestamp"] for table in history.events.values()])
    assert data.start == datetime.combine(times.min().date(), datetime.min.time())
    assert data.as_of == datetime.combine(times.max().date(), datetime.min.time()) + timedelta(days=1)
    assert data.first(BUY) == history.events[BUY]["timestamp"].min()
    assert data.last(BUY) == history.events[BUY]["timestamp"].max()


def test_start_and_end_are_those_of_all_types_together(make_history, tmp_path):
    log = make_history()
    spans = {BUY: (10, 20), VISIT: (5, 15), SEARCH: (12, 25)}  # days of January; the two others within
    for event_type in EVENT_TYPES:
        first, last = spans.get(event_type, (11, 14))
        time = datetime(2023, 1, first, 7) + pl.int_range(pl.len()) % (last - first + 1) * timedelta(days=1)
        log.events[event_type] = log.events[event_type].with_columns(timestamp=time)
    data = ChallengeData(log.write(tmp_path), True)
    assert (data.start, data.as_of) == (datetime(2023, 1, 5), datetime(2023, 1, 26))
    assert data.latest == datetime(2023, 1, 25, 7)
    assert data.before(datetime(2023, 1, 12)).latest == datetime(2023, 1, 20, 7)  # of the types that began by then
    for event_type, (first, _) in spans.items():
        assert data.before(datetime(2023, 1, 11)).has(event_type) == (first < 11)


def test_a_day_within_the_history_and_no_later_one_than_it_was_opened_as_of(history):
    data = ChallengeData(history, True)
    with pytest.raises(UserError, match="no event before it; choose a later day"):
        data.before(data.start)
    known = data.before(data.start + timedelta(days=40))
    assert known.before(known.as_of).as_of == known.as_of
    with pytest.raises(UserError, match="open it as of a later day"):
        known.before(known.as_of + timedelta(seconds=1))


def test_properties_of_some_skus_ascend(history):
    pl.read_parquet(history.properties).sort(schema.SKU, descending=True).write_parquet(history.properties)
    data = ChallengeData(history, True)
    everything = data.properties().collect().sort(schema.SKU)
    some = everything[schema.SKU][::3].reverse()
    found = data.properties_of(some, schema.PRICE, schema.NAME)
    assert_frame_equal(found, everything[::3].select(schema.SKU, schema.PRICE, schema.NAME))


def test_as_of_ends_before_its_second(make_history, tmp_path):
    history = make_history()
    paths = history.write(tmp_path)
    moment = history.events[VISIT]["timestamp"].sort()[300]
    data = ChallengeData(paths, True, as_of=moment)
    for event_type in EVENT_TYPES:
        wanted = history.events[event_type].filter(pl.col("timestamp") < moment)
        assert data.rows(event_type) == len(wanted)
        assert data.events(event_type).collect()["client_id"].to_list() == wanted["client_id"].to_list()
    assert data.as_of == moment


def test_as_of_before_every_purchase(history):
    message = fault(history, as_of=datetime(2022, 12, 1, 0, 30))
    assert says(message, "as_of=2022-12-01 00:30:00", "no purchase before it", "later day")


def test_as_of_is_a_whole_second(history):
    moment = datetime(2023, 1, 1, 0, 0, 0, 500_000)
    assert says(fault(history, as_of=moment), "as_of=2023-01-01 00:00:00.500000", "whole second")
    with pytest.raises(UserError, match="whole second"):
        ChallengeData(history, True).before(moment)


def test_the_whole_log_has_later_events_too(history):
    everything = ChallengeData(history, True)
    cut = ChallengeData(history, True, as_of=datetime(2023, 1, 1))
    assert cut.rows(VISIT) < cut.whole.rows(VISIT) == everything.rows(VISIT)
    assert cut.whole.as_of == everything.as_of
    assert cut.as_of == datetime(2023, 1, 1)
    assert everything.whole is everything


def test_the_events_have_a_fingerprint_of_their_own(make_history, tmp_path):
    history = make_history()
    paths = history.write(tmp_path)
    paths.input.mkdir()
    np.save(paths.relevant_clients, np.arange(5))
    first = ChallengeData(paths, True).events_fingerprint
    assert ChallengeData(paths, True, as_of=datetime(2023, 1, 1)).events_fingerprint == first
    np.save(paths.relevant_clients, np.arange(6))
    assert ChallengeData(paths, True).events_fingerprint == first
    assert ChallengeData(paths, True, "drop").events_fingerprint != first
    history.events[VISIT] = history.events[VISIT][1:]
    history.write(tmp_path)
    assert ChallengeData(paths, True).events_fingerprint != first


def test_clients_are_the_relevant_ones_with_an_event(make_history, tmp_path):
    history = make_history()
    paths = history.write(tmp_path)
    seen = pl.concat([table["client_id"] for table in history.events.values()]).unique().sort()
    paths.input.mkdir()
    np.save(paths.relevant_clients, np.array([*seen[:7].to_list()[::-1], 123_456]))
    data = ChallengeData(paths, True)
    assert data.clients.tolist() == seen[:7].to_list()
    assert len(data.relevant_clients) == 8


def test_fingerprint_changes_with_what_a_profile_depends_on(make_history, tmp_path):
    history = make_history()
    paths = history.write(tmp_path)
    paths.input.mkdir()
    np.save(paths.relevant_clients, np.arange(5))
    prints = [
        ChallengeData(paths, True).fingerprint,
        ChallengeData(paths, True, as_of=datetime(2023, 1, 1)).fingerprint,
    ]
    np.save(paths.relevant_clients, np.arange(6))
    prints.append(ChallengeData(paths, True).fingerprint)
    history.events[VISIT] = history.events[VISIT][1:]
    history.write(tmp_path)
    prints.append(ChallengeData(paths, True).fingerprint)
    assert len(set(prints)) == len(prints)
    assert ChallengeData(paths, True).fingerprint == prints[-1]


def test_the_same_content_is_checked_once(history, monkeypatch):
    first = ChallengeData(history, True)
    monkeypatch.setattr(history_module, "check", lambda *_: pytest.fail("checked again"))
    again = ChallengeData(history, True)
    assert [again.rows(event_type) for event_type in EVENT_TYPES] == [
        first.rows(event_type) for event_type in EVENT_TYPES
    ]
    assert (again.start, again.as_of) == (first.start, first.as_of)


@pytest.mark.parametrize("text", [None, "", "{}", "null", "[]", '["{}", "0"]', "[" * 100_000])
def test_a_note_of_the_check_that_was_changed_counts_for_nothing(history, text):
    first = ChallengeData(history, True)
    (note,) = (history.cache / "checked").iterdir()
    rows = first.rows(EventType.PAGE_VISIT)
    note.write_text(note.read_text().replace(str(rows), str(rows + 1)) if text is None else text)
    assert ChallengeData(history, True).rows(EventType.PAGE_VISIT) == rows


def test_changed_content_is_checked_again(history):
    ChallengeData(history, True)
    file = history.raw / "page_visit.parquet"
    set_rows(pl.read_parquet(file), "client_id", [0], None).write_parquet(file)
    assert "column client_id" in fault(history)


def test_a_changed_setting_is_checked_again(history):
    file = history.raw / "product_buy.parquet"
    set_rows(pl.read_parquet(file), "sku", [0], 77).write_parquet(file)
    ChallengeData(history, True, unknown_sku="drop")
    assert "unknown_sku=drop" in fault(history)


def test_schema_knows_each_event_types_subject():
    subjects = {event_type.value: event_type.subject for event_type in EVENT_TYPES}
    assert subjects == {
        "product_buy": "sku", "add_to_cart": "sku", "remove_from_cart": "sku", "page_visit": "url",
        "search_query": "query",
    }  # fmt: skip
    assert schema.event_columns(VISIT) == ("client_id", "timestamp", "url")


def test_a_sentinel_is_no_time(make_history, tmp_path):
    history = make_history()
    late = pl.when(pl.int_range(pl.len()) == 3).then(pl.datetime(9999, 12, 31)).otherwise(pl.col("timestamp"))
    history.events[EventType.PAGE_VISIT] = history.events[EventType.PAGE_VISIT].with_columns(late.alias("timestamp"))
    with pytest.raises(UserError, match=r"page_visit\.parquet: column timestamp: 1 of .* in the years 1970 to 2199"):
        ChallengeData(history.write(tmp_path), submit=True)


@pytest.mark.parametrize("unit", ["ms", "us", "ns"])
@pytest.mark.parametrize("number", [2**63 - 1, -(2**63), -1])
def test_a_datetime_that_has_no_date_is_no_time(make_history, tmp_path, unit, number):
    paths = make_history().write(tmp_path / "data", timestamps=unit)
    file = paths.raw / "page_visit.parquet"
    far = pl.when(pl.int_range(pl.len()) == 3).then(pl.lit(number).cast(pl.Datetime(unit))).otherwise("timestamp")
    pl.read_parquet(file).with_columns(far.alias("timestamp")).write_parquet(file)
    with pytest.raises(UserError) as error:
        ChallengeData(paths, True)
    assert "page_visit.parquet: column timestamp: 1 of" in str(error.value)
    assert f"(the first: row 3, '{number} {unit} after 1970')" in str(error.value)


def test_an_archive_or_an_empty_list_of_clients(tmp_path):
    np.savez(tmp_path / "ids.npz", ids=np.arange(3))
    with pytest.raises(UserError, match="an archive of arrays"):
        load_clients(tmp_path / "ids.npz")
    np.save(tmp_path / "none.npy", np.empty(0, np.int64))
    with pytest.raises(UserError, match="no clients"):
        load_clients(tmp_path / "none.npy")


# --- masked events -----------------------------------------------------------------------------------


@pytest.fixture
def opened(history) -> ChallengeData:
    """The tiny history with all its clients relevant."""
    history.relevant_clients.parent.mkdir()
    np.save(history.relevant_clients, ChallengeData(history, True).seen())
    return ChallengeData(history, True)


def all_events(data: ChallengeData) -> list[tuple]:
    """Every event as a tuple, codes too, in order."""
    tables = {event_type: data.events(event_type).collect() for event_type in EVENT_TYPES}
    return sorted((kind.value, *map(repr, row)) for kind, table in tables.items() for row in table.iter_rows())


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 1.0])
def test_a_masked_history_loses_about_the_share_of_its_events(opened, share):
    whole, left = all_events(opened), all_events(opened.masked(share, seed=3))
    assert abs(1 - len(left) / len(whole) - share) < 0.03
    assert not Counter(left) - Counter(whole)
    assert [opened.masked(share, 3).rows(kind) for kind in EVENT_TYPES] == [
        sum(event[0] == kind.value for event in left) for kind in EVENT_TYPES
    ]


def test_each_client_and_event_type_loses_its_share(opened):
    masked = opened.masked(0.3, seed=3)
    for kind in (BUY, VISIT):
        whole, left = (
            Counter(event[1] for event in all_events(data) if event[0] == kind.value) for data in (opened, masked)
        )
        off = [(left[client] - 0.7 * count) / np.sqrt(0.21 * count) for client, count in whole.items()]
        assert np.abs(off).max() < 4.5  # standard deviations
        assert 0.6 < np.std(off) < 1.4  # and not each client the same share


def test_a_mask_is_the_same_each_time_and_another_seed_masks_others(opened):
    first, other = all_events(opened.masked(0.5, seed=1)), all_events(opened.masked(0.5, seed=2))
    assert all_events(ChallengeData(opened.paths, True).masked(0.5, seed=1)) == first
    both = len(list((Counter(first) & Counter(other)).elements())) / len(all_events(opened))
    assert 0.2 < both < 0.3  # as two draws that know nothing of each other


def test_nothing_else_of_a_masked_history_changes(opened):
    masked = opened.masked(0.5, seed=1)
    assert masked.is_masked
    assert not opened.is_masked
    assert (masked.start, masked.as_of, masked.folder) == (opened.start, opened.as_of, opened.folder)
    assert_frame_equal(masked.properties().collect(), opened.properties().collect())
    np.testing.assert_array_equal(masked.relevant_clients, opened.relevant_clients)
    assert all_events(opened) == all_events(ChallengeData(opened.paths, True))


def test_an_earlier_day_keeps_the_mask_and_a_mask_keeps_the_day(opened):
    day = datetime(2023, 1, 1)
    masked_first, cut_first = opened.masked(0.4, seed=1).before(day), opened.before(day).masked(0.4, seed=1)
    assert all_events(masked_first) == all_events(cut_first)
    assert masked_first.as_of == cut_first.as_of == day
    assert masked_first.fingerprint == cut_first.fingerprint
    later = all_events(opened.masked(0.4, seed=1).before(datetime(2023, 2, 1)))
    assert set(all_events(cut_first)) <= set(later)
    assert len(all_events(cut_first)) == sum(
        opened.masked(0.4, seed=1).events(kind).filter(pl.col("timestamp") < day).collect().height
        for kind in EVENT_TYPES
    )


def test_masked_histories_have_fingerprints_of_their_own(opened):
    prints = [opened.fingerprint, *(opened.masked(*mask).fingerprint for mask in ((0.3, 1), (0.3, 2), (0.4, 1)))]
    assert len(set(prints)) == 4
    assert opened.masked(0.3, 1).fingerprint == prints[1]


def test_clients_whose_every_event_is_masked_are_not_seen(opened):
    masked = opened.masked(0.8, seed=5)
    left = {int(event[1]) for event in all_events(masked)}
    assert masked.seen().tolist() == masked.clients.tolist() == sorted(left)
    assert len(left) < len(opened.seen())


@pytest.mark.parametrize("as_of", [None, datetime(2023, 1, 20, 12)])
def test_sequences_lack_the_same_events_as_a_masked_history(opened, as_of):
    masked = (opened if as_of is None else opened.before(as_of)).masked(0.4, seed=1)
    expected = sorted(
        (kind.value, client, moment)
        for kind in EVENT_TYPES
        for client, moment in masked.events(kind).select("client_id", "timestamp").collect().iter_rows()
    )
    chosen = events_of(masked)
    moments = [chosen.sequences.start + timedelta(seconds=int(time)) for time in chosen.time]
    kinds = [schema.EVENT_ORDER[code].value for code in chosen.event]
    owners = np.repeat(chosen.clients, chosen.lengths).tolist()
    assert sorted(zip(kinds, owners, moments, strict=True)) == expected
    assert chosen.clients.tolist() == masked.seen().tolist()


@pytest.mark.parametrize("event_type", EVENT_TYPES)
def test_events_of_some_clients_are_those_events(opened, event_type):
    clients = opened.seen()[::3]
    for known in (opened, opened.before(opened.as_of - timedelta(days=9)), opened.masked(0.4, seed=2)):
        whole = known.events(event_type).collect()
        wanted = whole.filter(pl.col("client_id").is_in(clients.tolist()))
        assert 0 < len(wanted) < len(whole)
        assert_frame_equal(known.events(event_type, clients).collect(), wanted, check_row_order=False)
        assert known.events(event_type, clients[:0]).collect().is_empty()


@pytest.mark.parametrize("event_type", EVENT_TYPES)
def test_a_history_has_what_it_has_rows_of(opened, event_type):
    moments = pl.read_parquet(opened.file(event_type))["timestamp"].str.to_datetime()
    for day in (moments.min(), moments.min() + timedelta(seconds=1), opened.as_of):
        known = opened._until(day)
        assert known.has(event_type) == (known.rows(event_type) > 0) == (day > moments.min())
    assert not opened.masked(1.0, seed=0).has(event_type)


def test_a_history_whose_events_are_all_dropped_has_none(make_history, tmp_path):
    log = make_history()
    kind = EventType.REMOVE_FROM_CART
    log.events[kind] = log.events[kind].with_columns(sku=pl.lit(10**9, pl.Int64))
    data = ChallengeData(log.write(tmp_path), True, unknown_sku="drop")
    assert not data.has(kind)
    assert data.has(BUY)
    assert data.rows(kind) == 0


def test_one_event_that_is_not_dropped_is_one(make_history, tmp_path):
    log = make_history()
    kind = EventType.REMOVE_FROM_CART
    known = log.events[kind][schema.SKU][0]
    sku = pl.when(pl.int_range(pl.len()) == 0).then(known).otherwise(10**9)
    log.events[kind] = log.events[kind].with_columns(sku=sku.cast(pl.Int64))
    data = ChallengeData(log.write(tmp_path), True, unknown_sku="drop")
    assert data.has(kind)
    assert data.rows(kind) == 1


def test_an_error_while_files_change_is_said_to_come_from_that(history):
    data = ChallengeData(history, True)
    with pytest.raises(KeyError), data.unchanged():
        raise KeyError("a fault of ours")
    with pytest.raises(UserError, match="something else"), data.unchanged():
        raise UserError("something else")
    file = data.file(VISIT)
    pl.read_parquet(file).head(5).write_parquet(file)
    with pytest.raises(UserError, match="changed while they were read; give the command again"), data.unchanged():
        raise KeyError("whatever came of it")
    with data.unchanged():  # nothing failed
        pass


def test_a_type_without_events_has_no_first_one(make_history, tmp_path):
    log = make_history()
    log.events[SEARCH] = log.events[SEARCH].clear()
    data = ChallengeData(log.write(tmp_path), True)
    with pytest.raises(ValueError, match="without events"):
        data.first(SEARCH)
