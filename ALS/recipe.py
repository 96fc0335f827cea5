"""Clients' factors of implicit ALS over client × category or client × url, for any client on any day.

What is fitted and kept are the items' factors, alpha and regularization (`ALS.model`). A client's vector is the
solution of its own least squares against the fitted items: by its weights up to the day, whether or not it was in the
fit. A client of the fit gets its vector in the same way, so the command's embedding too holds recalculated factors,
and vectors of different days can be compared. Items that the fit did not know are left out.
"""

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Self

import numpy as np
import numpy.typing as npt
import polars as pl
from scipy.sparse import csr_matrix

from ALS.model import AlsSettings, Strength, client_factors, factorise, factors_of
from ubp.blocks.fitted import Clients, FittedBlock, State, Vectors
from ubp.blocks.widths import cut_line
from ubp.cli.recipe import Fit, Need, Recipe
from ubp.data import schema
from ubp.data.event_types import chosen
from ubp.data.history import ChallengeData, of_clients
from ubp.data.lacking import no_events
from ubp.data.pair_counts import PROCESS, READ, PairCounts
from ubp.data.reading import collect
from ubp.data.schema import EventType
from ubp.io.errors import UserError, require

logger = logging.getLogger(__name__)

_WEIGHT = "weight"
_FITTED: Final = 24  # bytes of a pair while it is fitted: the weights by client and by item
_ITEMS = {schema.CATEGORY: "categories", schema.PRICE: "price buckets", schema.SKU: "skus", schema.URL: "urls"}


@dataclass(frozen=True)
class Interactions:
    """What is factorised.

    Attributes:
        column: the items: ``category``, ``sku`` or ``url``.
        weights: event type to the weight of one event; weights of a client and an item add up.
        relevant_only: fit without the events of clients that need no profile.
        transform: of the summed weight: ``none`` or ``log1p``.
    """

    column: str
    weights: dict[str, float]
    relevant_only: bool
    transform: str

    def __post_init__(self) -> None:
        """Refuse what does not exist.

        Raises:
            UserError: an unknown transform, or no event type.
        """
        require(bool(self.weights), "interactions.weights", "{}", "the weight of one event type at least")
        require(self.transform in ("none", "log1p"), "interactions.transform", self.transform, "none or log1p")

    def event_types(self, known: Sequence[EventType]) -> tuple[EventType, ...]:
        """Those that have a weight.

        Args:
            known: the log's.

        Raises:
            UserError: the log has no such type, or its events do not have the column.
        """
        found = chosen("interactions.weights", self.weights, known)
        for event_type in found:
            if self.column != event_type.subject and not (self.in_properties and event_type.has_sku):
                raise UserError(f"interactions.column={self.column}: events of {event_type} have no such column")
        return found

    @property
    def in_properties(self) -> bool:
        """Whether the items are found by the skus' properties, not by the events."""
        return self.column in (schema.CATEGORY, schema.PRICE)


def summed_weights(data: ChallengeData, settings: Interactions, clients: Clients | None) -> pl.LazyFrame:
    """``client_id``, ``item`` and ``weight`` Float32, each pair once; the weights of its events are added up.

    Args:
        data: the history.
        settings: which events count, and how much.
        clients: int64; None for all.
    """
    frames = [
        _items(data, event_type, settings).with_columns(pl.lit(settings.weights[event_type], pl.Float64).alias(_WEIGHT))
        for event_type in settings.event_types(data.event_types)
    ]
    events = pl.concat(frames)
    if clients is not None:
        events = of_clients(events, clients)
    weight = pl.col(_WEIGHT).log1p() if settings.transform == "log1p" else pl.col(_WEIGHT)
    summed = events.group_by(schema.CLIENT_ID, "item").agg(pl.col(_WEIGHT).sum())
    return summed.with_columns(weight.cast(pl.Float32))


def _items(data: ChallengeData, event_type: EventType, settings: Interactions) -> pl.LazyFrame:
    events = data.with_properties(event_type) if settings.in_properties else data.events(event_type)
    return events.select(schema.CLIENT_ID, item=pl.col(settings.column))


@dataclass(frozen=True)
class WeightedInteractions:
    """A sparse matrix and what its rows and columns are.

    Attributes:
        matrix: float32 [clients, items].
        clients: int64 [clients], ascending.
        items: int64 [items], ascending.
    """

    matrix: csr_matrix
    clients: Clients
    items: npt.NDArray[np.int64]


def weighted_interactions(data: ChallengeData, settings: Interactions) -> WeightedInteractions:
    """The matrix to factorise: of all clients, or of the relevant ones.

    Raises:
        NoUsableEvents: there are no events.
    """
    relevant = data.relevant_clients if settings.relevant_only else None
    # Sorted, so that the same history gives the same matrix and the same seed the same factors.
    summed = collect(summed_weights(data, settings, relevant)).sort(schema.CLIENT_ID, "item")
    if summed.is_empty():
        raise no_events(data, settings.weights)
    items, columns = np.unique(summed["item"].to_numpy(), return_inverse=True)
    clients, matrix = _matrix(summed, columns, len(items))
    return WeightedInteractions(matrix, clients, items.astype(np.int64))


