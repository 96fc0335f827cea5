"""Event types, columns, dtypes and file names: each written once, here."""

from enum import IntEnum, StrEnum
from typing import Final

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


class EventType(StrEnum):
    """The five kinds of event; the value is the stem of the file that holds them."""

    PRODUCT_BUY = "product_buy"
    ADD_TO_CART = "add_to_cart"
    REMOVE_FROM_CART = "remove_from_cart"
    PAGE_VISIT = "page_visit"
    SEARCH_QUERY = "search_query"

    @property
    def file_name(self) -> str:
        return f"{self.value}.parquet"

    @property
    def has_sku(self) -> bool:
        """True for the three item events."""
        return self in ITEM_EVENTS

    @property
    def code(self) -> int:
        """The event type as a number: its place in `EVENT_ORDER`."""
        return EVENT_ORDER.index(self)

    @property
    def subject(self) -> str:
        """The column that says what the event is about: ``sku``, ``url`` or ``query``."""
        return {EventType.PAGE_VISIT: URL, EventType.SEARCH_QUERY: QUERY}.get(self, SKU)


ITEM_EVENTS: Final = (EventType.PRODUCT_BUY, EventType.ADD_TO_CART, EventType.REMOVE_FROM_CART)

# Events of one client in the same second are put in the order in which a visit to a shop goes.
EVENT_ORDER: Final = (
    EventType.SEARCH_QUERY,
    EventType.PAGE_VISIT,
    EventType.ADD_TO_CART,
    EventType.REMOVE_FROM_CART,
    EventType.PRODUCT_BUY,
)


class Token(IntEnum):
    """The ids in a sequence of tokens that stand for no value; values begin at `FIRST_TOKEN`."""

    PADDING = 0  # after a sequence's end, never read
    START = 1
    END = 2
    OTHER = 3  # a value that is not in the vocabulary
    NONE = 4  # the event has no such value: a page visit's sku


FIRST_TOKEN: Final = len(Token)

PRODUCT_PROPERTIES: Final = "product_properties.parquet"
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
