"""The strip and the table: what stands where."""

from datetime import datetime

import numpy as np
import polars as pl
import pytest
from rich.console import Console

from ubp.blocks.occlusion import KINDS, ClientEvents
from ubp.cli.explanation import Strip, moves_table, spread_lines
from ubp.evaluation.explanation import Explanation
from ubp.evaluation.readers import Reader

TIMES = [(2, "page_visit"), (2, "page_visit"), (4, "product_buy"), *[(9, "product_buy")] * 12]


def explanation(moves, readers=()) -> Explanation:
    """A client with visits and purchases on three days of January, and some moves."""
    table = pl.DataFrame(
        {
            "place": range(len(TIMES)),
            "timestamp": [datetime(2023, 1, day, 15, 30) for day, _ in TIMES],
            "event_type": [kind for _, kind in TIMES],
            "sku": [None if kind == "page_visit" else 17 for _, kind in TIMES],
            "url": [9 if kind == "page_visit" else None for _, kind in TIMES],
            "category": [None if kind == "page_visit" else 4 for _, kind in TIMES],
        }
    )
    named = pl.DataFrame(moves, schema=["kind", "name", "events", "move", "churn"], orient="row")
    rows = named.with_columns(pl.col("kind").cast(pl.Enum(KINDS)), cosine=pl.col("move") / 10, distance=pl.col("move"))
    events = ClientEvents(5, table, {})
    others = np.array([0.5, 1.0, 2.0])
    return Explanation("toy", 5, datetime(2023, 1, 10), events, [], rows, others, readers, {"churn": 0.25}, 1e-8)


MOVES = [
    ("event", "13", 1, 0.1, 0.001),
    ("event", "14", 1, 0.3, -0.002),
    ("day", "2023-01-04", 1, 0.2, 0.01),
    ("day", "2023-01-09", 12, 0.8, 0.3),
    ("event type", "page_visit", 2, 0.05, 0.0),
    ("event type", "product_buy", 13, None, None),
]
CHURN = Reader("churn", np.zeros(1), np.zeros(1), 0.0, 0.8, 0.3)


def drawn(table) -> list[str]:
    console = Console(width=200, no_color=True)
    with console.capture() as captured:
        console.print(table)
    return captured.get().splitlines()


def test_a_column_for_each_day():
    lines = [line.plain for line in Strip.of(explanation(MOVES), width=100).lines()]
    assert lines == [
        "             2023-01-02 to 2023-01-09, a column for each day",
        " page_visit  2·······",
        "product_buy  ··1····+",
        "       move    ▃    █",
    ]


def test_days_together_show_the_largest_of_their_moves():
    strip = Strip.of(explanation(MOVES), width=3)
    assert strip.step == 3
    assert strip.counts == {"page_visit": [2, 0, 0], "product_buy": [1, 0, 12]}
    assert [weight == weight and weight for weight in strip.weights] == [0.2, False, 0.8]
    assert "a column for 3 days" in next(strip.lines()).plain


def test_a_day_without_which_nothing_is_left_weighs_most():
    strip = Strip.of(explanation([("day", "2023-01-09", 12, None, None), MOVES[2]]), width=100)
    assert [line.plain for line in strip.lines()][-1] == "       move    █    █"


def test_colours_go_with_the_moves():
    buys = list(Strip.of(explanation(MOVES), width=100).lines())[2]
    styles = {buys.plain[span.start : span.end]: str(span.style) for span in buys.spans}
    assert styles["+"] == "bold red"
    assert styles["·"] == "dim"


def test_the_table_has_all_types_and_what_moves_most():
    lines = drawn(moves_table(explanation(MOVES, [CHURN]), rows=1))
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in lines if line.startswith("│")]
    assert rows == [
        ["nothing", "", "", "", "25.0 %"],
        ["product_buy", "13", "no profile left", "", ""],
        ["page_visit", "2", "0.050", "0.0050", "+0.0"],
        ["2023-01-09", "12", "0.800", "0.0800", "+30.0"],
        ["2023-01-09 15:30 product_buy sku 17, category 4", "1", "0.300", "0.0300", "-0.2"],
    ]
    assert lines[0].strip() == "client 5 by toy, as of 2023-01-10: the profile without…"


def test_without_readers_there_are_no_predictions():
    lines = drawn(moves_table(explanation(MOVES), rows=2))
    assert not any("churn" in line or "nothing" in line for line in lines)


def test_the_spread_says_what_the_figures_are_to_be_held_against():
    lines = list(spread_lines(explanation(MOVES, [CHURN])))
    assert lines[0].startswith("move: 1 is the median distance to 3 other clients drawn at random; 95 of 100 are 0.5")
    mean, deviation = np.mean([0.1, 0.3]), np.std([0.1, 0.3], ddof=1)
    assert lines[1].startswith(f"without one event of 2: {mean:.3f} ± {deviation:.3f} in the mean, median 0.200")
    assert lines[2].startswith("without one day of 2: 0.500 ± 0.424")
    assert lines[4].startswith(
        "churn: read by a logistic regression, AUROC 0.800 on the next window, 30.0 % of clients"
    )
    assert lines[4].endswith(f"± {100 * np.std([0.001, -0.002], ddof=1):.2f} points")
    assert lines[-1] == "an undisturbed copy of the client: 1.0e-08 of the profile's length off"


@pytest.mark.parametrize("width", [1, 2, 7])
def test_no_strip_is_wider_than_asked_for(width):
    assert len(Strip.of(explanation(MOVES), width).weights) <= width
