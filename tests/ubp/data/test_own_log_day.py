"""Days taken into a log: what it had stays, what is new is added, and however it is done the result is the same."""

import copy
from datetime import date, datetime

import numpy as np
import polars as pl
import pytest

from tests.ubp.data.test_own_log import FILES, SCHEMA, brought_in, originals
from tests.ubp.data.test_text_codes import no_model
from ubp.data import own_log_day
from ubp.data.growth import Growth
from ubp.data.history import ChallengeData
from ubp.data.import_state import ImportState
from ubp.data.log_schema import schema_of
from ubp.data.own_log import ImportSettings, all_files, outputs
from ubp.data.own_log_day import take_day
from ubp.data.schema import EVENT_TYPES, EventType
from ubp.data.text_codes import TextSettings, codes_text
from ubp.io import together
from ubp.io.errors import UserError

NEW_SALES = """abe,2025-01-04 23:00:00,soup,2.50,sale
zoe,2025-01-05 08:00:00,axe,19,sale
bob,2025-01-05 09:00:00,axe,21,sale
ann,2025-01-06 09:00:00,pan,22,sale
"""
NEW_PAGES = "zoe,2025-01-05 07:59:00,/about\n"
NEW_SEARCHES = "zoe,2025-01-05 07:58:00,tomato soup\nabe,2025-01-06 07:58:00,tomatoes\n"
NEW_ITEMS = "axe,garden,Steel axe\n"


@pytest.fixture
def folder(tmp_path):
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    return tmp_path


@pytest.fixture
def grown(folder):
    """A log that was brought in, and more rows in the files that it came from."""
    _, paths = brought_in(folder)
    for name, new in {
        "sales.csv": NEW_SALES, "pages.csv": NEW_PAGES, "searches.csv": NEW_SEARCHES, "items.csv": NEW_ITEMS
    }.items():  # fmt: skip
        (folder / name).write_text(FILES[name] + new)
    return paths


def take(folder, paths, day, values=SCHEMA):
    log = schema_of(values)
    settings = ImportSettings(False, TextSettings(), 0, datetime(2026, 1, 1), no_model)
    return take_day(log, all_files(log, folder), paths, settings, date.fromisoformat(day))


def rows(paths, kind) -> list[tuple]:
    clients, items = originals(paths, "client"), originals(paths, "item")
    table = ChallengeData(paths, True).events(kind).collect()
    return [(clients[client], str(time), items[subject]) for client, time, subject in table.rows()]


def contents(paths) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in outputs(paths, EVENT_TYPES)}


def test_new_rows_of_the_days_and_no_others(folder, grown):
    before = rows(grown, EventType.PRODUCT_BUY)
    taken = take(folder, grown, "2025-01-05")
    assert (taken.events, taken.clients, taken.items) == (5, 2, 1)
    assert rows(grown, EventType.PRODUCT_BUY) == [
        *before, ("abe", "2025-01-04 23:00:00", "soup"), ("zoe", "2025-01-05 08:00:00", "axe"),
        ("bob", "2025-01-05 09:00:00", "axe"),
    ]  # fmt: skip
    assert take(folder, grown, "2025-01-06").events == 2
    assert rows(grown, EventType.PRODUCT_BUY)[-1] == ("ann", "2025-01-06 09:00:00", "pan")
    assert len(ChallengeData(grown, True).events(EventType.SEARCH_QUERY).collect()) == 5


def test_ids_stay_and_new_ones_follow(folder, grown):
    take(folder, grown, "2025-01-05")
    assert originals(grown, "client") == dict(enumerate(["ann", "bob", "cid", "dan", "abe", "zoe"], 1))
    assert originals(grown, "item") == dict(enumerate(["hose", "knife", "pan", "soup", "axe"], 1))
    assert originals(grown, "url") == dict(enumerate(["/home", "/soups", "/about"], 1))
    assert originals(grown, "category") == {1: "food", 2: "kitchen", 3: "garden"}


def test_properties_stay_and_new_items_have_theirs_by_the_first_import(folder, grown):
    before = pl.read_parquet(grown.properties)
    take(folder, grown, "2025-01-05")
    after = pl.read_parquet(grown.properties)
    assert after.head(len(before)).equals(before)
    new = after.row(len(before), named=True)
    # Paid 19 and 21: 20 in the middle, as the pan, the second of the first import's two prices.
    assert (new["sku"], new["category"], new["price"]) == (5, 3, 75)
    codes = ImportState.read(grown.import_state, no_model).codes
    assert new["name"] == codes_text(codes.of(["Steel axe"]))[0] != before["name"][0]


def test_a_text_has_the_codes_that_it_had(folder, grown):
    take(folder, grown, "2025-01-05")
    queries = ChallengeData(grown, True).events(EventType.SEARCH_QUERY).collect()["query"].to_numpy()
    assert np.array_equal(queries[0], queries[3])  # both "tomato soup"


def test_the_same_day_again_changes_nothing(folder, grown):
    take(folder, grown, "2025-01-05")
    before = contents(grown)
    taken = take(folder, grown, "2025-01-05")
    assert (taken.events, taken.clients, taken.items) == (0, 0, 0)
    assert contents(grown) == before


