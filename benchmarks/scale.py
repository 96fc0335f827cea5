"""Does every stage before the GPU bear the challenge's size? Time, memory and growth, stage by stage.

    pip install -r benchmarks/requirements.txt
    python benchmarks/scale.py scales=[0.01,0.1]       some minutes
    python benchmarks/scale.py                         and 1.0: half an hour, 24 GB of memory, 30 GB of disk
    python benchmarks/scale.py only=[split] again=[split] scales=[0.1]

Data is made by scripts/make_synthetic_data.py, below ``$CHALLENGE_DATA_PATH/scale/SCALE``. Each stage is a
process of its own, the real command where there is one, with the validation done before (they are stages of
their own). Beside it its floor, also a process: for tables a bare scan of the same columns, for the sequence
store Polars' bare sort by client and time, for many days of numeric features one of them. Caches are warm: what a
stage reads was written or read shortly before; but the relevant clients' events that the library keeps are taken from
the log anew by each stage that reads features. Ends with a table for each scale, the goals, and pandas beside what
is ours; written to ``report`` and ``plot``. What was measured is noted beside the data: a killed run goes on, and
tables of several runs are one.
"""

import json
import logging
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from omegaconf import DictConfig
from rich.table import Table

from benchmarks.measuring import as_markdown, run_apart, write_report
from ubp.blocks.embeddings import EmbeddingTable, read_lineage
from ubp.blocks.fitted import load
from ubp.cli.command import command
from ubp.cli.config import Common, parse
from ubp.cli.output import closing_line, say, show
from ubp.cli.plotting import pyplot
from ubp.data import schema
from ubp.data.history import ChallengeData
from ubp.data.paths import REPOSITORY, DataPaths
from ubp.data.reading import collect
from ubp.data.schema import EventType
from ubp.data.targets import TASKS, load_targets
from ubp.evaluation.tasks import labels, load_window
from ubp.io.errors import name_some, require
from ubp.io.files import atomic_write
from ubp.sequences.build import build_or_open

logger = logging.getLogger(__name__)

MEASURED = "measured.json"
MARKS = "<!-- measured by benchmarks/scale.py -->", "<!-- end of what was measured -->"
GOALS_AT = 1.0
DAYS = 20  # that numeric_features_days encodes

_TIMES = (schema.CLIENT_ID, schema.TIMESTAMP)
_ITEMS = (EventType.PRODUCT_BUY, EventType.ADD_TO_CART)
Columns = dict[EventType, tuple[str, ...]]


@dataclass(frozen=True)
class Goal:
    """What some stages must keep to at scale 1.0; see the config."""

    stages: tuple[str, ...]
    seconds: float | None = None
    gigabytes: float | None = None
    floors: float | None = None


@dataclass
class ScaleSettings:
    """See configs/scripts/scale.yaml."""

    scales: list[float]
    only: list[str] | None
    again: list[str]
    report: str
    plot: str | None
    pandas_scales: list[float]
    dcn_scales: list[float]
    merge: str
    random_blocks: dict[str, int]
    goals: list[dict[str, Any]]
    here: str | None


@dataclass(frozen=True)
class Stage:
    """One thing that is measured.

    Attributes:
        name: in the tables.
        words: the command; empty for a step of this file, which `STEPS` has by the stage's name.
        reads: which columns of which events; they make the floor and the rows per second.
        raw: whether it reads all events (else the history before the train window).
        floor: the step that stands beside it, of `FLOORS`; None for none.
    """

    name: str
    words: tuple[str, ...] = ()
    reads: Columns = field(default_factory=dict)
    raw: bool = False
    floor: str | None = None

    @property
    def script(self) -> Path:
        return REPOSITORY / (self.words[0] if self.words else "benchmarks/scale.py")


@dataclass(frozen=True)
class Measurement:
    """Of one process: seconds by the clock, seconds of CPU, the peak of its memory in MB, rows it went through."""

    seconds: float
    cpu: float
    megabytes: float
    rows: int


ALL_COLUMNS: Columns = {event_type: schema.event_columns(event_type) for event_type in schema.EVENT_TYPES}
STAT_COLUMNS: Columns = ALL_COLUMNS | {
    EventType.REMOVE_FROM_CART: _TIMES,
    EventType.SEARCH_QUERY: _TIMES,
}


