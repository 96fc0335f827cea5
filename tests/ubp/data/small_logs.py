"""Random logs of a dozen clients over two months, and what plain Python says about their windows."""

from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl

from tests.conftest import History, codes_text
from ubp.data import schema
from ubp.data.paths import DataPaths
from ubp.data.schema import EventType

START, DAYS = datetime(2022, 12, 1), 60  # over New Year
CLIENTS, SKUS = 12, 9
RELEVANT = np.arange(CLIENTS - 2, dtype=np.int64)[::-1].copy()  # not in order, and not all
EVENTS = {
    EventType.PRODUCT_BUY: 60,
    EventType.ADD_TO_CART: 80,
    EventType.REMOVE_FROM_CART: 10,
    EventType.PAGE_VISIT: 40,
    EventType.SEARCH_QUERY: 10,
}
OPEN = {schema.CATEGORY: [3, 1, 77], schema.SKU: [104, 101, 999]}  # 77 and 999 are not in the log
HIDDEN = ("propensity_new_sku", "propensity_price")

Event = tuple[int, datetime, int]


def random_log(seed: int, empty: tuple[EventType, ...] = ()) -> History:
    """Every time is a multiple of six hours: many are borders of windows, and many coincide."""
    rng = np.random.default_rng(seed)
    names = [codes_text(codes) for codes in rng.integers(0, 256, (6, schema.CODES))]
    properties = pl.DataFrame(
        {
            schema.SKU: np.arange(SKUS) + 100,
            schema.CATEGORY: np.arange(SKUS) % 5,
            schema.PRICE: rng.integers(0, 6, SKUS),
            schema.NAME: [names[place] for place in rng.integers(0, len(names), SKUS)],
        }
    )
    joined = rng.integers(0, 4 * DAYS, CLIENTS) // 2
    events = {}
    for event_type, count in EVENTS.items():
        clients = rng.integers(0, CLIENTS, count)
        quarters = np.maximum(rng.integers(0, 4 * DAYS, count), joined[clients])
        if event_type is EventType.PAGE_VISIT:
            quarters[0], quarters[1] = 0, 4 * DAYS - 1  # every log is as long
        times = [START + timedelta(hours=6 * int(quarter)) for quarter in quarters]
        subjects: list[object] = list(rng.integers(0, SKUS, count) + (100 if event_type.has_sku else 0))
        if event_type is EventType.SEARCH_QUERY:
            subjects = [codes_text(codes) for codes in rng.integers(0, 256, (count, schema.CODES))]
        columns = {schema.CLIENT_ID: clients, schema.TIMESTAMP: times, event_type.subject: subjects}
        table = pl.DataFrame(columns, schema_overrides={schema.TIMESTAMP: pl.Datetime("us")})
        events[event_type] = table.clear() if event_type in empty else table
    return History(events, properties)


def write(log: History, root: Path, listed: bool = True) -> DataPaths:
    """The log, its relevant clients and, where ``listed``, the lists of all propensity tasks."""
    paths = log.write(root)
    paths.input.mkdir(parents=True)
    np.save(paths.relevant_clients, RELEVANT)
    paths.target.mkdir(parents=True)
    if listed:
        for column, values in OPEN.items():
            np.save(paths.target / f"propensity_{column}.npy", np.array(values))
        for name in HIDDEN:
            np.save(paths.target / f"{name}.npy", np.array([2, 105]))
    return paths


def rows(log: History, *event_types: EventType) -> list[Event]:
    """Client, time and subject of the relevant clients' events."""
    relevant = set(RELEVANT.tolist())
    return [row for kind in event_types for row in log.events[kind].iter_rows() if row[0] in relevant]


def shifted(log: History, border: datetime, seed: int) -> History:
    """Every event at or after a moment is moved to another one, later than the moment too."""
    rng = np.random.default_rng(seed)
    events = {}
    for kind, table in log.events.items():
        times = [
            time if time < border else border + timedelta(seconds=int(rng.integers(0, 40 * 24 * 3600)))
            for time in table[schema.TIMESTAMP]
        ]
        events[kind] = table.with_columns(pl.Series(schema.TIMESTAMP, times, dtype=pl.Datetime("us")))
    return History(events, log.properties)
