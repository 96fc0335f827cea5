"""Every column against a reference in plain Python: loops over clients and events, no Polars."""

import math
from collections import Counter
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from stat_features.recipe import StatFeatures, StatFeaturesRecipe, columns
from ubp.blocks.embeddings import EmbeddingTable
from ubp.blocks.fitted import load, save
from ubp.data import schema
from ubp.data.history import ChallengeData
from ubp.data.schema import EVENT_TYPES
from ubp.data.shards import sharded
from ubp.io.spread import in_turn

COLUMNS = columns()

BUY, ADD, REMOVE, VISIT, SEARCH = EVENT_TYPES
DAY = timedelta(days=1)


def midnight(moment: datetime) -> datetime:
    return datetime(moment.year, moment.month, moment.day)


def week_change(times: list[datetime], end: datetime) -> int:
    weeks = [math.ceil((end - time) / (7 * DAY)) for time in times]  # 1: the last one, its first moment included
    return weeks.count(1) - weeks.count(2)


def month_change(times: list[datetime], end: datetime) -> int:
    last = end - timedelta(microseconds=1)
    before = midnight(last).replace(day=1) - DAY
    months = [(time.year, time.month) for time in times]
    return months.count((last.year, last.month)) - months.count((before.year, before.month))


def statistics(data: ChallengeData) -> tuple[np.ndarray, np.ndarray]:
    """Of the relevant clients, as the command has them: ids and rows."""
    table = fitted(data).encode(data, data.relevant_clients)
    return table.client_ids, table.vectors


def fitted(data: ChallengeData, folder: Path = Path()) -> StatFeatures:
    block = StatFeaturesRecipe().fit(data, 0, folder).block
    assert isinstance(block, StatFeatures)
    return block


def columns_of(table: EmbeddingTable) -> dict[str, np.ndarray]:
    return dict(zip(COLUMNS, table.vectors.T, strict=True))


def mean(values: list[float], absent: float = 0.0) -> float:
    return sum(values) / len(values) if values else absent


