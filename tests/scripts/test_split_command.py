"""The split command writes what is missing or out of date, and nothing else."""

import numpy as np
import pytest

from scripts.split import split
from ubp.data.history import ChallengeData
from ubp.data.split import SplitDates
from ubp.data.targets import TargetRules
from ubp.io.stage import AlreadyDone


def run(paths, overwrite=False) -> None:
    data = ChallengeData(paths, True)
    split(data, SplitDates.of(data), TargetRules(), overwrite)


def stamps(paths) -> dict[str, int]:
    return {
        path.name: path.stat().st_mtime_ns
        for folder in (paths.input, paths.target)
        for path in folder.iterdir()
        if path.is_file()
    }


def test_a_second_split_has_nothing_to_do(history):
    run(history)
    before = stamps(history)
    assert len(before) == 5 + 1 + 2 + 1 + 8
    with pytest.raises(AlreadyDone, match="split · done before"):
        run(history)
    assert stamps(history) == before


def test_overwrite_writes_the_windows_again_and_keeps_the_targets(history):
    run(history)
    before = stamps(history)
    run(history, overwrite=True)
    changed = {name for name, stamp in stamps(history).items() if stamp != before[name]}
    assert len(changed) == 7
    assert all(name.endswith(".parquet") for name in changed)


def test_a_missing_target_is_made_and_the_rest_kept(history):
    run(history)
    before = stamps(history)
    (history.target / "propensity_price.npy").unlink()
    run(history)
    changed = {name for name, stamp in stamps(history).items() if stamp != before[name]}
    assert changed == {"propensity_price.npy", "popularity_propensity_price.npy"}


def test_what_somebody_changed_is_written_again(history):
    run(history)
    file = history.input / "page_visit.parquet"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    run(history)
    assert file.read_bytes() == whole


def test_the_published_clients_stay(history):
    history.input.mkdir()
    np.save(history.relevant_clients, np.array([5, 3, 4]))
    run(history)
    assert np.load(history.relevant_clients).tolist() == [5, 3, 4]
