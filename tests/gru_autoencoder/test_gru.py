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


def gradients(gru, x, scale, dtype=None):
    """Of a small loss, by autocast in a dtype; in float32 without one."""
    with torch.autocast("cpu", dtype, enabled=dtype is not None):
        output = gru(x)[-1]
        loss = (output.float() * scale).sum()
    return output.dtype, torch.autograd.grad(loss, list(gru.parameters()))


class HalfPrecision(nn.Module):
    """What CUDA's autocast makes of recurrent layers: weights, states and their gradients in float16."""

    def __init__(self, gru: StackedGru) -> None:
        super().__init__()
        self.gru = gru

    def forward(self, x):
        outputs = []
        for layer in self.gru.layers:
            names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
            half = {name: getattr(layer, name).half() for name in names}
            x, _ = torch.func.functional_call(layer, half, (x.half(),))
            outputs.append(x)
        return outputs


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_small_gradients_do_not_vanish_under_autocast(dtype):
    """In half precision they do: a mean over many positions makes gradients of 1e-9."""
    torch.manual_seed(0)
    gru, x = StackedGru(6, 4, 2, dropout=0.0), torch.randn(20, 3, 6)
    _, wanted = gradients(gru, x, scale=1e-9)
    output_dtype, found = gradients(gru, x, scale=1e-9, dtype=dtype)
    assert output_dtype == torch.float32
    for mine, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, other, atol=1e-14, rtol=1e-5)
    half = HalfPrecision(gru)
    halved = torch.autograd.grad((half(x)[-1].float() * 1e-9).sum(), list(gru.parameters()))
    assert all((grad == 0).all() for grad in halved)
    assert any((grad != 0).any() for grad in wanted)
