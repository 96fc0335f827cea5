"""What every block of the registry promises: one test over all of them, in this process, on tiny logs of all shapes.

A log leaves out the blocks whose events it lacks. Among the fast tests are a log of many events a client, without
language models, and two of few, on which networks, and what reads them, do not run there; among the full ones the
rest of these, and a log with event types of its own. The challenge's shape, and more of the language models, are among
the long ones.
"""

import copy
import importlib
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache
from pathlib import Path

import numpy as np
import polars as pl
import pytest

import ubp
from tests import tiny
from tests.conftest import History
from ubp.blocks import registry
from ubp.blocks.embeddings import EmbeddingTable
from ubp.blocks.fitted import FittedBlock
from ubp.blocks.occlusion import ClientEvents, occluded
from ubp.cli.config import composed
from ubp.data import schema
from ubp.data.history import ChallengeData
from ubp.data.paths import CONFIGS
from ubp.data.schema import EventType
from ubp.data.targets import OPEN_COLUMNS
from ubp.io.stage import AlreadyDone
from ubp.training.answers import AnsweringBlock

LEFT_OUT = {"purchases_only": {"als_64_visits_relevant", "next_url_192_6_4", "search_llm"}}
ANSWERING = {"dcn", "sequential_encoder"}
HELD_OUT = 6  # every sixth client is not in training


def cases() -> Iterator[pytest.ParameterSet]:
    """Each log with each block that can be made of it."""
    for log in tiny.LOGS:
        for entry in registry.blocks():
            slow = log != "tiny" and (log == tiny.OWN_TYPES or entry.gpu or bool(entry.after))
            slow |= entry.folder in ("LLM", "stacker")
            again = log in ("default", "dense") or (entry.folder == "LLM" and log not in ("tiny", tiny.OWN_TYPES))
            marks = [pytest.mark.full] * slow + [pytest.mark.long] * again
            if entry.name not in LEFT_OUT.get(log, ()):
                yield pytest.param((log, entry.name), marks=marks, id=f"{log}-{entry.name}")


@dataclass(frozen=True)
class Log:
    """A tiny log with all events, and the day that blocks are fitted as of: ten before its last purchase."""

    name: str
    history: ChallengeData
    day: datetime


@dataclass(frozen=True)
class Fitted:
    """A block fitted as of the log's day to most clients, and the log."""

    block: FittedBlock
    table: EmbeddingTable
    log: Log
    unknown: np.ndarray

    @property
    def history(self) -> ChallengeData:
        return self.log.history


@pytest.fixture(scope="module")
def logs(tmp_path_factory) -> Callable[[str], Log]:
    """A log by its name, written and opened once."""

    @cache
    def opened(name: str) -> Log:
        log = tiny.log(name)
        clients = pl.concat(table[schema.CLIENT_ID] for table in log.events.values()).unique().sort().to_numpy()
        history = written(log, tmp_path_factory.mktemp(name) / "data", np.delete(clients, np.s_[::HELD_OUT]))
        midnight = history.last(EventType.PRODUCT_BUY).replace(hour=0, minute=0, second=0)
        return Log(name, history, midnight - timedelta(days=10))

    return opened


def written(log: History, root: Path, training: np.ndarray) -> ChallengeData:
    """The log on disk, with the clients that blocks are fitted to."""
    paths = log.write(root)
    paths.relevant_clients.parent.mkdir()
    np.save(paths.relevant_clients, training)
    return ubp.open_history(root)


def make_after(entry: registry.Entry, log: Log) -> None:
    """Run the stages whose results the block reads, and those that these read, as their commands would."""
    for stage in registry.with_what_they_read([entry.name]):
        if stage != entry:
            path, day = f"data_path={log.history.paths.root}", f"as_of={log.day.isoformat()}"
            fast = tiny.overrides(stage) if stage.is_block else ()
            words = [path, day, "preset=demo", *stage.settings, *fast]
            config = composed(CONFIGS / stage.folder, stage.config_name, words)
            module = importlib.import_module(stage.command.removesuffix(".py").replace("/", "."))
            with suppress(AlreadyDone):  # for another block
                module.main.__wrapped__(config)


@contextmanager
def unreadable_lists(log: Log) -> Iterator[None]:
    """Whoever reads an open task's list meanwhile fails: what the registry does not say of a block is not so."""
    target = log.history.paths.target
    for column in OPEN_COLUMNS:
        (target / f"propensity_{column}.npy").mkdir(parents=True)
    try:
        yield
    finally:
        shutil.rmtree(target)


@pytest.fixture(scope="module")
def fitted(logs) -> Callable[[str, str], Fitted]:
    """A block by the names of its log and its own, fitted once."""

    @cache
    def fit(log_name: str, name: str) -> Fitted:
        log, entry = logs(log_name), registry.block(name)
        make_after(entry, log)
        known = log.history.before(log.day)
        with nullcontext() if entry.reads_targets else unreadable_lists(log):
            block = ubp.fit(name, known, *tiny.overrides(entry), f"as_of={log.day.isoformat()}")
        unknown = np.setdiff1d(log.history.seen(), log.history.relevant_clients)
        return Fitted(block, block.encode(known), log, unknown)

    return fit


@pytest.fixture(params=cases())
def made(request, fitted) -> Fitted:
    return fitted(*request.param)


@pytest.fixture(params=[case for case in cases() if case.values[0][1] in ANSWERING])
def answering(request, fitted) -> Fitted:
    return fitted(*request.param)


