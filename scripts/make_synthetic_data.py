"""A made-up shop of the challenge's size and shape, streamed to disk.

    python scripts/make_synthetic_data.py scale=1.0 seed=0      -> $CHALLENGE_DATA_PATH/raw, 170 M events
    python scripts/make_synthetic_data.py scale=0.001           a thousandth of it, for trying
    python scripts/make_synthetic_data.py profile=sparse        another shop: default | dense | sparse | purchases_only
    python scripts/make_synthetic_data.py shop.signals.taste=0  clients without tastes of their own

The five event files, the properties and ``input/relevant_clients.npy``. The same settings give the same bytes.
The profiles other than ``default`` have a million clients at scale 1.0: ``dense`` 80 events a client, ``sparse`` three
of all types, ``purchases_only`` three purchases and four files without rows; the latter two ten categories and whole
days. How the shop works:

- Clients, categories, and skus and urls within a category have long tails. Every client occurs.
- Events come in sessions: one client, one moment, one category. A session's moment follows the hours of a day
  and the days of a week. What is bought in a session was put into the cart in it, unless it was bought at
  once; what is removed was put there before.
- A client has favourite categories, which last. Some clients leave and do not come back. Some buy readily and
  most never do. Some skus are sold only from some day on. These are the signals that the tasks can be learnt
  from (``shop.signals``): remove one, and what can be learnt falls.
- A sku's name and a search's query are codes near those of the category they are about.

A session is drawn again for each of the five files, from the same seed, so that nothing is kept between them:
memory holds one chunk of sessions. What belongs to a client, a sku or a session's n-th item is a hash of its
number, not a table.
"""

import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import date, datetime
from functools import cache, cached_property
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import polars as pl
from omegaconf import DictConfig
from polars.io.plugins import register_io_source
from scipy.special import ndtri

from ubp.cli.command import command
from ubp.cli.config import Common, parse
from ubp.cli.output import closing_line
from ubp.data import schema
from ubp.data.paths import DataPaths
from ubp.data.schema import EventType
from ubp.data.text_codes import codes_text
from ubp.io.arrays import save_array
from ubp.io.errors import UserError, require, require_positive
from ubp.io.files import digest_of
from ubp.io.stage import Stage
from ubp.io.together import replaced_together

logger = logging.getLogger(__name__)

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

_VERSION = 1  # raised whenever another shop comes out of the same settings
_HEAD = 10  # softens the head of a long tail, so that its first rank is no outlier
_DAY, _HOUR = 86_400, 3_600  # seconds
_ROW_GROUP = 1_000_000
_TIMES: Final = {"seconds": 1, "days": _DAY}  # what an event's time is a multiple of, in seconds

# Shares of a day's sessions by hour, and of a week's by day from Monday on: quiet nights, busy evenings.
_HOURS: Final = (2, 1, 1, 1, 1, 2, 4, 8, 12, 16, 18, 18, 18, 18, 17, 17, 18, 20, 23, 26, 27, 22, 13, 6)
_WEEKDAYS: Final = (16, 15, 15, 14, 13, 12, 15)


@dataclass
class Tails:
    """Exponents of the long tails: the value of rank r occurs as often as (r + 10)^-exponent says."""

    clients: float
    categories: float
    subjects: float
    pages: float

    def __post_init__(self) -> None:
        """Refuse exponents that `long_tailed` does not take.

        Raises:
            UserError: one is not from 0 to less than 1.
        """
        for name, exponent in vars(self).items():
            require(0 <= exponent < 1, f"shop.tails.{name}", exponent, "from 0 to less than 1")


@dataclass
class Signals:
    """What makes the tasks learnable; see the config."""

    taste: float
    favourites: int
    leavers: float
    stay_days: float
    buyers: float
    new_skus: float

    def __post_init__(self) -> None:
        """Refuse numbers that make no sense.

        Raises:
            UserError: a share is not one, or a number is not positive.
        """
        for name in ("taste", "leavers", "new_skus"):
            share = getattr(self, name)
            require(0 <= share <= 1, f"shop.signals.{name}", share, "a share from 0 to 1")
        require_positive(self, "shop.signals", "favourites")
        require(self.stay_days > 0, "shop.signals.stay_days", self.stay_days, "more than 0")
        require(self.buyers >= 0, "shop.signals.buyers", self.buyers, "at least 0")


