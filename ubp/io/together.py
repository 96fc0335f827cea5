"""Several files that change all at once, or not at all, also where the process is killed in between.

The new files are written to a folder beside the old ones. When all of them are there, a list of them is written, and
from then on they count: `finish` puts them in place, however often it is interrupted.
"""

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from ubp.io.files import atomic_write, flush

_LIST: Final = "complete.json"


@contextmanager
def replaced_together(paths: Sequence[Path], folder: Path) -> Iterator[dict[Path, Path]]:
    """Yield for each of some paths one to write its new file to; in the end those that were written take their places.

    One process at a time may do so with one folder: hold a lock, and call `finish` first.

    Args:
        paths: files, each of another name, on one file system with the folder.
        folder: removed in the end.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    asides = {path: folder / path.name for path in paths}
    try:
        yield asides
        written = {aside.name: str(path.resolve()) for path, aside in asides.items() if aside.exists()}
        for name in written:
            flush(folder / name)
        with atomic_write(folder / _LIST) as aside:
            aside.write_text(json.dumps(written))
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    finish(folder)


def finish(folder: Path) -> bool:
    """Put files in place that a killed process had written all of, and remove what it left.

    Returns:
        Whether there were such files.
    """
    file = folder / _LIST
    complete = file.exists()
    if complete:
        for name, path in json.loads(file.read_text()).items():
            if (folder / name).exists():  # else it is in its place already
                (folder / name).replace(path)
                flush(Path(path).parent)
    shutil.rmtree(folder, ignore_errors=True)
    return complete
