"""Sequences for models that predict the next event: random windows to train on, the newest events to encode."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ubp.io.errors import require, require_positive
from ubp.sequences.batches import gather
from ubp.sequences.layout import DAY
from ubp.sequences.selection import Selection
from ubp.training.model import LENGTHS, Batch, Rows

FIRST, AGE = "first", "age"  # keys of a batch
LAST, SUM = "last", "sum"  # how outputs become one vector


@dataclass
class WindowSettings:
    """How many events a model reads.

    Attributes:
        shortest: of a window in training, at the least.
        longest: and at the most.
        newest: of those that are encoded, at the most.
        window: of those that the model reads at a time when it encodes, see `read_in_windows`; None: ``longest``,
            so that it attends over no more events than it was trained on.
    """

    shortest: int
    longest: int
    newest: int
    window: int | None

    def __post_init__(self) -> None:
        """Refuse numbers that make no sense.

        Raises:
            UserError: a number out of its range.
        """
        require_positive(self, "sequences", "shortest")
        require(self.longest >= self.shortest, "sequences.longest", self.longest, "at least sequences.shortest")
        require(self.newest >= self.longest, "sequences.newest", self.newest, "at least sequences.longest")
        fits = self.longest <= self.positions <= self.newest
        require(fits, "sequences.window", self.window, "from sequences.longest to sequences.newest, or null")

    @property
    def positions(self) -> int:
        """Events that the model reads at a time, at the most: it has so many positions."""
        return self.longest if self.window is None else self.window


@dataclass(frozen=True)
class Windows:
    """Clients' events, a window of each gathered at a time.

    A batch holds each column as [rows, time], padding behind the end, and

    - ``lengths`` int64 [rows], the events of each window;
    - ``first`` int64 [rows], the position that a model gives to a window's first event;
    - ``age`` float [rows, time], days from each event to the end of the history.

    In training a length is drawn for the batch, so that little of it is padding, and for each client where its
    window begins. Such a window holds one event more than it is long: the last target. The
    position of its first event is drawn too, so that all positions are trained alike: without that,
    the last ones, where vectors are read, hardly ever were.

    Attributes:
        clients: int64 [rows], ascending.
        starts: int64 [rows], each client's first event in the columns.
        events: int64 [rows], how many it has.
        columns: by name, [events]; integers are tokens, floats are numbers.
        settings: how long the windows are.
    """

    clients: npt.NDArray[np.int64]
    starts: npt.NDArray[np.int64]
    events: npt.NDArray[np.int64]
    columns: Mapping[str, npt.NDArray[Any]]
    settings: WindowSettings

    @classmethod
    def of(
        cls, chosen: Selection, columns: Mapping[str, npt.NDArray[Any]], as_of: datetime, settings: WindowSettings
    ) -> "Windows":
        """The windows of all clients of a selection; the columns are those of its events, their ages are added."""
        seconds = (as_of - chosen.sequences.start).total_seconds() - chosen.time
        ages = {AGE: (seconds / DAY).astype(np.float32)}
        return cls(chosen.clients, chosen.starts, chosen.lengths, {**columns, **ages}, settings)

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Events of each client that are encoded: int64 [rows]."""
        return np.minimum(self.events, self.settings.newest)

    def batch(self, rows: Rows, generator: np.random.Generator | None = None) -> Batch:
        """Windows of some clients: random ones, or the newest events if there is no generator."""
        events = self.events[rows]
        if generator is None:
            lengths = np.minimum(events, self.settings.newest)
            begin, first = events - lengths, np.zeros(len(rows), np.int64)
        else:
            length = int(generator.integers(self.settings.shortest, self.settings.longest, endpoint=True))
            lengths = np.minimum(events, length + 1)
            begin = generator.integers(0, events - lengths, endpoint=True)
            first = generator.integers(0, self.settings.positions - length, size=len(rows), endpoint=True)
        columns, full = gather(self.columns, self.starts[rows] + begin, lengths).tensors()
        return {**columns, LENGTHS: full, FIRST: torch.from_numpy(first)}

    def at_least(self, events: int) -> "Windows":
        """Only clients with so many events."""
        return self._only(self.events >= events)

    def of_clients(self, clients: npt.NDArray[np.int64]) -> "Windows":
        """Only these clients."""
        return self._only(np.isin(self.clients, clients))

    def _only(self, keep: npt.NDArray[np.bool_]) -> "Windows":
        kept = (self.clients[keep], self.starts[keep], self.events[keep])
        return Windows(*kept, self.columns, self.settings)

    def events_of(self, rows: Rows) -> npt.NDArray[np.bool_]:
        """Which of the columns' events are some clients': bool [events]."""
        marks = np.zeros(len(next(iter(self.columns.values()))) + 1, dtype=np.int8)
        marks[self.starts[rows]] += 1
        ends = self.starts[rows] + self.events[rows]
        marks[ends] -= 1  # the end of one may be the start of another
        return np.cumsum(marks[:-1], dtype=np.int8).astype(bool)


