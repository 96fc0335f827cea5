"""What a model learns from, and what it is stopped and judged by: by time, in a short log by clients."""

from datetime import timedelta

import numpy as np
import pytest

from tests.ubp.data.small_logs import random_log, write
from ubp.data.history import ChallengeData
from ubp.data.snapshots import Snapshot, SnapshotSettings, snapshots
from ubp.io.errors import NoUsableEvents
from ubp.training.settings import TrainerSettings
from ubp.training.snapshot_parts import parts_by_time
from ubp.training.snapshot_source import SnapshotSource

TRAINER = TrainerSettings(max_epochs=1, patience=1, batch_size=8)
SIZES = np.array([10, 20, 30, 40])


class Growing(SnapshotSource):
    """Four snapshots without files: a new client each time before those of the day before."""

    sizes = SIZES

    @property
    def clients(self):
        return np.concatenate([np.arange(-size, 0) for size in self.sizes])


SOURCE = Growing((), (), 0, 0)


@pytest.fixture(scope="module")
def history(tmp_path_factory) -> ChallengeData:
    return ChallengeData(write(random_log(0), tmp_path_factory.mktemp("log") / "data"), submit=True)


def overlapping(history) -> list[Snapshot]:
    return snapshots(history, SnapshotSettings(count=4, stride=1, horizon=14))


def test_it_is_validated_by_the_newest_window_and_learns_from_those_before_it(history):
    taken = snapshots(history, SnapshotSettings(count=4, stride=7, horizon=10))
    parts = parts_by_time(SOURCE, taken, TRAINER, seed=0)
    learned = [number for number, snapshot in enumerate(taken) if snapshot.end <= taken[-1].day]
    assert learned == [0, 1]  # the third one's window reaches three days into the newest
    assert parts.train.tolist() == list(range(30))
    own = np.concatenate([parts.validation, parts.held_out])
    assert sorted(own.tolist()) == list(range(60, 100))
    assert len(parts.validation) == len(parts.held_out) == 20
    other = parts_by_time(SOURCE, taken, TRAINER, seed=1)
    assert parts.validation.tolist() != other.validation.tolist()
    assert (np.diff(parts.validation) > 0).all()
    assert parts.kind == "clients, in the newest window"


def test_a_window_that_ends_as_the_newest_begins_is_learned_from(history):
    days = [history.as_of - timedelta(days=days) for days in (28, 21, 20, 7)]
    newest, first_events = days[-1], snapshots(history, SnapshotSettings(count=1))[0].first_events
    ends = [newest, newest + timedelta(seconds=1), newest - timedelta(seconds=1), history.as_of]
    taken = [Snapshot.at(day, end, first_events) for day, end in zip(days, ends, strict=True)]
    parts = parts_by_time(SOURCE, taken, TRAINER, seed=0)
    assert parts.train.tolist() == [*range(10), *range(30, 60)]


def test_in_a_short_log_no_client_is_on_both_sides(history, caplog):
    caplog.set_level("INFO")
    parts = parts_by_time(SOURCE, overlapping(history), TRAINER, seed=0)
    rows = (parts.train, parts.validation, parts.held_out)
    assert sorted(np.concatenate(rows).tolist()) == list(range(100))
    assert all((np.diff(each) > 0).all() for each in rows)
    clients = [set(SOURCE.clients[each].tolist()) for each in rows]
    assert sum(map(len, clients)) == len(set.union(*clients)) == 40
    assert [len(each) for each in clients[1:]] == [max(1, round(n * share)) for n, share in _shares(40)]
    assert "no window ends before the newest one begins: validation by clients, drawn at random" in caplog.text
    assert parts.kind == "rows: clients on days, none of these clients learned from"
    drawn = {tuple(parts_by_time(SOURCE, overlapping(history), TRAINER, seed).held_out) for seed in range(5)}
    assert len(drawn) > 1


def _shares(clients: int) -> list[tuple[int, float]]:
    """Of validation and held-out clients: of how many, which share."""
    held_out = max(1, round(clients * TRAINER.held_out))
    return [(clients - held_out, TRAINER.validation), (clients, TRAINER.held_out)]


def test_too_few_clients_are_a_line(history, monkeypatch):
    monkeypatch.setattr(Growing, "sizes", np.array([2, 2, 2, 2]))
    with pytest.raises(NoUsableEvents, match="clients with events to learn from: 2"):
        parts_by_time(Growing((), (), 0, 0), overlapping(history), TRAINER, seed=0)
