"""How alike do the light probe and the judge rank things? Half an hour on two cores.

    python scripts/demo.py && python benchmarks/svd_baseline.py submit=False
    python benchmarks/probe_agreement.py

Scores by both probes: the blocks of a merge, the merge, the merge without each of its blocks, and others that
the config names. Prints both rankings and their Spearman correlation.
"""

from collections.abc import Iterator
from pathlib import Path

import torch
from omegaconf import DictConfig
from rich.table import Table
from scipy.stats import spearmanr

from ubp.config import Common, composed, parse
from ubp.data import ChallengeData
from ubp.evaluation.judge import Probe
from ubp.evaluation.scoring import Profiles, load_profiles, score
from ubp.merge import Profile, find_blocks, merge
from ubp.paths import CONFIGS
from ubp.run import closing_line, command, show


def candidates(config: DictConfig, data: ChallengeData, folder: Path) -> Iterator[Profiles]:
    """What is ranked."""
    merged = parse(Profile, composed(CONFIGS / "merge", config.entry), ["blocks", "imputer"])
    for name in [*merged.blocks, config.entry, *config.others]:
        yield load_profiles(name, folder, data)
    for left_out in merged.blocks:
        rest = Profile({name: block for name, block in merged.blocks.items() if name != left_out}, merged.imputer)
        vectors = merge(rest, find_blocks(rest, folder), data.clients)
        yield Profiles(f"{config.entry} without {left_out}", folder, data.clients, vectors)


def probes() -> list[Probe]:
    """The judge's and the light one, as in configs/scripts/probe."""
    return [
        parse(Probe, composed(CONFIGS / "scripts", "evaluate", [f"probe={name}"]).probe) for name in ("judge", "light")
    ]


@command("scripts", "probe_agreement")
def main(config: DictConfig) -> None:
    common = Common.of(config)
    data, folder = common.data(), common.paths.embeddings(common.submit)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    judge, light = probes()
    rows: list[tuple[str, float, float]] = []
    for profiles in candidates(config, data, folder):
        by_judge, by_light = (score(profiles, probe, common.paths, device).total for probe in (judge, light))
        rows.append((profiles.name, by_judge, by_light))
    rows.sort(key=lambda row: -row[1])
    table = Table("block or entry", "judge", "light")
    for name, by_judge, by_light in rows:
        table.add_row(name, f"{by_judge:.4f}", f"{by_light:.4f}")
    show(table)
    correlation = spearmanr([row[1] for row in rows], [row[2] for row in rows]).statistic
    closing_line(f"Spearman correlation of the two rankings {correlation:.2f} over {len(rows)}", folder)


if __name__ == "__main__":
    main()
