"""What is scored: a block or an entry, by its name or its path."""

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ubp.blocks.embeddings import EmbeddingTable, find_vectors, lies_at, names_in
from ubp.blocks.entry import read_entry, violations
from ubp.blocks.steps import align
from ubp.data.history import ChallengeData
from ubp.io.errors import UserError, name_some

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Profiles:
    """What is scored.

    Attributes:
        name: of the block or entry.
        path: where it lies.
        client_ids: int64 [clients].
        vectors: float32 [clients, columns].
    """

    name: str
    path: Path
    client_ids: npt.NDArray[np.int64]
    vectors: npt.NDArray[np.float32]


def load_profiles(name_or_path: str, folder: Path, data: ChallengeData) -> Profiles:
    """A block or an entry, by its name or its path.

    A block is scored over the same clients as an entry: the relevant ones with an event in the history, those
    without the block as zeros.

    Args:
        name_or_path: as the user gave it.
        folder: where names are looked up.
        data: the history.

    Raises:
        UserError: there is no such thing, or it cannot be used.
    """
    return profiles_at(find_profiles(name_or_path, folder), data)


def profiles_at(path: Path, data: ChallengeData) -> Profiles:
    """The block or entry that lies there; see `load_profiles`."""
    if path.is_dir():
        if faults := violations(path, data.relevant_clients, local=True):
            raise UserError(faults)
        client_ids, halves = read_entry(path)
        return Profiles(path.name, path, client_ids, halves.astype(np.float32))
    table = EmbeddingTable.read(path)
    if table.lineage and table.lineage.get("fingerprint") != data.fingerprint:
        logger.warning(
            "%s: made from another history than %s: if it saw the target windows, its scores mean nothing",
            path, data.folder,
        )  # fmt: skip
    return profiles_of(path.stem, table, data, path)


def profiles_of(name: str, table: EmbeddingTable, data: ChallengeData, path: Path | None = None) -> Profiles:
    """A block's vectors of the relevant clients with an event in the history, those without one as zeros.

    Args:
        name: of the block.
        table: its vectors.
        data: the history.
        path: where it lies; None for one that lies nowhere.
    """
    vectors = np.zeros((len(data.clients), table.columns), np.float32)
    rows, places = align(table, data.clients)
    vectors[places] = table.vectors[rows]
    if absent := len(data.clients) - len(places):
        logger.info("%s: %s of %s clients are without it: zeros", name, f"{absent:,}", f"{len(data.clients):,}")
    return Profiles(name, path or Path(name), data.clients, vectors)


def find_profiles(name_or_path: str, folder: Path) -> Path:
    """Where a block or an entry lies, by its name or its path.

    Raises:
        UserError: there is no such thing.
    """
    if found := find_vectors(name_or_path, [folder]):
        return found
    if lies_at(path := Path(name_or_path)):
        return path
    there = sorted(names_in(folder))
    raise UserError(
        f"embeddings={name_or_path}: neither a block or entry of {folder} nor a path of one; there are: "
        f"{name_some(there, 50) or 'none'}"
    )
