"""What a sku, a url or a query is, as a vector: also for one that no event of the training was about.

Ids have no vocabulary. Each is hashed twice, with different seeds, into one table for skus, categories and urls, and is
the two rows side by side: ids that collide under one hash are told apart by the other (Coleman et al. 2023, "Unified
Embedding", arXiv 2305.12102). Prices and codes are learned tokens. So a new sku is known by its category, its price and
its name.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Self

import numpy as np
import numpy.typing as npt
import polars as pl
import torch
from torch import Tensor, nn

from ubp.data import schema
from ubp.data.history import ChallengeData
from ubp.data.schema import CODE_BOOK, CODES, PRICE_BUCKETS
from ubp.io.errors import require, require_positive

HASHES: Final = 2  # of an id
IDS, PRICE, CODE = "ids", "price", "codes"  # keys of a batch
_SALTS: Final = {schema.SKU: 1, schema.CATEGORY: 2, schema.URL: 3}  # sku 7 and url 7 are two things
_AT_ONCE: Final = 65_536  # contents that are encoded at a time where there may be millions


def mixed(numbers: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The bits of each number well mixed: splitmix64's output function, a bijection of 64 bits.

    Steele, Lea & Flood, "Fast Splittable Pseudorandom Number Generators", 2014. The arithmetic is that of unsigned
    integers alone, so it is the same in every process, on every machine and in every version of Python.
    """
    numbers = numbers + np.uint64(0x9E3779B97F4A7C15)
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return numbers ^ (numbers >> np.uint64(31))


def hashed(column: str, ids: npt.NDArray[np.int64], rows: int) -> npt.NDArray[np.int32]:
    """The rows of the shared table that stand for some ids: int32 [ids, HASHES].

    Args:
        column: whose ids: ``sku``, ``category`` or ``url``.
        ids: int64 [ids].
        rows: of the table.
    """
    numbers = np.ascontiguousarray(ids).view(np.uint64)
    found = np.empty((len(ids), HASHES), np.int32)
    for number in range(HASHES):
        seed = mixed(np.array([number * len(_SALTS) + _SALTS[column]], np.uint64))
        found[:, number] = mixed(mixed(numbers) ^ seed) % np.uint64(rows)
    return found


@dataclass
class ContentSettings:
    """Numbers of the content encoder.

    Attributes:
        width: of its vectors.
        rows: of the table that all hashed ids share.
        id_width: of a row of it; an id has `HASHES` of them.
        token_width: of the vector of a price, and of a name's or a query's codes.
        id_dropout: share of the items that in training are known by category, price and name alone, so that these
            mean something for a sku that was never seen.
    """

    width: int
    rows: int
    id_width: int
    token_width: int
    id_dropout: float

    def __post_init__(self) -> None:
        """Refuse numbers that make no sense.

        Raises:
            UserError: a number out of its range.
        """
        require_positive(self, "model.content", "width", "rows", "id_width", "token_width")
        require(0 <= self.id_dropout < 1, "model.content.id_dropout", self.id_dropout, "at least 0 and below 1")
        require(self.rows < 2**31, "model.content.rows", self.rows, "below 2^31")


@dataclass(frozen=True)
class Contents:
    """What is known of some skus, urls or queries, ready for the encoder.

    Attributes:
        ids: int32 [n, 2 × HASHES]: a sku's rows and its category's; a url's rows, then zeros; zeros for a query.
        price: uint8 [n], buckets; 0 where there is none.
        codes: uint8 [n, CODES], of a name or a query; 0 where there are none.
    """

    ids: npt.NDArray[np.int32]
    price: npt.NDArray[np.uint8]
    codes: npt.NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def empty(cls, *shape: int) -> Self:
        """Zeros, of any shape."""
        ids = np.zeros((*shape, 2 * HASHES), np.int32)
        return cls(ids, np.zeros(shape, np.uint8), np.zeros((*shape, CODES), np.uint8))

    @classmethod
    def of_items(
        cls,
        skus: npt.NDArray[np.int64],
        categories: npt.NDArray[np.int64],
        prices: npt.NDArray[np.int64],
        names: npt.NDArray[np.uint8],
        rows: int,
    ) -> Self:
        """Of skus with their properties.

        Args:
            skus: int64 [n].
            categories: int64 [n].
            prices: int64 [n], buckets; one above the last known counts as the last.
            names: uint8 [n, CODES].
            rows: of the encoder's table.
        """
        ids = np.concatenate([hashed(schema.SKU, skus, rows), hashed(schema.CATEGORY, categories, rows)], axis=1)
        return cls(ids, np.clip(prices, 0, PRICE_BUCKETS - 1).astype(np.uint8), np.asarray(names))

    @classmethod
    def of_urls(cls, urls: npt.NDArray[np.int64], rows: int) -> Self:
        """Of urls, int64 [n]."""
        ids = np.zeros((len(urls), 2 * HASHES), np.int32)
        ids[:, :HASHES] = hashed(schema.URL, urls, rows)
        return cls(ids, _zeros(len(urls)), _zeros(len(urls), CODES))

    @classmethod
    def of_queries(cls, queries: npt.NDArray[np.uint8]) -> Self:
        """Of queries, uint8 [n, CODES]."""
        ids = np.broadcast_to(np.int32(0), (len(queries), 2 * HASHES))
        return cls(ids, _zeros(len(queries)), queries)

    def take(self, places: npt.NDArray[np.int64] | slice) -> "Contents":
        """Some of them."""
        return Contents(self.ids[places], self.price[places], self.codes[places])

    def tensors(self) -> dict[str, Tensor]:
        """By the keys of a batch: int32 [n, 2 × HASHES], uint8 [n] and [n, CODES]."""
        return {
            IDS: torch.from_numpy(np.array(self.ids)),
            PRICE: torch.from_numpy(np.array(self.price)),
            CODE: torch.from_numpy(np.array(self.codes)),
        }


