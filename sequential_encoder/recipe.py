"""What the sequential encoder's command does: sequences and labels out of a history, training; the fitted block."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Final, Self

import numpy as np
import numpy.typing as npt
import polars as pl
import torch

from sequential_encoder.events import ITEM, URL, Catalogue, EventSource, Sampler, SequenceSettings, Span
from sequential_encoder.model import LOSSES, WINDOWS, EncoderSettings, LossSettings, SequentialEncoder
from ubp.blocks.fitted import Clients, Vectors
from ubp.cli.answer_report import report
from ubp.cli.neural import Beginning, TrainedRecipe
from ubp.cli.recipe import Fit
from ubp.data import schema
from ubp.data.event_types import kept, require_same, restored
from ubp.data.history import ChallengeData
from ubp.data.labels import GROUPS, LabelSettings, LabelSpace
from ubp.data.schema import EventType
from ubp.data.snapshots import Snapshot, SnapshotSettings, snapshots
from ubp.data.targets import open_targets
from ubp.io.errors import name_some, require, require_positive
from ubp.io.files import digest_of
from ubp.training.answers import QUESTIONS, AnsweringBlock, wanted_of
from ubp.training.content import ContentEncoder, ContentSettings, contents_of_skus, item_vectors
from ubp.training.encode import Runtime, encode
from ubp.training.fit import Trained, fit, make_loggers, runtime_of
from ubp.training.fitted import FittedSequenceModel, Settings, Tables
from ubp.training.kernels import random_numbers
from ubp.training.model import Rows, SomeRows
from ubp.training.partition import Parts, split_rows
from ubp.training.settings import TrainerSettings
from ubp.training.snapshot_parts import by_newest, ended_before_newest
from ubp.training.snapshot_source import ADDED, BASKETS, BOUGHT, CENSORED, CHURN, DAYS, SnapshotSource, prepare

logger = logging.getLogger(__name__)

_SAMPLE: Final = 10_000  # rows of labels that the first answers are taken from


@dataclass
class ModelSettings(EncoderSettings):
    """The config's part `model`: the numbers of the encoder, and how it learns.

    Attributes:
        losses: what is learned.
        refit: learn once more from all snapshots, for as many epochs as were best on the newest window.
    """

    losses: LossSettings = field(default_factory=lambda: LossSettings({}, {}, 0.0, 1, 1.0, 0.0))
    refit: bool = True

    def __post_init__(self) -> None:
        """Refuse what makes no sense.

        Raises:
            UserError: an unknown choice or a number out of its range.
        """
        super().__post_init__()
        require_positive(self.losses, "model.losses", "negatives")
        for name in ("sampling", "popularity"):
            require(getattr(self.losses, name) >= 0, f"model.losses.{name}", getattr(self.losses, name), "at least 0")
        choices = {"weights": LOSSES, "answers": (*GROUPS, *QUESTIONS)}
        for part, known in choices.items():
            given = getattr(self.losses, part)
            unknown = sorted(given.keys() - set(known))
            require(not unknown, f"model.losses.{part}", name_some(unknown), f"some of {', '.join(known)}")
            for name, weight in given.items():
                require(weight >= 0, f"model.losses.{part}.{name}", weight, "at least 0")
        some = any(self.losses.weight(name) for name in LOSSES)
        require(some, "model.losses.weights", 0, "above 0 for one loss at least")

    @property
    def network(self) -> EncoderSettings:
        """Without what only the training needs."""
        return EncoderSettings(**{name: getattr(self, name) for name in EncoderSettings.__dataclass_fields__})


@dataclass(frozen=True)
class FittedSequentialEncoder(FittedSequenceModel[SequentialEncoder], AnsweringBlock):
    """A trained encoder; it reads any clients with an event of any type, and items that it has never seen.

    Attributes:
        sequences: how much of a history is read.
        network: what `build_model` makes the same model of.
        event_types: of the fit's log.
    """

    not_exported: ClassVar[str] = (
        "its inputs are no table of tokens: hashed contents of skus, urls and queries, and bags of events "
        "that code gathers for each batch; encode it with scripts/encode.py"
    )

    sequences: SequenceSettings
    network: dict[str, Any]
    event_types: tuple[EventType, ...]

    @property
    def content(self) -> ContentEncoder:
        """The trained encoder of skus, urls and queries: for models that learn on, or read it as it is."""
        return self.model.content

    def item_vectors(self, history: ChallengeData, skus: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Vectors of skus by what the properties say of them, seen in training or not: float32 [skus, width].

        Args:
            history: whose properties.
            skus: int64 [skus], ascending, each once, all with properties.
        """
        return item_vectors(self.content, contents_of_skus(history, skus, self.content.settings.rows))

    def source(self, history: ChallengeData, clients: Clients) -> EventSource:
        """See `ubp.training.fitted.FittedSequenceModel.source`."""
        require_same("sequential_encoder", self.event_types, history.event_types)
        span = Span.asked_at_its_end(history, clients)
        return EventSource((span,), Catalogue.of(span.chosen, self.content.settings.rows), self.sequences)

    @property
    def asked(self) -> tuple[str, ...]:
        """See `ubp.training.answers.AnsweringBlock.asked`."""
        return tuple(self.model.heads)

    def answers(self, history: ChallengeData, clients: Clients, names: Sequence[str]) -> tuple[Clients, Vectors]:
        """See `ubp.training.answers.AnsweringBlock.answers`."""
        source = self.source(history, clients)
        return source.clients, encode(self.model, source, self.runtime, wanted_of(self.model, names))

    def settings(self) -> dict[str, Any]:
        """See `ubp.training.fitted.FittedSequenceModel.settings`."""
        return {"sequences": asdict(self.sequences), "network": self.network, **kept(self.event_types)}

    def tables(self) -> dict[str, pl.DataFrame]:
        """See `ubp.training.fitted.FittedSequenceModel.tables`: none, there is no vocabulary."""
        return {}

    @classmethod
    def make(cls, settings: Settings, tables: Tables, runtime: Runtime) -> Self:  # noqa: ARG003 (there are none)
        """See `ubp.training.fitted.FittedSequenceModel.make`."""
        event_types = restored(settings)
        model = build_model(settings["network"])
        sequences = SequenceSettings(**settings["sequences"])
        return cls(model, runtime, sequences, settings["network"], event_types)


