"""What was made, made again from its lineage alone, in a folder aside: what to run, and what keeps it from being equal.

A lineage holds settings and seed, the history that was asked for, the threads, and the lineages of what was read. So a
plan needs no config of today, but for settings that never change what comes out.
"""

import os
import shlex
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from omegaconf import OmegaConf

from ubp.blocks.embeddings import read_lineage
from ubp.blocks.entry import MANIFEST, read_manifest
from ubp.blocks.merge import content_of
from ubp.blocks.registry import Entry, entries
from ubp.cli.circumstances import CODE, HISTORY, MACHINE, READ, RECIPE, THREADS, VERSIONS, code, essential
from ubp.cli.config import config_of, resolved
from ubp.cli.jobs import Job
from ubp.cli.run import NOT_OF_TRAINER, targets_of
from ubp.data.history import ChallengeData
from ubp.data.paths import REPOSITORY, DataPaths
from ubp.io.errors import UserError, name_some
from ubp.io.files import atomic_write

Lineage = Mapping[str, Any]

BLOCK, MERGE, ENCODED = "block", "merge", "encoded"
_FIT, _BLOCKS, _CONTENT, _LINEAGE = "fit", "blocks", "content", "lineage"  # keys of lineages
_NEEDED: Final = (HISTORY, VERSIONS, MACHINE, CODE)


@dataclass(frozen=True)
class Making:
    """Something that a command makes.

    Attributes:
        name: of the block or merge.
        kind: ``block``, ``merge`` or ``encoded``.
        lineage: where it comes from.
        after: names of the makings that it reads.
    """

    name: str
    kind: str
    lineage: Lineage
    after: tuple[str, ...] = ()

    @property
    def submit(self) -> bool:
        return bool(self.lineage[HISTORY]["submit"])

    def history(self, paths: DataPaths) -> ChallengeData:
        """The history that was asked for, as it is now below a data path.

        Raises:
            UserError: its files have faults.
        """
        asked = self.lineage[HISTORY]
        as_of = asked["as_of"] and datetime.fromisoformat(asked["as_of"])
        return ChallengeData(paths, asked["submit"], asked["unknown_sku"], as_of)

    def path(self, paths: DataPaths) -> Path:
        """Where its command puts it below a data path."""
        if self.kind == ENCODED:
            return paths.encoded(self.name) / "again.parquet"
        return paths.embeddings(self.submit) / self.name if self.kind == MERGE else paths.block(self.name, self.submit)


# --- from a file to what has to be made ---------------------------------------------------------------


def makings_of(path: Path) -> tuple[list[Making], list[str]]:
    """All that has to be made again for what lies there, in the order in which it can be made, itself at last.

    Args:
        path: an entry, a block's parquet, or what ``scripts/encode.py`` wrote.

    Returns:
        The makings, and lines on what is found wrong with the files already.

    Raises:
        UserError: there is nothing, its lineage cannot be read or does not hold what is needed.
    """
    if not path.exists():
        raise UserError(f"entry={path}: neither an entry nor a parquet lies there")
    lineage, changed = read_manifest(path) if path.is_dir() else (read_lineage(path), list[str]())
    kind = ENCODED if _FIT in lineage else MERGE if _BLOCKS in lineage else BLOCK
    if kind == BLOCK and not lineage.get(RECIPE):
        raise UserError(f"{path}: its lineage names no recipe, so nobody knows what made it; make it again")
    found = dict[str, Making]()
    _collect(found, kind, essential(lineage))
    return list(found.values()), [f"{path / name}: changed since it was written" for name in changed]


