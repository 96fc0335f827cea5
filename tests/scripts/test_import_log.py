"""The command: the project's three schemas on small files, what it shows, and that the split takes what it writes."""

import uuid
import zoneinfo
from datetime import datetime, timedelta

import numpy as np
import polars as pl
import pytest
import yaml

from scripts import import_log, make_example_log
from scripts.split import split
from tests.calls import called
from tests.test_commands import run
from ubp.cli.config import composed
from ubp.data.history import ChallengeData
from ubp.data.own_log import outputs
from ubp.data.paths import CONFIGS, DataPaths
from ubp.data.schema import EVENT_TYPES, EventType
from ubp.data.split import SplitDates
from ubp.data.targets import TargetRules
from ubp.io.errors import UserError
from ubp.io.stage import AlreadyDone

CLIENTS, DAYS = 40, 70


def brought_in(root, source, name, *overrides):
    words = [f"schema={name}", f"data_path={root}", f"source={source}", *overrides]
    return import_log.main(composed(CONFIGS / "scripts", "import_log", words))


def example(folder, log):
    words = [f"log={log}", f"clients={CLIENTS}", f"days={DAYS}", f"folder={folder}", "start=2025-03-01"]
    make_example_log.main(composed(CONFIGS / "scripts", "make_example_log", words))


def split_of(root) -> ChallengeData:
    data = ChallengeData(DataPaths(root), True)
    split(data, SplitDates.of(data), TargetRules(), overwrite=False)
    return ChallengeData(DataPaths(root), False)


@pytest.fixture(scope="module")
def bank_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files") / "bank"
    example(folder, "bank")
    return folder


@pytest.fixture
def bank(bank_files, tmp_path):
    """The bank's log, brought in, and where."""
    return brought_in(tmp_path / "data", bank_files, "bank"), DataPaths(tmp_path / "data")


# --- the schemas -----------------------------------------------------------------------------------------------------


def test_the_bank(bank, bank_files):
    found, paths = bank
    history = split_of(paths.root)
    assert len(history.clients) > 30
    rows = pl.read_csv(bank_files / "transactions.csv")
    payments = rows.filter(pl.col("kind") != "refund")
    bought = ChallengeData(paths, True).events(EventType.PRODUCT_BUY).collect()
    assert len(bought) == len(payments)
    berlin = zoneinfo.ZoneInfo("Europe/Berlin")
    wanted = [datetime.fromisoformat(time).astimezone(berlin).replace(tzinfo=None) for time in payments["booked_at"]]
    assert bought["timestamp"].to_list() == wanted
    ids = pl.read_parquet(paths.raw / "ids_client.parquet")
    accounts = bought.join(ids, left_on="client_id", right_on="id", maintain_order="left")["original"]
    assert accounts.to_list() == payments["account"].to_list()
    assert sorted(set(rows["merchant_code"])) == found.items.categories["id"].to_list()
    assert found.items.without == {"category": 0, "price": 0, "name": 0}


@pytest.mark.full
def test_the_clickstream(tmp_path):
    example(tmp_path / "files", "clickstream")
    found = brought_in(tmp_path / "data", tmp_path / "files", "clickstream")
    history = split_of(tmp_path / "data")
    assert {kind for kind in EVENT_TYPES if history.has(kind)} == set(EVENT_TYPES) - {EventType.REMOVE_FROM_CART}
    assert all(each.files > DAYS / 2 for each in found.sources)
    visitors = pl.read_parquet(tmp_path / "data/raw/ids_client.parquet")["original"]
    assert all(uuid.UUID(each).version == 4 for each in visitors)
    products = pl.read_parquet(tmp_path / "files/products.parquet")
    table = found.items.table
    assert len(table) == len(products)
    assert found.items.categories["original"].to_list()[0] == "garden / basics"
    dearest, cheapest = products["list_price"].arg_max(), products["list_price"].arg_min()
    assert table["price"][dearest] == 99
    assert table["price"][cheapest] == 0


