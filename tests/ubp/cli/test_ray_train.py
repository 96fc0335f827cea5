"""A neural block trained by several workers of a Ray cluster: as by several devices, also where a worker is killed."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests import tiny
from tests.conftest import synthetic
from tests.ubp.cli.test_ray_tasks import here, wait_until, written
from ubp.blocks.embeddings import EmbeddingTable
from ubp.blocks.registry import block
from ubp.cli.jobs import Job
from ubp.cli.ray_train import Order
from ubp.data.paths import REPOSITORY, DataPaths
from ubp.io.errors import NoUsableEvents, UserError
from ubp.training.partition import split_rows
from ubp.training.settings import TrainerSettings

NAME = "next_sku_128_4_4"
EPOCHS = ("trainer.max_epochs=20", "trainer.patience=20", "trainer.threads=1")


def settings(**more: int) -> TrainerSettings:
    return TrainerSettings(max_epochs=1, patience=1, batch_size=8, **more)


class TestSettings:
    def test_each_worker_has_one_device(self):
        assert settings(ray_workers=3).ranks == 3
        assert settings(devices=2).ranks == 2
        with pytest.raises(UserError, match=r"trainer.devices=2: must be 1 where there are trainer.ray_workers"):
            settings(ray_workers=2, devices=2)
        with pytest.raises(UserError, match=r"trainer.ray_workers=0"):
            settings(ray_workers=0)

    def test_each_worker_has_something_to_validate_on(self):
        assert len(split_rows(100, settings(ray_workers=7), 0).validation) == 7
        with pytest.raises(NoUsableEvents, match="at least 15"):
            split_rows(14, settings(ray_workers=7), 0)

    def test_workers_where_there_are_none(self, monkeypatch):
        from ubp.training.lightning_loop import make_trainer

        monkeypatch.delenv("WORLD_SIZE", raising=False)
        with pytest.raises(UserError, match=r"trainer.ray_workers=2: give the block's own command, with engine=ray"):
            make_trainer(settings(ray_workers=2), [], [])


def test_where_an_exit_code_is_noted(tmp_path):
    order = Order("a/b.py", [], str(tmp_path / "b.log"), 1, "data", "0")
    assert order.ended == tmp_path / "b.code"


# On a cluster


def words(*more: str) -> list[str]:
    entry = block(NAME)
    given = [sys.executable, str(REPOSITORY / entry.command), *entry.overrides, *tiny.overrides(entry)]
    return [*given, *EPOCHS, *more]


def on_workers(paths: DataPaths, workers: int) -> "subprocess.Popen[str]":
    command = words("engine=ray", f"trainer.ray_workers={workers}")
    environment = os.environ | {"CHALLENGE_DATA_PATH": str(paths.root)}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def made(paths: DataPaths) -> bytes:
    return paths.block(NAME, submit=True).read_bytes()


def logs(paths: DataPaths, name: str) -> list[Path]:
    return sorted(paths.root.glob(f"hydra/next_sku_embeddings/*/{name}"))


@pytest.fixture(scope="module")
def undisturbed(nodes, tmp_path_factory) -> DataPaths:
    """A data path where two workers trained the block."""
    assert nodes is not None
    paths = written(synthetic(), tmp_path_factory.mktemp("undisturbed") / "data")
    out, err = on_workers(paths, 2).communicate(timeout=600)
    assert paths.block(NAME, submit=True).exists(), (out, err)
    assert re.search(r"^2 workers on 2 nodes", out, re.MULTILINE)
    assert "epoch 20 of 20" in out
    assert out.splitlines()[-1].startswith(f"{NAME} · ")
    return paths


@pytest.mark.full
class TestOnTwoNodes:
    def test_two_workers_are_two_devices(self, undisturbed, tmp_path):
        paths = written(synthetic(), tmp_path / "data")
        two = ("trainer.devices=2", "trainer.strategy=ddp", "trainer.accelerator=cpu")
        environment = os.environ | {"CHALLENGE_DATA_PATH": str(paths.root), "OMP_NUM_THREADS": "1"}
        subprocess.run(words(*two), env=environment, check=True, capture_output=True, timeout=600)
        one, other = (EmbeddingTable.read(each.block(NAME, submit=True)) for each in (undisturbed, paths))
        assert np.array_equal(one.client_ids, other.client_ids)
        assert np.array_equal(one.vectors, other.vectors)

    @pytest.mark.usefixtures("nodes")
    def test_a_killed_worker_costs_no_more_than_its_epoch(self, undisturbed, tmp_path):
        paths = written(synthetic(), tmp_path / "data")
        process = on_workers(paths, 2)
        wait_until(lambda: any("epoch 2 of" in log.read_text() for log in logs(paths, "next_sku_embeddings.log")), 500)
        (second,) = logs(paths, "next_sku_embeddings.1.log")
        os.kill(int(re.findall(r"PID (\d+)", second.read_text())[-1]), signal.SIGKILL)
        out, err = process.communicate(timeout=600)
        assert process.returncode == 0, (out, err)
        assert len(re.findall(r"^on .*, rank 0 of 2", out, re.MULTILINE)) == 2
        assert "taking up the run" in out
        assert made(paths) == made(undisturbed)

    @pytest.mark.long
    @pytest.mark.usefixtures("nodes")
    def test_one_worker_gives_the_bits_of_this_machine(self, tmp_path):
        paths = written(synthetic(), tmp_path / "data")
        out, err = on_workers(paths, 1).communicate(timeout=600)
        assert paths.block(NAME, submit=True).exists(), (out, err)
        assert made(paths) == here(written(synthetic(), tmp_path / "other"), Job(NAME, words(), NAME, 1))

    @pytest.mark.usefixtures("nodes")
    def test_more_workers_than_there_is_room_for(self, tmp_path):
        process = on_workers(written(synthetic(), tmp_path / "data"), 9)
        _, err = process.communicate(timeout=300)
        assert process.returncode == 1
        assert err.startswith("error: trainer.ray_workers=9: the cluster has 3 cores and 0 GPUs")

    @pytest.mark.long
    @pytest.mark.usefixtures("nodes")
    def test_what_is_wrong_with_the_data_is_said_once(self, tmp_path):
        paths = written(synthetic(), tmp_path / "data")
        (paths.raw / "product_buy.parquet").write_bytes(b"no parquet")
        process = on_workers(paths, 2)
        _, err = process.communicate(timeout=600)
        assert process.returncode == 1
        assert err.count("product_buy.parquet") == 1