def build_model(settings: Mapping[str, Any]) -> SequentialEncoder:
    """The model with its first weights, by torch's random numbers.

    Args:
        settings: ``encoder``, ``losses``, ``groups`` (name to labels), ``asked``, ``types`` (of events); JSON.
    """
    encoder = EncoderSettings(**{**settings["encoder"], "content": ContentSettings(**settings["encoder"]["content"])})
    types = settings.get("types", len(schema.EVENT_TYPES))  # models that were kept before had no others
    groups = {name: np.zeros(count, np.float32) for name, count in settings["groups"].items()}
    return SequentialEncoder(encoder, LossSettings(**settings["losses"]), groups, settings["asked"], types)


def usual_answers(asked: SnapshotSource, rows: Rows, seed: int) -> dict[str, torch.Tensor]:
    """To each question what fits all rows together, NaN or infinite where nothing does: float [1] each.

    From at most `_SAMPLE` rows: the logit of a share, the logarithm of the mean count and of purchases a day.
    """
    if len(rows) > _SAMPLE:
        rows = np.sort(np.random.default_rng(seed).choice(rows, _SAMPLE, replace=False))
    batch = asked.batch(rows)
    found = {name: torch.logit(batch[name].nanmean()) for name in (CHURN, BOUGHT, ADDED)}
    found[BASKETS] = batch[BASKETS].mean().log()
    found[DAYS] = ((1 - batch[CENSORED]).sum() / batch[DAYS].sum()).log()
    return {name: answer.reshape(1) for name, answer in found.items()}


@dataclass(frozen=True)
class Learning:
    """What is learned from: rows of a source by what they are for.

    Attributes:
        source: three spans of the same log: what came before the newest window, that window, and everything.
        parts: rows that train, that stop the training, and that it is judged by.
        whole: rows of everything.
        before: rows of the labels that belong to what trains.
        asked: the labels, of clients on days.
        space: of the labels.
        folder: for checkpoints.
    """

    source: EventSource
    parts: Parts
    whole: Rows
    before: Rows
    asked: SnapshotSource
    space: LabelSpace
    folder: Path


