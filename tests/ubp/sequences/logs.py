"""Small logs as plain Python, written as files and read back event by event: the reference for the sequence store."""

import json
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from tests.conftest import few
from ubp.data import schema
from ubp.data.event_types import own_types, with_own
from ubp.data.history import ChallengeData
from ubp.data.paths import DataPaths
from ubp.data.schema import EventType
from ubp.sequences.selection import Selection

# One event: its type, client, time and subject (a sku, a url, or 16 codes).
Event = tuple[EventType, int, datetime, "int | tuple[int, ...]"]

START = datetime(2022, 12, 27)
SKUS = {7: (70, 3, 1), 3: (30, 99, 2), 12: (70, 0, 3), -5: (31, 3, 250)}  # category, price, first name code
# All logs here have types of their own: what holds for them holds for the challenge's.
TYPES = with_own({"transfer": schema.SKU, "level_up": schema.URL, "chat": schema.QUERY})
BUY = (EventType.PRODUCT_BUY, 1, START + timedelta(days=1), 7)

codes = st.tuples(*[st.sampled_from([0, 1, 128, 255])] * 2).map(lambda ends: (ends[0], *[9] * 14, ends[1]))
subjects = {schema.SKU: st.sampled_from(sorted(SKUS)), schema.URL: st.integers(-2, 3), schema.QUERY: codes}
clients = st.integers(-3, 4) | st.sampled_from([2**62, 2**62 + 1, -(2**62)])
# Few different seconds, so that there are ties.
times = st.integers(0, 3).map(lambda step: START + timedelta(seconds=step * 200_000))
events = st.sampled_from(TYPES).flatmap(
    lambda event_type: st.tuples(st.just(event_type), clients, times, subjects[event_type.subject])
)
histories = st.lists(events, max_size=40)
quick = settings(max_examples=few(12), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def text(values: tuple[int, ...]) -> str:
    return "[" + " ".join(map(str, values)) + "]"


def written(root: Path, history: list[Event], as_of: datetime | None = None) -> ChallengeData:
    """The history as files, in the order given, and one purchase more: there must be one."""
    raw = root / "raw"
    (raw / "input").mkdir(parents=True, exist_ok=True)
    (raw / schema.OWN_EVENT_TYPES).write_text(json.dumps(own_types(TYPES)))
    for event_type in TYPES:
        chosen = [event for event in [*history, BUY] if event[0] == event_type]
        subject = [text(event[3]) if isinstance(event[3], tuple) else event[3] for event in chosen]
        dtype = pl.String if event_type.subject == schema.QUERY else pl.Int64
        pl.DataFrame(
            {
                "client_id": pl.Series([event[1] for event in chosen], dtype=pl.Int64),
                "timestamp": pl.Series([str(event[2]) for event in chosen], dtype=pl.String),
                event_type.subject: pl.Series(subject, dtype=dtype),
            }
        ).write_parquet(raw / event_type.file_name)
    pl.DataFrame(
        {
            "sku": list(SKUS),
            "category": [category for category, _, _ in SKUS.values()],
            "price": [price for _, price, _ in SKUS.values()],
            "name": [text((code, *[0] * 15)) for _, _, code in SKUS.values()],
        }
    ).write_parquet(raw / schema.PRODUCT_PROPERTIES)
    np.save(raw / "input" / schema.RELEVANT_CLIENTS, np.array([1], dtype=np.int64))
    return ChallengeData(DataPaths(root), submit=True, as_of=as_of)


def reference(history: list[Event]) -> dict[int, list[Event]]:
    """Client by client, in the documented order."""
    ordered = sorted([*history, BUY], key=lambda event: (event[1], event[2], event[0].code, event[3]))
    found: dict[int, list[Event]] = {}
    for event in ordered:
        found.setdefault(event[1], []).append(event)
    return found


def read_back(chosen: Selection) -> dict[int, list[Event]]:
    """A selection as plain Python, event by event."""
    store = chosen.sequences
    found = {}
    for place, client in enumerate(chosen.clients.tolist()):
        of_client = []
        for row in range(chosen.offsets[place], chosen.offsets[place + 1]):
            event_type = store.event_types[chosen.event[row]]
            tables = {schema.SKU: store.skus, schema.URL: store.urls, schema.QUERY: store.queries}
            value = tables[event_type.subject][chosen.subject[row]]
            subject = tuple(value.tolist()) if value.ndim else int(value)
            of_client.append((event_type, client, store.start + timedelta(seconds=int(chosen.time[row])), subject))
        found[client] = of_client
    return found
