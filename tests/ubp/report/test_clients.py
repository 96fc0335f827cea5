"""What single clients did, against plain Python over lists of events."""

from collections import Counter, defaultdict
from datetime import timedelta
from itertools import pairwise

import numpy as np
import polars as pl
import pytest

from tests.ubp.blocks.toy import make_purchases
from tests.ubp.data import small_logs
from ubp.data import schema
from ubp.data.history import ChallengeData
from ubp.data.schema import EventType
from ubp.io.errors import UserError
from ubp.report.clients import ClientSettings, ClientView, Histories, OwnIds, facts, gaps
from ubp.report.profiles import ProfileFile

AS_OF = small_logs.START + timedelta(days=45)
CLIENTS = np.array([7, 2, 5, 0, 99], np.int64)  # 99 is not in the log


OWN = EventType("transfer", schema.SKU, 5)  # the log's own


@pytest.fixture(scope="module", params=["the challenge's types", "fewer", "one more"])
def log(request):
    empty = (EventType.SEARCH_QUERY, EventType.REMOVE_FROM_CART) if request.param == "fewer" else ()
    found = small_logs.random_log(5, empty=empty)
    if request.param == "one more":
        found.events[OWN] = small_logs.random_log(6).events[EventType.ADD_TO_CART]
    return found


@pytest.fixture(scope="module")
def history(log, tmp_path_factory):
    return ChallengeData(small_logs.write(log, tmp_path_factory.mktemp("log")), True, as_of=AS_OF)


def events_of(log, client):
    """Type, time and subject of a client's events before the day."""
    rows = [(kind, *row[1:]) for kind, table in log.events.items() for row in table.iter_rows() if row[0] == client]
    return [row for row in rows if row[1] < AS_OF]


def test_facts(log, history):
    found = facts(history, CLIENTS)
    assert found["client_id"].to_list() == sorted(CLIENTS.tolist())
    category = dict(log.properties.select("sku", "category").iter_rows())
    for row in found.iter_rows(named=True):
        events = events_of(log, row["client_id"])
        bought = [time for kind, time, _ in events if kind is EventType.PRODUCT_BUY]
        assert (row["events"], row["purchases"]) == (len(events), len(bought))
        for name, times in (("days_since_event", [time for _, time, _ in events]), ("days_since_purchase", bought)):
            assert row[name] == ((AS_OF - max(times)) / timedelta(days=1) if times else None)
        met = Counter(category[subject] for kind, _, subject in events if kind.has_sku)
        assert row["category"] == min(met, key=lambda each: (-met[each], each), default=None)


def test_gaps(log, history):
    wanted = Counter()
    for client in CLIENTS:
        days = sorted({time.date() for _, time, _ in events_of(log, client)})
        wanted.update((later - day).days for day, later in pairwise(days))
    assert dict(gaps(history, CLIENTS).iter_rows()) == wanted


