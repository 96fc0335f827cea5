"""What a block has learned: kept in files, loaded again, asked for the vectors of any clients on any day.

A fitted block lies in a folder of its own:

- ``block.json``: the class, the block's settings, the lineage of the fit;
- ``weights.safetensors``: its arrays, where it has some;
- ``NAME.parquet``: its tables, one file each.

The folder appears whole or not at all, and holds nothing that runs code when it is read.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from importlib import import_module
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt
import polars as pl

from ubp.blocks.embeddings import EmbeddingTable
from ubp.data.history import ChallengeData
from ubp.io.errors import UserError
from ubp.io.files import atomic_write, digest_of, fingerprint, read_whole

_FORMAT: Final = 1  # of the folder's layout
_NOTE: Final = "block.json"
_WEIGHTS: Final = "weights.safetensors"

Clients = npt.NDArray[np.int64]
Vectors = npt.NDArray[np.float32]


@dataclass(frozen=True)
class State:
    """A fitted block as it is kept.

    Attributes:
        settings: whatever JSON holds.
        arrays: by name, of any shape; numpy dtypes that safetensors knows.
        tables: by name.
        folder: where it was loaded from; None for one that was just fitted.
    """

    settings: dict[str, Any] = field(default_factory=dict)
    arrays: dict[str, npt.NDArray[Any]] = field(default_factory=dict)
    tables: dict[str, pl.DataFrame] = field(default_factory=dict)
    folder: Path | None = None


class FittedBlock(ABC):
    """A block that has learned from a history; `vectors` reads nothing after the history's ``as_of``."""

    @abstractmethod
    def state(self) -> State:
        """What `from_state` makes the same block of."""

    @classmethod
    @abstractmethod
    def from_state(cls, state: State) -> Self:
        """The block that gave this state: it encodes the same bits.

        Raises:
            UserError: something else that it needs is not there.
        """

    @abstractmethod
    def vectors(self, history: ChallengeData, clients: Clients) -> tuple[Clients, Vectors]:
        """Vectors of clients, whether they were in the training or not.

        Args:
            history: as known on the day of its ``as_of``; events after it are not in it.
            clients: int64 [n], ascending, each once.

        Returns:
            int64 [m], ascending, those of the clients that have events which the block reads, and
            float32 [m, columns].

        Raises:
            UserError: the block cannot encode this history; which block, and why.
        """

    @property
    def at_a_time(self) -> int | None:
        """How many clients `vectors` is asked for at a time where memory counts: in parts they get the same bits.

        None: all of them at once, whatever their number.
        """
        return None

    def descriptions(self) -> dict[str, str]:
        """The columns' names, in order, and one line on what each is; empty where they have no meaning of their own."""
        return {}

    def encode(
        self, history: ChallengeData, clients: npt.ArrayLike | None = None, as_of: datetime | None = None
    ) -> EmbeddingTable:
        """Vectors of any clients as of any day.

        Args:
            history: what is known.
            clients: integers [n], in any order; None for all with an event.
            as_of: the day; None for the history's own.

        Returns:
            A row for each client with events that the block reads, by ascending id.

        Raises:
            UserError: see `vectors`.
        """
        known = history if as_of is None else history.before(as_of)
        asked = known.seen() if clients is None else np.unique(np.asarray(clients, dtype=np.int64))
        ids, vectors = self.vectors(known, asked)
        lineage = {"fingerprint": known.fingerprint, "as_of": known.as_of.isoformat(sep=" ")}
        return EmbeddingTable(ids, vectors, lineage | described(self))


def portions(clients: int, at_a_time: int | None) -> Iterator[slice]:
    """The places of so many clients in parts, one at least; `FittedBlock.at_a_time` says what None means."""
    step = at_a_time or max(clients, 1)
    return (slice(start, start + step) for start in range(0, max(clients, 1), step))


