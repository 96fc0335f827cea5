"""Commands in processes of their own, killed at moments of all kinds, and what then lies on the data path.

A kill is a SIGKILL to all of a command's processes: before a step on disk by its number (`steps.sitecustomize`), a few
milliseconds after one, so that it falls within what Polars or Arrow write by themselves, or at any time.
"""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from ubp.data.paths import REPOSITORY
from ubp.io.files import fingerprint

STEPS = Path(__file__).parent / "steps"
LONGEST = 900  # seconds that a command may take, beside others that leave it a tenth of a core
_COST = {"cost", "seconds", "megabytes"}  # keys of what a run says of itself: no two runs have the same


@dataclass(frozen=True)
class Moment:
    """When a command is killed.

    Attributes:
        step: before this step on disk, from 1; 0 for none.
        seconds: after that step, or after the start where there is none; None: at the step itself.
    """

    step: int = 0
    seconds: float | None = None


@dataclass(frozen=True)
class Done:
    """What a command left: its exit code, -9 where it was killed; what it said; its steps on disk; its seconds."""

    code: int
    out: str
    err: str
    steps: int
    seconds: float

    @property
    def killed(self) -> bool:
        return self.code == -signal.SIGKILL


def environment_of(root: Path) -> dict[str, str]:
    """The variables of a command on a data path."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return kept | {"CHALLENGE_DATA_PATH": str(root), "OMP_NUM_THREADS": "1", "POLARS_MAX_THREADS": "2"}


def run(root: Path, words: Sequence[str], moment: Moment | None = None, **environment: str) -> Done:
    """A command of the project, its steps counted, killed at a moment or not.

    Args:
        root: the data path.
        words: script and arguments.
        moment: None: never.
        environment: further variables.
    """
    running = Running(root, words, moment, environment)
    if moment and moment.seconds is not None:
        running.kill_after(moment.step, moment.seconds)
    return running.done()


class Running:
    """A command that runs; see `run`."""

    def __init__(
        self,
        root: Path,
        words: Sequence[str],
        moment: Moment | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._folder = Path(mkdtemp(dir=root.parent, prefix="said-"))
        self._counter = self._folder / "steps"
        self._counter.write_bytes(b"")
        program, *arguments = words
        variables = environment_of(root) | {
            "PYTHONPATH": str(STEPS),
            "STEPS_BELOW": str(root),
            "STEPS_COUNTED": str(self._counter),
            "STEPS_KILL_AT": str(moment.step if moment and moment.seconds is None else 0),
            **(environment or {}),
        }
        self._began = time.monotonic()
        with (self._folder / "out").open("w") as out, (self._folder / "err").open("w") as err:
            self._process = subprocess.Popen(
                [sys.executable, str(REPOSITORY / program), *arguments],
                cwd=REPOSITORY, env=variables, stdout=out, stderr=err, start_new_session=True,
            )  # fmt: skip

    def kill_after(self, step: int, seconds: float) -> None:
        """Kill the command some seconds after a step; not at all where it ends before."""
        while step and self._counter.stat().st_size < step:
            if self._process.poll() is not None:
                return
            time.sleep(0.0005)
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            _kill(self._process.pid)

    def done(self) -> Done:
        """What it left, when it has ended."""
        try:
            code = self._process.wait(LONGEST)
        finally:
            _kill(self._process.pid)
            self._process.wait()
        seconds = time.monotonic() - self._began
        out, err = ((self._folder / name).read_text() for name in ("out", "err"))
        steps = self._counter.stat().st_size
        shutil.rmtree(self._folder)
        return Done(code, out, err, steps, seconds)


def _kill(group: int) -> None:
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        return


def moments(count: int, steps: int, seconds: float, draw: random.Random) -> Iterator[Moment]:
    """Moments for some kills: two of three at steps, all over them, the rest at times, most after the imports.

    Args:
        count: of kills.
        steps: that an undisturbed run makes.
        seconds: that it takes.
        draw: of random numbers.
    """
    at_steps = count - count // 3 if steps else 0
    places = [1 + int((place + draw.random()) * steps / at_steps) for place in range(at_steps)]
    found = [Moment(place, draw.choice([None, None, draw.expovariate(200.0)])) for place in places]
    shares = [draw.random() if draw.random() < 0.2 else 0.35 + 0.65 * draw.random() for _ in range(count - at_steps)]
    found += [Moment(0, share * seconds) for share in shares]
    draw.shuffle(found)
    yield from found


def require_one_line(done: Done, most: int = 1) -> str:
    """The only error line of a command that failed as it should: its last; or some lines, where it has commands run."""
    assert done.code == 1, (done.out, done.err)
    assert "Traceback" not in done.err, done.err
    lines = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert 1 <= len(lines) <= most, done.err
    assert done.err.splitlines()[-len(lines) :] == lines, done.err
    return "\n".join(lines)


# --- what lies there --------------------------------------------------------------------------------------------------

Content = dict[str, str]
BEGUN = json.dumps({"outputs": {}})  # a note of what is not finished


def content(root: Path) -> Content:
    """What lies on a data path, by the files' paths: what a run says of its own cost is left out, and locks, and logs.

    Of checkpoints only the names count: they hold how often a run was taken up.
    """
    found = Content()
    for file in sorted(root.rglob("*")):
        name = file.relative_to(root)
        if file.is_file() and "hydra" not in name.parts and file.suffix != ".lock":
            found[str(name)] = _content(file, name)
    return found


def _content(file: Path, name: Path) -> str:
    if name.parts[:2] == ("cache", "runs"):
        return "a checkpoint"
    if file.suffix == ".csv":  # a table, which may grow
        return file.read_bytes().decode()
    if file.suffix != ".json":
        return fingerprint(file)
    try:
        values = _without_cost(json.loads(file.read_text()))
    except ValueError:
        assert LEFT_ASIDE.search(str(name)), name  # only what was killed while it was written aside is no JSON
        return fingerprint(file)
    if ".done" in name.parts:  # the fingerprint of a folder is also of its cost
        values["outputs"] = {key: value for key, value in values.get("outputs", {}).items() if "." in key}
    return json.dumps(values, sort_keys=True)


def _without_cost(values: Any) -> Any:
    if isinstance(values, dict):
        # A fitted block's digest of its own note covers the cost in it.
        left_out = _COST | ({"digest"} if "lineage" in values else set())
        return {key: _without_cost(value) for key, value in values.items() if key not in left_out}
    return [_without_cost(value) for value in values] if isinstance(values, list) else values


def copy(source: Path, target: Path) -> None:
    """A data path as another one, by hard links: what is replaced in the one stays in the other."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target, copy_function=os.link, ignore=shutil.ignore_patterns("hydra", "*.lock"))


