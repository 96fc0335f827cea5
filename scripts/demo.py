"""The whole journey on real data: fetch, split, every block, merge, validate, evaluate, one table.

    make demo                              or: python scripts/demo.py
    python scripts/demo.py overwrite=True  everything again
    python scripts/demo.py engine=ray      the blocks on a Ray cluster (docs/cluster.md)

Each stage is a command of its own, printed as one would type it. What is done is skipped;
the first stage that fails ends the journey with its exit code. Blocks that the log has not the events for are left
out, with a line each; merges are made without them.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from omegaconf import DictConfig

from ubp.blocks.registry import blocks, can_be_made
from ubp.cli.command import command
from ubp.cli.config import LOCAL, Common, composed
from ubp.cli.output import closing_line, say, show
from ubp.cli.stages import run_stage
from ubp.data.paths import CONFIGS, DataPaths
from ubp.evaluation.reference import REFERENCES, marks, reference_folder
from ubp.evaluation.scores import Scores, scores_file
from ubp.evaluation.tables import scores_table

QUICK, JUDGE = "quick", "judge"


@dataclass(frozen=True)
class Plan:
    """What the demo makes of its log.

    Attributes:
        blocks: names, in the order of the merges.
        merges: configs of configs/merge; all their blocks are among ``blocks``.
        judged: merges that the judge scores too.
        left_out: a line for each block that the log has not the events for, and for each merge of such blocks alone.
    """

    blocks: list[str]
    merges: list[str]
    judged: list[str]
    left_out: list[str]


def plan(merges: Sequence[str], judged: Sequence[str], paths: DataPaths) -> Plan:
    """The blocks of the merges that can be made of the log, and the merges that have one of them at least."""
    _, left_out = can_be_made(paths, submit=False)
    parts = {merge: [str(name) for name in composed(CONFIGS / "merge", merge).blocks] for merge in merges}
    blocks = list(dict.fromkeys(name for names in parts.values() for name in names))
    made = [merge for merge in merges if set(parts[merge]) - left_out.keys()]
    lines = [left_out[name] for name in blocks if name in left_out]
    lines += [f"merge {merge} is left out: all of its blocks are" for merge in merges if merge not in made]
    return Plan(
        [name for name in blocks if name not in left_out], made, [merge for merge in judged if merge in made], lines
    )


def only(planned: Plan) -> list[str]:
    """What the script that makes all embeddings is told where the merges have not all blocks."""
    return [] if len(planned.blocks) == len(blocks()) else [f"only=[{','.join(planned.blocks)}]"]


def of_one_block_each(overrides: DictConfig | None) -> list[str]:
    """The same overrides of single blocks' commands, by block, as a word for the script that makes all embeddings."""
    if not overrides:
        return []
    own = [f"{name!s}: {json.dumps(list(words))}" for name, words in overrides.items()]  # Hydra reads such lists
    return [f"overrides={{{', '.join(own)}}}"]


def of_what_was_made(planned: Plan, folder: Path) -> Plan:
    """The plan without the blocks that turned out to have too few events; the command that made none has said so."""
    return replace(planned, blocks=[name for name in planned.blocks if (folder / f"{name}.parquet").is_file()])


def log_stages(overwrite: bool) -> list[list[str]]:
    """The command lines that make and split the log, each as a list of words."""
    again = ["overwrite=True"] if overwrite else []
    return [["python", f"scripts/{name}.py", "preset=demo", *again] for name in ("make_demo_data", "split")]


def stages(plan: Plan, folder: Path, quick_seeds: Sequence[int], overwrite: bool) -> list[list[str]]:
    """The command lines of what follows the blocks, in order, each as a list of words.

    Args:
        plan: what is made.
        folder: of the blocks and entries.
        quick_seeds: of the quick probe.
        overwrite: make everything again.
    """
    again = ["preset=demo", *(["overwrite=True"] if overwrite else [])]
    local = ["submit=False", *again]
    names = ",".join([*plan.blocks, *plan.merges])
    seeds = ",".join(map(str, quick_seeds))
    by_judge = [f"probe={JUDGE}", "references=False"]  # the reference rows would take it as long as the merge
    return [
        *(["python", "scripts/merge.py", f"--config-name={name}", "missing=skip", *local] for name in plan.merges),
        *(["python", "scripts/validate.py", f"entry={folder / name}", "preset=demo"] for name in plan.merges),
        ["python", "scripts/evaluate.py", f"embeddings=[{names}]", f"probe={QUICK}", f"probe.seeds=[{seeds}]", *again],
        *(["python", "scripts/evaluate.py", f"embeddings={name}", *by_judge, *again] for name in plan.judged),
    ]


def all_scores(plan: Plan, paths: DataPaths) -> list[Scores]:
    """The reference rows, every block and merge by the quick probe, then the judged ones by the judge."""
    folder = paths.embeddings(submit=False)
    quick = [reference_folder(name, paths) for name in REFERENCES]
    quick += [folder / f"{name}.parquet" for name in plan.blocks] + [folder / name for name in plan.merges]
    judged = [scores_file(folder / name, JUDGE) for name in plan.judged]
    return [Scores.load(file) for file in [*(scores_file(path, QUICK) for path in quick), *judged]]


@command("scripts", "demo", spreads=True)
def main(config: DictConfig) -> list[Scores]:
    common = Common.of(config)
    folder = common.paths.embeddings(submit=False)
    for words in log_stages(common.overwrite):
        run_stage(words, common.data_path)
    planned = plan(config.merges, config.judged, common.paths)
    for line in planned.left_out:
        say(line)
    where = [f"engine={common.engine}"] if common.engine != LOCAL else []
    again = ["overwrite=True"] if common.overwrite else []
    own = [*only(planned), *of_one_block_each(config.overrides)]
    words = ["sh", "get_all_embeddings.sh", *own, "submit=False", "preset=demo", *where, *again]
    run_stage(words, common.data_path)
    planned = of_what_was_made(planned, folder)
    for words in stages(planned, folder, config.quick_seeds, common.overwrite):
        run_stage(words, common.data_path)
    say("")
    scores = all_scores(planned, common.paths)
    title = "the demo's blocks alone and merged: local validation, higher is better"
    show(scores_table(scores, title, marks(scores[len(REFERENCES) :], scores[: len(REFERENCES)])))
    closing_line("demo", folder)
    return scores


if __name__ == "__main__":
    main()
