"""What each block does on a GPU: speed, waiting, share of the device's rate, memory; and is it right?

    python benchmarks/gpu.py                                       on a CUDA machine: under 25 minutes
    python benchmarks/gpu.py scale=1.0 minutes=180 block_seconds=3600    at the challenge's size
    python benchmarks/gpu.py blocks=[next_sku/next_sku]            some blocks alone
    python benchmarks/gpu.py scale=0.001 sizes=demo                its CPU form, where there is no CUDA

Installs nothing and needs nothing but the machine: the log is made up (scripts/make_synthetic_data.py, below
``$CHALLENGE_DATA_PATH/scale/SCALE``, as benchmarks/scale.py does), the language model's weights come with the
requirements. Each block runs in a process of its own with a time limit, so what fails costs one row, which shows
why; the output of the process lies in ``logs/`` beside the data. A model is prepared by its own recipe and trained
for a share of an epoch with the trainer's loader settings. Nothing waits for the GPU within the timed steps:
*waiting* is the time that CUDA's own events show between the end of a step and the begin of the next.

Then a short training on the GPU and on the CPU are compared (``agreement`` in the config): the losses on the
way, and the profiles that both make of the same weights. Exit code 1 if a block failed or does not agree.
"""

import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from rich.table import Table

from benchmarks import gpu_blocks
from benchmarks.gpu_blocks import REFERENCE, Figures, GpuSettings, Task, plain
from benchmarks.measuring import as_markdown, marks_of, run_apart, write_report
from ubp.cli.command import command
from ubp.cli.config import Common, parse
from ubp.cli.output import closing_line, say, show
from ubp.data.paths import REPOSITORY
from ubp.io.errors import UserError, name_some
from ubp.io.files import atomic_write

logger = logging.getLogger(__name__)

SCRIPT = "benchmarks/gpu.py"
MARKS = marks_of(SCRIPT)
ABOUT = "device"
FOLDER = "gpu"  # below the log's data path: what the processes leave
_LEAST_SECONDS = 20.0  # with less time left a block is not begun


def figures_file(folder: Path, name: str) -> Path:
    """Where a step leaves what it measured."""
    return folder / f"{plain(name)}.json"


def note(file: Path, figures: object) -> None:
    """Write a dataclass, or plain figures, as JSON."""
    with atomic_write(file) as aside:
        aside.write_text(json.dumps(figures if isinstance(figures, dict) else asdict(figures)))  # type: ignore[call-overload]


def take_step(task: Task) -> None:
    """What a process of its own does: describe the device, make what a block is compared with, or measure it."""
    if task.name == ABOUT:
        note(figures_file(task.folder, ABOUT), gpu_blocks.about_device(task))
    elif task.name.endswith(REFERENCE):
        gpu_blocks.als_reference(task)
    else:
        for figures in gpu_blocks.measured(task):
            note(figures_file(task.folder, task.name), figures)


# Running -----------------------------------------------------------------------------------------------------


