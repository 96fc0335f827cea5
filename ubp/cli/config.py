"""Configs in: one tree of YAML, unknown keys and wrong types refused with a line that names the known ones."""

import dataclasses
import difflib
import itertools
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final, TypeVar, cast

from hydra import compose, initialize_config_dir
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.errors import HydraException, MissingConfigException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.version import VersionBase
from omegaconf import (
    BooleanNode,
    DictConfig,
    FloatNode,
    IntegerNode,
    ListConfig,
    OmegaConf,
    StringNode,
    ValidationError,
    ValueNode,
)
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException
from yaml import YAMLError

from ubp.blocks.registry import Entry
from ubp.cli.object_store import require_folder
from ubp.data.history import ChallengeData
from ubp.data.paths import CONFIGS, DataPaths
from ubp.io.errors import UserError, require

Settings = TypeVar("Settings")
Value = TypeVar("Value", bool, int, float, str)

_WORDS: Final = {bool: "True or False", int: "a whole number", float: "a number", str: "one text"}

LOCAL, RAY = "local", "ray"  # engines: where a command does its work


class _OneTree(SearchPathPlugin):
    """Lets a config of a package's folder stand on ``configs/base.yaml``."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        search_path.append("ubp", f"file://{CONFIGS}")


Plugins.instance().register(_OneTree)


def presets() -> list[str]:
    """The known presets: ``full``, what configs say by themselves, and those that some config has an overlay for.

    An overlay is ``FOLDER/preset/CONFIG/PRESET.yaml`` below ``configs/``: what changes, and nothing else.
    """
    return sorted({"full", *(path.stem for path in CONFIGS.glob("**/preset/*/*.yaml"))})


# So each is known to every command, and an unknown one refused, also where a config has no overlay of that name.
for _name in presets():
    ConfigStore.instance().store(_name, {}, group="preset", package="_global_")


def _require_name(config: DictConfig) -> None:
    """Refuse a name that files cannot be called by; some commands take a path for one, and look for themselves.

    Raises:
        UserError: it is no text.
    """
    if "name" in config and not OmegaConf.is_missing(config, "name") and config.name is not None:
        require(isinstance(config.name, str) and config.name != "", "name", config.name, "text: name='17'")


@dataclass(frozen=True)
class Common:
    """What every command's config has (``configs/base.yaml``)."""

    data_path: str
    submit: bool
    overwrite: bool
    seed: int
    cuda_visible_devices: str | None
    engine: str
    unknown_sku: str
    as_of: str | None

    def __post_init__(self) -> None:
        """Refuse an address in a folder's place, an unknown engine, and what numpy and torch take for no seed.

        Raises:
            UserError: the data path is no folder, the engine is unknown, or the seed is none.
        """
        require_folder(self.data_path)
        require(self.engine in (LOCAL, RAY), "engine", self.engine, f"{LOCAL} or {RAY}")
        require(0 <= self.seed < 2**32, "seed", self.seed, "a whole number from 0 to 4294967295")

    @classmethod
    def of(cls, config: DictConfig) -> "Common":
        """The common part of a command's config.

        Raises:
            UserError: a value has a wrong type.
        """
        _require_name(config)
        devices = config.cuda_visible_devices
        if isinstance(devices, ListConfig):  # cuda_visible_devices=[0,1]
            config = config.copy()
            config.cuda_visible_devices = ",".join(map(str, devices))
        if config.submit is None:  # the command finds out which fit to take; its history is all events
            config = config.copy()
            config.submit = True
        return parse(cls, config, _fields(cls))

    @property
    def paths(self) -> DataPaths:
        return DataPaths(Path(self.data_path))

    @property
    def moment(self) -> datetime | None:
        """``as_of`` as a time.

        Raises:
            UserError: it is none, or has a time zone.
        """
        try:
            as_of = datetime.fromisoformat(self.as_of) if self.as_of else None
        except ValueError as error:
            raise UserError(f"as_of={self.as_of}: not a day or time; write it as as_of=2022-10-01") from error
        if as_of is not None and as_of.tzinfo is not None:
            raise UserError(f"as_of={self.as_of}: has a time zone; write it in the log's local time, without one")
        return as_of

    def whole_log(self) -> ChallengeData:
        """All events, for what cuts the log by its own end.

        Raises:
            UserError: ``as_of`` is set, or see `data`.
        """
        if self.as_of:
            raise UserError(f"as_of={self.as_of}: this command takes the whole log; leave as_of out")
        return self.data(submit=True)

    def data(self, submit: bool | None = None) -> ChallengeData:
        """The history that the config names, checked.

        Args:
            submit: instead of the config's.

        Raises:
            UserError: see `ubp.data.history.ChallengeData`.
        """
        return ChallengeData(self.paths, self.submit if submit is None else submit, self.unknown_sku, self.moment)  # type: ignore[arg-type]


