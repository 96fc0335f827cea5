"""Files that are wrong in all the ways that files are: each drawn by a seed, with what must come of it."""

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

import numpy as np
import polars as pl

from tests.conftest import codes_text
from tests.reliability.trial import FOLDER, REMOVED, Content
from ubp.data import schema

RELEVANT: Final = f"raw/input/{schema.RELEVANT_CLIENTS}"
LOW, HIGH = np.iinfo(np.int64).min, np.iinfo(np.int64).max


class Must(StrEnum):
    """What must come of a mutation."""

    SAME = "the same result as without it"
    RIGHT = "a right result"
    REFUSED = "lines that name the file"
    EITHER = "a right result, or lines"


@dataclass(frozen=True)
class Mutation:
    """Something wrong with some files.

    Attributes:
        kind: of the fault.
        what: in words.
        files: their new contents, by their paths below the data path.
        must: what must come of it.
        named: what the lines must hold where it is refused; the first file's name by default.
        ids: the client that each mutated client was, where all of them have other ids.
    """

    kind: str
    what: str
    files: Mapping[str, Content]
    must: Must
    named: str = ""
    ids: Mapping[int, int] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.kind}: {self.what}"


def parquet(table: pl.DataFrame, **how: Any) -> bytes:
    """A table as the bytes of a parquet."""
    file = io.BytesIO()
    table.write_parquet(file, **how)
    return file.getvalue()


def npy(array: np.ndarray, allow_pickle: bool = False) -> bytes:
    """An array as the bytes of a .npy file."""
    file = io.BytesIO()
    np.save(file, array, allow_pickle=allow_pickle)
    return file.getvalue()


def drawn(rng: np.random.Generator, options: Sequence[Any]) -> Any:
    """One of some, of any type."""
    return options[int(rng.integers(len(options)))]


def some_rows(rng: np.random.Generator, table: pl.DataFrame) -> pl.Series:
    """True for one row at least."""
    chosen = rng.random(len(table)) < drawn(rng, (0.0, 0.01, 0.3, 1.0))
    chosen[rng.integers(len(table))] = True
    return pl.Series(chosen)


# --- bytes ------------------------------------------------------------------------------------------------------------


def truncated(rng: np.random.Generator, content: bytes) -> tuple[str, bytes]:
    """The first so many bytes, perhaps none."""
    length = int(drawn(rng, (0, 1, 4, 8, rng.integers(len(content)), len(content) - 1, len(content) - 8)))
    return f"the first {length} of {len(content)} bytes", content[: max(length, 0)]


def flipped(rng: np.random.Generator, content: bytes) -> tuple[str, bytes]:
    """Some bits turned over, or a stretch of bytes lost."""
    raw = np.frombuffer(content, np.uint8).copy()
    if rng.random() < 0.2:
        start, length = int(rng.integers(len(raw))), int(2 ** rng.integers(1, 12))
        raw[start : start + length] = drawn(rng, (0, 255))
        return f"{length} bytes from {start} on are {raw[start]}", raw.tobytes()
    # The footer says where everything lies: half of the time.
    from_end = min(len(raw), 2_000) if rng.random() < 0.5 else len(raw)
    places = len(raw) - 1 - rng.integers(0, from_end, int(drawn(rng, (1, 1, 2, 8))))
    for place in places:
        raw[place] ^= np.uint8(1 << int(rng.integers(8)))
    return f"a bit of the bytes {sorted(set(places.tolist()))}", raw.tobytes()


def other_kinds_of_file(table: pl.DataFrame) -> dict[str, Content]:
    """What may lie in the place of a table."""
    csv, arrow = io.BytesIO(), io.BytesIO()
    table.write_csv(csv)
    table.write_ipc(arrow)
    return {
        "a folder": FOLDER,
        "nothing": REMOVED,
        "no bytes": b"",
        "a CSV": csv.getvalue(),
        "an Arrow file": arrow.getvalue(),
        "text": b"to be exported\n",
        "an array": npy(np.arange(5)),
        "zeros": bytes(4096),
    }


# --- columns ----------------------------------------------------------------------------------------------------------

_TO_INTEGERS: Final = {pl.Int32: True, pl.UInt32: True, pl.Int128: False, pl.UInt64: False}
_NEVER: Final = (
    *(pl.Float64, pl.Float32, pl.String, pl.Categorical, pl.Binary, pl.Boolean, pl.Decimal(20, 2), pl.Date),
    *(pl.Duration("us"), pl.List(pl.Int64), pl.Array(pl.Int64, 1), pl.Struct({"id": pl.Int64}), pl.Time),
)


