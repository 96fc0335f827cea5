"""What is counted of a log, against a count in plain Python."""

from collections import Counter
from statistics import median

import numpy as np
import pytest

from ubp.data.history import ChallengeData
from ubp.data.log_figures import LogFigures
from ubp.data.schema import EVENT_TYPES, ITEM_EVENTS, EventType


def counted(history, clients):
    """Events by type and client, and the pairs of a client and a sku, of some clients."""
    events = {kind: Counter(history.events[kind]["client_id"].to_list()) for kind in EVENT_TYPES}
    chosen = {kind: Counter({who: n for who, n in each.items() if who in clients}) for kind, each in events.items()}
    pairs = {
        (row["client_id"], row["sku"])
        for kind in ITEM_EVENTS
        for row in history.events[kind].iter_rows(named=True)
        if row["client_id"] in clients
    }
    return chosen, pairs


@pytest.mark.parametrize("relevant", [None, 20])
def test_figures_are_those_of_the_relevant_clients(make_history, tmp_path, relevant):
    history = make_history()
    paths = history.write(tmp_path)
    everyone = {who for kind in EVENT_TYPES for who in history.events[kind]["client_id"].to_list()}
    clients = everyone if relevant is None else set(sorted(everyone)[:relevant])
    if relevant is not None:
        paths.relevant_clients.parent.mkdir(parents=True)
        np.save(paths.relevant_clients, np.array([*sorted(clients), 99_999_999]))  # one without an event
    found = LogFigures.of(ChallengeData(paths, submit=True))
    events, pairs = counted(history, clients)
    category = dict(zip(history.properties["sku"].to_list(), history.properties["category"].to_list(), strict=True))
    met = {(who, category[sku]) for who, sku in pairs}
    assert found.are_relevant == (relevant is not None)
    assert found.clients == len(clients)
    assert found.buyers == len(events[EventType.PRODUCT_BUY])
    assert found.present == tuple(EVENT_TYPES)
    assert found.counts == {kind: len(history.events[kind]) for kind in EVENT_TYPES}
    assert (found.skus, found.categories) == (len({sku for _, sku in pairs}), len({c for _, c in met}))
    assert found.density == pytest.approx(len(met) / len(clients) / found.categories)
    totals = [sum(events[kind][who] for kind in EVENT_TYPES) for who in clients]
    assert found.events() == sum(totals)
    assert found.median_events() == median(totals)
    assert found.events(ITEM_EVENTS, newest=7) == sum(
        min(7, sum(events[k][who] for k in ITEM_EVENTS)) for who in clients
    )
    assert found.events(()) == 0


def test_types_without_events_are_not_present(make_history, tmp_path):
    empty = [kind for kind in EVENT_TYPES if kind is not EventType.PRODUCT_BUY]
    found = LogFigures.of(ChallengeData(make_history(empty=empty).write(tmp_path), submit=True))
    assert found.present == (EventType.PRODUCT_BUY,)
    assert found.clients == found.buyers
    assert 0 < found.days <= 70
