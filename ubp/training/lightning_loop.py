"""What `ubp.training.fit` gives Lightning: a step, the loaders, checkpoints, a line per epoch.

A module of its own because Lightning takes seconds to import: `fit` imports it, when the data has been read.
"""

import logging
import os
import sys
import time
import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, cast

import lightning as lit
import torch
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback, RichProgressBar
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import ParallelStrategy, Strategy
from torch import Tensor
from torch.utils.data import DataLoader

from ubp.io.errors import UserError
from ubp.io.files import atomic_write
from ubp.training.loader import BatchRequest, BucketSampler, make_loader
from ubp.training.model import VALIDATION_LOSS, Batch, SequenceModel, Source, losses_of
from ubp.training.partition import Parts
from ubp.training.ray_ranks import let_others_begin
from ubp.training.settings import TrainerSettings

logger = logging.getLogger(__name__)

# Lightning's messages of which devices there are not, and what else one could subscribe to.
logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")
warnings.filterwarnings("ignore", message=".*does not have many workers.*")
warnings.filterwarnings("ignore", message=".*exists and is not empty.*")
warnings.filterwarnings("ignore", message=".*smaller than the logging interval.*")

TRAIN_LOSS = "train_loss"


class Training(lit.LightningModule):
    """What Lightning calls of a `SequenceModel`."""

    def __init__(
        self, model: SequenceModel, source: Source, parts: Parts, settings: TrainerSettings, seed: int, first_epoch: int
    ) -> None:
        super().__init__()
        self.automatic_optimization = False  # a step has micro-batches, and a model may have several optimizers
        self.model = model
        self._source, self._parts, self._settings = source, parts, settings
        self._seed, self._first_epoch = seed, first_epoch

    def _plan(self, rows: Any, first_epoch: int) -> BucketSampler:  # noqa: ANN401
        trainer, size = self.trainer, self._settings.batch_size
        return BucketSampler(
            rows, self._source.lengths, size, self._seed, first_epoch, trainer.global_rank, trainer.world_size
        )

    def train_dataloader(self) -> DataLoader[list[Batch]]:
        kind = self.trainer.strategy.root_device.type
        plan = self._plan(self._parts.train, self._first_epoch)
        micro_batch, workers = self._settings.micro_batch_on(kind), self._settings.workers_on(kind)
        return make_loader(self._source, plan, micro_batch, self.model.on_host, workers, cuda=kind == "cuda")

    def val_dataloader(self) -> DataLoader[list[Batch]]:
        """Whole batches, the same in each epoch; so few that processes would take longer to start."""
        cuda = self.trainer.strategy.root_device.type == "cuda"
        requests = [BatchRequest(request.rows) for request in self._plan(self._parts.validation, 0)]
        return make_loader(self._source, requests, None, self.model.on_host, workers=0, cuda=cuda)

    def on_train_batch_start(self, batch: list[Batch], batch_idx: int) -> None:  # noqa: ARG002 (Lightning's signature)
        torch.manual_seed(hash((self._seed, self.current_epoch, batch_idx, self.global_rank)) % 2**63)

    def training_step(self, batch: list[Batch], batch_idx: int) -> None:  # noqa: ARG002
        optimizers = cast("list[LightningOptimizer]", self.optimizers(use_pl_optimizer=True))
        optimizers = optimizers if isinstance(optimizers, list) else [optimizers]
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss = self._backward(batch)
        if self._settings.gradient_clip:
            dense = [weight for weight in self.parameters() if weight.grad is not None and not weight.grad.is_sparse]
            torch.nn.utils.clip_grad_norm_(dense, self._settings.gradient_clip)
        for optimizer in optimizers:
            optimizer.step()
        # The step's is for the curves alone: a progress bar that shows it has to wait for the device at each step.
        self.log(f"{TRAIN_LOSS}_step", loss)
        weight = self._weight(batch)
        self.log(TRAIN_LOSS, loss, on_step=False, on_epoch=True, prog_bar=True, batch_size=weight, sync_dist=True)

    def _weight(self, micro_batches: Sequence[Batch]) -> int:
        """Over how many positions a batch's loss and scores are means: what they weigh in the epoch's.

        Lightning takes a tensor where its signature has an int, and a number would have to be waited for.
        """
        return cast("int", torch.stack([self.model.weight(micro_batch) for micro_batch in micro_batches]).sum())

    def _backward(self, micro_batches: Sequence[Batch]) -> Tensor:
        """The batch's loss, its gradients left in the weights."""
        losses = []
        for loss, is_last in losses_of(self.model, micro_batches):
            with nullcontext() if is_last else self._without_exchange():
                self.manual_backward(loss)
            losses.append(loss.detach())
        return torch.stack(losses).sum()

    def _without_exchange(self) -> AbstractContextManager[None]:
        """Ranks exchange gradients once a step, at its last micro-batch: they may have different numbers of them."""
        strategy = self.trainer.strategy
        return strategy.block_backward_sync() if isinstance(strategy, ParallelStrategy) else nullcontext()

    def validation_step(self, batch: list[Batch], batch_idx: int) -> None:  # noqa: ARG002
        (whole,) = batch
        scores = {VALIDATION_LOSS: self.model.loss(whole), **self.model.validation_scores(whole)}
        self.log_dict(scores, prog_bar=True, batch_size=self._weight(batch), sync_dist=True)

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        optimizers = self.model.optimizers(self._settings.learning_rate)
        sparse = any(isinstance(optimizer, torch.optim.SparseAdam) for optimizer in optimizers)
        if sparse and isinstance(self.trainer.strategy, ParallelStrategy):
            raise UserError(
                f"trainer.strategy={self._settings.strategy}: {type(self.model).__name__} has sparse gradients, "
                "which devices cannot exchange; choose trainer.devices=1 trainer.strategy=auto"
            )
        return optimizers


