"""The entry: what is submitted. Written whole, validated against every rule of docs/data.md."""

import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ubp.data import schema
from ubp.io.arrays import append_array, save_array, write_header
from ubp.io.errors import UserError
from ubp.io.files import atomic_write, fingerprint, read_whole
from ubp.io.npy import read_npy

logger = logging.getLogger(__name__)

_LARGEST = float(np.finfo(np.float16).max)
MANIFEST: Final = "manifest.json"  # beside the two files: where they come from
_FORMAT: Final = 1  # of the manifest
_ROWS = 65_536  # converted and looked at at a time


def entry_files(folder: Path) -> list[Path]:
    """The two files of an entry."""
    return [folder / schema.ENTRY_CLIENT_IDS, folder / schema.ENTRY_EMBEDDINGS]


def write_entry(
    folder: Path,
    client_ids: npt.NDArray[np.int64],
    profiles: npt.NDArray[np.float32],
    lineage: Mapping[str, Any] | None = None,
) -> None:
    """Write ``client_ids.npy`` and ``embeddings.npy`` (float16) to ``folder``, both or none, and a manifest.

    Values beyond float16 are held at its largest (65,504), with a warning that counts them.

    Args:
        folder: replaced where it is there.
        client_ids: int64 [clients].
        profiles: float32 [clients, columns], finite.
        lineage: for ``manifest.json``, with what is needed to make the same again; None: no manifest.
    """
    with atomic_write(folder) as aside:
        aside.mkdir()
        save_array(aside / schema.ENTRY_CLIENT_IDS, client_ids)
        beyond = np.zeros(profiles.shape[1], np.int64)
        # Not through a memory map: where the disk is full, the system ends the process.
        with (aside / schema.ENTRY_EMBEDDINGS).open("wb") as file:
            write_header(file, np.dtype(np.float16), profiles.shape)
            for start in range(0, len(profiles), _ROWS):
                rows = profiles[start : start + _ROWS]
                beyond += (np.abs(rows) > _LARGEST).sum(axis=0)
                append_array(file, np.clip(rows, -_LARGEST, _LARGEST).astype(np.float16))
        if lineage is not None:
            files = {file.name: fingerprint(file) for file in entry_files(aside)}
            manifest = {"format": _FORMAT, "files": files, "lineage": dict(lineage)}
            (aside / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
    if beyond.any():
        logger.warning(
            "%s: %d values in %d columns are beyond float16 and were held at ±65,504; give their block a scaler",
            folder, beyond.sum(), (beyond > 0).sum(),
        )  # fmt: skip


def as_held(profiles: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Profiles as an entry holds them: rounded to float16, and held at its largest.

    Args:
        profiles: float32 [clients, columns], finite.

    Returns:
        float32 [clients, columns].
    """
    return np.clip(profiles, -_LARGEST, _LARGEST).astype(np.float16).astype(np.float32)


def read_entry(folder: Path) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float16]]:
    """Client ids and profiles of an entry.

    Raises:
        UserError: a line for each file that cannot be read.
    """
    return read_whole(folder, lambda: _read_entry(folder))


def _read_entry(folder: Path) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float16]]:
    arrays: dict[str, npt.NDArray[np.generic]] = {}
    faults = []
    for name in (schema.ENTRY_CLIENT_IDS, schema.ENTRY_EMBEDDINGS):
        try:
            arrays[name] = read_npy(folder / name)
        except FileNotFoundError:
            faults.append(f"{folder / name}: file missing; an entry is a folder with both .npy files")
        except (ValueError, OSError) as error:
            faults.append(f"{folder / name}: not a readable .npy file ({error}); write it again with np.save")
    if faults:
        raise UserError(faults)
    return arrays[schema.ENTRY_CLIENT_IDS], arrays[schema.ENTRY_EMBEDDINGS]  # type: ignore[return-value]


def read_manifest(folder: Path) -> tuple[dict[str, Any], list[str]]:
    """The lineage of an entry, and the names of its files that are no longer what was written.

    Raises:
        UserError: it has no manifest, or one that cannot be read.
    """
    file = folder / MANIFEST
    try:
        manifest = json.loads(file.read_text())
        if manifest["format"] != _FORMAT:
            raise UserError(f"{file}: format {manifest['format']}, not {_FORMAT}; merge again")
        written: dict[str, str] = manifest["files"]
        lineage: dict[str, Any] = manifest["lineage"]
        changed = [path.name for path in entry_files(folder) if fingerprint(path) != written[path.name]]
    except FileNotFoundError as error:
        raise UserError(f"{error.filename}: file missing; an entry that scripts/merge.py wrote has it") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{file}: not a readable manifest ({type(error).__name__}: {error}); merge again") from error
    return lineage, changed


def violations(folder: Path, relevant: npt.NDArray[np.int64], local: bool) -> list[str]:
    """Every rule of the entry format that the entry breaks, a line each.

    Args:
        folder: the entry.
        relevant: the relevant clients.
        local: an entry for local validation: it may leave out relevant clients.
    """
    try:
        client_ids, profiles = read_entry(folder)
    except UserError as error:
        return error.messages
    return [
        *_id_violations(folder / schema.ENTRY_CLIENT_IDS, client_ids, relevant, local),
        *_profile_violations(folder / schema.ENTRY_EMBEDDINGS, profiles, client_ids),
    ]


def _id_violations(
    file: Path, client_ids: npt.NDArray[np.generic], relevant: npt.NDArray[np.int64], local: bool
) -> Iterator[str]:
    if client_ids.ndim != 1:
        yield f"{file}: {client_ids.ndim} dimensions; must be one"
    if client_ids.dtype != np.int64:
        yield f"{file}: dtype {client_ids.dtype}; must be int64"
    values, counts = np.unique(client_ids, return_counts=True)
    if (counts > 1).any():
        yield f"{file}: {(counts > 1).sum():,} clients occur more than once (the first: {values[counts > 1][0]})"
    if len(unknown_clients := np.setdiff1d(values, relevant)):
        yield f"{file}: {len(unknown_clients):,} clients are not relevant ones (the first: {unknown_clients[0]})"
    if not local and len(absent := np.setdiff1d(relevant, values)):
        yield f"{file}: {len(absent):,} relevant clients are absent (the first: {absent[0]})"
    if local and client_ids.size == 0:
        yield f"{file}: no clients"


def _profile_violations(
    file: Path, profiles: npt.NDArray[np.generic], client_ids: npt.NDArray[np.generic]
) -> Iterator[str]:
    if profiles.ndim != 2:
        yield f"{file}: {profiles.ndim} dimensions; must be two"
    elif profiles.shape[1] > schema.MAX_COLUMNS:
        yield f"{file}: {profiles.shape[1]:,} columns; at most {schema.MAX_COLUMNS:,}"
    elif profiles.shape[1] == 0:
        yield f"{file}: no columns"
    if profiles.dtype != np.float16:
        yield f"{file}: dtype {profiles.dtype}; must be float16"
    if profiles.ndim and client_ids.ndim and len(profiles) != len(client_ids):
        yield f"{file}: {len(profiles):,} rows for {len(client_ids):,} client ids; must be one per client"
    if np.issubdtype(profiles.dtype, np.floating):
        if nans := int(np.isnan(profiles).sum()):
            yield f"{file}: {nans:,} values are NaN"
        if infinities := int(np.isinf(profiles).sum()):
            yield f"{file}: {infinities:,} values are infinite"
