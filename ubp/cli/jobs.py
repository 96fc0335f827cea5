"""Commands side by side: each a process with a log of its own, until all are done or one fails."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Protocol

from ubp.io.errors import NoUsableEvents

_LOOK = 0.05  # seconds between looks at what runs
ERROR = "error: "  # begins what a command says of its failure
_SHOWN = 20  # last lines of a log that holds no line "error: ..."


@dataclass(frozen=True)
class Job:
    """One command.

    Attributes:
        name: of its log, ``NAME.log``.
        words: the command line.
        title: the command line as a user would type it.
        seconds: about how long it takes beside the others; the longest begin first.
        after: names of the jobs that must be done before.
        gpu: uses the GPU where there is one.
        environment: its own; None: that of all jobs.
    """

    name: str
    words: Sequence[str]
    title: str
    seconds: float
    after: tuple[str, ...] = ()
    gpu: bool = False
    environment: Mapping[str, str] | None = None


@dataclass(frozen=True)
class Limits:
    """How many jobs run at once.

    Attributes:
        jobs: of all.
        gpu_jobs: of those that use the GPU.
    """

    jobs: int
    gpu_jobs: int


@dataclass(frozen=True)
class Running:
    """A job that was started.

    Attributes:
        job: which one.
        log: its output; None where that goes to the terminal.
        poll: its exit code, or None while it runs.
        since: when it was started, by `time.monotonic`.
    """

    job: Job
    log: Path | None
    poll: Callable[[], int | None]
    since: float = field(default_factory=time.monotonic)


class Runner(Protocol):
    """Where jobs run."""

    def start(self, job: Job) -> Running:
        """Let a job begin."""

    def end(self, interrupted: bool) -> None:
        """Interrupt the jobs that run and wait for them; kill those that do not heed.

        Args:
            interrupted: by Ctrl-C, which may have reached them already.
        """


class JobFailed(Exception):
    """A job ended with an exit code that is not 0.

    Attributes:
        job: which one.
        code: the exit code; 128 and the signal's number where a signal ended it, as a shell has it.
        log: its output; None where that went to the terminal.
    """

    def __init__(self, job: Job, code: int, log: Path | None) -> None:
        self.job, self.code, self.log = job, code, log
        super().__init__(f"{job.title}: failed with exit code {code}")

    def lines(self) -> list[str]:
        """What the job printed about its failure: its lines that begin with ``error:``, or else its last ones."""
        return _said(self.log)

    def messages(self) -> list[str]:
        """The same lines without ``error:``."""
        return _without_prefix(self.lines())


def _said(log: Path | None) -> list[str]:
    if log is None:
        return []
    lines = log.read_text(errors="replace").splitlines()
    return [line for line in lines if line.startswith(ERROR)] or lines[-_SHOWN:]


def _without_prefix(lines: Iterable[str]) -> list[str]:
    return [line.removeprefix(ERROR) for line in lines]


def longest_first(jobs: Iterable[Job]) -> list[Job]:
    """The jobs by the time of each and of the longest that waits for it, so that no long one is left to the end."""
    jobs = list(jobs)

    def chain(job: Job) -> float:
        return job.seconds + max((chain(other) for other in jobs if job.name in other.after), default=0.0)

    return sorted(jobs, key=chain, reverse=True)


def run_jobs(
    jobs: Iterable[Job],
    limits: Limits,
    runner: Runner,
    started: Callable[[Job], None],
    done: Callable[[Job, float], None],
    left_out: Callable[[Job, str], None],
) -> None:
    """Run each job once what it waits for is done, the first ones first.

    When one fails, or this process gets SIGINT, SIGTERM or SIGHUP, those that run are interrupted, as by
    Ctrl-C, and waited for; no other begins.

    Args:
        jobs: in the order of preference.
        limits: how many run at once.
        runner: where they run.
        started: called when a job begins.
        done: called when it has ended well, with its seconds.
        left_out: called with the reason when the log had no events for it (`NoUsableEvents`), and for those after it.

    Raises:
        JobFailed: the first that did otherwise.
        ValueError: jobs wait for one another, or for one that is not there.
    """
    with _ended_by_signals():
        try:
            _run(list(jobs), limits, runner, started, done, left_out)
        except BaseException as error:
            runner.end(interrupted=isinstance(error, KeyboardInterrupt))
            raise


def _run(
    waiting: list[Job],
    limits: Limits,
    runner: Runner,
    started: Callable[[Job], None],
    done: Callable[[Job, float], None],
    left_out: Callable[[Job, str], None],
) -> None:
    running, ended = list[Running](), set[str]()
    while waiting or running:
        while job := _next(waiting, [each.job for each in running], ended, limits):
            waiting.remove(job)
            started(job)
            running.append(runner.start(job))
        if not running:
            raise ValueError(
                f"these wait for one another, or for what is not there: {', '.join(job.name for job in waiting)}"
            )
        # Looked at from time to time by the only thread: threads that wait for them would take the signals from it.
        time.sleep(_LOOK)
        for over, code in [(each, code) for each in running if (code := each.poll()) is not None]:
            running.remove(over)
            if code == NoUsableEvents.exit_code:
                _leave_out(over, waiting, left_out)
                continue
            if code:
                raise JobFailed(over.job, code if code > 0 else 128 - code, over.log)
            ended.add(over.job.name)
            done(over.job, time.monotonic() - over.since)


def _leave_out(over: Running, waiting: list[Job], left_out: Callable[[Job, str], None]) -> None:
    """Say why a job has made nothing, and leave out those that wait for it."""
    left_out(over.job, "; ".join(_without_prefix(_said(over.log))) or "see above")
    gone = {over.job.name}
    while following := [job for job in waiting if gone & set(job.after)]:
        for job in following:
            waiting.remove(job)
            left_out(job, f"{next(name for name in job.after if name in gone)} is")
        gone |= {job.name for job in following}


def _next(waiting: Sequence[Job], running: Collection[Job], done: Collection[str], limits: Limits) -> Job | None:
    """The first job that may begin now."""
    if len(running) >= limits.jobs:
        return None
    gpu_is_full = sum(job.gpu for job in running) >= limits.gpu_jobs
    ready = (job for job in waiting if set(job.after) <= set(done) and not (job.gpu and gpu_is_full))
    return next(ready, None)


class Processes:
    """Jobs as processes of this machine.

    Args:
        environment: of the jobs.
        logs: folder for the jobs' logs; None: they write to this process' terminal, in its process group.
        grace: seconds that a job has to end itself, before it is killed.
    """

    def __init__(self, environment: Mapping[str, str], logs: Path | None, grace: float) -> None:
        self._environment, self._logs, self._grace = environment, logs, grace
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(self, job: Job) -> Running:
        """See `Runner.start`."""
        environment = self._environment if job.environment is None else job.environment
        if self._logs is None:
            process = subprocess.Popen(job.words, env=environment)  # noqa: S603
            log = None
        else:
            log = self._logs / f"{job.name}.log"
            with log.open("wb") as file:
                # A group of its own: one signal ends the job with all that it started.
                process = subprocess.Popen(  # noqa: S603
                    job.words,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=file,
                    process_group=0,
                )
        self._processes.append(process)
        return Running(job, log, process.poll)

    def end(self, interrupted: bool) -> None:
        """See `Runner.end`."""
        groups = self._logs is not None
        # Also those that ended since they were last looked at: they may have left others in their group.
        running = [process for process in self._processes if process.returncode is None]
        # Without groups of their own, Ctrl-C has reached the jobs already.
        _end(running, self._grace, groups, interrupted=interrupted and not groups)


def _end(processes: Sequence["subprocess.Popen[bytes]"], grace: float, groups: bool, interrupted: bool) -> None:
    """Interrupt processes and wait for them; kill what is left when the time is up, or at a second Ctrl-C."""

    def signal_all(number: int, to: Iterable["subprocess.Popen[bytes]"]) -> None:
        for process in to:
            with suppress(ProcessLookupError):
                (os.killpg if groups else os.kill)(process.pid, number)

    def alive() -> list["subprocess.Popen[bytes]"]:
        return [process for process in processes if process.poll() is None]

    if not interrupted:
        signal_all(signal.SIGINT, alive())
    deadline = time.monotonic() + grace
    with suppress(subprocess.TimeoutExpired, KeyboardInterrupt, SystemExit):
        for process in processes:
            process.wait(max(0.0, deadline - time.monotonic()))
    signal_all(signal.SIGKILL, processes if groups else alive())


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP leave the block by `SystemExit`, and the processes begun in it heed SIGINT."""

    def end(number: int, _: FrameType | None) -> None:
        raise SystemExit(128 + number)

    def nothing(_: int, __: FrameType | None) -> None:
        pass

    # A signal that this process ignores stays ignored, SIGHUP under nohup, SIGINT in the background of a script. But
    # what it starts would ignore that too, and an ignored SIGINT ends nothing: hence a handler that does nothing.
    handlers: dict[int, Callable[[int, FrameType | None], None]] = {
        number: end for number in (signal.SIGTERM, signal.SIGHUP) if _heeded(number)
    }
    if not _heeded(signal.SIGINT):
        handlers[signal.SIGINT] = nothing
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _heeded(number: int) -> bool:
    return signal.getsignal(number) is not signal.SIG_IGN
