"""A disk that is full, or can only be read: one line that says so, and what was finished before is as it was."""

import os
import random

import pytest

from tests.reliability.commands import COMMANDS, Workshop
from tests.reliability.disks import Disk, refused, room
from tests.reliability.killing import content, differences, litter, require_one_line, require_whole

pytestmark = [pytest.mark.full, pytest.mark.skipif(bool(refused()), reason=refused())]

DISKS = int(os.environ.get("DISKS", "8"))  # of each command
READ_ONLY = "ro"
NAMES = [command.name for command in COMMANDS.values() if command.killed]
FEW = ["split_again"]


@pytest.fixture(scope="module")
def workshop(tmp_path_factory):
    return Workshop(tmp_path_factory.mktemp("disks"))


def starved(workshop, name, disks, counts) -> None:
    """Run a command on disks with more and more room, each time in the place of an earlier result."""
    command, draw = COMMANDS[name], random.Random(name)  # noqa: S311
    begin = workshop.begin(command, again=command.before is not None)
    old = content(begin)
    workshop.run(command)
    wanted = content(workshop.here)
    pages = sum(1 + (workshop.here / file).stat().st_size // 4096 for file in wanted if wanted[file] != old.get(file))
    disk, words, failed = Disk(workshop.folder, workshop.here), workshop.words(command), 0
    for number in range(disks):
        free = 2 + int((number + draw.random()) / disks * pages)
        done = disk.run(begin, words, room(begin, free))
        left = content(disk.after)
        if done.code:
            line = require_one_line(done, most=3 if name == "all_embeddings" else 1)
            assert str(workshop.here) in line
            assert ": no space left on the disk; make room" in line
            assert not litter(disk.after), free
            require_whole(left, old, wanted, free)
            counts[f"full disks under {name}"] += 1
            failed += 1
        else:
            assert differences(left, wanted) == [], free
        assert differences(content(disk.again), wanted) == [], free
    assert failed


@pytest.mark.parametrize("name", FEW)
def test_two_full_disks(workshop, counts, name):
    starved(workshop, name, 2, counts)


@pytest.mark.long
@pytest.mark.parametrize("name", NAMES)
def test_many_full_disks(workshop, counts, name):
    starved(workshop, name, DISKS, counts)


@pytest.mark.parametrize("name", [*FEW[:1], *(pytest.param(name, marks=pytest.mark.long) for name in NAMES)])
def test_a_disk_that_can_only_be_read(workshop, counts, name):
    command = COMMANDS[name]
    begin = workshop.begin(command)
    disk = Disk(workshop.folder, workshop.here)
    line = require_one_line(disk.run(begin, workshop.words(command), READ_ONLY))
    assert str(workshop.here) in line
    assert ": the disk can only be read; " in line
    assert content(disk.after) == content(begin)
    counts[f"read-only disks under {name}"] += 1
