"""The network's parts against their formulas, written out in plain Python; and what it learns that others cannot."""

import math
from bisect import bisect_right
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from dcn.model import (
    CONTRASTIVE,
    CrossNetwork,
    Dcn,
    Input,
    InputSettings,
    InputStatistics,
    LossSettings,
    NetworkSettings,
    NumberSettings,
    QuantileEmbedding,
    contrastive,
)
from ubp.training.answers import mean_auroc, question_loss, rarity
from ubp.training.encode import encode
from ubp.training.fit import fit
from ubp.training.settings import TrainerSettings
from ubp.training.snapshot_source import (
    ADDED,
    BASKETS,
    BOUGHT,
    CENSORED,
    CHURN,
    CLIENTS,
    DAYS,
    LABELS,
    SCALARS,
    view_name,
)

QUANTILES, PARTS, WIDTH = 64, 32, 2
NUMBERS = NumberSettings("standardised", 6.0, QUANTILES, PARTS, WIDTH)
NETWORK = NetworkSettings(width=5, hidden=[7], cross_layers=2, cross_rank=None, input_dropout=0.0, dropout=0.0, head=0)
PLAIN = LossSettings({CONTRASTIVE: 0.0}, rare=0.0, temperature=0.1, mask=0.3)
ROWS = 9


# --- numbers ---------------------------------------------------------------------------------------------


COLUMNS = {
    "normal": lambda rng: rng.normal(size=1000),
    "constant": lambda rng: np.full(1000, 3.7),  # noqa: ARG005
    "heavy tail": lambda rng: rng.pareto(0.5, 1000),
    "mostly zero": lambda rng: np.where(rng.random(1000) < 0.7, 0, rng.poisson(3, 1000)),
    "two values": lambda rng: rng.random(1000) < 0.001,
    "huge": lambda rng: rng.normal(size=1000) * 1e30,
}


def embedding_of(statistics: InputStatistics) -> QuantileEmbedding:
    return QuantileEmbedding(torch.from_numpy(statistics.quantiles), torch.from_numpy(statistics.bounds), PARTS, WIDTH)


def slow_place(value: float, quantiles: list[float], low: float, high: float) -> int:
    """Interval × parts + part, by the definition."""
    interval = bisect_right(quantiles, value)
    ends = [low, *quantiles, high]
    start, end = ends[interval], ends[interval + 1]
    if value >= end:  # beyond the largest, unless the interval is a single value
        part = PARTS - 1 if value > end else 0 if start == end else PARTS - 1
    elif value <= start:
        part = 0
    else:
        part = min(int(np.float32(np.float32(value - start) / np.float32(end - start)) * PARTS), PARTS - 1)
    return interval * PARTS + part


@pytest.mark.parametrize("name", COLUMNS)
def test_a_number_falls_into_the_interval_and_part_that_plain_python_finds(name):
    rng = np.random.default_rng(1)
    column = COLUMNS[name](rng).astype(np.float32)
    statistics = InputStatistics.of(column[:, None], QUANTILES)
    standardised = (column - statistics.mean) / statistics.deviation
    # The values themselves, the borders, what lies between them and far outside.
    borders = np.concatenate([statistics.quantiles[0], statistics.bounds[0]])
    outside = np.array([-1e38, -50, 50, 1e38], np.float32)
    values = np.concatenate([standardised, borders, (borders[1:] + borders[:-1]) / 2, outside]).astype(np.float32)
    embedding = embedding_of(statistics)
    found = embedding.places(torch.from_numpy(values)[:, None])[:, 0].tolist()
    low, high = (np.float32(bound) for bound in statistics.bounds[0])
    assert found == [slow_place(value, list(statistics.quantiles[0]), low, high) for value in values]
    assert set(found) <= set(range(65 * 32))
    assert found[-4] == 0
    assert found[-1] == 65 * 32 - 1


