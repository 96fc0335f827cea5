"""What was made of a log: blocks and merges with their cost, scores and training curves, ablations, days' drift.

All of it is read from what the commands left; what is not there is left out.
"""

import csv
import json
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from glob import escape
from pathlib import Path
from typing import Any, Final

from ubp.blocks import registry
from ubp.blocks.embeddings import read_lineage
from ubp.blocks.fitted import is_fitted, lineage_of
from ubp.data import schema
from ubp.data.paths import DataPaths
from ubp.evaluation.ablation import Change
from ubp.evaluation.reference import REFERENCES, reference_folder
from ubp.evaluation.scores import Scores, scores_file
from ubp.io.errors import UserError
from ubp.io.rows import read_rows
from ubp.report.profiles import ProfileFile

logger = logging.getLogger(__name__)

PROBES: Final = ("judge", "quick")  # the one that counts most first
BLOCK, MERGE, REFERENCE = "block", "merge", "reference"

_MOST_STEPS: Final = 200  # points of a training curve
_STEP_LOSS, _VALIDATION_LOSS, _TRAIN_LOSS = "train_loss_step", "validation_loss", "train_loss"


# --- blocks and merges --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Made:
    """A block, a merge or a reference row.

    Attributes:
        name: of it.
        kind: `BLOCK`, `MERGE` or `REFERENCE`.
        what: it is, in words; empty where nobody says.
        columns: of a vector.
        clients: with one.
        seconds: that its command took when it was last made; None where that is not known, as is what follows.
        megabytes: of memory, at most.
        warnings: what is wrong with it.
        scores: by probe.
        path: where it lies.
        fingerprint: of the history that it was made from; None where nobody noted it.
    """

    name: str
    kind: str
    what: str
    columns: int
    clients: int
    seconds: float | None
    megabytes: float | None
    warnings: tuple[str, ...]
    scores: Mapping[str, Scores]
    path: Path
    fingerprint: str | None = None


def made_of(paths: DataPaths, submit: bool) -> list[Made]:
    """The blocks in the registry's order, then others, then merges by name, then the reference rows that are there.

    Args:
        paths: of the log.
        submit: of all events, or of those before the train window. What cannot be read is left out, with a line.
    """
    folder = paths.embeddings(submit)
    known = {entry.name: entry.makes for entry in registry.blocks()}
    order = {name: place for place, name in enumerate(known)}
    found = sorted(file for file in folder.glob("*.parquet") if not file.name.startswith("."))
    blocks = sorted(found, key=lambda file: order.get(file.stem, len(order)))
    merges = sorted(file.parent for file in folder.glob(f"*/{schema.ENTRY_EMBEDDINGS}") if file.parent.name[0] != ".")
    rows = []
    for path in [*blocks, *merges]:
        try:
            rows.append(_made(path, known.get(path.stem, ""), paths.model(path.stem, submit)))
        except UserError as error:
            logger.warning("left out: %s", error)
    return [*rows, *([] if submit else references(paths))]


def _made(path: Path, what: str, model: Path) -> Made:
    opened = ProfileFile.open(path)
    of_fit = lineage_of(model) if is_fitted(model) else {}
    lineage = of_fit if opened.is_merge else read_lineage(path)
    report, cost = lineage.get("report", {}), of_fit.get("report", {}).get("cost", {})
    collapsed = report.get("health", {}).get("collapsed", [])
    return Made(
        name=opened.name,
        kind=MERGE if opened.is_merge else BLOCK,
        what=what,
        columns=opened.columns,
        clients=len(opened.client_ids),
        seconds=cost.get("seconds"),
        megabytes=cost.get("megabytes"),
        warnings=(*(f"collapsed: {each}" for each in collapsed), *report.get("warnings", [])),
        scores=scores_of(path),
        path=path,
        fingerprint=lineage.get("fingerprint"),
    )


def references(paths: DataPaths) -> list[Made]:
    """The reference rows that were scored."""
    rows = []
    for name in REFERENCES:
        folder = reference_folder(name, paths)
        if scores := scores_of(folder):
            some = next(iter(scores.values()))
            clients = len(ProfileFile.open(folder).client_ids)
            rows.append(Made(name, REFERENCE, "", some.columns, clients, None, None, (), scores, folder))
    return rows


def scores_of(path: Path) -> dict[str, Scores]:
    """By probe, of a block or an entry: the judge's first, then the quick probe's, then others by name."""
    judges = scores_file(path, PROBES[0])
    found = {}
    for file in judges.parent.glob(f"{escape(judges.name.removesuffix('.json'))}*.json"):
        try:
            scores = Scores.load(file)
        except (OSError, ValueError, KeyError) as error:
            logger.warning("left out: %s: not readable (%s); score it again", file, error)
            continue
        found[scores.probe] = scores
    return {probe: found[probe] for probe in in_order(found)}


def in_order(probes: Iterable[str]) -> list[str]:
    """Names of probes, those that count most first."""
    return sorted(probes, key=lambda probe: (PROBES.index(probe) if probe in PROBES else len(PROBES), probe))


def best(rows: Sequence[Made]) -> Made | None:
    """What to show clients by: the best by the sum, by the first probe that scored any; else the newest merge or block.

    Args:
        rows: see `made_of`; reference rows do not count.
    """
    own = [row for row in rows if row.kind != REFERENCE]
    for probe in in_order({probe for row in own for probe in row.scores}):
        if scored := [row for row in own if probe in row.scores]:
            return max(scored, key=lambda row: (row.scores[probe].n_tasks, row.scores[probe].total))
    return max(own, key=lambda row: (row.kind == MERGE, row.path.stat().st_mtime), default=None)


# --- training curves ----------------------------------------------------------------------------------


Line = list[tuple[float, float]]  # points


