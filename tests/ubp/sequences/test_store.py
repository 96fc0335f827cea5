"""The sequence store against plain Python, and what is made of it: selections, vocabularies, batches."""

import multiprocessing
import random
from collections import Counter
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ubp.data import schema
from ubp.data.history import ChallengeData
from ubp.data.paths import DataPaths
from ubp.data.schema import EventType, Token
from ubp.io.errors import UserError
from ubp.sequences import build as building
from ubp.sequences import store as storing
from ubp.sequences.batches import gather, length_buckets
from ubp.sequences.build import build_or_open
from ubp.sequences.layout import DAY
from ubp.sequences.store import Selection, Sequences
from ubp.sequences.vocabulary import EVENT_TOKENS, Vocabulary

# One event: its type, client, time and subject (a sku, a url, or 16 codes).
Event = tuple[EventType, int, datetime, "int | tuple[int, ...]"]

START = datetime(2022, 12, 27)
SKUS = {7: (70, 3, 1), 3: (30, 99, 2), 12: (70, 0, 3), -5: (31, 3, 250)}  # category, price, first name code
BUY = (EventType.PRODUCT_BUY, 1, START + timedelta(days=1), 7)

codes = st.tuples(*[st.sampled_from([0, 1, 128, 255])] * 2).map(lambda ends: (ends[0], *[9] * 14, ends[1]))
subjects = {schema.SKU: st.sampled_from(sorted(SKUS)), schema.URL: st.integers(-2, 3), schema.QUERY: codes}
clients = st.integers(-3, 4) | st.sampled_from([2**62, 2**62 + 1, -(2**62)])
# Few different seconds, so that there are ties.
times = st.integers(0, 3).map(lambda step: START + timedelta(seconds=step * 200_000))
events = st.sampled_from(list(EventType)).flatmap(
    lambda event_type: st.tuples(st.just(event_type), clients, times, subjects[event_type.subject])
)
histories = st.lists(events, max_size=40)
quick = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def text(values: tuple[int, ...]) -> str:
    return "[" + " ".join(map(str, values)) + "]"


def written(root: Path, history: list[Event], as_of: datetime | None = None) -> ChallengeData:
    """The history as files, in the order given, and one purchase more: there must be one."""
    raw = root / "raw"
    (raw / "input").mkdir(parents=True, exist_ok=True)
    for event_type in EventType:
        chosen = [event for event in [*history, BUY] if event[0] == event_type]
        subject = [text(event[3]) if isinstance(event[3], tuple) else event[3] for event in chosen]
        dtype = pl.String if event_type.subject == schema.QUERY else pl.Int64
        pl.DataFrame(
            {
                "client_id": pl.Series([event[1] for event in chosen], dtype=pl.Int64),
                "timestamp": pl.Series([str(event[2]) for event in chosen], dtype=pl.String),
                event_type.subject: pl.Series(subject, dtype=dtype),
            }
        ).write_parquet(raw / event_type.file_name)
    pl.DataFrame(
        {
            "sku": list(SKUS),
            "category": [category for category, _, _ in SKUS.values()],
            "price": [price for _, price, _ in SKUS.values()],
            "name": [text((code, *[0] * 15)) for _, _, code in SKUS.values()],
        }
    ).write_parquet(raw / schema.PRODUCT_PROPERTIES)
    np.save(raw / "input" / schema.RELEVANT_CLIENTS, np.array([1], dtype=np.int64))
    return ChallengeData(DataPaths(root), submit=True, as_of=as_of)


def reference(history: list[Event]) -> dict[int, list[Event]]:
    """Client by client, in the documented order."""
    ordered = sorted([*history, BUY], key=lambda event: (event[1], event[2], event[0].code, event[3]))
    found: dict[int, list[Event]] = {}
    for event in ordered:
        found.setdefault(event[1], []).append(event)
    return found


