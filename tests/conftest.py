"""A tiny synthetic history in the challenge's raw layout, for every test that needs one."""

import json
import os
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl
import pytest
from hydra._internal.hydra import Hydra
from hypothesis import settings

from ubp.data import schema
from ubp.data.event_types import own_types
from ubp.data.paths import DataPaths
from ubp.data.schema import EventType

# A test that takes long where the machine is busy is no failure. ``make test`` draws fewer examples.
settings.register_profile("house", deadline=None)
settings.register_profile("quick", deadline=None, max_examples=40)
settings.load_profile("house")


def few(examples: int) -> int:
    """So many examples of a test that draws long ones; a third, and five at least, in ``make test``."""
    return examples if settings.default.max_examples > 40 else max(5, examples // 3)


# Files that take long, the longest first: they begin first, so that no process has one left when the other has ended.
_LONGEST = (
    *("test_contract", "test_commands", "test_ray_tasks", "test_object_store", "test_ray_spread", "test_ray_train"),
    *("test_kills", "test_nightly_page", "test_own_log_page", "test_reproduce", "test_gpu", "test_dirty_logs"),
    *("test_two_at_once", "test_export", "test_dcn_recipe", "test_configs", "test_wide_features_by_shards"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What begins first; and the tests of what only measures are among the full ones."""
    for item in items:
        if item.path.parent.name == "benchmarks":
            item.add_marker(pytest.mark.full)
    places = {name: place for place, name in enumerate(_LONGEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))


CLIENTS, SKUS, CATEGORIES, URLS, DAYS = 60, 80, 8, 30, 70
START = datetime(2022, 12, 1)  # the history runs over New Year
END = START + timedelta(days=DAYS - 1, hours=21, minutes=17, seconds=5)  # of the last purchase

_EVENTS_A_CLIENT = {
    EventType.PRODUCT_BUY: 12,
    EventType.ADD_TO_CART: 15,
    EventType.REMOVE_FROM_CART: 4,
    EventType.PAGE_VISIT: 20,
    EventType.SEARCH_QUERY: 5,
}


def codes_text(codes: npt.NDArray[np.integer]) -> str:
    """Codes as the challenge writes them: ``[11  2 201 ...]``."""
    return f"[{' '.join(f'{code:3d}' for code in codes)}]"


@dataclass
class History:
    """Tables in memory, timestamps as datetimes; change them, then `write` them."""

    events: dict[EventType, pl.DataFrame]
    properties: pl.DataFrame

    def write(self, root: Path, timestamps: str = "text", null_typed: bool = False) -> DataPaths:
        """Write the raw layout below ``root``.

        Args:
            root: the data path.
            timestamps: ``text`` as published, or the unit of a datetime: ``ms``, ``us``, ``ns``.
            null_typed: columns of tables without rows have no type, as pandas leaves them.
        """
        paths = DataPaths(root)
        paths.raw.mkdir(parents=True, exist_ok=True)
        for event_type, table in self.events.items():
            time = pl.col(schema.TIMESTAMP)
            form = time.dt.strftime("%Y-%m-%d %H:%M:%S") if timestamps == "text" else time.dt.cast_time_unit(timestamps)
            written = table.with_columns(form)
            if null_typed and table.is_empty():
                written = written.cast(pl.Null)
            written.write_parquet(paths.raw / event_type.file_name)
        self.properties.write_parquet(paths.properties)
        if own := own_types(self.events):
            paths.event_types.write_text(json.dumps(own))
        return paths


def synthetic(seed: int = 0, empty: Collection[EventType] = (), clients: int = CLIENTS) -> History:
    """A seeded history: clients have favourite categories; some occur in one file or with one event only."""
    events, properties = _drawn(seed, clients)
    return History({kind: table.clear() if kind in empty else table for kind, table in events.items()}, properties)


@cache
def _drawn(seed: int, clients: int) -> tuple[dict[EventType, pl.DataFrame], pl.DataFrame]:
    """Its tables, drawn once: nobody changes a table, but puts another in its place."""
    rng = np.random.default_rng(seed)
    category = rng.integers(0, CATEGORIES, SKUS)
    properties = pl.DataFrame(
        {
            schema.SKU: np.arange(SKUS) * 7 + 1000,
            schema.CATEGORY: category + 500,
            schema.PRICE: rng.integers(0, schema.PRICE_BUCKETS, SKUS),
            schema.NAME: [codes_text(codes) for codes in rng.integers(0, 256, (SKUS, schema.CODES))],
        }
    )
    ids = rng.permutation(10_000)[:clients].astype(np.int64)
    favourite = rng.integers(0, CATEGORIES, clients)
    last_second = int((END - START).total_seconds())
    events = {}
    for event_type, mean in _EVENTS_A_CLIENT.items():
        counts = rng.poisson(mean, clients)
        # The first two clients occur in one file only, the third and the fourth have a single event.
        counts[0] *= event_type is EventType.SEARCH_QUERY
        counts[1] *= event_type is EventType.PRODUCT_BUY
        counts[2], counts[3] = event_type is EventType.PAGE_VISIT, event_type is EventType.PRODUCT_BUY
        owner = rng.permutation(np.repeat(np.arange(clients), counts))
        seconds = rng.integers(0, last_second, len(owner))
        if event_type is EventType.PRODUCT_BUY:
            seconds[0] = last_second
            seconds[owner == 3] = 3600  # long before the windows
        if event_type is EventType.PAGE_VISIT:
            seconds[owner == 2] = 7200
            seconds[owner == 4] = 5  # several events in one second
        times = [START + timedelta(seconds=int(second)) for second in seconds]
        subject = event_type.subject
        if subject == schema.SKU:
            liked = (category[None, :] == favourite[owner][:, None]) * 9.0 + 1.0
            drawn = (rng.random((len(owner), 1)) < np.cumsum(liked / liked.sum(1, keepdims=True), 1)).argmax(1)
            values = pl.Series(subject, properties[schema.SKU].to_numpy()[drawn])
        elif subject == schema.URL:
            values = pl.Series(subject, (favourite[owner] * 3 + rng.integers(0, URLS, len(owner))) % URLS)
        else:
            codes = rng.integers(0, 256, (len(owner), schema.CODES))
            values = pl.Series(subject, [codes_text(row) for row in codes], dtype=pl.String)
        columns = {schema.CLIENT_ID: ids[owner], schema.TIMESTAMP: times, subject: values}
        events[event_type] = pl.DataFrame(columns, schema_overrides={schema.TIMESTAMP: pl.Datetime("us")})
    return events, properties


@pytest.fixture(scope="session", autouse=True)
def _faster() -> Iterator[None]:
    """What only costs time in this process; commands that are processes of their own do all of it.

    Nothing that a test writes has to outlive a power cut. And before Hydra composes a config to run, it does so to see
    whether that says ``hydra.mode``, which no config here does.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        patch.setattr(Hydra, "get_mode", lambda *_, **__: None)
        yield


@pytest.fixture(scope="session")
def make_history() -> Callable[..., History]:
    """The factory `synthetic`, for tests that change tables before they write them."""
    return synthetic


@pytest.fixture
def history(tmp_path: Path) -> DataPaths:
    """The tiny history on disk, as published (text), without targets."""
    return synthetic().write(tmp_path / "data")


@pytest.fixture
def code_text() -> Callable[[npt.NDArray[np.integer]], str]:
    return codes_text