@dataclass(frozen=True)
class Curve:
    """How the training of a block went; a block that was trained several times has several lines of each kind.

    Attributes:
        name: of the block.
        steps: of training, and the loss at each: means over stretches of equally many steps where there were many.
        train: steps at the ends of epochs, and the mean loss of each.
        validation: likewise of held-out clients.
    """

    name: str
    steps: list[Line] = field(default_factory=list)
    train: list[Line] = field(default_factory=list)
    validation: list[Line] = field(default_factory=list)


def curves_of(paths: DataPaths, names: Sequence[str]) -> list[Curve]:
    """The curves of the latest training of some blocks, as the CSV logger left them; none of those without."""
    found = [curve_of(paths.root / "logs" / name, name) for name in names]
    return [curve for curve in found if curve is not None]


def curve_of(folder: Path, name: str) -> Curve | None:
    """The curve in the newest ``version_N/metrics.csv`` of a folder; None where there is none to be read.

    Args:
        folder: of a block's logs.
        name: of the block.
    """
    versions = [file for file in folder.glob("version_*/metrics.csv") if _version(file) is not None]
    if not versions:
        return None
    file = max(versions, key=lambda file: _version(file) or 0)
    with file.open(newline="") as text:
        lines = list(csv.DictReader(text))

    def column(name: str) -> list[Line]:
        points = [(float(line["step"]), float(line[name])) for line in lines if line.get(name) and line.get("step")]
        return trainings([(step, loss) for step, loss in points if math.isfinite(loss)])

    try:
        steps = [thinned(line, _MOST_STEPS) for line in column(_STEP_LOSS)]
        curve = Curve(name, steps, column(_TRAIN_LOSS), column(_VALIDATION_LOSS))
    except ValueError as error:
        logger.warning("left out: %s: no training curve (%s)", file, error)
        return None
    return curve if curve.steps or curve.train or curve.validation else None


def _version(file: Path) -> int | None:
    number = file.parent.name.removeprefix("version_")
    return int(number) if number.isdecimal() else None


def trainings(points: Line) -> list[Line]:
    """The points of each training: the steps of a new one begin anew."""
    found: list[Line] = []
    for point in points:
        if not found or point[0] < found[-1][-1][0]:
            found.append([])
        found[-1].append(point)
    return found


def thinned(points: Line, most: int) -> Line:
    """Points whose means stand for stretches of equally many, so that they are no more than ``most``."""
    width = max(1, math.ceil(len(points) / most))
    stretches = [points[start : start + width] for start in range(0, len(points), width)]
    return [(stretch[-1][0], sum(value for _, value in stretch) / len(stretch)) for stretch in stretches]


# --- ablations ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AblationTable:
    """What ``scripts/ablate.py`` left of a merge.

    Attributes:
        ensemble: name of the merge.
        probe: by what.
        changes: in the order of the table.
    """

    ensemble: str
    probe: str
    changes: list[Change]


def ablations_of(paths: DataPaths) -> list[AblationTable]:
    """All that there are, by name; what cannot be read is left out, with a line."""
    found = []
    for file in sorted(paths.ablations("").glob("*/changes_*.csv")):
        try:
            changes = read_rows(file, Change)
        except (UserError, OSError) as error:
            logger.warning("left out: %s", error)
            continue
        if changes:
            found.append(AblationTable(file.parent.name, file.stem.removeprefix("changes_"), changes))
    return found


# --- drift --------------------------------------------------------------------------------------------

# What is shown of a night's report, by where it lies in it.
DRIFT_FIGURES: Final = {
    "clients": "clients that came",
    "moved.quantiles.0.5": "their cosine with the profile before, median",
    "canaries.least": "least cosine of a canary",
    "canaries.below": "canaries that moved",
    "columns.drifted": "columns that drifted",
    "probe.now.mean": "mean score of the probe",
    "probe.training.mean": "the same at training",
}


@dataclass(frozen=True)
class DriftDay:
    """What a nightly run measured of one day.

    Attributes:
        name: of the profiles.
        day: as their folder has it.
        figures: by what they are.
        verdict: in words; empty where there is none.
    """

    name: str
    day: str
    figures: dict[str, float]
    verdict: str = ""


def drift_of(paths: DataPaths) -> list[DriftDay]:
    """What lies in ``profiles/NAME/day=DAY/drift.json``, by name and day; what cannot be read is left out."""
    found = []
    for file in sorted(paths.profiles("").glob("*/day=*/drift.json")):
        try:
            report = json.loads(file.read_text())
        except (OSError, ValueError) as error:
            logger.warning("left out: %s: not readable (%s)", file, error)
            continue
        verdict = str(report.get("verdict", "")) if isinstance(report, dict) else ""
        if figures := figures_of_night(report):
            found.append(DriftDay(file.parents[1].name, file.parent.name.removeprefix("day="), figures, verdict))
    return found


def figures_of_night(report: Any) -> dict[str, float]:  # noqa: ANN401 (whatever JSON holds)
    """The figures of a report that are shown; all its numbers by their dotted paths where it has none of these."""
    numbers = numbers_in(report)
    known = {label: numbers[path] for path, label in DRIFT_FIGURES.items() if path in numbers}
    return known or numbers


def numbers_in(report: Any, prefix: str = "") -> dict[str, float]:  # noqa: ANN401 (whatever JSON holds)
    """The finite numbers in nested mappings by their dotted paths; lists and truth values do not count."""
    if not isinstance(report, dict):
        plain = isinstance(report, int | float) and not isinstance(report, bool) and math.isfinite(report)
        return {prefix: float(report)} if plain else {}
    found = dict[str, float]()
    for key, value in report.items():
        found |= numbers_in(value, f"{prefix}.{key}" if prefix else str(key))
    return found