def read_back(chosen: Selection) -> dict[int, list[Event]]:
    """A selection as plain Python, event by event."""
    store = chosen.sequences
    found = {}
    for place, client in enumerate(chosen.clients.tolist()):
        of_client = []
        for row in range(chosen.offsets[place], chosen.offsets[place + 1]):
            event_type = schema.EVENT_ORDER[chosen.event[row]]
            tables = {schema.SKU: store.skus, schema.URL: store.urls, schema.QUERY: store.queries}
            value = tables[event_type.subject][chosen.subject[row]]
            subject = tuple(value.tolist()) if value.ndim else int(value)
            of_client.append((event_type, client, store.start + timedelta(seconds=int(chosen.time[row])), subject))
        found[client] = of_client
    return found


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
        event_type = draw.choice(list(EventType))
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


class TestStore:
    @quick
    @given(histories, st.integers(1, 5), st.randoms())
    def test_is_the_reference_whatever_the_order_of_rows(self, fresh, history, rows_a_part, shuffler):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(building, "_ROWS_A_PART", rows_a_part)
            built = build_or_open(written(fresh(), history))
        assert read_back(built.all) == reference(history)
        shuffled = list(history)
        shuffler.shuffle(shuffled)
        again = build_or_open(written(fresh(), shuffled))
        for column in ("clients", "offsets", "time", "event", "subject", "urls", "queries"):
            np.testing.assert_array_equal(getattr(built, column), getattr(again, column))

    def test_layout(self, store):
        dtypes = {"clients": "int64", "offsets": "int64", "time": "int32", "event": "uint8", "subject": "int32"}
        assert {name: str(getattr(store, name).dtype) for name in dtypes} == dtypes
        assert isinstance(store.time, np.memmap)
        assert not store.time.flags.writeable
        assert store.names.dtype == store.queries.dtype == np.uint8
        assert store.queries.shape == (3, 16)
        assert (np.diff(store.clients) > 0).all()
        assert (np.diff(store.urls) > 0).all()

    def test_properties_by_reference(self, store):
        assert store.skus.tolist() == [-5, 3, 7, 12]
        assert store.categories.tolist() == [31, 30, 70, 70]
        assert store.prices.tolist() == [3, 99, 3, 0]
        assert store.names[:, 0].tolist() == [250, 2, 1, 3]

    def test_single_purchase_and_nothing_else(self, tmp_path):
        built = build_or_open(written(tmp_path, []))
        assert read_back(built.all) == {1: [BUY]}
        assert built.urls.shape == (0,)
        assert built.queries.shape == (0, 16)
        visits = built.select([EventType.PAGE_VISIT])
        assert len(visits) == 0
        assert visits.vocabulary(schema.URL).size == schema.FIRST_TOKEN
        assert built.all.tokens(schema.URL, visits.vocabulary(schema.URL)).tolist() == [Token.NONE]

    def test_as_of(self, tmp_path, history):
        as_of = START + timedelta(days=9)
        data = written(tmp_path, history, as_of)
        built = build_or_open(data)
        assert read_back(built.all) == reference([event for event in history if event[2] < as_of])
        whole = build_or_open(ChallengeData(data.paths, submit=True))
        assert read_back(whole.all) == reference(history)

    def test_parts_do_not_show(self, store, history, tmp_path, monkeypatch):
        monkeypatch.setattr(building, "_ROWS_A_PART", 20)
        monkeypatch.setattr(building, "_SAMPLE", 10)
        built = build_or_open(written(tmp_path, history))
        for column in ("clients", "offsets", "time", "event", "subject"):
            np.testing.assert_array_equal(getattr(built, column), getattr(store, column))

    def test_rows_of(self, store):
        asked = np.array([10**9, store.clients[3], -1, store.clients[0], store.clients[3]])
        starts, lengths = store.rows_of(asked)
        assert lengths.tolist() == [0, store.lengths[3], 0, store.lengths[0], store.lengths[3]]
        assert starts[[1, 3, 4]].tolist() == [store.offsets[3], 0, store.offsets[3]]


