"""The library: blocks fitted, encoded, merged and scored from Python.

    import ubp

    history = ubp.open_history("data", submit=False)
    block = ubp.fit("als_64_buy_add_categories", history, "als.factors=32")
    ubp.save(block, "my_models/als", {"note": "32 factors"})
    table = ubp.load("my_models/als").encode(history, clients=[17, 4], as_of=datetime(2022, 11, 1))

Nothing here writes to the data path except caches, prints, or changes the global state of Hydra or torch.
"""

import tempfile
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from ubp.blocks import registry
from ubp.blocks.fitted import FittedBlock, imported, load, save
from ubp.data.history import ChallengeData, UnknownSku
from ubp.data.paths import CONFIGS, DataPaths

if TYPE_CHECKING:
    from ubp.cli.recipe import Recipe

__all__ = ["fit", "load", "open_history", "save"]


def open_history(
    data_path: str | Path, submit: bool = True, as_of: datetime | None = None, unknown_sku: UnknownSku = "error"
) -> ChallengeData:
    """A history, validated.

    Args:
        data_path: the folder above ``raw/``.
        submit: True for all events, False for those before the train window (after ``scripts/split.py``).
        as_of: only events before this moment; None for all.
        unknown_sku: what to do with events whose sku has no properties: stop, or leave them out.

    Raises:
        UserError: a line for each fault in the data.
    """
    return ChallengeData(DataPaths(Path(data_path)), submit, unknown_sku, as_of)


def fit(
    name: str, history: ChallengeData, *overrides: str, seed: int = 0, folder: str | Path | None = None
) -> FittedBlock:
    """Fit a block of the registry.

    Args:
        name: of the block, see ``configs/blocks.yaml``.
        history: what it learns from.
        overrides: of its config, as on the command line: ``preset=demo``, ``als.factors=32``.
        seed: of everything random.
        folder: for what a killed run is taken up from; None for none.

    Raises:
        UserError: there is no such block or setting, or a fault in the data.
    """
    from ubp.cli.config import composed

    entry = registry.block(name)
    words = [f"data_path={history.paths.root}", f"submit={history.submit}", *entry.settings, *overrides]
    config = composed(CONFIGS / entry.folder, entry.config_name, words)
    recipe: Recipe = imported(entry.recipe).of(config)
    if folder is not None:
        return recipe.fit(history, seed, Path(folder)).block
    with tempfile.TemporaryDirectory() as temporary:
        return recipe.fit(history, seed, Path(temporary)).block
