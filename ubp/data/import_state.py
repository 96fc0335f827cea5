"""What an import learned and later ones must keep to, ``raw/import_state.npz``: plain numbers and texts, no pickle.

Ids lie beside it, ``raw/ids_*.parquet``.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Self
from zipfile import BadZipFile

import numpy as np

from ubp.data.item_attributes import Prices
from ubp.data.text_codes import Embed, TextCodes
from ubp.io.errors import UserError


@dataclass(frozen=True)
class ImportState:
    """Which codes a text has, and which bucket a price.

    Attributes:
        codes: the quantiser of names and searches.
        prices: float64, ascending, of the items that had one.
    """

    codes: TextCodes
    prices: Prices

    def write(self, file: Path) -> None:
        """Write it; the same state gives the same bytes."""
        with file.open("wb") as opened:  # numpy would add an ending to a path
            np.savez(opened, allow_pickle=False, **self.codes.arrays(), prices=self.prices)

    @classmethod
    def read(cls, file: Path, embedder: Callable[[str], Embed]) -> Self:
        """The state that `write` wrote.

        Args:
            file: of it.
            embedder: see `ubp.data.text_codes.TextCodes.from_arrays`.

        Raises:
            UserError: there is none, or it cannot be read.
        """
        if not file.exists():
            raise UserError(
                f"{file}: file missing; days can be taken into a log that was brought in by scripts/import_log.py, "
                "and by a version that writes this file: import it anew, and fit the models again"
            )
        try:
            with np.load(file, allow_pickle=False) as arrays:
                return cls(TextCodes.from_arrays(arrays, embedder), arrays["prices"])
        except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
            raise UserError(f"{file}: not readable ({error}); import the log anew, and fit the models again") from error
