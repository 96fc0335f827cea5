"""Merge blocks into one profile per client, write it as an entry, and keep the fitted merge.

    python scripts/merge.py --config-name=basics submit=False            -> embeddings_local/basics
    python scripts/merge.py --config-name=best_solution                  -> embeddings_submit/best_solution
    python scripts/merge.py --config-name=best_solution submit=False preset=demo   of blocks made with preset=demo

A config names the blocks, in the order of their columns, and for each a processor, a scaler and an imputer
(any transformer of scikit-learn by ``_target_``); see `ubp.blocks.steps.BlockSettings`. ``condition=default`` makes the
whole readable for a short training, ``condition=none`` leaves it as it is (`ubp.blocks.condition`); two figures of
the profile are printed, with a warning where they lie outside what was found good. With ``submit=True``
every relevant client is in the entry, once; with ``submit=False`` those with an event in the history. A block that the
history has no events for is left out, with a line; with ``missing=skip`` any block that is not there. An entry is a
folder with ``client_ids.npy`` and ``embeddings.npy`` (float16), and ``manifest.json``: where both come from, down to
the blocks' settings and seeds, for scripts/reproduce.py. The fitted steps are kept in ``models/NAME/submit`` or
``models/NAME/local``; with them scripts/encode.py makes profiles of any clients on any day.
"""

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from ubp.blocks import registry
from ubp.blocks.condition import figures_of, report
from ubp.blocks.embeddings import read_lineage
from ubp.blocks.entry import MANIFEST, entry_files, write_entry
from ubp.blocks.fitted import save, settled
from ubp.blocks.merge import (
    ERROR,
    MERGE_KEYS,
    SKIP,
    FittedMerge,
    MergeSettings,
    check_histories,
    content_of,
    find_blocks,
    find_sources,
    fit_merge,
    without_missing,
)
from ubp.cli.circumstances import circumstances, essential
from ubp.cli.command import command
from ubp.cli.config import Common, parse
from ubp.cli.output import closing_line, cost_so_far
from ubp.cli.run import COST
from ubp.data.history import ChallengeData
from ubp.io.errors import UserError, name_some, require
from ubp.io.files import digest_of
from ubp.io.stage import Stage

logger = logging.getLogger(__name__)


def _require_own_name(name: str, settings: MergeSettings) -> None:
    """A merge and a block of one name would overwrite one another's fits."""
    if name in {*settings.blocks, *(block.name for block in registry.blocks())}:
        raise UserError(f"name={name}: a block has this name; give the merge another")


def _require_same_blocks(before: dict[str, str | None], now: dict[str, str | None]) -> None:
    """Refuse a merge of which nobody knows which blocks are in it.

    Raises:
        UserError: some were made anew while they were merged.
    """
    if changed := [name for name, content in before.items() if now[name] != content]:
        raise UserError(f"{name_some(changed)} made anew while they were merged; merge again, alone")


def _lineage(
    name: str, fitted: FittedMerge, settings: MergeSettings, left_out: dict[str, str], paths: Mapping[str, Path],
    data: ChallengeData, seed: int,
) -> dict[str, Any]:  # fmt: skip
    """Where the merge comes from; under ``blocks`` the content and the own lineage of each block."""
    blocks = {
        block: {"content": content_of(path), "lineage": {} if path.is_dir() else essential(read_lineage(path))}
        for block, path in paths.items()
    }
    return {
        "name": name,
        "config": dataclasses.asdict(settings),
        "columns": {block.name: block.columns for block in fitted.blocks},
        "left_out": left_out,
        "seed": seed,
        "fingerprint": data.fingerprint,
        "as_of": data.as_of.isoformat(sep=" "),
        **circumstances(data),
        "blocks": blocks,
        "report": {COST: cost_so_far()},
    }


def _keep(name: str, fitted: FittedMerge, lineage: Mapping[str, Any]) -> None:
    """Keep the fitted merge, and warn of what keeps it from encoding."""
    if fitted.folder is None:
        raise ValueError("a merge that is not to be kept")
    save(fitted, fitted.folder, lineage)
    for refusal in fitted.refusals:
        logger.warning("%s: scripts/encode.py will refuse it: %s", name, refusal)


@command("merge")
def main(config: DictConfig) -> None:
    common = Common.of(config)
    settings = parse(MergeSettings, config, MERGE_KEYS)
    _require_own_name(config.name, settings)
    require(config.missing in (ERROR, SKIP), "missing", config.missing, f"{ERROR} or {SKIP}")
    data = common.data()
    settings, left_out = without_missing(
        settings,
        common.paths.embeddings(common.submit),
        lambda: registry.can_be_made(common.paths, common.submit, common.moment)[1],
        config.missing == SKIP,
    )
    for line in left_out.values():
        logger.warning(line)
    clients = data.relevant_clients if common.submit else data.clients
    paths = find_blocks(settings, common.paths.embeddings(common.submit))
    check_histories(paths, data.fingerprint, data.folder)
    entry, model = common.paths.embeddings(common.submit) / config.name, common.paths.model(config.name, common.submit)

    def made_from() -> dict[str, str | None]:
        blocks = {f"block {name}": content_of(path) for name, path in paths.items()}
        fits = {f"fit of {name}": source.digest for name, source in find_sources(paths, model).items()}
        return {"settings": digest_of(settings), "history": data.fingerprint, **blocks, **fits}

    stage = Stage(config.name, (*entry_files(entry), entry / MANIFEST, model), made_from, of=entry)
    remark = f" (without {name_some(list(left_out))})" if left_out else ""
    with stage.once(common.overwrite, lambda: remark, data.require_unchanged):
        before = made_from()
        check_histories(paths, data.fingerprint, data.folder)
        fitted, profiles = fit_merge(settings, paths, clients, model)
        _require_same_blocks(before, made_from())
        lineage = _lineage(config.name, fitted, settings, left_out, paths, data, common.seed)
        _keep(config.name, fitted, lineage)
        write_entry(entry, clients, profiles, settled(lineage))
        report({config.name: figures_of(profiles)})
    closing_line(f"{config.name}{remark}", entry, *profiles.shape)


if __name__ == "__main__":
    main()
