"""Command lines that are wrong: each setting of each command with values that make no sense, drawn by a seed."""

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from omegaconf import OmegaConf

from tests import tiny
from tests.reliability.mutations import drawn
from ubp.blocks import registry
from ubp.cli.config import composed

_EVALUATE: Final = (
    *("scripts/evaluate.py", "embeddings=[basics]", "probe=quick", "probe.width=16", "probe.hidden=32"),
    *("probe.epochs=1", "probe.seeds=[0]", "references=False"),
)
_OTHERS: Final = {
    "split": ("scripts/split.py",),
    "make_targets": ("scripts/make_targets.py",),
    "cut": ("scripts/cut.py", "out=OUT", "days=20"),
    "merge": ("scripts/merge.py", "--config-name=basics", "submit=False"),
    "validate": ("scripts/validate.py", "entry=ENTRY"),
    "evaluate": _EVALUATE,
    "encode": ("scripts/encode.py", "name=basics"),
    "neighbours": ("scripts/neighbours.py", "name=basics", "clients=all"),
    "explain": ("scripts/explain.py", "name=stat_features", "client=1"),
    "recommend": ("scripts/recommend.py",),
    "report": ("scripts/report.py",),
    "import_log": ("scripts/import_log.py", "schema=bank", "source=."),
    "make_example_log": ("scripts/make_example_log.py", "log=bank", "clients=20", "days=40"),
    "make_synthetic_data": ("scripts/make_synthetic_data.py", "scale=1e-5"),
    "ablate": ("scripts/ablate.py", "ensemble=basics"),
    "nightly": ("scripts/nightly.py", "day=2022-11-09", "name=basics"),
}


def commands() -> dict[str, list[str]]:
    """Each command's name, and a command line that runs it on a tiny log in a second or two."""
    blocks = {entry.name: [*entry.line.split(), *tiny.overrides(entry), "submit=False"] for entry in registry.entries()}
    return {**blocks, **{name: list(words) for name, words in _OTHERS.items()}}


@dataclass(frozen=True)
class Setting:
    """A setting of a command.

    Attributes:
        key: with the settings that it is part of.
        value: that the command line gives it.
    """

    key: str
    value: Any


def settings_of(words: Sequence[str]) -> list[Setting]:
    """All settings of a command, those that are mappings too; without the paths of the data and of Hydra."""
    module = importlib.import_module(words[0].removesuffix(".py").replace("/", "."))
    name = next((word.partition("=")[2] for word in words if word.startswith("--config-name=")), None)
    overrides = [word for word in words[1:] if not word.startswith("--")]
    config = composed(module.main.folder, name or module.main.config_name, overrides)
    found = list[Setting]()

    def walk(values: dict[str, Any], above: str) -> None:
        for key, value in values.items():
            at = f"{above}{key}"
            if at != "data_path" and " " not in at:
                found.append(Setting(at, value))
            if isinstance(value, dict):
                walk(value, f"{at}.")

    walk(OmegaConf.to_container(config), "")
    return found


# What takes long because much was asked for, and what would take the machine.
_LONG: Final = (
    "epochs",
    "iterations",
    "count",
    "steps",
    "seeds",
    "scale",
    "patience",
    "days",
    "chunk",
    "repeats",
    "networks",
)
_MACHINE: Final = ("threads", "workers", "jobs", "devices", "clients", "shard", "processes")
_HUGE: Final = (2**31, 2**63, 10**30)


def wrong_value(rng: np.random.Generator, setting: Setting) -> tuple[str, str]:
    """A kind of fault, and a word of a command line."""
    key, leaf = setting.key, setting.key.rpartition(".")[2]
    huge = (10**30,) if any(part in key for part in _MACHINE + _LONG) else _HUGE
    kinds: dict[str, Sequence[str]] = {
        "unknown keys": (f"{key}x=1", f"{key}.x=1", f"x.{key}=1", f"{leaf}_=null"),
        "values of a wrong type": (
            f"{key}=abc", f"{key}=[1,2]", f"{key}={{a: 1}}", f"{key}=true", f"{key}=0.5", f"{key}=''", f"{key}=[]",
            f"{key}={{}}", f"{key}=[abc]", f"{key}=1",
        ),
        "nulls": (f"{key}=null",),
        "NaN and infinities": (f"{key}=nan", f"{key}=inf", f"{key}=-inf", f"{key}=1e400"),
        "negative numbers": (f"{key}=-1", f"{key}=-0.5", f"{key}=-{2**63}", f"{key}=0"),
        "huge numbers": tuple(f"{key}={value}" for value in huge),
        "unknown names": (
            f"{key}=no_such_thing", f"{key}='../x'", f"{key}='a b'", f"{key}='é\\n'", f"{key}='/dev/null'",
        ),
        "no grammar": (
            f"{key}=[1,", f"{key}={{", f"={key}", key, f"{key}=${{x}}", f"{key}=${{oc.env:NOT_THERE}}", f"~{key}=1",
            f"+{key}=1", f"{key}==1", f"'{key}'=1", f".{key}=1", f"{key}='", f"{key}=1,2",
        ),
        "left out": (f"~{key}",),
    }  # fmt: skip
    kind = drawn(rng, list(kinds))
    return kind, drawn(rng, kinds[kind])
