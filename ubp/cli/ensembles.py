"""Merges by the names of their configs, as their command would see them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Self

from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from ubp.blocks.merge import MERGE_KEYS, MergeSettings
from ubp.cli.config import Common, composed, config_names, did_you_mean, explain, parse, texts_at, value_at
from ubp.data.paths import CONFIGS
from ubp.io.errors import UserError

MERGES: Final = CONFIGS / "merge"


@dataclass(frozen=True)
class NamedMerge:
    """A merge that a command is given by the name of its config.

    Attributes:
        name: of the config.
        shared: preset and seed, as overrides of the merge's command and of its blocks'.
        overrides: of the config, as on the merge's command line; the shared ones are the first.
        settings: what it is then.
    """

    name: str
    shared: tuple[str, ...]
    overrides: tuple[str, ...]
    settings: MergeSettings

    @classmethod
    def of(cls, config: DictConfig, common: Common) -> Self:
        """The merge of a command's ``ensemble``, ``merge_preset``, ``seed`` and ``overrides``.

        Raises:
            UserError: none is named, there is no such merge, or an override that it does not know.
        """
        if OmegaConf.is_missing(config, "ensemble"):
            raise UserError(f"ensemble: name a merge: ensemble=NAME; known: {', '.join(config_names(MERGES))}")
        name = value_at(config, "ensemble", str)
        shared = (f"preset={value_at(config, 'merge_preset', str)}", f"seed={common.seed}")
        overrides = (*shared, *texts_at(config, "overrides"))
        return cls(name, shared, overrides, merge_named(name, overrides))


def merge_named(name: str, overrides: Sequence[str]) -> MergeSettings:
    """A merge.

    Args:
        name: of its config.
        overrides: of the config, as on the merge's command line.

    Raises:
        UserError: there is no such merge, or an override that it does not know.
    """
    known = config_names(MERGES)
    if name not in known:
        raise UserError(f"ensemble={name}: no such merge{did_you_mean(name, known)}; known: {', '.join(known)}")
    try:
        return parse(MergeSettings, composed(MERGES, name, overrides), MERGE_KEYS)
    except HydraException as error:
        raise UserError(f"overrides: {explain(error, MERGES, name) or error}") from error
