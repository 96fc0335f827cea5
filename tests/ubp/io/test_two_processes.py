"""The same command given twice at a time: real processes on the tiny history, one waits for the other."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from ubp.data.paths import REPOSITORY, DataPaths

pytestmark = pytest.mark.full

# Runs a command of ours, but holds it in the middle of its work until a file is there.
HOLD = """
import importlib, sys, time
from pathlib import Path

main, patched, function, inside, go = sys.argv[1:6]
sys.argv[1:6] = []
module = importlib.import_module(patched)
work = getattr(module, function)

def held(*arguments):
    Path(inside).touch()
    while not Path(go).exists():
        time.sleep(0.02)
    return work(*arguments)

setattr(module, function, held)
importlib.import_module(main).main()
"""

STATISTICS = ("stat_features/stat_features.py", "stat_features.recipe", "popularities")
TEXTS = ("LLM/convert_to_text.py", "LLM.texts", "write_texts")
MERGE = ("scripts/merge.py", "scripts.merge", "fit_merge")
ARGUMENTS = {
    STATISTICS[0]: [],
    TEXTS[0]: [],
    MERGE[0]: ["--config-name=basics", "~blocks.als_64_buy_add_categories", "~blocks.als_64_visits_relevant"],
}


@dataclass
class Bench:
    """Starts commands on one data path."""

    paths: DataPaths
    folder: Path
    started: list["subprocess.Popen[str]"]

    def start(self, words: list[str], **environment: str) -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            [sys.executable, *words, "submit=True", f"data_path={self.paths.root}"],
            cwd=REPOSITORY, env=os.environ | {"OMP_NUM_THREADS": "1"} | environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        self.started.append(process)
        return process

    def held(self, what: tuple[str, str, str], *words: str) -> "subprocess.Popen[str]":
        """A command in the middle of its work, where it stays until `go`."""
        script = self.folder / "hold.py"
        script.write_text(HOLD)
        main = what[0].removesuffix(".py").replace("/", ".")
        files = [str(self.folder / "inside"), str(self.folder / "go")]
        process = self.start([str(script), main, *what[1:], *files, *ARGUMENTS[what[0]], *words])
        wait_until(lambda: (self.folder / "inside").exists() or process.poll() is not None)
        assert process.poll() is None, process.communicate()
        return process

    def go(self) -> None:
        (self.folder / "go").touch()


def wait_until(holds: Callable[[], object]) -> None:
    end = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.fixture
def bench(history, tmp_path, make_history):
    history.input.mkdir()
    clients = np.unique(make_history().events["page_visit"]["client_id"].to_numpy())
    np.save(history.relevant_clients, clients)
    made = Bench(history, tmp_path, [])
    yield made
    for process in made.started:
        process.kill()
        process.communicate()


def waits_for(second: "subprocess.Popen[str]", first: "subprocess.Popen[str]") -> str:
    """The line by which the second one says that it waits."""
    line = second.stderr.readline()
    assert f"waiting for PID {first.pid} on {os.uname().nodename}, which is making " in line, line
    time.sleep(0.2)
    assert second.poll() is None
    return line


@pytest.mark.parametrize("what", [STATISTICS, TEXTS, MERGE], ids=["block", "texts", "entry"])
def test_the_second_waits_and_takes_what_the_first_made(bench, what):
    if what is MERGE:
        block = bench.start([STATISTICS[0]])
        _, err = block.communicate()
        assert block.returncode == 0, err
    again = ["overwrite=True"]  # even so it is not made twice
    first = bench.held(what, *again)
    second = bench.start([what[0], *ARGUMENTS[what[0]], *again])
    line = waits_for(second, first)
    assert time.strftime("since %Y-") in line
    bench.go()
    out, err = first.communicate(timeout=60)
    assert first.returncode == 0, err
    assert "done before" not in out
    out, err = second.communicate(timeout=60)
    assert second.returncode == 0, err
    assert "done before" in out.splitlines()[-1]
    assert err == ""


def test_the_second_takes_over_where_the_first_is_killed(bench):
    first = bench.held(STATISTICS)
    second = bench.start([STATISTICS[0]])
    waits_for(second, first)
    first.send_signal(signal.SIGKILL)
    out, err = second.communicate(timeout=60)
    assert second.returncode == 0, err
    assert out.startswith("stat_features · ")
    assert "clients ×" in out
    assert bench.paths.block("stat_features", submit=True).exists()


def test_another_block_does_not_wait(bench):
    first = bench.held(STATISTICS)
    other = bench.start([TEXTS[0]])
    _, err = other.communicate(timeout=60)
    assert other.returncode == 0, err
    assert "waiting" not in err
    assert first.poll() is None


def test_a_process_for_a_further_device_does_not_wait_for_the_first(bench):
    first = bench.held(STATISTICS)
    child = bench.start([STATISTICS[0]], LOCAL_RANK="1")
    _, err = child.communicate(timeout=60)
    assert child.returncode == 0, err
    assert "waiting" not in err
    assert first.poll() is None


def test_a_history_that_changed_while_the_second_waited_is_said(bench):
    first = bench.held(STATISTICS)
    second = bench.start([STATISTICS[0]])
    waits_for(second, first)
    file = bench.paths.raw / "page_visit.parquet"
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    first.kill()
    _, err = second.communicate(timeout=60)
    assert second.returncode == 1
    assert "changed while they were read; give the command again" in err