def _collect(found: dict[str, Making], kind: str, lineage: Lineage) -> None:
    """Add what a lineage speaks of, that which is read first.

    Raises:
        UserError: a lineage lacks something, or two speak of different makings by one name.
    """
    name = str(lineage["name"])
    if missing := [key for key in _NEEDED if key not in lineage]:
        raise UserError(
            f"{name}: its lineage has no {name_some(missing)}: an earlier version of the project made it; make it again"
        )
    if kind == ENCODED:
        of_fit = lineage[_FIT]
        _collect(found, MERGE if _BLOCKS in of_fit else BLOCK, essential(of_fit))
        found[f"{name} as of {lineage['as_of']}"] = Making(name, ENCODED, lineage, (str(of_fit["name"]),))
        return
    read: Iterable[Lineage] = lineage.get(READ, {}).values()
    if kind == MERGE:
        read = [block[_LINEAGE] for block in lineage[_BLOCKS].values() if block[_LINEAGE].get(RECIPE)]
    for other in read:
        _collect(found, BLOCK, other)
    making = Making(name, kind, lineage, tuple(str(other["name"]) for other in read))
    if name in found and found[name] != making:
        raise UserError(
            f"{name}: two different fits of it were read, of which only one can be made again; make {name} and what "
            "reads it again, then the merge"
        )
    found[name] = making


# --- what has to hold, and what cannot be promised ----------------------------------------------------


def require_sources(makings: Iterable[Making], paths: DataPaths) -> None:
    """Make sure that events, targets and foreign blocks are what everything was made from.

    Raises:
        UserError: a line for each that is not.
    """
    histories = dict[str, ChallengeData]()
    faults = list[str]()
    for making in makings:
        asked = str(making.lineage[HISTORY])
        if asked not in histories:
            histories[asked] = making.history(paths)
        faults += _other_sources(making, histories[asked])
    if faults:
        raise UserError(list(dict.fromkeys(faults)))


def _other_sources(making: Making, history: ChallengeData) -> Iterator[str]:
    paths, lineage = history.paths, making.lineage
    if history.fingerprint != lineage["fingerprint"]:
        yield (
            f"{history.folder}: not the history that {making.name} was made from: other events, properties or relevant "
            "clients; name the data path of the earlier ones with data_path=FOLDER"
        )
    now = targets_of(paths) if lineage.get("targets") else {}
    for column, digest in lineage.get("targets", {}).items():
        if now[column] != digest:
            yield f"{paths.target}: not the list of {column} targets that {making.name} was made from"
    for name, block, path in _foreign(making, paths):
        if not path.exists() or content_of(path) != block[_CONTENT]:
            yield f"{path}: not what {making.name} was made from, and block {name} has no lineage to remake it by"


def _foreign(making: Making, paths: DataPaths) -> Iterator[tuple[str, Lineage, Path]]:
    """Blocks of a merge that no command of ours made: name, what the merge noted, where it lies."""
    for name, block in making.lineage.get(_BLOCKS, {}).items():
        if not block[_LINEAGE].get(RECIPE):
            folder, named = paths.embeddings(making.submit), making.lineage["config"][_BLOCKS][name]["path"]
            beside = folder / name if (folder / name).is_dir() else folder / f"{name}.parquet"
            yield name, block, Path(named) if named else beside


def doubts(makings: Iterable[Making], here: Mapping[str, Any], versions: Mapping[str, str]) -> list[str]:
    """What may keep bits from being the same: a line for each, with the names of the makings that it is about.

    Args:
        makings: what was made.
        here: this machine, as `ubp.cli.circumstances.machine` says it.
        versions: those that are installed.
    """
    about = dict[str, list[str]]()
    for making in makings:
        for line in _doubts(making, here, versions):
            about.setdefault(line, []).append(making.name)
    return [f"{name_some(list(dict.fromkeys(names)), 5)}: {line}" for line, names in about.items()]


def _doubts(making: Making, here: Mapping[str, Any], versions: Mapping[str, str]) -> Iterator[str]:
    lineage, then = making.lineage, making.lineage[MACHINE]
    noted = lineage[VERSIONS]
    if other := [
        f"{name} {noted.get(name, 'none')} (here {versions.get(name, 'none')})"
        for name in {**noted, **versions}
        if noted.get(name) != versions.get(name)
    ]:
        yield f"made with other versions: {name_some(other, 6)}"
    if lineage[CODE] != code(_package(lineage.get(RECIPE, ""))):
        yield "made by another state of the project's code"
    if then["gpu"]:
        yield "made where there was a GPU, whose sums have no fixed order"
    if then["processor"] != here["processor"]:
        yield f"made on another processor ({then['processor']}, here {here['processor']})"
    yield from _of_foreign(making)


