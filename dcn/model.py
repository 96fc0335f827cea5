"""A deep and cross network over numbers and other blocks' vectors, with a narrow layer that is the profile.

- `QuantileEmbedding`: each number by the quantiles of its column, as the 4th place did: 64 quantiles
  cut it into 65 intervals, each in 32 equal parts, each part with a learned vector of 2.
- `CrossNetwork`: Wang et al. 2021, "DCN V2" (arXiv 2008.13535), equation 1, and its low-rank form, equation 3.
- The heads ask what came in the window after the day: one logit a label, and numbers. Between the profile and the
  heads may stand experts that each question weighs for itself: `Extraction`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from ubp.training.answers import answer_losses, rarity
from ubp.training.model import Batch, SequenceModel, rows_of
from ubp.training.nn import Dropout
from ubp.training.snapshot_source import BASKETS, CLIENTS, DAYS, LABELS, VIEWS, view_name

CONTRASTIVE: Final = "contrastive"
NUMBERS, VECTOR = "numbers", "vector"  # how a block enters: each of its columns by itself, or all by an MLP
STANDARDISED, QUANTILES, BOTH = "standardised", "quantiles", "both"  # how a number does


class QuantileEmbedding(nn.Module):
    """Numbers as learned vectors, by where they stand among their column's quantiles.

    Args:
        quantiles: float32 [columns, quantiles], ascending.
        bounds: float32 [columns, 2], the least and the largest value of the fit: ends of the outer intervals.
        parts: of each interval.
        width: of a vector.
    """

    quantiles: Tensor
    edges: Tensor

    def __init__(self, quantiles: Tensor, bounds: Tensor, parts: int, width: int) -> None:
        super().__init__()
        columns, count = quantiles.shape
        edges = torch.cat(
            [bounds[:, :1].minimum(quantiles[:, :1]), quantiles, bounds[:, 1:].maximum(quantiles[:, -1:])], 1
        )
        self.register_buffer("quantiles", quantiles.contiguous())
        self.register_buffer("edges", edges.contiguous())
        self.parts, self.ids = parts, (count + 1) * parts
        self.table = nn.Embedding(columns * self.ids, width)
        nn.init.normal_(self.table.weight, std=0.1)
        self.register_buffer("firsts", torch.arange(columns) * self.ids, persistent=False)

    @property
    def width(self) -> int:
        """Of all columns together."""
        return len(self.quantiles) * self.table.embedding_dim

    def places(self, numbers: Tensor) -> Tensor:
        """Interval × parts + part: float [rows, columns] to int64 [rows, columns]."""
        interval = torch.searchsorted(self.quantiles, numbers.T.contiguous(), right=True)  # [columns, rows]
        low, high = self.edges.gather(1, interval), self.edges.gather(1, interval + 1)
        inside = (numbers.T - low) / (high - low).clamp(min=torch.finfo(torch.float32).tiny)
        part = (inside * self.parts).clamp(0, self.parts - 1).long()  # cut as floats: infinity has no integer
        return (interval * self.parts + part).T

    def forward(self, numbers: Tensor) -> Tensor:
        """Float [rows, columns] to float [rows, columns × width]."""
        vectors: Tensor = self.table(self.places(numbers) + self.get_buffer("firsts"))
        return vectors.flatten(1)


class CrossNetwork(nn.Module):
    """x_{l+1} = x_0 ⊙ (W_l x_l + b_l) + x_l; with a rank, W_l = U_l V_lᵀ.

    Args:
        width: of x.
        layers: how many.
        rank: of W; None for a full one.
    """

    def __init__(self, width: int, layers: int, rank: int | None) -> None:
        super().__init__()

        def weights() -> nn.Module:
            if rank is None:
                return nn.Linear(width, width)
            return nn.Sequential(nn.Linear(width, rank, bias=False), nn.Linear(rank, width))

        self.layers = nn.ModuleList(weights() for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        """Float [rows, width] to the same."""
        crossed = x
        for layer in self.layers:
            crossed = x * layer(crossed) + crossed
        return crossed


@dataclass(frozen=True)
class InputStatistics:
    """A block's columns over the rows that are learned from.

    Attributes:
        mean: float32 [columns].
        deviation: float32 [columns]; 1 for a constant column.
        quantiles: float32 [columns, quantiles], ascending; of standardised values.
        bounds: float32 [columns, 2], the least and the largest; of standardised values.
    """

    mean: npt.NDArray[np.float32]
    deviation: npt.NDArray[np.float32]
    quantiles: npt.NDArray[np.float32]
    bounds: npt.NDArray[np.float32]

    @classmethod
    def of(cls, vectors: npt.NDArray[np.float32], quantiles: int) -> "InputStatistics":
        """Of float32 [rows, columns]; 0 quantiles where none are read: they take the longest."""
        mean = vectors.mean(axis=0, dtype=np.float64)
        deviation = vectors.std(axis=0, dtype=np.float64)
        deviation[deviation <= 1e-6 * np.maximum(np.abs(mean), 1e-6)] = 1
        # In float32, as the network has them: a value that many rows have is then the very quantile.
        mean, deviation = mean.astype(np.float32), deviation.astype(np.float32)
        standardised = (vectors - mean) / deviation
        shares = np.arange(1, quantiles + 1) / (quantiles + 1)
        found = np.quantile(standardised, shares, axis=0, method="lower").T
        bounds = np.stack([standardised.min(axis=0), standardised.max(axis=0)], axis=1)
        return cls(mean, deviation, np.ascontiguousarray(found), bounds)

    @classmethod
    def empty(cls, columns: int, quantiles: int) -> "InputStatistics":
        """Of so many columns, to be filled by saved weights."""
        zeros, ones = np.zeros(columns, np.float32), np.ones(columns, np.float32)
        return cls(zeros, ones, np.zeros((columns, quantiles), np.float32), np.zeros((columns, 2), np.float32))


@dataclass
class InputSettings:
    """How a block's vectors enter the network.

    Attributes:
        form: ``numbers``: each column by itself; ``vector``: all of them through an MLP.
        width: of the MLP's output.
    """

    form: str = NUMBERS
    width: int = 64


def by_quantiles(settings: InputSettings, numbers: "NumberSettings") -> bool:
    """Whether a block's columns enter by their quantiles."""
    return settings.form == NUMBERS and numbers.form != STANDARDISED


