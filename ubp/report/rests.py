"""What the profiles of clients on the page rest on: how far they move without a day, or without an event type."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import Final

from ubp.blocks.fitted import FittedBlock
from ubp.blocks.occlusion import DAY, TYPE
from ubp.data.history import ChallengeData
from ubp.evaluation.explanation import EVENTS, MOVE, NAME, OcclusionSettings, explain
from ubp.io.errors import UserError

logger = logging.getLogger(__name__)

_LEFT_OUT: Final = OcclusionSettings(events=0, days=90, others=200, check=False)


@dataclass(frozen=True)
class Rests:
    """Of one client.

    Attributes:
        types: event types, the one without which the profile moves furthest first: name, events, move as a share of the
            median distance to other clients.
        days: the same of the newest days with events, the earliest first.
    """

    types: list[tuple[str, int, float]]
    days: list[tuple[date, int, float]]


def rests_of(
    name: str, fitted: FittedBlock, history: ChallengeData, clients: Sequence[int], seed: int
) -> dict[int, Rests]:
    """Of some clients, by their ids; those that cannot be explained are left out, with a line.

    Args:
        name: of the block or merge.
        fitted: it.
        history: that the profiles were made from.
        clients: whose.
        seed: of the draw of others that moves are held against.
    """
    found = {}
    for client in clients:
        try:
            explanation = explain(name, fitted, history, client, _LEFT_OUT, seed=seed)
        except UserError as error:
            logger.info("client %d: what its profile rests on is left out: %s", client, error.messages[0])
            continue
        columns = (NAME, EVENTS, MOVE)
        types = explanation.of_kind(TYPE).select(columns).drop_nulls().sort(MOVE, descending=True)
        days = explanation.of_kind(DAY).select(columns).drop_nulls().sort(NAME)
        found[client] = Rests(types.rows(), [(date.fromisoformat(day), *rest) for day, *rest in days.iter_rows()])
    return found
