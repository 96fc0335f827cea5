"""The shell script: the published commands in order, stopping at the first that fails; once for real."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ubp.config import composed
from ubp.embeddings import EmbeddingTable
from ubp.paths import CONFIGS, REPOSITORY

SCRIPT = REPOSITORY / "get_all_embeddings.sh"
SMOLLM2 = "data_files=all_interactions_64.parquet save_dir_name=smollm2_all_interactions n_components=128"
# As shared/seeds has them, to the letter.
COMMANDS = [
    "stat_features/stat_features.py",
    "ALS/als_embeddings.py --config-name=als_buy_add_categories",
    "ALS/als_embeddings.py --config-name=als_visits_relevant",
    "gru_autoencoder/gru_ae_day_event_embeddings.py",
    "gru_autoencoder/gru_ae_sku_text_embeddings.py",
    "gru_autoencoder/gru_ae_embeddings.py --config-name=gru_ae_event_cat_price_sku_url",
    "gru_autoencoder/gru_ae_embeddings.py --config-name=gru_ae_week_event_cat_price_sku_url",
    "next_sku/next_sku_embeddings.py",
    "next_url/next_url_embeddings.py",
    "LLM/preprocessing_search.py",
    "LLM/convert_to_text.py",
    "LLM/get_embeddings.py",
    f"LLM/get_embeddings.py {SMOLLM2}",
    "LightFM/lightfm_train.py",
]


def sh(script: Path, *words: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHON")}
    return subprocess.run(
        ["/bin/sh", str(script), *words],
        cwd=folder, env=variables | environment, capture_output=True, text=True, check=False, timeout=1800,
    )  # fmt: skip


@pytest.fixture
def recorder(tmp_path) -> Path:
    """Stands for Python: notes what it was called with, and fails at a script that FAIL_AT names."""
    program = tmp_path / "recorder"
    program.write_text(
        '#!/bin/sh\nprintf "%s|%s|%s\\n" "$PWD" "${CHALLENGE_DATA_PATH:-}" "$*" >> "$CALLS"\n'
        'case "$*" in *"${FAIL_AT:-nothing at all}"*) exit 3;; esac\n'
    )
    program.chmod(0o755)
    return program


def calls(file: Path) -> list[list[str]]:
    """Folder, data path and words of each call; scripts without the repository's path."""
    found = [line.split("|") for line in file.read_text().splitlines()]
    return [[folder, data_path, words.removeprefix(f"{REPOSITORY}/")] for folder, data_path, words in found]


def test_the_published_commands_in_order_each_with_the_overrides(recorder, tmp_path):
    done = sh(SCRIPT, "submit=False", "seed=1", folder=tmp_path, PYTHON=str(recorder), CALLS=str(tmp_path / "calls"))
    assert done.returncode == 0, done.stderr
    assert [words for _, _, words in calls(tmp_path / "calls")] == [f"{line} submit=False seed=1" for line in COMMANDS]
    *stages, last = done.stdout.splitlines()
    for number, (line, command) in enumerate(zip(stages, COMMANDS, strict=True), 1):
        assert re.fullmatch(rf"\[{number}/14\] python {re.escape(command)} submit=False seed=1 · \d+ s", line)
    assert re.fullmatch(r"all embeddings · \d+ s", last)


def test_overrides_with_blanks_and_brackets_stay_one_word(tmp_path):
    counter = tmp_path / "counter"
    counter.write_text('#!/bin/sh\nshift\nfor word; do last=$word; done\nprintf "%s\\n" "$last" >> "$CALLS"\n')
    counter.chmod(0o755)
    sh(SCRIPT, "as_of=2022-10-01 12:00:00", folder=tmp_path, PYTHON=str(counter), CALLS=str(tmp_path / "calls"))
    assert (tmp_path / "calls").read_text().splitlines() == ["as_of=2022-10-01 12:00:00"] * len(COMMANDS)


def test_it_stops_at_the_first_error_and_says_which_command(recorder, tmp_path):
    environment = {"PYTHON": str(recorder), "CALLS": str(tmp_path / "calls"), "FAIL_AT": "sku_text"}
    done = sh(SCRIPT, "submit=False", folder=tmp_path, **environment)
    assert done.returncode == 3
    assert [words for _, _, words in calls(tmp_path / "calls")] == [f"{line} submit=False" for line in COMMANDS[:5]]
    assert len(done.stdout.splitlines()) == 4
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: python {COMMANDS[4]} submit=False: failed with exit code 3, see above; mend it")


