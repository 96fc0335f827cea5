"""Commands on a Ray cluster of two nodes on this machine: the same tables, also where a worker or a node is killed."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from tests import tiny
from tests.conftest import History
from tests.one_process import run_in_one_process
from tests.ubp.cli.conftest import STORE
from ubp.blocks.registry import block
from ubp.cli.jobs import Job, JobFailed, Limits, run_jobs
from ubp.cli.ray_tasks import (
    Cluster,
    Order,
    RayTasks,
    Resources,
    cluster,
    code_digest,
    need_line,
    run_alone,
    run_order,
    told,
    told_settings,
)
from ubp.cli.recipe import Need
from ubp.data import schema
from ubp.data.paths import REPOSITORY, DataPaths
from ubp.data.schema import EventType
from ubp.io.errors import UserError

ON = re.compile(r"^on .*, node (\w+), PID (\d+)$", re.MULTILINE)


class TestCluster:
    def test_a_share_of_the_cores_never_more_than_the_smallest_node_has(self):
        found = Cluster(({"CPU": 16.0}, {"CPU": 4.0, "GPU": 1.0}))
        assert (found.cores, found.gpus) == (20, 1)
        assert [found.share(jobs) for jobs in (1, 4, 5, 7, 40)] == [4, 4, 4, 2, 1]

    def test_what_no_node_has_is_refused(self):
        found = Cluster(({"CPU": 16.0, "memory": 8e9}, {"CPU": 4.0, "GPU": 1.0, "memory": 64e9}))
        found.require("dcn", Resources(cpus=4, gpus=1, memory=int(60e9)))
        with pytest.raises(UserError, match=r"dcn needs 8 cores, 1 GPUs and 60.0 GB on one node.*64.0 GB"):
            found.require("dcn", Resources(cpus=8, gpus=1, memory=int(60e9)))
        need = Need(int(270e9), "70 events of 3 clients", "als.factors")
        assert need_line("als", need) == "als needs 270.0 GB of one node: 70 events of 3 clients"
        with pytest.raises(UserError, match=r"als needs 1 cores, 0 GPUs and 270.0 GB .*lower als.factors \(70 events"):
            found.require("als", Resources(1, 0, need.memory), told_settings(need))


def test_what_a_command_on_another_node_is_not_told():
    words = ["engine=ray", "submit=False", "data_path=./data", "+engine=ray", "als.factors=8"]
    assert told(words) == ["submit=False", "als.factors=8"]


def test_the_digest_is_of_code_that_could_change_a_result(monkeypatch, tmp_path):
    for folder, name in (("ubp", "a.py"), ("tests", "b.py"), ("docs", "c.md")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).write_text("1")
    monkeypatch.setattr("ubp.cli.ray_tasks.REPOSITORY", tmp_path)
    monkeypatch.setattr("ubp.cli.ray_tasks.CONFIGS", tmp_path / "configs")
    digests = [code_digest.__wrapped__()]
    for file in ("tests/b.py", "docs/c.md", "ubp/a.py"):
        (tmp_path / file).write_text("2")
        digests.append(code_digest.__wrapped__())
    assert digests[0] == digests[1] == digests[2] != digests[3]


def test_without_ray(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"engine=ray: Ray is not installed here; pip install '.\[ray\]'"), cluster():
        pass


@pytest.mark.full
@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1"])
def test_no_cluster_at_the_address(monkeypatch, address):
    pytest.importorskip("ray", reason="Ray is not installed")
    monkeypatch.setenv("RAY_ADDRESS", address)
    with (
        pytest.raises(UserError, match=rf"engine=ray: no connection to the cluster {address} \(.*ray start"),
        cluster(),
    ):
        pass


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's signal at a parent's end is Linux's")
def test_what_a_worker_starts_dies_with_it(tmp_path):
    pid, sleeper = tmp_path / "pid", tmp_path / "sleeper.py"
    sleeper.write_text(f"import os, time; open({str(pid)!r}, 'w').write(str(os.getpid())); time.sleep(60)")
    starts = (
        "import os, subprocess, sys, time; "
        f"subprocess.Popen([sys.executable, '-m', 'ubp.cli.dies_with', str(os.getpid()), {str(sleeper)!r}]); "
        "time.sleep(60)"
    )
    worker = subprocess.Popen([sys.executable, "-c", starts], cwd=REPOSITORY)
    wait_until(lambda: pid.exists() and pid.read_text())
    worker.kill()
    worker.wait()
    wait_until(lambda: not psutil.pid_exists(int(pid.read_text())))


# On a cluster


def wait_until(holds: Any, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)


def written(history: History, folder: Path) -> DataPaths:
    """The history on disk; all who bought are relevant."""
    paths = history.write(folder)
    paths.relevant_clients.parent.mkdir()
    np.save(paths.relevant_clients, history.events[EventType.PRODUCT_BUY][schema.CLIENT_ID].unique().sort().to_numpy())
    return paths


@pytest.fixture
def log(make_history, tmp_path) -> DataPaths:
    return written(make_history(), tmp_path / "data")


def command(name: str, *more: str) -> Job:
    entry = block(name)
    words = [sys.executable, str(REPOSITORY / entry.command), *entry.overrides, *tiny.overrides(entry), *more]
    return Job(name, words, name, 1)


# Long enough for a kill in its midst.
LONG = command("next_sku_128_4_4", "trainer.max_epochs=30", "trainer.patience=30", "trainer.threads=1")


@pytest.fixture(scope="module")
def undisturbed(make_history, tmp_path_factory) -> bytes:
    """The long job's block as this machine makes it, with two threads."""
    return here(written(make_history(), tmp_path_factory.mktemp("undisturbed") / "data"), LONG, threads=2)


