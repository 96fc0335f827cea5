"""Labels against a slow loop over clients; the rules by which targets are made."""

import shutil
from datetime import datetime
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ubp.data.history import ChallengeData
from ubp.data.paths import DataPaths
from ubp.data.schema import EVENT_TYPES, EventType
from ubp.data.split import SplitDates, write_split
from ubp.data.targets import TASKS, TargetRules, Targets, Task, load_targets, make_targets
from ubp.evaluation.tasks import GroundTruth, labels, load_window
from ubp.io.errors import UserError

BUY = EventType.PRODUCT_BUY
OF = {task.name: task for task in TASKS}


def slow_labels(task: Task, clients: list[int], window: list[dict], targets: list[int]) -> list[list[int]]:
    rows = []
    for client in clients:
        bought = [purchase for purchase in window if purchase["client_id"] == client]
        if task.column is None:
            rows.append([0 if bought else 1])
        else:
            rows.append([int(any(purchase[task.column] == target for purchase in bought)) for target in targets])
    return rows


small = st.integers(0, 6)
purchases = st.lists(st.fixed_dictionaries(dict.fromkeys(("client_id", "sku", "category", "price"), small)))


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(TASKS),
    st.lists(st.integers(0, 9), unique=True, min_size=1),
    purchases,
    st.lists(st.integers(0, 9), unique=True, min_size=1),
)
def test_labels_are_those_of_a_loop_over_clients(task, clients, window, values):
    frame = pl.DataFrame(window, schema=dict.fromkeys(("client_id", "sku", "category", "price"), pl.Int64))
    targets = Targets(np.array(values), np.ones(len(values))) if task.is_propensity else None
    found = labels(task, np.array(clients), frame, targets)
    assert found.dtype == np.uint8
    assert found.tolist() == slow_labels(task, clients, window, values)


def test_the_six_tasks():
    assert [task.name for task in TASKS] == [
        "churn", "conversion", "propensity_category", "propensity_sku", "propensity_new_sku", "propensity_price",
    ]  # fmt: skip
    assert [task.name for task in TASKS if task.active_only] == ["churn"]
    assert {task.name: task.column for task in TASKS if task.is_propensity} == {
        "propensity_category": "category", "propensity_sku": "sku", "propensity_new_sku": "sku",
        "propensity_price": "price",
    }  # fmt: skip


# By hand: (client, sku, day); the history ends at TRAIN, the windows are 14 days each, End is the last purchase.
TRAIN, VALIDATION, END = datetime(2022, 11, 12), datetime(2022, 11, 26), datetime(2022, 12, 9, 12)
PURCHASES = [
    (1, 10, datetime(2022, 8, 1)),
    (2, 10, datetime(2022, 8, 2)),
    (3, 10, datetime(2022, 8, 2)),
    (1, 20, datetime(2022, 11, 1)),
    (2, 20, datetime(2022, 11, 2)),
    (4, 30, datetime(2022, 9, 17)),  # the 56th day before the train window
    (4, 30, datetime(2022, 9, 18)),
    (4, 40, datetime(2022, 9, 16, 23, 59, 59)),  # the second before: not new
    (1, 20, TRAIN),
    (1, 30, datetime(2022, 11, 13)),
    (3, 30, datetime(2022, 11, 14)),
    (3, 40, datetime(2022, 11, 14)),
    (2, 20, VALIDATION),
    (2, 30, datetime(2022, 12, 1)),
    (5, 50, END),
    (9, 10, datetime(2022, 8, 1)),
    (9, 10, TRAIN),
    (9, 10, VALIDATION),
]
CATEGORY_OF = {10: 1, 20: 2, 30: 3, 40: 1, 50: 2}


@pytest.fixture
def by_hand(make_history, tmp_path) -> DataPaths:
    history = make_history(empty=list(EVENT_TYPES))
    clients, skus, times = zip(*PURCHASES, strict=True)
    history.events[BUY] = pl.DataFrame({"client_id": clients, "timestamp": times, "sku": skus})
    history.events[EventType.PAGE_VISIT] = pl.DataFrame({"client_id": [6], "timestamp": [TRAIN], "url": [1]})
    history.properties = pl.DataFrame(
        {
            "sku": list(CATEGORY_OF),
            "category": list(CATEGORY_OF.values()),
            "price": [7, 7, 8, 9, 9],
            "name": history.properties["name"][:5],
        }
    )
    paths = history.write(tmp_path)
    paths.input.mkdir()
    np.save(paths.relevant_clients, np.array([1, 2, 3, 4, 5, 6]))  # client 9 is none of them
    return paths


def made(paths: DataPaths, rules: TargetRules | None = None, overwrite: bool = False) -> list[str]:
    data = ChallengeData(paths, True)
    return [path.name for path in make_targets(data, SplitDates.of(data), rules or TargetRules(), overwrite)]


