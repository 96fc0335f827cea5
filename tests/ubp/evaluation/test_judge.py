"""The judge's model and its training against a second one, written from docs/judge.md with plain torch."""

import dataclasses
from concurrent.futures import CancelledError

import numpy as np
import pytest
import torch
from torch import nn
from torchmetrics.classification import BinaryAUROC, MultilabelAUROC

from ubp.data.targets import TASKS, Targets
from ubp.evaluation import judge as judge_module
from ubp.evaluation.judge import JudgeModel, TaskData, judge
from ubp.evaluation.probes import Probe

OF = {task.name: task for task in TASKS}
THIN, WIDE, COLUMNS, TARGETS = 24, 40, 9, 13
TINY = Probe("tiny", THIN, WIDE, seeds=(1278,))

pytestmark = pytest.mark.filterwarnings("ignore:No (positive|negative) samples in targets")


@pytest.fixture(autouse=True)
def _one_thread():
    """Models this small only wait for a second thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Reference(nn.Module):
    """Linear, LayerNorm; three times x + [LayerNorm, Linear, GELU, Linear]; LayerNorm; Linear."""

    def __init__(self, columns: int, targets: int, width: int, hidden: int) -> None:
        super().__init__()
        self.parts = nn.ModuleList([nn.Linear(columns, width), nn.LayerNorm(width)])
        for _ in range(3):
            self.parts.append(nn.LayerNorm(width))
        for _ in range(3):
            self.parts.append(nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width)))
        self.parts.extend([nn.LayerNorm(width), nn.Linear(width, targets)])

    def forward(self, x):
        linear, norm, norm_1, norm_2, norm_3, block_1, block_2, block_3, norm_out, out = self.parts
        x = norm(linear(x))
        x = x + block_1(norm_1(x))
        x = x + block_2(norm_2(x))
        x = x + block_3(norm_3(x))
        return out(norm_out(x))


def reference_epochs(data: TaskData, probe: Probe, seed: int) -> tuple[list[dict[str, float]], Reference]:
    """Each epoch's metrics, and the model as it is after the last."""
    torch.manual_seed(seed)
    targets = data.train.shape[1]
    model = Reference(data.profiles.shape[1], targets, probe.width, probe.hidden)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.001)
    loss_of = nn.BCEWithLogitsLoss()
    epochs = []
    for _ in range(3):
        for x, y in zip(data.profiles.split(128), data.train.split(128), strict=True):
            optimizer.zero_grad()
            loss_of(model(x), y.float()).backward()
            optimizer.step()
        with torch.no_grad():
            batches = [model(x) for x in data.profiles.split(128)]
        auroc = MultilabelAUROC(targets) if data.targets else BinaryAUROC()
        for logits, y in zip(batches, data.validation.split(128), strict=True):
            auroc.update(logits, y.long())
        epoch = {"auroc": float(auroc.compute())}
        if data.targets:
            p = torch.sigmoid(torch.cat(batches)).double()
            popularity = torch.tensor(data.targets.popularity)
            popularity = popularity / popularity.sort(descending=True).values[:10].sum()
            best = p.argsort(dim=1, descending=True)[:, :10]
            mean = (p.gather(1, best) * popularity[best]).sum(1).mean()
            shares = p / p.sum(1, keepdim=True)
            epoch["novelty"] = float((1 - mean) ** 100)
            epoch["diversity"] = float((-(shares * (shares + 1e-9).log2()).sum(1) / np.log2(targets)).mean())
        epochs.append(epoch)
    return epochs, model


def task_data(name: str, rows: int = 300, seed: int = 0) -> TaskData:
    rng = np.random.default_rng(seed)
    targets = TARGETS if OF[name].is_propensity else 1
    profiles = rng.normal(0, 1, (rows, COLUMNS))
    chances = 1 / (1 + np.exp(2 - profiles @ rng.normal(0, 1, (COLUMNS, targets))))
    windows = [torch.tensor(rng.random((rows, targets)) < chances, dtype=torch.uint8) for _ in range(2)]
    asked = Targets(np.arange(targets), rng.integers(1, 99, targets).astype(float)) if OF[name].is_propensity else None
    return TaskData(OF[name], torch.tensor(profiles, dtype=torch.float32), *windows, asked)


def run(data: TaskData, probe: Probe = TINY, seed: int = 1278):
    return judge(data, probe, seed, lambda: None)


def test_the_default_probe_has_the_judges_numbers():
    probe = Probe()
    assert (probe.name, probe.width, probe.hidden, probe.epochs, probe.batch_size) == ("judge", 2048, 4096, 3, 128)
    assert (probe.learning_rate, probe.seeds) == (0.001, (1278,))


