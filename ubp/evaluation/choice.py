"""Which settings of an ensemble to take: those that beat it as it is by more than the seeds of the probe differ.

Each setting is tried by itself. What wins is tried together.
"""

import logging
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from math import sqrt
from typing import Final, Self

from ubp.evaluation.ablation import SET, Ablation, Change, Row, change_of
from ubp.io.errors import require

logger = logging.getLogger(__name__)

Settings = tuple[str, ...]  # as on a command line: condition.constant=1.5
AS_IS: Final[Settings] = ()

LEAST_SEEDS: Final = 2  # without two there is no telling what a difference is worth


@dataclass(frozen=True)
class Trial:
    """An ensemble with some settings of its own, scored.

    Attributes:
        settings: that differ from the ensemble as it is.
        rows: its scores, by each of the probe's seeds.
    """

    settings: Settings
    rows: tuple[Row, ...]

    @property
    def total(self) -> float:
        """The mean sum."""
        return statistics.fmean(row.total for row in self.rows)

    def changes(self, other: Self) -> list[float]:
        """Of the sum against another trial, seed by seed."""
        return [mine.total - theirs.total for mine, theirs in zip(self.rows, other.rows, strict=True)]

    def change(self, other: Self) -> Change:
        """Its scores less those of another trial."""
        return change_of(SET, " ".join(self.settings), self.rows, other.rows)


@dataclass(frozen=True)
class ChoiceRules:
    """When a setting is taken.

    Attributes:
        errors: by how many standard errors it must beat the ensemble as it is. The error is that of the mean over the
            seeds, and is taken from all trials together: of three seeds of one trial it would say little.
        least: of the sum, by which it must beat it besides. All seeds are asked about one window, with its clients in
            one order: what these move, the error does not know.
    """

    errors: float
    least: float

    def __post_init__(self) -> None:
        """Refuse settings that make no sense.

        Raises:
            UserError: a negative number.
        """
        for name in ("errors", "least"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "at least 0")


def standard_error(trials: Sequence[Trial], as_is: Trial) -> float:
    """Of a mean change over the seeds, from the variances of all trials' changes; 0 where there are no trials.

    Raises:
        ValueError: there are fewer than two seeds.
    """
    if len(as_is.rows) < LEAST_SEEDS:
        raise ValueError("the error of a change needs two seeds at least")
    variances = [statistics.variance(trial.changes(as_is)) for trial in trials]
    return sqrt(statistics.fmean(variances) / len(as_is.rows)) if variances else 0.0


def winners(trials: Sequence[Trial], as_is: Trial, least: float) -> list[Trial]:
    """Of each setting the best of its values, where it beats the ensemble as it is by enough.

    Args:
        trials: of one setting each; those of one setting stand together.
        as_is: the ensemble as it is.
        least: by which a sum must be above its.
    """
    found = []
    for _, values in groupby(trials, key=lambda trial: trial.settings[0].partition("=")[0]):
        best = max(values, key=lambda trial: trial.total)
        if best.total - as_is.total > least:
            found.append(best)
    return found


@dataclass(frozen=True)
class Choice:
    """What came of the trials.

    Attributes:
        as_is: the ensemble as it is.
        trials: of the settings, one by one, and together where several won.
        taken: the trial of those to take; may be the ensemble as it is.
        error: the standard error of a change over the seeds.
    """

    as_is: Trial
    trials: tuple[Trial, ...]
    taken: Trial
    error: float


def choose(tried: Sequence[Settings], score: Callable[[Settings], Trial], rules: ChoiceRules) -> Choice:
    """Try settings one by one, then those that won together.

    Args:
        tried: one setting each; those of one setting stand together.
        score: gives the ensemble with some settings, scored.
        rules: when a setting is taken.
    """
    as_is = score(AS_IS)
    trials = [score(settings) for settings in tried]
    error = standard_error(trials, as_is)
    found = winners(trials, as_is, max(rules.errors * error, rules.least))
    best = max([as_is, *found], key=lambda trial: trial.total)
    if len(found) > 1:
        together = score(tuple(setting for trial in found for setting in trial.settings))
        trials.append(together)
        best = max(best, together, key=lambda trial: trial.total)
    return Choice(as_is, tuple(trials), best, error)


def scored(ablation: Ablation, settings: Settings) -> Trial:
    """An ensemble with some settings, scored as a whole; what the ablation's table has is not scored again."""
    whole = ablation.ensemble.whole
    ablation.measure([whole])
    trial = Trial(settings, tuple(ablation.rows(whole)))
    logger.info("%s: %.4f", " ".join(settings) or "as it is", trial.total)
    return trial
