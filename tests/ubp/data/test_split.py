"""The split at the very second of its borders; targets and history as in the files; all files or none."""

from datetime import datetime, timedelta

import polars as pl
import pytest

from ubp.data.history import ChallengeData
from ubp.data.paths import DataPaths
from ubp.data.schema import EVENT_TYPES, EventType
from ubp.data.split import SplitDates, split_files, write_split
from ubp.io.errors import UserError

BUY, VISIT, SEARCH = EventType.PRODUCT_BUY, EventType.PAGE_VISIT, EventType.SEARCH_QUERY
SECOND = timedelta(seconds=1)

END = datetime(2022, 12, 9, 17, 3, 44)
TRAIN = datetime(2022, 11, 12)
VALIDATION = datetime(2022, 11, 26)
ON_BORDERS = {
    "history": [TRAIN - SECOND, datetime(2022, 10, 1)],
    "train": [TRAIN, TRAIN + SECOND, VALIDATION - SECOND],
    "validation": [VALIDATION, VALIDATION + SECOND, END - SECOND, END],
}


def naive_borders(end: str) -> tuple[datetime, datetime]:
    """The organisers' formula in plain Python: 27 days back at midnight; 14 days after that."""
    day = datetime.strptime(end, "%Y-%m-%d %H:%M:%S").date()
    start = datetime.fromordinal(day.toordinal() - 27)
    return start, datetime.fromordinal(day.toordinal() - 13)


@pytest.mark.parametrize("end", ["2022-12-09 17:03:44", "2023-01-05 00:00:00", "2024-03-01 23:59:59"])
def test_borders_are_the_organisers(end):
    dates = SplitDates.from_end(datetime.fromisoformat(end))
    assert (dates.train_start, dates.validation_start) == naive_borders(end)
    assert dates.end == datetime.fromisoformat(end)


@pytest.fixture
def on_borders(make_history, tmp_path) -> DataPaths:
    """Purchases and visits on both sides of every border, client n at the n-th moment; visits go on after End."""
    history = make_history()
    moments = [moment for part in ON_BORDERS.values() for moment in part]
    sku = history.properties["sku"][0]
    history.events[BUY] = pl.DataFrame(
        {"client_id": range(len(moments)), "timestamp": moments, "sku": [sku] * len(moments)}
    )
    after = [*moments, END + SECOND]
    history.events[VISIT] = pl.DataFrame({"client_id": range(len(after)), "timestamp": after, "url": [3] * len(after)})
    return history.write(tmp_path)


def test_split_at_the_second_on_both_sides(on_borders):
    data = ChallengeData(on_borders, True)
    dates = SplitDates.of(data)
    assert (dates.train_start, dates.validation_start, dates.end) == (TRAIN, VALIDATION, END)
    rows = write_split(data, dates)
    for part, file in (
        ("history", on_borders.input / "product_buy.parquet"),
        ("history", on_borders.input / "page_visit.parquet"),
        ("train", on_borders.target / "train_target.parquet"),
        ("validation", on_borders.target / "validation_target.parquet"),
    ):
        found = pl.read_parquet(file)
        assert sorted(found["timestamp"]) == sorted(ON_BORDERS[part]), file.name
        assert rows[file] == len(found)


@pytest.mark.parametrize("lead", [-1, 0])
def test_a_log_that_begins_with_the_train_window_leaves_no_history(on_borders, lead):
    first = on_borders.raw / "product_buy.parquet"
    moments = [TRAIN + lead * SECOND, END]
    table = pl.read_parquet(first)[:2].with_columns(timestamp=pl.Series(moments).dt.strftime("%Y-%m-%d %H:%M:%S"))
    table.write_parquet(first)
    if lead:
        assert SplitDates.of(ChallengeData(on_borders, True)).train_start == TRAIN
    else:
        with pytest.raises(UserError, match="leave no history before the train window"):
            SplitDates.of(ChallengeData(on_borders, True))


def test_a_folder_with_brackets_is_no_pattern(make_history, tmp_path):
    data = ChallengeData(make_history().write(tmp_path / "log [a]"), True)
    rows = write_split(data, SplitDates.of(data))
    assert all(rows[path] == len(pl.read_parquet(path, glob=False)) for path in split_files(data))


@pytest.fixture(params=["text", "ns"])
def split(request, history, make_history, tmp_path) -> DataPaths:
    paths = history if request.param == "text" else make_history().write(tmp_path / "ns", "ns")
    data = ChallengeData(paths, True)
    write_split(data, SplitDates.of(data))
    return paths


