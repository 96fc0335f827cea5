"""Clients whose vectors point the same way: exact search by blocks of matrix products, and an index for other programs.

The index is USearch's (HNSW: Malkov and Yashunin 2016, arXiv 1603.09320), whose one file is read from C, C++, Rust, Go,
Java, JavaScript, C# and Swift too. Nothing here needs it but the index: the exact search is numpy's.
"""

import importlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import polars as pl

from ubp.data import schema
from ubp.data.client_names import ClientNames
from ubp.io.errors import UserError, require, require_positive
from ubp.io.files import atomic_write

RANK, NEIGHBOUR, COSINE = "rank", "neighbour", "cosine"  # columns of a table of neighbours, beside client_id
NAME, NEIGHBOUR_NAME = "original", "neighbour_original"  # and where clients have own ids

_ASKED: Final = 512  # clients that are searched for at a time
_AMONG: Final = 16_384  # clients that they are searched among at a time: 8 million cosines
_SPARE: Final = 8  # candidates beyond those asked for that are compared once more in float64
_EXACT: Final = 2**22  # numbers held in float64 at a time
_LOW: Final = np.uint64(0xFFFFFFFF)
_DTYPES: Final = ("f32", "f16", "bf16", "i8")

Ids = npt.NDArray[np.int64]
Rows = npt.NDArray[np.int64]
Vectors = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Neighbours:
    """For each of some clients those whose vectors point most nearly the same way.

    Attributes:
        clients: int64 [asked].
        neighbours: int64 [asked, k], nearest first.
        cosines: float32 [asked, k].
    """

    clients: Ids
    neighbours: Ids
    cosines: npt.NDArray[np.float32]

    def table(self, names: ClientNames) -> pl.DataFrame:
        """A row for each neighbour, nearest first: ``client_id``, ``rank`` from 1 on, ``neighbour``, ``cosine``.

        Args:
            names: the own ids, which two further columns have where there are some.
        """
        asked, k = self.neighbours.shape
        table = pl.DataFrame(
            {
                schema.CLIENT_ID: np.repeat(self.clients, k),
                RANK: np.tile(np.arange(1, k + 1, dtype=np.int32), asked),
                NEIGHBOUR: self.neighbours.reshape(-1),
                COSINE: self.cosines.reshape(-1),
            }
        )
        if names.table is None:
            return table
        own = {name: names.names(table[of].to_numpy()) for name, of in ((NAME, schema.CLIENT_ID), (NEIGHBOUR_NAME, NEIGHBOUR))}  # noqa: E501  # fmt: skip
        return table.with_columns(**own)