@dataclass
class Shop:
    """Sizes of the shop at scale 1.0 and how it works; see the config."""

    rows: dict[str, int]
    clients: int
    relevant_clients: int
    regulars: float
    skus: int
    urls: int
    queries: int
    categories: int
    start: str
    days: int
    categories_power: float
    session_has: str
    session_events: float
    time: str
    general_pages: float
    tails: Tails
    signals: Signals

    def __post_init__(self) -> None:
        """Refuse numbers that make no sense.

        Raises:
            UserError: rows of other than the five event types, no day to start on, sessions of nothing.
        """
        known = [event_type.value for event_type in schema.EVENT_TYPES]
        require(sorted(self.rows) == sorted(known), "shop.rows", list(self.rows), f"of {', '.join(known)}")
        for name, count in self.rows.items():
            require(count >= 0, f"shop.rows.{name}", count, "at least 0")
        filled = [name for name, count in self.rows.items() if count]
        require(self.session_has in filled, "shop.session_has", self.session_has, f"a type with rows: {filled}")
        require_positive(self, "shop", "days", "session_events")
        require(0 <= self.categories_power <= 1, "shop.categories_power", self.categories_power, "from 0 to 1")
        require(self.time in _TIMES, "shop.time", self.time, " or ".join(_TIMES))
        require(0 < self.regulars <= 1, "shop.regulars", self.regulars, "a share above 0, at most 1")
        require(0 <= self.general_pages <= 1, "shop.general_pages", self.general_pages, "a share from 0 to 1")
        try:
            date.fromisoformat(self.start)
        except ValueError as error:
            raise UserError(f"shop.start={self.start}: not a day; write it as 2022-06-01") from error

    def scaled(self, scale: float) -> "Shop":
        """The shop of another size: its counts times ``scale``, categories times a power of it; what is 0 stays 0."""

        def some(count: int) -> int:
            return max(round(count * scale), 1)

        categories = max(round(self.categories * scale**self.categories_power), 1)
        counts = {name: some(getattr(self, name)) for name in ("clients", "relevant_clients", "urls", "queries")}
        skus = max(some(self.skus), categories)  # a category has one sku at least
        counts |= {"skus": skus, "urls": max(counts["urls"], categories), "categories": categories}
        rows = {name: some(count) if count else 0 for name, count in self.rows.items()}
        # Every client has a session, every session an event of this type.
        counts["clients"] = min(counts["clients"], rows[self.session_has])
        counts["relevant_clients"] = min(counts["relevant_clients"], counts["clients"])
        return Shop(**(vars(self) | counts | {"rows": rows}))

    @property
    def sessions(self) -> int:
        return max(round(self.rows[self.session_has] / self.session_events), self.clients)


@dataclass
class Order:
    """What is asked for; see the config."""

    scale: float
    timestamps: str
    chunk: int

    def __post_init__(self) -> None:
        """Refuse what cannot be made.

        Raises:
            UserError: no size, no such form of timestamps, an empty chunk.
        """
        require(self.scale > 0, "scale", self.scale, "more than 0")
        require(self.timestamps in ("text", "datetime"), "timestamps", self.timestamps, "text or datetime")
        require_positive(self, "", "chunk")


# Chance ------------------------------------------------------------------------------------------------------


def hashed(numbers: npt.ArrayLike, salt: int) -> Floats:
    """A number in [0, 1) that belongs to each integer: float64, of the same shape.

    The finaliser of Steele, Lea and Flood, "Fast splittable pseudorandom number generators" (2014).
    """
    x = np.asarray(numbers).astype(np.uint64) + np.uint64((salt + 1) * 0x9E3779B97F4A7C15 % 2**64)
    x ^= x >> np.uint64(30)
    x *= np.uint64(0xBF58476D1CE4E5B9)
    x ^= x >> np.uint64(27)
    x *= np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    return (x >> np.uint64(11)).astype(np.float64) * 2.0**-53


