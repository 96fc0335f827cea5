"""The training loop of every neural model, on Lightning: `fit` and `encode`.

A model is a `SequenceModel`, its data a `Source`. What a run does depends on seed, data and settings alone:
each step draws from a generator seeded by (seed, epoch, step), and which clients share a batch is a function
of (seed, epoch). So a run that was killed and taken up again at its last epoch gives what an undisturbed run
gives, bit for bit on a CPU.
"""

import logging
import math
import sys
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Generic, Literal, Protocol, Self, TypeVar, cast

import hydra.utils
import lightning as lit
import numpy as np
import numpy.typing as npt
import torch
from hydra.errors import HydraException
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint, RichProgressBar
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import ParallelStrategy
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler

from ubp.config import parse, resolved
from ubp.data import ChallengeData
from ubp.errors import UserError, require, require_positive
from ubp.files import written_aside
from ubp.run import embedding_run
from ubp.sequences import length_buckets

logger = logging.getLogger(__name__)

# Lightning says much that is no news: which devices there are not, what else one could subscribe to.
logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")
warnings.filterwarnings("ignore", message=".*does not have many workers.*")
warnings.filterwarnings("ignore", message=".*exists and is not empty.*")
warnings.filterwarnings("ignore", message=".*smaller than the logging interval.*")

VALIDATION_LOSS = "validation_loss"
# Rows of a batch that a CPU works through at a time: more of them only fill its memory.
_CPU_PIECE = 64

Batch = Mapping[str, Tensor]
LENGTHS = "lengths"  # key of a batch: int64 [rows], events of each sequence
Rows = npt.NDArray[np.int64]


class Source(Protocol):
    """Sequences that can be gathered by row."""

    @property
    def lengths(self) -> Rows:
        """Tokens of each sequence: int64 [rows]."""

    def batch(self, rows: Rows, generator: np.random.Generator | None = None) -> Batch:
        """The sequences of some rows as tensors; the first dimension of each is the rows in their order.

        Args:
            rows: which.
            generator: in training, for what is drawn anew each time (random slices); None asks for the
                sequences as they are encoded.
        """


class ClientSource(Source, Protocol):
    """A source with a client to each row."""

    @property
    def clients(self) -> Rows:
        """Each row's client: int64 [rows]."""


class SequenceModel(nn.Module, ABC):
    """A model of sequences that gives each one a vector.

    Attributes:
        width: of the vector.
        monitor: what early stopping and the best checkpoint go by, ``validation_loss`` or one of
            `validation_scores`, and whether less or more of it is better.
    """

    width: int
    monitor: tuple[str, Literal["min", "max"]] = (VALIDATION_LOSS, "min")

    @abstractmethod
    def loss(self, batch: Batch) -> Tensor:
        """The mean loss over the batch's real positions: a scalar."""

    def weight(self, batch: Batch) -> Tensor:
        """Over how many positions `loss` takes its mean: a scalar; here the rows."""
        rows = next(iter(batch.values()))
        return torch.tensor(float(len(rows)), device=rows.device)

    def validation_scores(self, batch: Batch) -> dict[str, Tensor]:  # noqa: ARG002 (for those that have some)
        """Further means over the batch's positions, by the names under which they are logged: scalars."""
        return {}

    def optimizers(self, learning_rate: float) -> list[torch.optim.Optimizer]:
        """What steps the weights: one Adam, unless a model has sparse gradients, which need one of their own."""
        return [torch.optim.Adam(self.parameters(), lr=learning_rate, fused=True)]

    def use_dense_gradients(self) -> None:
        """Give no sparse gradients from now on; `fit` calls it before `optimizers` where devices exchange gradients.

        NCCL exchanges dense gradients alone. (gloo takes sparse ones, but what two processes on a CPU do shall be
        what two GPUs do.) A table's rows that a step did not read then move too, by Adam's momentum.
        """
        for module in self.modules():
            if isinstance(module, nn.Embedding | nn.EmbeddingBag):
                module.sparse = False

    @abstractmethod
    def encode(self, batch: Batch) -> Tensor:
        """The vectors: float [rows, width]."""


Model = TypeVar("Model", bound=SequenceModel)


