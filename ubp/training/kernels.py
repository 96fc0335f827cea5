"""How a device computes: threads of a CPU, deterministic kernels, precision of matrix products, random numbers.

Whatever is set here is torch's own and global: each context puts back what it found.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from ubp.training.model import SequenceModel, Source
from ubp.training.settings import TrainerSettings

# Multiply-adds of a matrix product that threads share: below, they wait for one another longer than they compute
# (docs/performance.md, "Threads").
_SHARED_PRODUCT = 2**25


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
    rows = min(settings.micro_batch_on("cpu") or settings.batch_size, settings.batch_size)
    product = model.product(rows, max(1, int(np.mean(source.lengths))))
    return torch.get_num_threads() if product >= _SHARED_PRODUCT else 1


@contextmanager
def limited_threads(threads: int | None) -> Iterator[None]:
    """Compute on a CPU with at most so many threads, None for as many as now; afterwards with as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(min(threads or before, before))
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def kernels(device: torch.device) -> Iterator[None]:
    """Deterministic ones on a CPU, where bits are promised; the fastest ones elsewhere; afterwards as before.

    cuDNN is not asked to try its algorithms out (``cudnn.benchmark``): it tries convolutions, which no model has,
    and anew for each shape, while batches are of many lengths. What is computed in float32 there may use TF32.
    """
    precision = torch.get_float32_matmul_precision()
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    fills = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    torch.set_float32_matmul_precision("high" if device.type == "cuda" else "highest")
    torch.use_deterministic_algorithms(device.type == "cpu", warn_only=True)
    # Else torch fills each new tensor, only to be overwritten.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(precision)
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        torch.utils.deterministic.fill_uninitialized_memory = fills  # type: ignore[attr-defined]


@contextmanager
def random_numbers(seed: int | None = None) -> Iterator[None]:
    """Draw from torch's generators, from a seed on; afterwards they are in the state in which they were.

    Args:
        seed: None leaves the state that the generators are in.
    """
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    with torch.random.fork_rng(devices):
        if seed is not None:
            torch.manual_seed(seed)
        yield
