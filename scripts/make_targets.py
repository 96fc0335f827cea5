"""Make relevant clients, active clients and the targets of the six tasks, for a log that comes without them.

    python scripts/make_targets.py                                    what is absent
    python scripts/make_targets.py overwrite=True                     all of it again
    python scripts/make_targets.py targets.relevant_clients=100000    a draw of that many clients

The rules are those of `ubp.data.targets.make_targets`.
"""

import logging

from omegaconf import DictConfig

from ubp.cli.command import command
from ubp.cli.config import Common, parse
from ubp.cli.output import closing_line
from ubp.data.split import SplitDates
from ubp.data.targets import TargetRules, make_targets
from ubp.io.stage import AlreadyDone

logger = logging.getLogger(__name__)


@command("scripts", "make_targets")
def main(config: DictConfig) -> None:
    common = Common.of(config)
    data = common.whole_log()
    made = make_targets(data, SplitDates.of(data), parse(TargetRules, config, at="targets"), common.overwrite)
    if not made:
        raise AlreadyDone(f"targets · done before · {data.paths.target} (overwrite=True makes them again)")
    logger.info("made %s", ", ".join(path.name for path in made))
    closing_line("targets", data.paths.target)


if __name__ == "__main__":
    main()
