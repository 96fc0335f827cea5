"""Counts and matrices against loops over events in plain Python; SVDs against numpy's."""

import itertools
import json
import math
from collections import Counter
from dataclasses import replace
from datetime import datetime, timedelta

import numpy as np
import polars as pl
import pytest
from scipy.sparse import csr_matrix

from ubp.blocks.wide_features import (
    COUNTS,
    ITEM_VIEWS,
    LISTED,
    VIEWS,
    WideFeatures,
    WideSettings,
    client_counts,
    client_matrices,
    last_purchases,
    right_directions,
)
from ubp.data.history import ChallengeData
from ubp.data.schema import EVENT_TYPES
from ubp.io.errors import UserError

BUY, ADD, REMOVE, VISIT, SEARCH = EVENT_TYPES
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


def span_of(data: ChallengeData) -> float:
    return (data.as_of - data.start) / DAY


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
        values["nearness"] = math.log1p(span_of(data)) - math.log1p(min(ages)) if own else 0
        if event_type in (BUY, ADD):
            buckets = [price[sku] for _, _, sku in own]
            recent = sum(bucket for bucket, age in zip(buckets, ages, strict=True) if age <= 60)
            values |= {"price": sum(buckets) / len(own) + 1 if own else 0}
            values |= {"spend": math.log1p(sum(buckets)), "spend_60d": math.log1p(recent)}
        wanted |= {f"{event_type}_{name}": value for name, value in values.items()}
    return wanted


def test_counts_are_those_of_a_loop_over_events(opened):
    data, tables, properties, clients = opened()
    made = client_counts(data, clients, SETTINGS, span_of(data))
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
    week = client_counts(data, np.array([1, 2, 3]), replace(SETTINGS, windows=(7,)), span_of(data))["product_buy_7d"]
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
    made = {name: matrix for name, (_, matrix) in client_matrices(data, clients, SETTINGS)}
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
    (urls, visited), (_, of_skus) = made["url"], made["sku"]
    assert visited.shape == of_skus.shape == (len(clients), 3)
    visits = Counter(tables[VISIT]["url"])
    most = sorted(visits, key=lambda url: (-visits[url], url))[:3]
    assert urls.tolist() == sorted(most)
    assert np.expm1(visited.toarray()).sum(axis=0).tolist() == pytest.approx([visits[url] for url in sorted(most)])


@pytest.mark.parametrize("shape", [(40, 12), (5, 30)])
def test_projections_have_the_distances_of_an_exact_svd(shape):
    matrix = np.random.default_rng(0).poisson(0.4, shape).astype(np.float32)
    directions = right_directions(csr_matrix(matrix), 100, seed=0)
    assert directions.dtype == np.float32
    assert directions.shape == (shape[1], min(shape))
    found = matrix @ directions
    np.testing.assert_allclose(found @ found.T, matrix @ matrix.T, atol=1e-4)
    left, singular, _ = np.linalg.svd(matrix, full_matrices=False)
    few = matrix @ right_directions(csr_matrix(matrix), 2, seed=0)
    np.testing.assert_allclose(np.abs(few), np.abs(left * singular)[:, :2], atol=1e-3)


def test_there_are_no_more_directions_than_the_rank():
    column = np.array([[1.0], [0.0], [2.0]], np.float32)
    matrix = np.hstack([column, 2 * column, 3 * column])
    directions = right_directions(csr_matrix(matrix), 3, seed=0)
    np.testing.assert_allclose(np.abs(matrix @ directions), column * math.sqrt(14), rtol=1e-5)
    assert right_directions(csr_matrix((3, 4), dtype=np.float32), 2, seed=0).shape == (4, 0)


def groups_of(data: ChallengeData, clients: np.ndarray, seed: int = 0, settings=SETTINGS, listed=None):
    """Fitted to some clients, and applied to them."""
    return WideFeatures.fit(data, clients, seed, settings, listed or {}).groups(data, clients)


def test_groups_are_finite_scaled_and_zero_for_a_client_without_events(opened):
    data, _, _, clients = opened()
    settings, listed = replace(SETTINGS, rhythm=True), {"price": np.arange(100)}
    fitted = WideFeatures.fit(data, clients, 0, settings, listed)
    groups = fitted.groups(data, clients)
    assert fitted.widths == {name: group.shape[1] for name, group in groups.items()}
    assert list(groups) == [COUNTS, *VIEWS, LISTED]
    for group in groups.values():
        assert group.dtype == np.float32
        assert len(group) == len(clients)
        assert np.isfinite(group).all()
        assert not group[-1].any()
    np.testing.assert_allclose(groups[COUNTS].std(axis=0), 1, rtol=1e-4)


def test_the_same_bits_each_time(opened):
    data, _, _, clients = opened()
    one, other = (groups_of(data, clients, seed=3) for _ in range(2))
    assert all((one[name] == other[name]).all() for name in one | other)


@pytest.mark.parametrize("as_of", [AS_OF, datetime(2022, 12, 20, 3, 4, 5)])
def test_nothing_at_or_after_as_of_changes_a_value(opened, as_of):
    data, _, _, _ = opened(as_of)
    cut, _, _, clients = opened(as_of, cut=True, folder="cut")
    settings, listed = replace(SETTINGS, rhythm=True), {"category": np.arange(5)}
    whole, before = (groups_of(log, clients, 0, settings, listed) for log in (data, cut))
    assert whole.keys() == before.keys()
    assert all((whole[name] == before[name]).all() for name in whole)
    assert last_purchases(data, clients).equals(last_purchases(cut, clients))