def on_cluster(paths: DataPaths, jobs: list[Job], logs: Path, cpus: int = 1) -> None:
    logs.mkdir(exist_ok=True)
    needs = {job.name: Resources(cpus, 0, 0) for job in jobs}
    with cluster():
        runner = RayTasks(needs, paths.root, logs, grace=10)
        run_jobs(jobs, Limits(9, 9), runner, lambda _: None, lambda _, __: None, lambda _, __: None)


def here(paths: DataPaths, job: Job, threads: int = 1) -> bytes:
    """The block's file as this machine makes it, in another data path; its lineage has the number of threads."""
    limits = {name: str(threads) for name in ("OMP_NUM_THREADS", "POLARS_MAX_THREADS")}
    environment = {"CHALLENGE_DATA_PATH": str(paths.root), **limits}
    subprocess.run(job.words, env=os.environ | environment, check=True, capture_output=True)
    return paths.block(job.name, submit=True).read_bytes()


class Watched(RayTasks):
    """Does something once, when a job's log says so."""

    def __init__(self, *given: Any, says: str, then: Any) -> None:
        super().__init__(*given)
        self.says, self.then, self.happened = says, then, 0

    def start(self, job: Job) -> Any:
        started = super().start(job)

        def poll() -> int | None:
            text = started.log.read_text()
            if not self.happened and self.says in text:
                self.happened += 1
                self.then(*ON.findall(text)[-1])
            return started.poll()

        return type(started)(started.job, started.log, poll)


def watched(paths: DataPaths, job: Job, logs: Path, cpus: int, says: str, then: Any) -> str:
    """Run a job on the cluster, do something when its log has some words, and give back the log."""
    logs.mkdir()
    with cluster():
        runner = Watched({job.name: Resources(cpus, 0, 0)}, paths.root, logs, 10, says=says, then=then)
        run_jobs([job], Limits(1, 1), runner, lambda _: None, lambda _, __: None, lambda _, __: None)
    assert runner.happened == 1
    return (logs / f"{job.name}.log").read_text()


