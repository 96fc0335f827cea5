"""Where everything lies under the data path: each path written once."""

from dataclasses import dataclass
from pathlib import Path

from ubp.data import schema
from ubp.io.files import digest_of

_PACKAGE = Path(__file__).resolve().parents[1]
REPOSITORY = _PACKAGE.parent
# In an installed package the configs lie inside it.
CONFIGS = _PACKAGE / "configs" if (_PACKAGE / "configs").is_dir() else REPOSITORY / "configs"


DATA_PATH = "CHALLENGE_DATA_PATH"  # in the environment: where the data lie
SUBMIT, LOCAL = "submit", "local"  # folders of what was fitted on all events, and on those before the train window


@dataclass(frozen=True)
class DataPaths:
    """The folders under one data path (``CHALLENGE_DATA_PATH``, ``./data`` when unset)."""

    root: Path

    @property
    def raw(self) -> Path:
        """All events: the history of ``submit=True``."""
        return self.root / "raw"

    @property
    def input(self) -> Path:
        """The events before the train-target start: the history of ``submit=False``."""
        return self.raw / "input"

    @property
    def target(self) -> Path:
        return self.raw / "target"

    @property
    def cache(self) -> Path:
        """What can be made again at any time."""
        return self.root / "cache"

    @property
    def new_files(self) -> tuple[Path, Path]:
        """Folders of files that take their places together: in ``raw/``, and in ``raw/input`` and ``raw/target``.

        See `ubp.io.together`.
        """
        return self.raw / ".new", self.input / ".new"

    @property
    def lock(self) -> Path:
        """Held by whoever replaces the files of ``raw/``: that of the stages which make them."""
        return self.raw / ".done" / f"{schema.EventType.PRODUCT_BUY.file_name}.lock"

    @property
    def split_lock(self) -> Path:
        """The same of ``raw/input`` and ``raw/target``."""
        return self.input / ".done" / self.lock.name

    @property
    def properties(self) -> Path:
        return self.raw / schema.PRODUCT_PROPERTIES

    def ids(self, name: str) -> Path:
        """The table of a log's own ids: of clients, items, urls or categories (`ubp.data.own_ids`)."""
        return self.raw / f"ids_{name}.parquet"

    @property
    def id_tables(self) -> list[Path]:
        """All of these tables that are there."""
        return sorted(self.raw.glob(self.ids("*").name))

    @property
    def import_state(self) -> Path:
        """What an import learned (`ubp.data.import_state`)."""
        return self.raw / "import_state.npz"

    @property
    def event_types(self) -> Path:
        """What the log's own event types are about (`ubp.data.event_types`)."""
        return self.raw / schema.OWN_EVENT_TYPES

    @property
    def relevant_clients(self) -> Path:
        return self.input / schema.RELEVANT_CLIENTS

    @property
    def active_clients(self) -> Path:
        return self.target / schema.ACTIVE_CLIENTS

    def sequences(self, fingerprint: str) -> Path:
        """The sequence store of the files with this ``events_fingerprint`` (`ubp.sequences.layout`)."""
        return self.cache / "sequences" / fingerprint

    def relevant_events(self, fingerprint: str) -> Path:
        """The events of some relevant clients in some files (`ubp.data.relevant_events`)."""
        return self.cache / "relevant_events" / fingerprint

    def shards(self, fingerprint: str, count: int) -> Path:
        """The events of some files in so many shards of clients (`ubp.data.shards`)."""
        return self.cache / "shards" / f"{fingerprint}-{count}"

    def history(self, submit: bool) -> Path:
        return self.raw if submit else self.input

    def embeddings(self, submit: bool) -> Path:
        """The folder of blocks (``NAME.parquet``) and entries (``NAME/``)."""
        return self.root / ("embeddings_submit" if submit else "embeddings_local")

    def texts(self, submit: bool) -> Path:
        """The folder of clients' texts for language models (``NAME.parquet``)."""
        return self.root / ("text" if submit else "text_local")

    def block(self, name: str, submit: bool) -> Path:
        return self.embeddings(submit) / f"{name}.parquet"

    def model(self, name: str, submit: bool) -> Path:
        """The folder of a fitted block or merge (`ubp.blocks.fitted`)."""
        return self.models(name) / (SUBMIT if submit else LOCAL)

    def models(self, name: str) -> Path:
        """The folder of all that was fitted under one name: on all events, and on those of local validation."""
        return self.root / "models" / name

    def ablations(self, name: str) -> Path:
        """The folder of what ``scripts/ablate.py`` measured of a merge."""
        return self.root / "ablations" / name

    def replay(self, fingerprint: str) -> "DataPaths":
        """The data path in which ``scripts/replay.py`` goes through a history's own past."""
        return DataPaths(self.cache / "replays" / fingerprint)

    def encoded(self, name: str) -> Path:
        """The folder of what a fitted block or merge gave for a day (``AS_OF.parquet``)."""
        return self.root / "encoded" / name

    def parts_of(self, file: Path) -> Path:
        """The folder of the parts of a file, until all are there and put together."""
        return self.cache / "parts" / digest_of(file.absolute())

    def profiles(self, name: str) -> Path:
        """The folder of a block's or merge's profiles day by day (`ubp.nightly.profiles`)."""
        return self.root / "profiles" / name

    def neighbours(self, name: str) -> Path:
        """The nearest clients of a block or merge (``scripts/neighbours.py``)."""
        return self.root / "neighbours" / f"{name}.parquet"

    def exported(self, name: str) -> Path:
        """The folder of a block's encoder as ONNX (``scripts/export.py``)."""
        return self.root / "exported" / name

    @property
    def log(self) -> str:
        """What the log is called: the name of the data path's folder."""
        return self.root.resolve().name

    @property
    def report(self) -> Path:
        """The page that ``scripts/report.py`` writes."""
        return self.root / "reports" / f"{self.log}.html"