def described(fitted: FittedBlock) -> dict[str, Any]:
    """What a lineage says of a block's columns: under ``columns`` each one's description by its name, in order."""
    found = fitted.descriptions()
    return {"columns": found} if found else {}


def save(fitted: FittedBlock, folder: str | Path, lineage: Mapping[str, Any]) -> None:
    """Keep a fitted block; a folder that is there is replaced when the new one is whole.

    Args:
        fitted: the block.
        folder: its own.
        lineage: of the fit: name, settings, seed, history, versions.
    """
    from safetensors.numpy import save_file

    state = fitted.state()
    note = {
        "format": _FORMAT,
        "class": _class_name(fitted),
        "settings": state.settings,
        "tables": sorted(state.tables),
        "lineage": dict(lineage),
    }
    with atomic_write(Path(folder)) as aside:
        aside.mkdir()
        if state.arrays:
            save_file({name: np.ascontiguousarray(array) for name, array in state.arrays.items()}, aside / _WEIGHTS)
        for name, table in state.tables.items():
            table.write_parquet(aside / f"{name}.parquet")
        note["files"] = {file.name: fingerprint(file) for file in sorted(aside.iterdir())}
        (aside / _NOTE).write_text(json.dumps({**note, "digest": _digest(note)}, indent=2) + "\n")


def load(folder: str | Path) -> FittedBlock:
    """A block that `save` kept: one whole fit, also where another takes its place meanwhile.

    Raises:
        UserError: there is none, it is of another format, or a file of it cannot be read.
    """
    return read_whole(Path(folder), lambda: _load(Path(folder)))


def _load(folder: Path) -> FittedBlock:
    from safetensors.numpy import load_file

    note = _note(folder)
    _as_written(folder, note)
    try:
        weights = folder / _WEIGHTS
        arrays = load_file(weights) if weights.exists() else {}
        tables = {name: pl.read_parquet(folder / f"{name}.parquet", glob=False) for name in note["tables"]}
        kind = imported(note["class"])
    except (OSError, ValueError, KeyError, ImportError, AttributeError, pl.exceptions.PolarsError) as error:
        raise _unusable(folder, error) from error
    if not (isinstance(kind, type) and issubclass(kind, FittedBlock)):
        raise UserError(f"{folder / _NOTE}: class {note['class']} is no fitted block; fit the block again")
    try:
        return kind.from_state(State(note["settings"], arrays, tables, folder))
    except (KeyError, TypeError) as error:  # kept by a version of the class that had other settings
        raise _unusable(folder, error) from error


def packed(blocks: Mapping[str, FittedBlock]) -> State:
    """The states of several blocks as one: for a block that keeps others within its own folder.

    Args:
        blocks: by name.
    """
    notes, arrays, tables = [], dict[str, npt.NDArray[Any]](), dict[str, pl.DataFrame]()
    for name, block in blocks.items():
        state = block.state()
        kept = {"arrays": sorted(state.arrays), "tables": sorted(state.tables)}
        notes.append({"name": name, "class": _class_name(block), "settings": state.settings, **kept})
        arrays |= {f"{name}.{key}": array for key, array in state.arrays.items()}
        tables |= {f"{name}.{key}": table for key, table in state.tables.items()}
    return State({"blocks": notes}, arrays, tables)


def unpacked(state: State) -> dict[str, FittedBlock]:
    """The blocks that `packed` made a state of; further arrays and tables may lie beside theirs.

    Raises:
        UserError: a block's class is not there.
    """
    blocks = {}
    for note in state.settings["blocks"]:
        name = note["name"]
        arrays = {key: state.arrays[f"{name}.{key}"] for key in note["arrays"]}
        tables = {key: state.tables[f"{name}.{key}"] for key in note["tables"]}
        try:
            kind = imported(note["class"])
        except (ImportError, AttributeError) as error:
            raise UserError(f"{state.folder}: block {name}: {error}; fit it again") from error
        blocks[name] = kind.from_state(State(note["settings"], arrays, tables, state.folder))
    return blocks


