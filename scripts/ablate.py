"""What each block adds to a merge: the merge without it, by the quick probe. Some 40 s per block on two cores.

    make demo
    python benchmarks/leave_one_out.py
    python benchmarks/leave_one_out.py entry=score_4_7406 base=[stat_features]

The table has, for each block, the score of a few base blocks (``base``) with it added, and of the merge without it.
"""

from dataclasses import replace
from pathlib import Path

from omegaconf import DictConfig
from rich.table import Table

from benchmarks.probe_agreement import probe
from ubp.blocks.merge import MERGE_KEYS, MergeSettings, find_blocks, fit_merge
from ubp.cli.command import command
from ubp.cli.config import Common, composed, parse
from ubp.cli.output import closing_line, show
from ubp.data.history import ChallengeData
from ubp.data.paths import CONFIGS
from ubp.evaluation.evaluate import choose_device
from ubp.evaluation.profiles import Profiles
from ubp.evaluation.scores import Scores
from ubp.evaluation.scoring import score
from ubp.evaluation.tables import sum_cell


def merged_scores(names: list[str], whole: MergeSettings, data: ChallengeData, folder: Path) -> Scores:
    """The merge of some of the blocks, by the quick probe."""
    part = replace(whole, blocks={name: whole.blocks[name] for name in names})
    _, vectors = fit_merge(part, find_blocks(part, folder), data.clients)
    device = choose_device("auto")
    return score(Profiles("+".join(names), folder, data.clients, vectors), probe("quick"), data.paths, device)


@command("scripts", "leave_one_out")
def main(config: DictConfig) -> None:
    common = Common.of(config)
    data, folder = common.data(), common.paths.embeddings(common.submit)
    merge_config = composed(CONFIGS / "merge", config.entry, [f"preset={config.merge_preset}"])
    whole = parse(MergeSettings, merge_config, MERGE_KEYS)
    base, names = list(config.base), list(whole.blocks)

    def cell(chosen: list[str]) -> str:
        return sum_cell(merged_scores(chosen, whole, data, folder))

    table = Table("block", "base and it", "all without it", title=f"{config.entry} by the quick probe")
    table.add_row("(none)", cell(base), cell(names))
    for name in names:
        with_it = cell([*base, name]) if name not in base else ""
        table.add_row(name, with_it, cell([other for other in names if other != name]))
    show(table)
    closing_line(f"{config.entry} without each block", folder)


if __name__ == "__main__":
    main()
