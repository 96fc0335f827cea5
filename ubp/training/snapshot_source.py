"""What fitted blocks knew of clients on many days, and what came after each: on disk, gathered by row.

A folder for each snapshot, written once: a run that was killed takes up where it stopped, and memory does not grow
with the number of snapshots. A row is a client on a day.
"""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from ubp.blocks.fitted import FittedBlock, Vectors, portions
from ubp.data.history import ChallengeData
from ubp.data.labels import LabelSpace, WindowLabels, labels
from ubp.data.snapshots import Clients, Snapshot
from ubp.io.arrays import append_array, save_array, write_header
from ubp.io.files import atomic_write
from ubp.training.model import Batch, Rows

logger = logging.getLogger(__name__)

LABELS: Final = "labels"
CLIENTS: Final = "clients"
# What a window has one number a client of, and what stands where the log has no such events.
CHURN, BOUGHT, ADDED, BASKETS, DAYS, CENSORED = "churn", "bought", "added", "baskets", "days_to_purchase", "censored"
SCALARS: Final = (CHURN, BOUGHT, ADDED, BASKETS, DAYS, CENSORED)
VIEWS: Final = 2  # of a client with some of its events masked

_NOTE, _CLIENTS, _SCALARS, _PLACES, _OFFSETS = (
    *("snapshot.json", "clients.npy", "scalars.npy", "places.npy", "offsets.npy"),
)


@dataclass(frozen=True)
class MaskSettings:
    """Further views of a client, for which some of its events are masked.

    Attributes:
        share: of the events that a view does not see; 0 for no views.
        seed: of the draw.
    """

    share: float
    seed: int


def view_name(block: str, view: int) -> str:
    """Key of a batch: a block's vectors of a view."""
    return f"{block}:{view}"


