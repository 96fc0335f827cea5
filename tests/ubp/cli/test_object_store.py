"""Commands whose data path is an address: the same bytes as in a folder, also where one is killed or two write."""

import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.conftest import History, synthetic
from tests.one_process import run_in_one_process
from ubp.cli import object_store
from ubp.cli.object_store import address_of, as_given, asked_data_path, at_hand, needed_by, require_folder, shown
from ubp.data.paths import REPOSITORY, DataPaths
from ubp.io.errors import UserError
from ubp.io.remote import MANIFEST, OBJECTS, Workspace, state_of
from ubp.io.s3 import S3Folder

ADDRESS = "s3://profiles/shop"


class TestWords:
    def test_the_last_data_path_counts_or_the_environment(self, monkeypatch):
        monkeypatch.setenv("CHALLENGE_DATA_PATH", "there")
        assert asked_data_path(["seed=1"]) == "there"
        assert asked_data_path(["data_path=a", "data_path='s3://b/c'"]) == "s3://b/c"

    def test_a_folder_is_left_as_it_is(self, tmp_path):
        words = ["split.py", f"data_path={tmp_path}"]
        with at_hand(words, pytest.fail) as given:
            assert given == words
        assert shown(f"done · {tmp_path}/raw") == f"done · {tmp_path}/raw"

    @pytest.mark.parametrize("word", ["--cfg", "-c", "--hydra-help"])
    def test_nothing_is_fetched_where_nothing_is_run(self, word):
        with at_hand(["split.py", f"data_path={ADDRESS}", word, "job"], pytest.fail) as given:
            assert given[1] == f"data_path={ADDRESS}"

    @pytest.mark.parametrize("address", ["gs://bucket/x", "s3://bucket/x", "https://somewhere/x"])
    def test_an_address_where_a_folder_is_needed(self, address):
        with pytest.raises(UserError, match=rf"data_path={address}: .*of s3:// alone; elsewhere name a folder"):
            require_folder(address)

    @pytest.mark.parametrize("address", ["s3://", "s3:///shop", "shop"])
    def test_an_address_without_a_bucket(self, address):
        with pytest.raises(UserError, match=rf"data_path={address}: no address; write it as s3://BUCKET/PREFIX"):
            S3Folder(address)

    def test_without_boto3(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "boto3", None)
        with pytest.raises(UserError, match=rf"{ADDRESS}: boto3 is not installed here; pip install '.\[s3\]'"):
            S3Folder(ADDRESS)

    def test_the_same_command_has_the_same_folder(self):
        def name(*words: str) -> str:
            return object_store._name(["scripts/merge.py", *words])

        assert name("a=1", "--config-name=x", "data_path=s3://b") == name("--config-name=x", "overwrite=True", "a=1")
        assert name("a=1").startswith("merge-")
        assert len({name("a=1"), name("a=2"), name("--config-name=x", "a=1")}) == 3


class TestNeeded:
    PATHS = (
        *("raw/input/product_buy.parquet", "raw/.done/product_buy.parquet.json", "text_local/search.parquet"),
        *("models/dcn/local/block.json", "embeddings_local/dcn.parquet", "embeddings_local/.done/dcn.parquet.json"),
        *("models/numeric_features_wide/local/block.json", "models/twhin/submit/block.json", "models/mine/local/a"),
        *("logs/twhin/version_0/metrics.csv", "embeddings_submit/twhin.scores_quick.json", "reports/shop.html"),
    )

    def left_out(self, *words: str) -> set[str]:
        needed = needed_by([str(REPOSITORY / words[0]), *words[1:]])
        return {path for path in self.PATHS if not needed(path)}

    def test_a_block_needs_itself_and_what_it_reads(self):
        other = {path for path in self.PATHS if "twhin" in path or "reports" in path}
        assert self.left_out("dcn/dcn_embeddings.py") == other
        dcn = {path for path in self.PATHS if "dcn" in path}
        assert self.left_out("numeric_features/numeric_features.py") == other | dcn

    def test_a_block_that_is_named_on_the_command_line_too(self):
        assert self.left_out("dcn/dcn_embeddings.py", "+inputs.twhin=1") == {"reports/shop.html"}

    def test_other_commands_may_need_all(self):
        assert self.left_out("scripts/merge.py") == set()


