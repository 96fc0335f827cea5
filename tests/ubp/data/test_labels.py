"""Labels against plain Python on random small logs; what they may read, and what they may not."""

from collections import defaultdict
from datetime import timedelta

import numpy as np
import polars as pl
import pytest

from tests.ubp.data.small_logs import DAYS, HIDDEN, OPEN, RELEVANT, START, random_log, rows, shifted, write
from ubp.data.history import ChallengeData
from ubp.data.labels import GROUPS, LabelSettings, LabelSpace, WindowLabels, labels, relevant_purchases
from ubp.data.schema import EVENT_TYPES, EventType
from ubp.data.snapshots import FirstEvents, Snapshot, SnapshotSettings, snapshots
from ubp.data.split import SplitDates, write_split
from ubp.data.targets import TASKS, TargetRules, load_targets, make_targets, open_targets
from ubp.evaluation import tasks
from ubp.io.errors import UserError

BUY, ADD = EventType.PRODUCT_BUY, EventType.ADD_TO_CART
SECOND, DAY = timedelta(seconds=1), timedelta(days=1)
END, MIDDLE = START + DAYS * DAY, START + 45 * DAY
FEW = LabelSettings(categories=2, skus=3, clusters=3)
SNAPSHOTS = SnapshotSettings(count=5, stride=6, horizon=9)


def opened(log, root, listed=True, **settings) -> ChallengeData:
    return ChallengeData(write(log, root, listed), submit=True, **settings)


def space_of(history, settings=FEW, seed=0) -> LabelSpace:
    return LabelSpace.of(history, open_targets(history.paths), settings, seed)


def values_of(space) -> dict[str, list[int]]:
    return {group.name: group.values.tolist() for group in space.groups}


def as_lists(found: WindowLabels) -> dict[str, object]:
    """What equals when all labels are the same, NaN included."""
    parts = {name: matrix.toarray() for name, matrix in found.groups.items()} | {
        name: getattr(found, name) for name in vars(found) if name != "groups"
    }
    return {name: None if part is None else np.nan_to_num(part, nan=-1).tolist() for name, part in parts.items()}


# --- the answers -----------------------------------------------------------------------------------------


def column_of(log, space) -> dict[str, dict[int, int]]:
    """Of each column, the value of each sku."""
    table = log.properties
    codes = np.array([[int(code) for code in name.strip("[]").split()] for name in table["name"]], dtype=np.uint8)
    columns = {name: dict(zip(table["sku"], table[name], strict=True)) for name in ("sku", "category", "price")}
    clusters = {} if space.names is None else dict(zip(table["sku"], space.names.of(codes).tolist(), strict=True))
    return columns | {"cluster": clusters}


def reference(log, snapshot, space) -> dict[str, list]:
    """All labels, client by client and event by event; the groups as lists of ones and zeros."""
    day, end = snapshot.day, snapshot.end
    events = {kind: rows(log, kind) for kind in EVENT_TYPES}
    known = sorted({client for kind in EVENT_TYPES for client, time, _ in events[kind] if time < day})
    of_sku, found = column_of(log, space), defaultdict(list)
    for client in known:
        window = {kind: [e for e in events[kind] if e[0] == client and day <= e[1] < end] for kind in (BUY, ADD)}
        for group in space.groups:
            met = {of_sku[group.column][sku] for _, _, sku in window[group.event_type]}
            found[group.name].append([int(value in met) for value in group.values])
        is_active = any(e[0] == client and e[1] < day for e in events[BUY])
        found["churn"].append((0 if window[BUY] else 1) if is_active else -1)
        found["bought"].append(int(bool(window[BUY])))
        found["added"].append(int(bool(window[ADD])))
        found["baskets"].append(len({e[1] for e in window[BUY]}))
        found["days_to_purchase"].append((min((e[1] for e in window[BUY]), default=end) - day) / DAY)
        found["censored"].append(not window[BUY])
    return {"clients": known, **found}


