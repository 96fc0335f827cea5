"""Which settings suit an ensemble on this log: the judge's procedure, replayed on the log's own past.

    python scripts/replay.py ensemble=combined submit=False preset=demo     the history before the train window
    python scripts/replay.py ensemble=combined                              all events: before an entry is made
    python scripts/replay.py ensemble=combined probe=quick "probe.seeds=[1278,1,2,3]" make=False

The history is split as the log was: its last four weeks become two windows. On what lies before them the ensemble's
blocks are fitted anew, in ``cache/replays`` below the data path; nothing at or after the history's end is read. There
the ensemble is merged with one setting changed at a time (``constants``, ``weights``, ``blocks``), trained on the
fortnight after and scored on the next, by several seeds. A setting is taken where it beats the ensemble as it is by
more than ``errors`` standard errors and more than ``least``; those that are, are tried together once more.

It ends with the commands that make the ensemble so, and runs them (``make=True``).
``ablations/ENSEMBLE/replay_PROBE.csv`` has a row for each setting. What is done is not done again: a killed run goes on
where it stopped.
"""

import json
import logging
import shlex
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from omegaconf import DictConfig, OmegaConf

from ubp.blocks import registry
from ubp.blocks.merge import MergeSettings, find_blocks, without_missing
from ubp.cli.command import command
from ubp.cli.config import Common, config_of, parse, value_at
from ubp.cli.ensembles import NamedMerge, merge_named
from ubp.cli.output import closing_line, say, show
from ubp.cli.stages import run_stage
from ubp.data.cut import cut_log
from ubp.data.history import ChallengeData
from ubp.data.paths import DataPaths
from ubp.evaluation.ablation import Ablation, Change, Ensemble
from ubp.evaluation.choice import LEAST_SEEDS, Choice, ChoiceRules, Settings, Trial, choose, scored
from ubp.evaluation.probes import Probe, probe_title
from ubp.evaluation.tables import changes_table
from ubp.io.errors import UserError, name_some, require
from ubp.io.files import locked
from ubp.io.rows import write_rows
from ubp.io.stage import AlreadyDone

logger = logging.getLogger(__name__)


@dataclass  # not frozen: OmegaConf cannot fill the mappings of a frozen one
class Tried:
    """What is tried, each by itself.

    Attributes:
        constants: values of the constant column, of an ensemble that is conditioned.
        weights: by which a block's own weight is multiplied.
        blocks: by name, settings of the block's own command and their values.
        block_overrides: by name, what the block's own command is told beside: as when the ensemble's blocks were made;
            None: nothing.
    """

    constants: list[float]
    weights: list[float]
    blocks: dict[str, dict[str, list[Any]]] = field(default_factory=dict)
    block_overrides: dict[str, list[str]] | None = None

    def __post_init__(self) -> None:
        """Refuse settings that make no sense.

        Raises:
            UserError: a factor that is not above 0, or a block that there is not.
        """
        for name in (*self.blocks, *(self.block_overrides or {})):
            registry.block(name)
        require(all(weight > 0 for weight in self.weights), "weights", self.weights, "above 0")


