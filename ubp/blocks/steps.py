"""How one block enters a merge: its vectors beside their clients, processed, scaled, what is missing imputed."""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import polars as pl

from ubp.blocks.embeddings import EmbeddingTable
from ubp.blocks.transformers import Arrays, FittedTransformer, Matrix, Transformer
from ubp.data import schema
from ubp.data.history import of_clients
from ubp.data.reading import collect, scan
from ubp.io.errors import UserError
from ubp.io.npy import read_npy

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

    @property
    def components(self) -> int | None:
        """Columns that the processor is asked for, where it says so."""
        wanted = (self.processor or {}).get("n_components")
        return wanted if isinstance(wanted, int) else None

    def width(self, path: Path, clients: npt.NDArray[np.int64]) -> int:
        """Columns that the block will have in the matrix: at most what its own columns and its clients allow.

        Args:
            path: where the block lies.
            clients: int64 [clients], each once: the rows.

        Raises:
            UserError: it cannot be read.
        """
        if self.columns is not None:
            return self.columns
        columns = columns_of(path)
        if self.components is None:
            return columns
        wanted = min(self.components, columns)
        return min(wanted, max(1, _clients_with(path, clients, self.drop_zeros, wanted)))


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
        processor, values = _fitted(_cut(settings, values), values)
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


def columns_of(path: Path) -> int:
    """The columns of a block's vectors, without reading them.

    Raises:
        UserError: it cannot be read.
    """
    try:
        if path.is_dir():
            vectors = read_npy(path / schema.ENTRY_EMBEDDINGS, mapped=True)
            return int(vectors.shape[1]) if vectors.ndim == 2 else EmbeddingTable.read(path).columns
        dtype = scan(path).collect_schema().get(schema.EMBEDDING)
    except (ValueError, OSError, pl.exceptions.PolarsError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path}: not a usable embedding: {reason}; make it again") from error
    return dtype.size if isinstance(dtype, pl.Array) else EmbeddingTable.read(path).columns


def _clients_with(path: Path, clients: npt.NDArray[np.int64], drop_zeros: bool, at_most: int) -> int:
    """How many of the clients have the block, counted up to a number: only as much as that takes is read."""
    if path.is_dir():
        return min(at_most, len(gathered(EmbeddingTable.read(path), clients, drop_zeros)[0]))
    table = pl.scan_parquet(path, glob=False)
    if drop_zeros:
        vector = pl.col(schema.EMBEDDING).arr
        table = table.filter((vector.min() != 0) | (vector.max() != 0))
    found = of_clients(table.select(schema.CLIENT_ID), clients).head(at_most)
    return len(collect(found))


def _cut(settings: BlockSettings, values: Matrix) -> Transformer | None:
    """The processor of a block, asked for no more columns than its values [clients, columns] allow."""
    if settings.processor is None or settings.components is None:
        return settings.processor
    return settings.processor | {"n_components": min(settings.components, *values.shape)}


def _fitted(settings: Transformer | None, values: Matrix) -> tuple[FittedTransformer | None, Matrix]:
    """A step, fitted, and what it makes of the values."""
    if settings is None:
        return None, values
    with warnings.catch_warnings():
        # A scaler by quantiles takes fewer where there are fewer clients, and would say so in two lines of code.
        warnings.filterwarnings("ignore", message="n_quantiles")
        step = FittedTransformer.fit(settings, values)
    return step, step.apply(values)
