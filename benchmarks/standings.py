"""Where profiles stand, task by task: above chance and the reference rows, below boosted trees.

    python benchmarks/standings.py log=demo table=standings.csv plot=standings.png           # a few minutes
    CHALLENGE_DATA_PATH=/some/cut python benchmarks/standings.py log=cut                       # another log, same table
    python benchmarks/standings.py embeddings=[dcn,past_windows] probe=judge seeds=[1278]
    python benchmarks/standings.py table=growth.csv draw=True by_clients=growth.png            # logs of several sizes

Each log adds its rows to the table; table, figure and report show all logs that it has. Blocks and merges are those
that lie there (``preset=demo`` made them, on the demo's log); the others are left out, with a line. Besides them:

- *chance*: each client gets the shares of the train window, so that nothing is known of it;
- the two reference rows that `scripts/evaluate.py` shows;
- *boosted trees* on the features themselves and on all past days (`benchmarks/boosted_trees.py`): what a fixed profile
  aims at. They are scored by the judge's own metrics, but it is not a network that reads them. This evaluation reads
  the hidden tasks' targets, as the judge does and no block may.
"""

import logging
import statistics
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import cycle
from math import ceil
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from omegaconf import DictConfig
from rich.table import Table

from benchmarks.boosted_trees import Past, Probabilities, TreeSettings, predictions
from benchmarks.measuring import as_markdown, marks_of, write_report
from ubp.cli.command import command
from ubp.cli.config import Common, one_or_several, parse
from ubp.cli.output import closing_line, show
from ubp.cli.plotting import pyplot
from ubp.data.history import ChallengeData
from ubp.data.targets import TASKS, Task
from ubp.evaluation.evaluate import evaluate_all, labels_digest
from ubp.evaluation.metrics import TaskMetrics, TaskScore
from ubp.evaluation.probes import Probe
from ubp.evaluation.profiles import find_profiles
from ubp.evaluation.reference import SVDS_AND_COUNTS, ReferenceSettings, reference_rows
from ubp.evaluation.scores import Scores
from ubp.evaluation.scoring import summed
from ubp.evaluation.tables import short_name
from ubp.evaluation.tasks import GroundTruth, labels
from ubp.io.errors import UserError
from ubp.io.files import atomic_write
from ubp.io.rows import read_rows, write_rows
from ubp.io.stage import AlreadyDone, Stage

logger = logging.getLogger(__name__)

CHANCE, TREES = "chance", "boosted trees"
SUM: Final = "sum"
NO_PROBE: Final = "–"  # what no network reads
_VERSION: Final = 1  # one more whenever the same settings would give other trees
_BATCH: Final = 128  # rows, as `TaskMetrics` wants them
_LEAST: Final = 1e-6  # probability, so that its logit is finite


@dataclass(frozen=True)
class Row:
    """One thing's score in one task, the mean over the seeds.

    Attributes:
        log: as the config names it.
        clients: that are scored.
        name: of the block or merge, of a reference row, or `CHANCE` or `TREES`.
        probe: by what, or `NO_PROBE`.
        seeds: number of them.
        columns: of the profile; 0 for none.
        task: its name, or `SUM`.
        score: of the task, or their sum.
        spread: its standard deviation over the seeds; None for one seed.
        auroc: of the task; of the sum the tasks' mean.
        novelty: of a propensity task; else None.
        diversity: the same.
    """

    log: str
    clients: int
    name: str
    probe: str
    seeds: int
    columns: int
    task: str
    score: float
    spread: float | None
    auroc: float
    novelty: float | None
    diversity: float | None


# --- what is measured -----------------------------------------------------------------------------------------------