@dataclass(frozen=True)
class Replay:
    """An ensemble on a history's own past.

    Attributes:
        name: of the ensemble's config.
        merge: overrides of it.
        settings: the merge, without blocks that the past has not the events for.
        paths: the data path of the past.
        tried: what is tried.
        words: that all blocks' commands are told.
    """

    name: str
    merge: tuple[str, ...]
    settings: MergeSettings
    paths: DataPaths
    tried: Tried
    words: tuple[str, ...]

    def of_merge(self) -> list[Settings]:
        """The merge's own settings to try."""
        found = list[Settings]()
        if self.settings.condition is not None:
            own = self.settings.condition.constant
            found += [(f"condition.constant={value:g}",) for value in self.tried.constants if value != own]
            if len(self.settings.blocks) > 1:
                for name, block in self.settings.blocks.items():
                    weights = (block.weight * factor for factor in self.tried.weights if factor != 1)
                    found += [(f"blocks.{name}.weight={weight:.3g}",) for weight in weights]
        return found

    @cached_property
    def of_blocks(self) -> dict[Settings, tuple[str, str]]:
        """Settings of blocks' own commands to try: for each the block, and the override of its command."""
        found = dict[Settings, tuple[str, str]]()
        for name in (name for name in self.settings.blocks if name in self.tried.blocks):
            own = config_of(registry.block(name), self.of_command(name))
            for setting, values in self.tried.blocks[name].items():
                for value in (value for value in values if value != OmegaConf.select(own, setting)):
                    override = f"{setting}={value}"
                    found[f"{name}: {override}",] = name, override
        return found

    def told(self, name: str) -> list[str]:
        """What a block's command is told of its own."""
        return (self.tried.block_overrides or {}).get(name, [])

    def of_command(self, name: str) -> list[str]:
        """What a block's command is told on the past."""
        return [*self.words, *self.told(name)]

    def overrides(self, settings: Settings) -> list[str]:
        """Of the merge's config, for some settings; where a block was made otherwise it lies under another name."""
        found = list[str]()
        for setting in settings:
            if (setting,) in self.of_blocks:
                name, override = self.of_blocks[setting,]
                path = self.paths.block(other_name(name, override), submit=False)
                found.append(f"++blocks.{name}.path={json.dumps(str(path))}")
            else:
                found.append(f"++{setting}")
        return found

    def ensemble(self, settings: Settings, data: ChallengeData) -> Ensemble:
        """The ensemble with some settings; its blocks are there."""
        merge = merge_named(self.name, [*self.merge, *self.overrides(settings)])
        merge.blocks = {name: block for name, block in merge.blocks.items() if name in self.settings.blocks}
        paths = find_blocks(merge, self.paths.embeddings(submit=False))
        return Ensemble(" ".join([self.name, *settings]), merge, paths, data.clients)


def other_name(block: str, override: str) -> str:
    """What a block is called that was made with an override."""
    return f"{block}_{override.replace('=', '_').replace('/', '_')}"


# --- the past and its blocks --------------------------------------------------------------------------


def past_of(data: ChallengeData) -> DataPaths:
    """The history as a log of its own, written where it is not there yet."""
    past = data.paths.replay(data.fingerprint)
    with suppress(AlreadyDone):
        cut_log(data, past, overwrite=False)
        logger.info("the history before %s is a log of its own: %s", data.as_of, past.root)
    return past


def make_blocks(replay: Replay) -> None:
    """Split the past, and make the ensemble's blocks on it.

    Raises:
        UserError: a command failed.
    """
    root = str(replay.paths.root)
    run_stage(["python", "scripts/split.py"], root)
    own = {name: words for name, words in (replay.tried.block_overrides or {}).items() if words}
    only = [f"only=[{','.join(replay.settings.blocks)}]", *([f"overrides={json.dumps(own)}"] if own else [])]
    run_stage(["sh", "get_all_embeddings.sh", *only, *replay.words], root)


def make_others(replay: Replay) -> None:
    """Make blocks with the settings that are tried.

    Raises:
        UserError: a command failed.
    """
    for name, override in replay.of_blocks.values():
        words = [*replay.of_command(name), override, f"name={other_name(name, override)}"]
        run_stage(["python", *registry.block(name).line.split(), *words], str(replay.paths.root))


def require_made(settings: MergeSettings, common: Common) -> None:
    """Refuse an ensemble that could not be made in the end.

    Raises:
        UserError: a line for each of its blocks that is not there although the log has the events for it.
    """
    folder = common.paths.embeddings(common.submit)

    def lacking() -> Mapping[str, str]:
        return registry.can_be_made(common.paths, common.submit, common.moment)[1]

    try:
        find_blocks(without_missing(settings, folder, lacking, skip=False)[0], folder)
    except UserError as error:
        raise UserError([*error.messages, "or choose without making the ensemble: make=False"]) from error


def require_made_here(settings: MergeSettings) -> None:
    """Refuse blocks that cannot be made anew.

    Raises:
        UserError: no command here makes one.
    """
    known = {entry.name for entry in registry.blocks()}
    if foreign := [name for name, block in settings.blocks.items() if block.path or name not in known]:
        raise UserError(
            f"blocks: {name_some(foreign)}: no command here makes it, so it cannot be made of the log's past; leave it "
            f"out: 'overrides=[\"~blocks.{foreign[0]}\"]'"
        )