def long_tailed(uniform: Floats, ranks: npt.ArrayLike, exponent: float) -> Ints:
    """Ranks from 0 on, rank r as often as (r + 10)^-exponent: the inverse of the cumulated power law.

    Args:
        uniform: float64 [n] in [0, 1).
        ranks: how many there are, one number or [n].
        exponent: from 0 (all alike) to less than 1 (long head).

    Returns:
        int64 [n], each below its ``ranks``.
    """
    count, power = np.asarray(ranks), 1.0 - exponent
    low, high = _HEAD**power, (count + _HEAD) ** power
    drawn: Floats = (low + uniform * (high - low)) ** (1.0 / power) - _HEAD
    ranks_drawn: Ints = np.minimum(drawn.astype(np.int64), count - 1)
    return ranks_drawn


def shared_out(total: int, weights: Floats) -> Ints:
    """How many of ``total`` fall to each weight: int64 [weights], systematic, so that they sum up exactly."""
    share = np.cumsum(weights)
    limits = np.floor(share * (total / share[-1]) + 0.5).astype(np.int64) if share[-1] else np.zeros(len(share), int)
    limits[-1] = total
    return np.diff(limits, prepend=0)


def scattered(ranks: npt.ArrayLike, count: int, salt: int) -> Ints:
    """Ids of ranks: each rank below ``count`` gets one of its own from 1 on, in no order that shows.

    rank × a + b modulo a prime p ≥ count, which puts no two ranks on one id.
    """
    prime = _prime_from(count)
    factor, shift = np.random.default_rng(salt).integers(1, prime, 2)
    ids: Ints = (np.asarray(ranks, np.int64) * factor + shift) % prime + 1
    return ids


@cache
def _prime_from(number: int) -> int:
    number = max(number, 2)
    while any(number % divisor == 0 for divisor in range(2, int(number**0.5) + 1)):
        number += 1
    return number


# The shop ----------------------------------------------------------------------------------------------------

# What a hash is for, and what a generator is for: each gets numbers of its own.
_FAVOURITE, _JOIN, _LEAVES, _STAY, _BUYER, _LAUNCH, _PRICE, _ITEM, _CODE, _IDS, _SALTS = range(0, 110, 10)
_SESSIONS, _CLIENTS, _PROPERTIES, _WORDS, _EVENTS = range(5)


@dataclass(frozen=True)
class Sessions:
    """Sessions side by side.

    Attributes:
        number: int64 [sessions], over the whole log.
        client: int64 [sessions], the client's rank.
        start: float64 [sessions], seconds since the log's start.
        category: int64 [sessions], what it is about.
        readiness: float64 [sessions], of the client to buy.
        appetite: float64 [sessions], for items, in this session.
    """

    number: Ints
    client: Ints
    start: Floats
    category: Ints
    readiness: Floats
    appetite: Floats

    def __len__(self) -> int:
        return len(self.number)


