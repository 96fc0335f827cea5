"""A training that is followed step by step is the judge's training, and what is said of its logits is true."""

import numpy as np
import pytest
import torch

from benchmarks.judge_steps import steps_of
from ubp.data.targets import TASKS, Targets
from ubp.evaluation.judge import TaskData, judge
from ubp.evaluation.probes import Probe

PROBE = Probe("tiny", 16, 32, epochs=2, batch_size=64)
pytestmark = pytest.mark.filterwarnings("ignore:No (positive|negative) samples in targets")


def new_skus(clients=150, labels=5):
    chance = np.random.default_rng(0)
    profiles = chance.normal(0, 3, (clients, 7)).astype(np.float32)
    windows = [torch.from_numpy((chance.random((clients, labels)) < 0.2).astype(np.uint8)) for _ in range(2)]
    (task,) = (task for task in TASKS if task.name == "propensity_new_sku")
    return TaskData(task, torch.from_numpy(profiles), *windows, Targets(np.arange(labels), np.ones(labels)))


def test_the_last_look_of_an_epoch_is_the_judges_score():
    found = list(steps_of(new_skus(), PROBE, 7, every=1))
    assert [step.epoch for step in found] == [1, 1, 1, 2, 2, 2]
    assert [step.step for step in found] == [1, 2, 3, 4, 5, 6]
    wanted = [epoch.auroc for epoch in judge(new_skus(), PROBE, 7, lambda: None)]
    assert [found[2].auroc, found[5].auroc] == wanted
    assert all(0 < step.moved < 1 and 0 <= step.common <= 1 for step in found)


def test_looks_are_as_many_as_asked_for_and_one_at_each_epochs_end():
    assert [step.step for step in steps_of(new_skus(), PROBE, 7, every=2)] == [2, 3, 4, 6]


def test_one_label_is_all_in_common():
    data = new_skus(labels=1)
    assert [step.common for step in steps_of(data, PROBE, 7, every=3)] == pytest.approx([1, 1])