def test_lines_have_the_address_and_what_stays_here_its_folder(tmp_path, monkeypatch):
    place = Workspace(SimpleNamespace(address=ADDRESS), tmp_path, "split", lambda _: True)
    monkeypatch.setattr(object_store, "_open", [place])
    assert shown(f"split · {place.root}/raw") == f"split · {ADDRESS}/raw"
    assert shown(f"data_path={place.root}") == f"data_path={ADDRESS}"
    assert shown(f"{place.root}-2") == f"{place.root}-2"
    assert shown(f"logs: {place.root}/hydra/x") == f"logs: {place.kept['hydra']}/x"
    full = f"{place.root}/raw: no space left on the disk; what was finished before is kept"
    assert shown(full) == full
    assert as_given([f"data_path={place.root}", "seed=1"]) == [f"data_path={ADDRESS}", "seed=1"]
    assert (address_of(str(place.root)), address_of("data")) == (ADDRESS, "data")


# With a server


@pytest.fixture(scope="module")
def server() -> Iterator[Any]:
    """An S3 server on this machine, and what the environment has to have for it."""
    boto3 = pytest.importorskip("boto3", reason="boto3 is not installed")
    server = pytest.importorskip("moto.server", reason="moto is not installed")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    environment = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{running.get_host_and_port()[1]}",
        "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "b",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        yield boto3.client("s3")
        running.stop()


@pytest.fixture
def bucket(server) -> Any:
    """An empty bucket, ``profiles``."""
    server.create_bucket(Bucket="profiles")
    yield server
    names = [{"Key": each["Key"]} for each in server.list_objects_v2(Bucket="profiles").get("Contents", [])]
    if names:
        server.delete_objects(Bucket="profiles", Delete={"Objects": names})
    server.delete_bucket(Bucket="profiles")


@pytest.fixture
def log(make_history, tmp_path) -> DataPaths:
    """A tiny log in a folder."""
    history: History = make_history()
    return history.write(tmp_path / "folder" / "shop")


def uploaded(bucket: Any, paths: DataPaths) -> None:
    """Its files in the bucket, as ``aws s3 cp --recursive`` has them."""
    for file in paths.raw.glob("*"):
        bucket.upload_file(str(file), "profiles", f"shop/raw/{file.name}")


def run(data_path: str | Path, line: str, machine: Path, **more: str) -> subprocess.CompletedProcess[str]:
    """A command on a machine whose cache is a folder."""
    program, *arguments = line.split()
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / program), *arguments],
        env=_environment(data_path, machine) | more,
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert "Traceback" not in done.stderr, done.stderr
    return done


def run_here(folder: Path, lines: Sequence[str]) -> None:
    """Commands on a folder."""
    done = run_in_one_process(folder, {line: line.split() for line in lines}, POLARS_MAX_THREADS="1")
    assert {each.code for each in done.values()} == {0}, done


def _environment(data_path: str | Path, machine: Path) -> dict[str, str]:
    threads = dict.fromkeys(("OMP_NUM_THREADS", "POLARS_MAX_THREADS"), "1")
    return os.environ | threads | {"CHALLENGE_DATA_PATH": str(data_path), "CHALLENGE_CACHE_PATH": str(machine)}


def made(folder: Path) -> dict[str, bytes]:
    """What commands wrote that is the same each time: blocks, entries, what was fitted; no times, no notes of them."""
    files = (file for name in ("raw", "embeddings_local", "models") for file in (folder / name).rglob("*"))
    kept = (file for file in files if file.is_file() and file.suffix in (".parquet", ".npy", ".safetensors"))
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in kept}


def fetched(machine: Path) -> Path:
    """All that lies at the address, as another machine has it."""
    place = Workspace(S3Folder(ADDRESS), machine, "look", lambda _: True)
    place.fetch()
    return place.root


JOURNEY = (
    "scripts/split.py",
    "stat_features/stat_features.py submit=False",
    "ALS/als_embeddings.py --config-name=als_buy_add_categories submit=False als.factors=8",
    "scripts/merge.py --config-name=basics submit=False missing=skip",
    "scripts/evaluate.py embeddings=basics probe=quick probe.width=16 probe.hidden=32 probe.epochs=1 probe.seeds=[0]",
)


