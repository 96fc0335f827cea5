"""A command's own work as tasks of a cluster of two nodes: the same bytes, also where a worker is killed."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from numeric_features.wide import NumericFeaturesWideRecipe
from tests import tiny
from tests.one_process import run_in_one_process
from tests.ubp.cli.conftest import STORE
from ubp.blocks.embeddings import EmbeddingTable
from ubp.blocks.fitted import content_digest
from ubp.blocks.registry import block
from ubp.cli.config import config_of
from ubp.cli.ray_spread import RaySpread
from ubp.cli.ray_tasks import Resources, cluster
from ubp.data.history import ChallengeData
from ubp.data.paths import REPOSITORY, DataPaths
from ubp.data.shards import sharded
from ubp.io.errors import UserError
from ubp.io.spread import in_turn

ONE = Resources(cpus=1, gpus=0, memory=0)
THREADS = ("OMP_NUM_THREADS", "POLARS_MAX_THREADS")
WIDE = "numeric_features_wide"
BLOCKS = ("stat_features", "numeric_features", "next_sku_128_4_4")


@dataclass(frozen=True)
class Piece:
    """Notes each time that it is done, and can be told to fail.

    Attributes:
        folder: of the notes.
        number: what it gives back.
        kills: ends its worker the first time.
        error: of the user's, that it raises.
        waits_for: a file that must be there before it ends.
    """

    folder: Path
    number: int
    kills: bool = False
    error: str = ""
    waits_for: Path | None = None

    def __call__(self) -> tuple[int, list[str | None]]:
        import ray

        times = len(list(self.folder.glob(f"{self.number}-*")))
        (self.folder / f"{self.number}-{times}").write_text(ray.get_runtime_context().get_node_id())
        while self.waits_for and not self.waits_for.exists():
            time.sleep(0.05)
        if self.kills and not times:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.error:
            raise UserError(self.error)
        return self.number, [os.environ.get(name) for name in THREADS]


@pytest.mark.full
@pytest.mark.usefixtures("nodes")
class TestPieces:
    def test_what_each_gave_back_in_their_order_with_its_threads(self, tmp_path):
        with cluster():
            spread = RaySpread(ONE)
            found = spread("counting", [Piece(tmp_path, number) for number in range(7)])
        assert found == [(number, ["1", "1"]) for number in range(7)]
        assert {(cost.what, cost.megabytes > 10) for cost in spread.costs} == {("counting", True)}
        assert len(spread.costs) == 7

    def test_a_killed_worker_costs_its_task(self, tmp_path):
        with cluster():
            found = RaySpread(ONE)("counting", [Piece(tmp_path, number, kills=number == 2) for number in range(5)])
        assert [number for number, _ in found] == list(range(5))
        assert sorted(note.name for note in tmp_path.iterdir()) == ["0-0", "1-0", "2-0", "2-1", "3-0", "4-0"]

    def test_a_killed_node_costs_its_tasks(self, nodes, tmp_path):
        notes, go, lost = tmp_path / "notes", tmp_path / "go", nodes.second.node_id
        notes.mkdir()
        pieces = [Piece(notes, number, waits_for=go) for number in range(5)]
        with cluster(), ThreadPoolExecutor() as pool:
            running = pool.submit(RaySpread(ONE), "counting", pieces)
            wait_until(lambda: [note.read_text() for note in notes.iterdir()].count(lost) == 2)
            replace(nodes)
            go.touch()
            found = running.result()
        assert [number for number, _ in found] == list(range(5))
        again = [note.name for note in notes.glob("*-1")]
        assert len(list(notes.iterdir())) == 5 + len(again) == 5 + 2
        assert [(notes / f"{name[0]}-0").read_text() for name in again] == [lost, lost]

    def test_a_fault_of_the_users_is_said_as_it_is(self, tmp_path):
        with cluster(), pytest.raises(UserError) as refused:
            RaySpread(ONE)("counting", [Piece(tmp_path, 0), Piece(tmp_path, 1, error="no such day")])
        assert refused.value.messages == ["no such day"]

    def test_a_node_with_other_code_is_refused(self, tmp_path, monkeypatch):
        monkeypatch.setattr("ubp.cli.ray_spread.code_digest", lambda: "other")
        with cluster(), pytest.raises(UserError, match=r"has other code or other versions in .* than the driver"):
            RaySpread(ONE)("counting", [Piece(tmp_path, 0)])


def started(paths: DataPaths, script: str, *words: str) -> "subprocess.Popen[str]":
    """A command with one thread, as a task has."""
    environment = os.environ | {"CHALLENGE_DATA_PATH": str(paths.root)} | dict.fromkeys(THREADS, "1")
    command, pipe = [sys.executable, script, *words], subprocess.PIPE
    return subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdout=pipe, stderr=pipe, text=True)


def said(process: "subprocess.Popen[str]") -> str:
    """A command's standard output, when it has ended well."""
    out, err = process.communicate()
    assert process.returncode == 0, err
    return out


def run(paths: DataPaths, script: str, *words: str) -> str:
    """A command's standard output."""
    return said(started(paths, script, *words))