def stages(scale: float, settings: ScaleSettings) -> list[Stage]:
    """What is measured at a scale, in order."""
    here, local = "overwrite=True", ("overwrite=True", "submit=False")
    als, numeric = "ALS/als_embeddings.py", "numeric_features/numeric_features.py"
    listed = [
        Stage("make_synthetic_data", ("scripts/make_synthetic_data.py", f"scale={scale}", here), ALL_COLUMNS, raw=True),
        Stage("validation_text", reads=ALL_COLUMNS, raw=True, floor="scan"),
        Stage("split", ("scripts/split.py", here), ALL_COLUMNS, raw=True, floor="scan"),
        Stage("validation_datetime", reads=ALL_COLUMNS, floor="scan"),
        Stage("stat_features", ("stat_features/stat_features.py", *local), STAT_COLUMNS, floor="scan"),
        Stage(
            "als_64_buy_add_categories",
            (als, "--config-name=als_buy_add_categories", *local),
            dict.fromkeys(_ITEMS, (schema.CLIENT_ID, schema.SKU)),
            floor="scan",
        ),
        Stage(
            "als_64_visits_relevant",
            (als, "--config-name=als_visits_relevant", *local),
            {EventType.PAGE_VISIT: (schema.CLIENT_ID, schema.URL)},
            floor="scan",
        ),
        Stage("sequence_store", reads=ALL_COLUMNS, floor="sort"),
        Stage(
            "search_texts",
            ("LLM/preprocessing_search.py", *local),
            {EventType.SEARCH_QUERY: ALL_COLUMNS[EventType.SEARCH_QUERY]},
            floor="scan",
        ),
        Stage("all_texts", ("LLM/convert_to_text.py", *local), ALL_COLUMNS, floor="scan"),
        Stage("merge", ("scripts/merge.py", f"--config-name={settings.merge}", *local)),
        Stage("target_labels"),
        Stage("numeric_features", (numeric, here), ALL_COLUMNS, raw=True, floor="scan"),
        Stage("numeric_features_one_day", reads=ALL_COLUMNS, raw=True, floor="scan"),
        Stage("numeric_features_days", reads=ALL_COLUMNS, raw=True, floor="one_day"),
        Stage(
            "numeric_features_wide",
            (numeric, "--config-name=numeric_features_wide", here),
            ALL_COLUMNS,
            raw=True,
            floor="scan",
        ),
    ]
    if _is_among(scale, settings.dcn_scales):
        listed.append(Stage("dcn", ("dcn/dcn_embeddings.py", "logger=none", here), ALL_COLUMNS, raw=True))
    if _is_among(scale, settings.pandas_scales):
        listed += [
            Stage("pandas_stat_features", ("benchmarks/pandas_stat_features.py",), STAT_COLUMNS),
            Stage("pandas_sequences", ("benchmarks/pandas_sequences.py",), ALL_COLUMNS),
        ]
    return listed


def _is_among(scale: float, scales: Sequence[float]) -> bool:
    return any(math.isclose(scale, other) for other in scales)


# Steps that have no command of their own; each runs in a process of its own ----------------------------------


def validation_text(common: Common, _: ScaleSettings) -> None:
    common.data(submit=True)


def validation_datetime(common: Common, _: ScaleSettings) -> None:
    common.data(submit=False)


def sequence_store(common: Common, _: ScaleSettings) -> None:
    build_or_open(common.data(submit=False))


def target_labels(common: Common, _: ScaleSettings) -> None:
    """The labels of every client in both windows, for all six tasks."""
    paths = common.paths
    clients = np.load(paths.relevant_clients)
    for window in (schema.TRAIN_TARGET, schema.VALIDATION_TARGET):
        bought = load_window(paths, window)
        for task in TASKS:
            labels(task, clients, bought, load_targets(paths, task) if task.is_propensity else None)


def numeric_features_one_day(common: Common, _: ScaleSettings) -> None:
    encode_days(common.paths, 1)


def numeric_features_days(common: Common, _: ScaleSettings) -> None:
    encode_days(common.paths, DAYS)


def encode_days(paths: DataPaths, days: int) -> None:
    """The vectors of every relevant client by the fitted block, as of some days a week apart, the last one the end.

    Nothing of the log is kept from before: one day and many days each begin with the event files.
    """
    forget_events(paths)
    history = ChallengeData(paths, submit=True)
    block, clients = load(paths.model("numeric_features", submit=True)), np.sort(history.relevant_clients)
    for weeks in range(days):
        block.vectors(history.before(history.as_of - timedelta(weeks=weeks)), clients)


