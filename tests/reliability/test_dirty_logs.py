"""Logs that nobody cleaned: each command ends in a right result or in a line that says why not, in bounded memory."""

import re
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
import polars as pl
import pytest

from tests import tiny
from tests.conftest import History
from tests.reliability import dirty
from tests.reliability.trial import Ended, Trials
from ubp.blocks import registry
from ubp.blocks.embeddings import EmbeddingTable
from ubp.blocks.entry import violations
from ubp.data.history import ChallengeData
from ubp.data.paths import REPOSITORY, DataPaths

MERGES: Final = ("basics", "numeric", "best_solution_conditioned", "combined")
# What reads tables, without a network: their memory is measured on the large logs, and held below so many gigabytes.
MEASURED: Final = {"one client with ten million events": 4.0, "a million clients with one event each": 6.0}
TABLES: Final = (
    *("stat_features", "als_64_buy_add_categories", "als_64_visits_relevant", "lightfm", "numeric_features"),
    *("numeric_features_wide", "preprocessing_search", "convert_to_text"),
)
NETWORKS: Final = ("gru_ae_event_cat_price_sku_url", "next_sku_128_4_4", "next_url_192_6_4")  # of the first log alone


def written(history: History, root: Path) -> DataPaths:
    """The log on disk; all its clients are relevant, whether it can be split or not."""
    paths = history.write(root, "us")
    clients = pl.concat(table["client_id"] for table in history.events.values()).unique().sort().to_numpy()
    paths.relevant_clients.parent.mkdir()
    np.save(paths.relevant_clients, clients)
    return paths


def command_of(name: str) -> list[str]:
    (entry,) = (entry for entry in registry.entries() if entry.name == name)
    return [*entry.line.split(), *(tiny.overrides(entry) if entry.is_block else ("preset=demo",))]


def right(paths: DataPaths, name: str, ended: Ended) -> None:
    """A block of the clients with events; or there are too few events for it, in a line."""
    if ended.refused:
        no_fit = ("no fitted block", "file missing; make")  # of blocks that there are none of, a line each
        assert ended.code == 4 or all(any(words in line for words in no_fit) for line in ended.lines), ended.lines
        return
    path = paths.block(name, submit=True)
    if path.exists():
        table = EmbeddingTable.read(path)
        assert np.isin(table.client_ids, ChallengeData(paths, True).clients).all()
        assert len(np.unique(table.vectors, axis=0)) > min(20, len(table) // 10)


@pytest.mark.parametrize("name", dirty.SMALL)
def test_a_block_of_a_dirty_log(name, tmp_path, monkeypatch, capfd):
    paths = written(dirty.SMALL[name](), tmp_path / "data")
    trials = Trials(tmp_path, tmp_path / "none", monkeypatch, capfd)
    ended = trials.run(paths.root, command_of("stat_features"))
    assert not ended.refused
    right(paths, "stat_features", ended)


@pytest.mark.full
def test_ids_at_both_ends_give_the_vectors_of_usual_ones(tmp_path, monkeypatch, capfd):
    trials = Trials(tmp_path, tmp_path / "none", monkeypatch, capfd)
    found = []
    for name, history in (("ends", dirty.ends_of_int64()), ("usual", dirty.synthetic())):
        (tmp_path / name).mkdir()
        paths = written(history, tmp_path / name / "data")
        assert not trials.run(paths.root, command_of("stat_features")).refused
        found.append(EmbeddingTable.read(paths.block("stat_features", submit=True)))
    ends, usual = found
    assert ends.client_ids[0] == dirty.LOW
    assert ends.client_ids[-1] == dirty.HIGH
    np.testing.assert_allclose(ends.vectors, usual.vectors, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", dirty.REFUSED)
def test_a_log_without_purchases_is_one_line(name, tmp_path, monkeypatch, capfd):
    paths = written(dirty.REFUSED[name](), tmp_path / "data")
    trials = Trials(tmp_path, tmp_path / "none", monkeypatch, capfd)
    ended = trials.run(paths.root, command_of("stat_features"))
    (line,) = ended.lines
    assert line.startswith(f"{paths.raw / 'product_buy.parquet'}: no purchases at all")


LONG = ["a day of a hundred times the traffic", "one client with 100,000 events", "100,000 clients with one event each"]


@pytest.mark.full
@pytest.mark.parametrize(
    "name",
    [
        *(name for name in dirty.SMALL if name not in LONG),
        *(pytest.param(name, marks=pytest.mark.long) for name in LONG),
    ],
)
def test_every_command_on_a_dirty_log(name, tmp_path, monkeypatch, capfd):
    history = dirty.SMALL[name]() if name in dirty.SMALL else dirty.scattered(100_000)
    paths = written(history, tmp_path / "data")
    trials = Trials(tmp_path, tmp_path / "none", monkeypatch, capfd)
    ended = trials.run(paths.root, ["scripts/split.py"])
    assert not ended.refused or "leave no history before the train window" in ended.lines[0]
    for entry in registry.entries():
        right(paths, entry.name, trials.run(paths.root, command_of(entry.name)))
    for merge in MERGES:
        ended = trials.run(paths.root, ["scripts/merge.py", f"--config-name={merge}", "missing=skip"])
        assert not ended.refused or "none of the merge's" in ended.lines[-1]
        if not ended.refused:
            assert violations(paths.embeddings(submit=True) / merge, np.load(paths.relevant_clients), local=False) == []


# --- large logs, in processes of their own ----------------------------------------------------------------------------


def measured(words: Sequence[str], root: Path) -> tuple[int, str, float]:
    """Exit code, what was said last, and the largest memory, in gigabytes, as the closing line has it.

    What the system reports of a child begins with the memory of its parent.
    """
    command = [sys.executable, *words, f"data_path={root}"]
    with subprocess.Popen(
        command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        said = process.stdout.read()
    last = said.splitlines()[-1] if said else ""
    found = re.search(r" ([\d,]+) MB ", last)
    return process.returncode, last, int(found[1].replace(",", "")) / 1e3 if found else float("inf")


@pytest.mark.long
@pytest.mark.parametrize("name", MEASURED)
def test_the_memory_of_large_dirty_logs(name, tmp_path, counts: Counter[str], capsys):
    crowded = name.startswith("one client")
    paths = written(dirty.crowded(10_000_000) if crowded else dirty.scattered(1_000_000), tmp_path / "data")
    lines = {"split": ["scripts/split.py"]}
    lines |= {block: command_of(block) for block in (*TABLES, *(NETWORKS if crowded else ()))}
    lines |= {f"merge {merge}": ["scripts/merge.py", f"--config-name={merge}"] for merge in ("basics", "numeric")}
    faults = []
    for what, words in lines.items():
        code, last, gigabytes = measured(words, paths.root)
        with capsys.disabled():
            sys.stdout.write(f"{name} | {what} | {gigabytes:.2f} GB | {last}\n")
        counts[f"commands on a dirty log: {name}"] += 1
        if code != 0 or gigabytes > MEASURED[name]:
            faults.append(f"{what}: exit code {code}, {gigabytes:.2f} GB, {last}")
    assert not faults, "\n".join(faults)