class Runner:
    """Runs the processes of one benchmark within its time.

    Args:
        settings: of the benchmark.
        root: the log's data path.
        words: the overrides that the command was given; each process gets them too.
    """

    def __init__(self, settings: GpuSettings, root: Path, words: Sequence[str]) -> None:
        self.settings, self.root = settings, root
        self._words = [word for word in words if not word.startswith(("here=", "device=", "data_path="))]
        self._end = time.monotonic() + settings.minutes * 60
        self.folder = root / FOLDER
        self.device = settings.device

    @property
    def left(self) -> float:
        """Seconds for a block's next process."""
        return min(self.left_in_all, max(1.0, self.settings.block_seconds))

    @property
    def left_in_all(self) -> float:
        return max(1.0, self._end - time.monotonic())

    def run(self, script: str, words: Sequence[str], name: str, limit: float, hide_gpu: bool = False) -> None:
        """A script in a process of its own, its output in the log of that name; see `run_apart`.

        Raises:
            UserError: it failed or took too long.
        """
        log = self.root / "logs" / f"gpu_{plain(name)}.log"
        hidden = {"CUDA_VISIBLE_DEVICES": ""} if hide_gpu else {}
        run_apart(REPOSITORY / script, words, self.root, log, limit, hidden)

    def here(self, step: str, hide_gpu: bool = False) -> None:
        """A step of this file."""
        words = [word for word in self._words if not (hide_gpu and word.startswith("cuda_visible_devices="))]
        words += ["cuda_visible_devices="] if hide_gpu else []
        self.run(SCRIPT, [*words, f"device={self.device}", f"here={step}"], step, self.left, hide_gpu)

    def prepare(self) -> None:
        """The log, its history, and what some of the blocks read; what is there is left alone."""
        sizes = [f"preset={self.settings.sizes}", "submit=False"]
        wide = ["--config-name=numeric_features_wide", *sizes]
        for script, words, reader in (
            ("scripts/make_synthetic_data.py", [f"scale={self.settings.scale}"], ""),
            ("scripts/split.py", [], ""),
            ("LLM/convert_to_text.py", sizes, "LLM/"),
            ("numeric_features/numeric_features.py", wide, "dcn/"),
        ):
            if not any(name.startswith(reader) for name in self.settings.blocks):
                continue
            started = time.perf_counter()
            self.run(script, words, script, self.left_in_all)
            logger.info("%s: %.0f s", script, time.perf_counter() - started)

    def about(self) -> dict[str, Any]:
        """What the device is, and its rate."""
        self.here(ABOUT)
        about: dict[str, Any] = json.loads(figures_file(self.folder, ABOUT).read_text())
        self.device = str(about["device"])
        return about

    def block(self, name: str) -> Figures:
        """What was measured of a block, or why it was not."""
        file = figures_file(self.folder, name)
        file.unlink(missing_ok=True)
        if self.left < _LEAST_SECONDS:
            return Figures(fault=f"no time left of minutes={self.settings.minutes:g}")
        started = time.perf_counter()
        fault = None
        try:
            if name.startswith("ALS/"):
                self.here(name + REFERENCE, hide_gpu=True)
            self.here(name)
        except UserError as error:
            logger.warning("%s", error)
            fault = short(error)
        figures = Figures.load(file)
        figures.fault = fault
        what = "failed" if fault else "agrees" if figures.agrees else "DOES NOT AGREE"
        logger.info("%s: %s, %.0f s", name, what, time.perf_counter() - started)
        return figures


def short(error: UserError, width: int = 100) -> str:
    """The part of a failed process' line that gives the reason, for a cell of a table."""
    text = str(error)
    if "took longer than" in text:
        return f"took {text.partition('took ')[2].partition(';')[0]}"
    text = text.partition("exit code ")[2].partition(" (")[2].rpartition("); see ")[0] or text
    text = text.removeprefix("error: ").replace("|", "/")
    return text if len(text) <= width else f"{text[:width]}…"


# Showing -----------------------------------------------------------------------------------------------------

HEADINGS = (
    *("block", "events/s", "s per epoch", "waiting", "TFLOP/s", "of the rate", "GPU MB", "host MB"),
    *("losses apart", "profiles apart", "agrees"),
)


def table_row(name: str, figures: Figures, rate: float) -> list[str]:
    """A block's line of the table."""

    def cell(value: float | None, form: str) -> str:
        return "" if value is None else format(value, form)

    costs = [
        cell(figures.speed, ",.0f"),
        cell(figures.epoch, ",.1f"),
        cell(figures.waiting, ".0%"),
        cell(figures.operations and figures.operations / 1e12, ",.2f"),
        cell(figures.operations and figures.operations / rate, ".1%"),
        cell(figures.device_megabytes, ",.0f"),
        cell(figures.host_megabytes, ",.0f"),
    ]
    apart = [
        ", ".join(f"{check.apart:.2%}" for check in figures.checks if check.name.startswith(what))
        for what in ("loss", "profiles")
    ]
    verdict = figures.fault or ("yes" if figures.agrees else "NO")
    return [name.partition("/")[2], *costs, *apart, verdict]


