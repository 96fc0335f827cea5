"""An entry, a block and an encoded parquet made again from their lineages alone, on a tiny log."""

import importlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ALS import als_embeddings
from dcn import dcn_embeddings
from numeric_features import numeric_features
from scripts import encode, merge, reproduce
from stat_features import stat_features
from tests import tiny
from tests.calls import called
from ubp.blocks import registry
from ubp.blocks.embeddings import EmbeddingTable, read_lineage
from ubp.blocks.entry import read_entry
from ubp.cli import reproduction
from ubp.cli.config import composed
from ubp.cli.reproduction import Making
from ubp.data.history import ChallengeData
from ubp.data.paths import CONFIGS, REPOSITORY, DataPaths
from ubp.io.errors import UserError

VISITS = "als_64_visits_relevant"
OTHER = {"ALS": ["als.iterations=1", "als.factors=3"]}  # what today's configs could say
MERGE = ["--config-name=basics", "name=tiny", "~blocks.als_64_buy_add_categories"]


@pytest.fixture(scope="module")
def made(make_history, tmp_path_factory) -> Path:
    """A data path with two blocks and their merge; it is copied for each test."""
    root = tmp_path_factory.mktemp("made") / "data"
    paths = make_history().write(root)
    ids = ChallengeData(paths, submit=True).seen()
    paths.input.mkdir()
    np.save(paths.relevant_clients, ids[::2])
    where = [f"data_path={root}"]
    stat_features.main(composed(CONFIGS / "stat_features", "stat_features", where))
    als_embeddings.main(composed(CONFIGS / "ALS", "als_visits_relevant", [*where, "als.factors=4", "seed=5"]))
    merge.main(composed(CONFIGS / "merge", "basics", [*where, *MERGE[1:]]))
    return root


@pytest.fixture
def paths(made, tmp_path, monkeypatch) -> DataPaths:
    root = tmp_path / "data"
    shutil.copytree(made, root)
    monkeypatch.setenv("CHALLENGE_DATA_PATH", str(root))
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")  # commands set it: put back afterwards
    return DataPaths(root)


@pytest.fixture
def run(paths, monkeypatch, capsys):
    """Runs the command in this process, and the commands that it starts too; gives code, stdout, stderr's lines."""

    def in_this_process(jobs, *_):
        said.extend(capsys.readouterr().err.splitlines())  # which the commands' own would push out
        for job in jobs:
            program, *arguments = job.words[1:]
            script = Path(program).relative_to(REPOSITORY).with_suffix("")
            code, out, err = called(importlib.import_module(".".join(script.parts)), arguments, monkeypatch, capsys)
            if code:
                raise UserError([line.removeprefix("error: ") for line in err if line.startswith("error: ")])
            ran.append((job.name, "done before" in out))

    ran, said = [], []
    monkeypatch.setattr(reproduce, "make_again", in_this_process)

    def call(*words, command=reproduce):
        ran.clear()
        said.clear()
        code, out, err = called(command, words, monkeypatch, capsys)
        said.extend(err)
        return code, out, [line for line in err if line.startswith("error: ")]

    call.ran, call.said = ran, said
    call.entry = paths.embeddings(submit=True) / "tiny"
    return call


def rewritten(path, change=lambda vectors: vectors, **lineage):
    """Write a block again with other vectors or another lineage."""
    table = EmbeddingTable.read(path)
    replace(table, vectors=change(table.vectors.copy()), lineage=table.lineage | lineage).write(path)


def changed_at(row, column, by):
    def change(vectors):
        vectors[row, column] += by
        return vectors

    return change


def with_manifest(entry, change):
    file = entry / "manifest.json"
    manifest = json.loads(file.read_text())
    change(manifest["lineage"])
    file.write_text(json.dumps(manifest))


def files_of(root):
    return {
        path: (path.stat().st_mtime_ns, path.stat().st_size)
        for path in root.rglob("*")
        if path.is_file() and not {"cache", "hydra"} & set(path.relative_to(root).parts)
    }


def test_an_entry_is_the_same_again_and_nothing_else_is_touched(run, paths):
    before = files_of(paths.root)
    code, out, err = run(f"entry={run.entry}")
    assert (code, err) == (0, [])
    assert not [line for line in run.said if " made " in line]  # nothing is doubted
    assert run.ran == [("stat_features", False), (VISITS, False), ("tiny", False)]
    again = DataPaths(paths.cache / "reproduced" / "tiny")
    assert out.splitlines()[-1].startswith("tiny: the same bits again · 30 clients × 48 columns · ")
    assert out.splitlines()[-1].endswith(str(again.embeddings(submit=True) / "tiny"))
    assert out.count("same bits ") == 3 + 1
    for one, other in zip(read_entry(run.entry), read_entry(again.embeddings(submit=True) / "tiny"), strict=True):
        assert one.tobytes() == other.tobytes()
    assert read_lineage(again.block(VISITS, True))["seed"] == 5
    assert files_of(paths.root) == before


