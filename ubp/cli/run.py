"""What each command shares: config in, embedding out, skip if done, lineage, logging, the closing line."""

import json
import logging
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from ubp.blocks.embeddings import EmbeddingTable, read_lineage
from ubp.blocks.fitted import FittedBlock, described, fit_digest, lineage_of
from ubp.blocks.fitted import save as keep_fitted
from ubp.blocks.health import health_of
from ubp.blocks.registry import needs_of
from ubp.cli.circumstances import circumstances, read_from
from ubp.cli.config import Common, resolved, value_at
from ubp.cli.output import COLLAPSED, closing_line, cost_so_far
from ubp.data.history import ChallengeData
from ubp.data.lacking import no_events
from ubp.data.paths import DataPaths
from ubp.data.targets import OPEN_COLUMNS, open_targets
from ubp.io.errors import UserError, name_some
from ubp.io.files import digest_of
from ubp.io.stage import Stage, is_first_process

logger = logging.getLogger(__name__)

# Settings that change where or how a command runs, never what comes out.
NOT_IN_LINEAGE = (
    *("data_path", "submit", "overwrite", "cuda_visible_devices", "engine", "logger", "report"),
    *("name", "seed", "as_of", "unknown_sku"),  # these have a place of their own in the lineage
)
NOT_OF_TRAINER = ("progress", "workers")  # likewise, in the settings of the trainer
_INPUTS = "inputs"  # in a config: the fitted blocks that are read; in a lineage: which fit of each
_TARGETS = "targets"  # in a lineage: which lists of the open tasks are read, by column
COST = "cost"  # key of a fitted block's report, not of its parquet's: what was made again is to have the same bytes
WARNINGS = "warnings"  # key of a report: what stands in the closing line, list[str]


@dataclass(frozen=True)
class EmbeddingRun:
    """One run of an embedding command.

    Attributes:
        name: of the embedding.
        data: the history, checked.
        seed: for everything random.
        path: the parquet to write.
        model: the folder of the fitted block.
        folder: for what a run keeps to be taken up again (checkpoints); one for each lineage.
        lineage: settings, seed and history; `save` adds what it takes to make the same again.
        recipe: ``module:class`` that fits the block; empty where there is none.
    """

    name: str
    data: ChallengeData
    seed: int
    path: Path
    model: Path
    folder: Path
    lineage: dict[str, Any]
    recipe: str = ""

    def save(self, fitted: FittedBlock, report: Mapping[str, Any], encoded: EmbeddingTable | None = None) -> None:
        """Keep the fitted block, write its embedding of the relevant clients, print the closing line.

        The closing line says where the vectors have collapsed (`ubp.blocks.health`), and has the report's warnings.

        Args:
            fitted: what learned from the history.
            report: what the run says of its quality, kept in the lineage beside the vectors' health; under
                ``WARNINGS`` what is wrong with it, in words.
            encoded: its vectors of the relevant clients; None: they are worked out here.

        Raises:
            NoUsableEvents: no relevant client has events that the block reads.
            UserError: an input was fitted anew, or a list of an open task made anew, since the run began: the lineage
                does not say what was learned from.
        """
        self.data.require_unchanged()
        self._require_same_sources()
        lineage = self.lineage | circumstances(self.data, self.recipe) | read_from(self._read()) | described(fitted)
        if encoded is None:
            encoded = fitted.encode(self.data, self.data.relevant_clients)
        if not len(encoded):
            raise no_events(self.data, needs_of(self.name), f"{self.name}: no relevant client has a vector")
        keep_fitted(fitted, self.model, lineage | {"report": {**report, COST: cost_so_far()}})
        health = health_of(encoded.vectors, self.seed)
        found = {**report, "health": health.as_dict()}
        logger.info(
            "effective rank %.1f of %d columns (%.1f with columns of equal variance), median norm %.3g",
            health.effective_rank, health.columns, health.scaled_rank, health.median_norm,
        )  # fmt: skip
        if health.collapsed:
            logger.warning(
                "%s has collapsed: %s; its vectors hardly tell clients apart", self.name, ", ".join(health.collapsed)
            )
        for warning in found.get(WARNINGS, []):
            logger.warning("%s: %s", self.name, warning)
        table = EmbeddingTable(encoded.client_ids, encoded.vectors, lineage | {"report": found})
        table.write(self.path)
        closing_line(f"{self.name}{_remarks(found)}", self.path, *table.vectors.shape)

    def _read(self) -> dict[str, dict[str, Any]]:
        """The lineages of the fitted blocks that were read, by name."""
        fits = [name for name, digest in self.lineage.get(_INPUTS, {}).items() if digest is not None]
        return {name: lineage_of(self.data.paths.model(name, self.data.submit)) for name in fits}

    def _require_same_sources(self) -> None:
        now = _sources(self.data, self.lineage.get(_INPUTS, ()), _TARGETS in self.lineage)
        for source, what in ((_INPUTS, "fitted"), (_TARGETS, "made")):
            noted = self.lineage.get(source, {})
            if changed := [name for name in noted if noted[name] != now[source][name]]:
                raise UserError(
                    f"{source}: {name_some(changed)} {what} anew since {self.name} began, which may have read either; "
                    f"run {self.name} again, alone"
                )


