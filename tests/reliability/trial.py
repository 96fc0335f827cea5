"""How a command that was given a bad input must end: in a right result, or in lines and exit code 1.

Everything else fails: an exception, a command that does not end, half a file, a file aside, another file than the
command's own that changed.
"""

import importlib
import re
import resource
import shutil
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from os import link
from pathlib import Path
from typing import Final

import pytest

from tests.calls import called

REMOVED, FOLDER = None, "folder"  # in a mutation: the file is not there, or a folder is in its place
Content = bytes | str | None  # of a mutated file: bytes, or one of the two

SECONDS: Final = 120  # of a processor's time, after which a command hangs
WAITING: Final = 900  # seconds, whether it does something or not
MEMORY: Final = 24 * 2**30  # of addresses: what asks for more is refused, as by a machine that has no more
_ERROR: Final = "error: "
_LITTER: Final = re.compile(r"\.\d+\.")
_OWN: Final = ("cache", "hydra")  # folders under the data path that hold nothing that anybody made


class Hangs(BaseException):
    """A command does not end."""


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Attributes:
        code: 0, 1, or 4: too few events for it.
        lines: why, without ``error:``; none for code 0.
        out: what it printed.
    """

    code: int
    lines: list[str]
    out: str

    @property
    def refused(self) -> bool:
        return self.code != 0


class Trials:
    """Data paths of one sort, each a copy of the first with something else wrong; and commands that are run on them.

    Args:
        base: a data path, left as it is.
        folder: for the copies.
        monkeypatch: see `tests.calls.called`.
        capfd: takes what is said, by libraries too.
    """

    def __init__(
        self, base: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        self.base, self.folder, self.beside = base, folder, set[Path]()
        self._monkeypatch, self._capfd = monkeypatch, capfd

    @contextmanager
    def copy(self, changed: Mapping[str, Content]) -> Iterator[Path]:
        """A copy of the base in which some files have another content."""
        root = self.folder / "data"
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(self.base, root, copy_function=link, ignore=shutil.ignore_patterns("hydra"))
        for name, content in changed.items():
            put(root / name, content)
        yield root
        shutil.rmtree(root)

    def run(self, root: Path, words: Sequence[str]) -> Ended:
        """A command on a data path; see this module for what is an error."""
        before, beside = contents(root), set(root.parent.iterdir())
        self._monkeypatch.chdir(root.parent)
        ended = self.call([*words, f"data_path={root}"])
        after = contents(root)
        self.beside = set(root.parent.iterdir()) - beside
        for path in self.beside:
            put(path, REMOVED)
        if ended.refused and self.beside:
            raise AssertionError(f"beside the data path: {self.beside}")
        if litter := [path for path in after if _LITTER.match(path.name)]:
            raise AssertionError(f"files aside: {litter}")
        if ended.refused and before != after:
            raise AssertionError(f"{ended.lines}, but changed: {sorted(set(before.items()) ^ set(after.items()))[:4]}")
        return ended

    def call(self, words: Sequence[str]) -> Ended:
        """A command: its script, and the rest of the command line."""
        program, *rest = words
        module = importlib.import_module(program.removesuffix(".py").replace("/", "."))
        try:
            with _bounded():
                code, out, err = called(module, rest, self._monkeypatch, self._capfd)
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            raise AssertionError(f"{type(error).__name__}: {str(error)[:600]}") from error
        return Ended(code, _lines(code, err), out)


def put(path: Path, content: Content) -> None:
    """Give a file another content; it is no longer the one that the base has."""
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    if content == FOLDER:
        path.mkdir(parents=True)
    elif isinstance(content, bytes):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def contents(root: Path) -> dict[Path, tuple[int, int]]:
    """What tells the files of a data path from others; those that hold nothing that anybody made left out."""
    found = {}
    for path in root.rglob("*"):
        known = path.relative_to(root)
        if path.is_file() and known.parts[0] not in _OWN and path.suffix != ".lock":
            stat = path.stat()
            found[known] = stat.st_ino, stat.st_mtime_ns
    return found


def _lines(code: int, err: list[str]) -> list[str]:
    """The error lines of a command that failed as it should; they come last."""
    if noise := [line for line in err if "Traceback" in line]:
        raise AssertionError(f"said: {noise}")
    first = next((place for place, line in enumerate(err) if line.startswith(_ERROR)), len(err))
    lines = err[first:]
    if code not in (0, 1, 4) or bool(code) != bool(lines) or not all(line.startswith(_ERROR) for line in lines):
        raise AssertionError(f"exit code {code}, said: {err[-6:]}")
    return [line.removeprefix(_ERROR) for line in lines]


@contextmanager
def _bounded() -> Iterator[None]:
    """Time and memory of a trial."""

    def stop(*_: object) -> None:
        raise Hangs(f"not over after {SECONDS} s of work, or {WAITING} s")

    handlers = {number: signal.signal(number, stop) for number in (signal.SIGALRM, signal.SIGPROF)}
    limits = resource.getrlimit(resource.RLIMIT_AS)
    signal.alarm(WAITING)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, limits[1]))
    try:
        yield
    finally:
        signal.alarm(0)
        signal.setitimer(signal.ITIMER_PROF, 0)
        resource.setrlimit(resource.RLIMIT_AS, limits)
        for number, handler in handlers.items():
            signal.signal(number, handler)


def all_end_well(trials: Mapping[str, Callable[[], None]]) -> None:
    """Run trials by their descriptions; all faults are listed, with which trial it was.

    Raises:
        AssertionError: one of them does not end as it should.
    """
    faults = []
    for what, trial in trials.items():
        try:
            trial()
        except AssertionError as error:
            faults.append(f"{what}: {error}")
    assert not faults, f"{len(faults)} of {len(trials)}:\n" + "\n".join(faults)
