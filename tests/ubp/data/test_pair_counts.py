"""Counts of pairs against sets; of a share of the clients where there are many events."""

import polars as pl
import pytest

from ubp.data import pair_counts
from ubp.data.pair_counts import PairCounts


def events(clients: int, of_each: int) -> pl.LazyFrame:
    """Each client met as many items as events but one, which it met twice."""
    ids = pl.Series("client_id", range(clients), pl.Int64)
    items = [[(client + place) % 50 for place in (0, *range(of_each - 1))] for client in range(clients)]
    return pl.DataFrame({"client_id": ids, "item": items}).explode("item").lazy()


def test_of_few_events_the_numbers_are_exact():
    assert PairCounts.of(events(30, 4)) == PairCounts(events=120, pairs=90, clients=30, items=32)
    assert PairCounts.of(events(30, 4).filter(False)) == PairCounts(0, 0, 0, 0)


def test_of_many_a_share_of_the_clients_is_counted(monkeypatch):
    monkeypatch.setattr(pair_counts, "_AT_ONCE", 1000)
    found = PairCounts.of(events(2000, 4))
    assert (found.events, found.items) == (8000, 50)
    assert found.pairs == 3 * found.clients == pytest.approx(6000, rel=0.1)
