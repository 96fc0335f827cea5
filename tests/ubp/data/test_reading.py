"""Arrays from files that strangers wrote: numbers are read, code is not run."""

import io
import os

import numpy as np
import pytest

from ubp.data.reading import read_array


def written(path, array):
    np.save(path, array, allow_pickle=True)
    return path


@pytest.mark.parametrize(
    "array",
    [
        np.arange(3),
        np.array([0.5, 2.0], np.float32),
        np.array([3, 1], dtype=object),
        np.array([0.5, 2], dtype=object),
        np.array([np.int64(3), np.float64(1.5)], dtype=object),
        np.array([], dtype=object),
        np.zeros((2, 3), dtype=object),
    ],
)
def test_numbers_are_read_as_numpy_reads_them(tmp_path, array):
    found = read_array(written(tmp_path / "a.npy", array))
    assert found.dtype == array.dtype
    assert found.tolist() == array.tolist()


class Evil:
    def __init__(self, touched):
        self.touched = touched

    def __reduce__(self):
        return os.mkdir, (str(self.touched),)


def test_code_is_not_run(tmp_path):
    file = written(tmp_path / "a.npy", np.array([1, Evil(tmp_path / "touched")], dtype=object))
    with pytest.raises(ValueError, match=r"it asks for (posix|nt)\.mkdir, which is no number"):
        read_array(file)
    assert not (tmp_path / "touched").exists()
    np.load(file, allow_pickle=True)
    assert (tmp_path / "touched").exists()  # so the file is what the test takes it for


@pytest.mark.parametrize("left", [0, 5, 30, 100, 140])
def test_a_file_that_ends_too_early(tmp_path, left):
    whole = io.BytesIO()
    np.save(whole, np.array([3, 1, 2, 5], dtype=object), allow_pickle=True)
    file = tmp_path / "a.npy"
    file.write_bytes(whole.getvalue()[:left])
    with pytest.raises((ValueError, EOFError)):
        read_array(file)
