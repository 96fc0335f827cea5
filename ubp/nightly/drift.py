"""How far profiles moved since earlier ones, column by column and client by client.

Cosines are of profiles less the mean profile of the version's first night: what all profiles have in common, such as a
constant column, would hide every movement.

The population stability index of a column compares two nights' clients by the first one's deciles: Σ (q − p)·ln(q / p)
over the shares p and q of ten bins. Without any drift it is still about (bins − 1)·(1/n + 1/m) for n and m clients, as
its distribution is about that of chi-squared with bins − 1 degrees of freedom times 1/n + 1/m (Yurdakul and Naranjo,
Journal of Risk Model Validation, 2020): that much is taken off, so that few clients do not look like drift.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt

from ubp.blocks.embeddings import EmbeddingTable
from ubp.blocks.fitted import FittedBlock
from ubp.blocks.merge import FittedMerge
from ubp.io.arrays import read_arrays, write_arrays
from ubp.io.errors import require, require_positive
from ubp.nightly.profiles import BEGIN_ANEW

BINS: Final = 10
QUANTILES: Final = (0.01, 0.05, 0.25, 0.5)

Floats = npt.NDArray[np.float64]
Matrix = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class DriftSettings:
    """What is looked at, and from where on it is too much.

    Attributes:
        canaries: clients drawn on the first night, whose profiles are made every night.
        canary_cosine: below it a canary is named.
        stability: population stability index above which a column has drifted, less what chance makes of it.
        columns: share of drifted columns from which retraining is due.
        probe_drop: by how much the mean score of the probe's tasks may fall until retraining is due.
        worst: columns that are listed.
        seed: of the canaries.
    """

    canaries: int = 200
    canary_cosine: float = 0.99
    stability: float = 0.2
    columns: float = 0.2
    probe_drop: float = 0.02
    worst: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse numbers that make no sense.

        Raises:
            UserError: there are some.
        """
        require_positive(self, "drift", "canaries", "worst")
        require(0 < self.columns <= 1, "drift.columns", self.columns, "above 0, at most 1")
        for name in ("stability", "probe_drop"):
            require(getattr(self, name) > 0, f"drift.{name}", getattr(self, name), "above 0")


@dataclass(frozen=True)
class Reference:
    """The first night of a version.

    Attributes:
        mean: float64 [columns], of all profiles.
        edges: float64 [9, columns], the deciles of the clients with an event on the day.
        counts: int64 [10, columns], how many of these lie in each bin; the bins of equal deciles are empty but one.
    """

    mean: Floats
    edges: Floats
    counts: npt.NDArray[np.int64]

    @classmethod
    def of(cls, every: Matrix, of_the_day: Matrix) -> Self:
        """From profiles.

        Args:
            every: float32 [clients, columns], those of all clients.
            of_the_day: the same of the clients with an event on the day.
        """
        edges = np.quantile(of_the_day, np.arange(1, BINS) / BINS, axis=0).astype(np.float64)
        return cls(every.mean(axis=0, dtype=np.float64), edges, binned(of_the_day, edges))

    def write(self, file: Path) -> None:
        """Keep it; plain numbers."""
        write_arrays(file, {"mean": self.mean, "edges": self.edges, "counts": self.counts})

    @classmethod
    def read(cls, file: Path) -> Self:
        """What `write` kept.

        Raises:
            UserError: it cannot be read.
        """
        arrays = read_arrays(file, ("mean", "edges", "counts"), BEGIN_ANEW)
        return cls(arrays["mean"], arrays["edges"], arrays["counts"])


def binned(vectors: Matrix, edges: Floats) -> npt.NDArray[np.int64]:
    """How many values of each column lie between its edges; a value on an edge counts to the bin above.

    Args:
        vectors: float32 [clients, columns].
        edges: float64 [9, columns], ascending.

    Returns:
        int64 [10, columns].
    """
    counts = np.empty((BINS, vectors.shape[1]), np.int64)
    for column in range(vectors.shape[1]):
        places = np.searchsorted(edges[:, column], vectors[:, column], side="right")
        counts[:, column] = np.bincount(places, minlength=BINS)
    return counts


def stability(before: npt.NDArray[np.int64], now: npt.NDArray[np.int64]) -> Floats:
    """The population stability index of each column, less what chance makes of it: float64 [columns].

    Half a client more in each bin keeps the logarithm finite where one is empty. Bins that are empty in both do not
    count.

    Args:
        before: int64 [10, columns], clients in each bin.
        now: the same.
    """
    there = (before + now) > 0
    p, q = (np.where(there, counts + 0.5, 0.0) for counts in (before, now))
    totals = [np.maximum(each.sum(axis=0), 0.5) for each in (p, q)]
    p, q = p / totals[0], q / totals[1]
    terms = np.where(there, (q - p) * np.log(np.where(there, q, 1.0) / np.where(there, p, 1.0)), 0.0)
    chance = (there.sum(axis=0) - 1) * (1 / totals[0] + 1 / totals[1])
    index: Floats = terms.sum(axis=0) - chance
    return index