@dataclass(frozen=True)
class SnapshotSource:
    """A `ubp.training.model.Source` whose rows are clients on days, one snapshot after the other.

    Attributes:
        folders: of the snapshots, from the earliest to the latest.
        blocks: whose vectors a batch has.
        width: labels of a row.
        views: further views of a client in a batch: 0 or `VIEWS`.
    """

    folders: tuple[Path, ...]
    blocks: tuple[str, ...]
    width: int
    views: int

    @cached_property
    def sizes(self) -> Rows:
        """Rows of each snapshot: int64 [snapshots]."""
        return np.array([json.loads((folder / _NOTE).read_text())["clients"] for folder in self.folders], np.int64)

    @cached_property
    def starts(self) -> Rows:
        """Each snapshot's first row, and the end of the last: int64 [snapshots + 1]."""
        return np.concatenate([np.zeros(1, np.int64), np.cumsum(self.sizes)])

    @property
    def lengths(self) -> Rows:
        """See `ubp.training.model.Source`: one token each."""
        return np.ones(int(self.starts[-1]), np.int64)

    @property
    def clients(self) -> Rows:
        """See `ubp.training.model.ClientSource`: a client is there once for each snapshot that knows it."""
        return np.concatenate([np.load(folder / _CLIENTS) for folder in self.folders])

    def rows_of(self, snapshot: int) -> Rows:
        """The rows of a snapshot, by its place: int64."""
        return np.arange(self.starts[snapshot], self.starts[snapshot + 1])

    def batch(self, rows: Rows, generator: np.random.Generator | None = None) -> Batch:
        """Vectors, labels and scalars of some rows.

        Args:
            rows: int64 [rows].
            generator: given in training: then the views are in the batch too.

        Returns:
            A block's name: float32 [rows, columns]. `LABELS`: uint8 [rows, labels]. Each of `SCALARS`: float32 [rows].
            With views, in training: `view_name` too, and `CLIENTS`, each row's client: int64 [rows].
        """
        views = self.views if generator is not None else 0
        names = [*self.blocks, *(view_name(block, view) for block in self.blocks for view in range(views))]
        gathered = {name: np.empty((len(rows), self.columns(name)), np.float32) for name in names}
        asked = np.zeros((len(rows), self.width), np.uint8)
        scalars = np.empty((len(rows), len(SCALARS)), np.float32)
        clients = np.empty(len(rows) if views else 0, np.int64)
        for number, places, inside in self._by_snapshot(rows):
            part = self._parts[number]
            for name in names:
                gathered[name][places] = part.vectors(name)[inside]
            scalars[places] = part.scalars[inside]
            if views:
                clients[places] = part.clients[inside]
            part.fill(asked, places, inside)
        found = {name: torch.from_numpy(values) for name, values in gathered.items()}
        found[LABELS] = torch.from_numpy(asked)
        if views:
            found[CLIENTS] = torch.from_numpy(clients)
        return found | {name: torch.from_numpy(scalars[:, place].copy()) for place, name in enumerate(SCALARS)}

    def columns(self, name: str) -> int:
        """Of a block's vectors, or of a view of them."""
        return int(self._parts[0].vectors(name).shape[1])

    def sample(self, name: str, most: int, seed: int, rows: Rows) -> Vectors:
        """Vectors of a block for at most so many of some rows, drawn by the seed: float32 [rows, columns]."""
        if len(rows) > most:
            rows = np.sort(np.random.default_rng(seed).choice(rows, most, replace=False))
        found = np.empty((len(rows), self.columns(name)), np.float32)
        for number, places, inside in self._by_snapshot(rows):
            found[places] = self._parts[number].vectors(name)[inside]
        return found

    def label_counts(self, rows: Rows) -> Rows:
        """In how many of some rows each label is 1: int64 [labels]."""
        counts = np.zeros(self.width, np.int64)
        for number, _, inside in self._by_snapshot(rows):
            counts += self._parts[number].counts(inside, self.width)
        return counts

    def _by_snapshot(self, rows: Rows) -> Iterator[tuple[int, Rows, Rows]]:
        """For each snapshot of some rows: its place, their places among the rows, their places in it."""
        owners = np.searchsorted(self.starts, rows, side="right") - 1
        for number in np.unique(owners):
            places = np.flatnonzero(owners == number)
            yield int(number), places, rows[places] - self.starts[number]

    @cached_property
    def _parts(self) -> "list[_Part]":
        return [_Part(folder) for folder in self.folders]

    def __getstate__(self) -> dict[str, object]:
        """Without the open files: each process that gathers batches opens its own."""
        return {name: value for name, value in self.__dict__.items() if name not in ("_parts", "sizes", "starts")}


