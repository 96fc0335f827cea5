"""What to look at twice in a log that was brought in: repeated rows, crowded clients, empty days, clocks ahead."""

from collections.abc import Iterator, Mapping
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Final

import numpy as np
import polars as pl

from ubp.data import schema
from ubp.data.reading import collect, scan
from ubp.data.schema import EventType
from ubp.io.errors import name_some

CROWDED: Final = 100_000  # events of one client: more than a person makes
_ROWS_AT_ONCE: Final = 10_000_000  # that are compared with one another; more are compared in parts of the clients
_DAY: Final = timedelta(days=1)
_GAPS: Final = 3  # that a line names
_COUNT: Final = "#count"


def warnings(files: Mapping[EventType, Path], clients: pl.DataFrame, now: datetime) -> Iterator[str]:
    """A line for each thing that should be looked at.

    Args:
        files: the event files, as the library reads them.
        clients: their ids, see `ubp.data.own_ids`, to name clients as their owner does.
        now: in the log's zone.
    """
    for kind, file in files.items():
        if count := repeated(file, kind):
            yield (
                f"{kind}: {count:,} rows repeat another one (the same client, time and {kind.subject}); they stay; "
                "where the export repeats itself, remove them there"
            )
    yield from _crowded(files, clients)
    yield from _empty_days(files)
    for kind, file in files.items():
        late = scan(file).filter(pl.col(schema.TIMESTAMP) > now).select(pl.len(), pl.col(schema.TIMESTAMP).max())
        count, last = collect(late).row(0)
        if count:
            yield (
                f"{kind}: {count:,} events lie ahead of now ({now:%Y-%m-%d %H:%M}), the last at {last}; a clock is "
                "wrong, or a zone: the history ends with them"
            )


def repeated(file: Path, kind: EventType) -> int:
    """How many rows of a file are like an earlier one; in bounded memory."""
    events = scan(file).select(schema.event_columns(kind))
    rows = collect(events.select(pl.len())).item()
    parts = rows // _ROWS_AT_ONCE + 1
    found = 0
    for part in range(parts):
        some = events.filter(pl.col(schema.CLIENT_ID).hash(0) % parts == part) if parts > 1 else events
        counted = some.group_by(schema.event_columns(kind)).agg(pl.len().alias(_COUNT))
        found += int(collect(counted.select((pl.col(_COUNT).cast(pl.Int64) - 1).sum())).item())
    return found


def _crowded(files: Mapping[EventType, Path], clients: pl.DataFrame) -> Iterator[str]:
    every = pl.concat([scan(file).select(schema.CLIENT_ID) for file in files.values()])
    counted = every.group_by(schema.CLIENT_ID).agg(pl.len().alias(_COUNT)).filter(pl.col(_COUNT) >= CROWDED)
    found = collect(counted.sort(_COUNT, schema.CLIENT_ID, descending=[True, False]))
    if found.is_empty():
        return
    named = found.join(clients, left_on=schema.CLIENT_ID, right_on="id", how="left", maintain_order="left")
    names = [f"{row['original']} with {row[_COUNT]:,}" for row in named.iter_rows(named=True)]
    yield (
        f"clients with {CROWDED:,} events or more: {len(names):,} ({name_some(names, at_most=3)}); "
        "where they are machines, leave them out of the export"
    )


def _empty_days(files: Mapping[EventType, Path]) -> Iterator[str]:
    days = pl.concat([scan(file).select(pl.col(schema.TIMESTAMP).dt.date()) for file in files.values()])
    gaps = gaps_between(collect(days.unique()).to_series().sort())
    if gaps:
        longest = sorted(gaps, key=lambda gap: (gap[0] - gap[1], gap[0]))[:_GAPS]
        total = sum((last - first).days + 1 for first, last in gaps)
        some = [f"{first}" if first == last else f"{first} to {last}" for first, last in longest]
        which = ", ".join(some) if len(gaps) == len(some) else f"the longest: {', '.join(some)}"
        yield f"{total:,} days inside the log have no events at all ({which}); is a file of the export missing?"


def gaps_between(days: pl.Series) -> list[tuple[date, date]]:
    """The first and the last day of each stretch without events.

    Args:
        days: Date, ascending, each once.
    """
    numbers = days.cast(pl.Int32).to_numpy()
    places = np.flatnonzero(np.diff(numbers) > 1).tolist()
    return [(days[place] + _DAY, days[place + 1] - _DAY) for place in places]
