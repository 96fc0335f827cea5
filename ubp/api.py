"""The library: blocks fitted, encoded, merged and scored from Python.

    import ubp

    history = ubp.open_history("data", submit=False)
    block = ubp.fit("als_64_buy_add_categories", history, "als.factors=32")
    ubp.save(block, "my_models/als", {"note": "32 factors"})
    table = ubp.load("my_models/als").encode(history, clients=[17, 4], as_of=datetime(2022, 11, 1))

Below the data path only caches are written. Nothing is printed, and the global state of Hydra and torch stays as it
was, but for the sequence of torch's random numbers.
"""

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ubp.blocks import registry
from ubp.blocks.embeddings import EmbeddingTable
from ubp.blocks.fitted import FittedBlock, imported, load, save
from ubp.cli.object_store import require_folder
from ubp.data.history import ChallengeData, UnknownSku
from ubp.data.paths import CONFIGS, DataPaths

if TYPE_CHECKING:
    from ubp.cli.recipe import Recipe
    from ubp.evaluation.scores import Scores

__all__ = ["fit", "load", "merge", "open_history", "save", "score"]

_FIT = "fit"  # the folder of each fitted block and merge, in a folder of its name


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
    require_folder(str(data_path))
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
    from ubp.cli.config import config_of

    entry = registry.block(name)
    config = config_of(entry, [f"data_path={history.paths.root}", f"submit={history.submit}", *overrides])
    recipe: Recipe = imported(entry.recipe).of(config)
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory()) if folder is None else folder)
        return recipe.fit(history, seed, work).block


def merge(
    name: str,
    blocks: Mapping[str, FittedBlock],
    history: ChallengeData,
    folder: str | Path,
    overrides: Sequence[str] = (),
    clients: npt.ArrayLike | None = None,
) -> FittedBlock:
    """Fit a merge of fitted blocks, and keep all of them in a folder, each in a folder of its name.

    Args:
        name: of its config in ``configs/merge/``.
        blocks: the fitted blocks by their names in the config; those of the config that are not here are left out.
        history: the clients' vectors as of its ``as_of`` are what scalers, PCAs and imputers are fitted on.
        folder: where to; ``load(folder/NAME/fit)`` gives the merge again.
        overrides: of the config, as on the command line.
        clients: to fit on, integers; None for the relevant ones with an event.

    Returns:
        The merge: `FittedBlock.encode` gives profiles.

    Raises:
        UserError: there is no such config, no block, one that it does not have, or one that does not fit.
    """
    from ubp.blocks.merge import MERGE_KEYS, MergeSettings, fit_merge
    from ubp.cli.config import composed, parse
    from ubp.io.errors import UserError

    settings = parse(MergeSettings, composed(CONFIGS / "merge", name, overrides), MERGE_KEYS)
    if unknown := [block for block in blocks if block not in settings.blocks]:
        raise UserError(f"{unknown[0]}: no block of {name}; it has {', '.join(settings.blocks)}")
    left_out = {block: "not given" for block in settings.blocks if block not in blocks}
    settings.blocks = {block: settings.blocks[block] for block in settings.blocks if block in blocks}
    if not settings.blocks:
        raise UserError("blocks: a merge needs at least one")
    chosen = history.clients if clients is None else history.seen(np.unique(np.asarray(clients, dtype=np.int64)))
    models, paths = Path(folder), {}
    for block in settings.blocks:
        lineage = {"name": block, "fingerprint": history.fingerprint, "as_of": history.as_of.isoformat(sep=" ")}
        save(blocks[block], models / block / _FIT, lineage)
        table = blocks[block].encode(history, chosen)
        paths[block] = models / block / "vectors.parquet"
        EmbeddingTable(table.client_ids, table.vectors, lineage).write(paths[block])
    own = models / name / _FIT
    fitted, _ = fit_merge(settings, paths, chosen, own)
    save(fitted, own, {"name": name, "fingerprint": history.fingerprint, "left_out": left_out})
    return load(own)


def score(table: EmbeddingTable, history: ChallengeData, probe: str = "judge", device: str = "auto") -> "Scores":
    """Score vectors on the challenge's six tasks.

    Args:
        table: vectors of the history's relevant clients; those without one count as zeros.
        history: that of ``submit=False``, whose target windows follow it.
        probe: a name in ``configs/scripts/probe/``.
        device: as torch names it, or ``auto``.

    Raises:
        UserError: the target windows are missing (``scripts/split.py`` makes them), or there is no such probe.
    """
    from ubp.cli.config import composed, config_names, parse
    from ubp.evaluation.evaluate import score_anew
    from ubp.evaluation.probes import Probe
    from ubp.evaluation.profiles import profiles_of
    from ubp.io.errors import UserError

    known = [name for name in config_names(CONFIGS / "scripts" / "probe") if name != "none"]
    if probe not in known:
        raise UserError(f"{probe}: no such probe; known: {', '.join(known)}")
    config = composed(CONFIGS / "scripts", "evaluate", [f"probe={probe}", f"data_path={history.paths.root}"])
    return score_anew(profiles_of("vectors", table, history), parse(Probe, config, at="probe"), history.paths, device)
