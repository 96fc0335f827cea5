"""The synthetic shop: the published shape at any size, the same bytes from the same seed, tasks that can be learnt."""

import dataclasses
import hashlib
from datetime import datetime, time, timedelta

import numpy as np
import polars as pl
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import QuantileTransformer
from threadpoolctl import threadpool_limits

from scripts import make_synthetic_data
from scripts.make_synthetic_data import (
    Order,
    Shop,
    Signals,
    SyntheticShop,
    Tails,
    hashed,
    long_tailed,
    outputs,
    scattered,
    shared_out,
    write,
)
from stat_features.recipe import StatFeaturesRecipe
from tests.calls import called
from ubp.cli.config import composed, parse
from ubp.data import schema
from ubp.data.history import ChallengeData
from ubp.data.paths import CONFIGS, DataPaths
from ubp.data.schema import EVENT_TYPES, EventType
from ubp.data.split import SplitDates, write_split
from ubp.data.targets import TASKS, TargetRules, make_targets
from ubp.evaluation.tasks import labels, load_targets, load_window
from ubp.io.errors import UserError
from ubp.io.files import fingerprint

PUBLISHED = {
    EventType.PRODUCT_BUY: 1_682_296,
    EventType.ADD_TO_CART: 5_235_882,
    EventType.REMOVE_FROM_CART: 1_697_891,
    EventType.PAGE_VISIT: 150_713_186,
    EventType.SEARCH_QUERY: 9_571_258,
}
CHUNK = 2_000  # sessions: several chunks even in a small shop


PROFILES = sorted(path.stem for path in (CONFIGS / "scripts" / "profile").glob("*.yaml"))


def settings(profile: str = "default") -> Shop:
    return parse(Shop, composed(CONFIGS / "scripts", "make_synthetic_data", [f"profile={profile}"]), at="shop")


def with_signals(shop: Shop, **signals: float) -> Shop:
    return dataclasses.replace(shop, signals=dataclasses.replace(shop.signals, **signals))


def made(shop: Shop, paths: DataPaths, seed: int = 0, timestamps: str = "text") -> DataPaths:
    paths.raw.mkdir(parents=True)
    write(SyntheticShop(shop, seed, CHUNK), paths, timestamps)
    return paths


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> ChallengeData:
    """A thousandth of the challenge, validated."""
    paths = made(settings().scaled(0.001), DataPaths(tmp_path_factory.mktemp("small") / "data"))
    return ChallengeData(paths, submit=True)


def table(data: ChallengeData, event_type: EventType) -> pl.DataFrame:
    return data.events(event_type).collect()


def test_the_published_counts():
    shop = settings().scaled(1.0)
    assert {EventType(name): rows for name, rows in shop.rows.items()} == PUBLISHED
    assert (shop.clients, shop.relevant_clients, shop.skus) == (18_700_000, 1_000_000, 1_300_000)
    assert (shop.urls, shop.categories) == (12_700_000, 7_000)


def test_every_file_has_its_rows(small):
    for event_type, rows in PUBLISHED.items():
        assert small.rows(event_type) == round(rows / 1000)
    properties = small.properties().collect()
    assert len(properties) == properties[schema.SKU].n_unique() == 1300
    assert properties[schema.CATEGORY].n_unique() == round(7000 * 0.001**0.5)
    assert properties[schema.PRICE].is_between(0, schema.PRICE_BUCKETS - 1).all()


def test_every_client_occurs_and_some_are_relevant(small):
    visitors = table(small, EventType.PAGE_VISIT)[schema.CLIENT_ID]
    assert visitors.n_unique() == 18_700
    for event_type in EVENT_TYPES:
        assert table(small, event_type)[schema.CLIENT_ID].is_in(visitors.unique().implode()).all()
    relevant = small.relevant_clients
    assert len(relevant) == 1000
    assert np.isin(relevant, visitors.to_numpy()).all()


def test_the_smallest_shops_are_valid(tmp_path):
    for scale in (1e-4, 1e-6):
        paths = made(settings().scaled(scale), DataPaths(tmp_path / f"{scale}"))
        assert ChallengeData(paths, submit=True).rows(EventType.PRODUCT_BUY) == max(round(1_682_296 * scale), 1)


