"""The registry: entries, and which of them a log has events for."""

import pytest

from ubp.blocks import registry
from ubp.blocks.registry import block, blocks, can_be_made, entries
from ubp.data.schema import EventType
from ubp.io.errors import UserError


def test_twelve_blocks_and_the_two_stages_that_they_need():
    assert len(blocks()) == 12
    assert [entry.name for entry in entries() if not entry.is_block] == ["preprocessing_search", "convert_to_text"]
    assert block("als_64_visits_relevant").line == "ALS/als_embeddings.py --config-name=als_visits_relevant"
    assert block("als_64_visits_relevant").settings == ()


def test_an_unknown_block_names_the_known_ones():
    with pytest.raises(UserError, match=r"^als: no such block; known: .*als_64_visits_relevant"):
        block("als")


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
    made, left_out = can_be_made(history)
    assert made == entries()
    assert left_out == {}


def test_one_kind_of_those_that_a_block_needs_is_enough(make_history, tmp_path):
    paths = make_history(empty=[EventType.PRODUCT_BUY]).write(tmp_path)
    assert can_be_made(paths)[1] == {}
    none = (EventType.PRODUCT_BUY, EventType.ADD_TO_CART)
    _, left_out = can_be_made(make_history(empty=none).write(tmp_path / "none"))
    assert list(left_out) == ["als_64_buy_add_categories", "lightfm"]
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
    made, left_out = can_be_made(paths)
    assert [entry.name for entry in made] == ["d"]
    assert left_out["b"] == "b is left out: a is"
    assert left_out["c"] == "c is left out: b is"


@pytest.mark.parametrize("what", ["nothing", "no parquet"])
def test_files_that_cannot_be_read_leave_nothing_out(history, what):
    """The command that reads them says what is wrong."""
    file = history.raw / EventType.SEARCH_QUERY.file_name
    file.unlink()
    if what == "no parquet":
        file.write_text("no parquet")
    assert can_be_made(history)[1] == {}
