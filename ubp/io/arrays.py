"""Arrays of plain numbers in one ``.npz``: nothing that runs code when it is read."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from ubp.io.errors import UserError
from ubp.io.files import atomic_write

Arrays = dict[str, npt.NDArray[Any]]


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
