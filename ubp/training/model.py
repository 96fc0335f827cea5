"""What a sequence model and its data must offer to be trained and to encode."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

VALIDATION_LOSS = "validation_loss"

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
            generator: in training, for what is drawn anew each time (random windows); None asks for the
                sequences as they are encoded.
        """


class ClientSource(Source, Protocol):
    """A source whose rows belong to clients."""

    @property
    def clients(self) -> Rows:
        """Each row's client: int64 [rows]."""


@dataclass(frozen=True)
class SomeRows:
    """Some rows of a source, as a source.

    Attributes:
        source: of all rows.
        rows: int64, their places.
    """

    source: Source
    rows: Rows

    @property
    def lengths(self) -> Rows:
        """See `Source`."""
        return self.source.lengths[self.rows]

    def batch(self, rows: Rows, generator: np.random.Generator | None = None) -> Batch:
        """See `Source`."""
        return self.source.batch(self.rows[rows], generator)


def as_it_is(batch: Batch) -> Batch:
    """The batch itself."""
    return batch


class SequenceModel(nn.Module, ABC):
    """A model of sequences that gives each one a vector.

    Attributes:
        width: of the vector.
        monitor: what early stopping and the best checkpoint go by, ``validation_loss`` or one of
            `validation_scores`, and whether less or more of it is better.
        headline: the score in its report on held-out clients, the larger the better, that is held against
            popularity's (`ubp.training.ranking.below_popularity`); None where there is none.
    """

    width: int
    monitor: tuple[str, Literal["min", "max"]] = (VALIDATION_LOSS, "min")
    headline: str | None = None

    @property
    def on_host(self) -> Callable[[Batch], Batch]:
        """Adds to a batch what depends on its values and decides about shapes; here nothing.

        A program that reads a value on a GPU (``int(lengths.max())``), or asks for a tensor whose size depends on
        values (``outputs[mask]``, ``mask.nonzero()``), waits until the GPU has done all it was given. So whoever
        gathers a batch, or a micro-batch of one, calls this before the batch leaves the CPU: it cuts padding off and
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


def rows_of(batch: Batch) -> int:
    """How many sequences it holds."""
    return len(next(iter(batch.values())))


def events_of(batch: Batch) -> int:
    """How many events its sequences have; where they have no lengths, each is one."""
    return int(batch[LENGTHS].sum()) if LENGTHS in batch else rows_of(batch)


def in_micro_batches(batch: Batch, micro_batch: int | None, on_host: Callable[[Batch], Batch]) -> list[Batch]:
    """A batch in parts of so many rows, None for all, each with what the model wants to know of it."""
    rows = rows_of(batch)
    size = micro_batch or max(rows, 1)
    cut = [{name: values[at : at + size] for name, values in batch.items()} for at in range(0, rows, size)]
    return [on_host(part) for part in cut]


def losses_of(model: SequenceModel, micro_batches: Sequence[Batch]) -> Iterator[tuple[Tensor, bool]]:
    """A batch's loss in parts that add up to it; each part's graph can be freed before the next is made.

    Args:
        model: whose loss.
        micro_batches: of the batch (`in_micro_batches`), on the model's device.

    Yields:
        A part of the loss, a scalar, and whether it is the last one.
    """
    weights = torch.stack([model.weight(micro_batch) for micro_batch in micro_batches])
    shares = weights / weights.sum().clamp(min=1)
    for number, (micro_batch, share) in enumerate(zip(micro_batches, shares, strict=True), start=1):
        yield model.loss(micro_batch) * share, number == len(micro_batches)
