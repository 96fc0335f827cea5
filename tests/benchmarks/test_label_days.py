"""Twenty label days cost one build."""

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.label_days import LabelDays, measure, open_log, table_of, without_store
from ubp.cli.config import Common, composed, parse
from ubp.data.history import ChallengeData
from ubp.data.paths import CONFIGS
from ubp.data.schema import EVENT_TYPES
from ubp.io.errors import UserError
from ubp.sequences import build as building

CONFIG = composed(CONFIGS / "scripts", "label_days")
SETTINGS = parse(LabelDays, CONFIG, ["scale", "days", "spacing", "newest"])


@pytest.fixture
def builds(monkeypatch):
    """The folders of the stores that were built."""
    made, build = [], building.build

    def counted(data, folder):
        made.append(folder)
        build(data, folder)

    monkeypatch.setattr(building, "build", counted)
    return made


def test_one_build_and_a_selection_per_day(history, builds):
    history.relevant_clients.parent.mkdir()
    ids = ChallengeData(history, submit=True).seen()
    np.save(history.relevant_clients, ids)
    common = Common.of(composed(CONFIGS / "scripts", "label_days", [f"data_path={history.root}", "submit=True"]))
    with without_store(common, None) as paths:
        data = open_log(common, paths, None)
        costs = measure(data, SETTINGS)
        assert len(builds) == 1
        assert len(costs.selections) == len(costs.columns) == 20
        known = data.before(SETTINGS.before(data.as_of)[0])
        assert costs.events[0] == sum(known.rows(event_type) for event_type in EVENT_TYPES)
        assert costs.events == sorted(costs.events, reverse=True)
    assert not paths.root.exists()
    assert history.raw.exists()
    assert table_of(costs, SETTINGS).row_count == 6


def test_a_synthetic_shop(tmp_path, builds):
    common = Common.of(composed(CONFIGS / "scripts", "label_days", [f"data_path={tmp_path}"]))
    settings = replace(SETTINGS, scale=0.0001, days=2, spacing=7)
    with without_store(common, settings.scale) as paths:
        costs = measure(open_log(common, paths, settings.scale), settings)
    assert (len(builds), len(costs.selections)) == (1, 2)


def test_numbers_that_make_no_sense():
    with pytest.raises(UserError, match="days"):
        replace(SETTINGS, days=0)
