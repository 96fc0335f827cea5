"""Clusters of item names and groups of prices: fitted to what clients met, and found for any sku afterwards."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Self

import numpy as np
import numpy.typing as npt
import polars as pl
from threadpoolctl import threadpool_limits

from ubp.data import schema
from ubp.data.history import ChallengeData
from ubp.data.name_clusters import Codes, nearest, one_hot
from ubp.data.reading import collect

CLUSTER, PRICE_GROUP = "cluster", "price_group"

_EVENTS: Final = "events"


@dataclass(frozen=True)
class ItemGroups:
    """What a sku's cluster and price group are found by.

    Attributes:
        centres: float32 [clusters, 16 × 256], of names as one-hot codes by position; cluster 0 has the most names.
        limits: int64 [groups - 1], ascending: group i has the price buckets above limit i - 1, up to limit i.
    """

    centres: npt.NDArray[np.float32]
    limits: npt.NDArray[np.int64]

    @classmethod
    def fit(
        cls,
        history: ChallengeData,
        counts: Sequence[pl.DataFrame],
        clusters: int,
        price_groups: int,
        most_skus: int,
        seed: int,
    ) -> Self:
        """From the item events of all clients.

        Args:
            history: with the properties of the skus.
            counts: as `item_events` gives them, of shards of the history; one at least.
            clusters: at most; fewer where there are fewer different names.
            price_groups: at most, of about as many events each; fewer where there are fewer different prices.
            most_skus: that the clusters are fitted to; those with the most events.
            seed: of k-means.
        """
        counted = pl.concat(counts).lazy().group_by(schema.SKU).agg(pl.col(_EVENTS).sum())
        items = collect(counted.join(history.properties(), on=schema.SKU))
        prices = items.group_by(schema.PRICE).agg(pl.col(_EVENTS).sum()).sort(schema.PRICE)
        often = items.sort(_EVENTS, schema.SKU, descending=[True, False]).head(most_skus)
        limits = equal_groups(prices[schema.PRICE].to_numpy(), prices[_EVENTS].to_numpy(), price_groups)
        return cls(name_centres(often[schema.NAME].to_numpy(), clusters, seed), limits)

    def of(self, history: ChallengeData) -> pl.DataFrame:
        """``sku``, ``category``, ``price``, ``cluster`` and ``price_group`` of each sku with properties."""
        items = collect(history.properties())
        clusters = nearest(self.centres, items[schema.NAME].to_numpy())
        groups = np.searchsorted(self.limits, items[schema.PRICE].to_numpy(), side="left")
        return items.select(
            schema.SKU,
            schema.CATEGORY,
            schema.PRICE,
            pl.Series(CLUSTER, clusters, pl.Int64),
            pl.Series(PRICE_GROUP, groups, pl.Int64),
        )


def item_events(history: ChallengeData) -> pl.DataFrame:
    """``sku`` and ``events``, how many item events there are about it."""
    met = pl.concat([history.events(event_type).select(schema.SKU) for event_type in history.item_types])
    return collect(met.group_by(schema.SKU).agg(pl.len().cast(pl.Int64).alias(_EVENTS)))


def name_centres(codes: Codes, clusters: int, seed: int) -> npt.NDArray[np.float32]:
    """Centres of a k-means over names: float32 [at most so many clusters, 16 × 256], that of the most names first.

    Codes are labels, not quantities: each position is one-hot, so two names are the further apart the more positions
    they differ in.

    Args:
        codes: uint8 [names, 16], at least one name.
        clusters: at most.
        seed: of k-means (mini-batches: Sculley, "Web-Scale K-Means Clustering", 2010).
    """
    from sklearn.cluster import MiniBatchKMeans

    wanted = min(clusters, len(np.unique(codes, axis=0)))
    with threadpool_limits(1):  # sums in one order: the same bits on any machine's number of cores
        fitted = MiniBatchKMeans(wanted, batch_size=4_096, n_init=3, random_state=seed).fit(one_hot(codes))
    centres: npt.NDArray[np.float32] = fitted.cluster_centers_.astype(np.float32)
    sizes = np.bincount(nearest(centres, codes), minlength=wanted)
    return np.ascontiguousarray(centres[np.argsort(-sizes, kind="stable")])


def equal_groups(values: npt.NDArray[np.int64], weights: npt.NDArray[np.integer], groups: int) -> npt.NDArray[np.int64]:
    """Limits between groups of about one weight each: int64 [at most groups - 1], ascending, each once.

    Args:
        values: ascending, each once.
        weights: of each.
        groups: at most.
    """
    up_to = np.cumsum(weights, dtype=np.float64)
    wanted = up_to[-1] * np.arange(1, groups) / groups
    limits = np.unique(values[np.searchsorted(up_to, wanted, side="left")]).astype(np.int64)
    found: npt.NDArray[np.int64] = limits[limits < values[-1]]
    return found
