"""What the models that predict the next event share: settings, and how their hidden states are made and pooled."""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from ubp.io.errors import require, require_positive
from ubp.training.model import LENGTHS, Batch, SequenceModel
from ubp.training.nn import CausalTransformer
from ubp.training.windows import (
    FIRST,
    Pooling,
    at_targets,
    read_in_windows,
    real_targets,
    require_pooling,
    with_targets,
)


@dataclass(kw_only=True)
class TransformerSettings:
    """Numbers of `CausalTransformer` and `Pooling`.

    Attributes:
        layers: how many.
        heads: of each layer's attention.
        dropout: on what enters the first layer and on what each layer adds.
        attention_dropout: on the attention's weights.
        profile: the vector is the output at the ``last`` event, or the ``sum`` of all.
        half_life: in days, of an event's weight in the sum; None: all weigh the same.
    """

    layers: int
    heads: int
    dropout: float
    attention_dropout: float
    profile: str
    half_life: float | None

    def __post_init__(self) -> None:
        """Refuse numbers that make no sense.

        Raises:
            UserError: an unknown choice or a number out of its range.
        """
        require_positive(self, "model", "layers", "heads")
        for name in ("dropout", "attention_dropout"):
            require(0 <= getattr(self, name) < 1, f"model.{name}", getattr(self, name), "from 0 to below 1")
        require_pooling(self.profile, self.half_life)

    def pooling(self, newest: int) -> Pooling:
        """Of sequences of so many events, at the most."""
        return Pooling(self.profile, newest, self.half_life)


class NextEventModel(SequenceModel):
    """A causal transformer whose output at an event predicts the next one.

    Batches are those of `ubp.training.windows.Windows`. A subclass makes its `transformer`.

    Args:
        width: of the transformer, and of the vectors.
        positions: events that are read at a time, see `read_in_windows`.
        pooling: of the outputs.
    """

    transformer: CausalTransformer

    def __init__(self, width: int, positions: int, pooling: Pooling) -> None:
        super().__init__()
        self.width, self.positions, self.pooling = width, positions, pooling

    @abstractmethod
    def read(self, batch: Batch, time: int) -> Tensor:
        """What the transformer reads at the first places: float [rows, time, width]."""

    def outputs(self, batch: Batch) -> Tensor:
        """At all events: float [rows, time, width]."""
        return self._outputs(batch, _time_of(batch), batch[LENGTHS])

    def predicting(self, batch: Batch) -> Tensor:
        """At the events that another one follows: float [positions, width], rows after rows.

        Args:
            batch: from `ubp.training.windows.with_targets`. A row's last event is only a target: it is not read.
        """
        return at_targets(self._outputs(batch, _time_of(batch) - 1, batch[LENGTHS] - 1), batch)

    def _outputs(self, batch: Batch, time: int, lengths: Tensor) -> Tensor:
        return read_in_windows(self.transformer, self.read(batch, time), lengths, batch[FIRST], self.positions)

    def encode(self, batch: Batch) -> Tensor:
        """The outputs at each sequence's events, pooled: float [rows, width]."""
        return self.pooling(self.outputs(batch), batch)

    @property
    def on_host(self) -> Callable[[Batch], Batch]:
        """See `ubp.training.model.SequenceModel.on_host`."""
        return with_targets

    def weight(self, batch: Batch) -> Tensor:
        """The events that another one follows: a scalar."""
        return real_targets(batch).sum().float()


def _time_of(batch: Batch) -> int:
    """Places of a batch's columns, which stand before everything else."""
    return next(iter(batch.values())).shape[1]
