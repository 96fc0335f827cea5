"""A command that has nothing to do starts in less than a second: what takes long to import is imported late."""

import json
import subprocess
import sys

import pytest

from tests.test_commands import ALL
from ubp.data.paths import REPOSITORY

pytestmark = pytest.mark.full

# Each takes from a half to several seconds.
SLOW = ("implicit", "lightfm", "lightning", "pandas", "pyarrow", "sklearn", "torch", "torchmetrics", "transformers")
MODULES = sorted({words[0].removesuffix(".py").replace("/", ".") for words in ALL.values()})


def imported(*modules: str) -> dict[str, set[str]]:
    """Which of the slow modules a fresh process has imported after each of some modules, one after the other."""
    line = (
        "import importlib, json, sys\n"
        "found = {}\n"
        "for name in sys.argv[1:]:\n"
        "    importlib.import_module(name)\n"
        "    found[name] = list(sys.modules)\n"
        "print(json.dumps(found))"
    )
    words = [sys.executable, "-c", line, *modules]
    done = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True, check=True, timeout=300)
    return {name: set(SLOW) & set(after) for name, after in json.loads(done.stdout).items()}


def test_a_command_imports_nothing_slow_before_it_knows_that_there_is_something_to_do():
    assert len(MODULES) > 25
    assert imported(*MODULES) == {module: set() for module in MODULES}


def test_processes_that_gather_batches_and_data_that_is_read_need_no_lightning():
    modules = ("ubp.training.loader", "ubp.training.windows", "gru_autoencoder.recipe")
    assert imported(*modules) == {module: {"torch"} for module in modules}