class TestBuilding:
    def test_half_built_is_never_read(self, tmp_path, monkeypatch):
        data = written(tmp_path, [])
        with monkeypatch.context() as patch:
            patch.setattr(building, "_write_header", lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                build_or_open(data)
        assert not data.paths.sequences(data.fingerprint).exists()
        assert read_back(build_or_open(data).all) == {1: [BUY]}

    def test_what_a_kill_left_is_removed(self, tmp_path):
        data = written(tmp_path, [])
        folder = data.paths.sequences(data.fingerprint)
        left = folder.with_name(f".123.{folder.name}")
        left.mkdir(parents=True)
        (left / "time.npy").write_text("half")
        build_or_open(data)
        assert sorted(path.name for path in folder.parent.iterdir()) == [folder.name, f"{folder.name}.lock"]
        assert not (folder / "parts").exists()

    def test_built_once(self, tmp_path, monkeypatch):
        data = written(tmp_path, [])
        build_or_open(data)
        monkeypatch.setattr(building, "_build", lambda *_: pytest.fail("built again"))
        build_or_open(ChallengeData(data.paths, submit=True))

    def test_built_again_when_the_layout_changes(self, tmp_path, monkeypatch):
        data = written(tmp_path, [])
        monkeypatch.setattr(building, "VERSION", 0)
        build_or_open(data)
        monkeypatch.undo()
        folder = data.paths.sequences(data.fingerprint)
        (folder / "time.npy").unlink()
        assert read_back(build_or_open(data).all) == {1: [BUY]}

    def test_built_again_when_the_history_changes(self, tmp_path):
        build_or_open(written(tmp_path, []))
        more = (EventType.PAGE_VISIT, 1, START, 8)
        assert read_back(build_or_open(written(tmp_path, [more])).all) == {1: [more, BUY]}

    def test_files_that_change_while_they_are_read_make_no_store(self, tmp_path, monkeypatch):
        data = written(tmp_path, [BUY])
        build = building._build

        def change_then_build(data: ChallengeData, folder: Path) -> None:
            written(tmp_path, [BUY, BUY])
            build(data, folder)

        monkeypatch.setattr(building, "_build", change_then_build)
        with pytest.raises(UserError, match="changed while they were read; give the command again"):
            build_or_open(data)
        assert not list((tmp_path / "cache" / "sequences").glob("*/store.json"))

    def test_times_that_cannot_be_are_refused(self, tmp_path):
        data = written(tmp_path, [(EventType.PAGE_VISIT, 1, datetime(2150, 1, 1), 8)])
        with pytest.raises(UserError, match="fix the timestamps"):
            build_or_open(data)

    def test_processes_at_the_same_time_wait(self, tmp_path):
        written(tmp_path, [])
        with multiprocessing.get_context("spawn").Pool(2) as workers:
            assert workers.map(_build_in_a_process, [tmp_path] * 2) == [1, 1]
        assert len(list((tmp_path / "cache" / "sequences").glob("*/store.json"))) == 1


def _build_in_a_process(root: Path) -> int:
    return len(build_or_open(ChallengeData(DataPaths(root), submit=True)).all)


class TestSelection:
    def test_event_types(self, store, history):
        wanted = {
            client: kept
            for client, of_client in reference(history).items()
            if (kept := [event for event in of_client if event[0].has_sku])
        }
        assert read_back(store.select(schema.ITEM_EVENTS)) == wanted

    def test_clients_with_enough_events(self, store, history):
        asked = [3, 10**9, 1, 0, 17]
        wanted = {
            client: kept
            for client, of_client in sorted(reference(history).items())
            if client in asked and len(kept := [event for event in of_client if event[0] == EventType.PAGE_VISIT]) > 1
        }
        assert read_back(store.select([EventType.PAGE_VISIT], clients=asked, min_events=2)) == wanted

    def test_clients_without_events_may_stay(self, store):
        stay = store.select([EventType.SEARCH_QUERY], min_events=0)
        assert stay.clients.tolist() == store.clients.tolist()
        assert (stay.lengths == 0).any()
        assert read_back(stay.at_least(1)) == read_back(store.select([EventType.SEARCH_QUERY]))

    @pytest.mark.parametrize("events", [1, 3, 1_000])
    def test_newest(self, store, history, events):
        wanted = {client: of_client[-events:] for client, of_client in reference(history).items()}
        assert read_back(store.all.newest(events)) == wanted
        visits = store.select([EventType.PAGE_VISIT])
        assert read_back(visits.newest(events)) == {
            client: of_client[-events:] for client, of_client in read_back(visits).items()
        }

    @pytest.mark.parametrize("keep", ["first", "last"])
    def test_distinct_skus(self, store, history, keep):
        items = store.select(schema.ITEM_EVENTS)
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
            store.all.distinct(store.all.references(schema.SKU))

    def test_references(self, store, history):
        flat = [event for of_client in reference(history).values() for event in of_client]
        skus = store.all.references(schema.SKU)
        assert [store.skus[row] if row >= 0 else None for row in skus] == [
            event[3] if event[0].has_sku else None for event in flat
        ]
        assert (store.all.references(schema.URL) >= 0).sum() == sum(event[0] == EventType.PAGE_VISIT for event in flat)

    def test_weeks_go_on_across_new_year(self, store, history):
        flat = [event for of_client in reference(history).values() for event in of_client]
        first = min(event[2] for event in flat).date()
        days = [(event[2].date() - first).days for event in flat]
        assert store.all.day.tolist() == days
        assert store.all.week.tolist() == [day // 7 for day in days]
        assert max(event[2].year for event in flat) == 2023
        assert store.days == max(days) + 1
        assert store.weeks == max(days) // 7 + 1
        assert store.all.day_tokens().max() == schema.FIRST_TOKEN + store.days - 1
        assert store.all.week_tokens().max() == schema.FIRST_TOKEN + store.weeks - 1
        assert store.all.week_tokens().min() == schema.FIRST_TOKEN

    def test_event_tokens(self, store):
        tokens = store.all.event_tokens()
        assert tokens.min() == schema.FIRST_TOKEN
        assert tokens.max() == EVENT_TOKENS - 1

    def test_selecting_changes_nothing(self, store):
        before = read_back(store.all)
        chosen = store.select(schema.ITEM_EVENTS).newest(2)
        gather({"event": chosen.event_tokens()}, chosen.starts, chosen.lengths, start=True)
        assert read_back(store.all) == before


class TestVocabulary:
    @given(st.lists(st.integers(-3, 12)), st.none() | st.integers(0, 5), st.integers(1, 3))
    def test_is_the_reference(self, values, top, min_count):
        counts = Counter(values)
        often = sorted((value for value in counts if counts[value] >= min_count), key=lambda v: (-counts[v], v))[:top]
        distinct, occurrences = np.unique(np.array(values, dtype=np.int64), return_counts=True)
        vocabulary = Vocabulary.of_counts(distinct, occurrences, top, min_count)
        assert vocabulary.values.tolist() == often
        assert vocabulary.counts.tolist() == [counts[value] for value in often]
        tokens = vocabulary.encode(values)
        expected = [schema.FIRST_TOKEN + often.index(value) if value in often else Token.OTHER for value in values]
        assert tokens.tolist() == expected
        real = tokens[tokens >= schema.FIRST_TOKEN]
        assert vocabulary.decode(real).tolist() == [value for value in values if value in often]

    @pytest.mark.parametrize(("column", "place"), [(schema.CATEGORY, 0), (schema.PRICE, 1), (schema.SKU, None)])
    def test_of_item_columns(self, store, history, column, place):
        flat = [event for of_client in reference(history).values() for event in of_client]
        values = [
            (event[3] if place is None else SKUS[event[3]][place]) if event[0].has_sku else None for event in flat
        ]
        counts = Counter(value for value in values if value is not None)
        vocabulary = store.all.vocabulary(column, top=2)
        assert vocabulary.values.tolist() == sorted(counts, key=lambda value: (-counts[value], value))[:2]
        known = dict(zip(vocabulary.values.tolist(), [schema.FIRST_TOKEN, schema.FIRST_TOKEN + 1], strict=True))
        tokens = store.all.tokens(column, vocabulary)
        assert tokens.dtype == np.uint16
        assert tokens.tolist() == [Token.NONE if value is None else known.get(value, Token.OTHER) for value in values]

    def test_of_a_selection_in_blocks(self, store, monkeypatch):
        visits = store.select([EventType.PAGE_VISIT])
        whole = visits.vocabulary(schema.URL, min_count=2)
        tokens = visits.tokens(schema.URL, whole)
        monkeypatch.setattr(storing, "_BLOCK", 7)
        assert visits.vocabulary(schema.URL, min_count=2).values.tolist() == whole.values.tolist()
        assert visits.tokens(schema.URL, whole).tolist() == tokens.tolist()
        assert store.all.vocabulary(schema.URL, min_count=2).counts.tolist() == whole.counts.tolist()
        assert (tokens == Token.OTHER).any()
        assert Token.NONE not in tokens

    def test_no_value_shares_a_special_id(self, store):
        assert sorted(Token) == list(range(schema.FIRST_TOKEN))
        # The values 0 … 4 are urls here: each must get an id of its own.
        vocabulary = store.all.vocabulary(schema.URL)
        assert set(range(len(Token))) <= set(vocabulary.values.tolist())
        assert vocabulary.encode(np.arange(len(Token))).min() >= schema.FIRST_TOKEN
        assert vocabulary.encode(store.urls).max() == vocabulary.size - 1

    def test_wide_ids_when_needed(self):
        many = np.arange(70_000)
        assert Vocabulary.of_counts(many, np.ones_like(many)).encode([69_999]).tolist() == [70_004]
        assert Vocabulary.of_counts(many, np.ones_like(many), top=2**16 - len(Token)).dtype is np.uint16

    def test_special_tokens_have_no_value(self):
        vocabulary = Vocabulary.of_counts(np.array([4]), np.array([1]))
        for token in (*Token, vocabulary.size):
            with pytest.raises(ValueError, match="stand for a value"):
                vocabulary.decode([token])

    def test_other_columns_have_none(self, store):
        with pytest.raises(ValueError, match="known: sku, category, price, url"):
            store.all.vocabulary(schema.NAME)


class TestGather:
    @given(
        st.lists(st.tuples(st.integers(0, 20), st.integers(0, 6)), max_size=8),
        st.booleans(),
        st.booleans(),
        st.integers(0, 10),
    )
    def test_is_the_slow_loop(self, ranges, start, end, pad_to):
        flat = np.arange(100, 130, dtype=np.uint16)
        columns = {"token": flat, "number": flat / 7, "codes": np.stack([flat, flat + 50], axis=1)}
        starts = np.array([first for first, _ in ranges], dtype=np.int64)
        lengths = np.array([length for _, length in ranges], dtype=np.int64)
        batch = gather(columns, starts, lengths, start=start, end=end, pad_to=pad_to)
        full = [length + start + end for _, length in ranges]
        time = max([*full, pad_to])
        assert batch.lengths.tolist() == full
        assert batch.columns["codes"].shape == (len(ranges), time, 2)
        assert batch.columns["token"].dtype == np.int64
        assert batch.columns["number"].dtype == np.float32
        for row, (first, length) in enumerate(ranges):
            middle = flat[first : first + length].tolist()
            wanted = [Token.START] * start + middle + [Token.END] * end
            padding = [Token.PADDING] * (time - len(wanted))
            assert batch.columns["token"][row].tolist() == wanted + padding
            numbers = [0.0] * start + [value / 7 for value in middle] + [0.0] * end + [0.0] * len(padding)
            np.testing.assert_allclose(batch.columns["number"][row], numbers, rtol=1e-6)
            assert batch.mask[row].tolist() == [True] * len(wanted) + [False] * len(padding)
            inner = batch.columns["codes"][row, start : start + length]
            assert inner.tolist() == [[value, value + 50] for value in middle]
        assert flat.tolist() == list(range(100, 130))

    def test_tensors_share_memory(self):
        torch = pytest.importorskip("torch")
        batch = gather({"token": np.array([5, 6, 7], dtype=np.uint8)}, np.array([0, 2]), np.array([2, 1]))
        columns, lengths = batch.tensors()
        assert columns["token"].dtype == torch.int64
        assert columns["token"].tolist() == [[5, 6], [7, 0]]
        assert lengths.tolist() == [2, 1]
        batch.columns["token"][0, 0] = 9
        assert columns["token"][0, 0] == 9


class TestBuckets:
    @given(
        st.lists(st.integers(1, 30), max_size=80),
        st.integers(1, 12),
        st.integers(1, 4),
        st.integers(0, 3),
        st.booleans(),
        st.integers(1, 5),
    )
    def test_every_client_once_over_the_ranks(self, lengths, batch_size, world, epoch, shuffle, pool):
        plans = [
            length_buckets(
                np.array(lengths, dtype=np.int64),
                batch_size,
                epoch=epoch,
                shuffle=shuffle,
                rank=rank,
                world=world,
                pool=pool,
            )
            for rank in range(world)
        ]
        batches = [batch for plan in plans for batch in plan]
        assert sorted(np.concatenate([*batches, np.zeros(0, dtype=np.int64)]).tolist()) == list(range(len(lengths)))
        sizes = [len(batch) for batch in batches]
        go_round = len(lengths) >= -(-len(lengths) // (batch_size * world)) * world
        assert max(sizes, default=0) <= batch_size + (not go_round)
        assert max(sizes, default=1) - min(sizes, default=1) <= 1
        if len(lengths) >= world:
            assert len({len(plan) for plan in plans}) == 1

    def test_seed_and_epoch_decide(self):
        lengths = np.random.default_rng(0).integers(1, 100, 1_000)

        def plan(**settings):
            return [batch.tolist() for batch in length_buckets(lengths, 32, **settings)]

        assert plan(seed=1, epoch=2) == plan(seed=1, epoch=2)
        assert plan(seed=1, epoch=2) != plan(seed=1, epoch=3)
        assert plan(seed=1, epoch=2) != plan(seed=2, epoch=2)
        assert plan(shuffle=False, seed=1) == plan(shuffle=False, seed=2)

    def test_lengths_in_a_batch_are_alike(self):
        lengths = np.random.default_rng(0).integers(1, 129, 20_000)
        plan = length_buckets(lengths, 100, seed=1)
        padded = sum(len(batch) * lengths[batch].max() for batch in plan)
        assert padded < 1.03 * lengths.sum()
        longest = [lengths[batch].max() for batch in plan]
        assert longest != sorted(longest)
        fixed = [lengths[batch].max() for batch in length_buckets(lengths, 100, shuffle=False)]
        assert fixed == sorted(fixed, reverse=True)

    def test_ranks_step_in_time(self):
        lengths = np.random.default_rng(0).integers(1, 129, 6_400)
        ranks = [length_buckets(lengths, 16, seed=1, rank=rank, world=2) for rank in range(2)]
        for left, right in zip(*ranks, strict=True):
            assert abs(lengths[left].max() - lengths[right].max()) <= 4
