"""Ids of any type as the integers that the library works with, and back.

Integers that fit into int64 stay as they are, also where a file holds them as text (``17``, but not ``017``: that would
be another id's 17). All others of a log are numbered from 1 on in the order of their texts, the same log the same way.
A table has both: ``id`` Int64 and ``original`` Int64 or String, by ascending id.
"""

from collections.abc import Iterable, Sequence
from typing import Final

import polars as pl

from ubp.data.reading import collect
from ubp.io.errors import UserError

ID: Final = "id"
ORIGINAL: Final = "original"

_AT_ONCE: Final = 5_000_000  # values put together before repetitions are taken out again
_INTEGER: Final = r"^(0|-?[1-9][0-9]{0,18})$"
_ROW: Final = "#id"


def numbered(ids: Sequence[pl.LazyFrame]) -> pl.DataFrame:
    """The table of all ids that occur.

    Args:
        ids: frames of one column, Int64 or String, with repetitions; nulls do not count.
    """
    if not ids:
        return pl.DataFrame(schema={ID: pl.Int64, ORIGINAL: pl.Int64})
    found = distinct(ids).rename(ORIGINAL).to_frame()
    if found[ORIGINAL].dtype == pl.String and _are_integers(found):
        found = found.cast(pl.Int64)
    found = found.sort(ORIGINAL)
    if found[ORIGINAL].dtype == pl.String:
        return found.with_row_index(ID, offset=1).cast({ID: pl.Int64})
    return found.select(pl.col(ORIGINAL).alias(ID), ORIGINAL)


def extended(table: pl.DataFrame, ids: Sequence[pl.LazyFrame], what: str) -> pl.DataFrame:
    """A table of ids with others behind it: those that are there keep their numbers, new ones get higher numbers.

    Args:
        table: see `numbered`.
        ids: frames of one column, Int64 or String, with repetitions; nulls do not count.
        what: they are, ``client``, for messages.

    Returns:
        The same table where nothing is new.

    Raises:
        UserError: the table's ids are integers, and one of the others is none.
    """
    if not ids or table.is_empty():
        return numbered(ids) if ids else table
    found = distinct(ids).rename(ORIGINAL).to_frame()
    if table[ORIGINAL].dtype == pl.String:
        new = found.cast(pl.String).join(table, on=ORIGINAL, how="anti").sort(ORIGINAL)
        return pl.concat([table, new.with_row_index(ID, offset=int(table[ID].max()) + 1).cast({ID: pl.Int64})])  # type: ignore[arg-type]
    if found[ORIGINAL].dtype == pl.String and not _are_integers(found):
        example = found.filter(~_is_integer()).item(0, 0)
        raise UserError(
            f"{what}: {example!r} is no integer, as the ids of this log were so far; correct it, or import the whole "
            "log anew and fit the models again"
        )
    new = found.cast(pl.Int64).join(table, on=ORIGINAL, how="anti")
    return pl.concat([table, new.select(pl.col(ORIGINAL).alias(ID), ORIGINAL)]).sort(ID)


def distinct(frames: Iterable[pl.LazyFrame]) -> pl.Series:
    """The values that occur, in any order; String where one frame has texts.

    Memory goes with the distinct values, not with the rows: Polars' own `unique` over many frames keeps both.

    Args:
        frames: of one column, Int64 or String, with repetitions; nulls do not count. At least one.
    """
    found, waiting = pl.DataFrame(), list[pl.DataFrame]()
    for frame in frames:
        waiting.append(collect(frame.select(pl.first().alias(ORIGINAL)).drop_nulls().unique()))
        if sum(map(len, waiting)) > max(len(found), _AT_ONCE):
            found, waiting = _merged([found, *waiting]), []
    return _merged([found, *waiting]).to_series()


def _merged(tables: Sequence[pl.DataFrame]) -> pl.DataFrame:
    frames = [table.lazy() for table in tables if table.width]
    return together(frames, (ORIGINAL,)).unique().collect()


def together(frames: Sequence[pl.LazyFrame], ids: Sequence[str]) -> pl.LazyFrame:
    """Frames below one another.

    Args:
        frames: of the same columns, at least one.
        ids: columns that are Int64 in some and String in others: then they are String.
    """
    schemas = [frame.collect_schema() for frame in frames]
    texts = [column for column in ids if any(found[column] == pl.String for found in schemas)]
    return pl.concat([frame.with_columns(pl.col(texts).cast(pl.String)) for frame in frames])


def _are_integers(texts: pl.DataFrame) -> bool:
    """Whether each text is that of an int64, without leading zeros."""
    return bool(texts.select(_is_integer().all()).item())


def _is_integer() -> pl.Expr:
    text = pl.col(ORIGINAL)
    return text.str.contains(_INTEGER) & text.cast(pl.Int64, strict=False).is_not_null()


def with_ids(frame: pl.LazyFrame, column: str, table: pl.DataFrame) -> pl.LazyFrame:
    """A frame with a column's ids in the place of the originals, in the same order; null where there was none.

    Args:
        frame: the column is Int64 or String.
        column: its name.
        table: see `numbered`; has all of them.
    """
    if table[ORIGINAL].dtype != pl.String:
        return frame.with_columns(pl.col(column).cast(pl.Int64))
    lookup = table.lazy().rename({ID: _ROW, ORIGINAL: column})
    joined = frame.with_columns(pl.col(column).cast(pl.String)).join(
        lookup, on=column, how="left", maintain_order="left"
    )
    return joined.with_columns(pl.col(_ROW).alias(column)).drop(_ROW)
