"""What conditioning does to a merge's score: constants, offsets and rotations.

    python benchmarks/conditioning.py merges=[basics,best_solution] probe=quick table=quick.csv
    python benchmarks/conditioning.py constants=[2] offsets=[0,0.4] probe=judge "probe.seeds=[1278,1,2]"
    python benchmarks/conditioning.py draw=[demo.csv,cut.csv] plot=docs/conditioning.png     # from tables made before

Each merge is fitted once, without its condition, and scored as it is (``raw``) and for each constant, offset and
rotation. A row of the table is one score; rows that are there already are not made again, so a killed run goes on.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig
from rich.table import Table

from ubp.blocks.condition import ConditionSettings, FittedCondition, figures_of
from ubp.blocks.entry import as_held
from ubp.blocks.merge import MERGE_KEYS, MergeSettings, find_blocks, fit_merge
from ubp.blocks.transformers import Matrix
from ubp.cli.command import command
from ubp.cli.config import Common, composed, parse, resolved
from ubp.cli.output import closing_line, show
from ubp.cli.plotting import pyplot
from ubp.data.history import ChallengeData
from ubp.data.paths import CONFIGS
from ubp.evaluation.evaluate import score_anew
from ubp.evaluation.probes import Probe
from ubp.evaluation.profiles import Profiles
from ubp.io.rows import add_row, read_rows

RAW = "raw"


@dataclass(frozen=True)
class Row:
    """One score.

    Attributes:
        log: the folder's name of the log.
        clients: in the history.
        probe: by what.
        epochs: of the probe.
        merge: name of its config.
        variant: ``raw``, or the constant, the offset and the rotation, as in ``c=1.5`` and
            ``c=1.5 offset=0.4 rotate=300``.
        columns: of the profile.
        row_ratio: see `ubp.blocks.condition.Figures`.
        total: mean sum over the seeds.
        spread: its standard deviation.
    """

    log: str
    clients: int
    probe: str
    epochs: int
    merge: str
    variant: str
    columns: int
    row_ratio: float
    total: float
    spread: float

    @property
    def key(self) -> tuple[str, str, int, str, str]:
        return self.log, self.probe, self.epochs, self.merge, self.variant


def variants(
    constants: Sequence[float], offsets: Sequence[float], rotations: Sequence[int | None]
) -> dict[str, ConditionSettings | None]:
    """By name; ``raw`` first."""
    found: dict[str, ConditionSettings | None] = {RAW: None}
    for rotation, offset, constant in product(rotations, offsets, constants):
        of_offset = f" offset={offset:g}" if offset else ""
        name = f"c={constant:g}{of_offset}" + (f" rotate={rotation}" if rotation else "")
        found[name] = ConditionSettings(constant=constant, offset=offset, rotate=rotation)
    return found


def merged(name: str, config: DictConfig, data: ChallengeData, folder: Path) -> tuple[Matrix, MergeSettings, list[int]]:
    """A merge without its condition: float32 [clients, columns], its settings, and the columns of each block."""
    overrides = [f"preset={config.merge_preset}", "condition=none"]
    settings = parse(MergeSettings, composed(CONFIGS / "merge", name, overrides), MERGE_KEYS)
    fitted, matrix = fit_merge(settings, find_blocks(settings, folder), data.clients)
    return matrix, settings, [block.columns for block in fitted.blocks]


def rows_of(name: str, config: DictConfig, data: ChallengeData, probe: Probe, done: set[Any]) -> Iterator[Row]:
    """The scores of a merge that are not there yet."""
    matrix, settings, widths = merged(name, config, data, data.paths.embeddings(submit=False))
    weights = [block.weight for block in settings.blocks.values()]
    chosen = resolved(config)
    for variant, condition in variants(chosen["constants"], chosen["offsets"], chosen["rotations"]).items():
        key = (data.paths.root.name, probe.name, probe.epochs, name, variant)
        if key in done:
            continue
        vectors = matrix
        if condition is not None:
            vectors = FittedCondition.fit(condition, matrix, widths, weights).apply(matrix.copy())
        halves = as_held(vectors)
        scores = score_anew(Profiles(f"{name} {variant}", Path(name), data.clients, halves), probe, data.paths, "auto")
        yield Row(
            key[0], len(data.clients), *key[1:], halves.shape[1], round(figures_of(halves).row_ratio, 2), scores.total,
            scores.spread,
        )  # fmt: skip


def draw(rows: Sequence[Row], file: Path) -> None:
    """A curve for each log, probe and merge: the gain over ``raw`` by the constant, without offset or rotation.

    Raises:
        UserError: matplotlib is missing.
    """
    plt = pyplot()
    curves: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if " " not in row.variant:
            curves.setdefault((row.merge, f"{row.log}, {row.clients:,} clients, {row.probe}"), []).append(row)
    merges = sorted({merge for merge, _ in curves})
    figure, axes = plt.subplots(1, len(merges), figsize=(5.2 * len(merges), 4), squeeze=False, sharey=True)
    for axis, merge in zip(axes[0], merges, strict=True):
        for (_, label), curve in sorted(item for item in curves.items() if item[0][0] == merge):
            raw = next((row.total for row in curve if row.variant == RAW), None)
            points = sorted((float(row.variant[2:]), row.total, row.spread) for row in curve if row.variant != RAW)
            if raw is not None and points:
                constants, totals, spreads = map(np.array, zip(*points, strict=True))
                axis.errorbar(constants, totals - raw, spreads, marker="o", capsize=2, label=label)
        axis.axhline(0, color="grey", linewidth=0.8)
        axis.set(title=merge, xlabel="constant, in lengths of a row", ylabel="gain in the sum over six tasks")
        axis.legend(fontsize=7)
        axis.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(file, dpi=120)


@command("scripts", "conditioning")
def main(config: DictConfig) -> list[Row]:
    common = Common.of(config)
    table = Path(config.table)
    if not config.draw:
        data, probe = common.data(submit=False), parse(Probe, config, at="probe")
        done = {row.key for row in read_rows(table, Row)}
        for name in config.merges:
            for row in rows_of(name, config, data, probe, done):
                add_row(table, row)
    rows = [row for file in config.draw or [table] for row in read_rows(Path(file), Row)]
    shown = Table("log", "clients", "probe", "epochs", "merge", "variant", "columns", "row ratio", "sum")
    for row in rows:
        sum_ = f"{row.total:.4f}" + (f" ±{row.spread:.3f}" if row.spread else "")
        numbers = (f"{row.columns:,}", f"{row.row_ratio:.1f}", sum_)
        shown.add_row(row.log, f"{row.clients:,}", row.probe, str(row.epochs), row.merge, row.variant, *numbers)
    show(shown)
    if config.plot:
        draw(rows, Path(config.plot))
    closing_line("conditioning measured", Path(config.plot or table))
    return rows


if __name__ == "__main__":
    main()
