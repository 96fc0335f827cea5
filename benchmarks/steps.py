"""Training steps of the sequence models, for measuring them: a model with its data, a step, its operations."""

import copy
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any, Final

import torch
from lightning.pytorch.loggers.logger import Logger
from numpy.random import default_rng
from omegaconf import DictConfig, open_dict
from torch import nn
from torch._ops import OpOverloadPacket
from torch.optim import Optimizer
from torch.overrides import TorchFunctionMode
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from ubp.blocks.fitted import imported
from ubp.blocks.registry import blocks
from ubp.cli.config import composed
from ubp.cli.neural import Beginning, TrainedRecipe
from ubp.data.history import ChallengeData
from ubp.data.paths import CONFIGS
from ubp.io.errors import UserError
from ubp.sequences.batches import length_buckets
from ubp.training.encode import to_device
from ubp.training.fit import Trained, fit
from ubp.training.kernels import kernels, random_numbers
from ubp.training.loader import BatchRequest, make_loader
from ubp.training.model import VALIDATION_LOSS, Batch, Rows, SequenceModel, Source, events_of, losses_of
from ubp.training.settings import TrainerSettings

# Operations --------------------------------------------------------------------------------------------------

_aten = torch.ops.aten


def _counted_as(operation: OpOverloadPacket[Any, Any]) -> Callable[..., int]:
    """The number of operations of a like one, by the same arguments."""

    def count(*arguments: Any, out_shape: object, **options: Any) -> int:  # noqa: ANN401, ARG001 (torch's to choose)
        return int(flop_registry[operation](*arguments, **options))

    return count


def recurrent_operations(x: Sequence[int], weights: Sequence[Sequence[int]]) -> int:
    """Operations of a recurrent layer's matrix products on the way forward: 2 a weight and position.

    Every matrix, of the input and of the state, is multiplied once at each step with each row. The gates'
    element-wise work is left out, as torch's counter leaves out all such work.

    Args:
        x: shape of the input, [time, rows, width], or [positions, width] where sequences are packed.
        weights: shapes of all weights of all layers; biases have one dimension.
    """
    return 2 * prod(x[:-1]) * sum(prod(shape) for shape in weights if len(shape) == 2)


def _cudnn_forward(x: Sequence[int], weights: Sequence[Sequence[int]], *_: object, **__: object) -> int:
    return recurrent_operations(x, weights)


def _cudnn_backward(x: Sequence[int], weights: Sequence[Sequence[int]], *_: object, **__: object) -> int:
    """The slopes of the inputs and states, and those of the weights: cuDNN works out both, asked or not."""
    return 2 * recurrent_operations(x, weights)


# What torch's counter does not know.
UNCOUNTED = {
    _aten.addmm_: _counted_as(_aten.addmm),
    _aten._scaled_dot_product_flash_attention_for_cpu: _counted_as(_aten._scaled_dot_product_flash_attention),
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: _counted_as(
        _aten._scaled_dot_product_flash_attention_backward
    ),
    _aten._cudnn_rnn: _cudnn_forward,
    _aten._cudnn_rnn_backward: _cudnn_backward,
}


def operations_counter() -> FlopCounterMode:
    """Counts the operations of matrix products, recurrent layers and attention, on a CPU as on CUDA."""
    return FlopCounterMode(display=False, custom_mapping=UNCOUNTED)


# Models and batches ------------------------------------------------------------------------------------------


OVERRIDES: Final = {"twhin/twhin": ("~inputs.sequential_encoder",)}  # a content encoder of its own: nothing before it


def recipe_of(model: str, overrides: Sequence[str] = (), dropout: bool = True) -> TrainedRecipe[Any]:
    """A model's recipe, without loggers.

    Args:
        model: its config in the registry, ``folder/name``.
        overrides: of the config, as on the command line.
        dropout: False: every share of the model's config that is dropped is 0.

    Raises:
        UserError: no such block is a model that is trained.
    """
    folder, _, name = model.partition("/")
    kinds = {block.config: block.recipe for block in blocks()}
    kind = imported(kinds[model]) if kinds.get(model) else None
    if not (isinstance(kind, type) and issubclass(kind, TrainedRecipe)):
        raise UserError(f"model={model}: no block that trains a model has this config")
    own = composed(CONFIGS / folder, name, [*overrides, *OVERRIDES.get(model, ())])
    with open_dict(own):
        own.logger = {}
    if not dropout:
        _without_dropout(own)
    return kind.of(own)


