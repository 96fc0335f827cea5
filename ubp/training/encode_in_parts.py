"""A fitted block's vectors worked out in parts, on as many machines as there are, and put together again.

A block that works client by client is asked shard by shard, and each part reads its shard of the events alone
(`ubp.data.shards`). A sequence model is asked batch by batch: the size and the padding of a batch may change the last
bits of its vectors, so the batches are those of all clients at once, and a part is some batches that follow one
another. Both give the bits of `ubp.blocks.fitted.FittedBlock.encode`, with as many threads and on such processors.

What has no such parts, because sequence models are inside of it (``dcn``, ``stacker``, merges), because it reads texts
in batches of its own, or because a PCA's products are rounded by their shape, is asked shard by shard too, and may
differ in the last bits.
"""

import json
import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ubp.blocks.embeddings import EmbeddingTable
from ubp.blocks.fitted import FittedBlock, described, load
from ubp.data.history import ChallengeData
from ubp.data.shards import Shard, sharded
from ubp.io.arrays import save_array
from ubp.io.files import atomic_write, digest_of
from ubp.io.spread import Spread
from ubp.sequences.batches import length_buckets
from ubp.sequences.build import events_of
from ubp.sequences.build_by_shards import built_by_shards
from ubp.training.encode import encode
from ubp.training.fitted import FittedSequenceModel

logger = logging.getLogger(__name__)

Ids = npt.NDArray[np.int64]
Vectors = npt.NDArray[np.float32]

_IDS, _VECTORS, _KNOWN = "ids.npy", "vectors.npy", "known.json"  # files of a part
_NOBODY: Final = np.empty(0, np.int64), np.empty((0, 0), np.float32)


