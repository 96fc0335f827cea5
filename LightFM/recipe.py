"""Clients' vectors of a hybrid factorisation of client × sku, for any client on any day.

In LightFM a client's vector is the sum of its features' vectors: one feature of its own and one for each code in its
searches. The feature of its own is learned only for clients of the training, from the pairs of that day. So the block
keeps what all clients share, and a client's own part is computed from the skus it met (`FoldIn`):

    s[u] = sum over u's positive pairs of weight × vector of the sku
    own[u] = s[u] A + c

with A and c by ridge regression of the training's clients, so that `own` is as near as can be to what was learned for
them. Each positive pair adds a step towards its sku to a client's vector, hence the sum and not the mean: how much a
client met counts as much as what. All clients are encoded in this way, those of the training too, so that vectors of
different clients and days can be compared; it also scores better than the learned vectors (docs/ablations.md).

A sku that was not in the training is described by the codes of its name alone. A client's vector is own[u], plus those
of its searches' codes, less the mean of the training's clients. Clients without a positive pair have none.

All vectors are divided by one number, so that those of the training's clients have a root mean square length of 1.
LightFM begins with vectors of length 0.04 and ends wherever its steps lead: after few of them the vectors are so
short (0.002 on a log of three purchases a client) that a reader of some hundred steps sees nothing in them.
"""

import logging
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt
import polars as pl
from scipy.sparse import coo_matrix, csr_matrix
from threadpoolctl import threadpool_limits

from LightFM.features import CODE_FEATURES, Ids, code_matrix, feature_matrix, numbers
from LightFM.model import ModelSettings, Prepared, learn
from ubp.blocks.fitted import Clients, FittedBlock, State, Vectors
from ubp.cli.recipe import Fit, Need, Recipe
from ubp.data import schema
from ubp.data.event_types import chosen
from ubp.data.history import ChallengeData, of_clients
from ubp.data.lacking import no_events
from ubp.data.pair_counts import ITEM, PROCESS, READ, PairCounts
from ubp.data.reading import collect
from ubp.io.errors import require

logger = logging.getLogger(__name__)

_NOTHING: Final = 1e-6  # sums of weights up to here are rounding: 1 - 0.5 - 0.5
_CODE: Final = 16  # bytes of a code of a search or a name, in a sparse matrix
_RIDGE: Final = 1e-3  # of the fold-in, each column at unit variance, times the clients


@dataclass(frozen=True)
class Interactions:
    """What is learned from.

    Attributes:
        weights: item event type to the weight of one event; weights of a client and a sku add up.
        transform: of a positive sum: ``none``, ``log1p`` or ``one`` (every pair weighs the same).
        scale: of what comes of it. A step of WARP weighs log(skus / draws) times the pair's weight, and LightFM
            cuts that at 10: with 65,000 skus all weights above 0.9 would be one.
        clients: who trains: ``relevant`` or ``all``; profiles are made for the relevant ones.
    """

    weights: dict[str, float]
    transform: str
    scale: float
    clients: str

    def __post_init__(self) -> None:
        """Refuse what does not exist.

        Raises:
            UserError: no weight above 0, an unknown choice.
        """
        liked = any(weight > 0 for weight in self.weights.values())
        require(liked, "interactions.weights", self.weights, "one weight above 0 at least: of what a client likes")
        require(self.transform in _TRANSFORMS, "interactions.transform", self.transform, " or ".join(_TRANSFORMS))
        require(self.scale > 0, "interactions.scale", self.scale, "above 0")
        require(self.clients in ("relevant", "all"), "interactions.clients", self.clients, "relevant or all")


_TRANSFORMS = {"none": pl.col("weight"), "log1p": pl.col("weight").log1p(), "one": pl.lit(1.0)}


@dataclass(frozen=True)
class Features:
    """What skus and clients are described by, beside the feature of their own, which weighs 1.

    Attributes:
        names: weight of the 16 codes of a sku's name together; 0 leaves them out.
        searches: weight of the codes of a client's searches together, each by its share of them; 0 leaves them
            out.
    """

    names: float
    searches: float

    def __post_init__(self) -> None:
        """Refuse numbers that make no sense.

        Raises:
            UserError: a negative weight.
        """
        for name in ("names", "searches"):
            require(getattr(self, name) >= 0, f"features.{name}", getattr(self, name), "at least 0")