def test_targets_carry_the_skus_properties(split, make_history):
    history = make_history()
    of_sku = {row["sku"]: row for row in history.properties.iter_rows(named=True)}
    bought = history.events[BUY].sort("timestamp", "client_id", "sku")
    for name in ("train_target", "validation_target"):
        found = pl.read_parquet(split.target / f"{name}.parquet")
        assert found.columns == ["client_id", "timestamp", "sku", "category", "price", "name"]
        for row in found.iter_rows(named=True):
            assert {key: row[key] for key in ("sku", "category", "price", "name")} == of_sku[row["sku"]]
        first, last = found["timestamp"].min(), found["timestamp"].max()
        within = bought.filter(pl.col("timestamp").is_between(first, last))
        assert found["client_id"].sort().equals(within["client_id"].sort())


def test_history_keeps_every_column_as_filed(split, make_history):
    events = make_history().events
    start, _ = naive_borders("2023-02-08 21:17:05")
    for event_type in EVENT_TYPES:
        found = pl.read_parquet(split.input / event_type.file_name)
        assert found.equals(events[event_type].filter(pl.col("timestamp") < start)), event_type
    assert pl.read_parquet(split.input / SEARCH.file_name)["query"][0].startswith("[")


def test_the_history_passes_validation(split):
    data = ChallengeData(split, False)
    assert data.last(BUY) < naive_borders("2023-02-08 21:17:05")[0]
    assert data.rows(BUY) == len(pl.read_parquet(split.input / BUY.file_name))


def test_empty_event_types_stay_empty(make_history, tmp_path):
    paths = make_history(empty=[SEARCH]).write(tmp_path, null_typed=True)
    data = ChallengeData(paths, True)
    write_split(data, SplitDates.of(data))
    assert ChallengeData(paths, False).events(SEARCH).collect().is_empty()


def test_integers_of_any_width(history):
    file = history.raw / BUY.file_name
    pl.read_parquet(file).cast({"client_id": pl.UInt32, "sku": pl.Int32}).write_parquet(file)
    data = ChallengeData(history, True)
    write_split(data, SplitDates.of(data))
    assert pl.read_parquet(history.target / "train_target.parquet")["category"].null_count() == 0


def test_unknown_skus_are_dropped_from_the_targets(history):
    file = history.raw / BUY.file_name
    table = pl.read_parquet(file)
    late = table["timestamp"] > "2023-01-27"
    table.with_columns(sku=pl.when(late).then(77).otherwise("sku")).write_parquet(file)
    data = ChallengeData(history, True, unknown_sku="drop")
    rows = write_split(data, SplitDates.of(data))
    found = pl.read_parquet(history.target / "validation_target.parquet")
    assert rows[history.target / "validation_target.parquet"] == len(found) < late.sum()
    assert (found["timestamp"] < datetime(2023, 1, 27, 0, 0, 1)).all()
    assert pl.read_parquet(history.target / "train_target.parquet")["category"].null_count() == 0


def test_no_history_before_the_windows(history):
    file = history.raw / BUY.file_name
    pl.read_parquet(file).filter(pl.col("timestamp") >= "2023-01-13").write_parquet(file)
    with pytest.raises(UserError, match="leave no history before the train window"):
        SplitDates.of(ChallengeData(history, True))


def test_nothing_is_half_written_when_it_fails(history, monkeypatch):
    data = ChallengeData(history, True)
    dates = SplitDates.of(data)
    write_split(data, dates)
    before = {file: file.read_bytes() for file in split_files(data)}
    sink = pl.LazyFrame.sink_parquet

    def fails_at_the_last(frame, path):
        if path.name.endswith("validation_target.parquet"):
            raise OSError("disk full")
        return sink(frame, path)

    monkeypatch.setattr(pl.LazyFrame, "sink_parquet", fails_at_the_last)
    with pytest.raises(OSError, match="disk full"):
        write_split(data, SplitDates.from_end(dates.end - timedelta(days=3)))
    assert {file: file.read_bytes() for file in split_files(data)} == before
    left = [path.name for folder in (history.input, history.target) for path in folder.glob(".*")]
    assert set(left) <= {".done"}


def test_a_shops_own_columns_do_not_stand_in_for_the_properties(make_history, tmp_path):
    history = make_history()
    own = {"category": pl.lit(-1), "price": pl.lit(9.99), "name": pl.lit("mine")}
    history.events[BUY] = history.events[BUY].with_columns(**own)
    data = ChallengeData(history.write(tmp_path), submit=True)
    write_split(data, SplitDates.of(data))
    target = pl.read_parquet(data.paths.target / "train_target.parquet")
    assert target.columns == ["client_id", "timestamp", "sku", "category", "price", "name"]
    known = dict(history.properties.select("sku", "category").iter_rows())
    assert target["category"].to_list() == [known[sku] for sku in target["sku"]]
