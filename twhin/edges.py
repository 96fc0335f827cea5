"""Clients and the items that they put into the cart or bought: the edges of a bipartite graph, as flat arrays.

An edge is a client, a sku and a type of event, however often that event occurred. Nothing is kept a client: rows are
numbers, int32, and a client's own items lie side by side behind an offset. At the challenge's size, 1.5 million clients
with some 5 million edges, that is 9 bytes an edge for what is drawn, 4 for what is masked and 8 a client: 80 MB.
"""

import logging
from dataclasses import dataclass
from functools import cached_property
from typing import Final, Self

import numpy as np
import numpy.typing as npt
import polars as pl
import torch

from ubp.blocks.fitted import Clients
from ubp.data import schema
from ubp.data.event_types import chosen
from ubp.data.history import ChallengeData
from ubp.data.reading import collect
from ubp.io.errors import require, require_positive
from ubp.sequences.arrays import Int64, offsets_of, ranges
from ubp.training.model import Batch, Rows

logger = logging.getLogger(__name__)

CLIENT, ITEM, RELATION, OWN = "client", "item", "relation", "own"  # keys of a batch
OTHER_ITEM, OTHER_RELATION, OTHER = "other_item", "other_relation", "other"
WEIGHT: Final = "weight"
_LEAST: Final = 0.005  # weight of the oldest edge: a client who has been away for a year is no client of zeros
_DAY: Final = 86_400e6  # microseconds

Int32 = npt.NDArray[np.int32]
UInt8 = npt.NDArray[np.uint8]


@dataclass
class EdgeSettings:
    """The config's part `edges`.

    Attributes:
        types: event types that make an edge, each with a relation of its own.
        clients: the most that have a learned vector: the relevant ones and, beside them, the most active others.
        half_life: in days, after which an edge weighs half in a client's vector, by its newest event; None: all alike.
        repeats: how much more an edge weighs whose event occurred repeatedly: ``one`` (no more) or ``log1p``.
    """

    types: list[str]
    clients: int
    half_life: float | None
    repeats: str

    def __post_init__(self) -> None:
        """Refuse what makes no sense.

        Raises:
            UserError: no event type, one given twice, or a number out of its range.
        """
        require(bool(self.types), "edges.types", self.types, "event types about items")
        require(len(set(self.types)) == len(self.types), "edges.types", self.types, "each once")
        require_positive(self, "edges", "clients")
        require(self.half_life is None or self.half_life > 0, "edges.half_life", self.half_life, "above 0, or null")
        require(self.repeats in ("one", "log1p"), "edges.repeats", self.repeats, "one or log1p")


def edges_of(history: ChallengeData, settings: EdgeSettings, clients: Clients | None) -> pl.DataFrame:
    """The edges before the history's ``as_of``, each once: sorted by client, sku and relation.

    Args:
        history: what is known.
        settings: which events count.
        clients: int64; None for all.

    Returns:
        ``client_id``, ``sku`` Int64, ``relation`` UInt8 (the place of the edge's type among the settings') and
        ``weight`` Float32.

    Raises:
        UserError: an edge of what is no event type of the log, or of one that is not about items.
    """
    events = _events(history, settings, clients)
    age = (pl.lit(history.as_of) - pl.col(schema.TIMESTAMP).max()).dt.total_microseconds() / _DAY
    weight = (
        pl.lit(1.0)
        if settings.half_life is None
        else pl.max_horizontal(pl.lit(0.5) ** (age / settings.half_life), _LEAST)
    )
    if settings.repeats == "log1p":
        weight = weight * pl.len().log1p() / np.log(2)
    return collect(
        events.group_by(schema.CLIENT_ID, schema.SKU, RELATION)
        .agg(weight.cast(pl.Float32).alias(WEIGHT))
        .sort(schema.CLIENT_ID, schema.SKU, RELATION)
    )


