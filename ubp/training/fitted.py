"""Sequence models as fitted blocks."""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, Generic, Self

import numpy as np
import numpy.typing as npt
import polars as pl
import torch
from torch import nn

from ubp.blocks.fitted import Clients, FittedBlock, State, Vectors
from ubp.data.history import ChallengeData
from ubp.sequences.vocabulary import Vocabulary
from ubp.training.encode import Runtime, encode
from ubp.training.kernels import random_numbers
from ubp.training.model import ClientSource, Model

_RUNTIME: Final = "runtime"  # key of the settings that are kept
_VALUE, _COUNT = "value", "count"  # columns of a vocabulary's table

Settings = Mapping[str, Any]  # whatever JSON holds
Tables = Mapping[str, pl.DataFrame]
Array = npt.NDArray[Any]


@dataclass(frozen=True)
class FittedSequenceModel(FittedBlock, Generic[Model]):
    """A trained model, and how a history becomes its sequences.

    Attributes:
        model: on the CPU.
        runtime: how it computes.
    """

    model: Model
    runtime: Runtime

    @abstractmethod
    def source(self, history: ChallengeData, clients: Clients) -> ClientSource:
        """The clients' sequences before the history's ``as_of``, a row for each client that has one, ascending.

        Values that were not seen in training are `ubp.data.schema.Token.OTHER`.

        Raises:
            UserError: the block cannot encode this history.
        """

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """What `make` needs beside the weights and the tables; whatever JSON holds."""

    @abstractmethod
    def tables(self) -> dict[str, pl.DataFrame]:
        """What `make` needs beside the weights and the settings: vocabularies."""

    @classmethod
    @abstractmethod
    def make(cls, settings: Settings, tables: Tables, runtime: Runtime) -> Self:
        """The block with a model whose weights are yet to be loaded."""

    def vectors(self, history: ChallengeData, clients: Clients) -> tuple[Clients, Vectors]:
        """See `ubp.blocks.fitted.FittedBlock.vectors`."""
        source = self.source(history, clients)
        return source.clients, encode(self.model, source, self.runtime)

    def state(self) -> State:
        """See `ubp.blocks.fitted.FittedBlock.state`."""
        return State({**self.settings(), _RUNTIME: asdict(self.runtime)}, weights_of(self.model), self.tables())

    @classmethod
    def from_state(cls, state: State) -> Self:
        """See `ubp.blocks.fitted.FittedBlock.from_state`."""
        settings = {name: value for name, value in state.settings.items() if name != _RUNTIME}
        with random_numbers():  # the first weights are drawn, then replaced
            block = cls.make(settings, state.tables, Runtime(**state.settings[_RUNTIME]))
        load_weights(block.model, state.arrays)
        return block


def weights_of(model: nn.Module, prefix: str = "") -> dict[str, Array]:
    """A model's weights and buffers by their names behind a prefix, as a state keeps them."""
    return {f"{prefix}{name}": np.asarray(tensor.detach().cpu()) for name, tensor in model.state_dict().items()}


def load_weights(model: nn.Module, arrays: Mapping[str, Array], prefix: str = "") -> None:
    """Give a model those arrays that `weights_of` named behind the prefix, and let it compute as after training."""
    own = {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
    model.load_state_dict({name: torch.from_numpy(array) for name, array in own.items()})
    model.eval()


def table_of(vocabulary: Vocabulary) -> pl.DataFrame:
    """A vocabulary as a table, in the order of its tokens: ``value`` and ``count``, int64."""
    return pl.DataFrame({_VALUE: vocabulary.values, _COUNT: vocabulary.counts})


def vocabulary_of(table: pl.DataFrame) -> Vocabulary:
    """The vocabulary that `table_of` made a table of."""
    return Vocabulary(table[_VALUE].to_numpy(), table[_COUNT].to_numpy())
