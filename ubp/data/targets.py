"""The six tasks, their targets, and how these are made for a log that comes without them."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np
import numpy.typing as npt
import polars as pl

from ubp.data import schema
from ubp.data.history import ChallengeData
from ubp.data.paths import DataPaths
from ubp.data.reading import collect, load_clients, read_array
from ubp.data.schema import EventType
from ubp.data.split import SplitDates
from ubp.io.arrays import save_array
from ubp.io.errors import UserError
from ubp.io.files import locked
from ubp.io.together import replaced_together

logger = logging.getLogger(__name__)


Ids = npt.NDArray[np.int64]
Number = TypeVar("Number", np.int64, np.float64)


@dataclass(frozen=True)
class Task:
    """One prediction task.

    Attributes:
        name: as in the names of the target files and in scores.
        column: whose values are the labels; None where the label is "bought nothing".
        active_only: whether only the clients with a purchase in the history take part.
        is_open: whether a block may know what is asked; it must serve the hidden tasks unseen.
    """

    name: str
    column: str | None = None
    active_only: bool = False
    is_open: bool = False

    @property
    def is_propensity(self) -> bool:
        return self.column is not None


TASKS: Final = (
    Task("churn", active_only=True, is_open=True),
    Task("conversion"),
    Task("propensity_category", schema.CATEGORY, is_open=True),
    Task("propensity_sku", schema.SKU, is_open=True),
    Task("propensity_new_sku", schema.SKU),
    Task("propensity_price", schema.PRICE),
)


OPEN_COLUMNS: Final = tuple(str(task.column) for task in TASKS if task.is_propensity and task.is_open)
"""Of whose values the open propensity tasks ask for some."""


@dataclass(frozen=True)
class Targets:
    """What a propensity task asks for: the values (int64) and their popularity (float64), in one order."""

    values: Ids
    popularity: npt.NDArray[np.float64]


def target_files(paths: DataPaths, task: Task) -> tuple[Path, Path]:
    return paths.target / f"{task.name}.npy", paths.target / f"popularity_{task.name}.npy"


def load_targets(paths: DataPaths, task: Task) -> Targets:
    """Read a propensity task's targets.

    Raises:
        UserError: a file is missing or cannot be read, or the two do not fit.
    """
    files = target_files(paths, task)
    for file in files:
        if not file.exists():
            raise UserError(f"{file}: file missing; put it there, or make it with: python scripts/make_targets.py")
    values, popularity = _read_array(files[0], np.int64), _read_array(files[1], np.float64)
    if values.shape != popularity.shape or values.ndim != 1:
        raise UserError(
            f"{files[0]}: {values.shape} targets but {popularity.shape} popularities in {files[1].name}; "
            "both must be one list of the same length"
        )
    return Targets(values, popularity)


def open_targets(paths: DataPaths) -> dict[str, Ids]:
    """The values that the open propensity tasks ask for; the files of the hidden ones are not opened.

    Returns:
        ``category`` and ``sku`` to int64, ascending, each once; without those that have no file.

    Raises:
        UserError: a file cannot be read.
    """
    files = {str(task.column): target_files(paths, task)[0] for task in TASKS if task.is_propensity and task.is_open}
    return {column: np.unique(_read_array(file, np.int64)) for column, file in files.items() if file.exists()}


def _read_array(file: Path, dtype: type[Number]) -> npt.NDArray[Number]:
    try:
        return _as_numbers(read_array(file), dtype)
    except (ValueError, OSError, EOFError, TypeError, OverflowError) as error:  # the last two: no number that fits
        raise UserError(
            f"{file}: not a readable .npy file ({error}); delete it and make it with: python scripts/make_targets.py"
        ) from error


def _as_numbers(array: npt.NDArray[Any], dtype: type[Number]) -> npt.NDArray[Number]:
    """The numbers of an array in another type, all of them as they are.

    Raises:
        ValueError: one of them is none, or would be another.
    """
    found: npt.NDArray[Any] = np.array(array.tolist()) if array.dtype.hasobject and array.size else array
    if found.shape != array.shape or found.dtype.kind not in ("iuf" if found.size else "iufO"):
        raise ValueError(f"{found.dtype}, no numbers")
    if not np.isfinite(found.astype(np.float64)).all():
        raise ValueError("some of its values are not finite")
    numbers = found.astype(dtype)
    if (numbers.astype(found.dtype) != found).any() or ((numbers < 0) != (found < 0)).any():
        raise ValueError(f"not all of its {found.size:,} values are {np.dtype(dtype)}")
    return numbers


@dataclass(frozen=True)
class TargetRules:
    """How tasks are made from a log that comes without them.

    Attributes:
        per_task: targets of a propensity task (fewer where the shop sells fewer).
        new_sku_days: a sku is new when its first sale lies at most this many days before the train window.
        relevant_clients: how many clients are relevant at the most; None for all that occur.
        seed: of the draw, where there are more.
    """

    per_task: int = 100
    new_sku_days: int = 56
    relevant_clients: int | None = None
    seed: int = 0


def make_targets(data: ChallengeData, dates: SplitDates, rules: TargetRules, overwrite: bool) -> list[Path]:
    """Write relevant clients, active clients and the targets of the six tasks with their popularity.

    Works on any data in the challenge's layout. Files that are there stay, unless ``overwrite``; all change, or none.

    - relevant clients: every client with an event of any type, or a seeded draw of them;
    - active clients: the relevant ones with a purchase in the history;
    - targets: the values that most relevant clients bought, counted over the history for category, sku and
      price, and over both target windows for new skus (first sold shortly before the train window or later).
      Values that relevant clients bought in both windows come first: a label that has no positives says
      nothing about a profile. The choice looks into the windows, the popularity does not look into the
      validation window: it is the number of purchases before it.

    Args:
        data: all events (``submit=True``).
        dates: the borders of the split.
        rules: numbers.
        overwrite: replace the files that are there.

    Returns:
        The files that were written.
    """
    paths = data.paths
    of_tasks = {task: target_files(paths, task) for task in TASKS if task.is_propensity}
    files = [paths.relevant_clients, paths.active_clients, *(file for pair in of_tasks.values() for file in pair)]
    if not overwrite and all(file.exists() for file in files):
        return []
    with locked(paths.split_lock, "targets"), replaced_together(files, paths.new_files[1]) as asides:
        written = dict[Path, npt.NDArray[np.generic]]()
        if overwrite or not paths.relevant_clients.exists():
            relevant = written[paths.relevant_clients] = _relevant_clients(data, rules)
        else:
            relevant = load_clients(paths.relevant_clients)
        purchases = _purchases(data, dates, relevant)
        if overwrite or not paths.active_clients.exists():
            buyers = purchases.filter(pl.col("when") == _HISTORY)[schema.CLIENT_ID].unique().sort()
            written[paths.active_clients] = buyers.to_numpy()
        for task, pair in of_tasks.items():
            if overwrite or not all(file.exists() for file in pair):
                targets = _choose_targets(task, purchases, dates, rules)
                written |= zip(pair, (targets.values, targets.popularity), strict=True)
        for path, array in written.items():
            save_array(asides[path], array)
    return list(written)


_HISTORY, _TRAIN, _VALIDATION = 0, 1, 2


def _relevant_clients(data: ChallengeData, rules: TargetRules) -> Ids:
    seen = [data.events(event_type).select(schema.CLIENT_ID) for event_type in data.event_types]
    clients = collect(pl.concat(seen).unique())[schema.CLIENT_ID].sort().to_numpy()
    if rules.relevant_clients is not None and rules.relevant_clients < len(clients):
        drawn = np.random.default_rng(rules.seed).choice(clients, rules.relevant_clients, replace=False)
        clients = np.sort(drawn)
    return np.ascontiguousarray(clients)


def _purchases(data: ChallengeData, dates: SplitDates, relevant: Ids) -> pl.DataFrame:
    """Purchases of relevant clients: ``client_id``, ``sku``, ``category``, ``price``, ``timestamp``, ``when``."""
    when = pl.when(dates.in_history()).then(_HISTORY).when(dates.in_train_window()).then(_TRAIN).otherwise(_VALIDATION)
    return collect(
        data.with_properties(EventType.PRODUCT_BUY)
        .select(schema.CLIENT_ID, schema.SKU, schema.CATEGORY, schema.PRICE, schema.TIMESTAMP, when.alias("when"))
        .join(pl.LazyFrame({schema.CLIENT_ID: relevant}), on=schema.CLIENT_ID, how="semi")
    )


def _choose_targets(task: Task, purchases: pl.DataFrame, dates: SplitDates, rules: TargetRules) -> Targets:
    value, client, when = pl.col(str(task.column)), pl.col(schema.CLIENT_ID), pl.col("when")
    is_new_sku = task.name == "propensity_new_sku"
    counted = when >= _TRAIN if is_new_sku else when == _HISTORY
    values = (
        purchases.lazy()
        .group_by(value)
        .agg(
            buyers=client.filter(counted).n_unique(),
            in_both=(when == _TRAIN).any() & (when == _VALIDATION).any(),
            first=pl.col(schema.TIMESTAMP).min(),
            popularity=(when < _VALIDATION).sum().cast(pl.Float64),
        )
    )
    if is_new_sku:
        values = values.filter(pl.col("first") >= dates.train_start - pl.duration(days=rules.new_sku_days))
    # The value itself settles ties, so that the same log gives the same targets.
    ranked = values.sort("in_both", "buyers", str(task.column), descending=[True, True, False])
    chosen = collect(ranked.head(rules.per_task))
    if len(chosen) < rules.per_task:
        logger.warning("%s: only %d targets, the log has no more", task.name, len(chosen))
    return Targets(chosen[str(task.column)].to_numpy(), chosen["popularity"].to_numpy())
