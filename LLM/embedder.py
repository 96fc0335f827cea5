"""A language model as a function from texts to vectors, for whoever has few and short ones: names, searches."""

from collections.abc import Sequence

import numpy as np

from LLM.backends import Vectors, open_backend
from LLM.models import find_model, load_tokeniser, window
from LLM.tokens import Tokens, token_ids
from ubp.cli.config import composed
from ubp.data.paths import CONFIGS
from ubp.data.text_codes import Embed
from ubp.sequences.arrays import offsets_of

_MAX_TOKENS = 64  # of a name or a search
_TOKEN_BUDGET = 8192  # of a batch, padding counted


def open_embedder(model: str) -> Embed:
    """A language model; a text without any token has a vector of zeros.

    Args:
        model: a short name of ``configs/LLM/get_embeddings.yaml``, a folder, or a name on the hub.

    Raises:
        UserError: there is no such model, or it cannot be loaded.
    """
    weights = find_model(model, dict(composed(CONFIGS / "LLM", "get_embeddings").models))
    tokeniser = load_tokeniser(weights)
    most = min(_MAX_TOKENS, window(weights, tokeniser))
    backend = open_backend("transformers", weights, "mean", "auto", _TOKEN_BUDGET, most)
    width = backend.encode(*_tokens(token_ids(tokeniser, ["a"], most)), lambda _: None).shape[1]

    def embed(texts: Sequence[str]) -> Vectors:
        # A tokeniser gives no list for an empty one.
        tokens, order = _tokens(token_ids(tokeniser, list(texts), most) if texts else [])
        found = np.zeros((len(texts), width), np.float32)
        if len(order):
            found[order] = backend.encode(tokens, order, lambda _: None)
        return found

    return embed


def _tokens(ids: list[list[int]]) -> tuple[Tokens, np.ndarray]:
    """Texts' tokens, and those texts that have some, int64, the longest first."""
    lengths = np.array([len(each) for each in ids], np.int64)
    flat = np.fromiter((token for each in ids for token in each), np.int32, lengths.sum())
    none = np.empty(0, np.int64)
    order = np.argsort(-lengths, kind="stable")
    return Tokens(flat, offsets_of(lengths), none, none), order[lengths[order] > 0]
