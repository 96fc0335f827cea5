"""The shell script: the published commands, in order or several at once, until one fails.

For real, on a tiny history, it makes all blocks in `tests.test_commands`.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ubp.blocks.embeddings import EmbeddingTable
from ubp.cli.config import composed
from ubp.data.paths import CONFIGS, REPOSITORY

pytestmark = pytest.mark.full

SCRIPT = REPOSITORY / "get_all_embeddings.sh"
RUNNER = "scripts/all_embeddings.py"
SMOLLM2 = "data_files=all_interactions_64.parquet save_dir_name=smollm2_all_interactions n_components=128"
# As the published document has them, to the letter.
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
    "numeric_features/numeric_features.py",
    "numeric_features/numeric_features.py --config-name=numeric_features_wide",
    "sequential_encoder/sequential_encoder_embeddings.py",
    "twhin/twhin_embeddings.py",
    "dcn/dcn_embeddings.py",
    "stacker/stack_embeddings.py",
]


def sh(script: Path, *words: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHON")}
    return subprocess.run(
        ["/bin/sh", str(script), *words],
        cwd=folder, env=variables | environment, capture_output=True, text=True, check=False, timeout=1800,
    )  # fmt: skip


def wait_until(holds: Callable[[], object]) -> None:
    end = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)


def alive(group: Path) -> list[str]:
    """Processes of the group whose number the file holds: the command and what it started."""
    number = group.read_text().strip()
    words = [shutil.which("ps") or "ps", "-eo", "pgid=,stat=,args="]
    listed = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    return [line for line in listed.splitlines() if line.split()[0] == number and not line.split()[1].startswith("Z")]


@pytest.fixture
def recorder(tmp_path) -> Path:
    """Stands for Python, but for the script that runs the commands.

    It notes what it was called with and the threads it was given, sleeps at a script that SLEEP_AT names, and fails at
    one that FAIL_AT names.
    """
    program = tmp_path / "recorder"
    program.write_text(
        f'#!/bin/sh\ncase "$1" in */{RUNNER}) exec "{sys.executable}" "$@";; esac\n'
        'printf "%s|%s|%s|%s\\n" "$PWD" "${CHALLENGE_DATA_PATH:-}" "$*" "${OMP_NUM_THREADS:-}" >> "$CALLS"\n'
        'echo "this is $1"\n'
        'case "$*" in *"${FAIL_AT:-nothing at all}"*) echo "error: no luck" >&2; echo later >&2; exit 3;; esac\n'
        'case "$*" in *"${SLEEP_AT:-nothing at all}"*) trap \'echo interrupted; exit 130\' INT;'
        ' echo $$ > "$CALLS.sleeps"; sleep 60 & wait;; esac\n'
    )
    program.chmod(0o755)
    return program


def calls(file: Path) -> list[list[str]]:
    """Folder, data path, words and threads of each call; scripts without the repository's path."""
    found = [line.split("|") for line in file.read_text().splitlines()]
    return [
        [folder, data_path, words.removeprefix(f"{REPOSITORY}/"), threads]
        for folder, data_path, words, threads in found
    ]


@pytest.fixture
def recorded(recorder, tmp_path):
    """Run the script with the recorder in the place of Python; what came out, and the words of its calls."""

    def run(*words: str, folder: Path = tmp_path, **environment: str):
        environment = {"CHALLENGE_DATA_PATH": str(tmp_path / "data"), "OMP_NUM_THREADS": ""} | environment
        done = sh(SCRIPT, *words, folder=folder, PYTHON=str(recorder), CALLS=str(tmp_path / "calls"), **environment)
        return done, calls(tmp_path / "calls")

    return run


def test_the_published_commands_in_order_each_with_the_overrides(recorded):
    done, called = recorded("submit=False", "seed=1", "jobs=1")
    assert done.returncode == 0, done.stderr
    assert [words for _, _, words, _ in called] == [f"{line} submit=False seed=1" for line in COMMANDS]
    assert {threads for *_, threads in called} == {""}  # nothing is said of threads
    *stages, last = [line for line in done.stdout.splitlines() if not line.startswith("this is")]
    for number, (line, command) in enumerate(zip(stages, COMMANDS, strict=True), 1):
        assert re.fullmatch(
            rf"\[{number}/{len(COMMANDS)}\] python {re.escape(command)} submit=False seed=1 · \d+ s", line
        )
    assert re.fullmatch(r"all embeddings · \d+ s", last)


