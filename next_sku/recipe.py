"""What the next_sku command does: read, tokenise, fit, report; and the fitted block."""

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from functools import partial
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import polars as pl
import torch

from next_sku.model import CATEGORY, COLUMNS, EVENT, PRICE, LossWeights, NextSku, Usual
from ubp.blocks.fitted import Clients
from ubp.cli.neural import NeuralRecipe, Prepared
from ubp.cli.output import show
from ubp.data import schema
from ubp.data.event_types import kept, require_same, restored
from ubp.data.history import ChallengeData
from ubp.data.schema import EventType, Token
from ubp.io.errors import UserError, require, require_positive
from ubp.sequences.build import events_of
from ubp.sequences.selection import Selection
from ubp.sequences.vocabulary import Vocabulary, event_tokens
from ubp.training.encode import Runtime
from ubp.training.export import (
    ROWS,
    TIME,
    Encoder,
    Exportable,
    Input,
    event_table,
    next_event_encoder,
    token_input,
    vocabulary_table,
)
from ubp.training.fit import Trained
from ubp.training.fitted import FittedSequenceModel, Settings, Tables, table_of, vocabulary_of
from ubp.training.kernels import random_numbers
from ubp.training.model import Batch
from ubp.training.next_event import TransformerSettings
from ubp.training.ranking import (
    MODEL,
    POPULAR,
    REPEATED,
    RankingScores,
    compared,
    popularity_ranks,
    repetition_ranks,
    score_table,
)
from ubp.training.windows import Windows, WindowSettings, real_targets

logger = logging.getLogger(__name__)


@dataclass
class NextSkuSequences(WindowSettings):
    """Windows, and who trains: ``relevant`` clients or ``all``; categories with fewer events share a token."""

    clients: str
    min_count: int

    def __post_init__(self) -> None:
        """Refuse what makes no sense.

        Raises:
            UserError: an unknown choice or a number out of its range.
        """
        super().__post_init__()
        require(self.clients in ("relevant", "all"), "sequences.clients", self.clients, "relevant or all")


@dataclass(kw_only=True)
class NextSkuNetwork(TransformerSettings):
    """Numbers of `NextSku`."""

    category_width: int
    event_width: int
    losses: LossWeights = field(default_factory=lambda: LossWeights(1.0, 1.0, 1.0))

    def __post_init__(self) -> None:
        """Refuse numbers that make no sense.

        Raises:
            UserError: an unknown choice or a number out of its range.
        """
        super().__post_init__()
        require_positive(self, "model", "category_width", "event_width")


def select_events(history: ChallengeData, clients: npt.NDArray[np.int64] | None) -> Selection:
    """The item events of some clients, None for all; clients without any are left out."""
    return events_of(history, history.item_types, clients)


def tokenise(chosen: Selection, categories: Vocabulary, as_of: datetime, settings: WindowSettings) -> Windows:
    """Category and event type as tokens, the price bucket as a number."""
    buckets = chosen.sequences.prices[chosen.references(schema.SKU)]  # every item event's sku has one
    columns = {
        CATEGORY: chosen.tokens(schema.CATEGORY, categories),
        EVENT: chosen.event_tokens(),
        PRICE: buckets.astype(np.float32),
    }
    return Windows.of(chosen, columns, as_of, settings)


def usual_events(source: Windows, categories: int, events: int) -> Usual:
    """How often each category and event type occurs, the median price and how far prices are from it.

    Args:
        source: of the events.
        categories: tokens of categories.
        events: tokens of event types.
    """
    category, event = (
        torch.from_numpy(np.bincount(source.columns[name], minlength=tokens))
        for name, tokens in ((CATEGORY, categories), (EVENT, events))
    )
    prices = source.columns[PRICE]
    median = float(np.median(prices))
    # 1 where all prices are the same: there is nothing to learn from them, but they must not be divided by 0.
    return Usual(category, event, price=median, deviation=float(np.abs(prices - median).mean()) or 1.0)