def forget_events(paths: DataPaths) -> None:
    """Remove the relevant clients' events that are kept of a log (`ubp.data.relevant_events`)."""
    shutil.rmtree(paths.cache / "relevant_events", ignore_errors=True)


def random_blocks(common: Common, settings: ScaleSettings) -> None:
    """Stand-ins for the blocks that a GPU would make, each for nine clients in ten."""
    data, rng = common.data(submit=False), np.random.default_rng(0)
    for name, columns in settings.random_blocks.items():
        block = common.paths.block(name, submit=False)
        if block.exists() and read_lineage(block).get("fingerprint") == data.fingerprint:
            continue
        clients = data.clients[rng.random(len(data.clients)) < 0.9]
        vectors = rng.standard_normal((len(clients), columns), np.float32)
        lineage = {"name": name, "fingerprint": data.fingerprint, "config": {"random": True}}
        EmbeddingTable(clients, vectors, lineage).write(block)


def scan(paths: DataPaths, stage: Stage) -> None:
    """Read the columns of a stage and do next to nothing with them."""
    for event_type, columns in stage.reads.items():
        frame = pl.scan_parquet(paths.history(stage.raw) / event_type.file_name, glob=False).select(columns)
        texts = pl.selectors.string().str.len_bytes().sum()
        collect(frame.select(texts, (~pl.selectors.string()).max()))


def sort(paths: DataPaths, stage: Stage) -> None:
    """Polars' bare sort by client and time of what an event is about, codes as one hash."""
    frames = [
        pl.scan_parquet(paths.history(stage.raw) / event_type.file_name, glob=False).select(
            schema.CLIENT_ID, schema.TIMESTAMP, pl.col(event_type.subject).hash().alias("subject")
        )
        for event_type in stage.reads
    ]
    collect(pl.concat(frames).sort(schema.CLIENT_ID, schema.TIMESTAMP))


def one_day(paths: DataPaths, _: Stage) -> None:
    """What many days are held against."""
    encode_days(paths, 1)


FLOORS: Mapping[str, Callable[[DataPaths, Stage], None]] = {"scan": scan, "sort": sort, "one_day": one_day}
STEPS: Mapping[str, Callable[[Common, ScaleSettings], None]] = {
    step.__name__: step
    for step in (
        *(validation_text, validation_datetime, sequence_store, target_labels, random_blocks),
        *(numeric_features_one_day, numeric_features_days),
    )
}


def take_step(common: Common, settings: ScaleSettings, name: str) -> None:
    """One step, here in this process: a stage's, or its floor (``STAGE:floor``)."""
    if name in STEPS:
        STEPS[name](common, settings)
        return
    stage = next(stage for stage in stages(GOALS_AT, settings) if f"{stage.name}:floor" == name)
    FLOORS[str(stage.floor)](common.paths, stage)


# Measuring ---------------------------------------------------------------------------------------------------


def prepare(stage: Stage, paths: DataPaths) -> None:
    """What a stage needs, or must not find, before it is measured."""
    if stage.name == "make_synthetic_data":
        return
    if stage.name.startswith("validation"):
        shutil.rmtree(paths.cache / "checked", ignore_errors=True)
        return
    forget_events(paths)
    run_here("validation_text" if stage.raw else "validation_datetime", paths.root)
    if stage.name == "sequence_store":
        shutil.rmtree(paths.cache / "sequences", ignore_errors=True)
    if stage.name == "merge":
        run_here("random_blocks", paths.root)


def run_here(step: str, root: Path) -> tuple[float, float, float]:
    """A step of this file, in a process of its own."""
    log = root / "logs" / f"{step.replace(':', '_')}.log"
    return run_apart(REPOSITORY / "benchmarks" / "scale.py", [f"here={step}"], root, log)


def rows_of(stage: Stage, paths: DataPaths) -> int:
    """Events that a stage reads; clients where it reads none."""
    files = [paths.history(stage.raw) / event_type.file_name for event_type in stage.reads]
    if not files:
        return len(np.load(paths.relevant_clients, mmap_mode="r"))
    return sum(int(pl.scan_parquet(file, glob=False).select(pl.len()).collect().item()) for file in files)


