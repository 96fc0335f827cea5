"""What clients are called: the library's integers, and the ids of the log that `scripts/import_log.py` brought in."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from ubp.data.own_ids import ID, ORIGINAL
from ubp.data.paths import DataPaths
from ubp.io.errors import UserError


@dataclass(frozen=True)
class ClientNames:
    """The own ids of a log's clients, where it has some.

    Attributes:
        table: ``id`` Int64 and ``original`` Int64 or String; None for a log whose ids are the integers themselves.
    """

    table: pl.DataFrame | None

    @classmethod
    def of(cls, paths: DataPaths) -> "ClientNames":
        """Of a log.

        Raises:
            UserError: its file cannot be read.
        """
        file = paths.ids("client")
        if not file.exists():
            return cls(None)
        try:
            return cls(pl.read_parquet(file, columns=[ID, ORIGINAL], glob=False))
        except (pl.exceptions.PolarsError, OSError) as error:
            raise UserError(
                f"{file}: not a table of ids ({str(error).splitlines()[0]}); import the log again"
            ) from error

    def client(self, name: str) -> int:
        """The integer of a client; an own id comes before an integer that is written the same way.

        Args:
            name: as the user wrote it.

        Raises:
            UserError: the log has no such client, or the name is no integer of 64 bits.
        """
        if self.table is not None:
            found = self.table.filter(pl.col(ORIGINAL).cast(pl.String) == name)[ID]
            if len(found):
                return int(found[0])
        try:
            client = int(name)
        except ValueError:
            client = None
        if client is None or not -(2**63) <= client < 2**63:
            known = "" if self.table is None else ", nor an own id of ids_client.parquet"
            raise UserError(f"client={name}: not an integer{known}")
        return client

    def names(self, clients: npt.NDArray[np.int64]) -> pl.Series:
        """What clients are called: their own ids where the log has some, else the integers.

        Args:
            clients: int64 [n], in any order, with repetitions or without.

        Returns:
            Int64 or String [n]; null for a client that has no own id.
        """
        if self.table is None:
            return pl.Series(ORIGINAL, clients)
        asked = pl.DataFrame({ID: clients})
        return asked.join(self.table, on=ID, how="left", maintain_order="left")[ORIGINAL]