def _of_foreign(making: Making) -> Iterator[str]:
    for name, block in making.lineage.get(_BLOCKS, {}).items():
        if not block[_LINEAGE].get(RECIPE):
            yield f"block {name} has no lineage: it is taken as it lies there"


def _package(recipe: str) -> str:
    return recipe.partition(":")[0].partition(".")[0]


# --- what is run --------------------------------------------------------------------------------------


def threads_then(then: Mapping[str, Any], here: Mapping[str, Any]) -> dict[str, str]:
    """The environment in which as many threads work as did then.

    Args:
        then: the machine of the lineage.
        here: this one.
    """
    environment = {name: value for name, value in os.environ.items() if name not in THREADS}
    for name in THREADS:
        if then[name] is not None:
            environment[name] = then[name]
        elif then["cores"] != here["cores"]:  # where nothing was said it was one a core
            environment[name] = str(then["cores"])
    if not then["gpu"]:
        environment["CUDA_VISIBLE_DEVICES"] = ""
    return environment


@dataclass(frozen=True)
class Aside:
    """The folder in which all is made again: a data path of its own.

    Attributes:
        paths: of that folder.
        source: the data path whose raw files are read.
    """

    paths: DataPaths
    source: DataPaths

    def prepare(self) -> None:
        """Link the raw files.

        Raises:
            UserError: the folder has raw files of its own: it is somebody's data path.
        """
        raw = self.paths.raw
        if raw.exists() and not (raw.is_symlink() and raw.resolve() == self.source.raw.resolve()):
            raise UserError(
                f"into={self.paths.root}: has a raw/ of its own; name a folder that is used for nothing else"
            )
        self.paths.root.mkdir(parents=True, exist_ok=True)
        if not raw.is_symlink():
            raw.symlink_to(self.source.raw.resolve(), target_is_directory=True)

    def jobs(self, makings: Iterable[Making], original: Path, here: Mapping[str, Any], overwrite: bool) -> list[Job]:
        """A command for each making, and for the texts that some read; their configs are written.

        Args:
            makings: in order.
            original: what is made again at last.
            here: this machine.
            overwrite: make again what was made here before.

        Raises:
            UserError: no command of the registry has a making's recipe.
        """
        jobs = list[Job]()
        for making in makings:
            environment = threads_then(making.lineage[MACHINE], here)
            for name, script, config, after in self._commands(making, original):
                words = [sys.executable, str(REPOSITORY / script), *config, f"overwrite={overwrite}"]
                title = shlex.join(["python", script, *config])
                jobs.append(Job(name, words, title, 1.0, after, environment=environment))
        return jobs

    def _commands(self, making: Making, original: Path) -> Iterator[tuple[str, str, list[str], tuple[str, ...]]]:
        """Name, script, arguments, and what must be done before."""
        if making.kind == ENCODED:
            yield f"{making.name}-encoded", "scripts/encode.py", self._encoding(making, original), making.after
            return
        if making.kind == MERGE:
            yield making.name, "scripts/merge.py", self._written(making.name, self._of_merge(making)), making.after
            return
        entry = _entry(making)
        stage = _texts(entry) if "text" in making.lineage["config"] else None
        after = making.after
        if stage is not None:
            name = f"texts of {making.name}"
            yield name, stage.command, self._written(f"{making.name}-texts", self._of_texts(making, stage)), ()
            after = (*after, name)
        yield making.name, entry.command, self._written(making.name, self._of_block(making, entry)), after

    def _common(self, making: Making) -> dict[str, Any]:
        asked = making.lineage[HISTORY]
        return {
            "data_path": str(self.paths.root.resolve()),
            "submit": asked["submit"],
            "as_of": asked["as_of"],
            "unknown_sku": asked["unknown_sku"],
            "overwrite": False,
            "cuda_visible_devices": None,
        }

    def _of_block(self, making: Making, entry: Entry) -> dict[str, Any]:
        """The lineage's settings; from today's config only what never changes what comes out."""
        lineage, today = making.lineage, resolved(config_of(entry))
        settings = {**today, **lineage["config"], "name": making.name, "seed": lineage["seed"], **self._common(making)}
        if "trainer" in settings:
            kept = {key: today["trainer"][key] for key in NOT_OF_TRAINER if key in today["trainer"]}
            settings["trainer"] = settings["trainer"] | kept
        if "logger" in settings:
            settings["logger"] = {}
        settings.pop("text", None)
        return settings

    def _of_texts(self, making: Making, stage: Entry) -> dict[str, Any]:
        config = making.lineage["config"]
        name = Path(config["data_files"]).stem
        return {**resolved(config_of(stage)), "text": config["text"], "name": name, **self._common(making)}

    def _of_merge(self, making: Making) -> dict[str, Any]:
        lineage = making.lineage
        blocks = {name: dict(block) for name, block in lineage["config"][_BLOCKS].items()}
        for name, _, path in _foreign(making, self.source):
            blocks[name]["path"] = str(path.resolve())
        for name, block in lineage[_BLOCKS].items():
            made = block[_LINEAGE].get("name") if block[_LINEAGE].get(RECIPE) else None
            if made is not None:
                renamed = made != name or blocks[name]["path"]
                blocks[name]["path"] = str(self.paths.block(made, making.submit).resolve()) if renamed else None
        settings = {**lineage["config"], _BLOCKS: blocks, "missing": "error", "name": making.name}
        return {**settings, "seed": lineage["seed"], **self._common(making)}

    def _encoding(self, making: Making, original: Path) -> list[str]:
        lineage, common = making.lineage, self._common(making)
        clients = [f"clients={original.resolve()}"] if lineage["clients"] else []
        as_of = [f"as_of='{common['as_of']}'"] if common["as_of"] else []
        submit = lineage[_FIT][HISTORY]["submit"]
        return [
            *(f"name={making.name}", f"submit={submit}", f"unknown_sku={common['unknown_sku']}", *as_of, *clients),
            *(f"data_path={common['data_path']}", f"out={making.path(self.paths).resolve()}"),
        ]

    def _written(self, name: str, settings: dict[str, Any]) -> list[str]:
        """Write a config; the arguments that name it."""
        folder = self.paths.root.resolve() / "configs"
        with atomic_write(folder / f"{name}.yaml") as aside:
            text = OmegaConf.to_yaml(OmegaConf.create(settings))
            aside.write_text(f"defaults:\n  - base\n  - _self_\n\n{text}")
        return [f"--config-path={folder}", f"--config-name={name}"]


