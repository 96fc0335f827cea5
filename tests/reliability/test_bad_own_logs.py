"""Logs of one's own, brought in by a schema: cells, files and schemas that are wrong, CSV and parquet."""

import csv
import gzip
import io
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl
import pytest
import yaml

from tests.reliability.mutations import (
    HIGH,
    LOW,
    Must,
    Mutation,
    drawn,
    flipped,
    other_kinds_of_file,
    parquet,
    truncated,
)
from tests.reliability.trial import Content, Ended, Trials, all_end_well
from ubp.data.history import ChallengeData
from ubp.data.paths import DataPaths
from ubp.data.schema import EventType

QUICK: Final = 1  # mutations of each kind
LONG: Final = 60

START: Final = datetime(2025, 1, 1)
FORM: Final = "%Y-%m-%d %H:%M:%S"
SCHEMA: Final[dict[str, Any]] = {
    "events": {
        "sales": {
            "as": "product_buy", "file": "sales.csv", "client": "who", "time": "at", "item": "what", "value": "paid",
        },
        "pages": {"as": "page_visit", "file": "pages.parquet", "client": "who", "time": "at", "url": "page"},
        "words": {"as": "search_query", "file": "words.csv", "client": "who", "time": "at", "text": "words"},
    },
    "items": {"file": "items.csv", "item": "what", "category": "group", "price": "price", "text": ["title", "maker"]},
}  # fmt: skip
TABLES: Final = ("sales.csv", "pages.parquet", "words.csv", "items.csv")


def tables() -> dict[str, pl.DataFrame]:
    """A small log: all columns as text, but the pages'."""
    rng = np.random.default_rng(3)

    def events(count: int, **columns: Sequence[Any]) -> pl.DataFrame:
        times = [START + timedelta(minutes=int(minute)) for minute in rng.integers(0, 80_000, count)]
        who = [f"client {number}" for number in rng.integers(0, 12, count)]
        return pl.DataFrame({"who": who, "at": [time.strftime(FORM) for time in times], **columns})

    items = [f"item {number}" for number in range(9)]
    sold = rng.integers(0, 9, 90)
    return {
        "sales.csv": events(90, what=[items[each] for each in sold], paid=[f"{each + 0.5}" for each in sold]),
        "pages.parquet": events(60, page=rng.integers(0, 7, 60)),
        "words.csv": events(30, words=[drawn(rng, ("red shoes", "blue shoes", "a hat")) for _ in range(30)]),
        "items.csv": pl.DataFrame(
            {
                "what": items,
                "group": [f"group {number % 3}" for number in range(9)],
                "price": [f"{number}.25" for number in range(9)],
                "title": ["Shoe", "Hat", "Cup"] * 3,
                "maker": ["A", "B", "C"] * 3,
            }
        ),
    }


def content(name: str, table: pl.DataFrame) -> bytes:
    return parquet(table) if name.endswith(".parquet") else table.write_csv().encode()


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A data path with the files of a log beside its raw folder, which is not there yet."""
    root = tmp_path_factory.mktemp("own") / "data"
    (root / "files").mkdir(parents=True)
    (root / "schema").mkdir()
    for name, table in tables().items():
        (root / "files" / name).write_bytes(content(name, table))
    (root / "schema" / "mine.yaml").write_text(yaml.safe_dump(SCHEMA))
    return root


# --- mutations --------------------------------------------------------------------------------------------------------

_CELLS: Final = (
    *("", " ", "nan", "NaN", "NULL", "None", "inf", "-inf", "1e400", "-1", "0", str(HIGH), str(LOW), str(2**64)),
    *("9" * 400, "1,5", "1.5.2", "'", "ключ", "a\tb", "x" * 100_000, "🙂", "=1+1", "0x1f", "true", "\u00a0", "\ufeff"),
    *("2025-02-30 10:00:00", "2025-01-05", "1970-01-01 00:00:00", "2262-04-12 00:00:00", "1969-12-31 23:59:59"),
    *("2025-01-05 10:00:00+02:00", "2025-01-05 10:00:00Z", "2199-12-31 23:59:59", "9999-12-31 23:59:59", "1736071200"),
)
_KINDS_OF_CELLS: Final = {"at": "dates and zones", "paid": "NaN and infinities", "who": "ids", "what": "ids"}


@dataclass(frozen=True)
class OwnMutation:
    """Something wrong with a log of one's own.

    Attributes:
        fault: the files, and what must come of it.
        drop: whether bad rows are to be left out.
        reference: purchases as plain Python reads them: clients, times, items; None where that says nothing.
    """

    fault: Mutation
    drop: bool
    reference: list[tuple[str, datetime, str]] | None = None


def usable(row: Mapping[str, str]) -> tuple[str, datetime, str] | None:
    """A purchase, as the schema's rules have it, in plain Python; None for a row that cannot be used."""
    try:
        time = datetime.strptime(row["at"], FORM)
        paid = float(row["paid"]) if row["paid"].strip() else 0.0
    except ValueError:
        return None
    if not (row["who"].strip() and row["what"].strip() and 1970 <= time.year <= 2199 and math.isfinite(paid)):
        return None
    return row["who"], time, row["what"]