def _without_dropout(config: DictConfig) -> None:
    for key, value in config.items():
        if isinstance(value, DictConfig):
            _without_dropout(value)
        elif "dropout" in str(key):
            config[key] = 0.0


def load(
    model: str, data: ChallengeData, folder: Path, overrides: Sequence[str] = (), dropout: bool = True
) -> Beginning[Any]:
    """What a model's training begins with; see `recipe_of`.

    Args:
        model: its config.
        data: the history.
        folder: for what is prepared, and taken the next time.
        overrides: of the config.
        dropout: whether there is any.
    """
    return recipe_of(model, overrides, dropout).beginning(data, 0, folder)


def spread(batches: Sequence[Rows], count: int) -> list[Rows]:
    """So many of the batches, at even distances."""
    return [batches[(2 * number + 1) * len(batches) // (2 * count)] for number in range(count)]


def gather(source: Source, batches: Sequence[Rows]) -> tuple[float, float]:
    """Events of an epoch and the seconds that one process takes to gather them, from up to 200 of its batches."""
    chosen = spread(batches, min(len(batches), 200))
    started = time.perf_counter()
    events = float(sum(events_of(source.batch(rows, default_rng(number))) for number, rows in enumerate(chosen)))
    seconds = time.perf_counter() - started
    return events * len(batches) / len(chosen), seconds * len(batches) / len(chosen)


def gathered(
    model: SequenceModel, source: Source, batches: Sequence[Rows], trainer: TrainerSettings, device: torch.device
) -> DataLoader[list[Batch]]:
    """Batches in micro-batches, gathered as the trainer has them gathered for a device."""
    asks = [BatchRequest(rows, (number,)) for number, rows in enumerate(batches)]
    micro_batch, workers = trainer.micro_batch_on(device.type), trainer.workers_on(device.type)
    return make_loader(source, asks, micro_batch, model.on_host, workers, cuda=device.type == "cuda")


# Steps -------------------------------------------------------------------------------------------------------


def take_step(
    model: SequenceModel, optimizers: list[Optimizer], micro_batches: Sequence[Batch], trainer: TrainerSettings
) -> None:
    """Forward, backward, the gradient clipped, Adam, by the trainer's precision: ``auto`` is bfloat16 on a GPU."""
    for optimizer in optimizers:
        optimizer.zero_grad()
    # As Lightning's: it keeps no casts of weights.
    low = next(iter(micro_batches[0].values())).device.type == "cuda" and trainer.precision in ("auto", "bf16-mixed")
    with torch.autocast("cuda", torch.bfloat16, enabled=low, cache_enabled=False):
        for loss, _ in losses_of(model, micro_batches):
            loss.backward()  # type: ignore[no-untyped-call]
    if trainer.gradient_clip:
        dense = [weight for weight in model.parameters() if weight.grad is not None and not weight.grad.is_sparse]
        nn.utils.clip_grad_norm_(dense, trainer.gradient_clip)
    for optimizer in optimizers:
        optimizer.step()


def synchronise(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Clock:
    """Moments on the device's own time line, so that measuring makes nobody wait.

    On CUDA a moment is an event in the stream: it is reached when the device has done what was given to it
    before, and so the time from one step's end to the next one's begin is what the device was idle for. On a CPU
    it is the clock's.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"

    def now(self) -> Any:  # noqa: ANN401 (a number or a CUDA event: for `between` alone)
        if not self._cuda:
            return time.perf_counter()
        event: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def between(self, earlier: Any, later: Any) -> float:  # noqa: ANN401
        """Seconds; on CUDA only after `synchronise`."""
        return float(earlier.elapsed_time(later)) / 1000 if self._cuda else float(later - earlier)


@dataclass(frozen=True)
class Pace:
    """How fast a model is trained.

    Attributes:
        events: of the timed steps.
        seconds: that they took.
        waiting: the share of them in which the device waited for the next batch.
        operations: of matrix products, recurrent layers and attention, an event; padding included.
        epoch_events: of a whole epoch.
    """

    events: float
    seconds: float
    waiting: float
    operations: float
    epoch_events: float


def pace(
    model: SequenceModel, source: Source, trainer: TrainerSettings, device: torch.device, share: float, least: int,
    warm: int,
) -> Pace:  # fmt: skip
    """Train for a share of an epoch, its batches in their order in training.

    Args:
        model: moved to the device.
        source: what it learns from.
        trainer: numbers of a step.
        device: where.
        share: of an epoch's steps.
        least: steps that are timed at the least; a short epoch begins again.
        warm: steps before them, the first on the longest sequences, so that what is set up once and the memory
            that is needed are there; their operations are counted.
    """
    order = length_buckets(source.lengths, trainer.batch_size)
    longest = length_buckets(source.lengths, trainer.batch_size, shuffle=False)[:1]
    untimed = [*longest, *spread(order, warm - 1)]
    timed = [order[number % len(order)] for number in range(max(least, round(share * len(order))))]
    with kernels(device), random_numbers():
        return _pace(model, source, trainer, device, untimed, timed, len(order))


def _pace(
    model: SequenceModel, source: Source, trainer: TrainerSettings, device: torch.device, untimed: Sequence[Rows],
    timed: Sequence[Rows], steps: int,
) -> Pace:  # fmt: skip
    """By steps that are not timed, steps that are, and how many an epoch has."""
    model.to(device).train()
    optimizers = model.optimizers(trainer.learning_rate)
    clock, marks = Clock(device), []
    events, seen, operations = 0.0, 0.0, 0
    for number, micro_batches in enumerate(gathered(model, source, [*untimed, *timed], trainer, device), start=1):
        is_timed = number > len(untimed)
        begin = clock.now()
        here = float(sum(map(events_of, micro_batches)))
        moved = [to_device(micro_batch, device) for micro_batch in micro_batches]
        counter = operations_counter()
        with nullcontext() if is_timed else counter:
            take_step(model, optimizers, moved, trainer)
        if is_timed:
            events += here
        else:
            seen, operations = seen + here, operations + counter.get_total_flops()
            synchronise(device)
        marks.append((begin, clock.now()))
    synchronise(device)
    marks = marks[len(untimed) - 1 :]
    idle = sum(clock.between(end, begin) for (_, end), (begin, _) in pairwise(marks))
    seconds = clock.between(marks[0][1], marks[-1][1])
    whole = events / len(timed) * steps
    return Pace(events, seconds, idle / seconds, operations / seen, whole)


# A short training through `ubp.training.fit` ---------------------------------------------------------------------


class Curve(Logger):
    """Keeps a run's losses: ``points`` by (name, step)."""

    def __init__(self) -> None:
        super().__init__()
        self.points: dict[tuple[str, int], float] = {}

    @property
    def name(self) -> str:
        return "curve"

    @property
    def version(self) -> str:
        return "0"

    def log_hyperparams(self, *_: object, **__: object) -> None:
        """There is nothing to keep of them."""

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Called by Lightning, now and then in training and after each validation."""
        for name, value in metrics.items():
            if name.startswith("train_loss") or name == VALIDATION_LOSS:
                self.points[name, int(step or 0)] = float(value)


class DrawnOnCpu(TorchFunctionMode):
    """Random numbers come from the CPU's generator, whatever device they are for: the same on every device.

    Else a model's own draws (next_url's negatives) differ between devices, whose generators are different ones.
    """

    _DRAWS = (torch.rand, torch.randint, torch.randn, torch.randperm)

    def __torch_function__(
        self, func: Callable[..., Any], types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:  # noqa: ANN401 (torch's signature)
        kwargs = kwargs or {}
        if func in self._DRAWS and (device := kwargs.get("device")) is not None:
            return func(*args, **{**kwargs, "device": "cpu"}).to(device)
        return func(*args, **kwargs)


def trained(
    model: SequenceModel, source: Source, settings: TrainerSettings, folder: Path, accelerator: str, precision: str
) -> tuple[Trained[Any], Curve]:
    """Train a copy of the model as its command would, on a device and in a precision of one's choice.

    Args:
        model: stays as it is.
        source: what it learns from.
        settings: the trainer's.
        folder: takes the checkpoints; made anew.
        accelerator: ``cpu`` or ``gpu``.
        precision: Lightning's.
    """
    shutil.rmtree(folder, ignore_errors=True)
    curve = Curve()
    settings = replace(settings, accelerator=accelerator, precision=precision, progress=False)
    with DrawnOnCpu():
        return fit(copy.deepcopy(model), source, settings, folder, seed=0, loggers=[curve]), curve