def _events(history: ChallengeData, settings: EdgeSettings, clients: Clients | None) -> pl.LazyFrame:
    frames = [
        history.events(event_type, clients).with_columns(pl.lit(place, pl.UInt8).alias(RELATION))
        for place, event_type in enumerate(chosen("edges.types", settings.types, history.item_types))
    ]
    return pl.concat(frames)


def clients_to_train(history: ChallengeData, settings: EdgeSettings) -> Clients:
    """The relevant clients with an edge and, up to the settings' number, those others with the most events.

    Returns:
        int64, ascending; more than the settings' number only where there are more relevant ones.
    """
    counts = _events(history, settings, None).group_by(schema.CLIENT_ID).agg(count=pl.len())
    relevant = pl.LazyFrame({schema.CLIENT_ID: history.relevant_clients, "relevant": True})
    known = collect(
        counts.join(relevant, on=schema.CLIENT_ID, how="left").with_columns(pl.col("relevant").fill_null(False))
    )
    most = max(settings.clients, int(known["relevant"].sum()))
    kept = known.sort("relevant", "count", schema.CLIENT_ID, descending=[True, True, False]).head(most)
    return np.sort(kept[schema.CLIENT_ID].to_numpy())


@dataclass(frozen=True)
class Graph:
    """Edges by numbers.

    Attributes:
        clients: int64 [clients], ascending.
        skus: int64 [skus], ascending.
        rows: int32 [edges], ascending, each edge's client by its place.
        columns: int32 [edges], ascending within a client, each edge's sku by its place.
        relations: uint8 [edges].
        weights: float32 [edges].
    """

    clients: Clients
    skus: Int64
    rows: Int32
    columns: Int32
    relations: UInt8
    weights: npt.NDArray[np.float32]

    @classmethod
    def of(cls, edges: pl.DataFrame) -> Self:
        """From `edges_of`."""
        clients, rows = np.unique(edges[schema.CLIENT_ID].to_numpy(), return_inverse=True)
        skus, columns = np.unique(edges[schema.SKU].to_numpy(), return_inverse=True)
        return cls(
            clients,
            skus,
            rows.astype(np.int32),
            columns.astype(np.int32),
            edges[RELATION].to_numpy(writable=True),
            edges[WEIGHT].to_numpy(writable=True),
        )

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def offsets(self) -> Int64:
        """Where each client's edges begin: int64 [clients + 1]."""
        return offsets_of(np.bincount(self.rows, minlength=len(self.clients)).astype(np.int64))

    @property
    def begins_pair(self) -> npt.NDArray[np.bool_]:
        """Whether an edge is the first of its client and sku, which have one for each relation: bool [edges]."""
        first = np.ones(len(self), bool)
        first[1:] = (np.diff(self.rows) != 0) | (np.diff(self.columns) != 0)
        return first

    def part(self, edges: Rows) -> Self:
        """Only some edges, int64 ascending; clients and skus keep their numbers."""
        return type(self)(
            self.clients, self.skus, self.rows[edges], self.columns[edges], self.relations[edges], self.weights[edges]
        )