@pytest.mark.full
@pytest.mark.usefixtures("nodes")
class TestOnTwoNodes:
    def test_the_same_tables_as_on_this_machine(self, log, make_history, tmp_path):
        other = written(make_history(), tmp_path / "other")
        jobs = [command(name) for name in ("stat_features", "als_64_buy_add_categories", "next_sku_128_4_4")]
        on_cluster(log, jobs, tmp_path / "logs")
        alone = run_in_one_process(other.root, {job.name: job.words[1:] for job in jobs}, POLARS_MAX_THREADS="1")
        assert {done.code for done in alone.values()} == {0}, alone
        for job in jobs:
            assert log.block(job.name, submit=True).read_bytes() == other.block(job.name, submit=True).read_bytes()

    @pytest.mark.long
    def test_a_killed_worker_costs_its_task_and_not_the_run(self, log, undisturbed, tmp_path):
        text = watched(
            log, LONG, tmp_path / "logs", 2, "epoch 2 of 30", lambda _, pid: os.kill(int(pid), signal.SIGKILL)
        )
        assert len(ON.findall(text)) == 2
        assert "taking up the run" in text
        assert log.block(LONG.name, submit=True).read_bytes() == undisturbed

    def test_a_killed_node_costs_its_tasks_and_not_the_run(self, nodes, log, undisturbed, tmp_path):
        def replace_node(node: str, _: str) -> None:
            assert nodes.second.node_id.startswith(node)  # the only one with two cores
            nodes.cluster.remove_node(nodes.second, allow_graceful=False)
            nodes.second = nodes.cluster.add_node(num_cpus=2, object_store_memory=STORE)

        text = watched(log, LONG, tmp_path / "logs", 2, "epoch 2 of 30", replace_node)
        (first, _), (second, _) = ON.findall(text)
        assert first != second
        assert log.block(LONG.name, submit=True).read_bytes() == undisturbed

    def test_a_command_that_says_its_memory_runs_where_a_node_has_it(self, nodes, log, tmp_path, capsys):
        script, logs = REPOSITORY / "ALS" / "als_embeddings.py", tmp_path / "logs"
        logs.mkdir()
        need = Need(10**13, "many pairs", "als.factors")
        words = ["--config-name=als_buy_add_categories", "als.factors=8"]
        with pytest.raises(UserError, match=r"needs 1 cores, 0 GPUs and 10000.0 GB on one node.*\(many pairs\)"):
            run_alone(script, words, log.root, logs, gpu=False, need=need)
        large = nodes.cluster.add_node(num_cpus=1, memory=2 * 10**13, object_store_memory=STORE)
        try:
            run_alone(script, words, log.root, logs, gpu=False, need=need)
        finally:
            nodes.cluster.remove_node(large)
        said = capsys.readouterr().out
        assert "als_embeddings needs 10000.0 GB of one node: many pairs" in said
        assert f", node {large.node_id[:8]}, PID" in said

    def test_a_command_that_fails_is_named_with_its_error(self, log, tmp_path):
        with pytest.raises(JobFailed) as failed:
            on_cluster(log, [command("stat_features", "as_of=1990-01-01")], tmp_path / "logs")
        assert failed.value.code == 1
        (line,) = failed.value.lines()
        assert line.startswith("error: as_of=1990-01-01")

    def test_a_node_with_other_code_is_refused(self, log, tmp_path, monkeypatch):
        monkeypatch.setattr("ubp.cli.ray_tasks.code_digest", lambda: "other")
        with pytest.raises(JobFailed) as failed:
            on_cluster(log, [command("stat_features")], tmp_path / "logs")
        (line,) = failed.value.lines()
        assert re.match(r"error: .*PID \d+ has other code or other versions in .* than the driver", line)

    def test_a_node_that_does_not_see_the_data_path(self, tmp_path):
        import ray

        absent = tmp_path / "absent" / "dcn.log"
        order = Order("dcn/dcn_embeddings.py", (), absent, 1, str(tmp_path), code_digest())
        with cluster(), pytest.raises(UserError, match="must be on a file system that all nodes share"):
            ray.get(ray.remote(run_order).remote(order))

    @pytest.mark.parametrize(
        ("name", "words"),
        [
            pytest.param(
                "als_64_buy_add_categories",
                ["ALS/als_embeddings.py", "--config-name=als_buy_add_categories"],
                marks=pytest.mark.long,
            ),
            ("numeric_features", ["scripts/all_embeddings.py", "only=[numeric_features]"]),
        ],
    )
    def test_from_the_command_line(self, log, name, words):
        words = [sys.executable, *words, "engine=ray"]
        environment = os.environ | {"CHALLENGE_DATA_PATH": str(log.root)}
        done = subprocess.run(words, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert re.search(r"^\w+ · on .*, PID \d+$", done.stdout, re.MULTILINE)
        assert log.block(name, submit=True).is_file()
        failed = subprocess.run(
            [*words, "as_of=1990-01-01"], cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False
        )
        assert failed.returncode == 1
        assert failed.stderr.startswith("error: as_of=1990-01-01")

    def test_the_run_all_script_says_what_memory_a_block_needs(self, log):
        words = [sys.executable, "scripts/all_embeddings.py", "only=[lightfm]", "engine=ray"]
        environment = os.environ | {"CHALLENGE_DATA_PATH": str(log.root)}
        done = subprocess.run(words, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert re.search(
            r"^lightfm needs 0\.3 GB of one node: [\d,]+ events, about [\d,]+ pairs", done.stdout, re.MULTILINE
        )
        assert log.block("lightfm", submit=True).is_file()
