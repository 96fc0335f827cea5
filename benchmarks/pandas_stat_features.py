"""The columns of stat_features the straightforward way, in pandas: what scale.py compares with.

    pip install -r benchmarks/requirements.txt
    python benchmarks/pandas_stat_features.py      -> embeddings_local/pandas_stat_features.parquet

The history of ``submit=False`` is read whole; group-bys and merges as one would write them in a notebook, no
loop over clients. The test holds its columns against those of stat_features.
"""

import importlib
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
from omegaconf import DictConfig

from stat_features.recipe import TIMING, absent_value, columns, popular_values
from ubp.blocks.embeddings import EmbeddingTable
from ubp.cli.command import command
from ubp.cli.config import Common
from ubp.cli.output import closing_line
from ubp.data import schema
from ubp.data.paths import DataPaths
from ubp.data.schema import EventType
from ubp.io.errors import UserError

Frame = Any  # a pandas DataFrame or Series: the package's types are as optional as the package

WEEK = 7


def pandas() -> ModuleType:
    """The package.

    Raises:
        UserError: it is missing.
    """
    try:
        return importlib.import_module("pandas")
    except ImportError as error:
        raise UserError("pandas is missing: pip install -r benchmarks/requirements.txt") from error


def read(paths: DataPaths, event_type: EventType) -> Frame:
    """A file of the history, times as times."""
    pd = pandas()
    frame = pd.read_parquet(paths.input / event_type.file_name)
    frame[schema.TIMESTAMP] = pd.to_datetime(frame[schema.TIMESTAMP])
    return frame


def timing(events: Frame, start: Frame, end: Frame) -> Frame:
    """The columns of `TIMING`, indexed by client."""
    pd = pandas()
    day = pd.Timedelta(days=1)
    groups = events.groupby(schema.CLIENT_ID)[schema.TIMESTAMP]
    table = pd.DataFrame({"count": groups.size(), "first": groups.min(), "last": groups.max()})
    gaps = (table["last"] - table["first"]) / day / (table["count"] - 1)
    table["mean_interval"] = gaps.where(table["count"] > 1, (end - start) / day)
    times, owner = events[schema.TIMESTAMP], events[schema.CLIENT_ID]
    month = times.dt.year * 12 + times.dt.month
    last_month = (end - pd.Timedelta(microseconds=1)).year * 12 + (end - pd.Timedelta(microseconds=1)).month
    for name, age in (
        ("week_change", (end - times).dt.ceil("D").dt.days.sub(1) // WEEK),
        ("month_change", last_month - month),
    ):
        step = (age == 0).astype("int64") - (age == 1).astype("int64")
        table[name] = step.groupby(owner).sum()
    table["first_day"] = (table["first"] - end) / day
    table["last_day"] = (table["last"] - end) / day
    return table[list(TIMING)]


def popularity(events: Frame, relevant: Frame, column: str) -> Frame:
    """Mean over a client's events of log(1 + events of everybody with that value)."""
    counts = np.log1p(events.groupby(column).size())
    own = events[events[schema.CLIENT_ID].isin(relevant)]
    return own[column].map(counts).groupby(own[schema.CLIENT_ID]).mean()


def share_bought(bought: Frame, added: Frame, column: str) -> Frame:
    """The share of the distinct values a client put into the cart that it also bought."""
    pairs = added[[schema.CLIENT_ID, column]].drop_duplicates()
    purchases = bought[[schema.CLIENT_ID, column]].drop_duplicates()
    merged = pairs.merge(purchases, on=[schema.CLIENT_ID, column], how="left", indicator=True)
    return (merged["_merge"] == "both").groupby(merged[schema.CLIENT_ID]).mean()


def statistics(paths: DataPaths) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Client ids int64 [clients], ascending, and float32 [clients, 43] in the order of stat_features."""
    pd = pandas()
    properties = pd.read_parquet(paths.properties, columns=[schema.SKU, schema.CATEGORY, schema.PRICE])
    events = {event_type: read(paths, event_type) for event_type in schema.EVENT_TYPES}
    for event_type in schema.ITEM_EVENTS:
        events[event_type] = events[event_type].merge(properties, on=schema.SKU)
    relevant = pd.Index(np.load(paths.relevant_clients))
    own = {event_type: frame[frame[schema.CLIENT_ID].isin(relevant)] for event_type, frame in events.items()}

    everything = pd.concat([frame[[schema.CLIENT_ID, schema.TIMESTAMP]] for frame in own.values()])
    start = min(frame[schema.TIMESTAMP].min() for frame in events.values()).normalize()
    end = max(frame[schema.TIMESTAMP].max() for frame in events.values()).normalize() + pd.Timedelta(days=1)
    time, client = everything[schema.TIMESTAMP], everything[schema.CLIENT_ID]
    table = pd.DataFrame(
        {
            "active_weeks": ((time - start).dt.days // WEEK).groupby(client).nunique(),
            "active_months": (time.dt.year * 12 + time.dt.month).groupby(client).nunique(),
        }
    )
    for event_type in schema.EVENT_TYPES:
        table = table.join(timing(own[event_type], start, end).add_prefix(f"{event_type}_"))
    for event_type, column in popular_values(schema.EVENT_TYPES):
        table[f"{event_type}_{column}_popularity"] = popularity(events[event_type], relevant, column)
    bought, added = own[EventType.PRODUCT_BUY], own[EventType.ADD_TO_CART]
    table["spend"] = bought.groupby(schema.CLIENT_ID)[schema.PRICE].sum()
    table["mean_price"] = bought.groupby(schema.CLIENT_ID)[schema.PRICE].mean()
    table["added_skus_bought"] = share_bought(bought, added, schema.SKU)
    table["added_categories_bought"] = share_bought(bought, added, schema.CATEGORY)
    days = (end - start) / pd.Timedelta(days=1)
    table = table[list(columns())].fillna({name: absent_value(name, days) for name in columns()}).sort_index()
    return table.index.to_numpy(np.int64), np.ascontiguousarray(table.to_numpy(np.float32))


@command("scripts", "make_demo_data")
def main(config: DictConfig) -> None:
    paths = Common.of(config).paths
    clients, vectors = statistics(paths)
    block = paths.block("pandas_stat_features", submit=False)
    EmbeddingTable(clients, vectors, {}).write(block)
    closing_line("pandas_stat_features", block, *vectors.shape)


if __name__ == "__main__":
    main()
