"""Every metric against a slow, obvious re-implementation of docs/judge.md, Scores."""

import math
import statistics

import numpy as np
import pytest
import torch
from torchmetrics.classification import BinaryAUROC, MultilabelAUROC

from ubp.data.targets import TASKS, Targets
from ubp.evaluation.metrics import TaskMetrics, TaskScore, entropies, normalised_popularity, top_popularities

CPU = torch.device("cpu")
OF = {task.name: task for task in TASKS}
BATCH = 128

pytestmark = pytest.mark.filterwarnings("ignore:No (positive|negative) samples in targets")


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def pairwise_auroc(scores: list[float], labels: list[int]) -> float:
    """The share of pairs of a positive and a negative that stand in the right order; ties count half."""
    positives = [score for score, label in zip(scores, labels, strict=True) if label]
    negatives = [score for score, label in zip(scores, labels, strict=True) if not label]
    if not positives or not negatives:
        return 0.0  # as torchmetrics counts a label without positives
    wins = sum((p > n) + 0.5 * (p == n) for p in positives for n in negatives)
    return wins / (len(positives) * len(negatives))


def slow_diversity(logits: list[list[float]]) -> float:
    entropies = []
    for row in logits:
        p = [sigmoid(x) for x in row]
        shares = [x / sum(p) for x in p]
        entropies.append(-sum(x * math.log2(x + 1e-9) for x in shares) / math.log2(len(row)))
    return statistics.fmean(entropies)


def slow_novelty(logits: list[list[float]], popularity: list[float]) -> float:
    largest = sum(sorted(popularity, reverse=True)[:10])
    popularity = [x / largest for x in popularity]
    rows = []
    for row in logits:
        best = sorted(range(len(row)), key=lambda column: row[column], reverse=True)[:10]
        rows.append(sum(sigmoid(row[column]) * popularity[column] for column in best))
    return (1 - statistics.fmean(rows)) ** 100


def in_batches(metrics: TaskMetrics, logits: torch.Tensor, labels: torch.Tensor) -> TaskScore:
    for start in range(0, len(logits), BATCH):
        metrics.update(logits[start : start + BATCH], labels[start : start + BATCH])
    return metrics.compute()


