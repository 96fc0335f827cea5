"""Layers that more than one model uses."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

# Positions whose logits exist at the same time: with 10,000 classes 80 MB in float32, on a GPU 640 MB in fewer,
# larger kernels.
_POSITIONS = {"cpu": 2048, "cuda": 16_384}


def _at_once(tensor: Tensor) -> int:
    return _POSITIONS.get(tensor.device.type, _POSITIONS["cpu"])


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


class Dropout(nn.Dropout):
    """torch's dropout, with masks that a CPU draws four times as fast.

    torch's CPU kernel draws a number of a Bernoulli distribution for each element: for the 1,356 inputs of `dcn` that
    takes four times as long as the product of the inputs and 512 units. Here an element takes 16 of a random number's
    64 bits, so its chance of being zero is ``p`` rounded to a multiple of 2^-16. Elsewhere than on a CPU it is torch's.
    """

    _BITS = 16
    _NUMBERS = 2**63  # random numbers are below this, and not below its negative

    def forward(self, x: Tensor) -> Tensor:
        """Of any shape and float dtype; in training each element is zero by chance, the others grow by 1 / (1 - p)."""
        zeros = round(self.p * 2**self._BITS)  # of the 2^16 values of 16 bits
        if not self.training or not zeros or x.device.type != "cpu" or self.inplace:
            library: Tensor = super().forward(x)
            return library
        drawn = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-self._NUMBERS, None)
        values = drawn.view(torch.int16)[: x.numel()].view(x.shape)
        kept = 1 - zeros / 2**self._BITS
        mask = (values >= zeros - 2 ** (self._BITS - 1)).to(x.dtype).mul_(1 / kept if kept else 0.0)
        dropped: Tensor = x * mask
        return dropped


def _use_dropout(model: nn.Module) -> None:
    """Replace a library's dropout layers by `Dropout`."""
    for module in model.modules():
        for name, child in module.named_children():
            if type(child) is nn.Dropout:
                setattr(module, name, Dropout(child.p))


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


def _add_product(total: Tensor, slope: Tensor, hidden: Tensor) -> None:
    """Add ``slope.T @ hidden`` to a sum in float32; in one step where all are."""
    if slope.dtype == torch.float32:
        total.addmm_(slope.t(), hidden)
    else:
        total += slope.t() @ hidden


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
        size = _at_once(hidden)
        for start in range(0, len(hidden), size):
            rows = slice(start, start + size)
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
            _add_product(grad_weight, slope, part)
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
    hidden, weight, bias = _as_autocast(hidden, layer.weight, layer.bias)
    # Without gradients too: the work for them is thrown away, but validation is a hundredth of training.
    loss: Tensor = _LinearCrossEntropy.apply(hidden, weight, bias, classes, tuple(sizes))  # type: ignore[no-untyped-call]
    return loss


def argmax_classes(hidden: Tensor, layer: nn.Linear, sizes: Sequence[int]) -> Tensor:
    """Each feature's class with the largest logit: int64 [positions, features]; see `linear_cross_entropy`."""
    parts = [
        torch.stack([logits.argmax(dim=-1) for logits in torch.split(layer(part), list(sizes), dim=-1)], dim=-1)
        for part in torch.split(hidden, _at_once(hidden))
    ]
    return torch.cat(parts)


def tied_cross_entropy(hidden: Tensor, weight: Tensor, classes: Tensor, bias: Tensor | None = None) -> Tensor:
    """Cross-entropy of the logits ``hidden @ weight.T + bias``, never all of them held at once.

    Args:
        hidden: float [positions, width]: real positions only.
        weight: float [classes, width], an embedding's table.
        classes: int64 [positions], rows of the table.
        bias: float [classes]; None for none.

    Returns:
        The mean: a scalar, float32; 0 for no positions.
    """
    bias = weight.new_zeros(len(weight)) if bias is None else bias
    hidden, weight, bias = _as_autocast(hidden, weight, bias)
    loss: Tensor = _LinearCrossEntropy.apply(hidden, weight, bias, classes[:, None], (len(weight),))  # type: ignore[no-untyped-call]
    return loss


def _as_autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors in the dtype that autocast computes in; as they are where it is off."""
    device = tensors[0].device.type
    if not torch.is_autocast_enabled(device):
        return tensors
    return tuple(tensor.to(torch.get_autocast_dtype(device)) for tensor in tensors)


class _SampledCrossEntropy(torch.autograd.Function):
    """Cross-entropies of the wanted class among drawn ones; gradients on the way, as in `_LinearCrossEntropy`."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 (torch's own context)
        hidden: Tensor,
        own: Tensor,
        drawn: Tensor,
        wanted: Tensor,
        negatives: Tensor,
        log_counts: Tensor,
    ) -> Tensor:
        loss = hidden.new_zeros((), dtype=torch.float32)
        grad_hidden, grad_own = torch.empty_like(hidden), torch.empty_like(own)
        grad_drawn = torch.zeros_like(drawn, dtype=torch.float32)
        size = _at_once(hidden)
        for start in range(0, len(hidden), size):
            rows = slice(start, start + size)
            part = hidden[rows]
            logits = (part @ drawn.t()).float().sub_(log_counts)
            logits.masked_fill_(wanted[rows, None] == negatives, -torch.inf)
            logit = (part * own[rows]).sum(dim=1).float()
            total = torch.logaddexp(logit, torch.logsumexp(logits, dim=1))
            loss += (total - logit).sum()
            slope = logits.sub_(total[:, None]).exp_().to(hidden.dtype)
            slope_own = ((logit - total).exp() - 1).to(hidden.dtype)[:, None]
            grad_hidden[rows] = torch.addmm(slope_own * own[rows], slope, drawn)
            grad_own[rows] = slope_own * part
            _add_product(grad_drawn, slope, part)
        ctx.count = max(len(hidden), 1)
        ctx.save_for_backward(grad_hidden, grad_own, grad_drawn)
        ctx.dtype = drawn.dtype
        mean: Tensor = loss / ctx.count
        return mean

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None, None]:  # noqa: ANN401
        (grad,) = grads
        hidden, own, drawn = ((saved * (grad / ctx.count)).to(ctx.dtype) for saved in ctx.saved_tensors)
        return hidden, own, drawn, None, None, None


