"""The sequence store built by shards has the bytes of the one that one process builds."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.ubp.sequences.logs import histories, quick, written
from ubp.data.history import ChallengeData
from ubp.io.spread import in_turn
from ubp.sequences import build as building
from ubp.sequences import build_by_shards as module
from ubp.sequences.build import build_or_open
from ubp.sequences.build_by_shards import build_by_shards, built_by_shards


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def store_of(data: ChallengeData) -> Path:
    return data.paths.sequences(data.events_fingerprint)


@quick
@given(
    events=histories, shards=st.integers(1, 5), rows=st.sampled_from([1, 3, 1000]), per_part=st.sampled_from([4, 1000])
)
def test_the_bytes_of_one_process(fresh, events, shards, rows, per_part):
    data = written(fresh(), events)
    build_or_open(data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_ROWS", rows)
        patch.setattr(building, "_ROWS_PER_PART", per_part)
        build_by_shards(data, data.paths.root / "by_shards", shards, in_turn)
    assert contents(data.paths.root / "by_shards") == contents(store_of(data))


def test_some_hundred_events_in_pieces_that_are_sent_and_done_twice(tmp_path, history):
    """As a worker of Ray has them, the first of which was lost."""

    def lost_once(_, pieces):
        return [[pickle.loads(pickle.dumps(piece))() for _ in range(2)][-1] for piece in pieces]  # noqa: S301 (ours)

    here, there = written(tmp_path / "here", history), written(tmp_path / "there", history)
    one, other = build_or_open(here), built_by_shards(there, 3, lost_once)
    assert contents(store_of(here)) == contents(store_of(there))
    assert np.array_equal(one.subject, other.subject)


def test_one_that_is_there_is_opened(tmp_path, history):
    def never(*_):
        raise AssertionError

    data = written(tmp_path, history)
    assert built_by_shards(data, 3, in_turn).last == built_by_shards(data, 5, never).last
