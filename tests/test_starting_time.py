"""A command that has nothing to do starts in less than a second: what takes long to import is imported late."""

import subprocess
import sys

import pytest

from tests.test_commands import ALL
from ubp.data.paths import REPOSITORY

pytestmark = pytest.mark.full

# Each takes from a half to several seconds.
SLOW = ("implicit", "lightfm", "lightning", "pandas", "pyarrow", "sklearn", "torch", "torchmetrics", "transformers")
MODULES = sorted({words[0].removesuffix(".py").replace("/", ".") for words in ALL.values()})


def imported(line: str) -> set[str]:
    """Which of the slow modules a fresh process has imported after a line."""
    line = f"{line}; import sys; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", line], cwd=REPOSITORY, capture_output=True, text=True, check=True, timeout=60
    )
    return set(SLOW) & set(done.stdout.split())


@pytest.mark.parametrize("module", MODULES)
def test_a_command_imports_nothing_slow_before_it_knows_that_there_is_something_to_do(module):
    assert imported(f"import {module}") == set()


@pytest.mark.parametrize("module", ["ubp.training.loader", "ubp.training.windows", "gru_autoencoder.recipe"])
def test_processes_that_gather_batches_and_data_that_is_read_need_no_lightning(module):
    assert imported(f"import {module}") == {"torch"}
