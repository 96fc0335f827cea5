"""The clients nearest to a client by the cosine of their vectors; an index of all clients for other programs.

    python scripts/neighbours.py name=best_solution client=17                        a table
    python scripts/neighbours.py name=best_solution clients=some.npy k=20 out=x.parquet    many clients, or clients=all
    python scripts/neighbours.py name=best_solution index=profiles.usearch           a file, and profiles.usearch.json
        -> neighbours/NAME.parquet below the data path: client_id, rank, neighbour, cosine

The search is exact unless ``search=index``. Where the log has own ids (raw/ids_client.parquet), ``client=`` takes them,
and tables show them; the index's keys are the client ids. A client whose vector is all zeros has no neighbours.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from omegaconf import DictConfig, OmegaConf
from rich.markup import escape
from rich.table import Table

from ubp.blocks.embeddings import EmbeddingTable, find_vectors, lies_at, names_in
from ubp.blocks.merge import content_of
from ubp.blocks.neighbours import (
    IndexSettings,
    Neighbours,
    Space,
    index_note,
    nearest_by_index,
    usearch,
    write_index,
)
from ubp.cli.chosen import read_clients
from ubp.cli.command import command
from ubp.cli.config import Common, parse
from ubp.cli.output import closing_line, say, show
from ubp.data.client_names import ClientNames
from ubp.data.paths import DataPaths
from ubp.io.errors import UserError, name_some, require
from ubp.io.files import atomic_write, digest_of
from ubp.io.stage import AlreadyDone, Stage

ALL: Final = "all"
EXACT, INDEX = SEARCHES = ("exact", "index")

Ids = npt.NDArray[np.int64]


@dataclass
class Order:
    """What is asked for; see the config."""

    name: str
    client: str | None
    clients: str | None
    k: int
    out: str | None
    index: str | None
    search: str
    drawn: int

    def __post_init__(self) -> None:
        """Refuse what makes no sense.

        Raises:
            UserError: nobody is asked for, or a choice that does not fit another.
        """
        require(self.k >= 1, "k", self.k, "at least 1")
        require(self.drawn >= 1, "drawn", self.drawn, "at least 1")
        require(self.search in SEARCHES, "search", self.search, " or ".join(SEARCHES))
        if self.client and self.clients:
            raise UserError(f"client={self.client} clients={self.clients}: name one client, or a file of several")
        if not (self.client or self.clients or self.index):
            raise UserError("client: say whose neighbours: client=ID, clients=FILE, clients=all; or index=FILE")
        if self.search == INDEX and not self.index:
            raise UserError("search=index: name the index's file: index=FILE; it is made where it is not there")


def choose_vectors(paths: DataPaths, name: str, submit: bool | None) -> Path:
    """Where a merge's entry or a block's parquet lies.

    Args:
        paths: where the data lies.
        name: of the merge or block, or a path.
        submit: which folder names are looked up in; None for both, that of all events first.

    Raises:
        UserError: there is no such thing, with the names that there are.
    """
    folders = [paths.embeddings(choice) for choice in ((True, False) if submit is None else (submit,))]
    if found := find_vectors(name, folders):
        return found
    if lies_at(path := Path(name)):
        return path
    there = name_some(sorted({known for folder in folders for known in names_in(folder)}), 50) or "none"
    raise UserError(f"name={name}: neither a merge or block nor a path of one; there are: {there}")


def asked_rows(space: Space, clients: Ids) -> tuple[npt.NDArray[np.int64], str]:
    """The rows of some clients, and a remark on those that have no neighbours.

    Raises:
        UserError: none of them has any.
    """
    rows = space.rows_of(clients)
    absent = int(np.isin(clients, space.client_ids, invert=True).sum())
    zeros = len(clients) - absent - len(rows)
    remarks = [f"{absent:,} of {len(clients):,} clients are not in it: no row"] if absent else []
    remarks += [f"{zeros:,} have a vector of zeros: no row"] if zeros else []
    if len(rows) == 0 or len(space.pointing) < 2:
        raise UserError(f"clients: no neighbours; {'; '.join(remarks) or 'there is no other client'}")
    return rows, "; ".join(remarks)


def shown(found: Neighbours, names: ClientNames, usual: npt.NDArray[np.float32], title: str) -> Table:
    """The neighbours of one client, nearest first, each beside the share of pairs drawn at random that are less near.

    Args:
        found: of one client.
        names: the own ids.
        usual: float32, ascending, cosines of pairs drawn at random.
        title: of the table.
    """
    table = Table(title=title, title_justify="left")
    table.add_column("rank", justify="right")
    table.add_column("client", justify="right")
    if names.table is not None:
        table.add_column("own id")
    table.add_column("cosine", justify="right")
    table.add_column("nearer than", justify="right")
    own = names.names(found.neighbours[0])
    for rank, (client, name, cosine) in enumerate(
        zip(found.neighbours[0], own, found.cosines[0], strict=True), start=1
    ):
        nearer = float(np.searchsorted(usual, cosine)) / len(usual)
        row = [str(rank), str(client), escape(str(name)), f"{cosine:.4f}", f"{100 * nearer:.2f} %"]
        table.add_row(*(row if names.table is not None else [*row[:2], *row[3:]]))
    return table


def usual_line(usual: npt.NDArray[np.float32]) -> str:
    """What a cosine is to be held against, from those of pairs drawn at random: float32, ascending."""
    low, high = np.quantile(usual, [0.025, 0.975])
    return (
        f"two clients drawn at random: cosine {usual.mean():.4f} in the mean, {low:.4f} to {high:.4f} for 95 of 100 "
        "pairs; nearer than: the share of these pairs"
    )


def once(stage: Stage, overwrite: bool, make: Callable[[], None]) -> bool:
    """Make it unless it is done; then say so. Whether it was made now."""
    try:
        with stage.once(overwrite):
            make()
    except AlreadyDone as done:
        say(str(done))
        return False
    return True


def _order(config: DictConfig) -> Order:
    if OmegaConf.is_missing(config, "name"):
        raise UserError("name: say which merge or block: name=NAME, or the path of one")
    if config.as_of:
        raise UserError(
            f"as_of={config.as_of}: encode that day with scripts/encode.py, then name=PATH of what it wrote"
        )
    texts = config.copy()
    for key in ("name", "client", "clients"):
        texts[key] = None if config[key] is None else str(config[key])  # 17 is an integer on the command line
    return parse(Order, texts, list(Order.__dataclass_fields__))


@dataclass(frozen=True)
class Search:
    """Vectors to search, and how.

    Attributes:
        order: what is asked for.
        build: of the index.
        path: where the vectors lie.
        space: the vectors.
        names: the own ids.
    """

    order: Order
    build: IndexSettings
    path: Path
    space: Space
    names: ClientNames

    @property
    def what(self) -> str:
        """The name of the merge or block."""
        return self.path.stem if self.path.is_file() else self.path.name

    @property
    def made_from(self) -> dict[str, Any]:
        """Of all that is written."""
        return {"vectors": content_of(self.path)}

    def nearest(self, rows: npt.NDArray[np.int64]) -> Neighbours:
        """Of some rows, as asked for."""
        if self.order.search == INDEX:
            return nearest_by_index(self.space, rows, self.order.k, Path(str(self.order.index)), self.build)
        return self.space.nearest(rows, self.order.k)

    def write_index(self, file: Path, overwrite: bool) -> None:
        """An index of all clients."""
        described = {"name": self.what, "path": str(self.path), **self.made_from}
        made_from = self.made_from | {"build": asdict(self.build)}
        stage = Stage(f"index of {self.what}", (file, index_note(file)), lambda: made_from)
        if once(stage, overwrite, lambda: write_index(self.space, self.build, file, described)):
            closing_line(stage.name, file, len(self.space.pointing), self.space.vectors.shape[1])

    def show(self, client: str, seed: int) -> None:
        """The neighbours of one client."""
        asked = np.array([self.names.client(client)])
        if asked[0] not in self.space.client_ids:
            raise UserError(f"client={client}: not among the {len(self.space.client_ids):,} clients of {self.path}")
        rows, _ = asked_rows(self.space, asked)
        usual = self.space.usual_cosines(self.order.drawn, seed)
        show(shown(self.nearest(rows), self.names, usual, f"nearest to client {client} by {self.what}"))
        say(usual_line(usual))
        closing_line(f"neighbours by {self.what}", self.path)

    def write(self, clients: Ids, out: Path, overwrite: bool) -> None:
        """The neighbours of many clients."""
        rows, remark = asked_rows(self.space, clients)
        asked = {"clients": digest_of(clients.tobytes()), "k": self.order.k, "search": self.order.search}
        if self.order.search == INDEX:
            asked |= {"build": asdict(self.build)}
        made_from = self.made_from | asked | {"own ids": self.names.table is not None}
        stage = Stage(f"neighbours by {self.what}", (out,), lambda: made_from)

        def make() -> None:
            found = self.nearest(rows).table(self.names)
            with atomic_write(out) as aside:
                found.write_parquet(aside)

        if once(stage, overwrite, make):
            kept, added = min(self.order.k, len(self.space.pointing) - 1), f" ({remark})" if remark else ""
            closing_line(f"{kept} neighbours of each of {len(rows):,} clients by {self.what}{added}", out)


@command("scripts", "neighbours")
def main(config: DictConfig) -> None:
    common, order = Common.of(config), _order(config)
    build = parse(IndexSettings, config, at="build")
    if order.index:
        usearch()  # before anything is read
    path = choose_vectors(common.paths, order.name, None if config.submit is None else common.submit)
    table = EmbeddingTable.read(path)
    names = ClientNames.of(common.paths)
    search = Search(order, build, path, Space.of(table.client_ids, table.vectors), names)
    if order.index:
        search.write_index(Path(order.index), common.overwrite)
    if order.client:
        search.show(order.client, common.seed)
    elif order.clients:
        clients = search.space.client_ids if order.clients == ALL else read_clients(Path(order.clients))
        out = Path(order.out) if order.out else common.paths.neighbours(search.what)
        search.write(clients, out, common.overwrite)


if __name__ == "__main__":
    main()
