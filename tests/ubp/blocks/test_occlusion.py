"""Copies of a client, each without something: which parts there are, and what a block makes of them."""

from collections import Counter
from datetime import datetime

import numpy as np
import polars as pl
import pytest

from stat_features.recipe import StatFeaturesRecipe
from tests.conftest import synthetic
from tests.ubp.blocks.toy import Purchases
from ubp.blocks.occlusion import DAY, EVENT, PLACE, TYPE, ClientEvents, occluded
from ubp.data.history import ChallengeData
from ubp.data.schema import EventType
from ubp.io.errors import UserError

DAY_ASKED = datetime(2023, 1, 20, 12)
WEIGHTS = np.array([1.0, 0.1, 2.0], np.float32)


def written(log, root) -> ChallengeData:
    paths = log.write(root)
    paths.input.mkdir()
    everyone = ChallengeData(paths, submit=True).seen()
    np.save(paths.relevant_clients, everyone)
    return ChallengeData(paths, submit=True)


@pytest.fixture
def history(tmp_path) -> ChallengeData:
    """The tiny history as of a noon within it, where a client bought one sku twice in the same second."""
    log = synthetic()
    buys = log.events[EventType.PRODUCT_BUY]
    twice = buys.filter(pl.col("client_id") == client_of(log), pl.col("timestamp") < DAY_ASKED).head(1)
    log.events[EventType.PRODUCT_BUY] = pl.concat([buys, twice])
    return written(log, tmp_path / "data").before(DAY_ASKED)


def client_of(log) -> int:
    """Some client with events of every type."""
    common = set.intersection(*(set(table["client_id"].to_list()) for table in log.events.values()))
    return sorted(common)[5]


@pytest.fixture
def client() -> int:
    return client_of(synthetic())


def plainly(history, client):
    """The client's events before the day as (time, type, subject), oldest first."""
    rows = []
    for kind in history.event_types:
        table = pl.read_parquet(history.file(kind)).filter(pl.col("client_id") == client)
        for _, time, subject in table.iter_rows():
            moment = datetime.strptime(time, "%Y-%m-%d %H:%M:%S")
            if moment < history.as_of:
                rows.append((moment, kind.code, str(kind), subject))
    return sorted(rows)


def test_a_clients_events_are_those_before_the_day_oldest_first(history, client):
    table, wanted = ClientEvents.of(history, client).table, plainly(history, client)
    assert len(table) == len(wanted) > 20
    for row, (moment, _, kind, subject) in zip(table.iter_rows(named=True), wanted, strict=True):
        assert (row["timestamp"], row["event_type"]) == (moment, kind)
        assert row[EventType(kind).subject] == subject
        assert (row["category"] is None) == (row["sku"] is None)
    assert table[PLACE].to_list() == list(range(len(wanted)))


@pytest.mark.parametrize(("events", "days"), [(5, 3), (10_000, 10_000), (0, 0)])
def test_the_parts_are_the_newest_events_and_days_and_all_types(history, client, events, days):
    found = ClientEvents.of(history, client).parts(events, days)
    wanted = plainly(history, client)
    by_day, by_type = Counter(row[0].date().isoformat() for row in wanted), Counter(row[2] for row in wanted)
    single = [part for part in found if part.kind == EVENT]
    assert [part.places.tolist() for part in single] == [[place] for place in range(len(wanted))][max(len(wanted) - events, 0):]  # noqa: E501  # fmt: skip
    newest = sorted(by_day)[max(len(by_day) - days, 0) :]
    assert {part.name: len(part.places) for part in found if part.kind == DAY} == {day: by_day[day] for day in newest}
    assert {part.name: len(part.places) for part in found if part.kind == TYPE} == by_type
    for part in found:
        for place in part.places:
            moment, _, kind, _ = wanted[place]
            assert part.name in (str(place), moment.date().isoformat(), kind)


def purchases_without(history, client, places):
    """What `Purchases` makes of a client's events but some; None where none is left."""
    rows = [row for place, row in enumerate(plainly(history, client)) if place not in places]
    skus = [subject for _, _, kind, subject in rows if kind == EventType.PRODUCT_BUY]
    return np.array([len(skus), sum(skus), max(skus)], np.float32) * WEIGHTS if skus else None


