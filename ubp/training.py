"""The training loop of every neural model, on Lightning: `fit` and `encode`.

A model is a `SequenceModel`, its data a `Source`. What a run does depends on seed, data and settings alone:
each step draws from a generator seeded by (seed, epoch, step), and which clients share a batch is a function
of (seed, epoch). So a run that was killed and taken up again at its last epoch gives what an undisturbed run
gives, bit for bit on a CPU with the same number of threads (`threads_for`). On CUDA the fastest kernels are
taken, deterministic or not.
"""

import logging
import math
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal, Protocol, Self, TypeVar, cast

import hydra.utils
import numpy as np
import numpy.typing as npt
import torch
from hydra.errors import HydraException
from omegaconf import DictConfig
from torch import Tensor, nn

from ubp.config import parse, resolved
from ubp.data import ChallengeData
from ubp.errors import UserError, require, require_positive
from ubp.files import written_aside
from ubp.run import EmbeddingRun
from ubp.sequences import length_buckets

if TYPE_CHECKING:  # seconds of imports, which `fit` spends when there is something to fit
    import lightning as lit
    from lightning.pytorch.loggers import Logger

logger = logging.getLogger(__name__)

VALIDATION_LOSS = "validation_loss"
# Rows of a batch that a CPU works through at a time: more of them only fill its memory.
_CPU_PIECE = 64
# Processes that gather batches for a GPU: it waits for none of them, and this one is free to give it work.
_CUDA_WORKERS = 2
# Multiply-adds of a matrix product that threads share: below, they wait for one another longer than they compute
# (docs/performance.md, "Threads").
_SHARED_PRODUCT = 2**25

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


def as_it_is(batch: Batch) -> Batch:
    """The batch itself."""
    return batch


class SequenceModel(nn.Module, ABC):
    """A model of sequences that gives each one a vector.

    Attributes:
        width: of the vector.
        monitor: what early stopping and the best checkpoint go by, ``validation_loss`` or one of
            `validation_scores`, and whether less or more of it is better.
    """

    width: int
    monitor: tuple[str, Literal["min", "max"]] = (VALIDATION_LOSS, "min")

    @property
    def on_host(self) -> Callable[[Batch], Batch]:
        """Adds to a batch what depends on its values and decides about shapes; here nothing.

        A program that reads a value on a GPU (``int(lengths.max())``), or asks for a tensor whose size depends on
        values (``outputs[mask]``, ``mask.nonzero()``), waits until the GPU has done all it was given. So whoever
        gathers a batch, or a piece of one, calls this before the batch leaves the CPU: it cuts padding off and
        adds the places of the real positions, int64 [positions], with which the model calls ``index_select``.
        What is added stands behind what was there, and need not have a row for each sequence.

        Returns:
            A function that can be pickled: processes that gather batches call it, and the model is not theirs.
        """
        return as_it_is

    @abstractmethod
    def loss(self, batch: Batch) -> Tensor:
        """The mean loss over the batch's real positions: a scalar."""

    def weight(self, batch: Batch) -> Tensor:
        """Over how many positions `loss` takes its mean: a scalar; here the rows."""
        # full fills it where it is to be; tensor would copy it there, and the copy be waited for.
        return torch.full((), float(rows_of(batch)), device=next(iter(batch.values())).device)

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

    def product(self, rows: int, time: int) -> int:
        """Multiply-adds of one matrix product in a step, the larger the better shared between threads.

        Recurrent layers go one time step after the other, each a product of the rows' states with a layer's
        weights; elsewhere all places are in one product, here that with the largest matrix but for embeddings.

        Args:
            rows: that are worked through at a time.
            time: tokens of a row.
        """
        layers = [module for module in self.modules() if isinstance(module, nn.RNNBase)]
        if layers:
            return rows * max(layer.get_parameter("weight_hh_l0").numel() for layer in layers)
        tables = {module.weight for module in self.modules() if isinstance(module, nn.Embedding)}
        return rows * time * max((weight.numel() for weight in self.parameters() if weight not in tables), default=0)


Model = TypeVar("Model", bound=SequenceModel)


