"""One embedding (block): the parquet that every command writes and merge reads."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from ubp.data import schema
from ubp.io.errors import UserError
from ubp.io.files import atomic_write

_LINEAGE = "lineage"  # key in the parquet's metadata


@dataclass(frozen=True)
class EmbeddingTable:
    """Client ids and their vectors.

    Attributes:
        client_ids: int64 [clients], each once.
        vectors: float32 [clients, columns], finite; a view of the file's data after `read`.
        lineage: where it comes from: name, resolved config, seed, versions, the history's fingerprint.
            Empty for a folder of ``.npy`` files made by somebody else's code.
    """

    client_ids: npt.NDArray[np.int64]
    vectors: npt.NDArray[np.float32]
    lineage: dict[str, Any]

    def __post_init__(self) -> None:
        """Refuse what no block may be.

        Raises:
            ValueError: shapes or dtypes do not fit, a client occurs twice, or a value is not finite.
        """
        if self.client_ids.dtype != np.int64 or self.vectors.dtype != np.float32:
            raise ValueError(
                f"ids must be int64 and vectors float32, not {self.client_ids.dtype}, {self.vectors.dtype}"
            )
        if self.vectors.ndim == 2 and self.vectors.shape[1] == 0:
            raise ValueError("no columns")
        if self.vectors.ndim != 2 or self.client_ids.shape != (len(self.vectors),):
            raise ValueError(f"{self.client_ids.shape} ids and {self.vectors.shape} vectors do not fit")
        repeated = len(self.client_ids) - len(np.unique(self.client_ids))
        if repeated:
            raise ValueError(f"{repeated:,} rows repeat a client")
        finite = np.isfinite(self.vectors).all(axis=1)
        if not finite.all():
            raise ValueError(f"{(~finite).sum():,} clients have values that are not finite")

    def __len__(self) -> int:
        return len(self.client_ids)

    @property
    def columns(self) -> int:
        return int(self.vectors.shape[1])

    def write(self, path: Path) -> None:
        """Write the parquet: it appears whole or not at all."""
        vectors = pl.Series(self.vectors, dtype=pl.Array(pl.Float32, self.columns))
        table = pl.DataFrame({schema.CLIENT_ID: self.client_ids, schema.EMBEDDING: vectors})
        with atomic_write(path) as aside:
            # Floats of neural nets hardly compress; one row group, so that reading makes one array.
            table.write_parquet(
                aside,
                compression="uncompressed",
                row_group_size=max(len(table), 1),
                metadata={_LINEAGE: json.dumps(self.lineage)},
            )

    @classmethod
    def read(cls, path: Path) -> "EmbeddingTable":
        """Read a block's parquet, without copying its vectors again, or a folder of ``.npy`` files.

        Raises:
            UserError: it is no such file, or breaks a rule of `EmbeddingTable`.
        """
        try:
            return cls._from_folder(path) if path.is_dir() else cls._from_parquet(path)
        except (ValueError, OSError, EOFError, pl.exceptions.PolarsError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"{path}: not a usable embedding: {reason}; make it again") from error

    @classmethod
    def _from_parquet(cls, path: Path) -> "EmbeddingTable":
        table = pl.read_parquet(path, glob=False)
        if set(table.columns) != {schema.CLIENT_ID, schema.EMBEDDING}:
            raise ValueError(f"columns {', '.join(table.columns)}, not {schema.CLIENT_ID} and {schema.EMBEDDING}")
        vectors = table[schema.EMBEDDING]
        if not isinstance(vectors.dtype, pl.Array) or vectors.dtype.inner != pl.Float32 or vectors.null_count():
            raise ValueError(f"column {schema.EMBEDDING} is {vectors.dtype}, not a fixed-size list of float32")
        return cls(table[schema.CLIENT_ID].to_numpy(), vectors.to_numpy(), read_lineage(path))

    @classmethod
    def _from_folder(cls, folder: Path) -> "EmbeddingTable":
        client_ids = np.load(folder / schema.ENTRY_CLIENT_IDS, allow_pickle=False)
        vectors = np.load(folder / schema.ENTRY_EMBEDDINGS, allow_pickle=False)
        if not np.issubdtype(client_ids.dtype, np.integer):
            raise ValueError(f"{schema.ENTRY_CLIENT_IDS} is {client_ids.dtype}, not integers")
        if not np.issubdtype(vectors.dtype, np.floating):
            raise ValueError(f"{schema.ENTRY_EMBEDDINGS} is {vectors.dtype}, not floats")
        return cls(client_ids.astype(np.int64, copy=False), vectors.astype(np.float32, copy=False), {})


def read_lineage(path: Path) -> dict[str, Any]:
    """The lineage in a block's parquet; empty where there is none.

    Raises:
        UserError: it is no readable parquet.
    """
    try:
        lineage: dict[str, Any] = json.loads(pl.read_parquet_metadata(path).get(_LINEAGE, "{}"))
    except (pl.exceptions.PolarsError, OSError, ValueError) as error:
        raise UserError(f"{path}: not a readable parquet ({str(error).splitlines()[0]}); make it again") from error
    return lineage
