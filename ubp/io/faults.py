"""What a disk refuses: no room, no permission. Said in one line, whichever library met it and however it says so."""

import errno
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Final

from ubp.io.errors import UserError

_ROOM: Final = "make room, or choose another disk with data_path=FOLDER; give the command again"
_RIGHT: Final = "have it opened to you, or choose another folder with data_path=FOLDER; give the command again"
_FAULTS: Final = {
    errno.ENOSPC: ("no space left on the disk", _ROOM),
    errno.EDQUOT: ("your quota of the disk is used up", _ROOM),
    errno.EFBIG: ("the file would be larger than the system allows (ulimit -f)", "raise it; give the command again"),
    errno.EROFS: ("the disk can only be read", _RIGHT),
    errno.EACCES: ("no permission", _RIGHT),
    errno.EPERM: ("no permission", _RIGHT),
}
# How libraries in other languages say it, whose errors have no number.
_WORDS: Final = {
    "no space left on device": errno.ENOSPC,
    "disk quota exceeded": errno.EDQUOT,
    "file too large": errno.EFBIG,
    "read-only file system": errno.EROFS,
    "permission denied": errno.EACCES,
}
_FULL: Final = 2**16  # free bytes; with fewer, an error while writing comes from that, whatever it says
KEPT: Final = "what was finished before is kept"


def refusal(error: BaseException, path: Path) -> UserError | None:
    """The line for an error that a disk gave while a path was written; None for an error of another kind.

    Args:
        error: of Python, numpy, Polars, Arrow, torch or another library.
        path: what was to be written. An error that names a file speaks of that one: of a full disk only one below the
            path, as libraries first write elsewhere.
    """
    if isinstance(error, UserError):
        return None
    number = _number(error)
    if number is None and isinstance(error, (OSError, RuntimeError)) and _is_full(path):
        number = errno.ENOSPC
    if number is None:
        return None
    named = getattr(error, "filename", None)
    if isinstance(named, (str, Path)) and (_FAULTS[number][1] == _RIGHT or Path(named).is_relative_to(path)):
        path = Path(named)
    return _line(path, number)


def no_room(path: Path) -> UserError | None:
    """The line for a disk that is full where a path lies; None where it has room."""
    return _line(path, errno.ENOSPC) if _is_full(path) else None


def _line(path: Path, number: int) -> UserError:
    what, advice = _FAULTS[number]
    return UserError(f"{path}: {what}; {advice}; {KEPT}")


def _number(error: BaseException | None) -> int | None:
    """The system's number of an error, or of the one that it came from."""
    seen = set[int]()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, OSError) and error.errno in _FAULTS:
            return error.errno
        text = str(error).lower()
        for words, number in _WORDS.items():
            if words in text:
                return number
        error = error.__cause__ or error.__context__
    return None


def _is_full(path: Path) -> bool:
    for folder in path.parents:
        with suppress(OSError):
            return shutil.disk_usage(folder).free < _FULL
    return False
