"""What the dcn command does: encode the inputs on past days, label the windows after them, learn; the fitted block."""

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
import torch

from dcn.export import exported
from dcn.model import (
    CONTRASTIVE,
    Dcn,
    InputSettings,
    InputStatistics,
    LossSettings,
    NetworkSettings,
    NumberSettings,
    by_quantiles,
)
from ubp.blocks.fitted import Clients, FittedBlock, State, Vectors, fit_digest, packed, unpacked
from ubp.blocks.registry import block as registered
from ubp.cli.answer_report import report
from ubp.cli.inputs import fitted_inputs
from ubp.cli.neural import Beginning, TrainedRecipe
from ubp.cli.recipe import Fit
from ubp.data.history import ChallengeData
from ubp.data.labels import GROUPS, LabelSettings, LabelSpace
from ubp.data.snapshots import SnapshotSettings, snapshots
from ubp.data.targets import open_targets
from ubp.io.errors import UserError, name_some, require, require_positive
from ubp.io.files import digest_of
from ubp.training.answers import QUESTIONS, AnsweringBlock, wanted_of
from ubp.training.encode import Runtime, encode
from ubp.training.export import Encoder, Exportable
from ubp.training.fit import fit, make_loggers
from ubp.training.fitted import load_weights, weights_of
from ubp.training.kernels import random_numbers
from ubp.training.model import Batch, Rows, SomeRows
from ubp.training.partition import Parts
from ubp.training.settings import TrainerSettings
from ubp.training.snapshot_parts import parts_by_time
from ubp.training.snapshot_source import ADDED, MaskSettings, SnapshotSource, prepare, vectors_of

logger = logging.getLogger(__name__)

_WEIGHTS: Final = "dcn."  # before the names of its own weights, in a state
_SAMPLE: Final = 100_000  # rows that the inputs' means, deviations and quantiles are taken over
_FORMS: Final = {"inputs": ("numbers", "vector"), "numbers.form": ("standardised", "quantiles", "both")}


@dataclass  # not frozen: OmegaConf cannot fill the mappings of a frozen one
class DcnSettings:
    """The config's part `model`.

    Attributes:
        numbers: how numbers enter.
        network: each network's numbers.
        networks: side by side, each with its own first weights; the profile is all their bottlenecks.
        losses: what is learned, and how much it weighs.
        refit: learn once more from all snapshots, for as many epochs as were best on the newest window.
    """

    numbers: NumberSettings
    network: NetworkSettings
    networks: int
    losses: LossSettings
    refit: bool

    def __post_init__(self) -> None:
        """Refuse what makes no sense.

        Raises:
            UserError: an unknown choice or a number out of its range.
        """
        require_positive(self, "model", "networks")
        require_positive(self.network, "model.network", "width", "experts")
        levels = self.network.extraction
        require(levels >= 0, "model.network.extraction", levels, "at least 0")
        require_positive(self.numbers, "model.numbers", "quantiles", "parts", "width")
        form, forms = self.numbers.form, _FORMS["numbers.form"]
        require(form in forms, "model.numbers.form", form, " or ".join(forms))
        require(self.numbers.limit > 0, "model.numbers.limit", self.numbers.limit, "above 0")
        for name in ("input_dropout", "dropout"):
            value = getattr(self.network, name)
            require(0 <= value < 1, f"model.network.{name}", value, "at least 0 and below 1")
        require(0 <= self.losses.mask < 1, "model.losses.mask", self.losses.mask, "at least 0 and below 1")
        require(self.losses.temperature > 0, "model.losses.temperature", self.losses.temperature, "above 0")
        known = [*GROUPS, *QUESTIONS, CONTRASTIVE]
        unknown = sorted(self.losses.weights.keys() - known)
        require(not unknown, "model.losses.weights", name_some(unknown), f"some of {', '.join(known)}")
        for name, weight in self.losses.weights.items():
            require(weight >= 0, f"model.losses.weights.{name}", weight, "at least 0")
        weight = self.losses.weight(CONTRASTIVE)
        masked = "above 0 where the contrastive loss weighs something"
        require(weight == 0 or self.losses.mask > 0, "model.losses.mask", self.losses.mask, masked)


