"""What ``--help`` prints, within a screen: what a command makes, its settings with their meaning, examples.

All of it is written elsewhere: the docstring of the command's module says what it makes and shows command lines, the
comments in the YAML say what a setting means.
"""

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import OmegaConf

from ubp.cli.config import config_names, hydra_put_back, presets
from ubp.data.paths import CONFIGS

SCREEN = 50  # lines
_WIDTH = 120  # columns of a line
_MEANING = 40  # column where the meaning of a setting begins
_VALUE = 72  # characters of a setting and its value; what is longer is cut

_BASE = CONFIGS / "base.yaml"
_FOOT = "--cfg job prints the whole config, --info defaults its files; --hydra-help says what else Hydra can do."

Notes = dict[str, str]  # by the path of a key, what its comment says


def help_of(docstring: str, folder: Path, config_name: str | None, overrides: Sequence[str] = ()) -> str:
    """The text for ``--help``.

    Args:
        docstring: of the command's module; its first paragraph and its first indented one are taken.
        folder: of the command's configs.
        config_name: whose settings are shown; None: the configs that there are.
        overrides: the settings' values are those with these overrides.

    Raises:
        HydraException: no such config, or an override that it does not know.
    """
    paragraphs = docstring.strip().split("\n\n")
    examples = [paragraph for paragraph in paragraphs if paragraph.startswith("    ")][:1]
    base, notes = _load(_BASE), notes_of(_BASE.read_text())
    if config_name is None:
        configs = [_line(f"--config-name={name}", _head(folder / f"{name}.yaml")) for name in config_names(folder)]
        middle, preset = "\n".join(["The configs:", *configs]), "full"
    else:
        found = _Found.of(folder, config_name, overrides)
        base = {key: found.values[key] for key in base}
        room = SCREEN - len(base) - sum(len(part.splitlines()) + 1 for part in (paragraphs[0], *examples)) - 7
        middle = "\n".join([f"Settings of {config_name}:", *(found.lines(room) or ["  none but those of all"])])
        preset, notes = found.groups["preset"], notes | found.notes
    common = [
        _line(f"preset={preset}", f"the sizes: {' | '.join(presets())}"),
        *_settings(base, notes),
    ]
    return "\n\n".join([paragraphs[0], *examples, middle, "\n".join(["Every command has:", *common]), _FOOT])


@dataclass(frozen=True)
class _Found:
    """A config, and what its files say of it.

    Attributes:
        values: of all settings.
        groups: each group of which it has taken a file, and which.
        options: of those, what a user may choose from; without presets.
        notes: on the settings.
    """

    values: dict[str, Any]
    groups: dict[str, str]
    options: dict[str, list[str]]
    notes: Notes

    @classmethod
    def of(cls, folder: Path, config_name: str, overrides: Sequence[str]) -> "_Found":
        with hydra_put_back(), initialize_config_dir(str(folder), version_base=None):
            loader = GlobalHydra.instance().config_loader()
            defaults = loader.compute_defaults_list(config_name, list(overrides), RunMode.RUN).defaults
            config = compose(config_name, list(overrides))
            chosen = {each.override_key: each.config_path.rpartition("/")[2] for each in defaults if each.override_key}
            options = {group: sorted(loader.get_group_options(group)) for group in chosen if group in config}
        notes = Notes()
        for each in defaults:
            paths = (folder / f"{each.config_path}.yaml", CONFIGS / f"{each.config_path}.yaml")
            for file in [path for path in paths if path.is_file() and path != _BASE][:1]:
                notes |= notes_of(file.read_text(), each.package or "")
        return cls(cast("dict[str, Any]", OmegaConf.to_container(config)), chosen, options, notes)

    def lines(self, room: int) -> list[str]:
        """A line for each choice and each setting that not every command has."""
        skipped = {*_load(_BASE), *(group for group in self.options if _only_targets(self.values[group]))}
        values = {key: value for key, value in self.values.items() if key not in skipped}
        choices = [_line(f"{group}={self.groups[group]}", " | ".join(names)) for group, names in self.options.items()]
        lines = list[str]()
        for depth in range(5, 0, -1):
            lines = [*choices, *_settings(values, self.notes, depth)]
            if len(lines) <= room:
                break
        return lines


