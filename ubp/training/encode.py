"""Sequences in, vectors out, by a trained model."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from ubp.sequences.batches import length_buckets
from ubp.training.kernels import kernels, limited_threads
from ubp.training.model import Batch, Rows, SequenceModel, Source

_HALVES = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


@dataclass(frozen=True)
class Runtime:
    """How a model computes when it encodes.

    Attributes:
        batch_size: sequences per batch.
        threads: of a CPU, at the most; None for as many as torch was given. Their number may change the last bits.
        accelerator: ``cpu``, or another of Lightning's: then on a GPU where there is one, so that what was trained
            on a GPU encodes without one.
        precision: ``32-true``, ``bf16-mixed`` or ``16-mixed``; ``auto`` is bf16-mixed on CUDA, 32-true elsewhere.
    """

    batch_size: int
    threads: int | None = None
    accelerator: str = "auto"
    precision: str = "auto"

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        if self.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if self.accelerator == "mps" and torch.backends.mps.is_available() else "cpu")

    def autocast(self) -> AbstractContextManager[object]:
        """A context of half precision where that is asked for, and by ``auto`` on CUDA."""
        kind = self.device.type
        precision = ("bf16-mixed" if kind == "cuda" else "32-true") if self.precision == "auto" else self.precision
        return torch.autocast(kind, _HALVES[precision]) if precision in _HALVES else nullcontext()


@dataclass(frozen=True)
class Asked:
    """What is wanted of a model for each sequence of a batch.

    Attributes:
        of: a batch in, float [rows, width] out.
        width: of what comes out.
    """

    of: Callable[[Batch], torch.Tensor]
    width: int


def device_batches(
    model: SequenceModel, source: Source, batches: Sequence[Rows], runtime: Runtime
) -> Iterator[tuple[Rows, Batch]]:
    """Rows and their batch on the model's device, the model ready to be asked: no gradients, no dropout.

    Args:
        model: on the CPU again when the batches are through.
        source: the sequences.
        batches: rows of each batch.
        runtime: how to compute; torch's settings are as they were when the batches are through.
    """
    device = runtime.device
    model = model.to(device).eval()
    try:
        with limited_threads(runtime.threads), kernels(device), torch.inference_mode(), runtime.autocast():
            for rows in batches:
                yield rows, to_device(model.on_host(source.batch(rows)), device)
    finally:
        model.cpu()


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch on a device; a GPU copies while it computes what it was given before."""
    if device.type != "cuda":
        return {name: values.to(device) for name, values in batch.items()}
    return {name: values.pin_memory().to(device, non_blocking=True) for name, values in batch.items()}


def encode(
    model: SequenceModel,
    source: Source,
    runtime: Runtime,
    asked: Asked | None = None,
    batches: Sequence[Rows] | None = None,
) -> npt.NDArray[np.float32]:
    """The vectors of all sequences.

    Sequences are batched by length, so that padding is small; a vector depends on its own sequence alone, but for
    the last bits, which the size of its batch may change.

    Args:
        model: it stays on the CPU afterwards.
        source: the sequences.
        runtime: how to compute.
        asked: what else than the model's vectors is wanted of it; None for these.
        batches: rows of each, every row in one; None for rows of similar length.

    Returns:
        float32 [rows, width] in the order of the rows.
    """
    wanted = asked or Asked(model.encode, model.width)
    vectors = np.empty((len(source.lengths), wanted.width), np.float32)
    if batches is None:
        batches = length_buckets(source.lengths, runtime.batch_size, shuffle=False)
    for rows, batch in device_batches(model, source, batches, runtime):
        vectors[rows] = wanted.of(batch).float().cpu().numpy()
    return vectors
