r"""A language model reads each client's text; its last hidden states, pooled and reduced, are the profile.

    python LLM/get_embeddings.py                                                    -> search_llm
    python LLM/get_embeddings.py data_files=all_interactions_64.parquet \
        save_dir_name=smollm2_all_interactions n_components=128                     -> smollm2_all_interactions

The texts come from `LLM/preprocessing_search.py` and `LLM/convert_to_text.py`. Nothing is trained: the model is
taken as it is, HuggingFaceTB/SmolLM2-135M unless said otherwise; any model of transformers will do:
``model=/local/folder``, ``model=NAME/ON-THE-HUB``, or ``model=minilm`` for a small one that needs no network
(all-MiniLM-L6-v2, whose weights come with the requirements). A run that was killed goes on where it was when
the command is given again.
"""

import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from omegaconf import DictConfig, OmegaConf

from LLM.choices import BACKENDS, DTYPES, POOLINGS
from LLM.tokens import Tokens, open_or_tokenise
from ubp.blocks.embeddings import read_lineage
from ubp.cli.command import command
from ubp.cli.config import Common, parse
from ubp.cli.run import embedding_run
from ubp.data.history import ChallengeData
from ubp.io.errors import UserError, require, require_positive

if TYPE_CHECKING:
    from LLM.backends import Vectors

logger = logging.getLogger(__name__)

# What says how the work is cut up, never what comes out: a killed run can go on with other numbers.
_HOW = ("token_budget", "shard_size", "models")


@dataclass(frozen=True)
class LanguageModelSettings:
    """What is read, by what, and how.

    Attributes:
        data_files: file of the texts.
        save_dir_name: the embedding's name.
        n_components: columns that a PCA leaves; None for the model's own width.
        pca_clients: the PCA is fitted on so many clients at the most, drawn by seed.
        model: see `LLM.models.find_model`.
        models: short names of models.
        backend: ``transformers`` or ``vllm``.
        pooling: ``mean`` or ``last``: see `LLM.backends`.
        dtype: ``auto``, ``float32``, ``bfloat16`` or ``float16``.
        max_tokens: of a text at the most, the last ones; a model with a smaller window reads what it can.
        token_budget: tokens a batch, padding counted.
        shard_size: texts that are kept at once.
    """

    data_files: str
    save_dir_name: str
    n_components: int | None
    pca_clients: int
    model: str
    models: dict[str, str]
    backend: str
    pooling: str
    dtype: str
    max_tokens: int
    token_budget: int
    shard_size: int

    def __post_init__(self) -> None:
        """Refuse settings that make no sense.

        Raises:
            UserError: a number out of its range or an unknown choice.
        """
        require_positive(self, "", "pca_clients", "token_budget", "shard_size")
        require(self.max_tokens >= 8, "max_tokens", self.max_tokens, "at least 8")
        require(self.n_components is None or self.n_components >= 1, "n_components", self.n_components, "at least 1")
        choices = {"backend": BACKENDS, "pooling": POOLINGS, "dtype": ("auto", *DTYPES)}
        for name, known in choices.items():
            require(getattr(self, name) in known, name, getattr(self, name), f"one of {', '.join(known)}")


_SETTINGS = tuple(LanguageModelSettings.__dataclass_fields__)


def texts_file(common: Common, settings: LanguageModelSettings) -> Path:
    """The parquet of the texts.

    Raises:
        UserError: it is not there.
    """
    folder = common.paths.texts(common.submit)
    path = folder / settings.data_files
    if not path.is_file():
        submit = f"submit={common.submit}"
        raise UserError(
            f"{path}: file missing; make search.parquet with: python LLM/preprocessing_search.py {submit}, "
            f"all_interactions_64.parquet with: python LLM/convert_to_text.py {submit}"
        )
    return path


def with_texts(config: DictConfig, texts: Path) -> DictConfig:
    """The config as the lineage shall hold it: with what the texts say of themselves, without `_HOW`."""
    noted = OmegaConf.create({key: value for key, value in config.items() if key not in _HOW})
    noted.text = read_lineage(texts).get("text")
    return noted


