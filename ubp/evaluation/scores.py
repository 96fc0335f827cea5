"""What is scored, by which probe, and its scores: loaded, kept beside what was scored, shown; without torch."""

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ubp.data.targets import TASKS
from ubp.io.files import atomic_write

logger = logging.getLogger(__name__)


def scores_file(path: Path, probe: str) -> Path:
    """``scores.json`` (the judge's) or ``scores_light.json`` beside an entry's files, a block's by its name."""
    kind = "scores" if probe == "judge" else f"scores_{probe}"
    return path.with_suffix(f".{kind}.json") if path.suffix == ".parquet" else path / f"{kind}.json"


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

    def write(self, path: Path) -> None:
        """Write ``scores.json``: a key per task as the organisers', then sum, spread, probe and details."""
        figures = self.tasks | {"sum": self.total, "spread": self.spread, "probe": self.probe}
        rest = {"name": self.name, "columns": self.columns, "details": self.details}
        with atomic_write(path) as aside:
            aside.write_text(json.dumps(figures | rest, indent=2) + "\n")

    @classmethod
    def load(cls, path: Path) -> "Scores":
        """The scores in a file that `write` wrote."""
        file = json.loads(path.read_text())
        tasks = {task.name: file[task.name] for task in TASKS}
        return cls(file["name"], file["columns"], file["probe"], tasks, file["sum"], file["spread"], file["details"])
