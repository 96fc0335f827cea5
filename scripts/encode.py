"""Vectors of any clients on any day, from a fitted block or merge alone: nothing is trained.

    python scripts/encode.py name=basics as_of=2022-11-08 clients=ids.npy out=profiles.parquet
    python scripts/encode.py name=stat_features     all clients with an event, at the end of the log
    python scripts/encode.py name=basics engine=ray parts.shards=64     parts on a Ray cluster (docs/cluster.md)
        -> encoded/NAME/AS_OF.parquet below the data path: client_id, embedding (float32)

Reads all events before ``as_of``, whatever the block was fitted on, also events and clients that it has never seen. A
client without events gets no row; the closing line counts them.

With ``engine=ray`` the clients are cut into parts, a task each: the log is partitioned by clients once, and a part
reads its own events alone. What comes out has the same bits, or differs in the last ones (docs/cluster.md names the
blocks that may).
"""

import logging
import shutil
from dataclasses import asdict, dataclass
from datetime import datetime, time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from omegaconf import DictConfig

from ubp.blocks.embeddings import EmbeddingTable, read_lineage
from ubp.blocks.fitted import content_digest, lineage_of, load, require_same_fit, settled
from ubp.cli.chosen import choose_fit, read_clients, require_name
from ubp.cli.circumstances import circumstances
from ubp.cli.command import command
from ubp.cli.config import RAY, Common, optional_at, parse
from ubp.cli.object_store import require_no_address
from ubp.cli.output import closing_line, say
from ubp.cli.ray_spread import RaySpread
from ubp.cli.ray_tasks import Resources, cluster
from ubp.data.history import ChallengeData
from ubp.io.errors import UserError, require, require_positive
from ubp.io.files import digest_of
from ubp.io.stage import Stage

logger = logging.getLogger(__name__)

Ids = npt.NDArray[np.int64]


# --- encoding -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Parts:
    """The config's part `parts`: how clients are encoded with ``engine=ray``.

    Attributes:
        shards: how many; None: as many as run at once.
        threads: of each, and cores that it takes.
        gpus: of each.
        memory: that each is taken to need, GB.
    """

    shards: int | None
    threads: int
    gpus: int
    memory: float

    def __post_init__(self) -> None:
        """Refuse numbers that make no sense.

        Raises:
            UserError: no thread, no part, less than no GPU or memory.
        """
        require_positive(self, "parts", "threads", *([] if self.shards is None else ["shards"]))
        for name in ("gpus", "memory"):
            require(getattr(self, name) >= 0, f"parts.{name}", getattr(self, name), "at least 0")


