"""Which blocks, merge and preset suit a log, and what they cost: looks at the log, makes nothing.

    python scripts/recommend.py                            the log below CHALLENGE_DATA_PATH
    python scripts/recommend.py data_path=/some/log hours=2    another log, and two hours for all of it

Counts clients, events, event types, skus and categories, takes the first merge of configs/recommend.yaml that suits
them, and prints why, what each block costs in hours and memory, and the commands to copy. Costs are worked out from
what was measured on two cores without a GPU; that file says where.
"""

import logging
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final, Self, cast

from omegaconf import DictConfig, OmegaConf
from rich.table import Table

from ubp.blocks.registry import can_be_made, needs_of, with_what_they_read
from ubp.cli.command import command
from ubp.cli.config import Common, composed, value_at
from ubp.cli.output import closing_line, say, show
from ubp.data.log_figures import LogFigures
from ubp.data.paths import CONFIGS
from ubp.data.schema import EventType
from ubp.io.errors import UserError, require
from ubp.io.machine import cores, free_memory, has_gpu

logger = logging.getLogger(__name__)

TABLE: Final = CONFIGS / "recommend.yaml"
MERGE, JUDGE, QUICK = "merge", "judge", "quick"  # what follows the blocks, among the costs
FULL, ANY = "full", "any"  # presets; the second: whatever the preset
WINDOWS: Final = 27  # days that the split keeps for its two windows
PATIENCE: Final = 1.0  # hours of the judge, above which the quick one is named
_HOUR: Final = 3600.0


# --- the measured table ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cost:
    """What a command costs by the size of the log, as measured: see configs/recommend.yaml.

    Attributes:
        start: seconds, whatever the log.
        million: seconds more for a million events that it reads.
        thousand: seconds more for a thousand clients.
        newest: events that it reads of a client, at most; None: all.
        gb: of memory, whatever the log.
        gb_million: more for a million events that it reads.
        gb_clients: more for a million clients.
        source: ``size``, measured at the challenge's size, or ``demo``, worked out from the demo's log.
    """

    start: float = 0.0
    million: float = 0.0
    thousand: float = 0.0
    newest: int | None = None
    gb: float = 0.0
    gb_million: float = 0.0
    gb_clients: float = 0.0
    source: str = "demo"

    def of(self, log: LogFigures, event_types: Sequence[EventType]) -> "Need":
        """For a log.

        Args:
            log: its size.
            event_types: that the command reads.
        """
        events, clients = log.events(event_types, self.newest) / 1e6, log.clients / 1e3
        hours = (self.start + self.million * events + self.thousand * clients) / _HOUR
        return Need(hours, self.gb + self.gb_million * events + self.gb_clients * clients / 1e3)


@dataclass(frozen=True)
class Need:
    """Hours, and GB (10^9 bytes) of memory."""

    hours: float
    gb: float


@dataclass(frozen=True)
class When:
    """What a log must have for a merge.

    Attributes:
        clients: that get a profile, at least.
        days: before the train window, at least.
        has: event types of which there are some.
        lacks: event types of which there are none.
    """

    clients: int = 0
    days: int = 0
    has: tuple[EventType, ...] = ()
    lacks: tuple[EventType, ...] = ()

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """From the table."""
        kinds = {name: tuple(map(EventType, values[name])) for name in ("has", "lacks") if name in values}
        return cls(**{**values, **kinds})

    def refusal(self, log: LogFigures) -> str | None:
        """Why a log is not suited; None where it is."""
        if log.clients < self.clients:
            return f"fewer than {self.clients:,} clients"
        if log.days - WINDOWS < self.days:
            return f"fewer than {self.days} days before the two windows"
        if absent := [kind for kind in self.has if kind not in log.present]:
            return f"no events of {absent[0]}"
        if there := [kind for kind in self.lacks if kind in log.present]:
            return f"the log has events of {there[0]}"
        return None


@dataclass(frozen=True)
class Rule:
    """A merge, the preset of its blocks, and when it is advised.

    Attributes:
        merge: name of its config.
        preset: of its blocks.
        when: what the log must have.
        why: one line.
    """

    merge: str
    preset: str
    when: When
    why: str


