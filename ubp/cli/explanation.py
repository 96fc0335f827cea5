"""An explanation on the terminal: a strip of the history, a table of what moves the profile most, how to read both."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Final

import numpy as np
import polars as pl
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from ubp.blocks.occlusion import DAY, EVENT, EVENT_TYPE, TYPE
from ubp.data import schema
from ubp.evaluation.explanation import COSINE, EVENTS, MOVE, NAME, Explanation

_BARS: Final = "▁▂▃▄▅▆▇█"
_COLOURS: Final = ("dim", "", "yellow", "bold red")  # from a quarter of the largest move to the next
_NO_PROFILE: Final = "no profile left"
_ONE: Final = timedelta(days=1)


@dataclass(frozen=True)
class Strip:
    """A client's history, a column for each day or for several days together.

    Attributes:
        first: the first day.
        last: that of the last event.
        step: days of a column.
        counts: by event type, the events of each column.
        weights: of each column the largest move where one of its days is left out; NaN where none was.
    """

    first: date
    last: date
    step: int
    counts: dict[str, list[int]]
    weights: list[float]

    @classmethod
    def of(cls, explanation: Explanation, width: int) -> "Strip":
        """Of an explanation.

        Args:
            explanation: of a client.
            width: columns, at most.
        """
        table = explanation.events.table
        first, last = (moment.date() for moment in (table[schema.TIMESTAMP][0], table[schema.TIMESTAMP][-1]))
        days = (last - first) // _ONE + 1
        step = -(-days // width)
        columns = -(-days // step)
        places = ((table[schema.TIMESTAMP].dt.date() - first).dt.total_days() // step).to_numpy()
        counts = {
            str(name): np.bincount(places[(table[EVENT_TYPE] == name).to_numpy()], minlength=columns).tolist()
            for name in sorted(table[EVENT_TYPE].unique())
        }
        weights = [float("nan")] * columns
        for day, move in explanation.of_kind(DAY).select(NAME, MOVE).iter_rows():
            place = (date.fromisoformat(day) - first) // _ONE // step
            weights[place] = np.fmax(weights[place], np.inf if move is None else move)
        return cls(first, last, step, counts, [float(weight) for weight in weights])

    def lines(self) -> Iterator[Text]:
        """A line for each event type with how many there were, then one with how far the profile moves."""
        wide = max(len(MOVE), *map(len, self.counts))
        finite = [weight for weight in self.weights if np.isfinite(weight)]
        most = max(finite, default=0.0) or 1.0
        levels = [min(weight / most, 1.0) if weight == weight else None for weight in self.weights]
        yield Text(f"{'':>{wide}}  {self.first} to {self.last}, {_columns(self.step)}")
        for name, counts in self.counts.items():
            line = Text(f"{name:>{wide}}  ")
            for count, level in zip(counts, levels, strict=True):
                mark = "·" if not count else str(count) if count < 10 else "+"
                line.append(mark, style="dim" if level is None or not count else _COLOURS[min(int(level * 4), 3)])
            yield line
        bars = "".join(" " if level is None else _BARS[min(int(level * 8), 7)] for level in levels)
        yield Text(f"{MOVE:>{wide}}  {bars}")


def _columns(step: int) -> str:
    return "a column for each day" if step == 1 else f"a column for {step} days"


def moves_table(explanation: Explanation, rows: int) -> Table:
    """All event types, and the days and the single events that the profile moves most without.

    Args:
        explanation: of a client.
        rows: days, and single events, at most.
    """
    day = f"{explanation.as_of:%Y-%m-%d %H:%M}".removesuffix(" 00:00")
    title = f"client {explanation.client} by {explanation.name}, as of {day}: the profile without…"
    table = Table(title=title, title_justify="left")
    table.add_column("left out")
    for column in ("events", MOVE, "1 − cosine", *(reader.name for reader in explanation.readers)):
        table.add_column(column, justify="right")
    if explanation.readers:
        with_all = [f"{100 * explanation.answers[reader.name]:.1f} %" for reader in explanation.readers]
        table.add_row("nothing", "", "", "", *with_all)
        table.add_section()
    for kind in (TYPE, DAY, EVENT):
        moved = explanation.of_kind(kind)
        most = moved.sort(pl.col(MOVE).fill_null(float("inf")), descending=True, maintain_order=True)
        for row in (most if kind == TYPE else most.head(rows)).iter_rows(named=True):
            table.add_row(*_row(explanation, kind, row))
        table.add_section()
    return table


def _row(explanation: Explanation, kind: str, row: dict[str, object]) -> list[str]:
    what = _event(explanation, int(str(row[NAME]))) if kind == EVENT else escape(str(row[NAME]))
    count = f"{row[EVENTS]:,}"
    if row[MOVE] is None:
        return [what, count, _NO_PROFILE]
    changes = [f"{100 * float(str(row[reader.name])):+.1f}" for reader in explanation.readers]
    return [what, count, f"{row[MOVE]:.3f}", f"{row[COSINE]:.4f}", *changes]


def _event(explanation: Explanation, place: int) -> str:
    """One event in words: ``2017-11-02 15:04 product_buy sku 17, category 4, price 60``."""
    event = explanation.events.table.row(place, named=True)
    known = [f"{name} {event[name]}" for name in (schema.SKU, schema.URL) if event.get(name) is not None]
    known += [f"{name} {event[name]}" for name in (schema.CATEGORY, schema.PRICE) if event.get(name) is not None]
    return escape(f"{event[schema.TIMESTAMP]:%Y-%m-%d %H:%M} {event[EVENT_TYPE]} {', '.join(known)}".rstrip())


def spread_lines(explanation: Explanation) -> Iterator[str]:
    """What the figures are to be held against."""
    others = explanation.others / np.median(explanation.others)
    low, high = np.quantile(others, [0.025, 0.975])
    yield f"move: 1 is the median distance to {len(others):,} other clients drawn at random; 95 of 100 are {low:.2f} to {high:.2f} away"  # noqa: E501  # fmt: skip
    for kind in (EVENT, DAY):
        moves = explanation.of_kind(kind)[MOVE].drop_nulls().to_numpy()
        if len(moves) > 1:
            low, middle, high = np.quantile(moves, [0.025, 0.5, 0.975])
            spread = f"{moves.mean():.3f} ± {moves.std(ddof=1):.3f} in the mean, median {middle:.3f}, 95 of 100 from {low:.3f} to {high:.3f}"  # noqa: E501  # fmt: skip
            yield f"without one {kind} of {len(moves):,}: {spread}"
    if explanation.readers:
        yield "changes of predictions in percentage points"
    for reader in explanation.readers:
        changes = explanation.of_kind(EVENT)[reader.name].drop_nulls().to_numpy()
        spread = f"; without one event ± {100 * changes.std(ddof=1):.2f} points" if len(changes) > 1 else ""
        yield (
            f"{reader.name}: read by a logistic regression, AUROC {reader.auroc:.3f} on the next window, "
            f"{100 * reader.share:.1f} % of clients{spread}"
        )
    if explanation.undisturbed is not None:
        yield f"an undisturbed copy of the client: {explanation.undisturbed:.1e} of the profile's length off"