@pytest.mark.parametrize("seed", [1278, 0])
def test_the_first_weights_are_those_of_the_published_order(seed):
    torch.manual_seed(seed)
    found = list(JudgeModel(COLUMNS, TARGETS, THIN, WIDE).parameters())
    torch.manual_seed(seed)
    wanted = list(Reference(COLUMNS, TARGETS, THIN, WIDE).parameters())
    assert len(found) == len(wanted)
    # LayerNorms draw nothing, so the order of equal shapes is what matters.
    for ours, reference in zip(found, wanted, strict=True):
        assert torch.equal(ours, reference)


def test_the_model_computes_what_the_reference_computes():
    torch.manual_seed(0)
    model = JudgeModel(COLUMNS, TARGETS, THIN, WIDE)
    reference = Reference(COLUMNS, TARGETS, THIN, WIDE)
    with torch.no_grad():
        for ours, theirs in zip(model.parameters(), reference.parameters(), strict=True):
            theirs.copy_(ours.normal_(0, 0.3))
    x = torch.randn(50, COLUMNS)
    torch.testing.assert_close(model(x), reference(x))


@pytest.mark.parametrize("name", ["churn", "conversion", "propensity_category", "propensity_sku"])
def test_every_epochs_scores_are_the_references(name):
    data = task_data(name)
    found, (wanted, _) = run(data), reference_epochs(data, TINY, 1278)
    assert len(found) == len(wanted) == 3
    for ours, reference in zip(found, wanted, strict=True):
        for metric, value in reference.items():
            assert getattr(ours, metric) == pytest.approx(value, abs=1e-4), metric


def test_the_last_weights_are_the_references(monkeypatch):
    """Scores alone would not show another weight decay."""
    made = []

    def keep(*sizes):
        made.append(JudgeModel(*sizes))
        return made[-1]

    monkeypatch.setattr(judge_module, "JudgeModel", keep)
    data = task_data("propensity_category")
    run(data)
    _, reference = reference_epochs(data, TINY, 1278)
    for ours, theirs in zip(made[0].parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-5)


def test_the_profile_learns():
    data = task_data("conversion", rows=600)
    scores = run(data, dataclasses.replace(TINY, epochs=8))
    assert max(score.auroc for score in scores) > 0.75


def test_the_same_seed_gives_the_same_bits_and_another_does_not():
    data = task_data("propensity_sku")
    assert run(data) == run(data)
    assert run(data) != run(data, seed=1279)


def test_the_seed_alone_decides_whatever_was_drawn_before():
    data = task_data("conversion")
    first = run(data)
    torch.rand(100)
    assert run(data) == first


def test_after_epoch_is_called_each_time():
    calls = []
    judge(task_data("conversion"), TINY, 0, lambda: calls.append(1))
    assert len(calls) == 3


def test_what_is_called_before_a_batch_can_end_the_run():
    data, batches = task_data("conversion", rows=300), []
    judge(data, TINY, 0, lambda: None, lambda: batches.append(1))
    assert len(batches) == 3 * 2 * 3  # batches of 128, trained on and scored on, in each epoch

    def stop() -> None:
        raise CancelledError

    with pytest.raises(CancelledError):
        judge(data, TINY, 0, lambda: None, stop)


def step_of_logits(probe: Probe) -> float:
    """By how much an epoch of one batch changes the mean logit, of a target that nobody has."""
    profiles = torch.randn(64, 30, generator=torch.Generator().manual_seed(0))
    model = None

    class Kept(JudgeModel):
        def __init__(self, *sizes):
            nonlocal model
            super().__init__(*sizes)
            model, self.before = self, None

        def forward(self, x):
            logits = super().forward(x)
            self.before = logits.detach() if self.before is None else self.before
            return logits

    data = TaskData(OF["churn"], profiles, torch.zeros(64, 1), torch.eye(64)[:, :1].byte(), None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(judge_module, "JudgeModel", Kept)
        judge(data, probe, 0, lambda: None)
    with torch.no_grad():
        return float((model(profiles) - model.before).mean())


def test_a_narrow_model_that_imitates_a_wide_one_moves_as_fast():
    wide = step_of_logits(Probe("wide", 512, 1024, epochs=1))
    narrow, imitating = (step_of_logits(Probe("narrow", 128, 256, epochs=1, like_width=like)) for like in (None, 512))
    assert wide < -0.3
    assert narrow / wide < 0.4
    assert 0.5 < imitating / wide < 2


def test_every_weight_learns_once_and_only_inner_ones_faster():
    model = JudgeModel(COLUMNS, TARGETS, THIN, WIDE)
    usual, inner = judge_module.optimizer_of(model, Probe("x", THIN, WIDE, like_width=4 * THIN)).param_groups
    assert (usual["lr"], inner["lr"]) == (0.001, pytest.approx(0.004))
    assert len(inner["params"]) == 7
    assert len(usual["params"]) + 7 == len(list(model.parameters()))
