"""Next url: a causal transformer over the relevant clients' page visits.

    python next_url/next_url_embeddings.py                            -> next_url_192_6_4
    python next_url/next_url_embeddings.py submit=False preset=demo   in under a minute and a half

It learns to say the next url out of all that are visited often enough; visits to others are left out, and
clients without any other have no profile here. The profile is the hidden state after the newest visit, or
with model.profile=sum those of all the newest visits added up. The command ends with how well it foretells
held-out clients' visits, beside two baselines.
"""

import logging
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from omegaconf import DictConfig

from next_url.model import FREQUENCY, UNIFORM, NextUrl, Sampling
from ubp import schema
from ubp.config import parse, resolved
from ubp.data import ChallengeData
from ubp.errors import UserError, require
from ubp.ranking import MODEL, POPULAR, REPEATED, Scores, compared, popularity_ranks, repetition_ranks, score_table
from ubp.run import command, embedding_run, show
from ubp.schema import FIRST_TOKEN, EventType
from ubp.sequences import Sequences
from ubp.slices import Slices, SliceSettings, real_targets, require_profile
from ubp.training import Trained, TrainerSettings, device_batches, encode, fit, make_loggers

logger = logging.getLogger(__name__)


@dataclass
class SequenceSettings(SliceSettings):
    """Slices, and how many visits a url needs at least."""

    min_count: int


@dataclass
class ModelSettings:
    """Numbers of `NextUrl`; ``negatives``, ``sampling`` and ``log_q`` are those of `Sampling`."""

    width: int
    layers: int
    heads: int
    dropout: float
    profile: str
    negatives: int
    sampling: str
    log_q: bool

    def __post_init__(self) -> None:
        """Refuse what makes no sense.

        Raises:
            UserError: an unknown choice or a number out of its range.
        """
        for name in ("width", "layers", "heads", "negatives"):
            require(getattr(self, name) >= 1, f"model.{name}", getattr(self, name), "at least 1")
        require(0 <= self.dropout < 1, "model.dropout", self.dropout, "from 0 to below 1")
        require_profile(self.profile)
        require(self.sampling in (UNIFORM, FREQUENCY), "model.sampling", self.sampling, f"{UNIFORM} or {FREQUENCY}")


def read_visits(data: ChallengeData, settings: SequenceSettings) -> tuple[Slices, npt.NDArray[np.int64]]:
    """The relevant clients' visits to urls that have enough of them, and how many each url has: int64 [urls].

    Raises:
        UserError: no url has so many.
    """
    visits = Sequences.build_or_open(data).select([EventType.PAGE_VISIT], clients=data.relevant_clients)
    vocabulary = visits.vocabulary(schema.URL, min_count=settings.min_count)
    if not len(vocabulary.values):
        raise UserError(
            f"sequences.min_count={settings.min_count}: no url has so many visits by relevant clients "
            f"({len(visits):,} visits in all); choose a smaller number"
        )
    kept = visits.where(visits.tokens(schema.URL, vocabulary) >= FIRST_TOKEN).at_least(1)
    columns = {schema.URL: kept.tokens(schema.URL, vocabulary)}
    return Slices.of(kept, columns, settings), vocabulary.counts


def build_model(counts: npt.NDArray[np.int64], positions: int, settings: ModelSettings, seed: int) -> NextUrl:
    """The transformer with its first weights.

    Raises:
        UserError: the heads do not divide the width.
    """
    torch.manual_seed(seed)
    s, sampling = settings, Sampling(settings.negatives, settings.sampling, settings.log_q)
    shape = (s.width, s.layers, s.heads, positions)
    try:
        return NextUrl(torch.from_numpy(counts), *shape, s.dropout, sampling, s.profile)
    except ValueError as error:
        raise UserError(f"model.heads: {error}") from error


def report(trained: Trained, source: Slices, urls: int) -> Scores:
    """Print how well held-out clients' visits are foretold, beside baselines; return the scores."""
    model = trained.model
    if not isinstance(model, NextUrl):
        raise TypeError(f"{type(model).__name__} is no NextUrl")
    rows = trained.parts.held_out
    known = source.columns[schema.URL][source.events_of(trained.parts.train)]
    counts = torch.from_numpy(np.bincount(known - FIRST_TOKEN, minlength=urls))
    ranks: dict[str, list[torch.Tensor]] = {MODEL: [], POPULAR: [], REPEATED: []}
    batches = np.array_split(rows, -(-len(rows) // trained.settings.batch_size))
    for _, batch in device_batches(trained, source, batches):
        real = real_targets(batch)
        ranks[MODEL].append(model.ranks(batch).cpu())
        ranks[POPULAR].append(popularity_ranks(counts, batch[schema.URL][:, 1:][real].cpu() - FIRST_TOKEN))
        ranks[REPEATED].append(repetition_ranks(batch[schema.URL])[real].cpu())
    together = {who: torch.cat(parts) for who, parts in ranks.items()}
    scores = compared(together)
    show(score_table(f"{len(rows):,} held-out clients, {len(together[MODEL]):,} visits, {urls:,} urls", scores))
    return scores


@command("next_url", "next_url")
def main(config: DictConfig) -> None:
    visits, numbers = parse(SequenceSettings, config, at="sequences"), parse(ModelSettings, config, at="model")
    trainer, loggers = parse(TrainerSettings, config, at="trainer"), resolved(config)["logger"]
    with embedding_run(config) as run:
        source, counts = read_visits(run.data, visits)
        logger.info(
            "%s clients, %s visits, %s urls", f"{len(source.events):,}", f"{counts.sum():,}", f"{len(counts):,}"
        )
        model = build_model(counts, visits.newest, numbers, run.seed)
        taught = source.at_least(2)  # a client with one visit has no next one
        trained = fit(model, taught, trainer, run.folder, run.seed, make_loggers(loggers))
        vectors = encode(trained, source, run.folder)
        if trained.trainer.is_global_zero:
            scores = report(trained, taught, len(counts))
            run.save(
                source.clients, vectors, scores | {"epochs": trained.epochs, "validation_ndcg": trained.best_score}
            )


if __name__ == "__main__":
    main()
