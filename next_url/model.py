"""A causal transformer over page visits that predicts the next url."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ubp.data import schema
from ubp.data.schema import FIRST_TOKEN
from ubp.training.model import LENGTHS, Batch
from ubp.training.next_event import NextEventModel
from ubp.training.nn import CausalTransformer, sampled_cross_entropy, tied_cross_entropy
from ubp.training.ranking import ranking_scores, ranks_of
from ubp.training.windows import Pooling, at_targets, with_targets

UNIFORM, FREQUENCY = "uniform", "frequency"
BATCH, CLIENT = "batch", "client"  # whom negatives are drawn for


@dataclass(frozen=True)
class Sampling:
    """How the softmax over all urls is sampled.

    Attributes:
        negatives: urls drawn at a time, with replacement. Where there are no more urls than that, none are drawn:
            the softmax is over all of them.
        drawn_for: ``batch``: once for all positions together; ``client``: anew for each client's positions.
        by: ``uniform``, or ``frequency`` for the more visited more often.
        log_q: take the logarithm of how often a negative was to be expected off its logit, so that the loss
            estimates the full softmax; without it the loss is the softmax among what was drawn.
    """

    negatives: int
    drawn_for: str
    by: str
    log_q: bool


class NextUrl(NextEventModel):
    """Reads the url of each visit and predicts the next one; early stopping goes by NDCG@10 against all urls.

    The hidden state is multiplied with the urls' own vectors. The table of urls may have millions of rows: where
    the softmax is sampled, a step's gradient is sparse, and only the rows that it read are moved (`SparseAdam`);
    not on several devices, see `SequenceModel.use_dense_gradients`.
    A batch holds ``url`` int64 [rows, time] and what `ubp.training.windows.Windows` adds.

    Args:
        counts: int64 [urls], the visits to each url, in the order of their tokens.
        width: of the urls' vectors and the hidden states.
        layers: of the transformer.
        heads: of its attention.
        positions: visits that are read at a time, see `read_in_windows`.
        dropout: see `CausalTransformer`, as for ``attention_dropout``.
        attention_dropout: on the attention's weights.
        sampling: of the softmax.
        pooling: of the hidden states.
    """

    monitor = ("validation_ndcg", "max")
    headline = "ndcg@10"

    def __init__(
        self,
        counts: Tensor,
        width: int,
        layers: int,
        heads: int,
        positions: int,
        dropout: float,
        attention_dropout: float,
        sampling: Sampling,
        pooling: Pooling,
    ) -> None:
        super().__init__(width, positions, pooling)
        self.sampling = sampling
        self.sampled = sampling.negatives < len(counts)
        self.url = nn.Embedding(FIRST_TOKEN + len(counts), width, sparse=self.sampled)
        nn.init.normal_(self.url.weight, std=width**-0.5)  # logits of about 1: the last layer norm's outputs are
        self.transformer = CausalTransformer(width, layers, heads, positions, dropout, attention_dropout)
        shares = counts.double() if sampling.by == FREQUENCY else torch.ones(len(counts), dtype=torch.float64)
        shares = shares / shares.sum()
        # Not among the weights: they are the data's, and a fitted block keeps the counts.
        self.register_buffer("cumulative", shares.cumsum(0), persistent=False)
        self.register_buffer("log_shares", shares.log().float(), persistent=False)

    def read(self, batch: Batch, time: int) -> Tensor:
        """See `ubp.training.next_event.NextEventModel.read`."""
        vectors: Tensor = self.url(batch[schema.URL][:, :time])
        return vectors

    def _hidden(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Hidden states at the real positions, float [positions, width], and the tokens that come next there.

        Rows after rows: a client has one position less than visits.
        """
        batch = with_targets(batch)
        return self.predicting(batch), at_targets(batch[schema.URL][:, 1:], batch)

    def draw(self) -> tuple[Tensor, Tensor]:
        """Negatives and the logarithm of how often each was to be expected: int64 and float32 [negatives].

        The negatives are places among the urls; a url's token is `FIRST_TOKEN` more.
        """
        cumulative, log_shares = self.get_buffer("cumulative"), self.get_buffer("log_shares")
        count = self.sampling.negatives
        if self.sampling.by == UNIFORM:
            drawn = torch.randint(len(cumulative), (count,), device=cumulative.device)
        else:
            at = torch.rand(count, dtype=torch.float64, device=cumulative.device)
            drawn = torch.searchsorted(cumulative, at, right=True).clamp_(max=len(cumulative) - 1)
        log_counts = log_shares[drawn] + torch.log(torch.tensor(float(count)))
        return drawn, log_counts if self.sampling.log_q else torch.zeros_like(log_counts)

    def loss(self, batch: Batch) -> Tensor:
        """Cross-entropy of the next url."""
        hidden, wanted = self._hidden(batch)
        if not self.sampled:
            return tied_cross_entropy(hidden, self.url.weight[FIRST_TOKEN:], wanted - FIRST_TOKEN)
        if self.sampling.drawn_for == BATCH:
            return self._sampled_loss(hidden, wanted)
        counts = (batch[LENGTHS] - 1).tolist()
        parts = zip(torch.split(hidden, counts), torch.split(wanted, counts), strict=True)
        losses = torch.stack([self._sampled_loss(states, targets) * len(targets) for states, targets in parts])
        return losses.sum() / max(len(wanted), 1)

    def _sampled_loss(self, hidden: Tensor, wanted: Tensor) -> Tensor:
        """The mean over some positions, all with the same negatives."""
        negatives, log_counts = self.draw()
        return sampled_cross_entropy(hidden, self.url, wanted, negatives + FIRST_TOKEN, log_counts)

    def validation_scores(self, batch: Batch) -> dict[str, Tensor]:
        scores = ranking_scores(self.ranks(batch))
        return {f"validation_{name}": score for name, score in scores.items()}

    def ranks(self, batch: Batch) -> Tensor:
        """The next url's rank among all of them at each real position, rows after rows: int64 [positions]."""
        hidden, wanted = self._hidden(batch)
        return ranks_of(hidden, self.url.weight[FIRST_TOKEN:], wanted - FIRST_TOKEN)

    def optimizers(self, learning_rate: float) -> list[torch.optim.Optimizer]:
        if not self.url.sparse:
            return super().optimizers(learning_rate)
        dense = torch.optim.Adam(self.transformer.parameters(), lr=learning_rate, fused=True)
        return [dense, torch.optim.SparseAdam(self.url.parameters(), lr=learning_rate)]