def test_a_relative_data_path_keeps_its_meaning(recorder, tmp_path):
    elsewhere = tmp_path / "else where"
    elsewhere.mkdir()
    environment = {"PYTHON": str(recorder), "CALLS": str(tmp_path / "calls"), "CHALLENGE_DATA_PATH": "my/data"}
    assert sh(SCRIPT, folder=elsewhere, **environment).returncode == 0
    assert {(folder, data_path) for folder, data_path, _ in calls(tmp_path / "calls")} == {(str(elsewhere), "my/data")}


def test_the_repositorys_own_python_before_any_other(tmp_path):
    """A copy of the script beside a .venv of its own, then without one."""
    copy = tmp_path / "a copy" / SCRIPT.name
    (copy.parent / ".venv" / "bin").mkdir(parents=True)
    shutil.copy(SCRIPT, copy)
    own, found = copy.parent / ".venv" / "bin" / "python", tmp_path / "bin" / "python3"
    found.parent.mkdir()
    for program in (own, found):
        program.write_text('#!/bin/sh\necho "$0" >> "$CALLS"\n')
        program.chmod(0o755)
    environment = {"PATH": f"{found.parent}:/usr/bin:/bin", "CALLS": str(tmp_path / "calls")}
    assert sh(copy, folder=tmp_path, **environment).returncode == 0
    assert set((tmp_path / "calls").read_text().splitlines()) == {str(own)}
    shutil.rmtree(own.parents[1])
    (tmp_path / "calls").unlink()
    assert sh(copy, folder=tmp_path, **environment).returncode == 0
    assert set((tmp_path / "calls").read_text().splitlines()) == {str(found)}


def test_no_python_at_all(tmp_path):
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("dirname", "date", "sh"):
        (tools / name).symlink_to(shutil.which(name))
    copy = tmp_path / SCRIPT.name
    shutil.copy(SCRIPT, copy)
    done = sh(copy, folder=tmp_path, PATH=str(tools))
    assert done.returncode == 127
    assert done.stderr.splitlines() == [
        "error: no Python found; install it, or name one: PYTHON=/some/python sh get_all_embeddings.sh"
    ]


def test_a_command_that_really_fails_is_named(tmp_path):
    data_path = str(tmp_path / "nowhere")
    done = sh(SCRIPT, folder=tmp_path, PYTHON=sys.executable, CHALLENGE_DATA_PATH=data_path)
    assert done.returncode == 1
    first, last = done.stderr.splitlines()
    assert first.startswith(f"error: {tmp_path}/nowhere/raw: folder missing")
    assert last.startswith("error: python stat_features/stat_features.py: failed with exit code 1")


@pytest.mark.skipif(
    not all((REPOSITORY / line.split()[0]).exists() for line in COMMANDS), reason="not all commands are there yet"
)
def test_all_twelve_embeddings_on_the_tiny_history(make_history, tmp_path):
    """For real, the demo's sizes: twelve blocks of one history."""
    paths = make_history(clients=200).write(tmp_path / "data")  # a PCA to 128 columns needs some
    environment = {"PYTHON": sys.executable, "CHALLENGE_DATA_PATH": str(tmp_path / "data"), "OMP_NUM_THREADS": "1"}
    split = subprocess.run(
        [sys.executable, str(REPOSITORY / "scripts" / "split.py")], env=os.environ | environment, check=True,
        capture_output=True,
    )  # fmt: skip
    assert split.returncode == 0
    done = sh(SCRIPT, "preset=demo", "submit=False", folder=tmp_path, **environment)
    assert done.returncode == 0, done.stderr
    wanted = composed(CONFIGS / "merge", "best_solution", ["data_path=x"]).blocks
    assert len(wanted) == 12
    blocks = {name: EmbeddingTable.read(paths.block(name, submit=False)) for name in wanted}
    assert len({block.lineage["fingerprint"] for block in blocks.values()}) == 1
    assert {path.stem for path in paths.embeddings(submit=False).glob("*.parquet")} == set(wanted)
