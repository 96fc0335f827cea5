"""A log of one's own in the raw layout: what the library opens afterwards is what the files said."""

from datetime import datetime

import numpy as np
import polars as pl
import pytest

from tests.ubp.data.test_text_codes import no_model
from ubp.data.history import ChallengeData
from ubp.data.log_schema import schema_of
from ubp.data.own_log import ImportSettings, OwnLog, all_files, import_log, outputs
from ubp.data.paths import DataPaths
from ubp.data.schema import EVENT_TYPES, EventType
from ubp.data.text_codes import TextSettings
from ubp.io.errors import UserError

SALES = """who,when,what,paid,kind
ann,2025-01-01 10:00:00,soup,2.50,sale
bob,2025-01-02 10:00:00,soup,3.50,sale
bob,2025-01-03 10:00:00,pan,20,sale
bob,2025-01-04 10:00:00,pan,20,return
"""
OLDER = """client,at,product
cid,2024-12-31 23:00:00,hose
ann,2024-12-31 23:30:00,soup
"""
PAGES = """who,when,page
ann,2025-01-01 09:59:00,/soups
dan,2025-01-01 09:58:00,/home
"""
SEARCHES = """who,when,words
ann,2025-01-01 09:58:00,tomato soup
bob,2025-01-03 09:58:00,tomato soups
bob,2025-01-03 09:58:30,tomato soup
"""
ITEMS = """what,group,title
soup,food,Tomato soup
pan,kitchen,Steel pan
knife,kitchen,
"""
FILES = {"sales.csv": SALES, "older.csv": OLDER, "pages.csv": PAGES, "searches.csv": SEARCHES, "items.csv": ITEMS}
SALES_COLUMNS = {"file": "sales.csv", "client": "who", "time": "when", "item": "what"}
OLDER_COLUMNS = {"file": "older.csv", "client": "client", "time": "at", "zone": "UTC", "item": "product"}
SCHEMA = {
    "zone": "Europe/Paris",
    "events": {
        "sales": {"as": "product_buy", **SALES_COLUMNS, "value": "paid", "where": {"kind": "sale"}},
        "older": {"as": "product_buy", **OLDER_COLUMNS},
        "returns": {"as": "remove_from_cart", **SALES_COLUMNS, "where": {"kind": "return"}},
        "pages": {"as": "page_visit", "file": "pages.csv", "client": "who", "time": "when", "url": "page"},
        "searches": {"as": "search_query", "file": "searches.csv", "client": "who", "time": "when", "text": "words"},
    },
    "items": {"file": "items.csv", "item": "what", "category": "group", "text": "title"},
}


@pytest.fixture
def folder(tmp_path):
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    return tmp_path


def brought_in(folder, drop=False, begin=lambda: None, values=SCHEMA, seed=0) -> tuple[OwnLog, DataPaths]:
    log, paths = schema_of(values), DataPaths(folder / "data")
    settings = ImportSettings(drop, TextSettings(), seed, datetime(2026, 1, 1), no_model)
    return import_log(log, all_files(log, folder), paths, settings, begin), paths


def originals(paths, name) -> dict[int, object]:
    return dict(pl.read_parquet(paths.raw / f"ids_{name}.parquet").rows())


def test_the_library_opens_what_the_files_said(folder):
    found, paths = brought_in(folder)
    data, clients, items = ChallengeData(paths, True), originals(paths, "client"), originals(paths, "item")
    urls = originals(paths, "url")
    assert clients == dict(enumerate(["ann", "bob", "cid", "dan"], 1))

    def rows(kind, subjects):
        table = data.events(kind).collect()
        return [(clients[client], time, subjects[subject]) for client, time, subject in table.rows()]

    assert rows(EventType.PRODUCT_BUY, items) == [
        ("ann", datetime(2025, 1, 1, 10), "soup"), ("bob", datetime(2025, 1, 2, 10), "soup"),
        ("bob", datetime(2025, 1, 3, 10), "pan"), ("cid", datetime(2025, 1, 1, 0), "hose"),
        ("ann", datetime(2025, 1, 1, 0, 30), "soup"),
    ]  # fmt: skip
    assert rows(EventType.REMOVE_FROM_CART, items) == [("bob", datetime(2025, 1, 4, 10), "pan")]
    assert [url for *_, url in rows(EventType.PAGE_VISIT, urls)] == ["/soups", "/home"]
    assert not data.has(EventType.ADD_TO_CART)
    queries = data.events(EventType.SEARCH_QUERY).collect()["query"].to_numpy()
    assert np.array_equal(queries[0], queries[2])
    assert [each.rows for each in found.sources] == [3, 2, 1, 2, 3]