def build_model(usual: Usual, sequences: WindowSettings, network: NextSkuNetwork) -> NextSku:
    """The transformer with its first weights, by torch's random numbers.

    Raises:
        UserError: the heads do not divide the width.
    """
    n = network
    widths, shape = (n.category_width, n.event_width), (n.layers, n.heads, sequences.positions)
    try:
        return NextSku(usual, *widths, *shape, n.dropout, n.attention_dropout, n.losses, n.pooling(sequences.newest))
    except ValueError as error:
        raise UserError(f"model.heads: {error}; the width is category_width + event_width + 1") from error


@dataclass(frozen=True)
class Predictions:
    """Predictions of the next event of held-out clients; tensors [positions] of the three columns.

    Attributes:
        targets: tokens and prices of the next events.
        before: those of the events before them.
        by_model: ranks of category and event type, and the price that the model predicts.
        repeated: ranks of category and event type where the last ones are repeated.
    """

    targets: Batch
    before: Batch
    by_model: Batch
    repeated: Batch


def predict(trained: Trained[NextSku], source: Windows) -> Predictions:
    """The held-out clients' newest events, each predicted from those before it."""
    parts: dict[str, list[Batch]] = {"targets": [], "before": [], "by_model": [], "repeated": []}
    for batch in trained.held_out_batches(source):
        real = real_targets(batch)
        parts["targets"].append({name: batch[name][:, 1:][real] for name in COLUMNS})
        parts["before"].append({name: batch[name][:, :-1][real] for name in COLUMNS})
        parts["by_model"].append(trained.model.predict(batch))
        parts["repeated"].append({name: repetition_ranks(batch[name])[real] for name in (CATEGORY, EVENT)})
    return Predictions(**{part: _together(batches) for part, batches in parts.items()})


def _together(batches: Sequence[Batch]) -> Batch:
    return {name: torch.cat([batch[name] for batch in batches]).cpu() for name in batches[0]}


def report(trained: Trained[NextSku], source: Windows, categories: int, events: int) -> RankingScores:
    """Print how well held-out clients' events are predicted, beside baselines; return the scores.

    Args:
        trained: the model.
        source: of the events.
        categories: tokens of categories.
        events: tokens of event types.
    """
    predicted = predict(trained, source)
    known = source.events_of(trained.parts.train)
    scores: RankingScores = {}
    for name, tokens in ((CATEGORY, categories), (EVENT, events)):
        counts = torch.from_numpy(np.bincount(source.columns[name][known], minlength=tokens))
        ranks = {MODEL: predicted.by_model[name], POPULAR: popularity_ranks(counts, predicted.targets[name])}
        ranks[REPEATED] = predicted.repeated[name]
        scores |= {
            f"{name} {metric}": values for metric, values in compared(ranks, at=10 if name == CATEGORY else 1).items()
        }
    usual = float(np.median(source.columns[PRICE][known]))
    scores |= price_scores(predicted, usual)
    show(
        score_table(
            f"{len(trained.parts.held_out):,} held-out clients, {len(predicted.targets[EVENT]):,} events", scores
        )
    )
    return scores


def price_scores(predicted: Predictions, usual: float) -> RankingScores:
    """Mean absolute error, in price buckets, and Spearman's correlation of the price; the usual one has none."""
    from scipy.stats import spearmanr  # half a second

    targets = predicted.targets[PRICE].numpy()
    guesses = {
        MODEL: predicted.by_model[PRICE].numpy(),
        POPULAR: np.full_like(targets, usual),
        REPEATED: predicted.before[PRICE].numpy(),
    }
    errors = {who: float(np.abs(guess - targets).mean()) for who, guess in guesses.items()}
    apart = {who: guess for who, guess in guesses.items() if np.ptp(guess) > 0 and np.ptp(targets) > 0}
    orders = {who: float(spearmanr(guess, targets).statistic) for who, guess in apart.items()}
    return {"price MAE, buckets": errors, "price Spearman": orders}


_TOKENS = "{}_tokens"  # name of the table with how often each token of a column occurs
_COUNT = "count"  # its column


