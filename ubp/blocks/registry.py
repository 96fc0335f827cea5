"""The registry of blocks, ``configs/blocks.yaml``: which blocks there are, and how each is made."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Any, cast

import polars as pl
from omegaconf import OmegaConf

from ubp.data import schema
from ubp.data.history import of_clients
from ubp.data.paths import CONFIGS, DataPaths
from ubp.data.reading import collect, load_clients, scan, times_parsed
from ubp.data.schema import EventType
from ubp.io.errors import UserError, name_some

REGISTRY = CONFIGS / "blocks.yaml"


@dataclass(frozen=True)
class Entry:
    """A block, or a stage that blocks need, as the registry has it.

    Attributes:
        name: of the embedding; of a stage that blocks need, the name of its log.
        command: script, from the repository's root.
        config: folder and name of its config, below ``configs/``.
        makes: what the README's table says of it.
        overrides: arguments that belong to the command line.
        recipe: ``module:class`` that fits it; empty for a stage that is no block.
        columns: at full size; None where there are none.
        needs: event types of which one at least must have events; none: it takes what there is.
        after: names of the entries whose results it reads.
        reads_targets: what comes out depends on the open tasks' lists (`ubp.data.targets.open_targets`).
        seconds: in the demo, on one core beside another command; only which is longer matters.
        gpu: can use one.
        in_memory: its fit holds all clients at once, on one machine: its recipe says how much memory that takes.
    """

    name: str
    command: str
    config: str
    makes: str
    overrides: tuple[str, ...] = ()
    recipe: str = ""
    columns: int | None = None
    needs: tuple[EventType, ...] = ()
    after: tuple[str, ...] = ()
    reads_targets: bool = False
    seconds: int = 60
    gpu: bool = False
    in_memory: bool = False

    @property
    def is_block(self) -> bool:
        return bool(self.recipe)

    @property
    def folder(self) -> str:
        """Of its configs, below ``configs/``."""
        return self.config.rpartition("/")[0]

    @property
    def config_name(self) -> str:
        return self.config.rpartition("/")[2]

    @property
    def settings(self) -> tuple[str, ...]:
        """The overrides that are settings: not which config."""
        return tuple(word for word in self.overrides if not word.startswith("--"))

    @property
    def line(self) -> str:
        """Script and arguments, as in the published document."""
        return " ".join([self.command, *self.overrides])


@cache
def entries() -> tuple[Entry, ...]:
    """All entries, in the order in which the published document has them.

    Raises:
        UserError: an entry has an unknown key, lacks one, or names what is not there.
    """
    registry = cast("dict[str, dict[str, Any]]", OmegaConf.to_container(OmegaConf.load(REGISTRY)))
    found = tuple(_entry(name, values) for name, values in registry.items())
    names = {entry.name for entry in found}
    for entry in found:
        if missing := [name for name in entry.after if name not in names]:
            raise UserError(f"{REGISTRY}: {entry.name}: after: no entry {missing[0]}")
    return found


def blocks() -> tuple[Entry, ...]:
    """Those that are blocks."""
    return tuple(entry for entry in entries() if entry.is_block)


def with_what_they_read(names: Iterable[str]) -> tuple[Entry, ...]:
    """The entries of some blocks, and those whose results they read, in the registry's order.

    Raises:
        UserError: there is no such block.
    """
    known = {entry.name: entry for entry in entries()}
    wanted, left = set[str](), [block(name).name for name in names]
    while left:
        name = left.pop()
        if name not in wanted:
            wanted.add(name)
            left += known[name].after
    return tuple(entry for entry in entries() if entry.name in wanted)


def block(name: str) -> Entry:
    """The block of that name.

    Raises:
        UserError: there is none.
    """
    known = {entry.name: entry for entry in blocks()}
    if name not in known:
        raise UserError(f"{name}: no such block; known: {name_some(list(known), 50)}")
    return known[name]


def needs_of(name: str) -> tuple[EventType, ...]:
    """The event types of which a block needs some; none for one that takes what there is, or is not here."""
    return {entry.name: entry.needs for entry in entries()}.get(name, ())


def reads_targets(recipe: str) -> bool:
    """Whether a recipe reads the open tasks' lists; by recipe, since a command's config may give its block any name."""
    return any(entry.reads_targets for entry in entries() if entry.recipe == recipe)


def can_be_made(
    paths: DataPaths, submit: bool, as_of: datetime | None = None
) -> tuple[tuple[Entry, ...], dict[str, str]]:
    """Which entries a history has events by relevant clients for, and why the others are left out.

    Args:
        paths: of the log. A file that cannot be read may hold what is needed: whoever reads it says what is wrong.
        submit: the history of all events, or that before the train window.
        as_of: only events before this moment; None for the whole history.

    Returns:
        Those that can be made, in the registry's order, and by the name of each of the others one line with the reason.
    """
    needed = {event_type for entry in entries() for event_type in entry.needs}
    unusable = {event_type: _unusable(paths, submit, as_of, event_type) for event_type in needed}
    made, left_out = [], dict[str, str]()
    for entry in entries():
        rows = [unusable[event_type] for event_type in entry.needs]
        if rows and None not in rows:
            total = sum(row or 0 for row in rows)
            lacks = f"has no events of {' or '.join(entry.needs)}"
            by_whom = f" by relevant clients ({total:,} in all)" if total else ""
            left_out[entry.name] = f"{entry.name} is left out: {paths.history(submit)} {lacks}{by_whom}"
        else:
            made.append(entry)
    while waiting := [entry for entry in made if left_out.keys() & set(entry.after)]:
        for entry in waiting:
            made.remove(entry)
            missing = next(name for name in entry.after if name in left_out)
            left_out[entry.name] = f"{entry.name} is left out: {missing} is"
    return tuple(made), left_out


def _unusable(paths: DataPaths, submit: bool, as_of: datetime | None, event_type: EventType) -> int | None:
    """How many events of a type a history has, all by clients that are not relevant; None where some may be."""
    try:
        events = scan(paths.history(submit) / event_type.file_name)
        if as_of is not None:
            events = times_parsed(events).filter(pl.col(schema.TIMESTAMP) < as_of)
        rows = int(collect(events.select(pl.len())).item())
        if rows and not paths.relevant_clients.exists():
            return None
        ids = events.select(pl.col(schema.CLIENT_ID).cast(pl.Int64))
        found = rows and len(collect(of_clients(ids, load_clients(paths.relevant_clients)).head(1)))
    except (OSError, pl.exceptions.PolarsError, UserError):
        return None
    return None if found else rows


def _entry(name: str, values: dict[str, Any]) -> Entry:
    try:
        lists: dict[str, Any] = {key: tuple(values.pop(key, ())) for key in ("overrides", "after")}
        needs = tuple(EventType(event_type) for event_type in values.pop("needs", ()))
        return Entry(name=name, needs=needs, **lists, **values)
    except (TypeError, ValueError) as error:
        raise UserError(f"{REGISTRY}: {name}: {error}") from error
