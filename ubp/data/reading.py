"""Files as lazy Polars frames with the promised dtypes."""

import pickle
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
import numpy.typing as npt
import polars as pl

from ubp.data import schema
from ubp.io.errors import UserError
from ubp.io.npy import header_of, read_npy


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
        clients: npt.NDArray[np.int64] = read_npy(path)
    except (ValueError, OSError) as error:
        raise UserError(f"{path}: not a readable .npy file of client ids ({error})") from error
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


class _NumbersOnly(pickle.Unpickler):
    """Makes arrays and numbers of a pickle, and nothing else: whatever else it asks for is refused."""

    def find_class(self, module: str, name: str) -> Any:  # noqa: ANN401 (whatever it is)
        """See `pickle.Unpickler`."""
        if (module.removeprefix("numpy.").replace("_core", "core"), name) in _MAKERS:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is no number")


# What numpy pickles an array of Python numbers, or of its own, by; the module's name changed with numpy 2.
_MAKERS: Final = {
    ("core.multiarray", "_reconstruct"),
    ("core.multiarray", "scalar"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
}


def read_array(file: Path) -> npt.NDArray[np.generic]:
    """An array from a ``.npy`` file; one of Python objects too, as long as they are numbers: no code is run.

    Raises:
        ValueError: it is no such file, or holds something else.
        OSError: it cannot be read.
        EOFError: it ends too early.
    """
    with file.open("rb") as opened:
        if not _holds_objects(opened):
            return read_npy(file)
        try:
            found = _NumbersOnly(opened).load()
        except (pickle.UnpicklingError, AttributeError, ImportError, IndexError, KeyError, TypeError) as error:
            raise ValueError(f"its Python objects cannot be read: {error}") from error
    if not isinstance(found, np.ndarray):
        raise ValueError(f"it holds a {type(found).__name__}, not an array")  # noqa: TRY004 (of the file, not of an argument)
    return found


def _holds_objects(opened: IO[bytes]) -> bool:
    """Whether an array of Python objects follows; if so, the file stands where their pickle begins."""
    try:
        return header_of(opened)[1].hasobject
    except ValueError:
        return False  # who reads it says what is wrong


YEARS: Final = (1970, 2199)  # a time outside is a sentinel, not a time
_SECONDS: Final = tuple(
    (datetime(year, 1, 1, tzinfo=UTC) - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(seconds=1)
    for year in (YEARS[0], YEARS[1] + 1)
)
_A_SECOND: Final = {"ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}


def datetimes(column: str, dtype: pl.Datetime) -> pl.Expr:
    """A column of datetimes as Datetime(us) of its own zone, null where it lies outside of `YEARS`.

    Polars has no date for the outermost of them, and ends the process's query where it needs one.
    """
    unit = _A_SECOND[dtype.time_unit]
    number = pl.col(column).to_physical()
    inside = number.is_between(_SECONDS[0] * unit, _SECONDS[1] * unit, closed="left")
    return pl.when(inside).then(number).cast(dtype).cast(pl.Datetime("us", dtype.time_zone))


def as_filed(value: pl.Series) -> Any:  # noqa: ANN401 (whatever it is)
    """The only value of a column, for a message; of a datetime its number: not each of them has a date."""
    if isinstance(value.dtype, pl.Datetime) and (number := value.to_physical().item()) is not None:
        return f"{number} {value.dtype.time_unit} after 1970"
    return value.item()


def within(start: datetime, end: datetime) -> pl.Expr:
    """Events at or after a moment and before another: windows that meet share no event."""
    return pl.col(schema.TIMESTAMP).is_between(start, end, closed="left")


def numbers_in(column: str) -> pl.Expr:
    """The numbers in a text of codes, as a list of texts."""
    return pl.col(column).cast(pl.String).str.extract_all(r"[0-9]{1,18}")


def scan(file: Path) -> pl.LazyFrame:
    """A parquet, whose path is no pattern: a folder may have brackets in its name."""
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