def test_targets_by_hand(by_hand):
    made(by_hand)
    assert np.load(by_hand.active_clients).tolist() == [1, 2, 3, 4]
    # Bought in both windows first (20, 30), then by relevant buyers in the history (10: three), then by value.
    found = {name: load_targets(by_hand, OF[name]) for name in OF if OF[name].is_propensity}
    assert found["propensity_sku"].values.tolist() == [20, 30, 10, 40, 50]
    assert found["propensity_sku"].popularity.tolist() == [3, 4, 3, 2, 0]
    # New: first sold at most 56 days before the train window; ranked by buyers in the windows.
    assert found["propensity_new_sku"].values.tolist() == [30, 20, 50]
    assert found["propensity_new_sku"].popularity.tolist() == [4, 3, 0]
    assert found["propensity_category"].values.tolist() == [2, 3, 1]
    assert found["propensity_category"].popularity.tolist() == [3, 4, 5]
    assert found["propensity_price"].values.tolist() == [7, 8, 9]


def test_fewer_targets_where_asked(by_hand):
    made(by_hand, TargetRules(per_task=2, new_sku_days=20))
    assert load_targets(by_hand, OF["propensity_sku"]).values.tolist() == [20, 30]
    assert load_targets(by_hand, OF["propensity_new_sku"]).values.tolist() == [20, 50]


def test_relevant_clients_are_all_that_occur_or_a_seeded_draw(by_hand):
    by_hand.relevant_clients.unlink()
    made(by_hand)
    assert np.load(by_hand.relevant_clients).tolist() == [1, 2, 3, 4, 5, 6, 9]
    draws = []
    for seed in (0, 0, 1, 2, 3):
        made(by_hand, TargetRules(relevant_clients=3, seed=seed), overwrite=True)
        draws.append(np.load(by_hand.relevant_clients))
        assert set(np.load(by_hand.active_clients)) <= set(draws[-1])
        assert np.all(np.diff(draws[-1]) > 0)
        assert draws[-1].dtype == np.int64
    assert draws[0].tolist() == draws[1].tolist()
    assert len({tuple(draw) for draw in draws}) > 1
    made(by_hand, TargetRules(relevant_clients=100), overwrite=True)
    assert len(np.load(by_hand.relevant_clients)) == 7


def test_files_that_are_there_stay_unless_overwrite(by_hand):
    by_hand.target.mkdir()
    np.save(by_hand.target / "propensity_sku.npy", np.array([10]))
    np.save(by_hand.target / "popularity_propensity_sku.npy", np.array([0.5]))
    np.save(by_hand.active_clients, np.array([1]))
    written = made(by_hand)
    assert len(written) == 6
    assert not {"propensity_sku.npy", "active_clients.npy", "relevant_clients.npy"} & set(written)
    assert load_targets(by_hand, OF["propensity_sku"]).values.tolist() == [10]
    assert np.load(by_hand.active_clients).tolist() == [1]
    assert made(by_hand) == []
    assert len(made(by_hand, overwrite=True)) == 10
    # Now client 9 is relevant too, who bought sku 10 in both windows.
    assert load_targets(by_hand, OF["propensity_sku"]).values.tolist() == [10, 20, 30, 40, 50]


def test_of_two_files_of_a_task_one_alone_is_made_again(by_hand):
    made(by_hand)
    (by_hand.target / "popularity_propensity_sku.npy").unlink()
    assert made(by_hand) == ["propensity_sku.npy", "popularity_propensity_sku.npy"]


def test_fewer_targets_than_asked_for_is_a_line_and_as_many_is_none(by_hand, caplog):
    made(by_hand, TargetRules(per_task=2))
    assert "targets, the log has no more" not in caplog.text
    made(by_hand, overwrite=True)
    assert "propensity_price: only" in caplog.text


def test_the_ground_truth_of_the_split(by_hand):
    made(by_hand)
    data = ChallengeData(by_hand, True)
    write_split(data, SplitDates.of(data))
    truth = GroundTruth.load(by_hand)
    clients = np.array([6, 5, 4, 3, 2, 1])
    assert truth.takes_part(OF["churn"], clients).tolist() == [False, False, True, True, True, True]
    assert truth.takes_part(OF["propensity_sku"], clients).all()
    for name in ("conversion", "propensity_category"):
        found = truth.labels(OF[name], clients)
        targets = truth.targets.get(name)
        for label, window in zip(found, ("train", "validation"), strict=True):
            wanted = labels(OF[name], clients, load_window(by_hand, f"{window}_target.parquet"), targets)
            assert label.tolist() == wanted.tolist()
    assert truth.lacking(clients) == {}
    assert list(truth.lacking(clients[:2])) == ["churn"]
    truth.require_purchases(clients)
    with pytest.raises(UserError, match=r"_target\.parquet: no purchase by any of the 1 clients"):
        truth.require_purchases(clients[:1])