@dataclass(frozen=True)
class TrainerSettings:
    """How a model is trained.

    Attributes:
        max_epochs: at the most.
        patience: epochs in which what the model's monitor says gets no better before training stops.
        batch_size: sequences a step, on each device.
        piece: sequences of a step that are worked through at a time, their gradients added up: less memory for
            the same step. None: 64 on a CPU, all at once elsewhere.
        learning_rate: of Adam.
        gradient_clip: largest norm of the gradient; 0 for no limit.
        devices: how many; with several, ``strategy=ddp``.
        strategy: Lightning's.
        accelerator: Lightning's; ``auto`` takes the GPU where there is one.
        precision: Lightning's; ``auto`` is bf16-mixed on CUDA, 32-true elsewhere.
        workers: processes that gather batches; 0: the training process. None: 2 on CUDA, 0 elsewhere.
        threads: of a CPU, at the most ``OMP_NUM_THREADS`` where that is set; None: see `threads_for`. Their number
            may change the last bits of what comes out.
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
    workers: int | None = None
    threads: int | None = None
    held_out: float = 0.02
    validation: float = 0.01
    progress: bool = True

    def __post_init__(self) -> None:
        """Refuse numbers that make no sense.

        Raises:
            UserError: a number out of its range.
        """
        require_positive(self, "trainer", "max_epochs", "patience", "batch_size", "devices")
        for name, least in {"piece": 1, "threads": 1, "workers": 0}.items():
            value = getattr(self, name)
            require(value is None or value >= least, f"trainer.{name}", value, f"at least {least}, or null")
        require(self.learning_rate >= 0, "trainer.learning_rate", self.learning_rate, "0 or more")
        for name in ("held_out", "validation"):
            require(0 < getattr(self, name) < 0.5, f"trainer.{name}", getattr(self, name), "between 0 and 0.5")
        # Its gradients are scaled up until the optimizer steps, and would be clipped as they are then.
        half = self.precision in ("16", "16-mixed") and self.gradient_clip > 0
        require(not half, "trainer.precision", self.precision, "bf16-mixed or 32-true, or trainer.gradient_clip=0")

    def piece_on(self, device: str) -> int | None:
        """Rows that are worked through at a time on a kind of device; None: all."""
        return self.piece or (_CPU_PIECE if device == "cpu" else None)

    def workers_on(self, device: str) -> int:
        """Processes that gather batches for a kind of device."""
        return (_CUDA_WORKERS if device == "cuda" else 0) if self.workers is None else self.workers


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


def rows_of(batch: Batch) -> int:
    """How many sequences it holds."""
    return len(next(iter(batch.values())))


def in_pieces(batch: Batch, piece: int | None, on_host: Callable[[Batch], Batch]) -> list[Batch]:
    """A batch in parts of so many rows, None for all, each with what the model wants to know of it."""
    rows = rows_of(batch)
    size = piece or max(rows, 1)
    cut = [{name: values[at : at + size] for name, values in batch.items()} for at in range(0, rows, size)]
    return [on_host(part) for part in cut]


def losses_of(model: SequenceModel, pieces: Sequence[Batch]) -> Iterator[tuple[Tensor, bool]]:
    """A batch's loss in parts that add up to it; each part's graph can be freed before the next is made.

    Args:
        model: whose loss.
        pieces: of the batch (`in_pieces`), on the model's device.

    Yields:
        A part of the loss, a scalar, and whether it is the last one.
    """
    weights = torch.stack([model.weight(piece) for piece in pieces])
    shares = weights / weights.sum().clamp(min=1)
    for number, (piece, share) in enumerate(zip(pieces, shares, strict=True), start=1):
        yield model.loss(piece) * share, number == len(pieces)


def threads_for(model: SequenceModel, source: Source, settings: TrainerSettings) -> int:
    """Threads that compute on a CPU: ``settings.threads``, or by the sizes of the work, never by the machine's load.

    All that torch was given, where they have enough to do between one wait for each other and the next
    (`SequenceModel.product`); else one: who waits there spins, and beside other processes, which hold up one of
    the threads, the wait takes many times what the work takes.
    """
    asked = os.environ.get("OMP_NUM_THREADS", "")  # a list where levels are nested: torch takes its first
    allowed = int(asked.partition(",")[0]) if asked[:1].isdecimal() else sys.maxsize
    if settings.threads is not None:
        return min(settings.threads, allowed)
    rows = min(settings.piece_on("cpu") or settings.batch_size, settings.batch_size)
    product = model.product(rows, max(1, int(np.mean(source.lengths))))
    return torch.get_num_threads() if product >= _SHARED_PRODUCT else 1


@contextmanager
def limited_threads(threads: int | None) -> Iterator[None]:
    """Compute on a CPU with so many threads, None for as many as now; afterwards with as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


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


