"""Every column against a reference in plain Python: loops over clients and events, no Polars."""

import math
from dataclasses import replace
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from numeric_features import recipe as module
from numeric_features.item_groups import ItemGroups, equal_groups, item_events, name_centres
from numeric_features.numeric_features import main
from numeric_features.page import PAGE, page_of_config
from numeric_features.recipe import (
    FeatureSettings,
    NumericFeatures,
    NumericFeaturesRecipe,
    Standard,
    column_descriptions,
)
from ubp.blocks import registry
from ubp.blocks.embeddings import EmbeddingTable, read_lineage
from ubp.blocks.fitted import lineage_of, load
from ubp.cli.config import composed, parse
from ubp.data import schema
from ubp.data.history import ChallengeData
from ubp.data.name_clusters import nearest
from ubp.data.paths import CONFIGS
from ubp.data.schema import EVENT_TYPES, EventType
from ubp.data.shards import sharded
from ubp.io.errors import NoUsableEvents, UserError
from ubp.io.spread import in_turn

BUY, ADD, REMOVE, VISIT, SEARCH = EVENT_TYPES
ITEMS = (BUY, ADD, REMOVE)
DAY = timedelta(days=1)
SETTINGS = parse(FeatureSettings, composed(CONFIGS / "numeric_features", "numeric_features"), at="features")
NAMES = tuple(column_descriptions(SETTINGS))
Events = dict[EventType, list[tuple]]


def opened(history, root: Path, as_of: datetime | None = None) -> ChallengeData:
    """The history on disk; every second of its clients is relevant, and one that never was there."""
    paths = history.write(root, null_typed=True)
    seen = sorted({client for table in history.events.values() for client in table[schema.CLIENT_ID]})
    paths.input.mkdir()
    np.save(paths.relevant_clients, np.array([*seen[::-2], 123_456]))
    return ChallengeData(paths, True, as_of=as_of)


def fitted(data: ChallengeData, **settings: float) -> NumericFeatures:
    block = NumericFeaturesRecipe(replace(SETTINGS, **settings)).fit(data, 0, Path()).block
    assert isinstance(block, NumericFeatures)
    return block


def columns_of(table: EmbeddingTable) -> dict[str, np.ndarray]:
    return dict(zip(NAMES, table.vectors.T, strict=True))


# --- the reference --------------------------------------------------------------------------------------


def mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None


def spread(values: list[float]) -> float | None:
    middle = mean(values)
    return math.sqrt(mean([(value - middle) ** 2 for value in values])) if values else None


def days_ago(time: datetime, end: datetime) -> int:
    """0 for the last 24 hours, a moment exactly a day ago among them."""
    return math.ceil((end - time) / DAY) - 1


def of_window(events: Events, end: datetime, length: float, properties: dict[int, dict]) -> dict[str, float | None]:
    """A client's numbers in one window before any standardising; None for what has no value.

    Args:
        events: of the client inside the window, (time, subject) by type.
        end: the moment of ``as_of``.
        length: of the window in days.
        properties: by sku.
    """
    own: dict[str, float | None] = {}
    for kind, happened in events.items():
        times = sorted(time for time, _ in happened)
        gaps = [(later - earlier) / DAY for earlier, later in pairwise(times)]
        own[f"{kind}_count"] = math.log1p(len(happened))
        own[f"{kind}_days"] = math.log1p(len({days_ago(time, end) for time in times}))
        own[f"{kind}_subjects"] = math.log1p(len({str(subject) for _, subject in happened}))
        own[f"{kind}_since_last"] = math.log1p((end - times[-1]) / DAY if times else length)
        own[f"{kind}_mean_interval"] = math.log1p(mean(gaps) if gaps else length)
        if kind in ITEMS:
            prices = [properties[sku]["price"] for _, sku in happened]
            own[f"{kind}_categories"] = math.log1p(len({properties[sku]["category"] for _, sku in happened}))
            own[f"{kind}_mean_price"], own[f"{kind}_price_spread"] = mean(prices), spread(prices)
            own[f"{kind}_spend"] = math.log1p(sum(prices))
    times = [time for happened in events.values() for time, _ in happened]
    bought, added = len(events[BUY]), len(events[ADD])
    own["active_days"] = math.log1p(len({days_ago(time, end) for time in times}))
    own["weekend_share"] = mean([time.weekday() >= 5 for time in times])
    own["evening_share"] = mean([time.hour >= 18 for time in times])
    own["bought_share"] = bought / (bought + added) if bought + added else None
    return own


