"""What merging costs at the challenge's size: random blocks of the real widths, merged and written.

    python benchmarks/merge_scale.py                     1 M clients: some minutes, 10 GB of disk while it runs
    python benchmarks/merge_scale.py clients=100000

The blocks lie in ``cache/merge_scale`` below the data path and are deleted at the end; each lacks some clients
and has its rows in an order of its own. The closing line gives the whole run's seconds, the log those of each
block, of the merge and of the entry.
"""

import logging
import shutil
import time
from pathlib import Path

import numpy as np
from omegaconf import DictConfig

from ubp.blocks.embeddings import EmbeddingTable
from ubp.blocks.entry import write_entry
from ubp.blocks.merge import MERGE_KEYS, MergeSettings, find_blocks, fit_merge
from ubp.blocks.registry import REGISTRY, block
from ubp.cli.command import command
from ubp.cli.config import Common, composed, parse
from ubp.cli.output import closing_line
from ubp.data.paths import CONFIGS
from ubp.io.errors import UserError, require

logger = logging.getLogger(__name__)


def write_block(path: Path, clients: int, columns: int, missing: float, seed: int) -> None:
    """A block of normal numbers, half of them in common: PCA has something to find."""
    rng = np.random.default_rng(seed)
    ids = rng.permutation(clients)[: int(clients * (1 - missing))].astype(np.int64)
    vectors = rng.standard_normal((len(ids), columns), np.float32)
    vectors += rng.standard_normal((len(ids), 1), np.float32)
    EmbeddingTable(ids, vectors, {}).write(path)


def columns_of(name: str) -> int:
    """The columns of a block as its command writes it.

    Raises:
        UserError: the registry has no such block, or does not say.
    """
    columns = block(name).columns
    if columns is None:
        raise UserError(f"{REGISTRY}: {name}: columns: missing")
    return columns


@command("scripts", "merge_scale")
def main(config: DictConfig) -> None:
    common = Common.of(config)
    require(config.clients >= 1000, "clients", config.clients, "at least 1000")
    settings = parse(MergeSettings, composed(CONFIGS / "merge", config.entry), MERGE_KEYS)
    folder = common.paths.cache / "merge_scale"
    try:
        for number, name in enumerate(settings.blocks):
            write_block(folder / f"{name}.parquet", config.clients, columns_of(name), config.missing, number)
        began, busy = time.perf_counter(), time.process_time()
        clients = np.random.default_rng(common.seed).permutation(config.clients).astype(np.int64)
        _, profiles = fit_merge(settings, find_blocks(settings, folder), clients)
        merged = time.perf_counter()
        write_entry(folder / "entry", clients, profiles)
        logger.info(
            "merged in %.1f s, written in %.1f s; processor time of both %.1f s",
            merged - began, time.perf_counter() - merged, time.process_time() - busy,
        )  # fmt: skip
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    closing_line(f"merge of {config.entry}", folder, *profiles.shape)


if __name__ == "__main__":
    main()
