"""Jobs as tasks of a Ray cluster (Moritz et al. 2018, arXiv 1712.05889): a process each, where a node has room for it.

All nodes share the data path, a folder or an address of an object store, and have this very code and these versions. A
task lost with its worker or node begins again elsewhere, and its command takes up what lies on the data path. Nothing
of Ray is imported before it is asked for.
"""

import logging
import os
import platform
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, TYPE_CHECKING, Any, Final

from ubp.cli.circumstances import versions
from ubp.cli.jobs import ERROR, Job, Limits, Running, run_jobs
from ubp.cli.object_store import address_of, as_given, is_shared
from ubp.cli.output import say
from ubp.data.paths import CONFIGS, DATA_PATH, REPOSITORY
from ubp.io.errors import NoUsableEvents, UserError
from ubp.io.files import digest_of, digest_of_files

if TYPE_CHECKING:
    import ray

    from ubp.cli.recipe import Need

logger = logging.getLogger(__name__)

RETRIES: Final = 3  # of a task whose worker or node was lost; a command that kills its worker each time shall end
_INTERRUPTED: Final = 128 + signal.SIGINT
_GRACE: Final = 20.0  # seconds that one command has to end itself
_ANSWER: Final = 5.0  # seconds that a cluster has to answer
_LOOK: Final = 0.5  # seconds between looks at a task
_SAY: Final = 30.0  # seconds between lines on the terminal of how far a task is
THREADS: Final = ("OMP_NUM_THREADS", "POLARS_MAX_THREADS")
_ON: Final = "on "  # begins the line in a log that says where the command runs


@dataclass(frozen=True)
class Resources:
    """What a task needs of a node.

    Attributes:
        cpus: cores, and threads of its command.
        gpus: of them.
        memory: bytes.
    """

    cpus: int
    gpus: int
    memory: int