def trimmed(batch: Batch) -> Batch:
    """The batch without the places that are padding in every row: a micro-batch may need fewer of them."""
    time = int(batch[LENGTHS].max())
    return {name: values[:, :time] if values.dim() > 1 else values for name, values in batch.items()}


def read_in_windows(
    transformer: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    vectors: torch.Tensor,
    lengths: torch.Tensor,
    first: torch.Tensor,
    window: int,
) -> torch.Tensor:
    """Outputs of a causal model that reads so many events at a time.

    A sequence longer than a window is cut from its end: its newest ``window`` events are the last window, those
    before them the one before, and the oldest window holds the rest. Each is read on its own, from position 0
    on. So the model meets no span and no position that training had not, and the cost grows with the length,
    not its square. An output depends on no other sequence of the batch and on no padding.

    Args:
        transformer: gives outputs [rows, time, outputs] for vectors [rows, time, width] and the position of each
            row's first vector, int64 [rows].
        vectors: float [rows, time, width], padding behind the end.
        lengths: int64 [rows], the real vectors of each row; 0 is allowed.
        first: int64 [rows], positions of the first vectors; for sequences that fit into one window.
        window: vectors that are read at a time, at the most.

    Returns:
        float [rows, time, outputs]; what stands at padding means nothing.
    """
    rows, time, _ = vectors.shape
    if time <= window:
        return transformer(vectors, first)
    device = vectors.device
    counts = -(-lengths // window)
    row = torch.repeat_interleave(torch.arange(rows, device=device), counts)  # [windows], whose each is
    to_come = counts.cumsum(0)[row] - torch.arange(1, len(row) + 1, device=device)  # newer windows of the same row
    end = lengths[row] - to_come * window
    begin = (end - window).clamp(min=0)
    places = begin[:, None] + torch.arange(window, device=device)
    # Only the oldest window may be shorter. The events that follow on then fill it up: no output before sees them.
    parts = vectors[row[:, None], places]
    outputs = transformer(parts, torch.zeros_like(row))
    real = places < end[:, None]
    whole = outputs.new_zeros(rows, time, outputs.shape[-1])
    whole[row[:, None].expand_as(places)[real], places[real]] = outputs[real]
    return whole


@dataclass(frozen=True)
class Pooling:
    """How the outputs at a client's events become one vector.

    Attributes:
        profile: ``last``: the output at the last event. ``sum``: those of all events added up: its length grows with
            their number.
        newest: the most events of a sequence; a sum without a half-life is divided by it.
        half_life: in days; an event so long before the end of the history weighs half in the sum, which is
            divided by the half-life: what a client did a day, of late. None: all weigh the same.
    """

    profile: str
    newest: int
    half_life: float | None

    def __call__(self, outputs: torch.Tensor, batch: Batch) -> torch.Tensor:
        """One vector a sequence.

        Args:
            outputs: float [rows, time, width].
            batch: ``lengths`` int64 [rows], from 1 on; with a half-life ``age`` float [rows, time].

        Returns:
            float [rows, width].
        """
        lengths = batch[LENGTHS]
        if self.profile == LAST:
            return outputs[torch.arange(len(outputs), device=outputs.device), lengths - 1]
        weights = (torch.arange(outputs.shape[1], device=outputs.device) < lengths[:, None]).float()
        if self.half_life is not None:
            weights = weights * torch.exp2(-batch[AGE] / self.half_life)
        # A product and a sum, not one product of matrices: autocast would make that bfloat16.
        total = (outputs.float() * weights[:, :, None]).sum(dim=1)
        return total / (self.newest if self.half_life is None else self.half_life)


def require_pooling(profile: str, half_life: float | None) -> None:
    """Refuse an unknown way to pool and a half-life that means nothing.

    Raises:
        UserError: one of them is wrong.
    """
    require(profile in (LAST, SUM), "model.profile", profile, f"{LAST} or {SUM}")
    if half_life is not None:
        require(half_life > 0, "model.half_life", half_life, "above 0, or null")
        require(profile == SUM, "model.half_life", half_life, f"null where model.profile is not {SUM}")


def real_targets(batch: Batch) -> torch.Tensor:
    """Where an event follows: bool [rows, time − 1], for the outputs at all places but the last."""
    time = next(iter(batch.values())).shape[1]
    return torch.arange(1, time, device=batch[LENGTHS].device) < batch[LENGTHS][:, None]


REAL = "real"  # key of a batch


def with_targets(batch: Batch) -> Batch:
    """`trimmed`, and ``real`` int64 [positions], the places of `real_targets` in [rows × (time − 1)], laid out flat.

    For models' `ubp.training.model.SequenceModel.on_host`. A batch that has them already is left as it is.
    """
    if REAL in batch:
        return batch
    batch = trimmed(batch)
    return {**batch, REAL: real_targets(batch).flatten().nonzero()[:, 0]}


def at_targets(values: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Where an event follows, of [rows, time − 1, …] that of a batch `with_targets`: [positions, …]."""
    return values.flatten(0, 1).index_select(0, batch[REAL])
