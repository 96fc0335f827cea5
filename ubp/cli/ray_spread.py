"""Pieces of one command's work as tasks of a Ray cluster: functions in Ray's own workers, not commands.

A task that is lost with its worker or node is begun again by Ray. What a piece reads and writes lies on the data path,
so that nothing large goes through Ray's object store. See `ubp.cli.ray_tasks` for whole commands.
"""

import logging
import os
import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, TypeVar

from ubp.cli.output import peak_megabytes, say
from ubp.cli.ray_tasks import RETRIES, THREADS, Resources, code_digest
from ubp.data.paths import REPOSITORY
from ubp.io.errors import UserError

if TYPE_CHECKING:
    import ray

logger = logging.getLogger(__name__)

Made = TypeVar("Made")

_LOOK: Final = 0.5  # seconds between looks at the tasks; between them Ctrl-C is heeded
_SAY: Final = 30.0  # seconds between lines of how far they are


@dataclass(frozen=True)
class Cost:
    """What one piece took.

    Attributes:
        what: it did.
        node: where, the first digits of its name.
        process: the worker's.
        seconds: by the clock.
        cpu: seconds of the worker's processor.
        megabytes: the most that the worker held so far.
    """

    what: str
    node: str
    process: int
    seconds: float
    cpu: float
    megabytes: float


@dataclass(frozen=True)
class _Refused:
    """What is wrong, of a piece that found a fault of the user's, or of a node that may not do it."""

    messages: list[str]


@dataclass
class RaySpread:
    """A `ubp.io.spread.Spread` over the nodes of a cluster that this process is connected to.

    Attributes:
        needed: by each piece.
        costs: of the pieces that were done, in no order.
    """

    needed: Resources
    costs: list[Cost] = field(default_factory=list)

    def __call__(self, what: str, pieces: Sequence[Callable[[], Made]]) -> list[Made]:
        """See `ubp.io.spread.Spread`."""
        import ray

        # A process of its own begins with these variables; without PYTHONPATH it would not find this very code.
        paths = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))
        variables = dict.fromkeys(THREADS, str(self.needed.cpus)) | {"PYTHONPATH": paths}
        remote = ray.remote(_done).options(
            name=what, num_cpus=self.needed.cpus, num_gpus=self.needed.gpus, memory=self.needed.memory,
            max_retries=RETRIES,
            runtime_env={"env_vars": variables},
        )  # fmt: skip
        digest, began = code_digest(), time.monotonic()
        tasks = [remote.remote(what, piece, digest) for piece in pieces]
        try:
            found = self._waited(what, tasks)
        except BaseException:
            for task in tasks:
                ray.cancel(task, force=True)
            raise
        logger.info("%s: %d parts · %.1f s", what, len(pieces), time.monotonic() - began)
        return found

    def _waited(self, what: str, tasks: Sequence["ray.ObjectRef[Any]"]) -> list[Any]:
        """What the tasks gave back; the first that failed ends the wait."""
        import ray

        waiting, said = list(tasks), time.monotonic()
        while waiting:
            ready, waiting = ray.wait(waiting, num_returns=1, timeout=_LOOK)
            for task in ready:
                _, cost = _result(what, task)
                self.costs.append(cost)
            if time.monotonic() - said >= _SAY:
                say(f"{what} · {len(tasks) - len(waiting)} of {len(tasks)} parts")
                said = time.monotonic()
        return [_result(what, task)[0] for task in tasks]


def _result(what: str, task: "ray.ObjectRef[Any]") -> tuple[Any, Cost]:
    """What a task gave back, and what it took.

    Raises:
        UserError: it did, or was lost too often.
    """
    import ray

    try:
        found = ray.get(task)
    except ray.exceptions.RayTaskError:
        raise  # its traceback
    except ray.exceptions.RayError as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise UserError(f"engine=ray: a task of {what} was lost {RETRIES + 1} times: {reason}") from error
    if isinstance(found, _Refused):
        raise UserError(found.messages)
    made: tuple[Any, Cost] = found
    return made


def _done(what: str, piece: Callable[[], Any], digest: str) -> tuple[Any, Cost] | _Refused:
    """Do a piece in this worker, if it has the driver's code."""
    import ray

    node = ray.get_runtime_context().get_node_id()[:8]
    if code_digest() != digest:
        return _Refused(
            [f"node {node} has other code or other versions in {REPOSITORY} than the driver; make them equal"]
        )
    clock, cpu = time.monotonic(), _processor_seconds()
    try:
        made = piece()
    except UserError as error:
        return _Refused(error.messages)
    spent = Cost(
        what, node, os.getpid(), time.monotonic() - clock, _processor_seconds() - cpu, round(peak_megabytes(), 1)
    )
    return made, spent


def _processor_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
