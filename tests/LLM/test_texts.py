"""Texts to the letter, and against a slow reading of the same events."""

from collections import defaultdict
from datetime import datetime, timedelta

import numpy as np
import polars as pl
import pytest

from LLM import texts as module
from LLM.texts import FIELDS, WORDS, TextSettings, make_texts, write_texts
from ubp.cli.config import composed
from ubp.data import schema
from ubp.data.history import ChallengeData
from ubp.data.paths import CONFIGS
from ubp.data.schema import EventType
from ubp.io.errors import UserError
from ubp.io.stage import AlreadyDone

ALL = TextSettings(event_types=None, newest=64, distinct=True, fields=list(FIELDS), labels=True)
CODES = np.arange(16) * 5 + 100
END = datetime(2023, 2, 9)  # the midnight after the tiny history's last purchase


def read(data, settings, tmp_path):
    path = tmp_path / "out" / "texts.parquet"
    clients = write_texts(data, settings, path, {})
    table = pl.read_parquet(path)
    assert table.height == clients
    assert table.schema == {"client_id": pl.Int64, "text": pl.String}
    assert table["client_id"].is_sorted()
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    return dict(table.iter_rows())


def test_the_text_of_a_known_client_to_the_letter(make_history, code_text, tmp_path):
    history = make_history()
    sku, other = history.properties["sku"][:2]
    names = [" ".join(map(str, CODES + place)) for place in range(2)]
    history.properties = history.properties.with_columns(
        category=pl.Series([71, 72, *history.properties["category"][2:]]),
        price=pl.Series([5, 6, *history.properties["price"][2:]]),
        name=pl.Series([code_text(CODES), code_text(CODES + 1), *history.properties["name"][2:]]),
    )
    rows = {
        EventType.SEARCH_QUERY: [(END - timedelta(days=50), code_text(CODES + 7))],
        EventType.PAGE_VISIT: [(END - timedelta(days=1), 17), (END - timedelta(seconds=1), 17)],
        EventType.ADD_TO_CART: [(END - timedelta(days=2, hours=1), sku), (END - timedelta(days=3), other)],
        EventType.REMOVE_FROM_CART: [(END - timedelta(days=2), other)],
        EventType.PRODUCT_BUY: [(END - timedelta(days=2, hours=1), sku)],
    }
    for event_type, events in rows.items():
        table = history.events[event_type]
        columns = {"client_id": [12_345] * len(events), "timestamp": [time for time, _ in events]}
        new = pl.DataFrame({**columns, event_type.subject: [value for _, value in events]}, table.schema)
        history.events[event_type] = pl.concat([table, new])
    paths = history.write(tmp_path / "data")
    paths.input.mkdir()
    np.save(paths.relevant_clients, np.array([12_345]))
    data = ChallengeData(paths, submit=True)
    texts = read(data, ALL, tmp_path)
    query = " ".join(map(str, CODES + 7))
    # The visit of the day before is the same event again; the newest is kept.
    assert texts == {
        12_345: f"search 49 query {query}\n"
        f"add 2 category 72 price 6 sku {other} name {names[1]}\n"
        f"add 2 category 71 price 5 sku {sku} name {names[0]}\n"
        f"buy 2 category 71 price 5 sku {sku} name {names[0]}\n"
        f"remove 1 category 72 price 6 sku {other} name {names[1]}\n"
        "visit 0 url 17"
    }
    search = TextSettings(["search_query"], newest=90, distinct=False, fields=["age", "query"], labels=False)
    assert read(data, search, tmp_path) == {12_345: f"49 {query}"}


def slow_texts(paths, settings, end) -> dict[int, str]:
    """Client by client and event by event, from the files."""
    properties = {row["sku"]: row for row in pl.read_parquet(paths.properties).iter_rows(named=True)}
    events = defaultdict(list)
    for place, event_type in enumerate(schema.EVENT_ORDER):
        if settings.event_types is None or event_type.value in settings.event_types:
            for client, time, about in pl.read_parquet(paths.raw / event_type.file_name).iter_rows():
                moment = datetime.fromisoformat(time)
                key = [int(code) for code in about[1:-1].split()] if event_type.subject == "query" else about
                if moment < end:
                    events[client].append((moment, place, key, event_type))
    texts = {}
    for client in np.load(paths.relevant_clients).tolist():
        kept = {}
        for number, (moment, place, about, event_type) in enumerate(
            sorted(events[client], key=lambda event: event[:3])
        ):
            repeat = (place, str(about)) if settings.distinct else number
            kept.pop(repeat, None)
            kept[repeat] = (moment, about, event_type)
        lines = [slow_line(*event, properties, settings, end) for event in list(kept.values())[-settings.newest :]]
        if any(lines):
            texts[client] = "\n".join(line for line in lines if line)
    return texts


