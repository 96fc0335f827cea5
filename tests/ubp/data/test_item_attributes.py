"""Items as properties: the most frequent category and name, prices in buckets of equally many."""

import math
import statistics

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import few
from ubp.data.item_attributes import MIDDLE, attributes, buckets, buckets_of
from ubp.data.own_ids import numbered

LISTED = {"subject": pl.String, "category": pl.String, "price": pl.Float64, "name": pl.String}


def made(listed, paid=(), by_amounts=True):
    rows = [] if listed is None else [pl.LazyFrame([row], schema=LISTED, orient="row") for row in listed]
    amounts = pl.LazyFrame(list(paid), schema={"subject": pl.String, "value": pl.Float64}, orient="row")
    ids = [amounts.select("subject"), *(row.select("subject") for row in rows)]
    return attributes(numbered(ids), rows, amounts, by_amounts)


def test_what_most_rows_say_counts_and_of_equally_many_the_first_in_order():
    rows = [
        ("a", "food", None, "Soup"), ("a", "toys", None, "soup"), ("a", "food", None, None),
        ("b", "toys", None, "z"), ("b", "food", None, "y"),
    ]  # fmt: skip
    found = made(rows)
    assert found.table.select("category", "name").rows() == [(1, "Soup"), (1, "y")]
    assert found.categories.rows() == [(1, "food"), (2, "toys")]


def test_integers_stay_categories():
    found = made([("a", "5411", None, None), ("b", "4900", None, None)])
    assert found.table["category"].to_list() == [5411, 4900]


def test_what_is_missing_is_filled_and_counted():
    found = made([("a", None, None, None), ("b", "food", None, "Bread")], [("a", 3.0), ("c", 9.0)])
    assert found.table.rows() == [(1, 0, 25, ""), (2, 1, MIDDLE, "Bread"), (3, 0, 75, "")]
    assert found.without == {"category": 2, "price": 1, "name": 2}


def test_without_a_list_there_are_only_amounts():
    found = made(None, [("7", 1.0), ("7", 100.0), ("7", 2.0), ("9", 3.0)])
    assert found.table.rows() == [(7, 0, 25, ""), (9, 0, 75, "")]
    assert found.by_amounts


def test_a_lists_prices_are_its_own_not_what_was_paid():
    listed = [("a", None, 5.0, None), ("b", None, 1.0, None), ("c", None, None, None)]
    found = made(listed, [("a", 1.0), ("b", 9.0), ("c", 9.0)], by_amounts=False)
    assert found.table["price"].to_list() == [75, 25, MIDDLE]
    assert found.without["price"] == 1


def test_the_middle_of_several_prices():
    listed = [("a", None, price, None) for price in (1.0, 2.0, 90.0)] + [("b", None, 3.0, None)]
    assert made(listed, by_amounts=False).table["price"].to_list() == [25, 75]


def test_constant_prices_lie_in_the_middle():
    assert pl.DataFrame({"price": [3.0] * 17}).select(buckets("price"))["price"].unique().to_list() == [50]


def test_a_heavy_tail_fills_all_buckets_alike():
    prices = pl.DataFrame({"price": [math.exp(n / 20) for n in range(1_000)]})
    counts = prices.select(buckets("price"))["price"].value_counts()
    assert len(counts) == 100
    assert counts["count"].unique().to_list() == [10]


@settings(max_examples=few(50), deadline=None)
@given(st.lists(st.one_of(st.none(), st.floats(-1e6, 1e6), st.sampled_from([0.0, 1.0])), min_size=1, max_size=60))
def test_buckets_are_those_of_the_mean_rank(prices):
    found = pl.DataFrame({"price": pl.Series(prices, dtype=pl.Float64)}).select(buckets("price"))["price"].to_list()
    known = sorted(price for price in prices if price is not None)
    for price, bucket in zip(prices, found, strict=True):
        if price is None:
            assert bucket == MIDDLE
            continue
        rank = statistics.mean(place + 1 for place, other in enumerate(known) if other == price)
        assert bucket == math.floor((rank - 0.5) * 100 / len(known))
        assert 0 <= bucket < 100


@pytest.mark.parametrize("count", [1, 2, 100])
def test_distinct_prices_use_the_whole_range_evenly(count):
    found = pl.DataFrame({"price": list(map(float, range(count)))}).select(buckets("price"))["price"].to_list()
    assert found == [int((place + 0.5) * 100 / count) for place in range(count)]


prices = st.lists(st.none() | st.integers(0, 9).map(float), max_size=30)


@settings(max_examples=few(50), deadline=None)
@given(prices)
def test_a_known_price_lies_in_the_bucket_that_it_had(values):
    table = pl.DataFrame({"price": values}, schema={"price": pl.Float64})
    known = table["price"].drop_nulls().sort().to_numpy()
    assert buckets_of(table["price"], known).to_list() == table.select(buckets("price"))["price"].to_list()


def test_a_price_between_and_beyond_those_that_are_known():
    found = buckets_of(pl.Series([0.5, 1.5, 9.0, None]), np.array([1.0, 2.0, 3.0, 4.0]))
    assert found.to_list() == [0, 25, 99, 50]
    assert buckets_of(pl.Series([0.5, None]), np.array([])).to_list() == [50, 50]