@pytest.mark.full
def test_the_demos_grocer(tmp_path):
    """Small tables of the columns that the package has."""
    rng = np.random.default_rng(0)
    count, files = 400, tmp_path / "files"
    files.mkdir()
    begin = datetime(2017, 1, 1, 4, 59, 59)  # the last second of the year before, in New York
    times = [begin + timedelta(seconds=int(second)) for second in np.sort(rng.integers(0, DAYS * 86_400, count))]
    lines = {
        "household_id": rng.integers(1, CLIENTS, count), "store_id": 1, "basket_id": 1,
        "product_id": rng.integers(900, 920, count), "quantity": 1, "sales_value": rng.random(count) * 9,
        "transaction_timestamp": [begin, *times[1:]],
    }  # fmt: skip
    pl.DataFrame(lines).write_parquet(files / "transactions.parquet")
    redeemed = {"household_id": [1], "coupon_upc": [10**10], "redemption_date": [datetime(2017, 2, 1)]}
    pl.DataFrame(redeemed).write_parquet(files / "coupon_redemptions.parquet")
    products = {
        "product_id": range(900, 925), "department": "GROCERY", "brand": "National",
        "product_category": ["SOUP"] * 24 + [None], "product_type": ["CAN", "BOX"] * 12 + [None],
        "package_size": "1 LB",
    }  # fmt: skip
    pl.DataFrame(products).write_parquet(files / "products.parquet")
    found = brought_in(tmp_path / "data", files, "demo_grocer")
    assert found.sources[0].first == datetime(2016, 12, 31, 23, 59, 59)
    assert found.items.categories["original"].to_list() == ["GROCERY", "GROCERY / SOUP / BOX", "GROCERY / SOUP / CAN"]
    assert found.items.without["price"] == 25 - len(set(lines["product_id"].tolist()))
    history = split_of(tmp_path / "data")
    assert set(history.clients.tolist()) <= set(range(1, CLIENTS))


@pytest.mark.full
def test_event_types_of_the_logs_own(bank_files, tmp_path, capsys):
    """The bank's refunds as a type of their own, and a branch where a payment was made."""
    found = yaml.safe_load((CONFIGS / "schema" / "bank.yaml").read_text())
    refunds = found["events"]["refunds"] | {"as": "refund"}
    branches = {key: value for key, value in refunds.items() if key not in ("item", "value")}
    branches |= {"as": "branch_visit", "url": "merchant_code", "where": {"kind": ["card"]}}
    found["events"] |= {"refunds": refunds, "branches": branches}
    config = composed(
        CONFIGS / "scripts",
        "import_log",
        ["schema=bank", f"data_path={tmp_path / 'data'}", f"source={bank_files}"],
    )
    config.schema = found
    import_log.main(config)
    assert "event types of the log's own: refund (about items), branch_visit (about urls)" in capsys.readouterr().out
    history = split_of(tmp_path / "data")
    whole = ChallengeData(history.paths, True)
    rows = pl.read_csv(bank_files / "transactions.csv")
    assert whole.event_types[5:] == ("refund", "branch_visit")
    assert whole.rows(whole.event_type("refund")) == rows.filter(pl.col("kind") == "refund").height
    assert whole.rows(whole.event_type("branch_visit")) == rows.filter(pl.col("kind") == "card").height
    assert whole.rows(EventType.REMOVE_FROM_CART) == 0
    assert history.has(history.event_type("refund"))
    codes = pl.read_parquet(history.paths.raw / "ids_url.parquet")["original"].cast(pl.String)
    assert set(codes) == set(rows.filter(pl.col("kind") == "card")["merchant_code"].cast(pl.String))
    brought_in(tmp_path / "data", bank_files, "bank")  # another schema: the types of before are gone
    assert ChallengeData(DataPaths(tmp_path / "data"), True).event_types == EVENT_TYPES
    assert not {"event_types.json", "refund.parquet"} & {file.name for file in history.paths.raw.iterdir()}


# --- what is shown ---------------------------------------------------------------------------------------------------


def test_the_table_shows_what_was_understood(bank_files, tmp_path, capsys):
    rows = (bank_files / "transactions.csv").read_text().splitlines()
    head, first = rows[0], rows[1].split(",")
    rows = [*rows, rows[-1], rows[1].replace(first[1], "2099-01-01T00:00:00Z"), rows[1].replace(first[1], "later")]
    (tmp_path / "transactions_1.csv").write_text("\n".join(rows))
    (tmp_path / "transactions_2.csv").write_text(f"{head}\n")
    capsys.readouterr()
    found = brought_in(tmp_path / "data", tmp_path, "bank", "bad_rows=drop")
    out = capsys.readouterr().out
    assert "the log as understood, times in Europe/Berlin" in out
    for words in (
        "payments", "product_buy", "transactions*.csv (2 files)", "kind: card, direct_debit", "1 left out",
        f"{found.sources[0].rows:,}", f"{found.sources[0].subjects} items", "2099-01-01", first[0], first[3],
        "refunds", "remove_from_cart", "price: middle of what was paid", "category: 18 different", "name: as codes",
    ):  # fmt: skip
        assert words in out, words
    below = out.splitlines()
    assert "no source of add_to_cart, page_visit, search_query: blocks that need such events are left out" in below
    warned = [line for line in below if line.startswith("warning: ")]
    assert len(warned) == 3
    assert any("product_buy: 1 rows repeat" in line or "remove_from_cart: 1 rows repeat" in line for line in warned)
    assert any("days inside the log have no events at all" in line for line in warned)
    assert any("product_buy: 1 events lie ahead of now" in line for line in warned)
    assert below[-1].startswith(f"imported log · {sum(each.rows for each in found.sources):,} events · ")


