"""Values and their tokens."""

from collections.abc import Sized
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ubp.data.schema import FIRST_TOKEN, Token
from ubp.sequences.arrays import Array, Int64, find


def event_tokens(event_types: Sized) -> int:
    """One more than the largest token of a log's event types: the rows of an embedding table."""
    return FIRST_TOKEN + len(event_types)


@dataclass(frozen=True)
class Vocabulary:
    """Values and their tokens: ``values[i]`` has the token ``FIRST_TOKEN + i``, so none has a special one.

    Attributes:
        values: int64 [values], the most frequent first; of equally frequent ones, the smallest.
        counts: int64 [values], how often each occurred.
    """

    values: Int64
    counts: Int64

    @classmethod
    def of_counts(cls, values: Int64, counts: Int64, top: int | None = None, min_count: int = 1) -> "Vocabulary":
        """The most frequent values.

        Args:
            values: int64 [n], each once.
            counts: int64 [n]; a value that never occurred gets no token.
            top: how many at most; None for all.
            min_count: leave out what occurs less often.
        """
        often = np.flatnonzero(counts >= max(min_count, 1))
        order = often[np.lexsort((values[often], -counts[often]))][:top]
        return cls(values[order], counts[order])

    @property
    def size(self) -> int:
        """One more than the largest token: the rows of an embedding table."""
        return FIRST_TOKEN + len(self.values)

    @property
    def dtype(self) -> type[np.uint16] | type[np.int32]:
        """The narrowest of the two dtypes that hold every token."""
        return np.uint16 if self.size <= 2**16 else np.int32

    def encode(self, values: npt.ArrayLike) -> Array:
        """Tokens of values, ``Token.OTHER`` for one that is not here: uint16 or int32, of the same shape."""
        asked = np.asarray(values, dtype=np.int64)
        if not len(self.values):
            return np.full(asked.shape, Token.OTHER, dtype=self.dtype)
        order = np.argsort(self.values)
        places, known = find(self.values[order], asked)
        return np.where(known, order[places] + FIRST_TOKEN, Token.OTHER).astype(self.dtype)

    def decode(self, tokens: npt.ArrayLike) -> Int64:
        """Values of tokens: int64, of the same shape.

        Raises:
            ValueError: a token stands for no value.
        """
        places = np.asarray(tokens, dtype=np.int64) - FIRST_TOKEN
        if places.size and not (places.min() >= 0 and places.max() < len(self.values)):
            raise ValueError(f"only tokens from {FIRST_TOKEN} to {self.size - 1} stand for a value")
        return self.values[places]