def truth_of(bought: list[tuple[int, int]], active: list[int], targets: dict[str, list[int]]) -> GroundTruth:
    """Each purchase of the validation window a client and a value of all three columns; the train window alike."""
    window = pl.DataFrame(bought, schema=dict.fromkeys(("client_id", "sku"), pl.Int64), orient="row")
    window = window.with_columns(category="sku", price="sku")
    asked = {name: Targets(np.array(values, np.int64), np.ones(len(values))) for name, values in targets.items()}
    return GroundTruth(DataPaths(Path("/data")), window, window, np.array(active, np.int64), asked)


def test_what_counts_as_zero_is_said():
    clients = np.array([1, 2, 3])
    targets = {name: [5] for name in OF if OF[name].is_propensity} | {"propensity_sku": [5, 6, 7, 8]}
    some, last = [(1, 5), (2, 5), (2, 6)], "have no buyer in the validation window; each counts as an AUROC of 0"
    assert truth_of(some, [1, 2, 3], targets).counted_as_zero(clients) == [f"propensity_sku: 2 of 4 targets {last}"]
    alike = "bought in the validation window; it counts as an AUROC of 0"
    everyone = truth_of([*some, (3, 5), (1, 7), (1, 8)], [1, 2], targets).counted_as_zero(clients)
    assert everyone == [f"churn: all of 2 clients {alike}", f"conversion: all of 3 clients {alike}"]
    nobody = truth_of([(9, 5)], [3], targets).counted_as_zero(clients)
    assert nobody[:2] == [f"churn: none of 1 clients {alike}", f"conversion: none of 3 clients {alike}"]
    assert "propensity_sku: 4 of 4 targets" in nobody[3]
    assert truth_of(some, [], targets).counted_as_zero(clients)[:1] == [f"propensity_sku: 2 of 4 targets {last}"]


def test_what_cannot_be_scored_is_said():
    clients = np.array([1, 2, 3])
    targets = {name: [5] for name in OF if OF[name].is_propensity} | {"propensity_price": []}
    why = truth_of([(1, 5)], [7], targets).lacking(clients)
    assert why == {
        "churn": "churn is not scored: none of the 3 clients is in /data/raw/target/active_clients.npy",
        "propensity_price": "propensity_price is not scored: /data/raw/target/propensity_price.npy has no targets",
    }
    assert "conversion is not scored: there are no clients" in truth_of([], [7], targets).lacking(clients[:0]).values()


def test_a_split_without_active_clients_is_read(by_hand, tmp_path):
    made(by_hand)
    data = ChallengeData(by_hand, True)
    write_split(data, SplitDates.of(data))
    np.save(by_hand.active_clients, np.array([], np.int64))
    assert len(GroundTruth.load(by_hand).active) == 0
    brackets = DataPaths(tmp_path / "log[1]")
    shutil.copytree(by_hand.root, brackets.root)
    assert len(load_window(brackets, "train_target.parquet")) == len(load_window(by_hand, "train_target.parquet")) > 0


def test_a_window_that_cannot_be_read_is_one_line(by_hand):
    by_hand.target.mkdir(exist_ok=True)
    file = by_hand.target / "train_target.parquet"
    file.write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"train_target\.parquet: unusable \(.*split\.py overwrite=True") as caught:
        load_window(by_hand, file.name)
    assert len(caught.value.messages) == 1
    pl.DataFrame({"client_id": [1], "sku": [2], "category": [3]}).write_parquet(file)
    with pytest.raises(UserError, match=r"unusable .*price"):
        load_window(by_hand, file.name)


def test_window_missing_names_the_split(tmp_path):
    with pytest.raises(UserError, match=r"train_target.parquet: file missing.*scripts/split.py"):
        load_window(DataPaths(tmp_path), "train_target.parquet")


def test_labels_of_the_split(by_hand):
    made(by_hand)
    data = ChallengeData(by_hand, True)
    write_split(data, SplitDates.of(data))
    clients = np.array([6, 5, 4, 3, 2, 1])
    train, validation = (load_window(by_hand, f"{name}_target.parquet") for name in ("train", "validation"))
    assert labels(OF["conversion"], clients, train, None).ravel().tolist() == [1, 1, 1, 0, 1, 0]
    assert labels(OF["conversion"], clients, validation, None).ravel().tolist() == [1, 0, 1, 1, 0, 1]
    targets = load_targets(by_hand, OF["propensity_category"])
    assert targets.values.tolist() == [2, 3, 1]
    assert labels(OF["propensity_category"], clients, train, targets).tolist() == [
        [0, 0, 0], [0, 0, 0], [0, 0, 0], [0, 1, 1], [0, 0, 0], [1, 1, 0],
    ]  # fmt: skip


def test_lists_of_clients_ascend(local):
    for file in (local.paths.relevant_clients, local.paths.active_clients):
        clients = np.load(file)
        assert len(clients) > 20
        assert (np.diff(clients) > 0).all()
