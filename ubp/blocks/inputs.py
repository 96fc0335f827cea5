"""The fitted blocks that another block reads, by their names in the registry."""

from collections.abc import Iterable

from ubp.blocks.fitted import FittedBlock, is_fitted, lineage_of, load
from ubp.blocks.registry import block as registered
from ubp.data.history import ChallengeData
from ubp.io.errors import UserError


def fitted_inputs(history: ChallengeData, names: Iterable[str]) -> dict[str, FittedBlock]:
    """The fitted blocks, from where their commands keep them.

    Args:
        history: that they were fitted on.
        names: in the registry, as a config has them below ``inputs``.

    Raises:
        UserError: a line for each that is not there, or was fitted on another history; with the command to give.
    """
    faults, found = [], {}
    day = f' as_of="{history.day}"' if history.day else ""
    for name in names:
        folder = history.paths.model(name, history.submit)
        command = f"make it with: python {registered(name).line} submit={history.submit}{day}"
        if not is_fitted(folder):
            faults.append(f"inputs.{name}: no fitted block {folder}; {command}")
        elif lineage_of(folder).get("fingerprint") != history.fingerprint:
            faults.append(f"inputs.{name}: {folder} was fitted on another history, or as of another day; {command}")
        else:
            found[name] = load(folder)
    if faults:
        raise UserError(faults)
    return found
