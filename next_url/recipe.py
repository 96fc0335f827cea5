"""What the next_url command does: read, tokenise, learn, report."""

import logging
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import torch

from next_url.model import BATCH, CLIENT, FREQUENCY, UNIFORM, NextUrl, Sampling
from ubp.cli.output import show
from ubp.cli.recipe import Prepared, Recipe
from ubp.data import schema
from ubp.data.history import ChallengeData
from ubp.data.schema import FIRST_TOKEN, EventType
from ubp.io.errors import UserError, require, require_positive
from ubp.sequences.build import build_or_open
from ubp.training.encode import held_out_batches
from ubp.training.fit import Trained
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
    """Windows, and how many visits a url needs at least."""

    min_count: int


@dataclass
class ModelSettings:
    """Numbers of `NextUrl`; ``negatives`` to ``log_q`` are those of `Sampling`."""

    width: int
    layers: int
    heads: int
    dropout: float
    attention_dropout: float
    profile: str
    half_life: float | None
    negatives: int
    negatives_for: str
    sampling: str
    log_q: bool

    def __post_init__(self) -> None:
        """Refuse what makes no sense.

        Raises:
            UserError: an unknown choice or a number out of its range.
        """
        require_positive(self, "model", "width", "layers", "heads", "negatives")
        for name in ("dropout", "attention_dropout"):
            require(0 <= getattr(self, name) < 1, f"model.{name}", getattr(self, name), "from 0 to below 1")
        require_pooling(self.profile, self.half_life)
        require(
            self.negatives_for in (BATCH, CLIENT), "model.negatives_for", self.negatives_for, f"{BATCH} or {CLIENT}"
        )
        require(self.sampling in (UNIFORM, FREQUENCY), "model.sampling", self.sampling, f"{UNIFORM} or {FREQUENCY}")


def read_visits(data: ChallengeData, settings: SequenceSettings) -> tuple[Windows, npt.NDArray[np.int64]]:
    """The relevant clients' visits to urls that have enough of them, and how many each url has: int64 [urls].

    Raises:
        UserError: no url has so many.
    """
    visits = build_or_open(data).select([EventType.PAGE_VISIT], clients=data.relevant_clients)
    vocabulary = visits.vocabulary(schema.URL, min_count=settings.min_count)
    if not len(vocabulary.values):
        raise UserError(
            f"sequences.min_count={settings.min_count}: no url has so many visits by relevant clients "
            f"({len(visits):,} visits in all); choose a smaller number"
        )
    kept = visits.where(visits.tokens(schema.URL, vocabulary) >= FIRST_TOKEN).at_least(1)
    columns = {schema.URL: kept.tokens(schema.URL, vocabulary)}
    return Windows.of(kept, columns, data.as_of, settings), vocabulary.counts


def build_model(
    counts: npt.NDArray[np.int64], sequences: SequenceSettings, settings: ModelSettings, seed: int
) -> NextUrl:
    """The transformer with its first weights.

    Raises:
        UserError: the heads do not divide the width.
    """
    torch.manual_seed(seed)
    s, sampling = settings, Sampling(settings.negatives, settings.negatives_for, settings.sampling, settings.log_q)
    shape = (s.width, s.layers, s.heads, sequences.positions)
    pooling = Pooling(s.profile, sequences.newest, s.half_life)
    try:
        return NextUrl(torch.from_numpy(counts), *shape, s.dropout, s.attention_dropout, sampling, pooling)
    except ValueError as error:
        raise UserError(f"model.heads: {error}") from error


def report(trained: Trained[NextUrl], source: Windows, urls: int) -> Scores:
    """Print how well held-out clients' visits are predicted, beside baselines; return the scores."""
    known = source.columns[schema.URL][source.events_of(trained.parts.train)]
    counts = torch.from_numpy(np.bincount(known - FIRST_TOKEN, minlength=urls))
    ranks: dict[str, list[torch.Tensor]] = {MODEL: [], POPULAR: [], REPEATED: []}
    for batch in held_out_batches(trained, source):
        real = real_targets(batch)
        ranks[MODEL].append(trained.model.ranks(batch).cpu())
        ranks[POPULAR].append(popularity_ranks(counts, batch[schema.URL][:, 1:][real].cpu() - FIRST_TOKEN))
        ranks[REPEATED].append(repetition_ranks(batch[schema.URL])[real].cpu())
    together = {who: torch.cat(parts) for who, parts in ranks.items()}
    scores = compared(together)
    clients = len(trained.parts.held_out)
    show(score_table(f"{clients:,} held-out clients, {len(together[MODEL]):,} visits, {urls:,} urls", scores))
    return scores


@dataclass(frozen=True)
class NextUrlRecipe(Recipe[NextUrl]):
    """Visits in, hidden states out."""

    sequences: SequenceSettings
    model: ModelSettings

    def prepare(self, data: ChallengeData, seed: int) -> Prepared[NextUrl]:
        """See `ubp.cli.recipe.Recipe`."""
        source, counts = read_visits(data, self.sequences)
        size = (f"{len(source.events):,}", f"{counts.sum():,}", f"{len(counts):,}")
        logger.info("%s clients, %s visits, %s urls", *size)
        model = build_model(counts, self.sequences, self.model, seed)
        train_source = source.at_least(2)  # a client with one visit has no next one
        return Prepared(model, train_source, source, partial(report, source=train_source, urls=len(counts)))
