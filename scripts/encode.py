"""Vectors of any clients on any day, from a fitted block or merge alone: nothing is trained.

    python scripts/encode.py name=basics as_of=2022-11-08 clients=ids.npy out=profiles.parquet
    python scripts/encode.py name=stat_features     all clients with an event, at the end of the log
        -> encoded/NAME/AS_OF.parquet below the data path: client_id, embedding (float32)

Reads all events before ``as_of``, whatever the block was fitted on, also events and clients that it has never seen. A
client without events gets no row; the closing line counts them.
"""

import logging
from dataclasses import dataclass
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
from ubp.cli.config import Common, optional_at
from ubp.cli.output import closing_line
from ubp.data.history import ChallengeData
from ubp.io.errors import UserError
from ubp.io.files import digest_of
from ubp.io.stage import Stage

logger = logging.getLogger(__name__)

Ids = npt.NDArray[np.int64]


# --- encoding -----------------------------------------------------------------------------------------


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

    def encoded(self) -> tuple[EmbeddingTable, str]:
        """The vectors, and what the closing line says of clients without one.

        Raises:
            UserError: no client has a vector, or the block cannot encode this history.
        """
        known = self.history.seen(self.clients)
        asked = len(known) if self.clients is None else len(self.clients)
        table = load(self.model).encode(self.history, known)
        remarks = []
        if unknown := asked - len(known):
            remarks.append(f"{unknown:,} of {asked:,} asked clients have no event before {self.day}: no row")
        if unread := len(known) - len(table):
            remarks.append(f"{unread:,} of {asked:,} have none that {self.name} reads: no row")
        if len(table) == 0:
            raise UserError(f"{self.name}: {'; '.join(remarks)}; nothing is written")
        return table, "; ".join(remarks)


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


@command("scripts", "encode")
def main(config: DictConfig) -> None:
    common = Common.of(config)
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
            table, remark = request.encoded()
        request.history.require_unchanged()
        require_same_fit(model, made_from["fit_digest"])
        lineage = table.lineage | made_from | circumstances(request.history)
        EmbeddingTable(table.client_ids, table.vectors, lineage).write(out)
    closing_line(f"{config.name}{f' ({remark})' if remark else ''}", out, *table.vectors.shape)


if __name__ == "__main__":
    main()
