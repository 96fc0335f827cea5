"""Counts and matrices against loops over events in plain Python; SVDs against numpy's."""

import math
from collections import Counter
from dataclasses import replace
from datetime import datetime, timedelta

import numpy as np
import polars as pl
import pytest
from scipy.sparse import csr_matrix

from ubp.data.history import ChallengeData
from ubp.data.schema import EventType
from ubp.blocks.wide_features import (
    COUNTS,
    ITEM_VIEWS,
    VIEWS,
    WideSettings,
    client_counts,
    client_matrices,
    last_purchases,
    svd,
    wide_features,
)
from ubp.io.errors import UserError

BUY, ADD, REMOVE, VISIT, SEARCH = EventType
DAY = timedelta(days=1)
AS_OF = datetime(2023, 2, 1, 12)  # eight days before the log ends
SETTINGS = WideSettings()
UNKNOWN = 99_999  # a client without events


@pytest.fixture
def opened(make_history, tmp_path):
    """The tiny history as of a day, its tables cut there, and some of its clients, not in order."""

    def opened(as_of=AS_OF, empty=(), change=lambda made: made, cut=False, folder="log"):
        made = change(make_history(empty=empty))
        before = {event_type: table.filter(pl.col("timestamp") < as_of) for event_type, table in made.events.items()}
        if cut:
            made = replace(made, events=before)
        data = ChallengeData(made.write(tmp_path / folder), submit=True, as_of=as_of)
        clients = data.seen()[::-1]
        return data, before, made.properties, np.append(clients, UNKNOWN)

    return opened


def slow_counts(data: ChallengeData, tables: dict, properties: pl.DataFrame, client: int) -> dict[str, float]:
    price = dict(zip(properties["sku"], properties["price"], strict=True))
    wanted = {}
    for event_type, table in tables.items():
        own = [row for row in table.iter_rows() if row[0] == client]
        ages = [(data.as_of - time) / DAY for _, time, _ in own]
        logs = {f"{days}d": sum(age <= days for age in ages) for days in (1, 3, 7, 14, 28, 60)}
        logs |= {"all": len(own), "days": len({time.date() for _, time, _ in own})}
        logs |= {"subjects": len({subject for _, _, subject in own}), "since_first": max(ages, default=0)}
        values = {name: math.log1p(value) for name, value in logs.items()}
        span = (data.as_of - data.start) / DAY
        values["nearness"] = math.log1p(span) - math.log1p(min(ages)) if own else 0
        if event_type in (BUY, ADD):
            buckets = [price[sku] for _, _, sku in own]
            recent = sum(bucket for bucket, age in zip(buckets, ages, strict=True) if age <= 60)
            values |= {"price": sum(buckets) / len(own) + 1 if own else 0}
            values |= {"spend": math.log1p(sum(buckets)), "spend_60d": math.log1p(recent)}
        wanted |= {f"{event_type}_{name}": value for name, value in values.items()}
    return wanted


def test_counts_are_those_of_a_loop_over_events(opened):
    data, tables, properties, clients = opened()
    made = client_counts(data, clients, SETTINGS.windows)
    assert made.height == len(clients)
    for client, row in zip(clients, made.iter_rows(named=True), strict=True):
        assert row == pytest.approx(slow_counts(data, tables, properties, client), abs=1e-5)


def test_an_event_at_the_first_moment_of_a_window_is_in_it(opened):
    def at_the_edge(made):
        buys = made.events[BUY]
        rows = [(1, AS_OF - 7 * DAY), (2, AS_OF - 7 * DAY - timedelta(seconds=1)), (3, AS_OF)]
        more = [{"client_id": client, "timestamp": time, "sku": buys["sku"][0]} for client, time in rows]
        made.events[BUY] = pl.concat([buys, pl.DataFrame(more, schema=buys.schema)])
        return made

    data = opened(change=at_the_edge)[0]
    week = client_counts(data, np.array([1, 2, 3]), (7,))["product_buy_7d"]
    assert week.to_list() == pytest.approx([math.log(2), 0, 0])


def test_recency_and_frequency(opened):
    data, tables, _, clients = opened()
    made = last_purchases(data, clients)
    for client, (recency, frequency) in zip(clients, made.iter_rows(), strict=True):
        times = [time for owner, time, _ in tables[BUY].iter_rows() if owner == client]
        days = (data.as_of - max(times, default=data.start)) / DAY
        assert (recency, frequency) == pytest.approx((math.log1p(days), math.log1p(len(times))), abs=1e-5)


def slow_amounts(as_of: datetime, tables: dict, properties: pl.DataFrame, client: int) -> dict[str, Counter]:
    """By view, values to how much of it."""
    about = {row["sku"]: row for row in properties.iter_rows(named=True)}
    found = {view: Counter() for view in VIEWS}
    for event_type, weight in ((BUY, 1), (ADD, 0.5), (REMOVE, 0.25)):
        for _, time, sku in tables[event_type].filter(pl.col("client_id") == client).iter_rows():
            for prefix, amount in (("", weight), ("recent_", weight * 2 ** (-((as_of - time) / DAY) / 30))):
                found[f"{prefix}sku"][sku] += amount
                for view in ("category", "price"):
                    found[f"{prefix}{view}"][about[sku][view]] += amount
                for place in enumerate(about[sku]["name"].strip("[]").split()):
                    found[f"{prefix}name"][place] += amount
    for url in tables[VISIT].filter(pl.col("client_id") == client)["url"]:
        found["url"][url] += 1
    for query in tables[SEARCH].filter(pl.col("client_id") == client)["query"]:
        found["query"].update(enumerate(query.strip("[]").split()))
    return found


