"""Scores as a table."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from rich.table import Table

from ubp.data.targets import TASKS
from ubp.evaluation.ablation import Change
from ubp.evaluation.scores import Scores

BELOW = "▼"  # beside the name of what lies below a reference row
NOTHING = "(none)"  # in the place of what is another
_NOT_SCORED = "–"
_NONE: Mapping[str, str] = MappingProxyType({})


def short_name(task: str) -> str:
    """A task's name where there is little room."""
    return task.removeprefix("propensity_").replace("_", " ")


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
        table.add_column(short_name(task.name), justify="right")
    table.add_column("sum", justify="right")
    for row in scores:
        name = f"{row.name} {BELOW}" if row.name in shown else row.name
        table.add_row(
            name, row.probe, f"{row.columns:,}", *(_cell(row.tasks[task.name]) for task in TASKS), sum_cell(row)
        )
    return table


def changes_table(changes: Sequence[Change], title: str, what: str = "block") -> Table:
    """A row for each change: what is another, the sum, and by how much the sum and each task's score moved.

    Args:
        changes: the rows.
        title: of the table.
        what: stands above that which is another.
    """
    table = Table(title=title, title_justify="left")
    table.add_column(what)
    for heading in ("columns", "sum", "change", *(short_name(task.name) for task in TASKS)):
        table.add_column(heading, justify="right")
    for change in changes:
        spread = "" if change.spread is None else f" ±{change.spread:.4f}"
        tasks = (change.of(task.name) for task in TASKS)
        cells = (_NOT_SCORED if value is None else f"{value:+.4f}" for value in tasks)
        moved = f"{change.change:+.4f}{spread}"
        table.add_row(change.block or NOTHING, f"{change.columns:,}", f"{change.total:.4f}", moved, *cells)
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
