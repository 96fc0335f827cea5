"""Merges by the names of their configs, as their command would see them."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Self

from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from ubp.blocks.merge import MERGE_KEYS, MergeSettings
from ubp.cli.config import Common, composed, config_names, explain, parse, texts_at, value_at
from ubp.data.paths import CONFIGS
from ubp.io.errors import UserError

MERGES: Final = CONFIGS / "merge"


@dataclass(frozen=True)
class NamedMerge:
    """A merge that a command is given by the name of its config.

    Attributes:
        name: of the config.
        preset: of the merge and its blocks, as an override.
        overrides: of the config, as on the merge's command line; the preset is the first.
        settings: what it is then.
    """

    name: str
    preset: str
    overrides: tuple[str, ...]
    settings: MergeSettings

    @classmethod
    def of(cls, config: DictConfig, common: Common) -> Self:
        """The merge of a command's ``ensemble``, ``merge_preset``, ``seed`` and ``overrides``.

        Raises:
            UserError: none is named, there is no such merge, or an override that it does not know.
        """
        name = None if OmegaConf.is_missing(config, "ensemble") else value_at(config, "ensemble", str)
        preset = f"preset={value_at(config, 'merge_preset', str)}"
        overrides = (preset, f"seed={common.seed}", *texts_at(config, "overrides"))
        return cls(str(name), preset, overrides, merge_named(name, overrides))


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
