"""docs/nightly.md: its commands run as they stand there, and what it quotes of them is what they say."""

import os
import re
import shlex
import subprocess
import sys

import polars as pl
import pytest

from ubp.data.paths import CONFIGS, REPOSITORY

PAGE = (REPOSITORY / "docs/nightly.md").read_text()


def quoted(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, flags=re.DOTALL | re.MULTILINE)


def test_the_quoted_limits_are_the_configs():
    (text,) = quoted("yaml")
    assert text in (CONFIGS / "scripts/nightly.yaml").read_text()


@pytest.mark.full
def test_the_pages_commands_lead_through_two_nights(tmp_path):
    """As they stand, in the project's folder, but with another data path and fewer clients."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {"CHALLENGE_DATA_PATH": str(tmp_path), "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    lines = [line for block in quoted("sh") for line in block.splitlines()]
    assert sum("nightly.py" in line for line in lines) >= 2
    for line in lines:
        words = shlex.split(line.replace("clients=1_000", "clients=60").replace("data/", f"{tmp_path}/"))
        words[0] = {"python": sys.executable}.get(words[0], words[0])
        done = subprocess.run(
            words, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False, timeout=600
        )
        assert done.returncode == 0, (line, done.stderr)
        if "nightly.py" in line:
            what = done.stdout.splitlines()[-1].partition(" · ")[0]
            assert f"\n{what} · " in PAGE, line  # the closing line that the page shows
    (code,) = quoted("python")
    names = {}
    exec(compile(code.replace("data/", f"{tmp_path}/"), "the page", "exec"), names)  # noqa: S102
    newest: pl.DataFrame = names["newest"]
    assert newest["client_id"].is_unique().all()
    assert newest["original"].str.starts_with("DE").all()
    assert newest["day"].n_unique() == 2