@dataclass(frozen=True)
class TrainerSettings:
    """How a model is trained.

    Attributes:
        max_epochs: at the most.
        patience: epochs without a lower validation loss before training stops.
        batch_size: sequences a step, on each device.
        piece: sequences of a step that are worked through at a time, their gradients added up: less memory for
            the same step. None: 64 on a CPU, all at once elsewhere.
        learning_rate: of Adam.
        gradient_clip: largest norm of the gradient; 0 for no limit.
        devices: how many; with several, ``strategy=ddp``.
        strategy: Lightning's.
        accelerator: Lightning's; ``auto`` takes the GPU where there is one.
        precision: Lightning's; ``auto`` is bf16-mixed on CUDA, 32-true elsewhere.
        workers: processes that gather batches; 0: the training process.
        held_out: share of the sequences kept apart, to report quality on.
        validation: share of the rest that drives early stopping.
        progress: show a bar on a terminal.
    """

    max_epochs: int
    patience: int
    batch_size: int
    piece: int | None = None
    learning_rate: float = 0.001
    gradient_clip: float = 1.0
    devices: int = 1
    strategy: str = "auto"
    accelerator: str = "auto"
    precision: str = "auto"
    workers: int = 0
    held_out: float = 0.02
    validation: float = 0.01
    progress: bool = True

    def __post_init__(self) -> None:
        """Refuse numbers that make no sense.

        Raises:
            UserError: a number out of its range.
        """
        require_positive(self, "trainer", "max_epochs", "patience", "batch_size", "devices")
        require(self.piece is None or self.piece >= 1, "trainer.piece", self.piece, "at least 1, or null")
        require(self.learning_rate >= 0, "trainer.learning_rate", self.learning_rate, "0 or more")
        for name in ("held_out", "validation"):
            require(0 < getattr(self, name) < 0.5, f"trainer.{name}", getattr(self, name), "between 0 and 0.5")


@dataclass(frozen=True)
class Parts:
    """Rows by what they are for: int64, ascending, together every row once."""

    train: Rows
    validation: Rows
    held_out: Rows


def split_rows(rows: int, settings: TrainerSettings, seed: int) -> Parts:
    """Draw the held-out and the validation rows: at least one each, and one a device to validate on.

    Raises:
        UserError: too few rows for that.
    """
    if rows < 2 * settings.devices + 1:
        raise UserError(f"only {rows} clients have such events; training needs at least {2 * settings.devices + 1}")
    order = np.random.default_rng(seed).permutation(rows).astype(np.int64)
    held_out = max(1, round(rows * settings.held_out))
    validation = max(settings.devices, round((rows - held_out) * settings.validation))
    cuts = np.split(order, [held_out, held_out + validation])
    return Parts(np.sort(cuts[2]), np.sort(cuts[1]), np.sort(cuts[0]))


@dataclass(frozen=True)
class _Ask:
    """A batch to gather: its rows and, in training, the seed of what is drawn for it."""

    rows: Rows
    seed: tuple[int, ...] | None = None


class _Plan(Sampler[_Ask]):
    """Batches of rows of similar length for one rank.

    Lightning tells it each further epoch, but begins to read the first one of a resumed run before it does so.
    """

    def __init__(
        self, rows: Rows, lengths: Rows, batch_size: int, seed: int, epoch: int, rank: int, world: int
    ) -> None:
        self._rows = rows
        self._plan = partial(length_buckets, lengths[rows], batch_size, seed=seed, rank=rank, world=world)
        self._seed, self._rank = seed, rank
        self._epoch = epoch

    def set_epoch(self, epoch: int) -> None:
        self._epoch = epoch

    def __iter__(self) -> Iterator[_Ask]:
        epoch = self._epoch
        for number, places in enumerate(self._plan(epoch=epoch)):
            yield _Ask(self._rows[places], (self._seed, epoch, number, self._rank))

    def __len__(self) -> int:
        return len(self._plan())


class _Batches(Dataset[Batch]):
    """Rows in, their batch out."""

    def __init__(self, source: Source) -> None:
        self._source = source

    def __getitem__(self, ask: _Ask) -> Batch:
        return self._source.batch(ask.rows, None if ask.seed is None else np.random.default_rng(ask.seed))


