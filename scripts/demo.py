"""The whole journey on real data: fetch, split, every block, merge, validate, evaluate, one table.

    make demo                              or: python scripts/demo.py
    python scripts/demo.py overwrite=True  everything again

Each stage is a command of its own and stands in the output as one would type it. What is done is skipped;
the first stage that fails ends the journey with its exit code.
"""

import logging
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

from omegaconf import DictConfig

from ubp.cli.command import command
from ubp.cli.config import Common, composed
from ubp.cli.output import closing_line, say, show
from ubp.data.paths import CONFIGS, REPOSITORY
from ubp.evaluation.scores import Scores, scores_file
from ubp.evaluation.tables import scores_table
from ubp.io.errors import UserError

logger = logging.getLogger(__name__)

LIGHT, JUDGE = "light", "judge"


def stages(config: DictConfig, blocks: list[str], overwrite: bool) -> list[list[str]]:
    """The command lines of the journey, in order, each as a list of words.

    Args:
        config: of the demo.
        blocks: that its merges are made of.
        overwrite: make everything again.
    """
    folder = Common.of(config).paths.embeddings(submit=False)
    again = ["overwrite=True"] if overwrite else []
    local = ["submit=False", *again]
    names = ",".join([*blocks, *config.merges])
    seeds = ",".join(map(str, config.light_seeds))
    return [
        ["python", "scripts/make_demo_data.py", *again],
        ["python", "scripts/split.py", *again],
        ["sh", "get_all_embeddings.sh", "preset=demo", *local],
        *(["python", "scripts/merge.py", f"--config-name={name}", "preset=demo", *local] for name in config.merges),
        *(["python", "scripts/validate.py", f"entry={folder / name}"] for name in config.merges),
        ["python", "scripts/evaluate.py", f"embeddings=[{names}]", f"probe={LIGHT}", f"probe.seeds=[{seeds}]", *again],
        *(["python", "scripts/evaluate.py", f"embeddings={name}", f"probe={JUDGE}", *again] for name in config.judged),
    ]


def run_stage(words: list[str], data_path: str) -> None:
    """Run one command of the repository, its output below the line that a user would type.

    Raises:
        UserError: it failed.
    """
    line = shlex.join(words)
    say(f"\n$ {line}")
    program, script, *arguments = words
    started = time.perf_counter()
    environment = os.environ | {"CHALLENGE_DATA_PATH": data_path, "PYTHON": sys.executable}
    runs = sys.executable if program == "python" else program
    with subprocess.Popen([runs, str(REPOSITORY / script), *arguments], env=environment) as process:  # noqa: S603
        try:
            code = process.wait()
        except KeyboardInterrupt:
            # It was interrupted too. subprocess.run would kill it before it has ended what it began itself.
            process.wait()
            raise
    if code:
        raise UserError(f"{line}: failed with exit code {code}, see above; fix it and start the demo again")
    logger.info("%.1f s", time.perf_counter() - started)


def all_scores(config: DictConfig, blocks: list[str], folder: Path) -> list[Scores]:
    """Every block and merge by the light probe, then the judged ones by the judge."""
    light = [scores_file(folder / f"{name}.parquet", LIGHT) for name in blocks]
    light += [scores_file(folder / name, LIGHT) for name in config.merges]
    return [Scores.load(file) for file in [*light, *(scores_file(folder / name, JUDGE) for name in config.judged)]]


@command("scripts", "demo")
def main(config: DictConfig) -> None:
    common = Common.of(config)
    blocks = list(dict.fromkeys(name for merge in config.merges for name in composed(CONFIGS / "merge", merge).blocks))
    for words in stages(config, blocks, common.overwrite):
        run_stage(words, common.data_path)
    folder = common.paths.embeddings(submit=False)
    say("")
    show(
        scores_table(
            all_scores(config, blocks, folder), "the demo's blocks alone and merged: local validation, higher is better"
        )
    )
    closing_line("demo", folder)


if __name__ == "__main__":
    main()