class Input(nn.Module):
    """A block's vectors as they enter: standardised and cut at a limit, and by their quantiles or through an MLP."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, statistics: InputStatistics, settings: InputSettings, numbers: "NumberSettings") -> None:
        super().__init__()
        self.register_buffer("mean", torch.from_numpy(statistics.mean))
        self.register_buffer("deviation", torch.from_numpy(statistics.deviation))
        self.limit, columns = numbers.limit, len(statistics.mean)
        self.embedding: QuantileEmbedding | None = None
        self.mlp: nn.Module | None = None
        self.width = columns
        if settings.form == VECTOR:
            self.mlp = nn.Sequential(
                nn.Linear(columns, 2 * settings.width), nn.GELU(), nn.Linear(2 * settings.width, settings.width)
            )
            self.width = settings.width
        elif by_quantiles(settings, numbers):
            quantiles, bounds = torch.from_numpy(statistics.quantiles), torch.from_numpy(statistics.bounds)
            self.embedding = QuantileEmbedding(quantiles, bounds, numbers.parts, numbers.width)
            self.width = self.embedding.width + columns * (numbers.form == BOTH)
        self.with_numbers = self.embedding is None or numbers.form == BOTH

    def forward(self, vectors: Tensor) -> Tensor:
        """Float [rows, columns] to float [rows, width]."""
        whole = (vectors - self.mean) / self.deviation
        standardised = whole.clamp(-self.limit, self.limit)
        if self.mlp is not None:
            vector: Tensor = self.mlp(standardised)
            return vector
        parts = [standardised] if self.with_numbers else []
        if self.embedding is not None:
            parts.append(self.embedding(whole))
        return torch.cat(parts, dim=1)


@dataclass
class NumberSettings:
    """How a number enters.

    Attributes:
        form: ``standardised``, ``quantiles`` or ``both``.
        limit: of standardised values, in standard deviations.
        quantiles: that cut a column.
        parts: of each interval between two of them.
        width: of the learned vector of a part.
    """

    form: str
    limit: float
    quantiles: int
    parts: int
    width: int


@dataclass
class NetworkSettings:
    """One network.

    Attributes:
        width: of the profile.
        hidden: units of each dense layer.
        cross_layers: of the cross network; 0 for none.
        cross_rank: of its matrices; None for full ones.
        input_dropout: of what enters.
        dropout: of the dense layers.
        head: hidden units of each group's head; 0 for a linear one.
        extraction: levels of experts between the profile and the heads; 0 for none.
        experts: of a level, that all groups and questions share; each has one more of its own.
    """

    width: int
    hidden: list[int]
    cross_layers: int
    cross_rank: int | None
    input_dropout: float
    dropout: float
    head: int
    extraction: int = 0
    experts: int = 2


class ExtractionLevel(nn.Module):
    """Experts, each a dense layer: one of each task's own, and some shared; gates weigh those that a task may read.

    One level of Tang et al. 2020, "Progressive Layered Extraction" (RecSys), equations 4 to 6 and figure 4.

    Args:
        tasks: by name.
        width: of what enters and what leaves.
        shared: experts that all tasks read.
        last: no further level reads what the shared experts give.
    """

    def __init__(self, tasks: Sequence[str], width: int, shared: int, last: bool) -> None:
        super().__init__()
        self.own = nn.ModuleDict({name: self._expert(width) for name in tasks})
        self.shared = nn.ModuleList(self._expert(width) for _ in range(shared))
        self.gates = nn.ModuleDict({name: nn.Linear(width, 1 + shared) for name in tasks})
        self.gate_of_all = None if last else nn.Linear(width, len(tasks) + shared)

    @staticmethod
    def _expert(width: int) -> nn.Module:
        return nn.Sequential(nn.Linear(width, width), nn.GELU())

    def forward(self, of_tasks: Mapping[str, Tensor], of_all: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """What each task reads and what all share, float [rows, width] each, to the same."""
        shared = [expert(of_all) for expert in self.shared]
        own = {name: expert(of_tasks[name]) for name, expert in self.own.items()}
        found = {name: _weighed(self.gates[name](of_tasks[name]), [own[name], *shared]) for name in own}
        if self.gate_of_all is None:
            return found, of_all
        return found, _weighed(self.gate_of_all(of_all), [*own.values(), *shared])


def _weighed(logits: Tensor, experts: Sequence[Tensor]) -> Tensor:
    """A sum of float [rows, width] with weights by the softmax of float [rows, experts]."""
    return torch.einsum("re,erw->rw", logits.softmax(dim=1), torch.stack(list(experts)))


class Extraction(nn.ModuleList):
    """Levels of experts between a profile and the heads.

    Args:
        tasks: groups of labels and questions.
        settings: numbers.
    """

    def __init__(self, tasks: Sequence[str], settings: NetworkSettings) -> None:
        n = settings
        super().__init__(
            ExtractionLevel(tasks, n.width, n.experts, last=level == n.extraction - 1) for level in range(n.extraction)
        )
        self.tasks = tuple(tasks)

    def forward(self, profile: Tensor) -> dict[str, Tensor]:
        """Float [rows, width] to what each task's head reads, of the same shape."""
        of_tasks, of_all = dict.fromkeys(self.tasks, profile), profile
        for level in self:
            of_tasks, of_all = level(of_tasks, of_all)
        return of_tasks


