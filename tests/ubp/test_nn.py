import pytest
import torch
from torch import nn
from torch.nn import functional

from ubp import nn as ubp_nn
from ubp.nn import Feature, TokenEmbedding, linear_cross_entropy


@pytest.mark.parametrize("positions", [1, 7, 8, 20])
def test_the_chunked_cross_entropy_is_the_plain_one_with_its_gradients(positions, monkeypatch):
    monkeypatch.setattr(ubp_nn, "_POSITIONS", 8)
    torch.manual_seed(0)
    layer = nn.Linear(5, 11)
    hidden = torch.randn(positions, 5, requires_grad=True)
    classes = torch.randint(0, 11, (positions,))

    plain = functional.cross_entropy(layer(hidden), classes)
    wanted = torch.autograd.grad(3 * plain, [hidden, layer.weight, layer.bias])
    chunked = linear_cross_entropy(hidden, layer, classes)
    found = torch.autograd.grad(3 * chunked, [hidden, layer.weight, layer.bias])

    torch.testing.assert_close(chunked, plain)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other)
    with torch.no_grad():
        torch.testing.assert_close(linear_cross_entropy(hidden, layer, classes), plain)


def test_no_positions_give_a_loss_of_zero():
    assert linear_cross_entropy(torch.zeros(0, 5), nn.Linear(5, 11), torch.zeros(0, dtype=torch.int64)) == 0


def test_half_precision_comes_close():
    torch.manual_seed(0)
    layer, hidden, classes = nn.Linear(16, 30), torch.randn(50, 16), torch.randint(0, 30, (50,))
    with torch.autocast("cpu", torch.bfloat16):
        half = linear_cross_entropy(hidden.requires_grad_(), layer, classes)
    half.backward()
    torch.testing.assert_close(half, functional.cross_entropy(layer(hidden), classes), rtol=0.02, atol=0.02)
    assert layer.weight.grad.dtype == torch.float32


def test_embeddings_are_concatenated_or_summed():
    tokens = {"a": torch.tensor([[1, 2]]), "b": torch.tensor([[0, 3]])}
    both = TokenEmbedding([Feature("a", 5, 4), Feature("b", 6, 3)], "concat")
    assert both(tokens).shape == (1, 2, 7)
    torch.testing.assert_close(both(tokens)[0, 1, 4:], both.tables["b"].weight[3])
    summed = TokenEmbedding([Feature("a", 5, 4), Feature("b", 6, 4)], "sum")
    torch.testing.assert_close(summed(tokens)[0, 1], summed.tables["a"].weight[2] + summed.tables["b"].weight[3])
    with pytest.raises(ValueError, match="one width"):
        TokenEmbedding([Feature("a", 5, 4), Feature("b", 6, 3)], "sum")