@dataclass(frozen=True)
class Trained(Generic[Model]):
    """What `fit` gives: the model with its best weights, and how the run went (``best_score``: its monitor's).

    ``settings`` are those that the run took: ``threads`` is their number.
    """

    model: Model
    parts: Parts
    trainer: "lit.Trainer"
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
    loggers: "list[Logger] | None" = None,
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
    # Imported here: they take seconds, which a command spends when its data is read and its first lines are said.
    from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
    from lightning.pytorch.strategies import ParallelStrategy

    from ubp.lightning_loop import EpochLines, Training, make_trainer

    parts = split_rows(len(source.lengths), settings, seed)
    settings = replace(settings, threads=threads_for(model, source, settings))
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
    trainer = make_trainer(settings, [best, last, stop, EpochLines(monitor)], loggers or [])
    if isinstance(trainer.strategy, ParallelStrategy):
        model.use_dense_gradients()
    training = Training(model, source, parts, settings, seed, first_epoch)
    choose_kernels(trainer.strategy.root_device)
    with limited_threads(settings.threads):
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


def choose_kernels(device: torch.device) -> None:
    """Deterministic ones on a CPU, where bits are promised; the fastest ones elsewhere.

    cuDNN is not asked to try its algorithms out (``cudnn.benchmark``): it tries convolutions, which no model has,
    and anew for each shape, while batches are of many lengths. What is computed in float32 there may use TF32.
    """
    torch.set_float32_matmul_precision("high" if device.type == "cuda" else "highest")
    torch.use_deterministic_algorithms(device.type == "cpu", warn_only=True)
    # Else torch fills each new tensor, only to be overwritten.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def device_batches(trained: Trained[Model], source: Source, batches: Sequence[Rows]) -> Iterator[tuple[Rows, Batch]]:
    """Rows and their batch on the model's device, the model ready to be asked: no gradients, no dropout."""
    device = trained.trainer.strategy.root_device
    model = trained.model.to(device).eval()
    precision = trained.trainer.precision_plugin
    with limited_threads(trained.settings.threads), torch.inference_mode(), precision.forward_context():
        for rows in batches:
            yield rows, to_device(model.on_host(source.batch(rows)), device)
    model.cpu()


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch on a device; a GPU copies while it computes what it was given before."""
    if device.type != "cuda":
        return {name: values.to(device) for name, values in batch.items()}
    return {name: values.pin_memory().to(device, non_blocking=True) for name, values in batch.items()}


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


def make_profiles(run: EmbeddingRun, config: DictConfig, recipe: type[Recipe[Model]]) -> None:
    """The course of every neural model's command: prepare, learn, encode, report, save.

    Args:
        run: what the command makes.
        config: of the command.
        recipe: its settings are made from the config.

    Raises:
        UserError: a fault in config or data, see also `fit` and `make_loggers`.
    """
    chosen, settings = recipe.of(config), parse(TrainerSettings, config, at="trainer")
    prepared = chosen.prepare(run.data, run.seed)
    loggers = make_loggers(resolved(config)["logger"])
    trained = fit(prepared.model, prepared.taught, settings, run.folder, run.seed, loggers)
    vectors = encode(trained, prepared.profiled, run.folder)
    if trained.trainer.is_global_zero:
        quality = prepared.report(trained)
        monitor, _ = prepared.model.monitor
        found = {**quality, "epochs": trained.epochs, monitor: trained.best_score}
        run.save(prepared.profiled.clients, vectors, found)
