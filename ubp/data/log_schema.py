"""A log's schema: which files hold which events, and which of their columns say what (``configs/schema/NAME.yaml``)."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from zoneinfo import ZoneInfo

from ubp.data import schema
from ubp.data.event_types import named, with_own
from ubp.data.schema import EventType
from ubp.io.errors import UserError

_ITEM, _URL, _TEXT = "item", "url", "text"  # the keys that name the column of what an event is about
SUBJECT_KEYS: Final = {schema.SKU: _ITEM, schema.URL: _URL, schema.QUERY: _TEXT}

EPOCHS: Final = {"epoch": 1_000_000, "epoch_ms": 1_000, "epoch_us": 1}  # formats: microseconds in one of their units

_ALL: Final = ("zone", "events", "items")
_FILE: Final = ("file", "table", "separator", "where")
_EVENT: Final = (*_FILE, "as", "client", "time", "format", "zone", _ITEM, _URL, _TEXT, "value")
_ITEMS: Final = (*_FILE, _ITEM, "category", "price", _TEXT)


@dataclass(frozen=True)
class FileSource:
    """Which rows of which files.

    Attributes:
        name: the user's own, for the table and for messages.
        file: a path or a pattern, see `ubp.data.log_sources.READABLE`.
        table: of a database; None for other files.
        separator: of a CSV's columns.
        where: by column the values, as text, of the rows that are meant; empty: all.
    """

    name: str
    file: str
    table: str | None
    separator: str
    where: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class EventSource(FileSource):
    """Events of one type.

    Attributes:
        kind: what they are taken as.
        client: column of the client.
        time: column of the time.
        subject: column of the item, the url or the text.
        format: of times that are text or numbers, as ``%Y-%m-%d %H:%M:%S``, or one of `EPOCHS`.
        zone: in which the times are written; None: the log's own.
        value: column of the price or the amount; None: there is none.
    """

    kind: EventType
    client: str
    time: str
    subject: str
    format: str
    zone: str | None
    value: str | None


@dataclass(frozen=True)
class ItemSource(FileSource):
    """Attributes of items; where an item has several rows, the most frequent value counts, and the middle price.

    Attributes:
        item: column of the item.
        category: columns that make up the category, of any type; empty: there is none.
        price: column of a number; None: the middle of the amounts paid.
        text: columns that make up the name; empty: there is none.
    """

    item: str
    category: tuple[str, ...]
    price: str | None
    text: tuple[str, ...]


@dataclass(frozen=True)
class LogSchema:
    """A whole log.

    Attributes:
        event_types: the challenge's, then the log's own in the order of the file (`ubp.data.event_types`).
        zone: in which the log's days begin and end; None: the times have no zone, and none is asked for.
        events: the sources, in the order of the file.
        items: None: nothing is known of them but what was paid.
    """

    event_types: tuple[EventType, ...]
    zone: str | None
    events: tuple[EventSource, ...]
    items: ItemSource | None


def schema_of(values: Mapping[str, Any]) -> LogSchema:
    """A schema from plain Python, as YAML gives it.

    Raises:
        UserError: an unknown key, a missing one, a wrong value, no purchases; one line each.
    """
    _require_known("schema", values, _ALL)
    zone = _zone("schema", values)
    events = _mapping("schema.events", values.get("events"))
    if not events:
        raise UserError("schema.events: no event source; name one: which file, as which event type, which columns")
    known = with_own(_own_types(events))
    faults, sources = [], list[EventSource]()
    for name, fields in events.items():
        try:
            sources.append(_event_source(str(name), fields, known, zone))
        except UserError as error:
            faults += error.messages
    items = None
    try:
        items = _item_source(values["items"]) if values.get("items") else None
    except UserError as error:
        faults += error.messages
    if not faults and all(source.kind != EventType.PRODUCT_BUY for source in sources):
        faults.append(
            "schema.events: nothing is taken as product_buy; say with `as: product_buy` which events count as bought"
        )
    if faults:
        raise UserError(faults)
    return LogSchema(known, zone, tuple(sources), items)


def _own_types(events: Mapping[str, Any]) -> dict[str, str]:
    """By its name, what the events of each type that is the log's own are about: whichever column a source names.

    Raises:
        UserError: a source of such a type names none or several, or two sources of one type name different ones.
    """
    own, faults = dict[str, str](), list[str]()
    for source, fields in events.items():
        kind = fields.get("as") if isinstance(fields, Mapping) else None
        if kind is None or str(kind) in schema.EVENT_TYPES:
            continue
        given = [subject for subject, key in SUBJECT_KEYS.items() if fields.get(key) is not None]
        keys = ", ".join(SUBJECT_KEYS[subject] for subject in given)
        if len(given) != 1:
            faults.append(
                f"schema.events.{source}: {kind} is an event type of your own (known are "
                f"{', '.join(schema.EVENT_TYPES)}); say what it is about by one of {', '.join(SUBJECT_KEYS.values())}"
                + (f", not {keys}" if given else "")
            )
        elif own.setdefault(str(kind), given[0]) != given[0]:
            before = SUBJECT_KEYS[own[str(kind)]]
            faults.append(f"schema.events.{source}: {kind} is about {before} in another source, here about {keys}")
    if faults:
        raise UserError(faults)
    return own


def _event_source(
    name: str,
    fields: Any,  # noqa: ANN401 (what YAML gives)
    known: Sequence[EventType],
    log_zone: str | None,
) -> EventSource:
    at = f"schema.events.{name}"
    values = _mapping(at, fields)
    _require_known(at, values, _EVENT)
    kind = named(_text(at, values, "as"), known)
    subject = SUBJECT_KEYS[kind.subject]
    if others := [key for key in SUBJECT_KEYS.values() if key != subject and values.get(key) is not None]:
        raise UserError(f"{at}.{others[0]}: {kind} takes no {others[0]}; name its column as {subject}")
    zone = _zone(at, values)
    if zone is not None and log_zone is None:
        raise UserError(f"{at}.zone={zone}: say too in which zone the log's days begin and end: schema.zone={zone}")
    return EventSource(
        **_file_fields(at, name, values),
        kind=kind,
        client=_text(at, values, "client"),
        time=_text(at, values, "time"),
        subject=_text(at, values, subject),
        format=str(values.get("format") or schema.TIMESTAMP_FORMAT),
        zone=zone,
        value=None if values.get("value") is None else str(values["value"]),
    )


def _item_source(fields: Any) -> ItemSource:  # noqa: ANN401 (what YAML gives)
    at = "schema.items"
    values = _mapping(at, fields)
    _require_known(at, values, _ITEMS)
    return ItemSource(
        **_file_fields(at, "items", values),
        item=_text(at, values, _ITEM),
        category=_several(values.get("category")),
        price=None if values.get("price") is None else str(values["price"]),
        text=_several(values.get(_TEXT)),
    )


def _file_fields(at: str, name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    separator = str(values.get("separator") or ",")
    if len(separator.encode()) != 1:
        raise UserError(f"{at}.separator={separator!r}: must be one character")
    chosen = _mapping(f"{at}.where", values.get("where") or {})
    where = {str(column): _several(accepted) for column, accepted in chosen.items()}
    if empty := [column for column, accepted in where.items() if not accepted]:
        raise UserError(f"{at}.where.{empty[0]}: no value; name those of the rows that are meant, or leave it out")
    table = None if values.get("table") is None else str(values["table"])
    return {"name": name, "file": _text(at, values, "file"), "table": table, "separator": separator, "where": where}


def _require_known(at: str, values: Mapping[str, Any], known: Collection[str]) -> None:
    if unknown := [str(key) for key in values if key not in known]:
        raise UserError(f"{at}.{unknown[0]}: unknown setting; known: {', '.join(known)}")


def _mapping(at: str, values: Any) -> Mapping[str, Any]:  # noqa: ANN401 (what YAML gives)
    if not isinstance(values, Mapping):
        raise UserError(f"{at}: must hold settings, not {values!r}")
    return values


def _text(at: str, values: Mapping[str, Any], key: str) -> str:
    if values.get(key) is None:
        raise UserError(f"{at}.{key}: missing; it must be there")
    return str(values[key])


def _several(value: Any) -> tuple[str, ...]:  # noqa: ANN401 (what YAML gives)
    """One value or a list of them, as texts; YAML's ``true`` as files write it."""
    values = value if isinstance(value, list) else [] if value is None else [value]
    return tuple(str(each).lower() if isinstance(each, bool) else str(each) for each in values)


def _zone(at: str, values: Mapping[str, Any]) -> str | None:
    zone = values.get("zone")
    if zone is None:
        return None
    try:
        ZoneInfo(str(zone))
    except (KeyError, ValueError, OSError) as error:
        raise UserError(f"{at}.zone={zone}: no known time zone; name one as Europe/Berlin or UTC") from error
    return str(zone)
