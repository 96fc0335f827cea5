"""The six tasks, their targets and labels."""

import logging

import numpy as np
import numpy.typing as npt
import polars as pl

from ubp.data import schema
from ubp.data.paths import DataPaths
from ubp.data.reading import collect
from ubp.data.targets import Ids, Targets, Task, target_files
from ubp.io.errors import UserError

logger = logging.getLogger(__name__)


def load_targets(paths: DataPaths, task: Task) -> Targets:
    """Read a propensity task's targets.

    Raises:
        UserError: a file is missing or the two do not fit.
    """
    files = target_files(paths, task)
    for file in files:
        if not file.exists():
            raise UserError(f"{file}: file missing; put it there, or make it with: python scripts/make_targets.py")
    # The organisers' target files may hold Python objects.
    values, popularity = (np.load(file, allow_pickle=True) for file in files)
    if values.shape != popularity.shape or values.ndim != 1:
        raise UserError(
            f"{files[0]}: {values.shape} targets but {popularity.shape} popularities in {files[1].name}; "
            "both must be one list of the same length"
        )
    return Targets(values.astype(np.int64), popularity.astype(np.float64))


def load_window(paths: DataPaths, file_name: str) -> pl.DataFrame:
    """The purchases of a target window: ``client_id``, ``sku``, ``category``, ``price``.

    Raises:
        UserError: the file is missing.
    """
    path = paths.target / file_name
    if not path.exists():
        raise UserError(f"{path}: file missing; make it with: python scripts/split.py")
    columns = (schema.CLIENT_ID, schema.SKU, schema.CATEGORY, schema.PRICE)
    try:
        return collect(pl.scan_parquet(path, glob=False).select(pl.col(column).cast(pl.Int64) for column in columns))
    except pl.exceptions.PolarsError as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{path}: unusable ({reason}); make it again: python scripts/split.py overwrite=True"
        ) from error


def labels(task: Task, clients: Ids, window: pl.DataFrame, targets: Targets | None) -> npt.NDArray[np.uint8]:
    """The labels of all clients at once.

    Args:
        task: the task.
        clients: int64 [clients], each once.
        window: purchases as `load_window` gives them.
        targets: of a propensity task.

    Returns:
        uint8 [clients, targets] of 0 and 1, in the order of ``clients``; one column for churn and conversion
        (1: bought nothing).
    """
    rows = pl.LazyFrame({schema.CLIENT_ID: clients, "row": np.arange(len(clients))})
    bought = window.lazy()
    if task.column is None or targets is None:
        buyers = collect(rows.join(bought.select(schema.CLIENT_ID).unique(), on=schema.CLIENT_ID, how="semi"))
        label = np.ones((len(clients), 1), np.uint8)
        label[buyers["row"].to_numpy()] = 0
        return label
    wanted = pl.LazyFrame({task.column: targets.values, "target": np.arange(len(targets.values))})
    hits = collect(
        bought.select(schema.CLIENT_ID, task.column)
        .join(wanted, on=task.column)
        .join(rows, on=schema.CLIENT_ID)
        .select("row", "target")
    )
    label = np.zeros((len(clients), len(targets.values)), np.uint8)
    label[hits["row"].to_numpy(), hits["target"].to_numpy()] = 1
    return label