@dataclass(frozen=True)
class Request:
    """What is to be encoded.

    Attributes:
        name: of the block or merge.
        model: the folder of its fit.
        history: all events before the day.
        clients: int64, ascending, each once; None for all with an event.
    """

    name: str
    model: Path
    history: ChallengeData
    clients: Ids | None

    @property
    def day(self) -> str:
        """``2022-11-08``, with the time where it is not midnight."""
        moment = self.history.as_of
        return moment.isoformat(sep=" ") if moment.time() != time() else moment.date().isoformat()

    def lineage(self) -> dict[str, Any]:
        """Of the parquet: the day, the history, and the fit that it stands on."""
        return {
            "name": self.name,
            "as_of": self.history.as_of.isoformat(sep=" "),
            "fingerprint": self.history.fingerprint,
            "clients": None if self.clients is None else digest_of(self.clients.tobytes()),
            "fit": settled(lineage_of(self.model)),
            "fit_digest": content_digest(self.model),
        }

    def encoded(self) -> tuple[EmbeddingTable, int]:
        """The vectors, and how many of the clients have an event.

        Raises:
            UserError: the block cannot encode this history.
        """
        known = self.history.seen(self.clients)
        return load(self.model).encode(self.history, known), len(known)

    def encoded_on_cluster(self, parts: Parts, folder: Path) -> tuple[EmbeddingTable, int]:
        """The same by tasks of a Ray cluster.

        Args:
            parts: what each is given.
            folder: for parts that are done, until all are; of this request alone.
        """
        from ubp.training.encode_in_parts import InParts  # torch takes a second

        with cluster() as found:
            needed = Resources(parts.threads, parts.gpus, int(parts.memory * 1e9))
            found.require(f"a part of {self.name}", needed, "parts.memory, parts.gpus or parts.threads")
            shards = parts.shards or max(1, found.cores // parts.threads)
            say(f"{len(found.nodes)} nodes, {found.cores} cores, {found.gpus} GPUs; {shards} parts of {self.name}")
            made_from = self.lineage() | asdict(parts)  # the number of threads may change the last bits
            work = InParts(self.model, self.history, self.clients, shards, folder, made_from)
            return work.encode(RaySpread(needed))

    def remark(self, rows: int, known: int) -> str:
        """What the closing line says of clients without a vector.

        Args:
            rows: clients with one.
            known: clients with an event.

        Raises:
            UserError: no client has a vector.
        """
        asked = known if self.clients is None else len(self.clients)
        remarks = []
        if unknown := asked - known:
            remarks.append(f"{unknown:,} of {asked:,} asked clients have no event before {self.day}: no row")
        if unread := known - rows:
            remarks.append(f"{unread:,} of {asked:,} have none that {self.name} reads: no row")
        if rows == 0:
            raise UserError(f"{self.name}: {'; '.join(remarks)}; nothing is written")
        return "; ".join(remarks)


def warn_of_later_events(name: str, fit: dict[str, Any], as_of: datetime) -> None:
    """Say it where a fit knows events after the day that is asked for."""
    if "as_of" in fit and (fitted_as_of := datetime.fromisoformat(fit["as_of"])) > as_of:
        logger.warning(
            "%s was fitted on events before %s: it has seen later ones than those before %s", name, fitted_as_of, as_of
        )


def _require_room(out: Path, overwrite: bool) -> None:
    """Replace vectors that were encoded before, but nothing else."""
    if out.is_dir():
        raise UserError(f"out={out}: a folder; name a file")
    if out.exists() and not overwrite and not _is_encoded(out):
        raise UserError(f"out={out}: another file lies there; choose another name, or replace it with overwrite=True")


def _is_encoded(file: Path) -> bool:
    try:
        return bool(read_lineage(file))
    except UserError:  # no parquet
        return False


@command("scripts", "encode", spreads=True)
def main(config: DictConfig) -> None:
    common = Common.of(config)
    if common.engine == RAY:
        require_no_address(common.data_path)
    require_name(config, common.paths)
    model = choose_fit(common.paths, config.name, None if config.submit is None else common.submit)
    asked, wanted = optional_at(config, "clients", str), optional_at(config, "out", str)
    clients = read_clients(Path(asked)) if asked else None
    request = Request(config.name, model, common.data(submit=True), clients)
    folder, day = common.paths.encoded(config.name), request.day.replace(" ", "T").replace(":", "-")
    out = Path(wanted) if wanted else folder / f"{day}.parquet"
    _require_room(out, common.overwrite)
    made_from = request.lineage()
    stage = Stage(f"{config.name} as of {request.day}", (out,), lambda: made_from)
    with stage.once(common.overwrite, waited=request.history.require_unchanged):
        warn_of_later_events(config.name, made_from["fit"], request.history.as_of)
        with request.history.unchanged():
            if common.engine == RAY:
                parts = parse(Parts, config, at="parts")
                table, known = request.encoded_on_cluster(parts, common.paths.parts_of(out))
            else:
                table, known = request.encoded()
            remark = request.remark(len(table), known)
        request.history.require_unchanged()
        require_same_fit(model, made_from["fit_digest"])
        lineage = table.lineage | made_from | circumstances(request.history)
        EmbeddingTable(table.client_ids, table.vectors, lineage).write(out)
        shutil.rmtree(common.paths.parts_of(out), ignore_errors=True)
    closing_line(f"{config.name}{f' ({remark})' if remark else ''}", out, *table.vectors.shape)


if __name__ == "__main__":
    main()
