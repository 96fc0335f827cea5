"""The course of every neural model's recipe: prepare, train, report."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic

import numpy as np

from ubp.blocks.registry import needs_of
from ubp.cli.output import BELOW_POPULARITY
from ubp.cli.recipe import Fit, Recipe
from ubp.cli.run import WARNINGS
from ubp.data.history import ChallengeData
from ubp.data.lacking import no_events
from ubp.io.errors import NoUsableEvents
from ubp.training.encode import Runtime
from ubp.training.fit import Trained, fit, make_loggers, runtime_of
from ubp.training.fitted import FittedSequenceModel
from ubp.training.model import Model, Source
from ubp.training.ranking import below_popularity
from ubp.training.settings import TrainerSettings


@dataclass(frozen=True)
class Beginning(Generic[Model]):
    """What a training begins with.

    Attributes:
        model: with its first weights.
        source: what it learns from.
        encoded: sequences whose vectors are profiles, or their like in training.
        trainer: how it is trained.
    """

    model: Model
    source: Source
    encoded: Source
    trainer: TrainerSettings


class TrainedRecipe(Recipe, ABC, Generic[Model]):
    """A recipe that trains one model, of whatever source."""

    @abstractmethod
    def beginning(self, history: ChallengeData, seed: int, folder: Path) -> Beginning[Model]:
        """What `fit` begins with: for whoever measures a step of it.

        Args:
            history: nothing after its ``as_of`` is read.
            seed: of everything random.
            folder: for what is prepared; the same for the same history and settings.

        Raises:
            UserError: a fault in the data, or settings that do not fit them.
        """


@dataclass(frozen=True)
class Prepared(Generic[Model]):
    """What is ready for training.

    Attributes:
        block: knows how to encode; its model has its first weights.
        train_source: what the model learns from.
        report: shows how good the trained model is on the sequences kept apart; what it returns is kept in the
            lineage.
    """

    block: FittedSequenceModel[Model]
    train_source: Source
    report: Callable[[Trained[Model]], Mapping[str, Any]]


@dataclass(frozen=True)
class NeuralRecipe(TrainedRecipe[Model], Generic[Model]):
    """A recipe that trains a sequence model.

    Attributes:
        name: of the block.
        trainer: how it is trained.
        logger: the configs of Lightning's loggers by name.
    """

    name: str
    trainer: TrainerSettings
    logger: dict[str, Any]

    @abstractmethod
    def prepare(self, history: ChallengeData, seed: int) -> Prepared[Model]:
        """Read, tokenise, draw the first weights by the seed."""

    def beginning(self, history: ChallengeData, seed: int, folder: Path) -> Beginning[Model]:  # noqa: ARG002 (nothing is kept)
        """See `TrainedRecipe.beginning`."""
        prepared = self.prepare(history, seed)
        encoded = prepared.block.source(history, np.sort(history.relevant_clients))
        return Beginning(prepared.block.model, prepared.train_source, encoded, self.trainer)

    @property
    def runtime(self) -> Runtime:
        """How the model computes until it is known how it was trained."""
        return runtime_of(self.trainer)

    def fit(self, history: ChallengeData, seed: int, folder: Path) -> Fit:
        """See `ubp.cli.recipe.Recipe.fit`, `ubp.training.fit.fit` and `ubp.training.fit.make_loggers`.

        With several devices only the first process has a report, and may encode.
        """
        prepared = self.prepare(history, seed)
        model = prepared.block.model
        try:
            trained = fit(model, prepared.train_source, self.trainer, folder, seed, make_loggers(self.logger))
        except NoUsableEvents as error:
            raise no_events(history, needs_of(self.name), str(error)) from error
        block = replace(prepared.block, runtime=trained.runtime)
        if not trained.trainer.is_global_zero:
            return Fit(block)
        monitor, _ = model.monitor
        report = {**prepared.report(trained), "epochs": trained.epochs, monitor: trained.best_score}
        return Fit(block, report | {WARNINGS: _warnings(report, model.headline)})


def _warnings(report: Mapping[str, Any], headline: str | None) -> list[str]:
    """What a block's closing line says of its model by the score on held-out clients that counts most."""
    below = below_popularity(report, headline) if headline else None
    return [f"{BELOW_POPULARITY}: {below}"] if below else []
