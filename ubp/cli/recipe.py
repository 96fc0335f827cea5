"""What a block's command does: its settings from a config, a fitted block out of a history, its embedding."""

import shutil
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Self, cast

import numpy as np
from omegaconf import DictConfig

from ubp.blocks.fitted import FittedBlock, content_digest, imported, save
from ubp.blocks.registry import Entry, reads_targets
from ubp.cli.config import RAY, Common, parse, resolved
from ubp.cli.object_store import is_shared
from ubp.cli.output import say
from ubp.cli.run import EmbeddingRun, embedding_run
from ubp.data.history import ChallengeData
from ubp.data.shards import MOST_SHARDS, sharded
from ubp.io.errors import UserError
from ubp.io.spread import Spread
from ubp.io.stage import is_first_process


@dataclass(frozen=True)
class Fit:
    """What a recipe makes of a history.

    Attributes:
        block: that has learned.
        report: figures on its quality; JSON. It is kept in the lineage.
        disposable: the folder of the fit is of no use once the block is kept; it is then removed.
    """

    block: FittedBlock
    report: Mapping[str, Any] = field(default_factory=dict)
    disposable: bool = False


@dataclass(frozen=True)
class Need:
    """What a fit takes of one machine, about.

    Attributes:
        memory: bytes.
        counts: of the log, that it follows from, in words.
        settings: that lower it.
    """

    memory: int
    counts: str
    settings: str


@dataclass(frozen=True)
class Recipe(ABC):
    """Settings of a block's command, checked, and how it learns.

    A recipe's fields are named as the parts of the config that they are made from: dataclasses, or plain values.
    """

    @classmethod
    def of(cls, config: DictConfig) -> Self:
        """From a command's config.

        Raises:
            UserError: a setting that makes no sense.
        """
        return cls(**{part.name: _part(config, part.name, part.type) for part in fields(cls)})

    @abstractmethod
    def fit(self, history: ChallengeData, seed: int, folder: Path) -> Fit:
        """Learn.

        Args:
            history: nothing after its ``as_of`` is read.
            seed: of everything random.
            folder: for what a killed run is taken up from; the same for the same history and settings.

        Raises:
            UserError: a fault in the data, or settings that do not fit them.
        """

    def need(self, history: ChallengeData) -> Need | None:  # noqa: ARG002 (those that say)
        """What the command takes of one machine; None: it has not been measured.

        Args:
            history: that it would learn from; its events are counted, in little memory.
        """
        return None


class SpreadRecipe(Recipe):
    """A recipe that can also learn from shards of the events, each on another machine."""

    @abstractmethod
    def fit_by_shards(
        self, history: ChallengeData, views: Sequence[ChallengeData], seed: int, spread: Spread, folder: Path
    ) -> Fit:
        """Learn what `fit` learns: to the bit, or as near as the recipe says.

        Args:
            history: of all clients.
            views: the same of each shard's clients.
            seed: of everything random.
            spread: does what is done for each shard.
            folder: on the data path, for what is too large to go to and fro.

        Raises:
            UserError: see `fit`.
        """


def _part(config: DictConfig, name: str, kind: Any) -> Any:  # noqa: ANN401 (whatever the field holds)
    if is_dataclass(kind):
        return parse(cast("type[Any]", kind), config, at=name)
    if name not in config:
        raise UserError(f"{name}: missing; this needs it")
    return resolved(config)[name]


def learns_by_shards(config: DictConfig) -> bool:
    """Whether the recipe that a config names, ``module:class``, is a `SpreadRecipe`, and shards have a folder."""
    kind = imported(config.recipe)
    return isinstance(kind, type) and issubclass(kind, SpreadRecipe) and has_shared_folder(config)


def has_shared_folder(config: DictConfig) -> bool:
    """Whether the data path is a folder that other machines may share, not an address."""
    return is_shared(str(config.data_path))


def need_of(entry: Entry, config: DictConfig) -> Need | None:
    """What an entry of the registry that is ``in_memory`` takes of one machine.

    Args:
        entry: the entry; others' recipes import torch, and have nothing to say.
        config: of its command.

    Raises:
        UserError: a fault in config or data.
    """
    chosen: Recipe = imported(entry.recipe).of(config)
    return chosen.need(Common.of(config).data())


def make_block(config: DictConfig, recipe: str, not_in_lineage: Collection[str] = ()) -> None:
    """The course of every embedding command: fit, keep the fitted block, encode the relevant clients, write.

    Args:
        config: of the command.
        recipe: ``module:class``, imported where something is to be made: some take seconds.
        not_in_lineage: top-level settings that change how the block is made, never what comes out.

    Raises:
        UserError: a fault in config or data.
        AlreadyDone: the embedding and its fitted block are there, from the same history and settings.
    """
    with embedding_run(config, not_in_lineage, reads_targets(recipe), recipe) as run:
        chosen: Recipe = imported(recipe).of(config)
        if config.engine == RAY and isinstance(chosen, SpreadRecipe):
            _make_on_cluster(chosen, run)
            return
        found = chosen.fit(run.data, run.seed, run.folder)
        if is_first_process():
            run.save(found.block, found.report)
            if found.disposable:
                shutil.rmtree(run.folder, ignore_errors=True)


def _make_on_cluster(chosen: SpreadRecipe, run: EmbeddingRun) -> None:
    """Fit and encode by tasks of a Ray cluster, a core each."""
    from ubp.cli.ray_spread import RaySpread
    from ubp.cli.ray_tasks import Resources, cluster
    from ubp.training.encode_in_parts import InParts

    with cluster() as found:
        spread, shards = RaySpread(Resources(cpus=1, gpus=0, memory=0)), min(found.cores, MOST_SHARDS)
        say(f"{len(found.nodes)} nodes, {found.cores} cores; {shards} parts of {run.name}")
        views = [run.data.of_shard(shard) for shard in sharded(run.data, shards, spread)]
        made = chosen.fit_by_shards(run.data, views, run.seed, spread, run.folder / "fit")
        fitted, clients = run.folder / run.name / "fitted", np.sort(run.data.relevant_clients)
        save(made.block, fitted, {})
        work = InParts(fitted, run.data, clients, shards, run.folder / "parts", {"fit": content_digest(fitted)})
        table, _ = work.encode(spread)
    run.save(made.block, made.report, table)
    shutil.rmtree(run.folder, ignore_errors=True)