def _cells(rng: np.random.Generator, drop: bool) -> OwnMutation:
    name = drawn(rng, ("sales.csv", "sales.csv", "words.csv", "items.csv"))
    table = tables()[name]
    column, value = drawn(rng, table.columns), drawn(rng, _CELLS)
    rows = pl.Series(rng.random(len(table)) < drawn(rng, (0.02, 0.3, 1.0)))
    rows[int(rng.integers(len(table)))] = True
    table = table.with_columns(pl.when(~rows).then(pl.col(column)).otherwise(pl.lit(value)).alias(column))
    kind = _KINDS_OF_CELLS.get(column, "cells")
    what = f"{name}: {rows.sum()} of {column} are {value[:40]!r}"
    fault = Mutation(kind, what, {f"files/{name}": content(name, table)}, Must.EITHER)
    # Its reading of spaces as part of an id is its own: the reference says nothing there.
    if name != "sales.csv" or value.isspace() or value == "\ufeff" or (column == "paid" and value in ("0x1f", "1,5")):
        return OwnMutation(fault, drop)
    return OwnMutation(fault, drop, [found for row in table.iter_rows(named=True) if (found := usable(row))])


def _types(rng: np.random.Generator, drop: bool) -> OwnMutation:
    """Columns of a parquet in other types."""
    table = tables()["pages.parquet"]
    times = pl.col("at").str.to_datetime(FORM)
    unit = drawn(rng, ("ms", "us", "ns"))
    options = {
        "at": (
            *(times.dt.cast_time_unit(unit), times.dt.replace_time_zone("UTC"), times.dt.date(), times.dt.epoch("s")),
            *(times.dt.epoch("s").cast(pl.Int32), times.dt.time(), pl.lit(None), times.dt.epoch("s").cast(pl.Float64)),
            *(pl.lit(drawn(rng, (HIGH, LOW, 0))).cast(pl.Datetime(unit)), pl.col("at").cast(pl.Categorical)),
            *(pl.col("at").cast(pl.Binary), pl.concat_list("at"), pl.struct("at")),
        ),
        "who": (
            *(pl.col("who").cast(pl.Categorical), pl.col("who").cast(pl.Binary), pl.lit(None), pl.concat_list("who")),
            *(pl.struct("who"), pl.lit(HIGH), pl.lit(LOW), pl.lit(float("nan")), pl.lit(float("inf")), pl.lit(0.5)),
            *(pl.lit(2**63, pl.UInt64), pl.lit(True), pl.int_range(pl.len()).cast(pl.Decimal(10, 2))),
        ),
        "page": (
            *(pl.col("page").cast(pl.Float64), pl.lit(float("nan")), pl.col("page").cast(pl.String), pl.lit(None)),
            *(pl.col("page").cast(pl.Int128), pl.col("page").cast(pl.Duration("us")), pl.concat_list("page")),
            *(pl.when(pl.col("page") > 3).then("page"), pl.lit(HIGH), pl.lit(-1), pl.lit(""), pl.lit("\ufffe")),
        ),
    }
    column = drawn(rng, list(options))
    made = table.with_columns(drawn(rng, options[column]).alias(column))
    what = f"pages.parquet: {column} as {made[column].dtype}"
    return OwnMutation(Mutation("types", what, {"files/pages.parquet": parquet(made)}, Must.EITHER), drop)


