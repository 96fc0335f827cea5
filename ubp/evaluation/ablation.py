"""What each block of an ensemble is worth: scores of some of its blocks, against those of all of them.

A subset of the blocks is merged as the ensemble is, and conditioned by itself. Each of the probe's seeds gives a row of
a table; a row that is there, of the same blocks, settings, labels and probe, is not made again.
"""

import logging
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Final

import numpy as np

from ubp.blocks.entry import as_held
from ubp.blocks.fitted import Clients
from ubp.blocks.merge import MergeSettings, content_of, fit_merge, put_together
from ubp.blocks.transformers import Matrix
from ubp.data.history import ChallengeData
from ubp.data.targets import TASKS
from ubp.evaluation.evaluate import labels_digest, score_each
from ubp.evaluation.probes import Probe
from ubp.evaluation.profiles import Profiles
from ubp.evaluation.scores import Scores
from ubp.io.errors import name_some
from ubp.io.files import digest_of
from ubp.io.rows import add_row, read_rows

logger = logging.getLogger(__name__)

Subset = tuple[str, ...]  # names of blocks, in the order of their columns

WHOLE, WITHOUT, ALONE, GREEDY, SET = "whole", "without", "alone", "greedy", "set"  # kinds of changes

_PLACES: Final = 6  # scores are rounded to
_JOINED: Final = "+"  # between the names of blocks, in a table


@dataclass(frozen=True)
class Row:
    """One seed's scores of some blocks.

    Attributes:
        log: the folder's name of the log.
        ensemble: name of its config.
        blocks: that are merged, joined by ``+``.
        columns: of the profile.
        probe: by what.
        seed: of the probe.
        churn: a task's score, as are those that follow; None for one that cannot be scored.
        total: their sum.
        made_from: tells blocks' contents, settings, labels and probe from others.
    """

    log: str
    ensemble: str
    blocks: str
    columns: int
    probe: str
    seed: int
    churn: float | None
    conversion: float | None
    propensity_category: float | None
    propensity_sku: float | None
    propensity_new_sku: float | None
    propensity_price: float | None
    total: float
    made_from: str


@dataclass(frozen=True)
class Change:
    """Some blocks' scores less those of the whole ensemble, seed by seed.

    Attributes:
        kind: ``whole``: all blocks, whose change is 0; ``without``: the whole without the block; ``alone``: the
            block, beside those of a base where there is one; ``greedy``: the block and all that were added before it;
            ``set``: the whole with other settings.
        block: that is left out or added, empty for the base alone; or the settings.
        blocks: number of those that are merged.
        columns: of the profile.
        seeds: number of them.
        total: the mean sum.
        change: of the sum, the mean over the seeds.
        spread: its standard deviation; None for one seed.
        churn: the mean change of a task's score, as are those that follow; None for one that cannot be scored.
    """

    kind: str
    block: str
    blocks: int
    columns: int
    seeds: int
    total: float
    change: float
    spread: float | None
    churn: float | None
    conversion: float | None
    propensity_category: float | None
    propensity_sku: float | None
    propensity_new_sku: float | None
    propensity_price: float | None

    def of(self, task: str) -> float | None:
        """The change of a task's score."""
        change: float | None = getattr(self, task)
        return change