def test_skipped_days_are_taken_with_the_next(folder, grown):
    assert take(folder, grown, "2025-01-06").events == 7
    together = rows(grown, EventType.PRODUCT_BUY)
    assert [row[1] for row in together[-4:]] == [
        "2025-01-04 23:00:00", "2025-01-05 08:00:00", "2025-01-05 09:00:00", "2025-01-06 09:00:00"
    ]  # fmt: skip


def test_files_of_the_new_day_alone_give_the_same(folder, grown, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    for name, text in FILES.items():
        (other / name).write_text(text)
    _, paths = brought_in(other)
    for name, new in (("sales.csv", NEW_SALES), ("pages.csv", NEW_PAGES), ("searches.csv", NEW_SEARCHES)):
        head = FILES[name].splitlines()[0]
        (other / name).write_text(f"{head}\n{new}")
    (other / "older.csv").write_text("client,at,product\n")
    (other / "items.csv").write_text(FILES["items.csv"] + NEW_ITEMS)
    take(other, paths, "2025-01-06")
    take(folder, grown, "2025-01-06")
    assert contents(paths) == contents(grown)


def test_a_day_without_purchases(folder, grown):
    (folder / "sales.csv").write_text(FILES["sales.csv"])
    assert take(folder, grown, "2025-01-05").events == 2


def test_other_event_types_are_refused(folder, grown):
    values = copy.deepcopy(SCHEMA)
    values["events"]["sales_again"] = values["events"]["sales"] | {"as": "transfer"}
    before = contents(grown)
    with pytest.raises(UserError, match="the log's own event types are none, the schema's transfer; bring the"):
        take(folder, grown, "2025-01-05", values)
    assert contents(grown) == before


def test_an_earlier_day_is_refused(folder, grown):
    before = contents(grown)
    with pytest.raises(UserError, match="day=2025-01-03: the log goes on until 2025-01-04 already"):
        take(folder, grown, "2025-01-03")
    assert contents(grown) == before


def test_what_it_grew_by_is_kept(folder, grown):
    before = ChallengeData(grown, True)
    fingerprint = before.files_fingerprint
    take(folder, grown, "2025-01-05")
    growth = Growth.to(ChallengeData(grown, True))
    assert growth.before == fingerprint
    new = {kind: len(growth.events(kind).collect()) for kind in before.event_types}
    assert new == {
        EventType.PRODUCT_BUY: 3, EventType.PAGE_VISIT: 1, EventType.SEARCH_QUERY: 1, EventType.ADD_TO_CART: 0,
        EventType.REMOVE_FROM_CART: 0,
    }  # fmt: skip


def test_what_it_grew_by_is_kept_by_a_run_that_breaks_off_when_its_files_count(folder, grown, monkeypatch):
    """Else the night that follows compares the whole log, and the sequence store before is never removed."""
    before = ChallengeData(grown, True).files_fingerprint
    with monkeypatch.context() as patch:
        patch.setattr(together, "finish", lambda at: 1 / 0 if (at / "complete.json").exists() else False)
        with pytest.raises(ZeroDivisionError):
            take(folder, grown, "2025-01-05")
    assert take(folder, grown, "2025-01-05").events == 0
    growth = Growth.to(ChallengeData(grown, True))
    assert growth.before == before
    assert len(growth.events(EventType.PRODUCT_BUY).collect()) == 3


@pytest.mark.parametrize("place", ["keep_growth", "replaced_together"])
def test_a_run_that_broke_off_is_repeated_with_the_same_result(folder, grown, monkeypatch, place):
    with monkeypatch.context() as patch:
        patch.setattr(own_log_day, place, lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            take(folder, grown, "2025-01-05")
    take(folder, grown, "2025-01-05")
    assert len(rows(grown, EventType.PRODUCT_BUY)) == 8
    assert len(originals(grown, "client")) == 6


def test_a_log_of_integers_takes_integers_only(folder, grown):
    values = {"events": {"sales": {**SCHEMA["events"]["sales"], "file": "numbers.csv"}}}
    head = "who,when,what,paid,kind\n"
    (folder / "numbers.csv").write_text(f"{head}7,2025-01-01 10:00:00,3,2.50,sale\n9,2025-01-01 11:00:00,4,3,sale\n")
    for path in outputs(grown, EVENT_TYPES):
        path.unlink()
    brought_in(folder, values=values)
    (folder / "numbers.csv").write_text(f"{head}8,2025-01-02 10:00:00,5,2.50,sale\n")
    take(folder, grown, "2025-01-02", values)
    assert originals(grown, "client") == {7: 7, 8: 8, 9: 9}
    assert pl.read_parquet(grown.properties)["sku"].to_list() == [3, 4, 5]
    (folder / "numbers.csv").write_text(f"{head}x,2025-01-03 10:00:00,5,2.50,sale\n")
    with pytest.raises(UserError, match="client: 'x' is no integer, as the ids of this log were so far"):
        take(folder, grown, "2025-01-03", values)


def test_a_log_that_was_not_imported(folder, grown):
    grown.import_state.unlink()
    with pytest.raises(UserError, match=r"import_state.npz: file missing; days can be taken into a log that was"):
        take(folder, grown, "2025-01-05")


@pytest.mark.parametrize("left", [0, 10, 200])
def test_a_broken_state_of_the_import_is_named(folder, grown, left):
    grown.import_state.write_bytes(grown.import_state.read_bytes()[:left])
    with pytest.raises(UserError, match=r"import_state\.npz: not readable .*import the log anew"):
        take(folder, grown, "2025-01-05")