def cosines(one: EmbeddingTable, other: EmbeddingTable, mean: Floats) -> tuple[Ids, Floats]:
    """Of the clients that are in both, less a mean profile; 1 where both are that, 0 where one is.

    Returns:
        int64 [clients], ascending, and float64 [clients].
    """
    ids, rows, others = np.intersect1d(one.client_ids, other.client_ids, assume_unique=True, return_indices=True)
    found = np.empty(len(ids))
    for start in range(0, len(ids), 65_536):
        some = slice(start, start + 65_536)
        a, b = one.vectors[rows[some]] - mean, other.vectors[others[some]] - mean
        lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        same = (a == b).all(axis=1)
        found[some] = np.divide((a * b).sum(axis=1), lengths, out=same.astype(np.float64), where=lengths > 0)
    return ids, found


def column_names(fitted: FittedBlock, name: str, columns: int) -> list[str]:
    """What each column of a profile comes from.

    Args:
        fitted: a block or a merge.
        name: its own.
        columns: of the profile.
    """
    if isinstance(fitted, FittedMerge):
        return fitted.column_names
    own = list(fitted.descriptions())
    return [f"{name}: {column}" for column in (own if len(own) == columns else range(columns))]


@dataclass(frozen=True)
class Moved:
    """How far clients moved since their last profiles.

    Attributes:
        clients: that had one.
        quantiles: of the cosines, by `QUANTILES`; empty without clients.
    """

    clients: int
    quantiles: dict[str, float]

    @classmethod
    def of(cls, found: Floats) -> Self:
        """From cosines."""
        if not len(found):
            return cls(0, {})
        values = np.quantile(found, QUANTILES)
        return cls(len(found), {f"{at:g}": round(float(value), 4) for at, value in zip(QUANTILES, values, strict=True)})


@dataclass(frozen=True)
class Canaries:
    """How far the fixed set of clients moved since the last night.

    Attributes:
        clients: that have a profile of both nights.
        least: cosine.
        below: how many are below the limit.
        quiet_below: how many of these had no event since: nothing but the day, or a fault, moved them.
        named: ids, the quiet ones first and the farthest before, ten at most.
    """

    clients: int
    least: float
    below: int
    quiet_below: int
    named: list[int]

    @classmethod
    def of(cls, ids: Ids, found: Floats, changed: Ids, limit: float) -> Self:
        """From cosines.

        Args:
            ids: int64 [clients].
            found: float64 [clients].
            changed: the clients with an event since.
            limit: see `DriftSettings.canary_cosine`.
        """
        low = found < limit
        quiet = low & ~np.isin(ids, changed)
        order = np.lexsort((found, ~quiet))
        named = [int(ids[place]) for place in order if low[place]][:10]
        least = float(found.min(initial=1.0))
        return cls(len(ids), round(least, 4), int(low.sum()), int(quiet.sum()), named)


@dataclass(frozen=True)
class Columns:
    """Which columns drifted since the version's first night, by the clients with an event on the day.

    Attributes:
        clients: of tonight.
        drifted: columns.
        of: so many.
        worst: names and indices of those that drifted most, the worst first.
    """

    clients: int
    drifted: int
    of: int
    worst: dict[str, float]

    @classmethod
    def compared(cls, reference: Reference, tonight: Matrix, names: list[str], settings: DriftSettings) -> Self:
        """Tonight's profiles of the clients with an event on the day beside the reference."""
        index = stability(reference.counts, binned(tonight, reference.edges))
        order = np.argsort(-index, kind="stable")[: settings.worst]
        worst = {names[place]: round(float(index[place]), 3) for place in order}
        return cls(len(tonight), int((index > settings.stability).sum()), len(index), worst)

    @property
    def share(self) -> float:
        """Of the columns that drifted."""
        return self.drifted / max(self.of, 1)


@dataclass(frozen=True)
class Drift:
    """What a night found.

    Attributes:
        moved: None on a version's first night.
        canaries: the same.
        columns: the same.
        probe: see `ubp.nightly.probe`; None where it was not asked.
        due: a reason for each thing that calls for retraining.
    """

    moved: Moved | None
    canaries: Canaries | None
    columns: Columns | None
    probe: dict[str, Any] | None
    due: list[str]

    def as_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)
