"""Batches out of flat columns: gathered by array operations, bucketed by length."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ubp.data.schema import Token

if TYPE_CHECKING:
    import torch
from ubp.sequences.arrays import Array, Int64, Mask, ranges


@dataclass(frozen=True)
class PaddedBatch:
    """Sequences side by side, filled up to the longest.

    Attributes:
        columns: by name; int64 [batch, time] of tokens, ``Token.PADDING`` after the end; float32 [batch, time]
            of numbers, 0 after the end; a column with more dimensions keeps them behind these two.
        lengths: int64 [batch], start and end tokens counted.
    """

    columns: dict[str, Array]
    lengths: Int64

    @property
    def mask(self) -> Mask:
        """True where there is something, false after the end: bool [batch, time]."""
        time = max((column.shape[1] for column in self.columns.values()), default=0)
        return np.arange(time) < self.lengths[:, None]

    def tensors(self) -> tuple[dict[str, "torch.Tensor"], "torch.Tensor"]:
        """Columns and lengths as tensors that share this batch's memory."""
        import torch

        return {name: torch.from_numpy(column) for name, column in self.columns.items()}, torch.from_numpy(self.lengths)


def gather(
    columns: Mapping[str, Array],
    starts: Int64,
    lengths: Int64,
    *,
    start: bool = False,
    end: bool = False,
    pad_to: int = 0,
) -> PaddedBatch:
    """A batch out of flat columns, by array operations alone; the columns stay as they are.

    Args:
        columns: by name, [events, ...]; integers are tokens, floats are numbers.
        starts: int64 [batch], each sequence's first event in the columns.
        lengths: int64 [batch], how many events it has; may be 0.
        start: put ``Token.START`` (number: 0) before each sequence.
        end: put ``Token.END`` (number: 0) behind it.
        pad_to: the least length of the time axis.
    """
    events = ranges(starts, lengths)
    full = lengths + int(start) + int(end)
    time = max(int(full.max(initial=0)), pad_to)
    firsts = np.arange(len(starts), dtype=np.int64) * time
    places = ranges(firsts + int(start), lengths)
    filled = {}
    for name, column in columns.items():
        tokens = not np.issubdtype(column.dtype, np.floating)
        flat = np.zeros((len(starts) * time, *column.shape[1:]), dtype=np.int64 if tokens else np.float32)
        flat[places] = column[events]
        if start and tokens:
            flat[firsts] = Token.START
        if end and tokens:
            flat[firsts + full - 1] = Token.END
        filled[name] = flat.reshape(len(starts), time, *column.shape[1:])
    return PaddedBatch(filled, full)


def length_buckets(
    lengths: Int64,
    batch_size: int,
    *,
    seed: int = 0,
    epoch: int = 0,
    shuffle: bool = True,
    rank: int = 0,
    world: int = 1,
    pool: int = 64,
) -> list[Int64]:
    """One epoch's batches of clients of similar length: over all ranks each client exactly once.

    The batches' sizes differ by at most one, and every rank gets the same number of batches, so that none
    waits for another at the epoch's end; in each step the ranks' batches are neighbours in length. (With fewer
    clients than ranks the last ranks get none.)

    Args:
        lengths: [clients].
        batch_size: the most clients a batch; one more where so few clients do not go round the ranks else.
        seed: of the order; with ``epoch`` it alone decides it.
        epoch: each gives another order.
        shuffle: False for one fixed order, the longest clients first: what does not fit fails at once.
        rank: whose batches.
        world: how many ranks there are.
        pool: lengths are sorted within so many batches of randomly drawn clients.

    Returns:
        Places in ``lengths``, int64 [clients of the batch] each.
    """
    clients = len(lengths)
    batches = min(-(-clients // batch_size) + world - 1, clients)
    batches -= batches % world if batches >= world else 0
    limits = np.arange(batches + 1) * clients // max(batches, 1)
    steps = np.arange(-(-batches // world))
    random = np.random.default_rng([seed, epoch])
    order = random.permutation(clients) if shuffle else np.arange(clients)
    # Pools of about the same size, each of whole steps.
    pools = -(-batches // pool) if shuffle else 1
    pool_of_batch = np.repeat(steps * pools // max(len(steps), 1), world)[:batches]
    pool_of_client = np.repeat(pool_of_batch, np.diff(limits))
    order = order[np.lexsort((-np.asarray(lengths)[order], pool_of_client))]
    if shuffle:
        random.shuffle(steps)
    mine = steps * world + rank
    return [order[limits[batch] : limits[batch + 1]] for batch in mine[mine < batches]]
