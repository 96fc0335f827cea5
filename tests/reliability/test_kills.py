"""Every command, killed at many moments and then run to its end: what lies there is what an undisturbed run leaves."""

import os
import random
import signal

import pytest

from tests.reliability.commands import COMMANDS, Workshop
from tests.reliability.killing import content, differences, litter, moments, require_whole, run

pytestmark = pytest.mark.full

KILLS = int(os.environ.get("KILLS", "20"))  # of each command, at least
CHILD_KILLED = 128 + signal.SIGKILL  # exit code of a command that began others, where one of these was killed
_CHILD_OF_CHILD = f"failed with exit code {CHILD_KILLED}"  # what one says that began such a command
IN_A_ROW = 3  # of one run and those that take it up, at most


@pytest.fixture(scope="module")
def workshop(tmp_path_factory):
    made = Workshop(tmp_path_factory.mktemp("kills"))
    yield made
    made.require_untouched()


def killed_and_compared(workshop, name, kills, counts, again=False) -> None:
    """Kill a command so many times, with nothing before it and with an earlier result of its own, or with that first.

    After each kill every file is an old one or a new one, whole; after some of them the command is run to its end.
    """
    command, draw = COMMANDS[name], random.Random(name)  # noqa: S311
    words, left = workshop.words(command), kills
    while left > 0:
        workshop.begin(command, again)
        old = content(workshop.here)
        undisturbed = workshop.run(command)
        wanted = content(workshop.here)
        assert not litter(workshop.here)
        share = left if command.before is None or again else left // 2
        asked = list(moments(share, undisturbed.steps, undisturbed.seconds, draw))
        while asked:
            workshop.begin(command, again)
            for _ in range(draw.randint(1, IN_A_ROW)):
                moment = asked.pop() if asked else None
                if moment is None:
                    break
                done = run(workshop.here, words, moment)
                was_killed = done.killed or done.code == CHILD_KILLED or _CHILD_OF_CHILD in done.err
                assert was_killed or done.code == 0, (moment, done.err)
                counts[f"kills of {name}"] += was_killed
                left -= was_killed
                require_whole(content(workshop.here), old, wanted, moment)
            last = run(workshop.here, words)
            assert last.code == 0, (moment, last.err)
            assert "Traceback" not in last.err
            assert differences(content(workshop.here), wanted) == [], moment
        again = command.before is not None and not again


def test_a_table_may_have_some_of_its_rows():
    old, wanted = {}, {"scores.csv": "seed,sum\n0,1.5\n1,2.5\n", "note": "seed,sum\n"}
    require_whole({"scores.csv": "seed,sum\n0,1.5\n"}, old, wanted, None)
    for found in ({"scores.csv": "seed,sum\n0,1."}, {"scores.csv": "seed,sum\n0,9.5\n"}, {"note": "seed,"}):
        with pytest.raises(AssertionError):
            require_whole(found, old, wanted, None)
    with pytest.raises(AssertionError):  # a row fewer than before
        require_whole({"scores.csv": "seed,sum\n"}, {"scores.csv": "seed,sum\n0,1.5\n"}, wanted, None)


def test_half_a_note_may_lie_aside_and_nowhere_else(tmp_path):
    (tmp_path / ".12-ab.note.json").write_text("")
    assert litter(tmp_path) == [".12-ab.note.json"]
    (tmp_path / "note.json").write_text("")
    with pytest.raises(AssertionError, match=r"note\.json"):
        content(tmp_path)


@pytest.mark.parametrize(("name", "again"), [("stat_features", False), ("gru_ae_day_event", True)])
def test_killed_twice(workshop, counts, name, again):
    killed_and_compared(workshop, name, 2, counts, again)


@pytest.mark.long
@pytest.mark.parametrize("name", [command.name for command in COMMANDS.values() if command.killed])
def test_killed_at_many_moments(workshop, counts, name):
    killed_and_compared(workshop, name, KILLS, counts)
