"""What a log lacks: the error of whatever finds none of the events that it is made of."""

from collections.abc import Iterable

import polars as pl

from ubp.data.history import ChallengeData
from ubp.data.reading import collect
from ubp.data.schema import EventType
from ubp.io.errors import LEAVE_OUT, NoUsableEvents


def no_events(
    history: ChallengeData, event_types: Iterable[str], which: str = "no usable events", advice: str = LEAVE_OUT
) -> NoUsableEvents:
    """The error to raise: which events, how many there are, how many of them by relevant clients, what to do.

    Args:
        history: that was read.
        event_types: that would have served; none: any type.
        which: is wrong with them.
        advice: what to do.
    """
    types = [history.event_type(name) for name in event_types] or history.event_types
    events = sum(map(history.rows, types))
    relevant = sum(_rows_of_relevant(history, event_type) for event_type in types)
    return NoUsableEvents(
        f"{history.folder}: {which}: {events:,} events of {' or '.join(types)} before {history.as_of:%Y-%m-%d %H:%M}, "
        f"{relevant:,} of them by relevant clients; {advice}"
    )


def _rows_of_relevant(history: ChallengeData, event_type: EventType) -> int:
    events = history.events(event_type, history.relevant_clients)
    return int(collect(events.select(pl.len())).item())
