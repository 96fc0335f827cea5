"""How well edges that were kept apart are told from pairs without one, beside popularity and ALS on the same edges."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from rich.table import Table
from threadpoolctl import threadpool_limits
from torch import nn
from torch.nn import functional

from twhin.edges import Graph
from twhin.model import Twhin
from ubp.blocks.fitted import Vectors
from ubp.cli.output import BELOW_POPULARITY, show
from ubp.cli.run import WARNINGS
from ubp.io.errors import require
from ubp.sequences.arrays import ranges
from ubp.training.ranking import MODEL, POPULAR

LEARNED, BOTH, ALS = "learned vectors", "model and popularity", "als"
AUROC, HIT_RATE, WEIGHT = "auroc", "hit_rate@10", "weight"
_AT: Final = 10
_DECIMALS: Final = 3  # of a score that is compared
_ROUNDS: Final = 15  # of ALS
_WEIGHTS: Final = (1.0, 0.5, 0.25, 0.125, 0.0)  # of the model's logits beside popularity's
_SCORES: Final = 1 << 25  # that exist at a time

Scorer = Callable[[npt.NDArray[np.int64], int], npt.NDArray[np.float32]]


@dataclass
class ReportSettings:
    """The config's part `report`.

    Attributes:
        edges: kept apart, of each type, that are looked at; at most.
        als_factors: of the factorisation beside it; 0 for none.
        als_regularization: of the same.
    """

    edges: int
    als_factors: int
    als_regularization: float

    def __post_init__(self) -> None:
        """Refuse numbers that make no sense.

        Raises:
            UserError: a number out of its range.
        """
        require(self.edges >= 1, "report.edges", self.edges, "at least 1")
        for name in ("als_factors", "als_regularization"):
            require(getattr(self, name) >= 0, f"report.{name}", getattr(self, name), "at least 0")


def report(
    known: Graph,
    validation: Graph,
    held_out: Graph,
    model: Twhin,
    clients: Vectors,
    items: Vectors,
    names: Sequence[str],
    settings: ReportSettings,
    seed: int,
) -> dict[str, Any]:
    """Print how edges that were kept apart rank among all items that the client has no edge to; return it.

    Args:
        known: the edges that were learned from.
        validation: those that stopped the training: what the model weighs beside popularity is chosen by them.
        held_out: those that were kept apart; clients and skus have the same numbers in all three.
        model: trained.
        clients: float32 [clients of `known`, width], folded in by the known edges.
        items: float32 [skus, width], before a relation is added.
        names: of the relations.
        settings: what is reported.
        seed: of the edges that are looked at.

    Returns:
        ``auroc`` and ``hit_rate@10``: by relation, by predictor. ``fold_in_cosine``: of the folded in with the learned
        vectors, the mean over clients, where there are any. ``weight``: of the model's logits beside popularity.
        `WARNINGS`: see `below_popularity`.
    """
    predictors = _predictors(known, model, clients, items, settings, seed)
    rng = np.random.default_rng(seed)
    weight = best_weight(predictors[MODEL], predictors[POPULAR], known, validation, settings.edges, rng)
    predictors[BOTH] = beside(predictors[MODEL], predictors[POPULAR], weight)
    predictors = {name: predictors[name] for name in (MODEL, BOTH, POPULAR, LEARNED, ALS) if name in predictors}
    scores: dict[str, dict[str, dict[str, float]]] = {AUROC: {}, HIT_RATE: {}}
    table = Table("edge", "kept apart", "", *predictors, title=f"{len(known.skus):,} items")
    for relation, name in enumerate(names):
        edges = some_of(held_out, relation, known, settings.edges, rng)
        if not len(edges):
            continue
        found = {who: ranked(scorer, known, edges, relation) for who, scorer in predictors.items()}
        for metric, place in ((AUROC, 0), (HIT_RATE, 1)):
            scores[metric][name] = {who: float(values[place].mean()) for who, values in found.items()}
            values = [f"{value:.4f}" for value in scores[metric][name].values()]
            table.add_row(name, f"{len(edges):,}", metric, *values)
    show(table)
    agreement = {} if model.clients is None else {"fold_in_cosine": _agreement(known, model.clients, clients)}
    return {**scores, **agreement, WEIGHT: weight, WARNINGS: below_popularity(scores[AUROC])}


def some_of(edges: Graph, relation: int, known: Graph, most: int, rng: np.random.Generator) -> Graph:
    """Edges of a relation, drawn, so many at most, of clients with a known edge."""
    there = np.flatnonzero((edges.relations == relation) & (np.diff(known.offsets)[edges.rows] > 0))
    return edges.part(np.sort(rng.permutation(there)[:most]))


def beside(model: Scorer, popularity: Scorer, weight: float) -> Scorer:
    """The model's logits times a weight, plus the logarithm of an item's popularity.

    Negatives are drawn by popularity, so the logits are what a client likes beyond it: with a weight of 1 the sum is
    the logarithm of what is likely, as far as the model is right.
    """
    return lambda rows, relation: weight * model(rows, relation) + popularity(rows, relation)


def best_weight(
    model: Scorer, popularity: Scorer, known: Graph, validation: Graph, most: int, rng: np.random.Generator
) -> float:
    """Which of some weights ranks the validation's edges best; what is learned by heart deserves less than 1."""
    parts = {
        relation: some_of(validation, relation, known, most, rng)
        for relation in np.unique(validation.relations).tolist()
    }

    def mean(weight: float) -> float:
        both = beside(model, popularity, weight)
        shares = [ranked(both, known, edges, relation)[0] for relation, edges in parts.items() if len(edges)]
        return float(np.mean([share.mean() for share in shares])) if shares else 0.0

    return max(_WEIGHTS, key=mean)


