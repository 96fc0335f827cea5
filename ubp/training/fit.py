"""The training loop of every neural model, on Lightning.

A model is a `SequenceModel`, its data a `Source`. What a run does depends on seed, data and settings alone:
each step draws from a generator seeded by (seed, epoch, step), and which clients share a batch is a function
of (seed, epoch). So a run that was killed and taken up again at its last epoch gives what an undisturbed run
gives, bit for bit on a CPU with the same number of threads (`threads_for`). On CUDA the fastest kernels are
taken, deterministic or not. torch's settings and random numbers are afterwards as they were before.
"""

import logging
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any, Generic, cast

import hydra.utils
import numpy as np
import torch
from hydra.errors import HydraException
from torch import Tensor

from ubp.io.errors import UserError
from ubp.io.files import atomic_write
from ubp.training.encode import Runtime, device_batches
from ubp.training.kernels import kernels, limited_threads, random_numbers, threads_for
from ubp.training.model import Batch, Model, Rows, Source
from ubp.training.partition import Parts, split_rows
from ubp.training.settings import TrainerSettings

if TYPE_CHECKING:  # seconds of imports, which `fit` spends when there is something to fit
    import lightning as lit
    from lightning.pytorch.loggers import Logger

logger = logging.getLogger(__name__)


def make_loggers(configs: Mapping[str, dict[str, Any]]) -> "list[Logger]":
    """Lightning's loggers from their configs (``configs/logger``).

    Raises:
        UserError: a logger's package is not installed, or its settings are wrong.
    """
    try:
        return [hydra.utils.instantiate(config) for config in configs.values()]
    except HydraException as error:
        raise UserError(f"logger: {' '.join(str(error).split())}; install its package or choose logger=csv") from error


BEST, LAST, FINISHED = "best", "last", "finished"


def runtime_of(settings: TrainerSettings) -> Runtime:
    """How a model computes when it encodes: as it was trained."""
    return Runtime(settings.batch_size, settings.threads, settings.accelerator, settings.precision)


@dataclass(frozen=True)
class Trained(Generic[Model]):
    """What `fit` gives: the model with its best weights, and how the run went (``best_score``: its monitor's).

    ``epochs`` were trained, ``kept_epoch`` is the one whose weights the model has, from 1. ``settings`` are those that
    the run took: ``threads`` is their number.
    """

    model: Model
    parts: Parts
    trainer: "lit.Trainer"
    best_checkpoint: Path
    best_score: float
    epochs: int
    kept_epoch: int
    settings: TrainerSettings

    @property
    def runtime(self) -> Runtime:
        """See `runtime_of`."""
        return runtime_of(self.settings)

    def batches(self, source: Source, rows: Rows) -> Iterator[Batch]:
        """Sequences in the order of their rows, see `ubp.training.encode.device_batches`."""
        parts = np.array_split(rows, max(1, -(-len(rows) // self.settings.batch_size)))
        for _, batch in device_batches(self.model, source, parts, self.runtime):
            yield batch

    def held_out_batches(self, source: Source) -> Iterator[Batch]:
        """The sequences kept apart."""
        return self.batches(source, self.parts.held_out)


def fit(
    model: Model,
    source: Source,
    settings: TrainerSettings,
    folder: Path,
    seed: int,
    loggers: "list[Logger] | None" = None,
    parts: Parts | None = None,
    keep_last: bool = False,
) -> Trained[Model]:
    """Train a model and load the weights of its best epoch.

    Args:
        model: its first weights are the caller's to seed.
        source: the sequences.
        settings: numbers.
        folder: of this run's checkpoints; a run that was killed is taken up where its last epoch ended.
        seed: of everything random.
        loggers: Lightning's.
        parts: rows by what they are for; None: drawn by the seed (`split_rows`).
        keep_last: take the weights of the last epoch instead, and train all epochs: where it is known how many.

    Returns:
        The model, its rows by purpose, and how it went.

    Raises:
        UserError: too few sequences, the loss is no number, or sparse gradients on several devices.
    """
    # Imported here: they take seconds, which a command spends when its data is read and its first lines are written.
    from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
    from lightning.pytorch.strategies import ParallelStrategy

    from ubp.training.lightning_loop import EpochLines, Training, make_trainer

    parts = parts or split_rows(len(source.lengths), settings, seed)
    settings = replace(settings, threads=threads_for(model, source, settings))
    # Both after validation and early stopping of the epoch.
    monitor, mode = model.monitor
    keep = partial(ModelCheckpoint, folder, save_on_train_epoch_end=True, enable_version_counter=False)
    best, last = keep(BEST, monitor, mode=mode), keep(LAST)
    patience = settings.max_epochs if keep_last else settings.patience
    stop = EarlyStopping(monitor, mode=mode, patience=patience, check_finite=True)
    checkpoint = folder / f"{LAST}.ckpt"
    first_epoch = 0
    if checkpoint.exists():
        first_epoch = _loaded(checkpoint)["epoch"] + 1
        logger.info("taking up the run in %s after %d epochs", folder, first_epoch)
    finished = folder / FINISHED
    if finished.exists():  # nothing is left to train, whatever stopped it then: only load what it learnt
        settings = replace(settings, max_epochs=int(finished.read_text()))
    trainer = make_trainer(settings, [best, last, stop, EpochLines(monitor)], loggers or [])
    if isinstance(trainer.strategy, ParallelStrategy):
        model.use_dense_gradients()
    training = Training(model, source, parts, settings, seed, first_epoch)
    with limited_threads(settings.threads), kernels(trainer.strategy.root_device), random_numbers():
        trainer.fit(training, ckpt_path=checkpoint if first_epoch else None, weights_only=True)
    best_score = float(cast("Tensor", best.best_model_score)) if best.best_model_path else math.nan
    if not math.isfinite(best_score):
        raise UserError(f"training: {monitor} is no number from the start; try a smaller trainer.learning_rate")
    if trainer.is_global_zero:
        with atomic_write(finished) as aside:
            aside.write_text(str(trainer.current_epoch))
    path = checkpoint if keep_last else Path(best.best_model_path)
    kept = _loaded(path)
    training.load_state_dict(kept["state_dict"])
    return Trained(model, parts, trainer, path, best_score, trainer.current_epoch, kept["epoch"] + 1, settings)


def _loaded(checkpoint: Path) -> dict[str, Any]:
    """A checkpoint that lies there; code that somebody may have put into it is refused, not run.

    Raises:
        UserError: it cannot be read.
    """
    try:
        found: dict[str, Any] = torch.load(checkpoint, map_location="cpu", weights_only=True)
    except (UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{checkpoint}: not a usable checkpoint ({reason}); delete {checkpoint.parent} to train from the start"
        ) from error
    return found