@pytest.mark.full
def test_what_was_made_again_is_kept_until_it_is_to_be_overwritten(run, paths, tmp_path):
    words = [f"entry={paths.block(VISITS, submit=True)}", f"into={tmp_path / 'aside'}"]
    assert run(*words)[0] == 0
    assert run.ran == [(VISITS, False)]
    assert run(*words)[0] == 0
    assert run.ran == [(VISITS, True)]
    assert run(*words, "overwrite=True")[0] == 0
    assert run.ran == [(VISITS, False)]


@pytest.mark.full
@pytest.mark.long
def test_todays_configs_change_nothing(run, monkeypatch):
    def others(entry):
        return composed(CONFIGS / entry.folder, entry.config_name, ["seed=99", *OTHER.get(entry.folder, [])])

    monkeypatch.setattr(reproduction, "config_of", others)
    assert run(f"entry={run.entry}")[0] == 0


@pytest.mark.full
def test_a_changed_value_of_a_block_is_found_and_named(run, paths):
    rewritten(paths.block(VISITS, submit=True), changed_at(2, 1, by=0.25))
    code, out, err = run(f"entry={run.entry}")
    assert code == 1
    assert err == [f"error: {VISITS}: 1 values (0.86%) differ, by at most 0.25"]
    assert out.count("same bits") == 2  # the statistics, and the entry, which was made before


@pytest.mark.full
def test_a_changed_byte_of_an_entry_is_found_and_named(run):
    file = run.entry / "embeddings.npy"
    content = bytearray(file.read_bytes())
    content[-2] ^= 1
    file.write_bytes(bytes(content))
    code, _, err = run(f"entry={run.entry}")
    assert code == 1
    assert err[0].startswith("error: tiny: 1 values (0.07%) differ, by at most ")
    assert err[1:] == [f"error: {file}: changed since it was written"]


@pytest.mark.full
def test_another_seed_in_the_lineage_is_found_and_named(run):
    with_manifest(run.entry, lambda lineage: lineage["blocks"][VISITS]["lineage"].update(seed=6))
    code, out, err = run(f"entry={run.entry}")
    assert code == 1
    (line,) = err  # the block that lies there has another seed: it is not the one that the lineage speaks of
    assert line.startswith("error: tiny: ")
    assert "values" in line
    assert "not compared: the first was made anew since" in out


@pytest.mark.full
def test_a_block_by_itself(run, paths):
    path = paths.block(VISITS, submit=True)
    assert run(f"entry={path}")[0] == 0
    assert run.ran == [(VISITS, False)]
    rewritten(path, seed=6)
    code, _, err = run(f"entry={path}")
    assert code == 1
    assert err[0].startswith(f"error: {VISITS}: ")


@pytest.mark.full
@pytest.mark.long
def test_a_block_that_is_no_longer_there_is_made_all_the_same(run, paths):
    paths.block("stat_features", submit=True).unlink()
    code, out, _ = run(f"entry={run.entry}")
    assert code == 0
    assert "the first is not there to compare with" in out


@pytest.mark.full
def test_what_encode_wrote(run, paths):
    clients = paths.root / "some.npy"
    np.save(clients, np.load(paths.relevant_clients)[3:9])
    out = paths.root / "some.parquet"
    assert run("name=tiny", "as_of=2023-01-20", f"clients={clients}", f"out={out}", command=encode)[0] == 0
    code, said, err = run(f"entry={out}")
    assert (code, err) == (0, [])
    assert run.ran[-2:] == [("tiny", False), ("tiny-encoded", False)]
    assert "tiny: the same bits again · 6 clients × 48 columns" in said


@pytest.mark.full
@pytest.mark.long
def test_what_encode_wrote_of_all_clients_at_the_end_of_the_log(run, paths):
    assert run("name=tiny", command=encode)[0] == 0
    assert run(f"entry={paths.encoded('tiny') / '2023-02-09.parquet'}")[0] == 0


