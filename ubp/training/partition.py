"""Which sequences train, which validate, and which are held out."""

from dataclasses import dataclass

import numpy as np

from ubp.io.errors import NoUsableEvents
from ubp.training.model import Rows
from ubp.training.settings import TrainerSettings


@dataclass(frozen=True)
class Parts:
    """Rows by what they are for: int64, ascending; those of `split_rows` are together every row once.

    ``kind`` is what the validation and the held-out rows are, as a title says it after their number.
    """

    train: Rows
    validation: Rows
    held_out: Rows
    kind: str = "clients"


def split_rows(rows: int, settings: TrainerSettings, seed: int) -> Parts:
    """Draw the held-out and the validation rows: at least one each, and one a device or worker to validate on.

    Raises:
        NoUsableEvents: too few rows for that.
    """
    if rows < 2 * settings.ranks + 1:
        raise NoUsableEvents(
            f"clients with events to learn from: {rows}; training needs at least {2 * settings.ranks + 1}"
        )
    order = np.random.default_rng(seed).permutation(rows).astype(np.int64)
    held_out = max(1, round(rows * settings.held_out))
    validation = max(settings.ranks, round((rows - held_out) * settings.validation))
    cuts = np.split(order, [held_out, held_out + validation])
    return Parts(np.sort(cuts[2]), np.sort(cuts[1]), np.sort(cuts[0]))
