"""The commands, end to end on a tiny history: as a user runs them, and again in another process.

All blocks are made by ``sh get_all_embeddings.sh``, each command a process of its own. What is given a second time runs
in one process: most of a tiny command's time goes to what it imports.
"""

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from tests import tiny
from tests.one_process import Done, run_in_one_process
from ubp.blocks import registry
from ubp.blocks.embeddings import EmbeddingTable
from ubp.blocks.entry import read_entry, violations
from ubp.cli.config import composed
from ubp.data.history import ChallengeData
from ubp.data.paths import CONFIGS, REPOSITORY, DataPaths
from ubp.data.targets import TASKS

pytestmark = pytest.mark.full

# Every embedding command of the registry, small enough for a test: its name and its command line.
EMBEDDINGS = {entry.name: [*entry.line.split(), *tiny.overrides(entry)] for entry in registry.blocks()}
# What the language model reads.
TEXTS = {entry.name: [*entry.line.split(), "preset=demo"] for entry in registry.entries() if not entry.is_block}
SPLIT = ["scripts/split.py"]
MERGED = list(composed(CONFIGS / "merge", "basics").blocks)
MERGE = ["scripts/merge.py", "--config-name=basics"]
TINY_PROBE = ["probe=quick", "probe.width=16", "probe.hidden=32", "probe.epochs=1", "probe.seeds=[0]"]
EVALUATE = ["scripts/evaluate.py", "embeddings=[basics,stat_features]", *TINY_PROBE]
ALL = {
    "make_demo_data": ["scripts/make_demo_data.py"],
    "make_synthetic_data": ["scripts/make_synthetic_data.py"],
    "make_example_log": ["scripts/make_example_log.py"],
    "import_log": ["scripts/import_log.py"],
    "split": SPLIT,
    "make_targets": ["scripts/make_targets.py"],
    "merge": MERGE,
    "validate": ["scripts/validate.py", "entry=x"],
    "evaluate": ["scripts/evaluate.py", "embeddings=x"],
    "encode": ["scripts/encode.py", "name=x"],
    "neighbours": ["scripts/neighbours.py", "name=x"],
    "reproduce": ["scripts/reproduce.py", "entry=x"],
    "explain": ["scripts/explain.py", "name=x", "client=1"],
    "export": ["scripts/export.py", "name=x"],
    "nightly": ["scripts/nightly.py", "day=2022-11-09", "name=x"],
    "ablate": ["scripts/ablate.py", "ensemble=x"],
    "replay": ["scripts/replay.py", "ensemble=x"],
    "cut": ["scripts/cut.py", "out=x"],
    "recommend": ["scripts/recommend.py"],
    "report": ["scripts/report.py"],
    "demo": ["scripts/demo.py"],
    "all_embeddings": ["scripts/all_embeddings.py"],
    **TEXTS,
    **EMBEDDINGS,
}

CLOSING = re.compile(r"(?P<what>[^·]+) · (?P<clients>[\d,]+) clients × (?P<columns>[\d,]+) columns · [\d.]+ s · [\d,]+ MB · (?P<path>.+)")  # noqa: E501  # fmt: skip


def run(root: Path, words: Sequence[str], folder: Path = REPOSITORY, **environment: str) -> Done:
    program, *arguments = words
    variables = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    variables |= {"CHALLENGE_DATA_PATH": str(root), "OMP_NUM_THREADS": "1"} | environment
    command = [sys.executable, str(REPOSITORY / program), *arguments]
    done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, check=False, timeout=300)
    return Done(done.returncode, done.stdout, done.stderr)


def run_the_script(root: Path) -> dict[str, Done]:
    """Every block, and the texts, by the script that makes them all: what each command's own log says."""
    own = {**TEXTS, **EMBEDDINGS}
    words = {entry.name: own[entry.name][len(entry.line.split()) :] for entry in registry.entries()}
    told = ", ".join(f"{name}: {json.dumps(more)}" for name, more in words.items() if more)
    line = ["/bin/sh", str(REPOSITORY / "get_all_embeddings.sh"), "submit=False", "jobs=2", f"overrides={{{told}}}"]
    variables = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    variables |= {"CHALLENGE_DATA_PATH": str(root), "OMP_NUM_THREADS": "1", "PYTHON": sys.executable}
    done = subprocess.run(
        line, cwd=root.parent, env=variables, capture_output=True, text=True, check=False, timeout=900
    )
    assert done.returncode == 0, done.stderr
    (folder,) = (root / "hydra" / "all_embeddings").iterdir()
    return {name: Done(0, (folder / f"{name}.log").read_text(), "") for name in words}


def with_words(lines: dict[str, Sequence[str]], *words: str) -> dict[str, list[str]]:
    return {name: [*line, *words] for name, line in lines.items()}


