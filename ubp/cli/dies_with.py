"""Become a Python script that is killed when the process that started this one ends, however that ends.

    python -m ubp.cli.dies_with PID SCRIPT ARGUMENTS

What a Ray worker starts must not outlive it: Ray then starts the same elsewhere. On Linux the kernel sees to it;
elsewhere the script goes on, and the other one waits for it.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


def main(parent: int, words: list[str]) -> None:
    """Replace this process by the script's.

    Args:
        parent: the process that started this one.
        words: the script and its arguments.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it ended before it was asked for
            raise SystemExit(128 + signal.SIGKILL)
    os.execv(sys.executable, [sys.executable, *words])  # noqa: S606


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
