"""What a command line names: a fitted block or merge, and clients."""

import logging
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl
from omegaconf import DictConfig, OmegaConf

from ubp.blocks.fitted import is_fitted
from ubp.data import schema
from ubp.data.paths import LOCAL, SUBMIT, DataPaths
from ubp.data.reading import scan
from ubp.io.errors import UserError, name_some
from ubp.io.npy import read_npy

logger = logging.getLogger(__name__)

Ids = npt.NDArray[np.int64]


# --- which fit ----------------------------------------------------------------------------------------


def choose_fit(paths: DataPaths, name: str, submit: bool | None) -> Path:
    """The folder of a fitted block or merge.

    Args:
        paths: where the data lies.
        name: of the block or merge.
        submit: fitted on all events, or on those of local validation; None for the first of the two that is there.

    Raises:
        UserError: there is none, with the names that there are.
    """
    there = {choice: is_fitted(paths.model(name, choice)) for choice in (True, False)}
    if submit is None and any(there.values()):
        chosen = paths.model(name, there[True])
        logger.info("%s: the fit on %s, %s", name, "all events" if there[True] else "the local history", chosen)
        return chosen
    if submit is not None and there[submit]:
        return paths.model(name, submit)
    if submit is not None and there[not submit]:
        raise UserError(f"name={name} submit={submit}: not fitted so; there is the fit of submit={not submit}")
    raise UserError(
        f"name={name}: neither a fitted block nor a fitted merge; there are: "
        f"{name_some(fitted_names(paths), 50) or 'none'}; make it with its command"
    )


def require_name(config: DictConfig, paths: DataPaths, what: str = "fitted block or merge") -> None:
    """Refuse a command line that names no fit.

    Raises:
        UserError: it has no ``name=``; with the names that there are.
    """
    if OmegaConf.is_missing(config, "name"):
        there = name_some(fitted_names(paths), 50) or "none"
        raise UserError(f"name: say which {what}: name=NAME; there are: {there}")


def fitted_names(paths: DataPaths) -> list[str]:
    """The names of all fitted blocks and merges."""
    folder = paths.models("")
    return sorted({model.parent.parent.name for kind in (SUBMIT, LOCAL) for model in folder.glob(f"*/{kind}/*.json")})


# --- which clients ------------------------------------------------------------------------------------


def read_clients(file: Path) -> Ids:
    """Client ids from a file.

    Args:
        file: a ``.npy`` of int64, or a parquet with ``client_id``.

    Returns:
        int64, ascending, each once.

    Raises:
        UserError: it cannot be read, is of another dtype or shape, or has no clients.
    """
    if not file.is_file():
        raise UserError(f"clients={file}: no such file")
    found = _from_npy(file) if file.suffix == ".npy" else _from_parquet(file)
    if found.size == 0:
        raise UserError(f"clients={file}: no clients in it")
    clients = np.unique(found)
    if repeated := len(found) - len(clients):
        logger.info("%s: %s of %s ids occur before: each client once", file, f"{repeated:,}", f"{len(found):,}")
    return clients


def _from_npy(file: Path) -> Ids:
    try:
        found: Ids = read_npy(file)
    except (ValueError, OSError) as error:
        raise UserError(f"clients={file}: not a readable .npy file ({str(error).splitlines()[0]})") from error
    if found.dtype != np.int64 or found.ndim != 1:
        raise UserError(
            f"clients={file}: {found.dtype} with {found.ndim} dimensions; must be int64 with one dimension: "
            "np.save(file, ids.astype(np.int64))"
        )
    return found


def _from_parquet(file: Path) -> Ids:
    try:
        layout = scan(file).collect_schema()
        if schema.CLIENT_ID not in layout:
            raise UserError(f"clients={file}: no column {schema.CLIENT_ID}; it has {name_some(list(layout))}")
        column = pl.read_parquet(file, columns=[schema.CLIENT_ID], glob=False)[schema.CLIENT_ID]
    except (pl.exceptions.PolarsError, OSError) as error:
        raise UserError(
            f"clients={file}: neither a .npy file nor a readable parquet ({str(error).splitlines()[0]})"
        ) from error
    if column.dtype != pl.Int64:
        raise UserError(f"clients={file}: column {schema.CLIENT_ID} is {column.dtype}; must be Int64")
    if column.null_count():
        raise UserError(
            f"clients={file}: {column.null_count():,} values of {schema.CLIENT_ID} are null; leave them out"
        )
    return column.to_numpy()
