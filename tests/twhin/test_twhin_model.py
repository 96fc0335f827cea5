"""Score and loss against slow references, what counts as a negative, gradients, and a structure that is recovered."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.twhin.graphs import content, contents, graph, model, settings, source
from twhin.edges import EdgeSource
from twhin.fold_in import FoldInSettings
from twhin.model import Twhin, edge_loss
from twhin.recipe import fold_in_of, start_clients
from ubp.io.errors import UserError
from ubp.training.encode import Runtime

EDGES = [(0, 0, 0), (0, 1, 1), (0, 3, 0), (1, 1, 0), (1, 2, 0), (2, 2, 1), (2, 4, 1), (3, 0, 1), (3, 4, 0)]


def cosine(one: list[float], other: list[float]) -> float:
    product = sum(a * b for a, b in zip(one, other, strict=True))
    return product / math.sqrt(sum(a * a for a in one)) / math.sqrt(sum(b * b for b in other))


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def slow_loss(twhin: Twhin, edges: list[tuple[int, int, int]], batch: list[int], most: int) -> float:
    """The definition, one pair after the other; items of the first edges are negatives."""
    scale, offset = math.exp(twhin.log_scale.item()), twhin.offset.item()
    items = twhin.item_vectors(torch.arange(5)).tolist()
    relations, clients = twhin.relations.weight.tolist(), twhin.clients.weight.tolist()

    def score(client: int, item: int, relation: int) -> float:
        moved = [a + b for a, b in zip(items[item], relations[relation], strict=True)]
        return sigmoid(scale * cosine(clients[client], moved) + offset)

    own = {(client, item) for client, item, _ in edges}
    positives = [-math.log(score(*edges[row])) for row in batch]
    negatives = [
        -math.log(1 - score(edges[row][0], *edges[other][1:]))
        for row in batch
        for other in batch[:most]
        if (edges[row][0], edges[other][1]) not in own
    ]
    mean = sum(negatives) / max(len(negatives), 1)
    return sum(positives) / len(positives) + twhin.settings.negatives * mean


@pytest.mark.parametrize("changed", [{}, {"temperature": 1.0, "offset": False}, {"negatives": 5.0, "width": 3}])
def test_the_loss_is_the_cross_entropy_of_scores(changed):
    twhin = model(4, 5, **changed).eval()
    if changed.get("offset", True):
        torch.nn.init.constant_(twhin.offset, -0.7)
    batch = [0, 1, 2, 4, 5, 8]
    whole = graph(EDGES, 4, 5)
    for most in (6, 3, 1):
        found = twhin.loss(source(whole, negatives=most).batch(np.array(batch)))
        assert found.item() == pytest.approx(slow_loss(twhin, sorted(EDGES), batch, most), rel=1e-5)


def test_a_client_is_the_mean_of_its_other_edges_less_what_all_have_in_common():
    twhin = model(4, 5, client_vectors="others").eval()
    batch = source(graph(EDGES, 4, 5), others=3).batch(np.array([0, 3, 7]), np.random.default_rng(0))
    targets = twhin.targets(batch["item"], batch["relation"])
    found = twhin.client_vectors(batch, targets)
    for row in range(3):
        drawn = [place for place in range(3) if batch["other"][row, place]]
        met = [twhin.targets(batch["other_item"][row, [k]], batch["other_relation"][row, [k]])[0] for k in drawn]
        wanted = torch.stack(met).mean(dim=0) - targets.mean(dim=0) if met else torch.zeros(6)
        torch.testing.assert_close(found[row], torch.nn.functional.normalize(wanted, dim=0), atol=1e-5, rtol=1e-4)


def test_a_client_of_whom_nothing_else_is_known_has_the_offset_alone():
    twhin = model(2, 2, client_vectors="others").eval()
    torch.nn.init.constant_(twhin.offset, -0.3)
    whole = graph([(0, 0, 0), (0, 0, 1), (1, 1, 0)], 2, 2)
    loss = twhin.loss(source(whole, others=2).batch(np.arange(3)))
    assert loss.item() == pytest.approx(math.log1p(math.exp(0.3)) + math.log1p(math.exp(-0.3)))


def test_in_the_published_form_scale_and_offset_stay_as_they_are():
    twhin = model(3, 4, temperature=1.0, learn_temperature=False, offset=False)
    assert twhin.log_scale.exp().item() == 1
    assert twhin.offset.item() == 0
    fixed = {id(twhin.log_scale), id(twhin.offset)}
    assert not any(id(weight) in fixed for group in groups(twhin) for weight in group["params"])


def groups(twhin: Twhin) -> list[dict]:
    return [group for optimizer in twhin.optimizers(0.01) for group in optimizer.param_groups]


def test_what_is_no_negative_does_not_count():
    """Whatever its logit is, the loss is the same; a negative's changes it."""
    edges, others = torch.zeros(3), torch.zeros(3, 2)
    drawn = torch.tensor([[0, 0], [1, 0], [1, 1]], dtype=torch.bool)
    loss = edge_loss(edges, others, drawn, 1.0)
    assert loss.item() == pytest.approx(2 * math.log(2))
    others[0, 1] = others[1, 1] = 9.0
    assert edge_loss(edges, others, drawn, 1.0) == loss
    others[2, 1] = 9.0
    assert edge_loss(edges, others, drawn, 1.0) > loss + 1


def test_a_batch_without_negatives_has_only_its_edges():
    loss = edge_loss(torch.tensor([1.0, 2.0]), torch.ones(2, 2), torch.zeros(2, 2, dtype=torch.bool), 3.0)
    assert loss.item() == pytest.approx((math.log1p(math.exp(-1)) + math.log1p(math.exp(-2))) / 2)


