"""Arrays in a file: the same come back, and a broken file ends in one line."""

from pathlib import Path

import numpy as np
import pytest

from ubp.io.arrays import append_array, read_arrays, save_array, write_arrays, write_header
from ubp.io.errors import UserError

FULL = Path("/dev/full")
ARRAYS = [
    np.arange(700),
    np.zeros((0, 4), np.float32),
    np.arange(12, dtype=np.uint8).reshape(3, 4),
    np.asfortranarray(np.arange(12.0).reshape(3, 4)),
    np.arange(20)[::3],
]


@pytest.mark.parametrize("array", ARRAYS)
def test_an_array_as_numpy_writes_it(tmp_path, array):
    np.save(tmp_path / "numpy.npy", array)
    save_array(tmp_path / "ours.npy", array)
    assert (tmp_path / "ours.npy").read_bytes() == (tmp_path / "numpy.npy").read_bytes()


@pytest.mark.parametrize("array", ARRAYS[:3])
def test_an_array_row_by_row(tmp_path, array):
    with (tmp_path / "a.npy").open("wb") as file:
        write_header(file, array.dtype, array.shape)
        for half in (array[: len(array) // 2], array[len(array) // 2 :]):
            append_array(file, half)
    np.save(tmp_path / "numpy.npy", array)
    assert (tmp_path / "a.npy").read_bytes() == (tmp_path / "numpy.npy").read_bytes()


def append(file, array):
    with file.open("wb") as opened:
        append_array(opened, array)


@pytest.mark.parametrize("write", [save_array, append])
def test_a_disk_that_takes_not_all_of_an_array_is_an_error(write):
    """As numpy's own does not: of so few bytes it hears only when it closes the file, and does not listen."""
    if not FULL.exists():
        pytest.skip(f"no {FULL} here")
    with pytest.raises(OSError, match="No space left"):
        write(FULL, np.arange(20))


def test_the_same_come_back(tmp_path):
    file = tmp_path / "folder" / "a.npz"
    write_arrays(file, {"mean": np.arange(3.0), "clients": np.int64(7)})
    found = read_arrays(file, ("mean", "clients"), "begin anew")
    assert found["mean"].tolist() == [0, 1, 2]
    assert int(found["clients"]) == 7
    assert [path.name for path in file.parent.iterdir()] == ["a.npz"]


@pytest.mark.parametrize("left", [0, 10, 100])
def test_a_broken_file_is_named(tmp_path, left):
    file = tmp_path / "a.npz"
    write_arrays(file, {"mean": np.arange(3.0)})
    with pytest.raises(UserError, match=r"a\.npz: not readable .*; begin anew"):
        read_arrays(file, ("other",), "begin anew")
    file.write_bytes(file.read_bytes()[:left])
    with pytest.raises(UserError, match=r"a\.npz: not readable .*; begin anew"):
        read_arrays(file, ("mean",), "begin anew")


def test_python_objects_are_not_written(tmp_path):
    with pytest.raises(ValueError, match="allow_pickle"):
        write_arrays(tmp_path / "a.npz", {"a": np.array([object()])})
    assert not list(tmp_path.iterdir())