@pytest.mark.parametrize("name", tiny.LOGS)
def test_a_log_leaves_out_the_blocks_whose_events_it_lacks(name, logs):
    made, left_out = registry.can_be_made(logs(name).history.paths, submit=True, as_of=logs(name).day)
    assert {entry.name for entry in registry.blocks()} & left_out.keys() == LEFT_OUT.get(name, set())
    assert {entry.name for entry in made} | left_out.keys() == {entry.name for entry in registry.entries()}


def of(table: EmbeddingTable, clients: np.ndarray) -> np.ndarray:
    return table.vectors[np.isin(table.client_ids, clients)]


def test_vectors_are_finite_float32_and_each_client_is_there_once(made):
    assert made.table.vectors.dtype == np.float32
    assert np.isfinite(made.table.vectors).all()
    assert (np.diff(made.table.client_ids) > 0).all()
    assert np.isin(made.table.client_ids, made.history.before(made.log.day).seen()).all()
    assert len(made.table) > 30
    assert len(np.unique(made.table.vectors, axis=0)) > 20


def test_a_vector_does_not_depend_on_the_other_clients(made):
    some = made.table.client_ids[::3]
    alone = made.block.encode(made.history, some[::-1], made.log.day)
    assert alone.client_ids.tolist() == some.tolist()
    np.testing.assert_allclose(alone.vectors, of(made.table, some), rtol=2e-4, atol=2e-5)


def test_saved_and_loaded_it_gives_the_same_bits(made, tmp_path):
    ubp.save(made.block, tmp_path / "block", {"name": "x"})
    again = ubp.load(tmp_path / "block").encode(made.history, as_of=made.log.day)
    assert again.client_ids.tobytes() == made.table.client_ids.tobytes()
    assert again.vectors.tobytes() == made.table.vectors.tobytes()
    assert not list(tmp_path.rglob("*.pkl")) + list(tmp_path.rglob("*.pt")) + list(tmp_path.rglob("*.ckpt"))


def test_a_later_day_differs_and_an_earlier_one_too(made):
    for days in (9, -9):
        other = made.block.encode(made.history, made.table.client_ids, made.log.day + timedelta(days=days))
        both = np.intersect1d(other.client_ids, made.table.client_ids)
        assert len(both) > 20
        assert (of(other, both) != of(made.table, both)).any()


def test_clients_that_were_not_in_training_are_encoded(made):
    found = made.block.encode(made.history, made.unknown, made.log.day)
    assert len(found) >= 5
    np.testing.assert_allclose(found.vectors, of(made.table, made.unknown), rtol=2e-4, atol=2e-5)


def test_a_client_without_events_has_no_row(made):
    assert len(made.block.encode(made.history, [-5], made.log.day)) == 0


def test_events_after_the_day_are_not_read(made, tmp_path):
    """Whatever happens from the day on, the vectors as of the day are the same bits."""
    changed = tiny.log(made.log.name)
    rng = np.random.default_rng(7)
    for kind, table in changed.events.items():
        later = pl.col(schema.TIMESTAMP) >= made.log.day
        kept, moved = table.filter(~later), table.filter(later)
        shuffled = moved.with_columns(moved[schema.CLIENT_ID].sample(fraction=1, shuffle=True, seed=3))
        changed.events[kind] = pl.concat([kept, shuffled[: rng.integers(1, max(len(shuffled), 2))]])
    history = written(changed, tmp_path / "data", made.history.relevant_clients)
    other = made.block.encode(history, as_of=made.log.day)
    assert other.client_ids.tobytes() == made.table.client_ids.tobytes()
    assert other.vectors.tobytes() == made.table.vectors.tobytes()


def test_an_undisturbed_copy_has_the_clients_vector(made):
    """Of a client who gets another id, in a history without most of the others: so occlusion moves nothing else."""
    history = made.history.before(made.log.day)
    client = int(made.table.client_ids[3])
    events = ClientEvents.of(history, client)
    found = occluded(made.block, history, events, events.parts(1, 0), made.table.client_ids[::9])
    np.testing.assert_allclose(found.own, of(made.table, np.array([client]))[0], rtol=2e-4, atol=2e-5)
    np.testing.assert_allclose(found.others, of(made.table, found.other_ids), rtol=2e-4, atol=2e-5)


def test_encoding_changes_nothing(made):
    before = copy.deepcopy(made.block.state())
    made.block.encode(made.history, made.table.client_ids[:5], made.log.day)
    after = made.block.state()
    assert before.settings == after.settings
    assert all(np.array_equal(before.arrays[name], after.arrays[name]) for name in before.arrays)


def test_answers_are_about_the_clients_that_have_vectors_whoever_else_is_asked_about(answering):
    history, block = answering.history.before(answering.log.day), answering.block
    assert isinstance(block, AnsweringBlock)
    clients, answers = block.answers(history, answering.table.client_ids, block.asked)
    assert clients.tolist() == answering.table.client_ids.tolist()
    assert np.isfinite(answers).all()
    assert len(np.unique(answers, axis=0)) > 20
    some = clients[::3]
    _, alone = block.answers(history, some, block.asked)
    np.testing.assert_allclose(alone, answers[::3], rtol=2e-3, atol=2e-4)
    churn = block.answers(history, some, ["churn"])[1]
    assert churn.shape == (len(some), 1)
