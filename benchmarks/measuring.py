"""What the benchmarks share: a process run to its end and measured, a table as Markdown, a report's part anew.

Imports nothing heavy: the processes that `benchmarks/scale.py` measures begin with these imports. What trains
models is in `benchmarks.steps`.
"""

import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from ubp.data.paths import REPOSITORY
from ubp.io.errors import UserError
from ubp.io.files import atomic_write

_FAULT = re.compile(r"error: |[\w.]*(Error|Exception)\b")  # a line of ours, or a traceback's last
_TAIL = 30  # lines


def last_word(log: Path) -> str:
    """The line of a failed process' log that says why: its last error, else its last line.

    CUDA's errors end in hints, several lines long.
    """
    lines = log.read_text(errors="replace").strip().splitlines()[-_TAIL:]
    return ([line for line in lines if _FAULT.match(line)] or lines or ["no word"])[-1]


def run_apart(
    program: Path,
    arguments: Sequence[str],
    root: Path,
    log: Path,
    limit: float | None = None,
    environment: Mapping[str, str] | None = None,
) -> tuple[float, float, float]:
    """Run a process to its end.

    Args:
        program: a script of the repository.
        arguments: its.
        root: the data path.
        log: takes what it says.
        limit: seconds; then it is killed with all processes that it began. None: no limit.
        environment: variables besides this process' own.

    Returns:
        Seconds by the clock, seconds of CPU, peak of memory in MB (10^6 bytes; not below this process' own).

    Raises:
        UserError: it failed, or took longer than the limit.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    variables = os.environ | {"CHALLENGE_DATA_PATH": str(root)} | dict(environment or {})
    line = f"{program.relative_to(REPOSITORY)} {shlex.join(arguments)}".rstrip()
    with log.open("w") as file:
        started = time.perf_counter()
        # A session of its own, so that what it began can be ended with it.
        process = subprocess.Popen(  # noqa: S603
            [sys.executable, str(program), *arguments],
            env=variables, stdout=file, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        too_long = threading.Event()
        watch = threading.Timer(limit or threading.TIMEOUT_MAX, _end_for_time, (process.pid, too_long))
        watch.daemon = True
        watch.start()
        try:
            _, status, used = os.wait4(process.pid, 0)
        except BaseException:
            _kill_all_of(process.pid)
            raise
        finally:
            watch.cancel()
        seconds = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode and too_long.is_set():
        raise UserError(f"{line}: took longer than {limit:.0f} s and was ended; see {log}")
    if process.returncode:
        raise UserError(f"{line}: failed with exit code {process.returncode} ({last_word(log)}); see {log}")
    return seconds, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024 / 1e6


def _end_for_time(session: int, too_long: threading.Event) -> None:
    too_long.set()
    _kill_all_of(session)


def _kill_all_of(session: int) -> None:
    """End a process that leads a session, and what it began."""
    try:
        os.killpg(session, signal.SIGKILL)
    except ProcessLookupError:
        return


def as_markdown(title: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table under its title."""
    lines = [f"**{title[0].upper()}{title[1:]}**", "", f"| {' | '.join(headings)} |"]
    lines += [f"|---|{'--:|' * (len(headings) - 1)}", *(f"| {' | '.join(row)} |" for row in rows)]
    return "\n".join(lines)


def marks_of(script: str) -> tuple[str, str]:
    """The two lines of a report between which a benchmark writes."""
    return f"<!-- measured by {script} -->", f"<!-- end of what {script} measured -->"


def write_report(file: Path, parts: Sequence[str], marks: tuple[str, str]) -> None:
    """Put the tables between the report's two marks; a new report is nothing but them.

    Raises:
        UserError: a report that is there has no such marks.
    """
    first, last = marks
    old = file.read_text() if file.exists() else f"{first}\n{last}\n"
    head, begin, rest = old.partition(first)
    _, end, tail = rest.partition(last)
    if not (begin and end):
        raise UserError(f"{file}: has no place for the tables; put the lines {first} and {last} into it")
    with atomic_write(file) as aside:
        aside.write_text("\n\n".join([head + first, *parts, last + tail]))


_SPIN = "import sys, time\nend = time.monotonic() + float(sys.argv[1])\nwhile time.monotonic() < end:\n    pass"


@contextmanager
def busy(processes: int, limit: float) -> Iterator[None]:
    """Keep so many cores busy, for so many seconds at the most."""
    started = [subprocess.Popen([sys.executable, "-c", _SPIN, str(limit)]) for _ in range(processes)]  # noqa: S603
    try:
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()
