"""The fitted blocks that a block reads, from where their commands keep them."""

import shlex
from collections.abc import Iterable
from pathlib import Path

from omegaconf import OmegaConf

from ubp.blocks.fitted import FittedBlock, is_fitted, lineage_of, load
from ubp.blocks.registry import block
from ubp.data.history import ChallengeData
from ubp.data.paths import CONFIGS
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
    """The block's command for the same history: which events, and what differs from the defaults."""
    default = OmegaConf.load(CONFIGS / "base.yaml")
    words = [*block(name).line.split(), f"submit={history.submit}"]
    if history.day:
        words.append(f"as_of={history.day}")
    if history.unknown_sku != default.unknown_sku:
        words.append(f"unknown_sku={history.unknown_sku}")
    if history.paths.root != Path(default.data_path):
        words.append(f"data_path={history.paths.root}")
    return shlex.join(["python", *words])
