"""Texts as token ids: flat, on disk, each distinct text once.

A million clients' texts are some billions of tokens. They are read and tokenised in chunks and appended to one file
of 2 or 4 bytes per token, which is memory-mapped afterwards. Of a text that does not fit into the model's window the
end is kept: the newest events (`LLM.texts`).
"""

import itertools
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt
import polars as pl

from LLM.texts import TEXT, TEXTS_AT_ONCE
from ubp.data import schema
from ubp.data.reading import collect
from ubp.io.arrays import append_array, save_array
from ubp.io.errors import UserError
from ubp.io.files import atomic_write
from ubp.sequences.batches import PaddedBatch, gather

logger = logging.getLogger(__name__)

IDS: Final = "ids"
_NOTE = "tokens.json"
_ARRAYS = ("offsets", "clients", "text_of")


class Tokeniser(Protocol):
    """The part of a transformers tokeniser that is used."""

    truncation_side: str

    def __call__(self, text: list[str], **arguments: Any) -> Any: ...  # noqa: ANN401 (transformers' BatchEncoding)

    def __len__(self) -> int: ...


@dataclass(frozen=True)
class Tokens:
    """The distinct texts' tokens, and whose they are.

    Attributes:
        ids: uint16 or int32 [tokens], text after text.
        offsets: int64 [texts + 1].
        clients: int64 [clients].
        text_of: int64 [clients], each client's text; clients may share one.
    """

    ids: npt.NDArray[Any]
    offsets: npt.NDArray[np.int64]
    clients: npt.NDArray[np.int64]
    text_of: npt.NDArray[np.int64]

    @classmethod
    def open(cls, folder: Path) -> "Tokens":
        """Tokens that were written before; the ids stay on disk until they are read."""
        note = json.loads((folder / _NOTE).read_text())
        ids = np.memmap(folder / IDS, dtype=note["dtype"], mode="r")
        return cls(ids, *(np.load(folder / f"{name}.npy") for name in _ARRAYS))

    @cached_property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of each text: int64 [texts]."""
        return np.diff(self.offsets)

    def of(self, text: int) -> npt.NDArray[Any]:
        """One text's ids."""
        return self.ids[self.offsets[text] : self.offsets[text + 1]]

    def batch(self, texts: npt.NDArray[np.int64]) -> PaddedBatch:
        """A batch of texts, padded on the right: column ``ids``."""
        return gather({IDS: self.ids}, self.offsets[texts], self.lengths[texts])


def open_or_tokenise(texts: Path, folder: Path, tokeniser: Tokeniser, max_tokens: int) -> Tokens:
    """The tokens in the folder; they are made first if they are not there.

    Args:
        texts: the parquet of `LLM.texts.save_texts`.
        folder: for the tokens alone.
        tokeniser: of the model.
        max_tokens: per text at most, special tokens counted.

    Raises:
        UserError: a text has no tokens at all.
    """
    if not folder.exists():
        with atomic_write(folder) as aside:
            aside.mkdir()
            _tokenise(texts, aside, tokeniser, max_tokens)
    return Tokens.open(folder)


def _tokenise(texts: Path, folder: Path, tokeniser: Tokeniser, max_tokens: int) -> None:
    clients, first, text_of = distinct_texts(texts)
    dtype = np.dtype(np.uint16 if len(tokeniser) <= 2**16 else np.int32)
    lengths = []
    with (folder / IDS).open("wb") as file:
        for chunk in _chunks(texts, first):
            ids = token_ids(tokeniser, chunk, max_tokens)
            lengths.append(np.fromiter(map(len, ids), np.int64, len(ids)))
            append_array(file, np.fromiter(itertools.chain.from_iterable(ids), dtype, int(lengths[-1].sum())))
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(np.concatenate(lengths))])
    counts = np.diff(offsets)
    if not counts.all():
        raise UserError(f"{texts}: {(counts == 0).sum():,} texts have no tokens; make the texts with other text.fields")
    full = int((counts == max_tokens).sum())
    logger.info(
        "%s clients, %s distinct texts, %s tokens; %s texts fill the window of %s tokens: older events may be cut off",
        *(f"{number:,}" for number in (len(clients), len(counts), offsets[-1], full, max_tokens)),
    )
    for name, array in zip(_ARRAYS, (offsets, clients, text_of), strict=True):
        save_array(folder / f"{name}.npy", array)
    (folder / _NOTE).write_text(json.dumps({"dtype": dtype.name}))


def token_ids(tokeniser: Tokeniser, texts: list[str], max_tokens: int) -> list[list[int]]:
    """The ids of each text, at most ``max_tokens``; of a longer text the end and the special tokens are kept."""
    tokeniser.truncation_side = "left"
    encoded = tokeniser(
        texts, truncation=True, max_length=max_tokens, return_attention_mask=False, return_token_type_ids=False
    )
    ids: list[list[int]] = encoded["input_ids"]
    return ids


def distinct_texts(
    texts: Path,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_], npt.NDArray[np.int64]]:
    """Which clients share a text.

    Texts are compared by two hashes of 64 bits: among a million different texts, two share both with a probability
    of about one in 10^26.

    Returns:
        The clients, int64 [clients]; whether the client is the first with its text, bool [clients]; the number of
        its text, in order of first occurrence, int64 [clients].
    """
    text = pl.col(TEXT)
    table = collect(pl.scan_parquet(texts, glob=False).select(schema.CLIENT_ID, a=text.hash(0), b=text.hash(1)))
    _, rows, group = np.unique(table.select("a", "b").to_numpy(), axis=0, return_index=True, return_inverse=True)
    first = np.zeros(table.height, dtype=bool)
    first[rows] = True
    by_occurrence = np.empty(len(rows), dtype=np.int64)
    by_occurrence[np.argsort(rows)] = np.arange(len(rows))
    return table[schema.CLIENT_ID].to_numpy(), first, by_occurrence[group.ravel()]


def _chunks(texts: Path, wanted: npt.NDArray[np.bool_]) -> Iterator[list[str]]:
    """The selected texts in their order, one row group of the file at a time."""
    frame = pl.scan_parquet(texts, glob=False).select(TEXT)
    for begin in range(0, len(wanted), TEXTS_AT_ONCE):
        here = wanted[begin : begin + TEXTS_AT_ONCE]
        if here.any():  # tokenisers do not take an empty list
            yield frame.slice(begin, TEXTS_AT_ONCE).collect()[TEXT].filter(pl.Series(here)).to_list()