def sampled_cross_entropy(
    hidden: Tensor, table: nn.Embedding, wanted: Tensor, negatives: Tensor, log_counts: Tensor
) -> Tensor:
    """Softmax over the wanted class and drawn ones, an estimate of the softmax over all of the table's rows.

    The sum over the other classes, Σ exp(logit), is estimated from the drawn ones by importance sampling
    (Bengio & Senécal, "Quick Training of Probabilistic Neural Nets by Importance Sampling", 2003): a drawn
    class stands for one over the times that it was to be expected, so the logarithm of those is taken off its
    logit. A drawn class that is the wanted one does not count. One product of matrices for all positions,
    a few thousand of them at a time; only rows in use get a gradient, sparse if the table's gradients are.

    Args:
        hidden: float [positions, width]: real positions only.
        table: a class a row.
        wanted: int64 [positions], rows of the table.
        negatives: int64 [negatives], rows of the table, the same for all positions; a row may occur repeatedly.
        log_counts: float [negatives], the logarithm of how often each was to be expected among the negatives;
            zeros leave the logits as they are (plain sampled softmax).

    Returns:
        The mean over the positions: a scalar, float32; 0 for none.
    """
    return sampled_cross_entropy_of(hidden, table(wanted), table(negatives), wanted, negatives, log_counts)


def sampled_cross_entropy_of(
    hidden: Tensor, own: Tensor, drawn: Tensor, wanted: Tensor, negatives: Tensor, log_counts: Tensor
) -> Tensor:
    """`sampled_cross_entropy` with the classes' vectors themselves: for classes that have no table.

    Args:
        hidden: float [positions, width].
        own: float [positions, width], of the wanted classes.
        drawn: float [negatives, width].
        wanted: int64 [positions], numbers by which classes are told apart.
        negatives: int64 [negatives], the same.
        log_counts: float [negatives].
    """
    hidden, own, drawn = _as_autocast(hidden, own, drawn)
    loss: Tensor = _SampledCrossEntropy.apply(hidden, own, drawn, wanted, negatives, log_counts)  # type: ignore[no-untyped-call]
    return loss


class CausalTransformer(nn.Module):
    """GPT-2's blocks over vectors, with random first weights: an output sees its own place and those before it.

    Padding stands behind a sequence, so the causal mask alone keeps it out of every real output; without a
    mask of its own the attention is torch's causal kernel, whose memory grows with the length, not its square
    (on a CPU not with dropout on the attention: there torch holds the weights of all pairs in training).
    Radford et al., "Language Models are Unsupervised Multitask Learners", 2019; the layers are transformers'.

    Args:
        width: of the vectors, in and out.
        layers: how many.
        heads: of each layer's attention; they divide the width.
        positions: the longest sequence.
        dropout: on what enters the first layer and on what each layer adds.
        attention_dropout: on the attention's weights.
    """

    def __init__(
        self, width: int, layers: int, heads: int, positions: int, dropout: float, attention_dropout: float
    ) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"{heads} heads do not divide a width of {width}")
        # Imported here: it takes seconds, and most commands have no transformer.
        from transformers import GPT2Config, GPT2Model

        config = GPT2Config(
            vocab_size=1,
            n_positions=positions,
            n_embd=width,
            n_layer=layers,
            n_head=heads,
            embd_pdrop=dropout,
            resid_pdrop=dropout,
            attn_pdrop=attention_dropout,
            activation_function="gelu_pytorch_tanh",  # what "gelu_new" computes, in one pass instead of eight
            use_cache=False,
            bos_token_id=None,
            eos_token_id=None,
        )
        self.gpt2 = GPT2Model(config)
        self.gpt2.set_attn_implementation("sdpa")
        _use_dropout(self.gpt2)
        # The vectors come from outside, and a weight that never gets a gradient stops ddp.
        self.gpt2.set_input_embeddings(nn.Identity())  # type: ignore[no-untyped-call]

    def forward(self, vectors: Tensor, first: Tensor) -> Tensor:
        """Outputs of sequences that are padded behind their end.

        Args:
            vectors: float [rows, time, width].
            first: int64 [rows], the position of each sequence's first vector.

        Returns:
            float [rows, time, width], after the last layer norm.
        """
        places = first[:, None] + torch.arange(vectors.shape[1], device=vectors.device)
        # GPT2Model.forward without its look for packed sequences, which reads the positions back from the device.
        hidden: Tensor = self.gpt2.drop(vectors + self.gpt2.wpe(places))
        for block in self.gpt2.h:
            hidden = block(hidden)
        outputs: Tensor = self.gpt2.ln_f(hidden)
        return outputs
