"""A command whose data path is an address of an object store: it works in a folder, and never knows.

``data_path=s3://BUCKET/PREFIX``, or ``CHALLENGE_DATA_PATH``: the command line that the command sees has the folder in
the address' place, and what it says on the terminal has the address in the folder's.
"""

import logging
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from ubp.blocks.registry import entries, with_what_they_read
from ubp.data.paths import DATA_PATH, REPOSITORY
from ubp.io.errors import UserError
from ubp.io.faults import KEPT
from ubp.io.files import digest_of
from ubp.io.remote import Moved, Workspace
from ubp.io.s3 import SCHEME, S3Folder

CACHE_PATH: Final = "CHALLENGE_CACHE_PATH"  # in the environment: where folders and contents lie on this machine
_SETTING: Final = "data_path="
_ONLY_SAID: Final = ("--cfg", "-c", "--info", "-i", "--hydra-help", "--version")  # with these nothing is run
# Settings that change nothing of what a command makes: given again with others, it goes on in the same folder.
_NO_OTHER_COMMAND: Final = ("data_path", "engine", "overwrite", "cuda_visible_devices")
_OF_BLOCKS: Final = ("models", "embeddings_local", "embeddings_submit", "logs")  # folders that have blocks by name
_OF_NO_BLOCK: Final = ("ablations", "encoded", "exported", "neighbours", "profiles", "reports")  # no block reads these

_open: list[Workspace] = []  # the one that this process works in


def asked_data_path(words: Sequence[str]) -> str:
    """The data path of a command line, or of the environment; read without a config."""
    given = [word.partition("=")[2].strip("'\"") for word in words if word.startswith(_SETTING)]
    return given[-1] if given else os.environ.get(DATA_PATH, "data")


def require_folder(data_path: str) -> None:
    """Refuse an address where a folder is needed.

    Raises:
        UserError: it is one, of a store that is not known or given where it is not read.
    """
    if "://" in data_path:
        raise UserError(
            f"data_path={data_path}: an address is read on the command line (data_path={SCHEME}BUCKET/PREFIX) or in "
            f"{DATA_PATH}, of {SCHEME} alone; elsewhere name a folder"
        )


def require_no_address(data_path: str) -> None:
    """Refuse to cut one command's work into parts for other machines, which lie in a folder of this one.

    Raises:
        UserError: it does: the data path is in an object store.
    """
    if not is_shared(data_path):
        raise UserError(
            f"data_path={address_of(data_path)}: with engine=ray the parts of this command lie in a folder that all "
            "nodes share; name one, or give engine=local"
        )


def is_shared(data_path: str) -> bool:
    """Whether other machines may see it: a folder, and none that stands for an address on this one."""
    return address_of(data_path) == data_path


@contextmanager
def at_hand(words: Sequence[str], say: Callable[[str], None]) -> Iterator[list[str]]:
    """Yield the command line as it is to be read: where the data path is an address, with a folder in its place.

    When the block ends, also by an exit code, what it made is written back; not where it was interrupted or crashed.

    Args:
        words: of the command line, the script first.
        say: prints a line.

    Raises:
        UserError: the store does not answer or refuses, or others wrote the same files meanwhile.
    """
    address = asked_data_path(words[1:])
    if not address.startswith(SCHEME) or set(_ONLY_SAID) & set(words):
        yield list(words)
        return
    folder = S3Folder(address)
    place = Workspace(folder, _home(), _name(words), needed_by(words))
    with ExitStack() as held:
        with _heard():
            held.enter_context(place.held())
            _say_moved(place.fetch(), folder.address, "fetched", say)
        _open.append(place)
        try:
            yield _with_folder(words, place)
        except SystemExit as exit_:
            if exit_.code not in (None, 0):
                if exit_.code != 130:
                    place.publish()
                raise
            _finish(place)
            raise
        else:
            _finish(place)
        finally:
            _open.remove(place)


@contextmanager
def _heard() -> Iterator[None]:
    """Lines of the log on stderr, such as for whom this waits: Hydra has not set up the log yet."""
    library, handler = logging.getLogger("ubp"), logging.StreamHandler()
    level = library.level
    library.addHandler(handler)
    library.setLevel(logging.INFO)
    try:
        yield
    finally:
        library.removeHandler(handler)
        library.setLevel(level)


def _finish(place: Workspace) -> None:
    place.publish()
    place.remove()


def refresh() -> None:
    """Have what other commands wrote meanwhile; nothing where the data path is a folder."""
    for place in _open:
        place.publish()
        place.fetch()


def shown(line: str) -> str:
    """A line as a user reads it: with the address in the place of the folder that stands for it."""
    for place in _open:
        if KEPT in line:  # of a full disk, which is this machine's
            continue
        for name, kept in place.kept.items():
            line = line.replace(str(place.root / name), str(kept))
        line = re.sub(rf"{re.escape(str(place.root))}(?=$|[^\w.-])", place.folder.address, line)
    return line


def as_given(words: Sequence[str]) -> list[str]:
    """Words of this command's line for another command: with the address, for which that has a folder of its own."""
    for place in _open:
        words = [word.replace(str(place.root), place.folder.address) for word in words]
    return list(words)


def address_of(data_path: str) -> str:
    """The data path as another command is told it."""
    return next((place.folder.address for place in _open if data_path == str(place.root)), data_path)


def _home() -> Path:
    """Where folders and contents lie on this machine."""
    if given := os.environ.get(CACHE_PATH):
        return Path(given).absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ubp"


def _name(words: Sequence[str]) -> str:
    """Of the folder of a command: the same for the same command, so that it goes on where it was killed."""
    own = sorted(word for word in words[1:] if word.lstrip("+").partition("=")[0] not in _NO_OTHER_COMMAND)
    return f"{Path(words[0]).stem}-{digest_of(*own)[:8]}"


def _with_folder(words: Sequence[str], place: Workspace) -> list[str]:
    others = [word for word in words[1:] if not word.startswith(_SETTING)]
    localised = [
        re.sub(rf"{re.escape(place.folder.address)}(?=$|/)", lambda _: str(place.root), word) for word in others
    ]
    return [words[0], *localised, f"{_SETTING}{place.root}"]


def needed_by(words: Sequence[str]) -> Callable[[str], bool]:
    """Which paths a command may need: one that makes a block none of other blocks than it reads, or was told.

    Args:
        words: of its command line, the script first.
    """
    script = Path(words[0]).resolve()
    own = {entry.name for entry in entries() if entry.is_block and REPOSITORY / entry.command == script}
    if not own:
        return lambda _: True
    known = {entry.name for entry in entries() if entry.is_block}
    read = {entry.name for entry in with_what_they_read(own)}
    told = {name for name in known if any(name in word for word in words[1:])}
    others = known - own - read - told

    def needed(path: str) -> bool:
        first, *rest = path.split("/")
        if first in _OF_NO_BLOCK:
            return False
        if first not in _OF_BLOCKS:
            return True
        names = [part.partition(".")[0] for part in rest]  # of folders, parquets, scores and notes
        return not (others & set(names))

    return needed


def _say_moved(moved: Moved, address: str, what: str, say: Callable[[str], None]) -> None:
    if moved.files:
        say(f"{address} · {moved.files:,} files, {moved.size / 1e6:,.1f} MB {what}")
