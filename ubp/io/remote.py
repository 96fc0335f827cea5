"""A data path in an object store: worked on in a folder of this machine, and written back as one state.

Below the address lie, in ``.ubp/``, objects that are written once and never changed, and one manifest that says which
of them is which file. A command takes the manifest of one moment, works in a folder that has its files, uploads what
it made as new objects, and replaces the manifest last, with one conditional request: others see the old state or the
new one. Objects that the user uploaded beside ``.ubp/``, plain files by name, belong to the state too, as long as the
manifest has none of their path, or once they are newer than what it has.

On this machine the contents lie once, in ``objects/``; folders of commands have hard links to them.
"""

import hashlib
import json
import logging
import os
import random
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path, PurePosixPath
from typing import Final
from uuid import uuid4

from filelock import FileLock, Timeout

from ubp.io.errors import UserError, name_some
from ubp.io.files import atomic_write, digest_of, locked
from ubp.io.s3 import ObjectFolder

logger = logging.getLogger(__name__)

FOLDER: Final = ".ubp"
MANIFEST: Final = f"{FOLDER}/manifest.json"
OBJECTS: Final = f"{FOLDER}/objects"
_VERSION: Final = 1  # of the manifest's form
_HERE: Final = ("cache", "hydra")  # folders of a data path that stay on this machine: what can be made again, and logs
_LEFT: Final = re.compile(r"\.\d+-[0-9a-f]+([-.]old)?[-.].*|\.new|.*\.lock|.*\.lock-holder")  # what is made for a while
_TRIES: Final = 20  # to take a state, or to write one, while others write theirs
_PAUSE: Final = 0.2  # seconds between them, at most
_TRANSFERS: Final = 8  # at once
_LITTER: Final = timedelta(days=1)  # after which an object that no manifest lists is no longer being written
_UNUSED: Final = 3600  # seconds after which a content on this machine that nobody has is removed
_FORGOTTEN: Final = 30 * 86400  # likewise the folder of a command that failed and was not given again
_COPIED: Final = 2**20  # bytes; smaller files are copied: whoever appends to one changes no other's
_AS_STORED: Final = 10**18  # modification time, in ns, of contents: one that was written to has another


@dataclass(frozen=True)
class Entry:
    """What a manifest says of a path.

    Attributes:
        object: name of its object, ``SHA256-RANDOM``; None: a plain file that was removed.
        size: bytes.
        over: ETag of the plain file in whose place it stands; None where there was none.
    """

    object: str | None
    size: int
    over: str | None

    @property
    def digest(self) -> str | None:
        """SHA-256 of the content."""
        return self.object and self.object.partition("-")[0]


@dataclass(frozen=True)
class Content:
    """Where the content of a file lies in the store.

    Attributes:
        identity: tells one content from another: SHA-256, or of a plain file a digest of ETag and size.
        size: bytes.
        key: of the object.
        etag: of a plain file, that has to be this one; None for an object that never changes.
    """

    identity: str
    size: int
    key: str
    etag: str | None


@dataclass(frozen=True)
class Moved:
    """What went over the network: files, and their bytes."""

    files: int
    size: int


@dataclass(frozen=True)
class State:
    """A data path at one moment.

    Attributes:
        entries: the manifest's, by path.
        plain: ETag and size of what lies beside ``.ubp/``, by path.
        etag: of the manifest; None where there is none yet.
    """

    entries: Mapping[str, Entry]
    plain: Mapping[str, tuple[str, int]]
    etag: str | None

    @property
    def files(self) -> dict[str, Content]:
        """Every file by its path: the manifest's, and plain ones that it has not, or that are newer."""
        found = {
            path: Content(str(entry.digest), entry.size, f"{OBJECTS}/{entry.object}", None)
            for path, entry in self.entries.items()
            if entry.object is not None
        }
        for path, (etag, size) in self.plain.items():
            if path not in self.entries or self.entries[path].over != etag:
                found[path] = Content(digest_of(etag, size), size, path, etag)
        return found


class Clash(UserError):
    """Another command wrote the same files meanwhile."""


def state_of(folder: ObjectFolder) -> State:
    """The state of now.

    Raises:
        UserError: the store does not answer, or its manifest cannot be read.
    """
    entries, etag = _manifest(folder)
    return State(entries, {key: (each.etag, each.size) for key, each in folder.listed().items() if _is_file(key)}, etag)


