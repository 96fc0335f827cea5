"""What the next_sku command does: read, tokenise, learn, report."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial

import numpy as np
import torch

from next_sku.model import CATEGORY, COLUMNS, EVENT, PRICE, Losses, NextSku, Usual
from ubp.cli.output import show
from ubp.cli.recipe import Prepared, Recipe
from ubp.data import schema
from ubp.data.history import ChallengeData
from ubp.io.errors import UserError, require, require_positive
from ubp.sequences.build import build_or_open
from ubp.sequences.store import Selection
from ubp.sequences.vocabulary import EVENT_TOKENS
from ubp.training.encode import held_out_batches
from ubp.training.fit import Trained
from ubp.training.model import Batch
from ubp.training.ranking import (
    MODEL,
    POPULAR,
    REPEATED,
    Scores,
    compared,
    popularity_ranks,
    repetition_ranks,
    score_table,
)
from ubp.training.windows import Pooling, Windows, WindowSettings, real_targets, require_pooling

logger = logging.getLogger(__name__)


@dataclass
class SequenceSettings(WindowSettings):
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


@dataclass
class LossSettings:
    """The weights of the three losses in their sum."""

    category: float
    event: float
    price: float


@dataclass
class ModelSettings:
    """Numbers of `NextSku`."""

    category_width: int
    event_width: int
    layers: int
    heads: int
    dropout: float
    attention_dropout: float
    profile: str
    half_life: float | None
    losses: LossSettings = field(default_factory=lambda: LossSettings(1.0, 1.0, 1.0))

    def __post_init__(self) -> None:
        """Refuse numbers that make no sense.

        Raises:
            UserError: a number out of its range.
        """
        require_positive(self, "model", "category_width", "event_width", "layers", "heads")
        for name in ("dropout", "attention_dropout"):
            require(0 <= getattr(self, name) < 1, f"model.{name}", getattr(self, name), "from 0 to below 1")
        require_pooling(self.profile, self.half_life)


def select_events(data: ChallengeData, settings: SequenceSettings) -> Selection:
    """The item events of the clients who train."""
    clients = data.relevant_clients if settings.clients == "relevant" else None
    return build_or_open(data).select(schema.ITEM_EVENTS, clients=clients)


def tokenise(chosen: Selection, as_of: datetime, settings: SequenceSettings) -> tuple[Windows, int]:
    """Category and event type as tokens, the price bucket as a number; how many categories' tokens there are."""
    vocabulary = chosen.vocabulary(schema.CATEGORY, min_count=settings.min_count)
    buckets = chosen.sequences.prices[chosen.references(schema.SKU)]  # every item event's sku has one
    columns = {
        CATEGORY: chosen.tokens(schema.CATEGORY, vocabulary),
        EVENT: chosen.event_tokens(),
        PRICE: buckets.astype(np.float32),
    }
    return Windows.of(chosen, columns, as_of, settings), vocabulary.size


def usual_events(source: Windows, categories: int) -> Usual:
    """How often each category and event type occurs, the median price and how far prices are from it."""
    category, event = (
        torch.from_numpy(np.bincount(source.columns[name], minlength=ids)) for name, ids in _ids(categories).items()
    )
    prices = source.columns[PRICE]
    median = float(np.median(prices))
    # 1 where all prices are the same: they say nothing, but must not be divided by 0.
    return Usual(category, event, price=median, deviation=float(np.abs(prices - median).mean()) or 1.0)


def _ids(categories: int) -> dict[str, int]:
    """How many tokens the columns have."""
    return {CATEGORY: categories, EVENT: EVENT_TOKENS}


def build_model(usual: Usual, sequences: SequenceSettings, settings: ModelSettings, seed: int) -> NextSku:
    """The transformer with its first weights.

    Raises:
        UserError: the heads do not divide the width.
    """
    torch.manual_seed(seed)
    s, losses = settings, Losses(**vars(settings.losses))
    widths, shape = (s.category_width, s.event_width), (s.layers, s.heads, sequences.positions)
    pooling = Pooling(s.profile, sequences.newest, s.half_life)
    try:
        return NextSku(usual, *widths, *shape, s.dropout, s.attention_dropout, losses, pooling)
    except ValueError as error:
        raise UserError(f"model.heads: {error}; the width is category_width + event_width + 1") from error


@dataclass(frozen=True)
class Predictions:
    """Predictions of the next event of held-out clients; tensors [positions] of the three columns.

    Attributes:
        targets: tokens and prices of the next events.
        before: those of the events before them.
        by_model: ranks of category and event type, and the price that the model says.
        repeated: ranks of category and event type where the last ones are repeated.
    """

    targets: Batch
    before: Batch
    by_model: Batch
    repeated: Batch


def predict(trained: Trained[NextSku], source: Windows) -> Predictions:
    """The held-out clients' newest events, each predicted from those before it."""
    parts: dict[str, list[Batch]] = {"targets": [], "before": [], "by_model": [], "repeated": []}
    for batch in held_out_batches(trained, source):
        real = real_targets(batch)
        parts["targets"].append({name: batch[name][:, 1:][real] for name in COLUMNS})
        parts["before"].append({name: batch[name][:, :-1][real] for name in COLUMNS})
        parts["by_model"].append(trained.model.predict(batch))
        parts["repeated"].append({name: repetition_ranks(batch[name])[real] for name in (CATEGORY, EVENT)})
    return Predictions(**{part: _together(batches) for part, batches in parts.items()})


def _together(batches: Sequence[Batch]) -> Batch:
    return {name: torch.cat([batch[name] for batch in batches]).cpu() for name in batches[0]}


def report(trained: Trained[NextSku], source: Windows, categories: int) -> Scores:
    """Print how well held-out clients' events are predicted, beside baselines; return the scores."""
    predicted = predict(trained, source)
    known = source.events_of(trained.parts.train)
    scores: Scores = {}
    for name, ids in _ids(categories).items():
        counts = torch.from_numpy(np.bincount(source.columns[name][known], minlength=ids))
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


def price_scores(predicted: Predictions, usual: float) -> Scores:
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


@dataclass(frozen=True)
class NextSkuRecipe(Recipe[NextSku]):
    """Item events in, hidden states out."""

    sequences: SequenceSettings
    model: ModelSettings

    def prepare(self, data: ChallengeData, seed: int) -> Prepared[NextSku]:
        """See `ubp.cli.recipe.Recipe`."""
        source, categories = tokenise(select_events(data, self.sequences), data.as_of, self.sequences)
        logger.info("%s clients, %s events", f"{len(source.events):,}", f"{source.events.sum():,}")
        model = build_model(usual_events(source, categories), self.sequences, self.model, seed)
        train_source = source.at_least(2)  # a client with one event has no next one
        reporting = partial(report, source=train_source, categories=categories)
        return Prepared(model, train_source, source.of_clients(data.relevant_clients), reporting)
