"""What each block of an ensemble is worth: the merge without it, and the block alone.

    python scripts/ablate.py ensemble=best_solution                          by the quick probe: a minute a block
    python scripts/ablate.py ensemble=basics probe=judge "probe.seeds=[1278,1,2]"   by three seeds of the judge
    python scripts/ablate.py ensemble=basics order=greedy alone=False        which block to add next
    python scripts/ablate.py ensemble=best_solution base=[stat_features]     each block beside the statistics
    python scripts/ablate.py ensemble=basics 'overrides=["condition=none"]'  of the merge's config

Blocks are merged as the ensemble's config says; what is left is conditioned anew. A change is that of the sum against
the whole ensemble, seed by seed: with several seeds it has a spread, and what is smaller says little. Below the data
path, in ``ablations/NAME``, ``scores_quick.csv`` has a row for each merge and seed, ``changes_quick.csv`` and
``changes_quick.png`` what came of them (``..._judge`` by the judge). Rows that are there, of the same blocks, settings
and labels, are not made again, so a killed run goes on where it stopped, and more seeds cost only themselves. A block
that is not made is left out, with a line that says how to make it.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from ubp.blocks import registry
from ubp.blocks.merge import MergeSettings, check_histories, find_blocks, missing_blocks
from ubp.cli.command import command
from ubp.cli.config import Common, optional_at, parse, texts_at, value_at
from ubp.cli.ensembles import NamedMerge
from ubp.cli.output import closing_line, show
from ubp.cli.plotting import pyplot
from ubp.data.targets import TASKS
from ubp.evaluation.ablation import (
    ALONE,
    GREEDY,
    WHOLE,
    WITHOUT,
    Ablation,
    Change,
    Ensemble,
    Subset,
    alone,
    greedy,
    left_out,
)
from ubp.evaluation.probes import Probe
from ubp.evaluation.tables import NOTHING, changes_table, short_name
from ubp.io.errors import UserError, name_some, require
from ubp.io.files import atomic_write, locked
from ubp.io.rows import write_rows

logger = logging.getLogger(__name__)

NONE = "none"
LEAST = 2  # blocks
TITLES = {
    WITHOUT: "without the block",
    ALONE: "the block alone",
    GREEDY: "the block and those above it",
}


# --- which blocks -------------------------------------------------------------------------------------


def those_made(settings: MergeSettings, common: Common) -> MergeSettings:
    """The ensemble without the blocks that are not made, with a line for each.

    Raises:
        UserError: fewer than two are left.
    """
    missing = missing_blocks(settings, common.paths.embeddings(submit=False))
    if not missing:
        return settings
    lacking = registry.can_be_made(common.paths, submit=False, as_of=common.moment)[1]
    commands = {entry.name: entry.line for entry in registry.blocks()}
    lines = []
    for name, path in missing.items():
        how = f"; make it with: python {commands[name]} submit=False" if name in commands else ""
        lines.append(lacking.get(name) or f"{name} is left out: {path} is not there{how}")
    blocks = {name: block for name, block in settings.blocks.items() if name not in missing}
    if len(blocks) < LEAST:
        there = f"only {name_some(list(blocks))} is there" if blocks else "none is there"
        raise UserError([*lines, f"ensemble: nothing to leave out where there are fewer than two blocks; {there}"])
    for line in lines:
        logger.warning("%s", line)
    settings.blocks = blocks
    return settings


def base_of(config: DictConfig, ensemble: Ensemble) -> Subset:
    """The blocks that others are added to.

    Raises:
        UserError: one is not in the ensemble, or there is none beside them.
    """
    names = texts_at(config, "base")
    if unknown := [name for name in names if name not in ensemble.whole]:
        there = name_some(ensemble.whole, 50)
        raise UserError(f"base: {name_some(unknown)}: not among the ensemble's blocks that are there: {there}")
    require(len(set(names)) < len(ensemble.whole), "base", names, "fewer than all blocks")
    return ensemble.subset(names)


# --- what is shown ------------------------------------------------------------------------------------


def title_of(kind: str, base: Subset) -> str:
    """What a kind of change is about."""
    return f"beside {name_some(base, 1)}" if kind == ALONE and base else TITLES[kind]


LOSS, GAIN = "tab:blue", "tab:orange"  # a bar of a change below 0, and above


def draw(found: dict[str, list[Change]], titles: dict[str, str], heading: str, file: Path) -> None:
    """A row of panels for each kind of change: the sum, with its spread, and task by task.

    Raises:
        UserError: matplotlib is missing.
    """
    plt = pyplot()
    every = [change for changes in found.values() for change in changes]
    scored = [task.name for task in TASKS if any(change.of(task.name) is not None for change in every)]
    heights = [1.2 + 0.27 * len(changes) for changes in found.values()]
    figure, axes = plt.subplots(
        len(found), 1 + len(scored), figsize=(16, sum(heights) + 0.6), squeeze=False, sharey="row",
        layout="constrained",
        gridspec_kw={"width_ratios": [2.6, *[1] * len(scored)], "height_ratios": heights},
    )  # fmt: skip
    for (kind, changes), (total, *others) in zip(found.items(), axes, strict=True):
        bars(total, [change.change for change in changes], [change.spread or 0.0 for change in changes])
        total.locator_params(axis="x", nbins=7)
        total.set_yticks(range(len(changes)), [change.block or NOTHING for change in changes])
        total.set_ylim(len(changes) - 0.4, -0.6)  # the first at the top
        total.set_title(f"{titles[kind]}: sum", loc="left", fontsize=10, fontweight="bold")
        by_task = {task: [change.of(task) or 0.0 for change in changes] for task in scored}
        low, high = (extreme(0.0, *map(extreme, by_task.values())) for extreme in (min, max))
        margin = 0.08 * (high - low) or 1.0
        for axis, (task, values) in zip(others, by_task.items(), strict=True):
            bars(axis, values)
            axis.locator_params(axis="x", nbins=3)
            axis.set_title(short_name(task), loc="left", fontsize=9)
            axis.set_xlim(low - margin, high + margin)  # one scale: what a block is for is seen at once
    figure.suptitle(heading, x=0.01, ha="left", fontsize=11)
    with atomic_write(file) as aside:
        figure.savefig(aside, dpi=110)
    plt.close(figure)


def bars(axis: Any, values: Sequence[float], spreads: Sequence[float] = ()) -> None:  # noqa: ANN401 (matplotlib's)
    """Horizontal bars from 0, coloured by their sign."""
    colors = [LOSS if value < 0 else GAIN for value in values]
    whiskers = {"xerr": spreads, "ecolor": "0.2", "capsize": 2} if any(spreads) else {}
    axis.barh(range(len(values)), values, color=colors, height=0.7, **whiskers)
    axis.axvline(0, color="0.3", linewidth=0.8)
    axis.grid(axis="x", alpha=0.3)
    axis.tick_params(labelsize=8)
    axis.set_axisbelow(True)


# --- the command --------------------------------------------------------------------------------------


@command("scripts", "ablate")
def main(config: DictConfig) -> list[Change]:
    common, probe = Common.of(config), parse(Probe, config, at="probe")
    require_settings(config, common)
    merge = NamedMerge.of(config, common)
    data = common.data()
    settings = those_made(merge.settings, common)
    paths = find_blocks(settings, common.paths.embeddings(submit=False))
    check_histories(paths, data.fingerprint, data.folder)
    ensemble = Ensemble(merge.name, settings, paths, data.clients)
    base = base_of(config, ensemble)
    wanted = optional_at(config, "out", str)
    folder = Path(wanted) if wanted else common.paths.ablations(ensemble.name)
    scores, table = (folder / f"{what}_{probe.name}.csv" for what in ("scores", "changes"))
    with locked(folder.parent / ".done" / f"{folder.name}.lock", f"an ablation of {ensemble.name}"):
        if common.overwrite:
            scores.unlink(missing_ok=True)
        ablation = Ablation(ensemble, probe, data, value_at(config, "device", str), scores)
        found = measured(ablation, config, base)
        every = [change for changes in found.values() for change in changes]
        write_rows(table, every, Change)
    whole = ablation.change(WHOLE, "", ensemble.whole)
    titles = {kind: title_of(kind, base) for kind in found}
    for kind, changes in found.items():
        against = f"change against all {whole.blocks} blocks ({whole.total:.4f})"
        show(changes_table(changes, f"{titles[kind]}: {against}"))
    heading = f"{ensemble.name}: change against all {whole.blocks} blocks ({whole.total:.4f}), {by_what(probe)}"
    plot = plotted(found, titles, heading, table.with_suffix(".png")) if value_at(config, "plot", bool) else None
    closing_line(f"{ensemble.name} taken apart", plot or table, len(ensemble.clients), whole.columns)
    return every


def require_settings(config: DictConfig, common: Common) -> None:
    """Refuse settings that make no sense, before anything is read.

    Raises:
        UserError: one of them.
    """
    require(not common.submit, "submit", common.submit, "False: blocks made of all events cannot be scored")
    require(config.order in (NONE, GREEDY), "order", config.order, f"{GREEDY} or {NONE}")
    steps = optional_at(config, "steps", int)
    require(steps is None or steps > 0, "steps", steps, "at least 1, or null")
    value_at(config, "plot", bool)
    leave_out, each_alone = value_at(config, "leave_out", bool), value_at(config, "alone", bool)
    if not (leave_out or each_alone or config.order == GREEDY):
        raise UserError("leave_out=False alone=False order=none: nothing to measure; take one of them")


def measured(ablation: Ablation, config: DictConfig, base: Subset) -> dict[str, list[Change]]:
    """The changes that the config asks for, by their kind."""
    found: dict[str, list[Change]] = {}
    if config.leave_out:
        found[WITHOUT] = left_out(ablation)
    if config.alone:
        found[ALONE] = alone(ablation, base)
    if config.order == GREEDY:
        found[GREEDY] = greedy(ablation, base, config.steps)
    return found


def by_what(probe: Probe) -> str:
    """By which probe, and what the whiskers are."""
    seeds = len(probe.seeds)
    several = f"mean of {seeds} seeds; whiskers: standard deviation of the change" if seeds > 1 else "one seed"
    return f"by the {probe.name} probe, {several}"


def plotted(found: dict[str, list[Change]], titles: dict[str, str], heading: str, file: Path) -> Path | None:
    """Where the plot lies; None, with a line, where matplotlib is missing: what was measured is kept."""
    try:
        draw(found, titles, heading, file)
    except UserError as error:
        logger.warning("no plot: %s", error)
        return None
    return file


if __name__ == "__main__":
    main()