def positive_pairs(data: ChallengeData, settings: Interactions, clients: Clients | None) -> pl.DataFrame:
    """``client_id``, ``sku``, ``weight`` Float32 above 0; sorted, each pair once.

    Args:
        data: the history.
        settings: which events count, and how much.
        clients: int64; None for all.

    Raises:
        UserError: a weight of what is no event type of the log, or of one that is not about items.
    """
    frames = [
        data.events(event_type).select(
            schema.CLIENT_ID, schema.SKU, weight=pl.lit(settings.weights[event_type], pl.Float64)
        )
        for event_type in chosen("interactions.weights", settings.weights, data.item_types)
    ]
    events = pl.concat(frames)
    if clients is not None:
        events = of_clients(events, clients)
    # Sorted, so that the same history gives the same matrices and the same seed the same vectors.
    summed = collect(
        events.group_by(schema.CLIENT_ID, schema.SKU).agg(pl.col("weight").sum()).sort(schema.CLIENT_ID, schema.SKU)
    )
    positive = summed.filter(pl.col("weight") > _NOTHING)
    logger.info(
        "%s pairs of a client and a sku; %s more come to nothing or less",
        f"{len(positive):,}", f"{len(summed) - len(positive):,}",
    )  # fmt: skip
    return positive.with_columns(weight=(_TRANSFORMS[settings.transform] * settings.scale).cast(pl.Float32))


def searches_of(data: ChallengeData) -> pl.LazyFrame:
    """``client_id`` and the codes of each search."""
    searches = [data.events(event_type) for event_type in data.about(schema.QUERY)]
    return pl.concat(searches).select(schema.CLIENT_ID, codes=schema.QUERY)


def names_of(data: ChallengeData) -> pl.LazyFrame:
    """``sku`` and the codes of its name."""
    return data.properties().select(schema.SKU, codes=schema.NAME)


@dataclass(frozen=True)
class Pairs:
    """Weights and what they are of: ``weights`` float32 [clients, skus], ids int64, ascending."""

    clients: Clients
    skus: Ids
    weights: coo_matrix

    @classmethod
    def of(cls, pairs: pl.DataFrame) -> Self:
        """From `positive_pairs`."""
        clients, rows = np.unique(pairs[schema.CLIENT_ID].to_numpy(), return_inverse=True)
        skus, columns = np.unique(pairs[schema.SKU].to_numpy(), return_inverse=True)
        # LightFM refuses what cannot be written; with a single thread Polars hands out its own memory.
        values = pairs["weight"].to_numpy(writable=True)
        placed = (rows.astype(np.int32), columns.astype(np.int32))
        return cls(clients, skus, coo_matrix((values, placed), (len(clients), len(skus))))


def prepare(data: ChallengeData, pairs: Pairs, settings: Features) -> Prepared:
    """The pairs and what describes both sides, as sparse matrices."""
    return Prepared(
        pairs.weights,
        feature_matrix(pairs.clients, searches_of(data), settings.searches),
        feature_matrix(pairs.skus, names_of(data), settings.names),
    )