def test_missing_attributes_are_in_the_table(bank_files, tmp_path, capsys):
    found = brought_in(tmp_path / "data", bank_files, "bank", "~schema.items")
    out = capsys.readouterr().out
    count = len(found.items.table)
    assert f"category: {count} without, given 0" in out
    assert f"name: {count} without, left empty" in out
    assert "price: middle of what was paid" in out


def test_a_source_without_rows_is_warned_of(bank_files, tmp_path, capsys):
    brought_in(tmp_path / "data", bank_files, "bank", "schema.events.refunds.where.kind=Refund")
    assert "warning: refunds: no rows; is where: right?" in capsys.readouterr().out


# --- once, and whole -------------------------------------------------------------------------------------------------


def test_a_second_time_there_is_nothing_to_do_until_a_file_changes(bank, bank_files, tmp_path, capsys):
    _, paths = bank
    copy = tmp_path / "transactions.csv"
    copy.write_text((bank_files / "transactions.csv").read_text())
    with pytest.raises(AlreadyDone, match="imported log · done before"):
        brought_in(paths.root, bank_files, "bank")
    brought_in(paths.root, bank_files, "bank", "overwrite=True")
    split_of(paths.root)
    copy.write_text(copy.read_text().replace("card", "direct_debit"))
    capsys.readouterr()
    brought_in(paths.root, tmp_path, "bank")
    assert (
        f"warning: {paths.relevant_clients} and {paths.target} were chosen for an earlier log"
        in capsys.readouterr().out
    )


def test_what_this_command_did_not_make_is_left_alone(history, bank_files):
    before = {path: path.read_bytes() for path in history.raw.glob("*.parquet")}
    for more in ([], ["overwrite=True"]):
        with pytest.raises(UserError, match="holds data that this command did not make"):
            brought_in(history.root, bank_files, "bank", *more)
    assert {path: path.read_bytes() for path in history.raw.glob("*.parquet")} == before


def test_faults_leave_what_was_there(bank, bank_files, tmp_path):
    _, paths = bank
    before = {path: path.read_bytes() for path in outputs(paths, EVENT_TYPES)}
    (tmp_path / "transactions.csv").write_text((bank_files / "transactions.csv").read_text().replace("Z,", ","))
    with pytest.raises(UserError, match=r"column booked_at: .* have no time of the form %Y-%m-%dT%H:%M:%SZ"):
        brought_in(paths.root, tmp_path, "bank")
    assert {path: path.read_bytes() for path in outputs(paths, EVENT_TYPES)} == before


# --- what is asked for -----------------------------------------------------------------------------------------------


def test_no_schema_is_one_line_that_names_the_known(tmp_path):
    config = composed(CONFIGS / "scripts", "import_log", [f"data_path={tmp_path}"])
    with pytest.raises(UserError, match=r"schema=NAME, a file of configs/schema/ \(bank, clickstream, demo_grocer\)"):
        import_log.main(config)


def test_another_way_with_bad_rows(tmp_path):
    with pytest.raises(UserError, match="bad_rows=keep: must be error or drop"):
        brought_in(tmp_path, tmp_path, "bank", "bad_rows=keep")


@pytest.mark.full
def test_a_schema_of_ones_own_and_errors_on_the_command_line(tmp_path):
    (tmp_path / "schema").mkdir()
    text = """
events:
  sales: {as: product_buy, file: sales.csv, client: who, time: when, item: what}
"""
    (tmp_path / "schema/mine.yaml").write_text(text)
    (tmp_path / "sales.csv").write_text("who,when,what\na,2025-01-01 00:00:00,b\n")
    words = ["scripts/import_log.py", f"--config-dir={tmp_path}", "schema=mine"]
    done = run(tmp_path / "data", words, tmp_path)
    assert done.code == 0, done.err
    assert done.last.startswith("imported log · 1 events · ")
    (tmp_path / "sales.csv").write_text("who,when\na,2025-01-01 00:00:00\n")
    done = run(tmp_path / "data", words, tmp_path)
    assert done.code == 1
    assert [line for line in done.err.splitlines() if line.startswith("error: ")] == [
        "error: sales.csv: column what missing (it has who, when); correct sales in the schema"
    ]
    assert "Traceback" not in done.err


@pytest.mark.parametrize("text", ["events: [", "a: b: c", "events: *x"])
def test_a_schema_that_is_no_yaml_is_one_line(tmp_path, monkeypatch, capsys, text):
    (tmp_path / "schema").mkdir()
    file = tmp_path / "schema" / "mine.yaml"
    file.write_text(text)
    words = [f"--config-dir={tmp_path}", "schema=mine", f"data_path={tmp_path / 'data'}"]
    code, _, (line,) = called(import_log, words, monkeypatch, capsys)
    assert code == 1
    assert line.startswith("error: ")
    assert f"{file}" in line
