"""A recurrent autoencoder of event sequences: one class, whose token features come from the config."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Literal, cast

import torch
from torch import Tensor, nn

from gru_autoencoder.gru import StackedGru
from ubp.data.schema import Token
from ubp.training.model import LENGTHS, Batch, SequenceModel
from ubp.training.nn import Feature, TokenEmbedding, argmax_classes, linear_cross_entropy
from ubp.training.windows import LAST, REAL, read_in_windows

EVENT = "event"  # the feature that says which of the others an event has
PROFILE, LAYERS = INITIAL_STATES = ("profile", "layers")  # what the decoder's layers start from
TEACHER_FORCED, FREE_RUNNING = MONITORS = ("teacher_forced", "free_running")  # what early stopping goes by
FREE_RUNNING_LOSS = "validation_free_running_loss"


@dataclass(frozen=True)
class Reading:
    """How a sequence becomes a vector.

    Attributes:
        window: events that the encoder reads at a time.
        newest: events of a sequence, at the most.
        profile: ``last``: the state after the newest window. ``sum``: those after all windows, each weighing its
            events, over ``newest``. A state has been trained to stand for a window after the whole of it.
    """

    window: int
    newest: int
    profile: str = LAST


class _Head(nn.Module):
    """The softmaxes of features that the same events have, their logits side by side."""

    def __init__(self, hidden: int, features: Sequence[Feature]) -> None:
        super().__init__()
        self.names = tuple(feature.name for feature in features)
        self.sizes = tuple(feature.ids for feature in features)
        self.events = features[0].events
        self.layer = nn.Linear(hidden, sum(self.sizes))

    @property
    def key(self) -> str:
        """Of a batch: which of the real positions have these features; see `with_positions`."""
        return f"having_{self.names[0]}"

    def predicted(self, hidden: Tensor, targets: Mapping[str, Tensor], batch: Batch) -> tuple[Tensor, Tensor]:
        """Outputs and targets where an event has these features: [positions, hidden], [positions, features]."""
        classes = torch.stack([targets[name] for name in self.names], dim=1)
        if self.events is None:
            return hidden, classes
        return hidden.index_select(0, batch[self.key]), classes.index_select(0, batch[self.key])

    def argmax(self, hidden: Tensor) -> dict[str, Tensor]:
        """Each feature's class with the largest logit: int64 [positions]."""
        return dict(zip(self.names, argmax_classes(hidden, self.layer, self.sizes).unbind(dim=1), strict=True))


def with_positions(batch: Batch, feature: str, heads: Mapping[str, str]) -> Batch:
    """Cut off what is padding in every row, and add where something is to be predicted.

    Adds ``real``, int64 [positions]: the events and the end token, places in [time, rows] laid out flat; and for
    each head int64 [n], which of these have its features.

    Args:
        batch: see `GruAutoencoder`.
        feature: one that all events have.
        heads: key to add to a feature, for those that not all events have.
    """
    lengths = batch[LENGTHS]
    time = int(lengths.max()) + 2 if len(lengths) else batch[feature].shape[1]
    cut: dict[str, Tensor] = {name: ids[:, :time] if ids.dim() > 1 else ids for name, ids in batch.items()}
    steps = torch.arange(time - 1, device=lengths.device)
    real = (steps[:, None] <= lengths).flatten().nonzero().squeeze(1)
    for key, name in heads.items():
        targets = cut[name][:, 1:].t().reshape(-1)[real]
        cut[key] = (targets != Token.NONE).nonzero().squeeze(1)
    return cut | {REAL: real}


