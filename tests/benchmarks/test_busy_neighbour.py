"""The benchmark beside a busy process: what it runs, that the neighbour is busy, and that it ends."""

import subprocess
import sys
import time

import pytest

from benchmarks import busy_neighbour, measuring
from benchmarks.busy_neighbour import Settings, measure, seconds
from benchmarks.measuring import busy
from ubp.io.errors import UserError

pytestmark = pytest.mark.full


def spinning() -> int:
    found = subprocess.run(["/bin/ps", "-eo", "args="], capture_output=True, text=True, check=True).stdout
    return sum(measuring._SPIN.splitlines()[0] in line for line in found.splitlines())


def test_the_neighbour_lives_as_long_as_the_run():
    before = spinning()
    with busy(2, limit=30):
        assert spinning() == before + 2
    assert spinning() == before


def test_the_neighbour_ends_by_itself_when_the_time_is_up():
    process = subprocess.Popen([sys.executable, "-c", measuring._SPIN, "0.3"])
    began = time.process_time()
    assert process.wait(30) == 0
    assert time.process_time() - began < 1  # not this process is the busy one


def test_quiet_and_busy_in_turn(monkeypatch):
    seen = []

    def count(*_):
        seen.append(spinning())
        return 1.0

    monkeypatch.setattr(busy_neighbour, "seconds", count)
    before = spinning()
    settings = Settings(["x"], times=2, threads=1, neighbours=1, limit=30, goal=2)
    assert measure(settings, ["python", "x"], {}) == ([1.0, 1.0], [1.0, 1.0])
    assert [number - before for number in seen] == [0, 1, 0, 1]


def test_a_command_that_fails_or_takes_too_long_is_named():
    failing = [sys.executable, "-c", "import sys; print('no data', file=sys.stderr); sys.exit(4)"]
    with pytest.raises(UserError, match=r"(?s)no data.*failed with exit code 4"):
        seconds(failing, {}, limit=30)
    with pytest.raises(UserError, match=r"took longer than limit=0\.2 seconds"):
        seconds([sys.executable, "-c", "import time; time.sleep(30)"], {}, limit=0.2)
