"""Batches of clients on days against what blocks and labels give for each snapshot by itself."""

import pickle
from dataclasses import dataclass
from datetime import timedelta
from typing import ClassVar

import numpy as np
import polars as pl
import pytest

from tests.ubp.blocks.toy import Purchases
from tests.ubp.data.small_logs import START, random_log, write
from ubp.blocks.fitted import FittedBlock
from ubp.data.history import ChallengeData
from ubp.data.labels import LabelSettings, LabelSpace, labels
from ubp.data.schema import EventType
from ubp.data.snapshots import Snapshot, SnapshotSettings, snapshots
from ubp.data.targets import open_targets
from ubp.training.snapshot_source import (
    ADDED,
    BASKETS,
    BOUGHT,
    CENSORED,
    CHURN,
    CLIENTS,
    DAYS,
    LABELS,
    MaskSettings,
    SnapshotSource,
    prepare,
    view_name,
)

SETTINGS = SnapshotSettings(count=4, stride=6, horizon=9)
MASKS = MaskSettings(0.4, seed=5)
BLOCKS = {name: Purchases(np.array(weights, np.float32)) for name, weights in (("a", (1, 2, 3)), ("b", (3, 1, 0)))}


@dataclass
class Case:
    taken: list[Snapshot]
    space: LabelSpace
    source: SnapshotSource

    @property
    def rows(self) -> list[tuple[Snapshot, int]]:
        """Snapshot and client of each row."""
        return [(snapshot, client) for snapshot in self.taken for client in snapshot.clients.tolist()]


def opened(root, **settings):
    """A random log in which client 6 joins on the 40th day, and client 7 buys nothing before it."""
    log, is_early = random_log(3, **settings), pl.col("timestamp") < START + timedelta(days=40)
    for kind, table in log.events.items():
        late = [6, 7] if kind is EventType.PRODUCT_BUY else [6]
        log.events[kind] = table.filter(~(is_early & pl.col("client_id").is_in(late)))
    return ChallengeData(write(log, root), submit=True)


def asked(history) -> tuple[list[Snapshot], LabelSpace]:
    space = LabelSpace.of(history, open_targets(history.paths), LabelSettings(2, 3, 3), seed=0)
    return snapshots(history, SETTINGS), space


@pytest.fixture(scope="module")
def case(tmp_path_factory) -> Case:
    root = tmp_path_factory.mktemp("source")
    taken, space = asked(opened(root / "data"))
    return Case(taken, space, prepare(taken, space, BLOCKS, root / "parts", MASKS))


def vectors(block: FittedBlock, history: ChallengeData, clients: np.ndarray) -> list[list[float]]:
    """Client by client; zeros where the block has none."""
    known, found = block.vectors(history, clients)
    by_client = dict(zip(known.tolist(), found.tolist(), strict=True))
    return [by_client.get(client, [0.0, 0.0, 0.0]) for client in clients.tolist()]


def slow_rows(case: Case, snapshot: Snapshot) -> list[dict[str, list[float]]]:
    """The rows of a snapshot, from itself."""
    window, names = labels(snapshot, case.space), {}
    for name, block in BLOCKS.items():
        names[name] = vectors(block, snapshot.history, snapshot.clients)
        for view in range(2):
            masked = snapshot.history.masked(MASKS.share, MASKS.seed + view)
            names[view_name(name, view)] = vectors(block, masked, snapshot.clients)
    names[CLIENTS] = snapshot.clients.tolist()
    names[LABELS] = np.concatenate([matrix.toarray() for matrix in window.groups.values()], axis=1).tolist()
    for name in (CHURN, BOUGHT, ADDED, BASKETS, DAYS, CENSORED):
        names[name] = getattr(window, name).tolist()
    return [{name: values[place] for name, values in names.items()} for place in range(len(snapshot.clients))]


