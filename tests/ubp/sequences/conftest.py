"""A log of some hundred events and its store."""

import random
from datetime import timedelta

import pytest

from tests.ubp.sequences.logs import SKUS, START, Event, written
from ubp.data import schema
from ubp.data.schema import EVENT_TYPES
from ubp.sequences.build import build_or_open
from ubp.sequences.layout import DAY
from ubp.sequences.store import Sequences


@pytest.fixture
def fresh(tmp_path_factory):
    """Makes a new data path for each example of a property."""
    return lambda: tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def history() -> list[Event]:
    """Some hundred events of 40 clients across New Year, from a fixed seed."""
    draw = random.Random(5)  # noqa: S311 (no secret)
    made = []
    for _ in range(600):
        event_type = draw.choice(EVENT_TYPES)
        subject = {
            schema.SKU: draw.choice(sorted(SKUS)),
            schema.URL: int(draw.paretovariate(0.7)) % 50,
            schema.QUERY: (draw.randrange(3), *[200] * 15),
        }[event_type.subject]
        seconds = draw.choice([draw.randrange(40 * DAY), 5 * DAY])
        made.append((event_type, int(draw.paretovariate(0.5)) % 40, START + timedelta(seconds=seconds), subject))
    return made


@pytest.fixture(scope="module")
def store(tmp_path_factory, history) -> Sequences:
    return build_or_open(written(tmp_path_factory.mktemp("store"), history))