@pytest.mark.parametrize("seed", [*range(4), *(pytest.param(seed, marks=pytest.mark.full) for seed in range(4, 8))])
def test_are_those_of_plain_python(seed, tmp_path):
    log = random_log(seed)
    history = opened(log, tmp_path, as_of=None if seed % 2 else MIDDLE + timedelta(hours=6))
    space = space_of(history)
    assert [group.name for group in space.groups] == list(GROUPS)
    found = [(snapshot, labels(snapshot, space)) for snapshot in snapshots(history, SNAPSHOTS)]
    for snapshot, answers in found:
        assert as_lists(answers) == reference(log, snapshot, space)
    assert all(any(answers.groups[name].nnz for _, answers in found) for name in GROUPS)
    seen = np.concatenate([answers.churn for _, answers in found])
    assert {0, 1} <= set(seen[~np.isnan(seen)])


def test_dtypes_and_order(tmp_path):
    history = opened(random_log(0), tmp_path)
    answers = labels(snapshots(history, SNAPSHOTS)[-1], space_of(history))
    assert answers.clients.dtype == np.int64
    for name in ("churn", "bought", "added", "baskets", "days_to_purchase"):
        part = getattr(answers, name)
        assert (part.dtype, part.shape) == (np.float32, answers.clients.shape)
    assert answers.censored.dtype == np.bool_
    for matrix in answers.groups.values():
        assert matrix.dtype == np.uint8
        assert matrix.has_canonical_format
        assert set(matrix.data) <= {1}


def with_purchases(log, moments, client=0):
    log.events[BUY] = pl.DataFrame(
        {"client_id": [client] * len(moments), "timestamp": moments, "sku": [100] * len(moments)}
    )
    return log


@pytest.mark.parametrize(
    ("moment", "churns", "days", "is_censored"),
    [
        (-SECOND, True, 9, True),
        (0 * SECOND, False, 0, False),
        (9 * DAY - SECOND, False, 9 - 1 / 86400, False),
        (9 * DAY, True, 9, True),  # after the window, before the history's end: of a window that may validate
        (20 * DAY, True, 9, True),
    ],
)
def test_churn_and_the_next_purchase_at_borders(moment, churns, days, is_censored, tmp_path):
    day = MIDDLE - 20 * DAY
    log = with_purchases(random_log(0), [day - 3 * DAY, day + moment])
    history = opened(log, tmp_path, as_of=MIDDLE)
    answers = labels(Snapshot.at(day, day + 9 * DAY, FirstEvents(history)), space_of(history))
    place = answers.clients.tolist().index(0)
    assert answers.churn[place] == churns
    assert answers.bought[place] == answers.baskets[place] == (not churns)
    assert answers.days_to_purchase[place] == pytest.approx(days, abs=1e-6)
    assert answers.censored[place] == is_censored
    others = answers.clients != 0
    assert np.isnan(answers.churn[others]).all()
    assert answers.censored[others].all()
    assert (answers.days_to_purchase[others] == 9).all()


def test_a_basket_is_a_moment(tmp_path):
    day = END - 9 * DAY
    log = with_purchases(random_log(0), [day, day, day, day + SECOND, day + DAY])
    history = opened(log, tmp_path)
    answers = labels(Snapshot.at(day, END, FirstEvents(history)), space_of(history))
    assert answers.baskets.tolist() == [3 * (client == 0) for client in answers.clients]
    assert np.isnan(answers.churn).all()


def test_a_window_without_events_and_a_day_without_clients(tmp_path):
    log = random_log(0)
    history = opened(log, tmp_path / "some")
    space = space_of(history)
    quiet = labels(Snapshot.at(START + 20 * DAY + SECOND, START + 20 * DAY + 2 * SECOND, FirstEvents(history)), space)
    assert len(quiet.clients) > 0
    assert not any(matrix.nnz for matrix in quiet.groups.values())
    assert not quiet.bought.any()
    for kind, table in log.events.items():  # until the window, only a client who is not relevant
        early = pl.col("timestamp") < START + 20 * DAY
        log.events[kind] = table.with_columns(client_id=pl.when(early).then(11).otherwise("client_id"))
    history = opened(log, tmp_path / "none")
    nobody = labels(Snapshot.at(START + 20 * DAY, END, FirstEvents(history)), space)
    assert len(nobody.clients) == len(nobody.churn) == 0
    assert {name: matrix.shape for name, matrix in nobody.groups.items()} == {
        group.name: (0, len(group.values)) for group in space.groups
    }