@pytest.fixture(scope="module")
def wanted_rows(case) -> list[dict[str, list[float]]]:
    return [row for snapshot in case.taken for row in slow_rows(case, snapshot)]


VIEWS = [CLIENTS, *(view_name(name, view) for name in BLOCKS for view in range(2))]


@pytest.mark.parametrize("training", [False, True])
def test_a_batch_is_what_encoding_and_labels_give_in_any_order_of_rows(case, wanted_rows, training):
    rng = np.random.default_rng(0)
    rows = np.concatenate([rng.permutation(len(case.rows)), [3, 3]])  # across snapshots, and one row twice
    batch = case.source.batch(rows, rng if training else None)
    wanted = [wanted_rows[row] for row in rows]
    names = set(wanted[0]) if training else set(wanted[0]) - set(VIEWS)
    assert set(batch) == names
    for name in names:
        np.testing.assert_array_equal(batch[name].numpy(), np.array([row[name] for row in wanted]), err_msg=name)
    assert batch[LABELS].sum() > 20
    assert batch[CHURN].isnan().any()
    assert str(batch[LABELS].dtype) == "torch.uint8"
    assert {str(batch[name].dtype) for name in names - {LABELS, CLIENTS}} == {"torch.float32"}
    assert not training or str(batch[CLIENTS].dtype) == "torch.int64"


def test_views_differ_from_each_other_and_from_what_they_view(case):
    batch = case.source.batch(np.arange(len(case.rows)), np.random.default_rng(0))
    whole, one, other = (batch[name] for name in ("a", "a:0", "a:1"))
    assert (one != other).any()
    assert (one[:, 0] <= whole[:, 0]).all()  # skus bought
    assert (one[:, 0] < whole[:, 0]).any()


def test_without_masks_there_are_no_views(case, tmp_path):
    source = prepare(case.taken, case.space, BLOCKS, tmp_path / "parts")
    assert not set(source.batch(np.arange(3), np.random.default_rng(0))) & set(VIEWS)
    assert not [file for file in (tmp_path / "parts").rglob("*.npy") if ":" in file.name]


def test_clients_that_a_block_does_not_know_have_zeros(case):
    without = [
        row
        for row, (snapshot, client) in enumerate(case.rows)
        if not len(BLOCKS["a"].vectors(snapshot.history, np.array([client]))[0])
    ]
    assert without
    assert (case.source.batch(np.array(without))["a"] == 0).all()
    assert (case.source.batch(np.setdiff1d(np.arange(len(case.rows)), without))["a"] != 0).any(dim=1).all()


def test_a_log_without_cart_additions_says_nothing_of_them(tmp_path):
    taken, space = asked(opened(tmp_path / "data", empty=(EventType.ADD_TO_CART,)))
    batch = prepare(taken, space, BLOCKS, tmp_path / "parts").batch(np.arange(4))
    assert batch[ADDED].isnan().all()
    assert not batch[BOUGHT].isnan().any()


def test_rows_of_a_snapshot_are_its_clients(case):
    rows = np.concatenate([case.source.rows_of(number) for number in range(len(case.taken))])
    assert rows.tolist() == list(range(len(case.rows)))
    assert [len(case.source.rows_of(number)) for number in range(4)] == [len(each.clients) for each in case.taken]
    assert case.source.lengths.tolist() == [1] * len(case.rows)
    assert case.source.clients.tolist() == [client for _, client in case.rows]
    assert len({len(each.clients) for each in case.taken}) > 1  # somebody joined between two snapshots


def test_counts_of_labels(case):
    rows = np.random.default_rng(1).permutation(len(case.rows))[:17]
    found = case.source.label_counts(rows)
    assert found.tolist() == case.source.batch(rows)[LABELS].sum(dim=0).tolist()
    assert found.sum() > 0
    assert case.source.label_counts(rows[:0]).tolist() == [0] * case.source.width


