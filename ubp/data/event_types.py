"""The event types of a log: the challenge's five, and those of its own that ``raw/event_types.json`` names.

That file has for each of the log's own types the column that says what its events are about: ``sku``, ``url`` or
``query``. Their order is that of their codes, so it belongs to what was learned from the log:

    {"transfer": "sku", "level_up": "url"}

A log without the file has the five alone. These are always there, even without events: purchases are what the tasks
ask for, whatever a shop calls them.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from ubp.data import schema
from ubp.data.schema import EventType
from ubp.io.errors import UserError, name_some

SUBJECTS: Final = (schema.SKU, schema.URL, schema.QUERY)
MOST: Final = 200  # of a log's own: a code is one byte, as is a token

_NAME: Final = re.compile(r"[a-z][a-z0-9_]{0,49}")
_TAKEN: Final = ("product_properties", "relevant_clients", "active_clients", "input", "target", "ids_")
_RULE: Final = "small letters, digits and _, a letter first, at most 50"


def with_own(own: Mapping[str, str]) -> tuple[EventType, ...]:
    """All types of a log, the challenge's first.

    Args:
        own: by the name of each of the log's own types what its events are about, one of `SUBJECTS`.

    Raises:
        UserError: a line for each name or subject that cannot be used, or too many.
    """
    faults = [fault for name, subject in own.items() for fault in _faults(name, subject)]
    if len(own) > MOST:
        faults.append(f"{len(own):,} event types of the log's own; at most {MOST}: put rare ones together")
    if faults:
        raise UserError(faults)
    first = len(schema.EVENT_TYPES)
    return (*schema.EVENT_TYPES, *(EventType(name, own[name], first + place) for place, name in enumerate(own)))


def _faults(name: str, subject: str) -> Iterable[str]:
    if name in schema.EVENT_TYPES or name.startswith(_TAKEN):
        yield f"event type {name}: the name is taken; choose another"
    elif not _NAME.fullmatch(name):
        yield f"event type {name if name.isprintable() else repr(name)}: no usable name; must be {_RULE}"
    if subject not in SUBJECTS:
        yield f"event type {name}: {subject} is nothing that events are about; must be {', '.join(SUBJECTS)}"


def own_types(event_types: Iterable[EventType]) -> dict[str, str]:
    """Those that are not the challenge's, as `with_own` takes them."""
    return {str(each): each.subject for each in event_types if each not in schema.EVENT_TYPES}


def read_event_types(file: Path) -> tuple[EventType, ...]:
    """The types of the log whose ``event_types.json`` this is; the challenge's where it is not there.

    Raises:
        UserError: it cannot be read, or holds something else.
    """
    if not file.exists():
        return schema.EVENT_TYPES
    try:
        own = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: not readable as JSON ({error}); write it anew or remove it") from error
    if not isinstance(own, dict) or not all(isinstance(subject, str) for subject in own.values()):
        raise UserError(f'{file}: must have a column for each event type: {{"transfer": "sku"}}')
    try:
        return with_own(own)
    except UserError as error:
        raise UserError([f"{file}: {message}" for message in error.messages]) from error


def by_code(event_types: Iterable[EventType]) -> list[EventType]:
    """Event types in the order of their codes, so that a code is a place."""
    return sorted(event_types, key=lambda event_type: event_type.code)


def named(name: str, event_types: Sequence[EventType]) -> EventType:
    """The type of that name.

    Raises:
        UserError: the log has none.
    """
    for event_type in event_types:
        if event_type == name:
            return event_type
    raise UserError(f"{name}: no such event type in this log; it has {', '.join(event_types)}")


def chosen(setting: str, names: Iterable[str], known: Sequence[EventType]) -> tuple[EventType, ...]:
    """The types that a setting names.

    Args:
        setting: for the message.
        names: of event types.
        known: that it may name.

    Raises:
        UserError: another one.
    """
    by_name = {str(event_type): event_type for event_type in known}
    if unknown := [name for name in names if name not in by_name]:
        raise UserError(f"{setting}: no event type {unknown[0]}; known: {', '.join(by_name)}")
    return tuple(by_name[name] for name in names)


def require_same(block: str, fitted: Sequence[EventType], known: Sequence[EventType]) -> None:
    """Refuse a log whose event types are not those that a block was fitted on.

    Raises:
        UserError: they differ.
    """
    if by_code(fitted) != by_code(known):
        theirs, ours = (name_some(list(own_types(each)), 20) or "none" for each in (fitted, known))
        raise UserError(
            f"{block}: fitted on a log whose own event types were: {theirs}; this one's are: {ours}; fit it again"
        )


def kept(event_types: Iterable[EventType]) -> dict[str, Any]:
    """A setting of a fitted block that says on which event types; empty where they are the challenge's."""
    own = own_types(event_types)
    return {"event_types": own} if own else {}


def restored(settings: Mapping[str, Any]) -> tuple[EventType, ...]:
    """What `kept` was given, from all the settings of a fitted block."""
    return with_own(settings.get("event_types", {}))