def parse(
    settings: type[Settings], config: DictConfig, only: Sequence[str] | None = None, at: str | None = None
) -> Settings:
    """A part of the config as a dataclass, each value of the field's type.

    Args:
        settings: the dataclass.
        config: its keys are the dataclass' fields.
        only: look at these keys alone.
        at: the part of the config that is meant; None for all of it.

    Raises:
        UserError: an unknown key, a missing one or a value of a wrong type.
    """
    known, prefix = _fields(settings), f"{at}." if at else ""
    part = _part(config, at) if at else resolved(config)
    values = {key: value for key, value in part.items() if only is None or key in only}
    _require_readable(values, prefix)
    if unknown := [key for key in values if key not in known]:
        raise UserError(
            f"{prefix}{unknown[0]}: unknown setting{did_you_mean(unknown[0], known)}; known: {', '.join(known)}"
        )
    try:
        merged = OmegaConf.merge(OmegaConf.structured(settings), values)
        return cast("Settings", OmegaConf.to_object(merged))
    except OmegaConfBaseException as error:
        fields = f"; known: {', '.join(_fields(error.object_type))}" if isinstance(error, ConfigKeyError) else ""
        raise UserError(f"{prefix}{error.full_key}: {str(error.msg or error).splitlines()[0]}{fields}") from error


def _part(config: DictConfig, at: str) -> dict[str, Any]:
    """The settings below a key.

    Raises:
        UserError: there are none.
    """
    part = resolved(config).get(at)
    if part is None:
        raise UserError(f"{at}: nothing is chosen, but this needs it; name one with {at}=NAME")
    if not isinstance(part, dict):
        raise UserError(f"{at}={part}: must hold settings, by their names: {at}.NAME=VALUE")
    return part


_KINDS: Final[dict[type, Callable[[Any], ValueNode]]] = {
    bool: BooleanNode,
    float: FloatNode,
    int: IntegerNode,
    str: StringNode,
}


def value_at(config: DictConfig, key: str, kind: type[Value]) -> Value:
    """One setting, of a type: text may be written as a number.

    Raises:
        UserError: it is of another type, or not there.
    """
    value = None if OmegaConf.is_missing(config, key) else config.get(key)
    refused = UserError(f"{key}={value}: must be {_WORDS[kind]}")
    if value is None or isinstance(value, (DictConfig, ListConfig)):
        raise refused
    try:
        return cast("Value", _KINDS[kind](value)._value())
    except ValidationError as error:
        raise refused from error


def optional_at(config: DictConfig, key: str, kind: type[Value]) -> Value | None:
    """The same, None where it is null or empty text."""
    return None if config.get(key) in (None, "") else value_at(config, key, kind)


def texts_at(config: DictConfig, key: str) -> list[str]:
    """A list of texts.

    Raises:
        UserError: it is none.
    """
    values = config.get(key)
    if not isinstance(values, ListConfig) or any(isinstance(each, (DictConfig, ListConfig)) for each in values):
        raise UserError(f"{key}={values}: must be a list: {key}=[A,B]")
    return [str(each) for each in values]


def _require_readable(values: Mapping[str, Any], prefix: str = "") -> None:
    """Refuse whole numbers that no library holds.

    Raises:
        UserError: there is one.
    """
    for key, value in values.items():
        several = value if isinstance(value, list) else [value]
        if any(isinstance(each, int) and abs(each) >= 2**63 for each in several):
            raise UserError(f"{prefix}{key}={value}: too large a number")
        if isinstance(value, dict):
            _require_readable(value, f"{prefix}{key}.")


def _fields(settings: Any) -> list[str]:  # noqa: ANN401 (a dataclass of any kind)
    return [field.name for field in dataclasses.fields(settings)]


def resolved(config: DictConfig) -> dict[str, Any]:
    """The config with every interpolation filled in, as plain Python."""
    return cast("dict[str, Any]", OmegaConf.to_container(config, resolve=True))


def one_or_several(config: DictConfig, key: str, what: str) -> list[str]:
    """The names or paths that a setting holds, one or a list.

    Args:
        config: of the command.
        key: the setting.
        what: is to be named there.

    Raises:
        UserError: there are none.
    """
    asked = None if OmegaConf.is_missing(config, key) else config[key]
    if not asked:
        raise UserError(f"{key}: name {what}: {key}=NAME_OR_PATH")
    return list(map(str, asked)) if isinstance(asked, ListConfig) else [str(asked)]


