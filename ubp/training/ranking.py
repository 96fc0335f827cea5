"""How well the next value is predicted: ranks, hit rate, MRR and NDCG, and two baselines to hold them against."""

from collections.abc import Mapping

import torch
from rich.table import Table
from torch import Tensor

# Logits that exist at the same time: so many positions by so many classes, 128 MB.
_POSITIONS, _CLASSES = 1024, 32_768
_PAIRS = 1 << 22  # pairs of places that exist at the same time, where places are compared with each other

MODEL, POPULAR, REPEATED = "model", "popularity", "repeat the last"

_DECIMALS = 3  # of a score that is shown

RankingScores = dict[str, dict[str, float]]  # metric to predictor to value


def ranks_of(hidden: Tensor, weight: Tensor, wanted: Tensor, bias: Tensor | None = None) -> Tensor:
    """The rank of the wanted class among all, by the logits ``hidden @ weight.T + bias`` in float32.

    Args:
        hidden: float [positions, width].
        weight: float [classes, width].
        wanted: int64 [positions], from 0 to classes − 1.
        bias: float [classes]; None for none.

    Returns:
        int64 [positions], 1 for the largest logit. Equal logits count as larger: a model that gives
        all the same shall not look good.
    """
    with torch.autocast(hidden.device.type, enabled=False):
        parts = [
            _ranks(part.float(), weight.float(), classes, bias)
            for part, classes in zip(torch.split(hidden, _POSITIONS), torch.split(wanted, _POSITIONS), strict=True)
        ]
    return torch.cat(parts)


def _ranks(hidden: Tensor, weight: Tensor, wanted: Tensor, bias: Tensor | None) -> Tensor:
    own = (hidden * weight[wanted]).sum(dim=1, keepdim=True)
    if bias is not None:
        own = own + bias[wanted, None]
    ranks = torch.ones_like(wanted)
    for start in range(0, len(weight), _CLASSES):
        logits = hidden @ weight[start : start + _CLASSES].t()
        if bias is not None:
            logits += bias[start : start + _CLASSES]
        here = ((wanted >= start) & (wanted < start + _CLASSES)).nonzero().squeeze(1)
        logits[here, wanted[here] - start] = -torch.inf
        ranks += (logits >= own).sum(dim=1)
    return ranks


def ranking_scores(ranks: Tensor, at: int = 10) -> dict[str, Tensor]:
    """Hit rate, mean reciprocal rank and NDCG, each cut off at a rank.

    With one wanted value a position the ideal gain is 1, so NDCG is 1 / log2(1 + rank).

    Args:
        ranks: int64 [positions], from 1 on.
        at: the last rank that counts.

    Returns:
        Means over the positions, float32 scalars: ``hit_rate``, ``mrr``, ``ndcg``; 0 for no positions.
    """
    counts = (ranks <= at).float()
    gains = {"hit_rate": counts, "mrr": counts / ranks, "ndcg": counts / torch.log2(ranks + 1.0)}
    return {name: gain.sum() / max(len(ranks), 1) for name, gain in gains.items()}


def popularity_ranks(counts: Tensor, wanted: Tensor) -> Tensor:
    """The wanted classes' ranks by how often each class occurs: int64 [positions].

    Args:
        counts: int64 [classes].
        wanted: int64 [positions], from 0 to classes − 1.
    """
    ranks = torch.empty_like(counts)
    ranks[counts.argsort(descending=True, stable=True)] = torch.arange(1, len(counts) + 1, device=counts.device)
    return ranks[wanted]


def repetition_ranks(tokens: Tensor) -> Tensor:
    """The next value's rank where the last values are predicted again, the latest first.

    Args:
        tokens: int64 [rows, time].

    Returns:
        int64 [rows, time − 1]: at place t the rank of ``tokens[:, t + 1]`` among the distinct values up to t;
        one more than the places there are for a value that did not occur before. What stands at padding means
        nothing.
    """
    time = tokens.shape[1]
    size = max(_PAIRS // (time * time), 1)
    return torch.cat([_repetition_ranks(part) for part in torch.split(tokens, size)])


def _repetition_ranks(tokens: Tensor) -> Tensor:
    time = tokens.shape[1]
    places = torch.arange(time, device=tokens.device)
    same = tokens[:, :, None] == tokens[:, None, :]  # [rows, place, other place]
    later = places[:, None] < places
    # Where each value comes next; the time itself if it does not.
    next_place = torch.where(same & later, places, time).amin(dim=2)
    # The last place up to t that holds the value of t + 1; −1 if there is none.
    last_place = torch.where(same & later.t(), places, -1).amax(dim=2)[:, 1:]
    # The distinct values since then: the places from there up to t whose value comes not again up to t.
    up_to = places[:, None] <= places  # [place, t]
    lasting = up_to & (next_place[:, :, None] > places)
    since = places[None, :, None] >= last_place[:, None, :]
    ranks = (lasting[:, :, :-1] & since).sum(dim=1)
    return torch.where(last_place >= 0, ranks, time + 1)


def compared(ranks: Mapping[str, Tensor], at: int = 10) -> RankingScores:
    """The scores of several predictors, by metric; with ``at`` 1 all three are one, and only the hit rate is there."""
    scores: RankingScores = {}
    for name, own in ranks.items():
        for metric, value in ranking_scores(own, at).items():
            if at > 1 or metric == "hit_rate":
                scores.setdefault(f"{metric}@{at}", {})[name] = float(value)
    return scores


def below_popularity(scores: Mapping[str, Mapping[str, float]], metric: str) -> str | None:
    """Both scores in words where the model's is less than popularity's by the three decimals of `score_table`.

    Args:
        scores: of the model and of popularity.
        metric: one of them, of which more is better.

    Raises:
        KeyError: there is no such score.
    """
    model, popular = (round(scores[metric][name], _DECIMALS) for name in (MODEL, POPULAR))
    return f"{metric} {model:.{_DECIMALS}f} against {popular:.{_DECIMALS}f}" if model < popular else None


def score_table(title: str, scores: RankingScores) -> Table:
    """Scores of the model and of the baselines, a metric a line; empty where one has no such score."""
    names = (MODEL, POPULAR, REPEATED)
    table = Table("next event", *names, title=title)
    for metric, by_name in scores.items():
        table.add_row(metric, *(f"{by_name[name]:.{_DECIMALS}f}" if name in by_name else "" for name in names))
    return table