@dataclass(frozen=True)
class Journey:
    """The data path and what each command said."""

    paths: DataPaths
    runs: dict[str, Done]


@pytest.fixture(scope="module")
def journey(make_history, tmp_path_factory) -> Journey:
    """split, every block, merge, validate, evaluate with submit=False, each once."""
    root = tmp_path_factory.mktemp("journey") / "data"
    paths = make_history().write(root)
    runs = {"split": run(root, SPLIT)}
    runs |= run_the_script(root)
    runs["merge"] = run(root, [*MERGE, "submit=False"])
    runs["validate"] = run(root, ["scripts/validate.py", f"entry={root}/embeddings_local/basics"])
    runs["evaluate"] = run(root, EVALUATE)
    return Journey(paths, runs)


@pytest.fixture(scope="module")
def first_blocks(journey) -> dict[str, EmbeddingTable]:
    """The blocks as the journey made them, read before any test makes them again."""
    return {name: EmbeddingTable.read(journey.paths.block(name, submit=False)) for name in EMBEDDINGS}


@pytest.fixture(scope="module")
def submitted(journey) -> Journey:
    """A merge and its blocks with submit=True, after the split."""
    blocks = {name: EMBEDDINGS[name] for name in MERGED}
    return Journey(
        journey.paths, run_in_one_process(journey.paths.root, with_words({**blocks, "merge": MERGE}, "submit=True"))
    )


@pytest.fixture(scope="module")
def again(journey, first_blocks, submitted) -> dict[str, Done]:
    """The same command lines a second time."""
    assert first_blocks
    assert submitted.runs
    lines = with_words({**TEXTS, **EMBEDDINGS, "merge": MERGE}, "submit=False")
    return run_in_one_process(journey.paths.root, {**lines, "split": SPLIT})


@pytest.fixture(scope="module")
def overwritten(journey, again) -> dict[str, Done]:
    """Once more with overwrite=True, and PYTHONPATH as the seeds set it."""
    assert again
    lines = with_words({**EMBEDDINGS, "merge": MERGE}, "submit=False")
    lines = with_words({**lines, "split": SPLIT}, "overwrite=True")
    return run_in_one_process(journey.paths.root, lines, PYTHONPATH="./")


def changed_times(root: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file() and "hydra" not in path.parts}


# --- the journey -------------------------------------------------------------------------------------


def test_every_stage_succeeds_and_ends_with_its_line(journey):
    for name, done in journey.runs.items():
        assert done.code == 0, (name, done.err)
        assert "Traceback" not in done.out + done.err
        assert re.search(r" · [\d.]+ s · [\d,]+ MB · /", done.last), name
        assert done.last.endswith(str(journey.paths.raw / "input") if name == "split" else done.last.split(" · ")[-1])
    assert journey.runs["validate"].last.startswith("basics is valid (local) · ")


def test_the_split_leaves_history_windows_and_targets(journey):
    data = ChallengeData(journey.paths, submit=False)
    assert len(data.clients) > 50
    names = {path.name for path in journey.paths.target.iterdir()}
    assert {"train_target.parquet", "validation_target.parquet", "active_clients.npy"} <= names
    assert {f"{task.name}.npy" for task in TASKS if task.is_propensity} <= names


def test_the_local_entry_holds_the_clients_with_history(journey):
    data = ChallengeData(journey.paths, submit=False)
    ids, profiles = read_entry(journey.paths.embeddings(submit=False) / "basics")
    assert ids.tolist() == data.clients.tolist()
    columns = sum(EmbeddingTable.read(journey.paths.block(name, submit=False)).columns for name in MERGED)
    assert profiles.shape == (len(ids), columns + 1)  # the constant
    found = CLOSING.fullmatch(journey.runs["merge"].last)
    assert found["what"] == "basics"
    assert (int(found["clients"]), int(found["columns"])) == profiles.shape


def test_scores_lie_beside_what_was_scored_and_in_the_table(journey):
    folder = journey.paths.embeddings(submit=False)
    for file in (folder / "basics" / "scores_quick.json", folder / "stat_features.scores_quick.json"):
        scores = json.loads(file.read_text())
        tasks = [scores[task.name] for task in TASKS]
        assert all(0 <= value <= 1 and value == round(value, 4) for value in tasks)
        assert scores["sum"] == pytest.approx(sum(tasks), abs=1e-4)
        assert scores["probe"] == "quick"
        assert f"{scores['sum']:.4f}" in journey.runs["evaluate"].out
    assert "quick" in journey.runs["evaluate"].out


def test_hydras_output_lies_under_the_data_path(journey):
    assert (journey.paths.root / "hydra" / "split").is_dir()
    assert not (REPOSITORY / "outputs").exists()