LEFT_ASIDE = re.compile(
    r"(^|/)\.\d+-[0-9a-f]+(-old)?\.|-holder$|(^|/)parts(/|$)|^cache/import_log(/|$)|^raw/\.day(/|$)"
)


def litter(root: Path) -> list[str]:
    """What lies there that a command makes for a while only."""
    return [name for name in content(root) if LEFT_ASIDE.search(name)]


def require_whole(found: Content, old: Content, wanted: Content, when: object) -> None:
    """What lay there before, or lies there in the end, is the one or the other; a note may say that it was begun.

    A table that gets its rows one by one may have some of them, each whole.
    """
    for name in found.keys() & (old.keys() | wanted.keys()):
        if found[name] != BEGUN and not _has_some_rows(name, found[name], old.get(name, ""), wanted.get(name, "")):
            assert found[name] in (old.get(name), wanted.get(name)), (name, when)
    for name in old.keys() & wanted.keys():
        assert name in found, (name, when)


def _has_some_rows(name: str, found: str, old: str, wanted: str) -> bool:
    is_between = found.startswith(old) and wanted.startswith(found)
    return name.endswith(".csv") and is_between and found.endswith("\n")


def differences(found: Content, wanted: Content) -> list[str]:
    """A line for each file that is another, is missing, or is too many."""
    lines = [f"missing: {name}" for name in wanted.keys() - found.keys()]
    lines += [f"too many: {name}" for name in found.keys() - wanted.keys()]
    for name in sorted(wanted.keys() & found.keys()):
        if found[name] != wanted[name]:
            lines.append(f"another: {name}: {found[name][:300]} instead of {wanted[name][:300]}")
    return lines