def below_popularity(scores: Mapping[str, Mapping[str, float]]) -> list[str]:
    """What is wrong with AUROCs by relation and predictor: where popularity ranks better without the model."""
    found = []
    for name, by in scores.items():
        own, popular = round(by[BOTH], _DECIMALS), round(by[POPULAR], _DECIMALS)
        if own < popular:
            figures = f"{own:.{_DECIMALS}f} against {popular:.{_DECIMALS}f}"
            found.append(f"{BELOW_POPULARITY}: {name} {AUROC} {figures}")
    return found


def ranked(
    scorer: Scorer, known: Graph, edges: Graph, relation: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """How edges rank among all items that their client has no known edge to.

    Args:
        scorer: clients int64 [n] by number, and a relation, to scores float32 [n, skus].
        known: edges whose items are left out.
        edges: to rank.
        relation: theirs.

    Returns:
        For each edge the share of the other items that score less, ties as a half: float64 [edges]. And whether it is
        among the first ten, ties counting against it: bool [edges].
    """
    own, shares, hits = known.offsets, [], []
    size = max(1, _SCORES // max(len(known.skus), 1))
    for begin in range(0, len(edges), size):
        rows = edges.rows[begin : begin + size].astype(np.int64)
        columns = edges.columns[begin : begin + size]
        scores = scorer(rows, relation)
        wanted = scores[np.arange(len(rows)), columns][:, None]
        others = np.ones(scores.shape, bool)
        lengths = own[rows + 1] - own[rows]
        others[np.repeat(np.arange(len(rows)), lengths), known.columns[ranges(own[rows], lengths)]] = False
        others[np.arange(len(rows)), columns] = False
        above = ((scores > wanted) & others).sum(axis=1)
        equal = ((scores == wanted) & others).sum(axis=1)
        shares.append(1 - (above + equal / 2) / np.maximum(others.sum(axis=1), 1))
        hits.append(above + equal < _AT)
    return np.concatenate(shares), np.concatenate(hits)


def _predictors(
    known: Graph, model: Twhin, clients: Vectors, items: Vectors, settings: ReportSettings, seed: int
) -> dict[str, Scorer]:
    relations = model.relations.weight.detach().numpy()
    targets = [functional.normalize(torch.from_numpy(items + vector), dim=1).numpy() for vector in relations]
    counts = [
        np.bincount(known.columns[known.relations == place], minlength=len(known.skus)) for place in range(len(targets))
    ]
    logs = [np.log(count + 1.0).astype(np.float32) for count in counts]
    scale = float(model.log_scale.detach().exp())
    unit = functional.normalize(torch.from_numpy(clients), dim=1).numpy()

    def by_popularity(rows: npt.NDArray[np.int64], relation: int) -> npt.NDArray[np.float32]:
        return np.repeat(logs[relation][None], len(rows), axis=0)

    found: dict[str, Scorer] = {
        MODEL: lambda rows, relation: scale * (unit[rows] @ targets[relation].T),
        POPULAR: by_popularity,
    }
    if model.clients is not None:
        learned = functional.normalize(model.clients.weight.detach(), dim=1).numpy()
        found[LEARNED] = lambda rows, relation: learned[rows] @ targets[relation].T
    if settings.als_factors:
        found[ALS] = _als(known, settings, seed)
    return found


def _als(known: Graph, settings: ReportSettings, seed: int) -> Scorer:
    """Implicit ALS of client × sku on the CPU, a pair as heavy as it has edges; not `ALS`: blocks know no other."""
    from implicit.cpu.als import AlternatingLeastSquares
    from scipy.sparse import csr_matrix

    shape = (len(known.clients), len(known.skus))
    matrix = csr_matrix((np.ones(len(known), np.float32), (known.rows, known.columns)), shape)
    with threadpool_limits(1, "blas"):  # implicit's own threads share the work
        model = AlternatingLeastSquares(
            min(settings.als_factors, *shape),
            settings.als_regularization,
            alpha=1.0,
            iterations=_ROUNDS,
            random_state=seed,
        )
        model.fit(matrix, show_progress=False)
    clients, items = model.user_factors, model.item_factors
    return lambda rows, relation: np.asarray(clients[rows] @ items.T)  # noqa: ARG005 (one space for all relations)


def _agreement(known: Graph, learned: nn.Embedding, clients: Vectors) -> float:
    cosines = functional.cosine_similarity(torch.from_numpy(clients), learned.weight.detach(), dim=1)
    there = torch.from_numpy(np.diff(known.offsets) > 0)
    return float(cosines[there].mean())
