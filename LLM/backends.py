"""Backends that run a language model over tokens: transformers, or vLLM where it is installed.

A text's vector is the model's last hidden states, pooled:

- ``mean``: the mean over its tokens. The right choice for bidirectional models, and for causal models that were
  trained to generate text: their last state holds the next token above all.
- ``last``: the state of the last token, for models trained to put the text's embedding there.
"""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from LLM.models import load_model
from LLM.tokens import IDS, Tokens
from ubp.io.errors import UserError

logger = logging.getLogger(__name__)

Vectors = npt.NDArray[np.float32]
Texts = npt.NDArray[np.int64]
Advance = Callable[[int], None]


class Backend(Protocol):
    """Turns texts into vectors."""

    def encode(self, tokens: Tokens, texts: Texts, advance: Advance) -> Vectors:
        """The vectors of some texts.

        Args:
            tokens: all texts.
            texts: int64 [n], which ones, the longest first.
            advance: called after each batch with its number of tokens.

        Returns:
            float32 [n, width], in the order of ``texts``.
        """


def open_backend(backend: str, folder: Path, pooling: str, dtype: str, token_budget: int, max_tokens: int) -> Backend:
    """A backend with its model loaded.

    Args:
        backend: one of `BACKENDS`.
        folder: of the model.
        pooling: one of `POOLINGS`.
        dtype: one of `DTYPES`, or ``auto``: bfloat16 on CUDA, float32 elsewhere.
        token_budget: tokens per batch of transformers, padding counted.
        max_tokens: per text.

    Raises:
        UserError: the model cannot be loaded, or vLLM is not installed.
    """
    if backend == "vllm":
        return VllmBackend(folder, pooling, dtype, max_tokens)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    chosen = ("bfloat16" if device.type == "cuda" else "float32") if dtype == "auto" else dtype
    logger.info("transformers on %s, %s, %s pooling", device.type, chosen, pooling)
    return TransformersBackend(load_model(folder, getattr(torch, chosen)), device, pooling, token_budget)


class TransformersBackend:
    """A model of transformers, on the GPU where there is one.

    Texts are padded on the right, so that every token keeps its position. A causal model does not attend to the
    right and needs no mask, which lets torch use its fastest attention; whether a model is causal is tested on
    two short inputs. So, up to rounding, a vector depends neither on the other texts in its batch nor on padding.
    """

    def __init__(self, model: torch.nn.Module, device: torch.device, pooling: str, token_budget: int) -> None:
        self._model = model.to(device)
        self._device = device
        self._pooling = pooling
        self._token_budget = token_budget
        config: Any = model.config
        padding = config.get_text_config().pad_token_id  # many causal models have none: any id serves
        self._padding = padding if padding is not None and padding >= 0 else 0
        self.causal = self._is_causal()

    def encode(self, tokens: Tokens, texts: Texts, advance: Advance) -> Vectors:
        """See `Backend`.

        Raises:
            UserError: a batch does not fit into the GPU's memory.
        """
        vectors = []
        for batch in batches_of(tokens.lengths[texts], self._token_budget):
            try:
                vectors.append(self._encode_batch(tokens, texts[batch]))
            except torch.OutOfMemoryError as error:
                raise UserError(
                    f"token_budget={self._token_budget}: a batch does not fit into the GPU's memory; halve it and "
                    "run the command again: it resumes after the last shard"
                ) from error
            advance(int(tokens.lengths[texts[batch]].sum()))
        return np.concatenate(vectors)

    @torch.inference_mode()
    def _encode_batch(self, tokens: Tokens, texts: Texts) -> Vectors:
        batch = tokens.batch(texts)
        mask = torch.from_numpy(batch.mask).to(self._device, non_blocking=True)
        ids = torch.from_numpy(batch.columns[IDS]).to(self._device, non_blocking=True)
        hidden = self._hidden(ids.masked_fill(~mask, self._padding), None if self.causal else mask)
        vectors: Vectors = pooled(hidden, mask, self._pooling).cpu().numpy()
        return vectors

    def _hidden(self, ids: Tensor, mask: Tensor | None) -> Tensor:
        states: Tensor = self._model(input_ids=ids, attention_mask=mask).last_hidden_state
        return states

    @torch.inference_mode()
    def _is_causal(self) -> bool:
        """Whether a token's state does not depend on the tokens after it."""
        ids = torch.tensor([[1, 2, 3, 4], [1, 2, 5, 6]], device=self._device)
        hidden = self._hidden(ids, torch.ones_like(ids, dtype=torch.bool))
        return torch.equal(hidden[0, :2], hidden[1, :2])


class VllmBackend:
    """vLLM's pooling models: `LLM.embed` with the pooling that is set, without its normalisation.

    Written against the API that vLLM documents from 0.18 on (``runner="pooling"``, ``convert="embed"``,
    ``PoolerConfig(seq_pooling_type=..., use_activation=False)``); it needs a GPU, and has not been tested on one.
    vLLM batches by itself: it receives all texts of a shard at once.
    """

    def __init__(self, folder: Path, pooling: str, dtype: str, max_tokens: int) -> None:
        try:
            from vllm import LLM  # type: ignore[import-not-found]
            from vllm.config import PoolerConfig  # type: ignore[import-not-found]
        except ImportError as error:
            raise UserError(
                f"backend=vllm: vLLM is not installed ({error}); pip install 'vllm>=0.18' on a machine with a GPU, "
                "or set backend=transformers"
            ) from error
        self._model = LLM(
            model=str(folder),
            runner="pooling",
            convert="embed",
            dtype="bfloat16" if dtype == "auto" else dtype,
            max_model_len=max_tokens,
            pooler_config=PoolerConfig(seq_pooling_type=pooling.upper(), use_activation=False),
        )

    def encode(self, tokens: Tokens, texts: Texts, advance: Advance) -> Vectors:
        """See `Backend`."""
        prompts = [{"prompt_token_ids": tokens.of(text).tolist()} for text in texts]
        outputs = self._model.embed(prompts, use_tqdm=False)
        advance(int(tokens.lengths[texts].sum()))
        return np.array([output.outputs.embedding for output in outputs], dtype=np.float32)


def batches_of(lengths: npt.NDArray[np.int64], token_budget: int) -> Iterator[slice]:
    """Batches of consecutive texts with at most ``token_budget`` tokens each, padding counted.

    Args:
        lengths: int64 [texts], the longest first.
        token_budget: a text that is longer by itself is a batch of its own.
    """
    begin = 0
    while begin < len(lengths):
        end = begin + max(1, token_budget // int(lengths[begin]))
        yield slice(begin, end)
        begin = end


def pooled(hidden: Tensor, mask: Tensor, pooling: str) -> Tensor:
    """One vector per text.

    Args:
        hidden: [texts, time, width].
        mask: bool [texts, time], true where there is a token; padding is on the right.
        pooling: one of `POOLINGS`.

    Returns:
        float32 [texts, width].
    """
    lengths = mask.sum(dim=1)
    if pooling == "last":
        return hidden[torch.arange(len(hidden), device=hidden.device), lengths - 1].float()
    # Summed in float32: bfloat16 keeps eight bits.
    summed = hidden.float().masked_fill(~mask[:, :, None], 0.0).sum(dim=1)
    return summed / lengths[:, None]
