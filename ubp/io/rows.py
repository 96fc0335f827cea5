"""Tables of measurements as CSV, a dataclass a row: each added when it is measured, so that a killed run goes on."""

import csv
import io
import types
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args, get_type_hints

from ubp.io.errors import UserError
from ubp.io.files import atomic_write

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Row = TypeVar("Row", bound="DataclassInstance")


def read_rows(file: Path, kind: type[Row]) -> list[Row]:
    """The rows of a table; none where there is no such file.

    Args:
        file: begins with the names of the columns, which are the fields of ``kind``.
        kind: of a row; its fields are ``str``, ``int``, ``float``, or one of the last two or None, which is left empty.

    Raises:
        UserError: the table has other columns, or a line that is no row.
    """
    if not file.exists():
        return []
    hints, names = get_type_hints(kind), [field.name for field in fields(kind)]
    with file.open(newline="") as text:
        lines = csv.reader(text)
        head = next(lines, names)
        if head != names:
            raise UserError(f"{file}: has the columns {', '.join(head)}, not {', '.join(names)}; name another table")
        found = []
        for line in lines:
            try:
                values = zip(names, line, strict=True)
                found.append(kind(**{name: _value(hints[name], value) for name, value in values}))
            except ValueError as error:
                raise UserError(f"{file}: line {lines.line_num} is no row ({error}); take it out") from error
    return found


def _value(hint: Any, text: str) -> str | int | float | None:  # noqa: ANN401 (the type of a field)
    """What stands in a cell, of the field's type.

    Raises:
        ValueError: it is not of that type.
    """
    kinds = get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if not text and types.NoneType in kinds:
        return None
    value: str | int | float = kinds[0](text)
    return value


def add_row(file: Path, row: "DataclassInstance") -> None:
    """Append a row to a table, which begins with the names of its columns: the whole row, or nothing of it.

    One process at a time may do so with one table.
    """
    old = file.read_bytes().decode() if file.exists() else ""
    text = _text([row], type(row), head=not old)
    with atomic_write(file) as aside:
        aside.write_text(old + (text if not old or old.endswith("\n") else f"\n{text}"), newline="")


def write_rows(file: Path, rows: Sequence[Row], kind: type[Row]) -> None:
    """A whole table, in the place of the one that was there."""
    with atomic_write(file) as aside:
        aside.write_text(_text(rows, kind, head=True), newline="")


def _text(rows: Sequence["DataclassInstance"], kind: type["DataclassInstance"], head: bool) -> str:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, [field.name for field in fields(kind)], lineterminator="\n")
    if head:
        writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    return text.getvalue()
