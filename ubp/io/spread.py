"""Pieces of work that do not depend on one another, and where they are done: here in turn, or on other machines."""

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

Made = TypeVar("Made")


class Spread(Protocol):
    """Where pieces of work are done."""

    def __call__(self, what: str, pieces: Sequence[Callable[[], Made]]) -> list[Made]:
        """Do them all.

        Args:
            what: they do, for lines that say how far it is.
            pieces: functions, or objects that can be called, that can be pickled. Each may be done more than once,
                if whoever does it is lost: what it writes appears whole or not at all. What it gives back is small.

        Returns:
            What each gave back, in their order.

        Raises:
            UserError: one of them did, or was lost too often.
        """


def in_turn(what: str, pieces: Sequence[Callable[[], Made]]) -> list[Made]:  # noqa: ARG001 (nobody waits for lines)
    """A `Spread`: in this process, one after the other."""
    return [piece() for piece in pieces]
