"""What a lineage holds beside settings, seed and fingerprint, so that the same can be made again and compared."""

import importlib.metadata
import os
import platform
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import ubp
from ubp.blocks.fitted import settled
from ubp.data.history import ChallengeData
from ubp.io.files import digest_of_files
from ubp.io.machine import cores, has_gpu, processor

HISTORY, VERSIONS, MACHINE, CODE, RECIPE = "history", "versions", "machine", "code", "recipe"  # keys of a lineage
READ: Final = "read"  # likewise: the lineages of the fitted blocks that were read
THREADS: Final = ("OMP_NUM_THREADS", "POLARS_MAX_THREADS")  # of the environment: how many threads sum up numbers
_PACKAGE: Final = "universal-behavioral-profiles"
_FLOORS: Final = ("io", "data", "sequences", "blocks", "training", "cli")  # of the library: what makes blocks


def circumstances(history: ChallengeData, recipe: str = "") -> dict[str, Any]:
    """Which history was asked for, by which recipe and code, with which versions, on which machine.

    Args:
        history: what was learned from.
        recipe: ``module:class`` that fitted a block; empty for a merge.
    """
    return {
        HISTORY: {
            "submit": history.submit,
            "as_of": history.day and history.day.isoformat(sep=" "),
            "unknown_sku": history.unknown_sku,
        },
        **({RECIPE: recipe} if recipe else {}),
        CODE: code(recipe.partition(":")[0].partition(".")[0]),
        VERSIONS: versions(),
        MACHINE: machine(),
    }


def read_from(lineages: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What a lineage says of the fits that were read: under ``read`` each one's own lineage, by name.

    Args:
        lineages: of the fits, by name.
    """
    return {READ: {name: essential(lineage) for name, lineage in lineages.items()}} if lineages else {}


def essential(lineage: Mapping[str, Any]) -> dict[str, Any]:
    """A lineage without what follows from the rest: the report, and what the columns are called."""
    return {key: value for key, value in settled(lineage).items() if key != "columns"}


def machine() -> dict[str, Any]:
    """The processor, its cores, how many threads the environment allows, and whether there was a GPU."""
    threads = {name: os.environ.get(name) for name in THREADS}
    return {"processor": processor(), "cores": cores(), **threads, "gpu": has_gpu()}


def code(package: str = "") -> str:
    """Tells one state of the project's code from another: the library's, as far as it makes blocks, and a package's.

    Args:
        package: of a model, beside the library; empty for none.
    """
    library = Path(ubp.__file__).parent
    folders = [library / floor for floor in _FLOORS] + ([library.parent / package] if package else [])
    files = sorted(file for folder in folders for file in folder.glob("*.py"))
    return digest_of_files(files, library.parent)


def versions() -> dict[str, str]:
    """Of Python and of the project's direct dependencies: what else could change a vector."""
    requirements = importlib.metadata.requires(_PACKAGE) or []
    names = [re.split(r"[^\w.-]", line, maxsplit=1)[0] for line in requirements if "extra ==" not in line]
    return {"python": platform.python_version()} | {name: _version(name) for name in names}


def _version(package: str) -> str:
    """Its version, or that it is not there (a run must not fail at its end for that)."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
