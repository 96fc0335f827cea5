"""Counts what a command does to files below a folder, and kills its processes before one of these steps.

Python imports this first where the folder is on PYTHONPATH; see `tests.reliability.killing`. A step is a file opened to
be written or to be flushed, a rename, a removal, a folder made. Each adds a byte to a file, so that the steps of all of
a command's processes are counted together.
"""

import os
import signal
import sys

_FLAGS = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"}


def _watch(root: str, counter: int, kill_at: int) -> None:
    """Count the steps below a folder; kill the process group before a step by its number, 0 for none."""

    def step(event: str, arguments: tuple) -> None:
        if event == "open":
            path, mode, flags = arguments
            # Without a mode it is `os.open`, by which files and folders are flushed.
            if mode is not None and not flags & _FLAGS:
                return
            inside = False
        elif event in _CHANGES:
            path = arguments[0]
            inside = event in ("os.remove", "os.rmdir") and arguments[1] >= 0  # a name in a folder that is open
        else:
            return
        path = os.fsdecode(path) if isinstance(path, (str, bytes)) else ""
        if not (path.startswith(root) or inside) or "/hydra/" in path:
            return
        os.write(counter, b".")
        if os.fstat(counter).st_size == kill_at:
            os.killpg(0, signal.SIGKILL)

    sys.addaudithook(step)


if "STEPS_BELOW" in os.environ:
    _watch(
        os.environ["STEPS_BELOW"] + os.sep,
        os.open(os.environ["STEPS_COUNTED"], os.O_WRONLY | os.O_CREAT | os.O_APPEND),
        int(os.environ["STEPS_KILL_AT"]),
    )
