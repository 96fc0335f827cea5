"""Files as lazy Polars frames with the promised dtypes."""

from datetime import datetime
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from ubp.data import schema
from ubp.io.errors import UserError


def collect(frame: pl.LazyFrame) -> pl.DataFrame:
    """Run a lazy query in Polars' streaming engine."""
    return frame.collect(engine="streaming")


def load_clients(path: Path, may_be_empty: bool = False) -> npt.NDArray[np.int64]:
    """A file of client ids: int64, one dimension, each once.

    Args:
        path: the file.
        may_be_empty: whether it may hold no client.

    Raises:
        UserError: it is absent, unreadable, of another dtype or shape, or repeats a client.
    """
    if not path.exists():
        raise UserError(f"{path}: file missing; put it there, or make it with: python scripts/make_targets.py")
    try:
        clients: npt.NDArray[np.int64] = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise UserError(f"{path}: not a readable .npy file of client ids ({error})") from error
    if not isinstance(clients, np.ndarray):
        raise UserError(f"{path}: an archive of arrays; must be one array: np.save(path, ids.astype(np.int64))")
    if clients.dtype != np.int64 or clients.ndim != 1:
        raise UserError(
            f"{path}: {clients.dtype} with {clients.ndim} dimensions; must be int64 with one: "
            "np.save(path, ids.astype(np.int64))"
        )
    if len(clients) == 0 and not may_be_empty:
        raise UserError(f"{path}: no clients; delete it and make it with: python scripts/make_targets.py")
    values, counts = np.unique(clients, return_counts=True)
    if len(values) < len(clients):
        raise UserError(
            f"{path}: {(counts > 1).sum():,} of {len(values):,} clients are repeated "
            f"(the first: {values[counts > 1][0]}); keep each once: np.save(path, np.unique(ids))"
        )
    return clients


def within(start: datetime, end: datetime) -> pl.Expr:
    """Events at or after a moment and before another: windows that meet share no event."""
    return pl.col(schema.TIMESTAMP).is_between(start, end, closed="left")


def numbers_in(column: str) -> pl.Expr:
    """The numbers in a text of codes, as a list of texts."""
    return pl.col(column).cast(pl.String).str.extract_all(r"[0-9]{1,18}")


def scan(file: Path) -> pl.LazyFrame:
    return pl.scan_parquet(file, glob=False)


def times_parsed(frame: pl.LazyFrame) -> pl.LazyFrame:
    """Both forms of timestamps as Datetime(us); null where text is no time."""
    dtype = frame.collect_schema().get(schema.TIMESTAMP)
    if dtype is None:
        return frame
    time = pl.col(schema.TIMESTAMP)
    if dtype == pl.String:
        # Seconds of half a year hardly repeat: looking each up takes twice as long as reading it.
        time = time.str.to_datetime(schema.TIMESTAMP_FORMAT, strict=False, time_unit="us", cache=False)
    return frame.with_columns(time.cast(schema.TIMESTAMP_DTYPE))


def typed(frame: pl.LazyFrame, columns: tuple[str, ...]) -> pl.LazyFrame:
    """The columns with the dtypes that `ubp.data.schema` promises; for a file that passed `check`."""
    integers = [pl.col(column).cast(pl.Int64) for column in columns if column in schema.INTEGER_COLUMNS]
    codes = [
        numbers_in(column).cast(pl.List(pl.UInt8)).list.to_array(schema.CODES)
        for column in columns
        if column in schema.CODE_COLUMNS
    ]
    return times_parsed(frame.select(columns)).with_columns(integers + codes)