def slow_statistics(tables: dict, properties: list[dict], relevant: list[int], as_of: datetime | None) -> dict:
    """``{client: {column: value}}`` of the relevant clients with an event.

    Args:
        tables: event type to its events as (client, time, sku, url or query).
        properties: rows of the product properties.
        relevant: clients.
        as_of: events from then on do not count.
    """
    everything = [event for events in tables.values() for event in events]
    start = midnight(min(time for _, time, _ in everything))
    end = as_of or midnight(max(time for _, time, _ in everything)) + DAY
    tables = {kind: [event for event in events if event[1] < end] for kind, events in tables.items()}
    everything = [event for events in tables.values() for event in events]
    whole = (end - start) / DAY
    category = {row["sku"]: row["category"] for row in properties}
    price = {row["sku"]: row["price"] for row in properties}
    counts = {kind: Counter(sku for _, _, sku in tables[kind]) for kind in (BUY, ADD, REMOVE)}
    by_category = {kind: Counter(category[sku] for _, _, sku in tables[kind]) for kind in (BUY, ADD, REMOVE)}
    visits = Counter(url for _, _, url in tables[VISIT])

    result = {}
    for client in relevant:
        own_times = [time for owner, time, _ in everything if owner == client]
        if not own_times:
            continue
        own = {}
        things = {}
        for kind, events in tables.items():
            times = sorted(time for owner, time, _ in events if owner == client)
            things[kind] = [thing for owner, _, thing in events if owner == client]
            gaps = [(b - a) / DAY for a, b in pairwise(times)]
            own[f"{kind}_count"] = len(times)
            own[f"{kind}_mean_interval"] = mean(gaps, whole)
            own[f"{kind}_week_change"] = week_change(times, end)
            own[f"{kind}_month_change"] = month_change(times, end)
            own[f"{kind}_first_day"] = (times[0] - end) / DAY if times else -(whole + 1)
            own[f"{kind}_last_day"] = (times[-1] - end) / DAY if times else -(whole + 1)
        bought, added = things[BUY], things[ADD]
        for kind in (BUY, ADD, REMOVE):
            logs = [math.log(1 + counts[kind][sku]) for sku in things[kind]]
            by_category_logs = [math.log(1 + by_category[kind][category[sku]]) for sku in things[kind]]
            own[f"{kind}_sku_popularity"], own[f"{kind}_category_popularity"] = mean(logs), mean(by_category_logs)
        own["page_visit_url_popularity"] = mean([math.log(1 + visits[url]) for url in things[VISIT]])
        own["active_weeks"] = len({(time - start).days // 7 for time in own_times})
        own["active_months"] = len({(time.year, time.month) for time in own_times})
        own["spend"] = sum(price[sku] for sku in bought)
        own["mean_price"] = mean([price[sku] for sku in bought], -1)
        own["added_skus_bought"] = mean([sku in bought for sku in set(added)])
        categories = {category[sku] for sku in bought}
        own["added_categories_bought"] = mean([value in categories for value in {category[sku] for sku in added}])
        result[client] = own
    return result


@pytest.mark.parametrize(
    ("seed", "empty", "as_of"),
    [
        (0, [], None),
        (1, [SEARCH], None),
        (2, [ADD, VISIT], None),
        (3, [], datetime(2023, 1, 20, 13, 30, 5)),
        (4, [REMOVE], datetime(2022, 12, 4)),
        # the end on the border of a month; a purchase on the very border of a week before the end
        (8, [], datetime(2023, 1, 1)),
        (9, [], datetime(2023, 2, 1)),
        (5, [], 7 * DAY),
        (6, [], 14 * DAY),
    ],
)
def test_statistics_are_those_of_a_loop(make_history, tmp_path, seed, empty, as_of):
    history = make_history(seed, empty, clients=40)
    paths = history.write(tmp_path, null_typed=True)
    if isinstance(as_of, timedelta):
        as_of = history.events[BUY]["timestamp"].sort()[200] + as_of
    tables = {kind: list(table.iter_rows()) for kind, table in history.events.items()}
    seen = sorted({client for events in tables.values() for client, _, _ in events})
    relevant = [*seen[::-2], 123_456]  # half of the clients, unsorted, and one that never was there
    paths.input.mkdir()
    np.save(paths.relevant_clients, np.array(relevant))

    clients, values = statistics(ChallengeData(paths, True, as_of=as_of))

    wanted = slow_statistics(tables, history.properties.to_dicts(), relevant, as_of)
    assert clients.tolist() == sorted(wanted)
    assert (clients.dtype, values.dtype) == (np.int64, np.float32)
    assert values.shape == (len(wanted), len(COLUMNS)) == (len(wanted), 43)
    assert values.flags.c_contiguous
    for client, row in zip(clients.tolist(), values.tolist(), strict=True):
        assert dict(zip(COLUMNS, row, strict=True)) == pytest.approx(wanted[client], rel=1e-5, abs=1e-5), client


def test_a_client_with_a_single_event(make_history, tmp_path):
    history = make_history()
    paths = history.write(tmp_path)
    counts = Counter(client for table in history.events.values() for client in table["client_id"])
    single = [client for client, count in counts.items() if count == 1]
    assert single  # the history holds some
    paths.input.mkdir()
    np.save(paths.relevant_clients, np.array(single))
    clients, values = statistics(ChallengeData(paths, True))
    assert sorted(clients.tolist()) == sorted(single)
    column = dict(zip(COLUMNS, values.T, strict=True))
    assert (sum(column[f"{kind}_count"] for kind in EVENT_TYPES) == 1).all()
    assert (column["product_buy_mean_interval"] == 70).all()  # the history's length in days
    assert (column["active_weeks"] == 1).all()
    assert (column["active_months"] == 1).all()


def test_a_client_who_only_fills_carts_has_popularities(make_history, tmp_path):
    history = make_history()
    client = history.events[ADD]["client_id"].mode().min()
    for kind in (BUY, REMOVE):
        history.events[kind] = history.events[kind].filter(history.events[kind]["client_id"] != client)
    paths = history.write(tmp_path)
    paths.input.mkdir()
    np.save(paths.relevant_clients, np.array([client]))
    _, values = statistics(ChallengeData(paths, True))
    (row,) = values
    column = dict(zip(COLUMNS, row.tolist(), strict=True))
    assert column["product_buy_count"] == column["product_buy_sku_popularity"] == 0
    assert column["add_to_cart_sku_popularity"] > math.log(2)
    assert column["add_to_cart_category_popularity"] > column["add_to_cart_sku_popularity"]


def test_every_column_has_its_own_name():
    assert len(set(COLUMNS)) == len(COLUMNS) == 43


# --- a fitted block on other days, for other clients -------------------------------------------------


@pytest.fixture
def data(make_history, tmp_path):
    paths = make_history().write(tmp_path / "data")
    paths.input.mkdir()
    np.save(paths.relevant_clients, np.arange(10_000)[::2])
    return ChallengeData(paths, True)


def test_a_day_later_without_new_events_everything_is_a_day_longer_ago(data):
    """Absent events stay older than anything; intervals of the history's length grow with it."""
    block = fitted(data)
    today = block.encode(data)
    tomorrow = block.encode(data, as_of=data.as_of + DAY)
    assert today.client_ids.tolist() == tomorrow.client_ids.tolist()
    before, after = columns_of(today), columns_of(tomorrow)
    for kind in EVENT_TYPES:
        for name in ("first_day", "last_day"):
            grown = after[f"{kind}_{name}"] - before[f"{kind}_{name}"]
            np.testing.assert_allclose(grown, -1, atol=1e-4)
        several = before[f"{kind}_count"] > 1
        grown = after[f"{kind}_mean_interval"] - before[f"{kind}_mean_interval"]
        np.testing.assert_allclose(grown, ~several, atol=1e-4)
    moving = ("_day", "_interval", "_change")  # the last weeks and months are others a day later
    still = [name for name in COLUMNS if not name.endswith(moving)]
    assert len(still) == 18
    for name in still:
        np.testing.assert_array_equal(before[name], after[name], err_msg=name)


def test_absent_events_are_older_than_anything(data):
    for as_of in (data.as_of, data.as_of + 5 * DAY):
        column = columns_of(fitted(data).encode(data, as_of=as_of))
        for kind in EVENT_TYPES:
            there = column[f"{kind}_count"] > 0
            assert not there.all()
            for name in (f"{kind}_first_day", f"{kind}_last_day"):
                assert (column[name][~there] == -((as_of - data.start) / DAY + 1)).all()
                assert column[name][there].min() > column[name][~there].max()
                assert column[name][there].max() < 0


def test_new_events_are_measured_by_the_popularities_of_the_fit(make_history, tmp_path):
    """Twenty days later a client bought a new sku and an old one; nobody had met the new one in the fit."""
    history = make_history()
    client = 20_000
    old, new = 1000, 9999
    row = history.properties.row(0)
    more = pl.DataFrame([(new, *row[1:])], history.properties.schema, orient="row")
    history.properties = pl.concat([history.properties, more])
    later = history.events[BUY][schema.TIMESTAMP].max() + 20 * DAY
    bought = [(client, later, old), (client, later, new)]
    frame = pl.DataFrame(bought, history.events[BUY].schema, orient="row")
    known = (history.events[BUY][schema.SKU] == old).sum()
    assert known > 0
    history.events[BUY] = pl.concat([history.events[BUY], frame])
    paths = history.write(tmp_path / "data")
    paths.input.mkdir()
    np.save(paths.relevant_clients, np.array([client]))
    whole = ChallengeData(paths, True)
    block = fitted(whole.before(later - DAY))
    table = block.encode(whole, [client, 77_777])
    assert table.client_ids.tolist() == [client]  # the other has no event
    column = columns_of(table)
    assert column["product_buy_count"] == 2
    assert column["product_buy_sku_popularity"] == pytest.approx((math.log(1 + known) + 0) / 2)
    assert len(block.encode(whole, [client], as_of=later - DAY)) == 0


def test_a_kept_block_encodes_the_same_bits(data, tmp_path):
    block = fitted(data)
    save(block, tmp_path / "kept", {})
    again = load(tmp_path / "kept")
    for as_of in (None, data.as_of - 9 * DAY, data.as_of + DAY):
        first, second = block.encode(data, as_of=as_of), again.encode(data, as_of=as_of)
        assert first.client_ids.tolist() == second.client_ids.tolist()
        assert first.vectors.tobytes() == second.vectors.tobytes()


def test_a_clients_row_does_not_depend_on_the_others(data):
    block = fitted(data)
    everybody = block.encode(data)
    some = everybody.client_ids[::3]
    assert block.encode(data, some).vectors.tobytes() == everybody.vectors[::3].tobytes()


@pytest.mark.parametrize("count", [1, 4, pytest.param(70, marks=pytest.mark.long)])
def test_fitted_by_shards_it_is_the_block_of_one_process(history, count):
    data = ChallengeData(history, submit=True)
    views = [data.of_shard(shard) for shard in sharded(data, count, in_turn)]
    found = StatFeaturesRecipe().fit_by_shards(data, views, 0, in_turn, Path()).block
    whole = fitted(data)
    assert found.state().settings == whole.state().settings
    assert found.popular.keys() == whole.popular.keys()
    assert all(found.popular[name].equals(table) for name, table in whole.popular.items())