@dataclass(frozen=True)
class Ensemble:
    """A merge whose blocks are there, and what they are.

    Attributes:
        name: of its config.
        settings: the merge.
        paths: of its blocks, as `ubp.blocks.merge.find_blocks` gives them.
        clients: the rows of a profile.
    """

    name: str
    settings: MergeSettings
    paths: Mapping[str, Path]
    clients: Clients

    @property
    def whole(self) -> Subset:
        """All blocks."""
        return tuple(self.settings.blocks)

    def subset(self, names: Sequence[str]) -> Subset:
        """These blocks, in the order of their columns."""
        return tuple(name for name in self.whole if name in names)

    def without(self, name: str) -> Subset:
        """All blocks but one."""
        return tuple(other for other in self.whole if other != name)

    def title(self, subset: Subset) -> str:
        """How a subset is called in the log."""
        if subset == self.whole:
            return f"all {len(subset)} blocks"
        if len(subset) == len(self.whole) - 1:
            return f"without {next(name for name in self.whole if name not in subset)}"
        return f"{name_some(subset, 2)} alone"

    @cached_property
    def parts(self) -> dict[str, Matrix]:
        """Each block after its steps, which are the same whatever stands beside it: float32 [clients, columns]."""
        fitted, matrix = fit_merge(replace(self.settings, condition=None), self.paths, self.clients)
        ends = np.cumsum([block.columns for block in fitted.blocks])
        parts = np.split(matrix, ends[:-1], axis=1)  # views
        return dict(zip((block.name for block in fitted.blocks), parts, strict=True))

    def profiles(self, subset: Subset) -> Profiles:
        """The merge of a subset, as an entry would hold it.

        Raises:
            UserError: see `ubp.blocks.merge.put_together`.
        """
        merged = put_together(self.settings, {name: self.parts[name] for name in subset})
        return Profiles(self.title(subset), Path(self.name), self.clients, as_held(merged))

    def made_from(self, subset: Subset) -> str:
        """Tells a subset's profiles from others."""
        settings = replace(self.settings, blocks={name: self.settings.blocks[name] for name in subset})
        return digest_of(settings, *(self._contents[name] for name in subset))

    @cached_property
    def _contents(self) -> dict[str, str]:
        return {name: content_of(path) for name, path in self.paths.items()}


@dataclass(frozen=True)
class Ablation:
    """Scores of subsets of an ensemble.

    Attributes:
        ensemble: whose blocks.
        probe: by what; each of its seeds gives a row.
        data: the history, whose labels follow.
        device: as torch names it, or ``auto``.
        table: to which rows are added; those that are there are not made again.
    """

    ensemble: Ensemble
    probe: Probe
    data: ChallengeData
    device: str
    table: Path
    _rows: dict[tuple[str, int], Row] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        self._rows.update({(row.made_from, row.seed): row for row in read_rows(self.table, Row)})

    def measure(self, subsets: Sequence[Subset]) -> None:
        """Score the subsets, each by the seeds whose rows are not there yet."""
        wanted: dict[tuple[int, ...], list[Subset]] = {}
        for subset in dict.fromkeys(subsets):
            made_from = self._made_from(subset)
            if missing := tuple(seed for seed in self.probe.seeds if (made_from, seed) not in self._rows):
                wanted.setdefault(missing, []).append(subset)
        total = sum(map(len, wanted.values()))
        logger.info("%d of %d subsets are to be scored", total, len(dict.fromkeys(subsets)))
        done = 0
        for seeds, group in wanted.items():
            things = (self.ensemble.profiles(subset) for subset in group)
            found = score_each(things, replace(self.probe, seeds=seeds), self.data.paths, self.device)
            for subset, scores in zip(group, found, strict=True):
                for row in self._rows_of(subset, scores):
                    add_row(self.table, row)
                    self._rows[row.made_from, row.seed] = row
                done += 1
                logger.info("%s: %.4f · %d of %d", self.ensemble.title(subset), scores.total, done, total)

    def rows(self, subset: Subset) -> list[Row]:
        """A subset's rows, in the order of the probe's seeds, once it is measured."""
        made_from = self._made_from(subset)
        return [self._rows[made_from, seed] for seed in self.probe.seeds]

    def total(self, subset: Subset) -> float:
        """A subset's mean sum, once it is measured."""
        return statistics.fmean(row.total for row in self.rows(subset))

    def change(self, kind: str, block: str, subset: Subset) -> Change:
        """A subset's scores less those of the whole, once both are measured."""
        return change_of(kind, block, self.rows(subset), self.rows(self.ensemble.whole))

    @cached_property
    def _by_what(self) -> str:
        """Tells probe and labels from others; a seed's scores do not depend on the other seeds."""
        return digest_of(replace(self.probe, seeds=(0,)), self.data.fingerprint, labels_digest(self.data.paths))

    def _made_from(self, subset: Subset) -> str:
        return digest_of(self.ensemble.made_from(subset), self._by_what)

    def _rows_of(self, subset: Subset, scores: Scores) -> Iterator[Row]:
        by_seed: dict[int, dict[str, float]] = {}
        for task, runs in scores.details.items():
            for run in runs:
                by_seed.setdefault(run["seed"], {})[task] = run["score"]
        for seed, found in by_seed.items():
            tasks = {task.name: round(found[task.name], _PLACES) if task.name in found else None for task in TASKS}
            yield Row(
                log=self.data.paths.root.resolve().name,
                ensemble=self.ensemble.name,
                blocks=_JOINED.join(subset),
                columns=scores.columns,
                probe=self.probe.name,
                seed=seed,
                **tasks,
                total=round(sum(found.values()), _PLACES),
                made_from=self._made_from(subset),
            )


