"""Scores as a table."""

from rich.table import Table

from ubp.data.targets import TASKS
from ubp.evaluation.scores import Scores


def scores_table(scores: list[Scores], title: str) -> Table:
    """A row per block or entry, a column per task, the sum last."""
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