def as_type(column: pl.Series, dtype: Any) -> pl.Series:
    """Values of a column in another type: converted where they can be, made up where not."""
    if isinstance(dtype, pl.Struct):
        return column.to_frame("id").to_struct(column.name)
    if isinstance(dtype, (pl.List, pl.Array)):
        single = column.reshape((-1, 1))
        return single.arr.to_list() if isinstance(dtype, pl.List) else single
    if dtype in (pl.Binary, pl.Categorical):
        return column.cast(pl.String).cast(dtype)
    try:
        return column.cast(dtype)
    except pl.exceptions.PolarsError:
        return pl.Series(column.name, np.arange(len(column)) % 2).cast(dtype)


def wrong_codes(rng: np.random.Generator) -> str | None:
    """A text that is no list of codes."""
    right = rng.integers(0, 256, schema.CODES)
    text = codes_text(right)
    return drawn(
        rng,
        (
            "", "[]", "[ ]", "nan", "None", "0", codes_text(right[:-1]), codes_text(np.append(right, 7)),
            codes_text(np.append(right[:-1], 256)), codes_text(np.append(right[:-1], 999)), text.replace("[", ""),
            text.replace(" ", ","), f"{text}{text}", codes_text(-right - 1), text.replace("[", "[1.5 "), f"[{text}]",
            text.replace("]", " 99999999999999999999]"), "[" + "a " * 16 + "]", "[٣" + " 1" * 15 + "]", "\0" * 20,
            " ".join(["[1"] * 16), text[:-1], text.replace("[", "(").replace("]", ")"), None,
        ),
    )  # fmt: skip


_WRONG_TIMES: Final = (
    "", "yesterday", "2022-13-01 00:00:00", "2022-02-30 10:00:00", "2022-12-05", "2022-12-05T10:00:00",
    "2022-12-05 10:00:00+02:00", "2022-12-05 10:00:00Z", "2022-12-05 10:00:00 Europe/Berlin", "05.12.2022 10:00",
    "2022-12-05 24:00:00", "2022-12-05 10:61:00", "1670234400", "0001-01-01 00:00:00", "1969-12-31 23:59:59",
    "2262-04-12 00:00:00", "9999-12-31 23:59:59", "-2022-12-05 10:00:00", "12022-12-05 10:00:00", None,
)  # fmt: skip
_FAR_TIMES: Final = ("1970-01-01 00:00:00", "1970-01-01 00:00:01", "2199-12-31 23:59:59", "2038-01-19 03:14:08")
_EXTREMES: Final = (0, -1, 1, 2**31 - 1, 2**31, -(2**31), 2**53, 2**53 + 1, LOW, LOW + 1, HIGH, HIGH - 1)


@dataclass(frozen=True)
class Table:
    """A table of the raw layout.

    Attributes:
        file: below the data path.
        table: what it holds; times as text.
        others: the tables beside it.
    """

    file: str
    table: pl.DataFrame
    others: "Mapping[str, Table]"

    @property
    def is_properties(self) -> bool:
        return self.file.endswith(schema.PRODUCT_PROPERTIES)

    @property
    def is_purchases(self) -> bool:
        return self.file.endswith("product_buy.parquet")

    def columns(self, *kinds: str) -> list[str]:
        """Those of some columns that the table has."""
        return [name for name in kinds if name in self.table.columns]

    def with_(self, column: str, values: pl.Series | pl.Expr) -> pl.DataFrame:
        return self.table.with_columns(values.alias(column))

    def made(self, kind: str, what: str, table: pl.DataFrame, must: Must, named: str = "", **how: Any) -> Mutation:
        return Mutation(kind, f"{self.file}: {what}", {self.file: parquet(table, **how)}, must, named)


Maker = Callable[[np.random.Generator, Table], Mutation | None]


def _types(rng: np.random.Generator, of: Table) -> Mutation:
    column = drawn(rng, of.table.columns)
    if column in schema.INTEGER_COLUMNS:
        dtype = drawn(rng, (*_TO_INTEGERS, *_NEVER))
        must = Must.SAME if _TO_INTEGERS.get(dtype) else Must.REFUSED
    elif column == schema.TIMESTAMP:
        unit = drawn(rng, ("ms", "us", "ns"))
        zoned = pl.Datetime(unit, drawn(rng, (None, "UTC", "Europe/Berlin")))
        dtype = drawn(rng, (zoned, zoned, pl.Date, pl.Int64, pl.Float64, pl.Categorical, pl.Time, pl.Binary, pl.Null))
        if isinstance(dtype, pl.Datetime):
            times = of.table[column].str.to_datetime(schema.TIMESTAMP_FORMAT, time_unit=unit)
            table = of.with_(column, times if dtype.time_zone is None else times.dt.replace_time_zone(dtype.time_zone))
            must = Must.SAME if dtype.time_zone is None else Must.REFUSED
            return of.made("types", f"column {column} as {dtype}", table, must)
        must = Must.REFUSED
    else:
        dtype, must = (
            drawn(rng, (pl.List(pl.Int64), pl.Array(pl.UInt8, 16), pl.Binary, pl.Int64, pl.Float64)),
            Must.REFUSED,
        )
        if dtype in (pl.List(pl.Int64), pl.Array(pl.UInt8, 16)):
            numbers = of.table[column].str.extract_all(r"[0-9]+").cast(pl.List(pl.Int64))
            shaped = numbers if dtype == pl.List(pl.Int64) else numbers.cast(pl.List(pl.UInt8)).list.to_array(16)
            return of.made("types", f"column {column} as {dtype}", of.with_(column, shaped), must)
    return of.made("types", f"column {column} as {dtype}", of.with_(column, as_type(of.table[column], dtype)), must)


