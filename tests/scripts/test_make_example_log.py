"""The made-up logs: the same settings give the same files, with habits in them, and nobody's folder is replaced."""

import polars as pl
import pytest

from scripts.make_example_log import Wanted, bank, clickstream, main
from ubp.cli.config import composed
from ubp.data.paths import CONFIGS
from ubp.io.errors import UserError


def wanted(log, clients=120, days=120):
    return Wanted(log, "", clients, "2025-01-01", days)


@pytest.mark.parametrize("make", [bank, clickstream])
def test_the_same_seed_gives_the_same_tables(make):
    one, again, other = (make(wanted(make.__name__), seed) for seed in (3, 3, 4))
    assert one.keys() == again.keys()
    assert all(one[name].equals(again[name]) for name in one)
    assert any(name not in other or not one[name].equals(other[name]) for name in one)


def test_the_banks_clients_have_habits():
    (rows,) = bank(wanted("bank"), 0).values()
    assert rows["booked_at"].is_sorted()
    assert (rows["booked_at"].min()[:10], rows["booked_at"].max()[:7]) == ("2025-01-01", "2025-04")
    cards = rows.filter(pl.col("kind") == "card")
    shops = cards.filter(pl.col("merchant_code") == 5411).group_by("account", "merchant").len()
    most = shops.group_by("account").agg(
        (pl.col("len").max() / pl.col("len").sum()).alias("share"), pl.col("len").sum()
    )
    assert most.filter(pl.col("len") >= 10)["share"].mean() > 0.7  # their own supermarket
    debits = (
        rows.filter(pl.col("kind") == "direct_debit").group_by("account", "merchant").agg(pl.col("amount").n_unique())
    )
    assert debits["amount"].max() <= 2
    refunds = rows.filter(pl.col("kind") == "refund")
    assert 0 < len(refunds) < 0.1 * len(cards)
    assert refunds.join(cards, on=["account", "merchant", "amount"], how="anti").is_empty()
    early = set(cards.filter(pl.col("booked_at") < "2025-02-15")["merchant"])
    assert set(cards["merchant"]) - early  # shops that open


def test_the_clickstream_has_sessions_of_one_visitor():
    files = clickstream(wanted("clickstream"), 0)
    rows = pl.concat([table for name, table in files.items() if name.startswith("clicks/")])
    sessions = rows.group_by("session").agg(pl.col("visitor").n_unique(), span=pl.col("at").max() - pl.col("at").min())
    assert sessions["visitor"].max() == 1
    assert sessions["span"].max() < 3600 * 1000
    counts = dict(rows["action"].value_counts().rows())
    assert counts["view"] > counts["cart"] > counts["purchase"] > 0
    assert rows.filter(pl.col("action") == "purchase")["price"].null_count() == 0
    assert rows.filter(pl.col("action") == "search")["words"].null_count() == 0


def command(*words):
    return main(composed(CONFIGS / "scripts", "make_example_log", words))


def test_somebodys_folder_is_left_alone(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="there is something else already"):
        command(f"folder={tmp_path}/mine", "clients=5", "days=40", "overwrite=True")
    assert (tmp_path / "mine/thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize(
    ("word", "line"),
    [("log=game", "log=game: must be bank or clickstream"), ("days=30", "days=30: must be more than 30"),
     ("clients=0", "clients=0"), ("start=soon", "start=soon: not a day")],
)  # fmt: skip
def test_what_cannot_be_made(tmp_path, word, line):
    with pytest.raises(UserError, match=line):
        command(f"folder={tmp_path}/x", word)
