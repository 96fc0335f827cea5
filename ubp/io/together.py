"""Several files that change all at once, or not at all, also where the process is killed in between.

The new files are written to a folder beside the old ones. When all of them are there, a list of them is written, and
from then on they count: `finish` puts them in place, however often it is interrupted. Whoever reads such files calls it
first.
"""

import json
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from ubp.io.faults import refusal
from ubp.io.files import atomic_write, flush, locked

logger = logging.getLogger(__name__)

_LIST: Final = "complete.json"
_WRITTEN, _REMOVED = "written", "removed"  # keys of the list


@contextmanager
def replaced_together(paths: Sequence[Path], folder: Path, removed: Sequence[Path] = ()) -> Iterator[dict[Path, Path]]:
    """Yield for each of some paths one to write its new file to; in the end those that were written take their places.

    One process at a time may do so with one folder: hold a lock.

    Args:
        paths: files, each of another name, on one file system with the folder.
        folder: removed in the end.
        removed: files that go when the new ones take their places.

    Raises:
        UserError: the disk is full, or may not be written.
    """
    finish(folder)
    shutil.rmtree(folder, ignore_errors=True)
    asides = {path: folder / path.name for path in paths}
    try:
        folder.mkdir(parents=True)
        yield asides
        written = {aside.name: _from(folder, path) for path, aside in asides.items() if aside.exists()}
        for name in written:
            flush(folder / name)
        with atomic_write(folder / _LIST) as aside:
            aside.write_text(json.dumps({_WRITTEN: written, _REMOVED: [_from(folder, path) for path in removed]}))
    except BaseException as error:
        last = next((path for path, aside in reversed(asides.items()) if aside.exists()), folder.parent)
        shutil.rmtree(folder, ignore_errors=True)
        if (refused := refusal(error, last)) is not None:
            raise refused from error
        raise
    finish(folder)


def _from(folder: Path, path: Path) -> str:
    """A path from a folder on: it is the same where both are moved, or seen from another container."""
    return os.path.relpath(path.resolve(), folder.resolve())


def finish(folder: Path) -> bool:
    """Put files in place that a killed process had written all of, and remove what it left.

    Where a living one puts them in place, wait for it.

    Returns:
        Whether there were such files.
    """
    file = folder / _LIST
    if not file.exists():
        return False
    with locked(folder.parent / ".done" / f"{folder.name}.lock", f"the files of {folder.parent}"):
        if not file.exists():  # the other one did
            return True
        logger.info("%s: putting the new files in place", folder.parent)
        listed = json.loads(file.read_text())
        for name, place in listed[_WRITTEN].items():
            path = (folder / place).resolve()
            path.parent.mkdir(parents=True, exist_ok=True)
            if (folder / name).exists():  # else it is in its place already
                (folder / name).replace(path)
                flush(path.parent)
        for place in listed[_REMOVED]:
            (folder / place).resolve().unlink(missing_ok=True)
        # The list goes first: half a folder without it is litter, half a folder with it would be an error.
        file.unlink()
        shutil.rmtree(folder, ignore_errors=True)
    return True
