"""The CPU's recurrent layers against torch's own."""

import pytest
import torch
from torch import nn

from gru_autoencoder.gru import StackedGru


def by_torch(gru: StackedGru, x, states):
    outputs = []
    for number, layer in enumerate(gru.layers):
        x, _ = layer(x, None if states is None else states[number][None])
        outputs.append(x)
    return outputs


@pytest.mark.parametrize("begins", [True, False])
@pytest.mark.parametrize(("time", "rows"), [(7, 5), (1, 1), (3, 1)])
def test_values_and_gradients_are_those_of_torch(time, rows, begins):
    torch.manual_seed(0)
    gru = StackedGru(6, 4, 3, dropout=0.0)
    x = torch.randn(time, rows, 6, requires_grad=True)
    states = [torch.randn(rows, 4, requires_grad=True) for _ in range(3)] if begins else None
    leaves = [x, *(states or []), *gru.parameters()]
    ours, theirs = gru(x, states), by_torch(gru, x, states)
    toward = [torch.randn_like(output) for output in ours]
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other)
    grads = [
        torch.autograd.grad(sum((o * t).sum() for o, t in zip(outputs, toward, strict=True)), leaves)
        for outputs in (ours, theirs)
    ]
    for mine, other in zip(*grads, strict=True):
        torch.testing.assert_close(mine, other)


def test_gradients_are_those_of_small_steps():
    torch.manual_seed(0)
    gru = StackedGru(3, 2, 2, dropout=0.0).double()
    x, begin = (torch.randn(*shape, dtype=torch.double, requires_grad=True) for shape in ((4, 3, 3), (3, 2)))
    assert torch.autograd.gradcheck(lambda x, begin, *_: gru(x, [begin, begin])[-1], (x, begin, *gru.parameters()))


def test_without_gradients_nothing_changes():
    gru, x = StackedGru(3, 2, 1, dropout=0.0), torch.randn(4, 2, 3)
    with torch.inference_mode():
        found = gru(x)[0]
    torch.testing.assert_close(found, nn.GRU.forward(gru.layers[0], x)[0])
