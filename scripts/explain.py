"""Which of a client's events its profile rests on: leaves out one event, one day, one event type after the other.

    python scripts/explain.py name=combined client=17
    python scripts/explain.py name=past_windows client=17 as_of=2022-11-08 left_out.events=300 out=moves.parquet

Prints a strip of the history, a table of what moves the profile most, and the spread that the figures are to be held
against. A move is a distance between profiles, as a share of the median distance to other clients. Where the log is
split (scripts/split.py), a logistic regression for churn and for a few categories says how the predictions change.
"""

import logging
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from ubp.blocks.embeddings import EmbeddingTable, find_vectors
from ubp.blocks.fitted import FittedBlock, lineage_of, load
from ubp.cli.chosen import choose_fit, require_name
from ubp.cli.command import command
from ubp.cli.config import Common, parse
from ubp.cli.explanation import Strip, moves_table, spread_lines
from ubp.cli.output import closing_line, say, show
from ubp.data.client_names import ClientNames
from ubp.data.paths import LOCAL, DataPaths
from ubp.evaluation.explanation import Explanation, OcclusionSettings, explain
from ubp.evaluation.readers import Reader, ReaderSettings, fit_readers
from ubp.evaluation.tasks import GroundTruth
from ubp.io.errors import UserError, require_positive
from ubp.io.files import atomic_write

logger = logging.getLogger(__name__)


@dataclass
class Order:
    """What is asked for; see the config."""

    name: str
    client: str
    out: str | None
    rows: int
    width: int

    def __post_init__(self) -> None:
        """Refuse what makes no sense.

        Raises:
            UserError: a number below 1.
        """
        require_positive(self, "", "rows", "width")


def order_of(config: DictConfig, paths: DataPaths) -> Order:
    """What the command line asks for.

    Raises:
        UserError: no block or client is named, or a number makes no sense.
    """
    require_name(config, paths)
    if OmegaConf.is_missing(config, "client"):
        raise UserError("client: say whose profile: client=ID")
    texts = config.copy()
    texts.name, texts.client = str(config.name), str(config.client)
    return parse(Order, texts, list(Order.__dataclass_fields__))


def readers_of(name: str, model: Path, fitted: FittedBlock, common: Common, settings: ReaderSettings) -> list[Reader]:
    """Readers of the profiles that a fit gives; none where the log has no windows to learn from, with a line.

    They learn from the clients as of the day before the train window: from the entry or block that was made with the
    fit, where it was fitted on those events alone.

    Args:
        name: of the block or merge.
        model: the folder of its fit.
        fitted: it.
        common: where the data lies.
        settings: which readers.
    """
    try:
        truth = GroundTruth.load(common.paths)
        local = Common(**{**vars(common), "as_of": None}).data(submit=False)
    except UserError as error:
        logger.info("no predictions: %s", error.messages[0])
        return []
    if model.name == LOCAL and (path := find_vectors(name, [common.paths.embeddings(submit=False)])):
        return fit_readers(EmbeddingTable.read(path), truth, settings, common.seed)
    clients = local.clients
    if len(clients) > settings.clients:
        drawn = np.random.default_rng(common.seed).choice(clients, settings.clients, replace=False)
        clients = np.sort(drawn)
    return fit_readers(fitted.encode(local, clients), truth, settings, common.seed)


def show_explanation(explanation: Explanation, order: Order) -> None:
    """The strip, the table, and how to read both."""
    console = Console()
    console = console if console.is_terminal else Console(width=order.width + 60)
    for line in Strip.of(explanation, order.width).lines():
        console.print(line, no_wrap=True, overflow="ignore", crop=False)
    show(moves_table(explanation, order.rows))
    for text in spread_lines(explanation):
        say(text)
    if not explanation.rests_on_itself_alone:
        logger.warning(
            "%s: an undisturbed copy of the client has another vector: the block reads more than the client's own "
            "events, and the moves are not to be trusted", explanation.name,
        )  # fmt: skip


@command("scripts", "explain")
def main(config: DictConfig) -> Explanation:
    common = Common.of(config)
    order = order_of(config, common.paths)
    settings, read_by = parse(OcclusionSettings, config, at="left_out"), parse(ReaderSettings, config, at="readers")
    model = choose_fit(common.paths, order.name, None if config.submit is None else common.submit)
    client = ClientNames.of(common.paths).client(order.client)
    fitted, lineage = load(model), lineage_of(model)
    # As of its own day a fit is asked about the events that it was fitted on; as of another about all before that day.
    history = common.data(submit=common.moment is not None or model.name != LOCAL)
    if common.moment is not None and "as_of" in lineage and datetime.fromisoformat(lineage["as_of"]) > history.as_of:
        logger.warning("%s was fitted on events before %s: it has seen later ones", order.name, lineage["as_of"])
    readers = readers_of(order.name, model, fitted, common, read_by) if read_by.clients else []
    found = explain(order.name, fitted, history, client, settings, readers, common.seed)
    show_explanation(found, order)
    if order.out:
        with atomic_write(Path(order.out)) as aside:
            found.moves.write_parquet(aside)
    closing_line(f"{order.name} explained for client {order.client}", Path(order.out) if order.out else model)
    return found


if __name__ == "__main__":
    main()