@pytest.mark.parametrize(
    "profile", [pytest.param(name, marks=[pytest.mark.full] * (name == "dense")) for name in PROFILES]
)
def test_the_same_seed_gives_the_same_bytes_and_another_does_not(profile, tmp_path):
    shop = settings(profile).scaled(2e-4 if profile == "default" else 2e-3)
    prints = {}
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        prints[name] = [fingerprint(file) for file in outputs(made(shop, DataPaths(tmp_path / name), seed))]
    assert prints["a"] == prints["b"]
    differ = [one != other for one, other in zip(prints["a"], prints["c"], strict=True)]
    # A file without rows stays so; all clients are relevant in shops other than the default one.
    assert differ[:-1] == [*(shop.rows[event_type] > 0 for event_type in EVENT_TYPES), True]
    assert differ[-1] or profile != "default"


def test_the_default_shop_is_the_one_it_always_was():
    """Of the values, not of the files: those change with the library that writes them."""
    shop = SyntheticShop(settings().scaled(2e-4), 0, CHUNK)
    digest = hashlib.sha256()
    for event_type in EVENT_TYPES:
        for begin in shop.chunks():
            digest.update(shop.events(event_type, begin).write_csv().encode())
    digest.update(shop.properties().write_csv().encode())
    digest.update(shop.relevant_clients().tobytes())
    assert digest.hexdigest() == "f34b8f1197b1f757ca90f7cbd0514e0aca9051f01d70f1ad7c7c0bccc526ddd3"


def test_timestamps_as_text_or_datetime_are_the_same_moments(tmp_path):
    shop = settings().scaled(1e-4)
    text = made(shop, DataPaths(tmp_path / "text"))
    moments = made(shop, DataPaths(tmp_path / "datetime"), timestamps="datetime")
    for event_type in EVENT_TYPES:
        read = [pl.read_parquet(paths.raw / event_type.file_name) for paths in (text, moments)]
        assert [frame.schema[schema.TIMESTAMP] for frame in read] == [pl.String, pl.Datetime("us")]
        assert read[0].with_columns(pl.col(schema.TIMESTAMP).str.to_datetime()).equals(read[1])


def test_files_are_not_sorted_and_stay_within_the_period(small):
    for event_type in EVENT_TYPES:
        events = table(small, event_type)
        assert not events[schema.TIMESTAMP].is_sorted()
        assert not events[schema.CLIENT_ID].is_sorted()
        assert events[schema.TIMESTAMP].is_between(datetime(2022, 6, 1), datetime(2022, 12, 1), closed="left").all()


