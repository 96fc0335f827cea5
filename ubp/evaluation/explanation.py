"""Which of a client's events a profile rests on: how far it moves, and what is read from it, without some."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import numpy as np
import numpy.typing as npt
import polars as pl

from ubp.blocks.fitted import FittedBlock
from ubp.blocks.occlusion import KINDS, ClientEvents, Occluded, Part, occluded
from ubp.data.history import ChallengeData
from ubp.evaluation.readers import Reader
from ubp.io.errors import UserError, require

KIND, NAME, EVENTS, DISTANCE, MOVE, COSINE = "kind", "name", "events", "distance", "move", "cosine"
_SAME: Final = 1e-4  # of a profile's length: what rounding may add up to


@dataclass
class OcclusionSettings:
    """How much is left out, one after the other.

    Attributes:
        events: single ones, the newest, at most.
        days: with events, the newest, at most.
        others: clients drawn at random that a move is held against.
        check: encode the client in the whole history too, and compare with the undisturbed copy.
    """

    events: int
    days: int
    others: int
    check: bool

    def __post_init__(self) -> None:
        """Refuse what makes no sense.

        Raises:
            UserError: a number out of its range.
        """
        require(self.events >= 0, "left_out.events", self.events, "at least 0")
        require(self.days >= 0, "left_out.days", self.days, "at least 0")
        require(self.others >= 1, "left_out.others", self.others, "at least 1")


@dataclass(frozen=True)
class Explanation:
    """What a client's profile rests on.

    Attributes:
        name: of the block or merge.
        client: whose.
        as_of: the day.
        events: the client's, before the day.
        parts: what was left out, one after the other.
        moves: a row for each part. ``kind``: event, day or event type; ``name``: the event's place, the day, the type;
            ``events``: how many were left out; ``distance``: of the profile without them, Euclidean; ``move``: the same
            as a share of the median distance to other clients; ``cosine``: one less the cosine; and for each reader
            the change of its probability. Null where no profile is left.
        others: float64, ascending, distances to other clients drawn at random.
        readers: of the profile; empty where there are no targets to learn from.
        answers: by reader, its probability with everything.
        undisturbed: distance of an undisturbed copy from the profile in the whole history, as a share of the profile's
            length; None where that was not looked at.
    """

    name: str
    client: int
    as_of: datetime
    events: ClientEvents
    parts: Sequence[Part]
    moves: pl.DataFrame
    others: npt.NDArray[np.float64]
    readers: Sequence[Reader]
    answers: dict[str, float]
    undisturbed: float | None

    def of_kind(self, kind: str) -> pl.DataFrame:
        """The moves where single events, days or event types were left out, in the order of `parts`."""
        return self.moves.filter(pl.col(KIND) == kind)

    @property
    def rests_on_itself_alone(self) -> bool:
        """Whether the copy that nothing was taken from has the profile: else the moves are not to be trusted."""
        return self.undisturbed is None or self.undisturbed <= _SAME


def explain(
    name: str,
    fitted: FittedBlock,
    history: ChallengeData,
    client: int,
    settings: OcclusionSettings,
    readers: Sequence[Reader] = (),
    seed: int = 0,
) -> Explanation:
    """Leave out of a client's history one event, one day, one event type after the other.

    Args:
        name: of the block or merge.
        fitted: it.
        history: as known on the day; as many clients of it are drawn as the settings say.
        client: whose profile.
        settings: how much is left out.
        readers: of profiles of this block or merge.
        seed: of the draw of other clients.

    Raises:
        UserError: the client has no events or no vector, or it is alone, or see
            `ubp.blocks.fitted.FittedBlock.vectors`.
    """
    events = ClientEvents.of(history, client)
    parts = events.parts(settings.events, settings.days)
    everyone = history.seen()
    drawn = np.random.default_rng(seed).choice(everyone, min(settings.others + 1, len(everyone)), replace=False)
    found = occluded(fitted, history, events, parts, drawn[drawn != client][: settings.others])
    own = found.own.astype(np.float64)
    others = np.sort(np.linalg.norm(found.others.astype(np.float64) - own, axis=1))
    if not others.size or np.median(others) == 0:
        raise UserError(f"client={client}: no other client with another vector to hold its moves against")
    undisturbed = _undisturbed(fitted, history, client, own) if settings.check else None
    answers = {reader.name: float(reader.probability(found.own[None])[0]) for reader in readers}
    moves = _moves(parts, found, float(np.median(others)), readers, answers)
    return Explanation(name, client, history.as_of, events, parts, moves, others, readers, answers, undisturbed)


def _undisturbed(fitted: FittedBlock, history: ChallengeData, client: int, own: npt.NDArray[np.float64]) -> float:
    whole = fitted.encode(history, np.array([client])).vectors[0].astype(np.float64)
    return float(np.linalg.norm(own - whole) / max(float(np.linalg.norm(whole)), 1e-12))


def _moves(
    parts: Sequence[Part], found: Occluded, usual: float, readers: Sequence[Reader], answers: dict[str, float]
) -> pl.DataFrame:
    own, left = found.own.astype(np.float64), found.left_out.astype(np.float64)
    distance = np.linalg.norm(left - own, axis=1)
    lengths = np.linalg.norm(left, axis=1) * np.linalg.norm(own)
    columns = {DISTANCE: distance, MOVE: distance / usual, COSINE: 1 - left @ own / np.maximum(lengths, 1e-12)}
    columns |= {reader.name: reader.probability(found.left_out) - answers[reader.name] for reader in readers}
    table = pl.DataFrame(
        {
            KIND: pl.Series([part.kind for part in parts], dtype=pl.Enum(KINDS)),
            NAME: [part.name for part in parts],
            EVENTS: [len(part.places) for part in parts],
            **columns,
        }
    )
    return table.with_columns(pl.col(list(columns)).fill_nan(None))
