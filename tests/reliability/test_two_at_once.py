"""Two commands at once: each makes what it would make alone, before or after the other, or ends in one line."""

import multiprocessing
import os
import random
import time

import numpy as np
import pytest

from tests.reliability.commands import COMMANDS, Command, Workshop
from tests.reliability.killing import Running, content, differences, litter, require_one_line
from ubp.blocks.entry import read_entry, write_entry

pytestmark = pytest.mark.full

# A command, and another that meanwhile makes anew what the first one reads, or makes what both read.
PAIRS = {
    "encode, and its fit": ("encode_als", "als_64_buy_add_categories", ("seed=1",)),
    "encode, and a fit of its merge": ("encode", "als_64_buy_add_categories", ("seed=1",)),
    "merge, and a block of it": ("basics", "als_64_buy_add_categories", ("seed=1",)),
    "evaluate, and its entry": ("evaluate", "basics", ("condition=none",)),
    "neighbours, and their entry": ("neighbours", "basics", ("condition=none",)),
    "a night, and its fit": ("nightly", "stat_features", ("seed=1",)),
    "a night, and the night before": ("nightly", "first_night", ("overwrite=True",)),
    "export, and its fit": ("export", "gru_ae_day_event", ("seed=1",)),
    "a block, and the split": ("als_64_buy_add_categories", "split", ("overwrite=True",)),
    "two that read one sequence store": ("gru_ae_day_event", "next_sku_128_4_4", ()),
    "two that read the relevant clients' events": ("numeric_features", "numeric_features_wide", ()),
    "stacker, and what it reads": ("stacker", "dcn", ("seed=1",)),
    "a day, and the log": ("nightly_of_a_day", "import_early", ("overwrite=True",)),
    "the run-all script, and a block of it": ("all_embeddings", "stat_features", ()),
}
FEW = ["merge, and a block of it"]
TWICE = ["split_again"]
# The run-all script gives each of its commands one thread, which their lineages say: so has whoever runs beside it.
ONE_THREAD = {"POLARS_MAX_THREADS": "1"}
ROUNDS = int(os.environ.get("ROUNDS", "4"))  # of each pair


@pytest.fixture(scope="module")
def workshop(tmp_path_factory):
    return Workshop(tmp_path_factory.mktemp("two"))


def started(workshop, line) -> Running:
    return Running(workshop.here, line, environment=ONE_THREAD)


def made_by(workshop, command: Command, *more) -> tuple[dict[str, str], bool]:
    """What a command changes on the data path, and whether it succeeds."""
    before = content(workshop.here)
    done = started(workshop, [*workshop.words(command), *more]).done()
    if done.code:
        require_one_line(done)
    after = content(workshop.here)
    return {name: it for name, it in after.items() if before.get(name) != it}, done.code == 0


def at_once(workshop, name, rounds, counts) -> None:
    """Run both with a lead for the one or the other."""
    first, second, more = COMMANDS[PAIRS[name][0]], COMMANDS[PAIRS[name][1]], PAIRS[name][2]
    draw = random.Random(name)  # noqa: S311
    workshop.begin(first)
    began = time.monotonic()
    before, _ = made_by(workshop, first)
    seconds = time.monotonic() - began
    workshop.begin(first)
    made_by(workshop, second, *more)
    after, _ = made_by(workshop, first)
    wanted = content(workshop.here)
    for _ in range(rounds):
        workshop.begin(first)
        lead = (draw.random() - 0.4) * seconds
        lines = [workshop.words(first), [*workshop.words(second), *more]]
        done, other = both(workshop, lines, lead)
        assert other.code == 0, (lead, other.err)
        found = content(workshop.here)
        assert not litter(workshop.here)
        if done.code:
            counts[f"times that {name} ended in a line"] += 1
            require_one_line(done)
        else:
            require_one_of(found, before, after, lead)
        counts[f"times two at once: {name}"] += 1
        for line in reversed(lines):
            if (again := started(workshop, line).done()).code:
                require_one_line(again)
        assert differences(without_cache(content(workshop.here)), without_cache(wanted)) == [], lead


def both(workshop, lines, lead):
    """Run two commands, the first one so many seconds before the second, or after it where these are negative."""
    order = (0, 1) if lead > 0 else (1, 0)
    running = {order[0]: started(workshop, lines[order[0]])}
    time.sleep(abs(lead))
    running[order[1]] = started(workshop, lines[order[1]])
    return running[0].done(), running[1].done()


def without_cache(found):
    return {name: it for name, it in found.items() if not name.startswith("cache/")}


def require_one_of(found, before, after, lead) -> None:
    """What a command made is what it makes before the other, or what it makes after it: all of it the one."""
    faults = [[name for name, it in without_cache(made).items() if found.get(name) != it] for made in (before, after)]
    assert [] in faults, (lead, faults)


@pytest.mark.parametrize("name", FEW)
def test_two_commands(workshop, counts, name):
    at_once(workshop, name, 1, counts)


@pytest.mark.long
@pytest.mark.parametrize("name", PAIRS)
def test_two_commands_many_times(workshop, counts, name):
    at_once(workshop, name, ROUNDS, counts)


def twice(workshop, name, rounds, counts) -> None:
    """The same command twice: one makes it, both succeed."""
    command, draw = COMMANDS[name], random.Random(name)  # noqa: S311
    workshop.begin(command)
    undisturbed = workshop.run(command)
    wanted = content(workshop.here)
    for _ in range(rounds):
        workshop.begin(command)
        first = Running(workshop.here, workshop.words(command))
        time.sleep(draw.choice([0.0, draw.random() * undisturbed.seconds]))
        second = Running(workshop.here, workshop.words(command))
        for done in (first.done(), second.done()):
            assert done.code == 0, done.err
            assert "Traceback" not in done.err
        assert differences(content(workshop.here), wanted) == []
        counts[f"times twice at once: {name}"] += 1


@pytest.mark.parametrize("name", TWICE)
def test_the_same_command_twice(workshop, counts, name):
    twice(workshop, name, 1, counts)


@pytest.mark.long
@pytest.mark.parametrize("name", [command.name for command in COMMANDS.values() if command.killed])
def test_the_same_command_twice_many_times(workshop, counts, name):
    twice(workshop, name, 2, counts)


# --- an entry that is replaced again and again ------------------------------------------------------------------------

CLIENTS = np.arange(50_000)


def entry_of(folder, number) -> None:
    """An entry whose vectors say which clients they are of, in an order of its own."""
    ids = np.random.default_rng(number).permutation(CLIENTS)
    write_entry(folder, ids, np.stack([ids % 1000, ids % 7], axis=1).astype(np.float32))


def write_entries(folder, stop) -> None:
    number = 0
    while not stop.is_set():
        entry_of(folder, number)
        number += 1


@pytest.mark.parametrize("seconds", [2, pytest.param(60, marks=pytest.mark.long)])
def test_an_entry_that_is_replaced_is_read_whole(tmp_path, counts, seconds):
    processes = multiprocessing.get_context("spawn")
    stop, folder = processes.Event(), tmp_path / "entry"
    entry_of(folder, 0)
    writer = processes.Process(target=write_entries, args=(folder, stop))
    writer.start()
    try:
        end, seen = time.monotonic() + seconds, set()
        while time.monotonic() < end or len(seen) < 2:
            ids, profiles = read_entry(folder)
            assert (profiles[:, 0] == ids % 1000).all()
            seen.add(ids.tobytes())
            counts["readings of an entry while it was replaced"] += 1
    finally:
        stop.set()
        writer.join()
    assert litter(tmp_path) == []