def test_matrices_are_those_of_a_loop_over_events(opened):
    data, tables, properties, clients = opened()
    made = dict(client_matrices(data, clients, SETTINGS))
    assert set(made) == set(VIEWS)
    amounts = [slow_amounts(data.as_of, tables, properties, client) for client in clients]
    for view, matrix in made.items():
        values = sorted({value for found in amounts for value in found[view]}, key=lambda v: (v[0], int(v[1])) if isinstance(v, tuple) else v)  # noqa: E501  # fmt: skip
        wanted = np.log1p([[found[view][value] for value in values] for found in amounts])
        met = matrix.toarray()
        np.testing.assert_allclose(met[:, met.any(axis=0)], wanted, rtol=1e-4, atol=1e-5, err_msg=view)


def test_only_the_skus_and_urls_with_the_most_events_are_taken(opened):
    data, tables, _, clients = opened()
    made = dict(client_matrices(data, clients, replace(SETTINGS, most_values=3)))
    assert made["url"].shape == made["sku"].shape == (len(clients), 3)
    visits = Counter(tables[VISIT]["url"])
    most = sorted(visits, key=lambda url: (-visits[url], url))[:3]
    assert np.expm1(made["url"].toarray()).sum(axis=0).tolist() == pytest.approx([visits[url] for url in sorted(most)])


@pytest.mark.parametrize("shape", [(40, 12), (5, 30)])
def test_an_svd_gives_the_same_distances_as_an_exact_one(shape):
    matrix = np.random.default_rng(0).poisson(0.4, shape).astype(np.float32)
    found = svd(csr_matrix(matrix), 100, seed=0)
    assert found.dtype == np.float32
    assert found.shape == (shape[0], min(shape))
    np.testing.assert_allclose(found @ found.T, matrix @ matrix.T, atol=1e-4)
    left, singular, _ = np.linalg.svd(matrix, full_matrices=False)
    few = svd(csr_matrix(matrix), 2, seed=0)
    np.testing.assert_allclose(np.abs(few), np.abs(left * singular)[:, :2], atol=1e-3)


def test_an_svd_has_no_more_components_than_the_rank():
    column = np.array([[1.0], [0.0], [2.0]], np.float32)
    found = svd(csr_matrix(np.hstack([column, 2 * column, 3 * column])), 3, seed=0)
    np.testing.assert_allclose(np.abs(found), column * math.sqrt(14), rtol=1e-5)
    assert svd(csr_matrix((3, 4), dtype=np.float32), 2, seed=0).shape == (3, 0)


def test_groups_are_finite_scaled_and_zero_for_a_client_without_events(opened):
    data, _, _, clients = opened()
    groups = wide_features(data, clients, 0, SETTINGS)
    assert set(groups) == {COUNTS, *VIEWS}
    for group in groups.values():
        assert group.dtype == np.float32
        assert len(group) == len(clients)
        assert np.isfinite(group).all()
        assert not group[-1].any()
    np.testing.assert_allclose(groups[COUNTS].std(axis=0), 1, rtol=1e-4)


def test_the_same_bits_each_time(opened):
    data, _, _, clients = opened()
    one, other = (wide_features(data, clients, 3, SETTINGS) for _ in range(2))
    assert all((one[name] == other[name]).all() for name in one | other)


@pytest.mark.parametrize("as_of", [AS_OF, datetime(2022, 12, 20, 3, 4, 5)])
def test_nothing_at_or_after_as_of_changes_a_value(opened, as_of):
    data, _, _, _ = opened(as_of)
    cut, _, _, clients = opened(as_of, cut=True, folder="cut")
    whole, before = (wide_features(log, clients, 0, SETTINGS) for log in (data, cut))
    assert whole.keys() == before.keys()
    assert all((whole[name] == before[name]).all() for name in whole)
    assert last_purchases(data, clients).equals(last_purchases(cut, clients))


def test_a_log_of_purchases_only_with_few_categories(opened):
    data, _, _, clients = opened(empty=(ADD, REMOVE, VISIT, SEARCH))
    groups = wide_features(data, clients, 0, SETTINGS)
    assert set(groups) == {COUNTS, *ITEM_VIEWS, *(f"recent_{view}" for view in ITEM_VIEWS)}
    assert groups["category"].shape[1] == 8


def test_a_clickstream_of_two_products(opened):
    def two_products(made):
        first, second = made.properties["sku"][:2]
        for event_type in (BUY, ADD, REMOVE):
            table = made.events[event_type]
            sku = pl.when(pl.col("sku") % 2 == 0).then(first).otherwise(second).alias("sku")
            made.events[event_type] = table.with_columns(sku).head(30 if event_type is BUY else 0)
        return replace(made, properties=made.properties.head(2))

    data, _, _, clients = opened(change=two_products)
    groups = wide_features(data, clients, 0, SETTINGS)
    assert groups["sku"].shape[1] == 2
    assert groups["name"].shape[1] <= 2
    assert groups["url"].shape[1] == 30


def test_settings_that_make_no_sense():
    for wrong in (
        {"windows": ()},
        {"windows": (0,)},
        {"bought": 0},
        {"added": -1},
        {"half_life": 0},
        {"components": 0},
    ):
        with pytest.raises(UserError, match=next(iter(wrong))):
            WideSettings(**wrong)
