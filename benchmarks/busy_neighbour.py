"""What a busy machine costs: a command by itself and beside a process that keeps one core busy, in turn.

    make demo
    python benchmarks/busy_neighbour.py                     gru_ae_day_event, the demo's size: some two minutes
    python benchmarks/busy_neighbour.py threads=null        with as many threads as the command takes
    python benchmarks/busy_neighbour.py "line=[next_sku/next_sku_embeddings.py,preset=demo]" times=5

Prints the seconds of each run, their medians and the ratio, and whether that is below ``goal``. Run it with nothing
else on the machine. The block is made anew each time (``overwrite=True``).
"""

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from omegaconf import DictConfig
from rich.table import Table

from benchmarks.measuring import busy
from ubp.cli.command import command
from ubp.cli.config import Common, parse
from ubp.cli.output import say, show
from ubp.data.paths import REPOSITORY
from ubp.io.errors import UserError, require, require_positive
from ubp.io.machine import cores


@dataclass(frozen=True)
class Settings:
    """What is measured.

    Attributes:
        line: script and arguments of the command.
        times: runs of each kind.
        threads: of the command; None: what it takes by itself.
        neighbours: busy processes beside it.
        limit: seconds that a run may take.
        goal: the ratio that is aimed at.
    """

    line: list[str]
    times: int
    threads: int | None
    neighbours: int
    limit: float
    goal: float

    def __post_init__(self) -> None:
        """Refuse settings that make no sense.

        Raises:
            UserError: nothing to run, or not once.
        """
        require(len(self.line) >= 1, "line", self.line, "a script and its arguments")
        require_positive(self, "", "times", "neighbours", *([] if self.threads is None else ["threads"]))


SETTINGS = list(Settings.__dataclass_fields__)


def seconds(words: Sequence[str], environment: dict[str, str], limit: float) -> float:
    """How long a command takes.

    Raises:
        UserError: it failed, or took longer than the limit.
    """
    began = time.monotonic()
    line = " ".join(words[1:])
    try:
        done = subprocess.run(  # noqa: S603
            words, env=environment, capture_output=True, text=True, check=False, timeout=limit
        )
    except subprocess.TimeoutExpired as error:
        raise UserError(f"{line}: took longer than limit={limit:g} seconds") from error
    if done.returncode:
        last = [said for said in done.stderr.splitlines() if said.strip()][-1:]
        raise UserError([*last, f"{line}: failed with exit code {done.returncode}"])
    return time.monotonic() - began


def measure(settings: Settings, words: Sequence[str], environment: dict[str, str]) -> tuple[list[float], list[float]]:
    """Seconds of the quiet runs and of those beside the neighbours."""
    quiet, beside = [], []
    for number in range(settings.times):
        quiet.append(seconds(words, environment, settings.limit))
        with busy(settings.neighbours, settings.limit):
            beside.append(seconds(words, environment, settings.limit))
        say(f"[{number + 1}/{settings.times}] quiet {quiet[-1]:.1f} s, beside a busy process {beside[-1]:.1f} s")
    return quiet, beside


@command("scripts", "busy_neighbour")
def main(config: DictConfig) -> None:
    common, settings = Common.of(config), parse(Settings, config, SETTINGS)
    script, *arguments = settings.line
    own = [f"data_path={common.data_path}", f"submit={common.submit}", "overwrite=True"]
    words = [sys.executable, str(REPOSITORY / script), *arguments, *own]
    threads = {} if settings.threads is None else {"OMP_NUM_THREADS": str(settings.threads)}
    quiet, beside = measure(settings, words, os.environ | threads)
    table = Table("", "runs, s", "median, s", title=f"{' '.join(settings.line)}: {cores()} cores")
    for name, runs in (("quiet", quiet), (f"beside {settings.neighbours} busy", beside)):
        table.add_row(name, " ".join(f"{run:.1f}" for run in sorted(runs)), f"{statistics.median(runs):.1f}")
    show(table)
    ratio = statistics.median(beside) / statistics.median(quiet)
    say(f"ratio {ratio:.2f}, goal below {settings.goal:g}: {'kept' if ratio < settings.goal else 'missed'}")


if __name__ == "__main__":
    main()
