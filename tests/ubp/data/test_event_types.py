"""A log's own event types: which there are, where they are kept, and what a log that differs is told."""

import copy
import json
import pickle

import pytest

from ubp.data import schema
from ubp.data.event_types import (
    MOST,
    by_code,
    chosen,
    kept,
    named,
    own_types,
    read_event_types,
    require_same,
    restored,
    with_own,
)
from ubp.data.schema import EVENT_TYPES, EventType
from ubp.io.errors import UserError

OWN = {"transfer": "sku", "level_up": "url", "chat": "query"}


def test_the_challenges_come_first_and_have_the_codes_that_they_always_had():
    found = with_own(OWN)
    assert found[:5] == EVENT_TYPES == tuple(EventType(name) for name in EVENT_TYPES)
    assert [each.code for each in found] == [4, 2, 3, 1, 0, 5, 6, 7]
    assert [each.subject for each in found[5:]] == ["sku", "url", "query"]
    assert [each.has_sku for each in found] == [True, True, True, False, False, True, False, False]
    assert by_code(found)[:5] == list(schema.EVENT_ORDER)
    assert own_types(found) == OWN
    assert with_own({}) == EVENT_TYPES


def test_an_event_type_is_its_name_everywhere():
    transfer = with_own(OWN)[5]
    assert (f"{transfer}", transfer.value, transfer.file_name) == ("transfer", "transfer", "transfer.parquet")
    for again in (pickle.loads(pickle.dumps(transfer)), copy.deepcopy(transfer)):  # noqa: S301 (its own)
        assert (again, again.subject, again.code) == ("transfer", "sku", 5)
    assert EventType("product_buy") is EventType.PRODUCT_BUY
    with pytest.raises(ValueError, match="transfer is no event type; known: search_query"):
        EventType("transfer")


@pytest.mark.parametrize(
    ("own", "line"),
    [
        ({"page_visit": "url"}, "event type page_visit: the name is taken"),
        ({"ids_of": "url"}, "event type ids_of: the name is taken"),
        ({"../raw": "url"}, "event type ../raw: no usable name"),
        ({"a\nb": "url"}, r"event type 'a\\nb': no usable name"),
        ({"Transfer": "sku"}, "event type Transfer: no usable name; must be small letters"),
        ({"transfer": "item"}, "transfer: item is nothing that events are about; must be sku, url, query"),
        ({f"type_{number}": "sku" for number in range(MOST + 1)}, f"{MOST + 1} event types of the log's own; at most"),
    ],
)
def test_what_cannot_be_an_event_type(own, line):
    with pytest.raises(UserError, match=line):
        with_own(own)


def test_the_file(tmp_path):
    file = tmp_path / schema.OWN_EVENT_TYPES
    assert read_event_types(file) == EVENT_TYPES
    file.write_text(json.dumps(OWN))
    assert own_types(read_event_types(file)) == OWN
    for content, line in (
        ("{", "not readable as JSON"),
        ("[1]", "must have a column for each event type"),
        ('{"a": 1}', "must have a column for each event type"),
        ('{"a": "b"}', "event type a: b is nothing that events are about"),
    ):
        file.write_text(content)
        with pytest.raises(UserError, match=line) as refused:
            read_event_types(file)
        assert str(file) in str(refused.value)


def test_types_by_name():
    known = with_own(OWN)
    assert named("level_up", known).code == 6
    with pytest.raises(UserError, match=r"level: no such event type in this log; it has product_buy, .*chat"):
        named("level", known)
    assert chosen("edges.types", ["transfer", "product_buy"], known) == ("transfer", "product_buy")
    with pytest.raises(UserError, match=r"edges\.types: no event type level; known: product_buy"):
        chosen("edges.types", ["transfer", "level"], known)


def test_what_a_block_keeps_and_a_log_that_differs():
    known = with_own(OWN)
    assert kept(EVENT_TYPES) == {}
    assert restored({}) == EVENT_TYPES
    assert restored(json.loads(json.dumps(kept(known)))) == known
    require_same("als", known, tuple(by_code(known)))
    for other in (EVENT_TYPES, with_own({"level_up": "url", "transfer": "sku", "chat": "query"})):
        with pytest.raises(UserError, match="als: fitted on a log whose own event types were: transfer"):
            require_same("als", known, other)