@dataclass
class Inputs:
    """A `ubp.training.model.ClientSource` of blocks' vectors, encoded when a batch asks for them.

    Held are those of as many clients as the blocks encode at a time. For batches one after the other, as
    `ubp.training.encode.encode` takes them where all sequences are as long: then each client is encoded once, but for
    those of a batch that two such parts share.

    Attributes:
        blocks: by name; one that encodes all clients at once is asked once, and its vectors are kept.
        history: as of the day.
        clients: int64 [clients], ascending.
    """

    blocks: dict[str, FittedBlock]
    history: ChallengeData
    clients: Clients
    _held: dict[str, Vectors] = field(default_factory=dict, init=False)
    _first: int = field(default=0, init=False)

    @cached_property
    def at_a_time(self) -> int:
        """Clients whose vectors are held, at the least; all if no block says fewer."""
        return min((block.at_a_time or len(self.clients) for block in self.blocks.values()), default=1)

    @cached_property
    def _whole(self) -> dict[str, Vectors]:
        """Vectors of all clients by the blocks that encode them at once."""
        whole = {name: block for name, block in self.blocks.items() if block.at_a_time is None}
        return {name: vectors_of(block, self.history, self.clients) for name, block in whole.items()}

    @property
    def lengths(self) -> Rows:
        """See `ubp.training.model.Source`: one token each."""
        return np.ones(len(self.clients), np.int64)

    def batch(self, rows: Rows, generator: np.random.Generator | None = None) -> Batch:  # noqa: ARG002 (nothing is drawn)
        """See `ubp.training.model.Source`: each block's vectors, float32 [rows, columns]."""
        first, last = int(rows.min()), int(rows.max())
        end = self._first + len(next(iter(self._held.values()), ()))
        if not self._first <= first <= last < end:
            self._hold(first, max(last + 1, first + self.at_a_time))
        return {name: torch.from_numpy(vectors[rows - self._first]) for name, vectors in self._held.items()}

    def _hold(self, first: int, end: int) -> None:
        some = self.clients[first:end]
        self._held.clear()  # before others are encoded
        for name, block in self.blocks.items():
            whole = self._whole.get(name)
            self._held[name] = vectors_of(block, self.history, some) if whole is None else whole[first:end]
        self._first = first


@dataclass(frozen=True)
class FittedDcn(AnsweringBlock, Exportable):
    """A trained network, and the fitted blocks that it reads, which are kept with it.

    Attributes:
        blocks: by name, in the order of the network's inputs.
        model: on the CPU.
        runtime: how it computes.
        settings: what `_network` makes the same network of.
    """

    blocks: dict[str, FittedBlock]
    model: Dcn
    runtime: Runtime
    settings: dict[str, Any]

    def vectors(self, history: ChallengeData, clients: Clients) -> tuple[Clients, Vectors]:
        """See `ubp.blocks.fitted.FittedBlock.vectors`: the clients with an event of any type."""
        known = history.seen(clients)
        return known, encode(self.model, Inputs(self.blocks, history, known), self.runtime)

    @property
    def asked(self) -> tuple[str, ...]:
        """See `ubp.training.answers.AnsweringBlock.asked`."""
        return (*self.model.groups, *self.model.asked)

    def answers(self, history: ChallengeData, clients: Clients, names: Sequence[str]) -> tuple[Clients, Vectors]:
        """See `ubp.training.answers.AnsweringBlock.answers`: of the clients with an event of any type."""
        known = history.seen(clients)
        inputs = Inputs(self.blocks, history, known)
        return known, encode(self.model, inputs, self.runtime, wanted_of(self.model, names))

    def encoder(self) -> Encoder:
        """See `ubp.training.export.Exportable.encoder`: from the other blocks' vectors on."""
        return exported(self.model, self.blocks, lambda history, clients: Inputs(self.blocks, history, clients))

    def state(self) -> State:
        """See `ubp.blocks.fitted.FittedBlock.state`."""
        inner = packed(self.blocks)
        settings = {**inner.settings, "dcn": self.settings, "runtime": asdict(self.runtime)}
        return State(settings, inner.arrays | weights_of(self.model, _WEIGHTS), inner.tables)

    @classmethod
    def from_state(cls, state: State) -> Self:
        """See `ubp.blocks.fitted.FittedBlock.from_state`."""
        with random_numbers():  # the first weights are drawn, then replaced
            model = _network(state.settings["dcn"])
        load_weights(model, state.arrays, _WEIGHTS)
        return cls(unpacked(state), model, Runtime(**state.settings["runtime"]), state.settings["dcn"])


