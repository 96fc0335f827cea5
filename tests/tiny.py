"""Tiny logs of several shapes, and settings by which a block is fitted to one of them in a second or two."""

from datetime import timedelta
from typing import Final

import polars as pl

from scripts.make_synthetic_data import Shop, SyntheticShop, streamed
from tests.conftest import History, synthetic
from ubp.blocks import registry
from ubp.cli.config import composed, parse
from ubp.data import schema
from ubp.data.event_types import with_own
from ubp.data.paths import CONFIGS
from ubp.data.schema import EVENT_TYPES, EventType

# Profiles of the synthetic shop, by the scale at which some dozens of clients have events of each type.
OWN_TYPES: Final = "own_types"  # the log of `tests.conftest`, with event types of its own
_SCALES: Final = {"default": 4e-5, "dense": 6e-5, "sparse": 3e-4, "purchases_only": 2e-4}
LOGS: Final = ("tiny", OWN_TYPES, *_SCALES)

_GRU = (
    *("preset=demo", "logger=none", "model.hidden=16", "model.layers=1", "sequences.newest=8"),
    *("trainer.max_epochs=1", "report.written=4", "report.shown=1"),
)
_TRANSFORMER = (
    *("preset=demo", "logger=none", "model.layers=1", "sequences.shortest=4", "sequences.longest=8"),
    *("sequences.newest=16", "trainer.max_epochs=1"),
)
_DCN = (
    *("logger=none", "snapshots.count=2", "snapshots.least_history=7", "snapshots.horizon=7"),
    *("labels.categories=3", "labels.skus=5", "labels.clusters=2", "model.refit=false"),
    *("model.network.width=6", "model.network.hidden=[16]", "model.networks=1", "trainer.max_epochs=1"),
)
_TWHIN = (
    *("logger=none", "model.width=6", "model.in_batch=64", "fold_in.negatives=128", "trainer.max_epochs=1"),
    *("content.width=8", "content.rows=64", "content.id_width=4", "content.token_width=4", "report.als_factors=0"),
    "trainer.batch_size=64",
)
_SEQUENTIAL = (
    *("preset=demo", "logger=none", "snapshots.count=2", "snapshots.least_history=7", "snapshots.horizon=7"),
    *("labels.categories=3", "labels.skus=5", "labels.clusters=2", "sequences.tokens=16", "sequences.events=24"),
    *("model.content={width: 8, rows: 500, id_width: 4, token_width: 4, id_dropout: 0.1}", "model.width=16"),
    *("model.layers=1", "model.profile=12", "model.refit=false", "trainer.max_epochs=1"),
)
_BY_FOLDER = {
    "gru_autoencoder": _GRU,
    "next_sku": _TRANSFORMER,
    "next_url": (*_TRANSFORMER, "sequences.min_count=1"),
    "LLM": ("preset=demo", "max_tokens=24", "n_components=6"),
    "LightFM": ("model.epochs=2", "model.threads=1"),
    "twhin": _TWHIN,
    "dcn": _DCN,
    "sequential_encoder": _SEQUENTIAL,
}
_BY_CONFIG = {"numeric_features_wide": ("features.components=4", "groups.values=6")}


def overrides(entry: registry.Entry) -> tuple[str, ...]:
    """Of a block's folder and config; none for a block that is fast as it is."""
    return (*_BY_FOLDER.get(entry.folder, ()), *_BY_CONFIG.get(entry.config_name, ()))


def with_own_types(history: History) -> History:
    """The same log with three types more: each has every second event of one of the challenge's, half a day earlier."""
    events = dict(history.events)
    like = {"transfer": EventType.PRODUCT_BUY, "level_up": EventType.PAGE_VISIT, "chat": EventType.SEARCH_QUERY}
    for event_type in with_own({name: other.subject for name, other in like.items()})[len(EVENT_TYPES) :]:
        half = history.events[like[event_type]].gather_every(2)
        events[event_type] = half.with_columns(pl.col(schema.TIMESTAMP) - timedelta(hours=12))
    return History(events, history.properties)


def log(name: str) -> History:
    """A tiny log, the same each time: ``tiny``, that of `tests.conftest`, or a profile of the synthetic shop."""
    if name == "tiny":
        return synthetic()
    if name == OWN_TYPES:
        return with_own_types(synthetic())
    config = composed(CONFIGS / "scripts", "make_synthetic_data", [f"profile={name}"])
    shop = SyntheticShop(parse(Shop, config, at="shop").scaled(_SCALES[name]), config.seed, config.chunk)
    events = {kind: streamed(shop, kind, timestamps="datetime").collect() for kind in EVENT_TYPES}
    return History(events, shop.properties())