@pytest.mark.parametrize(("bins", "width"), [(45, 1), (44, 2), (20, 3), (1, 45)])
def test_histories(log, history, bins, width):
    found = Histories.of(history, CLIENTS, bins, newest=4)
    assert (found.width, found.bins) == (width, -(-45 // width))
    wanted = Counter(
        (client, str(kind), (time - small_logs.START).days // width)
        for client in CLIENTS.tolist()
        for kind, time, _ in events_of(log, client)
    )
    assert {row[:3]: row[3] for row in found.counts.iter_rows()} == wanted


@pytest.mark.parametrize("newest", [1, 4, 1000])
def test_the_newest_events(log, history, newest):
    found = Histories.of(history, CLIENTS, 45, newest).newest
    order = [OWN, *reversed(schema.EVENT_ORDER)]
    for client in CLIENTS.tolist():
        moments = defaultdict(list)
        for kind, time, subject in events_of(log, client):
            moments[time, kind].append(None if kind is EventType.SEARCH_QUERY else subject)
        wanted = sorted(moments, key=lambda moment: (-moment[0].timestamp(), order.index(moment[1])))[:newest]
        rows = found.filter(pl.col("client_id") == client)
        assert rows.select("time", "event_type").rows() == [(time, str(kind)) for time, kind in wanted]
        assert rows["events"].to_list() == [len(moments[moment]) for moment in wanted]
        named = [sorted({subject for subject in moments[moment] if subject is not None})[:2] for moment in wanted]
        assert rows["subjects"].to_list() == named


# --- the user's own ids ---------------------------------------------------------------------------------


def test_own_ids_are_named_and_found_again(tmp_path):
    paths = small_logs.write(small_logs.random_log(0), tmp_path)
    own = OwnIds(paths)
    assert own.names("client", [1, 5]) == {1: "1", 5: "5"}
    assert own.client("5") == 5
    with pytest.raises(UserError, match="client=DE5: not an integer"):
        own.client("DE5")
    pl.DataFrame({"id": [1, 5], "original": ["DE1", "DE5"]}).write_parquet(paths.raw / "ids_client.parquet")
    assert own.names("client", [1, 5, 8]) == {1: "DE1", 5: "DE5", 8: "8"}
    assert own.client("DE5") == 5
    with pytest.raises(UserError, match=r"client=5: not in .*ids_client.parquet"):
        own.client("5")


# --- the view -------------------------------------------------------------------------------------------


@pytest.fixture
def profiles(tmp_path):
    """Of the clients with purchases in a log of all event types."""
    paths = small_logs.write(small_logs.random_log(5), tmp_path / "data")
    make_purchases(paths, submit=True)
    return ProfileFile.open(paths.block("purchases", submit=True)), ChallengeData(paths, True)


def test_a_view_shows_clients_of_the_profile_beside_their_neighbours(profiles):
    found, history = profiles
    known = set(found.client_ids.tolist())
    view = ClientView.of(found, history, ClientSettings(sample=4, drawn=3, neighbours=2, newest=5), None, seed=1)
    assert len(view.drawn) == len(set(view.drawn)) == 3
    assert set(view.client_ids.tolist()) <= known
    assert set(view.shown) <= set(view.client_ids.tolist())
    assert view.facts["client_id"].to_list() == view.client_ids.tolist()
    assert view.points.shape == (len(view.client_ids), 2)
    for client in view.drawn:
        others, near = zip(*view.neighbours[client], strict=True)
        assert len(others) == 2
        assert client not in others
        assert list(near) == sorted(near, reverse=True)
    assert view.as_records().keys() == set(view.shown)


def test_the_points_are_those_of_the_clients_beside_them(profiles):
    """Whatever the order of the rows on disk."""
    found, history = profiles
    settings = ClientSettings(sample=100, drawn=1)
    view = ClientView.of(found, history, settings, None, seed=0)
    order = np.random.default_rng(5).permutation(len(found.client_ids))
    rows = found.rows(np.arange(len(order)))[order]

    class Shuffled(ProfileFile):
        def parts(self):
            yield 0, rows

    other = ClientView.of(
        Shuffled(found.path, found.client_ids[order], found.columns), history, settings, view.drawn[0], seed=0
    )
    assert other.client_ids.tolist() == view.client_ids.tolist()
    np.testing.assert_allclose(np.abs(other.points), np.abs(view.points), atol=1e-4)
    (beside,), (also,) = other.neighbours.values(), view.neighbours.values()
    assert [id_ for id_, _ in beside] == [id_ for id_, _ in also]
    assert [near for _, near in beside] == pytest.approx([near for _, near in also], abs=1e-5)


def test_the_client_that_is_asked_for_comes_first(profiles):
    found, history = profiles
    for client in found.client_ids[:4].tolist():
        view = ClientView.of(found, history, ClientSettings(drawn=3), client, seed=1)
        assert view.drawn[0] == client
        assert len(set(view.drawn)) == 3
    with pytest.raises(UserError, match="client=12345: has no vector in"):
        ClientView.of(found, history, ClientSettings(), 12345, seed=1)


def test_the_newest_events_are_said_in_words(profiles):
    found, history = profiles
    raw = history.paths.raw
    pl.DataFrame({"id": list(range(100, 109)), "original": [f"<b>{sku}" for sku in range(9)]}).write_parquet(
        raw / "ids_item.parquet"
    )
    view = ClientView.of(found, history, ClientSettings(newest=200), None, seed=0)
    said = [row for record in view.as_records().values() for row in record["newest"]]
    prices = dict(history.properties().select("sku", "price").collect().iter_rows())
    wanted = {f"item <b>{sku - 100} (category {(sku - 100) % 5}, price {prices[sku]})" for sku in prices}
    assert {name for row in said for name in row[3] if row[1] == "product_buy"} <= wanted
    assert {name for row in said for name in row[3] if row[1] == "page_visit"} <= {f"url {url}" for url in range(9)}
    assert all(row[3] == [] for row in said if row[1] == "search_query")
    assert {row[1] for row in said} == {str(kind) for kind in schema.EVENT_TYPES}


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"sample": 1}, "view.sample=1"), ({"drawn": 0}, "view.drawn=0"), ({"map": "umap"}, "view.map=umap: must be pca")],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        ClientSettings(**settings)
