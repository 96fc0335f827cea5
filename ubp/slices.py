"""Sequences for models that say the next event: random slices to train on, the newest events to encode."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ubp.errors import require, require_positive
from ubp.sequences import Selection, gather
from ubp.training import LENGTHS, Batch, Rows

FIRST = "first"  # key of a batch
LAST, SUM = "last", "sum"  # kinds of profiles


@dataclass
class SliceSettings:
    """How many events a model reads.

    Attributes:
        shortest: of a slice in training, at the least.
        longest: and at the most.
        newest: of those that make the profile, at the most.
    """

    shortest: int
    longest: int
    newest: int

    def __post_init__(self) -> None:
        """Refuse numbers that make no sense.

        Raises:
            UserError: a number out of its range.
        """
        require_positive(self, "sequences", "shortest")
        require(self.longest >= self.shortest, "sequences.longest", self.longest, "at least sequences.shortest")
        require(self.newest >= self.longest, "sequences.newest", self.newest, "at least sequences.longest")


@dataclass(frozen=True)
class Slices:
    """Clients' events, a slice of each gathered at a time.

    A batch holds each column as [rows, time], padding behind the end, and

    - ``lengths`` int64 [rows], the events of each slice;
    - ``first`` int64 [rows], the position that a model gives to a slice's first event.

    In training a length is drawn for the batch, so that little of it is padding, and for each client where its
    slice begins. Such a slice holds one event more than it is long: the one that is to be said last. The
    position of its first event is drawn too, so that all of the ``newest`` positions are trained alike: without
    that, the last ones, where profiles are read, hardly ever were.

    Attributes:
        clients: int64 [rows], ascending.
        starts: int64 [rows], each client's first event in the columns.
        events: int64 [rows], how many it has.
        columns: by name, [events]; integers are tokens, floats are numbers.
        settings: how long the slices are.
    """

    clients: npt.NDArray[np.int64]
    starts: npt.NDArray[np.int64]
    events: npt.NDArray[np.int64]
    columns: Mapping[str, npt.NDArray[Any]]
    settings: SliceSettings

    @classmethod
    def of(cls, chosen: Selection, columns: Mapping[str, npt.NDArray[Any]], settings: SliceSettings) -> "Slices":
        """The slices of all clients of a selection; the columns are those of its events."""
        return cls(chosen.clients, chosen.starts, chosen.lengths, columns, settings)

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Events of each client that are encoded: int64 [rows]."""
        return np.minimum(self.events, self.settings.newest)

    def batch(self, rows: Rows, generator: np.random.Generator | None = None) -> Batch:
        """Slices of some clients: random ones, or the newest events if there is no generator."""
        events = self.events[rows]
        if generator is None:
            lengths = np.minimum(events, self.settings.newest)
            begin, first = events - lengths, np.zeros(len(rows), np.int64)
        else:
            length = int(generator.integers(self.settings.shortest, self.settings.longest, endpoint=True))
            lengths = np.minimum(events, length + 1)
            begin = generator.integers(0, events - lengths, endpoint=True)
            first = generator.integers(0, self.settings.newest - length, size=len(rows), endpoint=True)
        columns, full = gather(self.columns, self.starts[rows] + begin, lengths).tensors()
        return {**columns, LENGTHS: full, FIRST: torch.from_numpy(first)}

    def at_least(self, events: int) -> "Slices":
        """Only clients with so many events."""
        return self._only(self.events >= events)

    def of_clients(self, clients: npt.NDArray[np.int64]) -> "Slices":
        """Only these clients."""
        return self._only(np.isin(self.clients, clients))

    def _only(self, keep: npt.NDArray[np.bool_]) -> "Slices":
        kept = (self.clients[keep], self.starts[keep], self.events[keep])
        return Slices(*kept, self.columns, self.settings)

    def events_of(self, rows: Rows) -> npt.NDArray[np.bool_]:
        """Which of the columns' events are some clients': bool [events]."""
        marks = np.zeros(len(next(iter(self.columns.values()))) + 1, dtype=np.int8)
        marks[self.starts[rows]] += 1
        ends = self.starts[rows] + self.events[rows]
        marks[ends] -= 1  # the end of one may be the start of another
        return np.cumsum(marks[:-1], dtype=np.int8).astype(bool)


def trimmed(batch: Batch) -> Batch:
    """The batch without the places that are padding in every row: a piece of a batch may need fewer of them."""
    time = int(batch[LENGTHS].max())
    return {name: values[:, :time] if values.dim() > 1 else values for name, values in batch.items()}


def profile_of(outputs: torch.Tensor, lengths: torch.Tensor, profile: str, newest: int) -> torch.Tensor:
    """One vector a sequence.

    Args:
        outputs: float [rows, time, width].
        lengths: int64 [rows], from 1 on.
        profile: ``last``: the output at the last event. ``sum``: that of all events added up, over ``newest``:
            it points where their mean does, and its length tells how many there were.
        newest: the most events of a sequence.

    Returns:
        float [rows, width].
    """
    if profile == LAST:
        return outputs[torch.arange(len(outputs), device=outputs.device), lengths - 1]
    real = torch.arange(outputs.shape[1], device=outputs.device) < lengths[:, None]
    return (outputs.float() * real[:, :, None]).sum(dim=1) / newest


def require_profile(profile: str) -> None:
    """Refuse an unknown kind of profile.

    Raises:
        UserError: it is none.
    """
    require(profile in (LAST, SUM), "model.profile", profile, f"{LAST} or {SUM}")


def real_targets(batch: Batch) -> torch.Tensor:
    """Where an event follows: bool [rows, time − 1], for the outputs at all places but the last."""
    time = next(iter(batch.values())).shape[1]
    return torch.arange(1, time, device=batch[LENGTHS].device) < batch[LENGTHS][:, None]


REAL = "real"  # key of a batch


def with_targets(batch: Batch) -> Batch:
    """`trimmed`, and ``real`` int64 [positions], the places of `real_targets` in [rows × (time − 1)], laid out flat.

    For models' `ubp.training.SequenceModel.on_host`. A batch that has them already is left as it is.
    """
    if REAL in batch:
        return batch
    batch = trimmed(batch)
    return {**batch, REAL: real_targets(batch).flatten().nonzero()[:, 0]}


def at_targets(values: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Where an event follows, of [rows, time − 1, …] that of a batch `with_targets`: [positions, …]."""
    return values.flatten(0, 1).index_select(0, batch[REAL])
