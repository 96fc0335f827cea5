"""A causal transformer over item events that predicts the next one's category, event type and price."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ubp.data import schema
from ubp.training.model import Batch
from ubp.training.next_event import NextEventModel
from ubp.training.nn import CausalTransformer, tied_cross_entropy
from ubp.training.ranking import ranks_of
from ubp.training.windows import Pooling, at_targets, with_targets

CATEGORY, EVENT, PRICE = COLUMNS = (schema.CATEGORY, "event", schema.PRICE)  # of a batch


@dataclass
class LossWeights:
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
        price: the median, in buckets.
        deviation: mean distance of the prices from it, in buckets, above 0.
    """

    categories: Tensor
    events: Tensor
    price: float
    deviation: float


def _log_shares(counts: Tensor) -> Tensor:
    """The logarithm of each token's share, as if each had occurred once more."""
    shares = (counts + 1).double()
    return torch.log(shares / shares.sum()).float()


class NextSku(NextEventModel):
    """Reads (category, event type, price) of each event and predicts those of the next.

    The vector of an event is [category's | event type's | price]. The hidden state is cut in the same way, and
    each part goes through a linear layer: the first is then multiplied with the categories' own vectors, the
    second with the event types', the last is the price. A price goes in as its distance from the median
    over the mean distance, as small as the 127 numbers beside it: a bucket from 0 to 99 would drown them in the first
    layer norm. In batches, losses and predictions it is in buckets. A batch holds ``category`` and ``event`` int64,
    ``price`` float, [rows, time] each, and what `ubp.training.windows.Windows` adds.

    Args:
        usual: what is usual among the events; the model begins by predicting that.
        category_width: of a category's vector.
        event_width: of an event type's; with the price's 1 they add up to the width of the hidden states.
        layers: of the transformer.
        heads: of its attention.
        positions: events that are read at a time, see `read_in_windows`.
        dropout: see `CausalTransformer`, as for ``attention_dropout``.
        attention_dropout: on the attention's weights.
        losses: their weights.
        pooling: of the hidden states.
    """

    headline = f"{CATEGORY} mrr@10"

    def __init__(
        self,
        usual: Usual,
        category_width: int,
        event_width: int,
        layers: int,
        heads: int,
        positions: int,
        dropout: float,
        attention_dropout: float,
        losses: LossWeights,
        pooling: Pooling,
    ) -> None:
        super().__init__(category_width + event_width + 1, positions, pooling)
        self.losses = losses
        self.category = nn.Embedding(len(usual.categories), category_width)
        self.event = nn.Embedding(len(usual.events), event_width)
        # Biases take hundreds of steps to come from zero to the popularities.
        self.category_bias = nn.Parameter(_log_shares(usual.categories))
        self.event_bias = nn.Parameter(_log_shares(usual.events))
        self.transformer = CausalTransformer(self.width, layers, heads, positions, dropout, attention_dropout)
        self.category_head = nn.Linear(category_width, category_width)
        self.event_head = nn.Linear(event_width, event_width)
        self.price_head = nn.Linear(1, 1)
        nn.init.ones_(self.price_head.weight)  # one random number could be near 0
        nn.init.zeros_(self.price_head.bias)
        self.price_median, self.price_deviation = usual.price, usual.deviation
        for table in (self.category, self.event):  # logits of about 1: the last layer norm's outputs are of size 1
            nn.init.normal_(table.weight, std=table.embedding_dim**-0.5)

    def read(self, batch: Batch, time: int) -> Tensor:
        """See `ubp.training.next_event.NextEventModel.read`."""
        category, event = self.category(batch[CATEGORY][:, :time]), self.event(batch[EVENT][:, :time])
        size = self.category.embedding_dim**-0.5  # of the numbers in a category's vector, at first
        price = (batch[PRICE][:, :time, None] - self.price_median) * (size / self.price_deviation)
        return torch.cat([category, event, price], dim=-1)

    def _predictions(self, batch: Batch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Predictions and targets at the real positions, by column.

        Returns:
            Vectors to multiply with the tables, float [positions, width], and prices in buckets, float
            [positions, 1]; what comes next, [positions] each.
        """
        batch = with_targets(batch)
        widths = [self.category.embedding_dim, self.event.embedding_dim, 1]
        category, event, price = torch.split(self.predicting(batch), widths, dim=1)
        predictions = {
            CATEGORY: self.category_head(category),
            EVENT: self.event_head(event),
            PRICE: self.price_median + self.price_deviation * self.price_head(price).float(),
        }
        return predictions, {name: at_targets(batch[name][:, 1:], batch) for name in COLUMNS}

    def loss(self, batch: Batch) -> Tensor:
        """Cross-entropy of category and event type and the price's absolute error in buckets, weighted sum."""
        predictions, targets = self._predictions(batch)
        tables = {CATEGORY: (self.category.weight, self.category_bias), EVENT: (self.event.weight, self.event_bias)}
        category, event = (
            tied_cross_entropy(predictions[name], table, targets[name], bias) for name, (table, bias) in tables.items()
        )
        price = (predictions[PRICE][:, 0] - targets[PRICE]).abs().sum() / max(len(targets[PRICE]), 1)
        return self.losses.category * category + self.losses.event * event + self.losses.price * price

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        """Its predictions at each real position, rows after rows.

        Returns:
            ``category`` and ``event``: int64 [positions], the rank of the target; ``price``: float32 [positions],
            in buckets.
        """
        predictions, targets = self._predictions(batch)
        return {
            CATEGORY: ranks_of(predictions[CATEGORY], self.category.weight, targets[CATEGORY], self.category_bias),
            EVENT: ranks_of(predictions[EVENT], self.event.weight, targets[EVENT], self.event_bias),
            PRICE: predictions[PRICE][:, 0].float(),
        }
