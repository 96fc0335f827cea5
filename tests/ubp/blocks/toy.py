"""A fitted block small enough to see through: a client's purchases, times numbers of the fit."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from ubp.blocks.embeddings import EmbeddingTable
from ubp.blocks.fitted import FittedBlock, State, save
from ubp.data.history import ChallengeData, of_clients
from ubp.data.paths import DataPaths
from ubp.data.schema import EventType


@dataclass(frozen=True)
class Purchases(FittedBlock):
    """Three columns: how many skus, their sum and their largest, each by its weight; no row without purchases."""

    weights: np.ndarray

    def vectors(self, history, clients):
        bought = of_clients(history.events(EventType.PRODUCT_BUY), clients).group_by("client_id")
        sku = pl.col("sku")
        table = bought.agg(sku.count().alias("a"), sku.sum().alias("b"), sku.max().alias("c")).sort("client_id")
        found = table.collect()
        values = found.select("a", "b", "c").to_numpy().astype(np.float32)
        return found["client_id"].to_numpy(), np.ascontiguousarray(values * self.weights)

    def state(self):
        return State({}, {"weights": self.weights})

    @classmethod
    def from_state(cls, state):
        return cls(state.arrays["weights"])


def make_purchases(
    paths: DataPaths, weights: tuple[float, ...] = (1.0, 0.1, 2.0), submit: bool = True, name: str = "purchases"
) -> Purchases:
    """What the block's command would leave: the fitted block and the parquet of the relevant clients."""
    history = ChallengeData(paths, submit)
    fitted = Purchases(np.array(weights, np.float32))
    lineage: dict[str, Any] = {
        "name": name,
        "config": {"weights": list(weights)},
        "seed": 0,
        "fingerprint": history.fingerprint,
        "as_of": history.as_of.isoformat(sep=" "),
    }
    save(fitted, paths.model(name, submit), lineage | {"report": {"seconds": 1.5}})
    table = fitted.encode(history, history.relevant_clients)
    EmbeddingTable(table.client_ids, table.vectors, lineage | {"report": {}}).write(paths.block(name, submit))
    return fitted
