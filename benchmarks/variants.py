"""What a change of a block's settings does to its score: variants of one block, several seeds of its training each.

    python benchmarks/variants.py --config-name=variants_dcn probe=judge seeds=[1,2]     # docs/ablations.md, "dcn"
    python benchmarks/variants.py --config-name=variants_dcn 'only=["default","deep heads"]'

Each variant is trained with each seed, conditioned (centred, one scale, a constant column) and scored. A row of the
table is one training; rows that are there already are not made again, so a killed run goes on where it stopped. What a
block prepares from past windows is made once and taken by all variants that ask for the same windows; its embedding is
kept in the cache, so another probe or constant needs no training.
"""

import logging
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from omegaconf import DictConfig
from rich.table import Table

from ubp.blocks.condition import ConditionSettings, FittedCondition
from ubp.blocks.entry import as_held
from ubp.blocks.fitted import FittedBlock, imported
from ubp.blocks.registry import block as registered
from ubp.cli.command import command
from ubp.cli.config import Common, config_of, parse, resolved
from ubp.cli.output import closing_line, show
from ubp.cli.recipe import Recipe
from ubp.data.history import ChallengeData
from ubp.data.targets import TASKS
from ubp.evaluation.evaluate import score_anew
from ubp.evaluation.probes import Probe
from ubp.evaluation.profiles import Profiles
from ubp.io.files import atomic_write, digest_of
from ubp.io.rows import add_row, read_rows
from ubp.training.snapshot_source import vectors_of

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Row:
    """One training of one variant, scored.

    Attributes:
        log: the folder's name of the log.
        probe: by what.
        block: of which this is a variant.
        variant: its name.
        seed: of the training.
        columns: of the embedding.
        seconds: that the training took.
        churn: a task's score, as are those that follow; None for one that cannot be scored.
        total: their sum.
    """

    log: str
    probe: str
    block: str
    variant: str
    seed: int
    columns: int
    seconds: int
    churn: float | None
    conversion: float | None
    propensity_category: float | None
    propensity_sku: float | None
    propensity_new_sku: float | None
    propensity_price: float | None
    total: float

    @property
    def key(self) -> tuple[str, str, str, str, int]:
        return self.log, self.probe, self.block, self.variant, self.seed


def trained(recipe: Recipe, data: ChallengeData, seed: int, folder: Path) -> FittedBlock:
    """Train, and leave in the folder only what was prepared for it.

    Checkpoints that a killed run of another variant left there are removed before.
    """
    _remove_checkpoints(folder)
    block = recipe.fit(data, seed, folder).block
    _remove_checkpoints(folder)
    return block


def _remove_checkpoints(folder: Path) -> None:
    for kept in list(folder.rglob("*")):
        if kept.name in ("validated", "refitted"):
            shutil.rmtree(kept)


def preparation(config: DictConfig) -> str:
    """Tells apart what is prepared from past windows where the folders' names, by day and labels, do not.

    A block that does not learn on past windows prepares what its whole config asks for.
    """
    if "snapshots" not in config:
        return digest_of(str(config))
    losses = config.model.losses
    mask = losses.mask if losses.weights.get("contrastive") else None
    return digest_of(str(config.snapshots.horizon), str(mask))


def rows_of(config: DictConfig, data: ChallengeData, probe: Probe, done: set[object]) -> Iterator[Row]:
    """The scores that are not there yet."""
    entry, settings = registered(config.block), resolved(config)
    only = settings["only"] or list(settings["variants"])
    for seed in settings["seeds"]:
        for variant, overrides in ((name, settings["variants"][name]) for name in only):
            key = (data.paths.root.name, probe.name, entry.name, variant, seed)
            if key in done:
                continue
            chosen = config_of(entry, [f"preset={config.block_preset}", *settings["common"], *overrides])
            root = data.paths.cache / "variants"
            kept = root / f"{entry.name}-{digest_of(str(chosen), str(seed), data.fingerprint)}.npz"
            if not kept.exists():
                began = time.monotonic()
                recipe = imported(entry.recipe).of(chosen)
                block = trained(recipe, data, seed, root / f"{entry.name}-{preparation(chosen)}")
                seconds = round(time.monotonic() - began)
                with atomic_write(kept) as aside, aside.open("wb") as file:
                    np.savez(file, vectors=vectors_of(block, data, data.clients), seconds=seconds)
            with np.load(kept) as arrays:
                vectors, seconds = arrays["vectors"], int(arrays["seconds"])
            condition = ConditionSettings(constant=config.constant, rotate=config.rotate)
            halves = as_held(FittedCondition.fit(condition, vectors, [vectors.shape[1]]).apply(vectors.copy()))
            scores = score_anew(
                Profiles(f"{variant} {seed}", Path(variant), data.clients, halves), probe, data.paths, "auto"
            )
            yield Row(
                log=key[0],
                probe=probe.name,
                block=entry.name,
                variant=variant,
                seed=seed,
                columns=vectors.shape[1],
                seconds=seconds,
                **scores.tasks,
                total=scores.total,
            )


def mean_cell(scores: list[float | None]) -> str:
    """The mean of those that there are."""
    scored = [score for score in scores if score is not None]
    return f"{np.mean(scored):.4f}" if scored else "–"


def summary(rows: list[Row]) -> Table:
    """A line for each variant: the mean sum over the seeds and its standard deviation, and each task's mean."""
    table = Table("log", "probe", "variant", "seeds", "columns", "seconds", *(task.name for task in TASKS), "sum")
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.log, row.probe, row.variant), []).append(row)
    for key, group in groups.items():
        means = [mean_cell([getattr(row, task.name) for row in group]) for task in TASKS]
        totals = [row.total for row in group]
        spread = f" ±{np.std(totals, ddof=1):.4f}" if len(totals) > 1 else ""
        numbers = (str(len(group)), f"{group[0].columns:,}", f"{np.median([row.seconds for row in group]):.0f}")
        table.add_row(*key, *numbers, *means, f"{np.mean(totals):.4f}{spread}")
    return table


@command("scripts", "variants")
def main(config: DictConfig) -> list[Row]:
    common = Common.of(config)
    data, probe, table = common.data(submit=False), parse(Probe, config, at="probe"), Path(config.table)
    for row in rows_of(config, data, probe, {row.key for row in read_rows(table, Row)}):
        add_row(table, row)
        logger.info("%s, seed %d: %.4f after %d s of training", row.variant, row.seed, row.total, row.seconds)
    rows = read_rows(table, Row)
    show(summary(rows))
    closing_line(f"{config.block}: variants measured", table)
    return rows


if __name__ == "__main__":
    main()
