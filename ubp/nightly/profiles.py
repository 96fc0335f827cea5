"""Profiles day by day, a hive-partitioned folder: ``profiles/NAME/day=2022-11-09/profiles.parquet``.

    pl.scan_parquet("profiles/NAME/**/*.parquet", hive_partitioning=True)

gives ``client_id``, ``original`` (the log's own id, where it has other ones), ``version`` of the model, ``embedding``
and ``day``. Beside the parquet lies what the night found, ``drift.json``; in ``versions/`` what belongs to a version.
"""

import json
import re
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import polars as pl

from ubp.blocks.embeddings import LINEAGE, EmbeddingTable, read_lineage, rows_of_group, vectors_array, vectors_field
from ubp.data import own_ids, schema
from ubp.data.reading import collect, scan
from ubp.io.files import atomic_write

BEGIN_ANEW: Final = "remove its version's profiles and begin anew"  # where a file of a version is broken

_FILE: Final = "profiles.parquet"
_DAY: Final = "day="
_PATTERN: Final = re.compile(r"day=(\d{4}-\d{2}-\d{2})")
_SPACE: Final = "@"  # before the version in whose space a rotated one lies
VERSION: Final = "version"

Ids = npt.NDArray[np.int64]


def space_of(version: str) -> str:
    """The version whose coordinates profiles of some version have: its own, or that onto which it was rotated."""
    return version.rpartition(_SPACE)[2]


def in_space(version: str, space: str) -> str:
    """The name of a version that was rotated onto another one's coordinates."""
    return f"{version}{_SPACE}{space}"


@dataclass(frozen=True)
class ProfileDays:
    """The profiles of one block or merge.

    Attributes:
        folder: ``profiles/NAME``.
    """

    folder: Path

    def of_day(self, day: date) -> Path:
        """The folder of a day."""
        return self.folder / f"{_DAY}{day}"

    def file(self, day: date) -> Path:
        """The parquet of a day."""
        return self.of_day(day) / _FILE

    def of_version(self, version: str, what: str) -> Path:
        """A file that belongs to a version."""
        return self.folder / "versions" / f"{version}.{what}"

    def days(self) -> list[date]:
        """The days that have profiles, the latest first."""
        found = (_PATTERN.fullmatch(path.parent.name) for path in self.folder.glob(f"{_DAY}*/{_FILE}"))
        return sorted((date.fromisoformat(match[1]) for match in found if match), reverse=True)

    def lineage(self, day: date) -> dict[str, Any]:
        """Where the profiles of a day come from; ``version`` among it."""
        return read_lineage(self.file(day))

    def write(self, day: date, table: EmbeddingTable, version: str, originals: pl.DataFrame | None) -> None:
        """Write the profiles of a day: the parquet appears whole or not at all.

        Args:
            day: its name.
            table: the profiles.
            version: of the model.
            originals: the log's own ids of clients (`ubp.data.own_ids`); None: they are the same.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        ids = pl.DataFrame({schema.CLIENT_ID: table.client_ids})
        if originals is not None:
            own = originals.rename({own_ids.ID: schema.CLIENT_ID})
            ids = ids.join(own, on=schema.CLIENT_ID, how="left", maintain_order="left")
        ids = ids.with_columns(pl.lit(version).alias(VERSION))
        fields = {name: column.to_arrow().type for name, column in zip(ids.columns, ids, strict=True)}
        layout = pa.schema(
            [*(pa.field(name, dtype) for name, dtype in fields.items()), vectors_field(table.columns)],
            metadata={LINEAGE: json.dumps(table.lineage | {VERSION: version})},
        )
        with (
            atomic_write(self.file(day)) as aside,
            pq.ParquetWriter(
                aside, layout, compression="zstd", use_dictionary=[VERSION], write_statistics=[schema.CLIENT_ID]
            ) as writer,
        ):
            step = rows_of_group(table.columns)
            for start in range(0, len(table), step):
                rows = slice(start, start + step)
                columns = [column.to_arrow().cast(layout.field(column.name).type) for column in ids[rows]]
                writer.write_table(pa.Table.from_arrays([*columns, vectors_array(table.vectors[rows])], schema=layout))

    def newest(self, clients: Ids, before: date, version: str) -> EmbeddingTable | None:
        """The last profiles of some clients, of one version.

        Args:
            clients: int64, ascending, each once.
            before: only profiles of earlier days.
            version: of them.

        Returns:
            A row for each client that has one, by ascending id; None where nobody has.
        """
        wanted, ids, vectors = pl.DataFrame({schema.CLIENT_ID: clients}), list[Ids](), list[npt.NDArray[np.float32]]()
        for day in self.days():
            if day >= before or self.lineage(day)[VERSION] != version:
                continue
            found = self.read(day, wanted)
            ids.append(found[schema.CLIENT_ID].to_numpy())
            vectors.append(found[schema.EMBEDDING].to_numpy())
            wanted = wanted.join(found.select(schema.CLIENT_ID), on=schema.CLIENT_ID, how="anti")
            if wanted.is_empty():
                break
        if not any(map(len, ids)):
            return None
        every = np.concatenate(ids)
        order = np.argsort(every)
        matrix = np.concatenate([each for each in vectors if len(each)])
        return EmbeddingTable(every[order], matrix[order], {})

    def read(self, day: date, clients: pl.DataFrame | None = None) -> pl.DataFrame:
        """``client_id`` and ``embedding`` of a day's profiles, of some clients or of all."""
        frame = scan(self.file(day)).select(schema.CLIENT_ID, schema.EMBEDDING)
        if clients is not None:
            frame = frame.join(clients.lazy(), on=schema.CLIENT_ID, how="semi")
        return collect(frame)
