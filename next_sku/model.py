"""A causal transformer over item events that says the next one's category, event type and price."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ubp import schema
from ubp.nn import CausalTransformer, tied_cross_entropy
from ubp.ranking import ranks_of
from ubp.slices import FIRST, LAST, profile_of, real_targets, trimmed
from ubp.training import LENGTHS, Batch, SequenceModel

CATEGORY, EVENT, PRICE = COLUMNS = (schema.CATEGORY, "event", schema.PRICE)  # of a batch


@dataclass(frozen=True)
class Losses:
    """What each of the three losses weighs in their sum."""

    category: float
    event: float
    price: float


@dataclass(frozen=True)
class Usual:
    """What is usual among the events.

    Attributes:
        categories: int64 [tokens], how often each token of a category occurs, special ones included.
        events: the same for event types.
        price: the median.
    """

    categories: Tensor
    events: Tensor
    price: float


def _log_shares(counts: Tensor) -> Tensor:
    """The logarithm of each token's share, as if each had occurred once more."""
    shares = (counts + 1).double()
    return torch.log(shares / shares.sum()).float()


class NextSku(SequenceModel):
    """Reads (category, event type, price) of each event and says those of the next.

    The vector of an event is [category's | event type's | price]. The hidden state is cut in the same way: its
    first part is multiplied with the categories' own vectors, its second with the event types', its last
    number is the price. A batch holds ``category`` and ``event`` int64, ``price`` float, [rows, time] each, and
    what `ubp.slices.Slices` adds.

    Args:
        usual: what is usual among the events; the model begins by saying that.
        category_width: of a category's vector.
        event_width: of an event type's; with the price's 1 they add up to the profile's width.
        layers: of the transformer.
        heads: of its attention.
        positions: the longest sequence.
        dropout: see `CausalTransformer`.
        losses: their weights.
        profile: see `profile_of`.
    """

    def __init__(
        self,
        usual: Usual,
        category_width: int,
        event_width: int,
        layers: int,
        heads: int,
        positions: int,
        dropout: float,
        losses: Losses,
        profile: str = LAST,
    ) -> None:
        super().__init__()
        self.width = category_width + event_width + 1
        self.losses = losses
        self.profile, self.positions = profile, positions
        self.category = nn.Embedding(len(usual.categories), category_width)
        self.event = nn.Embedding(len(usual.events), event_width)
        # Biases take hundreds of steps to come from zero to the popularities.
        self.category_bias = nn.Parameter(_log_shares(usual.categories))
        self.event_bias = nn.Parameter(_log_shares(usual.events))
        self.transformer = CausalTransformer(self.width, layers, heads, positions, dropout)
        for table in (self.category, self.event):  # logits of about 1: the last layer norm's outputs are of size 1
            nn.init.normal_(table.weight, std=table.embedding_dim**-0.5)
        nn.init.constant_(self.transformer.gpt2.ln_f.bias[-1:], usual.price)

    def _outputs(self, batch: Batch, time: int) -> Tensor:
        """Hidden states at the first places: float [rows, time, width]."""
        category, event = self.category(batch[CATEGORY][:, :time]), self.event(batch[EVENT][:, :time])
        vectors = torch.cat([category, event, batch[PRICE][:, :time, None]], dim=-1)
        outputs: Tensor = self.transformer(vectors, batch[FIRST])
        return outputs

    def _heads(self, batch: Batch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """By column, the hidden state's part at the real positions, [positions, width], and what came next."""
        batch = trimmed(batch)
        real = real_targets(batch)
        hidden = self._outputs(batch, real.shape[1])[real]
        widths = [self.category.embedding_dim, self.event.embedding_dim, 1]
        parts = dict(zip(COLUMNS, torch.split(hidden, widths, dim=1), strict=True))
        return parts, {name: batch[name][:, 1:][real] for name in COLUMNS}

    def loss(self, batch: Batch) -> Tensor:
        """Cross-entropy of category and event type and the price's absolute error, weighted and added up."""
        said, came = self._heads(batch)
        category = tied_cross_entropy(said[CATEGORY], self.category.weight, came[CATEGORY], self.category_bias)
        event = tied_cross_entropy(said[EVENT], self.event.weight, came[EVENT], self.event_bias)
        price = (said[PRICE][:, 0] - came[PRICE]).abs().sum() / max(len(came[PRICE]), 1)
        return self.losses.category * category + self.losses.event * event + self.losses.price * price

    def weight(self, batch: Batch) -> Tensor:
        return real_targets(batch).sum().float()

    def encode(self, batch: Batch) -> Tensor:
        """The hidden state at each client's last event, or all of them added up: float [rows, width]."""
        outputs = self._outputs(batch, batch[EVENT].shape[1])
        return profile_of(outputs, batch[LENGTHS], self.profile, self.positions)

    def foretell(self, batch: Batch) -> dict[str, Tensor]:
        """What it says at each real position, rows after rows.

        Returns:
            ``category`` and ``event``: int64 [positions], the rank of what came; ``price``: float32 [positions].
        """
        said, came = self._heads(batch)
        return {
            CATEGORY: ranks_of(said[CATEGORY], self.category.weight, came[CATEGORY], self.category_bias),
            EVENT: ranks_of(said[EVENT], self.event.weight, came[EVENT], self.event_bias),
            PRICE: said[PRICE][:, 0].float(),
        }