def _nulls(rng: np.random.Generator, of: Table) -> Mutation:
    column, lost = drawn(rng, of.table.columns), some_rows(rng, of.table)
    if rng.random() < 0.1:
        return of.made("nulls", f"column {column} has no values, no type", of.with_(column, pl.lit(None)), Must.REFUSED)
    table = of.with_(column, pl.when(~lost).then(pl.col(column)))
    return of.made("nulls", f"column {column}: {lost.sum()} nulls", table, Must.REFUSED, f"column {column}")


def _no_numbers(rng: np.random.Generator, of: Table) -> Mutation:
    column = drawn(rng, of.columns(*schema.INTEGER_COLUMNS))
    value = drawn(rng, (float("nan"), float("inf"), -float("inf"), 1e300, 0.5))
    numbers = pl.when(~some_rows(rng, of.table)).then(pl.col(column).cast(pl.Float64)).otherwise(value)
    return of.made("NaN and infinities", f"column {column}: {value}", of.with_(column, numbers), Must.REFUSED)


def _all_ids(rng: np.random.Generator, of: Table) -> Mutation | None:
    """Every id of a column another, in all files: the result is the same, under the other ids."""
    column = drawn(rng, of.columns(schema.CLIENT_ID, schema.SKU, schema.URL, schema.CATEGORY))
    having = [other for other in of.others.values() if column in other.table.columns]
    known = np.unique(np.concatenate([other.table[column].to_numpy() for other in having]))
    first = drawn(rng, (LOW, LOW, -len(known) // 2, -len(known) * 7, HIGH - len(known) + 1, 2**31 - 5, 2**53 - 9))
    # In the same order: ties are broken by ids.
    new = first + np.arange(len(known), dtype=np.int64)
    if first == LOW and rng.random() < 0.5:
        new[len(known) // 2 :] = HIGH - np.arange(len(known) - len(known) // 2, dtype=np.int64)[::-1]
    files = {
        other.file: parquet(other.table.with_columns(pl.col(column).replace_strict(known, new, return_dtype=pl.Int64)))
        for other in having
    }
    what = f"column {column}: all ids from {new[0]} to {new[-1]}"
    ids: dict[int, int] = {}
    if column == schema.CLIENT_ID:  # all of them are relevant
        ids = dict(zip(new.tolist(), known.tolist(), strict=True))
        files[RELEVANT] = npy(new)
    return Mutation("negative and huge ids", what, files, Must.SAME, ids=ids)


def _some_ids(rng: np.random.Generator, of: Table) -> Mutation:
    column, value = drawn(rng, of.columns(*schema.INTEGER_COLUMNS)), drawn(rng, _EXTREMES)
    table = of.with_(column, pl.when(~some_rows(rng, of.table)).then(pl.col(column)).otherwise(value))
    must = Must.EITHER if column in (schema.SKU, schema.PRICE) else Must.RIGHT
    return of.made("negative and huge ids", f"column {column}: {value}", table, must)


def _times(rng: np.random.Generator, of: Table) -> Mutation | None:
    if of.is_properties:
        return None
    value, rows = drawn(rng, (*_WRONG_TIMES, *_FAR_TIMES * 3)), some_rows(rng, of.table)
    table = of.with_(schema.TIMESTAMP, pl.when(~rows).then(pl.col(schema.TIMESTAMP)).otherwise(pl.lit(value)))
    must = Must.EITHER if value in _FAR_TIMES else Must.REFUSED
    return of.made(
        "dates and zones", f"{rows.sum()} times are {value!r}", table, must, "timestamp" * (must != "either")
    )


def _far_datetimes(rng: np.random.Generator, of: Table) -> Mutation | None:
    if of.is_properties:
        return None
    unit, rows = drawn(rng, ("ms", "us", "ns")), some_rows(rng, of.table)
    times = of.table[schema.TIMESTAMP].str.to_datetime(schema.TIMESTAMP_FORMAT, time_unit=unit)
    value = drawn(rng, (0, HIGH, LOW, -1, 1, HIGH // 2, 2**53))
    far = pl.when(~rows).then(times).otherwise(pl.lit(value).cast(pl.Datetime(unit)))
    table = of.table.with_columns(far.alias(schema.TIMESTAMP))
    return of.made("dates and zones", f"{rows.sum()} times as {unit} are {value}", table, Must.EITHER)


def _repeated(rng: np.random.Generator, of: Table) -> Mutation:
    again = of.table.sample(int(drawn(rng, (1, 5, len(of.table)))), seed=int(rng.integers(2**31)))
    must = Must.REFUSED if of.is_properties else Must.RIGHT
    return of.made("duplicate rows", f"{len(again)} rows twice", pl.concat([of.table, again]), must)


def _truncated(rng: np.random.Generator, of: Table) -> Mutation:
    what, content = truncated(rng, parquet(of.table, compression=drawn(rng, ("zstd", "uncompressed", "snappy"))))
    return Mutation("truncated files", f"{of.file}: {what}", {of.file: content}, Must.REFUSED)


def _flipped(rng: np.random.Generator, of: Table) -> Mutation:
    how = {"compression": drawn(rng, ("zstd", "uncompressed", "snappy")), "row_group_size": drawn(rng, (50, 100_000))}
    what, content = flipped(rng, parquet(of.table, **how))
    return Mutation("flipped bits", f"{of.file}: {what}", {of.file: content}, Must.EITHER)


def _codes(rng: np.random.Generator, of: Table) -> Mutation | None:
    columns = of.columns(*schema.CODE_COLUMNS)
    if not columns:
        return None
    value, rows = wrong_codes(rng), some_rows(rng, of.table)
    table = of.with_(columns[0], pl.when(~rows).then(pl.col(columns[0])).otherwise(pl.lit(value)))
    return of.made(
        "wrong lists in codes", f"{rows.sum()} of {columns[0]} are {value!r}", table, Must.REFUSED, columns[0]
    )


def _columns(rng: np.random.Generator, of: Table) -> Mutation:
    column = drawn(rng, of.table.columns)
    renamed = drawn(rng, (column.upper(), f" {column}", f"{column}\n", "", "ключ", column * 20))
    another = drawn(rng, ("session", "#rows", "len", "name" * 50, "subject", "index", "part"))
    extra = pl.int_range(pl.len()).alias(another)
    shuffled = [of.table.columns[place] for place in rng.permutation(len(of.table.columns))]
    options = {
        f"column {column} missing": (of.table.drop(column), Must.REFUSED),
        f"column {column} called {renamed!r}": (of.table.rename({column: renamed}), Must.REFUSED),
        f"a column more, {another}": (of.table.with_columns(extra), Must.SAME),
        f"columns in the order {shuffled}": (of.table.select(shuffled), Must.SAME),
        "no columns": (pl.DataFrame(), Must.REFUSED),
    }
    what = drawn(rng, list(options))
    return of.made("missing, extra and renamed columns", what, *options[what])


def _empty(rng: np.random.Generator, of: Table) -> Mutation:
    if rng.random() < 0.4:
        untyped = rng.random() < 0.5
        table = of.table.clear().cast(pl.Null) if untyped else of.table.clear()
        must = Must.REFUSED if of.is_purchases or of.is_properties else Must.RIGHT
        return of.made("empty and wrong files", f"no rows{', no types' * untyped}", table, must)
    others = other_kinds_of_file(of.table)
    what = drawn(rng, list(others))
    return Mutation("empty and wrong files", f"{of.file}: {what}", {of.file: others[what]}, Must.REFUSED)


def _harmless(rng: np.random.Generator, of: Table) -> Mutation:
    how = {"compression": drawn(rng, ("zstd", "uncompressed", "gzip", "brotli", "lz4", "snappy")),
           "row_group_size": int(drawn(rng, (1, 7, 100_000))), "statistics": bool(rng.random() < 0.5)}  # fmt: skip
    table = of.table.sample(fraction=1, shuffle=True, seed=int(rng.integers(2**31)))
    return of.made("other layouts of the same rows", f"shuffled, {how}", table, Must.SAME, **how)


KINDS: Final[tuple[Maker, ...]] = (
    *(_types, _nulls, _no_numbers, _all_ids, _some_ids, _times, _far_datetimes, _repeated, _truncated, _flipped),
    *(_codes, _columns, _empty, _harmless),
)


def of_tables(tables: Mapping[str, Table], seeds: range) -> Iterator[tuple[np.random.Generator, Mutation]]:
    """A mutation for each seed, the kinds in turn; with what further choices may be drawn by."""
    for seed in seeds:
        rng = np.random.default_rng(seed)
        maker, found = KINDS[seed % len(KINDS)], None
        while found is None:
            found = maker(rng, drawn(rng, list(tables.values())))
        yield rng, found