def _matrix(summed: pl.DataFrame, columns: npt.NDArray[np.integer], items: int) -> tuple[Clients, csr_matrix]:
    """The clients, ascending, and their weights float32 [clients, items]."""
    clients, rows = np.unique(summed[schema.CLIENT_ID].to_numpy(), return_inverse=True)
    return clients, csr_matrix((summed[_WEIGHT].to_numpy(), (rows, columns)), (len(clients), items))


@dataclass(frozen=True)
class AlsBlock(FittedBlock):
    """Fitted items.

    Attributes:
        interactions: which events count, and how much.
        items: int64 [items], ascending.
        factors: float32 [items, factors].
        strength: that they were fitted with.
        threads: of the CPU; 0 for all cores.
    """

    interactions: Interactions
    items: npt.NDArray[np.int64]
    factors: npt.NDArray[np.float32]
    strength: Strength
    threads: int

    def vectors(self, history: ChallengeData, clients: Clients) -> tuple[Clients, Vectors]:
        """See `ubp.blocks.fitted.FittedBlock.vectors`; a client has a vector if it met an item of the fit."""
        known = pl.LazyFrame({"item": self.items, "column": np.arange(len(self.items))})
        summed = collect(summed_weights(history, self.interactions, clients).join(known, on="item")).sort(
            schema.CLIENT_ID, "column"
        )
        found, matrix = _matrix(summed, summed["column"].to_numpy(), len(self.items))
        return found, client_factors(matrix, self.factors, self.strength, self.threads)

    def state(self) -> State:
        """See `ubp.blocks.fitted.FittedBlock.state`."""
        settings = {
            "interactions": asdict(self.interactions),
            "strength": asdict(self.strength),
            "threads": self.threads,
        }
        return State(settings, {"factors": self.factors}, {"items": pl.DataFrame({"item": self.items})})

    @classmethod
    def from_state(cls, state: State) -> Self:
        """See `ubp.blocks.fitted.FittedBlock.from_state`."""
        return cls(
            Interactions(**state.settings["interactions"]),
            state.tables["items"]["item"].to_numpy(),
            state.arrays["factors"],
            Strength(**state.settings["strength"]),
            state.settings["threads"],
        )


def memory_of(found: PairCounts, factors: int) -> int:
    """Bytes that the command takes on a CPU at its peak, about.

    The larger of two moments, beside the process: all pairs as a table, while it becomes a matrix; or the matrix, and
    the factors of both sides in float32, each twice while the first ones are drawn. Up to a third more than commands
    held that were measured (tests/ALS/test_als_recipe.py).

    Args:
        found: of the events that it is fitted to.
        factors: columns of the embedding.
    """
    read = READ * found.pairs
    fitted = _FITTED * found.pairs + 2 * 4 * factors * (found.clients + found.items)
    return PROCESS + max(read, fitted)


@dataclass(frozen=True)
class AlsRecipe(Recipe):
    """The settings of both ALS blocks."""

    interactions: Interactions
    als: AlsSettings

    def fit(self, history: ChallengeData, seed: int, folder: Path) -> Fit:  # noqa: ARG002 (takes seconds to minutes)
        """See `ubp.cli.recipe.Recipe.fit`."""
        found = weighted_interactions(history, self.interactions)
        self._say_if_cut(found)
        factors = factorise(found.matrix, self.als, seed)
        block = AlsBlock(self.interactions, found.items, factors.items, factors.strength, self.als.threads)
        columns = {"columns_asked": self.als.factors, "columns": factors.items.shape[1]}
        return Fit(block, asdict(factors.strength) | columns)

    def need(self, history: ChallengeData) -> Need:
        """See `ubp.cli.recipe.Recipe.need` and `memory_of`."""
        frames = [_items(history, event_type, self.interactions)
                  for event_type in self.interactions.event_types(history.event_types)]  # fmt: skip
        events = pl.concat(frames)
        if self.interactions.relevant_only:
            events = of_clients(events, history.relevant_clients)
        found = PairCounts.of(events)
        items, factors = _ITEMS.get(self.interactions.column, "items"), self.als.factors
        return Need(memory_of(found, factors), f"{found.words(items)}, {factors} factors", "als.factors")

    def _say_if_cut(self, found: WeightedInteractions) -> None:
        sides = {"clients": len(found.clients), _ITEMS.get(self.interactions.column, "items"): len(found.items)}
        side = min(sides, key=lambda name: sides[name])
        asked, made = self.als.factors, factors_of(found.matrix, self.als)
        if made < asked:
            logger.warning(cut_line("als.factors", asked, f"{made} {side} in the history", f"{made} factors"))