@dataclass(frozen=True)
class EdgeSource:
    """Edges as a `ubp.training.model.Source`: a row is an edge.

    Attributes:
        graph: all edges.
        known: those that are learned from: the items of these are nobody's negatives. Others are not looked at: an
            edge that is kept apart may be drawn as a negative, as it would be if it were none.
        negatives: edges of a batch whose items are the other edges' negatives, at most: the first ones.
        others: further edges of its client that a batch has beside each edge, drawn by their weights; 0 for none.
    """

    graph: Graph
    known: Graph
    negatives: int
    others: int = 0

    @property
    def lengths(self) -> Rows:
        """See `ubp.training.model.Source`: an edge is an edge."""
        return np.ones(len(self.graph), np.int64)

    @cached_property
    def _own(self) -> tuple[Int64, Int32]:
        """Each client's own items, whatever the relation, and where they begin."""
        known = self.known
        first = known.begins_pair
        counts = np.bincount(known.rows[first], minlength=len(known.clients)).astype(np.int64)
        return offsets_of(counts), known.columns[first]

    def batch(self, rows: Rows, generator: np.random.Generator | None = None) -> Batch:
        """Some edges.

        Returns:
            ``client``, ``item`` and ``relation`` int64 [rows]; ``own`` bool [rows, negatives]: whether the item of one
            of the first edges is no negative: it is the edge's own, or the edge's client has an edge to it. With
            others, see `others_of`.
        """
        graph = self.graph
        clients, items = graph.rows[rows], graph.columns[rows]
        others = items[: self.negatives]
        return {
            CLIENT: torch.from_numpy(clients.astype(np.int64)),
            ITEM: torch.from_numpy(items.astype(np.int64)),
            RELATION: torch.from_numpy(graph.relations[rows].astype(np.int64)),
            OWN: torch.from_numpy(self.own(clients, others) | (items[:, None] == others)),
            **(self.others_of(clients, items, generator) if self.others else {}),
        }

    @cached_property
    def _weights(self) -> tuple[Int64, npt.NDArray[np.float64]]:
        """Where each client's known edges begin, and the sum of all weights before each edge."""
        sums = np.concatenate([np.zeros(1), np.cumsum(self.known.weights, dtype=np.float64)])
        return self.known.offsets, sums

    def others_of(self, clients: Int32, items: Int32, generator: np.random.Generator | None) -> dict[str, torch.Tensor]:
        """Known edges of some clients, drawn by their weights, an edge perhaps repeatedly.

        Args:
            clients: int32 [rows].
            items: int32 [rows], what is asked of each: no edge to it counts.
            generator: None: spread evenly over the weights instead.

        Returns:
            ``other_item`` and ``other_relation`` int64 [rows, others]; ``other`` bool [rows, others]: whether it
            counts: none does of a client that has no edge but to the item that is asked for.
        """
        known, (offsets, sums) = self.known, self._weights
        first, behind = offsets[clients][:, None], offsets[clients + 1][:, None]
        shape = (len(clients), self.others)
        even = np.broadcast_to((np.arange(self.others) + 0.5) / self.others, shape)
        shares = even if generator is None else generator.random(shape)
        drawn = np.searchsorted(sums, sums[first] + shares * (sums[behind] - sums[first]), side="right") - 1
        drawn = np.minimum(drawn, behind - 1)  # rounding may lead one too far
        there = np.broadcast_to(first < behind, shape)
        found, relations = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        found[there], relations[there] = known.columns[drawn[there]], known.relations[drawn[there]]
        return {
            OTHER_ITEM: torch.from_numpy(found),
            OTHER_RELATION: torch.from_numpy(relations),
            OTHER: torch.from_numpy(there & (found != items[:, None])),
        }

    def own(self, clients: Int32, items: Int32) -> npt.NDArray[np.bool_]:
        """Whether clients have edges to items: int32 [rows] and int32 [columns] to bool [rows, columns]."""
        offsets, own = self._own
        asked, row_of = np.unique(clients, return_inverse=True)
        lengths = offsets[asked + 1] - offsets[asked]
        found = own[ranges(offsets[asked], lengths)]
        return among(found, lengths, items, len(self.graph.skus))[row_of]


def among(found: Int32, lengths: Int64, asked: Int32, most: int) -> npt.NDArray[np.bool_]:
    """Which of some numbers are in each of several lists.

    Args:
        found: int32, the lists one after the other.
        lengths: int64 [lists].
        asked: int32 [asked], a number may occur repeatedly; one below 0 is in no list.
        most: what all numbers are below.

    Returns:
        bool [lists, asked].
    """
    wanted, column_of = np.unique(asked, return_inverse=True)
    place = np.full(most, -1, np.int32)
    real = wanted >= 0
    place[wanted[real]] = np.flatnonzero(real)
    columns = place[found]
    there = columns >= 0
    grid = np.zeros((len(lengths), len(wanted)), bool)
    grid[np.repeat(np.arange(len(lengths)), lengths)[there], columns[there]] = True
    return grid[:, column_of]
