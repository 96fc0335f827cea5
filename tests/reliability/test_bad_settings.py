"""Command lines: unknown settings, and values that make no sense, of every command."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import numpy as np
import pytest

from tests.conftest import synthetic
from tests.reliability.bad_settings import commands, settings_of, wrong_value
from tests.reliability.mutations import drawn
from tests.reliability.trial import Trials, all_end_well
from ubp.blocks import registry
from ubp.blocks.embeddings import EmbeddingTable
from ubp.data.paths import DataPaths

COMMANDS: Final = commands()
QUICK: Final = ("split", "merge", "encode", "evaluate", "neighbours", "dcn")
LONG: Final = 12  # mutations of each command


def made(tmp_path_factory, names, monkeypatch, capfd) -> Path:
    root = tmp_path_factory.mktemp("made") / "data"
    synthetic().write(root)
    trials = Trials(root, root.parent, monkeypatch, capfd)
    for name in names:
        assert not trials.run(root, COMMANDS[name]).refused, name
    return root


@pytest.fixture(scope="module")
def cache() -> dict[str, Path]:
    return {}


@pytest.fixture
def everything(cache, tmp_path_factory, monkeypatch, capfd) -> Path:
    """The tiny log with all blocks and a merge."""
    if "all" not in cache:
        names = ["split", *(entry.name for entry in registry.entries()), "merge"]
        cache["all"] = made(tmp_path_factory, names, monkeypatch, capfd)
    return cache["all"]


def of_settings(name: str, seeds: range, trials: Trials, counts) -> Iterator[tuple[str, Callable[[], None]]]:
    words = COMMANDS[name]
    settings = settings_of(words)
    for seed in seeds:
        rng = np.random.default_rng([seed, len(settings), sum(name.encode())])
        setting = drawn(rng, settings)
        kind, wrong = wrong_value(rng, setting)

        def trial(kind: str = kind, wrong: str = wrong) -> None:
            with trials.copy({}) as root:
                words_here = [word.replace("ENTRY", f"{root}/embeddings_local/basics") for word in words]
                words_here = [word.replace("OUT", f"{root}/earlier") for word in words_here]
                ended = trials.run(root, [*words_here, wrong])
                if not ended.refused and name in {entry.name for entry in registry.blocks()}:
                    for path in DataPaths(root).embeddings(submit=False).glob("*.parquet"):
                        EmbeddingTable.read(path)
            assert all(len(line) < 1_500 for line in ended.lines), ended.lines
            counts[f"bad inputs: settings: {kind}: {'refused' if ended.refused else 'right results'}"] += 1

        yield f"{seed} {name} {wrong}", trial


@pytest.fixture(scope="module")
def log(tmp_path_factory) -> Path:
    """The tiny log, from which nothing was made."""
    root = tmp_path_factory.mktemp("log") / "data"
    synthetic().write(root)
    return root


def test_settings(log, tmp_path, monkeypatch, capfd, counts):
    """Commands that make no sense, or end before they learn: there is nothing to learn from."""
    trials = Trials(log, tmp_path, monkeypatch, capfd)
    all_end_well({what: trial for name in QUICK for what, trial in of_settings(name, range(2), trials, counts)})


@pytest.mark.long
@pytest.mark.parametrize("name", COMMANDS)
def test_many_settings(name, everything, tmp_path, monkeypatch, capfd, counts):
    trials = Trials(everything, tmp_path, monkeypatch, capfd)
    all_end_well(dict(of_settings(name, range(LONG), trials, counts)))
