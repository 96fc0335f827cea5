"""Event types, columns, dtypes and file names: each written once, here."""

from enum import IntEnum
from typing import ClassVar, Final

import polars as pl

CLIENT_ID: Final = "client_id"
TIMESTAMP: Final = "timestamp"
SKU: Final = "sku"
CATEGORY: Final = "category"
PRICE: Final = "price"
NAME: Final = "name"
URL: Final = "url"
QUERY: Final = "query"
EMBEDDING: Final = "embedding"


class EventType(str):
    """A kind of event, by its name: the stem of the file that holds its events.

    Five are the challenge's, below; a log may have others of its own (`ubp.data.event_types`). Two are equal where
    their names are.

    Attributes:
        subject: the column that says what an event is about: ``sku``, ``url`` or ``query``.
        code: the event type as a number, also its place among events of one client in the same second.
    """

    subject: str
    code: int

    PRODUCT_BUY: ClassVar["EventType"]
    ADD_TO_CART: ClassVar["EventType"]
    REMOVE_FROM_CART: ClassVar["EventType"]
    PAGE_VISIT: ClassVar["EventType"]
    SEARCH_QUERY: ClassVar["EventType"]

    def __new__(cls, name: str, subject: str | None = None, code: int | None = None) -> "EventType":
        """One of the challenge's by its name alone, any other by all three.

        Raises:
            ValueError: there is none of that name.
        """
        if subject is None or code is None:
            if name not in _BY_NAME:
                raise ValueError(f"{name} is no event type; known: {', '.join(_BY_NAME)}")
            return _BY_NAME[name]
        made = super().__new__(cls, name)
        made.subject, made.code = subject, code
        return made

    def __getnewargs__(self) -> tuple[str, str, int]:  # type: ignore[override]  # what pickle and copy make it anew of
        return str(self), self.subject, self.code

    @property
    def value(self) -> str:
        """The name as plain text."""
        return str(self)

    @property
    def file_name(self) -> str:
        return f"{self}.parquet"

    @property
    def has_sku(self) -> bool:
        """True for item events."""
        return self.subject == SKU


_BY_NAME: Final[dict[str, EventType]] = {}
# Events of one client in the same second are put in the order in which a visit to a shop goes.
EVENT_ORDER: Final = tuple(
    EventType(name, subject, code)
    for code, (name, subject) in enumerate(
        (
            ("search_query", QUERY),
            ("page_visit", URL),
            ("add_to_cart", SKU),
            ("remove_from_cart", SKU),
            ("product_buy", SKU),
        )
    )
)
for _event_type in EVENT_ORDER:
    _BY_NAME[str(_event_type)] = _event_type
    setattr(EventType, _event_type.upper(), _event_type)

ITEM_EVENTS: Final = (EventType.PRODUCT_BUY, EventType.ADD_TO_CART, EventType.REMOVE_FROM_CART)
EVENT_TYPES: Final = (*ITEM_EVENTS, EventType.PAGE_VISIT, EventType.SEARCH_QUERY)
"""The challenge's, in the published order."""


class Token(IntEnum):
    """The ids in a sequence of tokens that stand for no value; values begin at `FIRST_TOKEN`."""

    PADDING = 0  # after a sequence's end, never read
    START = 1
    END = 2
    OTHER = 3  # a value that is not in the vocabulary
    NONE = 4  # the event has no such value: a page visit's sku


FIRST_TOKEN: Final = len(Token)

PRODUCT_PROPERTIES: Final = "product_properties.parquet"
OWN_EVENT_TYPES: Final = "event_types.json"
RELEVANT_CLIENTS: Final = "relevant_clients.npy"
ACTIVE_CLIENTS: Final = "active_clients.npy"
TRAIN_TARGET: Final = "train_target.parquet"
VALIDATION_TARGET: Final = "validation_target.parquet"
ENTRY_CLIENT_IDS: Final = "client_ids.npy"
ENTRY_EMBEDDINGS: Final = "embeddings.npy"

# Integer columns may arrive in any integer width; codes and timestamps have forms of their own.
INTEGER_COLUMNS: Final = (CLIENT_ID, SKU, CATEGORY, PRICE, URL)
CODE_COLUMNS: Final = (NAME, QUERY)
PROPERTY_COLUMNS: Final = (SKU, CATEGORY, PRICE, NAME)

CODES: Final = 16  # numbers in a name or a query, one code book a position
CODE_BOOK: Final = 256  # values a position can take
CODES_DTYPE: Final = pl.Array(pl.UInt8, CODES)
TIMESTAMP_DTYPE: Final = pl.Datetime("us")
TIMESTAMP_FORMAT: Final = "%Y-%m-%d %H:%M:%S"
PRICE_BUCKETS: Final = 100

MAX_COLUMNS: Final = 2048  # of an entry


def event_columns(event_type: EventType) -> tuple[str, str, str]:
    """The columns of an event file, in the published order."""
    return CLIENT_ID, TIMESTAMP, event_type.subject
