"""A command of a chain of them: what its end means to it."""

import os
import signal
import subprocess
import sys
import time

import pytest

from ubp.cli.stages import run_stage
from ubp.io.errors import UserError

pytestmark = pytest.mark.full

# Takes longer to end than subprocess.run would wait for it.
SLOW_TO_END = """
import pathlib, sys, time
folder = pathlib.Path(sys.argv[1])
try:
    (folder / "began").touch()
    time.sleep(60)
except KeyboardInterrupt:
    time.sleep(1)
    (folder / "ended").touch()
    sys.exit(130)
"""


def test_a_stage_that_fails_is_named(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("import sys; sys.exit(3)")
    with pytest.raises(UserError, match=r"script\.py a=1: failed with exit code 3, see above; fix it"):
        run_stage(["python", str(script), "a=1"], str(tmp_path))


def test_a_stage_has_the_time_to_end_itself_at_ctrl_c(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SLOW_TO_END)
    call = f"from ubp.cli.stages import run_stage; run_stage(['python', {str(script)!r}, {str(tmp_path)!r}], 'x')"
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # where tests run in the background it is ignored
    process = subprocess.Popen([sys.executable, "-c", call], process_group=0, stderr=subprocess.DEVNULL)
    signal.signal(signal.SIGINT, before)
    end = time.monotonic() + 30
    while not (tmp_path / "began").exists():
        assert time.monotonic() < end
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    process.wait(30)
    assert (tmp_path / "ended").exists()
