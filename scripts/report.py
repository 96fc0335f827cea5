"""One HTML page of what a log is and what was made of it: open it in any browser, also without a network.

    python scripts/report.py                                  -> reports/LOG.html below the data path
    python scripts/report.py name=past_windows client=1234    which profile shows clients, and which client first
    python scripts/report.py view.map=tsne view.sample=2000   another map of the clients
    python scripts/report.py out=/some/where/page.html

Shows events by day, hour and type and how many of them clients have; blocks and merges with time, memory, scores and
training curves; ablations; a map of clients, coloured by what you pick; clients drawn at random beside those with the
nearest profiles; what a nightly run said of its days. What is not there is said in a line. Made anew each time.
"""

import logging
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from ubp.blocks.fitted import is_fitted, load
from ubp.cli.command import command
from ubp.cli.config import Common, optional_at, parse
from ubp.cli.output import closing_line
from ubp.data.history import ChallengeData
from ubp.io.errors import UserError, name_some
from ubp.io.files import atomic_write
from ubp.report.clients import ClientSettings, ClientView, OwnIds
from ubp.report.figures import colours_of
from ubp.report.log import LogSummary
from ubp.report.made import Made, ablations_of, best, curves_of, drift_of, made_of
from ubp.report.page import Content, page
from ubp.report.profiles import ProfileFile
from ubp.report.rests import Rests, rests_of

logger = logging.getLogger(__name__)


def choose_submit(config: DictConfig, common: Common) -> tuple[bool, list[Made]]:
    """Of which history blocks are shown, and which there are."""
    if config.submit is not None:
        return bool(config.submit), made_of(common.paths, bool(config.submit))
    local = made_of(common.paths, submit=False)
    if local or not (submitted := made_of(common.paths, submit=True)):
        return False, local
    return True, submitted


def choose_profile(name: str | None, rows: Sequence[Made]) -> Made | None:
    """What clients are shown by; None where nothing was made.

    Raises:
        UserError: there is nothing of that name.
    """
    if name is None:
        return best(rows)
    found = {row.name: row for row in rows}
    if name not in found:
        raise UserError(f"name={name}: no such block or merge; there are: {name_some(list(found), 50) or 'none'}")
    return found[name]


def choose_client(client: object, history: ChallengeData) -> int | None:
    """The id of the client that is asked for; None where none is."""
    return None if client is None else OwnIds(history.paths).client(str(client))


def notes_of(shown: Made | None, history: ChallengeData, submit: bool) -> list[str]:
    """What the reader should know of the whole page, a line each."""
    if shown is None:
        return []
    of_what = "all events" if submit else "the events before the last four weeks, so that they can be scored"
    lines = [f"Blocks and merges are made from {of_what}."]
    if shown.fingerprint not in (None, history.fingerprint):
        lines.append(
            f"{shown.name} was made from another history than the events shown beside it: of another day, or of files "
            "that changed since."
        )
    return lines


def rests_on_page(name: str, view: ClientView, common: Common, submit: bool, explained: int) -> dict[int, Rests]:
    """What the profiles of the first clients rest on; nothing where the fit that made them is not there."""
    model = common.paths.model(name, submit)
    if not explained or not is_fitted(model):
        return {}
    return rests_of(name, load(model), view.history, view.drawn[:explained], common.seed)


def content_of(config: DictConfig, common: Common) -> Content:
    """All that the page shows.

    Raises:
        UserError: a setting that names what is not there, or a fault of the log.
    """
    settings = parse(ClientSettings, config, at="view")
    log = common.data(submit=True)
    submit, rows = choose_submit(config, common)
    shown = choose_profile(optional_at(config, "name", str), rows)
    history, view = log, None
    if shown is not None:
        history = log if submit else common.data(submit=False)
        client = choose_client(optional_at(config, "client", str), history)
        view = ClientView.of(ProfileFile.open(shown.path), history, settings, client, common.seed)
    return Content(
        title=optional_at(config, "title", str) or common.paths.log,
        log=LogSummary.of(log),
        made=rows,
        curves=curves_of(common.paths, [row.name for row in rows]),
        ablations=ablations_of(common.paths),
        view=view,
        drift=drift_of(common.paths),
        colours=colours_of(log),
        notes=notes_of(shown, history, submit),
        rests=rests_on_page(shown.name, view, common, submit, settings.explained) if shown and view else {},
    )


@command("scripts", "report")
def main(config: DictConfig) -> Path:
    common = Common.of(config)
    wanted = optional_at(config, "out", str)
    out = Path(wanted) if wanted else common.paths.report
    if out.is_dir():
        raise UserError(f"out={out}: a folder; name a file")
    content = content_of(config, common)
    with atomic_write(out) as aside:
        aside.write_text(page(content), encoding="utf-8")
    closing_line("report", out)
    return out


if __name__ == "__main__":
    main()
