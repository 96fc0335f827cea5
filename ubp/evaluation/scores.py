"""What is scored, by which probe, and its scores: loaded, kept beside what was scored, shown; without torch."""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ubp.data.targets import TASKS
from ubp.io.files import atomic_write

logger = logging.getLogger(__name__)


def scores_file(path: Path, probe: str) -> Path:
    """``scores.json`` (the judge's) or ``scores_quick.json`` beside an entry's files, a block's by its name."""
    kind = "scores" if probe == "judge" else f"scores_{probe}"
    return path.with_suffix(f".{kind}.json") if path.suffix == ".parquet" else path / f"{kind}.json"


@dataclass(frozen=True)
class Scores:
    """The scores of one block or entry by one probe.

    Attributes:
        name: of the block or entry.
        columns: its columns.
        probe: the probe's name.
        tasks: task to score, rounded to four places; None for a task that cannot be scored.
        total: the sum of those that there are.
        spread: standard deviation of the sum over the probe's seeds; 0 for one seed.
        details: task to the metrics of each seed's best epoch, where it was scored.
    """

    name: str
    columns: int
    probe: str
    tasks: dict[str, float | None]
    total: float
    spread: float
    details: dict[str, list[dict[str, Any]]]

    @property
    def scored(self) -> list[str]:
        """The tasks that the sum goes over."""
        return [name for name, score in self.tasks.items() if score is not None]

    @property
    def n_tasks(self) -> int:
        """How many tasks the sum goes over."""
        return len(self.scored)

    def lead(self, other: "Scores") -> float | None:
        """By how much this sum lies above another; None where they are of other tasks or another probe."""
        if (self.probe, self.scored) != (other.probe, other.scored):
            return None
        return self.total - other.total

    def write(self, path: Path) -> None:
        """Write ``scores.json``: a key per task as the organisers', then sum, its tasks, spread, probe, details.

        A task that was not scored is null.
        """
        sums = {"sum": self.total, "n_tasks": self.n_tasks, "spread": self.spread, "probe": self.probe}
        rest = {"name": self.name, "columns": self.columns, "details": self.details}
        with atomic_write(path) as aside:
            aside.write_text(json.dumps(self.tasks | sums | rest, indent=2) + "\n")

    @classmethod
    def load(cls, path: Path) -> "Scores":
        """The scores in a file that `write` wrote."""
        file = json.loads(path.read_text())
        tasks = {task.name: file[task.name] for task in TASKS}
        return cls(file["name"], file["columns"], file["probe"], tasks, file["sum"], file["spread"], file["details"])


def shared_totals(rows: Sequence[Scores]) -> list[float]:
    """The sums of some rows over the tasks that all of them have: what can be compared where some lack a task."""
    shared = [task.name for task in TASKS if all(row.tasks[task.name] is not None for row in rows)]
    return [sum(row.tasks[name] or 0.0 for name in shared) for row in rows]
