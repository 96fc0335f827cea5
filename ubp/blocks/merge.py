"""Blocks side by side: aligned by client, scaled, imputed, in one float32 matrix."""

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import hydra.utils
import numpy as np
import numpy.typing as npt
import polars as pl
from hydra.errors import HydraException

from ubp.blocks.embeddings import EmbeddingTable, read_lineage
from ubp.data import schema
from ubp.io.errors import UserError, name_some

if TYPE_CHECKING:  # a second of imports; Hydra makes the transformers that a merge names
    from sklearn.base import TransformerMixin


logger = logging.getLogger(__name__)

Matrix = npt.NDArray[np.float32]
Transformer = dict[str, Any]  # `_target_` and arguments of a scikit-learn transformer


class RootMeanSquare:  # a transformer by its methods: scikit-learn's base classes cost a second of imports
    """A scaler: all vectors by one number, so that the root mean square of their lengths is 1.

    Unlike a scaling to unit length it keeps what a vector's length says: of a sum over a client's events, how much
    the client did. Vectors of zeros stay so.
    """

    def fit(self, values: Matrix, _: object = None) -> Self:
        """Take the length from vectors [clients, columns]."""
        length = float(np.sqrt(np.square(values, dtype=np.float64).sum() / max(len(values), 1)))
        self.length_ = length or 1.0
        return self

    def transform(self, values: Matrix) -> Matrix:
        """The vectors, scaled: float32 [clients, columns]."""
        return np.asarray(values / np.float32(self.length_), dtype=np.float32)

    def fit_transform(self, values: Matrix) -> Matrix:
        """Both."""
        return self.fit(values).transform(values)


@dataclass  # not frozen: OmegaConf cannot fill the mappings of a frozen one
class Block:
    """How one embedding enters a profile; each step is fitted on the clients that have the block.

    Attributes:
        path: a parquet or a folder of ``.npy`` files; None for the embedding of the block's name.
        drop_zeros: a client whose vector is all zeros counts as one without the block.
        processor: a transformer of the vectors, such as PCA.
        scaler: a transformer after it; with ``global: true`` fitted on all values as one column.
        imputer: fills the rows of clients without the block; None for the profile's own.
        columns: what the processor makes, where its ``n_components`` does not say.
    """

    path: str | None = None
    drop_zeros: bool = False
    processor: dict[str, Any] | None = None
    scaler: dict[str, Any] | None = None
    imputer: dict[str, Any] | None = None
    columns: int | None = None


@dataclass
class Profile:
    """A merge: blocks by name, in the order of their columns, and the imputer of blocks that name none."""

    blocks: dict[str, Block] = field(default_factory=dict)
    imputer: dict[str, Any] | None = None


def find_blocks(profile: Profile, folder: Path) -> dict[str, Path]:
    """Where each block lies.

    Args:
        profile: the merge.
        folder: of the embeddings' parquets.

    Raises:
        UserError: the merge has no blocks, or a line for each one that does not exist, with those that do.
    """
    if not profile.blocks:
        raise UserError("blocks: a merge needs at least one")
    there = sorted(path.stem for path in folder.glob("*.parquet") if not path.name.startswith("."))
    paths = {name: Path(block.path) if block.path else _by_name(name, folder) for name, block in profile.blocks.items()}
    missing = [
        f"{path}: no such block ({name}); there are: {name_some(there, 50) or 'none'}; make it, or leave it out with "
        f"~blocks.{name}"
        for name, path in paths.items()
        if not (path.is_file() or (path / schema.ENTRY_EMBEDDINGS).is_file())
    ]
    if missing:
        raise UserError(missing)
    return paths


def _by_name(name: str, folder: Path) -> Path:
    """The block of that name: a folder of ``.npy`` files beside the parquets, or else a parquet."""
    return folder / name if (folder / name / schema.ENTRY_EMBEDDINGS).is_file() else folder / f"{name}.parquet"


def check_histories(paths: Mapping[str, Path], fingerprint: str, history: Path) -> None:
    """Refuse blocks that were not made from the history as it is now.

    Raises:
        UserError: a line for each such block.
    """
    faults = []
    for name, path in paths.items():
        made_from = None if path.is_dir() else read_lineage(path).get("fingerprint")
        if made_from is None:
            logger.warning("%s: no lineage, so nobody knows which history it was made from", path)
        elif made_from != fingerprint:
            faults.append(
                f"{path}: made from another history than {history} as it is now; make {name} again, so that all "
                "blocks see the same events"
            )
    if faults:
        raise UserError(faults)