@pytest.mark.full
class TestServer:
    def test_the_same_bytes_as_in_a_folder_each_command_on_another_machine(self, bucket, log, tmp_path):
        uploaded(bucket, log)
        for number, line in enumerate(JOURNEY):
            there = run(ADDRESS, line, tmp_path / f"machine{number % 2}")
            assert there.returncode == 0, there.stderr
            assert f" · {ADDRESS}/" in there.stdout.splitlines()[-1]
            assert str(tmp_path) not in there.stdout
        run_here(log.root, JOURNEY)
        assert made(fetched(tmp_path / "another")) == made(log.root)
        assert len(made(log.root)) > 20
        again = run(ADDRESS, JOURNEY[1], tmp_path / "another")
        assert again.stdout.splitlines()[-1].startswith(f"stat_features · done before · {ADDRESS}/embeddings_local")
        named = run(ADDRESS, f"scripts/validate.py entry={ADDRESS}/embeddings_local/basics", tmp_path / "another")
        assert "basics is valid (local)" in named.stdout, named.stderr

    def test_all_embeddings_hands_the_address_on(self, bucket, log, tmp_path):
        uploaded(bucket, log)
        split = run(ADDRESS, JOURNEY[0], tmp_path)
        assert split.returncode == 0, split.stderr
        line = "scripts/all_embeddings.py only=[stat_features,numeric_features] submit=False jobs=2"
        done = run("data", f"{line} data_path={ADDRESS}", tmp_path)
        assert done.returncode == 0, done.stderr
        files = state_of(S3Folder(ADDRESS)).files
        assert {f"embeddings_local/{name}.parquet" for name in ("stat_features", "numeric_features")} <= files.keys()

    def test_killed_between_the_objects_and_the_manifest(self, bucket, log, tmp_path):
        uploaded(bucket, log)
        before = state_of(S3Folder(ADDRESS))
        killed = (
            "import os, signal, sys, runpy; from ubp.io.s3 import S3Folder; "
            "S3Folder.write = lambda *_: os.kill(os.getpid(), signal.SIGKILL); "
            "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
        )
        words = [sys.executable, "-c", killed, str(REPOSITORY / "scripts/split.py")]
        done = subprocess.run(
            words, env=_environment(ADDRESS, tmp_path), cwd=REPOSITORY, capture_output=True, check=False, timeout=120
        )
        assert done.returncode == -signal.SIGKILL, done.stderr
        listed = S3Folder(ADDRESS).listed()
        assert any(key.startswith(OBJECTS) for key in listed)
        assert MANIFEST not in listed
        assert state_of(S3Folder(ADDRESS)).files == before.files
        again = run(ADDRESS, "scripts/split.py", tmp_path)
        assert again.stdout.startswith("split · done before"), again.stderr
        assert "raw/input/product_buy.parquet" in state_of(S3Folder(ADDRESS)).files

    def test_two_at_once_on_two_machines(self, bucket, log, tmp_path):
        uploaded(bucket, log)
        assert run(ADDRESS, JOURNEY[0], tmp_path / "one").returncode == 0
        lines = (JOURNEY[1], "numeric_features/numeric_features.py submit=False")
        both = [
            subprocess.Popen(
                [sys.executable, *line.split()], cwd=REPOSITORY, env=_environment(ADDRESS, tmp_path / machine)
            )
            for line, machine in zip(lines, ("one", "two"), strict=True)
        ]
        assert [process.wait(120) for process in both] == [0, 0]
        files = state_of(S3Folder(ADDRESS)).files
        assert {f"embeddings_local/{name}.parquet" for name in ("stat_features", "numeric_features")} <= files.keys()

    def test_the_same_twice_at_once_on_one_machine_is_done_once(self, bucket, log, tmp_path):
        uploaded(bucket, log)
        words = [sys.executable, "scripts/split.py"]
        both = [
            subprocess.Popen(
                words, cwd=REPOSITORY, env=_environment(ADDRESS, tmp_path), stdout=subprocess.PIPE,
                stderr=subprocess.PIPE, text=True,
            )
            for _ in range(2)
        ]  # fmt: skip
        said = sorted((process.communicate(timeout=120) for process in both), key=lambda each: "done before" in each[0])
        assert said[1][0].splitlines()[-1].startswith("split · done before")
        assert f"which is making the same in {ADDRESS} since" in said[1][1]

    def test_what_failed_is_said_and_what_was_finished_is_written(self, bucket, log, tmp_path):
        uploaded(bucket, log)
        failed = run(ADDRESS, "stat_features/stat_features.py as_of=1990-01-01", tmp_path)
        assert failed.returncode == 1
        assert failed.stderr.startswith("error: as_of=1990-01-01")
        (log.raw / "product_buy.parquet").write_bytes(b"no parquet")
        uploaded(bucket, log)
        failed = run(ADDRESS, "stat_features/stat_features.py", tmp_path)
        assert failed.stderr.startswith(f"error: {ADDRESS}/raw/product_buy.parquet: ")

    @pytest.mark.parametrize(
        "line", ["scripts/encode.py name=stat_features", "next_sku/next_sku_embeddings.py trainer.ray_workers=2"]
    )
    def test_parts_of_a_command_need_a_folder(self, bucket, log, tmp_path, line):
        uploaded(bucket, log)
        refused = run(ADDRESS, f"{line} engine=ray", tmp_path)
        assert refused.returncode == 1
        assert refused.stderr.startswith(f"error: data_path={ADDRESS}: with engine=ray the parts of this command lie")

    @pytest.mark.parametrize(
        ("address", "more", "said"),
        [
            ("s3://absent/shop", {}, "there is no such bucket"),
            (ADDRESS, {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "the server does not answer"),
            (ADDRESS, {"AWS_ENDPOINT_URL": "nonsense"}, "nonsense"),
            (
                ADDRESS,
                {
                    "AWS_ACCESS_KEY_ID": "",
                    "AWS_SECRET_ACCESS_KEY": "",
                    "AWS_EC2_METADATA_DISABLED": "true",
                    "HOME": "/x",
                },
                "no credentials; set AWS_ACCESS_KEY_ID",
            ),
        ],
    )
    def test_one_line_where_a_store_refuses(self, bucket, address, more, said, tmp_path):
        assert bucket is not None
        began = time.monotonic()
        done = run(address, "scripts/split.py", tmp_path, **more)
        assert done.returncode == 1
        (line,) = done.stderr.splitlines()
        assert line.startswith("error: ")
        assert said in line
        assert time.monotonic() - began < 60


@pytest.fixture(scope="module")
def machine(server, tmp_path_factory) -> Iterator[Path]:
    """The folder of the nodes' caches: they have the environment of when they began."""
    folder = tmp_path_factory.mktemp("nodes")
    assert server is not None
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CHALLENGE_CACHE_PATH", str(folder))
        yield folder


ON_A_CLUSTER = (
    "scripts/all_embeddings.py only=[stat_features,numeric_features] submit=False",
    JOURNEY[2],
)
WITHOUT_ONE = (
    "scripts/split.py",
    "stat_features/stat_features.py submit=False",
    "numeric_features/numeric_features.py submit=False",
    JOURNEY[2],
)


@pytest.mark.full
class TestOnTwoNodes:
    def test_the_same_bytes_as_in_a_folder(self, bucket, machine, nodes, log, tmp_path):
        assert nodes.second is not None
        uploaded(bucket, log)
        assert run(ADDRESS, "scripts/split.py", tmp_path / "here").returncode == 0
        for line in ON_A_CLUSTER:
            there = run(ADDRESS, f"{line} engine=ray", tmp_path / "here")
            assert there.returncode == 0, there.stderr
            assert re.search(r"^\w+ · on .*, PID \d+$", there.stdout, re.MULTILINE)
        run_here(log.root, WITHOUT_ONE)
        assert any(machine.iterdir())
        assert made(fetched(tmp_path / "another")) == made(log.root)
        assert "embeddings_local/numeric_features.parquet" in made(log.root)

    def test_what_a_command_says_on_a_node_is_said_here(self, bucket, machine, nodes, log, tmp_path):
        assert nodes.second is not None
        assert machine.is_dir()
        uploaded(bucket, log)
        line = "ALS/als_embeddings.py --config-name=als_buy_add_categories as_of=1990-01-01 engine=ray"
        failed = run(ADDRESS, line, tmp_path)
        assert failed.returncode == 1
        assert failed.stderr.startswith("error: as_of=1990-01-01")
        line = "numeric_features/numeric_features.py as_of=1990-01-01 engine=ray"
        failed = run(ADDRESS, line, tmp_path)
        assert failed.returncode == 1
        assert failed.stderr.startswith(f"error: as_of=1990-01-01 00:00:00: {ADDRESS}/raw has no purchase before it")


def test_a_history_in_python_is_in_a_folder(tmp_path):
    import ubp

    assert synthetic().write(tmp_path).raw.is_dir()
    with pytest.raises(UserError, match="elsewhere name a folder"):
        ubp.open_history(ADDRESS)
