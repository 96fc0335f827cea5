"""What the GRU autoencoders' commands have in common: read, tokenise, fit, report; and the fitted block."""

import logging
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, Literal, Self, cast

import polars as pl

from gru_autoencoder import export
from gru_autoencoder.model import INITIAL_STATES, MONITORS, PROFILE, TEACHER_FORCED, GruAutoencoder, Reading
from gru_autoencoder.report import ReportSettings, report
from gru_autoencoder.tokens import AutoencoderSequences, FeatureSettings, Tokeniser, TokenSource, select_events
from ubp.blocks.fitted import Clients
from ubp.cli.neural import NeuralRecipe, Prepared
from ubp.data.history import ChallengeData
from ubp.io.errors import UserError, require, require_positive
from ubp.training.encode import Runtime
from ubp.training.export import Encoder, Exportable
from ubp.training.fitted import FittedSequenceModel, Settings, Tables
from ubp.training.kernels import random_numbers
from ubp.training.windows import LAST, require_pooling

logger = logging.getLogger(__name__)


@dataclass
class AutoencoderNetwork:
    """Numbers of `GruAutoencoder`; features by name: day, week, event, category, price, sku, url, codes."""

    combine: str
    hidden: int
    layers: int
    dropout: float
    word_dropout: float
    initial_states: str = PROFILE
    monitor: str = TEACHER_FORCED
    profile: str = LAST
    features: dict[str, FeatureSettings] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse numbers that make no sense.

        Raises:
            UserError: a number out of its range.
        """
        require_positive(self, "model", "hidden", "layers")
        for name in ("dropout", "word_dropout"):
            require(0 <= getattr(self, name) < 1, f"model.{name}", getattr(self, name), "from 0 to below 1")
        require_pooling(self.profile, half_life=None)
        for name, known in {"initial_states": INITIAL_STATES, "monitor": MONITORS}.items():
            require(getattr(self, name) in known, f"model.{name}", getattr(self, name), " or ".join(known))


def build_model(tokeniser: Tokeniser, sequences: AutoencoderSequences, network: AutoencoderNetwork) -> GruAutoencoder:
    """The autoencoder with its first weights, by torch's random numbers.

    Raises:
        UserError: features that cannot be combined so.
    """
    n, each = network, tokeniser.tokens_per_event
    if n.combine not in ("concat", "sum"):
        raise UserError(f"model.combine={n.combine}: must be concat or sum")
    combine = cast("Literal['concat', 'sum']", n.combine)
    reading = Reading(sequences.longest * each, sequences.newest * each, n.profile)
    shape = (n.hidden, n.layers, n.dropout, n.word_dropout)
    try:
        return GruAutoencoder(tokeniser.features, combine, *shape, n.initial_states, n.monitor, reading)
    except ValueError as error:
        raise UserError(f"model.features: {error}") from error


@dataclass(frozen=True)
class FittedAutoencoder(FittedSequenceModel[GruAutoencoder], Exportable):
    """A trained `GruAutoencoder`, and how events become its tokens."""

    name: str
    sequences: AutoencoderSequences
    network: AutoencoderNetwork
    tokeniser: Tokeniser

    def source(self, history: ChallengeData, clients: Clients) -> TokenSource:
        """See `ubp.training.fitted.FittedSequenceModel.source`."""
        chosen = select_events(history, self.sequences, clients)
        return self.tokeniser.source(chosen, history.as_of, self.sequences.newest, self.name)

    def settings(self) -> dict[str, Any]:
        """See `ubp.training.fitted.FittedSequenceModel.settings`."""
        own = {"sequences": asdict(self.sequences), "network": asdict(self.network)}
        return {"name": self.name, **own, "tokeniser": self.tokeniser.as_json()}

    def tables(self) -> dict[str, pl.DataFrame]:
        """See `ubp.training.fitted.FittedSequenceModel.tables`."""
        return self.tokeniser.tables()

    def encoder(self) -> Encoder:
        """See `ubp.training.export.Exportable.encoder`."""
        return Encoder(
            export.AutoencoderEncoder(self.model),
            tuple(export.inputs_of(self.tokeniser)),
            self.model.width,
            tuple(export.events_of(self.sequences, self.tokeniser)),
            export.tables_of(self.tokeniser),
            self.source,
            partial(export.from_batch, self.model),
        )

    @classmethod
    def make(cls, settings: Settings, tables: Tables, runtime: Runtime) -> Self:
        """See `ubp.training.fitted.FittedSequenceModel.make`."""
        sequences, tokeniser = (
            AutoencoderSequences(**settings["sequences"]),
            Tokeniser.restored(settings["tokeniser"], tables),
        )
        network = AutoencoderNetwork(**{**settings["network"], "features": dict(tokeniser.settings)})
        model = build_model(tokeniser, sequences, network)
        return cls(model, runtime, settings["name"], sequences, network, tokeniser)


@dataclass(frozen=True)
class AutoencoderRecipe(NeuralRecipe[GruAutoencoder]):
    """Sequences of tokens in, the encoder's last states out."""

    sequences: AutoencoderSequences
    model: AutoencoderNetwork
    report: ReportSettings

    def prepare(self, history: ChallengeData, seed: int) -> Prepared[GruAutoencoder]:
        """See `ubp.cli.neural.NeuralRecipe`."""
        everyone = self.sequences.clients == "all"
        chosen = select_events(history, self.sequences, None if everyone else history.relevant_clients)
        tokeniser = Tokeniser.learn(chosen, self.model.features, history, self.sequences.day)
        source = tokeniser.source(chosen, history.as_of, self.sequences.longest, self.name)
        logger.info("%s clients, %s tokens", f"{len(source.tokens):,}", f"{source.tokens.sum():,}")
        with random_numbers(seed):
            model = build_model(tokeniser, self.sequences, self.model)
        block = FittedAutoencoder(model, self.runtime, self.name, self.sequences, self.model, tokeniser)
        return Prepared(block, source, partial(report, source=source, labels=tokeniser.labels, settings=self.report))
