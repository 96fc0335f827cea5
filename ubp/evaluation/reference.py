"""Two rows that every block and merge is held against, made from the history in seconds.

- *recency and frequency*: two columns a client, the last purchase and how many (`last_purchases`);
- *SVDs and counts*: what a good engineer builds in an hour (`ubp.blocks.wide_features`).

Both are conditioned, so that a short training can read them (`ubp.blocks.condition`). What scores below one of them
is not worth its training.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

import numpy as np

from ubp.blocks.condition import ConditionSettings, FittedCondition
from ubp.blocks.entry import entry_files, read_entry, write_entry
from ubp.blocks.wide_features import COUNTS, Matrix, WideFeatures, WideSettings, last_purchases
from ubp.data.history import ChallengeData
from ubp.data.paths import DataPaths
from ubp.evaluation.profiles import Profiles
from ubp.evaluation.scores import Scores
from ubp.io.stage import AlreadyDone, Stage

logger = logging.getLogger(__name__)

RECENCY_AND_FREQUENCY: Final = "recency and frequency"
SVDS_AND_COUNTS: Final = "SVDs and counts"

REFERENCES: Final = (RECENCY_AND_FREQUENCY, SVDS_AND_COUNTS)

_VERSION: Final = 1  # one more whenever the same history and settings would give other vectors


@dataclass(frozen=True)
class ReferenceSettings:
    """How the reference rows are made.

    Attributes:
        seed: of the SVDs.
        wide: the features of *SVDs and counts*.
        counts_weight: of the counts beside one SVD's length.
        condition: of both rows.
    """

    seed: int = 0
    wide: WideSettings = field(default_factory=WideSettings)
    counts_weight: float = 4.0
    condition: ConditionSettings = field(default_factory=lambda: ConditionSettings(constant=2.0))

    @property
    def weights(self) -> dict[str, float]:
        """Of the groups that do not weigh 1."""
        return {COUNTS: self.counts_weight}


def reference_folder(name: str, paths: DataPaths) -> Path:
    """Where a row is kept as an entry, and its scores with it."""
    return paths.cache / "references" / name.lower().replace(" ", "_")


def reference_rows(history: ChallengeData, settings: ReferenceSettings) -> list[Profiles]:
    """Both rows, for the relevant clients with an event in the history.

    Each is made once and kept, see `reference_folder`.

    Args:
        history: whose events before ``as_of`` they are made of.
        settings: how.
    """
    return [_row(name, history, settings) for name in REFERENCES]


def _row(name: str, history: ChallengeData, settings: ReferenceSettings) -> Profiles:
    folder = reference_folder(name, history.paths)
    made_from = {"history": history.fingerprint, "settings": asdict(settings), "version": _VERSION}
    stage = Stage(name, tuple(entry_files(folder)), lambda: made_from, of=folder)
    try:
        with stage.once(overwrite=False):
            started = time.perf_counter()
            vectors = conditioned(_groups(name, history, settings), settings.condition, settings.weights)
            write_entry(folder, history.clients, vectors)
            logger.info("%s: %d columns in %.1f s", name, vectors.shape[1], time.perf_counter() - started)
    except AlreadyDone as done:
        logger.debug("%s", done)
    client_ids, halves = read_entry(folder)
    return Profiles(name, folder, client_ids, halves.astype(np.float32))


def _groups(name: str, history: ChallengeData, settings: ReferenceSettings) -> dict[str, Matrix]:
    if name == SVDS_AND_COUNTS:
        fitted = WideFeatures.fit(history, history.clients, settings.seed, settings.wide, listed={})
        return fitted.groups(history, history.clients)
    table = last_purchases(history, history.clients)
    return {column: table.select(column).to_numpy() for column in table.columns}


def conditioned(groups: Mapping[str, Matrix], settings: ConditionSettings, weights: Mapping[str, float]) -> Matrix:
    """The groups side by side, each of one length times its weight, as a merge conditions its blocks.

    Args:
        groups: name to float32 [clients, columns].
        settings: how.
        weights: of groups that do not weigh 1.

    Returns:
        float32 [clients, columns and a constant]; where all clients are alike, one column of ones.
    """
    matrix = np.concatenate(list(groups.values()), axis=1)
    if (matrix == matrix[:1]).all():
        return np.ones((len(matrix), 1), np.float32)
    widths = [group.shape[1] for group in groups.values()]
    fitted = FittedCondition.fit(settings, matrix, widths, [weights.get(name, 1.0) for name in groups])
    return fitted.apply(matrix)


def below(scores: Sequence[Scores], references: Sequence[Scores]) -> dict[str, list[str]]:
    """Which reference rows stand above a block or an entry: by the same probe, by the sum over the same tasks.

    Returns:
        Name to the names of the reference rows with a higher sum, of those that have one above them.
    """
    found = {}
    for row in scores:
        leads = {reference.name: reference.lead(row) for reference in references if reference.name != row.name}
        if above := [name for name, lead in leads.items() if lead is not None and lead > 0]:
            found[row.name] = above
    return found


def marks(scores: Sequence[Scores], references: Sequence[Scores]) -> dict[str, str]:
    """What is below, in words, as `ubp.evaluation.tables.scores_table` shows it."""
    return {name: " and ".join(above) for name, above in below(scores, references).items()}
