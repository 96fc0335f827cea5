"""A recurrent autoencoder of event sequences: one class, whose token features come from the config."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from ubp.nn import Feature, TokenEmbedding, linear_cross_entropy
from ubp.training import Batch, SequenceModel

LENGTHS = "lengths"  # key of a batch: int64 [rows], events of each sequence


class GruAutoencoder(SequenceModel):
    """Reads a sequence into a state and writes it again from that state.

    A batch holds, for each feature, int64 [rows, 1 + time + 1]: the start token, the events, the end token at
    the place after the last event, padding behind it; and ``lengths``, the number of events. The encoder
    reads the events alone, packed, so that its state is that after a client's true last event. The decoder
    starts from that state and is taught by forcing: it sees the start token and the events, and is to say the
    events and the end token.

    Args:
        features: what a token is made of; each has a softmax of its own.
        combine: whether their embeddings are concatenated or summed.
        hidden: units of each recurrent layer; the last layer's state is the profile.
        layers: recurrent layers, in the encoder as in the decoder.
        dropout: between layers, and on what the heads see.
    """

    def __init__(
        self, features: Sequence[Feature], combine: Literal["concat", "sum"], hidden: int, layers: int, dropout: float
    ) -> None:
        super().__init__()
        self.width = hidden
        self.features = tuple(features)
        self.embedding = TokenEmbedding(features, combine)
        between = dropout if layers > 1 else 0.0
        self.encoder = nn.GRU(self.embedding.width, hidden, layers, dropout=between, batch_first=True)
        self.decoder = nn.GRU(self.embedding.width, hidden, layers, dropout=between, batch_first=True)
        self.dropout = nn.Dropout(dropout)
        self.heads = nn.ModuleDict({feature.name: nn.Linear(hidden, feature.ids) for feature in features})

    def _packed(self, batch: Batch, start: int, lengths: Tensor) -> dict[str, PackedSequence]:
        """Each feature's ids from ``start`` on, real positions only, in the order that the layers want."""
        counts = lengths.cpu()
        return {
            feature.name: pack_padded_sequence(batch[feature.name][:, start:], counts, True, enforce_sorted=False)
            for feature in self.features
        }

    def _embedded(self, packed: dict[str, PackedSequence]) -> PackedSequence:
        layout = next(iter(packed.values()))
        vectors = self.embedding({name: ids.data for name, ids in packed.items()})
        return PackedSequence(vectors, layout.batch_sizes, layout.sorted_indices, layout.unsorted_indices)

    def states(self, batch: Batch) -> Tensor:
        """The encoder's state after each sequence's last event: float [layers, rows, hidden]."""
        _, state = self.encoder(self._embedded(self._packed(batch, 1, batch[LENGTHS])))
        return state  # type: ignore[no-any-return]

    def encode(self, batch: Batch) -> Tensor:
        return self.states(batch)[-1]

    def decoded(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """What the taught decoder holds at each real position, and what it is to say there.

        Returns:
            float [positions, hidden], and for each feature int64 [positions].
        """
        steps = batch[LENGTHS] + 1
        seen = self._embedded(self._packed(batch, 0, steps))
        wanted = {name: ids.data for name, ids in self._packed(batch, 1, steps).items()}
        output, _ = self.decoder(seen, self.states(batch))
        return self.dropout(output.data), wanted

    def loss(self, batch: Batch) -> Tensor:
        """The features' cross-entropies, added up; each the mean over real positions."""
        hidden, wanted = self.decoded(batch)
        losses = [linear_cross_entropy(hidden, self._head(name), classes) for name, classes in wanted.items()]
        return torch.stack(losses).sum()

    def _head(self, name: str) -> nn.Linear:
        head = self.heads[name]
        assert isinstance(head, nn.Linear)  # noqa: S101 (for the type checker)
        return head

    def teacher_forced_hits(self, batch: Batch) -> dict[str, Tensor]:
        """Where the taught decoder's likeliest id is the true one: for each feature bool [positions]."""
        hidden, wanted = self.decoded(batch)
        return {name: self._head(name)(hidden).argmax(dim=-1) == classes for name, classes in wanted.items()}

    def write(self, batch: Batch, steps: int) -> dict[str, Tensor]:
        """What the decoder says when it reads its own words, the likeliest at each step.

        Args:
            batch: its states and start tokens are used.
            steps: how many tokens to write.

        Returns:
            For each feature int64 [rows, steps]; what follows an end token means nothing.
        """
        state = self.states(batch)
        said = {feature.name: batch[feature.name][:, :1] for feature in self.features}
        written: dict[str, list[Tensor]] = {feature.name: [] for feature in self.features}
        for _ in range(steps):
            output, state = self.decoder(self.embedding(said), state)
            said = {feature.name: self._head(feature.name)(output).argmax(dim=-1) for feature in self.features}
            for name, ids in said.items():
                written[name].append(ids)
        return {name: torch.cat(ids, dim=1) for name, ids in written.items()}