def draw(rows: int, columns: int, seed: int, spread: float = 2.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits outside 0..1 and labels that follow them a little; the last column has no positives."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(-1.5, spread, (rows, columns))
    labels = rng.random((rows, columns)) < 1 / (1 + np.exp(-logits - rng.normal(0, 1, (rows, columns))))
    if columns > 1:
        labels[:, -1] = False
    return torch.tensor(logits, dtype=torch.float32), torch.tensor(labels, dtype=torch.uint8)


@pytest.mark.parametrize("rows", [300, 256, 7])
@pytest.mark.parametrize("columns", [12, 25])
def test_a_propensity_task(rows, columns):
    logits, labels = draw(rows, columns, seed=rows)
    popularity = np.random.default_rng(columns).integers(1, 500, columns).astype(np.float64)
    targets = Targets(np.arange(columns), popularity)
    found = in_batches(TaskMetrics(OF["propensity_sku"], targets, CPU), logits, labels)
    # sigmoid is monotone, so pairs of logits stand in the order of their sigmoids
    aurocs = [pairwise_auroc(logits[:, n].tolist(), labels[:, n].tolist()) for n in range(columns)]
    assert found.auroc == pytest.approx(statistics.fmean(aurocs), abs=1e-5)
    assert found.diversity == pytest.approx(slow_diversity(logits.tolist()), abs=1e-5)
    assert found.novelty == pytest.approx(slow_novelty(logits.tolist(), popularity.tolist()), rel=1e-3, abs=1e-9)
    assert found.score == pytest.approx(0.8 * found.auroc + 0.1 * found.novelty + 0.1 * found.diversity)


def test_rows_are_taken_one_by_one():
    logits, _ = draw(5, 12, seed=4)
    popularity = torch.linspace(0, 1, 12)
    of_rows = [slow_diversity([row]) * math.log2(12) for row in logits.tolist()]
    assert entropies(logits).tolist() == pytest.approx(of_rows, abs=1e-5)
    best = [sorted(zip(map(sigmoid, row), popularity.tolist(), strict=True))[-10:] for row in logits.tolist()]
    assert top_popularities(logits, popularity).tolist() == pytest.approx([sum(p * q for p, q in row) for row in best])


def test_a_share_of_nothing_adds_nothing_to_the_diversity():
    logits = [[-60.0, 0.5, -1.0], [-200.0, -1.0, 2.0]]
    assert entropies(torch.tensor(logits)).mean() / math.log2(3) == pytest.approx(slow_diversity(logits), abs=1e-6)


def test_novelty_where_it_is_not_next_to_zero():
    logits, labels = draw(200, 40, seed=1)
    logits -= 5
    popularity = np.random.default_rng(1).integers(1, 500, 40).astype(np.float64)
    found = in_batches(TaskMetrics(OF["propensity_price"], Targets(np.arange(40), popularity), CPU), logits, labels)
    wanted = slow_novelty(logits.tolist(), popularity.tolist())
    assert 0.05 < wanted < 0.95
    assert found.novelty == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize("name", ["churn", "conversion"])
def test_a_binary_task(name):
    logits, labels = draw(300, 1, seed=3)
    found = in_batches(TaskMetrics(OF[name], None, CPU), logits, labels)
    assert found.auroc == pytest.approx(pairwise_auroc(logits[:, 0].tolist(), labels[:, 0].tolist()), abs=1e-5)
    assert (found.novelty, found.diversity, found.score) == (None, None, found.auroc)


@pytest.mark.parametrize("columns", [1, 15])
@pytest.mark.parametrize("spread", [0.02, 2.0], ids=["some batches within 0..1", "outside"])
def test_auroc_is_torchmetrics_fed_with_the_same_batches(columns, spread):
    logits, labels = draw(300, columns, seed=5, spread=spread)
    if spread < 1:  # torchmetrics takes the sigmoid of the second batch only
        logits = logits * 0.2 + 0.5
        logits[200] = -1
    auroc = BinaryAUROC() if columns == 1 else MultilabelAUROC(columns)
    for start in range(0, 300, BATCH):
        auroc.update(logits[start : start + BATCH], labels[start : start + BATCH].long())
    targets = None if columns == 1 else Targets(np.arange(columns), np.ones(columns))
    metrics = TaskMetrics(OF["conversion" if columns == 1 else "propensity_sku"], targets, CPU)
    assert in_batches(metrics, logits, labels).auroc == float(auroc.compute())


def test_a_label_without_positives_counts_as_zero():
    logits, labels = draw(50, 12, seed=0)
    labels[:, 1:] = 0
    metrics = TaskMetrics(OF["propensity_sku"], Targets(np.arange(12), np.ones(12)), CPU)
    first = pairwise_auroc(logits[:, 0].tolist(), labels[:, 0].tolist())
    assert in_batches(metrics, logits, labels).auroc == pytest.approx(first / 12, abs=1e-6)


def test_each_epoch_starts_afresh():
    metrics = TaskMetrics(OF["propensity_sku"], Targets(np.arange(12), np.arange(12.0)), CPU)
    in_batches(metrics, *draw(140, 12, seed=0))
    again = in_batches(metrics, *draw(140, 12, seed=1))
    fresh = TaskMetrics(OF["propensity_sku"], Targets(np.arange(12), np.arange(12.0)), CPU)
    assert again == in_batches(fresh, *draw(140, 12, seed=1))


def test_fewer_than_ten_targets():
    logits, labels = draw(60, 4, seed=2)
    popularity = np.array([4.0, 3.0, 2.0, 1.0])
    found = in_batches(TaskMetrics(OF["propensity_category"], Targets(np.arange(4), popularity), CPU), logits, labels)
    assert found.novelty == pytest.approx(slow_novelty(logits.tolist(), popularity.tolist()), rel=1e-3, abs=1e-9)


def test_a_single_target_has_no_diversity():
    logits, labels = draw(20, 1, seed=2)
    found = in_batches(TaskMetrics(OF["propensity_category"], Targets(np.arange(1), np.ones(1)), CPU), logits, labels)
    assert found.diversity == 0


def test_popularity_is_divided_by_its_ten_largest():
    popularity = np.arange(20.0)
    found = normalised_popularity(Targets(np.arange(20), popularity))
    assert found.numpy() == pytest.approx(popularity / sum(range(10, 20)))
    assert normalised_popularity(Targets(np.arange(3), np.zeros(3))).tolist() == [0, 0, 0]


def test_the_score_of_a_propensity_task_by_hand():
    assert TaskScore(0.5, 0.3, 0.2).score == pytest.approx(0.8 * 0.5 + 0.1 * 0.3 + 0.1 * 0.2)
    assert TaskScore(0.5).score == 0.5


def test_popularities_below_one_are_normalised_too():
    found = normalised_popularity(Targets(np.arange(3), np.array([0.1, 0.2, 0.1])))
    assert found.tolist() == pytest.approx([0.25, 0.5, 0.25])
