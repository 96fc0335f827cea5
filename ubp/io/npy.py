"""``.npy`` files that others wrote: whatever is wrong with one is one kind of error, and nothing in it runs."""

import math
from pathlib import Path
from tokenize import TokenError
from typing import IO, Any

import numpy as np
import numpy.typing as npt

_ZIP = b"PK"  # what archives of arrays begin with

# What numpy, and Python's parser that it asks, say of a header that makes no sense.
_BROKEN = (SyntaxError, TokenError, EOFError, TypeError, OverflowError, MemoryError, RecursionError, AttributeError)


def read_npy(file: Path, mapped: bool = False) -> npt.NDArray[Any]:
    """The array in a ``.npy`` file of plain numbers.

    Args:
        file: the file.
        mapped: leave the numbers on the disk until they are asked for.

    Raises:
        ValueError: it is no such file, is incomplete, or holds Python objects.
        OSError: it cannot be read.
    """
    with file.open("rb") as opened:
        try:
            _require_whole(opened, file.stat().st_size)
            opened.seek(0)
            if not mapped:
                whole: npt.NDArray[Any] = np.load(opened, allow_pickle=False)
                return whole
        except _BROKEN as error:
            raise ValueError(f"its header makes no sense ({type(error).__name__})") from error
    array: npt.NDArray[Any] = np.load(file, mmap_mode="r", allow_pickle=False)
    return array


def header_of(opened: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and dtype of the array that a file says it has; the file then stands where the numbers begin.

    Raises:
        ValueError: it does not say so.
    """
    try:
        version = np.lib.format.read_magic(opened)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(opened)
    except _BROKEN as error:
        raise ValueError(f"its header makes no sense ({type(error).__name__})") from error
    return shape, dtype


def _require_whole(opened: IO[bytes], size: int) -> None:
    """Before numpy makes room for whatever the header says.

    Raises:
        ValueError: the file does not hold what its header says.
    """
    if opened.read(len(_ZIP)) == _ZIP:
        raise ValueError("an archive of arrays; must be one array: np.save(path, array)")
    opened.seek(0)
    shape, dtype = header_of(opened)
    if dtype.hasobject:
        raise ValueError("it holds Python objects, not numbers")
    wanted, held = math.prod(shape) * dtype.itemsize, size - opened.tell()
    if held < wanted or min(shape, default=0) < 0:
        raise ValueError(f"it holds {held:,} bytes of numbers, and says that it has {wanted:,}")
