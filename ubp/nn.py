"""Layers that more than one model uses."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

# Positions whose logits exist at the same time: with 10,000 classes 80 MB in float32.
_POSITIONS = 2048


@dataclass(frozen=True)
class Feature:
    """One feature of a token.

    Attributes:
        name: its key in a batch.
        ids: how many ids it has, special ones included.
        width: of its embedding.
        events: tokens of the events that have it, the others hold ``Token.NONE``; None: all have it.
    """

    name: str
    ids: int
    width: int
    events: tuple[int, ...] | None = None


class TokenEmbedding(nn.Module):
    """Embeds each feature of a token; the vectors are concatenated or summed.

    Args:
        features: what a token is made of.
        combine: ``concat`` (widths add up) or ``sum`` (widths must be equal).
    """

    def __init__(self, features: Sequence[Feature], combine: Literal["concat", "sum"]) -> None:
        super().__init__()
        if combine == "sum" and len({feature.width for feature in features}) > 1:
            raise ValueError("summed features need one width")
        self.combine = combine
        self.tables = nn.ModuleDict({feature.name: nn.Embedding(feature.ids, feature.width) for feature in features})
        self.width = sum(feature.width for feature in features) if combine == "concat" else features[0].width

    def forward(self, tokens: Mapping[str, Tensor]) -> Tensor:
        """Vectors [..., width] of ids [...] for each feature."""
        vectors = [table(tokens[name]) for name, table in self.tables.items()]
        if self.combine == "concat":
            return torch.cat(vectors, dim=-1)
        return torch.stack(vectors).sum(dim=0) if len(vectors) > 1 else vectors[0]


def _by_feature(logits: Tensor, classes: Tensor, sizes: tuple[int, ...]) -> list[tuple[Tensor, Tensor]]:
    """Views of the logits [positions, outputs], one softmax along the last dimension, and the true classes there."""
    if len(set(sizes)) == 1:  # all features in one go, in contiguous memory
        return [(logits.view(len(logits), len(sizes), sizes[0]), classes[:, :, None])]
    parts = torch.split(logits, list(sizes), dim=1)
    return [(part, classes[:, column, None]) for column, part in enumerate(parts)]


class _LinearCrossEntropy(torch.autograd.Function):
    """Cross-entropies of a linear layer's logits that never holds them all.

    The gradients are worked out on the way forward, chunk by chunk: d loss / d logits = softmax − one-hot.
    """

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 (torch's own context)
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor,
        classes: Tensor,
        sizes: tuple[int, ...],
    ) -> Tensor:
        loss = hidden.new_zeros((), dtype=torch.float32)
        grad_hidden = torch.empty_like(hidden)
        # Sums over many chunks: in float32, whatever the layer computes in.
        grad_weight = torch.zeros_like(weight, dtype=torch.float32)
        grad_bias = torch.zeros_like(bias, dtype=torch.float32)
        for start in range(0, len(hidden), _POSITIONS):
            rows = slice(start, start + _POSITIONS)
            part = hidden[rows]
            slope = functional.linear(part, weight, bias).float()
            for logits, wanted in _by_feature(slope, classes[rows], sizes):
                log_shares = functional.log_softmax(logits, dim=-1)
                loss -= log_shares.gather(-1, wanted).sum()
                torch.exp(log_shares, out=logits)
                logits.scatter_add_(-1, wanted, logits.new_full(wanted.shape, -1.0))
            grad_bias += slope.sum(dim=0)
            slope = slope.to(weight.dtype)
            grad_hidden[rows] = slope @ weight
            if weight.dtype == torch.float32:
                grad_weight.addmm_(slope.t(), part)
            else:
                grad_weight += slope.t() @ part
        ctx.count = max(len(hidden), 1)
        ctx.save_for_backward(grad_hidden, grad_weight, grad_bias)
        mean: Tensor = loss / ctx.count
        return mean

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:  # noqa: ANN401
        (grad,) = grads
        hidden, weight, bias = ((saved * (grad / ctx.count)).to(saved.dtype) for saved in ctx.saved_tensors)
        return hidden, weight, bias, None, None


def linear_cross_entropy(hidden: Tensor, layer: nn.Linear, classes: Tensor, sizes: Sequence[int]) -> Tensor:
    """Cross-entropies of ``layer(hidden)`` without a [positions, outputs] tensor.

    Several features share the layer: one product of matrices for all of them, a softmax for each.

    Args:
        hidden: float [positions, width]: real positions only.
        layer: with a bias; its outputs are the first feature's classes, then the second's, and so on.
        classes: int64 [positions, features].
        sizes: classes of each feature; they add up to the layer's outputs.

    Returns:
        The features' mean cross-entropies, added up: a scalar, float32.
    """
    weight: Tensor = layer.weight
    bias: Tensor = layer.bias
    if torch.is_autocast_enabled(hidden.device.type):
        dtype = torch.get_autocast_dtype(hidden.device.type)
        hidden, weight, bias = hidden.to(dtype), weight.to(dtype), bias.to(dtype)
    # Without gradients too: the work for them is thrown away, but validation is a hundredth of training.
    loss: Tensor = _LinearCrossEntropy.apply(hidden, weight, bias, classes, tuple(sizes))  # type: ignore[no-untyped-call]
    return loss


def likeliest(hidden: Tensor, layer: nn.Linear, sizes: Sequence[int]) -> Tensor:
    """Each feature's likeliest class, chunk by chunk: int64 [positions, features]; see `linear_cross_entropy`."""
    parts = [
        torch.stack([logits.argmax(dim=-1) for logits in torch.split(layer(part), list(sizes), dim=-1)], dim=-1)
        for part in torch.split(hidden, _POSITIONS)
    ]
    return torch.cat(parts)