def slow_line(moment, about, event_type, properties, settings, end) -> str:
    known = {"event": WORDS[event_type], "age": (end - timedelta(seconds=1) - moment).days}
    if event_type.has_sku:
        known |= {**properties[about], "name": " ".join(properties[about]["name"][1:-1].split())}
    elif event_type.subject == "query":
        known["query"] = " ".join(map(str, about))
    else:
        known["url"] = about
    words = []
    for field in settings.fields:
        if field in known:
            words += [field] * (settings.labels and field not in ("event", "age")) + [str(known[field])]
    return " ".join(words)


@pytest.mark.parametrize(
    "settings",
    [
        ALL,
        TextSettings(None, newest=5, distinct=True, fields=["event", "age", "category", "url"], labels=True),
        TextSettings(None, newest=5, distinct=False, fields=["price", "event", "sku", "age"], labels=False),
        TextSettings(["search_query"], newest=2, distinct=False, fields=["age", "query"], labels=False),
        TextSettings(["add_to_cart", "page_visit"], newest=9, distinct=True, fields=["category"], labels=False),
    ],
)
@pytest.mark.parametrize("as_of", [pytest.param(None, marks=pytest.mark.full), datetime(2023, 1, 9, 12)])
def test_texts_against_a_slow_reading(paths, tmp_path, monkeypatch, settings, as_of):
    monkeypatch.setattr(module, "_EVENTS_PER_CHUNK", 300)  # many chunks
    data = ChallengeData(paths, submit=True, as_of=as_of)
    assert read(data, settings, tmp_path) == slow_texts(paths, settings, as_of or END)


def test_row_groups_are_what_a_reader_takes_at_once(paths, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "TEXTS_AT_ONCE", 7)
    data = ChallengeData(paths, submit=True)
    first = read(data, ALL, tmp_path)
    monkeypatch.setattr(module, "_EVENTS_PER_CHUNK", 200)
    assert read(data, ALL, tmp_path) == first


def config(paths, name, *overrides):
    return composed(CONFIGS / "LLM" / "text", name, [f"data_path={paths.root}", *overrides])


def test_the_commands_file_its_skip_and_overwrite(paths, capsys):
    make_texts(config(paths, "search"))
    file = paths.root / "text" / "search.parquet"
    assert "search · " in capsys.readouterr().out
    made = file.stat().st_mtime_ns
    with pytest.raises(AlreadyDone, match="done before"):
        make_texts(config(paths, "search"))
    make_texts(config(paths, "search", "overwrite=True"))
    assert file.stat().st_mtime_ns > made
    make_texts(config(paths, "search", "text.newest=1"))  # other settings: made again
    assert all("\n" not in text for text in pl.read_parquet(file)["text"])


def test_the_files_name_follows_newest(paths):
    make_texts(config(paths, "all_interactions"))
    make_texts(config(paths, "all_interactions", "text.newest=8", "submit=True"))
    names = {file.name for file in (paths.root / "text").glob("*.parquet")}
    assert names == {"all_interactions_64.parquet", "all_interactions_8.parquet"}


def test_nobody_searched(make_history, tmp_path):
    written = make_history(empty=[EventType.SEARCH_QUERY]).write(tmp_path / "data")
    written.input.mkdir()
    np.save(written.relevant_clients, np.array([1, 2]))
    with pytest.raises(UserError, match=r"no usable events: 0 events of search_query before .*, 0 of them by"):
        make_texts(config(written, "search"))
    assert not (written.root / "text" / "search.parquet").exists()


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("text.newest=0", "text.newest=0: must be at least 1"),
        ("text.fields=[age,colour]", "text.fields: no colour; known: event, age, category"),
        ("text.event_types=[buy]", "text.event_types: no event type buy; known: product_buy"),
        ("text.fields=[]", "must be at least one field"),
        ("text.fields=[age,age]", "repeats one"),
        ("+text.newst=3", "text.newst: unknown setting"),
    ],
)
def test_settings_that_make_no_sense(paths, override, says):
    with pytest.raises(UserError, match=says.replace("[", r"\[")):
        make_texts(config(paths, "search", override))
