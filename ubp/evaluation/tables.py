"""Scores as a table."""

from collections.abc import Mapping
from types import MappingProxyType

from rich.table import Table

from ubp.data.targets import TASKS
from ubp.evaluation.scores import Scores

BELOW = "▼"  # beside the name of what lies below a reference row
_NOT_SCORED = "–"
_NONE: Mapping[str, str] = MappingProxyType({})


def scores_table(scores: list[Scores], title: str, below: Mapping[str, str] = _NONE) -> Table:
    """A row per block or entry, a column per task, the sum last.

    Args:
        scores: the rows.
        title: of the table.
        below: name of a row to the names of the reference rows that it lies below: it is marked.
    """
    shown = {row.name: below[row.name] for row in scores if row.name in below}
    table = Table(title=title, title_justify="left", caption=_caption(shown), caption_justify="left")
    table.add_column("block or entry")
    table.add_column("probe")
    table.add_column("columns", justify="right")
    for task in TASKS:
        table.add_column(task.name.removeprefix("propensity_").replace("_", " "), justify="right")
    table.add_column("sum", justify="right")
    for row in scores:
        name = f"{row.name} {BELOW}" if row.name in shown else row.name
        table.add_row(
            name, row.probe, f"{row.columns:,}", *(_cell(row.tasks[task.name]) for task in TASKS), sum_cell(row)
        )
    return table


def _cell(score: float | None) -> str:
    return _NOT_SCORED if score is None else f"{score:.4f}"


def sum_cell(row: Scores) -> str:
    """The sum, its spread over several seeds, and over how many tasks it goes where that is not all."""
    spread = f" ±{row.spread:.3f}" if row.spread else ""
    tasks = f" ({row.n_tasks} of {len(TASKS)})" if row.n_tasks < len(TASKS) else ""
    return f"{row.total:.4f}{spread}{tasks}"


def _caption(below: Mapping[str, str]) -> str | None:
    """A line for each reference row, or some of them, that rows lie below."""
    lines = []
    for references in dict.fromkeys(below.values()):
        names = [name for name, its in below.items() if its == references]
        lines.append(f"{BELOW} below {references}: {', '.join(names)}")
    return "\n".join(lines) or None
