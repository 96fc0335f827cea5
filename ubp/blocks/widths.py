"""Columns that a block was asked for and that its data do not allow: what is said of it."""

from typing import Final

CUT: Final = " asked, "  # in each such line


def cut_line(setting: str, asked: int, limit: str, made: str) -> str:
    """``als.factors: 64 asked, 10 categories in the history: 10 factors``.

    Args:
        setting: that asks for columns.
        asked: how many.
        limit: what there is of whatever limits them.
        made: how many there are instead.
    """
    return f"{setting}: {asked:,}{CUT}{limit}: {made}"
