"""docs/own-log.md: what it quotes is what is there, and its commands run as they stand there."""

import os
import re
import shlex
import subprocess
import sys

import pytest

from scripts.make_example_log import Wanted, bank
from ubp.data.paths import CONFIGS, REPOSITORY

PAGE = (REPOSITORY / "docs/own-log.md").read_text()


def quoted(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, flags=re.DOTALL | re.MULTILINE)


def test_the_quoted_schema_is_the_projects():
    text, _ = quoted("yaml")  # the second is an example of a type of one's own
    assert text in (CONFIGS / "schema/bank.yaml").read_text()


def test_the_quoted_columns_are_the_examples():
    (rows,) = bank(Wanted("bank", "", 5, "2025-01-01", 40), seed=0).values()
    assert f"\n{','.join(rows.columns)}\n" in PAGE


@pytest.mark.full
def test_the_pages_commands_lead_from_a_csv_to_scores_and_back_to_ones_own_ids(tmp_path):
    """As they stand, in the project's folder, but with another data path and fewer clients."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {"CHALLENGE_DATA_PATH": str(tmp_path), "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    lines = [line for block in quoted("sh") for line in block.splitlines()]
    assert len(lines) >= 6
    for line in lines:
        words = shlex.split(line.replace("clients=1_000", "clients=60 days=150").replace("data/", f"{tmp_path}/"))
        words[0] = {"python": sys.executable}.get(words[0], words[0])
        done = subprocess.run(
            words, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False, timeout=600
        )
        assert done.returncode == 0, (line, done.stderr)
        assert done.stdout.strip(), line
        what = done.stdout.splitlines()[-1].partition(" · ")[0]
        assert f"\n{what} · " in PAGE, line  # the closing line that the page shows
    (code,) = quoted("python")
    names = {}
    exec(compile(code.replace("data/", f"{tmp_path}/"), "the page", "exec"), names)  # noqa: S102
    assert names["profiles"]["original"].str.starts_with("DE").all()
    assert len(names["profiles"]) > 50