def _forms(rng: np.random.Generator, drop: bool) -> OwnMutation:
    """A CSV written by another hand."""
    name = drawn(rng, [name for name in TABLES if name.endswith(".csv")])
    table = tables()[name]
    text = table.write_csv()
    lines = text.splitlines()
    place = int(rng.integers(1, len(lines)))
    head, same, refused, either = lines[0], Must.SAME, Must.REFUSED, Must.EITHER
    column = drawn(rng, table.columns)
    options: dict[str, tuple[Content, Must]] = {
        "Windows' line ends": (text.replace("\n", "\r\n").encode(), same),
        "a byte order mark": (b"\xef\xbb\xbf" + text.encode(), either),
        "UTF-16": (text.encode("utf-16"), refused),
        "Latin-1": (text.replace("e", "é").encode("latin-1"), either),
        "everything quoted": (_quoted(table), same),
        "semicolons": (text.replace(",", ";").encode(), refused),
        "tabs": (text.replace(",", "\t").encode(), refused),
        "no line end at the end": (text.rstrip("\n").encode(), same),
        "blank lines at the end": ((text + "\n\n\n").encode(), either),
        "a comment first": (("# exported\n" + text).encode(), either),
        "no names of columns": ("\n".join(lines[1:]).encode(), refused),
        "the names twice": ("\n".join([*lines[:place], head, *lines[place:]]).encode(), either),
        "a column twice": ("\n".join([f"{head},{column}", *(f"{line},x" for line in lines[1:])]).encode(), either),
        "a line too short": ("\n".join([*lines[:place], "x", *lines[place:]]).encode(), either),
        "a line too long": ("\n".join([*lines[:place], f"{lines[place]},y,z", *lines[place:]]).encode(), either),
        "an open quote": ("\n".join([*lines[:place], f'"{lines[place]}', *lines[place:]]).encode(), either),
        "a zero byte": (text.encode().replace(b"e", b"\0", 1), either),
        "no UTF-8": (text.encode().replace(b"e", b"\xff", 3), either),
        "names alone": (f"{head}\n".encode(), either),
        f"column {column} missing": (table.drop(column).write_csv().encode(), refused),
        f"column {column} in capitals": (table.rename({column: column.upper()}).write_csv().encode(), refused),
        f"a space before {column}": (table.rename({column: f" {column}"}).write_csv().encode(), refused),
        "a column more": (table.with_columns(more=pl.lit("x")).write_csv().encode(), same),
        "rows twice": (pl.concat([table, table]).write_csv().encode(), either),
        "a gzip called CSV": (gzip.compress(text.encode()), either),
    }
    what = drawn(rng, list(options))
    changed, must = options[what]
    return OwnMutation(Mutation("forms of CSV", f"{name}: {what}", {f"files/{name}": changed}, must), drop)


def _quoted(table: pl.DataFrame) -> bytes:
    file = io.StringIO()
    writer = csv.writer(file, quoting=csv.QUOTE_ALL, lineterminator="\n")
    writer.writerow(table.columns)
    writer.writerows(table.rows())
    return file.getvalue().encode()


def _bytes(rng: np.random.Generator, drop: bool) -> OwnMutation:
    name = drawn(rng, TABLES)
    raw = content(name, tables()[name])
    if rng.random() < 0.3:
        others = {what: other for what, other in other_kinds_of_file(tables()[name]).items() if what != "a CSV"}
        what = drawn(rng, list(others))
        # Its Arrow columns are what its parquet has: Polars reads it, whatever its name.
        fault = Mutation("empty and wrong files", f"{name}: {what}", {f"files/{name}": others[what]}, Must.EITHER)
        return OwnMutation(fault, drop)
    kind, change = drawn(rng, (("truncated files", truncated), ("flipped bits", flipped)))
    what, changed = change(rng, raw)
    return OwnMutation(Mutation(kind, f"{name}: {what}", {f"files/{name}": changed}, Must.EITHER), drop)


_VALUES: Final = (
    *(None, "", 0, -1, 1e308, True, [], {}, [1], ["sales.csv"], {"x": 1}, "no_such_thing", "../x", "x" * 5_000, "*"),
    *(
        "Europe/Atlantis",
        "UTC",
        "%",
        "%Q",
        "%d.%m.%Y",
        "epoch",
        "epoch_ms",
        ";",
        ";;",
        "\n",
        "product_buy",
        "page visit",
    ),
    *("sales.csv", "**/*", "/dev/null", "[", "\0", "who", "at", {"who": None}, {"who": []}, {"who": [{"x": 1}]}),
)