def _network(settings: dict[str, Any], statistics: dict[str, InputStatistics] | None = None) -> Dcn:
    """The network with its first weights, by torch's random numbers.

    Args:
        settings: ``inputs`` (name to columns, form, width), ``numbers``, ``network``, ``networks``, ``groups`` (name to
            labels), ``asked``, ``losses``.
        statistics: of the inputs; None where saved weights will replace them.
    """
    numbers = NumberSettings(**settings["numbers"])
    inputs = {}
    for name, given in settings["inputs"].items():
        columns, form = given["columns"], InputSettings(given["form"], given["width"])
        inputs[name] = (statistics[name] if statistics else InputStatistics.empty(columns, numbers.quantiles), form)
    groups = {name: np.zeros(count, np.float32) for name, count in settings["groups"].items()}
    network, losses = NetworkSettings(**settings["network"]), LossSettings(**settings["losses"])
    return Dcn(inputs, numbers, network, settings["networks"], groups, settings["asked"], losses)


@dataclass(frozen=True)
class _Learned:
    """What is learned from.

    Attributes:
        blocks: that are read, by name.
        space: the labels.
        source: clients on days, and what came after.
        parts: its rows by what they are for.
        folder: for checkpoints.
    """

    blocks: dict[str, FittedBlock]
    space: LabelSpace
    source: SnapshotSource
    parts: Parts
    folder: Path


