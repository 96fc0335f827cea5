"""The registry: entries, and which of them a log has events for."""

import numpy as np
import pytest

from ubp.blocks import registry
from ubp.blocks.registry import block, blocks, can_be_made, entries
from ubp.data.schema import EventType
from ubp.io.errors import UserError


def test_eighteen_blocks_and_the_two_stages_that_they_need():
    assert len(blocks()) == 18
    assert [entry.name for entry in entries() if not entry.is_block] == ["preprocessing_search", "convert_to_text"]
    assert block("als_64_visits_relevant").line == "ALS/als_embeddings.py --config-name=als_visits_relevant"
    assert block("als_64_visits_relevant").settings == ()


def test_an_unknown_block_names_the_known_ones():
    with pytest.raises(UserError, match=r"^als: no such block; known: .*als_64_visits_relevant"):
        block("als")


def test_some_blocks_come_with_what_they_read_in_the_registrys_order():
    found = registry.with_what_they_read(["stacker", "search_llm", "dcn"])
    assert [entry.name for entry in found] == [
        *("preprocessing_search", "search_llm", "numeric_features_wide", "sequential_encoder", "dcn", "stacker")
    ]
    with pytest.raises(UserError, match=r"^als: no such block"):
        registry.with_what_they_read(["als"])


@pytest.fixture
def registered(tmp_path, monkeypatch):
    """A registry of one's own."""

    def write(text: str) -> None:
        (tmp_path / "blocks.yaml").write_text(text)
        monkeypatch.setattr(registry, "REGISTRY", tmp_path / "blocks.yaml")
        entries.cache_clear()

    yield write
    entries.cache_clear()


A = "a: {command: a.py, config: a/a, makes: a}\n"


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("{command: b.py, config: b/b}", "makes"),
        ("{command: b.py, config: b/b, makes: b, colums: 3}", "colums"),
        ("{command: b.py, config: b/b, makes: b, needs: [product_bye]}", "product_bye"),
        ("{command: b.py, config: b/b, makes: b, after: [c]}", "after: no entry c"),
    ],
)
def test_a_fault_in_an_entry_is_named(registered, line, part):
    registered(f"{A}b: {line}\n")
    with pytest.raises(UserError, match=rf"blocks\.yaml: b: .*{part}"):
        entries()


def test_a_log_with_all_kinds_of_events_leaves_nothing_out(history):
    made, left_out = can_be_made(history, submit=True)
    assert made == entries()
    assert left_out == {}


def test_one_kind_of_those_that_a_block_needs_is_enough(make_history, tmp_path):
    paths = make_history(empty=[EventType.PRODUCT_BUY]).write(tmp_path)
    assert can_be_made(paths, submit=True)[1] == {}
    none = (EventType.PRODUCT_BUY, EventType.ADD_TO_CART)
    _, left_out = can_be_made(make_history(empty=none).write(tmp_path / "none"), submit=True)
    assert list(left_out) == ["als_64_buy_add_categories", "lightfm", "twhin"]
    assert left_out["lightfm"].endswith(" has no events of product_buy or add_to_cart")


def test_what_reads_what_is_left_out_is_left_out_too(registered, make_history, tmp_path):
    """Whatever the order of the entries is."""
    registered(
        "c: {command: c.py, config: c/c, makes: c, after: [b]}\n"
        "b: {command: b.py, config: b/b, makes: b, after: [a]}\n"
        "a: {command: a.py, config: a/a, makes: a, needs: [page_visit]}\n"
        "d: {command: d.py, config: d/d, makes: d}\n"
    )
    paths = make_history(empty=[EventType.PAGE_VISIT]).write(tmp_path / "data")
    made, left_out = can_be_made(paths, submit=True)
    assert [entry.name for entry in made] == ["d"]
    assert left_out["b"] == "b is left out: a is"
    assert left_out["c"] == "c is left out: b is"


def test_events_of_relevant_clients_before_the_day_count(make_history, tmp_path):
    """Those of others, and later ones, serve no block."""
    history = make_history()
    visits = history.events[EventType.PAGE_VISIT]
    first = visits["timestamp"].min()
    paths = history.write(tmp_path)
    assert can_be_made(paths, True)[1] == {}
    _, left_out = can_be_made(paths, True, first)
    assert left_out["next_url_192_6_4"] == f"next_url_192_6_4 is left out: {paths.raw} has no events of page_visit"
    paths.input.mkdir()
    buyers = set(history.events[EventType.PRODUCT_BUY]["client_id"]) - set(visits["client_id"])
    np.save(paths.relevant_clients, np.array(sorted(buyers)))
    _, left_out = can_be_made(paths, True)
    assert "lightfm" not in left_out
    assert left_out["next_url_192_6_4"].endswith(
        f" has no events of page_visit by relevant clients ({len(visits):,} in all)"
    )


def test_the_history_before_the_windows_counts_where_it_is_asked_for(make_history, tmp_path):
    """Searches after it do not help."""
    history = make_history()
    paths = history.write(tmp_path)
    paths.input.mkdir()
    for event_type, table in history.events.items():
        kept = table.clear() if event_type is EventType.SEARCH_QUERY else table
        kept.write_parquet(paths.input / event_type.file_name)
    assert can_be_made(paths, submit=True)[1] == {}
    assert list(can_be_made(paths, submit=False)[1]) == ["preprocessing_search", "search_llm"]


@pytest.mark.parametrize("what", ["nothing", "no parquet"])
def test_files_that_cannot_be_read_leave_nothing_out(history, what):
    """The command that reads them says what is wrong."""
    file = history.raw / EventType.SEARCH_QUERY.file_name
    file.unlink()
    if what == "no parquet":
        file.write_text("no parquet")
    assert can_be_made(history, submit=True)[1] == {}