@pytest.mark.full
def test_a_block_of_another_and_a_renamed_one(run, paths, monkeypatch, capsys):
    """The wide features are read by the network, and not in the merge; a copy of its parquet is, by another name."""
    (paths.target).mkdir(exist_ok=True)
    wide, network = registry.block("numeric_features_wide"), registry.block("dcn")
    for command, entry in ((numeric_features, wide), (dcn_embeddings, network)):
        words = [*(word for word in entry.overrides if word.startswith("--")), *tiny.overrides(entry)]
        code, _, err = called(command, words, monkeypatch, capsys)
        assert code == 0, err
    shutil.copy(paths.block("dcn", submit=True), paths.root / "copy.parquet")
    theirs = paths.embeddings(True) / "theirs"
    theirs.mkdir()
    np.save(theirs / "client_ids.npy", np.load(paths.relevant_clients))
    np.save(theirs / "embeddings.npy", np.random.default_rng(0).normal(size=(30, 2)).astype(np.float32))
    added = [f"+blocks.copy={{path: {paths.root / 'copy.parquet'}}}", "+blocks.theirs={}", f"~blocks.{VISITS}"]
    code, _, err = called(merge, [*MERGE[:1], "name=two", *MERGE[2:], *added], monkeypatch, capsys)
    assert code == 0, err
    code, out, err = run(f"entry={paths.embeddings(True) / 'two'}")
    assert (code, err) == (0, [])
    assert [name for name, _ in run.ran] == ["stat_features", "numeric_features_wide", "dcn", "two"]
    assert out.count("same bits ") == 4 + 1
    np.save(theirs / "embeddings.npy", np.zeros((30, 2), np.float32))
    code, _, err = run(f"entry={paths.embeddings(True) / 'two'}")
    assert code == 1
    assert err == [f"error: {theirs}: not what two was made from, and block theirs has no lineage to remake it by"]


# --- refusals -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "entry: name the entry's folder, or the block's parquet"),
        (["entry=/no/where"], "entry=/no/where: neither an entry nor a parquet lies there"),
        (["entry={entry}", "submit=False"], "submit=False: tiny was made with True; leave it out"),
        (["entry={entry}", "as_of=2023-01-01"], "as_of=2023-01-01: tiny was made with None; leave it out"),
        (["entry={entry}", "jobs=0"], "jobs=0: must be at least 1"),
        (["entry={entry}", "into={root}"], "has a raw/ of its own"),
    ],
)
def test_refusals_are_one_line(run, paths, words, said):
    code, out, err = run(*(word.format(entry=run.entry, root=paths.root) for word in words))
    assert (code, out) == (1, "")
    (line,) = err
    assert said in line
    assert run.ran == []


def test_another_history_is_refused(run, paths):
    np.save(paths.relevant_clients, np.load(paths.relevant_clients)[1:])
    code, _, err = run(f"entry={run.entry}")
    assert code == 1
    assert all("not the history that" in line for line in err)
    assert len(err) == 3
    assert run.ran == []


def test_a_manifest_without_the_lineage_of_a_block(run):
    with_manifest(run.entry, lambda lineage: lineage["blocks"][VISITS]["lineage"].pop("history"))
    code, _, err = run(f"entry={run.entry}")
    assert code == 1
    assert err == [
        f"error: {VISITS}: its lineage has no history: an earlier version of the project made it; make it again"
    ]


@pytest.mark.full
def test_what_cannot_be_promised_is_a_line(run):
    with_manifest(run.entry, lambda lineage: lineage["versions"].update(numpy="1.0"))
    assert run(f"entry={run.entry}")[0] == 0
    assert [line for line in run.said if "tiny: made with other versions: numpy 1.0 (here " in line]


def test_several_threads_of_lightfm_are_a_line():

    def made(threads):
        config = {"model": {"threads": threads}}
        return Making(
            "lightfm", "block", {"name": "lightfm", "recipe": "LightFM.recipe:LightFmRecipe", "config": config}
        )

    assert reproduce.threads_of_lightfm([made(1)]) == []
    assert reproduce.threads_of_lightfm([made(4)]) == [
        "lightfm: WARP with several threads, whose updates come in no fixed order"
    ]


# --- as a user runs it --------------------------------------------------------------------------------


def command_line(paths, *words):
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {"CHALLENGE_DATA_PATH": str(paths.root), "OMP_NUM_THREADS": "1"}
    line = [sys.executable, str(REPOSITORY / "scripts" / "reproduce.py"), *words]
    return subprocess.run(line, env=environment, capture_output=True, text=True, check=False, timeout=240)


@pytest.mark.full
def test_as_processes_each_with_a_log(paths):
    entry = paths.embeddings(submit=True) / "tiny"
    done = command_line(paths, f"entry={entry}", "jobs=2")
    assert done.returncode == 0, done.stderr
    assert "[3/3] python scripts/merge.py --config-path=" in done.stdout
    logs = paths.cache / "reproduced" / "tiny" / "logs"
    assert sorted(path.name for path in logs.iterdir()) == [f"{name}.log" for name in (VISITS, "stat_features", "tiny")]


@pytest.mark.full
def test_a_command_that_fails_says_why(paths):
    entry = paths.embeddings(submit=True) / "tiny"
    with_manifest(entry, lambda lineage: lineage["blocks"][VISITS]["lineage"]["config"]["als"].update(factors=0))
    done = command_line(paths, f"entry={entry}")
    assert done.returncode == 1
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert errors[0].startswith("error: als.factors=0: must be")
    assert "failed with exit code 1; its log: " in errors[-1]
    assert "Traceback" not in done.stderr
