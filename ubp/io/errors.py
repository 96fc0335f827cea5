"""The error that a user can act on."""

from collections.abc import Sequence
from typing import ClassVar, Final


class UserError(Exception):
    """Something in the user's data, files or command line is wrong.

    Each message is one clear line: which file, which column, how many rows, the first example, what to
    do. Commands print the lines and exit with ``exit_code``, without a traceback (`ubp.cli.command.command`).
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, messages: str | Sequence[str]) -> None:
        self.messages = [messages] if isinstance(messages, str) else list(messages)
        super().__init__("\n".join(self.messages))


class NoUsableEvents(UserError):
    """The log has too few events of the kind that something is made of.

    What is to be made of the rest can go on without it: ``scripts/all_embeddings.py`` does.
    """

    exit_code: ClassVar[int] = 4


_LONGEST: Final = 120  # characters of a value, or a name, in a message

LEAVE_OUT: Final = "leave the block out, and merge with missing=skip"  # what to do about it


def require(holds: bool, setting: str, value: object, what: str) -> None:
    """Refuse a setting that makes no sense.

    Raises:
        UserError: it does not hold.
    """
    if not holds:
        raise UserError(f"{setting}={value}: must be {what}")


def require_positive(settings: object, group: str, *names: str) -> None:
    """Refuse settings below 1 that count something.

    Args:
        settings: an object that has them as attributes.
        group: what stands before their names on the command line, ``model``; empty for nothing.
        names: of the attributes.

    Raises:
        UserError: one of them is below 1.
    """
    for name in names:
        value = getattr(settings, name)
        require(value >= 1, f"{group}.{name}" if group else name, value, "at least 1")


def name_some(names: Sequence[object], at_most: int = 12) -> str:
    """Names in one line, the tail as a count: ``a, b, c and 4 more``."""
    some = ", ".join(cut(str(name)) for name in names[:at_most])
    return f"{some} and {len(names) - at_most} more" if len(names) > at_most else some


def shown(value: object) -> str:
    """A value of a user's file as a message shows it, in one line and not too long."""
    return cut(repr(value))


def cut(text: str) -> str:
    """The beginning of a text that is too long for a message, without what no terminal shows."""
    visible = text if text.isprintable() else repr(text)[1:-1]
    return visible if len(visible) <= _LONGEST else f"{visible[:_LONGEST]}… ({len(text):,} characters)"
