"""Tables of measurements: a row comes back as it was, whatever it holds; what is no row is named by its line."""

import errno
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ubp.io.errors import UserError
from ubp.io.rows import add_row, read_rows, write_rows


@dataclass(frozen=True)
class Measured:
    name: str
    seed: int
    total: float
    spread: float | None


MANY = [Measured("c=1.5 rotate=300", 1278, 4.4417, 0.0026), Measured('a, "b"', -1, 1e-9, None)]


def test_no_table_has_no_rows(tmp_path):
    assert read_rows(tmp_path / "none.csv", Measured) == []


rows = st.builds(
    Measured,
    st.text(st.characters(exclude_categories=["Cs", "Cc"])),
    st.integers(),
    st.floats(allow_nan=False),
    st.none() | st.floats(allow_nan=False),
)


@given(st.lists(rows, max_size=4))
def test_rows_come_back_as_they_were(tmp_path_factory, many):
    folder = tmp_path_factory.mktemp("rows")
    for row in many:
        add_row(folder / "new" / "added.csv", row)
    write_rows(folder / "written.csv", many, Measured)
    assert read_rows(folder / "new" / "added.csv", Measured) == many
    assert read_rows(folder / "written.csv", Measured) == many


def test_a_table_is_plain_csv_with_a_head(tmp_path):
    write_rows(tmp_path / "table.csv", MANY, Measured)
    wanted = 'name,seed,total,spread\nc=1.5 rotate=300,1278,4.4417,0.0026\n"a, ""b""",-1,1e-09,\n'
    assert (tmp_path / "table.csv").read_bytes().decode() == wanted


def test_writing_replaces_and_a_table_without_rows_has_a_head(tmp_path):
    file = tmp_path / "table.csv"
    write_rows(file, MANY, Measured)
    write_rows(file, [], Measured)
    assert file.read_text() == "name,seed,total,spread\n"
    assert read_rows(file, Measured) == []
    add_row(file, MANY[0])
    assert read_rows(file, Measured) == MANY[:1]


@pytest.mark.parametrize("end", ["\n", "\r\n", ""])
def test_a_row_is_added_below_the_last_line_however_it_ends(tmp_path, end):
    file = tmp_path / "table.csv"
    file.write_bytes(f"name,seed,total,spread\na,1,2.0,{end}".encode())
    add_row(file, MANY[0])
    assert read_rows(file, Measured) == [Measured("a", 1, 2.0, None), MANY[0]]


def test_a_row_that_a_full_disk_takes_half_of_leaves_the_table(tmp_path, monkeypatch):
    file = tmp_path / "table.csv"
    write_rows(file, MANY[:1], Measured)

    def half(path, text, **_):
        path.write_bytes(text.encode()[:-5])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", half)
    with pytest.raises(UserError, match=r"table\.csv: no space left on the disk"):
        add_row(file, MANY[1])
    assert read_rows(file, Measured) == MANY[:1]
    assert [path.name for path in tmp_path.iterdir()] == ["table.csv"]


def test_a_table_with_other_columns_is_refused(tmp_path):
    file = tmp_path / "table.csv"
    file.write_text("name,total\na,1\n")
    with pytest.raises(UserError, match=r"table.csv: has the columns name, total, not name, seed, total, spread"):
        read_rows(file, Measured)


@pytest.mark.parametrize("line", ["b,1,2.0", "b,one,2.0,", "b,1,,", "b,1,2.0,,9"])
def test_a_line_that_is_no_row_is_named(tmp_path, line):
    file = tmp_path / "table.csv"
    file.write_text(f"name,seed,total,spread\na,1,2.0,\n{line}\n")
    with pytest.raises(UserError, match=r"table.csv: line 3 is no row \(.+\); take it out"):
        read_rows(file, Measured)
