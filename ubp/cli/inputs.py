"""The fitted blocks that a block reads, from where their commands keep them."""

import shlex
from collections.abc import Iterable

from ubp.blocks.fitted import FittedBlock, is_fitted, lineage_of, load
from ubp.blocks.registry import block
from ubp.data.history import ChallengeData
from ubp.io.errors import UserError


def fitted_inputs(history: ChallengeData, names: Iterable[str]) -> dict[str, FittedBlock]:
    """The fitted blocks by their names in the registry, in the order of these.

    Raises:
        UserError: a line for each that is not there, or was fitted on another history; with the command to give.
    """
    faults, found = [], {}
    for name in names:
        folder = history.paths.model(name, history.submit)
        command = f"make it with: {_command(name, history)}"
        if not is_fitted(folder):
            faults.append(f"inputs.{name}: no fitted block {folder}; {command}")
        elif lineage_of(folder).get("fingerprint") != history.fingerprint:
            faults.append(f"inputs.{name}: {folder} was fitted on another history, or as of another day; {command}")
        else:
            found[name] = load(folder)
    if faults:
        raise UserError(faults)
    return found


def _command(name: str, history: ChallengeData) -> str:
    day = [f"as_of={history.day}"] if history.day else []
    return shlex.join(["python", *block(name).line.split(), f"submit={history.submit}", *day])
