"""One embedding (block): the parquet that every command writes and merge reads."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import polars as pl

from ubp.data import schema
from ubp.io.errors import UserError
from ubp.io.files import atomic_write, read_whole
from ubp.io.npy import read_npy

if TYPE_CHECKING:  # a third of a second of imports, where something is read or written
    import pyarrow as pa

LINEAGE = "lineage"  # key in the parquet's metadata
_DIGEST = "digest"  # another: see there; other programs' parquets have none
_LOOKED_AT = 4_096  # rows
_GROUP = 2**22  # floats in a row group: writing holds as many a second time
_BATCH = 2**21  # floats decoded at a time, which takes four times their memory: repetition levels, growing buffers
_BUFFER = 2**20  # bytes read at a time


@dataclass(frozen=True)
class EmbeddingTable:
    """Client ids and their vectors.

    Attributes:
        client_ids: int64 [clients], each once.
        vectors: float32 [clients, columns], finite.
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
        import pyarrow as pa
        import pyarrow.parquet as pq

        layout = pa.schema(
            [pa.field(schema.CLIENT_ID, pa.int64(), nullable=False), vectors_field(self.columns)],
            metadata={LINEAGE: json.dumps(self.lineage), _DIGEST: _digest(self.client_ids, self.vectors)},
        )
        table = pa.table([pa.array(self.client_ids), vectors_array(self.vectors)], schema=layout)
        with atomic_write(path) as aside:
            pq.write_table(
                table,
                aside,
                # Floats of neural nets hardly compress, and hardly repeat.
                compression="none",
                use_dictionary=False,
                write_statistics=[schema.CLIENT_ID],
                write_page_checksum=True,
                row_group_size=rows_of_group(self.columns),
            )

    @classmethod
    def read(cls, path: Path) -> "EmbeddingTable":
        """Read a block's parquet, its vectors straight into one matrix, or a folder of ``.npy`` files.

        Raises:
            UserError: it is no such file, or breaks a rule of `EmbeddingTable`.
        """
        try:
            return read_whole(path, lambda: cls._from_folder(path) if path.is_dir() else cls._from_parquet(path))
        except (ValueError, OSError, EOFError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"{path}: not a usable embedding: {reason}; make it again") from error

    @classmethod
    def _from_parquet(cls, path: Path) -> "EmbeddingTable":
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            # Not the whole file first, and then a list of vectors as Arrow grows it: four times the vectors' memory.
            with pq.ParquetFile(path, pre_buffer=False, buffer_size=_BUFFER, page_checksum_verification=True) as file:
                columns = _columns_of(file.schema_arrow)
                client_ids = np.empty(file.metadata.num_rows, np.int64)
                vectors = np.empty((len(client_ids), columns), np.float32)
                start = 0
                for batch in file.iter_batches(max(_BATCH // columns, 1)):
                    rows = slice(start, start + len(batch))
                    client_ids[rows] = _without_nulls(batch, schema.CLIENT_ID)
                    vectors[rows] = _without_nulls(batch, schema.EMBEDDING).reshape(-1, columns)
                    start += len(batch)
                noted = file.metadata.metadata or {}
        except (pa.ArrowException, MemoryError) as error:
            raise ValueError(str(error)) from error
        if start != len(client_ids):
            raise ValueError(f"{start:,} rows, where it says that it has {len(client_ids):,}")
        if noted.get(_DIGEST.encode(), b"").decode() not in ("", _digest(client_ids, vectors)):
            raise ValueError("its ids or vectors are not those that were written")
        return cls(client_ids, vectors, _lineage_in(noted.get(LINEAGE.encode(), b"{}")))

    @classmethod
    def _from_folder(cls, folder: Path) -> "EmbeddingTable":
        client_ids, vectors = read_npy(folder / schema.ENTRY_CLIENT_IDS), read_npy(folder / schema.ENTRY_EMBEDDINGS)
        if not np.issubdtype(client_ids.dtype, np.integer):
            raise ValueError(f"{schema.ENTRY_CLIENT_IDS} is {client_ids.dtype}, not integers")
        if not np.issubdtype(vectors.dtype, np.floating):
            raise ValueError(f"{schema.ENTRY_EMBEDDINGS} is {vectors.dtype}, not floats")
        return cls(client_ids.astype(np.int64, copy=False), vectors.astype(np.float32, copy=False), {})


def lies_at(path: Path) -> bool:
    """Whether a block's parquet or an entry's folder lies there."""
    return path.is_file() or (path / schema.ENTRY_EMBEDDINGS).is_file()


def find_vectors(name: str, folders: Iterable[Path]) -> Path | None:
    """The entry or block of that name in the first of some folders that has one; None where none has."""
    places = (place for folder in folders for place in (folder / name, folder / f"{name}.parquet"))
    return next(filter(lies_at, places), None)


def names_in(folder: Path) -> list[str]:
    """The names of a folder's entries, then of its blocks."""
    entries = [path.parent.name for path in folder.glob(f"*/{schema.ENTRY_EMBEDDINGS}")]
    return [*entries, *(path.stem for path in folder.glob("*.parquet") if not path.name.startswith("."))]


def read_lineage(path: Path) -> dict[str, Any]:
    """The lineage in a block's parquet; empty where there is none.

    Raises:
        UserError: it is no readable parquet.
    """
    try:
        return _lineage_in(pl.read_parquet_metadata(path).get(LINEAGE, "{}"))
    except (pl.exceptions.PolarsError, OSError, ValueError) as error:
        raise UserError(f"{path}: not a readable parquet ({str(error).splitlines()[0]}); make it again") from error


def _lineage_in(text: str | bytes) -> dict[str, Any]:
    """A lineage as a parquet holds it.

    Raises:
        ValueError: it is none.
    """
    try:
        lineage = json.loads(text)
    except RecursionError as error:
        raise ValueError("its lineage is too deep") from error
    if not isinstance(lineage, dict):
        raise ValueError(f"its lineage is {str(lineage)[:20]!r}, not a mapping")  # noqa: TRY004 (of the file)
    return lineage


def _digest(client_ids: npt.NDArray[np.int64], vectors: npt.NDArray[np.float32]) -> str:
    """Of all ids, and of vectors spread over the table: whether pages are what they were written as.

    What a page holds has a checksum of its own; where it lies, and how it is to be read, has none.
    """
    some = vectors[:: len(vectors) // _LOOKED_AT + 1]
    digest = hashlib.blake2b(np.ascontiguousarray(client_ids).tobytes(), digest_size=16)
    digest.update(np.ascontiguousarray(some).tobytes())
    return digest.hexdigest()


def vectors_field(columns: int) -> "pa.Field":
    """The column of vectors of so many numbers.

    Nothing can be null: reading then decodes no levels for it, and takes a third of the time.
    """
    import pyarrow as pa

    kind = pa.list_(pa.field("element", pa.float32(), nullable=False), columns)
    return pa.field(schema.EMBEDDING, kind, nullable=False)


def vectors_array(vectors: npt.NDArray[np.float32]) -> "pa.FixedSizeListArray":
    """Vectors, float32 [rows, columns], as that column holds them."""
    import pyarrow as pa

    flat = pa.array(np.ascontiguousarray(vectors).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, type=vectors_field(vectors.shape[1]).type)


def rows_of_group(columns: int) -> int:
    """Rows of a row group of a parquet of vectors."""
    return max(_GROUP // columns, 1)


def _columns_of(layout: "pa.Schema") -> int:
    """The width of the vectors in a file.

    Raises:
        ValueError: the file has other columns than a block.
    """
    import pyarrow as pa

    if set(layout.names) != {schema.CLIENT_ID, schema.EMBEDDING}:
        raise ValueError(f"columns {', '.join(layout.names)}, not {schema.CLIENT_ID} and {schema.EMBEDDING}")
    kind = layout.field(schema.EMBEDDING).type
    if not pa.types.is_fixed_size_list(kind) or kind.value_type != pa.float32():
        raise ValueError(f"column {schema.EMBEDDING} is {kind}, not a fixed-size list of float32")
    if (of_ids := layout.field(schema.CLIENT_ID).type) != pa.int64():
        raise ValueError(f"column {schema.CLIENT_ID} is {of_ids}, not int64")
    if kind.list_size < 1:
        raise ValueError("no columns")
    return int(kind.list_size)


def _without_nulls(batch: "pa.RecordBatch", name: str) -> npt.NDArray[Any]:
    """The numbers of a column, of vectors one after the other: a view of the batch.

    Raises:
        ValueError: some are null.
    """
    column = batch.column(name)
    numbers = column.flatten() if name == schema.EMBEDDING else column
    if column.null_count or numbers.null_count:
        raise ValueError(f"column {name}: some values are null")
    found: npt.NDArray[Any] = numbers.to_numpy(zero_copy_only=True)
    return found
