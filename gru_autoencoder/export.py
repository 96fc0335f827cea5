"""The encoder of a GRU autoencoder for ONNX: its tokens in, its states after each window out."""

from collections.abc import Iterator
from typing import Final, cast

import polars as pl
import torch
from torch import Tensor, nn

from gru_autoencoder.model import EVENT, GruAutoencoder
from gru_autoencoder.tokens import (
    ABSOLUTE,
    CODE,
    CODES,
    DAY_FEATURE,
    WEEK_FEATURE,
    AutoencoderSequences,
    Tokeniser,
)
from ubp.data import schema
from ubp.data.schema import FIRST_TOKEN, Token
from ubp.training.export import (
    LENGTHS_INPUT,
    Input,
    event_table,
    gathered,
    token_input,
    vocabulary_table,
    window_places,
)
from ubp.training.model import LENGTHS, Batch
from ubp.training.windows import LAST

_CODED: Final = f"{FIRST_TOKEN} + the code (0 to 255)"


class AutoencoderEncoder(nn.Module):
    """See `ubp.training.export.Encoder.module`: each feature's tokens without start and end, then the lengths.

    torch's own recurrent layers, which the exporter knows, in the place of `gru_autoencoder.gru`'s.
    """

    def __init__(self, model: GruAutoencoder) -> None:
        super().__init__()
        if model.reading is None:
            raise ValueError("the model has no windows to read in")
        self.names = tuple(feature.name for feature in model.features)
        self.embedding, self.reading = model.embedding, model.reading
        self.layers = model.encoder.layers

    def forward(self, inputs: list[Tensor]) -> Tensor:
        """See `ubp.training.export.Encoder.module`."""
        *ids, lengths = inputs
        vectors = self.embedding(dict(zip(self.names, ids, strict=True)))
        places, end = window_places(lengths, ids[0].shape[1], self.reading.window)
        states = gathered(vectors, places).transpose(0, 1)
        for layer in cast("list[nn.GRU]", list(self.layers)):
            states, _ = layer(states)
        outputs = states.transpose(0, 1).reshape(*places.shape, states.shape[2])
        is_last = (places == end[:, :, None] - 1) & (end > 0)[:, :, None]
        if self.reading.profile == LAST:
            weights = (is_last & (places == lengths[:, None, None] - 1)).float()
        else:
            weights = is_last * torch.clamp(places + 1, max=self.reading.window) / self.reading.newest
        return (outputs * weights[..., None]).sum(dim=(1, 2))


def from_batch(model: GruAutoencoder, batch: Batch) -> list[Tensor]:
    """The inputs out of a batch of `gru_autoencoder.tokens.TokenSource`: without start and end."""
    return [batch[feature.name][:, 1:-1] for feature in model.features] + [batch[LENGTHS]]


def inputs_of(tokeniser: Tokeniser) -> Iterator[Input]:
    """What the tokens of each feature are, and the lengths."""
    absent = f"{Token.NONE} for an event without one"
    for name in tokeniser.settings:
        if name == EVENT:
            yield token_input(name, "the event's type", name)
        elif name in (DAY_FEATURE, WEEK_FEATURE):
            yield token_input(name, _days(tokeniser, name))
        elif name == CODE:
            yield token_input(name, f"the 16 codes of the sku's name, one token after the other: {_CODED}")
        elif name == CODES:
            for place in range(schema.CODES):
                yield token_input(f"code_{place}", f"code {place} of the sku's name: {_CODED}; {absent}")
        else:
            yield token_input(
                name, f"the event's {name}; {Token.OTHER} for one that is not in the table; {absent}", name
            )
    yield LENGTHS_INPUT


def _days(tokeniser: Tokeniser, name: str) -> str:
    calendar = tokeniser.calendar
    count = calendar.days if name == DAY_FEATURE else calendar.weeks
    counted = (
        f"days from {calendar.first_day:%Y-%m-%d} to the event"
        if calendar.counted == ABSOLUTE
        else "whole days (periods of 24 hours) from the event to as_of"
    )
    number = counted if name == DAY_FEATURE else f"{counted}, divided by 7 and rounded down"
    return f"{FIRST_TOKEN} + {number}; {Token.OTHER} where that is {count} or more"


def events_of(sequences: AutoencoderSequences, tokeniser: Tokeniser) -> Iterator[str]:
    """Which events make a sequence, and in which order."""
    names = sequences.event_types or [str(kind) for kind in tokeniser.event_types]
    yield f"a client's events of these types before as_of: {', '.join(names)}"
    if sequences.distinct:
        yield f"of each {sequences.distinct} the first event alone"
    yield "by time; of one second by the token of the event's type, then by what it is about"
    yield f"the newest {sequences.newest} of them"
    if tokeniser.tokens_per_event > 1:
        yield f"each event makes {tokeniser.tokens_per_event} tokens; the lengths count tokens"


def tables_of(tokeniser: Tokeniser) -> dict[str, pl.DataFrame]:
    """By feature, its values' tokens."""
    found = {name: vocabulary_table(vocabulary) for name, vocabulary in tokeniser.vocabularies.items()}
    return found | ({EVENT: event_table(tokeniser.event_types)} if EVENT in tokeniser.settings else {})
