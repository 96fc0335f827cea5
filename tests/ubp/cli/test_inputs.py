"""The blocks that a block reads: found where their commands keep them, else the command to give."""

import shlex
from datetime import datetime, timedelta

import numpy as np
import pytest

from tests.ubp.blocks.toy import Purchases
from ubp.blocks.fitted import save
from ubp.blocks.registry import block
from ubp.cli.config import Common, composed
from ubp.cli.inputs import fitted_inputs
from ubp.data.history import ChallengeData
from ubp.data.paths import CONFIGS
from ubp.io.errors import UserError

NAMES = ["numeric_features_wide", "stat_features"]


@pytest.fixture
def opened(history):
    """The tiny history, its clients relevant."""
    history.relevant_clients.parent.mkdir()
    np.save(history.relevant_clients, np.arange(40))
    return ChallengeData(history, submit=True)


def kept(name: str, history: ChallengeData, fingerprint: str | None = None) -> None:
    folder = history.paths.model(name, history.submit)
    save(Purchases(np.ones(3, np.float32)), folder, {"fingerprint": fingerprint or history.fingerprint})


def refused(history: ChallengeData) -> list[str]:
    with pytest.raises(UserError) as caught:
        fitted_inputs(history, NAMES)
    return caught.value.messages


def test_they_come_in_the_order_of_their_names(opened):
    for name in NAMES:
        kept(name, opened)
    found = fitted_inputs(opened, NAMES[::-1])
    assert list(found) == NAMES[::-1]
    assert all(isinstance(each, Purchases) for each in found.values())


def test_each_that_is_not_there_or_of_another_history_is_one_line(opened):
    kept("stat_features", opened, "another")
    missing, other = refused(opened)
    assert missing.startswith("inputs.numeric_features_wide: no fitted block ")
    assert other.startswith("inputs.stat_features: ")
    assert "was fitted on another history, or as of another day; make it with: python stat_features/" in other


DAY = datetime(2023, 1, 20, 4, 30)


@pytest.mark.parametrize("submit", [True, False])
@pytest.mark.parametrize("unknown_sku", ["error", "drop"])
@pytest.mark.parametrize("day", [None, DAY])
@pytest.mark.parametrize("is_default", [True, False])
def test_the_command_opens_the_same_history(submit, unknown_sku, day, is_default, opened, monkeypatch):
    root = opened.paths.root
    if not submit:
        for file in root.glob("raw/*.parquet"):
            (opened.paths.input / file.name).symlink_to(file)
    monkeypatch.setenv("CHALLENGE_DATA_PATH", str(root if is_default else root / "elsewhere"))
    history = ChallengeData(opened.paths, submit, unknown_sku, day)
    for line in refused(history):
        python, script, *words = shlex.split(line.partition("make it with: ")[2])
        entry = next(entry for entry in map(block, NAMES) if f"inputs.{entry.name}:" in line)
        assert (python, script) == ("python", entry.command)
        assert ("data_path" in line.partition("with: ")[2]) is not is_default
        assert ("unknown_sku" in line) is (unknown_sku == "drop")
        settings = [word for word in words if not word.startswith("--")]
        given = Common.of(composed(CONFIGS / entry.folder, entry.config_name, settings))
        assert given.data().fingerprint == history.fingerprint


def test_a_folder_with_a_space_is_one_word(opened, tmp_path):
    spaced = tmp_path / "the log"
    opened.paths.root.rename(spaced)
    history = ChallengeData(type(opened.paths)(spaced), submit=True).before(DAY + timedelta(days=1))
    assert all(f"'data_path={spaced}'" in line for line in refused(history))
