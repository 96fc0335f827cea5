"""Merges by the names of their configs, as their command would see them."""

import difflib
from collections.abc import Sequence
from typing import Final

from hydra.errors import HydraException

from ubp.blocks.merge import MERGE_KEYS, MergeSettings
from ubp.cli.config import composed, config_names, explain, parse
from ubp.data.paths import CONFIGS
from ubp.io.errors import UserError

MERGES: Final = CONFIGS / "merge"


def merge_named(name: str | None, overrides: Sequence[str]) -> MergeSettings:
    """A merge.

    Args:
        name: of its config; None for one that was not given.
        overrides: of the config, as on the merge's command line.

    Raises:
        UserError: there is no such merge, or an override that it does not know.
    """
    known = config_names(MERGES)
    if name is None:
        raise UserError(f"ensemble: name a merge: ensemble=NAME; known: {', '.join(known)}")
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        meant = f" (did you mean {close[0]}?)" if close else ""
        raise UserError(f"ensemble={name}: no such merge{meant}; known: {', '.join(known)}")
    try:
        return parse(MergeSettings, composed(MERGES, name, overrides), MERGE_KEYS)
    except HydraException as error:
        raise UserError(f"overrides: {explain(error, MERGES, name) or error}") from error