def merge(profile: Profile, paths: Mapping[str, Path], clients: npt.NDArray[np.int64]) -> Matrix:
    """Fill one matrix block by block.

    Args:
        profile: the merge.
        paths: of its blocks, as `find_blocks` gives them.
        clients: int64 [clients], each once: the rows.

    Returns:
        float32 [clients, columns], finite.

    Raises:
        UserError: more than 2,048 columns, a block that cannot be read, a transformer that does not fit.
    """
    widths = {name: _width(profile.blocks[name], path) for name, path in paths.items()}
    total = sum(widths.values())
    if total > schema.MAX_COLUMNS:
        sizes = ", ".join(f"{name} {width:,}" for name, width in widths.items())
        raise UserError(
            f"blocks: {total:,} columns ({sizes}); at most {schema.MAX_COLUMNS:,}: leave a block out with "
            "~blocks.NAME or give one a processor such as PCA"
        )
    matrix = np.empty((len(clients), total), np.float32)
    start = 0
    for name, path in paths.items():
        part, began = matrix[:, start : start + widths[name]], time.perf_counter()
        try:
            _fill(part, path, clients, profile.blocks[name], profile.imputer)
        except (ValueError, TypeError) as error:  # what scikit-learn says of numbers that do not fit
            raise UserError(f"block {name}: {str(error).splitlines()[0]}") from error
        if not np.isfinite(part.sum(axis=1, dtype=np.float64)).all():
            raise UserError(f"block {name}: values that are not finite after its scaler; choose another scaler")
        logger.info("%s: %d columns · %.1f s", name, widths[name], time.perf_counter() - began)
        start += widths[name]
    return matrix


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


def _width(block: Block, path: Path) -> int:
    """Columns that the block will have in the matrix, without reading its vectors."""
    if block.columns is not None:
        return block.columns
    if block.processor is not None and isinstance(block.processor.get("n_components"), int):
        return int(block.processor["n_components"])
    if path.is_dir():
        return int(np.load(path / schema.ENTRY_EMBEDDINGS, mmap_mode="r").shape[1])
    dtype = pl.read_parquet_schema(path).get(schema.EMBEDDING)
    return dtype.size if isinstance(dtype, pl.Array) else EmbeddingTable.read(path).columns


def _fill(part: Matrix, path: Path, clients: npt.NDArray[np.int64], block: Block, imputer: Transformer | None) -> None:
    values, places = _gathered(path, clients, block.drop_zeros)
    if len(values) == 0:
        raise ValueError("it has none of the clients")
    _require_columns(values.shape[1], block.processor)
    # Under one name, so that what a step was given is freed before the next one.
    values = _transformed(values, block.processor)
    values = _scaled(values, block.scaler)
    if values.shape[1] != part.shape[1]:
        raise ValueError(f"it comes to {values.shape[1]} columns, not {part.shape[1]}: say so with columns=")
    part[places] = values
    if len(places) == len(clients):
        return
    missing = np.ones(len(clients), bool)
    missing[places] = False
    chosen = block.imputer or imputer
    if chosen is None:
        raise ValueError(f"{missing.sum():,} clients are without it and there is no imputer; name one")
    part[missing] = _imputed(values, int(missing.sum()), chosen)


def _gathered(path: Path, clients: npt.NDArray[np.int64], drop_zeros: bool) -> tuple[Matrix, npt.NDArray[np.int64]]:
    """The clients' vectors, a copy, and the clients' places; the block itself is freed on return."""
    table = EmbeddingTable.read(path)
    rows, places = align(table, clients)
    if drop_zeros:
        some = np.asarray(table.vectors.any(axis=1))[rows]
        rows, places = rows[some], places[some]
    return table.vectors[rows], places


def _require_columns(columns: int, processor: Transformer | None) -> None:
    wanted = (processor or {}).get("n_components")
    if isinstance(wanted, int) and wanted > columns:
        raise ValueError(
            f"it has {columns} columns and its processor is to make {wanted} of them; make the block wider, or set "
            f"processor.n_components={columns} or processor=null for it"
        )


def _imputed(values: Matrix, missing: int, imputer: Transformer) -> Matrix:
    """Rows for the clients without the block, as the imputer fills them that knows those with it.

    Fitted on the clients that have the block and asked once for each row that it lacks: the same as filling the
    holes of the whole block, without copies of the whole.
    """
    fitted = _instance(imputer).fit(values)
    rows = np.full((missing, values.shape[1]), np.nan, np.float32)
    return np.asarray(fitted.transform(rows), dtype=np.float32)


def _scaled(values: Matrix, scaler: Transformer | None) -> Matrix:
    if scaler is None or not scaler.get("global", False):
        return _transformed(values, _without_global(scaler))
    return _transformed(values.reshape(-1, 1), _without_global(scaler)).reshape(values.shape)


def _without_global(scaler: Transformer | None) -> Transformer | None:
    return None if scaler is None else {key: value for key, value in scaler.items() if key != "global"}


def _transformed(values: Matrix, transformer: Transformer | None) -> Matrix:
    if transformer is None:
        return values
    return np.asarray(_instance(transformer).fit_transform(values), dtype=np.float32)


def _instance(transformer: Transformer) -> "TransformerMixin":
    if "_target_" not in transformer:
        raise UserError(f"{transformer}: a transformer needs its _target_, such as sklearn.preprocessing.Normalizer")
    try:
        made: TransformerMixin = hydra.utils.instantiate(transformer)
        return made
    except HydraException as error:
        raise UserError(f"{transformer.get('_target_')}: {' '.join(str(error).split())}") from error
