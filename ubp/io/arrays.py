"""Arrays of plain numbers in files: nothing that runs code when it is read."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import IO, Any
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from ubp.io.errors import UserError
from ubp.io.files import atomic_write

Arrays = dict[str, npt.NDArray[Any]]


class _Written:
    """A file as Python writes it: numpy takes one that it knows to be a file past Python.

    What a full disk does not take of the last 4 KiB is then lost without an error.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self.write = file.write


def save_array(file: Path, array: npt.NDArray[Any]) -> None:
    """What ``np.save`` writes, or an error: numpy itself leaves a file that is too short on a full disk."""
    with file.open("wb") as opened:
        np.lib.format.write_array(_Written(opened), array, allow_pickle=False)


def write_header(file: IO[bytes], dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
    """Begin a .npy file whose numbers are appended afterwards, row by row."""
    head = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, head)


def append_array(file: IO[bytes], array: npt.NDArray[Any]) -> None:
    """What an array's ``tofile`` writes, or an error; the file is one that is buffered."""
    file.write(np.ascontiguousarray(array).data)


def write_arrays(file: Path, arrays: Mapping[str, Any]) -> None:
    """Keep arrays by their names; the file appears whole or not at all."""
    with atomic_write(file) as aside, aside.open("wb") as opened:  # numpy would add an ending to a path
        np.savez(opened, allow_pickle=False, **arrays)


def read_arrays(file: Path, names: Collection[str], advice: str) -> Arrays:
    """What `write_arrays` kept.

    Args:
        file: that it wrote.
        names: of the arrays that must be there.
        advice: what to do where they cannot be read.

    Raises:
        UserError: they cannot.
    """
    try:
        with np.load(file, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in names}
    except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
        raise UserError(f"{file}: not readable ({error}); {advice}") from error