def title_of(about: Mapping[str, Any], settings: GpuSettings) -> str:
    """What was measured where."""
    where = f"{about['name']}, {about['cores']} CPU cores"
    if about["device"] == "cuda":
        where += f", driver {about['driver']}, CUDA {about['cuda']}, cuDNN {about['cudnn']}"
    return f"{where}, torch {about['torch']}; scale {settings.scale:g}, {settings.sizes} size"


def legend(about: Mapping[str, Any], settings: GpuSettings) -> str:
    """What the columns mean, with this run's numbers."""
    bands = settings.agreement
    losses, profiles = (
        ", ".join(f"{band:.1%} in {precision}" for precision, band in allowed.items())
        for allowed in (bands.loss, bands.profiles)
    )
    return (
        f"*events/s*: for ALS pairs of client and item times iterations, for the language model tokens. *s an epoch*: "
        f"at this scale; for ALS all iterations, for the language model {settings.texts:,} texts. *waiting*: share of "
        f"the time in which the device waited for the next batch. *of the rate*: of the {about['rate'] / 1e12:,.1f} "
        f"TFLOP/s that a product of two square matrices of {about['size']:,} rows reached in {about['dtype']}; padding "
        f"counts as work. *host MB*: of the training process, without the loader's. *losses apart*: the largest "
        f"distance from the CPU's losses in float32, over {bands.epochs} epochs of {bands.clients:,} clients without "
        f"dropout (allowed: {losses}). *profiles apart*: distance of the profiles that both make of the same weights, "
        f"as a share of the clients' spread (allowed: {profiles}); for ALS of the predicted scores of pairs that occur "
        f"(allowed: {bands.scores:g} times the distance of two seeds on the CPU). LightFM trains on a CPU only and "
        "has no row."
    )


def parse_settings(config: DictConfig) -> GpuSettings:
    """The benchmark's own settings.

    Raises:
        UserError: a fault in them.
    """
    return parse(GpuSettings, config, list(GpuSettings.__annotations__))


def log_of(common: Common, scale: float) -> Path:
    """The data path of the log of a scale."""
    return (common.paths.root / "scale" / f"{scale:g}").resolve()


@command("scripts", "gpu")
def main(config: DictConfig) -> None:
    common, settings = Common.of(config), parse_settings(config)
    if settings.here:
        take_step(Task(settings.here, common, settings, common.paths.root / FOLDER, settings.device == "cuda"))
        return
    root = log_of(common, settings.scale)
    runner = Runner(settings, root, HydraConfig.get().overrides.task)
    about = runner.about()
    cuda = about["device"] == "cuda"
    say(title_of(about, settings) + ("" if cuda else "\nno CUDA here: these are CPU figures"))
    runner.prepare()
    found = {name: runner.block(name) for name in settings.blocks}
    rows = [table_row(name, figures, about["rate"]) for name, figures in found.items()]
    table = Table(*HEADINGS, title=title_of(about, settings))
    for row in rows:
        table.add_row(*row)
    show(table)
    where = root
    if cuda if settings.write is None else settings.write:
        where = REPOSITORY / settings.report
        measured = as_markdown(title_of(about, settings), HEADINGS, rows)
        write_report(where, [measured, legend(about, settings)], MARKS)
    if failed := [name for name, figures in found.items() if not figures.agrees]:
        raise UserError(
            f"{len(failed)} of {len(found)} blocks failed or do not agree with the CPU: {name_some(failed)}; "
            f"see the table and {root / 'logs'}"
        )
    closing_line(f"{len(found)} blocks measured on {about['name']}", where)


if __name__ == "__main__":
    main()
