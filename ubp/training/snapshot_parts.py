"""Which snapshots, and which of their clients, train, validate and are held out."""

import logging
from collections.abc import Sequence
from typing import Final

import numpy as np

from ubp.data.snapshots import Snapshot
from ubp.training.model import Rows
from ubp.training.partition import Parts, split_rows
from ubp.training.settings import TrainerSettings
from ubp.training.snapshot_source import SnapshotSource

logger = logging.getLogger(__name__)

_NEWEST: Final = "clients, in the newest window"  # what is held out of past windows, as a title says it


def parts_by_time(source: SnapshotSource, taken: Sequence[Snapshot], settings: TrainerSettings, seed: int) -> Parts:
    """The newest window is what a model is stopped and judged by, half of its clients for each.

    What is learned from are the snapshots whose windows end before it begins. Where there is none, clients are drawn:
    all rows of a client, on whichever days, are for the same purpose, as what it bought in one window it also bought
    in another one that shares days with it.

    Args:
        source: of the snapshots.
        taken: the snapshots, from the earliest to the latest.
        settings: shares of the clients, where these are drawn.
        seed: of the draw.

    Raises:
        NoUsableEvents: too few clients, where these are drawn.
    """
    before = ended_before_newest(taken)
    own = np.random.default_rng(seed).permutation(source.rows_of(len(taken) - 1))
    if not before or len(own) < 2:
        logger.info("no window ends before the newest one begins: validation by clients, drawn at random")
        return _by_clients(source.clients, settings, seed)
    return by_newest(np.concatenate([source.rows_of(number) for number in before]), own)


def ended_before_newest(taken: Sequence[Snapshot]) -> list[int]:
    """The places of the snapshots whose windows have ended when the newest one's begins."""
    return [number for number, snapshot in enumerate(taken) if snapshot.end <= taken[-1].day]


def by_newest(train: Rows, own: Rows) -> Parts:
    """Parts where half of the newest window's rows stop the training, and half are held out.

    Args:
        train: int64, rows that are learned from.
        own: int64, the newest window's rows, in a random order.
    """
    validation, held_out = np.array_split(own, 2)
    return Parts(train, np.sort(validation), np.sort(held_out), _NEWEST)


def _by_clients(owners: Rows, settings: TrainerSettings, seed: int) -> Parts:
    """Parts of rows that have no client in common.

    Args:
        owners: int64 [rows], each row's client.
        settings: shares of the clients.
        seed: of the draw.
    """
    clients, numbers = np.unique(owners, return_inverse=True)
    drawn = split_rows(len(clients), settings, seed)
    train, validation, held_out = (
        np.flatnonzero(np.isin(numbers, chosen)) for chosen in (drawn.train, drawn.validation, drawn.held_out)
    )
    return Parts(train, validation, held_out, "rows: clients on days, none of these clients learned from")
