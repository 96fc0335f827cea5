"""Selections of a store against plain Python."""

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.ubp.sequences.logs import (
    BUY,
    START,
    TYPES,
    Event,
    clients,
    events,
    histories,
    quick,
    read_back,
    reference,
    written,
)
from ubp.data import schema
from ubp.data.history import ChallengeData
from ubp.data.schema import EVENT_TYPES, EventType
from ubp.io.errors import UserError
from ubp.sequences import build as building
from ubp.sequences.batches import gather
from ubp.sequences.build import events_of
from ubp.sequences.layout import DAY
from ubp.sequences.selection import Selection, select
from ubp.sequences.store import Sequences
from ubp.sequences.vocabulary import event_tokens

# After the purchase that every log has; at times of events, just behind them, and behind all.
moments = st.sampled_from(
    [BUY[2] + timedelta(seconds=1)]
    + [START + timedelta(seconds=seconds) for seconds in (200_000, 200_001, 400_000, 600_000, 600_001, 90 * DAY)]
)
later = events.map(lambda event: (*event[:2], event[2] + timedelta(days=120), event[3]))
types = st.none() | st.sets(st.sampled_from(TYPES), min_size=1)


def of_types(store: Sequences, *event_types: EventType) -> Selection:
    """All clients' events of some types."""
    return select(store).of_types(event_types).at_least(1)


def cut(history: list[Event], as_of: datetime) -> list[Event]:
    """What was known on the day."""
    return [event for event in history if event[2] < as_of]