def test_are_the_judges_labels_of_the_split(history):
    data = ChallengeData(history, submit=True)
    dates = SplitDates.of(data)
    write_split(data, dates)
    make_targets(data, dates, TargetRules(per_task=20), overwrite=False)
    space = LabelSpace.of(ChallengeData(history, submit=False), open_targets(history), LabelSettings(), 0)
    firsts = FirstEvents(data)
    for file, day, end in (
        ("train_target.parquet", dates.train_start, dates.validation_start),
        ("validation_target.parquet", dates.validation_start, data.as_of),
    ):
        answers, window = labels(Snapshot.at(day, end, firsts), space), tasks.load_window(history, file)
        for task in TASKS:
            if task.name in ("propensity_category", "propensity_sku"):
                targets = load_targets(history, task)
                judged = tasks.labels(task, answers.clients, window, targets)[:, np.argsort(targets.values)]
                assert np.array_equal(answers.groups[f"bought_{task.column}"].toarray(), judged)
                assert judged.any()
        churn = tasks.labels(TASKS[0], answers.clients, window, None)[:, 0]
        is_active = ~np.isnan(answers.churn)
        assert np.array_equal(answers.churn[is_active], churn[is_active])
        if file.startswith("train"):
            assert answers.clients[is_active].tolist() == np.load(history.active_clients).tolist()


# --- the questions ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_values_are_those_of_plain_python(seed, tmp_path):
    log = random_log(seed)
    history = opened(log, tmp_path, as_of=MIDDLE)
    space = space_of(history)
    of_sku = column_of(log, space)
    bought = [(client, sku) for client, time, sku in rows(log, BUY) if time < MIDDLE]

    def most(column, others, count):
        buyers = defaultdict(set)
        for client, sku in bought:
            buyers[of_sku[column][sku]].add(client)
        ranked = sorted(set(buyers) - set(others), key=lambda value: (-len(buyers[value]), value))
        return sorted(ranked[:count])

    assert values_of(space) == {
        "bought_category": [1, 3, 77],
        "bought_sku": [101, 104, 999],
        "added_category": [1, 3, 77],
        "added_sku": [101, 104, 999],
        "price": sorted({of_sku["price"][sku] for _, sku in bought}),
        "cluster": sorted({of_sku["cluster"][sku] for _, sku in bought}),
        "categories": most("category", OPEN["category"], 2),
        "skus": most("sku", OPEN["sku"], 3),
    }
    assert len(most("category", OPEN["category"], 2)) == 2
    for count in (1, 2):
        unlisted = LabelSpace.of(history, {}, LabelSettings(count, count, 0), seed=0)
        assert values_of(unlisted)["categories"] == most("category", (), count)
        assert values_of(unlisted)["skus"] == most("sku", (), count)
    assert all(group.values.dtype == np.int64 for group in space.groups)
    assert len(space.names.centres) == 3


def test_without_lists_the_general_groups_do_the_work(tmp_path):
    listed, none = (opened(random_log(0), tmp_path / name, name == "listed") for name in ("listed", "none"))
    assert open_targets(none.paths) == {}
    many = LabelSettings(clusters=3)
    with_lists, without = values_of(space_of(listed, many)), values_of(space_of(none, many))
    assert list(without) == ["price", "cluster", "categories", "skus"]
    for general, column in (("categories", "category"), ("skus", "sku")):
        assert set(without[general]) - set(with_lists[general]) == set(OPEN[column]) & set(without[general])
        assert not set(with_lists[general]) & set(OPEN[column])


def test_groups_that_are_off(tmp_path):
    history = opened(random_log(0), tmp_path)
    some = values_of(space_of(history, LabelSettings(groups=("skus", "price"))))
    assert list(some) == ["price", "skus"]
    assert set(OPEN["sku"]) - {999} < set(some["skus"])  # asked in no other group
    none = space_of(history, LabelSettings(0, 0, 0))
    assert list(values_of(none)) == [*list(GROUPS)[:4], "price"]
    assert none.names is None
    answers = labels(snapshots(history, SNAPSHOTS)[-1], none)
    assert list(answers.groups) == list(values_of(none))


def test_a_log_without_cart_additions(tmp_path):
    log = random_log(0, empty=(ADD,))
    history = opened(log, tmp_path)
    space = space_of(history)
    assert not {"added_category", "added_sku"} & values_of(space).keys()
    snapshot = snapshots(history, SNAPSHOTS)[-1]
    answers = labels(snapshot, space)
    assert answers.added is None
    assert as_lists(answers) == reference(log, snapshot, space) | {"added": None}


