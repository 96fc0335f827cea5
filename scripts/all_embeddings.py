"""Make all embeddings: what ``sh get_all_embeddings.sh`` runs.

    sh get_all_embeddings.sh submit=False preset=demo       overrides are given to every command
    sh get_all_embeddings.sh submit=False jobs=1            one command after the other, on this terminal
    sh get_all_embeddings.sh 'only=[stat_features,dcn]'     these blocks, and what they read
    sh get_all_embeddings.sh 'overrides={dcn: ["trainer.max_epochs=3"]}'    to one command alone
    sh get_all_embeddings.sh submit=False engine=ray        on a Ray cluster (docs/cluster.md)

The commands are those of the registry (configs/blocks.yaml). They are independent, except that the language model
reads texts that two of them make. As many run at once as there are cores and memory for (``jobs``), the longest
first, each with its share of the cores: on a CPU most of them gain little from a second core. Each then writes to a
log of its own beside Hydra's output, and the terminal shows when it begins and when it is done. One at a time uses
the GPU (``gpu_jobs``). Each command skips what is done. Blocks that the history has no events for, or not enough, are
left out, with a line each. The first command that fails otherwise ends the others, with its exit code.

With ``engine=ray`` each command is a task of a Ray cluster, on whatever node has the cores, the memory and the GPU for
it; a task whose node is lost begins again on another one.
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
from ubp.cli.config import RAY, Common, config_of, parse
from ubp.cli.jobs import Job, JobFailed, Limits, Processes, Runner, longest_first, run_jobs
from ubp.cli.object_store import as_given
from ubp.cli.output import REMARKS, say
from ubp.cli.ray_tasks import RayTasks, Resources, cluster, need_line, told_settings
from ubp.cli.recipe import need_of
from ubp.data.paths import REPOSITORY, DataPaths
from ubp.io.errors import name_some, require, require_positive
from ubp.io.faults import no_room
from ubp.io.machine import cores, free_memory, has_gpu, threads


def job(entry: Entry, python: str, overrides: Sequence[str]) -> Job:
    """The command of an entry of the registry, with overrides; a later one of the same setting counts more."""
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
        overrides: by name, further overrides of a block's command; None: of no one's.
    """

    jobs: int | None
    gpu_jobs: int
    grace: float
    only: list[str] | None
    overrides: dict[str, list[str]] | None = None

    def __post_init__(self) -> None:
        """Refuse settings that make no sense.

        Raises:
            UserError: no command at a time, or overrides of a block that there is not.
        """
        require_positive(self, "", "gpu_jobs", *([] if self.jobs is None else ["jobs"]))
        require(self.grace >= 0, "grace", self.grace, "at least 0")
        names = [entry.name for entry in entries()]
        unknown = [name for name in self.overrides or {} if name not in names]
        require(not unknown, "overrides", name_some(unknown), f"some of {', '.join(names)}")


SETTINGS: Final = [field.name for field in fields(Settings)]
OWN: Final = [*SETTINGS, "memory", "engine"]  # keys of the config that are not the commands'


def gigabytes(memory: Memory, paths: DataPaths) -> float:
    """That a command is taken to need for the log below the data path."""
    log = sum(file.stat().st_size for file in paths.raw.glob("*.parquet")) / 1e9
    return memory.command + memory.log * log


def default_jobs(memory: Memory, gpu_jobs: int, entries: Collection[Entry], paths: DataPaths) -> int:
    """As many as there are commands that can run at once, cores, and memory for."""
    needed = gigabytes(memory, paths)
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


