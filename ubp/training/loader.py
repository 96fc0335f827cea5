"""Batches for training and validation, gathered by row in this process or by others.

Worker processes import what the source is made of (a recipe, torch), but not Lightning.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
from torch.utils.data import DataLoader, Dataset, Sampler

from ubp.sequences.batches import length_buckets
from ubp.training.model import Batch, Rows, Source, in_micro_batches

_AHEAD = 4  # batches that each process gathers ahead of the step that takes them


@dataclass(frozen=True)
class BatchRequest:
    """A batch to gather: its rows and, in training, the seed of what is drawn for it."""

    rows: Rows
    seed: tuple[int, ...] | None = None


class BucketSampler(Sampler[BatchRequest]):
    """Batches of rows of similar length for one rank.

    Lightning sets each further epoch, but begins to read the first one of a resumed run before it does so.
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

    def __iter__(self) -> Iterator[BatchRequest]:
        epoch = self._epoch
        for number, places in enumerate(self._plan(epoch=epoch)):
            yield BatchRequest(self._rows[places], (self._seed, epoch, number, self._rank))

    def __len__(self) -> int:
        return len(self._plan())


class _MicroBatches(Dataset[list[Batch]]):
    """Rows in, the micro-batches of their batch out."""

    def __init__(self, source: Source, micro_batch: int | None, on_host: Callable[[Batch], Batch]) -> None:
        self._source, self._micro_batch, self._on_host = source, micro_batch, on_host

    def __getitem__(self, request: BatchRequest) -> list[Batch]:
        batch = self._source.batch(request.rows, None if request.seed is None else np.random.default_rng(request.seed))
        return in_micro_batches(batch, self._micro_batch, self._on_host)


def make_loader(
    source: Source,
    requests: Sampler[BatchRequest] | list[BatchRequest],
    micro_batch: int | None,
    on_host: Callable[[Batch], Batch],
    workers: int,
    cuda: bool,
) -> DataLoader[list[Batch]]:
    """The micro-batches of each batch that is asked for, in that order, whatever the number of processes.

    Args:
        source: of the sequences.
        requests: the batches.
        micro_batch: see `in_micro_batches`.
        on_host: see `SequenceModel.on_host`.
        workers: processes that gather batches; 0: this one. They are spawned, not forked: a copy of a process
            that holds CUDA and the threads of Polars may hang.
        cuda: gather into memory that a GPU copies from while it computes.
    """
    return DataLoader(
        _MicroBatches(source, micro_batch, on_host),
        batch_size=None,
        sampler=requests,
        num_workers=workers,
        multiprocessing_context="spawn" if workers else None,
        prefetch_factor=_AHEAD if workers else None,
        persistent_workers=workers > 0,
        pin_memory=cuda,
    )
