"""The error that a user can act on."""

from collections.abc import Sequence


class UserError(Exception):
    """Something in the user's data, files or command line is wrong.

    Each message is one clear line: which file, which column, how many rows, the first example, what to
    do. Commands print the lines and exit with 1, without a traceback (`ubp.run.command`).
    """

    def __init__(self, messages: str | Sequence[str]) -> None:
        self.messages = [messages] if isinstance(messages, str) else list(messages)
        super().__init__("\n".join(self.messages))


def require(holds: bool, setting: str, value: object, what: str) -> None:
    """Refuse a setting that makes no sense.

    Raises:
        UserError: it does not hold.
    """
    if not holds:
        raise UserError(f"{setting}={value}: must be {what}")


def name_some(names: Sequence[object], at_most: int = 12) -> str:
    """Names in one line, the tail as a count: ``a, b, c and 4 more``."""
    shown = ", ".join(str(name) for name in names[:at_most])
    return f"{shown} and {len(names) - at_most} more" if len(names) > at_most else shown