def composed(folder: Path, config_name: str, overrides: Sequence[str] = ()) -> DictConfig:
    """A config as its command would see it.

    Args:
        folder: of the command's configs, below ``configs/``.
        config_name: the config.
        overrides: as on the command line.
    """
    with hydra_put_back(), initialize_config_dir(str(folder), version_base=None):
        return compose(config_name, list(overrides))


def config_of(entry: Entry, overrides: Sequence[str] = ()) -> DictConfig:
    """The config of an entry of the registry.

    Args:
        entry: its own overrides come first.
        overrides: as on the command line.
    """
    return composed(CONFIGS / entry.folder, entry.config_name, [*entry.settings, *overrides])


@contextmanager
def hydra_put_back() -> Iterator[None]:
    """Let Hydra be used inside, whoever used it in this process before, and leave its global state as it was."""
    hydra, version, config = GlobalHydra.instance(), VersionBase.instance(), HydraConfig.instance()
    before = hydra.hydra, version.version_base, config.cfg
    hydra.clear()
    try:
        yield
    finally:
        # `initialize_config_dir` may have put another instance into the place of the first.
        hydra = GlobalHydra.instance()
        hydra.hydra, version.version_base, config.cfg = before


def config_names(folder: Path) -> list[str]:
    """The configs of a folder."""
    return sorted(path.stem for path in folder.glob("*.yaml"))


@contextmanager
def hydra_errors() -> Iterator[None]:
    """What Hydra says of a command line by Python's own errors, as one of its own.

    Raises:
        HydraException: instead of them.
    """
    try:
        yield
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{mark.name}: line {mark.line + 1}: " if mark else ""
        raise HydraException(f"{place}no YAML ({getattr(error, 'problem', None) or error})") from error
    except RecursionError as error:
        if not _raised_in(error, "hydra.", "omegaconf.", "yaml.", "antlr4."):
            raise
        raise HydraException("a config or an override is nested too deeply to be read") from error
    except (ValueError, TypeError) as error:
        if not _raised_in(error, "hydra."):
            raise
        raise HydraException(str(error)) from error


def _raised_in(error: Exception, *packages: str) -> bool:
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return bool(frame.f_globals.get("__name__", "").startswith(packages))


def explain(error: Exception, folder: Path, config_name: str) -> str | None:
    """One line for what Hydra refused on the command line; None where it is nothing known.

    Args:
        error: what Hydra raised.
        folder: of the command's configs.
        config_name: the config that was asked for.
    """
    names = config_names(folder)
    if config_name not in names:
        return (
            f"--config-name={config_name}: no such config{did_you_mean(config_name, names)}; known: {', '.join(names)}"
        )
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options:
        group, _, option = error.missing_cfg_file.rpartition("/")
        known = sorted(error.options)
        return f"{group}={option}: no such {group}{did_you_mean(option, known)}; known: {', '.join(known)}"
    lines = str(error).splitlines() or [type(error).__name__]
    if not lines[0].startswith("Could not override"):
        # What follows the search path's heading is a list of folders that says nothing to a user.
        lines = list(itertools.takewhile(lambda line: not line.startswith("Config search path"), lines))
        return " ".join(line.strip() for line in lines if line.strip())
    asked = lines[0].split("'")[1]
    key = getattr(error.__cause__, "full_key", None) or asked  # where a mapping was given, the key in it
    parent, _, leaf = key.rpartition(".")
    known = _known_keys(folder, config_name, parent)
    # Mappings such as a merge's blocks take keys that their YAML does not have.
    adds = f"+{key}=..." if key == asked else f"++{asked}={{...}}"
    new = f" ({adds} adds one)" if parent else ""
    return f"{key}: unknown setting{did_you_mean(leaf, known)}; known: {', '.join(known)}{new}"


def did_you_mean(name: str, known: list[str]) -> str:
    """What follows an unknown name, where one of those known is close to it; else nothing."""
    close = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def _known_keys(folder: Path, config_name: str, parent: str) -> list[str]:
    """The keys at the nearest level of ``parent`` that exists."""
    level: Any = composed(folder, config_name)
    for part in parent.split(".") if parent else []:
        if not isinstance(level, DictConfig) or part not in level:
            break
        level = OmegaConf.select(level, part)
    return sorted(map(str, level)) if isinstance(level, DictConfig) else []