def change_of(kind: str, block: str, rows: Sequence[Row], whole: Sequence[Row]) -> Change:
    """The scores of some rows less those of others, seed by seed.

    Args:
        kind: of the change.
        block: that is left out or added, or what else is another.
        rows: of one merge, a seed each.
        whole: of what it is compared with, by the same seeds in the same order.
    """
    changes = [row.total - other.total for row, other in zip(rows, whole, strict=True)]
    return Change(
        kind=kind,
        block=block,
        blocks=len(rows[0].blocks.split(_JOINED)),
        columns=rows[0].columns,
        seeds=len(rows),
        total=round(statistics.fmean(row.total for row in rows), _PLACES),
        change=round(statistics.fmean(changes), _PLACES),
        spread=round(statistics.stdev(changes), _PLACES) if len(changes) > 1 else None,
        **{task.name: _mean_change(rows, whole, task.name) for task in TASKS},
    )


def _mean_change(rows: Sequence[Row], whole: Sequence[Row], task: str) -> float | None:
    pairs = [(getattr(row, task), getattr(other, task)) for row, other in zip(rows, whole, strict=True)]
    scored = [score - other for score, other in pairs if score is not None and other is not None]
    return round(statistics.fmean(scored), _PLACES) if scored else None


def left_out(ablation: Ablation) -> list[Change]:
    """The whole without each block, the most missed first."""
    ensemble = ablation.ensemble
    subsets = {name: ensemble.without(name) for name in ensemble.whole}
    ablation.measure([ensemble.whole, *subsets.values()])
    found = [ablation.change(WITHOUT, name, subset) for name, subset in subsets.items()]
    return sorted(found, key=lambda change: change.change)


def alone(ablation: Ablation, base: Subset = ()) -> list[Change]:
    """Each block beside those of the base, the best first.

    Args:
        ablation: where they are scored.
        base: blocks to which each other one is added; none: each block by itself.
    """
    ensemble = ablation.ensemble
    subsets = {name: ensemble.subset([*base, name]) for name in ensemble.whole if name not in base}
    if base:
        subsets = {"": base, **subsets}
    ablation.measure([ensemble.whole, *subsets.values()])
    found = [ablation.change(ALONE, name, subset) for name, subset in subsets.items()]
    return sorted(found, key=lambda change: -change.change)


def greedy(ablation: Ablation, base: Subset = (), steps: int | None = None) -> list[Change]:
    """Blocks in the order in which each adds most to those before it: with n blocks n (n + 1) / 2 subsets.

    Args:
        ablation: where they are scored.
        base: blocks to begin with.
        steps: blocks to add; None: all.
    """
    ensemble = ablation.ensemble
    ablation.measure([ensemble.whole])
    chosen, found = base, list[Change]()
    while len(chosen) < len(ensemble.whole) and (steps is None or len(found) < steps):
        subsets = {name: ensemble.subset([*chosen, name]) for name in ensemble.whole if name not in chosen}
        ablation.measure(list(subsets.values()))
        best = max(subsets, key=lambda name: ablation.total(subsets[name]))
        chosen = subsets[best]
        found.append(ablation.change(GREEDY, best, chosen))
    return found