class Notes:
    """What was measured at one scale, kept in a file beside the data: stage or ``STAGE:floor`` to figures."""

    def __init__(self, root: Path) -> None:
        self.file = root / MEASURED
        self.figures: dict[str, Measurement] = {}
        if self.file.exists():
            noted = json.loads(self.file.read_text())
            self.figures = {name: Measurement(**figures) for name, figures in noted.items()}

    def note(self, name: str, figures: Measurement) -> None:
        self.figures[name] = figures
        with atomic_write(self.file) as aside:
            aside.write_text(json.dumps({name: asdict(figures) for name, figures in self.figures.items()}, indent=1))


def measure(scale: float, settings: ScaleSettings, root: Path) -> None:
    """Measure what was not measured yet at this scale, or is to be measured again."""
    paths, notes = DataPaths(root), Notes(root)
    for stage in stages(scale, settings):
        wanted = settings.only is None or stage.name in settings.only
        if not wanted or (stage.name in notes.figures and stage.name not in settings.again):
            continue
        if not stage.script.exists():
            logger.warning("%s: skipped, %s is not there", stage.name, stage.script)
            continue
        prepare(stage, paths)
        if stage.floor is not None:
            figures = run_here(f"{stage.name}:floor", root)
            notes.note(f"{stage.name}:floor", Measurement(*figures, rows_of(stage, paths)))
        log = root / "logs" / f"{stage.name}.log"
        figures = run_apart(stage.script, stage.words[1:], root, log) if stage.words else run_here(stage.name, root)
        notes.note(stage.name, Measurement(*figures, rows_of(stage, paths)))
        logger.info("scale %g: %s %.1f s, %.0f s of CPU, %.0f MB", scale, stage.name, *figures)


# Showing -----------------------------------------------------------------------------------------------------


def measured_rows(scale: float, settings: ScaleSettings, by_scale: Mapping[float, Notes]) -> list[list[str]]:
    """A row for each stage: see `HEADINGS`."""
    figures = by_scale[scale].figures
    smaller = max((other for other in by_scale if other < scale), default=None)
    rows = []
    for stage in stages(scale, settings):
        if (own := figures.get(stage.name)) is None:
            there = stage.script.exists()
            rows.append([stage.name, "not measured" if there else "not there", *[""] * (len(HEADINGS) - 2)])
            continue
        floor = figures.get(f"{stage.name}:floor")
        before = by_scale[smaller].figures.get(stage.name) if smaller is not None else None
        beside = ["", "", ""]
        if floor is not None:
            ratios = own.seconds / floor.seconds, own.cpu / floor.cpu
            beside = [f"{floor.seconds:.1f}", *(f"{ratio:.1f}" for ratio in ratios)]
        growth = f"{own.cpu / before.cpu / (scale / smaller):.2f}" if before and smaller else ""
        speed = f"{own.rows / own.seconds:,.0f}"
        costs = f"{own.seconds:.1f}", f"{own.cpu:.1f}", f"{own.megabytes:,.0f}", f"{own.rows:,}", speed
        rows.append([stage.name, *costs, *beside, growth])
    return rows


HEADINGS = ("stage", "s", "CPU s", "peak MB", "rows", "rows/s", "floor s", "× floor", "× its CPU", "growth")


def goal_rows(settings: ScaleSettings, notes: Notes) -> list[list[str]]:
    """A row for each goal: the stages, what was asked, what was measured, whether it holds."""
    rows = []
    for goal in (Goal(**{**wanted, "stages": tuple(wanted["stages"])}) for wanted in settings.goals):
        own = [notes.figures[name] for name in goal.stages if name in notes.figures]
        if len(own) < len(goal.stages):
            rows.append([" + ".join(goal.stages), "", "not measured", ""])
            continue
        seconds, gigabytes = sum(each.seconds for each in own), max(each.megabytes for each in own) / 1000
        floors = sum(notes.figures[f"{name}:floor"].seconds for name in goal.stages) if goal.floors else 1.0
        kept = [
            (f"{limit:g} {unit}", f"{reached:.1f} {unit}", reached <= limit)
            for limit, unit, reached in (
                (goal.seconds, "s", seconds),
                (goal.floors, "× floor", seconds / floors),
                (goal.gigabytes, "GB", gigabytes),
            )
            if limit is not None
        ]
        asked, reached, holds = zip(*kept, strict=True)
        rows.append([" + ".join(goal.stages), ", ".join(asked), ", ".join(reached), "yes" if all(holds) else "NO"])
    return rows