def test_some_blocks_alone_with_what_they_read(recorded):
    done, called = recorded("submit=False", "jobs=1", "only=[stacker,stat_features]")
    assert done.returncode == 0, done.stderr
    assert [words.removesuffix(" submit=False") for _, _, words, _ in called] == [
        "stat_features/stat_features.py",
        "numeric_features/numeric_features.py --config-name=numeric_features_wide",
        "sequential_encoder/sequential_encoder_embeddings.py",
        "dcn/dcn_embeddings.py",
        "stacker/stack_embeddings.py",
    ]
    done, called = recorded("submit=False", "only=[stat_feature]")
    assert done.returncode == 1
    assert "error: stat_feature: no such block; known: " in done.stderr


def test_side_by_side_each_command_once_texts_before_their_readers(recorded, tmp_path):
    done, called = recorded("submit=False", "jobs=3")
    assert done.returncode == 0, done.stderr
    ran = [words.removesuffix(" submit=False") for _, _, words, _ in called]
    assert sorted(ran) == sorted(COMMANDS)
    assert ran.index("LLM/preprocessing_search.py") < ran.index("LLM/get_embeddings.py")
    assert ran.index("LLM/convert_to_text.py") < ran.index(f"LLM/get_embeddings.py {SMOLLM2}")
    assert ran.index("next_sku/next_sku_embeddings.py") < len(ran) // 2  # the longest do not come last
    assert {threads for *_, threads in called} == {str(max(1, len(os.sched_getaffinity(0)) // 3))}

    first, *stages, last = done.stdout.splitlines()
    found = re.fullmatch(r"3 commands at once, threads each: \d+; their logs: (.+)", first)
    begun = [line for line in stages if line.endswith(" · begins")]
    assert sorted(begun) == sorted(f"python {line} submit=False · begins" for line in COMMANDS)
    ended = [line for line in stages if line not in begun]
    for number, line in enumerate(ended, 1):
        assert re.fullmatch(rf"\[{number}/{len(COMMANDS)}\] python .+ submit=False · \d+ s", line)
    assert len(ended) == len(COMMANDS)
    assert re.fullmatch(r"all embeddings · \d+ s", last)
    assert tmp_path / "data" in Path(found[1]).parents
    logs = {path.name: path.read_text() for path in Path(found[1]).glob("*.log") if path.name != "all_embeddings.log"}
    assert len(logs) == len(COMMANDS)
    assert logs["next_sku_128_4_4.log"] == f"this is {REPOSITORY}/next_sku/next_sku_embeddings.py\n"


def test_without_jobs_no_more_commands_at_once_than_cores(recorded):
    done, _ = recorded("submit=False")
    jobs = min(len(COMMANDS), len(os.sched_getaffinity(0)))
    assert done.returncode == 0
    assert f"{jobs} commands at once" in done.stdout or "at once" not in done.stdout


def test_overrides_with_blanks_and_brackets_stay_one_word(tmp_path):
    counter = tmp_path / "counter"
    counter.write_text(
        f'#!/bin/sh\ncase "$1" in */{RUNNER}) exec "{sys.executable}" "$@";; esac\n'
        'shift\nfor word; do last=$word; done\nprintf "%s\\n" "$last" >> "$CALLS"\n'
    )
    counter.chmod(0o755)
    done = sh(
        SCRIPT, "jobs=2", "as_of=2022-10-01 12:00:00", folder=tmp_path, PYTHON=str(counter),
        CALLS=str(tmp_path / "calls"), CHALLENGE_DATA_PATH=str(tmp_path / "data"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "calls").read_text().splitlines() == ["as_of=2022-10-01 12:00:00"] * len(COMMANDS)


def test_it_stops_at_the_first_error_and_says_which_command(recorded):
    done, called = recorded("submit=False", "jobs=1", FAIL_AT="sku_text")
    assert done.returncode == 3
    assert [words for _, _, words, _ in called] == [f"{line} submit=False" for line in COMMANDS[:5]]
    assert len([line for line in done.stdout.splitlines() if line.startswith("[")]) == 4
    *_, line = done.stderr.splitlines()
    assert line.startswith(f"error: python {COMMANDS[4]} submit=False: failed with exit code 3, see above; fix it")


def test_an_error_ends_the_neighbours_and_shows_what_the_command_said(recorded, tmp_path):
    """One command sleeps for a minute; another fails meanwhile."""
    began = time.monotonic()
    done, _ = recorded("submit=False", "jobs=2", SLEEP_AT="next_url", FAIL_AT="sku_text")
    assert time.monotonic() - began < 20
    assert done.returncode == 3
    said, last = done.stderr.splitlines()
    assert said == "error: no luck"
    found = re.fullmatch(
        rf"error: python {COMMANDS[4]} submit=False: failed with exit code 3, its log: (.+); fix it and start again: "
        "what is done is skipped",
        last,
    )
    assert Path(found[1]).read_text().endswith("later\n")
    assert (Path(found[1]).parent / "next_url_192_6_4.log").read_text().endswith("interrupted\n")
    wait_until(lambda: not alive(tmp_path / "calls.sleeps"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_all(recorder, tmp_path, number):
    calls_file = tmp_path / "calls"
    variables = {"PYTHON": str(recorder), "CALLS": str(calls_file), "SLEEP_AT": "next_url"}
    # Where the tests run in the background, SIGINT is ignored, and would be by what they start.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        ["/bin/sh", str(SCRIPT), "jobs=2", f"data_path={tmp_path}/data"],
        env=os.environ | variables, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    signal.signal(signal.SIGINT, before)
    sleeps = tmp_path / "calls.sleeps"
    wait_until(lambda: sleeps.exists() and alive(sleeps))
    process.send_signal(number)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 128 + number
    assert (number == signal.SIGTERM) or err == "error: interrupted; what was finished before is kept\n"
    wait_until(lambda: not alive(sleeps))


def test_an_unknown_override_is_said_once():
    done = sh(SCRIPT, "sumbit=False", folder=REPOSITORY, PYTHON=sys.executable)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: sumbit: unknown setting (did you mean submit?); known: ")


def test_no_commands_at_once():
    done = sh(SCRIPT, "jobs=0", folder=REPOSITORY, PYTHON=sys.executable)
    assert done.returncode == 1
    assert done.stderr == "error: jobs=0: must be at least 1\n"


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_relative_data_path_keeps_its_meaning(recorded, tmp_path, jobs):
    elsewhere = tmp_path / "else where"
    elsewhere.mkdir()
    done, called = recorded(f"jobs={jobs}", folder=elsewhere, CHALLENGE_DATA_PATH="my/data")
    assert done.returncode == 0, done.stderr
    assert {(folder, data_path) for folder, data_path, *_ in called} == {(str(elsewhere), "my/data")}
    assert {path.name for path in elsewhere.iterdir()} == {"my"}


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


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_command_that_really_fails_is_named(tmp_path, jobs):
    data_path = str(tmp_path / "nowhere")
    done = sh(SCRIPT, f"jobs={jobs}", folder=tmp_path, PYTHON=sys.executable, CHALLENGE_DATA_PATH=data_path)
    assert done.returncode == 1
    first, last = done.stderr.splitlines()
    assert first.startswith(f"error: {tmp_path}/nowhere/raw: folder missing")
    assert re.match(r"error: python [\w/]+\.py( --config-name=\w+)?: failed with exit code 1", last)


@pytest.mark.long
def test_all_eighteen_embeddings_on_the_tiny_history(make_history, tmp_path):
    """For real, the demo's sizes: eighteen blocks of one history."""
    paths = make_history(clients=200).write(tmp_path / "data")  # a PCA to 128 columns needs some
    environment = {"PYTHON": sys.executable, "CHALLENGE_DATA_PATH": str(tmp_path / "data"), "OMP_NUM_THREADS": "1"}
    split = subprocess.run(
        [sys.executable, str(REPOSITORY / "scripts" / "split.py")], env=os.environ | environment, check=True,
        capture_output=True,
    )  # fmt: skip
    assert split.returncode == 0
    done = sh(SCRIPT, "preset=demo", "submit=False", "jobs=2", folder=tmp_path, **environment)
    assert done.returncode == 0, done.stderr
    merges = [
        composed(CONFIGS / "merge", name, ["data_path=x"]).blocks
        for name in ("best_solution", "combined", "fourth_place", "past_windows", "sequences")
    ]
    wanted = {name for blocks in merges for name in blocks}
    assert len(wanted) == 18
    blocks = {name: EmbeddingTable.read(paths.block(name, submit=False)) for name in wanted}
    assert len({block.lineage["fingerprint"] for block in blocks.values()}) == 1
    assert {path.stem for path in paths.embeddings(submit=False).glob("*.parquet")} == set(wanted)
