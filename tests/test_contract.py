"""What every block of the registry promises: one test over all of them, in this process, on the tiny history."""

import copy
import importlib
from dataclasses import dataclass
from datetime import timedelta

import numpy as np
import polars as pl
import pytest

import ubp
from tests import tiny
from tests.conftest import END, synthetic
from ubp.blocks import registry
from ubp.blocks.embeddings import EmbeddingTable
from ubp.blocks.fitted import FittedBlock
from ubp.cli.config import composed
from ubp.data import schema
from ubp.data.history import ChallengeData
from ubp.data.paths import CONFIGS
from ubp.data.schema import EventType

FIT_DAY = END.replace(hour=0, minute=0, second=0) - timedelta(days=10)
ABSOLUTE_DAYS: set[str] = set()
BLOCKS = [entry.name for entry in registry.blocks()]


@dataclass(frozen=True)
class Fitted:
    """A block fitted as of `FIT_DAY` to all clients but the last ten, and the history with all events."""

    block: FittedBlock
    table: EmbeddingTable
    history: ChallengeData
    training: np.ndarray
    unknown: np.ndarray


@pytest.fixture(scope="module")
def history(tmp_path_factory) -> ChallengeData:
    paths = synthetic().write(tmp_path_factory.mktemp("contract") / "data")
    clients = pl.concat(pl.read_parquet(paths.raw / kind.file_name, columns=[schema.CLIENT_ID]) for kind in EventType)
    paths.relevant_clients.parent.mkdir()
    np.save(paths.relevant_clients, clients[schema.CLIENT_ID].unique().sort().to_numpy()[:-10])
    return ubp.open_history(paths.root)


def make_after(entry: registry.Entry, history: ChallengeData) -> None:
    """Run the stages whose results the block reads, as their commands would."""
    for stage in registry.entries():
        if stage.name in entry.after:
            words = [f"data_path={history.paths.root}", f"as_of={FIT_DAY.isoformat()}", "preset=demo", *stage.settings]
            config = composed(CONFIGS / stage.folder, stage.config_name, words)
            module = importlib.import_module(stage.command.removesuffix(".py").replace("/", "."))
            module.main.__wrapped__(config)


@pytest.fixture(scope="module")
def fitted() -> dict[str, Fitted]:
    """Blocks that were fitted before, by name."""
    return {}


@pytest.fixture(params=BLOCKS)
def made(request, history, fitted) -> Fitted:
    name = request.param
    if name not in fitted:
        entry, known = registry.block(name), history.before(FIT_DAY)
        make_after(entry, history)
        words = (*tiny.overrides(entry), f"as_of={FIT_DAY.isoformat()}")
        block = ubp.fit(name, known, *words)
        training = history.relevant_clients
        unknown = np.setdiff1d(history.seen(), training)
        fitted[name] = Fitted(block, block.encode(known), history, training, unknown)
    return fitted[name]


def of(table: EmbeddingTable, clients: np.ndarray) -> np.ndarray:
    return table.vectors[np.isin(table.client_ids, clients)]


def test_vectors_are_finite_float32_and_each_client_is_there_once(made):
    assert made.table.vectors.dtype == np.float32
    assert np.isfinite(made.table.vectors).all()
    assert (np.diff(made.table.client_ids) > 0).all()
    assert np.isin(made.table.client_ids, made.history.before(FIT_DAY).seen()).all()
    assert len(made.table) > 30
    assert len(np.unique(made.table.vectors, axis=0)) > 20


def test_a_vector_does_not_depend_on_the_other_clients(made):
    some = made.table.client_ids[::3]
    alone = made.block.encode(made.history, some[::-1], FIT_DAY)
    assert alone.client_ids.tolist() == some.tolist()
    np.testing.assert_allclose(alone.vectors, of(made.table, some), rtol=2e-4, atol=2e-5)


def test_saved_and_loaded_it_gives_the_same_bits(made, tmp_path):
    ubp.save(made.block, tmp_path / "block", {"name": "x"})
    again = ubp.load(tmp_path / "block").encode(made.history, as_of=FIT_DAY)
    assert again.client_ids.tobytes() == made.table.client_ids.tobytes()
    assert again.vectors.tobytes() == made.table.vectors.tobytes()
    assert not list(tmp_path.rglob("*.pkl")) + list(tmp_path.rglob("*.pt")) + list(tmp_path.rglob("*.ckpt"))


def test_a_later_day_differs_and_an_earlier_one_too(made):
    for days in (9, -9):
        other = made.block.encode(made.history, made.table.client_ids, FIT_DAY + timedelta(days=days))
        both = np.intersect1d(other.client_ids, made.table.client_ids)
        assert len(both) > 20
        assert (of(other, both) != of(made.table, both)).any()


def test_clients_that_were_not_in_training_are_encoded(made):
    found = made.block.encode(made.history, made.unknown, FIT_DAY)
    assert len(found) >= 5
    np.testing.assert_allclose(found.vectors, of(made.table, made.unknown), rtol=2e-4, atol=2e-5)


def test_a_client_without_events_has_no_row(made):
    assert len(made.block.encode(made.history, [-5], FIT_DAY)) == 0


def test_events_after_the_day_are_not_read(made, tmp_path):
    """Whatever happens from the day on, the vectors as of the day are the same bits."""
    changed = synthetic()
    rng = np.random.default_rng(7)
    for kind, table in changed.events.items():
        later = pl.col(schema.TIMESTAMP) >= FIT_DAY
        kept, moved = table.filter(~later), table.filter(later)
        shuffled = moved.with_columns(moved[schema.CLIENT_ID].sample(fraction=1, shuffle=True, seed=3))
        changed.events[kind] = pl.concat([kept, shuffled[: rng.integers(1, max(len(shuffled), 2))]])
    paths = changed.write(tmp_path / "data")
    paths.relevant_clients.parent.mkdir()
    np.save(paths.relevant_clients, made.training)
    other = made.block.encode(ubp.open_history(paths.root), as_of=FIT_DAY)
    assert other.client_ids.tobytes() == made.table.client_ids.tobytes()
    assert other.vectors.tobytes() == made.table.vectors.tobytes()


def test_encoding_changes_nothing(made):
    before = copy.deepcopy(made.block.state())
    made.block.encode(made.history, made.table.client_ids[:5], FIT_DAY)
    after = made.block.state()
    assert before.settings == after.settings
    assert all(np.array_equal(before.arrays[name], after.arrays[name]) for name in before.arrays)