def of_groups(events: Events, end: datetime, groups: dict[int, tuple[int, int]]) -> dict[str, float]:
    """A client's numbers of name clusters and price groups, by each sku's two."""
    own: dict[str, float] = {}
    for kind in ITEMS:
        for place, (word, number) in enumerate([("name_cluster", SETTINGS.clusters), ("price_group", 15)]):
            for group in range(number):
                left = [
                    math.exp(-((end - time) / DAY) / SETTINGS.decay)
                    for time, sku in events[kind]
                    if groups[sku][place] == group
                ]
                own[f"{kind}_{word}_{group:02d}"] = math.log1p(sum(left))
    return own


def slow_features(data: ChallengeData, block: NumericFeatures, history) -> dict[int, dict[str, float | None]]:
    """Of the relevant clients with an event before ``as_of``, not standardised yet."""
    tables = {kind: list(table.iter_rows()) for kind, table in history.events.items()}
    start = min(time for events in tables.values() for _, time, _ in events).replace(hour=0, minute=0, second=0)
    end, properties = data.as_of, {row["sku"]: row for row in history.properties.to_dicts()}
    skus = block.groups.of(data).rows_by_key("sku", named=True, unique=True)
    groups = {sku: (row["cluster"], row["price_group"]) for sku, row in skus.items()}
    found = {}
    for client in data.relevant_clients.tolist():
        events = {
            kind: [(time, subject) for owner, time, subject in table if owner == client and time < end]
            for kind, table in tables.items()
        }
        if any(events.values()):
            own: dict[str, float | None] = {}
            for days in (7, 14, 28, 60, None):
                length = (end - start) / DAY if days is None else days
                inside = {
                    kind: [event for event in happened if event[0] >= end - length * DAY]
                    for kind, happened in events.items()
                }
                numbers = of_window(inside, end, length, properties)
                own |= {f"{name}_{f'{days}d' if days else 'all'}": value for name, value in numbers.items()}
            found[client] = own | of_groups(events, end, groups)
    return found


def standardised(rows: dict[int, dict[str, float | None]], by: dict[int, dict[str, float | None]]) -> dict:
    """Rows by the mean and deviation of others; what has no value is 0."""
    result = {client: {} for client in rows}
    for name in NAMES:
        values = [row[name] for row in by.values() if row[name] is not None]
        middle, deviation = mean(values) or 0.0, spread(values) or 0.0
        for client, row in rows.items():
            known = row[name] is not None and deviation > 1e-6 * max(1, abs(middle))
            number = (row[name] - middle) / deviation if known else 0.0
            result[client][name] = min(max(number, -SETTINGS.limit), SETTINGS.limit)
    return result


def require_equal(table: EmbeddingTable, wanted: dict[int, dict[str, float]]) -> None:
    assert table.client_ids.tolist() == sorted(wanted)
    assert table.vectors.dtype == np.float32
    assert table.vectors.shape == (len(wanted), 346)
    for client, row in zip(table.client_ids.tolist(), table.vectors.tolist(), strict=True):
        assert dict(zip(NAMES, row, strict=True)) == pytest.approx(wanted[client], rel=2e-4, abs=2e-4), client


# --- against the reference ------------------------------------------------------------------------------

