"""Hybrid factorisation of client × sku with WARP; skus described by their names, clients by their searches.

    python LightFM/lightfm_train.py                            -> lightfm
    python LightFM/lightfm_train.py submit=False model.threads=1    the same bits each time

A client's vector is the sum of its features' vectors (Kula, "Metadata Embeddings for User and Item Cold-start
Recommendations", 2015): one feature of its own and one for each code in its searches. A sku is the sum of one
of its own and one for each code of its name. A code is a label: position i with code c is a feature of its own
(16 × 256 of them a side), never a number. The features' weights are not normalised to a sum of 1, as the
library's builders would by themselves: that would make every step a fraction of what it should be
(docs/ablations.md). The library is ``lightfm-next``, the kept fork of LightFM.

What a removal does. WARP (Weston, Bengio and Usunier, "WSABIE", 2011) knows positive pairs only; its negatives
are skus drawn among all that the client has no pair with. What LightFM makes of a negative number is no dislike:
an interaction of -0.5 is skipped by the training and, being in the matrix, never drawn as a negative either, so
that it would protect the sku it should count against; a positive pair with a sample weight of -0.5 has its step
reversed, away from the margin that ends a step, so that it never comes to rest. So a removal counts before the
loss sees it: weights of a client and a sku add up, a pair that comes to more than nothing is positive with that
weight, and a pair that does not is left out, which makes its sku a negative like any other.

The vector is the embedding without the client's bias. 64 columns are the published size, and the bias is no
taste: WARP compares skus of one client, which a client's bias moves alike; what LightFM still subtracts from it
at each step only counts the client's steps, and `stat_features` counts events better.

From each vector the mean of all is taken off. What all clients have in common says that some skus are popular,
nothing of any client; but it is most of a vector's length (0.9 of it on the demo), and a merge that sets vectors
to length 1 would leave little else (docs/ablations.md).

Clients without a positive pair are left out. With ``model.threads=1`` the same seed gives the same bits; more
threads write to the same vectors without locks (Hogwild), and their order is nobody's.
"""

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import polars as pl
from omegaconf import DictConfig
from scipy.sparse import coo_matrix, csr_matrix

from ubp.cli.command import command
from ubp.cli.config import parse
from ubp.cli.run import embedding_run
from ubp.data import schema
from ubp.data.history import ChallengeData
from ubp.data.reading import collect
from ubp.data.schema import EventType
from ubp.io import machine
from ubp.io.errors import UserError, require, require_positive

if TYPE_CHECKING:
    from lightfm.data import Dataset

logger = logging.getLogger(__name__)

_NOTHING = 1e-6  # sums of weights up to here are rounding: 1 - 0.5 - 0.5


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
            UserError: no item event type, an unknown choice.
        """
        known = [event_type.value for event_type in schema.ITEM_EVENTS]
        for name in self.weights:
            require(name in known, "interactions.weights", name, f"of {', '.join(known)}")
        require(bool(self.weights), "interactions.weights", "{}", "the weight of one item event type at least")
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


@dataclass(frozen=True)
class ModelSettings:
    """Numbers of the factorisation; see LightFM's documentation. ``threads``: 0 for `machine.threads`."""

    components: int
    loss: str
    epochs: int
    learning_schedule: str
    learning_rate: float
    item_alpha: float
    user_alpha: float
    max_sampled: int
    threads: int

    def __post_init__(self) -> None:
        """Refuse numbers that make no sense.

        Raises:
            UserError: a number out of its range, an unknown choice.
        """
        # k-OS WARP takes no weights, and the logistic loss needs negatives, of which there are none here.
        require(self.loss in ("warp", "bpr"), "model.loss", self.loss, "warp or bpr")
        schedules = ("adagrad", "adadelta")
        require(
            self.learning_schedule in schedules,
            "model.learning_schedule",
            self.learning_schedule,
            " or ".join(schedules),
        )
        require_positive(self, "model", "components", "epochs", "max_sampled")
        require(self.learning_rate > 0, "model.learning_rate", self.learning_rate, "above 0")
        for name in ("item_alpha", "user_alpha", "threads"):
            require(getattr(self, name) >= 0, f"model.{name}", getattr(self, name), "at least 0")


@dataclass(frozen=True)
class Prepared:
    """What LightFM learns from; rows and columns are those of `mapping`.

    Attributes:
        mapping: the library's, of client ids, skus and features to numbers.
        weights: float32 [clients, skus], a positive weight for each pair.
        client_features: float32 [clients, client features].
        sku_features: float32 [skus, sku features].
    """

    mapping: "Dataset"
    weights: coo_matrix
    client_features: csr_matrix
    sku_features: csr_matrix

    @property
    def clients(self) -> npt.NDArray[np.int64]:
        """int64 [clients], in the order of the rows."""
        clients, _, _, _ = self.mapping.mapping()
        return np.fromiter(clients, np.int64, len(clients))


