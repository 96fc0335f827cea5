"""Make all twelve embeddings of the 2nd place: what ``sh get_all_embeddings.sh`` runs.

    sh get_all_embeddings.sh submit=False preset=demo       overrides are given to every command
    sh get_all_embeddings.sh submit=False jobs=1            one command after the other, on this terminal

The commands do not need one another, but for the texts that the language model reads. So as many run side by
side as there are cores and memory for (``jobs``), the longest first, each with its share of the cores: on a CPU
most of them gain little from a second core. What a command says is then kept in a file of its own beside Hydra's
output, and the terminal has a line when it begins and one when it is done. Of those that can use a GPU one at a
time has it (``gpu_jobs``). What is done is skipped by the commands themselves. The first that fails ends the
others, with its exit code.
"""

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Final

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from ubp.cli.command import command
from ubp.cli.config import Common, parse
from ubp.cli.jobs import Job, JobFailed, Limits, longest_first, run_jobs
from ubp.cli.output import COLLAPSED, say
from ubp.data.paths import REPOSITORY, DataPaths
from ubp.io.errors import require, require_positive
from ubp.io.machine import cores, free_memory, has_gpu, threads


@dataclass(frozen=True)
class Command:
    """A command of the repository.

    Attributes:
        name: of its log.
        line: script and arguments.
        seconds: in the demo, on one core beside another command; only which is longer matters.
        after: names of the commands whose results it reads.
        gpu: can use one.
    """

    name: str
    line: str
    seconds: int
    after: tuple[str, ...] = ()
    gpu: bool = True

    def job(self, python: str, overrides: Sequence[str]) -> Job:
        script, *arguments = [*self.line.split(), *overrides]
        words = [python, str(REPOSITORY / script), *arguments]
        return Job(self.name, words, " ".join(["python", script, *arguments]), self.seconds, self.after, self.gpu)


# In the order of the published document.
COMMANDS: Final = (
    Command("stat_features", "stat_features/stat_features.py", 2, gpu=False),
    Command("als_buy_add_categories", "ALS/als_embeddings.py --config-name=als_buy_add_categories", 3),
    Command("als_visits_relevant", "ALS/als_embeddings.py --config-name=als_visits_relevant", 1),
    Command("gru_ae_day_event", "gru_autoencoder/gru_ae_day_event_embeddings.py", 54),
    Command("gru_ae_sku_text", "gru_autoencoder/gru_ae_sku_text_embeddings.py", 28),
    Command(
        "gru_ae_event_cat_price_sku_url",
        "gru_autoencoder/gru_ae_embeddings.py --config-name=gru_ae_event_cat_price_sku_url",
        36,
    ),
    Command(
        "gru_ae_week_event_cat_price_sku_url",
        "gru_autoencoder/gru_ae_embeddings.py --config-name=gru_ae_week_event_cat_price_sku_url",
        58,
    ),
    Command("next_sku", "next_sku/next_sku_embeddings.py", 57),
    Command("next_url", "next_url/next_url_embeddings.py", 50),
    Command("preprocessing_search", "LLM/preprocessing_search.py", 1, gpu=False),
    Command("convert_to_text", "LLM/convert_to_text.py", 1, gpu=False),
    Command("search_llm", "LLM/get_embeddings.py", 13, ("preprocessing_search",)),
    Command(
        "smollm2_all_interactions",
        "LLM/get_embeddings.py data_files=all_interactions_64.parquet save_dir_name=smollm2_all_interactions "
        "n_components=128",
        54,
        ("convert_to_text",),
    ),
    Command("lightfm", "LightFM/lightfm_train.py", 21, gpu=False),
)


@dataclass(frozen=True)
class Memory:
    """What a command holds at the most, in GB (10^9 bytes): by the preset, and for each GB of the events' files."""

    full: float
    demo: float
    log: float


@dataclass(frozen=True)
class Settings:
    """How the commands are run.

    Attributes:
        jobs: commands side by side; None: as many as there are cores and memory for.
        gpu_jobs: of those that use a GPU, where there is one.
        grace: seconds that a command has to end itself when another one failed.
    """

    jobs: int | None
    gpu_jobs: int
    grace: float

    def __post_init__(self) -> None:
        """Refuse settings that make no sense.

        Raises:
            UserError: no command at a time.
        """
        require_positive(self, "", "gpu_jobs", *([] if self.jobs is None else ["jobs"]))
        require(self.grace >= 0, "grace", self.grace, "at least 0")


SETTINGS: Final = [field.name for field in fields(Settings)]
OWN: Final = [*SETTINGS, "memory"]  # keys of the config that are not the commands'


def default_jobs(memory: Memory, gpu_jobs: int, preset: str, paths: DataPaths) -> int:
    """As many as there are commands that can run at once, cores, and memory for."""
    log = sum(file.stat().st_size for file in paths.raw.glob("*.parquet")) / 1e9
    needed = (memory.demo if preset == "demo" else memory.full) + memory.log * log
    at_once = min(gpu_jobs, sum(each.gpu for each in COMMANDS)) + sum(not each.gpu for each in COMMANDS)
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


def collapses(log: Path) -> list[str]:
    """What a command's log says of a block whose vectors hardly tell clients apart: its last line, or nothing."""
    lines = log.read_text(errors="replace").splitlines()[-1:]
    return [line for line in lines if COLLAPSED in line]


@command("scripts", "all_embeddings")
def main(config: DictConfig) -> None:
    common, settings = Common.of(config), parse(Settings, config, SETTINGS)
    hydra = HydraConfig.get().runtime
    gpu_jobs = settings.gpu_jobs if has_gpu() else len(COMMANDS)
    memory = parse(Memory, config, at="memory")
    jobs = settings.jobs or default_jobs(memory, gpu_jobs, hydra.choices["preset"], common.paths)
    python = os.environ.get("PYTHON") or sys.executable
    todo = [each.job(python, passed_on(sys.argv[1:])) for each in COMMANDS]
    began, finished = time.monotonic(), 0
    logs = None if jobs == 1 else Path(hydra.output_dir)

    def started(job: Job) -> None:
        if logs is not None:
            say(f"{job.title} · begins")

    def done(job: Job, seconds: float) -> None:
        nonlocal finished
        finished += 1
        say(f"[{finished}/{len(todo)}] {job.title} · {seconds:.0f} s")
        for warning in collapses(logs / f"{job.name}.log") if logs is not None else []:
            say(warning)

    if logs is not None:
        todo = longest_first(todo)
        share = shared_cores(jobs)["OMP_NUM_THREADS"]
        say(f"{jobs} commands side by side, threads each: {share}; what they say: {logs}")
    limits = Limits(jobs, gpu_jobs, settings.grace)
    try:
        run_jobs(todo, limits, dict(os.environ) if logs is None else shared_cores(jobs), logs, started, done)
    except JobFailed as failed:
        where = "see above" if failed.log is None else f"its log: {failed.log}"
        lines = [*failed.lines(), f"error: {failed}, {where}; fix it and start again: what is done is skipped"]
        sys.stderr.write("".join(f"{line}\n" for line in lines))
        raise SystemExit(failed.code) from failed
    say(f"all embeddings · {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
