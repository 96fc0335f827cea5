"""The tiny history split, with its tasks."""

import pytest

from ubp.data.history import ChallengeData
from ubp.data.split import SplitDates, write_split
from ubp.data.targets import TargetRules, make_targets


@pytest.fixture
def local(history) -> ChallengeData:
    data = ChallengeData(history, True)
    write_split(data, SplitDates.of(data))
    make_targets(data, SplitDates.of(data), TargetRules(), overwrite=False)
    return ChallengeData(history, False)