def test_a_sample_of_rows(case):
    rows = np.random.default_rng(1).permutation(len(case.rows))[:12]
    np.testing.assert_array_equal(case.source.sample("b", 12, 0, rows), case.source.batch(rows)["b"])
    drawn = case.source.sample("b", 5, 0, rows)
    assert drawn.shape == (5, 3)
    own = {tuple(row) for row in case.source.batch(rows)["b"].tolist()}
    assert {tuple(row) for row in drawn.tolist()} <= own
    np.testing.assert_array_equal(drawn, case.source.sample("b", 5, 0, rows))


class Killed(Purchases):
    """Fails when it is asked for the vectors of a day."""

    day = None

    def vectors(self, history, clients):
        if history.as_of == Killed.day:
            raise KeyboardInterrupt
        return super().vectors(history, clients)


def test_a_killed_preparation_goes_on_where_it_stopped(case, tmp_path, monkeypatch):
    blocks = {name: Killed(block.weights) for name, block in BLOCKS.items()}
    monkeypatch.setattr(Killed, "day", case.taken[2].day)
    with pytest.raises(KeyboardInterrupt):
        prepare(case.taken, case.space, blocks, tmp_path, MASKS)
    made = sorted(tmp_path.iterdir())
    assert len(made) == 2
    monkeypatch.setattr(Killed, "day", case.taken[0].day)  # would fail if it were made again
    source = prepare(case.taken, case.space, blocks, tmp_path, MASKS)
    rows = np.arange(len(case.rows))
    whole, wanted = (each.batch(rows, np.random.default_rng(0)) for each in (source, case.source))
    for name in wanted:
        np.testing.assert_array_equal(whole[name].numpy(), wanted[name].numpy())


def test_a_source_is_sent_to_another_process_without_its_open_files(case):
    rows = np.arange(5)
    wanted = case.source.batch(rows)
    sent = pickle.dumps(case.source)
    assert len(sent) < 2000
    again = pickle.loads(sent)  # noqa: S301
    assert again.batch(rows)["a"].tolist() == wanted["a"].tolist()
    assert again.rows_of(1).tolist() == case.source.rows_of(1).tolist()


def test_vectors_stay_on_the_disk(case, monkeypatch):
    loaded = []
    load = np.load

    def watched(file, mmap_mode=None, **settings):
        loaded.append((file.name, mmap_mode))
        return load(file, mmap_mode, **settings)

    monkeypatch.setattr(np, "load", watched)
    fresh = pickle.loads(pickle.dumps(case.source))  # noqa: S301
    fresh.batch(case.source.rows_of(1)[:2])
    assert {name for name, mode in loaded if mode is None} <= {"offsets.npy"}  # 8 bytes a client
    assert ("a.npy", "r") in loaded


class InParts(Purchases):
    """Notes how many clients it is asked for."""

    asked: ClassVar[list[int]] = []

    @property
    def at_a_time(self):
        return 3

    def vectors(self, history, clients):
        self.asked.append(len(clients))
        return super().vectors(history, clients)


def test_a_block_that_encodes_in_parts_is_asked_in_parts_for_the_same_files(case, tmp_path):
    parts = {name: InParts(block.weights) for name, block in BLOCKS.items()}
    source = prepare(case.taken, case.space, parts, tmp_path / "parts", MASKS)
    assert max(InParts.asked) == 3
    for mine, wanted in zip(source.folders, case.source.folders, strict=True):
        assert {file.name for file in mine.iterdir()} == {file.name for file in wanted.iterdir()}
        assert all(file.read_bytes() == (wanted / file.name).read_bytes() for file in mine.iterdir())


def test_files_are_those_of_numpy(case, tmp_path):
    snapshot, folder = case.taken[0], case.source.folders[0]
    np.save(tmp_path / "a.npy", np.array(vectors(BLOCKS["a"], snapshot.history, snapshot.clients), np.float32))
    assert (tmp_path / "a.npy").read_bytes() == (folder / "a.npy").read_bytes()
