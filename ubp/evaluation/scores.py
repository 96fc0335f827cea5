"""What is scored, by which probe, and its scores: loaded, kept beside what was scored, shown; without torch."""

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.table import Table

from ubp import schema
from ubp.data import ChallengeData
from ubp.embeddings import EmbeddingTable
from ubp.entry import read_entry, violations
from ubp.errors import UserError, name_some
from ubp.evaluation.tasks import TASKS
from ubp.files import written_aside
from ubp.merge import align

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Probe:
    """How profiles are scored; the defaults are the judge's.

    Attributes:
        name: as it stands in tables and scores.
        thin: width of the residual stream.
        wide: hidden units of a block.
        epochs: the best of them counts.
        batch_size: rows a step, for training and for scoring.
        learning_rate: of AdamW.
        seeds: one run each; their mean counts.
        side_by_side: on a CPU, one run a core instead of all cores on one run: faster for small models.
    """

    name: str = "judge"
    thin: int = 2048
    wide: int = 4096
    epochs: int = 3
    batch_size: int = 128
    learning_rate: float = 0.001
    seeds: tuple[int, ...] = (1278,)
    side_by_side: bool = False


@dataclass(frozen=True)
class Profiles:
    """What is scored.

    Attributes:
        name: of the block or entry.
        path: where it lies.
        client_ids: int64 [clients].
        vectors: float32 [clients, columns].
    """

    name: str
    path: Path
    client_ids: npt.NDArray[np.int64]
    vectors: npt.NDArray[np.float32]


def scores_file(path: Path, probe: str) -> Path:
    """``scores.json`` (the judge's) or ``scores_light.json`` beside an entry's files, a block's by its name."""
    kind = "scores" if probe == "judge" else f"scores_{probe}"
    return path.with_suffix(f".{kind}.json") if path.suffix == ".parquet" else path / f"{kind}.json"


def load_profiles(name_or_path: str, folder: Path, data: ChallengeData) -> Profiles:
    """A block or an entry, by its name or its path.

    A block is scored over the same clients as an entry: the relevant ones with an event in the history, those
    without the block as zeros.

    Args:
        name_or_path: as the user gave it.
        folder: where names are looked up.
        data: the history.

    Raises:
        UserError: there is no such thing, or it cannot be used.
    """
    path = _find(name_or_path, folder)
    if path.is_dir():
        if faults := violations(path, data.relevant_clients, local=True):
            raise UserError(faults)
        client_ids, halves = read_entry(path)
        return Profiles(path.name, path, client_ids, halves.astype(np.float32))
    table = EmbeddingTable.read(path)
    if table.lineage and table.lineage.get("fingerprint") != data.fingerprint:
        logger.warning(
            "%s: made from another history than %s: if it saw the target windows, its scores mean nothing",
            path, data.folder,
        )  # fmt: skip
    vectors = np.zeros((len(data.clients), table.columns), np.float32)
    rows, places = align(table, data.clients)
    vectors[places] = table.vectors[rows]
    if absent := len(data.clients) - len(places):
        logger.info("%s: %s of %s clients are without it: zeros", path.stem, f"{absent:,}", f"{len(data.clients):,}")
    return Profiles(path.stem, path, data.clients, vectors)


def _find(name_or_path: str, folder: Path) -> Path:
    for path in (folder / name_or_path, folder / f"{name_or_path}.parquet", Path(name_or_path)):
        if path.is_file() or (path / schema.ENTRY_EMBEDDINGS).is_file():
            return path
    entries = [path.parent.name for path in folder.glob(f"*/{schema.ENTRY_EMBEDDINGS}")]
    there = sorted([*entries, *(path.stem for path in folder.glob("*.parquet") if not path.name.startswith("."))])
    raise UserError(
        f"embeddings={name_or_path}: neither a block or entry of {folder} nor a path of one; there are: "
        f"{name_some(there, 50) or 'none'}"
    )


@dataclass(frozen=True)
class Scores:
    """The scores of one block or entry by one probe.

    Attributes:
        name: of the block or entry.
        columns: its columns.
        probe: the probe's name.
        tasks: task to score, rounded to four places.
        total: their sum.
        spread: standard deviation of the sum over the probe's seeds; 0 for one seed.
        details: task to the metrics of each seed's best epoch.
    """

    name: str
    columns: int
    probe: str
    tasks: dict[str, float]
    total: float
    spread: float
    details: dict[str, list[dict[str, Any]]]

    def write(self, path: Path, made_from: str) -> None:
        """Write ``scores.json``: a key a task as the organisers', then sum, spread, probe and details."""
        figures = self.tasks | {"sum": self.total, "spread": self.spread, "probe": self.probe}
        rest = {"name": self.name, "columns": self.columns, "made_from": made_from, "details": self.details}
        with written_aside(path) as aside:
            aside.write_text(json.dumps(figures | rest, indent=2) + "\n")

    @classmethod
    def read(cls, path: Path, made_from: str) -> "Scores | None":
        """Scores made before from the same things; None where there are none."""
        made = path.exists() and json.loads(path.read_text()).get("made_from") == made_from
        return cls.load(path) if made else None

    @classmethod
    def load(cls, path: Path) -> "Scores":
        """The scores in a file that `write` wrote."""
        file = json.loads(path.read_text())
        tasks = {task.name: file[task.name] for task in TASKS}
        return cls(file["name"], file["columns"], file["probe"], tasks, file["sum"], file["spread"], file["details"])


def scores_table(scores: list[Scores], title: str) -> Table:
    """A row a block or entry, a column a task, the sum last."""
    table = Table(title=title, title_justify="left")
    table.add_column("block or entry")
    table.add_column("probe")
    table.add_column("columns", justify="right")
    for task in TASKS:
        table.add_column(task.name.removeprefix("propensity_").replace("_", " "), justify="right")
    table.add_column("sum", justify="right")
    for row in scores:
        spread = f" ±{row.spread:.3f}" if row.spread else ""
        figures = [f"{row.tasks[task.name]:.4f}" for task in TASKS]
        table.add_row(row.name, row.probe, f"{row.columns:,}", *figures, f"{row.total:.4f}{spread}")
    return table


def probe_title(probe: Probe) -> str:
    """What stands above a table: which probe it shows."""
    if probe.name == "judge":
        return "by the judge: the organisers' model, higher is better"
    return (
        f"by the {probe.name} probe: {probe.thin} hidden units, {probe.epochs} epochs, mean of {len(probe.seeds)} "
        "seeds ± the sum's spread; not the judge's figures"
    )