def rows_of(log: str, clients: int, scores: Scores) -> list[Row]:
    """A row for each task that is scored, and one for their sum."""
    found = list[Row]()
    for task, runs in scores.details.items():
        several = [float(run["score"]) for run in runs]
        parts = {part: _mean([run[part] for run in runs]) for part in ("auroc", "novelty", "diversity")}
        spread = round(statistics.stdev(several), 4) if len(several) > 1 else None
        score = round(statistics.fmean(several), 4)
        at = (log, clients, scores.name, scores.probe, len(several), scores.columns, task)
        found.append(Row(*at, score, spread, parts["auroc"] or 0.0, parts["novelty"], parts["diversity"]))
    auroc = round(statistics.fmean(row.auroc for row in found), 4)
    whole = replace(found[0], task=SUM, score=scores.total, auroc=auroc, novelty=None, diversity=None)
    return [*found, replace(whole, spread=scores.spread if whole.seeds > 1 else None)]


def _mean(values: Sequence[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return round(statistics.fmean(there), 4) if there else None


def measured(task: Task, predicted: Probabilities, data: ChallengeData, truth: GroundTruth) -> TaskScore:
    """The score of predictions, by the judge's metrics on the judge's batches.

    Args:
        task: that is predicted.
        predicted: float64 [clients, targets]: of the history's clients, in ascending order.
        data: the history.
        truth: what came.
    """
    part = truth.takes_part(task, data.clients)
    targets = truth.targets.get(task.name)
    label = torch.from_numpy(labels(task, data.clients[part], truth.validation, targets))
    likely = np.clip(predicted[part], _LEAST, 1 - _LEAST)
    logits = torch.from_numpy(np.log(likely / (1 - likely)).astype(np.float32))
    metrics = TaskMetrics(task, targets, torch.device("cpu"))
    for start in range(0, len(logits), _BATCH):
        rows = slice(start, start + _BATCH)
        metrics.update(logits[rows], label[rows])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="No (positive|negative) samples in targets")
        return metrics.compute()


def chance(data: ChallengeData, truth: GroundTruth) -> Scores:
    """Each client alike: the shares of the train window; half of all pairs are in order."""
    details, lacking = {}, truth.lacking(data.clients)
    for task in TASKS:
        if task.name in lacking:
            continue
        part = truth.takes_part(task, data.clients)
        known = labels(task, data.clients[part], truth.train, truth.targets.get(task.name))
        came = labels(task, data.clients[part], truth.validation, truth.targets.get(task.name))
        alike = np.broadcast_to(known.mean(axis=0), (len(data.clients), known.shape[1]))
        # By definition: torch's sigmoid of one number may differ by a bit in a batch's last rows.
        auroc = 0.5 * float((np.ptp(came, axis=0) > 0).mean())
        details[task.name] = [details_of(replace(measured(task, alike, data, truth), auroc=auroc), seed=0)]
    return summed(CHANCE, 0, Probe(name=NO_PROBE, seeds=(0,)), details)


def details_of(score: TaskScore, seed: int) -> dict[str, Any]:
    """One run, as `Scores.details` has it."""
    return {"seed": seed, "score": score.score} | asdict(score)


def boosted_trees(
    data: ChallengeData, truth: GroundTruth, settings: TreeSettings, seeds: Sequence[int], overwrite: bool
) -> Scores:
    """Trees by several seeds; made once, and kept below the cache.

    Args:
        data: the history.
        truth: what came.
        settings: of the trees.
        seeds: one training of all tasks each.
        overwrite: train them again.
    """
    file = data.paths.cache / "standings" / "boosted_trees.json"
    made_from = {
        "settings": asdict(settings),
        "seeds": list(seeds),
        "version": _VERSION,
        "history": data.fingerprint,
        "labels": labels_digest(data.paths),
    }
    stage = Stage(TREES, (file,), lambda: made_from)
    try:
        with stage.once(overwrite):
            lacking, details = truth.lacking(data.clients), dict[str, list[dict[str, Any]]]()
            past = Past.of(data, truth, settings)
            for seed in seeds:
                for task, predicted in predictions(past, data, truth.targets, settings, seed):
                    if task.name in lacking:
                        continue
                    score = measured(task, predicted, data, truth)
                    logger.info("%s, seed %d, %s: %.4f", TREES, seed, task.name, score.score)
                    details.setdefault(task.name, []).append(details_of(score, seed))
            summed(TREES, 0, Probe(name=NO_PROBE, seeds=tuple(seeds)), details).write(file)
    except AlreadyDone as done:
        logger.info("%s", done)
    return Scores.load(file)


def several(probe: Probe, seeds: Sequence[int]) -> Probe:
    """The probe by these seeds, under a name of its own: its scores lie beside those of the probe as it is."""
    if tuple(seeds) == tuple(probe.seeds):
        return probe
    return replace(probe, seeds=tuple(seeds), name=f"{probe.name}_{len(seeds)}_seeds")


def those_there(names: Sequence[str], folder: Path) -> list[Path]:
    """Where the blocks and entries lie, without those that are not made; a line for each of these.

    Raises:
        UserError: none is there.
    """
    found, lacking = [], []
    for name in names:
        try:
            found.append(find_profiles(name, folder))
        except UserError:
            lacking.append(name)
            logger.warning("%s is left out: not in %s", name, folder)
    if not found:
        raise UserError(f"embeddings: none of {', '.join(lacking)} is in {folder}; make blocks and merges first")
    return found


# --- what is shown --------------------------------------------------------------------------------------------------


def by_name(rows: Sequence[Row]) -> dict[tuple[str, str], dict[str, Row]]:
    """Rows by log and name, in their order, each by task."""
    found: dict[tuple[str, str], dict[str, Row]] = {}
    for row in rows:
        found.setdefault((row.log, row.name), {})[row.task] = row
    return found


PANELS: Final = (*(task.name for task in TASKS), SUM)
SCORES: Final = ("log", "block or merge", "columns", *map(short_name, PANELS))
AUROCS: Final = ("log", "block or merge", *map(short_name, PANELS[:-1]), "mean")


def score_cells(rows: Sequence[Row]) -> list[list[str]]:
    """A line of cells for each log and name, as `SCORES` heads them: the scores, the sum with its spread."""
    lines = []
    for (log, name), tasks in by_name(rows).items():
        columns, spread = tasks[SUM].columns, tasks[SUM].spread
        scores = [f"{tasks[panel].score:.4f}" if panel in tasks else "–" for panel in PANELS]
        scores[-1] += "" if spread is None else f" ±{spread:.4f}"
        lines.append([log, name, f"{columns:,}" if columns else "", *scores])
    return lines


def auroc_cells(rows: Sequence[Row]) -> list[list[str]]:
    """The same of AUROC alone, as `AUROCS` heads it."""
    lines = []
    for (log, name), tasks in by_name(rows).items():
        lines.append([log, name, *(f"{tasks[panel].auroc:.4f}" if panel in tasks else "–" for panel in PANELS)])
    return lines


COLORS: Final = ("tab:blue", "tab:orange", "tab:green", "tab:red")  # of the logs
LINES: Final = ("o-", "s--", "^:")  # of the shops, by the number of clients


def save(plt: Any, figure: Any, file: Path) -> None:  # noqa: ANN401 (matplotlib's)
    """Write a figure as a PNG, whole or not at all, and let it go."""
    with atomic_write(file) as aside:
        figure.savefig(aside, dpi=110, format="png")
    plt.close(figure)


def draw(rows: Sequence[Row], file: Path) -> None:
    """Panels of the sum and of each task: a point for each thing and log, the trees as a line; below, AUROC alone.

    Chance lies far to the left of all else: it stands in the title.

    Raises:
        UserError: matplotlib is missing.
    """
    plt = pyplot()
    things, logs = by_name(rows), list(dict.fromkeys(row.log for row in rows))
    names = [name for name in dict.fromkeys(row.name for row in rows) if name not in (CHANCE, TREES)]
    panels = [panel for panel in (SUM, *PANELS[:-1]) if any(panel in tasks for tasks in things.values())]
    figure, axes = plt.subplots(
        2, len(panels), figsize=(2.4 * len(panels), 2 + 0.6 * len(names)), sharey=True, squeeze=False,
        layout="constrained",
    )  # fmt: skip
    for line, measure in zip(axes, ("score", "auroc"), strict=True):
        for axis, panel in zip(line, panels, strict=True):
            lowest = fill(axis, {key: tasks[panel] for key, tasks in things.items() if panel in tasks}, measure, logs)
            title = "mean AUROC" if (panel, measure) == (SUM, "auroc") else short_name(panel)
            title += ": AUROC" if measure == "auroc" and panel != SUM else ""
            axis.set_title(f"{title}\nchance {', '.join(lowest)}", loc="left", fontsize=9)
            axis.set_yticks(range(len(names)), names)
            axis.set_ylim(len(names) - 0.5, -0.5)  # the first at the top
    lines = [plt.Line2D([], [], color=COLORS[n % len(COLORS)], marker="o", label=log) for n, log in enumerate(logs)]
    lines.append(plt.Line2D([], [], color="0.3", linestyle="--", label="boosted trees on the features"))
    figure.legend(handles=lines, loc="outside lower center", ncols=len(lines), fontsize=9, frameon=False)
    save(plt, figure, file)


def fill(axis: Any, found: Mapping[tuple[str, str], Row], measure: str, logs: Sequence[str]) -> list[str]:  # noqa: ANN401 (matplotlib's)
    """Draw one panel.

    Args:
        axis: of it.
        found: the rows of its task by log and name.
        measure: ``score`` or ``auroc``.
        logs: in the order of their colours.

    Returns:
        What chance has, each number once.
    """
    lowest, names = list[str](), list(dict.fromkeys(name for _, name in found if name not in (CHANCE, TREES)))
    for (log, name), row in found.items():
        number, value = logs.index(log), getattr(row, measure)
        color = COLORS[number % len(COLORS)]
        if name == CHANCE:
            lowest.append(f"{value:.2f}")
        elif name == TREES:
            axis.axvline(value, color=color, linestyle="--", linewidth=1.2)
        else:
            place = names.index(name) + 0.16 * (number - (len(logs) - 1) / 2)
            spread = row.spread if measure == "score" else None
            axis.errorbar(value, place, xerr=spread, fmt="o", color=color, markersize=5, capsize=2)
    axis.locator_params(axis="x", nbins=4)
    axis.tick_params(labelsize=8)
    axis.grid(alpha=0.3)
    return list(dict.fromkeys(lowest))


SHOP_ENDS: Final = ","  # in a log's name: what stands before it are logs of one shop


def leads(rows: Sequence[Row]) -> dict[tuple[str, str], dict[str, dict[int, float]]]:
    """By how much each thing leads the row of SVDs and counts of its log.

    Args:
        rows: of logs; those of one shop have names that are alike up to a comma.

    Returns:
        Shop and name to task to clients to score less the reference row's, by the number of clients.
    """
    things = by_name(rows)
    found: dict[tuple[str, str], dict[str, dict[int, float]]] = {}
    for (log, name), tasks in sorted(things.items(), key=lambda item: next(iter(item[1].values())).clients):
        beside = things.get((log, SVDS_AND_COUNTS), {})
        if name in (CHANCE, TREES, SVDS_AND_COUNTS):
            continue
        for task in tasks.keys() & beside.keys():
            of_thing = found.setdefault((log.split(SHOP_ENDS)[0], name), {})
            of_thing.setdefault(task, {})[tasks[task].clients] = tasks[task].score - beside[task].score
    return found


def draw_by_clients(rows: Sequence[Row], file: Path) -> None:
    """Panels of the sum and of each task: what `leads` finds, a line for each thing and shop over the clients.

    Raises:
        UserError: matplotlib is missing.
    """
    plt = pyplot()
    found = leads(rows)
    shops, names = (list(dict.fromkeys(row[place] for row in found)) for place in (0, 1))
    panels = [panel for panel in (SUM, *PANELS[:-1]) if any(panel in tasks for tasks in found.values())]
    across = min(4, len(panels))
    down = ceil(len(panels) / across)
    figure, axes = plt.subplots(
        down, across, figsize=(4 * across, 3.4 * down), squeeze=False, layout="constrained"
    )  # fmt: skip
    styles = dict(zip(shops, cycle(LINES), strict=False))
    for axis, panel in zip(axes.flat, panels, strict=False):
        for (shop, name), tasks in found.items():
            points = tasks.get(panel, {})
            color = f"C{names.index(name)}"
            axis.plot(list(points), list(points.values()), styles[shop], color=color, markersize=4, linewidth=1.2)
        axis.axhline(0, color="0.3", linewidth=0.8)
        sizes = sorted({size for tasks in found.values() for size in tasks.get(panel, {})})
        axis.set_xscale("log")
        axis.set_xticks(sizes, [f"{size:,}" for size in sizes])
        axis.set_xticks([], minor=True)
        axis.set_title(short_name(panel), loc="left", fontsize=10)
        axis.set_xlabel("clients", fontsize=8)
        axis.tick_params(labelsize=8)
        axis.grid(alpha=0.3)
    for axis in axes.flat[len(panels) :]:
        axis.set_axis_off()
    key = [plt.Line2D([], [], color=f"C{number}", label=name) for number, name in enumerate(names)]
    key += [
        plt.Line2D([], [], color="0.3", linestyle=style[1:], marker=style[0], label=shop)
        for shop, style in styles.items()
    ]
    figure.suptitle(f"score less that of {SVDS_AND_COUNTS}, by the number of clients", fontsize=11)
    figure.legend(handles=key, loc="outside lower center", ncols=5, fontsize=9, frameon=False)
    save(plt, figure, file)


# --- the command ----------------------------------------------------------------------------------------------------


def measure(config: DictConfig, common: Common, log: str) -> list[Row]:
    """All rows of a log."""
    data, truth = common.data(submit=False), GroundTruth.load(common.paths)
    probe = several(parse(Probe, config, at="probe"), list(config.seeds))
    things = those_there(
        one_or_several(config, "embeddings", "a block or an entry"), common.paths.embeddings(submit=False)
    )
    scores = [chance(data, truth)]
    done = evaluate_all([*reference_rows(data, ReferenceSettings()), *things], probe, data, config.device, False)
    scores += [evaluated.scores for evaluated in done]
    scores.append(boosted_trees(data, truth, parse(TreeSettings, config, at="trees"), probe.seeds, common.overwrite))
    return [row for each in scores for row in rows_of(log, len(data.clients), each)]


@command("scripts", "standings")
def main(config: DictConfig) -> list[Row]:
    common, table = Common.of(config), Path(config.table)
    rows = read_rows(table, Row)
    if not config.draw:
        log = config.log or common.paths.root.resolve().name
        rows = [row for row in rows if row.log != log] + measure(config, common, log)
        write_rows(table, rows, Row)
    shown = Table(*SCORES, title="scores of the six tasks, higher is better", title_justify="left")
    for cells in score_cells(rows):
        shown.add_row(*cells)
    show(shown)
    if config.report:
        auroc = as_markdown("AUROC alone", AUROCS, auroc_cells(rows))
        parts = [as_markdown("scores", SCORES, score_cells(rows)), auroc]
        write_report(Path(config.report), parts, marks_of("benchmarks/standings.py"))
    if config.plot:
        draw(rows, Path(config.plot))
    if config.by_clients:
        draw_by_clients(rows, Path(config.by_clients))
    closing_line("standings", Path(config.plot or config.by_clients or table))
    return rows


if __name__ == "__main__":
    main()