def weighted_pairs(data: ChallengeData, settings: Interactions) -> pl.DataFrame:
    """The positive pairs: ``client_id``, ``sku``, ``weight`` Float32 above 0; sorted, each pair once.

    Raises:
        UserError: there are none.
    """
    frames = [
        data.events(EventType(name)).select(schema.CLIENT_ID, schema.SKU, weight=pl.lit(weight, pl.Float64))
        for name, weight in settings.weights.items()
    ]
    events = pl.concat(frames)
    if settings.clients == "relevant":
        events = data.of_relevant(events)
    # Sorted, so that the same history gives the same matrices and the same seed the same vectors.
    summed = collect(
        events.group_by(schema.CLIENT_ID, schema.SKU).agg(pl.col("weight").sum()).sort(schema.CLIENT_ID, schema.SKU)
    )
    positive = summed.filter(pl.col("weight") > _NOTHING)
    if positive.is_empty():
        raise UserError(f"{data.folder}: no client has a sku with a positive weight; this embedding needs some")
    logger.info(
        "%s pairs of a client and a sku; %s more come to nothing or less",
        f"{len(positive):,}", f"{len(summed) - len(positive):,}",
    )  # fmt: skip
    return positive.with_columns(weight=(_TRANSFORMS[settings.transform] * settings.scale).cast(pl.Float32))


def prepare(data: ChallengeData, pairs: pl.DataFrame, settings: Features) -> Prepared:
    """The pairs and what describes both sides, as sparse matrices."""
    mapping = fit_mapping(pairs, settings)
    clients, client_features, skus, sku_features = mapping.mapping()
    rows = numbers(clients, pairs[schema.CLIENT_ID].to_numpy())
    columns = numbers(skus, pairs[schema.SKU].to_numpy())
    # LightFM refuses what cannot be written; with a single thread Polars hands out its own memory.
    values = pairs["weight"].to_numpy(writable=True)
    weights = coo_matrix((values, (rows, columns)), mapping.interactions_shape())
    searches = data.events(EventType.SEARCH_QUERY).select(schema.CLIENT_ID, codes=schema.QUERY)
    names = data.properties().select(schema.SKU, codes=schema.NAME)
    return Prepared(
        mapping,
        weights,
        feature_matrix(clients, client_features, searches, settings.searches),
        feature_matrix(skus, sku_features, names, settings.names),
    )


def fit_mapping(pairs: pl.DataFrame, settings: Features) -> "Dataset":
    """LightFM's own mapping of ids and features to numbers; a code's feature is called ``(position, code)``."""
    from lightfm.data import Dataset  # two seconds, which a block that is there does not need

    codes = [(position, code) for position in range(schema.CODES) for code in range(schema.CODE_BOOK)]
    mapping = Dataset()
    mapping.fit(
        pairs[schema.CLIENT_ID].unique(maintain_order=True).to_list(),
        pairs[schema.SKU].unique().sort().to_list(),
        codes if settings.searches else None,
        codes if settings.names else None,
    )
    return mapping


def numbers(mapping: Mapping[Any, int], ids: npt.NDArray[np.int64]) -> npt.NDArray[np.int32]:
    """The numbers that a mapping of LightFM gives ids, int32 as its loops want them.

    Raises:
        KeyError: an id is not in the mapping.
    """
    known = np.fromiter(mapping, np.int64, len(mapping))
    values = np.fromiter(mapping.values(), np.int32, len(mapping))
    order = np.argsort(known)
    found = order[np.searchsorted(known, ids, sorter=order).clip(max=len(known) - 1)]
    if (known[found] != ids).any():
        raise KeyError(f"{(known[found] != ids).sum():,} ids are not in the mapping")
    placed: npt.NDArray[np.int32] = values[found]
    return placed