def require_same_history(texts: Path, data: ChallengeData, common: Common) -> None:
    """Refuse texts of another history.

    Raises:
        UserError: that is what they are.
    """
    lineage = read_lineage(texts)
    if lineage.get("fingerprint") != data.fingerprint:
        words = [lineage.get("command", "the command that wrote it"), f"submit={common.submit}"]
        words += [f"as_of={common.as_of}"] if common.as_of else []
        again = " ".join(words)
        raise UserError(f"{texts}: made from another history than {data.folder} as asked for; make it again: {again}")


def read_by(settings: LanguageModelSettings, texts: Path, folder: Path) -> tuple[Tokens, "Vectors", dict[str, Any]]:
    """The texts' tokens, their vectors float32 [texts, width], and what is to be noted of the reading.

    Raises:
        UserError: the model cannot be had or does not work.
    """
    # Imported where there is something to read: torch and the hub's client take seconds.
    from LLM.backends import open_backend
    from LLM.models import find_model, load_tokeniser, weights_fingerprint, window
    from LLM.shards import encode_all, keep_only_of

    weights = find_model(settings.model, settings.models)
    model = weights_fingerprint(weights)
    keep_only_of(folder, model)
    tokeniser = load_tokeniser(weights)
    max_tokens = min(settings.max_tokens, window(weights, tokeniser))
    tokens = open_or_tokenise(texts, folder / "tokens", tokeniser, max_tokens)
    backend = open_backend(
        settings.backend, weights, settings.pooling, settings.dtype, settings.token_budget, max_tokens
    )
    vectors, rate = encode_all(tokens, backend, folder / "shards", settings.shard_size)
    size = int(tokens.lengths.sum())
    logger.info("%s tokens read, %s tokens/s", f"{size:,}", f"{rate:,.0f}")
    noted = {"weights": model, "tokens": size, "texts": len(vectors), "width": vectors.shape[1]}
    return tokens, vectors, noted


def reduce(
    vectors: "Vectors", text_of: npt.NDArray[np.int64], n_components: int, pca_clients: int, seed: int
) -> tuple["Vectors", float]:
    """Vectors of fewer columns, by a PCA over clients.

    The covariance is taken in float64: language models have single dimensions whose mean is a thousand times
    another's spread.

    Args:
        vectors: float32 [texts, width].
        text_of: int64 [clients], each client's text; a text counts as often as it has clients.
        n_components: columns.
        pca_clients: clients to fit on, at the most.
        seed: draws them.

    Returns:
        float32 [texts, n_components], and the share of the variance that they keep.

    Raises:
        UserError: the model or the clients are too few for so many components.
    """
    from sklearn.decomposition import PCA

    for what, most in (("clients with a text", len(text_of)), ("columns of the model", vectors.shape[1])):
        if n_components > most:
            raise UserError(f"n_components={n_components}: only {most:,} {what}; at most n_components={most}")
    if len(text_of) > pca_clients:
        text_of = np.sort(np.random.default_rng(seed).choice(text_of, pca_clients, replace=False))
    pca = PCA(n_components, svd_solver="covariance_eigh").fit(vectors[text_of].astype(np.float64))
    reduced = np.empty((len(vectors), n_components), np.float32)
    for begin in range(0, len(vectors), _AT_ONCE):
        reduced[begin : begin + _AT_ONCE] = pca.transform(vectors[begin : begin + _AT_ONCE].astype(np.float64))
    return reduced, float(pca.explained_variance_ratio_.sum())


_AT_ONCE = 65_536  # vectors that are made float64


@command("LLM", "get_embeddings")
def main(config: DictConfig) -> None:
    settings, common = parse(LanguageModelSettings, config, _SETTINGS), Common.of(config)
    texts = texts_file(common, settings)
    with embedding_run(with_texts(config, texts)) as run:
        require_same_history(texts, run.data, common)
        tokens, vectors, report = read_by(settings, texts, run.folder)
        if settings.n_components is not None:
            few = (settings.n_components, settings.pca_clients, run.seed)
            vectors, report["explained_variance"] = reduce(vectors, tokens.text_of, *few)
        run.save(tokens.clients, vectors[tokens.text_of], report)
        shutil.rmtree(run.folder)  # gigabytes that nobody asks for again


if __name__ == "__main__":
    main()