@dataclass(frozen=True)
class FoldIn:
    """From the weighted sum of the vectors of the skus that a client met to its own part.

    Attributes:
        slope: float64 [components, components].
        intercept: float64 [components].
    """

    slope: npt.NDArray[np.float64]
    intercept: npt.NDArray[np.float64]

    @classmethod
    def fit(cls, sums: npt.NDArray[np.float64], learned: Vectors) -> Self:
        """Ridge regression (Hoerl & Kennard, 1970), each column of the sums at unit variance.

        Args:
            sums: float64 [clients, components].
            learned: float32 [clients, components], what the clients' own features learned.
        """
        centre, target = sums.mean(axis=0), learned.mean(axis=0, dtype=np.float64)
        spread = np.maximum(sums.std(axis=0), 1e-12)
        scaled = (sums - centre) / spread
        left = scaled.T @ scaled + _RIDGE * len(sums) * np.eye(scaled.shape[1])
        slope = np.linalg.solve(left, scaled.T @ (learned - target)) / spread[:, None]
        return cls(slope, target - centre @ slope)

    def __call__(self, sums: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """float64 [clients, components]."""
        return sums @ self.slope + self.intercept


@dataclass(frozen=True)
class LightFmBlock(FittedBlock):
    """What the clients share.

    Attributes:
        interactions: which events count, and how much.
        features: what skus and clients are described by.
        skus: int64, ascending, those of the training.
        sku_vectors: float32 [skus (+ 4,096), components], of the skus' own features and of their names' codes.
        search_vectors: float32 [0 or 4,096, components], of the codes of clients' searches.
        fold_in: for clients' own parts.
        mean: float64 [components], of the training's clients.
    """

    interactions: Interactions
    features: Features
    skus: Ids
    sku_vectors: Vectors
    search_vectors: Vectors
    fold_in: FoldIn
    mean: npt.NDArray[np.float64]

    def vectors(self, history: ChallengeData, clients: Clients) -> tuple[Clients, Vectors]:
        """See `ubp.blocks.fitted.FittedBlock.vectors`; a client has a vector if it has a positive pair."""
        found = positive_pairs(history, self.interactions, clients)
        if not self.features.names:  # nothing is known of other skus
            found = found.join(pl.DataFrame({schema.SKU: self.skus}), on=schema.SKU, how="semi", maintain_order="left")
        pairs = Pairs.of(found)
        raw = uncentred(
            self.fold_in, summed(pairs, self._of_skus(history, pairs.skus)), self._of_searches(history, pairs)
        )
        return pairs.clients, (raw - self.mean).astype(np.float32)

    def _of_skus(self, history: ChallengeData, skus: Ids) -> Vectors:
        """float32 [skus, components]."""
        known = np.isin(skus, self.skus)
        found = np.zeros((len(skus), self.sku_vectors.shape[1]), np.float32)
        found[known] = self.sku_vectors[numbers(self.skus, skus[known])]
        if self.features.names:
            found += code_matrix(skus, names_of(history), self.features.names) @ self.sku_vectors[len(self.skus) :]
        return found

    def _of_searches(self, history: ChallengeData, pairs: Pairs) -> Vectors | None:
        if not self.features.searches:
            return None
        codes = code_matrix(pairs.clients, searches_of(history), self.features.searches)
        found: Vectors = codes @ self.search_vectors
        return found

    def scaled(self, factor: float) -> Self:
        """The block that gives each client this one's vector times a factor."""
        return replace(
            self,
            search_vectors=self.search_vectors * np.float32(factor),
            fold_in=FoldIn(self.fold_in.slope * factor, self.fold_in.intercept * factor),
            mean=self.mean * factor,
        )

    def state(self) -> State:
        """See `ubp.blocks.fitted.FittedBlock.state`."""
        settings = {"interactions": asdict(self.interactions), "features": asdict(self.features)}
        arrays: dict[str, npt.NDArray[Any]] = {
            "sku_vectors": self.sku_vectors,
            "search_vectors": self.search_vectors,
            "slope": self.fold_in.slope,
            "intercept": self.fold_in.intercept,
            "mean": self.mean,
        }
        return State(settings, arrays, {"skus": pl.DataFrame({schema.SKU: self.skus})})

    @classmethod
    def from_state(cls, state: State) -> Self:
        """See `ubp.blocks.fitted.FittedBlock.from_state`."""
        arrays = state.arrays
        return cls(
            Interactions(**state.settings["interactions"]),
            Features(**state.settings["features"]),
            state.tables["skus"][schema.SKU].to_numpy(),
            arrays["sku_vectors"],
            arrays["search_vectors"],
            FoldIn(arrays["slope"], arrays["intercept"]),
            arrays["mean"],
        )


def summed(pairs: Pairs, sku_vectors: Vectors) -> npt.NDArray[np.float64]:
    """The weighted sums of the vectors of the skus that clients met: float64 [clients, components].

    In float64: what a client's sum is to the last bit of float32 then does not depend on the other clients.
    """
    sums: npt.NDArray[np.float64] = csr_matrix(pairs.weights, dtype=np.float64) @ sku_vectors.astype(np.float64)
    return sums


def uncentred(fold_in: FoldIn, sums: npt.NDArray[np.float64], of_searches: Vectors | None) -> npt.NDArray[np.float64]:
    """Clients' own parts and their searches: float64 [clients, components]."""
    with threadpool_limits(1, "blas"):
        own = fold_in(sums)
    return own if of_searches is None else own + of_searches


@dataclass(frozen=True)
class LightFmRecipe(Recipe):
    """The settings of the block."""

    interactions: Interactions
    features: Features
    model: ModelSettings

    def need(self, history: ChallengeData) -> Need:
        """See `ubp.cli.recipe.Recipe.need` and `memory_of`."""
        types = chosen("interactions.weights", self.interactions.weights, history.item_types)
        events = pl.concat(
            history.events(event_type).select(schema.CLIENT_ID, pl.col(schema.SKU).alias(ITEM)) for event_type in types
        )
        searches = searches_of(history)
        if self.interactions.clients == "relevant":
            events, searches = (of_clients(frame, history.relevant_clients) for frame in (events, searches))
        found = PairCounts.of(events)
        queries = int(collect(searches.select(pl.len())).item()) if self.features.searches else 0
        components = self.model.components
        words = f"{found.words('skus')}, {queries:,} searches, {components} components"
        names = found.items if self.features.names else 0
        return Need(memory_of(found, queries, names, components), words, "model.components")

    def fit(self, history: ChallengeData, seed: int, folder: Path) -> Fit:  # noqa: ARG002 (LightFM keeps no checkpoints)
        """See `ubp.cli.recipe.Recipe.fit`."""
        relevant = history.relevant_clients if self.interactions.clients == "relevant" else None
        found = positive_pairs(history, self.interactions, relevant)
        if found.is_empty():
            positive = [name for name, weight in self.interactions.weights.items() if weight > 0]
            raise no_events(history, positive, "no client has a positive weight of a sku")
        pairs = Pairs.of(found)
        prepared = prepare(history, pairs, self.features)
        learned = learn(prepared, self.model, seed)
        sums = summed(pairs, prepared.sku_features @ learned.skus)
        own, of_codes = np.split(learned.clients, [len(pairs.clients)])
        with threadpool_limits(1, "blas"):
            fold_in = FoldIn.fit(sums, own)
        searches = prepared.client_features[:, len(own) :] @ of_codes if self.features.searches else None
        raw = uncentred(fold_in, sums, searches)
        mean = raw.mean(axis=0)
        block = LightFmBlock(self.interactions, self.features, pairs.skus, learned.skus, of_codes, fold_in, mean)
        block = block.scaled(1 / root_mean_square(raw - mean))
        report = {"epochs": learned.epochs, "fold_in_r2": round(explained(fold_in(sums), own), 4)}
        return Fit(block, report)


def memory_of(found: PairCounts, queries: int, names: int, components: int) -> int:
    """Bytes that the command takes at its peak, about.

    Beside the process, the pairs and the codes, the larger of two moments: LightFM learns, which keeps a vector and two
    more of its like for each client, sku and code, in float32; or the fold-in is fitted, with what was learned and four
    matrices of the clients in float64. Up to two fifths more than commands held that were measured
    (tests/LightFM/test_lightfm_recipe.py).

    Args:
        found: of the events that it is fitted to.
        queries: searches of the training's clients; 0 where they are left out.
        names: skus of the training; 0 where their names are left out.
        components: columns of the embedding.
    """
    rows = found.clients + found.items + 2 * CODE_FEATURES
    learned, folded = 3 * 4 * rows, 4 * rows + 4 * 8 * found.clients
    return PROCESS + READ * found.pairs + _CODE * schema.CODES * (queries + names) + components * max(learned, folded)


def root_mean_square(vectors: npt.NDArray[np.float64]) -> float:
    """Of the rows' lengths; 1 where all are 0."""
    return float(np.sqrt((vectors**2).sum(axis=1).mean())) or 1.0


def explained(found: npt.NDArray[np.float64], wanted: Vectors) -> float:
    """The share of the variance of clients' learned parts that the fold-in explains; 1 where there is none."""
    variance = float(((wanted - wanted.mean(axis=0)) ** 2).sum())
    return 1 - float(((found - wanted) ** 2).sum()) / variance if variance else 1.0