@dataclass(frozen=True)
class Cluster:
    """What a Ray cluster has.

    Attributes:
        nodes: of each, what it has: ``CPU``, ``GPU``, ``memory`` (bytes).
    """

    nodes: tuple[Mapping[str, float], ...]

    @property
    def cores(self) -> int:
        """Of all nodes."""
        return int(sum(node.get("CPU", 0) for node in self.nodes))

    @property
    def gpus(self) -> int:
        """Of all nodes."""
        return int(sum(node.get("GPU", 0) for node in self.nodes))

    def share(self, jobs: int) -> int:
        """Cores of each of so many jobs at once, no more than the node with the fewest has."""
        fewest = min(int(node["CPU"]) for node in self.nodes if node.get("CPU", 0) >= 1)
        return max(1, min(fewest, self.cores // jobs))

    def require(self, name: str, needed: Resources, settings: str = "memory.command") -> None:
        """Refuse what no node will ever have: Ray would wait for one.

        Args:
            name: of what needs it.
            needed: what it is.
            settings: that say how much it needs.

        Raises:
            UserError: no node has as much.
        """
        wanted = {"CPU": needed.cpus, "GPU": needed.gpus, "memory": needed.memory}
        if not any(all(node.get(what, 0) >= amount for what, amount in wanted.items()) for node in self.nodes):
            most = max(node.get("memory", 0) for node in self.nodes) / 1e9
            raise UserError(
                f"engine=ray: {name} needs {needed.cpus} cores, {needed.gpus} GPUs and {needed.memory / 1e9:.1f} GB on "
                f"one node, and no node has them (the most memory is {most:.1f} GB); start a larger node or lower "
                f"{settings}"
            )


@contextmanager
def cluster() -> Iterator[Cluster]:
    """Connect to the cluster that ``RAY_ADDRESS`` names, to one that runs on this machine, or to one made for now.

    Raises:
        UserError: Ray is not installed, no cluster answers, or its versions are others.
    """
    try:
        import ray
    except ImportError as error:
        raise UserError("engine=ray: Ray is not installed here; pip install '.[ray]'") from error
    _require_answer(os.environ.get("RAY_ADDRESS", ""))
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent home
    try:
        ray.init(log_to_driver=False, configure_logging=False)
    except (ConnectionError, RuntimeError, ValueError) as error:  # RuntimeError: other versions of Ray or Python
        where = os.environ.get("RAY_ADDRESS", "on this machine")
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"engine=ray: no connection to the cluster {where}: {first}") from error
    try:
        nodes = ray.nodes()  # type: ignore[no-untyped-call]
        yield Cluster(tuple(node["Resources"] for node in nodes if node["Alive"]))
    finally:
        ray.shutdown()


def _require_answer(address: str) -> None:
    """Refuse an address where nobody listens: Ray would ask there for minutes, and end the process.

    Raises:
        UserError: nobody does.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        return  # Ray's own words: auto, local
    try:
        socket.create_connection((host, int(port)), timeout=_ANSWER).close()
    except OSError as error:
        raise UserError(
            f"engine=ray: no connection to the cluster {address} ({error}); start one with ray start --head, or "
            "correct RAY_ADDRESS"
        ) from error


@dataclass(frozen=True)
class Order:
    """What a node is asked to run.

    Attributes:
        command: the script, relative to the repository.
        arguments: of it.
        log: its output, appended, so that a second attempt does not hide the first.
        threads: of it.
        data_path: a folder, absolute, or an address.
        digest: of the code and versions that the driver has (`code_digest`).
    """

    command: str
    arguments: tuple[str, ...]
    log: Path
    threads: int
    data_path: str
    digest: str


class Lines:
    """What commands say on nodes that share no folder with the driver, until it takes it: an actor on its node."""

    def __init__(self) -> None:
        self._said: dict[str, list[bytes]] = {}

    def add(self, name: str, text: bytes) -> None:
        """What a job said."""
        self._said.setdefault(name, []).append(text)

    def take(self, name: str) -> bytes:
        """What it said since this was asked last."""
        return b"".join(self._said.pop(name, []))


class RayTasks:
    """A `ubp.cli.jobs.Runner` whose jobs are tasks.

    Args:
        needs: of each job.
        data_path: that all nodes share; or the folder that stands for an address here, which they are told.
        logs: folder for the jobs' logs, on the data path.
        grace: seconds that a job has to end itself, before it is killed.
        follow: whether the terminal shows all that a job says, or from time to time the last of it.
    """

    def __init__(
        self, needs: Mapping[str, Resources], data_path: Path, logs: Path, grace: float, follow: bool = False
    ) -> None:
        self._needs, self._logs = needs, logs.absolute()
        self._data_path = address_of(str(data_path.absolute()))
        self._lines = None if is_shared(str(data_path.absolute())) else _lines_here()
        self._grace, self._follow = grace, follow
        self._tasks: dict[str, ray.ObjectRef[int]] = {}

    def start(self, job: Job) -> Running:
        """See `ubp.cli.jobs.Runner.start`: Ray lets it begin when a node has room."""
        import ray

        _, script, *arguments = job.words
        needed, log = self._needs[job.name], self._logs / f"{job.name}.log"
        log.touch()
        script = str(Path(script).resolve().relative_to(REPOSITORY))
        order = Order(script, tuple(told(as_given(arguments))), log, needed.cpus, self._data_path, code_digest())
        task = ray.remote(run_order).options(
            name=job.name, num_cpus=needed.cpus, num_gpus=needed.gpus, memory=needed.memory, max_retries=RETRIES
        )  # fmt: skip
        self._tasks[job.name] = task.remote(order, self._lines)
        return Running(job, log, _Watch(job.name, self._tasks[job.name], log, self._follow, self._lines).poll)

    def end(self, interrupted: bool) -> None:  # noqa: ARG002 (no Ctrl-C reaches other nodes)
        """See `ubp.cli.jobs.Runner.end`."""
        import ray

        tasks = list(self._tasks.values())
        for force, grace in ((False, self._grace), (True, _LOOK)):
            _, running = ray.wait(tasks, num_returns=len(tasks), timeout=0) if tasks else ([], [])
            for task in running:
                ray.cancel(task, force=force)
            if running:
                ray.wait(running, num_returns=len(running), timeout=grace)


class _Watch:
    """Looks at one task, and says on the terminal where it runs and how far it is."""

    def __init__(self, name: str, task: "ray.ObjectRef[int]", log: Path, follow: bool, lines: Any) -> None:  # noqa: ANN401 (of Ray)
        self._name, self._task, self._log, self._follow, self._lines = name, task, log, follow, lines
        self._looked, self._said, self._read = 0.0, 0.0, 0

    def poll(self) -> int | None:
        """The exit code, or None while it waits or runs."""
        now = time.monotonic()
        if now - self._looked < _LOOK:
            return None
        self._looked = now
        code = _exit_code(self._task, self._log)
        self._take_lines()
        self._say_how_far(now)
        return code

    def _take_lines(self) -> None:
        """Have what the command said meanwhile where no node writes to the log itself."""
        import ray

        if self._lines is not None and (text := ray.get(self._lines.take.remote(self._log.stem))):
            with self._log.open("ab") as log:
                log.write(text)

    def _say_how_far(self, now: float) -> None:
        with self._log.open("rb") as log:
            log.seek(self._read)
            lines, self._read = log.read().decode(errors="replace").splitlines(), log.tell()
        where = [line for line in lines if line.startswith(_ON)]
        for line in where:
            say(f"{self._name} · {line}")
        if self._follow:
            for line in lines:
                if not line.startswith((_ON, ERROR)):  # errors are said when it has ended
                    say(line)
        elif lines and not where and now - self._said >= _SAY:
            say(f"{self._name} · {lines[-1]}")
            self._said = now


def _exit_code(task: "ray.ObjectRef[int]", log: Path) -> int | None:
    """Of a task; what Ray says of one that was lost is added to its log."""
    import ray

    ready, _ = ray.wait([task], timeout=0)
    if not ready:
        return None
    try:
        return ray.get(task)
    except ray.exceptions.TaskCancelledError:
        return _INTERRUPTED
    except ray.exceptions.RayError as error:
        lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        reason = (
            lines[-1] if isinstance(error, ray.exceptions.RayTaskError) else lines[0]
        )  # a traceback ends in its error
        with log.open("a") as file:
            file.write(f"{ERROR}the task was lost: {reason}\n")
        return 1


def _lines_here() -> Any:  # noqa: ANN401 (an actor of Ray)
    """`Lines` as an actor on the driver's node: no other node's end loses it."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(Lines).options(num_cpus=0, scheduling_strategy=here).remote()


def run_order(order: Order, lines: Any = None) -> int:  # noqa: ANN401 (an actor of Ray)
    """Run a command on this node and return its exit code; interrupted, as by Ctrl-C, if the task is cancelled.

    Runs in a worker of Ray, as a process of its own: a worker has threads, so nothing is forked from it but to become
    another program at once.

    Args:
        order: what to run.
        lines: `Lines` as an actor that is told what the command says; None: it goes to the order's log.
    """
    import ray

    node = f"{platform.node()}, node {ray.get_runtime_context().get_node_id()[:8]}, PID {os.getpid()}"
    if lines is None:
        if not order.log.exists():
            raise UserError(
                f"{node}: {order.log} is not there; the data path must be on a file system that all nodes share"
            )
        with order.log.open("ab") as log:
            return _run(order, node, log, None)
    with TemporaryDirectory() as folder, (Path(folder) / order.log.name).open("ab") as log:
        sent = 0

        def tell() -> None:
            nonlocal sent
            with Path(log.name).open("rb") as said:
                said.seek(sent)
                text = said.read()
            if text:
                ray.get(lines.add.remote(order.log.stem, text))
            sent += len(text)

        try:
            return _run(order, node, log, tell)
        finally:
            tell()


def _run(order: Order, node: str, log: IO[bytes], tell: Callable[[], None] | None) -> int:
    """See `run_order`.

    Args:
        order: what to run.
        node: which, in words.
        log: of the output.
        tell: called from time to time, if there is someone to be told.
    """
    log.write(f"{_ON}{node}\n".encode())
    if code_digest() != order.digest:
        words = f"has other code or other versions in {REPOSITORY} than the driver; make them equal"
        log.write(f"{ERROR}{node} {words}\n".encode())
        log.flush()
        return 1
    log.flush()
    script = [str(REPOSITORY / order.command), *order.arguments]
    process = subprocess.Popen(  # noqa: S603
        [sys.executable, "-m", "ubp.cli.dies_with", str(os.getpid()), *script],
        env=_environment(order),
        stdin=subprocess.DEVNULL, stdout=log, stderr=log, process_group=0,
    )  # fmt: skip
    try:
        code = _exit_code_of(process, tell)
    except KeyboardInterrupt:
        os.killpg(process.pid, signal.SIGINT)
        code = process.wait()
    return code if code >= 0 else 128 - code


def _exit_code_of(process: "subprocess.Popen[bytes]", tell: Callable[[], None] | None) -> int:
    while tell is not None:
        with suppress(subprocess.TimeoutExpired):
            return process.wait(_LOOK)
        tell()
    return process.wait()


def _environment(order: Order) -> dict[str, str]:
    """Of a command: its threads, the data path, and the very code whose digest was compared before any other."""
    paths = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))
    own = {DATA_PATH: order.data_path, "PYTHONPATH": paths}
    return os.environ | dict.fromkeys(THREADS, str(order.threads)) | own