# --- what came of it ----------------------------------------------------------------------------------


def title_of(name: str, choice: Choice, probe: Probe) -> str:
    """What stands above the table: what it is compared with, and what a change is worth."""
    return (
        f"{name} on the log's past, {probe_title(probe)}: change against {name} as it is ({choice.as_is.total:.4f}); "
        f"its standard error over the seeds is {choice.error:.4f}"
    )


def commands_of(replay: Replay, taken: Settings, submit: bool) -> list[list[str]]:
    """The command lines that make the ensemble with the settings taken, blocks first."""
    blocks, merge = dict[str, list[str]](), list[str]()
    for setting in taken:
        if (setting,) in replay.of_blocks:
            name, override = replay.of_blocks[setting,]
            blocks.setdefault(name, []).append(override)
        else:
            merge.append(f"++{setting}")
    words = [f"submit={submit}", *(word for word in replay.words if not word.startswith("submit="))]
    lines = []
    for name, own in blocks.items():
        lines.append(["python", *registry.block(name).line.split(), *words, *replay.told(name), *own])
    own_words = [word for word in replay.merge if word not in words]
    lines.append(
        ["python", "scripts/merge.py", f"--config-name={replay.name}", "missing=skip", *words, *own_words, *merge]
    )
    return lines


@command("scripts", "replay")
def main(config: DictConfig) -> list[Change]:
    common, probe = Common.of(config), parse(Probe, config, at="probe")
    tried = parse(Tried, config, ["constants", "weights", "blocks", "block_overrides"])
    rules = parse(ChoiceRules, config, ["errors", "least"])
    make, device = value_at(config, "make", bool), value_at(config, "device", str)
    require(len(probe.seeds) >= LEAST_SEEDS, "probe.seeds", list(probe.seeds), "two at least, to tell gain from luck")
    merge = NamedMerge.of(config, common)
    require_made_here(merge.settings)
    if make:
        require_made(merge.settings, common)
    data = common.data()
    words = ("submit=False", *merge.shared)
    replay = Replay(merge.name, merge.overrides, merge.settings, past_of(data), tried, words)
    out = common.paths.ablations(replay.name) / f"replay_{probe.name}.csv"
    with locked(replay.paths.root / ".replay.lock", f"a replay of {data.folder}"):
        choice = replayed(replay, probe, rules, device, common.overwrite)
    changes = [trial.change(choice.as_is) for trial in choice.trials]
    write_rows(out, changes, Change)
    show(changes_table(changes, title_of(replay.name, choice, probe), "settings"))
    taken, lines = choice.taken, commands_of(replay, choice.taken.settings, common.submit)
    as_it_is = f"{replay.name} as it is: nothing beats it by {rules.errors:g} errors and {rules.least:g}"
    say(f"taken: {', '.join(taken.settings) or as_it_is}")
    for line in lines:
        if make:
            run_stage(line, common.data_path)
        else:
            say(f"$ {shlex.join(line)}")
    closing_line(f"{replay.name} replayed", out, len(data.clients), taken.rows[0].columns)
    return changes


def replayed(replay: Replay, probe: Probe, rules: ChoiceRules, device: str, overwrite: bool) -> Choice:
    """Make the blocks on the past, try the settings, choose."""
    make_blocks(replay)
    data = ChallengeData(replay.paths, submit=False)
    folder = replay.paths.embeddings(submit=False)

    def lacking() -> Mapping[str, str]:
        return registry.can_be_made(replay.paths, submit=False)[1]

    there, left_out = without_missing(replay.settings, folder, lacking, skip=True)
    for line in left_out.values():
        logger.warning("%s", line)
    replay = replace(replay, settings=there)
    make_others(replay)
    table = replay.paths.root / f"scores_{probe.name}.csv"
    if overwrite:
        table.unlink(missing_ok=True)

    def score(settings: Settings) -> Trial:
        return scored(Ablation(replay.ensemble(settings, data), probe, data, device, table), settings)

    return choose([*replay.of_merge(), *replay.of_blocks], score, rules)


if __name__ == "__main__":
    main()