def _entry(making: Making) -> Entry:
    """The command of a block: that of its own name, or another by its recipe."""
    same = [entry for entry in entries() if entry.recipe and entry.recipe == making.lineage[RECIPE]]
    if not same:
        raise UserError(f"{making.name}: no command of configs/blocks.yaml has the recipe {making.lineage[RECIPE]}")
    return next((entry for entry in same if entry.name == making.name), same[0])


def _texts(entry: Entry) -> Entry:
    """The stage that writes the texts which a block reads."""
    by_name = {other.name: other for other in entries()}
    return next(by_name[name] for name in entry.after if not by_name[name].is_block)


def changed_settings(making: Making, made: Path) -> list[str]:
    """The settings by which something was made again otherwise than its lineage says: the code knows others by now.

    Args:
        making: with the lineage of then.
        made: what was made again.
    """
    now = read_manifest(made)[0] if (made / MANIFEST).exists() else read_lineage(made)
    then = making.lineage
    if making.kind != BLOCK:
        return []
    before, after = (dict(_leaves(lineage.get("config", {}))) for lineage in (then, now))
    wanted = {**before, "seed": then["seed"]}, {**after, "seed": now["seed"]}
    return sorted(key for key in {**wanted[0], **wanted[1]} if wanted[0].get(key) != wanted[1].get(key))


def _leaves(values: Mapping[str, Any], parent: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        path = f"{parent}{key}"
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{path}.")
        else:
            yield path, value