@dataclass(frozen=True)
class InParts:
    """What is to be encoded.

    Attributes:
        model: the folder of the fitted block.
        history: all events before the day.
        clients: int64, ascending, each once; None for all with an event.
        shards: parts, about.
        folder: on the data path; parts that are done stay there until `forget`, so that a second attempt goes on.
        made_from: tells these vectors from any others, JSON values: parts of others in the folder are removed.
    """

    model: Path
    history: ChallengeData
    clients: Ids | None
    shards: int
    folder: Path
    made_from: dict[str, Any]

    def encode(self, spread: Spread) -> tuple[EmbeddingTable, int]:
        """The vectors, and how many of the clients have an event of any type.

        Args:
            spread: does the parts.

        Returns:
            A row for each client with events that the block reads, by ascending id; and the number.

        Raises:
            UserError: see `ubp.blocks.fitted.FittedBlock.vectors`.
        """
        block = load(self.model)
        name = self.model.parent.name
        parts = self._batches(block, spread) if isinstance(block, FittedSequenceModel) else self._shards(spread)
        spread(f"encoding {name}", parts)
        folders = [part.out for part in parts]
        ids, vectors = put_together(folders)
        known = sum(json.loads((folder / _KNOWN).read_text()) for folder in folders)
        lineage = {"fingerprint": self.history.fingerprint, "as_of": self.history.as_of.isoformat(sep=" ")}
        return EmbeddingTable(ids, vectors, lineage | described(block)), known

    def forget(self) -> None:
        """Remove the parts."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _parts_folder(self) -> Path:
        """The folder of these very parts; those of others go."""
        wanted = self.folder / digest_of(json.dumps(self.made_from, sort_keys=True), self.shards)
        for other in self.folder.iterdir() if self.folder.exists() else ():
            if other != wanted:
                shutil.rmtree(other, ignore_errors=True)
        return wanted

    def _shards(self, spread: Spread) -> "list[_OfShard]":
        folder = self._parts_folder()
        return [
            _OfShard(
                folder / f"{shard.number:04d}", self.model, self.history, shard,
                None if self.clients is None else shard.own(self.clients),
            )
            for shard in sharded(self.history, self.shards, spread)
        ]  # fmt: skip

    def _batches(self, block: FittedSequenceModel[Any], spread: Spread) -> "list[_OfBatches]":
        """Batches of all clients, cut into parts of about the same number of events."""
        store = built_by_shards(self.history, self.shards, spread)
        asked = store.clients if self.clients is None else self.clients
        some = [_Lengths(self.model, self.history, part) for part in np.array_split(asked, self.shards)]
        found = spread("finding the sequences' lengths", some)
        clients, lengths = (np.concatenate([each[place] for each in found]) for place in (0, 1))
        batches = length_buckets(lengths, block.runtime.batch_size, shuffle=False)
        work = np.cumsum([len(rows) * int(lengths[rows].max(initial=1)) for rows in batches])
        owner = np.minimum(work * self.shards // (work[-1] + 1), self.shards - 1) if len(work) else work
        folder, known = self._parts_folder(), sum(each[2] for each in found)
        parts = list[_OfBatches]()
        for number in np.unique(owner).tolist() or [0]:
            own = [clients[batches[place]] for place in np.flatnonzero(owner == number)]
            parts.append(_OfBatches(folder / f"{number:04d}", self.model, self.history, own, 0 if parts else known))
        return parts


@dataclass(frozen=True)
class _OfShard:
    """The clients of one shard.

    Attributes:
        out: the folder to write.
        model: of the fitted block.
        history: of all clients.
        shard: whose.
        clients: of the shard; None for all with an event.
    """

    out: Path
    model: Path
    history: ChallengeData
    shard: Shard
    clients: Ids | None

    def __call__(self) -> None:
        if not self.out.exists():
            history = self.history.of_shard(self.shard)
            known = history.seen(self.clients)
            found = load(self.model).vectors(history, known) if len(known) else _NOBODY
            _write(self.out, *found, len(known))


@dataclass(frozen=True)
class _Lengths:
    """How long some clients' sequences are.

    Attributes:
        model: of the fitted block.
        history: of all clients.
        clients: int64, ascending.
    """

    model: Path
    history: ChallengeData
    clients: Ids

    def __call__(self) -> tuple[Ids, Ids, int]:
        """The clients that have a sequence, its length, and how many have an event of any type."""
        source = _sequence_model(self.model).source(self.history, self.clients)
        return source.clients, source.lengths, len(events_of(self.history, clients=self.clients).clients)


@dataclass(frozen=True)
class _OfBatches:
    """Batches that follow one another.

    Attributes:
        out: the folder to write.
        model: of the fitted block.
        history: of all clients.
        batches: clients of each, in their order in the batch.
        known: clients with an event, noted with the part.
    """

    out: Path
    model: Path
    history: ChallengeData
    batches: Sequence[Ids]
    known: int

    def __call__(self) -> None:
        if not self.out.exists():
            if not self.batches:
                _write(self.out, *_NOBODY, self.known)
                return
            block = _sequence_model(self.model)
            asked = np.sort(np.concatenate(self.batches))
            source = block.source(self.history, asked)
            rows = [np.searchsorted(source.clients, clients) for clients in self.batches]
            _write(self.out, source.clients, encode(block.model, source, block.runtime, batches=rows), self.known)


def _sequence_model(model: Path) -> FittedSequenceModel[Any]:
    block: FittedBlock = load(model)
    if not isinstance(block, FittedSequenceModel):
        raise TypeError(f"{model}: {type(block).__name__} is no sequence model")
    return block


def _write(folder: Path, clients: Ids, vectors: Vectors, known: int) -> None:
    with atomic_write(folder) as aside:
        aside.mkdir()
        save_array(aside / _IDS, clients)
        save_array(aside / _VECTORS, vectors)
        (aside / _KNOWN).write_text(json.dumps(known))


def put_together(folders: Sequence[Path]) -> tuple[Ids, Vectors]:
    """The clients of all parts, ascending, and their vectors; a part at a time is read into one matrix.

    Returns:
        int64 [clients] and float32 [clients, columns]; parts without clients need not know the columns.
    """
    ids = [np.load(folder / _IDS) for folder in folders]
    every = np.concatenate(ids)
    order = np.argsort(every, kind="stable")
    places = np.empty(len(every), np.int64)
    places[order] = np.arange(len(every))
    parts = [np.load(folder / _VECTORS, mmap_mode="r") for folder in folders]
    vectors = np.empty((len(every), max(1, *(part.shape[1] for part in parts))), np.float32)
    end = 0
    for part in parts:
        begin, end = end, end + len(part)
        if len(part):
            vectors[places[begin:end]] = part
    return every[order], vectors