class Network(nn.Module):
    """From what enters to the profile, and from there to the answers.

    Args:
        entering: width of what enters.
        settings: numbers.
        answers: by group of labels or question, how many.
    """

    def __init__(self, entering: int, settings: NetworkSettings, answers: Mapping[str, int]) -> None:
        super().__init__()
        n = settings
        self.input_dropout = Dropout(n.input_dropout)
        self.cross = CrossNetwork(entering, n.cross_layers, n.cross_rank) if n.cross_layers else None
        layers: list[nn.Module] = []
        width = entering
        for hidden in n.hidden:
            layers += [nn.Linear(width, hidden), nn.GELU(), Dropout(n.dropout)]
            width = hidden
        self.deep = nn.Sequential(*layers)
        self.bottleneck = nn.Linear(width + entering * (self.cross is not None), n.width)
        self.norm = nn.LayerNorm(n.width)
        self.extraction = Extraction(tuple(answers), n) if n.extraction else None
        self.heads = nn.ModuleDict({name: self._head(n, count) for name, count in answers.items()})

    @staticmethod
    def _head(settings: NetworkSettings, count: int) -> nn.Module:
        if not settings.head:
            return nn.Linear(settings.width, count)
        return nn.Sequential(nn.Linear(settings.width, settings.head), nn.GELU(), nn.Linear(settings.head, count))

    def forward(self, entering: Tensor) -> Tensor:
        """Float [rows, entering] to the profile, float [rows, width]."""
        x = self.input_dropout(entering)
        parts = [self.deep(x)] + ([] if self.cross is None else [self.cross(x)])
        profile: Tensor = self.norm(self.bottleneck(torch.cat(parts, dim=1)))
        return profile

    def answers(self, profile: Tensor) -> dict[str, Tensor]:
        """To each group of labels and question: float [rows, width] to float [rows, answers]."""
        read = dict.fromkeys(self.heads, profile) if self.extraction is None else self.extraction(profile)
        return {name: head(read[name]) for name, head in self.heads.items()}

    def start_at(self, name: str, logits: Tensor) -> None:
        """Let the answers, float [answers], begin where a profile of zeros gives these."""
        *_, last = (layer for layer in self.heads[name].modules() if isinstance(layer, nn.Linear))
        with torch.no_grad():
            last.bias.copy_(logits)


