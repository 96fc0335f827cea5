"""How one block enters a merge: its vectors beside their clients, processed, scaled, what is missing imputed."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import polars as pl

from ubp.blocks.embeddings import EmbeddingTable
from ubp.blocks.transformers import Arrays, FittedTransformer, Matrix, Transformer
from ubp.data import schema

_STEPS = ("processor", "scaler", "imputer")


@dataclass  # not frozen: OmegaConf cannot fill the mappings of a frozen one
class BlockSettings:
    """How one embedding enters a merge; each step is fitted on the clients that have the block.

    Attributes:
        path: a parquet or a folder of ``.npy`` files; None for the embedding of the block's name.
        drop_zeros: a client whose vector is all zeros counts as one without the block.
        processor: a transformer of the vectors, such as PCA.
        scaler: a transformer after it; with ``global: true`` fitted on all values as one column.
        imputer: fills the rows of clients without the block; None for the merge's own.
        columns: what the processor makes, where its ``n_components`` does not say.
        weight: of the block's length beside the others', in a merge that is conditioned.
    """

    path: str | None = None
    drop_zeros: bool = False
    processor: dict[str, Any] | None = None
    scaler: dict[str, Any] | None = None
    imputer: dict[str, Any] | None = None
    columns: int | None = None
    weight: float = 1.0

    def width(self, path: Path) -> int:
        """Columns that the block will have in the matrix, without reading its vectors.

        Args:
            path: where the block lies.

        Raises:
            UserError: it cannot be read.
        """
        if self.columns is not None:
            return self.columns
        if self.processor is not None and isinstance(self.processor.get("n_components"), int):
            return int(self.processor["n_components"])
        if path.is_dir():
            return int(np.load(path / schema.ENTRY_EMBEDDINGS, mmap_mode="r").shape[1])
        dtype = pl.read_parquet_schema(path).get(schema.EMBEDDING)
        return dtype.size if isinstance(dtype, pl.Array) else EmbeddingTable.read(path).columns


@dataclass(frozen=True)
class FittedSteps:
    """The fitted steps of one block; None for one that the merge does not have."""

    drop_zeros: bool
    processor: FittedTransformer | None
    scaler: FittedTransformer | None
    imputer: FittedTransformer | None

    @classmethod
    def fit(
        cls,
        settings: BlockSettings,
        imputer: Transformer | None,
        path: Path,
        clients: npt.NDArray[np.int64],
        part: Matrix,
    ) -> Self:
        """Fit the steps on the clients that have the block, and fill its columns.

        Args:
            settings: of the block.
            imputer: of the merge, for a block that names none.
            path: where the block lies.
            clients: int64 [clients], each once: the rows.
            part: float32 [clients, the block's columns], written to.

        Raises:
            UserError: the block cannot be read, or there is no such transformer.
            ValueError: the values do not suit a step, or clients lack the block and there is no imputer.
        """
        # Under one name, so that what a step was given is freed before the next one.
        values, places = gathered(EmbeddingTable.read(path), clients, settings.drop_zeros)
        if len(values) == 0:
            raise ValueError("it has none of the clients")
        _require_columns(values.shape[1], settings.processor)
        processor, values = _fitted(settings.processor, values)
        scaler, values = _fitted(settings.scaler, values)
        chosen = settings.imputer or imputer
        # Fitted on the clients that have the block and asked once for each row that lacks it: the same as filling
        # the holes of the whole block, without copies of the whole. It is kept even where nobody lacks the block now.
        filler = None if chosen is None else FittedTransformer.fit(chosen, values)
        steps = cls(settings.drop_zeros, processor, scaler, filler)
        steps._put(part, values, places)
        return steps

    def fill(self, part: Matrix, table: EmbeddingTable, clients: npt.NDArray[np.int64]) -> None:
        """Fill the block's columns for other clients, or as of another day.

        Args:
            part: float32 [clients, the block's columns], written to.
            table: the block's vectors.
            clients: int64 [clients], each once: the rows.

        Raises:
            ValueError: the block has other columns than it had, or clients lack it and there is no imputer.
        """
        values, places = gathered(table, clients, self.drop_zeros)
        if len(values):
            for step in (self.processor, self.scaler):
                values = values if step is None else step.apply(values)
        self._put(part, values, places)

    def _put(self, part: Matrix, values: Matrix, places: npt.NDArray[np.int64]) -> None:
        if len(values):
            if values.shape[1] != part.shape[1]:
                raise ValueError(f"it comes to {values.shape[1]} columns, not {part.shape[1]}: say so with columns=")
            part[places] = values
        missing = np.ones(len(part), bool)
        missing[places] = False
        if missing.any():
            part[missing] = self._imputed(int(missing.sum()), part.shape[1])
        if not np.isfinite(part.sum(axis=1, dtype=np.float64)).all():
            raise ValueError("values that are not finite after its scaler; choose another scaler")

    def _imputed(self, missing: int, columns: int) -> Matrix:
        if self.imputer is None:
            raise ValueError(f"{missing:,} clients are without it and there is no imputer; name one")
        return self.imputer.apply(np.full((missing, columns), np.nan, np.float32))

    def state(self, name: str, arrays: Arrays) -> dict[str, Any]:
        """What `from_state` makes the same steps of, as JSON.

        Args:
            name: begins the names of their arrays.
            arrays: are added to it.

        Raises:
            UserError: a transformer cannot be kept.
        """
        steps = {step: getattr(self, step) for step in _STEPS}
        kept = {step: found and found.state(f"{name}.{step}", arrays) for step, found in steps.items()}
        return {"drop_zeros": self.drop_zeros, **kept}

    @classmethod
    def from_state(cls, state: dict[str, Any], arrays: Arrays) -> Self:
        """The steps that gave this state."""
        steps = {step: state[step] and FittedTransformer.from_state(state[step], arrays) for step in _STEPS}
        return cls(state["drop_zeros"], **steps)


def gathered(
    table: EmbeddingTable, clients: npt.NDArray[np.int64], drop_zeros: bool
) -> tuple[Matrix, npt.NDArray[np.int64]]:
    """The clients' vectors and the clients' places.

    Args:
        table: the block.
        clients: int64 [clients], each once, in any order.
        drop_zeros: leave out vectors of zeros.

    Returns:
        float32 [found, columns], a copy, and int64 [found], ascending: places in ``clients``.
    """
    rows, places = align(table, clients)
    if drop_zeros:
        some = np.asarray(table.vectors.any(axis=1))[rows]
        rows, places = rows[some], places[some]
    return table.vectors[rows], places


def align(table: EmbeddingTable, clients: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Where the clients stand in a block.

    Args:
        table: the block.
        clients: int64 [clients], each once, in any order.

    Returns:
        Two lists of one length, int64: rows of the block, and the places of the same clients in ``clients``,
        ascending. Clients without the block and rows of other clients are in neither.
    """
    _, rows, places = np.intersect1d(table.client_ids, clients, assume_unique=True, return_indices=True)
    order = np.argsort(places)
    return rows[order], places[order]


def _require_columns(columns: int, processor: Transformer | None) -> None:
    wanted = (processor or {}).get("n_components")
    if isinstance(wanted, int) and wanted > columns:
        raise ValueError(
            f"it has {columns} columns and its processor is to make {wanted} of them; make the block wider, or set "
            f"processor.n_components={columns} or processor=null for it"
        )


def _fitted(settings: Transformer | None, values: Matrix) -> tuple[FittedTransformer | None, Matrix]:
    """A step, fitted, and what it makes of the values."""
    if settings is None:
        return None, values
    step = FittedTransformer.fit(settings, values)
    return step, step.apply(values)
