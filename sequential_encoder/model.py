"""A causal transformer over the moments of a history, read at any day; what it learns from.

- Next event types, time to the next moment, next items, next urls: predicted by the state at each moment.
- What comes in the window after a day: answered from the profile as of that day, as `ubp.training.answers` says.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from sequential_encoder.events import (
    AGE,
    COUNTS,
    DAY_AGE,
    DAY_TOKENS,
    GAP,
    HOUR,
    ITEM,
    KINDS,
    LOG_SHARE,
    POPULARITY,
    URL,
    WAIT,
    WEEKDAY,
)
from sequential_encoder.flat import (
    AMOUNT_AT,
    AMOUNT_OF,
    AMOUNT_TOKEN,
    AMOUNTS,
    AT,
    BAG,
    BEGIN,
    CATEGORIES,
    CATEGORY_EVENT,
    CATEGORY_IDS,
    CATEGORY_ROW,
    DAY_AT,
    DRAWN,
    LAST_AT,
    NEXT_AT,
    OFFSETS,
    OWN,
    PAIR_EVENT,
    PAIR_SUBJECT,
    SUBJECTS,
    TOKEN_AT,
    flat,
)
from ubp.data import schema
from ubp.io.errors import require, require_positive
from ubp.training.answers import answer_losses, rarity
from ubp.training.content import CODE, HASHES, IDS, PRICE, ContentEncoder, ContentSettings
from ubp.training.model import LENGTHS, VALIDATION_LOSS, Batch, SequenceModel
from ubp.training.nn import Dropout, sampled_cross_entropy_of
from ubp.training.snapshot_source import LABELS

NEXT_EVENT, NEXT_TIME, NEXT_ITEM, NEXT_URL, WINDOWS = "next_event", "next_time", "next_item", "next_url", "windows"
LOSSES: Final = (NEXT_EVENT, NEXT_TIME, NEXT_ITEM, NEXT_URL, WINDOWS)
WINDOW_LOSS: Final = "window_loss"
LAST, LEARNED = "last", "learned"  # how states become a profile

_FRESH: Final = 0.01  # weight of a batch in the means that are kept, at the least
_FAR: Final = 6.0  # deviations
_FIRST_HEADS: Final = 0.1  # of the usual first weights of a head
_SPREAD: Final = (-3.0, 3.0)  # logarithms of a deviation, beyond which a loss would overflow


@dataclass
class LossSettings:
    """What is learned.

    Attributes:
        weights: of `LOSSES`; 0 switches one off.
        answers: of groups of labels and questions that do not weigh 1 within `WINDOWS`.
        rare: rare labels weigh p^-rare times as much.
        negatives: that an item or a url is told apart from, a row; a batch shares all of them.
        sampling: negatives are drawn by how often an event was about them, to this power.
        popularity: how often an event was about an item or a url, to this power, is what its probability begins with;
            0: all begin alike. Then what is learned is what goes beyond it.
    """

    weights: dict[str, float]
    answers: dict[str, float]
    rare: float
    negatives: int
    sampling: float
    popularity: float

    def weight(self, name: str) -> float:
        """Of one of `LOSSES`."""
        return self.weights.get(name, 0.0)

    def answer_weight(self, name: str) -> float:
        """Of a group or a question."""
        return self.answers.get(name, 1.0)


@dataclass
class EncoderSettings:
    """Numbers of `SequentialEncoder`.

    Attributes:
        width: of the transformer.
        layers: how many.
        heads: of each layer's attention; they divide the width.
        dropout: on what enters the first layer and on what each layer adds.
        event_dropout: share of the events that the model does not see in training.
        profile: of the profile: its columns.
        pooling: the profile is the state at the ``last`` event, or a ``learned`` reading of all states before the day.
        half_lives: in days: over what spans a learned reading takes its means, beside that of all states.
        hidden: units of the layer between what is read and the profile; 0 for none.
        amounts: what a learned reading takes decayed amounts of, beside the states: some of `AMOUNTS`.
        amount_width: columns that the amounts of one kind and half-life become.
        amount_dropout: share of the values, for each client, whose amounts the model does not see in training.
        read_dropout: of what is read.
        content: the encoder of skus, urls and queries.
    """

    width: int
    layers: int
    heads: int
    dropout: float
    event_dropout: float
    profile: int
    pooling: str
    half_lives: list[float]
    hidden: int
    read_dropout: float
    amounts: list[str]
    amount_width: int
    amount_dropout: float
    content: ContentSettings = field(default_factory=lambda: ContentSettings(64, 1000, 16, 16, 0.0))

    def __post_init__(self) -> None:
        """Refuse what makes no sense.

        Raises:
            UserError: an unknown choice or a number out of its range.
        """
        require_positive(self, "model", "width", "layers", "heads", "profile", "amount_width")
        require(
            self.width % (4 * self.heads) == 0, "model.heads", self.heads, "such that width is heads × a multiple of 4"
        )
        for name in ("dropout", "event_dropout", "read_dropout", "amount_dropout"):
            require(0 <= getattr(self, name) < 1, f"model.{name}", getattr(self, name), "at least 0 and below 1")
        require(self.pooling in (LAST, LEARNED), "model.pooling", self.pooling, f"{LAST} or {LEARNED}")
        same = self.pooling == LEARNED or self.profile == self.width
        require(same, "model.profile", self.profile, "model.width where model.pooling is last")
        require(all(days > 0 for days in self.half_lives), "model.half_lives", self.half_lives, "above 0")
        unknown = sorted(set(self.amounts) - set(AMOUNTS))
        require(not unknown, "model.amounts", unknown, f"some of {', '.join(AMOUNTS)}")
        require(self.hidden >= 0, "model.hidden", self.hidden, "0 or more")


class Rotation(nn.Module):
    """Rotary positions (Su et al. 2021, "RoFormer"): half of a head's pairs turn by tokens, half by days.

    So attention knows how many moments and how many days lie between two, and nothing of where a sequence begins.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        quarter = width // 4
        steps = torch.arange(quarter) / max(quarter, 1)
        self.register_buffer("by_token", 1000.0**-steps, persistent=False)
        self.register_buffer(
            "by_day", 2 * math.pi / (4.0 * 250.0**steps), persistent=False
        )  # periods of 4 to 1000 days

    def angles(self, ages: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines float [rows, 1, time, width / 2], of ages in days float [rows, time]."""
        order = torch.arange(ages.shape[1], device=ages.device, dtype=torch.float32).expand(ages.shape)
        by_token, by_day = self.get_buffer("by_token"), self.get_buffer("by_day")
        turns = torch.cat([order[..., None] * by_token, -ages[..., None] * by_day], dim=-1)[:, None]
        return turns.cos(), turns.sin()

    @staticmethod
    def turned(vectors: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
        """Float [rows, heads, time, width]."""
        cos, sin = angles
        one, other = vectors.chunk(2, dim=-1)
        return torch.cat([one * cos - other * sin, one * sin + other * cos], dim=-1).to(vectors.dtype)


class Block(nn.Module):
    """Attention and a feed-forward part, each behind a norm of its own."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm, self.norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.project, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.deep = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width))
        self.dropout = Dropout(dropout)

    def forward(self, vectors: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
        """Float [rows, time, width] to the same."""
        rows, time, width = vectors.shape
        split = self.project(self.attention_norm(vectors)).view(rows, time, 3, self.heads, width // self.heads)
        query, key, value = split.permute(2, 0, 3, 1, 4)
        query, key = Rotation.turned(query, angles), Rotation.turned(key, angles)
        found = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        vectors = vectors + self.dropout(self.out(found.transpose(1, 2).reshape(rows, time, width)))
        added: Tensor = self.dropout(self.deep(self.norm(vectors)))
        return vectors + added


class Transformer(nn.Module):
    """Blocks over vectors; an output sees its own place and those before it. Padding stands behind the end."""

    def __init__(self, width: int, layers: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.rotation = Rotation(width // heads)
        self.blocks = nn.ModuleList(Block(width, heads, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    def forward(self, vectors: Tensor, ages: Tensor) -> Tensor:
        """Float [rows, time, width] and days [rows, time] to states, float [rows, time, width]."""
        angles = self.rotation.angles(ages)
        for block in self.blocks:
            vectors = block(vectors, angles)
        states: Tensor = self.norm(vectors)
        return states


class Standardised(nn.Module):
    """Columns less their means over the rows, by their deviations, cut at 6.

    Means and deviations are those of all that was seen in training, the later the more: a row depends on no other.
    Without it most of a profile is the same for everybody: means of states hardly differ beside what they have in
    common.

    Args:
        columns: how many.
    """

    mean: Tensor
    variance: Tensor
    batches: Tensor

    def __init__(self, columns: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(columns))
        self.register_buffer("variance", torch.ones(columns))
        self.register_buffer("batches", torch.zeros(()))

    def forward(self, values: Tensor, real: Tensor) -> Tensor:
        """Float [rows, days, columns] and bool [rows, days] to the former's shape."""
        if self.training:
            self._see(values.detach(), real)
        scaled = (values - self.mean.clone()) * torch.rsqrt(self.variance + 1e-5)
        return scaled.clamp(-_FAR, _FAR)

    def _see(self, values: Tensor, real: Tensor) -> None:
        weights = real[..., None].float()
        count = weights.sum().clamp(min=1)
        mean = (values * weights).sum(dim=(0, 1)) / count
        self.batches += 1
        fresh = (1 / self.batches).clamp(min=_FRESH)
        self.mean.lerp_(mean, fresh)
        self.variance.lerp_(((values - self.mean) ** 2 * weights).sum(dim=(0, 1)) / count, fresh)


def decays_of(half_lives: Sequence[float]) -> Tensor:
    """Halvings a day by which what was is weighed, 0 for all alike first: float [1 + half-lives]."""
    return torch.tensor([0.0, *(1 / days for days in half_lives)])


class Amounts(nn.Module):
    """What a client met before a day, as a few numbers: the mean of values' vectors, weighed by log(1 + amount).

    An amount is the sum over the events of 2^-(days before the day / half-life), or their number. The sum of the
    weights is one too large: who met little is near zero. Sums instead of means all tell the same, how much a client
    met, and means of states, each of which stands for all that came before it, hardly tell what.

    Args:
        settings: numbers.
    """

    def __init__(self, settings: EncoderSettings) -> None:
        super().__init__()
        s = settings
        self.register_buffer("decays", decays_of(s.half_lives), persistent=False)
        self.dropout = s.amount_dropout
        self.out = nn.Linear(s.content.width, s.amount_width, bias=False)

    def forward(self, name: str, values: Tensor, batch: Batch) -> Tensor:
        """Vectors of values, float [values, width], to float [rows, days, half-lives × amount width]."""
        of = batch[f"{name}:{AMOUNT_OF}"]  # [rows, most], places of values
        amounts = self.amounts(name, batch).view(*of.shape, -1)  # [rows, most, days × half-lives]
        if self.training and self.dropout:
            kept = torch.full(of.shape, 1 - self.dropout, device=of.device)
            amounts = amounts * (torch.bernoulli(kept) / kept)[..., None]
        if not len(values):  # the batch has none, all amounts are 0: places behind a row's last value need a vector
            values = values.new_zeros(1, values.shape[1])
        vectors = values.index_select(0, of.flatten()).view(*of.shape, -1)
        shares = amounts / (1 + amounts.sum(dim=1, keepdim=True))
        means: Tensor = self.out(shares.transpose(1, 2).to(vectors.dtype) @ vectors)
        rows, days = batch[DAY_TOKENS].shape
        return means.view(rows, days, -1)

    @torch.no_grad()
    def amounts(self, name: str, batch: Batch) -> Tensor:
        """log(1 + amount) of each row's values: float [rows × most, days × half-lives]."""
        before, token = batch[DAY_TOKENS], batch[f"{name}:{AMOUNT_TOKEN}"]
        time = batch[AGE].shape[1]
        row = token // time
        since = (batch[AGE].flatten()[token][:, None] - batch[DAY_AGE][row]).clamp(min=0)  # [events, days]
        seen = (token % time)[:, None] < before[row]
        weights = torch.exp2(-since[..., None] * self.get_buffer("decays")) * seen[..., None]
        found = weights.new_zeros(batch[f"{name}:{AMOUNT_OF}"].numel(), weights.shape[1] * weights.shape[2])
        return found.index_add_(0, batch[f"{name}:{AMOUNT_AT}"], weights.flatten(1)).log1p()


@dataclass(frozen=True)
class States:
    """What a profile is read from.

    Attributes:
        states: float [rows, time, width], of the transformer.
        tokens: float [rows, time, width], that it read.
        values: by `AMOUNTS`, vectors of what clients met, float [values, content width].
    """

    states: Tensor
    tokens: Tensor
    values: Mapping[str, Tensor]


class Reading(nn.Module):
    """The profile as of a day: the last state before it, means of states and tokens over several spans, and numbers.

    Each mean weighs a token by 2^-(days before the day / half-life), or by 1; it is multiplied by log(1 + the sum of
    the weights), so that how much happened is in it. The numbers are these logarithms, that of the hours since the
    last event, and that of the tokens.

    Args:
        settings: numbers.
    """

    def __init__(self, settings: EncoderSettings) -> None:
        super().__init__()
        s = settings
        self.register_buffer("decays", decays_of(s.half_lives), persistent=False)
        kernels = 1 + len(s.half_lives)
        self.amounts = nn.ModuleDict({name: Amounts(s) for name in s.amounts})
        entering = s.width + kernels * 2 * s.width + kernels + 2 + len(s.amounts) * kernels * s.amount_width
        self.standardised = Standardised(entering)
        self.dropout = Dropout(s.read_dropout)
        layers: list[nn.Module] = []
        if s.hidden:
            layers = [nn.Linear(entering, s.hidden), nn.GELU(), Dropout(s.read_dropout)]
        self.deep = nn.Sequential(*layers, nn.Linear(s.hidden or entering, s.profile))
        self.norm = nn.LayerNorm(s.profile)

    def forward(self, found: "States", batch: Batch) -> Tensor:
        """To float [rows, days, profile]; see `EventSource` for the batch."""
        states, tokens = found.states, found.tokens
        before = batch[DAY_TOKENS]  # [rows, days]
        seen = torch.arange(states.shape[1], device=states.device) < before[..., None]  # [rows, days, time]
        since = (batch[AGE][:, None] - batch[DAY_AGE][..., None]).clamp(min=0)  # days, [rows, days, time]
        decays = self.get_buffer("decays")
        weights = torch.exp2(-since[..., None, :] * decays[:, None]) * seen[..., None, :]  # [rows, days, kernels, time]
        sums = weights.sum(dim=-1)
        means = weights.flatten(1, 2) @ torch.cat([states, tokens], dim=2).to(weights.dtype)
        logs = torch.log1p(sums)
        means = means.view(*sums.shape, -1) * (logs / sums.clamp(min=1e-6))[..., None]
        last = (before - 1).clamp(min=0)
        age = since.gather(2, last[..., None])
        numbers = torch.cat([logs, torch.log1p(24 * age) / 4, torch.log1p(before[..., None].float()) / 4], dim=-1)
        state = states.gather(1, last[..., None].expand(-1, -1, states.shape[2]))
        met = [amounts(name, found.values[name], batch) for name, amounts in self.amounts.items()]
        entering = self.standardised(torch.cat([state, means.flatten(2), *met, numbers], dim=-1).float(), before > 0)
        profile: Tensor = self.norm(self.deep(self.dropout(entering)))
        return profile


class SequentialEncoder(SequenceModel):
    """See the module; the profile is what is read as of the day.

    Args:
        settings: numbers.
        losses: what is learned.
        groups: by name, in the order of a batch's labels, the share of rows that each label is 1 for: float32 [labels].
        asked: of `ubp.training.answers.QUESTIONS`, those that are asked.
        types: of events.
    """

    shares: Tensor

    def __init__(
        self,
        settings: EncoderSettings,
        losses: LossSettings,
        groups: Mapping[str, npt.NDArray[np.float32]],
        asked: Sequence[str],
        types: int = len(schema.EVENT_TYPES),
    ) -> None:
        super().__init__()
        s = settings
        self.settings, self.losses, self.width = s, losses, s.profile
        self.groups = {name: len(shares) for name, shares in groups.items()}
        self.asked = tuple(asked)
        self.monitor = (WINDOW_LOSS if losses.weight(WINDOWS) else VALIDATION_LOSS, "min")
        content = s.content.width
        self.content = ContentEncoder(s.content)
        self.gain = nn.Embedding(types, content)
        self.kind = nn.Embedding(types, content)
        nn.init.ones_(self.gain.weight)
        nn.init.normal_(self.kind.weight, std=0.1)
        self.enter = nn.Linear(content, s.width, bias=False)
        self.numbers = nn.Linear(1 + types, s.width)
        self.hour, self.weekday = nn.Embedding(24, s.width), nn.Embedding(7, s.width)
        for table in (self.hour, self.weekday):
            nn.init.normal_(table.weight, std=0.1)
        self.dropout = Dropout(s.dropout)
        self.transformer = Transformer(s.width, s.layers, s.heads, s.dropout)
        self.reading = Reading(s) if s.pooling == LEARNED else None
        self.category = nn.Linear(HASHES * s.content.id_width, content) if CATEGORIES in s.amounts else None
        outputs = {NEXT_EVENT: types, NEXT_TIME: 2, NEXT_ITEM: content, NEXT_URL: content}
        on = {name: nn.Linear(s.width, count) for name, count in outputs.items() if losses.weight(name)}
        self.next = nn.ModuleDict(on)
        answers = self.groups | dict.fromkeys(self.asked, 1) if losses.weight(WINDOWS) else {}
        self.heads = nn.ModuleDict({name: nn.Linear(s.profile, count) for name, count in answers.items()})
        parts = [np.empty(0, np.float32), *groups.values()]
        self.register_buffer("shares", torch.from_numpy(np.concatenate(parts).astype(np.float32)))

    def start_at(self, answers: Mapping[str, Tensor]) -> None:
        """Let the answers begin near what a model without a history would say.

        Far from it the first steps are large, all in the same direction, and Adam remembers them for long.

        Args:
            answers: by group, float [labels]; by question, float [1]; questions without an answer are left as they are.
        """
        with torch.no_grad():
            for name, head in self.heads.items():
                head.get_parameter("weight").mul_(_FIRST_HEADS)
                if name in answers and torch.isfinite(answers[name]).all():
                    head.get_parameter("bias").copy_(answers[name])

    def by_group(self, labels: Tensor) -> dict[str, Tensor]:
        """What stands for all labels in the last dimension, in parts: of each group."""
        return dict(zip(self.groups, torch.split(labels, list(self.groups.values()), dim=-1), strict=True))

    @property
    def on_host(self) -> Callable[[Batch], Batch]:
        """See `ubp.training.model.SequenceModel.on_host`."""
        return partial(flat, amounts=tuple(self.settings.amounts))

    def weight(self, batch: Batch) -> Tensor:
        """See `ubp.training.model.SequenceModel`: the rows. Parts of a batch are means over what each of them has."""
        return torch.full((), float(len(batch[LENGTHS])), device=self.shares.device)

    # From events to states ------------------------------------------------------------------------------------

    def contents(self, batch: Batch) -> Tensor:
        """Vectors of all that a batch is about, kind after kind: float [subjects, width]."""
        encode = {schema.SKU: self.content.items, schema.URL: self.content.urls, schema.QUERY: self.content.queries}
        parts = [encode[kind]({name: batch[f"{kind}:{name}"] for name in (IDS, PRICE, CODE)}).float() for kind in KINDS]
        return torch.cat(parts)

    def values(self, batch: Batch, contents: Tensor) -> dict[str, Tensor]:
        """Vectors of what events are about and of their types, each pair of both once: float [pairs, width].

        Of subjects and, where their amounts are read, of categories.
        """
        found = {SUBJECTS: self._typed(contents.index_select(0, batch[PAIR_SUBJECT]), batch[PAIR_EVENT])}
        if self.category is not None:
            vectors = self.category(self.content.ids(batch[CATEGORY_IDS]).flatten(1))
            rows = vectors.index_select(0, batch[CATEGORY_ROW])
            found[CATEGORIES] = self._typed(rows, batch[CATEGORY_EVENT])
        return found

    def _typed(self, vectors: Tensor, event: Tensor) -> Tensor:
        typed: Tensor = vectors * self.gain(event) + self.kind(event)
        return typed

    def tokens(self, batch: Batch, pairs: Tensor) -> Tensor:
        """What the transformer reads: float [rows, time, width]."""
        seen = None
        if self.training and self.settings.event_dropout:
            kept = 1 - self.settings.event_dropout
            seen = torch.bernoulli(torch.full(batch[BAG].shape, kept, device=pairs.device)) / kept
        sums = functional.embedding_bag(batch[BAG], pairs, batch[OFFSETS], mode="sum", per_sample_weights=seen)
        rows, time, _ = batch[COUNTS].shape
        whole = sums.new_zeros(rows * time, sums.shape[1]).index_copy(0, batch[TOKEN_AT], sums)
        many = batch[COUNTS].sum(dim=-1, keepdim=True).clamp(min=1).sqrt()
        numbers = torch.cat([torch.log1p(batch[GAP])[..., None] / 4, torch.log1p(batch[COUNTS])], dim=-1)
        vectors = self.enter(whole.view(rows, time, -1) / many) + self.numbers(numbers)
        tokens: Tensor = self.dropout(vectors + self.hour(batch[HOUR]) + self.weekday(batch[WEEKDAY]))
        return tokens

    def states(self, batch: Batch, contents: Tensor) -> "States":
        """What the profiles are read from."""
        values = self.values(batch, contents)
        tokens = self.tokens(batch, values[SUBJECTS])
        return States(self.transformer(tokens, batch[AGE]), tokens, values)

    def profiles(self, found: "States", batch: Batch) -> Tensor:
        """As of each day: float [rows, days, profile]; means nothing where nothing is asked."""
        if self.reading is not None:
            profiles: Tensor = self.reading(found, batch)
            return profiles
        last = (batch[DAY_TOKENS] - 1).clamp(min=0)
        return found.states.gather(1, last[..., None].expand(-1, -1, found.states.shape[2]))

    def encode(self, batch: Batch) -> Tensor:
        """The profile as of the last day of each row: float [rows, width]."""
        return self.profiles(self.states(batch, self.contents(batch)), batch)[:, -1]

    # Losses ---------------------------------------------------------------------------------------------------

    def loss(self, batch: Batch) -> Tensor:
        """The sum of all losses that are on, each with its weight."""
        found = self.loss_parts(batch)
        return torch.stack([self.losses.weight(name) * part for name, part in found.items()]).sum()

    def loss_parts(self, batch: Batch) -> dict[str, Tensor]:
        """By name, those that are on: scalars; 0 where a batch has nothing to learn from."""
        contents = self.contents(batch)
        states = self.states(batch, contents)
        flat_states, found = states.states.flatten(0, 1), {}
        if NEXT_EVENT in self.next:
            found[NEXT_EVENT] = self._next_event(flat_states, batch)
        if NEXT_TIME in self.next:
            found[NEXT_TIME] = self._next_time(flat_states, batch)
        for name, loss in ((ITEM, NEXT_ITEM), (URL, NEXT_URL)):
            if loss in self.next and f"{name}:{DRAWN}" in batch:
                found[loss] = self._next_subject(name, self.next[loss], flat_states, contents, batch)
        if self.losses.weight(WINDOWS):
            found[WINDOWS] = self._windows(self.answers_from(states, batch), batch)
        return found or {WINDOWS: contents.sum() * 0}

    def validation_scores(self, batch: Batch) -> dict[str, Tensor]:
        """What the answers about windows lose, where any are asked."""
        if not self.losses.weight(WINDOWS):
            return {}
        return {WINDOW_LOSS: self._windows(self.answers(batch), batch)}

    def answers(self, batch: Batch) -> dict[str, Tensor]:
        """Logits of each group, float [clients on days, labels], and answers to questions, float [.., 1].

        Where no labels are asked for, one of each row: as of its last day, as the profile.
        """
        if DAY_AT not in batch:
            return self._read(self.encode(batch))
        return self.answers_from(self.states(batch, self.contents(batch)), batch)

    def answers_from(self, states: "States", batch: Batch) -> dict[str, Tensor]:
        """See `answers`."""
        return self._read(self.profiles(states, batch).flatten(0, 1).index_select(0, batch[DAY_AT]))

    def _read(self, profiles: Tensor) -> dict[str, Tensor]:
        return {name: head(profiles) for name, head in self.heads.items()}

    def _windows(self, answers: Mapping[str, Tensor], batch: Batch) -> Tensor:
        if not len(batch[DAY_AT]):
            return sum((answer.sum() * 0 for answer in answers.values()), self.shares.new_zeros(()))
        weights = {name: rarity(shares, self.losses.rare) for name, shares in self.by_group(self.shares).items()}
        found = answer_losses(answers, self.by_group(batch[LABELS]), weights, batch)
        return torch.stack([self.losses.answer_weight(name) * part for name, part in found.items()]).sum()

    def _next_event(self, states: Tensor, batch: Batch) -> Tensor:
        """Which types the next token has: binary cross-entropies."""
        logits = self.next[NEXT_EVENT](states.index_select(0, batch[NEXT_AT]))
        wanted = (batch[COUNTS].flatten(0, 1).index_select(0, batch[NEXT_AT] + 1) > 0).float()
        each = functional.binary_cross_entropy_with_logits(logits, wanted, reduction="sum")
        return each / max(len(wanted), 1)

    def _next_time(self, states: Tensor, batch: Batch) -> Tensor:
        """A normal density of log(1 + hours) to the next token; at the last one, that it is longer than is known."""
        waits = torch.log1p(batch[WAIT].flatten())
        return censored_normal(
            *self._time_at(states, batch[NEXT_AT]),
            waits.index_select(0, batch[NEXT_AT]),
            *self._time_at(states, batch[LAST_AT]),
            waits.index_select(0, batch[LAST_AT]),
        )

    def _time_at(self, states: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        mean, spread = self.next[NEXT_TIME](states.index_select(0, places)).float().unbind(dim=1)
        return mean + 3.0, spread.clamp(*_SPREAD)  # a day is 3.2

    def _next_subject(self, name: str, query: nn.Module, states: Tensor, contents: Tensor, batch: Batch) -> Tensor:
        """Which sku or url the next token is about: sampled softmax with the content encoder's vectors."""
        at, own, drawn = (batch[f"{name}:{key}"] for key in (AT, OWN, DRAWN))
        log_counts = batch[f"{name}:{LOG_SHARE}"].flatten() + math.log(max(len(drawn), 1))
        asked = query(states).index_select(0, at) / self.content.width**0.5
        wanted, others = contents.index_select(0, own), contents.index_select(0, drawn)
        if self.losses.popularity:  # one more column of the product: 1 × what the logit begins with
            asked = torch.cat([asked, asked.new_ones(len(asked), 1)], dim=1)
            begin = self.losses.popularity * batch[f"{name}:{BEGIN}"][:, None]
            wanted = torch.cat([wanted, begin.to(wanted.dtype)], dim=1)
            begin = self.losses.popularity * batch[f"{name}:{POPULARITY}"][:, None]
            others = torch.cat([others, begin.to(others.dtype)], dim=1)
        return sampled_cross_entropy_of(asked, wanted, others, own, drawn, log_counts)


def censored_normal(
    mean: Tensor, spread: Tensor, seen: Tensor, censored_mean: Tensor, censored_spread: Tensor, longer_than: Tensor
) -> Tensor:
    """The mean negative log-likelihood under normal densities of which some values are only known to be larger.

    Args:
        mean: float [seen].
        spread: float [seen], the logarithm of the deviation.
        seen: float [seen], values.
        censored_mean: float [censored].
        censored_spread: float [censored].
        longer_than: float [censored], what the values are above.

    Returns:
        A scalar; 0 for no values at all.
    """
    density = 0.5 * ((seen - mean) / spread.exp()) ** 2 + spread + 0.5 * math.log(2 * math.pi)
    survival = -torch.special.log_ndtr((censored_mean - longer_than) / censored_spread.exp())
    total: Tensor = density.sum() + survival.sum()
    return total / max(len(seen) + len(longer_than), 1)
