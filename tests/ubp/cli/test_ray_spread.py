"""A command's own work as tasks of a cluster of two nodes: the same bytes, also where a worker is killed."""

import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from tests import tiny
from ubp.blocks.fitted import content_digest
from ubp.blocks.registry import block
from ubp.cli.ray_spread import RaySpread
from ubp.cli.ray_tasks import Resources, cluster
from ubp.data.history import ChallengeData
from ubp.data.paths import REPOSITORY, DataPaths
from ubp.io.errors import UserError

ONE = Resources(cpus=1, gpus=0, memory=0)
THREADS = ("OMP_NUM_THREADS", "POLARS_MAX_THREADS")
BLOCKS = ("stat_features", "numeric_features", "next_sku_128_4_4")


@dataclass(frozen=True)
class Piece:
    """Notes each time that it is done, and can be told to fail.

    Attributes:
        folder: of the notes.
        number: what it gives back.
        kills: ends its worker the first time.
        error: of the user's, that it raises.
    """

    folder: Path
    number: int
    kills: bool = False
    error: str = ""

    def __call__(self) -> tuple[int, list[str | None]]:
        times = len(list(self.folder.glob(f"{self.number}-*")))
        (self.folder / f"{self.number}-{times}").touch()
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

    def test_a_fault_of_the_users_is_said_as_it_is(self, tmp_path):
        with cluster(), pytest.raises(UserError) as refused:
            RaySpread(ONE)("counting", [Piece(tmp_path, 0), Piece(tmp_path, 1, error="no such day")])
        assert refused.value.messages == ["no such day"]

    def test_a_node_with_other_code_is_refused(self, tmp_path, monkeypatch):
        monkeypatch.setattr("ubp.cli.ray_spread.code_digest", lambda: "other")
        with cluster(), pytest.raises(UserError, match=r"has other code or other versions in .* than the driver"):
            RaySpread(ONE)("counting", [Piece(tmp_path, 0)])


def run(paths: DataPaths, script: str, *words: str) -> str:
    """A command's standard output; one thread, as a task has."""
    environment = os.environ | {"CHALLENGE_DATA_PATH": str(paths.root)} | dict.fromkeys(THREADS, "1")
    command = [sys.executable, script, *words]
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def fitted(make_history, tmp_path_factory) -> DataPaths:
    """The tiny history, where every second client is relevant, and some blocks fitted to it."""
    paths = make_history().write(tmp_path_factory.mktemp("spread") / "data")
    paths.input.mkdir()
    np.save(paths.relevant_clients, ChallengeData(paths, submit=True).seen()[::2])
    for name in BLOCKS:
        entry = block(name)
        run(paths, entry.command, *entry.overrides, *tiny.overrides(entry))
    return paths


@pytest.mark.full
@pytest.mark.usefixtures("nodes")
@pytest.mark.parametrize("name", ["stat_features", "next_sku_128_4_4"])
def test_encoded_on_two_nodes_the_file_has_the_bytes_of_one_process(fitted, tmp_path, name):
    here, there = tmp_path / "here.parquet", tmp_path / "there.parquet"
    words = [f"name={name}", "as_of=2023-01-20"]
    run(fitted, "scripts/encode.py", *words, f"out={here}")
    said = run(fitted, "scripts/encode.py", *words, f"out={there}", "engine=ray", "parts.shards=5")
    assert said.startswith(f"2 nodes, 3 cores, 0 GPUs; 5 parts of {name}")
    assert here.read_bytes() == there.read_bytes()
    assert not fitted.parts_of(there).exists()


@pytest.mark.full
@pytest.mark.usefixtures("nodes")
@pytest.mark.parametrize("name", ["stat_features", "numeric_features"])
def test_fitted_and_encoded_on_two_nodes_a_block_has_the_bytes_of_one_process(fitted, make_history, tmp_path, name):
    paths = make_history().write(tmp_path / "data")
    shutil.copytree(fitted.input, paths.input)
    said = run(paths, f"{name}/{name}.py", "engine=ray")
    assert said.startswith(f"2 nodes, 3 cores; 3 parts of {name}")
    assert paths.block(name, submit=True).read_bytes() == fitted.block(name, submit=True).read_bytes()
    assert content_digest(paths.model(name, submit=True)) == content_digest(fitted.model(name, submit=True))