def _manifest(folder: ObjectFolder) -> tuple[dict[str, Entry], str | None]:
    """The manifest's entries and its ETag; none and None where there is no manifest yet.

    Raises:
        UserError: it is none.
    """
    if (found := folder.read(MANIFEST)) is None:
        return {}, None
    content, etag = found
    try:
        read = json.loads(content)
        if read["version"] != _VERSION:
            raise UserError(
                f"{folder.address}/{MANIFEST}: of version {read['version']}, which this code does not know; update it"
            )
        entries = {str(path): Entry(**entry) for path, entry in read["files"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{folder.address}/{MANIFEST}: is no manifest ({error}); restore an earlier version of it"
        ) from error
    if wrong := [path for path in entries if not _is_file(path)]:
        raise UserError(
            f"{folder.address}/{MANIFEST}: {wrong[0]!r} is no path below the data path; restore an earlier version"
        )
    return entries, etag


def _is_file(path: str) -> bool:
    """Whether a path is one of a file below the data path that belongs to its state."""
    parts = path.split("/")
    return parts[0] not in (*_HERE, FOLDER) and not any(
        part in ("", ".", "..") or "\\" in part or "\0" in part or _LEFT.fullmatch(part) for part in parts
    )


def _json_of(entries: Mapping[str, Entry]) -> bytes:
    files = {path: asdict(entry) for path, entry in sorted(entries.items())}
    return f"{json.dumps({'version': _VERSION, 'files': files}, indent=1)}\n".encode()


@dataclass(frozen=True)
class _Base:
    """What a folder of a command was made from.

    Attributes:
        files: what identified each file of the state, by path.
        fetched: of each file that was put here: what identifies it, and its stamp then.
    """

    files: dict[str, str]
    fetched: dict[str, tuple[str, list[int]]]

    @classmethod
    def read(cls, file: Path) -> "_Base | None":
        """The one that was written; None where there is none."""
        try:
            return cls(**json.loads(file.read_text()))
        except (FileNotFoundError, ValueError, TypeError):
            return None

    def write(self, file: Path) -> None:
        with atomic_write(file) as aside:
            aside.write_text(json.dumps(asdict(self)))


class Workspace:
    """A folder of this machine that has the files of a data path in an object store.

    Args:
        folder: of the store.
        home: for everything of this machine.
        name: of the command that works in it.
        wanted: whether a path may be needed; others are not fetched.

    Attributes:
        root: the data path of this machine, called like the store's.
        kept: by name the folders of it that stay on this machine, for all commands.
    """

    def __init__(self, folder: ObjectFolder, home: Path, name: str, wanted: Callable[[str], bool]) -> None:
        self.folder, self._wanted = folder, wanted
        self._home = home / digest_of(folder.address)[:16]
        self._contents, self._work = self._home / "objects", self._home / "work" / name
        self.root = self._work / PurePosixPath(folder.address).name
        self.kept = {name: self._home / name for name in _HERE}
        self._base_file = self._work / "base.json"

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep others of this machine out of it; wait where one is in it."""
        with locked(self._work.with_name(f"{self._work.name}.lock"), f"the same in {self.folder.address}"):
            yield

    def fetch(self) -> Moved:
        """Have the files of the state of now here.

        What the last command here made and could not write back is kept, unless another one wrote the same files.

        Raises:
            UserError: the store does not answer, or changes again and again.
        """
        for _ in range(_TRIES):
            if (moved := self._take(state_of(self.folder))) is not None:
                return moved
            time.sleep(random.uniform(0, _PAUSE))  # noqa: S311
        raise UserError(f"{self.folder.address}: changes again and again while it is read; give the command again")

    def publish(self) -> Moved:
        """Write back what is new, changed or removed here: new objects first, the manifest last.

        Where others wrote meanwhile, both changes stand if they are of different files.

        Raises:
            Clash: they are not; nothing is written.
            UserError: the store does not answer or refuses.
        """
        base = _Base.read(self._base_file) or _Base({}, {})
        changes = {path: digest for path, digest in self._digests(base).items() if digest != base.files.get(path)}
        if not changes:
            return Moved(0, 0)
        sizes = {path: (self.root / path).stat().st_size for path, digest in changes.items() if digest is not None}
        sent = dict[str, str]()
        for _ in range(_TRIES):
            state = state_of(self.folder)
            self._require_no_clash(state, base, changes)
            held = {str(entry.digest): entry.object for entry in state.entries.values() if entry.object} | sent
            new = {path: digest for path, digest in changes.items() if digest is not None and digest not in held}
            sent |= self._send(new)
            changed = _changed(state, changes, sizes, held | sent)
            if changed == state.entries or self.folder.write(MANIFEST, _json_of(changed), state.etag):
                self._settle(base, changed, changes)
                self._remove_litter(changed)
                return Moved(len(sent), sum(sizes[path] for path in _firsts(changes, sent)))
            time.sleep(random.uniform(0, _PAUSE))  # noqa: S311
        raise UserError(f"{self.folder.address}: others write there again and again; give the command again")

    def remove(self) -> None:
        """Remove the folder: all that it has is in the store, and its contents are still on this machine."""
        shutil.rmtree(self._work, ignore_errors=True)

    # Taking a state

    def _take(self, state: State) -> Moved | None:
        """Have a state's files here; None where one of them is no longer in the store."""
        files, base = state.files, _Base.read(self._base_file)
        now = {path: content.identity for path, content in files.items()}
        changed = self._changed(base) if base else {}
        if base is None or any(now.get(path) != base.files.get(path) for path in changed):
            if changed:
                logger.warning(
                    "%s: %s changed there since; what was made here and not written back is dropped",
                    self.folder.address, name_some(sorted(changed), 3),
                )  # fmt: skip
            shutil.rmtree(self.root, ignore_errors=True)
            base, changed = _Base({}, {}), {}
        self._begin()
        wanted = {path: files[path] for path in files if self._wanted(path) and path not in changed}
        had = {path for path in wanted if path in base.fetched and base.fetched[path][0] == now[path]}
        missing = {each.identity: each for path, each in wanted.items() if path not in had and not self._has(each)}
        if not self._download(missing.values()):
            return None
        try:
            for path in wanted.keys() - had:
                self._put(wanted[path], self.root / path)
        except FileNotFoundError:  # another command removed the content in between
            return None
        for path in base.fetched.keys() - wanted.keys() - changed.keys():
            self._drop(self.root / path)
        kept = {path: base.fetched[path] for path in changed if path in base.fetched}
        fetched = {path: (now[path], _stamp(self.root / path)) for path in wanted} | kept
        _Base(now, fetched).write(self._base_file)
        self._remove_unused(set(now.values()))
        return Moved(len(missing), sum(each.size for each in missing.values()))

    def _begin(self) -> None:
        self.root.mkdir(parents=True, exist_ok=True)
        for name, place in self.kept.items():
            place.mkdir(parents=True, exist_ok=True)
            if not (self.root / name).is_symlink():
                (self.root / name).symlink_to(place, target_is_directory=True)

    def _content(self, identity: str) -> Path:
        return self._contents / identity[:2] / identity

    def _has(self, content: Content) -> bool:
        """Whether a content is on this machine, as it was stored."""
        try:
            found = self._content(content.identity).stat()
        except FileNotFoundError:
            return False
        return (found.st_size, found.st_mtime_ns) == (content.size, _AS_STORED)

    def _download(self, contents: Iterable[Content]) -> bool:
        """Have contents on this machine; False where one is no longer in the store.

        Raises:
            UserError: an object has not the content that its name says.
        """

        def one(content: Content) -> bool:
            with atomic_write(self._content(content.identity)) as aside:
                if not self.folder.download(content.key, aside, content.etag):
                    raise FileNotFoundError(content.key)
                if content.etag is None and _sha256(aside) != content.identity:
                    raise UserError(
                        f"{self.folder.address}/{content.key}: has not the content that its name says; restore it"
                    )
                os.utime(aside, ns=(_AS_STORED, _AS_STORED))
            return True

        with ThreadPoolExecutor(_TRANSFERS) as pool:
            try:
                return all(pool.map(one, contents))
            except FileNotFoundError:
                pool.shutdown(cancel_futures=True)
                return False

    def _put(self, content: Content, file: Path) -> None:
        """Give a file its content, in the place of what is there."""
        file.parent.mkdir(parents=True, exist_ok=True)
        file.unlink(missing_ok=True)
        _link_or_copy(self._content(content.identity), file, content.size)

    def _drop(self, file: Path) -> None:
        """Remove a file that the state no longer has, and folders that are then empty."""
        file.unlink(missing_ok=True)
        for folder in file.parents:
            if folder == self.root or not folder.is_dir() or any(folder.iterdir()):
                return
            folder.rmdir()

    # What was changed here

    def _paths(self) -> set[str]:
        """Of all files here that belong to a state."""
        found = set[str]()
        for folder, folders, files in os.walk(self.root):
            within = Path(folder).relative_to(self.root)
            at = [(within / name).as_posix() for name in files if not (Path(folder) / name).is_symlink()]
            found.update(path for path in at if _is_file(path))
            folders[:] = [name for name in folders if _is_file((within / name).as_posix())]
        return found

    def _changed(self, base: _Base) -> dict[str, Path | None]:
        """Files that are new or written since they were put here, by path; None for one that was removed."""
        here = self._paths()
        changed: dict[str, Path | None] = dict.fromkeys(base.fetched.keys() - here)
        for path in here:
            if path not in base.fetched or base.fetched[path][1] != _stamp(self.root / path):
                changed[path] = self.root / path
        return changed

    def _digests(self, base: _Base) -> dict[str, str | None]:
        """SHA-256 of what is new or written here, by path; None for what was removed."""
        changed = self._changed(base)
        written = {path: file for path, file in changed.items() if file is not None}
        with ThreadPoolExecutor(_TRANSFERS) as pool:
            return dict.fromkeys(changed) | dict(zip(written, pool.map(_sha256, written.values()), strict=True))

    # Writing a state

    def _require_no_clash(self, now: State, base: _Base, changes: Mapping[str, str | None]) -> None:
        """Refuse where others changed the same files, and not to the same.

        Raises:
            Clash: they did.
        """
        files = {path: content.identity for path, content in now.files.items()}
        if clashes := [path for path in changes if files.get(path) not in (base.files.get(path), changes[path])]:
            raise Clash(
                f"{self.folder.address}: another command wrote {name_some(sorted(clashes), 3)} meanwhile; nothing of "
                "this one is written there; give it again, and it goes on from what there is"
            )

    def _send(self, new: Mapping[str, str]) -> dict[str, str]:
        """Upload contents, each once, and name their objects by digest."""
        firsts = {digest: path for path, digest in new.items()}
        names = {digest: f"{digest}-{uuid4().hex[:12]}" for digest in firsts}

        def one(digest: str) -> None:
            self.folder.upload(self.root / firsts[digest], f"{OBJECTS}/{names[digest]}")

        with ThreadPoolExecutor(_TRANSFERS) as pool:
            list(pool.map(one, names))
        return names

    def _settle(self, base: _Base, entries: Mapping[str, Entry], changes: Mapping[str, str | None]) -> None:
        """Note that what was made here is in the store, and keep its contents."""
        files = dict(base.files)
        fetched = {path: found for path, found in base.fetched.items() if path not in changes}
        for path, digest in changes.items():
            files.pop(path, None)
            if digest is not None:
                files[path] = digest
                content = Content(digest, entries[path].size, "", None)
                if not self._has(content):
                    with atomic_write(self._content(digest)) as aside:
                        _link_or_copy(self.root / path, aside, content.size)
                        os.utime(aside, ns=(_AS_STORED, _AS_STORED))
                fetched[path] = (digest, _stamp(self.root / path))
        _Base(files, fetched).write(self._base_file)

    def _remove_litter(self, entries: Mapping[str, Entry]) -> None:
        """Remove objects that no manifest lists: of commands that were killed, and of earlier states."""
        named = {f"{OBJECTS}/{entry.object}" for entry in entries.values()}
        before = datetime.now(UTC) - _LITTER
        listed = self.folder.listed().items()
        litter = [key for key, each in listed if key.startswith(f"{OBJECTS}/") and each.modified < before]
        try:
            self.folder.remove([key for key in litter if key not in named])
        except UserError as error:  # who may not remove has written all the same
            logger.info("litter stays: %s", error)

    def _remove_unused(self, identities: set[str]) -> None:
        """Remove contents that neither the state nor a folder has, and folders that commands left long ago."""
        now = time.time()
        for file in self._contents.glob("*/*"):
            with suppress(FileNotFoundError):
                found = file.stat()
                if file.name not in identities and found.st_nlink == 1 and now - found.st_ctime > _UNUSED:
                    file.unlink()
        for folder in self._work.parent.iterdir():
            base = folder / self._base_file.name
            if base.exists() and now - base.stat().st_mtime > _FORGOTTEN and folder != self._work:
                with suppress(Timeout), FileLock(folder.with_name(f"{folder.name}.lock")).acquire(blocking=False):
                    shutil.rmtree(folder, ignore_errors=True)


def _changed(
    state: State, changes: Mapping[str, str | None], sizes: Mapping[str, int], objects: Mapping[str, str]
) -> dict[str, Entry]:
    """The entries of a state's manifest with changes.

    Args:
        state: the one that is changed.
        changes: digests by path; None: removed.
        sizes: by path.
        objects: names by digest.
    """
    new, plain = dict(state.entries), state.plain
    for path, digest in changes.items():
        if digest is not None:
            new[path] = Entry(objects[digest], sizes[path], plain[path][0] if path in plain else None)
        elif path in plain:
            new[path] = Entry(None, 0, plain[path][0])
        else:
            new.pop(path, None)
    return new


def _firsts(changes: Mapping[str, str | None], sent: Mapping[str, str]) -> list[str]:
    """One path of each content that was sent."""
    return list({digest: path for path, digest in changes.items() if digest in sent}.values())


def _link_or_copy(source: Path, target: Path, size: int) -> None:
    if size > _COPIED:
        with suppress(OSError):  # a file system without hard links
            target.hardlink_to(source)
            return
    shutil.copyfile(source, target)


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _stamp(file: Path) -> list[int]:
    """Another one after the file was written or replaced."""
    found = file.stat()
    return [found.st_ino, found.st_size, found.st_mtime_ns]