@dataclass(frozen=True)
class DcnRecipe(TrainedRecipe[Dcn]):
    """Snapshots in, bottlenecks out.

    Attributes:
        inputs: fitted blocks by name, and how each enters.
        snapshots: the label days.
        labels: what is asked of the windows.
        model: the network.
        trainer: how it is trained.
        logger: the configs of Lightning's loggers by name.
    """

    inputs: dict[str, dict[str, Any]]
    snapshots: SnapshotSettings
    labels: LabelSettings
    model: DcnSettings
    trainer: TrainerSettings
    logger: dict[str, Any]

    def fit(self, history: ChallengeData, seed: int, folder: Path) -> Fit:
        """See `ubp.cli.recipe.Recipe.fit`."""
        inputs = input_settings(self.inputs)
        learned = self._prepared(history, seed, folder, inputs)
        source, parts, space = learned.source, learned.parts, learned.space
        model, settings = self._first_model(source, parts.train, space, inputs, seed)
        loggers = make_loggers(self.logger)
        trained = fit(model, source, self.trainer, learned.folder / "validated", seed, loggers, parts)
        found: dict[str, Any] = {"validation_loss": trained.best_score, "epochs": trained.kept_epoch}
        if trained.trainer.is_global_zero:
            found |= report(trained, trained.model, source)
        if self.model.refit:
            every = np.arange(len(source.lengths))
            model, settings = self._first_model(source, every, space, inputs, seed)
            known = replace(self.trainer, max_epochs=trained.kept_epoch)
            logger.info("once more from all snapshots, %d epochs", trained.kept_epoch)
            whole = Parts(every, parts.validation, parts.held_out)
            trained = fit(model, source, known, learned.folder / "refitted", seed, loggers, whole, keep_last=True)
        return Fit(FittedDcn(learned.blocks, trained.model, trained.runtime, settings), found, disposable=True)

    def beginning(self, history: ChallengeData, seed: int, folder: Path) -> Beginning[Dcn]:
        """See `ubp.cli.neural.TrainedRecipe.beginning`."""
        inputs = input_settings(self.inputs)
        learned = self._prepared(history, seed, folder, inputs)
        model, _ = self._first_model(learned.source, learned.parts.train, learned.space, inputs, seed)
        known = SomeRows(learned.source, learned.parts.train)
        return Beginning(model, known, known, self.trainer)

    def _prepared(
        self, history: ChallengeData, seed: int, folder: Path, inputs: dict[str, InputSettings]
    ) -> "_Learned":
        blocks = fitted_inputs(history, inputs)
        taken = snapshots(history, self.snapshots)
        space = LabelSpace.of(history, open_targets(history.paths), self.labels, seed)
        # What was prepared with one fit of an input, or for other lists of the tasks, is of no use for another.
        fits = [fit_digest(history.paths.model(name, history.submit)) for name in inputs]
        folder = folder / digest_of(*fits, *((group.name, group.values.tolist()) for group in space.groups))
        masks = MaskSettings(self.model.losses.mask, seed) if self.model.losses.weight(CONTRASTIVE) else None
        source = prepare(taken, space, blocks, folder / "snapshots", masks)
        parts = parts_by_time(source, taken, self.trainer, seed)
        size = (len(taken), f"{len(source.lengths):,}", f"{source.width:,}")
        logger.info("%d snapshots, %s rows, %s labels", *size)
        return _Learned(blocks, space, source, parts, folder)

    def _first_model(
        self, source: SnapshotSource, rows: Rows, space: LabelSpace, inputs: dict[str, InputSettings], seed: int
    ) -> tuple[Dcn, dict[str, Any]]:
        """The network with its first weights for what is learned from some rows, and what makes the same one again."""
        numbers = self.model.numbers
        statistics = {
            name: InputStatistics.of(
                source.sample(name, _SAMPLE, seed, rows), numbers.quantiles if by_quantiles(given, numbers) else 0
            )
            for name, given in inputs.items()
        }
        asked = [name for name in QUESTIONS if name != ADDED or space.has_additions]
        weight = self.model.losses.weight
        groups = {group.name: len(group.values) for group in space.groups}
        settings = {
            "inputs": {
                name: {"columns": source.columns(name), "form": given.form, "width": given.width}
                for name, given in inputs.items()
            },
            "numbers": asdict(numbers),
            "network": asdict(self.model.network),
            "networks": self.model.networks,
            "groups": groups,
            "asked": [name for name in asked if weight(name)],
            "losses": asdict(self.model.losses),
        }
        with random_numbers(seed):
            model = _network(settings, statistics)
        shares = source.label_counts(rows) / len(rows)
        model.shares.copy_(torch.from_numpy(shares.astype(np.float32)))
        model.start_from_shares()
        return model, settings


def input_settings(inputs: dict[str, dict[str, Any]]) -> dict[str, InputSettings]:
    """The config's part `inputs`, checked.

    Raises:
        UserError: none, one that is no block, an unknown setting or form.
    """
    require(bool(inputs), "inputs", "{}", "one block at least")
    found = {}
    for name, given in inputs.items():
        registered(name)
        try:
            found[name] = InputSettings(**given)
        except TypeError as error:
            raise UserError(f"inputs.{name}: {error}; known: form, width") from error
        require(found[name].form in _FORMS["inputs"], f"inputs.{name}.form", found[name].form, "numbers or vector")
        require(found[name].width >= 1, f"inputs.{name}.width", found[name].width, "at least 1")
    return found