def _only_targets(value: Any) -> bool:  # noqa: ANN401 (whatever a config holds)
    """Whether all that is there are classes to be made with their arguments, as of a logger."""
    return isinstance(value, dict) and all(isinstance(each, dict) and "_target_" in each for each in value.values())


def notes_of(text: str, package: str = "") -> Notes:
    """The comments of a YAML text by the path of the key that they stand beside, or directly above.

    Args:
        text: a mapping.
        package: what the paths begin with.
    """
    lines, root = text.splitlines(), yaml.compose(text)
    return dict(_notes(root, lines, package)) if isinstance(root, yaml.MappingNode) else {}


def _notes(mapping: yaml.MappingNode, lines: list[str], parent: str) -> Iterator[tuple[str, str]]:
    for key, value in mapping.value:
        if key.value in ("defaults", "hydra") and not parent:
            continue
        path = f"{parent}.{key.value}" if parent else str(key.value)
        nested = isinstance(value, yaml.CollectionNode) and not value.flow_style
        # The comment of nested keys is on the line of their parent, that of a value behind the value.
        mark = key.end_mark if nested else value.end_mark
        beside = lines[mark.line][mark.column :].removeprefix(":").strip() if mark.line < len(lines) else ""
        if found := [*_above(lines, key.start_mark.line), *([beside] if beside.startswith("#") else [])]:
            yield path, " ".join(line.strip("# ") for line in found)
        if isinstance(value, yaml.MappingNode) and nested:
            yield from _notes(value, lines, path)


def _above(lines: list[str], line: int) -> list[str]:
    """The lines of nothing but a comment that end above a line."""
    first = line
    while first and lines[first - 1].strip().startswith("#"):
        first -= 1
    return lines[first:line] if first else []  # what a file begins with is about all of it


def _load(file: Path) -> dict[str, Any]:
    """A config's own keys, interpolations as they are written."""
    values = cast("dict[str, Any]", OmegaConf.to_container(OmegaConf.load(file)))
    return {key: value for key, value in values.items() if key not in ("defaults", "hydra")}


def _head(file: Path) -> str:
    """The first sentence of the comment that a file begins with."""
    lines = file.read_text().splitlines()
    comment = " ".join(line.strip("# ") for line in lines[: next(n for n, x in enumerate(lines) if x[:1] != "#")])
    return comment.partition(". ")[0].removesuffix(".")


def _settings(values: Mapping[str, Any], notes: Notes, depth: int = 9, parent: str = "") -> list[str]:
    """Lines for settings: ``key=value`` and its meaning, those without a comment several on a line.

    Args:
        values: of the settings.
        notes: their comments.
        depth: settings within so many mappings have lines of their own; deeper ones share their mapping's.
        parent: path of the mapping that ``values`` is.
    """
    plain, lines = list[str](), list[str]()
    for key, value in values.items():
        path = f"{parent}.{key}" if parent else str(key)
        note = notes.get(path, "")
        if isinstance(value, dict) and value and depth > 1 and "_target_" not in value:
            lines += [_line(f"{path}:", note)] if note else []
            lines += _settings(value, notes, depth - 1, path)
        elif note or isinstance(value, dict):
            lines.append(_line(f"{path}={_flow(value)}", note))
        else:
            plain.append(_cut(f"{path}={_flow(value)}", _VALUE))
    filled = textwrap.wrap(" ".join(word.replace(" ", "\0") for word in plain), _WIDTH - 2, break_on_hyphens=False)
    return [*(f"  {line}".replace("\0", " ") for line in filled), *lines]


def _line(setting: str, meaning: str) -> str:
    return _cut(f"  {_cut(setting, _VALUE):<{_MEANING - 4}}  {meaning}".rstrip(), _WIDTH)


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"


def _flow(value: Any) -> str:  # noqa: ANN401 (whatever a config holds)
    """A value as one would write it on the command line."""
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {_flow(each)}' for key, each in value.items())}}}"
    if isinstance(value, list):
        return f"[{','.join(map(_flow, value))}]"
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return str(value)