class Networks(nn.ModuleList):
    """Networks side by side."""

    def __iter__(self) -> Iterator[Network]:
        return cast("Iterator[Network]", super().__iter__())


@dataclass
class LossSettings:
    """What is learned.

    Attributes:
        weights: of groups of labels and questions (`ubp.training.answers`) that do not weigh 1, and of the contrastive
            loss if it is to weigh something; 0 switches one off. Each is a mean over its labels.
        rare: rare labels weigh more: by p^-rare, p their share of the rows, on average 1 in a group; 0 for no such
            weights.
        temperature: of the contrastive loss.
        mask: share of a client's events that each of its two views in the contrastive loss lacks.
    """

    weights: dict[str, float]
    rare: float
    temperature: float
    mask: float

    def weight(self, name: str) -> float:
        """Of a group, a question or the contrastive loss."""
        return self.weights.get(name, 0.0 if name == CONTRASTIVE else 1.0)


class Dcn(SequenceModel):
    """Networks side by side over the same inputs, each with a bottleneck of its own; the profile is all of these.

    Args:
        inputs: by name of a block, its statistics and settings.
        numbers: how numbers enter.
        network: of each network.
        networks: how many.
        groups: by name, in the order of a batch's labels, the share of rows that each label is 1 for: float32 [labels].
        asked: of `ubp.training.answers.QUESTIONS`, those that are asked.
        losses: what is learned.
    """

    shares: Tensor

    def __init__(
        self,
        inputs: Mapping[str, tuple[InputStatistics, InputSettings]],
        numbers: NumberSettings,
        network: NetworkSettings,
        networks: int,
        groups: Mapping[str, npt.NDArray[np.float32]],
        asked: Sequence[str],
        losses: LossSettings,
    ) -> None:
        super().__init__()
        made = {name: Input(*given, numbers) for name, given in inputs.items()}
        self.inputs = nn.ModuleDict(made)
        self.groups = {name: len(shares) for name, shares in groups.items()}
        self.asked, self.losses, self.width = tuple(asked), losses, network.width * networks
        entering = sum(module.width for module in made.values())
        answers = self.groups | dict.fromkeys(self.asked, 1)
        self.networks = Networks(Network(entering, network, answers) for _ in range(networks))
        parts = [np.empty(0, np.float32), *groups.values()]
        self.register_buffer("shares", torch.from_numpy(np.concatenate(parts).astype(np.float32)))

    def start_from_shares(self) -> None:
        """Let each label's logit begin at that of its share: what a model without inputs would answer."""
        for name, logits in self.by_group(torch.logit(self.shares, eps=1e-5)).items():
            for network in self.networks:
                network.start_at(name, logits)

    def by_group(self, labels: Tensor) -> dict[str, Tensor]:
        """What stands for all labels in the last dimension, in parts: of each group."""
        return dict(zip(self.groups, torch.split(labels, list(self.groups.values()), dim=-1), strict=True))

    def entering(self, batch: Batch, view: int | None = None) -> Tensor:
        """What all networks read: float [rows, entering]."""
        keys = [name if view is None else view_name(name, view) for name in self.inputs]
        return torch.cat([module(batch[key]) for key, module in zip(keys, self.inputs.values(), strict=True)], dim=1)

    def encode(self, batch: Batch) -> Tensor:
        """See `ubp.training.model.SequenceModel`: the profiles of the networks side by side."""
        entering = self.entering(batch)
        return torch.cat([network(entering) for network in self.networks], dim=1)

    def loss(self, batch: Batch) -> Tensor:
        """The sum over the networks of what `answer_losses` and the contrastive loss give, each with its weight."""
        entering = self.entering(batch)
        total = entering.new_zeros(())
        for network in self.networks:
            found = self.answer_losses(network, network(entering), batch)
            total = total + sum(self.losses.weight(name) * part for name, part in found.items())
        if self.losses.weight(CONTRASTIVE) and view_name(next(iter(self.inputs)), 0) in batch:
            views = [self.entering(batch, view) for view in range(VIEWS)]
            for network in self.networks:
                one, other = (network(view) for view in views)
                apart = contrastive(one, other, batch[CLIENTS], self.losses.temperature)
                total = total + self.losses.weight(CONTRASTIVE) * apart
        return total

    def answer_losses(self, network: Network, profile: Tensor, batch: Batch) -> dict[str, Tensor]:
        """By group and question, see `ubp.training.answers.answer_losses`."""
        answers = network.answers(profile)
        weights = {name: rarity(shares, self.losses.rare) for name, shares in self.by_group(self.shares).items()}
        return answer_losses(answers, self.by_group(batch[LABELS]), weights, batch)

    def answers(self, batch: Batch) -> dict[str, Tensor]:
        """Logits of each group, float [rows, labels], and the answer to each question, float [rows, 1].

        Means over the networks' probabilities for labels, as logits; means of the answers for questions.
        """
        entering = self.entering(batch)
        of_networks = [network.answers(network(entering)) for network in self.networks]
        found = {}
        for name in (*self.groups, *self.asked):
            parts = torch.stack([answers[name] for answers in of_networks])
            yes_or_no = name not in (BASKETS, DAYS)
            found[name] = torch.logit(parts.sigmoid().mean(dim=0), eps=1e-7) if yes_or_no else parts.mean(dim=0)
        return found

    def weight(self, batch: Batch) -> Tensor:
        """See `ubp.training.model.SequenceModel`: the rows."""
        return torch.full((), float(rows_of(batch)), device=self.shares.device)


def contrastive(one: Tensor, other: Tensor, clients: Tensor, temperature: float) -> Tensor:
    """Which of the batch's profiles is the other view of the same row: softmax over them, both ways; a scalar.

    The same client on another day is left out of the softmax: it is like the row, and no example of another client.

    Args:
        one: float [rows, width], of one view.
        other: float [rows, width], of the other view of the same rows.
        clients: int64 [rows], the row's client.
        temperature: that cosines are divided by.
    """
    cosines = functional.normalize(one, dim=1) @ functional.normalize(other, dim=1).T / temperature
    rows = torch.arange(len(one), device=one.device)
    is_other_day = (clients[:, None] == clients) & (rows[:, None] != rows)
    cosines = cosines.masked_fill(is_other_day, -torch.inf)
    return (functional.cross_entropy(cosines, rows) + functional.cross_entropy(cosines.T, rows)) / 2