@command("scripts", "all_embeddings", spreads=True)
def main(config: DictConfig) -> list[str]:
    """Run the commands; the names of the registry's entries that were made."""
    common, settings = Common.of(config), parse(Settings, config, SETTINGS)
    todo = without_left_out(entries() if settings.only is None else with_what_they_read(settings.only), common)
    run = on_cluster if common.engine == RAY else on_this_machine
    began = time.monotonic()
    try:
        made = run(todo, settings, parse(Memory, config, at="memory"), common.paths)
    except JobFailed as failed:
        where = "see above" if failed.log is None else f"its log: {failed.log}"
        lines = [*failed.lines(), f"error: {failed}, {where}; fix it and start again: what is done is skipped"]
        if failed.log and (full := no_room(failed.log)) and full.messages[0] not in "\n".join(lines):
            lines.insert(-1, f"error: {full}")  # the command's own line found no room
        sys.stderr.write("".join(f"{line}\n" for line in lines))
        raise SystemExit(failed.code) from failed
    say(f"all embeddings · {time.monotonic() - began:.0f} s")
    return made


def on_this_machine(todo: Sequence[Entry], settings: Settings, memory: Memory, paths: DataPaths) -> list[str]:
    """Run the entries' commands as processes; see `run_all`."""
    gpu_jobs = settings.gpu_jobs if has_gpu() else len(todo)
    jobs = settings.jobs or default_jobs(memory, gpu_jobs, todo, paths)
    commands = jobs_of(todo, settings)
    if jobs == 1:
        return run_all(commands, Limits(jobs, gpu_jobs), Processes(dict(os.environ), None, settings.grace), None)
    environment, logs = shared_cores(jobs), output_folder()
    say(f"{jobs} commands at once, threads each: {environment['OMP_NUM_THREADS']}; their logs: {logs}")
    runner = Processes(environment, logs, settings.grace)
    return run_all(longest_first(commands), Limits(jobs, gpu_jobs), runner, logs)


def on_cluster(todo: Sequence[Entry], settings: Settings, memory: Memory, paths: DataPaths) -> list[str]:
    """Run the entries' commands as tasks of a Ray cluster; see `run_all`."""
    commands, logs = longest_first(jobs_of(todo, settings)), output_folder()
    with cluster() as found:
        jobs = settings.jobs or max(1, min(len(todo), found.cores))
        cpus, usual = found.share(jobs), int(gigabytes(memory, paths) * 1e9)
        needs = dict[str, Resources]()
        for entry in todo:
            own = need_of(entry, config_of(entry, overrides_of(entry, settings))) if entry.in_memory else None
            needs[entry.name] = Resources(cpus, int(entry.gpu and found.gpus > 0), own.memory if own else usual)
            found.require(entry.name, needs[entry.name], told_settings(own) if own else "memory.command")
            if own:
                say(need_line(entry.name, own))
        say(
            f"{len(found.nodes)} nodes, {found.cores} cores, {found.gpus} GPUs; up to {jobs} commands at once, threads "
            f"each: {cpus}; their logs: {logs}"
        )
        # Of those that use a GPU as many as there are GPUs run at once: Ray lets the others wait.
        return run_all(commands, Limits(jobs, len(todo)), RayTasks(needs, paths.root, logs, settings.grace), logs)


def output_folder() -> Path:
    """Where this run's logs lie."""
    return Path(HydraConfig.get().runtime.output_dir)


def jobs_of(todo: Sequence[Entry], settings: Settings) -> list[Job]:
    """The entries' commands, in their order; what is asked of one command alone counts more than what is of all."""
    python = os.environ.get("PYTHON") or sys.executable
    return [job(entry, python, as_given(overrides_of(entry, settings))) for entry in todo]


def overrides_of(entry: Entry, settings: Settings) -> list[str]:
    """What an entry's command is told beside its own overrides."""
    return [*passed_on(sys.argv[1:]), *(settings.overrides or {}).get(entry.name, [])]


def run_all(commands: Sequence[Job], limits: Limits, runner: Runner, logs: Path | None) -> list[str]:
    """Run commands and say on the terminal how far they are.

    Args:
        commands: in the order of preference.
        limits: how many at once.
        runner: where.
        logs: folder for what each command says; None: the terminal.

    Returns:
        The names of those that were made: not those that the history turned out to have too few events for.

    Raises:
        JobFailed: the first that did.
    """
    finished, made = 0, [job.name for job in commands]

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

    run_jobs(commands, limits, runner, started, done, left_out)
    return made


if __name__ == "__main__":
    main()