def test_each_vector_is_that_of_the_other_events(history, client):
    events, block = ClientEvents.of(history, client), Purchases(WEIGHTS)
    parts = events.parts(1000, 1000)
    others = history.seen()[::4]
    found = occluded(block, history, events, parts, others)
    assert found.own.tolist() == purchases_without(history, client, []).tolist()
    gone = 0
    for part, vector in zip(parts, found.left_out, strict=True):
        wanted = purchases_without(history, client, part.places)
        gone += wanted is None
        assert np.isnan(vector).all() if wanted is None else vector.tolist() == wanted.tolist()
    assert gone == 1  # without purchases there is no vector
    beside = block.encode(history, np.setdiff1d(others, [client]))
    assert found.other_ids.tolist() == beside.client_ids.tolist()
    assert found.others.tobytes() == beside.vectors.tobytes()


def test_one_of_two_equal_events_is_left_out_alone(history, client):
    events = ClientEvents.of(history, client)
    bought = events.table.filter(pl.col("event_type") == "product_buy")
    twice = bought.filter(bought.select("timestamp", "sku").is_duplicated())
    assert len(twice) == 2
    parts = [part for part in events.parts(1000, 0) if part.kind == EVENT and int(part.name) in twice[PLACE].to_list()]
    found = occluded(Purchases(WEIGHTS), history, events, parts, history.seen()[:3])
    assert (found.left_out[:, 0] == len(bought) - 1).all()


@pytest.mark.full
def test_an_undisturbed_copy_has_the_clients_own_bits_wherever_the_rest_of_the_log_is(history):
    """Statistics that count from the log's first day on, and popularities, come from the fit and the whole log."""
    block = StatFeaturesRecipe().fit(history, 0, history.paths.cache).block
    for client in history.seen()[::7].tolist():
        events = ClientEvents.of(history, client)
        found = occluded(block, history, events, events.parts(3, 2), history.seen()[:5])
        assert found.own.tobytes() == block.encode(history, [client]).vectors[0].tobytes()


def test_ids_that_copies_would_take_are_left_to_other_clients(tmp_path):
    """Clients 1, 2, 3, ...: the copies must not be mixed up with them."""
    log = synthetic()
    numbers = {client: place for place, client in enumerate(ids_of(log), 1)}
    for kind, table in log.events.items():
        log.events[kind] = table.with_columns(pl.col("client_id").replace_strict(numbers))
    history, block = written(log, tmp_path / "data"), Purchases(WEIGHTS)
    for client in (1, 2, 7):
        events = ClientEvents.of(history, client)
        if EventType.PRODUCT_BUY in events.table["event_type"]:
            found = occluded(block, history, events, events.parts(4, 4), history.seen())
            assert found.own.tolist() == purchases_without(history, client, []).tolist()
            assert found.others.tobytes() == block.encode(history, found.other_ids).vectors.tobytes()


def ids_of(log):
    return pl.concat(table["client_id"] for table in log.events.values()).unique().sort().to_list()


def test_nothing_is_left_on_disk(history, client):
    events = ClientEvents.of(history, client)
    before = {file for file in history.paths.root.rglob("*") if file.is_file()}
    occluded(Purchases(WEIGHTS), history, events, events.parts(2, 0), history.seen()[:2])
    assert {file for file in history.paths.root.rglob("*") if file.is_file()} == before


def test_a_client_without_events_or_without_a_vector(history):
    with pytest.raises(UserError, match="client=-4: no event before 2023-01-20 12:00"):
        ClientEvents.of(history, -4)
    without = [other for other in history.seen().tolist() if purchases_without(history, other, []) is None]
    events = ClientEvents.of(history, without[0])
    with pytest.raises(UserError, match=f"client={without[0]}: no vector: it has no event that the block reads"):
        occluded(Purchases(WEIGHTS), history, events, events.parts(2, 0), history.seen()[:2])


def test_a_logs_own_event_types_are_left_out_like_the_others(tmp_path):
    log = synthetic()
    paths = log.write(tmp_path / "data")
    paths.event_types.write_text('{"transfer": "sku"}')
    carts = pl.read_parquet(paths.raw / "add_to_cart.parquet")
    carts.write_parquet(paths.raw / "transfer.parquet")
    paths.input.mkdir()
    np.save(paths.relevant_clients, np.array(ids_of(log)))
    history, client = ChallengeData(paths, submit=True), client_of(log)
    events = ClientEvents.of(history, client)
    parts = [part for part in events.parts(0, 0) if part.name == "transfer"]
    assert [len(part.places) for part in parts] == [len(carts.filter(pl.col("client_id") == client))]
    block = StatFeaturesRecipe().fit(history, 0, paths.cache).block
    found = occluded(block, history, events, parts, history.seen()[:3])
    assert found.own.tobytes() == block.encode(history, [client]).vectors[0].tobytes()
    assert not np.array_equal(found.left_out[0], found.own)