class TestSelection:
    def test_event_types(self, store, history):
        wanted = {
            client: kept
            for client, of_client in reference(history).items()
            if (kept := [event for event in of_client if event[0].has_sku])
        }
        assert read_back(of_types(store, *schema.ITEM_EVENTS)) == wanted

    def test_clients_with_enough_events(self, store, history):
        asked = [3, 10**9, 1, 0, 17, 3]
        wanted = {
            client: kept
            for client, of_client in sorted(reference(history).items())
            if client in asked and len(kept := [event for event in of_client if event[0] == EventType.PAGE_VISIT]) > 1
        }
        visits = select(store, clients=asked).of_types([EventType.PAGE_VISIT])
        assert read_back(visits.at_least(2)) == wanted
        assert read_back(select(store).of_types([EventType.PAGE_VISIT]).of_clients(asked).at_least(2)) == wanted

    def test_clients_without_events_may_stay(self, store):
        stay = select(store).of_types([EventType.SEARCH_QUERY])
        assert stay.clients.tolist() == store.clients.tolist()
        assert (stay.lengths == 0).any()
        left = read_back(stay.at_least(1))
        assert left == {client: events for client, events in read_back(stay).items() if events}
        assert read_back(stay.newest(2).at_least(1)) == {client: events[-2:] for client, events in left.items()}

    def test_no_client_at_all(self, store):
        none = select(store, clients=[10**9])
        assert (len(none), len(none.clients), none.newest(3).time.tolist()) == (0, 0, [])
        assert none.vocabulary(schema.SKU).size == schema.FIRST_TOKEN

    @pytest.mark.parametrize("events", [1, 3, 1_000])
    def test_newest(self, store, history, events):
        wanted = {client: of_client[-events:] for client, of_client in reference(history).items()}
        assert read_back(select(store).newest(events)) == wanted
        visits = of_types(store, EventType.PAGE_VISIT)
        assert read_back(visits.newest(events)) == {
            client: of_client[-events:] for client, of_client in read_back(visits).items()
        }

    @pytest.mark.parametrize("keep", ["first", "last"])
    def test_distinct_skus(self, store, history, keep):
        items = of_types(store, *schema.ITEM_EVENTS)
        wanted = {}
        for client, of_client in reference(history).items():
            skus = [event[3] for event in of_client if event[0].has_sku]
            in_order = list(dict.fromkeys(skus if keep == "first" else reversed(skus)))
            if skus:
                wanted[client] = in_order if keep == "first" else in_order[::-1]
        found = read_back(items.distinct(items.subject, keep))
        assert {client: [event[3] for event in of_client] for client, of_client in found.items()} == wanted

    def test_distinct_refuses_what_is_no_key(self, store):
        with pytest.raises(ValueError, match="2\\^31"):
            select(store).distinct(select(store).references(schema.SKU))

    def test_references(self, store, history):
        flat = [event for of_client in reference(history).values() for event in of_client]
        skus = select(store).references(schema.SKU)
        assert [store.skus[row] if row >= 0 else None for row in skus] == [
            event[3] if event[0].has_sku else None for event in flat
        ]
        assert (select(store).references(schema.URL) >= 0).sum() == sum(
            event[0] == EventType.PAGE_VISIT for event in flat
        )

    def test_weeks_go_on_across_new_year(self, store, history):
        flat = [event for of_client in reference(history).values() for event in of_client]
        first = min(event[2] for event in flat).date()
        days = [(event[2].date() - first).days for event in flat]
        assert select(store).day.tolist() == days
        assert select(store).week.tolist() == [day // 7 for day in days]
        assert max(event[2].year for event in flat) == 2023

    @pytest.mark.parametrize("hours", [1, 24, 25, 7 * 24, 169])
    def test_ages(self, store, hours):
        as_of = store.start + timedelta(hours=hours)
        chosen = select(store, as_of)
        assert chosen.ages(as_of).min(initial=0) >= 0
        assert chosen.ages(as_of).tolist() == [(hours * 3600 - 1 - time) // DAY for time in chosen.time.tolist()]

    def test_event_tokens(self, store):
        tokens = select(store).event_tokens()
        assert tokens.min() == schema.FIRST_TOKEN
        assert tokens.max() == event_tokens(EVENT_TYPES) - 1

    def test_selecting_changes_nothing(self, store):
        before = read_back(select(store))
        chosen = of_types(store, *schema.ITEM_EVENTS).newest(2)
        gather({"event": chosen.event_tokens()}, chosen.starts, chosen.lengths, start=True)
        assert read_back(select(store)) == before


class TestAsOf:
    @quick
    @given(histories, moments, types, st.none() | st.lists(clients, max_size=5))
    def test_is_the_reference_of_the_cut_log(self, fresh, history, as_of, event_types, asked):
        data = written(fresh(), history).before(as_of)
        wanted = {
            client: kept
            for client, of_client in reference(cut(history, as_of)).items()
            if asked is None or client in asked
            if (kept := [event for event in of_client if event_types is None or event[0] in event_types])
        }
        chosen = events_of(data, event_types, asked)
        assert read_back(chosen) == wanted
        assert read_back(chosen.newest(2)) == {client: of_client[-2:] for client, of_client in wanted.items()}

    @quick
    @given(histories, moments, st.lists(later, max_size=20), st.lists(later, max_size=20))
    def test_nothing_later_is_seen(self, fresh, history, as_of, future, other_future):
        known = cut(history, as_of)
        seen = [all_that_is_seen(written(fresh(), [*known, *more]), as_of) for more in (future, other_future, [])]
        assert seen[0] == seen[1] == seen[2]

    def test_one_store_for_twenty_days(self, tmp_path, history, monkeypatch):
        builds = counted(monkeypatch, building, "build")
        data = written(tmp_path, history)
        for day in range(2, 22):
            as_of = START + timedelta(days=day)
            assert read_back(events_of(data.before(as_of))) == reference(cut(history, as_of))
        assert len(builds) == 1

    def test_a_day_that_times_cannot_hold_is_refused(self, store):
        with pytest.raises(UserError, match="as_of=2150-01-01 00:00:00: more than 68 years after"):
            select(store, datetime(2150, 1, 1))

    def test_costs_by_the_clients_wanted(self, store):
        counting = Counting(store.time)
        unread = replace(store, time=counting, event=None, subject=None)
        wanted = store.clients[:5]
        chosen = select(unread, START + timedelta(days=9), wanted).newest(64)
        assert chosen.lengths.sum() > 0
        assert counting.read <= len(wanted) * int(store.lengths.max()).bit_length()

    def test_a_day_after_the_last_event_costs_nothing(self, store):
        unread = replace(store, time=None, event=None, subject=None)
        last = store.start + timedelta(seconds=store.last)
        assert len(select(unread, last + timedelta(seconds=1))) == len(store.time)
        assert isinstance(select(store, last + timedelta(seconds=1)).time, np.memmap)  # not a copy
        assert len(select(store, last)) < len(store.time)


class Counting:
    """A column that counts the values that are read of it."""

    def __init__(self, values: Any) -> None:
        self.values, self.read = values, 0

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, places: Any) -> Any:
        found = self.values[places]
        self.read += found.size
        return found


def counted(monkeypatch: pytest.MonkeyPatch, module: Any, name: str) -> list[Path]:
    """Counts the calls of a function of two arguments: the second of each is listed."""
    calls: list[Path] = []
    function: Callable[[ChallengeData, Path], None] = getattr(module, name)

    def listed(data: ChallengeData, folder: Path) -> None:
        calls.append(folder)
        function(data, folder)

    monkeypatch.setattr(module, name, listed)
    return calls


def all_that_is_seen(data: ChallengeData, as_of: datetime) -> list[Any]:
    """What models make of the events before a day."""
    chosen = events_of(data.before(as_of))
    visits, items = chosen.of_types([EventType.PAGE_VISIT]), chosen.of_types(schema.ITEM_EVENTS)
    seen: list[Any] = [read_back(chosen.newest(2))]
    for column, of_column in ((schema.URL, visits), (schema.SKU, items), (schema.CATEGORY, items)):
        vocabulary = of_column.vocabulary(column)
        seen += [vocabulary.values, vocabulary.counts, chosen.tokens(column, vocabulary)]
    seen += [chosen.event_tokens(), chosen.day, chosen.week, chosen.ages(as_of)]
    seen += [read_back(of_kind.distinct(of_kind.subject, "last")) for of_kind in (visits, items)]
    return [value.tolist() if isinstance(value, np.ndarray) else value for value in seen]