def test_properties_have_every_item_and_say_what_is_missing(folder):
    found, paths = brought_in(folder)
    items, categories = originals(paths, "item"), originals(paths, "category")
    table = ChallengeData(paths, True).properties().collect()
    known = {items[row["sku"]]: row for row in table.iter_rows(named=True)}
    assert known.keys() == {"soup", "pan", "knife", "hose"}
    assert categories == {1: "food", 2: "kitchen"}
    assert {name: row["category"] for name, row in known.items()} == {"soup": 1, "pan": 2, "knife": 2, "hose": 0}
    assert {name: row["price"] for name, row in known.items()} == {"soup": 25, "pan": 75, "knife": 50, "hose": 50}
    assert found.items.without == {"category": 1, "price": 2, "name": 2}
    assert np.array_equal(known["knife"]["name"], known["hose"]["name"])
    queries = ChallengeData(paths, True).events(EventType.SEARCH_QUERY).collect()["query"].to_numpy()
    assert np.array_equal(known["soup"]["name"], queries[0])  # one quantiser reads names and searches


def test_figures_are_those_of_each_source(folder):
    found, _ = brought_in(folder)
    sales, older = found.sources[:2]
    assert (sales.clients, sales.subjects, sales.dropped, sales.files) == (2, 2, 0, 1)
    assert (sales.first, sales.last) == (datetime(2025, 1, 1, 10), datetime(2025, 1, 3, 10))
    assert sales.example == ("ann", datetime(2025, 1, 1, 10), "soup", 2.5)
    assert older.first == datetime(2025, 1, 1, 0)  # 23:00 UTC is midnight in Paris


def test_the_same_log_gives_the_same_bytes(folder):
    _, paths = brought_in(folder)
    before = {path: path.read_bytes() for path in outputs(paths, EVENT_TYPES)}
    brought_in(folder)
    assert {path: path.read_bytes() for path in outputs(paths, EVENT_TYPES)} == before
    assert not (paths.cache / "import_log").exists()


def test_all_faults_are_said_and_nothing_earlier_is_lost(folder):
    _, paths = brought_in(folder)
    before = {path: path.stat().st_mtime_ns for path in outputs(paths, EVENT_TYPES)}
    (folder / "sales.csv").write_text(SALES.replace("2025-01-03", "soon").replace("ann", ""))
    (folder / "items.csv").write_text(ITEMS.replace("title", "titel"))
    begun = []
    with pytest.raises(UserError) as error:
        brought_in(folder, begin=lambda: begun.append(1))
    assert [line.split(": ")[1] for line in error.value.messages] == [
        "column who", "column when", "column title missing (it has what, group, titel); correct items in the schema",
    ]  # fmt: skip
    assert {path: path.stat().st_mtime_ns for path in outputs(paths, EVENT_TYPES)} == before
    assert begun == []
    assert not (paths.cache / "import_log").exists()


def test_rows_that_cannot_be_used_are_left_out_and_counted(folder):
    (folder / "sales.csv").write_text(SALES.replace("2025-01-03", "soon"))
    found, paths = brought_in(folder, drop=True)
    assert (found.sources[0].rows, found.sources[0].dropped) == (2, 1)
    assert len(ChallengeData(paths, True).events(EventType.PRODUCT_BUY).collect()) == 4


def test_a_log_without_purchases(folder):
    values = {**SCHEMA, "events": {**SCHEMA["events"]}}
    values["events"].pop("older")
    values["events"]["sales"] = {**values["events"]["sales"], "where": {"kind": "Sale"}}
    with pytest.raises(UserError, match=r"sales \(.*sales.csv\): no purchases at all"):
        brought_in(folder, values=values)


def test_every_missing_file_is_said(folder):
    (folder / "sales.csv").unlink()
    (folder / "items.csv").unlink()
    with pytest.raises(UserError) as error:
        brought_in(folder)
    assert len(error.value.messages) == 3  # sales, returns, items


def test_integer_ids_stay_and_those_of_several_files_are_one(folder):
    values = {"events": {name: SCHEMA["events"][name] for name in ("sales", "pages")}}
    for name in ("sales.csv", "pages.csv"):
        text = FILES[name].replace("ann", "-9223372036854775808").replace("bob", "17").replace("dan", "17")
        (folder / name).write_text(text)
    pl.read_csv(folder / "pages.csv").write_parquet(folder / "pages.parquet")
    values["events"]["pages"] = {**values["events"]["pages"], "file": "pages.parquet"}
    found, paths = brought_in(folder, values=values)
    assert originals(paths, "client") == {-(2**63): -(2**63), 17: 17}
    assert ChallengeData(paths, True).events(EventType.PAGE_VISIT).collect()["client_id"].to_list() == [-(2**63), 17]
    assert found.items.without["category"] == len(found.items.table)


def test_items_of_another_name_than_events(folder):
    values = {**SCHEMA, "events": {"items": SCHEMA["events"]["sales"]}}
    found, _ = brought_in(folder, values=values)
    assert found.sources[0].rows == 3