def test_a_command_runs_from_any_folder_and_leaves_nothing_there(journey, tmp_path):
    entry = journey.paths.embeddings(submit=False) / "basics"
    done = run(journey.paths.root, ["scripts/validate.py", f"entry={entry}"], folder=tmp_path)
    assert done.code == 0
    assert list(tmp_path.iterdir()) == []


# --- submit=True -------------------------------------------------------------------------------------


def test_every_relevant_client_is_in_the_submitted_entry_once(submitted):
    assert {name: done.code for name, done in submitted.runs.items()} == dict.fromkeys(submitted.runs, 0)
    folder = submitted.paths.embeddings(submit=True) / "basics"
    relevant = np.load(submitted.paths.relevant_clients)
    assert violations(folder, relevant, local=False) == []
    assert sorted(read_entry(folder)[0].tolist()) == relevant.tolist()


# --- again -------------------------------------------------------------------------------------------


def test_a_second_run_says_that_it_was_done_before(again):
    for name, done in again.items():
        assert done.code == 0, (name, done.err)
        assert "done before" in done.last, name
        assert "overwrite=True" in done.last


def test_overwrite_makes_it_again_with_pythonpath_set(overwritten):
    for name, done in overwritten.items():
        assert done.code == 0, (name, done.err)
        assert "done before" not in done.out
        assert re.search(r" · [\d.]+ s · [\d,]+ MB · /", done.last), name


# --- the contract of an embedding command ------------------------------------------------------------


@pytest.mark.parametrize("name", EMBEDDINGS)
def test_contract_the_parquet(journey, first_blocks, name):
    assert first_blocks[name].columns > 0
    path = journey.paths.block(name, submit=False)
    columns = pl.read_parquet_schema(path)
    assert list(columns) == ["client_id", "embedding"]
    assert columns["client_id"] == pl.Int64
    assert columns["embedding"] == pl.Array(pl.Float32, first_blocks[name].columns)


@pytest.mark.parametrize("name", EMBEDDINGS)
def test_contract_clients_and_values(journey, first_blocks, name):
    block = first_blocks[name]
    assert len(set(block.client_ids.tolist())) == len(block) > 0
    assert set(block.client_ids.tolist()) <= set(ChallengeData(journey.paths, submit=False).clients.tolist())
    assert np.isfinite(block.vectors).all()
    assert len(np.unique(block.vectors, axis=0)) > len(block) // 2  # clients differ


@pytest.mark.parametrize("name", EMBEDDINGS)
def test_contract_the_lineage(journey, first_blocks, name):
    lineage = first_blocks[name].lineage
    data = ChallengeData(journey.paths, submit=False)
    assert lineage["name"] == name
    assert lineage["seed"] == 0
    assert lineage["fingerprint"] == data.fingerprint
    assert isinstance(lineage["config"], dict)
    assert {"python", "numpy", "polars"} <= lineage["versions"].keys()
    assert "data_path" not in lineage["config"]


@pytest.mark.parametrize("name", EMBEDDINGS)
def test_contract_same_seed_same_bits(journey, first_blocks, overwritten, name):
    assert "done before" not in overwritten[name].out
    found = EmbeddingTable.read(journey.paths.block(name, submit=False))
    assert found.client_ids.tobytes() == first_blocks[name].client_ids.tobytes()
    assert found.vectors.tobytes() == first_blocks[name].vectors.tobytes()
    for key in ("name", "config", "seed", "fingerprint", "versions"):
        assert found.lineage[key] == first_blocks[name].lineage[key]


@pytest.mark.parametrize("name", EMBEDDINGS)
def test_contract_the_closing_line(journey, first_blocks, name):
    found = CLOSING.fullmatch(journey.runs[name].last)
    assert found, journey.runs[name].last
    assert found["what"].partition(" (")[0] == name  # so small a model may rank below popularity, and then says so
    assert int(found["clients"].replace(",", "")) == len(first_blocks[name])
    assert int(found["columns"].replace(",", "")) == first_blocks[name].columns
    assert found["path"] == str(journey.paths.block(name, submit=False))


# --- faults ------------------------------------------------------------------------------------------


def lines_of(done: Done) -> list[str]:
    """The error lines of a command that failed as it should."""
    assert done.code == 1
    assert "Traceback" not in done.err
    lines = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert lines == done.err.splitlines()[-len(lines) :]
    return lines