LOGS = [
    (0, [], None),
    pytest.param(1, [SEARCH], None, marks=pytest.mark.full),
    pytest.param(2, [ADD, VISIT], None, marks=pytest.mark.long),
    pytest.param(3, [], datetime(2023, 1, 20, 13, 30, 5), marks=pytest.mark.long),
    (4, [REMOVE], datetime(2022, 12, 14)),
    (5, [ADD, REMOVE, VISIT, SEARCH], None),  # a log of purchases alone
    (6, [], 7 * DAY),  # an event on the very border of a window
    pytest.param(7, [], 60 * DAY, marks=pytest.mark.long),
]


@pytest.mark.parametrize(("seed", "empty", "as_of"), LOGS)
def test_all_columns_are_those_of_loops(make_history, tmp_path, monkeypatch, seed, empty, as_of):
    monkeypatch.setattr(module, "_CLIENTS", 7)  # several times at a time
    history = make_history(seed, empty, clients=30)
    if isinstance(as_of, timedelta):
        as_of = history.events[BUY]["timestamp"].sort()[20] + as_of
    data = opened(history, tmp_path / "data", as_of)
    block = fitted(data)
    rows = slow_features(data, block, history)
    require_equal(block.encode(data, data.relevant_clients), standardised(rows, rows))


def test_a_later_day_is_standardised_by_the_fit(make_history, tmp_path):
    history = make_history(8, clients=40)
    data = opened(history, tmp_path / "data")
    early = data.before(datetime(2023, 1, 12))
    block = fitted(early)
    by = slow_features(early, block, history)
    wanted = standardised(slow_features(data, block, history), by)
    require_equal(block.encode(data, data.relevant_clients), wanted)


def test_the_events_that_are_kept_give_the_bits_of_the_event_files(make_history, tmp_path, monkeypatch):
    data = opened(make_history(), tmp_path)
    block = fitted(data)
    for known in (data, data.before(data.as_of - 20 * DAY), data.masked(0.3, seed=1)):
        kept = block.vectors(known, data.clients)
        with monkeypatch.context() as patch:
            patch.setattr(ChallengeData, "_are_relevant", lambda *_: False)
            read = block.vectors(known, data.clients)
        np.testing.assert_array_equal(kept[0], read[0])
        np.testing.assert_array_equal(kept[1], read[1])


@pytest.mark.full
def test_clients_that_it_is_fitted_to_are_drawn(make_history, tmp_path):
    data = opened(make_history(clients=40), tmp_path / "data")
    some, all_of_them = fitted(data, most_clients=5), fitted(data, most_clients=20)
    assert (some.standard.mean != all_of_them.standard.mean).any()
    assert (some.standard.mean == fitted(data, most_clients=5).standard.mean).all()


# --- columns --------------------------------------------------------------------------------------------


def test_346_columns_each_with_its_own_name_and_description():
    described = column_descriptions(SETTINGS)
    assert len(described) == 346 == registry.block("numeric_features").columns
    assert len([name for name in NAMES if name.endswith(("_7d", "_14d", "_28d", "_60d", "_all"))]) == 205
    assert len(set(described.values())) == 346
    assert all("{" not in says and "\n" not in says for says in described.values())
    assert described["page_visit_subjects_28d"] == (
        "different urls of page_visit events, in the last 28 days; log(1 + x); none: 0"
    )


def test_the_metadata_have_the_columns(make_history, tmp_path):
    """Those of the command's parquet, of the fitted block beside it, and of what it encodes."""
    data = opened(make_history(clients=40), tmp_path / "data")
    main.__wrapped__(composed(CONFIGS / "numeric_features", "numeric_features", [f"data_path={tmp_path}/data"]))
    model = data.paths.model("numeric_features", submit=True)
    for lineage in (
        read_lineage(data.paths.block("numeric_features", submit=True)),
        lineage_of(model),
        load(model).encode(data).lineage,
    ):
        assert lineage["columns"] == column_descriptions(SETTINGS)
        assert list(lineage["columns"]) == list(NAMES)


