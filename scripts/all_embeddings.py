"""Make all embeddings: what ``sh get_all_embeddings.sh`` runs.

    sh get_all_embeddings.sh submit=False preset=demo       overrides are given to every command
    sh get_all_embeddings.sh submit=False jobs=1            one command after the other, on this terminal
    sh get_all_embeddings.sh 'only=[stat_features,dcn]'     these blocks, and what they read

The commands are those of the registry (configs/blocks.yaml). They are independent, except that the language model
reads texts that two of them make. As many run at once as there are cores and memory for (``jobs``), the longest
first, each with its share of the cores: on a CPU most of them gain little from a second core. Each then writes to a
log of its own beside Hydra's output, and the terminal shows when it begins and when it is done. One at a time uses
the GPU (``gpu_jobs``). Each command skips what is done. Blocks that the history has no events for, or not enough, are
left out, with a line each. The first command that fails otherwise ends the others, with its exit code.
"""

import os
import sys
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Final

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from ubp.blocks.registry import Entry, can_be_made, entries, with_what_they_read
from ubp.blocks.widths import CUT
from ubp.cli.command import command
from ubp.cli.config import Common, parse
from ubp.cli.jobs import Job, JobFailed, Limits, longest_first, run_jobs
from ubp.cli.output import REMARKS, say
from ubp.data.paths import REPOSITORY, DataPaths
from ubp.io.errors import require, require_positive
from ubp.io.machine import cores, free_memory, has_gpu, threads


def job(entry: Entry, python: str, overrides: Sequence[str]) -> Job:
    """The command of an entry of the registry, with overrides."""
    arguments = [*entry.overrides, *overrides]
    words = [python, str(REPOSITORY / entry.command), *arguments]
    title = " ".join(["python", entry.command, *arguments])
    return Job(entry.name, words, title, entry.seconds, entry.after, entry.gpu)


@dataclass(frozen=True)
class Memory:
    """What a command is taken to need, in GB (10^9 bytes).

    Attributes:
        command: by itself.
        log: more for each GB of the events' files.
    """

    command: float
    log: float


@dataclass(frozen=True)
class Settings:
    """How the commands are run.

    Attributes:
        jobs: commands at once; None: as many as there are cores and memory for.
        gpu_jobs: of those that use a GPU, where there is one.
        grace: seconds that a command has to end itself when another one failed.
        only: names of blocks; None: all.
    """

    jobs: int | None
    gpu_jobs: int
    grace: float
    only: list[str] | None

    def __post_init__(self) -> None:
        """Refuse settings that make no sense.

        Raises:
            UserError: no command at a time.
        """
        require_positive(self, "", "gpu_jobs", *([] if self.jobs is None else ["jobs"]))
        require(self.grace >= 0, "grace", self.grace, "at least 0")


SETTINGS: Final = [field.name for field in fields(Settings)]
OWN: Final = [*SETTINGS, "memory"]  # keys of the config that are not the commands'


def default_jobs(memory: Memory, gpu_jobs: int, entries: Collection[Entry], paths: DataPaths) -> int:
    """As many as there are commands that can run at once, cores, and memory for."""
    log = sum(file.stat().st_size for file in paths.raw.glob("*.parquet")) / 1e9
    needed = memory.command + memory.log * log
    on_gpu = sum(entry.gpu for entry in entries)
    at_once = min(gpu_jobs, on_gpu) + len(entries) - on_gpu
    return max(1, min(at_once, cores(), int(free_memory() / 1e9 / needed)))


def shared_cores(jobs: int) -> dict[str, str]:
    """The environment of a command that has its share of the cores; who set fewer threads keeps them."""
    share = str(min(threads(), max(1, cores() // jobs)))
    polars = os.environ.get("POLARS_MAX_THREADS", "")
    fewer = polars if polars.isdecimal() and 0 < int(polars) < int(share) else share
    return os.environ | {"OMP_NUM_THREADS": share, "POLARS_MAX_THREADS": fewer}


def passed_on(words: Sequence[str]) -> list[str]:
    """The overrides that are the commands', not this one's."""
    return [word for word in words if word.lstrip("+").partition("=")[0].partition(".")[0] not in OWN]


def remarked(log: Path) -> list[str]:
    """What a command's log says of a block that is narrower than asked for, has collapsed or learned too little."""
    lines = log.read_text(errors="replace").splitlines()
    last = [line for line in lines[-1:] if any(f"{remark}: " in line for remark in REMARKS)]
    return [line for line in lines if CUT in line] + last


def without_left_out(todo: Sequence[Entry], common: Common) -> list[Entry]:
    """The entries that the history has events for; a line on the terminal for each of the others."""
    made, left_out = can_be_made(common.paths, common.submit, common.moment)
    for entry in todo:
        if entry.name in left_out:
            say(left_out[entry.name])
    return [entry for entry in todo if entry in made]


@command("scripts", "all_embeddings")
def main(config: DictConfig) -> list[str]:
    """Run the commands; the names of the registry's entries that were made."""
    common, settings = Common.of(config), parse(Settings, config, SETTINGS)
    todo = without_left_out(entries() if settings.only is None else with_what_they_read(settings.only), common)
    gpu_jobs = settings.gpu_jobs if has_gpu() else len(todo)
    jobs = settings.jobs or default_jobs(parse(Memory, config, at="memory"), gpu_jobs, todo, common.paths)
    logs = None if jobs == 1 else Path(HydraConfig.get().runtime.output_dir)
    began = time.monotonic()
    try:
        made = run_all(todo, Limits(jobs, gpu_jobs, settings.grace), logs)
    except JobFailed as failed:
        where = "see above" if failed.log is None else f"its log: {failed.log}"
        lines = [*failed.lines(), f"error: {failed}, {where}; fix it and start again: what is done is skipped"]
        sys.stderr.write("".join(f"{line}\n" for line in lines))
        raise SystemExit(failed.code) from failed
    say(f"all embeddings · {time.monotonic() - began:.0f} s")
    return made


def run_all(todo: Sequence[Entry], limits: Limits, logs: Path | None) -> list[str]:
    """Run the entries' commands and say on the terminal how far they are.

    Args:
        todo: in the order of the published document.
        limits: with one job at a time they run in that order, otherwise the longest first.
        logs: folder for what each command says; None: the terminal.

    Returns:
        The names of those that were made: not those that the history turned out to have too few events for.

    Raises:
        JobFailed: the first that did.
    """
    finished, made = 0, [entry.name for entry in todo]

    def started(job: Job) -> None:
        if logs is not None:
            say(f"{job.title} · begins")

    def done(job: Job, seconds: float) -> None:
        nonlocal finished
        finished += 1
        say(f"[{finished}/{len(made)}] {job.title} · {seconds:.0f} s")
        for remark in remarked(logs / f"{job.name}.log") if logs is not None else []:
            say(remark)

    def left_out(job: Job, reason: str) -> None:
        made.remove(job.name)
        say(f"{job.name} is left out: {reason}")

    python = os.environ.get("PYTHON") or sys.executable
    commands = [job(entry, python, passed_on(sys.argv[1:])) for entry in todo]
    environment = dict(os.environ)
    if logs is not None:
        commands, environment = longest_first(commands), shared_cores(limits.jobs)
        share = environment["OMP_NUM_THREADS"]
        say(f"{limits.jobs} commands at once, threads each: {share}; their logs: {logs}")
    run_jobs(commands, limits, environment, logs, started, done, left_out)
    return made


if __name__ == "__main__":
    main()