def test_the_gradient_is_that_of_the_loss():
    torch.manual_seed(0)
    edges = torch.randn(6, dtype=torch.float64, requires_grad=True)
    others = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    drawn = torch.rand(6, 4) < 0.7
    assert torch.autograd.gradcheck(lambda x, y: edge_loss(x, y, drawn, 2.5) * 3, (edges, others))


def test_sparse_gradients_equal_dense_ones_and_touch_only_rows_that_were_read():
    whole = graph(EDGES, 4, 5)
    batch = source(whole).batch(np.array([0, 3, 4]))  # clients 0 and 1
    gradients = []
    for sparse in (True, False):
        twhin = model(4, 5)
        if not sparse:
            twhin.use_dense_gradients()
        twhin.loss(batch).backward()
        assert twhin.clients.weight.grad.is_sparse == twhin.content.encoder.ids.weight.grad.is_sparse == sparse
        named = {name: weight.grad for name, weight in twhin.named_parameters() if weight.grad is not None}
        gradients.append({name: gradient.to_dense() for name, gradient in named.items()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name])
    assert (gradients[0]["clients.weight"][:2] != 0).any(dim=1).all()
    assert (gradients[0]["clients.weight"][2:] == 0).all()


@pytest.mark.parametrize("sparse", [True, False])
def test_every_weight_that_is_trained_has_one_optimizer_that_can_step_it(sparse):
    twhin = model(4, 5)
    if not sparse:
        twhin.use_dense_gradients()
    stepped = [weight for group in groups(twhin) for weight in group["params"]]
    assert {id(weight) for weight in stepped} == {id(weight) for weight in twhin.parameters() if weight.requires_grad}
    assert len(stepped) == len({id(weight) for weight in stepped})
    whole = graph(EDGES, 4, 5)
    twhin.loss(source(whole).batch(np.arange(len(whole)))).backward()
    assert all(weight.grad is not None for weight in stepped)  # one without stops ddp
    before = twhin.clients.weight.detach().clone()
    for optimizer in twhin.optimizers(0.1):
        optimizer.step()
    assert (twhin.clients.weight != before).all()


def test_a_frozen_encoder_stays_as_it_is():
    frozen, trained = content(5, frozen=True), content(5)
    torch.testing.assert_close(frozen(torch.arange(5)), trained.eval()(torch.arange(5)))
    assert not any(weight.requires_grad for weight in frozen.parameters())
    twhin = model(4, 5, frozen=True)
    whole = graph(EDGES, 4, 5)
    twhin.loss(source(whole).batch(np.arange(len(whole)))).backward()
    assert twhin.projection.weight.grad is not None
    assert all(weight.grad is None for weight in twhin.content.parameters())


def test_contents_are_no_weights():
    """A checkpoint holds what was learned, not what the items are."""
    known = set(contents(5).tensors())
    assert not any(name.rpartition(".")[2] in known for name in model(4, 5).state_dict() if "encoder" not in name)


def planted(clients: int, items: int, groups: int, seed: int = 0) -> list[tuple[int, int, int]]:
    """Clients with edges to half of the items of their own group, and to no other."""
    rng = np.random.default_rng(seed)
    return [
        (client, item, int(rng.integers(2)))
        for client in range(clients)
        for item in range(client % groups, items, groups)
        if rng.random() < 0.5
    ]


def trained(twhin: Twhin, source: EdgeSource, steps: int, batch: int = 64, rate: float = 0.02) -> Twhin:
    if twhin.clients is None:
        source = replace(source, others=twhin.settings.others)
    start_clients(twhin, source.known, FoldInSettings(1, 1.0, 256, "one"), 0, Runtime(64, 1, "cpu"))
    rng, optimizers = np.random.default_rng(1), twhin.optimizers(rate)
    for _ in range(steps):
        loss = twhin.loss(source.batch(rng.integers(0, len(source.graph), batch), rng))
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
    return twhin.eval()


@pytest.mark.parametrize("clients", ["learned", "others"])
def test_a_planted_structure_is_recovered(clients):
    """Items of the own group that a client never met score above all others."""
    count, items, kinds = 60, 60, 3
    edges = planted(count, items, kinds)
    whole = graph(edges, count, items)
    made = model(count, items, width=4, temperature=0.4, learn_temperature=False, client_vectors=clients)
    twhin = trained(made, source(whole), 200)
    fold_in = fold_in_of(twhin, whole, FoldInSettings(20, 1.0, 256, "one"), 0)
    with torch.no_grad():
        targets = twhin.targets(torch.arange(items), torch.zeros(items).long())
        vectors = twhin.item_vectors(torch.arange(items)).numpy()
        found = torch.from_numpy(fold_in(whole, vectors, Runtime(64, 1, "cpu")))
        scores = (found if twhin.clients is None else twhin.clients.weight) @ targets.T
    own = torch.tensor([[client % kinds == item % kinds for item in range(items)] for client in range(count)])
    met = torch.zeros(count, items, dtype=torch.bool)
    met[[edge[0] for edge in edges], [edge[1] for edge in edges]] = True
    new, strange = scores[own & ~met], scores[~own]
    assert (new[:, None] > strange[None]).float().mean() > 0.99


@pytest.mark.parametrize(
    "name", ["width", "temperature", "in_batch", "negatives", "client_vectors", "others", "client_rate", "start"]
)
def test_settings_that_make_no_sense_are_refused(name):
    with pytest.raises(UserError, match=f"model.{name}"):
        settings(**{name: 0})
