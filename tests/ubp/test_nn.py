import pytest
import torch
from torch import nn
from torch.nn import functional

from ubp import nn as ubp_nn
from ubp.nn import Feature, TokenEmbedding, likeliest, linear_cross_entropy

SIZES = (11, 3, 6)


def plain_loss(hidden, layer, classes, sizes=SIZES):
    """The same, with all logits at once."""
    parts = torch.split(layer(hidden), sizes, dim=1)
    return sum(functional.cross_entropy(logits, classes[:, n]) for n, logits in enumerate(parts))


def draw(positions, width=5, sizes=SIZES):
    torch.manual_seed(0)
    classes = torch.stack([torch.randint(0, size, (positions,)) for size in sizes], dim=1)
    return nn.Linear(width, sum(sizes)), torch.randn(positions, width, requires_grad=True), classes


@pytest.mark.parametrize("sizes", [(11, 3, 6), (7, 7)])
@pytest.mark.parametrize("positions", [1, 7, 8, 20])
def test_the_chunked_cross_entropy_is_the_plain_one_with_its_gradients(positions, sizes, monkeypatch):
    monkeypatch.setattr(ubp_nn, "_POSITIONS", 8)
    layer, hidden, classes = draw(positions, sizes=sizes)
    plain = plain_loss(hidden, layer, classes, sizes)
    wanted = torch.autograd.grad(3 * plain, [hidden, layer.weight, layer.bias])
    chunked = linear_cross_entropy(hidden, layer, classes, sizes)
    found = torch.autograd.grad(3 * chunked, [hidden, layer.weight, layer.bias])

    torch.testing.assert_close(chunked, plain)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other)
    with torch.no_grad():
        torch.testing.assert_close(linear_cross_entropy(hidden, layer, classes, sizes), plain)


def test_no_positions_give_a_loss_of_zero():
    layer, hidden, classes = draw(0)
    assert linear_cross_entropy(hidden, layer, classes, SIZES) == 0


def test_half_precision_comes_close():
    layer, hidden, classes = draw(50, width=16)
    with torch.autocast("cpu", torch.bfloat16):
        half = linear_cross_entropy(hidden, layer, classes, SIZES)
    half.backward()
    torch.testing.assert_close(half, plain_loss(hidden, layer, classes), rtol=0.02, atol=0.02)
    assert layer.weight.grad.dtype == torch.float32


def test_the_likeliest_class_of_each_feature(monkeypatch):
    monkeypatch.setattr(ubp_nn, "_POSITIONS", 8)
    layer, hidden, _ = draw(20)
    logits = torch.split(layer(hidden), SIZES, dim=1)
    wanted = torch.stack([part.argmax(dim=1) for part in logits], dim=1)
    torch.testing.assert_close(likeliest(hidden, layer, SIZES), wanted)


def test_embeddings_are_concatenated_or_summed():
    tokens = {"a": torch.tensor([[1, 2]]), "b": torch.tensor([[0, 3]])}
    both = TokenEmbedding([Feature("a", 5, 4), Feature("b", 6, 3)], "concat")
    assert both(tokens).shape == (1, 2, 7)
    torch.testing.assert_close(both(tokens)[0, 1, 4:], both.tables["b"].weight[3])
    summed = TokenEmbedding([Feature("a", 5, 4), Feature("b", 6, 4)], "sum")
    torch.testing.assert_close(summed(tokens)[0, 1], summed.tables["a"].weight[2] + summed.tables["b"].weight[3])
    with pytest.raises(ValueError, match="one width"):
        TokenEmbedding([Feature("a", 5, 4), Feature("b", 6, 3)], "sum")