def _sources(data: ChallengeData, inputs: Collection[str], with_targets: bool) -> dict[str, dict[str, str | None]]:
    """What a block reads beside the history, as the lineage has it: other ones give another block.

    Args:
        data: the history.
        inputs: names of the fitted blocks that are read.
        with_targets: whether the lists of the open tasks are.

    Returns:
        Under ``inputs`` by block which fit of it lies where its command keeps it, under ``targets`` by column which
        list; None where there is none. Without what is not read.
    """
    found: dict[str, dict[str, str | None]] = {}
    if inputs:
        found[_INPUTS] = {name: fit_digest(data.paths.model(name, data.submit)) for name in inputs}
    if with_targets:
        found[_TARGETS] = targets_of(data.paths)
    return found


def targets_of(paths: DataPaths) -> dict[str, str | None]:
    """By column which list of an open task there is, as a lineage has it; None where there is none."""
    listed = open_targets(paths)
    return {column: digest_of(listed[column].tolist()) if column in listed else None for column in OPEN_COLUMNS}


@contextmanager
def embedding_run(
    config: DictConfig, not_in_lineage: Collection[str] = (), reads_targets: bool = False, recipe: str = ""
) -> Iterator[EmbeddingRun]:
    """Open the history that the config names, for making its embedding.

    Args:
        config: of the command.
        not_in_lineage: further top-level settings that never change what comes out.
        reads_targets: what comes out depends on the open tasks' lists.
        recipe: ``module:class`` that fits the block, for its lineage.

    Raises:
        UserError: a fault in config or data.
        AlreadyDone: the embedding is there, from the same history and settings; see `ubp.io.stage.Stage.once`.
    """
    common = Common.of(config)
    _require_mappings(config)
    data = common.data()
    path = common.paths.block(config.name, common.submit)
    left_out = {*NOT_IN_LINEAGE, *not_in_lineage}
    settings = {key: value for key, value in resolved(config).items() if key not in left_out}
    trainer = settings.get("trainer", {})
    for name in NOT_OF_TRAINER:
        trainer.pop(name, None)
    if trainer.get("ray_workers") == 1:  # what was fitted before there was this setting is the same
        trainer.pop("ray_workers")
    lineage = {
        "name": config.name,
        "config": settings,
        "seed": common.seed,
        "fingerprint": data.fingerprint,
        "as_of": data.as_of.isoformat(sep=" "),
    }
    lineage |= _sources(data, settings.get(_INPUTS, ()), reads_targets)
    folder = common.paths.cache / "runs" / f"{config.name}-{digest_of(json.dumps(lineage, sort_keys=True))}"
    model = common.paths.model(config.name, common.submit)
    run = EmbeddingRun(config.name, data, common.seed, path, model, folder, lineage, recipe)

    def remark() -> str:
        return _remarks(read_lineage(path).get("report", {}))

    stage = Stage(config.name, (path, model), lambda: lineage)
    with stage.once(common.overwrite, remark, data.require_unchanged):
        if common.overwrite and is_first_process():
            shutil.rmtree(folder, ignore_errors=True)  # otherwise a run that ended would be taken up at its end
        logger.info("%s: events before %s in %s", config.name, data.as_of, data.folder)
        with data.unchanged():
            yield run


def _require_mappings(config: DictConfig) -> None:
    """Refuse what `embedding_run` could not look into.

    Raises:
        UserError: the block has no name, or settings are no mapping.
    """
    value_at(config, "name", str)
    for key in ("trainer", _INPUTS):
        if key in config and not isinstance(config[key], DictConfig):
            raise UserError(f"{key}={config[key]}: must hold settings, by their names: {key}.NAME=VALUE")


def _remarks(report: Mapping[str, Any]) -> str:
    """What a closing line says of a block by its report: that it has collapsed and how, its warnings, or nothing."""
    collapsed = report.get("health", {}).get("collapsed", [])
    found = [*([f"{COLLAPSED}: {', '.join(collapsed)}"] if collapsed else []), *report.get(WARNINGS, [])]
    return f" ({'; '.join(found)})" if found else ""
