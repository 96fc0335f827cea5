"""Make an entry or a block again from its lineage alone, in a folder aside, and compare bit by bit.

    python scripts/reproduce.py entry=data/embeddings_local/past_windows
    python scripts/reproduce.py entry=data/embeddings_local/dcn.parquet into=/some/folder

The lineage in every parquet, and in an entry's ``manifest.json``, says which history, settings, seeds, versions and
threads there were, for all that was read too. The history must still be there; then every block is made by its own
command, each after those that it reads, with the settings of the lineage, not those of ``configs/``. What is done is
skipped when the command is given again. A table says of each block, and of the whole: the same bits, or how many values
differ, and by how much at most; exit code 1 where any does. What may keep bits from being the same (other versions, a
GPU, another processor, several threads of LightFM) is named in a line. It takes as much memory as two of the widest
block, or as its command.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from rich.table import Table

from ubp.blocks.comparison import Comparison, compare
from ubp.blocks.embeddings import EmbeddingTable, read_lineage
from ubp.blocks.entry import read_entry, read_manifest
from ubp.cli.circumstances import HISTORY, essential, machine, versions
from ubp.cli.command import command
from ubp.cli.config import Common
from ubp.cli.jobs import Job, JobFailed, Limits, Processes, run_jobs
from ubp.cli.output import closing_line, say, show
from ubp.cli.reproduction import MERGE, Aside, Making, changed_settings, doubts, makings_of, require_sources
from ubp.data.paths import DataPaths
from ubp.io.errors import UserError, require
from ubp.io.files import locked

logger = logging.getLogger(__name__)


# --- what is asked for --------------------------------------------------------------------------------


def require_nothing_else(config: DictConfig, making: Making) -> None:
    """Refuse settings of the command line that contradict the lineage.

    Raises:
        UserError: ``submit`` or ``as_of`` is another than the lineage's.
    """
    asked = making.lineage[HISTORY]
    for setting in ("submit", "as_of"):
        value = config[setting]
        if value is not None and value != asked[setting]:
            raise UserError(f"{setting}={value}: {making.name} was made with {asked[setting]}; leave it out")


def threads_of_lightfm(makings: Sequence[Making]) -> list[str]:
    """A line where LightFM learned with several threads: they write into the same vectors, in no fixed order."""
    several = [
        making.name
        for making in makings
        if making.lineage.get("recipe", "").startswith("LightFM.") and making.lineage["config"]["model"]["threads"] != 1
    ]
    return [f"{', '.join(several)}: WARP with several threads, whose updates come in no fixed order"] if several else []


# --- making it again ----------------------------------------------------------------------------------


def make_again(jobs: Sequence[Job], limits: Limits, grace: float, logs: Path) -> None:
    """Run the commands, each with a log of its own.

    Raises:
        UserError: one failed; with what it said.
    """
    logs.mkdir(parents=True, exist_ok=True)
    done = 0

    def ended(job: Job, seconds: float) -> None:
        nonlocal done
        done += 1
        say(f"[{done}/{len(jobs)}] {job.title} · {seconds:.0f} s")

    def left_out(job: Job, reason: str) -> None:
        raise UserError(f"{job.name}: {reason}")

    try:
        run_jobs(jobs, limits, Processes({}, logs, grace), lambda _: None, ended, left_out)
    except JobFailed as failed:
        raise UserError([*failed.messages(), f"{failed}; its log: {failed.log}"]) from failed


# --- comparing ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """What came of making something again.

    Attributes:
        name: of it.
        kind: ``block``, ``merge`` or ``encoded``.
        compared: with the first making; None where that is no longer there.
        remark: why it was not compared, or what else was found.
    """

    name: str
    kind: str
    compared: Comparison | None
    remark: str = ""

    @property
    def differs(self) -> bool:
        return self.compared is not None and not self.compared.same

    def __str__(self) -> str:
        return "; ".join(part for part in (str(self.compared or ""), self.remark) if part)


def outcome(making: Making, first: Path, again: Path, is_asked: bool) -> Outcome:
    """Compare what was made again with what was made first.

    Args:
        making: of both.
        first: where the first one lies, if it does.
        again: where the second one lies.
        is_asked: it is what the command was asked for: then it is compared, whatever its lineage says.
    """
    other = changed_settings(making, again)
    remark = f"made with other {', '.join(other)}: the code has other settings by now" if other else ""
    if not first.exists():
        return Outcome(making.name, making.kind, None, remark or "the first is not there to compare with")
    if not is_asked and _lineage_at(first, making.kind) != making.lineage:
        return Outcome(making.name, making.kind, None, remark or "not compared: the first was made anew since")
    return Outcome(making.name, making.kind, _compared(making.kind, first, again), remark)


def _lineage_at(path: Path, kind: str) -> dict[str, object]:
    return essential(read_manifest(path)[0] if kind == MERGE else read_lineage(path))


def _compared(kind: str, first: Path, again: Path) -> Comparison:
    if kind == MERGE:
        return compare(*read_entry(first), *read_entry(again))
    one, other = EmbeddingTable.read(first), EmbeddingTable.read(again)
    return compare(one.client_ids, one.vectors, other.client_ids, other.vectors)


def table_of(outcomes: Sequence[Outcome]) -> Table:
    """What came of it, a row each."""
    table = Table(title="made again", title_justify="left")
    for heading in ("what", "kind"):
        table.add_column(heading)
    table.add_column("clients × columns", justify="right")
    table.add_column("beside the first")
    for found in outcomes:
        size = f"{found.compared.clients:,} × {found.compared.columns[0]:,}" if found.compared else ""
        table.add_row(found.name, found.kind, size, str(found))
    return table


@command("scripts", "reproduce")
def main(config: DictConfig) -> list[Outcome]:
    common = Common.of(config)
    if OmegaConf.is_missing(config, "entry"):
        raise UserError("entry: name the entry's folder, or the block's parquet, that is to be made again: entry=PATH")
    require(config.jobs >= 1, "jobs", config.jobs, "at least 1")
    asked = Path(config.entry)
    makings, found = makings_of(asked)
    wanted = makings[-1]
    require_nothing_else(config, wanted)
    require_sources(makings, common.paths)
    here = machine()
    remarks = [*found, *doubts(makings, here, versions()), *threads_of_lightfm(makings)]
    for line in remarks:
        logger.warning("%s", line)
    root = Path(config.into) if config.into else common.paths.cache / "reproduced" / wanted.name
    aside = Aside(DataPaths(root), common.paths)
    with locked(root / ".done" / "reproduce.lock", f"{wanted.name} again"):
        aside.prepare()
        limits = Limits(config.jobs, 1)
        make_again(aside.jobs(makings, asked, here, common.overwrite), limits, config.grace, root / "logs")
        outcomes = [
            outcome(
                making,
                asked if making is wanted else making.path(common.paths),
                making.path(aside.paths),
                making is wanted,
            )
            for making in makings
        ]
    show(table_of(outcomes))
    if differing := [f"{each.name}: {each}" for each in outcomes if each.differs]:
        raise UserError([*differing, *remarks])
    compared = outcomes[-1].compared
    if compared is None:
        raise ValueError("what was asked for has been compared")
    closing_line(f"{wanted.name}: the same bits again", wanted.path(aside.paths), compared.clients, compared.columns[0])
    return outcomes


if __name__ == "__main__":
    main()
