"""A log as it was on an earlier day, as a data path of its own: a second cut, on which nothing was tuned.

    python scripts/cut.py out=/some/cut days=180        without its last 180 days
    python scripts/cut.py out=/some/cut as_of=2022-06-01    events before a day

        -> /some/cut/raw/*.parquet

Then ``export CHALLENGE_DATA_PATH=/some/cut`` and go on as with any log: python scripts/split.py, and so forth. The days
are counted back from the last purchase. The log's relevant clients stay relevant, those of them that have an event;
the lists of the tasks are made anew by the split.
"""

from datetime import timedelta
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from ubp.cli.command import command
from ubp.cli.config import Common, value_at
from ubp.cli.output import closing_line
from ubp.data.cut import cut_log
from ubp.data.history import ChallengeData
from ubp.data.paths import DataPaths
from ubp.data.schema import EventType
from ubp.io.errors import UserError, require

_SECOND = timedelta(seconds=1)


def earlier(data: ChallengeData, days: int) -> ChallengeData:
    """The history without its last days, which are counted back from its last purchase; a moment then is still in it.

    Raises:
        UserError: no event is left.
    """
    end = data.last(EventType.PRODUCT_BUY).replace(microsecond=0) - timedelta(days=days) + _SECOND
    return data.before(end)


@command("scripts", "cut")
def main(config: DictConfig) -> None:
    common, days = Common.of(config), value_at(config, "days", int)
    if OmegaConf.is_missing(config, "out"):
        raise UserError("out: name the folder of the earlier log: out=/some/cut")
    require(days >= 0, "days", days, "at least 0")
    if bool(days) == bool(common.as_of):
        raise UserError("days, as_of: say by one of them where the log is to end: days=180, or as_of=2022-06-01")
    data, out = common.data(), DataPaths(Path(value_at(config, "out", str)))
    data = earlier(data, days) if days else data
    cut_log(data, out, common.overwrite)
    closing_line(f"log before {data.as_of}", out.raw)


if __name__ == "__main__":
    main()
