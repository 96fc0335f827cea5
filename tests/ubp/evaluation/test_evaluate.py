"""Evaluating: what was scored before is not scored again; torch is left as it was."""

import dataclasses

import numpy as np
import pytest
import torch

from ubp.data.history import ChallengeData
from ubp.data.targets import TASKS
from ubp.evaluation import evaluate as evaluation
from ubp.evaluation.probes import Probe
from ubp.evaluation.profiles import Profiles
from ubp.evaluation.scores import Scores
from ubp.io.errors import UserError

PROBE = Probe("light", 16, 32, epochs=1, seeds=(0,))


@pytest.fixture
def scored(history, monkeypatch):
    """Profiles, their data, and a list that grows whenever they are really scored."""
    data = ChallengeData(history, True)
    history.target.mkdir()
    (history.target / "train_target.parquet").write_text("windows")
    calls = []

    def score(profiles, probe, *_):
        calls.append(probe)
        return Scores(profiles.name, 2, probe.name, {task.name: 0.5 for task in TASKS}, 3.0, 0.0, {})

    monkeypatch.setattr(evaluation, "score_anew", score)
    profiles = Profiles("a", history.root / "a.parquet", np.arange(3), np.ones((3, 2), np.float32))
    return profiles, data, calls


def evaluate(profiles, data, probe=PROBE, overwrite=False) -> Scores:
    return evaluation.evaluate(profiles, probe, data, "cpu", overwrite)


def test_the_same_is_scored_once(scored):
    profiles, data, calls = scored
    assert evaluate(profiles, data) == evaluate(profiles, data)
    assert len(calls) == 1
    evaluate(profiles, data, overwrite=True)
    assert len(calls) == 2


@pytest.mark.parametrize("change", ["vectors", "clients", "labels", "probe"])
def test_anything_else_is_scored_again(scored, change):
    profiles, data, calls = scored
    evaluate(profiles, data)
    probe = PROBE
    if change == "vectors":
        profiles.vectors[0, 0] = 2
    elif change == "clients":
        profiles = dataclasses.replace(profiles, client_ids=np.array([0, 2, 1]))
    elif change == "labels":
        (data.paths.target / "train_target.parquet").write_text("other windows")
    else:
        probe = dataclasses.replace(PROBE, epochs=2)
    evaluate(profiles, data, probe)
    assert len(calls) == 2


def test_a_device_that_is_not_there_is_one_line():
    assert evaluation.choose_device("cpu").type == "cpu"
    assert evaluation.choose_device("auto").type in ("cpu", "cuda")
    for name in ("gpu", "meta:x"):
        with pytest.raises(UserError, match=f"device={name}: .*try device=cpu"):
            evaluation.choose_device(name)


@pytest.mark.parametrize("before", [(False, False), (True, True), (True, False)])
def test_torchs_choice_of_algorithms_is_left_as_it_was(before):
    enabled, warn_only = before
    torch.use_deterministic_algorithms(enabled, warn_only=warn_only)
    try:
        with evaluation.deterministic(not enabled):
            assert torch.are_deterministic_algorithms_enabled() is not enabled
        now = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
        assert now == before
    finally:
        torch.use_deterministic_algorithms(False)