@pytest.mark.full
def test_a_fit_measures_another_day_and_other_clients_by_its_own_scales_and_directions(opened):
    data, _, properties, clients = opened()
    settings = replace(SETTINGS, rhythm=True, components=4)
    fitted = WideFeatures.fit(data, clients[::2], 0, settings, {"price": np.array([3, 50])})
    earlier = data.before(AS_OF - 30 * DAY)
    groups = fitted.groups(earlier, clients)
    counts = client_counts(earlier, clients, settings, span_of(data))  # the fit's, not the day's
    for place, (name, scale) in enumerate(fitted.scales.items()):
        np.testing.assert_allclose(groups[COUNTS][:, place], counts[name].to_numpy() / scale, rtol=1e-5)
    _, tables, _, _ = opened(AS_OF - 30 * DAY, folder="earlier")
    for row, client in enumerate(clients):
        found = slow_amounts(earlier.as_of, tables, properties, client)
        amounts = np.log1p([found["category"][value] for value in fitted.views["category"].values])
        wanted = amounts @ fitted.views["category"].directions
        np.testing.assert_allclose(groups["category"][row], wanted, rtol=1e-3, atol=1e-4)


def test_listed_values_have_their_amounts_by_each_half_life(opened):
    data, tables, properties, clients = opened()
    price = dict(zip(properties["sku"], properties["price"], strict=True))
    values = np.array([*sorted(set(price.values()))[:3], 10000])
    settings = replace(SETTINGS, half_lives=(7.0, 120.0))
    listed = groups_of(data, clients, settings=settings, listed={"price": values})[LISTED]
    for row, client in enumerate(clients):
        wanted = []
        for half_life in settings.half_lives:
            amounts = Counter()
            for event_type, weight in ((BUY, 1), (ADD, 0.5), (REMOVE, 0.25)):
                for _, time, sku in tables[event_type].filter(pl.col("client_id") == client).iter_rows():
                    amounts[price[sku]] += weight * 2 ** (-((data.as_of - time) / DAY) / half_life)
            wanted += [math.log1p(amounts[value]) for value in values]
        np.testing.assert_allclose(listed[row], wanted, rtol=1e-3, atol=1e-5)


def test_rhythm_is_that_of_a_loop_over_events(opened):
    data, tables, _, clients = opened()
    made = client_counts(data, clients, replace(SETTINGS, rhythm=True), span_of(data))
    for client, row in zip(clients, made.iter_rows(named=True), strict=True):
        for event_type, table in tables.items():
            times = table.filter(pl.col("client_id") == client)["timestamp"].to_list()
            days = sorted({time.date() for time in times})
            gaps = [(later - day).days for day, later in itertools.pairwise(days)]
            mean = math.log1p(sum(gaps) / len(gaps)) if gaps else 0
            since = math.log1p((data.as_of - datetime.combine(days[-1], datetime.min.time())) / DAY) if days else 0
            assert row[f"{event_type}_gap"] == pytest.approx(mean, abs=1e-5)
            assert row[f"{event_type}_gap_spread"] == pytest.approx(math.log1p(np.std(gaps)) if gaps else 0, abs=1e-5)
            assert row[f"{event_type}_overdue"] == pytest.approx(since - mean if gaps else 0, abs=1e-5)
            on = Counter(time.isoweekday() for time in times)
            at = Counter(time.hour // 4 * 4 for time in times)
            assert [row[f"{event_type}_weekday_{day}"] for day in range(1, 8)] == pytest.approx(
                [math.log1p(on[day]) for day in range(1, 8)], abs=1e-5
            )
            assert [row[f"{event_type}_hours_{hour}"] for hour in range(0, 24, 4)] == pytest.approx(
                [math.log1p(at[hour]) for hour in range(0, 24, 4)], abs=1e-5
            )


def test_features_come_back_from_their_state(opened):
    data, _, _, clients = opened()
    fitted = WideFeatures.fit(data, clients, 0, replace(SETTINGS, rhythm=True), {"sku": np.array([1, 2])})
    settings, arrays = fitted.state()
    again = WideFeatures.from_state(json.loads(json.dumps(settings)), arrays)
    one, other = (features.groups(data, clients) for features in (fitted, again))
    assert again.settings == fitted.settings
    assert list(one) == list(other)
    assert all((one[name] == other[name]).all() for name in one)


def test_a_log_of_purchases_only_with_few_categories(opened):
    data, _, _, clients = opened(empty=(ADD, REMOVE, VISIT, SEARCH))
    groups = groups_of(data, clients)
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
    groups = groups_of(data, clients)
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
        {"half_lives": (7.0, 0.0)},
        {"components": 0},
    ):
        with pytest.raises(UserError, match=next(iter(wrong))):
            WideSettings(**wrong)


def test_clients_without_an_item_event_get_zeros_there(opened):
    data, _, _, clients = opened()
    fitted = WideFeatures.fit(data, clients, 0, SETTINGS, {"price": np.array([1])})
    groups = fitted.groups(data, np.array([UNKNOWN]))
    assert {name: group.shape for name, group in groups.items() if group.any()} == {}
    assert groups["name"].shape == (1, fitted.views["name"].directions.shape[1])