@dataclass(frozen=True)
class Measured:
    """The table: rules in their order, what each preset means, costs by entry and preset."""

    rules: tuple[Rule, ...]
    presets: dict[str, str]
    costs: dict[str, dict[str, Cost]]

    @classmethod
    @cache
    def load(cls) -> "Measured":
        """Read configs/recommend.yaml.

        Raises:
            UserError: a key that is not known, or one that is missing.
        """
        values = cast("dict[str, Any]", OmegaConf.to_container(OmegaConf.load(TABLE)))
        try:
            rules = tuple(Rule(**{**rule, "when": When.of(rule["when"])}) for rule in values["merges"])
            costs = {
                name: {
                    preset: Cost(**{_field(key): value for key, value in cost.items()}) for preset, cost in each.items()
                }
                for name, each in values["costs"].items()
            }
            return cls(rules, values["presets"], costs)
        except (TypeError, ValueError, KeyError) as error:
            raise UserError(f"{TABLE}: {error}") from error

    def cost(self, name: str, preset: str = ANY) -> Cost | None:
        """Of an entry by a preset; None: not measured."""
        known = self.costs.get(name, {})
        return known.get(preset) or known.get(ANY)


def _field(key: str) -> str:
    """``from`` is a word of Python."""
    return "source" if key == "from" else key


# --- what is advised ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Step:
    """One command of what is advised.

    Attributes:
        name: of the entry, or what it does.
        line: the command, without the common overrides.
        need: what it costs; None where that is not measured.
        source: where the cost comes from.
        why: one line.
    """

    name: str
    line: str
    need: Need | None
    source: str
    why: str


@dataclass(frozen=True)
class Advice:
    """A merge and all that it takes.

    Attributes:
        rule: that was taken.
        steps: of the blocks, in the order in which they are made; then merge and evaluation.
        left_out: a line for each block that the log has not the events for.
        passed_over: a line for each merge that comes before it in the table.
    """

    rule: Rule
    steps: list[Step]
    left_out: list[str]
    passed_over: list[str]

    @property
    def hours(self) -> float:
        """Of all steps, as far as they are measured."""
        return sum(step.need.hours for step in self.steps if step.need)

    @property
    def gb(self) -> float:
        """Of the step that needs most memory."""
        return max(step.need.gb for step in self.steps if step.need)

    @property
    def unmeasured(self) -> list[str]:
        """The steps whose cost is not known."""
        return [step.name for step in self.steps if step.need is None]


@cache
def blocks_of(merge: str) -> tuple[str, ...]:
    """The names of a merge's blocks."""
    return tuple(map(str, composed(CONFIGS / "merge", merge).blocks))


def steps_of(rule: Rule, log: LogFigures, left_out: Mapping[str, str], measured: Measured) -> list[Step]:
    """The commands that make a merge of a log and score it."""
    names = blocks_of(rule.merge)
    steps = []
    for entry in with_what_they_read([name for name in names if name not in left_out]):
        cost = measured.cost(entry.name, rule.preset)
        need = cost.of(log, needs_of(entry.name) or tuple(log.counts)) if cost else None
        steps.append(Step(entry.name, entry.line, need, cost.source if cost else "", entry.makes))
    merge, judge, quick = (measured.costs[name][ANY] for name in (MERGE, JUDGE, QUICK))
    steps.append(
        Step(rule.merge, f"scripts/merge.py --config-name={rule.merge}", merge.of(log, ()), merge.source, "the merge")
    )
    by_judge = judge.of(log, ())
    probe, cost = ("", judge) if by_judge.hours <= PATIENCE else (" probe=quick", quick)
    why = "six tasks, by the judge" if not probe else f"by the quick judge: the judge itself takes {hours(by_judge)}"
    line = f"scripts/evaluate.py embeddings={rule.merge}{probe}"
    return [*steps, Step("evaluation", line, cost.of(log, ()), cost.source, why)]


def advise(log: LogFigures, left_out: Mapping[str, str], measured: Measured, most: float) -> Advice:
    """The first merge that suits a log and takes no longer than one has; without such a one, the last that suits.

    Args:
        log: its size.
        left_out: by the names of the blocks that cannot be made, a line why.
        measured: the table.
        most: hours.

    Raises:
        UserError: the log can make no block of any merge.
    """
    passed, advice = list[str](), None
    for rule in measured.rules:
        title = f"{rule.merge} (preset={rule.preset})"
        names = blocks_of(rule.merge)
        lacking = [left_out[name] for name in names if name in left_out]
        reason = rule.when.refusal(log) or ("all of its blocks are left out" if len(lacking) == len(names) else None)
        if reason is None:
            advice = Advice(rule, steps_of(rule, log, left_out, measured), lacking, list(passed))
            if advice.hours <= most:
                return advice
            reason = f"some {advice.hours:,.0f} hours, where you have {most:g} (hours=)"
        passed.append(f"{title}: {reason}")
    if advice is None:
        raise UserError(["the log has the events of no merge's blocks", *passed])
    return advice


