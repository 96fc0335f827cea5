"""A log cut at a day: the events before it, what is known of items, and nothing that was made of the rest."""

from datetime import timedelta

import numpy as np
import polars as pl
import pytest

from scripts.cut import earlier, main
from scripts.split import split
from tests.conftest import END
from tests.tiny import OWN_TYPES, log
from ubp.cli.config import composed
from ubp.data import schema
from ubp.data.cut import cut_log
from ubp.data.history import ChallengeData
from ubp.data.paths import CONFIGS, DataPaths
from ubp.data.schema import EventType
from ubp.data.split import SplitDates
from ubp.data.targets import TargetRules
from ubp.io.errors import UserError
from ubp.io.stage import AlreadyDone

DAYS = 20
BUY = EventType.PRODUCT_BUY


@pytest.fixture
def out(tmp_path) -> DataPaths:
    return DataPaths(tmp_path / "earlier")


def whole(paths) -> ChallengeData:
    return ChallengeData(paths, submit=True)


def split_log(paths) -> None:
    data = whole(paths)
    split(data, SplitDates.of(data), TargetRules(), overwrite=False)


def times(file):
    column = pl.read_parquet(file)[schema.TIMESTAMP]
    return column.str.to_datetime() if column.dtype == pl.String else column


def files_in(folder):
    return sorted(file.name for file in folder.iterdir() if file.is_file())


def test_it_ends_so_many_days_before_the_last_purchase_to_the_second(make_history, tmp_path, out):
    log = make_history()
    end = END - timedelta(days=DAYS)
    on_border = log.events[BUY].head(2).with_columns(timestamp=pl.Series([end, end + timedelta(seconds=1)]))
    log.events[BUY] = pl.concat([log.events[BUY], on_border.cast(log.events[BUY].schema)])
    data = whole(log.write(tmp_path / "data"))
    cut_log(earlier(data, DAYS), out, overwrite=False)
    for event_type in data.event_types:
        before, cut = times(data.file(event_type)), times(out.raw / event_type.file_name)
        assert cut.to_list() == before.filter(before <= end).to_list()
        assert 0 < len(cut) < len(before)
    assert times(out.raw / BUY.file_name).max() == end
    assert out.properties.read_bytes() == data.paths.properties.read_bytes()


def test_of_what_was_made_only_the_relevant_clients_who_were_there_are_taken_over(history, out):
    split_log(history)
    never_seen = 99_999
    some = np.append(np.sort(whole(history).relevant_clients)[::2], never_seen)
    np.save(history.relevant_clients, some)
    early = earlier(whole(history), DAYS)
    cut_log(early, out, overwrite=False)
    assert files_in(out.raw) == files_in(history.raw)
    assert files_in(out.input) == [schema.RELEVANT_CLIENTS]
    assert not out.target.exists()
    kept = np.load(out.relevant_clients)
    assert (kept == early.clients).all()
    assert set(kept) == set(some) - {never_seen}
    split_log(out)  # and it is a log like any other
    assert (whole(out).relevant_clients == kept).all()


def test_the_history_before_the_train_window_is_taken_whole(history, out):
    split_log(history)
    data = ChallengeData(history, submit=False)
    cut_log(data, out, overwrite=False)
    for event_type in data.event_types:
        assert times(out.raw / event_type.file_name).to_list() == times(data.file(event_type)).to_list()
    split_log(out)
    assert whole(out).last(BUY) < SplitDates.of(whole(history)).train_start


def test_event_types_and_ids_of_the_logs_own_come_along(tmp_path, out):
    paths = log(OWN_TYPES).write(tmp_path / "data")
    pl.DataFrame({"id": [1], "original": ["a"]}).write_parquet(paths.ids("client"))
    cut_log(earlier(whole(paths), DAYS), out, overwrite=False)
    assert whole(out).event_types == whole(paths).event_types
    assert out.ids("client").read_bytes() == paths.ids("client").read_bytes()


def test_done_before_until_the_log_or_the_day_changes(history, out):
    cut_log(earlier(whole(history), DAYS), out, overwrite=False)
    with pytest.raises(AlreadyDone):
        cut_log(earlier(whole(history), DAYS), out, overwrite=False)
    cut_log(earlier(whole(history), DAYS + 1), out, overwrite=False)
    assert whole(out).last(BUY) <= END - timedelta(days=DAYS + 1)


def test_no_other_log_is_overwritten(make_history, history, tmp_path):
    other = make_history(seed=1).write(tmp_path / "other")
    before = {file.name: file.read_bytes() for file in other.raw.iterdir()}
    for place in (other, history):
        with pytest.raises(UserError, match=r"there is a log|the log itself"):
            cut_log(earlier(whole(history), DAYS), place, overwrite=True)
    assert {file.name: file.read_bytes() for file in other.raw.iterdir()} == before


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ([], "out: name the folder"),
        (["out=OUT"], "days, as_of: say by one of them"),
        (["out=OUT", "days=3", "as_of=2022-12-24"], "days, as_of: say by one of them"),
        (["out=OUT", "days=-3"], "days=-3: must be at least 0"),
        (["out=OUT", "days=700"], "has no event before it"),
        (["out=OUT", "as_of=2000-01-01"], "no purchase before it"),
    ],
)
def test_refusals(history, out, words, line):
    words = [f"data_path={history.root}", *(word.replace("OUT", str(out.root)) for word in words)]
    with pytest.raises(UserError, match=line):
        main(composed(CONFIGS / "scripts", "cut", words))
    assert not out.root.exists()


def test_the_command_cuts_by_a_day(history, out, capsys):
    main(composed(CONFIGS / "scripts", "cut", [f"data_path={history.root}", f"out={out.root}", "as_of=2023-01-10"]))
    assert times(out.raw / BUY.file_name).max() < pl.Series(["2023-01-10"]).str.to_datetime()[0]
    assert capsys.readouterr().out.startswith("log before 2023-01-10")
