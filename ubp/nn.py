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
    """

    name: str
    ids: int
    width: int


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


class _LinearCrossEntropy(torch.autograd.Function):
    """Cross-entropy of a linear layer's logits that never holds them all.

    The gradients are worked out on the way forward, chunk by chunk: d loss / d logits = softmax − one-hot.
    """

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 (torch's own context)
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor,
        classes: Tensor,
    ) -> Tensor:
        loss = hidden.new_zeros((), dtype=torch.float32)
        grad_hidden = torch.empty_like(hidden)
        grad_weight, grad_bias = torch.zeros_like(weight), torch.zeros_like(bias)
        for start in range(0, len(hidden), _POSITIONS):
            rows = slice(start, start + _POSITIONS)
            part, wanted = hidden[rows], classes[rows, None]
            logits = functional.linear(part, weight, bias).float()
            log_shares = functional.log_softmax(logits, dim=-1)
            loss -= log_shares.gather(1, wanted).sum()
            slope = log_shares.exp_()
            slope.scatter_add_(1, wanted, slope.new_full(wanted.shape, -1.0))
            slope = slope.to(weight.dtype)
            grad_hidden[rows] = slope @ weight
            grad_weight.addmm_(slope.t(), part)
            grad_bias += slope.sum(dim=0)
        count = max(len(hidden), 1)
        ctx.save_for_backward(grad_hidden / count, grad_weight / count, grad_bias / count)
        return loss / count

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:  # noqa: ANN401
        (grad,) = grads
        hidden, weight, bias = (saved * grad.to(saved.dtype) for saved in ctx.saved_tensors)
        return hidden, weight, bias, None


def linear_cross_entropy(hidden: Tensor, layer: nn.Linear, classes: Tensor) -> Tensor:
    """Mean cross-entropy of ``layer(hidden)`` without a [positions, classes] tensor.

    Args:
        hidden: float [positions, width]: real positions only.
        layer: with a bias; its outputs are the classes.
        classes: int64 [positions].

    Returns:
        A scalar, float32.
    """
    weight: Tensor = layer.weight
    bias: Tensor = layer.bias
    if torch.is_autocast_enabled(hidden.device.type):
        dtype = torch.get_autocast_dtype(hidden.device.type)
        hidden, weight, bias = hidden.to(dtype), weight.to(dtype), bias.to(dtype)
    if not torch.is_grad_enabled():
        parts = [
            functional.cross_entropy(functional.linear(part, weight, bias).float(), wanted, reduction="sum")
            for part, wanted in zip(torch.split(hidden, _POSITIONS), torch.split(classes, _POSITIONS), strict=True)
        ]
        return torch.stack(parts).sum() / max(len(hidden), 1)
    loss: Tensor = _LinearCrossEntropy.apply(hidden, weight, bias, classes)  # type: ignore[no-untyped-call]
    return loss
