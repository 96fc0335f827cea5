"""`ubp.blocks.wide_features.WideFeatures` fitted by shards of clients, each perhaps on another machine.

Which skus, urls and other values have columns is told by sums and unions of the shards' own: the very ones of one
process. The counts' deviations come of each shard's moments. The SVDs are those of scikit-learn's `randomized_svd`
(Halko et al. 2009, arXiv 0909.4061, algorithms 4.4 and 5.1), worked out otherwise: with A the shards' matrices A_s one
above the other, what is multiplied again and again is A'A, the sum of A_s'A_s, and the directions are kept orthonormal
in between. From the same first directions both span the same space; sums here are in float64, there in float32. So
what comes out is the same up to rounding, and to the directions' signs.

Each shard's matrices are written once to a folder; what goes to and fro in it is a float64 [values, directions + 10] of
each view: 7 MB for 20,000 values and 32 directions. One shard's at a time is read and added up, in the shards' order.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import polars as pl
from scipy.sparse import csr_matrix, load_npz, save_npz

from ubp.blocks.moments import Moments, put_together
from ubp.blocks.wide_features import (
    ITEM_VIEWS,
    RECENT,
    ROUNDING,
    SVD_ITERATIONS,
    ClientItems,
    Ids,
    Matrix,
    View,
    WideFeatures,
    WideSettings,
    client_counts,
    client_query_codes,
    length,
    most_visited,
    url_visits,
    view_matrix,
)
from ubp.data import schema
from ubp.data.history import ChallengeData
from ubp.data.lacking import no_events
from ubp.data.reading import collect
from ubp.io.arrays import read_arrays, write_arrays
from ubp.io.files import atomic_write
from ubp.io.spread import Spread

Numbers = npt.NDArray[np.float64]

_OVERSAMPLES: Final = 10  # directions more than asked for, as scikit-learn has it
_ADVICE: Final = "give the command again"
_SKUS, _URLS, _MADE, _GIVEN = "skus.parquet", "urls.parquet", "made.npz", "given.npz"
_CLIENTS: Final = "clients"
_NOTHING: Final = 1e-13  # of the largest square: what is smaller is float64's rounding


@dataclass(frozen=True)
class _Share:
    """One shard's part of the fit.

    Attributes:
        view: the history of its clients.
        clients: int64, ascending: its relevant clients with an event.
        settings: of the features.
        folder: for what it keeps from step to step.
    """

    view: ChallengeData
    clients: Ids
    settings: WideSettings
    folder: Path


@dataclass(frozen=True)
class _Met:
    """What a shard's clients met.

    Attributes:
        counts: by column of `client_counts`, of its one column.
        values: by view, int64, ascending; of skus and urls, which are many, there are tables in the folder.
    """

    counts: dict[str, Moments]
    values: dict[str, Ids]


def features_by_shards(
    history: ChallengeData,
    views: Sequence[ChallengeData],
    seed: int,
    settings: WideSettings,
    listed: Mapping[str, Ids],
    spread: Spread,
    folder: Path,
) -> WideFeatures:
    """What `WideFeatures.fit` makes of the relevant clients, up to rounding and the directions' signs.

    Args:
        history: of all clients.
        views: the same of each shard's.
        seed: of the SVDs.
        settings: how.
        listed: see `WideFeatures`.
        spread: does what is done for each shard.
        folder: on the data path, for what the shards keep; the caller removes it.

    Raises:
        NoUsableEvents: no relevant client has an event.
    """
    found = spread("finding clients", [_Clients(view) for view in views])
    if not any(map(len, found)):
        raise no_events(history, ())
    shares = [
        _Share(view, clients, settings, folder / f"{number:04d}")
        for number, (view, clients) in enumerate(zip(views, found, strict=True))
        if len(clients)
    ]
    span = length(history)
    met = spread("finding what clients met", [_Meeting(share, span) for share in shares])
    counts = put_together((name, moments) for own in met for name, moments in own.counts.items())
    scales = {name: float(np.sqrt(moments.variance[0])) for name, moments in counts.items()}
    values = _values([own.values for own in met], [share.folder for share in shares], settings)
    spread("filling matrices of what clients met", [_Matrices(share, values) for share in shares])
    directions = _Svds(shares, {name: len(own) for name, own in values.items()}, settings, seed, spread, folder)()
    return WideFeatures(
        settings,
        span,
        {name: scale for name, scale in scales.items() if scale > ROUNDING},
        {name: View(values[name], own) for name, own in directions.items() if own.shape[1]},
        {column: own for column, own in listed.items() if len(own)},
    )


# What a shard does


@dataclass(frozen=True)
class _Clients:
    view: ChallengeData

    def __call__(self) -> Ids:
        return self.view.clients


@dataclass(frozen=True)
class _Meeting:
    """Finds what a shard's clients met, and how the counts are spread.

    Attributes:
        share: whose.
        span: days of the whole history.
    """

    share: _Share
    span: float

    def __call__(self) -> _Met:
        view, clients, settings = self.share.view, self.share.clients, self.share.settings
        table = client_counts(view, clients, settings, self.span)
        counts = {name: Moments.of(table.select(name).to_numpy()) for name in table.columns}
        items = ClientItems.of(view, clients, settings)
        skus = pl.DataFrame({schema.SKU: items.items[schema.SKU], _CLIENTS: items.amounts[None].getnnz(axis=0)})
        _write_table(skus, self.share.folder / _SKUS)
        _write_table(collect(url_visits(view, clients)), self.share.folder / _URLS)
        values = {name: items.values(name, settings.most_values) for name in ITEM_VIEWS if name != schema.SKU}
        values[schema.QUERY] = np.flatnonzero(client_query_codes(view, clients).getnnz(axis=0))
        return _Met(counts, values)


@dataclass(frozen=True)
class _Matrices:
    """Writes a shard's matrix of each view.

    Attributes:
        share: whose.
        values: of all shards', by view.
    """

    share: _Share
    values: dict[str, Ids]

    def __call__(self) -> None:
        view, clients, settings = self.share.view, self.share.clients, self.share.settings
        items = ClientItems.of(view, clients, settings)
        for name, values in self.values.items():
            matrix = view_matrix(name, values, items, view, clients, settings)
            with atomic_write(_matrix_file(self.share, name)) as aside, aside.open("wb") as file:
                save_npz(file, matrix, compressed=False)


@dataclass(frozen=True)
class _Product:
    """Multiplies what lies in the folder of all shards by a shard's matrices, into its own folder.

    Attributes:
        share: whose.
        rows: where the numbers are the clients', not the values': which of them are this shard's.
        given: the file with the numbers by view.
    """

    share: _Share
    rows: Ids | None
    given: Path

    def __call__(self) -> None:
        made = {}
        with np.load(self.given, allow_pickle=False) as given:
            for name in given.files:
                matrix = csr_matrix(load_npz(_matrix_file(self.share, name)), dtype=np.float64)
                numbers = matrix @ given[name] if self.rows is None else given[name][self.rows]
                made[name] = matrix.T @ numbers
        write_arrays(self.share.folder / _MADE, made)


def _matrix_file(share: _Share, name: str) -> Path:
    return share.folder / f"{name}.npz"


def _write_table(table: pl.DataFrame, file: Path) -> None:
    with atomic_write(file) as aside:
        table.write_parquet(aside)


# What is made of it


def _values(found: Sequence[Mapping[str, Ids]], folders: Sequence[Path], settings: WideSettings) -> dict[str, Ids]:
    """The values of each view that has any, in the order of `ubp.blocks.wide_features.VIEWS`: int64, ascending."""
    clients = _summed([folder / _SKUS for folder in folders], schema.SKU, _CLIENTS)
    often = collect(clients.sort(_CLIENTS, schema.SKU, descending=[True, False]).head(settings.most_values))
    by_view = {schema.SKU: np.sort(often[schema.SKU].to_numpy())}
    for name in (*ITEM_VIEWS[1:], schema.QUERY):
        by_view[name] = np.unique(np.concatenate([own[name] for own in found]))
    visits = _summed([folder / _URLS for folder in folders], schema.URL, "visits")
    by_view[schema.URL] = most_visited(visits, settings.most_values)
    order = [*ITEM_VIEWS, *(f"{RECENT}{name}" for name in ITEM_VIEWS), schema.URL, schema.QUERY]
    every = {name: by_view[name.removeprefix(RECENT)] for name in order}
    return {name: values for name, values in every.items() if len(values)}


def _summed(files: list[Path], key: str, amount: str) -> pl.LazyFrame:
    return pl.scan_parquet(files, glob=False).group_by(key).agg(pl.col(amount).cast(pl.Int64).sum())


@dataclass(frozen=True)
class _Svds:
    """The right singular vectors of the shards' matrices, one above the other, of all views at once.

    Attributes:
        shares: of the shards with clients.
        values: number of them, by view.
        settings: of the features.
        seed: of the first directions.
        spread: does the products.
        folder: see `features_by_shards`.
    """

    shares: list[_Share]
    values: dict[str, int]
    settings: WideSettings
    seed: int
    spread: Spread
    folder: Path

    def __call__(self) -> dict[str, Matrix]:
        """By view: float32 [values, directions], as `ubp.blocks.wide_features.right_directions` has them."""
        drawn = {name: self._drawn(values) for name, values in self.values.items()}
        # scikit-learn draws on the shorter side: where that is the clients', it multiplies once more.
        of_clients = {name: numbers for name, numbers in drawn.items() if self._clients < self.values[name]}
        directions = {**drawn, **self._multiplied(of_clients, by_clients=True)}
        for _ in range(SVD_ITERATIONS):
            directions = {name: np.linalg.qr(own)[0] for name, own in self._multiplied(directions).items()}
        products = self._multiplied(directions)
        return {
            name: _right(directions[name], products[name], numbers.shape[1] - _OVERSAMPLES, name in of_clients)
            for name, numbers in drawn.items()
        }

    @property
    def _clients(self) -> int:
        return sum(len(share.clients) for share in self.shares)

    def _drawn(self, values: int) -> Numbers:
        """The first directions: float64 [the shorter of clients and values, directions]."""
        from sklearn.utils import check_random_state

        directions = min(self.settings.components, self._clients, values) + _OVERSAMPLES
        drawn: Numbers = check_random_state(self.seed).normal(size=(min(self._clients, values), directions))
        return drawn

    def _multiplied(self, given: Mapping[str, Numbers], by_clients: bool = False) -> dict[str, Numbers]:
        """A'A times the numbers, or A' times those of clients: float64 [values, directions] by view."""
        if not given:
            return {}
        write_arrays(self.folder / _GIVEN, given)
        every = np.sort(np.concatenate([share.clients for share in self.shares]))
        rows = [np.searchsorted(every, share.clients) if by_clients else None for share in self.shares]
        pieces = [_Product(*each, self.folder / _GIVEN) for each in zip(self.shares, rows, strict=True)]
        self.spread("multiplying what clients met", pieces)
        summed: dict[str, Any] = dict.fromkeys(given, 0.0)
        for share in self.shares:
            for name, own in read_arrays(share.folder / _MADE, list(given), _ADVICE).items():
                summed[name] = summed[name] + own
        return summed


def _right(directions: Numbers, products: Numbers, most: int, by_clients: bool) -> Matrix:
    """Right singular vectors of A from orthonormal directions Z and A'A Z.

    With S = Z'A'A Z = W L W': where the first directions were the clients', those of A Z Z', which are Z W. Else those
    of the projection of A on the span of A Z, one step nearer: the left ones of A'A Z W / sqrt(L).

    Args:
        directions: float64 [values, directions].
        products: the same of A'A times them.
        most: so many.
        by_clients: which of the two.

    Returns:
        float32 [values, at most so many], by descending singular value, each one's largest number above 0; what is
        below `ROUNDING` of the largest singular value is left out.
    """
    squares, turned = np.linalg.eigh(directions.T @ products)
    squares, turned = squares[::-1], turned[:, ::-1]
    known = squares > squares[0] * _NOTHING
    if by_clients:
        right, singular = directions @ turned[:, known], np.sqrt(squares[known])
    else:
        right, singular, _ = np.linalg.svd(products @ turned[:, known] / np.sqrt(squares[known]), full_matrices=False)
    right = right[:, :most][:, singular[:most] > singular[:1] * ROUNDING]
    largest = np.abs(right).argmax(axis=0)
    return np.ascontiguousarray(right * np.sign(right[largest, np.arange(right.shape[1])]), dtype=np.float32)