def _zeros(*shape: int) -> npt.NDArray[np.uint8]:
    """Of any shape, in the memory of one: a log may have millions of queries."""
    return np.broadcast_to(np.uint8(0), shape)


def contents_of_skus(history: ChallengeData, skus: npt.NDArray[np.int64], rows: int) -> Contents:
    """What the properties say of some skus.

    Args:
        history: whose properties.
        skus: int64 [n], ascending, each once, all with properties.
        rows: of the encoder's table.
    """
    columns = (schema.CATEGORY, schema.PRICE, schema.NAME)
    known = history.properties_of(pl.Series(skus, dtype=pl.Int64), *columns)
    found, categories, prices, names = (known[name].to_numpy() for name in (schema.SKU, *columns))
    return Contents.of_items(found, categories, prices, names, rows)


class Codes(nn.Module):
    """Sixteen codes as the mean of sixteen learned vectors, a table for each position."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.table = nn.EmbeddingBag(CODES * CODE_BOOK, width, mode="mean")
        nn.init.normal_(self.table.weight)
        self.register_buffer("firsts", torch.arange(CODES) * CODE_BOOK, persistent=False)

    def forward(self, codes: Tensor) -> Tensor:
        """Integers [n, CODES] to float [n, width]."""
        vectors: Tensor = self.table(codes.long() + self.get_buffer("firsts"))
        return vectors * CODES**0.5  # of the length of one of them, as far as they are independent


class ContentEncoder(nn.Module):
    """Skus, urls and queries as vectors of one width.

    Args:
        settings: numbers.
    """

    def __init__(self, settings: ContentSettings) -> None:
        super().__init__()
        s = settings
        self.settings, self.width = s, s.width
        self.ids = nn.Embedding(s.rows, s.id_width)
        nn.init.normal_(self.ids.weight, std=0.3)  # shorter than the tokens: it is learned what an id means
        self.price = nn.Embedding(PRICE_BUCKETS, s.token_width)
        self.names, self.searches = Codes(s.token_width), Codes(s.token_width)
        self.item = nn.Linear(2 * HASHES * s.id_width + 2 * s.token_width, s.width)
        self.url = nn.Linear(HASHES * s.id_width, s.width)
        self.query = nn.Linear(s.token_width, s.width)

    def items(self, contents: Mapping[str, Tensor]) -> Tensor:
        """Skus as float [n, width]; see `Contents.tensors`."""
        hashes = self.ids(contents[IDS]).flatten(1)
        if self.training and self.settings.id_dropout:
            own = HASHES * self.settings.id_width
            kept = torch.rand(len(hashes), 1, device=hashes.device) >= self.settings.id_dropout
            hashes = torch.cat([hashes[:, :own] * kept, hashes[:, own:]], dim=1)
        parts = [hashes, self.price(contents[PRICE].int()), self.names(contents[CODE])]
        vectors: Tensor = self.item(torch.cat(parts, dim=1))
        return vectors

    def urls(self, contents: Mapping[str, Tensor]) -> Tensor:
        """Urls as float [n, width]."""
        vectors: Tensor = self.url(self.ids(contents[IDS][:, :HASHES]).flatten(1))
        return vectors

    def queries(self, contents: Mapping[str, Tensor]) -> Tensor:
        """Queries as float [n, width]."""
        vectors: Tensor = self.query(self.searches(contents[CODE]))
        return vectors


@torch.inference_mode()
def item_vectors(encoder: ContentEncoder, contents: Contents) -> npt.NDArray[np.float32]:
    """Vectors of skus by a trained encoder, a block of them at a time: float32 [n, width].

    Args:
        encoder: on the CPU; in training mode or not, nothing is dropped.
        contents: of the skus.
    """
    was_training = encoder.training
    encoder.eval()
    found = np.empty((len(contents), encoder.width), np.float32)
    for begin in range(0, len(contents), _AT_ONCE):
        block = slice(begin, begin + _AT_ONCE)
        found[block] = encoder.items(contents.take(block).tensors()).numpy()
    encoder.train(was_training)
    return found
