"""From a file of texts to the model's vectors of them: tokenise, run the model, pool."""

import logging
from dataclasses import dataclass
from pathlib import Path

from LLM.backends import Vectors, open_backend
from LLM.models import load_tokeniser, window
from LLM.settings import LanguageModelSettings
from LLM.shards import encode_all
from LLM.tokens import Tokens, open_or_tokenise

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reading:
    """What a model made of texts.

    Attributes:
        tokens: of the distinct texts.
        vectors: float32 [texts, width].
    """

    tokens: Tokens
    vectors: Vectors

    @property
    def report(self) -> dict[str, int]:
        """How much was read."""
        texts, width = self.vectors.shape
        return {"tokens": int(self.tokens.lengths.sum()), "texts": texts, "width": width}


def read_texts(settings: LanguageModelSettings, weights: Path, texts: Path, folder: Path) -> Reading:
    """Read all texts of a file.

    Args:
        settings: how.
        weights: the model's folder.
        texts: the parquet of `LLM.texts.save_texts`.
        folder: for tokens and shards; those that are there already are not made again.

    Raises:
        UserError: the model does not work, or a text has no tokens.
    """
    tokeniser = load_tokeniser(weights)
    max_tokens = min(settings.max_tokens, window(weights, tokeniser))
    tokens = open_or_tokenise(texts, folder / "tokens", tokeniser, max_tokens)
    backend = open_backend(
        settings.backend, weights, settings.pooling, settings.dtype, settings.token_budget, max_tokens
    )
    vectors, rate = encode_all(tokens, backend, folder / "shards", settings.shard_size)
    logger.info("%s tokens read, %s tokens/s", f"{tokens.lengths.sum():,}", f"{rate:,.0f}")
    return Reading(tokens, vectors)