def _schemas(rng: np.random.Generator, drop: bool) -> OwnMutation:
    changed = yaml.safe_load(yaml.safe_dump(SCHEMA))
    path = drawn(rng, (("events", "sales"), ("events", "pages"), ("events", "words"), ("items",), ("events",), ()))
    part = changed
    for key in path:
        part = part[key]
    options = (*part, "zone", "where", "separator", "format", "table", "value", "unknown", 3)
    key, value = drawn(rng, options), drawn(rng, _VALUES)
    if rng.random() < 0.2:
        part.pop(key, None)
        value = "left out"
    else:
        part[key] = value
    what = f"{'.'.join(path)}.{key}: {str(value)[:40]!r}"
    text = yaml.safe_dump(changed)
    if rng.random() < 0.1:
        what, text = "no YAML", drawn(rng, ("events: [", "\t", "a: b: c", "- 1\n- 2", "", "events: *x", "&a [*a]"))
    return OwnMutation(Mutation("schemas", what, {"schema/mine.yaml": text.encode()}, Must.EITHER), drop)


KINDS: Final = (_cells, _cells, _types, _forms, _bytes, _schemas)


# --- trials -----------------------------------------------------------------------------------------------------------


def right(root: Path, mutation: OwnMutation, undisturbed: list[Counter]) -> None:
    """What was brought in can be opened, and holds what plain Python reads."""
    paths = DataPaths(root)
    history = ChallengeData(paths, True)
    found = [Counter(history.events(event_type).collect().rows()) for event_type in (EventType.PRODUCT_BUY,)]
    if mutation.fault.must == Must.SAME:
        assert found == undisturbed, "another log"
    if mutation.reference is None:
        return
    bought = history.events(EventType.PRODUCT_BUY).collect()
    for name, column in (("client", "client_id"), ("item", "sku")):
        ids = pl.read_parquet(paths.ids(name)).with_columns(pl.col("original").cast(pl.String))
        bought = bought.join(ids, left_on=column, right_on="id").drop(column).rename({"original": column})
    seen = Counter(zip(bought["client_id"], bought["timestamp"], bought["sku"], strict=True))
    assert seen == Counter(mutation.reference), "other purchases than plain Python reads"


def look_at(ended: Ended, mutation: OwnMutation) -> None:
    assert mutation.fault.must != Must.SAME or not ended.refused, ended.lines
    assert mutation.fault.must != Must.REFUSED or ended.refused, "not refused"
    if ended.refused:
        (file,) = mutation.fault.files
        named = ("schema", "zone") if file.startswith("schema") else (Path(file).name, "sales.csv")
        assert any(part in line for part in named for line in ended.lines), f"does not name {file}: {ended.lines}"
        assert all(len(line) < 900 for line in ended.lines), [line[:300] for line in ended.lines]
    elif mutation.reference is not None and not mutation.drop:
        assert len(mutation.reference) == len(tables()["sales.csv"]), "rows that cannot be used were taken"


def of_own_logs(seeds: range, trials: Trials, counts: Counter[str]) -> Iterator[tuple[str, Callable[[], None]]]:
    undisturbed = list[Counter]()

    def words(root: Path, drop: bool) -> list[str]:
        rows = "drop" if drop else "error"
        return [
            "scripts/import_log.py",
            f"--config-dir={root}",
            "schema=mine",
            f"source={root}/files",
            f"bad_rows={rows}",
        ]

    def expected() -> list[Counter]:
        if not undisturbed:
            with trials.copy({}) as root:
                assert not trials.run(root, words(root, drop=False)).refused
                history = ChallengeData(DataPaths(root), True)
                undisturbed.append(Counter(history.events(EventType.PRODUCT_BUY).collect().rows()))
        return undisturbed

    for seed in seeds:
        rng = np.random.default_rng([seed, 77])
        mutation = KINDS[seed % len(KINDS)](rng, bool(rng.random() < 0.5))

        def trial(mutation: OwnMutation = mutation) -> None:
            wanted = expected()
            with trials.copy(mutation.fault.files) as root:
                ended = trials.run(root, words(root, mutation.drop))
                look_at(ended, mutation)
                if not ended.refused:
                    right(root, mutation, wanted)
            counts[
                f"bad inputs: own logs: {mutation.fault.kind}: {'refused' if ended.refused else 'right results'}"
            ] += 1

        yield f"{seed} {mutation.fault}{', dropped' * mutation.drop}", trial


def test_own_logs(base, tmp_path, monkeypatch, capfd, counts):
    trials = Trials(base, tmp_path, monkeypatch, capfd)
    all_end_well(dict(of_own_logs(range(QUICK * len(KINDS)), trials, counts)))


@pytest.mark.long
def test_many_own_logs(base, tmp_path, monkeypatch, capfd, counts):
    trials = Trials(base, tmp_path, monkeypatch, capfd)
    all_end_well(dict(of_own_logs(range(100, 100 + LONG * len(KINDS)), trials, counts)))
