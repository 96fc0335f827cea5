"""What is known of items, as the challenge's properties: category, price bucket, and the codes of a name."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import polars as pl

from ubp.data import own_ids, schema
from ubp.data.log_sources import SUBJECT, VALUE
from ubp.data.own_ids import together, with_ids
from ubp.data.reading import collect

Prices = npt.NDArray[np.float64]

NO_CATEGORY: Final = 0
MIDDLE: Final = schema.PRICE_BUCKETS // 2  # bucket of an item without a price

ATTRIBUTES: Final = (schema.CATEGORY, schema.PRICE, schema.NAME)
_LISTED: Final = {SUBJECT: pl.Int64, schema.CATEGORY: pl.Int64, schema.PRICE: pl.Float64, schema.NAME: pl.String}
_COUNT: Final = "#count"


@dataclass(frozen=True)
class ItemAttributes:
    """Every item of a log.

    Attributes:
        table: ``sku`` Int64, ``category`` Int64, ``price`` Int64 (bucket), ``name`` String (the text), by sku.
        categories: their ids, see `ubp.data.own_ids`; empty where there are none.
        prices: float64, ascending, of the items that have one: what says which bucket a price is.
        without: by attribute how many items have none of their own; ``category``, ``price``, ``name``.
        by_amounts: whether prices are the middle of the amounts paid, not of the list.
    """

    table: pl.DataFrame
    categories: pl.DataFrame
    prices: Prices
    without: dict[str, int]
    by_amounts: bool


@dataclass(frozen=True)
class KnownAttributes:
    """What a log's categories and price buckets mean, fixed when it was first brought in.

    Attributes:
        categories: their ids; further ones are numbered behind them.
        prices: float64, ascending, see `ItemAttributes`.
    """

    categories: pl.DataFrame
    prices: Prices


def attributes(
    skus: pl.DataFrame,
    listed: Sequence[pl.LazyFrame],
    paid: pl.LazyFrame,
    by_amounts: bool,
    known: KnownAttributes | None = None,
) -> ItemAttributes:
    """Bring together what the list of items says and what was paid.

    An item without a category has `NO_CATEGORY`, without a price the middle bucket, without a name an empty one.

    Args:
        skus: the items' ids, see `ubp.data.own_ids`.
        listed: as `ubp.data.log_sources.stage_items` gives it, an item may have several rows; empty: there is none.
        paid: ``subject`` as in ``listed``, ``value`` Float64.
        by_amounts: prices are the middle of the amounts paid, not of those in the list.
        known: which categories and buckets there are; None: those of these items.

    Raises:
        UserError: a category that cannot be numbered behind those that are known.
    """
    rows = together(listed or [pl.LazyFrame(schema=_LISTED)], (SUBJECT, schema.CATEGORY))
    given = [piece.select(schema.CATEGORY) for piece in listed]
    categories = own_ids.extended(known.categories, given, "category") if known else own_ids.numbered(given)
    amounts = paid.rename({VALUE: schema.PRICE}) if by_amounts else rows
    middle = amounts.drop_nulls(schema.PRICE).group_by(SUBJECT).agg(pl.col(schema.PRICE).median())
    category = with_ids(_most_frequent(rows, schema.CATEGORY), schema.CATEGORY, categories)
    table = skus.lazy().select(pl.col(own_ids.ID).alias(SUBJECT))
    for attribute in (category, middle, _most_frequent(rows, schema.NAME)):
        # One after the other: each may hold a value of every row.
        table = table.join(collect(with_ids(attribute, SUBJECT, skus)).lazy(), on=SUBJECT, how="left")
    found = collect(table).sort(SUBJECT)
    prices = known.prices if known else found[schema.PRICE].drop_nulls().sort().to_numpy()
    filled = found.select(
        pl.col(SUBJECT).alias(schema.SKU),
        pl.col(schema.CATEGORY).fill_null(NO_CATEGORY),
        buckets_of(found[schema.PRICE], prices) if known else buckets(schema.PRICE),
        pl.col(schema.NAME).fill_null(""),
    )
    without = {column: found[column].null_count() for column in ATTRIBUTES}
    return ItemAttributes(filled, categories, prices, without, by_amounts)


def buckets(column: str) -> pl.Expr:
    """Numbers in `schema.PRICE_BUCKETS` buckets of equally many rows, Int64; `MIDDLE` where there is none.

    Equal numbers lie in one bucket: that of their mean rank.
    """
    rank, count = pl.col(column).rank("average"), pl.col(column).count()
    bucket = ((rank - 0.5) * schema.PRICE_BUCKETS / count).floor().cast(pl.Int64)
    return bucket.fill_null(MIDDLE).alias(column)


def buckets_of(values: pl.Series, prices: Prices) -> pl.Series:
    """The buckets of other numbers, Int64 in the same order: those that `buckets` gave equal ones of the known prices.

    Args:
        values: Float64, null where there is none.
        prices: float64, ascending.
    """
    numbers = values.fill_null(0.0).to_numpy()
    middle = (np.searchsorted(prices, numbers, side="left") + np.searchsorted(prices, numbers, side="right")) / 2
    found = np.floor(middle * schema.PRICE_BUCKETS / max(len(prices), 1)).astype(np.int64)
    known = values.is_not_null().to_numpy() & (len(prices) > 0)
    return pl.Series(values.name, np.where(known, found.clip(0, schema.PRICE_BUCKETS - 1), MIDDLE))


def _most_frequent(rows: pl.LazyFrame, column: str) -> pl.LazyFrame:
    """Each item and the value that it has in most rows, of equally frequent ones the first in order."""
    counted = rows.drop_nulls(column).group_by(SUBJECT, column).agg(pl.len().alias(_COUNT))
    first = pl.col(column).sort_by(_COUNT, column, descending=[True, False]).first()
    return counted.group_by(SUBJECT).agg(first)