class _AtomicCheckpoints(TorchCheckpointIO):
    """A checkpoint appears whole or not at all: a kill while it is written costs no run.

    Lightning's own goes through a file in the folder for temporary ones, where a kill would leave it.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:  # noqa: ANN401, ARG002
        with atomic_write(Path(path)) as aside, aside.open("wb") as file:
            torch.save(checkpoint, file)


class EpochLines(Callback):
    """A line in the log for each epoch, for those who read it later or without a terminal.

    The losses are means over the epoch's positions, as each batch's is one over its own.
    """

    def __init__(self, monitor: str) -> None:
        self._names = dict.fromkeys((TRAIN_LOSS, VALIDATION_LOSS, monitor))

    def on_train_epoch_start(self, trainer: lit.Trainer, pl_module: lit.LightningModule) -> None:  # noqa: ARG002
        self._started = time.perf_counter()

    def on_train_epoch_end(self, trainer: lit.Trainer, pl_module: lit.LightningModule) -> None:  # noqa: ARG002
        metrics = trainer.callback_metrics  # on all ranks: they exchange their parts of the means
        if trainer.is_global_zero:
            losses = [f"{name} {float(metrics[name]):.4f}" for name in self._names]
            seconds = time.perf_counter() - self._started
            logger.info(
                "epoch %d of %s: %s, %.1f s", trainer.current_epoch + 1, trainer.max_epochs, ", ".join(losses), seconds
            )


def make_trainer(settings: TrainerSettings, callbacks: list[Callback], loggers: list[Logger]) -> lit.Trainer:
    """Lightning's trainer.

    Raises:
        UserError: settings that Lightning refuses.
    """
    cuda = settings.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    precision = ("bf16-mixed" if cuda else "32-true") if settings.precision == "auto" else settings.precision
    progress = settings.progress and _on_terminal()
    if progress:
        callbacks = [*callbacks, RichProgressBar(leave=False)]
    try:
        return _lightning_trainer(settings, callbacks, loggers, precision, progress)
    except (ValueError, MisconfigurationException) as error:
        raise UserError(f"trainer: {' '.join(str(error).split())}") from error


def _lightning_trainer(
    settings: TrainerSettings, callbacks: list[Callback], loggers: list[Logger], precision: str, progress: bool
) -> lit.Trainer:
    strategy, environment = (None, []) if settings.ray_workers == 1 else _among_ray_workers(settings.ray_workers)
    return lit.Trainer(
        accelerator=settings.accelerator,
        devices=settings.devices if strategy is None else "auto",
        strategy=strategy or settings.strategy,
        precision=cast("Any", precision),
        max_epochs=settings.max_epochs,
        callbacks=callbacks,
        logger=loggers,
        plugins=[_AtomicCheckpoints(), *environment],
        enable_progress_bar=progress,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        log_every_n_steps=10,
    )


def _among_ray_workers(workers: int) -> tuple[Strategy, list[ClusterEnvironment]]:
    """What lets Lightning exchange gradients with the other workers of Ray Train.

    Raises:
        UserError: there are none: this process is no worker of as many.
    """
    if os.environ.get("WORLD_SIZE") != str(workers):
        raise UserError(f"trainer.ray_workers={workers}: give the block's own command, with engine=ray")
    from ray.train.lightning import RayDDPStrategy, RayLightningEnvironment

    let_others_begin()
    return RayDDPStrategy(), [RayLightningEnvironment()]  # type: ignore[no-untyped-call]


def _on_terminal() -> bool:
    return sys.stderr.isatty()
