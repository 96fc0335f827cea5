"""What a log is, against plain Python over lists of events."""

from collections import Counter
from datetime import datetime, timedelta

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.ubp.data import small_logs
from ubp.data import schema
from ubp.data.history import ChallengeData
from ubp.data.schema import EventType
from ubp.report.log import (
    ANY,
    LogSummary,
    Tail,
    by_period,
    counts_of_counts,
    hourly,
    period_of,
    quantile,
    rhythm,
    share_of_busiest,
)

PRESENT = tuple(kind for kind in schema.EVENT_TYPES if kind is not EventType.ADD_TO_CART)


@pytest.fixture(scope="module")
def log():
    return small_logs.random_log(3, empty=(EventType.ADD_TO_CART,))


@pytest.fixture(scope="module")
def summary(log, tmp_path_factory):
    return LogSummary.of(ChallengeData(small_logs.write(log, tmp_path_factory.mktemp("log")), True))


def rows_of(log, kind):
    return list(log.events[kind].iter_rows())


def test_the_types_that_have_events(log, summary):
    assert [about.event_type for about in summary.types] == list(PRESENT)
    for about, kind in zip(summary.types, PRESENT, strict=True):
        rows = rows_of(log, kind)
        assert (about.events, about.clients) == (len(rows), len({row[0] for row in rows}))
        assert (about.first, about.last) == tuple(edge(row[1] for row in rows).date() for edge in (min, max))
        assert about.subject == kind.subject
        wanted = None if kind is EventType.SEARCH_QUERY else len({row[2] for row in rows})
        assert about.subjects == wanted


def test_the_whole(log, summary):
    rows = [row for kind in PRESENT for row in rows_of(log, kind)]
    assert summary.events == len(rows)
    assert summary.clients == len({row[0] for row in rows})
    assert (summary.start, summary.days) == (small_logs.START, small_logs.DAYS)
    assert summary.relevant == len(small_logs.RELEVANT)
    skus = {row[2] for kind in PRESENT if kind.has_sku for row in rows_of(log, kind)}
    assert summary.skus == len(skus)
    assert summary.categories == len({(sku - 100) % 5 for sku in skus})


def test_days_and_hours(log, summary):
    assert summary.period == "day"
    days = Counter((str(kind), row[1].date()) for kind in PRESENT for row in rows_of(log, kind))
    assert {(name, day): events for day, name, events in summary.by_period.select(
        "period", "event_type", "events"
    ).iter_rows()} == days  # fmt: skip
    hours = Counter((str(kind), row[1].isoweekday(), row[1].hour) for kind in PRESENT for row in rows_of(log, kind))
    assert {row[:3]: row[3] for row in summary.rhythm.iter_rows()} == hours


def test_events_of_clients(log, summary):
    every = {str(kind): [row[0] for row in rows_of(log, kind)] for kind in PRESENT}
    every = {ANY: [client for clients in every.values() for client in clients], **every}
    assert [tail.event_type for tail in summary.tails] == list(every) == list(summary.counts)
    for tail in summary.tails:
        counts = sorted(Counter(every[tail.event_type]).values())
        assert summary.counts[tail.event_type].rows() == sorted(Counter(counts).items())
        assert (tail.events, tail.clients, tail.largest) == (sum(counts), len(counts), counts[-1])
        assert tail.busiest == pytest.approx(counts[-1] / sum(counts))  # one of a dozen


def test_as_of_takes_what_was_before(log, tmp_path):
    middle = small_logs.START + timedelta(days=20)
    known = ChallengeData(small_logs.write(log, tmp_path), True, as_of=middle)
    summary = LogSummary.of(known)
    before = [row for kind in PRESENT for row in rows_of(log, kind) if row[1] < middle]
    assert summary.events == len(before)
    assert max(about.last for about in summary.types) == max(row[1] for row in before).date()


@given(st.lists(st.integers(1, 9), min_size=1, max_size=300), st.sampled_from([0.1, 0.5, 0.9, 0.99, 1.0]))
def test_quantiles_and_the_busiest(events, share):
    """A row a client."""
    ids = pl.LazyFrame({schema.CLIENT_ID: [client for client, count in enumerate(events) for _ in range(count)]})
    counts = counts_of_counts(ids)
    assert counts_of_counts(ids, at_once=7).equals(counts)
    assert counts["clients"].sum() == len(events)
    found = quantile(counts, share)
    assert found in events
    assert sum(count <= found for count in events) >= share * len(events)
    assert sum(count < found for count in events) < share * len(events)
    busiest = sorted(events, reverse=True)[: max(1, int(share * len(events)))]
    assert share_of_busiest(counts, share) == pytest.approx(sum(busiest) / sum(events))


def test_a_tail_says_how_few_have_most():
    counts = pl.DataFrame({"events": [1, 100], "clients": [198, 2]})
    tail = Tail.of("page_visit", counts)
    assert (tail.median, tail.p90, tail.p99, tail.largest) == (1, 1, 1, 100)
    assert tail.busiest == pytest.approx(200 / 398)


@pytest.mark.parametrize(
    ("days", "period"), [(1, "day"), (400, "day"), (401, "week"), (2800, "week"), (2801, "month"), (20_000, "month")]
)
def test_long_logs_have_longer_bars(days, period):
    assert period_of(timedelta(days=days)) == period


@pytest.mark.parametrize("period", ["week", "month"])
def test_bars_begin_on_mondays_and_on_firsts(period):
    times = [datetime(2022, 12, 1) + timedelta(hours=31 * step) for step in range(60)]
    hours = hourly(pl.LazyFrame({schema.TIMESTAMP: times}, schema={schema.TIMESTAMP: schema.TIMESTAMP_DTYPE}))
    first = {
        "week": lambda time: time.date() - timedelta(days=time.weekday()),
        "month": lambda time: time.date().replace(day=1),
    }[period]
    assert dict(by_period(hours, period).iter_rows()) == Counter(map(first, times))
    assert rhythm(hours)["events"].sum() == len(times)