@dataclass(frozen=True)
class FittedNextSku(FittedSequenceModel[NextSku], Exportable):
    """A trained `NextSku`, the categories that have a token of their own, what was usual, the log's event types."""

    sequences: NextSkuSequences
    network: NextSkuNetwork
    categories: Vocabulary
    usual: Usual
    event_types: tuple[EventType, ...]

    def source(self, history: ChallengeData, clients: Clients) -> Windows:
        """See `ubp.training.fitted.FittedSequenceModel.source`."""
        require_same("next_sku", self.event_types, history.event_types)
        return tokenise(select_events(history, clients), self.categories, history.as_of, self.sequences)

    def settings(self) -> dict[str, Any]:
        """See `ubp.training.fitted.FittedSequenceModel.settings`."""
        usual = {"price": self.usual.price, "deviation": self.usual.deviation}
        own = {"sequences": asdict(self.sequences), "network": asdict(self.network), "usual": usual}
        return own | kept(self.event_types)

    def tables(self) -> dict[str, pl.DataFrame]:
        """See `ubp.training.fitted.FittedSequenceModel.tables`."""
        counts = {CATEGORY: self.usual.categories, EVENT: self.usual.events}
        tokens = {_TOKENS.format(name): pl.DataFrame({_COUNT: column.numpy()}) for name, column in counts.items()}
        return {CATEGORY: table_of(self.categories), **tokens}

    def encoder(self) -> Encoder:
        """See `ubp.training.export.Exportable.encoder`."""
        inputs = (
            token_input(CATEGORY, f"the sku's category; {Token.OTHER} for one that is not in the table", CATEGORY),
            token_input(EVENT, "the event's type", EVENT),
            Input(PRICE, "float32", (ROWS, TIME), "the sku's price bucket, 0 to 99"),
        )
        types = self.event_types
        names = ", ".join(str(kind) for kind in types if kind.has_sku)
        tables = {CATEGORY: vocabulary_table(self.categories), EVENT: event_table(types)}
        return next_event_encoder(self.model, inputs, names, self.sequences.newest, tables, self.source)

    @classmethod
    def make(cls, settings: Settings, tables: Tables, runtime: Runtime) -> Self:
        """See `ubp.training.fitted.FittedSequenceModel.make`."""
        sequences = NextSkuSequences(**settings["sequences"])
        losses = LossWeights(**settings["network"]["losses"])
        network = NextSkuNetwork(**{**settings["network"], "losses": losses})
        categories, events = (
            torch.tensor(tables[_TOKENS.format(name)][_COUNT].to_numpy()) for name in (CATEGORY, EVENT)
        )
        usual = Usual(categories, events, **settings["usual"])
        model = build_model(usual, sequences, network)
        return cls(model, runtime, sequences, network, vocabulary_of(tables[CATEGORY]), usual, restored(settings))


@dataclass(frozen=True)
class NextSkuRecipe(NeuralRecipe[NextSku]):
    """Item events in, hidden states out."""

    sequences: NextSkuSequences
    model: NextSkuNetwork

    def prepare(self, history: ChallengeData, seed: int) -> Prepared[NextSku]:
        """See `ubp.cli.neural.NeuralRecipe`."""
        everyone = self.sequences.clients == "all"
        chosen = select_events(history, None if everyone else history.relevant_clients)
        categories = chosen.vocabulary(schema.CATEGORY, min_count=self.sequences.min_count)
        source = tokenise(chosen, categories, history.as_of, self.sequences)
        logger.info("%s clients, %s events", f"{len(source.events):,}", f"{source.events.sum():,}")
        tokens = categories.size, event_tokens(history.event_types)
        usual = usual_events(source, *tokens)
        with random_numbers(seed):
            model = build_model(usual, self.sequences, self.model)
        block = FittedNextSku(model, self.runtime, self.sequences, self.model, categories, usual, history.event_types)
        train_source = source.at_least(2)  # a client with one event has no next one
        found = partial(report, source=train_source, categories=tokens[0], events=tokens[1])
        return Prepared(block, train_source, found)