@cache
def code_digest() -> str:
    """Of the project's Python files and configs, and of what `versions` names: whatever could change a result."""
    folders = [folder for folder in REPOSITORY.iterdir() if folder.is_dir() and any(folder.glob("*.py"))]
    sources = [file for folder in folders if folder.name != "tests" for file in folder.rglob("*.py")]
    files = sorted([*sources, *CONFIGS.rglob("*.yaml")])
    return digest_of(sorted(versions().items()), digest_of_files(files, REPOSITORY))


def told(words: Sequence[str]) -> list[str]:
    """The arguments of a command on another node: not where to run, nor where the data lie, which is said apart."""
    return [word for word in words if word.lstrip("+").partition("=")[0] not in ("engine", "data_path")]


def need_line(name: str, need: "Need") -> str:
    """That a command is placed by its memory, as a line."""
    return f"{name} needs {need.memory / 1e9:.1f} GB of one node: {need.counts}"


def told_settings(need: "Need") -> str:
    """What `Cluster.require` says of the settings of such a command."""
    return f"{need.settings} ({need.counts})"


def run_alone(
    script: Path, words: Sequence[str], data_path: Path, logs: Path, gpu: bool, need: "Need | None" = None
) -> None:
    """Run one command as one task, and show all that it says.

    Args:
        script: of the repository.
        words: its arguments.
        data_path: that all nodes share.
        logs: folder for its log.
        gpu: whether it uses one, where the cluster has any.
        need: what it takes of one node; None: whatever a node has.

    Raises:
        UserError: no node has what it needs.
        JobFailed: it did.
    """
    with cluster() as found:
        needed = Resources(found.share(1), int(gpu and found.gpus > 0), need.memory if need else 0)
        found.require(script.name, needed, *([told_settings(need)] if need else []))
        if need:
            say(need_line(script.stem, need))
        title = f"{script.parent.name}/{script.name}"
        runner = RayTasks({script.stem: needed}, data_path, logs, _GRACE, follow=True)
        left_out: list[str] = []
        run_jobs(
            [Job(script.stem, [sys.executable, str(script), *words], title, 0)], Limits(1, 1), runner,
            started=lambda _: None, done=lambda _, __: None, left_out=lambda _, why: left_out.append(why),
        )  # fmt: skip
    if left_out:
        raise NoUsableEvents(left_out)
