"""TwHIN: clients and items in one space, by whether a client has an edge to an item.

El-Kishky et al., "TwHIN: Embedding the Twitter Heterogeneous Information Network for Personalized Recommendation", KDD
2022 (arXiv 2202.05387), with cosines instead of products, as the challenge's 4th place had it:

    logit(client, item, relation) = scale × cos(client, projection(content(item)) + relation) + offset

with scale 1 and offset 0 in the published form. A cosine by itself allows probabilities from 0.27 to 0.73 only.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from twhin.content import ItemContent
from twhin.edges import CLIENT, ITEM, OTHER, OTHER_ITEM, OTHER_RELATION, OWN, RELATION
from ubp.io.errors import require, require_positive
from ubp.training.model import Batch, SequenceModel, rows_of

FOLDED, RANDOM = "folded", "random"
LEARNED, OTHERS = "learned", "others"  # what a client's vector is in training


@dataclass
class ModelSettings:
    """The config's part `model`.

    Attributes:
        width: of the vectors.
        temperature: that cosines are divided by, at first.
        learn_temperature: move it with the weights.
        offset: add a learned number to the logits.
        in_batch: edges of a batch whose items are the other edges' negatives, at most.
        negatives: what the mean over the negatives weighs beside the mean over the positives.
        client_vectors: what they are in training: ``learned``, one for each; or made of ``others``: some of the
            client's edges, without those to the item that is asked for. A learned vector of a client with few edges
            knows these by heart, and says nothing of others.
        others: edges that a client's vector is made of in a step.
        client_rate: learning rate of the clients' vectors, as a multiple of `trainer.learning_rate`: a step moves a
            client's vector only where it has an edge in the batch.
        start: of the clients' vectors: ``random``, or ``folded`` in by their edges with the items' first vectors, so
            that clients with items in common are near each other from the first step.
    """

    width: int
    temperature: float
    learn_temperature: bool
    offset: bool
    in_batch: int
    negatives: float
    client_vectors: str
    others: int
    client_rate: float
    start: str

    def __post_init__(self) -> None:
        """Refuse numbers that make no sense.

        Raises:
            UserError: a number out of its range.
        """
        require_positive(self, "model", "width", "in_batch", "others")
        known = self.client_vectors in (LEARNED, OTHERS)
        require(known, "model.client_vectors", self.client_vectors, f"{LEARNED} or {OTHERS}")
        for name in ("temperature", "negatives", "client_rate"):
            require(getattr(self, name) > 0, f"model.{name}", getattr(self, name), "above 0")
        require(self.start in (FOLDED, RANDOM), "model.start", self.start, f"{FOLDED} or {RANDOM}")


class Twhin(SequenceModel):
    """Learned vectors of clients, and items' vectors by their content.

    Batches are those of `twhin.edges.EdgeSource`.

    Args:
        clients: how many.
        relations: how many.
        content: of the items.
        settings: numbers.
    """

    def __init__(self, clients: int, relations: int, content: ItemContent, settings: ModelSettings) -> None:
        super().__init__()
        self.width, self.settings = settings.width, settings
        self.clients: nn.Embedding | None = None
        if settings.client_vectors == LEARNED:
            self.clients = nn.Embedding(clients, settings.width, sparse=True)
            nn.init.normal_(self.clients.weight, std=settings.width**-0.5)
        self.content = content
        self.projection = nn.Linear(content.width, settings.width, bias=False)
        self.relations = nn.Embedding(relations, settings.width)
        nn.init.normal_(self.relations.weight, std=0.1 * settings.width**-0.5)
        log_scale = torch.tensor(settings.temperature).log().neg()
        self.log_scale = nn.Parameter(log_scale, requires_grad=settings.learn_temperature)
        self.offset = nn.Parameter(torch.zeros(()), requires_grad=settings.offset)

    def client_vectors(self, batch: Batch, targets: Tensor) -> Tensor:
        """Of a batch's edges: float [rows, width], of length 1, or 0 where nothing is known of a client.

        Args:
            batch: of `twhin.edges.EdgeSource`.
            targets: float [targets, width], what their common direction is: without it all clients are alike.
        """
        if self.clients is not None:
            return functional.normalize(self.clients(batch[CLIENT]), dim=-1)
        counts = batch[OTHER].float()
        met = self.targets(batch[OTHER_ITEM].flatten(), batch[OTHER_RELATION].flatten()).view(*counts.shape, -1)
        mean = (met * counts[..., None]).sum(dim=1) / counts.sum(dim=1, keepdim=True).clamp(min=1)
        vectors: Tensor = functional.normalize(mean - targets.mean(dim=0), dim=-1)
        return vectors * counts.amax(dim=1, keepdim=True)

    def item_vectors(self, items: Tensor) -> Tensor:
        """Before a relation is added: int64 [n] to float [n, width]."""
        vectors: Tensor = self.projection(self.content(items))
        return vectors

    def targets(self, items: Tensor, relations: Tensor) -> Tensor:
        """Items under relations, int64 [n] both, to float [n, width], of length 1."""
        return functional.normalize(self.item_vectors(items) + self.relations(relations), dim=-1)

    def loss(self, batch: Batch) -> Tensor:
        """Binary cross-entropy of each edge, and of its client with the items of the batch's first edges."""
        targets = self.targets(batch[ITEM], batch[RELATION])
        drawn = targets[: batch[OWN].shape[1]]
        clients = self.client_vectors(batch, drawn) * self.log_scale.exp()
        edges = (clients * targets).sum(dim=1) + self.offset
        others = clients @ drawn.T + self.offset
        return edge_loss(edges.float(), others.float(), ~batch[OWN], self.settings.negatives)

    def weight(self, batch: Batch) -> Tensor:
        """See `ubp.training.model.SequenceModel`: the edges."""
        return torch.full((), float(rows_of(batch)), device=self.offset.device)

    def encode(self, batch: Batch) -> Tensor:
        """The vectors of the edges' clients in training: float [rows, width]."""
        return self.client_vectors(batch, self.targets(batch[ITEM], batch[RELATION]))

    def product(self, rows: int, time: int) -> int:
        """See `ubp.training.model.SequenceModel.product`: each client of a batch with each negative."""
        return rows * min(rows, self.settings.in_batch) * time * self.width

    def optimizers(self, learning_rate: float) -> list[torch.optim.Optimizer]:
        """Adam, the clients' table at a rate of its own; `SparseAdam` for tables with sparse gradients."""
        sparse = {module.weight for module in self.modules() if isinstance(module, nn.Embedding) and module.sparse}
        tables: list[Tensor] = [] if self.clients is None else [self.clients.weight]
        trained = [weight for weight in self.parameters() if weight.requires_grad]
        others: list[Tensor] = [weight for weight in trained if not any(weight is table for table in tables)]
        groups: list[tuple[list[Tensor], float]] = [
            (tables, learning_rate * self.settings.client_rate),
            (others, learning_rate),
        ]
        found: list[torch.optim.Optimizer] = []
        for weights, rate in groups:
            if read := [weight for weight in weights if weight in sparse]:
                found.append(torch.optim.SparseAdam(read, lr=rate))
            if whole := [weight for weight in weights if weight not in sparse]:
                found.append(torch.optim.Adam(whole, lr=rate, fused=True))
        return found


def edge_loss(edges: Tensor, others: Tensor, drawn: Tensor, negatives: float) -> Tensor:
    """The mean over the edges of -log σ(logit), and weighted the mean over the negatives of -log(1 - σ(logit)).

    Args:
        edges: float [edges], their logits.
        others: float [edges, others], logits of each edge's client with other items.
        drawn: bool [edges, others], which of these are negatives.
        negatives: the weight.

    Returns:
        A scalar; without negatives only the first mean.
    """
    mean: Tensor = _NegativeLoss.apply(others, drawn)  # type: ignore[no-untyped-call]
    return functional.softplus(-edges).mean() + negatives * mean


class _NegativeLoss(torch.autograd.Function):
    """The mean of -log(1 - σ(logit)); its gradient is worked out on the way, in a few passes instead of a dozen."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, drawn: Tensor) -> Tensor:  # noqa: ANN401 (torch's own context)
        shares = drawn / drawn.sum().clamp(min=1).to(logits.dtype)
        ctx.save_for_backward(torch.sigmoid(logits).mul_(shares))
        loss: Tensor = functional.softplus(logits).mul_(shares).sum()
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401
        (slope,) = ctx.saved_tensors
        return slope * grads[0], None
