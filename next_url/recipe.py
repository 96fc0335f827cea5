"""What the next_url command does: read, tokenise, fit, report; and the fitted block."""

import logging
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import polars as pl
import torch

from next_url.model import BATCH, CLIENT, FREQUENCY, UNIFORM, NextUrl, Sampling
from ubp.blocks.fitted import Clients
from ubp.cli.neural import NeuralRecipe, Prepared
from ubp.cli.output import show
from ubp.data import schema
from ubp.data.history import ChallengeData
from ubp.data.lacking import no_events
from ubp.data.schema import FIRST_TOKEN
from ubp.io.errors import LEAVE_OUT, NoUsableEvents, UserError, require, require_positive
from ubp.sequences.build import events_of
from ubp.sequences.selection import Selection
from ubp.sequences.vocabulary import Vocabulary
from ubp.training.encode import Runtime
from ubp.training.export import Encoder, Exportable, next_event_encoder, token_input, vocabulary_table
from ubp.training.fit import Trained
from ubp.training.fitted import FittedSequenceModel, Settings, Tables, table_of, vocabulary_of
from ubp.training.kernels import random_numbers
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
class NextUrlSequences(WindowSettings):
    """Windows, and how many visits a url needs at least."""

    min_count: int


@dataclass(kw_only=True)
class NextUrlNetwork(TransformerSettings):
    """Numbers of `NextUrl`; ``negatives`` to ``log_q`` are those of `Sampling`."""

    width: int
    negatives: int
    negatives_for: str
    sampling: str
    log_q: bool

    def __post_init__(self) -> None:
        """Refuse what makes no sense.

        Raises:
            UserError: an unknown choice or a number out of its range.
        """
        super().__post_init__()
        require_positive(self, "model", "width", "negatives")
        require(
            self.negatives_for in (BATCH, CLIENT), "model.negatives_for", self.negatives_for, f"{BATCH} or {CLIENT}"
        )
        require(self.sampling in (UNIFORM, FREQUENCY), "model.sampling", self.sampling, f"{UNIFORM} or {FREQUENCY}")


def select_visits(history: ChallengeData, clients: npt.NDArray[np.int64]) -> Selection:
    """The events about urls of some clients; clients without any are left out."""
    return events_of(history, history.about(schema.URL), clients)


def known_urls(visits: Selection, min_count: int) -> Vocabulary:
    """The urls that have enough visits.

    Raises:
        NoUsableEvents: no url has so many.
    """
    vocabulary = visits.vocabulary(schema.URL, min_count=min_count)
    if not len(vocabulary.values):
        most = visits.vocabulary(schema.URL, top=1).counts.max(initial=0)
        raise NoUsableEvents(
            f"sequences.min_count={min_count}: no url has so many visits by relevant clients: {len(visits):,} events "
            f"about urls by them, {most:,} at most to one url; choose {max(most, 1)} or less, or {LEAVE_OUT}"
        )
    return vocabulary


def tokenise(visits: Selection, urls: Vocabulary, history: ChallengeData, settings: WindowSettings) -> Windows:
    """The visits to known urls, as tokens; the others, and clients who have no other, are left out."""
    kept = visits.where(visits.tokens(schema.URL, urls) >= FIRST_TOKEN).at_least(1)
    return Windows.of(kept, {schema.URL: kept.tokens(schema.URL, urls)}, history.as_of, settings)


def build_model(counts: npt.NDArray[np.int64], sequences: WindowSettings, network: NextUrlNetwork) -> NextUrl:
    """The transformer with its first weights, by torch's random numbers.

    Args:
        counts: int64 [urls], the visits to each url, in the order of their tokens.
        sequences: how much is read at a time.
        network: numbers.

    Raises:
        UserError: the heads do not divide the width.
    """
    n, sampling = network, Sampling(network.negatives, network.negatives_for, network.sampling, network.log_q)
    shape = (n.width, n.layers, n.heads, sequences.positions)
    try:
        return NextUrl(
            torch.tensor(counts), *shape, n.dropout, n.attention_dropout, sampling, n.pooling(sequences.newest)
        )
    except ValueError as error:
        raise UserError(f"model.heads: {error}") from error


def report(trained: Trained[NextUrl], source: Windows, urls: int) -> RankingScores:
    """Print how well held-out clients' visits are predicted, beside baselines; return the scores."""
    known = source.columns[schema.URL][source.events_of(trained.parts.train)]
    counts = torch.from_numpy(np.bincount(known - FIRST_TOKEN, minlength=urls))
    ranks: dict[str, list[torch.Tensor]] = {MODEL: [], POPULAR: [], REPEATED: []}
    for batch in trained.held_out_batches(source):
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
class FittedNextUrl(FittedSequenceModel[NextUrl], Exportable):
    """A trained `NextUrl`, and the urls that it knows; visits to others are left out."""

    sequences: NextUrlSequences
    network: NextUrlNetwork
    urls: Vocabulary

    def source(self, history: ChallengeData, clients: Clients) -> Windows:
        """See `ubp.training.fitted.FittedSequenceModel.source`."""
        return tokenise(select_visits(history, clients), self.urls, history, self.sequences)

    def settings(self) -> dict[str, Any]:
        """See `ubp.training.fitted.FittedSequenceModel.settings`."""
        return {"sequences": asdict(self.sequences), "network": asdict(self.network)}

    def tables(self) -> dict[str, pl.DataFrame]:
        """See `ubp.training.fitted.FittedSequenceModel.tables`."""
        return {schema.URL: table_of(self.urls)}

    def encoder(self) -> Encoder:
        """See `ubp.training.export.Exportable.encoder`."""
        inputs = (token_input(schema.URL, "the event's url; events about urls that are not in the table are left out", schema.URL),)  # noqa: E501  # fmt: skip
        tables = {schema.URL: vocabulary_table(self.urls)}
        return next_event_encoder(self.model, inputs, "all about urls", self.sequences.newest, tables, self.source)

    @classmethod
    def make(cls, settings: Settings, tables: Tables, runtime: Runtime) -> Self:
        """See `ubp.training.fitted.FittedSequenceModel.make`."""
        sequences, network = NextUrlSequences(**settings["sequences"]), NextUrlNetwork(**settings["network"])
        urls = vocabulary_of(tables[schema.URL])
        return cls(build_model(urls.counts, sequences, network), runtime, sequences, network, urls)


@dataclass(frozen=True)
class NextUrlRecipe(NeuralRecipe[NextUrl]):
    """Visits in, hidden states out."""

    sequences: NextUrlSequences
    model: NextUrlNetwork

    def prepare(self, history: ChallengeData, seed: int) -> Prepared[NextUrl]:
        """See `ubp.cli.neural.NeuralRecipe`."""
        visits = select_visits(history, history.relevant_clients)
        if not len(visits):
            raise no_events(history, history.about(schema.URL))
        urls = known_urls(visits, self.sequences.min_count)
        source = tokenise(visits, urls, history, self.sequences)
        size = (f"{len(source.events):,}", f"{urls.counts.sum():,}", f"{len(urls.values):,}")
        logger.info("%s clients, %s visits, %s urls", *size)
        with random_numbers(seed):
            model = build_model(urls.counts, self.sequences, self.model)
        block = FittedNextUrl(model, self.runtime, self.sequences, self.model, urls)
        train_source = source.at_least(2)  # a client with one visit has no next one
        return Prepared(block, train_source, partial(report, source=train_source, urls=len(urls.values)))