def losses_in_pieces(model: SequenceModel, batch: Batch, piece: int | None) -> Iterator[tuple[Tensor, bool]]:
    """The batch's loss in parts that add up to it; each part's graph can be freed before the next is made.

    Args:
        model: whose loss.
        batch: of a step.
        piece: rows of a part; None: 64 on a CPU, all rows elsewhere.

    Yields:
        A part of the loss, a scalar, and whether it is the last one.
    """
    first = next(iter(batch.values()))
    size = piece or (_CPU_PIECE if first.device.type == "cpu" else len(first))
    pieces = [{name: rows[at : at + size] for name, rows in batch.items()} for at in range(0, len(first), size)]
    weights = torch.stack([model.weight(part) for part in pieces])
    shares = weights / weights.sum().clamp(min=1)
    for number, (part, share) in enumerate(zip(pieces, shares, strict=True), start=1):
        yield model.loss(part) * share, number == len(pieces)


class _Training(lit.LightningModule):
    """What Lightning calls of a `SequenceModel`."""

    def __init__(
        self, model: SequenceModel, source: Source, parts: Parts, settings: TrainerSettings, seed: int, first_epoch: int
    ) -> None:
        super().__init__()
        self.automatic_optimization = False  # a step has pieces, and a model may have several optimizers
        self.model = model
        self._source, self._parts, self._settings = source, parts, settings
        self._seed, self._first_epoch = seed, first_epoch

    def _loader(self, rows: Rows, shuffled: bool) -> DataLoader[Batch]:
        world, rank = self.trainer.world_size, self.trainer.global_rank
        first = self._first_epoch if shuffled else 0
        plan = _Plan(rows, self._source.lengths, self._settings.batch_size, self._seed, first, rank, world)
        return DataLoader(
            _Batches(self._source),
            batch_size=None,
            # Validation batches are the same in each epoch.
            sampler=plan if shuffled else [_Ask(ask.rows) for ask in plan],
            num_workers=self._settings.workers,
            pin_memory=self.trainer.strategy.root_device.type == "cuda",
            persistent_workers=self._settings.workers > 0,
        )

    def train_dataloader(self) -> DataLoader[Batch]:
        return self._loader(self._parts.train, shuffled=True)

    def val_dataloader(self) -> DataLoader[Batch]:
        return self._loader(self._parts.validation, shuffled=False)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:  # noqa: ARG002 (Lightning's signature)
        torch.manual_seed(hash((self._seed, self.current_epoch, batch_idx, self.global_rank)) % 2**63)

    def training_step(self, batch: Batch, batch_idx: int) -> None:  # noqa: ARG002
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
        self.log("train_loss", loss, prog_bar=True)

    def _backward(self, batch: Batch) -> Tensor:
        """The batch's loss, its gradients left in the weights."""
        losses = []
        for loss, is_last in losses_in_pieces(self.model, batch, self._settings.piece):
            with nullcontext() if is_last else self._without_exchange():
                self.manual_backward(loss)
            losses.append(loss.detach())
        return torch.stack(losses).sum()

    def _without_exchange(self) -> AbstractContextManager[None]:
        """Ranks exchange gradients once a step, at its last piece: they may have different numbers of pieces."""
        strategy = self.trainer.strategy
        return strategy.block_backward_sync() if isinstance(strategy, ParallelStrategy) else nullcontext()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:  # noqa: ARG002
        scores = {VALIDATION_LOSS: self.model.loss(batch), **self.model.validation_scores(batch)}
        self.log_dict(scores, prog_bar=True, batch_size=len(next(iter(batch.values()))), sync_dist=True)

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
    """A checkpoint appears whole or not at all: a kill while it is written costs no run."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:  # noqa: ANN401
        with written_aside(Path(path)) as aside:
            super().save_checkpoint(checkpoint, aside, storage_options)


def make_loggers(configs: Mapping[str, dict[str, Any]]) -> list[Logger]:
    """Lightning's loggers from their configs (``configs/logger``).

    Raises:
        UserError: a logger's package is not installed, or its settings are wrong.
    """
    try:
        return [hydra.utils.instantiate(config) for config in configs.values()]
    except HydraException as error:
        raise UserError(f"logger: {' '.join(str(error).split())}; install its package or choose logger=csv") from error


class _EpochLines(Callback):
    """A line in the log for each epoch, for those who read it later or without a terminal."""

    def __init__(self, monitor: str) -> None:
        self._names = dict.fromkeys(("train_loss", VALIDATION_LOSS, monitor))

    def on_train_epoch_start(self, trainer: lit.Trainer, pl_module: lit.LightningModule) -> None:  # noqa: ARG002
        self._started = time.perf_counter()

    def on_train_epoch_end(self, trainer: lit.Trainer, pl_module: lit.LightningModule) -> None:  # noqa: ARG002
        if trainer.is_global_zero:
            losses = [f"{name} {float(trainer.callback_metrics[name]):.4f}" for name in self._names]
            seconds = time.perf_counter() - self._started
            logger.info(
                "epoch %d of %s: %s, %.1f s", trainer.current_epoch + 1, trainer.max_epochs, ", ".join(losses), seconds
            )


BEST, LAST, FINISHED = "best", "last", "finished"


@dataclass(frozen=True)
class Trained(Generic[Model]):
    """What `fit` gives: the model with its best weights, and how the run went (``best_score``: its monitor's)."""

    model: Model
    parts: Parts
    trainer: lit.Trainer
    best_checkpoint: Path
    best_score: float
    epochs: int
    settings: TrainerSettings


def fit(
    model: Model,
    source: Source,
    settings: TrainerSettings,
    folder: Path,
    seed: int,
    loggers: list[Logger] | None = None,
) -> Trained[Model]:
    """Train a model and load the weights of its best epoch.

    Args:
        model: its first weights are the caller's to seed.
        source: the sequences.
        settings: numbers.
        folder: of this run's checkpoints; a run that was killed is taken up where its last epoch ended.
        seed: of everything random.
        loggers: Lightning's.

    Returns:
        The model, its rows by purpose, and the trainer for `encode`.

    Raises:
        UserError: too few sequences, the loss is no number, or sparse gradients on several devices.
    """
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Else torch fills each new tensor, only to be overwritten.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    parts = split_rows(len(source.lengths), settings, seed)
    # Both after validation and early stopping have had their say on the epoch.
    monitor, mode = model.monitor
    keep = partial(ModelCheckpoint, folder, save_on_train_epoch_end=True, enable_version_counter=False)
    best, last = keep(BEST, monitor, mode=mode), keep(LAST)
    stop = EarlyStopping(monitor, mode=mode, patience=settings.patience, check_finite=True)
    checkpoint = folder / f"{LAST}.ckpt"
    first_epoch = 0
    if checkpoint.exists():
        first_epoch = torch.load(checkpoint, map_location="cpu", weights_only=False)["epoch"] + 1
        logger.info("taking up the run in %s after %d epochs", folder, first_epoch)
    finished = folder / FINISHED
    if finished.exists():  # nothing is left to train, whatever stopped it then: only load what it learnt
        settings = replace(settings, max_epochs=int(finished.read_text()))
    trainer = _trainer(settings, [best, last, stop, _EpochLines(monitor)], loggers or [])
    if isinstance(trainer.strategy, ParallelStrategy):
        model.use_dense_gradients()
    training = _Training(model, source, parts, settings, seed, first_epoch)
    trainer.fit(training, ckpt_path=checkpoint if first_epoch else None, weights_only=False)
    best_score = float(cast("Tensor", best.best_model_score)) if best.best_model_path else math.nan
    if not math.isfinite(best_score):
        raise UserError(f"training: {monitor} is no number from the start; try a smaller trainer.learning_rate")
    if trainer.is_global_zero:
        with written_aside(finished) as aside:
            aside.write_text(str(trainer.current_epoch))
    path = Path(best.best_model_path)
    training.load_state_dict(torch.load(path, map_location="cpu", weights_only=False)["state_dict"])
    return Trained(model, parts, trainer, path, best_score, trainer.current_epoch, settings)


def _trainer(settings: TrainerSettings, callbacks: list[Callback], loggers: list[Logger]) -> lit.Trainer:
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
    return lit.Trainer(
        accelerator=settings.accelerator,
        devices=settings.devices,
        strategy=settings.strategy,
        precision=cast("Any", precision),
        max_epochs=settings.max_epochs,
        callbacks=callbacks,
        logger=loggers,
        plugins=[_AtomicCheckpoints()],
        enable_progress_bar=progress,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        log_every_n_steps=10,
    )


def _on_terminal() -> bool:
    return sys.stderr.isatty()


def device_batches(trained: Trained[Model], source: Source, batches: Sequence[Rows]) -> Iterator[tuple[Rows, Batch]]:
    """Rows and their batch on the model's device, the model ready to be asked: no gradients, no dropout."""
    device = trained.trainer.strategy.root_device
    model = trained.model.to(device).eval()
    precision = trained.trainer.precision_plugin
    with torch.inference_mode(), precision.forward_context():
        for rows in batches:
            yield rows, {name: values.to(device) for name, values in source.batch(rows).items()}
    model.cpu()


def held_out_batches(trained: Trained[Model], source: Source) -> Iterator[Batch]:
    """The sequences kept apart, in the order of their rows, as `device_batches` gives them."""
    rows = trained.parts.held_out
    for _, batch in device_batches(trained, source, np.array_split(rows, -(-len(rows) // trained.settings.batch_size))):
        yield batch


def encode(trained: Trained[Model], source: Source, folder: Path) -> npt.NDArray[np.float32]:
    """The vectors of all sequences, by the best weights.

    Sequences are batched by length, so that padding is small; a vector depends on its own sequence alone.
    With several devices each rank encodes a part of the sequences, each sequence once.

    Args:
        trained: what `fit` gave.
        source: the sequences.
        folder: where ranks leave their parts.

    Returns:
        float32 [rows, width] in the order of the rows; on ranks other than the first an empty one.
    """
    trainer, model = trained.trainer, trained.model
    rank, world = trainer.global_rank, trainer.world_size
    batches = length_buckets(source.lengths, trained.settings.batch_size, shuffle=False, rank=rank, world=world)
    vectors = np.empty((len(source.lengths), model.width), np.float32)
    for rows, batch in device_batches(trained, source, batches):
        vectors[rows] = model.encode(batch).float().cpu().numpy()
    if world == 1:
        return vectors
    mine = np.sort(np.concatenate(batches)) if batches else np.empty(0, np.int64)
    np.savez(folder / f"part-{rank}.npz", rows=mine, vectors=vectors[mine])
    trainer.strategy.barrier("encoded")
    if rank > 0:
        return np.empty((0, model.width), np.float32)
    for number in range(world):
        part_file = folder / f"part-{number}.npz"
        with np.load(part_file) as part:
            vectors[part["rows"]] = part["vectors"]
        part_file.unlink()
    return vectors


@dataclass(frozen=True)
class Prepared(Generic[Model]):
    """What a neural model's command has made ready.

    Attributes:
        model: with its first weights.
        taught: what it learns from.
        profiled: who gets a profile.
        report: shows how good the trained model is on the sequences kept apart; what it returns is kept beside
            the block.
    """

    model: Model
    taught: Source
    profiled: ClientSource
    report: Callable[[Trained[Model]], Mapping[str, Any]]


@dataclass(frozen=True)
class Recipe(ABC, Generic[Model]):
    """Settings of a neural model's command, checked, and what it does with a history.

    A recipe's fields are dataclasses, each named as the part of the config that it is made from.
    """

    @classmethod
    def of(cls, config: DictConfig) -> Self:
        """From a command's config.

        Raises:
            UserError: a setting that makes no sense.
        """
        return cls(**{part.name: parse(cast("type[Any]", part.type), config, at=part.name) for part in fields(cls)})

    @abstractmethod
    def prepare(self, data: ChallengeData, seed: int) -> Prepared[Model]:
        """Read, tokenise, draw the first weights by the seed."""


def make_profiles(config: DictConfig, recipe: Recipe[Model]) -> None:
    """The course of every neural model's command: prepare, learn, encode, report, save.

    Args:
        config: of the command.
        recipe: made from it.

    Raises:
        UserError: a fault in config or data, see also `fit` and `make_loggers`.
        AlreadyDone: see `embedding_run`.
    """
    settings, loggers = parse(TrainerSettings, config, at="trainer"), resolved(config)["logger"]
    with embedding_run(config) as run:
        prepared = recipe.prepare(run.data, run.seed)
        trained = fit(prepared.model, prepared.taught, settings, run.folder, run.seed, make_loggers(loggers))
        vectors = encode(trained, prepared.profiled, run.folder)
        if trained.trainer.is_global_zero:
            quality = prepared.report(trained)
            monitor, _ = prepared.model.monitor
            found = {**quality, "epochs": trained.epochs, monitor: trained.best_score}
            run.save(prepared.profiled.clients, vectors, found)