class GruAutoencoder(SequenceModel):
    """Reads a sequence into a state and writes it again from that state.

    A batch holds, for each feature, int64 [rows, 1 + time + 1]: the start token, the events, the end token at
    the place after the last event, padding behind it; and ``lengths``, the number of events. The encoder
    reads the events alone; the vector is its last layer's state after a client's true last event, whatever the
    padding. The vector is added to every token that the decoder reads, and the decoder's layers start from it:
    there is no other way for information from the encoder to the decoder (the published model lets every
    decoder layer start from its own encoder layer: ``initial_states=layers``). In training the decoder sees the
    start token and the true events (teacher forcing), and is to predict the events and the end token. What an
    event does not have (a page visit's sku) is not predicted: the event type says so already, and logits of
    thousands of skus at each page visit are the dearer half of the work.

    Args:
        features: what a token is made of; each has a softmax of its own.
        combine: whether their embeddings are concatenated or summed.
        hidden: units of each recurrent layer; the last layer's state is the vector.
        layers: recurrent layers, in the encoder as in the decoder.
        dropout: between layers.
        word_dropout: share of the tokens that are hidden from the decoder in training (Bowman et al., "Generating
            Sentences from a Continuous Space", 2016): what it cannot see before it, it must get from the vector.
        initial_states: of the decoder's layers: ``profile``, the vector, or ``layers``, each encoder layer's own.
        monitor: what early stopping and the best epoch go by: the validation loss by ``teacher_forced`` decoding,
            or by ``free_running``, where the decoder reads its own predictions and only the vector tells it
            which client's events to write.
        reading: how long sequences are encoded; None: whole, to the state after the last event.
    """

    def __init__(
        self,
        features: Sequence[Feature],
        combine: Literal["concat", "sum"],
        hidden: int,
        layers: int,
        dropout: float,
        word_dropout: float = 0.0,
        initial_states: str = PROFILE,
        monitor: str = TEACHER_FORCED,
        reading: Reading | None = None,
    ) -> None:
        super().__init__()
        self.reading = reading
        self.initial_states = initial_states
        if monitor == FREE_RUNNING:
            self.monitor = (FREE_RUNNING_LOSS, "min")
        self.word_dropout = word_dropout
        self.width = hidden
        self.features = tuple(features)
        self.embedding = TokenEmbedding(features, combine)
        self.encoder = StackedGru(self.embedding.width, hidden, layers, dropout)
        self.decoder = StackedGru(self.embedding.width, hidden, layers, dropout)
        # Added to tokens as it is where the widths allow it, as published.
        same = self.embedding.width == hidden
        self.to_tokens: nn.Module = nn.Identity() if same else nn.Linear(hidden, self.embedding.width)
        self.heads = nn.ModuleList(_Head(hidden, list(group)) for _, group in groupby(features, lambda f: f.events))

    def _embedded(self, batch: Batch, start: int, stop: int) -> Tensor:
        """Vectors of the tokens from ``start`` to before ``stop``: float [time, rows, width]."""
        vectors: Tensor = self.embedding({f.name: batch[f.name][:, start:stop].t() for f in self.features})
        return vectors

    def states(self, batch: Batch) -> list[Tensor]:
        """Each encoder layer's state after each sequence's last event: float [rows, hidden]."""
        lengths = batch[LENGTHS]
        time = batch[self.features[0].name].shape[1]
        rows = torch.arange(len(lengths), device=lengths.device)
        return [output[lengths - 1, rows] for output in self.encoder(self._embedded(batch, 1, time - 1))]

    def encode(self, batch: Batch) -> Tensor:
        """The state after the last event, or those after all windows added up: float [rows, hidden]."""
        if self.reading is None:
            return self.states(batch)[-1]
        vectors = self._embedded(batch, 1, batch[self.features[0].name].shape[1] - 1).transpose(0, 1)
        lengths, window = batch[LENGTHS], self.reading.window
        outputs = read_in_windows(self._encoded, vectors, lengths, torch.zeros_like(lengths), window)
        place = torch.arange(outputs.shape[1], device=lengths.device)
        to_come = lengths[:, None] - 1 - place  # events behind a place
        if self.reading.profile == LAST:
            weights = (to_come == 0).to(outputs.dtype)
        else:
            is_last = (to_come >= 0) & (to_come % window == 0)
            weights = is_last * torch.clamp(place + 1, max=window) / self.reading.newest
        # A product and a sum, not one product of matrices: autocast would make that bfloat16.
        return (outputs.float() * weights.float()[:, :, None]).sum(dim=1)

    def _encoded(self, vectors: Tensor, _: Tensor) -> Tensor:
        """The last layer's states, float [rows, time, hidden], of vectors [rows, time, width]."""
        outputs: Tensor = self.encoder(vectors.transpose(0, 1))[-1]
        return outputs.transpose(0, 1)

    def _begin(self, batch: Batch) -> tuple[Tensor, list[Tensor]]:
        """What is added to the decoder's tokens, float [rows, width], and its layers' first states."""
        states = self.states(batch)
        vector = states[-1]
        first = states if self.initial_states == LAYERS else [vector] * len(states)
        return self.to_tokens(vector), first

    def decoded(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The decoder's outputs at the real positions by teacher forcing, and the tokens to predict there.

        Returns:
            float [positions, hidden] and for each feature int64 [positions].
        """
        time = batch[self.features[0].name].shape[1]
        added, first = self._begin(batch)
        tokens = self._embedded(self._with_gaps(batch), 0, time - 1)
        return self._at_real_positions(self.decoder(tokens + added, first)[-1], batch)

    def _at_real_positions(self, output: Tensor, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Outputs [time, rows, hidden] and the tokens that follow, at the events and the end token."""
        real = self._placed(batch)[REAL]
        targets = {f.name: batch[f.name][:, 1:].t().reshape(-1).index_select(0, real) for f in self.features}
        return output.reshape(-1, output.shape[2]).index_select(0, real), targets

    @property
    def on_host(self) -> Callable[[Batch], Batch]:
        return partial(with_positions, feature=self.features[0].name, heads=self._conditional)

    @property
    def _conditional(self) -> dict[str, str]:
        """Heads whose features not all events have: the key of their positions to one of the features."""
        return {head.key: head.names[0] for head in self._heads() if head.events is not None}

    def _placed(self, batch: Batch) -> Batch:
        """The batch with its positions, if whoever gathered it has not added them."""
        return batch if REAL in batch else self.on_host(batch)

    def _with_gaps(self, batch: Batch) -> Batch:
        """The batch as the decoder sees it: in training some events are hidden, in all features at once."""
        if not self.training or self.word_dropout == 0:
            return batch
        shape = batch[self.features[0].name].shape
        hidden = torch.rand(shape, device=batch[LENGTHS].device) < self.word_dropout
        hidden[:, 0] = False
        return {f.name: batch[f.name].masked_fill(hidden, Token.OTHER) for f in self.features}

    def weight(self, batch: Batch) -> Tensor:
        return (batch[LENGTHS] + 1).sum().float()

    def loss(self, batch: Batch) -> Tensor:
        """The features' cross-entropies where an event has them, added up, the mean over the real positions."""
        batch = self._placed(batch)
        return self._loss(*self.decoded(batch), batch)

    def _loss(self, hidden: Tensor, targets: Mapping[str, Tensor], batch: Batch) -> Tensor:
        loss = hidden.new_zeros((), dtype=torch.float32)
        for head in self._heads():
            there, classes = head.predicted(hidden, targets, batch)
            share = len(there) / max(len(hidden), 1)
            loss = loss + share * linear_cross_entropy(there, head.layer, classes, head.sizes)
        return loss

    def free_running_loss(self, batch: Batch) -> Tensor:
        """The same loss where the decoder reads its own predictions instead of the true events: a scalar."""
        batch = self._placed(batch)
        steps = batch[self.features[0].name].shape[1] - 1
        return self._loss(*self._at_real_positions(self._free_running(batch, steps)[0], batch), batch)

    def validation_scores(self, batch: Batch) -> dict[str, Tensor]:
        return {FREE_RUNNING_LOSS: self.free_running_loss(batch)} if self.monitor[0] == FREE_RUNNING_LOSS else {}

    def teacher_forced_hits(self, batch: Batch) -> dict[str, Tensor]:
        """Where the argmax of the decoder under teacher forcing is the true id.

        Returns:
            For each feature bool [positions], those that have it.
        """
        batch = self._placed(batch)
        hidden, wanted = self.decoded(batch)
        hits: dict[str, Tensor] = {}
        for head in self._heads():
            there, classes = head.predicted(hidden, wanted, batch)
            found = head.argmax(there)
            hits |= {name: found[name] == classes[:, column] for column, name in enumerate(head.names)}
        return hits

    def _heads(self) -> list[_Head]:
        return cast("list[_Head]", list(self.heads))

    def write(self, batch: Batch, steps: int) -> dict[str, Tensor]:
        """Write sequences from their vectors alone, the argmax token at each step, read at the next.

        Args:
            batch: its vectors and start tokens are used.
            steps: how many tokens to write.

        Returns:
            For each feature int64 [rows, steps]; what follows an end token means nothing.
        """
        return self._free_running(batch, steps)[1]

    def _free_running(self, batch: Batch, steps: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The decoder's outputs, float [steps, rows, hidden], and its tokens, for each feature int64 [rows, steps]."""
        added, states = self._begin(batch)
        predicted = {feature.name: batch[feature.name][:, 0] for feature in self.features}
        written: dict[str, list[Tensor]] = {feature.name: [] for feature in self.features}
        held = []
        for _ in range(steps):
            outputs = self.decoder((self.embedding(predicted) + added)[None], states)
            states = [output[0] for output in outputs]
            held.append(states[-1])
            predicted = self._predict(states[-1])
            for name, ids in predicted.items():
                written[name].append(ids)
        return torch.stack(held), {name: torch.stack(ids, dim=1) for name, ids in written.items()}

    def _predict(self, hidden: Tensor) -> dict[str, Tensor]:
        """The argmax token: for each feature int64 [rows], none where the predicted event has no such value."""
        predicted: dict[str, Tensor] = {}
        for head in self._heads():
            predicted |= head.argmax(hidden)
        for feature in self.features:
            if feature.events is not None:
                having = torch.tensor([*feature.events, Token.END], device=hidden.device)
                predicted[feature.name].masked_fill_(~torch.isin(predicted[EVENT], having), Token.NONE)
        return predicted
