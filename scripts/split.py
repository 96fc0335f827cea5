"""Split the events by date into a history and two target windows, for local validation (submit=False).

    python scripts/split.py
    python scripts/split.py targets.per_task=50 overwrite=True
        -> raw/input/<event>.parquet, raw/target/train_target.parquet, raw/target/validation_target.parquet

With E the day of the last purchase, the train window starts 27 days before E at 00:00:00, the validation
window 14 days later; it ends with the last purchase. Where relevant clients or the targets of the six tasks
are not there, they are made, as by scripts/make_targets.py; those that are there stay.
"""

import logging

from omegaconf import DictConfig

from ubp.cli.command import command
from ubp.cli.config import Common, parse
from ubp.cli.output import closing_line
from ubp.data.history import ChallengeData
from ubp.data.split import SplitDates, split_files, write_split
from ubp.data.targets import TargetRules, make_targets
from ubp.io.stage import AlreadyDone, Stage

logger = logging.getLogger(__name__)


def split(data: ChallengeData, dates: SplitDates, rules: TargetRules, overwrite: bool) -> None:
    """Write what is missing or out of date.

    Raises:
        AlreadyDone: nothing is.
    """
    made_from = {"history": data.files_fingerprint, "unknown_sku": data.unknown_sku}
    stage, done = Stage("split", tuple(split_files(data)), lambda: made_from), None
    try:
        with stage.once(overwrite, waited=data.require_unchanged):
            for path, rows in write_split(data, dates).items():
                logger.info("%s: %s rows", path, f"{rows:,}")
    except AlreadyDone as found:
        done = found
    made = make_targets(data, dates, rules, overwrite=False)
    if made:
        logger.info("made because absent: %s", ", ".join(path.name for path in made))
    elif done is not None:
        raise done


@command("scripts", "split")
def main(config: DictConfig) -> None:
    common = Common.of(config)
    data = common.whole_log()
    dates = SplitDates.of(data)
    logger.info(
        "history before %s, validation window from %s to %s", dates.train_start, dates.validation_start, dates.end
    )
    split(data, dates, parse(TargetRules, config, at="targets"), common.overwrite)
    closing_line("split", data.paths.input)


if __name__ == "__main__":
    main()
