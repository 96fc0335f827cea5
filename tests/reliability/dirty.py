"""Logs that nobody cleaned: few clients with nearly all events, many with one each, no time that tells events apart."""

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Final

import numpy as np
import polars as pl

from tests.conftest import END, History, synthetic
from ubp.data import schema
from ubp.data.schema import EVENT_TYPES, EventType

LOW, HIGH = np.iinfo(np.int64).min, np.iinfo(np.int64).max
_OWN: Final = 77_777  # a client of its own


def crowded(events: int) -> History:
    """One client has so many events, of each type a fifth, beside the usual sixty clients."""
    history, rng = synthetic(), np.random.default_rng(1)
    for event_type, usual in history.events.items():
        count = events // len(EVENT_TYPES)
        seconds = rng.integers(0, int((END - datetime(2022, 12, 1)).total_seconds()), count)
        picked = usual[rng.integers(0, len(usual), count)]
        times = pl.Series(np.datetime64("2022-12-01T00:00:00", "us") + seconds.astype("timedelta64[s]"))
        more = picked.with_columns(pl.lit(_OWN, pl.Int64).alias(schema.CLIENT_ID), times.alias(schema.TIMESTAMP))
        history.events[event_type] = pl.concat([usual, more])
    return history


def scattered(clients: int) -> History:
    """So many clients with one event each, of any type, beside the usual sixty."""
    history, rng = synthetic(), np.random.default_rng(2)
    kinds = rng.integers(0, len(EVENT_TYPES), clients)
    for place, (event_type, usual) in enumerate(history.events.items()):
        theirs = np.flatnonzero(kinds == place) + 1_000_000
        picked = usual[rng.integers(0, len(usual), len(theirs))]
        more = picked.with_columns(pl.Series(schema.CLIENT_ID, theirs.astype(np.int64)))
        history.events[event_type] = pl.concat([usual, more])
    return history


def at_once() -> History:
    """All events in the same second."""
    history = synthetic()
    for event_type, table in history.events.items():
        history.events[event_type] = table.with_columns(pl.lit(END).cast(pl.Datetime("us")).alias(schema.TIMESTAMP))
    return history


def of_one_type(kept: EventType) -> History:
    """Events of one type only."""
    history = synthetic()
    return History(
        {kind: table if kind == kept else table.clear() for kind, table in history.events.items()}, history.properties
    )


def busy_day(times: int = 100) -> History:
    """A day with a hundred times the usual traffic."""
    history, rng = synthetic(), np.random.default_rng(3)
    day = datetime(2023, 1, 10)
    for event_type, usual in history.events.items():
        count = len(usual) * times // 70
        seconds = rng.integers(0, 86_400, count)
        moments = pl.Series([day + timedelta(seconds=int(second)) for second in seconds], dtype=pl.Datetime("us"))
        more = usual[rng.integers(0, len(usual), count)].with_columns(moments.alias(schema.TIMESTAMP))
        history.events[event_type] = pl.concat([usual, more])
    return history


def ends_of_int64() -> History:
    """Ids of clients, skus, urls and categories at both ends of int64, in the same order as usual."""
    history = synthetic()

    def moved(tables: list[pl.DataFrame], column: str) -> Callable[[pl.DataFrame], pl.DataFrame]:
        known = np.unique(np.concatenate([table[column].to_numpy() for table in tables]))
        half = len(known) // 2
        new = np.concatenate([LOW + np.arange(half), HIGH - np.arange(len(known) - half)[::-1]])
        return lambda table: table.with_columns(pl.col(column).replace_strict(known, new, return_dtype=pl.Int64))

    events, properties = history.events, history.properties
    for column in (schema.CLIENT_ID, schema.SKU, schema.URL):
        having = [table for table in (*events.values(), properties) if column in table.columns]
        change = moved(having, column)
        events = {kind: change(table) if column in table.columns else table for kind, table in events.items()}
        properties = change(properties) if column in properties.columns else properties
    return History(events, moved([properties], schema.CATEGORY)(properties))


SMALL: Final[dict[str, Callable[[], History]]] = {
    "all events in one second": at_once,
    "purchases only": lambda: of_one_type(EventType.PRODUCT_BUY),
    "a day of a hundred times the traffic": busy_day,
    "ids at both ends of int64": ends_of_int64,
    "one client with 100,000 events": lambda: crowded(100_000),
}
REFUSED: Final = {
    f"{kind} only": (lambda kind=kind: of_one_type(kind)) for kind in EVENT_TYPES if kind != EventType.PRODUCT_BUY
}
