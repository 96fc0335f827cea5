"""A neural block's command on several workers of a Ray cluster that train together, by Ray Train.

Each worker runs the whole command: reads the same data, gathers its own batch for each step, and exchanges gradients
with the others; the first one alone prepares, reports, encodes and writes. When one is lost, all begin again from the
last whole epoch's checkpoint on the data path. What a training does with its ranks is in `ubp.training.lightning_loop`.
"""

import os
import platform
import runpy
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from ubp.cli.jobs import ERROR, Job, JobFailed
from ubp.cli.output import say
from ubp.cli.ray_tasks import Resources, cluster, code_digest, told
from ubp.data.paths import DATA_PATH, REPOSITORY
from ubp.io.errors import NoUsableEvents, UserError
from ubp.training.ray_ranks import let_others_end, may_begin

_RETRIES: Final = 3  # of the training when a worker or its node was lost
_LOOK: Final = 0.5  # seconds between looks at the log
_PREPARING: Final = 6 * 3600  # seconds that the first worker may wait in its first step for the last one
_LOST: Final = 1  # exit code where Ray Train gave up


@dataclass(frozen=True)
class Order:
    """What each worker is asked to run.

    Attributes:
        command: the script, relative to the repository.
        arguments: of it.
        log: of the first worker's output, appended; the others' lie beside it, as ``NAME.RANK.log``.
        threads: of each.
        data_path: absolute.
        digest: of the code and versions that the driver has (`ubp.cli.ray_tasks.code_digest`).
    """

    command: str
    arguments: list[str]
    log: str
    threads: int
    data_path: str
    digest: str

    @property
    def ended(self) -> Path:
        """Has the exit code of a command that ended by itself, well or not."""
        return Path(self.log).with_suffix(".code")


def run_together(script: Path, words: Sequence[str], data_path: Path, logs: Path, workers: int, gpu: bool) -> None:
    """Run one command on several workers at once, and show what the first one says.

    Args:
        script: of the repository.
        words: its arguments.
        data_path: that all nodes share.
        logs: folder for their logs, on the data path.
        workers: how many.
        gpu: whether each uses one, where the cluster has any.

    Raises:
        UserError: the cluster has not the room.
        JobFailed: the command did.
        NoUsableEvents: the log has too few for it.
    """
    logs = logs.absolute()
    log = logs / f"{script.stem}.log"
    log.touch()
    with cluster() as found:
        cpus, use_gpu = found.share(workers), gpu and found.gpus > 0
        found.require(script.name, Resources(cpus, int(use_gpu), 0))
        if found.cores < workers * cpus or (use_gpu and found.gpus < workers):
            raise UserError(
                f"trainer.ray_workers={workers}: the cluster has {found.cores} cores and {found.gpus} GPUs, and each "
                "worker needs one; start more nodes, or ask for fewer workers"
            )
        name = str(script.resolve().relative_to(REPOSITORY))
        order = Order(name, told(words), str(log), cpus, str(data_path.absolute()), code_digest())
        say(f"{workers} workers on {len(found.nodes)} nodes, threads each: {cpus}; their logs: {logs}")
        # In a thread: in the main one Ray Train would take Ctrl-C for itself, and say nothing of it.
        running = threading.Thread(target=_train, args=(order, workers, use_gpu, logs), daemon=True)
        running.start()
        _follow(log, running)
    _require_success(order, Job(script.stem, [sys.executable, str(script), *words], name, 0))


def _train(order: Order, workers: int, use_gpu: bool, logs: Path) -> None:
    """Let Ray Train run the workers, and begin again when one is lost."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    threads = dict.fromkeys(("OMP_NUM_THREADS", "POLARS_MAX_THREADS"), str(order.threads))
    paths = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))
    environment = {**threads, DATA_PATH: order.data_path, "PYTHONPATH": paths}
    trainer = TorchTrainer(
        run_rank,
        train_loop_config=asdict(order),
        torch_config=TorchConfig(timeout_s=_PREPARING),
        scaling_config=ScalingConfig(
            num_workers=workers,
            use_gpu=use_gpu,
            resources_per_worker={"CPU": order.threads},
            placement_strategy="SPREAD",
        ),
        run_config=RunConfig(  # type: ignore[call-arg]  # the types are those of an earlier version
            name="ray_train",
            storage_path=str(logs),
            failure_config=FailureConfig(max_failures=_RETRIES),
            worker_runtime_env={"env_vars": environment},
        ),
    )
    with suppress(Exception):  # what it raises says less than the log, which `_require_success` reads
        trainer.fit()


def _require_success(order: Order, job: Job) -> None:
    """Refuse what did not end well.

    Raises:
        JobFailed: the command failed, or was lost too often.
        NoUsableEvents: the log has too few for it.
    """
    code = int(order.ended.read_text()) if order.ended.exists() else _LOST
    if code == NoUsableEvents.exit_code:
        raise NoUsableEvents(JobFailed(job, code, Path(order.log)).messages())
    if code:
        raise JobFailed(job, code, Path(order.log))


def _follow(log: Path, running: threading.Thread) -> None:
    """Show the lines of a log while it grows; errors are said when all has ended."""
    read, last = 0, False
    while not last:
        running.join(_LOOK)
        last = not running.is_alive()
        with log.open("rb") as file:
            file.seek(read)
            text = file.read()
        whole = text if last else text[: text.rfind(b"\n") + 1]
        read += len(whole)
        for line in whole.decode(errors="replace").splitlines():
            if not line.startswith(ERROR):
                say(line)


def run_rank(given: dict[str, Any]) -> None:
    """Run a command as one of several workers, in a worker of Ray Train.

    Raises:
        RuntimeError: it failed: the others, which wait for its gradients, are ended.
    """
    from ray.train import get_context

    order, context = Order(**given), get_context()
    rank = context.get_world_rank()
    log = Path(order.log) if rank == 0 else Path(order.log).with_suffix(f".{rank}.log")
    with log.open("a", buffering=1) as said, _output_to(said):
        say(f"on {platform.node()}, rank {rank} of {context.get_world_size()}, PID {os.getpid()}")
        code = _exit_code(order) if rank == 0 or may_begin() else 0
    if rank == 0 or code:
        order.ended.write_text(str(code))
    at_work = rank > 0 or let_others_end()
    if code and at_work:
        raise RuntimeError(f"exit code {code}")


def _exit_code(order: Order) -> int:
    """Run the command of an order in this process; its exit code."""
    if order.ended.exists() and (code := int(order.ended.read_text())):
        return code  # it failed by itself before: Ray Train began it again in vain
    if code_digest() != order.digest:
        sys.stderr.write(
            f"{ERROR}{platform.node()} has other code or other versions in {REPOSITORY} than the driver; make them "
            "equal\n"
        )
        return 1
    sys.argv = [str(REPOSITORY / order.command), *order.arguments, f"data_path={order.data_path}"]
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as exit_:
        return exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)
    return 0


@contextmanager
def _output_to(file: Any) -> Iterator[None]:  # noqa: ANN401 (a text file)
    """Both streams of this process in a file."""
    before = sys.stdout, sys.stderr
    sys.stdout = sys.stderr = file
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
