"""The six tasks, their targets and labels."""

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import polars as pl

from ubp.data import schema
from ubp.data.paths import DataPaths
from ubp.data.reading import collect, load_clients
from ubp.data.targets import TASKS, Ids, Targets, Task, load_targets, target_files
from ubp.io.errors import UserError


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


_WINDOWS: Final = {"train": schema.TRAIN_TARGET, "validation": schema.VALIDATION_TARGET}


@dataclass(frozen=True)
class GroundTruth:
    """What scores are measured against, read once for all that is scored.

    Attributes:
        paths: of the files.
        train: purchases of the train window, as `load_window` gives them.
        validation: the same of the validation window.
        active: int64, the active clients.
        targets: of each propensity task, by its name.
    """

    paths: DataPaths
    train: pl.DataFrame
    validation: pl.DataFrame
    active: Ids
    targets: dict[str, Targets]

    @classmethod
    def load(cls, paths: DataPaths) -> "GroundTruth":
        """Read all of it.

        Raises:
            UserError: a file is missing or cannot be used.
        """
        train, validation = (load_window(paths, file) for file in _WINDOWS.values())
        active = load_clients(paths.active_clients, may_be_empty=True)
        targets = {task.name: load_targets(paths, task) for task in TASKS if task.is_propensity}
        return cls(paths, train, validation, active, targets)

    def takes_part(self, task: Task, clients: Ids) -> npt.NDArray[np.bool_]:
        """Which of the clients a task is about: bool [clients]."""
        return np.isin(clients, self.active) if task.active_only else np.ones(len(clients), bool)

    def labels(self, task: Task, clients: Ids) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
        """The labels of both windows: see `labels`."""
        targets = self.targets.get(task.name)
        return labels(task, clients, self.train, targets), labels(task, clients, self.validation, targets)

    def require_purchases(self, clients: Ids) -> None:
        """Make sure that there is something to learn from and something to be measured by.

        Raises:
            UserError: in one of the windows none of the clients bought anything.
        """
        for file, window in zip(_WINDOWS.values(), (self.train, self.validation), strict=True):
            if not np.isin(clients, window[schema.CLIENT_ID].to_numpy()).any():
                raise UserError(
                    f"{self.paths.target / file}: no purchase by any of the {len(clients):,} clients that are scored; "
                    "nothing can be scored by it: split a log with more purchases"
                )

    def lacking(self, clients: Ids) -> dict[str, str]:
        """The tasks that cannot be scored for these clients, and a line why."""
        why = {}
        for task in TASKS:
            if task.is_propensity and len(self.targets[task.name].values) == 0:
                why[task.name] = f"{task.name} is not scored: {target_files(self.paths, task)[0]} has no targets"
            elif not self.takes_part(task, clients).any():
                who = f"none of the {len(clients):,} clients is in {self.paths.active_clients}"
                why[task.name] = f"{task.name} is not scored: {who if task.active_only else 'there are no clients'}"
        return why

    def counted_as_zero(self, clients: Ids) -> list[str]:
        """A line for each task with labels that no profile can score on: torchmetrics counts their AUROC as 0."""
        lines = []
        for task in TASKS:
            label = labels(task, clients[self.takes_part(task, clients)], self.validation, self.targets.get(task.name))
            if not label.size:
                continue
            if not task.is_propensity:
                if label.all() or not label.any():
                    who = f"{'none' if label.all() else 'all'} of {len(label):,} clients"
                    lines.append(f"{task.name}: {who} bought in the validation window; it counts as an AUROC of 0")
            elif unsold := int((~label.any(axis=0)).sum()):
                lines.append(
                    f"{task.name}: {unsold} of {label.shape[1]} targets have no buyer in the validation window; "
                    "each counts as an AUROC of 0"
                )
        return lines
