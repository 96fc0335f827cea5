"""Settings by which a block is fitted to the tiny history in a second or two."""

from ubp.blocks import registry

_GRU = (
    *("preset=demo", "logger=none", "model.hidden=16", "model.layers=1", "sequences.newest=8"),
    *("trainer.max_epochs=1", "report.written=4", "report.shown=1"),
)
_TRANSFORMER = (
    *("preset=demo", "logger=none", "model.layers=1", "sequences.shortest=4", "sequences.longest=8"),
    *("sequences.newest=16", "trainer.max_epochs=1"),
)
_BY_FOLDER = {
    "gru_autoencoder": _GRU,
    "next_sku": _TRANSFORMER,
    "next_url": (*_TRANSFORMER, "sequences.min_count=1"),
    "LLM": ("preset=demo", "max_tokens=24", "n_components=6"),
    "LightFM": ("model.epochs=2", "model.threads=1"),
}


def overrides(entry: registry.Entry) -> tuple[str, ...]:
    """Of a block's folder; none for a block that is fast as it is."""
    return _BY_FOLDER.get(entry.folder, ())