def test_quantiles_are_values_of_the_column_and_share_its_rows_evenly():
    column = np.random.default_rng(0).permutation(6500).astype(np.float32)
    statistics = InputStatistics.of(column[:, None], QUANTILES)
    places = embedding_of(statistics).places(
        torch.from_numpy((column - statistics.mean) / statistics.deviation)[:, None]
    )
    counts = np.bincount(places[:, 0] // PARTS, minlength=65)
    assert abs(counts - 100).max() <= 1
    ordered = np.sort(column)
    wanted = [ordered[math.floor((len(column) - 1) * (place + 1) / 65)] for place in range(QUANTILES)]
    np.testing.assert_array_equal(statistics.quantiles[0], (np.array(wanted) - statistics.mean) / statistics.deviation)


def test_a_value_that_many_rows_have_is_its_own_interval():
    """In the network's float32 it is the very quantile, however its mean and deviation round."""
    rng = np.random.default_rng(3)
    column = np.where(rng.random(1000) < 0.5, 1 / 3, rng.random(1000)).astype(np.float32)
    made = Input(InputStatistics.of(column[:, None], QUANTILES), InputSettings(), replace(NUMBERS, form="quantiles"))
    whole = (torch.from_numpy(column)[:, None] - made.mean) / made.deviation
    intervals = made.embedding.places(whole)[:, 0] // PARTS
    common = column == np.float32(1 / 3)
    assert len(set(intervals[common].tolist())) == 1
    assert (made.embedding.quantiles == whole[common][0]).any()


def test_each_part_of_each_column_has_a_vector_of_its_own():
    rng = np.random.default_rng(2)
    table = np.stack([rng.normal(size=400), rng.pareto(1, 400)], axis=1).astype(np.float32)
    statistics = InputStatistics.of(table, QUANTILES)
    embedding = embedding_of(statistics)
    standardised = torch.from_numpy((table - statistics.mean) / statistics.deviation)
    assert embedding.table.weight.shape == (2 * 65 * 32, WIDTH)
    places, weight = embedding.places(standardised).tolist(), embedding.table.weight
    wanted = [torch.cat([weight[first], weight[65 * 32 + second]]) for first, second in places]
    torch.testing.assert_close(embedding(standardised), torch.stack(wanted))
    assert embedding.width == 2 * WIDTH


def test_a_constant_column_is_zero_and_others_are_standardised_and_cut():
    table = np.array([[5, 0, 1], [5, 0, 3], [5, 0, 5], [5, 1e6, 7]], np.float32)
    made = Input(InputStatistics.of(table, 3), InputSettings(), replace(NUMBERS, limit=1.5))
    found = made(torch.from_numpy(table)).numpy()
    deviation = table.std(axis=0)
    deviation[0] = 1
    np.testing.assert_allclose(found, ((table - table.mean(axis=0)) / deviation).clip(-1.5, 1.5), rtol=1e-5)
    assert (found[:, 0] == 0).all()
    assert found.max() == 1.5


@pytest.mark.parametrize(
    ("settings", "form", "width"),
    [
        (InputSettings(), "standardised", 3),
        (InputSettings(), "quantiles", 6),
        (InputSettings(), "both", 9),
        (InputSettings("vector", 4), "both", 4),
    ],
)
def test_an_input_is_as_wide_as_it_says(settings, form, width):
    table = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    made = Input(InputStatistics.of(table, QUANTILES), settings, replace(NUMBERS, form=form))
    assert made(torch.from_numpy(table)).shape == (50, width)
    assert made.width == width


# --- the cross network -----------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [None, 2])
def test_cross_layers_are_their_formula(rank):
    torch.manual_seed(0)
    cross = CrossNetwork(4, 3, rank)
    x = torch.randn(6, 4)
    wanted = []
    for row in x.double().numpy():
        current = row
        for layer in cross.layers:
            if rank is None:
                matrix, bias = layer.weight.detach().double().numpy(), layer.bias.detach().double().numpy()
            else:
                inner, outer = layer
                matrix = outer.weight.detach().double().numpy() @ inner.weight.detach().double().numpy()
                bias = outer.bias.detach().double().numpy()
                assert np.linalg.matrix_rank(matrix) == rank
            crossed = [sum(matrix[i, j] * current[j] for j in range(4)) + bias[i] for i in range(4)]
            current = np.array([row[i] * crossed[i] + current[i] for i in range(4)])
        wanted.append(current)
    np.testing.assert_allclose(cross(x).detach().numpy(), np.array(wanted), rtol=1e-4, atol=1e-6)


# --- the losses ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clients", [[1, 2, 3, 4, 5], [7, 2, 7, 7, 2], [9, 9, 9, 9, 9]])
def test_the_contrastive_loss_is_its_loops(clients):
    rng = np.random.default_rng(0)
    one, other, temperature = rng.normal(size=(5, 3)), rng.normal(size=(5, 3)), 0.2

    def cosine(a, b):
        return float(a @ b / math.sqrt(a @ a) / math.sqrt(b @ b))

    total = 0.0
    for mine, theirs in ((one, other), (other, one)):
        for row in range(5):
            among = [column for column in range(5) if column == row or clients[column] != clients[row]]
            scores = {column: math.exp(cosine(mine[row], theirs[column]) / temperature) for column in among}
            total -= math.log(scores[row] / sum(scores.values())) / 5 / 2
    found = contrastive(torch.from_numpy(one), torch.from_numpy(other), torch.tensor(clients), temperature)
    assert float(found) == pytest.approx(total)


def test_the_contrastive_loss_does_not_drive_a_client_from_itself_on_another_day():
    """Nothing that is learned from pushes two days of one client apart; two clients it does."""
    one, other = torch.eye(2, 3, requires_grad=True), torch.eye(2, 3)
    contrastive(one, other, torch.tensor([4, 4]), 0.1).backward()
    assert (one.grad == 0).all()
    contrastive(one, other, torch.tensor([4, 5]), 0.1).backward()
    assert (one.grad != 0).any()


def cross_entropy(logit: float, label: float) -> float:
    probability = 1 / (1 + math.exp(-logit))
    return -math.log(probability if label else 1 - probability)


def slow_question(name: str, answer: float, label: float, censored: float) -> float:
    if name == BASKETS:  # Poisson, without the label's factorial
        return math.exp(answer) - label * answer
    if name == DAYS:  # minus the logarithm of the exponential density, or of the share that waits longer
        rate = math.exp(answer)
        return rate * label if censored else -math.log(rate * math.exp(-rate * label))
    return cross_entropy(answer, label)


def batch_of(rng, labels=0, blocks=(("numbers", 4),), views=0, rows=ROWS) -> dict[str, torch.Tensor]:
    scalars = {
        CHURN: np.where(rng.random(rows) < 0.3, np.nan, rng.integers(0, 2, rows)),
        BOUGHT: rng.integers(0, 2, rows),
        ADDED: rng.integers(0, 2, rows),
        BASKETS: rng.poisson(1, rows),
        DAYS: rng.random(rows) * 30,
        CENSORED: rng.integers(0, 2, rows),
    }
    batch = {name: torch.from_numpy(np.asarray(values, np.float32)) for name, values in scalars.items()}
    for block, columns in blocks:
        for name in (block, *(view_name(block, view) for view in range(views))):
            batch[name] = torch.from_numpy(rng.normal(size=(rows, columns)).astype(np.float32))
    batch[LABELS] = torch.from_numpy(rng.integers(0, 2, (rows, labels)).astype(np.uint8))
    return batch | ({CLIENTS: torch.arange(rows) // 2} if views else {})


@pytest.mark.parametrize("name", [CHURN, BOUGHT, ADDED, BASKETS, DAYS])
def test_questions_are_their_loops_and_rows_without_an_answer_do_not_count(name):
    rng = np.random.default_rng(4)
    batch, answer = batch_of(rng), torch.from_numpy(rng.normal(size=ROWS).astype(np.float32)).requires_grad_()
    wanted = [
        slow_question(name, a, label, censored)
        for a, label, censored in zip(answer.tolist(), batch[name].tolist(), batch[CENSORED].tolist(), strict=True)
        if not math.isnan(label)
    ]
    loss = question_loss(name, answer, batch)
    assert loss.item() == pytest.approx(sum(wanted) / ROWS, rel=1e-5)
    loss.backward()
    has_answer = ~batch[name].isnan()
    assert (answer.grad[has_answer] != 0).all()
    assert (answer.grad[~has_answer] == 0).all()
    assert (~has_answer).any() == (name == CHURN)


def test_a_question_that_no_row_answers_costs_nothing():
    batch = batch_of(np.random.default_rng(0)) | {ADDED: torch.full((ROWS,), math.nan)}
    answer = torch.zeros(ROWS, requires_grad=True)
    loss = question_loss(ADDED, answer, batch)
    loss.backward()
    assert loss.item() == 0
    assert (answer.grad == 0).all()


def test_a_rate_out_of_all_bounds_gives_a_finite_loss():
    batch = batch_of(np.random.default_rng(0))
    for name in (BASKETS, DAYS):
        assert all(torch.isfinite(question_loss(name, torch.full((ROWS,), value), batch)) for value in (-1e4, 1e4))


def test_rare_labels_weigh_more():
    shares = np.array([0.5, 0.04, 0.0, 0.01], np.float32)
    raw = [1 / math.sqrt(share) for share in (0.5, 0.04, 0.01, 0.01)]  # no row has the third: as the rarest
    found = rarity(torch.from_numpy(shares), 0.5)
    np.testing.assert_allclose(found, np.array(raw) / np.mean(raw), rtol=1e-6)
    assert rarity(torch.from_numpy(shares), 0.0).tolist() == [1, 1, 1, 1]
    assert rarity(torch.zeros(3), 0.5).tolist() == [1, 1, 1]


GROUPS = {"some": np.array([0.1, 0.4, 0.0], np.float32), "others": np.array([0.9], np.float32)}
BLOCKS = (("numbers", 4), ("vector", 3))


def model_of(networks=1, seed=0, losses=PLAIN, asked=(CHURN, BASKETS, DAYS), **changes) -> Dcn:
    rng = np.random.default_rng(0)
    inputs = {
        name: (InputStatistics.of(rng.normal(size=(40, columns)).astype(np.float32), QUANTILES), InputSettings(name, 3))
        for name, columns in BLOCKS
    }
    torch.manual_seed(seed)
    return Dcn(inputs, NUMBERS, replace(NETWORK, **changes), networks, GROUPS, asked, losses)


@pytest.mark.parametrize("rare", [0.0, 0.5])
def test_a_groups_loss_is_the_mean_over_its_rows_and_labels(rare):
    weights = {"some": 2.0, BASKETS: 0.5, CONTRASTIVE: 0.0}
    model = model_of(losses=LossSettings(weights, rare, 0.1, 0.3)).eval()
    batch = batch_of(np.random.default_rng(1), labels=4, blocks=BLOCKS)
    (network,) = model.networks
    profile = model.encode(batch)
    total, first = 0.0, 0
    for name, shares in GROUPS.items():
        answers, wanted = network.heads[name](profile).tolist(), batch[LABELS][:, first : first + len(shares)].tolist()
        factors = rarity(torch.from_numpy(shares), rare).tolist()
        each = [
            cross_entropy(answers[row][label], wanted[row][label]) * factors[label]
            for row in range(ROWS)
            for label in range(len(shares))
        ]
        total += weights.get(name, 1.0) * sum(each) / len(each)
        first += len(shares)
    for name in model.asked:
        answer = network.heads[name](profile)[:, 0]
        total += weights.get(name, 1.0) * float(question_loss(name, answer, batch).detach())
    assert float(model.loss(batch)) == pytest.approx(total, rel=1e-5)


def test_the_contrastive_loss_joins_where_the_batch_has_views():
    batch = batch_of(np.random.default_rng(1), labels=4, blocks=BLOCKS, views=2)
    without = {name: values for name, values in batch.items() if ":" not in name}
    on = model_of(losses=replace(PLAIN, weights={CONTRASTIVE: 0.7})).eval()
    off = model_of().eval()
    profiles = [on.encode({name: batch[view_name(name, view)] for name, _ in BLOCKS}) for view in range(2)]
    more = 0.7 * contrastive(*profiles, batch[CLIENTS], 0.1)
    assert len(set(batch[CLIENTS].tolist())) < ROWS
    assert float(on.loss(batch)) == pytest.approx(float(off.loss(batch) + more), rel=1e-5)
    assert float(on.loss(without)) == float(off.loss(batch))  # in validation
    assert float(more) > 0


# --- experts -----------------------------------------------------------------------------------------------


def slow_expert(expert, x):
    return torch.nn.functional.gelu(expert[0].weight @ x + expert[0].bias)


def slow_gate(gate, x, read):
    weights = torch.softmax(gate.weight @ x + gate.bias, dim=0)
    return sum(weight * expert for weight, expert in zip(weights, read, strict=True))


def slow_extraction(extraction, x):
    """Row by row, as in the paper: what each task reads after all levels."""
    of_tasks, of_all = dict.fromkeys(extraction.tasks, x), x
    for level in extraction:
        shared = [slow_expert(expert, of_all) for expert in level.shared]
        own = {name: slow_expert(level.own[name], of_tasks[name]) for name in of_tasks}
        read = {name: slow_gate(level.gates[name], of_tasks[name], [own[name], *shared]) for name in own}
        if level.gate_of_all is not None:
            of_all = slow_gate(level.gate_of_all, of_all, [*own.values(), *shared])
        of_tasks = read
    return of_tasks


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_experts_against_the_paper(levels):
    model = model_of(extraction=levels, experts=3)
    (network,) = model.networks
    profile = torch.randn(4, NETWORK.width)
    found = network.answers(profile)
    assert list(found) == [*model.groups, *model.asked]
    for row, x in enumerate(profile):
        for name, read in slow_extraction(network.extraction, x).items():
            torch.testing.assert_close(found[name][row], network.heads[name](read))


def test_all_experts_learn_and_the_last_level_has_no_gate_that_nothing_reads():
    model = model_of(extraction=2)
    sum(
        answer.square().sum() for answer in model.networks[0].answers(torch.randn(4, NETWORK.width)).values()
    ).backward()
    assert all(weight.grad is not None for weight in model.networks[0].extraction.parameters())


@pytest.mark.parametrize("head", [0, 6])
def test_each_label_begins_at_its_share(head):
    model = model_of(networks=2, head=head)
    model.start_from_shares()
    silent = torch.zeros(1, 5)
    for network in model.networks:
        for name, shares in GROUPS.items():
            layers = network.heads[name]
            if head:  # without what the hidden layer adds
                torch.nn.init.zeros_(layers[0].weight)
                torch.nn.init.zeros_(layers[0].bias)
            found = network.answers(silent)[name].sigmoid()[0].tolist()
            assert found == pytest.approx(np.clip(shares, 1e-5, 1 - 1e-5).tolist(), abs=1e-6)


def test_networks_side_by_side_are_the_networks_one_by_one():
    together = model_of(networks=3).eval()
    batch = batch_of(np.random.default_rng(1), labels=4, blocks=BLOCKS)
    profiles, losses, answers = [], [], []
    for number in range(3):
        alone = model_of().eval()
        state = together.state_dict()
        mine, others = f"networks.{number}.", "networks."
        alone.load_state_dict(
            {name.replace(mine, "networks.0."): values for name, values in state.items() if name.startswith(mine)}
            | {name: values for name, values in state.items() if not name.startswith(others)}
        )
        profiles.append(alone.encode(batch))
        losses.append(float(alone.loss(batch)))
        answers.append(alone.answers(batch))
    assert together.width == 15
    torch.testing.assert_close(together.encode(batch), torch.cat(profiles, dim=1))
    assert float(together.loss(batch)) == pytest.approx(sum(losses), rel=1e-5)
    found = together.answers(batch)
    mean = torch.stack([each["some"].sigmoid() for each in answers]).mean(dim=0)
    torch.testing.assert_close(found["some"].sigmoid(), mean, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found[BASKETS], torch.stack([each[BASKETS] for each in answers]).mean(dim=0))


def test_the_mean_auroc_leaves_out_labels_that_all_or_no_rows_have():
    rng = np.random.default_rng(0)
    answers = rng.normal(size=(50, 4)).astype(np.float32)
    wanted = rng.integers(0, 2, (50, 4)).astype(np.float32)
    wanted[:, 1], wanted[:, 2] = 0, 1
    wanted[:20, 3] = np.nan
    scores = [
        roc_auc_score(wanted[:, 0], answers[:, 0]),
        roc_auc_score(wanted[20:, 3], answers[20:, 3]),
    ]
    found = mean_auroc(torch.from_numpy(answers), torch.from_numpy(wanted))
    assert found == pytest.approx(np.mean(scores), abs=1e-6)
    assert mean_auroc(torch.from_numpy(answers[:, 1:3]), torch.from_numpy(wanted[:, 1:3])) is None


# --- what it learns --------------------------------------------------------------------------------------


@dataclass
class Planted:
    """The label is whether two of the numbers have the same sign: neither alone says anything of it."""

    numbers: np.ndarray

    @property
    def labels(self):
        return (self.numbers[:, 0] * self.numbers[:, 1] > 0).astype(np.uint8)

    @property
    def lengths(self):
        return np.ones(len(self.numbers), np.int64)

    def batch(self, rows, generator=None):  # noqa: ARG002
        scalars = {name: torch.zeros(len(rows)) for name in SCALARS}
        labels = torch.from_numpy(self.labels[rows, None])
        return {"numbers": torch.from_numpy(self.numbers[rows]), LABELS: labels, **scalars}


@pytest.mark.parametrize(
    "network",
    [
        {"cross_layers": 2, "cross_rank": None, "hidden": [2]},
        pytest.param({"cross_layers": 2, "cross_rank": 3, "hidden": [2]}, marks=pytest.mark.full),
        pytest.param({"cross_layers": 0, "hidden": [64]}, marks=pytest.mark.full),
    ],
    ids=["cross", "low rank", "dense"],
)
def test_it_learns_a_product_of_two_numbers_that_a_linear_model_cannot(network, tmp_path):
    source = Planted(np.random.default_rng(0).normal(size=(4000, 4)).astype(np.float32))
    inputs = {"numbers": (InputStatistics.of(source.numbers, QUANTILES), InputSettings())}
    torch.manual_seed(0)
    model = Dcn(inputs, NUMBERS, replace(NETWORK, **network), 1, {"same": np.array([0.5], np.float32)}, (), PLAIN)
    trainer = TrainerSettings(
        max_epochs=9, patience=9, batch_size=64, learning_rate=0.01, accelerator="cpu", held_out=0.4, progress=False
    )
    trained = fit(model, source, trainer, tmp_path, seed=0)
    train, held_out = trained.parts.train, trained.parts.held_out
    linear = LogisticRegression().fit(source.numbers[train], source.labels[train])
    assert roc_auc_score(source.labels[held_out], linear.decision_function(source.numbers[held_out])) < 0.56
    with torch.inference_mode():
        answers = trained.model.eval().answers(source.batch(held_out))["same"]
    assert roc_auc_score(source.labels[held_out], answers[:, 0]) > 0.9
    profiles = encode(trained.model, source, trained.runtime)
    assert profiles.shape == (4000, 5)
    read = LogisticRegression(max_iter=500).fit(profiles[train], source.labels[train])
    assert roc_auc_score(source.labels[held_out], read.decision_function(profiles[held_out])) > 0.9