def test_a_log_whose_additions_come_later_asks_nothing_about_them(tmp_path):
    log = random_log(0)
    log.events[ADD] = log.events[ADD].filter(pl.col("timestamp") >= MIDDLE)
    history = opened(log, tmp_path)
    space = space_of(history.before(MIDDLE))
    assert not space.has_additions
    assert labels(Snapshot.at(MIDDLE, END, FirstEvents(history)), space).added is None


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"skus": -1}, r"labels\.skus=-1: must be at least 0"),
        ({"groups": ("price", "sku", "skuu")}, r"labels\.groups=sku, skuu: must be some of bought_category, .*, skus"),
    ],
)
def test_settings_that_make_no_sense(settings, says):
    with pytest.raises(UserError, match=says):
        LabelSettings(**settings)


# --- what may be read ------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.long) for seed in (2, 3))])
def test_nothing_at_or_after_as_of_is_read(seed, tmp_path):
    log = random_log(seed)
    moved = shifted(log, MIDDLE, seed)
    assert not moved.events[BUY].equals(log.events[BUY])
    one, other = (opened(*pair) for pair in ((log, tmp_path / "one"), (moved, tmp_path / "other")))
    known_one, known_other = one.before(MIDDLE), other.before(MIDDLE)
    space, same = space_of(known_one), space_of(known_other)
    assert values_of(space) == values_of(same)
    assert np.array_equal(space.names.centres, same.names.centres)
    for first, second in zip(snapshots(known_one, SNAPSHOTS), snapshots(known_other, SNAPSHOTS), strict=True):
        assert as_lists(labels(first, space)) == as_lists(labels(second, same))
    # Windows that end before are the same in a longer history.
    for first in snapshots(known_one, SNAPSHOTS):
        longer = labels(Snapshot.at(first.day, first.end, FirstEvents(other)), space)
        assert as_lists(labels(first, space)) == as_lists(longer)


def test_the_hidden_lists_are_not_read(tmp_path):
    histories = [opened(random_log(0), tmp_path / name) for name in ("whole", "unreadable", "absent")]
    _, unreadable, absent = (history.paths.target for history in histories)
    for name in HIDDEN:
        (unreadable / f"{name}.npy").unlink()
        (unreadable / f"{name}.npy").mkdir()  # whoever opens it gets an error
        (absent / f"{name}.npy").unlink()
    spaces = [values_of(space_of(history)) for history in histories]
    answers = [
        [as_lists(labels(snapshot, space_of(history))) for snapshot in snapshots(history, SNAPSHOTS)]
        for history in histories
    ]
    assert spaces == [spaces[0]] * 3
    assert answers == [answers[0]] * 3


def test_an_open_list_that_cannot_be_read_is_an_error(tmp_path):
    paths = write(random_log(0), tmp_path)
    (paths.target / "propensity_sku.npy").write_bytes(b"no array")
    with pytest.raises(UserError, match=r"propensity_sku\.npy: not a readable \.npy file"):
        open_targets(paths)


def test_only_relevant_clients_count(tmp_path):
    log = random_log(0)
    settings = LabelSettings(categories=9, skus=9, clusters=3)
    both = [opened(log, tmp_path / "all")]
    for kind in EVENT_TYPES:
        log.events[kind] = log.events[kind].filter(pl.col("client_id").is_in(RELEVANT.tolist()))
    both.append(opened(log, tmp_path / "relevant"))
    day, firsts = END - 9 * DAY, [FirstEvents(history) for history in both]
    one, other = (labels(Snapshot.at(day, END, first), space_of(first.history, settings)) for first in firsts)
    assert as_lists(one) == as_lists(other)


def test_values_ascend_and_purchases_are_there_once(history):
    data = ChallengeData(history, submit=True)
    history.relevant_clients.parent.mkdir(exist_ok=True)
    np.save(history.relevant_clients, data.seen())
    space = space_of(data, LabelSettings(categories=50, skus=50, clusters=3))
    for group in space.groups:
        assert (np.diff(group.values) > 0).all()
    assert max(len(group.values) for group in space.groups) > 20
    bought = relevant_purchases(data)
    assert len(bought) == len(bought.unique())