def wait_until(holds: Callable[[], object], seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


def replace(nodes: Any) -> None:
    """Kill the node with two cores, and start another one."""
    nodes.cluster.remove_node(nodes.second, allow_graceful=False)
    nodes.second = nodes.cluster.add_node(num_cpus=2, object_store_memory=STORE)


def does(node: Any, what: str) -> bool:
    """Whether a worker of a node is at work on something, by the name that Ray gives it then."""
    (raylet,) = node.all_processes["raylet"]
    workers = psutil.Process(raylet.process.pid).children()
    with suppress(psutil.NoSuchProcess):
        return any(" ".join(worker.cmdline()).startswith(f"ray::{what}") for worker in workers)
    return False


@pytest.fixture(scope="module")
def fitted(make_history, tmp_path_factory) -> DataPaths:
    """The tiny history, where every second client is relevant, and some blocks fitted to it."""
    paths = make_history().write(tmp_path_factory.mktemp("spread") / "data")
    paths.input.mkdir()
    np.save(paths.relevant_clients, ChallengeData(paths, submit=True).seen()[::2])
    lines = {name: [*block(name).line.split(), *tiny.overrides(block(name))] for name in BLOCKS}
    made = run_in_one_process(paths.root, lines, POLARS_MAX_THREADS="1")
    assert {done.code for done in made.values()} == {0}, made
    return paths


@pytest.mark.full
@pytest.mark.usefixtures("nodes")
@pytest.mark.parametrize("name", [pytest.param("stat_features", marks=pytest.mark.long), "next_sku_128_4_4"])
def test_encoded_on_two_nodes_the_file_has_the_bytes_of_one_process(fitted, tmp_path, name):
    here, there = tmp_path / "here.parquet", tmp_path / "there.parquet"
    words = [f"name={name}", "as_of=2023-01-20"]
    run(fitted, "scripts/encode.py", *words, f"out={here}")
    told = run(fitted, "scripts/encode.py", *words, f"out={there}", "engine=ray", "parts.shards=5")
    assert told.startswith(f"2 nodes, 3 cores, 0 GPUs; 5 parts of {name}")
    assert here.read_bytes() == there.read_bytes()
    assert not fitted.parts_of(there).exists()


@pytest.mark.full
@pytest.mark.usefixtures("nodes")
@pytest.mark.parametrize("name", [pytest.param("stat_features", marks=pytest.mark.long), "numeric_features"])
def test_fitted_and_encoded_on_two_nodes_a_block_has_the_bytes_of_one_process(fitted, make_history, tmp_path, name):
    paths = make_history().write(tmp_path / "data")
    shutil.copytree(fitted.input, paths.input)
    told = run(paths, f"{name}/{name}.py", "engine=ray")
    assert told.startswith(f"2 nodes, 3 cores; 3 parts of {name}")
    assert paths.block(name, submit=True).read_bytes() == fitted.block(name, submit=True).read_bytes()
    assert content_digest(paths.model(name, submit=True)) == content_digest(fitted.model(name, submit=True))


@pytest.mark.full
def test_a_node_killed_while_parts_are_encoded_changes_no_byte(nodes, fitted, tmp_path):
    here, there = tmp_path / "here.parquet", tmp_path / "there.parquet"
    words = ["name=numeric_features", "as_of=2023-01-20"]
    run(fitted, "scripts/encode.py", *words, f"out={here}")
    process = started(fitted, "scripts/encode.py", *words, f"out={there}", "engine=ray", "parts.shards=12")
    wait_until(lambda: does(nodes.second, "encoding numeric_features"))
    replace(nodes)
    said(process)
    assert here.read_bytes() == there.read_bytes()


@pytest.mark.full
@pytest.mark.long
def test_a_node_killed_while_a_block_is_fitted_changes_no_byte(nodes, fitted, make_history, tmp_path):
    paths = make_history().write(tmp_path / "data")
    shutil.copytree(fitted.input, paths.input)
    process = started(paths, "numeric_features/numeric_features.py", "engine=ray")
    wait_until(lambda: does(nodes.second, "working out clients' numbers"))
    replace(nodes)
    said(process)
    assert (
        paths.block("numeric_features", submit=True).read_bytes()
        == fitted.block("numeric_features", submit=True).read_bytes()
    )


@pytest.mark.full
@pytest.mark.usefixtures("nodes")
def test_wide_features_of_two_nodes_have_the_bits_of_as_many_shards_in_one_process(fitted, make_history, tmp_path):
    words = [*block(WIDE).overrides, *tiny.overrides(block(WIDE))]
    paths = make_history().write(tmp_path / "data")
    shutil.copytree(fitted.input, paths.input)
    assert run(paths, "numeric_features/numeric_features.py", *words, "engine=ray").startswith("2 nodes, 3 cores; 3")
    found = EmbeddingTable.read(paths.block(WIDE, submit=True))
    assert found.lineage["report"]["shards"] == 3
    data = ChallengeData(paths, submit=True)
    config = config_of(block(WIDE), [*tiny.overrides(block(WIDE)), f"data_path={paths.root}"])
    views = [data.of_shard(shard) for shard in sharded(data, 3, in_turn)]
    here = NumericFeaturesWideRecipe.of(config).fit_by_shards(data, views, 0, in_turn, tmp_path / "fit").block
    wanted = here.encode(data, data.relevant_clients)
    assert found.client_ids.tolist() == wanted.client_ids.tolist()
    np.testing.assert_allclose(found.vectors, wanted.vectors, atol=1e-5)
