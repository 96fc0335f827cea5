"""The commands that are killed, and starved of disk: on tiny logs, with what each of them needs."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests import tiny
from tests.conftest import synthetic
from tests.reliability.killing import Content, Done, content, copy, run
from ubp.blocks import registry
from ubp.data import schema
from ubp.data.schema import EventType

TINY, REPLACED, NOTHING = "tiny", "replaced", "nothing"  # logs that a data path begins with
LOCAL: Final = ("submit=False",)
PROBE: Final = ("probe=quick", "probe.width=16", "probe.hidden=32", "probe.epochs=1", "probe.seeds=[0]")
BASICS: Final = ("stat_features", "als_64_buy_add_categories", "als_64_visits_relevant")
_NIGHT: Final = ("scripts/nightly.py", "name=stat_features", "probe=none")
_EXPLAIN: Final = ("scripts/explain.py", "name=stat_features", "readers.clients=0")
_LAST_DAY: Final = "2025-05-09"  # of the bank's files; {files}/early ends the evening before


@dataclass(frozen=True)
class Command:
    """A command.

    Attributes:
        name: of it.
        words: script and arguments; ``{files}`` stands for the folder of files beside the data path.
        needs: the names of those that are run before it.
        log: that the data path begins with.
        before: further words by which an earlier result is made, which this one is to replace; None: there is none.
        killed: whether it is one of those that are killed: not only needed.
    """

    name: str
    words: tuple[str, ...]
    needs: tuple[str, ...] = ("split",)
    log: str = TINY
    before: tuple[str, ...] | None = ("seed=1",)
    killed: bool = True


def _blocks() -> list[Command]:
    found = []
    for entry in registry.entries():
        words = (*entry.line.split(), *(tiny.overrides(entry) if entry.is_block else ("preset=demo",)), *LOCAL)
        read = [each.name for each in registry.with_what_they_read([entry.name])] if entry.is_block else []
        needs = ("split", *(name for name in read if name != entry.name))
        found.append(Command(entry.name, words, needs, before=("seed=1",) if entry.is_block else None))
    return found


def _merge(name: str, *needs: str) -> Command:
    return Command(
        name, ("scripts/merge.py", f"--config-name={name}", *LOCAL), ("split", *needs), before=("condition=none",)
    )


def _of_basics(name: str, *words: str, before: tuple[str, ...] | None) -> Command:
    return Command(name, words, ("split", *BASICS, "basics"), before=before)


_ALL = (
    Command("split", ("scripts/split.py",), (), before=None),
    Command("split_again", ("scripts/split.py",), (), REPLACED, before=None),
    Command("make_targets", ("scripts/make_targets.py", "overwrite=True"), before=("targets.per_task=5",)),
    Command("make_synthetic_data", ("scripts/make_synthetic_data.py", "scale=2e-5"), (), NOTHING, before=None),
    Command("make_example_log", ("scripts/make_example_log.py", "clients=40", "days=70"), (), NOTHING),
    Command("import_log", ("scripts/import_log.py", "schema=bank", "source={files}/bank"), (), NOTHING),
    Command("cut", ("scripts/cut.py", "out={root}/earlier", "days=20"), before=("days=30",)),
    *_blocks(),
    _merge("basics", *BASICS),
    _merge("combined", "numeric_features_wide", "dcn", "sequential_encoder", "stacker"),
    _of_basics("encode", "scripts/encode.py", "name=basics", "as_of=2023-02-05", before=None),
    Command(
        "encode_als",
        ("scripts/encode.py", "name=als_64_buy_add_categories", "as_of=2023-02-05"),
        ("split", "als_64_buy_add_categories"),
        before=None,
        killed=False,
    ),
    _of_basics(
        "evaluate", "scripts/evaluate.py", "embeddings=[basics,stat_features]", *PROBE, before=("probe.epochs=2",)
    ),
    _of_basics("neighbours", "scripts/neighbours.py", "name=basics", "clients=all", before=("k=3",)),
    _of_basics(
        "index", "scripts/neighbours.py", "name=basics", "index={root}/basics.index", before=("build.dtype=f16",)
    ),
    Command("ablate", ("scripts/ablate.py", "ensemble=basics", "plot=False", *PROBE), ("split", *BASICS), before=None),
    _of_basics(
        "replay", "scripts/replay.py", "ensemble=basics", "preset=demo", "constants=[2.0]", "weights=[]", "make=False",
        *LOCAL, *PROBE, "probe.seeds=[0,1]", before=("constants=[3.0]",),
    ),
    Command("all_embeddings", ("scripts/all_embeddings.py", f"only=[{','.join(BASICS)}]", "jobs=2", *LOCAL)),
    Command(
        "explain",
        (*_EXPLAIN, "client={client}", "out={root}/moves.parquet"),
        ("split", "stat_features"),
        before=("left_out.events=3",),
    ),
    Command(
        "export",
        ("scripts/export.py", "name=gru_ae_day_event"), ("split", "gru_ae_day_event"), before=("clients=8",),
    ),
    Command("report", ("scripts/report.py", "view.explained=0"), ("split", "stat_features"), before=("view.drawn=3",)),
    Command("recommend", ("scripts/recommend.py",), before=None),
    Command("nightly", (*_NIGHT, "day=2023-02-06"), ("split", "stat_features", "first_night"), before=None),
    Command("first_night", (*_NIGHT, "day=2023-02-05"), ("split", "stat_features"), before=None),
    Command(
        "import_early",
        ("scripts/import_log.py", "schema=bank", "source={files}/early"), (), NOTHING, before=None, killed=False,
    ),
    Command(
        "nightly_of_a_day",
        (*_NIGHT, f"day={_LAST_DAY}", "schema=bank", "source={files}/bank"),
        ("import_early", "split", "stat_features"),
        NOTHING,
        before=None,
    ),
)  # fmt: skip
COMMANDS: Final = {command.name: command for command in _ALL}


class Workshop:
    """Data paths with what commands need, each made once, and copied to where a command is run.

    Attributes:
        here: the data path that all of them are run on, so that a path in a file is the same in all.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.here, self.files = folder, folder / "data", folder / "files"
        self._contents: dict[str, Content] = {}
        self._client = synthetic().events[EventType.PRODUCT_BUY][schema.CLIENT_ID][0]

    def _write_files(self) -> None:
        """A bank's files, and the same without the last day; once, when a command asks for them."""
        if self.files.exists():
            return
        words = ["log=bank", "clients=40", "days=70", "start=2025-03-01", f"folder={self.files / 'bank'}"]
        assert run(self.folder / "example", ["scripts/make_example_log.py", *words]).code == 0
        (self.files / "early").mkdir()
        head, *rows = (self.files / "bank" / "transactions.csv").read_text().splitlines(keepends=True)
        early = [row for row in rows if row.split(",")[1] < f"{_LAST_DAY[:-1]}8T20"]
        (self.files / "early" / "transactions.csv").write_text("".join([head, *early]))

    def words(self, command: Command) -> list[str]:
        values = {"{files}": self.files, "{root}": self.here, "{client}": self._client}
        words = list(command.words)
        if any("{files}" in word for word in words):
            self._write_files()
        for name, value in values.items():
            words = [word.replace(name, str(value)) for word in words]
        return words

    def run(self, command: Command, *more: str) -> Done:
        """A command on what lies here, undisturbed."""
        done = run(self.here, [*self.words(command), *more])
        assert done.code == 0, (command.name, done.out, done.err)
        return done

    def begin(self, command: Command, again: bool = False) -> Path:
        """Put here what a command needs; returns where the same is kept.

        Args:
            command: it.
            again: with an earlier result of its own.
        """
        kept = self._kept(command.log, (*command.needs, f"{command.name} before") if again else command.needs)
        copy(kept, self.here)
        return kept

    def require_untouched(self) -> None:
        """Nothing was written into a file that was there before: whoever reads it meanwhile reads it whole."""
        for name, wanted in self._contents.items():
            assert content(self.folder / "kept" / name) == wanted, name

    def _kept(self, log: str, needs: tuple[str, ...]) -> Path:
        name = " ".join((log, *needs))
        kept = self.folder / "kept" / name
        if not kept.exists():
            if needs:
                copy(self._kept(log, needs[:-1]), self.here)
                last, _, before = needs[-1].partition(" ")
                command = COMMANDS[last]
                self.run(command, *((command.before or ()) if before else ()))
            else:
                copy(self._log(log), self.here)
            copy(self.here, kept)
            self._contents[name] = content(kept)
        return kept

    def _log(self, log: str) -> Path:
        """A data path with a log and nothing else."""
        root = self.folder / "logs" / log
        if log == NOTHING:
            root.mkdir(parents=True, exist_ok=True)
            return root
        if log == REPLACED:  # there is a split of another log
            synthetic(seed=1).write(self.here)
            assert run(self.here, ["scripts/split.py"]).code == 0
            copy(self.here, root)
        synthetic().write(root)
        return root