class _Part:
    """One snapshot's folder, memory-mapped."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._vectors: dict[str, Vectors] = {}
        self.clients: Rows = np.load(folder / _CLIENTS, mmap_mode="r")
        self.scalars: npt.NDArray[np.float32] = np.load(folder / _SCALARS, mmap_mode="r")
        self._places: npt.NDArray[np.int32] = np.load(folder / _PLACES, mmap_mode="r")
        self._offsets: npt.NDArray[np.int64] = np.load(folder / _OFFSETS)

    def vectors(self, name: str) -> Vectors:
        """Of a block, or of a view: float32 [clients, columns]."""
        if name not in self._vectors:
            self._vectors[name] = np.load(self._folder / f"{name}.npy", mmap_mode="r")
        return self._vectors[name]

    def fill(self, asked: npt.NDArray[np.uint8], places: Rows, inside: Rows) -> None:
        """Set the labels of clients to 1 in some rows of a matrix."""
        lengths = self._offsets[inside + 1] - self._offsets[inside]
        asked[np.repeat(places, lengths), self._labels(inside, lengths)] = 1

    def counts(self, inside: Rows, width: int) -> Rows:
        """Of each label over some clients: int64 [labels]."""
        found = self._labels(inside, self._offsets[inside + 1] - self._offsets[inside])
        return np.bincount(found, minlength=width).astype(np.int64)

    def _labels(self, inside: Rows, lengths: Rows) -> npt.NDArray[np.int32]:
        """The labels of some clients, one client after the other."""
        ends = np.cumsum(lengths)
        numbers = np.arange(ends[-1] if len(ends) else 0) + np.repeat(self._offsets[inside] - ends + lengths, lengths)
        places: npt.NDArray[np.int32] = self._places[numbers]
        return places


def prepare(
    snapshots: Sequence[Snapshot],
    space: LabelSpace,
    blocks: Mapping[str, FittedBlock],
    folder: Path,
    masks: MaskSettings | None = None,
) -> SnapshotSource:
    """Encode the clients of each snapshot as of its day, label its window, and keep both.

    Args:
        snapshots: from the earliest to the latest.
        space: the labels.
        blocks: that encode, by name.
        folder: for what is kept; the same for the same history, blocks and settings: what is there already is taken.
        masks: further views of each client; None for none.
    """
    folders = []
    for number, snapshot in enumerate(snapshots, start=1):
        part = folder / f"{snapshot.day:%Y-%m-%d_%H-%M-%S}"
        if not (part / _NOTE).exists():
            with atomic_write(part) as aside:
                aside.mkdir()
                _write(snapshot, space, blocks, aside, masks)
            logger.info("snapshot %d of %d: %s", number, len(snapshots), snapshot.day)
        folders.append(part)
    width = sum(len(group.values) for group in space.groups)
    return SnapshotSource(tuple(folders), tuple(blocks), width, VIEWS if masks else 0)


def _write(
    snapshot: Snapshot, space: LabelSpace, blocks: Mapping[str, FittedBlock], folder: Path, masks: MaskSettings | None
) -> None:
    clients, known = snapshot.clients, snapshot.history
    views = [known.masked(masks.share, masks.seed + view) for view in range(VIEWS)] if masks else []
    for name, block in blocks.items():
        _write_vectors(block, known, clients, folder / f"{name}.npy")
        for view, masked in enumerate(views):
            _write_vectors(block, masked, clients, folder / f"{view_name(name, view)}.npy")
    save_array(folder / _CLIENTS, clients)
    _write_labels(labels(snapshot, space), folder)
    (folder / _NOTE).write_text(json.dumps({"clients": len(clients)}))


def _write_vectors(block: FittedBlock, history: ChallengeData, clients: Clients, file: Path) -> None:
    """What ``np.save`` writes of `vectors_of`, with no more in memory than the block encodes at a time."""
    with file.open("wb") as target:
        for part in portions(len(clients), block.at_a_time):
            vectors = vectors_of(block, history, clients[part])
            if part.start == 0:
                shape = (len(clients), vectors.shape[1])
                write_header(target, vectors.dtype, shape)
            append_array(target, vectors)


def vectors_of(block: FittedBlock, history: ChallengeData, clients: Clients) -> Vectors:
    """A block's vectors of some clients, zeros for those that it has none of: float32 [clients, columns]."""
    known, vectors = block.vectors(history, clients)
    if len(known) == len(clients):
        return vectors
    filled = np.zeros((len(clients), vectors.shape[1]), np.float32)
    filled[np.searchsorted(clients, known)] = vectors
    return filled


def _write_labels(window: WindowLabels, folder: Path) -> None:
    from scipy.sparse import csr_matrix, hstack

    count = len(window.clients)
    absent = np.full(count, np.nan, np.float32)
    scalars = {
        CHURN: window.churn,
        BOUGHT: window.bought,
        ADDED: absent if window.added is None else window.added,
        BASKETS: window.baskets,
        DAYS: window.days_to_purchase,
        CENSORED: window.censored,
    }
    save_array(folder / _SCALARS, np.stack([scalars[name].astype(np.float32) for name in SCALARS], axis=1))
    groups = list(window.groups.values())
    whole = hstack(groups, format="csr") if groups else csr_matrix((count, 0), dtype=np.uint8)
    whole.sort_indices()
    save_array(folder / _PLACES, whole.indices.astype(np.int32))
    save_array(folder / _OFFSETS, whole.indptr.astype(np.int64))