def lineage_of(folder: Path) -> dict[str, Any]:
    """The lineage of the fit in a folder.

    Raises:
        UserError: there is no fitted block, or it cannot be read.
    """
    lineage: dict[str, Any] = _note(folder)["lineage"]
    return lineage


def fit_digest(folder: Path) -> str | None:
    """Tells one fit from another, by its lineage without the report; None where there is no fitted block.

    Raises:
        UserError: the fitted block cannot be read.
    """
    if not is_fitted(folder):
        return None
    return digest_of(json.dumps(settled(lineage_of(folder)), sort_keys=True))


def content_digest(folder: Path) -> str:
    """Tells one content of a fitted block from another: its lineage without the report, its arrays and tables.

    Raises:
        UserError: there is no fitted block, or it cannot be read.
    """

    def of_files() -> str:
        note = _note(folder)
        lineage = json.dumps(settled(note["lineage"]), sort_keys=True)
        return digest_of(lineage, *(f"{name}:{content}" for name, content in _as_written(folder, note).items()))

    return read_whole(folder, of_files)


def require_same_fit(folder: Path, digest: str) -> None:
    """Make sure that a fit is the one that was read.

    Args:
        folder: of the fitted block.
        digest: its `content_digest` before it was read.

    Raises:
        UserError: another one took its place.
    """
    if content_digest(folder) != digest:
        raise UserError(f"{folder}: fitted anew while it was read; give the command again")


def settled(lineage: Mapping[str, Any]) -> dict[str, Any]:
    """A lineage without the report, which tells how the making went."""
    return {key: value for key, value in lineage.items() if key != "report"}


def is_fitted(folder: Path) -> bool:
    """Whether a fitted block lies in a folder."""
    return (folder / _NOTE).is_file()


def imported(name: str) -> Any:  # noqa: ANN401 (whatever it is)
    """The object called ``module:name``.

    Raises:
        ImportError: there is no such module.
        AttributeError: the module has no such object.
    """
    module, _, inside = name.partition(":")
    return getattr(import_module(module), inside)


def _class_name(block: FittedBlock) -> str:
    kind = type(block)
    return f"{kind.__module__}:{kind.__qualname__}"


def _note(folder: Path) -> dict[str, Any]:
    if not is_fitted(folder):
        raise UserError(f"{folder}: no fitted block; make it with the block's command")
    try:
        note: dict[str, Any] = json.loads((folder / _NOTE).read_text())
        if note["format"] != _FORMAT:
            raise UserError(f"{folder}: format {note['format']}, not {_FORMAT}; fit the block again")
        as_written = note.get("digest") in (None, _digest(note))  # those of earlier versions have none
    except (OSError, ValueError, KeyError, TypeError, RecursionError, AttributeError) as error:
        raise _unusable(folder, error) from error
    if not as_written:
        raise _unusable(folder, ValueError(f"{_NOTE} is not what was written"))
    return note


def _digest(note: Mapping[str, Any]) -> str:
    """Of all that a note says, as JSON gives it back."""
    said = json.loads(json.dumps({key: value for key, value in note.items() if key != "digest"}))
    return digest_of(json.dumps(said, sort_keys=True))


def _as_written(folder: Path, note: Mapping[str, Any]) -> dict[str, str]:
    """The fingerprints of a fitted block's arrays and tables, by file in the order of their names.

    Raises:
        UserError: one that the note was written with is another, or is not there.
    """
    files = sorted(file for file in folder.iterdir() if file.suffix != ".json" and file.is_file())
    found = {file.name: fingerprint(file) for file in files}
    for name, written in note.get("files", {}).items():
        if found.get(name) != written:
            raise UserError(f"{folder / name}: not what was written there, or cut off; fit the block again")
    return found


def _unusable(folder: Path, error: Exception) -> UserError:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return UserError(f"{folder}: not a usable fitted block ({type(error).__name__}: {reason}); fit the block again")