def pandas_rows(by_scale: Mapping[float, Notes]) -> list[list[str]]:
    """A row for each scale and stage that pandas was measured at: times and memory, and both ratios."""
    rows = []
    for scale, notes in by_scale.items():
        for ours, theirs in (("stat_features", "pandas_stat_features"), ("sequence_store", "pandas_sequences")):
            if ours in notes.figures and theirs in notes.figures:
                a, b = notes.figures[ours], notes.figures[theirs]
                times = f"{a.seconds:.1f}", f"{b.seconds:.1f}", f"{b.seconds / a.seconds:.1f}"
                memory = f"{a.megabytes:,.0f}", f"{b.megabytes:,.0f}", f"{b.megabytes / a.megabytes:.1f}"
                rows.append([f"{scale:g}", ours, *times, *memory])
    return rows


PANDAS_HEADINGS = ("scale", "stage", "s", "pandas s", "ratio", "MB", "pandas MB", "ratio of MB")


Shown = tuple[str, tuple[str, ...], list[list[str]]]


def tables(settings: ScaleSettings, by_scale: Mapping[float, Notes]) -> list[Shown]:
    """Title, headings and rows of every table there is something for."""
    listed: list[Shown] = [
        (f"scale {scale:g}", HEADINGS, measured_rows(scale, settings, by_scale))
        for scale, notes in by_scale.items()
        if notes.figures
    ]
    if GOALS_AT in by_scale and by_scale[GOALS_AT].figures:
        goals = goal_rows(settings, by_scale[GOALS_AT])
        listed.append((f"goals at scale {GOALS_AT:g}", ("stages", "goal", "measured", "kept"), goals))
    if compared := pandas_rows(by_scale):
        listed.append(("pandas beside it", PANDAS_HEADINGS, compared))
    return listed


def draw(file: Path, by_scale: Mapping[float, Notes], names: Sequence[str]) -> None:
    """Seconds of CPU against scale, both logarithmic: linear growth is the slope of the dashed line.

    Raises:
        UserError: matplotlib is missing.
    """
    plt = pyplot()
    figure, axes = plt.subplots(figsize=(9, 6))
    for number, name in enumerate(names):
        points = [(scale, notes.figures[name].cpu) for scale, notes in by_scale.items() if name in notes.figures]
        if len(points) > 1:
            axes.loglog(
                *zip(*points, strict=True), marker="o", label=name, color=f"C{number}", ls="-:"[number // 10 % 2]
            )
    ends = min(by_scale), max(by_scale)
    axes.loglog(ends, [10 * end / ends[0] for end in ends], "k--", lw=1, label="linear growth")
    axes.set(xlabel="scale (1.0 = the challenge, 170 M events)", ylabel="seconds of CPU")
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    axes.grid(visible=True, which="major", alpha=0.3)
    with atomic_write(file) as aside:
        figure.savefig(aside, dpi=110, bbox_inches="tight")
    plt.close(figure)


@command("scripts", "scale")
def main(config: DictConfig) -> None:
    common = Common.of(config)
    settings = parse(ScaleSettings, config, list(ScaleSettings.__annotations__))
    if settings.here:
        take_step(common, settings, settings.here)
        return
    known = [stage.name for stage in stages(settings.pandas_scales[0], settings)]
    for key, asked in (("only", settings.only or []), ("again", settings.again)):
        unknown = [name for name in asked if name not in known]
        require(not unknown, key, unknown, f"of {name_some(known, 20)}")
    roots = {scale: common.paths.root / "scale" / f"{scale:g}" for scale in sorted(settings.scales)}
    for scale, root in roots.items():
        measure(scale, settings, root.resolve())
    by_scale = {scale: Notes(root) for scale, root in roots.items()}
    shown = tables(settings, by_scale)
    for title, headings, rows in shown:
        table = Table(*headings, title=title)
        for row in rows:
            table.add_row(*row)
        show(table)
    report = REPOSITORY / settings.report
    write_report(report, [as_markdown(*each) for each in shown], MARKS)
    if settings.plot:
        draw(REPOSITORY / settings.plot, by_scale, known)
    say("")
    closing_line(f"{len(roots)} scales measured", report)


if __name__ == "__main__":
    main()
