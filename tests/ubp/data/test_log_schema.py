"""A schema from YAML's values: what is understood, and one line for each thing that is wrong."""

import copy

import pytest
import yaml

from ubp.data.log_schema import schema_of
from ubp.data.paths import CONFIGS
from ubp.data.schema import EVENT_TYPES, EventType
from ubp.io.errors import UserError

PURCHASES = {"as": "product_buy", "file": "a.csv", "client": "who", "time": "when", "item": "what"}


def of(**changes):
    return {"events": {"sales": {**PURCHASES, **changes}}}


def with_transfers(again=None, **changes):
    sources = {"sales": PURCHASES, "sent": {**PURCHASES, "as": "transfer", **changes}}
    return {"events": {**sources, **({"again": again} if again else {})}}


def lines(values) -> list[str]:
    with pytest.raises(UserError) as refused:
        schema_of(values)
    return refused.value.messages


def test_the_shortest_schema():
    (sales,) = schema_of(of()).events
    assert (sales.kind, sales.subject, sales.format) == (EventType.PRODUCT_BUY, "what", "%Y-%m-%d %H:%M:%S")
    assert (sales.separator, sales.where, sales.zone, sales.value) == (",", {}, None, None)
    assert schema_of(of()).items is None


def test_event_types_of_the_logs_own():
    values = with_transfers()
    values["events"]["levels"] = {**PURCHASES, "as": "level_up", "item": None, "url": "level"}
    values["events"]["more"] = values["events"]["sent"]
    found = schema_of(values)
    assert [*map(str, found.event_types)] == [*EVENT_TYPES, "transfer", "level_up"]
    kinds = [source.kind for source in found.events]
    assert kinds == ["product_buy", "transfer", "level_up", "transfer"]
    assert [(kind.subject, kind.code) for kind in kinds] == [("sku", 4), ("sku", 5), ("url", 6), ("sku", 5)]
    assert found.events[2].subject == "level"


@pytest.mark.parametrize("name", ["bank", "clickstream", "demo_grocer"])
def test_the_schemas_of_the_project_are_understood(name):
    found = schema_of(yaml.safe_load((CONFIGS / "schema" / f"{name}.yaml").read_text()))
    assert any(source.kind == EventType.PRODUCT_BUY for source in found.events)
    assert found.items is not None


def test_one_value_or_several_and_values_as_files_write_them():
    (sales,) = schema_of(of(where={"kind": "sale", "paid": True, "shop": [1, 2]})).events
    assert sales.where == {"kind": ("sale",), "paid": ("true",), "shop": ("1", "2")}
    values = of() | {"items": {"file": "b.csv", "item": "what", "category": "kind", "text": ["name", "maker"]}}
    items = schema_of(values).items
    assert (items.category, items.text, items.price) == (("kind",), ("name", "maker"), None)


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({}, "schema.events: must hold settings"),
        ({"events": {}}, "schema.events: no event source"),
        ({"evnts": {}}, "schema.evnts: unknown setting; known: zone, events, items"),
        (of(clint="x"), "schema.events.sales.clint: unknown setting; known: file, "),
        (of(client=None), "schema.events.sales.client: missing"),
        (of(**{"as": "transfer"}), "schema.events: nothing is taken as product_buy"),
        (
            with_transfers(item=None),
            "schema.events.sent: transfer is an event type of your own (known are product",
        ),
        (with_transfers(url="page"), "say what it is about by one of item, url, text, not item, url"),
        (with_transfers(**{"as": "Send!"}), "event type Send!: no usable name; must be small letters"),
        (with_transfers(**{"as": "ids_client"}), "event type ids_client: the name is taken"),
        (
            with_transfers(again={**PURCHASES, "as": "transfer", "item": None, "url": "page"}),
            "schema.events.again: transfer is about item in another source, here about url",
        ),
        (of(url="page"), "schema.events.sales.url: product_buy takes no url; name its column as item"),
        (of(zone="Europe/Berlin"), "say too in which zone the log's days begin and end: schema.zone=Europe/Berlin"),
        (of() | {"zone": "Europe/Berlni"}, "schema.zone=Europe/Berlni: no known time zone"),
        (of(separator="||"), "schema.events.sales.separator='||': must be one character"),
        (of(where={"kind": []}), "schema.events.sales.where.kind: no value"),
        (of(where="sale"), "schema.events.sales.where: must hold settings, not 'sale'"),
        (of() | {"items": {"file": "b.csv"}}, "schema.items.item: missing"),
        (of(**{"as": "page_visit"}, item=None, url="page"), "nothing is taken as product_buy"),
    ],
)
def test_what_is_wrong_is_one_line(values, line):
    (found,) = lines(values)
    assert line in found


def test_all_sources_are_looked_at():
    values = copy.deepcopy(of(clint="x")) | {"items": {"fiel": "b.csv"}}
    assert len(lines(values)) == 2
