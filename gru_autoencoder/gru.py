"""Gated recurrent layers over padded sequences, with a CPU's own way through time.

Cho et al., "Learning Phrase Representations using RNN Encoder–Decoder for Statistical Machine Translation", 2014.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ubp.training.nn import Dropout


class _CpuGru(torch.autograd.Function):
    """nn.GRU's one layer on a CPU: the same values and gradients, fewer and larger operations.

    With ``r, z`` the gates' sigmoids, ``c = h W_cᵀ + b_c`` and ``n = tanh(x W_nᵀ + b_n + r c)`` a step is
    ``h' = (1 − z) n + z h``. torch records every operation of every step, and on the way back multiplies and adds
    up the weights' gradients step by step. Here a step forward is one product of matrices and six operations in
    place, a step back one product and six; whatever does not wait for another step is worked out for all steps
    at once, above all the weights' gradients.
    """

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 (torch's own context)
        x: Tensor,
        begin: Tensor,
        weight_x: Tensor,
        weight_h: Tensor,
        bias_x: Tensor,
        bias_h: Tensor,
    ) -> Tensor:
        time, rows, _ = x.shape
        hidden = begin.shape[1]
        gates = nn.functional.linear(x, weight_x, bias_x)  # becomes r, z and n
        candidates = x.new_empty(time, rows, hidden)
        states = x.new_empty(time + 1, rows, hidden)
        states[0] = begin
        turned, inner = weight_h.t(), x.new_empty(rows, 3 * hidden)
        inner_both, inner_new = torch.split(inner, [2 * hidden, hidden], dim=1)
        parts = (*torch.split(gates, [2 * hidden, hidden], dim=2), *torch.split(gates, hidden, dim=2)[:2], candidates)
        steps = zip(*(part.unbind() for part in (*parts, states[:-1], states[1:])), strict=True)
        for both, new, r, z, candidate, before, after in steps:
            torch.addmm(bias_h, before, turned, out=inner)
            both.add_(inner_both).sigmoid_()
            new.addcmul_(r, candidate.copy_(inner_new)).tanh_()
            torch.lerp(new, before, z, out=after)
        ctx.save_for_backward(x, weight_x, weight_h, gates, candidates, states)
        return states[1:]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        # Lightning goes back inside autocast.
        with torch.autocast("cpu", enabled=False):
            return _CpuGru._backward(ctx, *grads)

    @staticmethod
    def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        x, weight_x, weight_h, gates, candidates, states = ctx.saved_tensors
        time, rows, hidden = candidates.shape
        r, z, n = torch.split(gates, hidden, dim=2)
        # What each gate's slope is to be multiplied with, for all steps.
        of_z = (states[:-1] - n).mul_(z).mul_(1 - z)
        of_n = (1 - z).mul_(1 - n * n)
        of_r = candidates.mul(r).mul_(1 - r)
        slopes = torch.empty_like(gates)  # of what goes into the gates from the state
        slope_n = torch.empty_like(candidates)  # of n's inside
        slope = torch.zeros_like(states[0])  # of the state after the step
        factors, found = (of_r, of_z, of_n, r, z), (*torch.split(slopes, hidden, dim=2), slope_n, slopes)
        steps = zip(*(part.unbind() for part in (grad, *factors, *found)), strict=True)
        for later, by_r, by_z, by_n, at_r, at_z, slope_r, slope_z, slope_c, new, together in reversed(list(steps)):
            slope.add_(later)
            torch.mul(slope, by_z, out=slope_z)
            torch.mul(slope, by_n, out=new)
            torch.mul(new, by_r, out=slope_r)
            torch.mul(new, at_r, out=slope_c)
            slope.mul_(at_z).addmm_(together, weight_h)
        flat = slopes.view(time * rows, 3 * hidden)
        grad_weight_h, grad_bias_h = flat.t() @ states[:-1].reshape(time * rows, hidden), flat.sum(dim=0)
        slopes[:, :, 2 * hidden :] = slope_n  # now of what goes into the gates from the input
        grad_weight_x, grad_bias_x = flat.t() @ x.reshape(time * rows, -1), flat.sum(dim=0)
        grad_x = (flat @ weight_x).view_as(x) if ctx.needs_input_grad[0] else None
        return grad_x, slope, grad_weight_x, grad_weight_h, grad_bias_x, grad_bias_h


class StackedGru(nn.Module):
    """Recurrent layers over padded sequences that gives every layer's output, not only the last one's.

    A recurrent layer that runs forward sees no padding before a sequence's end, so the state at the last real
    step is that of the sequence alone. nn.GRU on packed sequences gives the same, but on a CPU its backward
    step fills a tensor of the whole batch for each time step: 20 s a batch instead of one (docs/performance.md).

    The recurrence is computed in float32, autocast or not. On CUDA, autocast runs cuDNN's recurrent layers in
    float16 even where bfloat16 is set, and without a loss scaler gradients below 6e-8 would become zero; over a
    hundred time steps most are. cuDNN may use TF32 for it (`torch.backends.cudnn.allow_tf32`, on by default).

    Args:
        inputs: width of the input.
        hidden: units of each layer.
        layers: how many.
        dropout: between layers.
    """

    def __init__(self, inputs: int, hidden: int, layers: int, dropout: float) -> None:
        super().__init__()
        widths = [inputs, *[hidden] * (layers - 1)]
        self.layers = nn.ModuleList(nn.GRU(width, hidden) for width in widths)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, states: Sequence[Tensor] | None = None) -> list[Tensor]:
        """Each layer's outputs, float [time, rows, hidden], of inputs [time, rows, width].

        Args:
            x: the inputs.
            states: for each layer the state to begin with, float [rows, hidden]; zeros if None.
        """
        outputs = []
        with torch.autocast(x.device.type, enabled=False):
            x = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
            for number, layer in enumerate(cast("list[nn.GRU]", list(self.layers))):
                x = self.dropout(x) if number else x
                begin = x.new_zeros(x.shape[1], layer.hidden_size) if states is None else states[number].to(x.dtype)
                if x.device.type == "cpu":
                    weights = layer.weight_ih_l0, layer.weight_hh_l0, layer.bias_ih_l0, layer.bias_hh_l0
                    x = _CpuGru.apply(x, begin, *weights)  # type: ignore[no-untyped-call]
                else:
                    x, _ = layer(x, begin[None].contiguous())
                outputs.append(x)
        return outputs