def test_the_page_is_that_of_the_declaration():
    assert PAGE.read_text() == page_of_config(), "make it anew: python -m numeric_features.page"


def test_the_config_names_the_registrys_recipe():
    assert (
        composed(CONFIGS / "numeric_features", "numeric_features").recipe == registry.block("numeric_features").recipe
    )


# --- what is absent -------------------------------------------------------------------------------------


@pytest.mark.full
def test_event_types_that_the_log_lacks_are_zeros_also_later(make_history, tmp_path):
    history = make_history(empty=[VISIT], clients=40)
    later = datetime(2023, 1, 25)
    client = history.events[BUY][schema.CLIENT_ID].mode().min()
    visit = pl.DataFrame([(client, later, 3)], history.events[VISIT].schema, orient="row")
    history.events[VISIT] = pl.concat([history.events[VISIT], visit])
    data = opened(history, tmp_path / "data")
    block = fitted(data.before(later))
    for as_of in (later, None):
        column = columns_of(block.encode(data, as_of=as_of))
        assert all((values == 0).all() for name, values in column.items() if name.startswith("page_visit"))
        assert any((values != 0).any() for name, values in column.items() if name.startswith("product_buy"))


def test_an_absent_event_is_longer_ago_and_rarer_than_any(make_history, tmp_path):
    history = make_history(clients=60)
    data = opened(history, tmp_path / "data")
    table = fitted(data, limit=1e6).encode(data, data.relevant_clients)
    column = columns_of(table)
    for kind in EVENT_TYPES:
        for window in ("7d", "28d", "all"):
            there = column[f"{kind}_count_{window}"] > column[f"{kind}_count_{window}"].min()
            assert there.any()
            assert not there.all()
            for name in ("since_last", "mean_interval"):
                values = column[f"{kind}_{name}_{window}"]
                assert (values[~there] == values.max()).all()
                assert (values[there] <= values.max()).all()


def test_a_clients_missing_price_is_the_mean_of_the_others(make_history, tmp_path):
    data = opened(make_history(clients=60), tmp_path / "data")
    column = columns_of(fitted(data).encode(data, data.relevant_clients))
    without = column["product_buy_count_7d"] == column["product_buy_count_7d"].min()
    assert (column["product_buy_mean_price_7d"][without] == 0).all()
    assert (column["product_buy_mean_price_7d"][~without] != 0).any()


def test_no_relevant_client_with_an_event(make_history, tmp_path):
    data = opened(make_history(), tmp_path / "data")
    np.save(data.paths.relevant_clients, np.array([123_456]))
    with pytest.raises(NoUsableEvents, match="no relevant client has an event"):
        fitted(ChallengeData(data.paths, True))


# --- parts ----------------------------------------------------------------------------------------------


