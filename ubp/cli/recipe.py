"""The course of a neural model's command: prepare, train, encode, report, save."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Generic, Self, cast

from omegaconf import DictConfig

from ubp.cli.config import parse, resolved
from ubp.cli.run import EmbeddingRun
from ubp.data.history import ChallengeData
from ubp.training.encode import encode
from ubp.training.fit import Trained, fit, make_loggers
from ubp.training.model import ClientSource, Model, Source
from ubp.training.settings import TrainerSettings


@dataclass(frozen=True)
class Prepared(Generic[Model]):
    """What a neural model's command has made ready.

    Attributes:
        model: with its first weights.
        train_source: what it learns from.
        encode_source: who gets a profile.
        report: shows how good the trained model is on the sequences kept apart; what it returns is kept beside
            the block.
    """

    model: Model
    train_source: Source
    encode_source: ClientSource
    report: Callable[[Trained[Model]], Mapping[str, Any]]


@dataclass(frozen=True)
class Recipe(ABC, Generic[Model]):
    """Settings of a neural model's command, checked, and what it does with a history.

    A recipe's fields are dataclasses, each named as the part of the config that it is made from.
    """

    @classmethod
    def of(cls, config: DictConfig) -> Self:
        """From a command's config.

        Raises:
            UserError: a setting that makes no sense.
        """
        return cls(**{part.name: parse(cast("type[Any]", part.type), config, at=part.name) for part in fields(cls)})

    @abstractmethod
    def prepare(self, data: ChallengeData, seed: int) -> Prepared[Model]:
        """Read, tokenise, draw the first weights by the seed."""


def make_profiles(run: EmbeddingRun, config: DictConfig, recipe: type[Recipe[Model]]) -> None:
    """The course of every neural model's command: prepare, learn, encode, report, save.

    Args:
        run: what the command makes.
        config: of the command.
        recipe: its settings are made from the config.

    Raises:
        UserError: a fault in config or data, see also `fit` and `make_loggers`.
    """
    chosen, settings = recipe.of(config), parse(TrainerSettings, config, at="trainer")
    prepared = chosen.prepare(run.data, run.seed)
    loggers = make_loggers(resolved(config)["logger"])
    trained = fit(prepared.model, prepared.train_source, settings, run.folder, run.seed, loggers)
    vectors = encode(trained, prepared.encode_source, run.folder)
    if trained.trainer.is_global_zero:
        quality = prepared.report(trained)
        monitor, _ = prepared.model.monitor
        found = {**quality, "epochs": trained.epochs, monitor: trained.best_score}
        run.save(prepared.encode_source.clients, vectors, found)