def test_tails_are_long(small):
    for column, share in ((schema.CLIENT_ID, 0.08), (schema.URL, 0.05)):
        counts = table(small, EventType.PAGE_VISIT)[column].value_counts(sort=True)["count"]
        # Were all alike, the hundredth that chance favours would have some 0.02.
        assert counts.head(len(counts) // 100).sum() / counts.sum() > share, column


def test_days_and_weeks_have_a_rhythm(small):
    time = table(small, EventType.PAGE_VISIT)[schema.TIMESTAMP]
    hours = time.dt.hour().value_counts().sort(schema.TIMESTAMP)["count"].to_numpy()
    assert hours[20] > 5 * hours[3]
    days = time.dt.weekday().value_counts().sort(schema.TIMESTAMP)["count"].to_numpy()
    assert days[0] > 1.1 * days[5]


def test_events_come_in_sessions(small):
    visits = table(small, EventType.PAGE_VISIT).sort(schema.CLIENT_ID, schema.TIMESTAMP)
    gap = visits[schema.TIMESTAMP].diff().filter(visits[schema.CLIENT_ID].diff() == 0)
    assert (gap < timedelta(minutes=5)).mean() > 0.5
    assert (gap > timedelta(hours=6)).mean() > 0.1
    pairs = [schema.CLIENT_ID, schema.SKU]
    bought, added = table(small, EventType.PRODUCT_BUY), table(small, EventType.ADD_TO_CART)
    assert len(bought.join(added.unique(pairs), on=pairs, how="semi")) > 0.6 * len(bought)


def test_new_skus_are_not_sold_before_their_day():
    shop = SyntheticShop(settings().scaled(0.001), 0, CHUNK)
    launch = shop.launch(np.arange(shop.shop.skus))
    assert (launch > 0).mean() == pytest.approx(0.15, abs=0.03)
    launched = pl.DataFrame({schema.SKU: shop.sku_ids(np.arange(shop.shop.skus)), "launch": launch})
    first = pl.Series(shop.sku_ids(shop.first_sku[:-1]))  # a category's first sku is always sold
    added = pl.concat([shop.events(EventType.ADD_TO_CART, begin) for begin in shop.chunks()])
    sold = added.join(launched, on=schema.SKU).filter(~pl.col(schema.SKU).is_in(first.implode()))
    assert (sold[schema.TIMESTAMP] >= sold["launch"]).all()
    assert (sold["launch"] > 0).any()


def test_names_and_queries_are_near_those_of_their_category(small):
    names = small.properties().collect().sort(schema.CATEGORY)
    codes, category = names[schema.NAME].to_numpy(), names[schema.CATEGORY].to_numpy()
    same = category[1:] == category[:-1]
    agree = (codes[1:] == codes[:-1]).mean(axis=1)
    assert agree[same].mean() > 10 * agree[~same].mean()


def test_chance():
    numbers = hashed(np.arange(100_000), 3)
    assert numbers.min() >= 0
    assert numbers.max() < 1
    assert np.histogram(numbers, 10, (0, 1))[0] == pytest.approx(10_000, rel=0.05)
    assert abs(np.corrcoef(numbers, hashed(np.arange(100_000), 4))[0, 1]) < 0.02
    ranks = long_tailed(numbers, 1000, 0.9)
    assert ranks.min() == 0
    assert ranks.max() == 999
    counts = np.bincount(ranks)
    # Twice (r + 10) occurs 2^0.9 times less often.
    assert counts[10:20].sum() / counts[30:50].sum() == pytest.approx(2**0.9 / 2, rel=0.1)
    assert np.bincount(long_tailed(numbers, 10, 0.0)) == pytest.approx(10_000, rel=0.05)


def test_shares_sum_up_and_ids_are_each_ones_own():
    weights = np.array([0.0, 1.0, 2.0, 0.0, 7.0])
    assert shared_out(100, weights).tolist() == [0, 10, 20, 0, 70]
    assert shared_out(7, np.random.default_rng(0).random(1000)).sum() == 7
    for count in (1, 2, 10, 997):
        ids = scattered(np.arange(count), count, 5)
        assert len(np.unique(ids)) == count
        assert ids.min() >= 1
    assert not np.all(np.diff(scattered(np.arange(997), 997, 5)) > 0)


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs the command in this process; gives its exit code, and what it says on stdout and stderr."""
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")  # the command sets it: put back afterwards

    def call(paths, *words):
        code, out, err = called(make_synthetic_data, [f"data_path={paths.root}", *words], monkeypatch, capsys)
        return code, out, "\n".join(err)

    return call


def test_the_command_makes_skips_and_replaces_only_when_told_to(run, tmp_path):
    paths = DataPaths(tmp_path / "data")
    code, out, err = run(paths, "scale=1e-4")
    assert code == 0, err
    assert "synthetic data · 16,890 events of 1,870 clients" in out
    before = [fingerprint(file) for file in outputs(paths)]
    assert "done before" in run(paths, "scale=1e-4")[1]
    code, _, err = run(paths, "scale=2e-4")
    assert code == 1
    assert "holds a synthetic shop of other settings; replace it with overwrite=True" in err
    assert [fingerprint(file) for file in outputs(paths)] == before


def test_somebody_elses_data_is_left_alone(run, history):
    before = fingerprint(history.raw / "product_buy.parquet")
    code, _, err = run(history, "scale=1e-4", "overwrite=True")
    assert code == 1
    assert "holds data that this command did not make" in err
    assert fingerprint(history.raw / "product_buy.parquet") == before


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (lambda: dataclasses.replace(settings(), start="June"), "shop.start=June"),
        (lambda: dataclasses.replace(settings(), rows={"visit": 1}), "shop.rows"),
        (lambda: dataclasses.replace(settings(), rows=settings().rows | {"page_visit": -1}), "shop.rows.page_visit=-1"),
        (lambda: dataclasses.replace(settings(), session_has="visit"), "shop.session_has=visit: must be a type with"),
        (lambda: dataclasses.replace(settings("purchases_only"), session_has="page_visit"), "session_has=page_visit"),
        (lambda: dataclasses.replace(settings(), session_events=0.5), "shop.session_events=0.5"),
        (lambda: dataclasses.replace(settings(), time="hours"), "shop.time=hours: must be seconds or days"),
        (lambda: dataclasses.replace(settings(), categories_power=2.0), "shop.categories_power=2.0"),
        (lambda: dataclasses.replace(settings(), regulars=0.0), "shop.regulars=0.0"),
        (lambda: Tails(1.0, 0.5, 0.5, 0.5), "shop.tails.clients=1.0"),
        (lambda: Signals(1.5, 3, 0.5, 60.0, 1.0, 0.1), "shop.signals.taste=1.5"),
        (lambda: Order(0.0, "text", 1), "scale=0.0"),
        (lambda: Order(1.0, "words", 1), "timestamps=words"),
        (lambda: Order(1.0, "text", 0), "chunk=0"),
    ],
)
def test_senseless_numbers_are_refused(wrong, says):
    with pytest.raises(UserError, match=says):
        wrong()


# Sparse shops ------------------------------------------------------------------------------------------------

SPARSE = ("purchases_only", "sparse")
CLIENTS = 4000


@pytest.fixture(scope="module")
def sparse(tmp_path_factory) -> dict[str, ChallengeData]:
    """The sparse profiles with a few thousand clients, split, by name; all events of them."""
    root, found = tmp_path_factory.mktemp("sparse"), {}
    for profile in SPARSE:
        shop = settings(profile)
        whole = ChallengeData(made(shop.scaled(CLIENTS / shop.clients), DataPaths(root / profile)), submit=True)
        write_split(whole, SplitDates.of(whole))
        make_targets(whole, SplitDates.of(whole), TargetRules(), overwrite=False)
        found[profile] = whole
    return found


def of_all_types(data: ChallengeData) -> pl.DataFrame:
    return pl.concat([table(data, kind).select(schema.CLIENT_ID, schema.TIMESTAMP) for kind in EVENT_TYPES])


@pytest.mark.parametrize("profile", SPARSE)
def test_a_sparse_shop_has_three_events_a_client_ten_categories_and_whole_days(profile, sparse):
    events = of_all_types(sparse[profile])
    assert events[schema.CLIENT_ID].n_unique() == CLIENTS
    assert 3 <= len(events) / CLIENTS < 3.2
    assert (events[schema.TIMESTAMP].dt.time() == time(0)).all()
    assert events[schema.TIMESTAMP].dt.date().n_unique() > 150
    assert sparse[profile].properties().collect()[schema.CATEGORY].n_unique() == 10


def test_of_purchases_only_there_is_nothing_else_and_most_clients_have_one(sparse):
    data = sparse["purchases_only"]
    rows = {event_type: data.rows(event_type) for event_type in EVENT_TYPES if event_type != EventType.PRODUCT_BUY}
    assert set(rows.values()) == {0}
    count = table(data, EventType.PRODUCT_BUY)[schema.CLIENT_ID].value_counts()["count"]
    assert 0.5 < (count == 1).mean() < 0.6


def test_a_sparse_shop_has_few_carts_and_searches(sparse):
    data = sparse["sparse"]
    rows = {event_type: data.rows(event_type) for event_type in EVENT_TYPES}
    assert min(rows.values()) > 0
    some = (EventType.ADD_TO_CART, EventType.REMOVE_FROM_CART, EventType.SEARCH_QUERY)
    assert sum(rows[event_type] for event_type in some) < 0.2 * sum(rows.values())


@pytest.mark.parametrize("profile", SPARSE)
def test_in_a_sparse_shop_churn_is_learnt_from_recency_and_each_category_is_bought(profile, sparse):
    """The longer ago a client's last event, the likelier it does not buy again: AUROC over both windows' days."""
    paths = sparse[profile].paths
    history, active = ChallengeData(paths, submit=False), np.load(paths.active_clients)
    churn, category = (next(task for task in TASKS if task.name == name) for name in ("churn", "propensity_category"))
    newest = of_all_types(history).group_by(schema.CLIENT_ID).agg(pl.col(schema.TIMESTAMP).max())
    last = pl.DataFrame({schema.CLIENT_ID: active}).join(newest, on=schema.CLIENT_ID, maintain_order="left")
    for name in (schema.TRAIN_TARGET, schema.VALIDATION_TARGET):
        window = load_window(paths, name)
        lost = labels(churn, active, window, None)[:, 0]
        assert (lost == 0).sum() >= 15
        assert roc_auc_score(lost, -last[schema.TIMESTAMP].to_physical().to_numpy()) > 0.65
        assert len(window) > 30
        bought = labels(category, history.clients, window, load_targets(paths, category))
        assert (bought.sum(axis=0) > 0).sum() >= 8


# Learning ----------------------------------------------------------------------------------------------------


def dense() -> Shop:
    """A shop of few clients that come and buy often: small enough for a test, and yet there is much to learn."""
    return settings("dense").scaled(0.002)


def scores(shop: Shop, paths: DataPaths, tasks: tuple[str, ...]) -> dict[str, float]:
    """AUROC of a logistic regression on stat_features and counts by category, mean over the targets."""
    made(shop, paths, timestamps="datetime")
    whole = ChallengeData(paths, submit=True)
    write_split(whole, SplitDates.of(whole))
    make_targets(whole, SplitDates.of(whole), TargetRules(per_task=8), overwrite=False)
    data = ChallengeData(paths, submit=False)
    block = StatFeaturesRecipe().fit(data, 0, paths.cache).block
    clients, columns = block.vectors(data, data.clients)
    columns = np.hstack([QuantileTransformer(n_quantiles=100).fit_transform(columns), by_category(data, clients)])
    windows = [load_window(paths, name) for name in (schema.TRAIN_TARGET, schema.VALIDATION_TARGET)]
    active = np.isin(clients, np.load(paths.active_clients))
    found = {}
    for task in (task for task in TASKS if task.name in tasks):
        targets = load_targets(paths, task) if task.is_propensity else None
        rows = active if task.active_only else np.ones(len(clients), bool)
        train, validation = (labels(task, clients, window, targets)[rows] for window in windows)
        judged = [n for n in range(train.shape[1]) if min(train[:, n].sum(), validation[:, n].sum()) > 0]
        with threadpool_limits(1):
            models = [LogisticRegression(C=0.03, max_iter=100).fit(columns[rows], train[:, n]) for n in judged]
        each = [
            roc_auc_score(validation[:, n], model.decision_function(columns[rows]))
            for n, model in zip(judged, models, strict=True)
        ]
        found[task.name] = float(np.mean(each))
    return found


def by_category(data: ChallengeData, clients: np.ndarray) -> np.ndarray:
    """log(1 + items bought or added) of each client and category."""
    events = pl.concat([data.with_properties(kind) for kind in (EventType.PRODUCT_BUY, EventType.ADD_TO_CART)])
    rows = pl.LazyFrame({schema.CLIENT_ID: clients, "row": np.arange(len(clients))})
    counts = events.join(rows, on=schema.CLIENT_ID).group_by("row", schema.CATEGORY).len().collect()
    _, column = np.unique(counts[schema.CATEGORY].to_numpy(), return_inverse=True)
    matrix = np.zeros((len(clients), column.max() + 1))
    matrix[counts["row"].to_numpy(), column] = np.log1p(counts["len"].to_numpy())
    return matrix


@pytest.mark.full
def test_the_six_tasks_can_be_learnt_and_less_without_a_signal(tmp_path):
    tasks = tuple(task.name for task in TASKS)
    whole = scores(dense(), DataPaths(tmp_path / "whole"), tasks)
    assert min(whole.values()) > 0.58, whole
    nobody_leaves = with_signals(dense(), leavers=0.0)
    staying = scores(nobody_leaves, DataPaths(tmp_path / "staying"), ("churn", "propensity_category"))
    assert staying["churn"] < whole["churn"] - 0.05, (whole, staying)
    # Tastes beside clients that stay: those that left make every category easier.
    indifferent = scores(
        with_signals(nobody_leaves, taste=0.0), DataPaths(tmp_path / "indifferent"), ("propensity_category",)
    )
    assert indifferent["propensity_category"] < staying["propensity_category"] - 0.05, (staying, indifferent)