@dataclass(frozen=True)
class SequentialEncoderRecipe(TrainedRecipe[SequentialEncoder]):
    """Events of every type in, profiles out.

    Attributes:
        sequences: how much of a history is read.
        snapshots: the label days.
        labels: what is asked of the windows after them.
        model: the network and what it learns.
        trainer: how it is trained.
        logger: the configs of Lightning's loggers by name.
    """

    sequences: SequenceSettings
    snapshots: SnapshotSettings
    labels: LabelSettings
    model: ModelSettings
    trainer: TrainerSettings
    logger: dict[str, Any]

    def fit(self, history: ChallengeData, seed: int, folder: Path) -> Fit:
        """See `ubp.cli.recipe.Recipe.fit`."""
        learning = self._prepared(history, seed, folder)
        asked, space = learning.asked, learning.space
        types = len(history.event_types)
        model, network = self._first_model(asked, learning.before, space, types, seed)
        loggers = make_loggers(self.logger)
        trained = fit(
            model, learning.source, self.trainer, learning.folder / "validated", seed, loggers, learning.parts
        )
        found = self._report(trained, learning.source)
        if self.model.refit:
            every = np.arange(int(asked.starts[-1]))
            model, network = self._first_model(asked, every, space, types, seed)
            known = replace(self.trainer, max_epochs=trained.kept_epoch)
            logger.info("once more from all snapshots, %d epochs", trained.kept_epoch)
            parts = replace(learning.parts, train=learning.whole)
            trained = fit(
                model, learning.source, known, learning.folder / "refitted", seed, loggers, parts, keep_last=True
            )
        block = FittedSequentialEncoder(trained.model, trained.runtime, self.sequences, network, history.event_types)
        return Fit(block, found, disposable=True)

    def beginning(self, history: ChallengeData, seed: int, folder: Path) -> Beginning[SequentialEncoder]:
        """See `ubp.cli.neural.TrainedRecipe.beginning`."""
        learning = self._prepared(history, seed, folder)
        types = history.event_types
        model, network = self._first_model(learning.asked, learning.before, learning.space, len(types), seed)
        block = FittedSequentialEncoder(model, runtime_of(self.trainer), self.sequences, network, types)
        encoded = block.source(history, np.sort(history.relevant_clients))
        return Beginning(model, SomeRows(learning.source, learning.parts.train), encoded, self.trainer)

    def _prepared(self, history: ChallengeData, seed: int, folder: Path) -> Learning:
        taken = snapshots(history, self.snapshots)
        space = LabelSpace.of(history, open_targets(history.paths), self.labels, seed)
        # What was prepared for other lists of the tasks is of no use for these.
        folder = folder / digest_of(*((group.name, group.values.tolist()) for group in space.groups))
        asked = prepare(taken, space, {}, folder / "snapshots")
        learning = self._learning(history, taken, asked, space, folder, seed)
        logger.info("%d snapshots, %s clients, %s labels", len(taken), f"{len(learning.whole):,}", f"{asked.width:,}")
        return learning

    def _report(self, trained: Trained[SequentialEncoder], source: EventSource) -> dict[str, Any]:
        monitor, _ = trained.model.monitor
        found: dict[str, Any] = {monitor: trained.best_score, "epochs": trained.kept_epoch}
        if trained.trainer.is_global_zero and self.model.losses.weight(WINDOWS):
            found |= report(trained, trained.model, source)
        return found

    def _learning(
        self,
        history: ChallengeData,
        taken: list[Snapshot],
        asked: SnapshotSource,
        space: LabelSpace,
        folder: Path,
        seed: int,
    ) -> Learning:
        """Validation by time: the newest window is for that alone, half of its clients to stop by, half to judge by.

        What trains ends where the newest window begins. Where no other window ends by then, clients are drawn.
        """
        newest = taken[-1]
        before = {number: taken[number] for number in ended_before_newest(taken)}
        every = dict(enumerate(taken))
        spans = [
            Span.of(history.before(newest.day), before, asked.starts, None),
            Span.of(history, {len(taken) - 1: newest}, asked.starts, newest.day),
            Span.of(history, every, asked.starts, None),
        ]
        whole = spans[-1].chosen
        samplers = {
            name: Sampler.of(whole, column, self.model.losses.sampling)
            for name, column in ((ITEM, schema.SKU), (URL, schema.URL))
        }
        some = {name: sampler for name, sampler in samplers.items() if len(sampler.places)}
        catalogue = Catalogue.of(whole, self.model.content.rows)
        source = EventSource(tuple(spans), catalogue, self.sequences, asked, some, self.model.losses.negatives)
        own = np.random.default_rng(seed).permutation(source.rows_of(1)[spans[1].labels[:, 0] >= 0])
        if before and len(own) > 1:
            rows = np.concatenate([asked.rows_of(number) for number in before])
            parts = by_newest(source.rows_of(0), own)
            return Learning(source, parts, source.rows_of(2), rows, asked, space, folder)
        logger.info("no window ends before the newest one begins: validation by clients drawn at random")
        drawn, everyone = split_rows(len(spans[-1]), self.trainer, seed), source.rows_of(2)
        parts = Parts(everyone[drawn.train], everyone[drawn.validation], everyone[drawn.held_out])
        return Learning(source, parts, everyone, np.arange(int(asked.starts[-1])), asked, space, folder)

    def _first_model(
        self, asked: SnapshotSource, rows: Rows, space: LabelSpace, types: int, seed: int
    ) -> tuple[SequentialEncoder, dict[str, Any]]:
        """The model with its first weights for what is learned from some rows, and what makes the same one again."""
        weight = self.model.losses.answer_weight
        questions = [name for name in QUESTIONS if weight(name) and (name != ADDED or space.has_additions)]
        network = {
            "encoder": asdict(self.model.network),
            "losses": asdict(self.model.losses),
            "groups": {group.name: len(group.values) for group in space.groups},
            "asked": questions,
            "types": types,
        }
        with random_numbers(seed):
            model = build_model(network)
        shares = asked.label_counts(rows) / max(len(rows), 1)
        model.shares.copy_(torch.from_numpy(shares.astype(np.float32)))
        answers = model.by_group(torch.logit(model.shares, eps=1e-5)) | usual_answers(asked, rows, seed)
        model.start_at(answers)
        return model, network
