"""A language model over clients' texts as a fitted block.

Fitted are the PCA and the choice of the model. The model's weights are not copied: they are found again by the
model's name, and a fingerprint makes sure that they are the same.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from omegaconf import DictConfig

from LLM.models import find_model, weights_fingerprint
from LLM.pca import Pca, fit_pca
from LLM.reading import read_texts
from LLM.settings import LanguageModelSettings
from LLM.texts import TextSettings, find_texts, require_same_history, save_texts
from ubp.blocks.fitted import Clients, FittedBlock, State, Vectors
from ubp.cli.config import Common
from ubp.cli.recipe import Fit, Recipe
from ubp.data.history import ChallengeData
from ubp.io.errors import UserError
from ubp.io.files import scratch_folder

_MEAN, _COMPONENTS = "pca_mean", "pca_components"  # names of the arrays


@dataclass(frozen=True)
class Encoded:
    """Vectors of some clients as of one day, and what was asked for.

    Attributes:
        fingerprint: of the history.
        as_of: of the history.
        asked: int64 [n], ascending.
        clients: int64 [m], those of them that have a text.
        vectors: float32 [m, columns].
    """

    fingerprint: str
    as_of: datetime
    asked: Clients
    clients: Clients
    vectors: Vectors

    @classmethod
    def of(cls, history: ChallengeData, asked: Clients, clients: Clients, vectors: Vectors) -> "Encoded":
        """Both arrays become read-only: they are returned more than once."""
        for array in (clients, vectors):
            array.setflags(write=False)
        return cls(history.fingerprint, history.as_of, asked, clients, vectors)

    def answers(self, history: ChallengeData, asked: Clients) -> bool:
        """Whether these are the vectors of these clients in this history."""
        same_day = self.as_of == history.as_of and self.fingerprint == history.fingerprint
        return same_day and np.array_equal(self.asked, asked)


@dataclass(frozen=True)
class FittedLanguageModel(FittedBlock):
    """A language model, the texts that it reads, and the PCA of its vectors.

    Encoding the clients of the fit gives the bits of the fit, on the same machine and with the same number of
    threads: the same texts are read in the same batches. With other clients beside it a vector is the same up to
    rounding.

    Attributes:
        settings: which model, and how it reads.
        text: how texts are made.
        weights: the folder of the model.
        fingerprint: of the weights.
        width: of the model.
        pca: None where the model's own width is kept.
        encoded: what the fit has read already; it is not read again. It is not saved.
    """

    not_exported: ClassVar[str] = (
        "its network is the language model, which its own makers export; only a PCA is fitted here"
    )

    settings: LanguageModelSettings
    text: TextSettings
    weights: Path
    fingerprint: str
    width: int
    pca: Pca | None
    encoded: Encoded | None = field(default=None, repr=False, compare=False)

    @property
    def columns(self) -> int:
        return self.width if self.pca is None else len(self.pca.components)

    def vectors(self, history: ChallengeData, clients: Clients) -> tuple[Clients, Vectors]:
        """See `ubp.blocks.fitted.FittedBlock.vectors`; clients without a text have no row."""
        if self.encoded is not None and self.encoded.answers(history, clients):
            return self.encoded.clients, self.encoded.vectors
        with scratch_folder(history.paths.cache, "llm") as folder:
            texts = folder / "texts.parquet"
            if not save_texts(history, self.text, clients, texts, {}):
                return np.empty(0, np.int64), np.empty((0, self.columns), np.float32)
            reading = read_texts(self.settings, self.weights, texts, folder)
            vectors = reading.vectors if self.pca is None else self.pca.reduce(reading.vectors)
            return reading.tokens.clients, vectors[reading.tokens.text_of]

    def state(self) -> State:
        """See `ubp.blocks.fitted.FittedBlock.state`."""
        settings = {
            "model": asdict(self.settings),
            "text": asdict(self.text),
            "fingerprint": self.fingerprint,
            "width": self.width,
        }
        arrays = {} if self.pca is None else {_MEAN: self.pca.mean, _COMPONENTS: self.pca.components}
        return State(settings, arrays)

    @classmethod
    def from_state(cls, state: State) -> Self:
        """See `ubp.blocks.fitted.FittedBlock.from_state`.

        Raises:
            UserError: the model is not found, or its weights are not those of the fit.
        """
        settings = LanguageModelSettings(**state.settings["model"])
        fingerprint: str = state.settings["fingerprint"]
        return cls(
            settings,
            TextSettings(**state.settings["text"]),
            _found_again(settings, fingerprint, state.folder),
            fingerprint,
            state.settings["width"],
            Pca(state.arrays[_MEAN], state.arrays[_COMPONENTS]) if state.arrays else None,
        )


def _found_again(settings: LanguageModelSettings, fingerprint: str, folder: Path | None) -> Path:
    """The folder of the model that a block was fitted with.

    Raises:
        UserError: it is not found, or another model lies there.
    """
    block = folder or settings.save_dir_name
    try:
        weights = find_model(settings.model, settings.models)
    except UserError as error:
        raise UserError(f"{block}: the language model of this block is missing: {error}") from error
    if weights_fingerprint(weights) != fingerprint:
        raise UserError(
            f"{block}: fitted with other weights than those of model={settings.model} in {weights}; "
            "put the weights of the fit there, or fit the block again"
        )
    return weights


@dataclass(frozen=True)
class LanguageModelRecipe(Recipe):
    """Its settings are top-level keys of the config; ``as_of`` is needed for an error message only."""

    settings: LanguageModelSettings
    as_of: str | None = None

    @classmethod
    def of(cls, config: DictConfig) -> Self:
        """See `ubp.cli.recipe.Recipe.of`."""
        return cls(LanguageModelSettings.of(config), Common.of(config).as_of)

    def fit(self, history: ChallengeData, seed: int, folder: Path) -> Fit:
        """See `ubp.cli.recipe.Recipe.fit`.

        The folder holds the tokens and the vectors of the texts read so far; they are gigabytes.

        Raises:
            UserError: there are no texts of this history, or the model is not found or does not work.
        """
        settings = self.settings
        texts = find_texts(history.paths, history.submit, settings.data_files)
        lineage = require_same_history(texts, history, self.as_of)
        weights = find_model(settings.model, settings.models)
        fingerprint = weights_fingerprint(weights)
        # Other weights read anew: what a killed run has read with these lies in a folder of their name.
        reading = read_texts(settings, weights, texts, folder / fingerprint)
        report: dict[str, Any] = {"weights": fingerprint, **reading.report}
        pca, vectors = None, reading.vectors
        if settings.n_components is not None:
            few = (settings.n_components, settings.pca_clients, seed)
            pca, report["explained_variance"] = fit_pca(vectors, reading.tokens.text_of, *few)
            vectors = pca.reduce(vectors)
            report |= {"columns_asked": settings.n_components, "columns": vectors.shape[1]}
        asked = np.unique(history.relevant_clients)
        encoded = Encoded.of(history, asked, reading.tokens.clients, vectors[reading.tokens.text_of])
        width = reading.vectors.shape[1]
        block = FittedLanguageModel(settings, _text_settings(lineage), weights, fingerprint, width, pca, encoded)
        return Fit(block, report, disposable=True)


def _text_settings(lineage: Mapping[str, Any]) -> TextSettings:
    return TextSettings(**lineage["text"])
