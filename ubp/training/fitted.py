"""Sequence models as fitted blocks."""

from abc import abstractmethod
from dataclasses import asdict
from typing import Any, ClassVar, Generic, Self

import numpy as np
import polars as pl
import torch

from ubp.blocks.fitted import Clients, FittedBlock, State, Vectors
from ubp.data.history import ChallengeData
from ubp.training.encode import Runtime, encode
from ubp.training.model import ClientSource, Model


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
        """

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """What `make` needs beside the weights and the tables; whatever JSON holds."""

    def tables(self) -> dict[str, pl.DataFrame]:
        """What `make` needs beside the weights and the settings, such as vocabularies."""
        return {}

    @classmethod
    @abstractmethod
    def make(cls, settings: dict[str, Any], tables: dict[str, pl.DataFrame]) -> Self:
        """The block with a model whose weights are yet to be loaded."""

    _RUNTIME: ClassVar = "runtime"  # key of the settings

    def vectors(self, history: ChallengeData, clients: Clients) -> tuple[Clients, Vectors]:
        """See `ubp.blocks.fitted.FittedBlock.vectors`."""
        source = self.source(history, clients)
        return source.clients, encode(self.model, source, self.runtime)

    def state(self) -> State:
        """See `ubp.blocks.fitted.FittedBlock.state`."""
        weights = {name: np.asarray(tensor.detach().cpu()) for name, tensor in self.model.state_dict().items()}
        return State({**self.settings(), self._RUNTIME: asdict(self.runtime)}, weights, self.tables())

    @classmethod
    def from_state(cls, state: State) -> Self:
        """See `ubp.blocks.fitted.FittedBlock.from_state`."""
        settings = {name: value for name, value in state.settings.items() if name != cls._RUNTIME}
        block = cls.make(settings, state.tables)
        block.runtime = Runtime(**state.settings[cls._RUNTIME])
        block.model.load_state_dict({name: torch.from_numpy(array) for name, array in state.arrays.items()})
        return block