def test_standardised_columns_have_mean_0_and_deviation_1_and_constant_ones_are_0():
    rng = np.random.default_rng(0)
    matrix = np.column_stack([rng.normal(5, 3, 500), np.full(500, 1 / 3), np.full(500, np.nan), rng.random(500)])
    matrix[::2, 3] = np.nan
    matrix = matrix.astype(np.float32)
    standard = Standard.fit(matrix)
    other = np.array([[5e9, 7, 7, np.nan]], np.float32)
    standard.apply(other, 10)
    assert other.tolist() == [[10, 0, 0, 0]]
    standard.apply(matrix, 10)
    np.testing.assert_allclose(matrix.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(matrix.std(axis=0), [1, 0, 0, 0.5**0.5], atol=1e-4)
    assert (matrix[::2, 3] == 0).all()


@pytest.mark.parametrize(
    ("weights", "groups", "wanted"),
    [
        ([1, 1, 1, 1, 1, 1], 3, [20, 40]),
        ([10, 1, 1, 1, 1, 1], 3, [10]),  # one price has more than two groups' share
        ([1, 1, 1, 1, 1, 10], 3, [50]),
        ([1, 1, 1, 1, 1, 1], 1, []),
        ([1, 1, 1, 1, 1, 1], 15, [10, 20, 30, 40, 50]),
    ],
)
def test_price_groups_have_about_as_many_events_each(weights, groups, wanted):
    values = np.arange(10, 70, 10)
    assert equal_groups(values, np.array(weights), groups).tolist() == wanted


def test_fewer_names_than_clusters_leave_columns_at_0(make_history, tmp_path):
    history = make_history(clients=40)
    history.properties = history.properties.with_columns(pl.lit(history.properties["name"][0]).alias("name"))
    data = opened(history, tmp_path / "data")
    block = fitted(data)
    assert block.groups.centres.shape == (1, 4096)
    column = columns_of(block.encode(data))
    assert (column["product_buy_name_cluster_00"] != 0).any()
    assert all((column[f"product_buy_name_cluster_{place:02d}"] == 0).all() for place in range(1, 32))


@pytest.fixture
def names() -> np.ndarray:
    """Three kinds of name, whose codes differ in every position, with one position of noise: uint8 [90, 16]."""
    rng = np.random.default_rng(3)
    kinds = rng.permutation(256)[:48].reshape(3, 16).astype(np.uint8)
    names = np.repeat(kinds, [50, 30, 10], axis=0)
    names[:, 4] = rng.integers(0, 256, len(names))
    return names


def test_alike_names_share_a_cluster_and_the_first_is_the_largest(names):
    centres = name_centres(names, 3, seed=0)
    assert nearest(centres, names).tolist() == [0] * 50 + [1] * 30 + [2] * 10
    assert nearest(centres, names[::-7]).tolist() == nearest(centres, names)[::-7].tolist()


def test_a_sku_that_nobody_met_has_a_cluster_and_a_group(make_history, tmp_path):
    history = make_history(clients=40)
    seen = history.events[BUY][schema.SKU][0]
    row = history.properties.filter(pl.col(schema.SKU) == seen)
    history.properties = pl.concat([history.properties, row.with_columns(sku=pl.lit(77, pl.Int64))])
    data = opened(history, tmp_path / "data")
    groups = (
        ItemGroups.fit(data, [item_events(data)], 4, 3, 1000, 0).of(data).rows_by_key("sku", named=True, unique=True)
    )
    assert groups[77] == groups[seen]
    assert {group["price_group"] for group in groups.values()} == {0, 1, 2}


REFUSED: list[tuple[str, float]] = [("clusters", 0), ("price_groups", 0), ("decay", 0.0), ("limit", -1.0)]


@pytest.mark.parametrize(("name", "value"), REFUSED)
def test_settings_that_make_no_sense(name, value):
    with pytest.raises(UserError, match=rf"^features\.{name}={value}: must be"):
        replace(SETTINGS, **{name: value})


@pytest.mark.parametrize(("count", "most_clients"), [(1, 1000), (3, 1000), (3, 17)])
def test_fitted_by_shards_it_is_the_block_of_one_process(history, count, most_clients):
    data = ChallengeData(history, submit=True)
    history.relevant_clients.parent.mkdir(exist_ok=True)
    np.save(history.relevant_clients, data.seen()[::2])
    recipe = NumericFeaturesRecipe(replace(SETTINGS, most_clients=most_clients))
    views = [data.of_shard(shard) for shard in sharded(data, count, in_turn)]
    found, whole = (
        recipe.fit_by_shards(data, views, 5, in_turn, Path()).block.state(),
        recipe.fit(data, 5, Path()).block.state(),
    )
    assert found.settings == whole.settings
    assert {name: array.tobytes() for name, array in found.arrays.items()} == {
        name: array.tobytes() for name, array in whole.arrays.items()
    }