@pytest.mark.parametrize("name", ALL)
def test_an_unknown_key_is_one_line_that_names_the_known_ones(name, monkeypatch, capsys):
    """In this process: nothing but the command line is read before it fails."""
    program, *arguments = ALL[name]
    monkeypatch.setattr(sys, "argv", [program, *arguments, "sumbit=False"])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")  # the command sets it: put back afterwards
    with pytest.raises(SystemExit) as exit_:
        importlib.import_module(program.removesuffix(".py").replace("/", ".")).main()
    assert exit_.value.code == 1
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    assert line.startswith("error: sumbit: unknown setting (did you mean submit?); known: ")
    assert {"submit", "seed", "overwrite", "data_path"} <= set(line.partition("known: ")[2].split(", "))


def broken(journey: Journey, tmp_path: Path) -> DataPaths:
    """A copy of the journey's data for a test that breaks it."""
    root = tmp_path / "data"
    shutil.copytree(journey.paths.root, root, ignore=shutil.ignore_patterns("hydra"))
    return DataPaths(root)


def fails(paths: DataPaths, words: Sequence[str], *parts: str) -> None:
    """The command ends with one line that holds the parts, and changes no file."""
    before = changed_times(paths.root)
    (line,) = lines_of(run(paths.root, words))
    for part in parts:
        assert part in line
    assert changed_times(paths.root) == before


def test_split_of_a_broken_log(journey, tmp_path):
    paths = broken(journey, tmp_path)
    file = paths.raw / "add_to_cart.parquet"
    table = pl.read_parquet(file)
    table.with_columns(timestamp=pl.lit("yesterday")).write_parquet(file)
    fails(
        paths, [*SPLIT, "overwrite=True"], f"{file}: column timestamp: {len(table)} of {len(table)} rows", "yesterday"
    )


def test_an_embedding_of_broken_codes(journey, tmp_path):
    paths = broken(journey, tmp_path)
    file = paths.input / "search_query.parquet"
    pl.read_parquet(file).with_columns(query=pl.lit("[1 2 3]")).write_parquet(file)
    words = [*EMBEDDINGS["stat_features"], "submit=False", "overwrite=True"]
    fails(paths, words, f"{file}: column query", "16 numbers in 0..255", "[1 2 3]")


def test_an_embedding_with_repeated_relevant_clients(journey, tmp_path):
    paths = broken(journey, tmp_path)
    clients = np.load(paths.relevant_clients)
    np.save(paths.relevant_clients, np.append(clients, clients[0]))
    words = [*EMBEDDINGS["als_64_visits_relevant"], "submit=False", "overwrite=True"]
    fails(paths, words, f"{paths.relevant_clients}: 1 of", "repeated", str(clients[0]))


def test_a_merge_of_a_block_that_does_not_exist(journey, tmp_path):
    paths = broken(journey, tmp_path)
    words = [*MERGE, "submit=False", "overwrite=True", "+blocks.als_32={}"]
    fails(paths, words, "als_32.parquet: no such block (als_32)", "there are: als_64_buy_add_categories, als_64_visits")


def test_a_merge_of_blocks_of_another_history(journey, tmp_path):
    paths = broken(journey, tmp_path)
    file = paths.input / "page_visit.parquet"
    pl.read_parquet(file)[1:].write_parquet(file)
    before = changed_times(paths.embeddings(submit=False))
    lines = lines_of(run(paths.root, [*MERGE, "submit=False"]))
    for name, line in zip(MERGED, lines, strict=True):
        assert f"{name}.parquet: made from another history" in line
    assert changed_times(paths.embeddings(submit=False)) == before


def test_validate_lists_every_violation(journey, tmp_path):
    ids, profiles = read_entry(journey.paths.embeddings(submit=False) / "basics")
    np.save(tmp_path / "client_ids.npy", ids[:-1].astype(np.int32))
    np.save(tmp_path / "embeddings.npy", np.where(profiles == profiles[0, 0], np.nan, profiles).astype(np.float32))
    lines = lines_of(run(journey.paths.root, ["scripts/validate.py", f"entry={tmp_path}", "local=True"]))
    assert len(lines) == 4
    for line, part in zip(lines, ("dtype int32", "dtype float32", "rows for", "NaN"), strict=True):
        assert part in line


def test_no_data_at_all(tmp_path):
    (line,) = lines_of(run(tmp_path / "nowhere", SPLIT))
    assert f"{tmp_path}/nowhere/raw: folder missing" in line
    assert "CHALLENGE_DATA_PATH" in line


def test_a_changed_setting_or_history_is_no_reason_to_skip(journey, tmp_path):
    paths = broken(journey, tmp_path)
    seed = run(paths.root, [*EMBEDDINGS["stat_features"], "submit=False", "seed=1"])
    assert seed.code == 0
    assert "made with another seed: making it again" in seed.err
    file = paths.raw / "page_visit.parquet"
    pl.read_parquet(file)[1:].write_parquet(file)
    split = run(paths.root, SPLIT)
    assert split.code == 0
    assert "done before" not in split.out