class SyntheticShop:
    """What every part of the log is drawn from.

    Args:
        shop: sizes, already scaled.
        seed: of everything.
        chunk: sessions that are made at a time.
    """

    def __init__(self, shop: Shop, seed: int, chunk: int) -> None:
        self.shop, self.seed, self.chunk = shop, seed, chunk
        self.start = datetime.fromisoformat(shop.start)
        self._hours = self._rhythm()
        # A category's skus are the ranks first_sku[category] : first_sku[category + 1]; the same for urls.
        self.first_sku = self._cut(shop.skus)
        self.first_url = self._cut(shop.urls)

    def _rhythm(self) -> Floats:
        """Share of the sessions before each hour of the log: float64 [hours + 1], from 0 to 1."""
        weekday = (np.arange(self.shop.days) + self.start.weekday()) % len(_WEEKDAYS)
        share = np.outer(np.array(_WEEKDAYS)[weekday], _HOURS).ravel().cumsum()
        return np.concatenate([[0.0], share / share[-1]])

    def _cut(self, count: int) -> Ints:
        """Where each category's part of ``count`` values begins, and where the last one ends."""
        categories = self.shop.categories
        weights = (np.arange(categories, dtype=np.float64) + _HEAD) ** -self.shop.tails.categories
        sizes = 1 + shared_out(count - categories, weights)
        return np.concatenate([[0], np.cumsum(sizes)])

    def random(self, what: int, chunk: int = 0) -> np.random.Generator:
        return np.random.default_rng([self.seed, what, chunk])

    def salt(self, what: int) -> int:
        return self.seed * _SALTS + what

    # Clients

    def stay(self, client: Ints) -> tuple[Floats, Floats]:
        """When clients come first and leave, in seconds: float64 [clients] each.

        Half are there from the start.
        """
        signals, last = self.shop.signals, float(self.shop.days * _DAY)
        join = np.maximum(hashed(client, self.salt(_JOIN)) * 2 - 1, 0) * last * 0.95
        stays = -np.log1p(-hashed(client, self.salt(_STAY))) * signals.stay_days * _DAY
        leaves = hashed(client, self.salt(_LEAVES)) < signals.leavers
        return join, np.where(leaves, np.minimum(join + _DAY + stays, last), last)

    def readiness(self, client: Ints) -> Floats:
        """How ready clients are to buy, lognormal: float64 [clients]."""
        uniform = np.maximum(hashed(client, self.salt(_BUYER)), 2.0**-53)
        readiness: Floats = np.exp(self.shop.signals.buyers * ndtri(uniform))
        return readiness

    def favourite(self, client: Ints, which: Ints) -> Ints:
        """One of a client's own categories: int64 [clients]."""
        drawn = hashed(client * self.shop.signals.favourites + which, self.salt(_FAVOURITE))
        return long_tailed(drawn, self.shop.categories, self.shop.tails.categories)

    # Sessions

    def chunks(self) -> range:
        """The numbers of all sessions, a step a chunk."""
        return range(0, self.shop.sessions, self.chunk)

    def sessions(self, begin: int) -> Sessions:
        """The chunk of sessions from ``begin`` on, the same each time it is asked."""
        rng, shop = self.random(_SESSIONS, begin), self.shop
        number = np.arange(begin, min(begin + self.chunk, shop.sessions))
        # Spread evenly over all sessions, each client has its first one; the regulars come again, with a long tail.
        first = number * shop.clients // shop.sessions
        regulars = max(round(shop.clients * shop.regulars), 1)
        again = long_tailed(rng.random(len(number)), regulars, shop.tails.clients)
        client = np.where((number + 1) * shop.clients // shop.sessions > first, first, again)
        own = self.favourite(client, rng.integers(0, shop.signals.favourites, len(number)))
        anyones = long_tailed(rng.random(len(number)), shop.categories, shop.tails.categories)
        return Sessions(
            number=number,
            client=client,
            start=self._moments(client, rng),
            category=np.where(rng.random(len(number)) < shop.signals.taste, own, anyones),
            readiness=self.readiness(client),
            appetite=rng.exponential(size=len(number)),
        )

    def _moments(self, client: Ints, rng: np.random.Generator) -> Floats:
        """Starts of sessions within the clients' stay, in the rhythm of day and week."""
        join, leave = self.stay(client)
        hours = np.arange(len(self._hours), dtype=np.float64) * _HOUR
        low, high = np.interp(join, hours, self._hours), np.interp(leave, hours, self._hours)
        return np.interp(low + rng.random(len(client)) * (high - low), self._hours, hours)

    # Events

    def events(self, event_type: EventType, begin: int) -> pl.DataFrame:
        """The events of one type in the chunk from ``begin`` on.

        Returns:
            ``client_id``, ``timestamp`` Int64 (seconds since the log's start) and the subject's column.
        """
        sessions, rng = self.sessions(begin), self.random(_EVENTS + event_type.code, begin)
        counts = self._counts(event_type, sessions, rng)
        of = np.repeat(np.arange(len(sessions)), counts)
        place = np.arange(len(of)) - np.repeat(np.cumsum(counts) - counts, counts)
        order = rng.permutation(len(of))  # files are not sorted
        of, place = of[order], place[order]
        moment = (sessions.start[of] + self._offset(event_type, place, rng)).astype(np.int64)
        seconds = np.minimum(moment, self.shop.days * _DAY - 1)
        columns = {
            schema.CLIENT_ID: scattered(sessions.client[of], self.shop.clients, self.salt(_IDS)),
            schema.TIMESTAMP: seconds - seconds % _TIMES[self.shop.time],
        }
        return pl.DataFrame(columns).with_columns(self._subject(event_type, sessions, of, place, rng))

    def _counts(self, event_type: EventType, sessions: Sessions, rng: np.random.Generator) -> Ints:
        """How many events of a type each session has."""
        total = self.shop.rows[event_type]
        begin, end = int(sessions.number[0]), int(sessions.number[-1]) + 1
        rows = total * end // self.shop.sessions - total * begin // self.shop.sessions
        at_least = int(event_type == self.shop.session_has)
        return at_least + shared_out(rows - at_least * len(sessions), self._inclination(event_type, sessions, rng))

    def _inclination(self, event_type: EventType, sessions: Sessions, rng: np.random.Generator) -> Floats:
        """What the events of a type are shared out by among sessions: float64 [sessions]."""
        if event_type == EventType.PAGE_VISIT:
            return rng.exponential(size=len(sessions))
        if event_type == EventType.SEARCH_QUERY:
            return rng.exponential(size=len(sessions)) ** 2
        # One appetite for all three: who buys much in a session adds much, and sometimes removes some.
        power = {EventType.PRODUCT_BUY: 1.0, EventType.ADD_TO_CART: 0.7, EventType.REMOVE_FROM_CART: 0.5}
        return sessions.appetite * sessions.readiness ** power[event_type]

    def _offset(self, event_type: EventType, place: Ints, rng: np.random.Generator) -> Floats:
        """Seconds from the session's start to its n-th event of a type."""
        begin, pace = {
            EventType.SEARCH_QUERY: (0, 60),
            EventType.PAGE_VISIT: (0, 40),
            EventType.ADD_TO_CART: (120, 90),
            EventType.REMOVE_FROM_CART: (400, 60),
            EventType.PRODUCT_BUY: (600, 0),  # one order, one moment
        }[event_type]
        return begin + (place + rng.random(len(place))) * pace

    def _subject(
        self, event_type: EventType, sessions: Sessions, of: Ints, place: Ints, rng: np.random.Generator
    ) -> pl.Series:
        category = sessions.category[of]
        if event_type == EventType.PAGE_VISIT:
            return pl.Series(schema.URL, scattered(self._pages(category, rng), self.shop.urls, self.salt(_IDS + 1)))
        if event_type == EventType.SEARCH_QUERY:
            return self._queries(category, rng)
        if event_type == EventType.REMOVE_FROM_CART:
            place = place + 1  # rarely what was bought
        items = self._items(sessions.number[of], place, sessions.start[of], category)
        return pl.Series(schema.SKU, self.sku_ids(items))

    def _pages(self, category: Ints, rng: np.random.Generator) -> Ints:
        """Ranks of the urls of visits: most of their category, some of the whole shop (its home, its cart)."""
        first, last = self.first_url[category], self.first_url[category + 1]
        rank = first + long_tailed(rng.random(len(category)), last - first, self.shop.tails.subjects)
        general = np.flatnonzero(rng.random(len(category)) < self.shop.general_pages)
        rank[general] = long_tailed(rng.random(len(general)), self.shop.urls, self.shop.tails.pages)
        return rank

    def _items(self, session: Ints, place: Ints, start: Floats, category: Ints) -> Ints:
        """The n-th item of a session, whichever event it is part of: ranks of skus that are sold by then."""
        first, last = self.first_sku[category], self.first_sku[category + 1]
        rank = first
        sold = np.zeros(len(first), bool)
        for attempt in range(3):  # then the category's first sku, which is always sold
            drawn = hashed(session * 64 + place, self.salt(_ITEM + attempt))
            asked = first + long_tailed(drawn, last - first, self.shop.tails.subjects)
            rank = np.where(sold, rank, asked)
            sold |= self.launch(asked) <= start
        return np.where(sold, rank, first)

    def launch(self, rank: Ints) -> Floats:
        """The second from which on a sku is sold, 0 for most: float64 [skus]."""
        share, drawn = self.shop.signals.new_skus, hashed(rank, self.salt(_LAUNCH))
        return np.where(drawn < share, drawn / max(share, 2.0**-53), 0.0) * self.shop.days * _DAY

    def sku_ids(self, rank: Ints) -> Ints:
        return scattered(rank, self.shop.skus, self.salt(_IDS + 2))

    # Codes

    @cached_property
    def _words(self) -> npt.NDArray[np.uint8]:
        """Codes at the middle of each category: uint8 [categories, 16]."""
        return self.random(_WORDS).integers(0, schema.CODE_BOOK, (self.shop.categories, schema.CODES), np.uint8)

    def codes(self, category: Ints, number: Ints) -> npt.NDArray[np.uint8]:
        """Codes of the number-th text about a category: uint8 [texts, 16], a third of them its own."""
        own = hashed(number[:, None] * schema.CODES + np.arange(schema.CODES), self.salt(_CODE))
        is_own = hashed(number[:, None] * schema.CODES + np.arange(schema.CODES), self.salt(_CODE + 1)) < 1 / 3
        return np.where(is_own, (own * schema.CODE_BOOK).astype(np.uint8), self._words[category])

    def _queries(self, category: Ints, rng: np.random.Generator) -> pl.Series:
        a_category = max(self.shop.queries // self.shop.categories, 1)
        number = long_tailed(rng.random(len(category)), a_category, self.shop.tails.subjects)
        return codes_text(self.codes(category, category * a_category + number)).alias(schema.QUERY)

    def properties(self) -> pl.DataFrame:
        """``sku``, ``category``, ``price``, ``name`` of every sku."""
        rank = np.arange(self.shop.skus)
        category = np.repeat(np.arange(self.shop.categories), np.diff(self.first_sku))
        middle = hashed(category, self.salt(_PRICE)) * schema.PRICE_BUCKETS
        price = middle + 20 * (hashed(rank, self.salt(_PRICE + 1)) - 0.5)
        columns = {
            schema.SKU: self.sku_ids(rank),
            schema.CATEGORY: scattered(category, self.shop.categories, self.salt(_IDS + 3)),
            schema.PRICE: np.clip(price, 0, schema.PRICE_BUCKETS - 1).astype(np.int64),
        }
        names = codes_text(self.codes(category, rank + self.shop.queries)).alias(schema.NAME)
        order = self.random(_PROPERTIES).permutation(self.shop.skus)
        return pl.DataFrame(columns).with_columns(names)[order]

    def relevant_clients(self) -> Ints:
        """A draw of clients, the more likely the more they come and buy: ids, int64, ascending.

        One client after the other without replacement, by exponential races (Efraimidis and Spirakis, 2006).
        """
        keys = np.empty(self.shop.clients, np.float32)
        for begin in range(0, self.shop.clients, self.chunk):
            client = np.arange(begin, min(begin + self.chunk, self.shop.clients))
            likely = (client + _HEAD) ** -self.shop.tails.clients * (1 + self.readiness(client))
            keys[client] = np.log(self.random(_CLIENTS, begin).exponential(size=len(client)) / likely)
        drawn = np.argpartition(keys, self.shop.relevant_clients - 1)[: self.shop.relevant_clients]
        return np.sort(scattered(drawn, self.shop.clients, self.salt(_IDS)))


# Writing -----------------------------------------------------------------------------------------------------


def streamed(shop: SyntheticShop, event_type: EventType, timestamps: str) -> pl.LazyFrame:
    """The events of one type, made chunk by chunk while they are read."""
    subject = {event_type.subject: pl.String if event_type.subject == schema.QUERY else pl.Int64}

    def chunks(columns: list[str] | None, *_: object) -> Iterator[pl.DataFrame]:
        return (shop.events(event_type, begin).select(columns or pl.all()) for begin in shop.chunks())

    events = register_io_source(chunks, schema={schema.CLIENT_ID: pl.Int64, schema.TIMESTAMP: pl.Int64, **subject})
    time = pl.lit(shop.start, schema.TIMESTAMP_DTYPE) + pl.duration(seconds=pl.col(schema.TIMESTAMP))
    text = time.dt.strftime(schema.TIMESTAMP_FORMAT)
    return events.with_columns((text if timestamps == "text" else time).alias(schema.TIMESTAMP))


def outputs(paths: DataPaths) -> list[Path]:
    """The files that the shop is made of."""
    return [
        *(paths.raw / event_type.file_name for event_type in schema.EVENT_TYPES),
        paths.properties,
        paths.relevant_clients,
    ]


def write(shop: SyntheticShop, paths: DataPaths, timestamps: str) -> None:
    """Write the raw layout, all files or none; what was split from an earlier shop goes with that."""
    files = outputs(paths)
    split = [file for folder in (paths.input, paths.target) for file in folder.rglob("*") if file.is_file()]
    stale = [paths.event_types, *(file for file in split if file not in files)]
    with replaced_together(files, paths.new_files[0], stale) as asides:
        for event_type in schema.EVENT_TYPES:
            aside = asides[paths.raw / event_type.file_name]
            streamed(shop, event_type, timestamps).sink_parquet(aside, row_group_size=_ROW_GROUP)
            logger.info("%s: %s events", event_type.file_name, f"{shop.shop.rows[event_type]:,}")
        shop.properties().write_parquet(asides[paths.properties], row_group_size=_ROW_GROUP)
        save_array(asides[paths.relevant_clients], shop.relevant_clients())


def _refuse_to_replace(stage: Stage, paths: DataPaths, overwrite: bool) -> None:
    """Leave somebody else's data and a shop of other settings alone.

    Raises:
        UserError: there is one of these.
    """
    if stage.has_finished() and not overwrite:
        raise UserError(
            f"{paths.raw}: holds a synthetic shop of other settings; replace it with overwrite=True, or set "
            "CHALLENGE_DATA_PATH to another folder"
        )
    if not stage.is_begun() and any(path.exists() for path in outputs(paths)):
        raise UserError(
            f"{paths.raw}: holds data that this command did not make; set CHALLENGE_DATA_PATH to another folder, or "
            "delete the parquets there"
        )


@command("scripts", "make_synthetic_data")
def main(config: DictConfig) -> None:
    common, paths = Common.of(config), Common.of(config).paths
    order = parse(Order, config, ["scale", "timestamps", "chunk"])
    shop = SyntheticShop(parse(Shop, config, at="shop").scaled(order.scale), common.seed, order.chunk)
    made_from = {"version": _VERSION, "seed": common.seed, "settings": digest_of(asdict(shop.shop), asdict(order))}
    stage = Stage("synthetic data", tuple(outputs(paths)), lambda: made_from)
    with stage.once(common.overwrite):
        _refuse_to_replace(stage, paths, common.overwrite)
        paths.raw.mkdir(parents=True, exist_ok=True)
        stage.begin()
        write(shop, paths, order.timestamps)
    rows = sum(shop.shop.rows.values())
    closing_line(f"synthetic data · {rows:,} events of {shop.shop.clients:,} clients", paths.raw)


if __name__ == "__main__":
    main()
