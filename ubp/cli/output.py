"""What commands say on the terminal: tables and the closing line."""

import resource
import sys
import time
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table

from ubp.cli.object_store import shown

# When this process began, on `time.time`'s clock; imports come before any line of ours.
_STARTED: float = psutil.Process().create_time()

_WIDTH, _WIDEST = 140, 400  # of a table, in characters, where nobody's screen limits it

# In the closing line of a block whose vectors hardly tell clients apart, and of one whose model learned too little.
COLLAPSED, BELOW_POPULARITY = REMARKS = ("COLLAPSED", "BELOW POPULARITY")


def say(line: str) -> None:
    """A line of the command's own on stdout, apart from the log; see `ubp.cli.object_store.shown`."""
    sys.stdout.write(f"{shown(line)}\n")
    sys.stdout.flush()


def closing_line(
    what: str, path: Path, clients: int | None = None, columns: int | None = None, seconds: float | None = None
) -> None:
    """Print a command's last line: what, clients × columns, seconds, peak memory, where it lies.

    Args:
        what: was made.
        path: where it lies.
        clients: its rows.
        columns: its columns.
        seconds: that it took; None for all since the process began.
    """
    size = f" · {clients:,} clients × {columns:,} columns" if clients is not None else ""
    seconds = seconds_so_far() if seconds is None else seconds
    say(f"{what}{size} · {seconds:.1f} s · {peak_megabytes():,.0f} MB · {path}")


def seconds_so_far() -> float:
    """Since this process began."""
    return time.time() - _STARTED


def cost_so_far() -> dict[str, float]:
    """Of this process: seconds since it began, and the megabytes that it held at most."""
    return {"seconds": round(seconds_so_far(), 1), "megabytes": round(peak_megabytes())}


def show(table: Table) -> None:
    """Print a table on stdout, as wide as it needs to be where nobody's screen limits it."""
    console = Console()
    if not console.is_terminal:
        needed = Console(width=_WIDEST).measure(table).maximum
        console = Console(width=max(_WIDTH, needed))
    console.print(table)


def peak_megabytes() -> float:
    """The most memory that this process held so far, in MB (10^6 bytes)."""
    try:
        # Not getrusage: on Linux a process begins with the peak of the one that started it.
        status = Path("/proc/self/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024 / 1e6
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6