def feature_matrix(
    ids: Mapping[Any, int], features: Mapping[Any, int], codes: pl.LazyFrame, weight: float
) -> csr_matrix:
    """What LightFM sums up for each id: a feature of its own, and those of its codes.

    Args:
        ids: the library's mapping of ids to rows.
        features: the library's mapping of features to columns: ids, and ``(position, code)`` if weight is not 0.
        codes: first column ids, then ``codes`` Array(UInt8, 16); any ids, any number of rows for one.
        weight: of an id's codes together; the feature of its own weighs 1.

    Returns:
        float32 [ids, features]. Each position has a 16th of the weight, shared by an id's codes there as often
        as each occurs.
    """
    own = np.fromiter(ids, np.int64, len(ids))
    rows = [numbers(ids, own)]
    columns = [numbers({name: number for name, number in features.items() if not isinstance(name, tuple)}, own)]
    values = [np.ones(len(own), np.float32)]
    if weight:
        shares = code_shares(codes, own)
        rows.append(numbers(ids, shares["id"].to_numpy()))
        columns.append(_code_columns(features)[shares["position"].to_numpy(), shares["code"].to_numpy()])
        values.append(shares["share"].to_numpy() * np.float32(weight / schema.CODES))
    placed = (np.concatenate(rows), np.concatenate(columns))
    return csr_matrix((np.concatenate(values), placed), (len(ids), len(features)))


def _code_columns(features: Mapping[Any, int]) -> npt.NDArray[np.int32]:
    """int32 [positions, codes]: the columns of the codes' features."""
    return np.array(
        [[features[position, code] for code in range(schema.CODE_BOOK)] for position in range(schema.CODES)], np.int32
    )


def code_shares(codes: pl.LazyFrame, ids: npt.NDArray[np.int64]) -> pl.DataFrame:
    """How clients' searches, or skus' names, spread over the codes.

    Args:
        codes: see `feature_matrix`.
        ids: int64, those that are asked for, each once.

    Returns:
        ``id``, ``position`` and ``code`` UInt8, ``share`` Float32: the shares of an id's codes at one position
        add up to 1. Sorted. An id without codes has no rows.
    """
    named = codes.rename({codes.collect_schema().names()[0]: "id"})
    known = collect(named.join(pl.LazyFrame({"id": ids}), on="id", how="semi")).lazy()
    counted = pl.concat(
        known.group_by("id", code=pl.col("codes").arr.get(position))
        .agg(count=pl.len())
        .with_columns(position=pl.lit(position, pl.UInt8))
        for position in range(schema.CODES)
    )
    share = (pl.col("count") / pl.col("count").sum().over("id", "position")).cast(pl.Float32)
    return collect(counted.sort("id", "position", "code").select("id", "position", "code", share=share))


def learn(prepared: Prepared, settings: ModelSettings, seed: int) -> npt.NDArray[np.float32]:
    """Learn the factorisation; the clients' side: float32 [clients, components], in the order of the rows.

    Raises:
        UserError: it diverges, as with settings that overflow.
    """
    from lightfm import LightFM

    model = LightFM(
        no_components=settings.components,
        loss=settings.loss,
        learning_schedule=settings.learning_schedule,
        learning_rate=settings.learning_rate,
        item_alpha=settings.item_alpha,
        user_alpha=settings.user_alpha,
        max_sampled=settings.max_sampled,
        random_state=seed,
    )
    weights, threads = prepared.weights, settings.threads or machine.threads()
    positive = coo_matrix((np.ones(weights.nnz, np.float32), (weights.row, weights.col)), weights.shape)
    for epoch in range(1, settings.epochs + 1):
        started = time.perf_counter()
        try:
            with np.errstate(invalid="ignore"):  # it looks for infinities by adding them up
                model.fit_partial(
                    positive,
                    user_features=prepared.client_features,
                    item_features=prepared.sku_features,
                    sample_weight=weights,
                    num_threads=threads,
                )
        except ValueError as error:  # what LightFM says of vectors that are no longer finite
            raise UserError(f"model: {error}; try a smaller learning_rate or transform=log1p") from error
        logger.info("epoch %d of %d: %.1f s", epoch, settings.epochs, time.perf_counter() - started)
    _, vectors = model.get_user_representations(prepared.client_features)
    return np.asarray(vectors, dtype=np.float32)


def centred(vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The vectors less their mean: float32 [clients, components]."""
    mean = vectors.mean(axis=0, dtype=np.float64)  # a million float32 in a row lose digits
    return np.asarray(vectors - mean, dtype=np.float32)


@command("LightFM", "lightfm_train")
def main(config: DictConfig) -> None:
    interactions, features = parse(Interactions, config, at="interactions"), parse(Features, config, at="features")
    settings = parse(ModelSettings, config, at="model")
    with embedding_run(config) as run:
        prepared = prepare(run.data, weighted_pairs(run.data, interactions), features)
        vectors = centred(learn(prepared, settings, run.seed))
        relevant = np.isin(prepared.clients, run.data.relevant_clients)
        run.save(prepared.clients[relevant], vectors[relevant])


if __name__ == "__main__":
    main()
