"""Arrays in a file: the same come back, and a broken file ends in one line."""

import numpy as np
import pytest

from ubp.io.arrays import read_arrays, write_arrays
from ubp.io.errors import UserError


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