# --- what is shown --------------------------------------------------------------------------------------------------


def hours(need: Need | None) -> str:
    """In the unit that one would say."""
    if need is None:
        return "not measured"
    seconds = need.hours * _HOUR
    if seconds < 90:
        return f"{max(1, seconds):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 2 * _HOUR else f"{need.hours:,.0f} h"


def about(log: LogFigures) -> Table:
    """What was found in a log."""
    table = Table(title="the log", title_justify="left", show_header=False)
    who = "relevant clients with an event" if log.are_relevant else "clients (no file says which are relevant)"
    kinds = ", ".join(f"{log.counts[kind]:,} {kind}" for kind in log.counts if log.counts[kind])
    a_client = log.events() / max(1, log.clients)
    table.add_row(
        "time", f"{log.start:%Y-%m-%d} to {log.end:%Y-%m-%d}: {log.days:,.0f} days, {WINDOWS} of them targets"
    )
    table.add_row("clients", f"{log.clients:,} {who}, {log.buyers:,} with a purchase")
    table.add_row("events", kinds)
    table.add_row("of a client", f"{a_client:,.1f} events in the mean, {log.median_events():,.0f} in the middle")
    met = f"{log.skus:,} skus, {log.categories:,} categories"
    table.add_row("items", f"{met}; a client met {100 * log.density:.2g} % of the categories")
    gpu = "a GPU" if has_gpu() else "no GPU"
    table.add_row("machine", f"{cores()} cores, {free_memory() / 1e9:.0f} GB of free memory, {gpu}")
    return table


def plan(advice: Advice) -> Table:
    """Each step with what it costs and why."""
    title = f"advised: {advice.rule.merge}, preset={advice.rule.preset}"
    table = Table("step", "time", "GB", "what it is", title=title, title_justify="left")
    for step in advice.steps:
        rough = "~" if step.source == "demo" else ""
        gb = f"{step.need.gb:.1f}" if step.need else "–"
        table.add_row(step.name, f"{rough if step.need else ''}{hours(step.need)}", gb, step.why)
    return table


def commands(advice: Advice, common: Common, default_path: str) -> list[str]:
    """What to type, in order; what is done is skipped by the commands themselves."""
    own = ["submit=False", *([] if advice.rule.preset == FULL else [f"preset={advice.rule.preset}"])]
    path = [f"data_path={common.data_path}"] if common.data_path != default_path else []
    path += [f"unknown_sku={common.unknown_sku}"] if common.unknown_sku != "error" else []
    lines = [["scripts/split.py", *path]]
    for step in advice.steps:
        words = step.line.split()
        scoring = words[0] == "scripts/evaluate.py"
        lines.append([*words, *([] if scoring else own), *path])
    return [shlex.join(["python", *words]) for words in lines]


def reasons(advice: Advice, measured: Measured) -> list[str]:
    """A line each for merge, preset, time and memory."""
    rule = advice.rule
    last = max((step for step in advice.steps if step.need), key=lambda step: step.need.gb if step.need else 0)
    total = hours(Need(advice.hours, advice.gb))
    lines = [f"merge: {rule.why}", f"preset: {measured.presets[rule.preset]}"]
    besides = f", and what is not measured: {', '.join(advice.unmeasured)}" if advice.unmeasured else ""
    on_gpu = "; on a GPU less, which is not measured" if has_gpu() else ""
    lines.append(
        f"time: {total} on two cores, one command after the other{besides}{on_gpu}; ~ worked out from a small log"
    )
    enough = "" if advice.gb * 1e9 <= free_memory() else ": MORE THAN IS FREE"
    lines.append(f"memory: {advice.gb:.1f} GB at most, for {last.name}{enough}")
    lines += [f"not {line}" for line in advice.passed_over]
    return lines + advice.left_out


@command("scripts", "recommend")
def main(config: DictConfig) -> Advice:
    common, measured = Common.of(config), Measured.load()
    hours = value_at(config, "hours", float)
    require(hours > 0, "hours", hours, "above 0")
    history = common.whole_log()
    log = LogFigures.of(history)
    _, left_out = can_be_made(common.paths, submit=True)
    advice = advise(log, left_out, measured, float("inf") if has_gpu() else hours)
    show(about(log))
    show(plan(advice))
    for line in reasons(advice, measured):
        say(line)
    say("")
    for line in commands(advice, common, os.environ.get("CHALLENGE_DATA_PATH", "./data")):
        say(line)
    say("and for profiles of all events to use: the same with submit=True, without the first and the last")
    closing_line("recommended", Path(history.folder))
    return advice


if __name__ == "__main__":
    main()
