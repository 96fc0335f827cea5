"""A client's vector from its edges, given the items': the same for a client of the training and any other, on any day.

Given the items' vectors, a client's part of the training's loss has one minimum. With u = scale × the client's vector,
free in length, q the vectors of items under relations, w the weights of its edges, W their sum and q' negatives drawn
once, as the training draws them, by how often they occur, without those that the client has an edge to:

    L(u) = Σ w -log σ(u q + offset) + W × weight × Σ -log(1 - σ(u q' + offset)) / negatives + penalty / 2 × u²

It is convex. It is descended with one matrix for all clients in place of L's Hessian, which is at most

    W × (1/4 + weight / 4 × mean q' q'ᵀ) + penalty

because σ' is at most 1/4 and the edges' q have length 1: so no step can overshoot (Böhning, "Multinomial logistic
regression algorithm", 1992), and a fixed number of steps gives each client the same vector whoever else is asked for.
The penalty draws towards 0 where there are few edges. What comes out has the direction of u and a length by the edges
themselves: a reader of some hundred steps needs to see how much a client met, and how lately (docs/ablations.md).
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from twhin.edges import Graph, among
from ubp.io.errors import require, require_positive
from ubp.sequences.arrays import Int64, find
from ubp.training.encode import Runtime
from ubp.training.kernels import kernels, limited_threads

Vectors = npt.NDArray[np.float32]

LOG, ONE, FREE = LENGTHS = ("log", "one", "free")
_EDGES: Final = 1 << 17  # whose vectors exist at a time: 134 MB at a width of 256
_CLIENTS: Final = 1 << 13  # whose products with the negatives exist at a time: 32 MB with 1,024 negatives


@dataclass
class FoldInSettings:
    """The config's part `fold_in`.

    Attributes:
        steps: of the descent.
        penalty: on the length; what so many edges say is halved, about.
        negatives: drawn once.
        length: of what comes out: ``log``, the logarithm of one more than the weights of a client's edges together;
            ``one``; or ``free``, as the descent leaves it.
    """

    steps: int
    penalty: float
    negatives: int
    length: str

    def __post_init__(self) -> None:
        """Refuse numbers that make no sense.

        Raises:
            UserError: a number out of its range.
        """
        require_positive(self, "fold_in", "steps", "negatives")
        require(self.penalty > 0, "fold_in.penalty", self.penalty, "above 0")
        require(self.length in LENGTHS, "fold_in.length", self.length, f"one of {', '.join(LENGTHS)}")


@dataclass(frozen=True)
class FoldIn:
    """What clients are folded in by.

    Attributes:
        settings: numbers.
        negatives: float32 [negatives, width], of length 1.
        skus: int64 [negatives], theirs.
        relations: float32 [relations, width].
        offset: of a logit.
        weight: of the negatives.
    """

    settings: FoldInSettings
    negatives: Vectors
    skus: Int64
    relations: Vectors
    offset: float
    weight: float

    def __call__(self, graph: Graph, items: Vectors, runtime: Runtime) -> Vectors:
        """The vectors of a graph's clients, each of which has an edge.

        Args:
            graph: clients and edges.
            items: float32 [skus, width], before a relation is added.
            runtime: how to compute.

        Returns:
            float32 [clients, width].
        """
        found = np.empty((len(graph.clients), items.shape[1]), np.float32)
        device = runtime.device
        with limited_threads(runtime.threads), kernels(device), torch.inference_mode():
            solver = _Solver(self, graph, items, device)
            offsets = graph.offsets
            for first, last in chunks(offsets, _CLIENTS, _EDGES):
                found[first:last] = solver(offsets, first, last).cpu().numpy()
        return found


class _Solver:
    """The descent on a device."""

    def __init__(self, fold_in: FoldIn, graph: Graph, items: Vectors, device: torch.device) -> None:
        self.settings, self.offset = fold_in.settings, fold_in.offset
        self.graph, self.device = graph, device
        self.items = torch.from_numpy(items).to(device)
        self.negatives = torch.from_numpy(fold_in.negatives).to(device)
        self.relations = torch.from_numpy(fold_in.relations).to(device)
        places, known = find(graph.skus, fold_in.skus)
        self.columns = np.where(known, places, -1).astype(np.int32)
        self.weight = fold_in.weight / len(fold_in.negatives)  # of each negative
        # Of W × (1/4 + weight / 4 × mean q' q'ᵀ), before the W: its directions and their sizes.
        sizes, directions = torch.linalg.eigh(self.negatives.double().T @ self.negatives.double())
        self.sizes, self.directions = (0.25 + self.weight / 4 * sizes).float(), directions.float()

    def __call__(self, offsets: Int64, first: int, last: int) -> Tensor:
        """The vectors of the clients from one on and before another: float [clients, width]."""
        graph, edges = self.graph, slice(offsets[first], offsets[last])
        columns, relations, weights = (
            torch.from_numpy(part[edges]).to(self.device) for part in (graph.columns, graph.relations, graph.weights)
        )
        lengths = np.diff(offsets[first : last + 1])
        own = among(graph.columns[edges], lengths, self.columns, len(graph.skus))
        strange = torch.from_numpy(~own).to(self.device) * self.weight
        starts, counts = (
            torch.from_numpy(part).to(self.device) for part in (offsets[first:last] - offsets[first], lengths)
        )
        owners = torch.repeat_interleave(torch.arange(last - first, device=self.device), counts)
        met = functional.normalize(self.items[columns.long()] + self.relations[relations.long()], dim=1)
        every = torch.arange(len(met), device=self.device)
        total = torch.segment_reduce(weights, "sum", lengths=counts)[:, None]
        curvature = total * self.sizes + self.settings.penalty  # [clients, directions]
        vectors = met.new_zeros((last - first, met.shape[1]))
        for _ in range(self.settings.steps):
            pull = weights * torch.sigmoid(-(vectors[owners] * met).sum(dim=1) - self.offset)
            push = torch.sigmoid(vectors @ self.negatives.T + self.offset).mul_(strange)
            slope = functional.embedding_bag(every, met, starts, mode="sum", per_sample_weights=pull)
            slope = slope - total * (push @ self.negatives) - self.settings.penalty * vectors
            vectors = vectors + (slope @ self.directions / curvature) @ self.directions.T
        if self.settings.length == FREE:
            return vectors
        unit = functional.normalize(vectors, dim=1)
        return unit * torch.log1p(total) if self.settings.length == LOG else unit


def chunks(offsets: Int64, most_clients: int, most_edges: int) -> list[tuple[int, int]]:
    """Clients in turn, so many at most and so many edges at most, but for a client that has more by itself.

    Args:
        offsets: int64 [clients + 1], where each client's edges begin.
        most_clients: of a chunk.
        most_edges: of a chunk.

    Returns:
        The first client of each chunk, and the first behind it.
    """
    found, first, clients = [], 0, len(offsets) - 1
    while first < clients:
        full = int(np.searchsorted(offsets, offsets[first] + most_edges, side="right")) - 1
        last = min(max(full, first + 1), first + most_clients, clients)
        found.append((first, last))
        first = last
    return found