@dataclass(frozen=True)
class Space:
    """Clients' vectors, to be searched by the angle between them.

    Attributes:
        client_ids: int64 [clients], ascending, each once.
        vectors: float32 [clients, columns], finite.
        scales: float32 [clients], one over each vector's length; 0 for a vector of zeros, which points nowhere: such a
            client has no neighbours and is nobody's.
    """

    client_ids: Ids
    vectors: Vectors
    scales: npt.NDArray[np.float32]

    @classmethod
    def of(cls, client_ids: Ids, vectors: Vectors) -> "Space":
        """Of some clients' vectors, in any order.

        Args:
            client_ids: int64 [clients], each once.
            vectors: float32 [clients, columns], finite.
        """
        if (np.diff(client_ids) < 0).any():
            order = np.argsort(client_ids)
            client_ids, vectors = client_ids[order], vectors[order]
        scales = np.zeros(len(vectors), np.float32)
        for rows in _parts(len(vectors), _AMONG):
            lengths = np.linalg.norm(vectors[rows].astype(np.float64), axis=1)
            scales[rows] = np.divide(1, lengths, out=np.zeros_like(lengths), where=lengths > 0)
        return cls(client_ids, vectors, scales)

    @property
    def pointing(self) -> Rows:
        """Rows of the clients whose vector is not all zeros: int64, ascending."""
        return np.flatnonzero(self.scales)

    def rows_of(self, clients: Ids) -> Rows:
        """The rows of those of some clients that are here and point somewhere.

        Args:
            clients: int64 [n].

        Returns:
            int64 [m], m at most n, in the clients' order.
        """
        places = np.minimum(np.searchsorted(self.client_ids, clients), max(len(self.client_ids) - 1, 0))
        found = places[self.client_ids[places] == clients] if len(self.client_ids) else places[:0]
        return found[self.scales[found] > 0]

    def nearest(self, rows: Rows, k: int) -> Neighbours:
        """The k nearest of each client, itself left out; clients as near as one another by ascending id.

        Candidates come from float32 products; the few nearest are compared once more in float64, so that a cosine does
        not depend on who else is asked for, nor on how many threads multiplied.

        Args:
            rows: int64 [asked], of clients that point somewhere.
            k: at least 1; fewer are given where there are fewer.
        """
        some = min(k + 1 + _SPARE, len(self.pointing))
        candidates = np.empty((len(rows), some), np.int64)
        for part in _parts(len(rows), _ASKED):
            candidates[part] = self.candidates(rows[part], some)
        return self.best(rows, candidates, k)

    def best(self, rows: Rows, candidates: Rows, k: int) -> Neighbours:
        """The k nearest of each client among candidates, by cosines in float64.

        Args:
            rows: int64 [asked].
            candidates: int64 [asked, candidates], rows, in each row each once; the client itself may be among them.
            k: at least 1.
        """
        kept = min(k, len(self.pointing) - 1)
        cosines, chosen = np.empty((len(rows), kept), np.float32), np.empty((len(rows), kept), np.int64)
        step = max(_EXACT // max(candidates.shape[1] * self.vectors.shape[1], 1), 1)
        for part in _parts(len(rows), step):
            found = self._exact(rows[part], candidates[part])
            found[candidates[part] == rows[part, None]] = -np.inf
            order = np.lexsort((candidates[part], -found), axis=1)[:, :kept]
            cosines[part] = np.take_along_axis(found, order, axis=1)
            chosen[part] = np.take_along_axis(candidates[part], order, axis=1)
        return Neighbours(self.client_ids[rows], self.client_ids[chosen], cosines)

    def _exact(self, rows: Rows, candidates: Rows) -> npt.NDArray[np.float64]:
        """Cosines, float64 [asked, candidates]; numpy's own sums, whose order does not depend on the shapes."""
        own, others = self.vectors[rows].astype(np.float64), self.vectors[candidates].astype(np.float64)
        products = np.einsum("ad,acd->ac", own, others)
        lengths = np.linalg.norm(own, axis=1)[:, None] * np.linalg.norm(others, axis=2)
        cosines: npt.NDArray[np.float64] = products / np.maximum(lengths, np.finfo(np.float64).tiny)
        return cosines

    def candidates(self, rows: Rows, count: int) -> Rows:
        """The rows with the largest float32 cosines, the client's own among them: int64 [asked, count]."""
        asked = self.vectors[rows] * self.scales[rows, None]
        best = np.empty((len(rows), 0), np.uint64)
        for part in _parts(len(self.vectors), _AMONG):
            cosines = (asked @ self.vectors[part].T).astype(np.float32, copy=False)
            cosines *= self.scales[part]
            cosines[:, self.scales[part] == 0] = -np.inf
            best = _largest(np.concatenate([best, _keys(cosines, part.start)], axis=1), count)
        return (_LOW - (best & _LOW)).astype(np.int64)

    def usual_cosines(self, draws: int, seed: int) -> npt.NDArray[np.float32]:
        """Cosines of pairs of different clients drawn at random, ascending: what a cosine is to be held against.

        Args:
            draws: pairs.
            seed: of the draw.

        Returns:
            float32 [draws]; empty where no two clients point somewhere.
        """
        pointing, rng = self.pointing, np.random.default_rng(seed)
        if len(pointing) < 2:
            return np.empty(0, np.float32)
        own = rng.integers(len(pointing), size=draws)
        other = (own + rng.integers(1, len(pointing), size=draws)) % len(pointing)
        return np.sort(self._exact(pointing[own], pointing[other][:, None])[:, 0]).astype(np.float32)


def _parts(count: int, step: int) -> Iterator[slice]:
    return (slice(start, min(start + step, count)) for start in range(0, count, step))


def _keys(cosines: npt.NDArray[np.float32], first: int) -> npt.NDArray[np.uint64]:
    """Numbers whose order is that of the cosines, and among equal ones that of the rows, the first the largest.

    The bits of a float32, its sign turned about, stand in the order of its values; behind them stands the row.
    """
    bits = cosines.view(np.uint32)
    ordered = np.where(bits >> 31 == 1, ~bits, bits | np.uint32(2**31)).astype(np.uint64)
    rows = np.arange(first, first + cosines.shape[1], dtype=np.uint64)
    return ordered << np.uint64(32) | (_LOW - rows)


def _largest(keys: npt.NDArray[np.uint64], count: int) -> npt.NDArray[np.uint64]:
    """The largest of each row, in any order: [rows, at most count]."""
    if keys.shape[1] <= count:
        return keys
    return np.partition(keys, keys.shape[1] - count, axis=1)[:, -count:]


# --- the index ----------------------------------------------------------------------------------------


@dataclass
class IndexSettings:
    """How an index is built; its search is approximate.

    Attributes:
        dtype: of the vectors in it: ``f32``, ``f16``, ``bf16`` or ``i8``.
        connectivity: neighbours that a vector is linked to, on each level.
        expansion_add: vectors looked at where one is added; more: slower, better linked.
        expansion_search: vectors looked at in a search.
        threads: that build it; with one the same vectors give the same file.
    """

    dtype: str
    connectivity: int
    expansion_add: int
    expansion_search: int
    threads: int

    def __post_init__(self) -> None:
        """Refuse what makes no sense.

        Raises:
            UserError: an unknown dtype or a number below 1.
        """
        require(self.dtype in _DTYPES, "index.dtype", self.dtype, " or ".join(_DTYPES))
        require_positive(self, "index", "connectivity", "expansion_add", "expansion_search", "threads")


def usearch() -> Any:  # noqa: ANN401 (a module that may be absent)
    """USearch's module.

    Raises:
        UserError: it is missing.
    """
    try:
        return importlib.import_module("usearch.index")
    except ImportError as error:
        raise UserError("usearch is missing: pip install -e .[index], or search without an index") from error


def index_note(path: Path) -> Path:
    """Where what an index holds is said in JSON."""
    return path.with_name(f"{path.name}.json")


def write_index(space: Space, settings: IndexSettings, path: Path, made_from: dict[str, Any]) -> None:
    """Write an index of the vectors under their client ids, and beside it ``NAME.json``, which says what it holds.

    Vectors of zeros are left out.

    Args:
        space: the vectors.
        settings: how.
        path: the file.
        made_from: for the JSON: where the vectors come from.

    Raises:
        UserError: USearch is missing, or a client id is negative: the index's keys are not.
    """
    module, rows = usearch(), space.pointing
    if len(rows) and space.client_ids[rows[0]] < 0:
        raise UserError(f"index: client {space.client_ids[rows[0]]}: an index's keys cannot be negative")
    index = module.Index(ndim=space.vectors.shape[1], **_numbers(settings))
    for part in _parts(len(rows), _AMONG):
        some = rows[part]
        index.add(space.client_ids[some].astype(np.uint64), space.vectors[some], threads=settings.threads)
    with atomic_write(path) as aside:
        index.save(str(aside))
    note = {
        "library": f"usearch {importlib.import_module('usearch').__version__}",
        "metric": "cos",
        "columns": int(space.vectors.shape[1]),
        "clients": len(rows),
        "keys": schema.CLIENT_ID,
        **asdict(settings),
        "made_from": made_from,
    }
    with atomic_write(index_note(path)) as aside:
        aside.write_text(json.dumps(note, indent=2) + "\n")


def nearest_by_index(space: Space, rows: Rows, k: int, path: Path, settings: IndexSettings) -> Neighbours:
    """`Space.nearest`, from candidates that an index of the same vectors gives: faster, and not all of the nearest.

    Args:
        space: the vectors.
        rows: int64 [asked], of clients that point somewhere.
        k: at least 1.
        path: the index.
        settings: that it was built by.

    Raises:
        UserError: USearch is missing.
    """
    index = usearch().Index(ndim=space.vectors.shape[1], **_numbers(settings))
    index.load(str(path))
    some = min(k + 1 + _SPARE, len(space.pointing))
    candidates = np.empty((len(rows), some), np.int64)
    for part in _parts(len(rows), _AMONG):
        found = index.search(space.vectors[rows[part]], some, threads=settings.threads)
        keys, counts = np.atleast_2d(found.keys), np.atleast_1d(getattr(found, "counts", some))
        candidates[part] = np.searchsorted(space.client_ids, keys.astype(np.int64))
        if len(few := np.flatnonzero(counts < some)):  # the links led to no more
            candidates[part.start + few] = space.candidates(rows[part.start + few], some)
    return space.best(rows, candidates, k)


def _numbers(settings: IndexSettings) -> dict[str, Any]:
    """What an index is made with and read with."""
    return {"metric": "cos", **{key: value for key, value in asdict(settings).items() if key != "threads"}}
