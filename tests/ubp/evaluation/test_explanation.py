"""Moves of a profile: distances, their yardstick, what readers make of them."""

import numpy as np
import polars as pl
import pytest

from tests.ubp.blocks.toy import Purchases
from ubp.blocks.occlusion import EVENT, TYPE, ClientEvents, occluded
from ubp.data.history import ChallengeData
from ubp.evaluation.explanation import OcclusionSettings, explain
from ubp.evaluation.readers import Reader
from ubp.io.errors import UserError

WEIGHTS = np.array([1.0, 0.0001, 0.001], np.float32)
SETTINGS = OcclusionSettings(events=4, days=3, others=20, check=True)
READER = Reader("churn", np.zeros(3), np.array([-0.5, 0.0, 0.0]), 1.0, 0.8, 0.3)


@pytest.fixture
def log(history) -> ChallengeData:
    history.input.mkdir()
    np.save(history.relevant_clients, ChallengeData(history, submit=True).seen())
    return ChallengeData(history, submit=True)


@pytest.fixture
def client(log) -> int:
    return int(Purchases(WEIGHTS).encode(log).client_ids[3])


class Crowded(Purchases):
    """Reads of a client how many others there are."""

    def vectors(self, history, clients):
        ids, vectors = super().vectors(history, clients)
        return ids, vectors + np.float32(len(history.seen()))


def test_moves_are_distances_as_shares_of_that_to_another_client(log, client):
    found = explain("purchases", Purchases(WEIGHTS), log, client, SETTINGS, [READER], seed=3)
    events = ClientEvents.of(log, client)
    parts = events.parts(4, 3)
    vectors = occluded(Purchases(WEIGHTS), log, events, parts, log.seen())
    for row, part, vector in zip(found.moves.iter_rows(named=True), parts, vectors.left_out.astype(float), strict=True):
        assert (row["kind"], row["name"], row["events"]) == (part.kind, part.name, len(part.places))
        if np.isnan(vector).any():
            assert row["move"] is row["distance"] is row["cosine"] is row["churn"] is None
            continue
        own = vectors.own.astype(float)
        distance = np.sqrt(sum((a - b) ** 2 for a, b in zip(vector, own, strict=True)))
        assert row["distance"] == pytest.approx(distance)
        assert row["move"] == pytest.approx(distance / np.median(found.others))
        cosine = sum(a * b for a, b in zip(vector, own, strict=True)) / np.linalg.norm(vector) / np.linalg.norm(own)
        assert row["cosine"] == pytest.approx(1 - cosine, abs=1e-9)
        chance = [1 / (1 + np.exp(-(1 - 0.5 * count))) for count in (vector[0], own[0])]
        assert row["churn"] == pytest.approx(chance[0] - chance[1])
    assert found.of_kind(TYPE).filter(pl.col("name") == "product_buy")["move"].to_list() == [None]
    assert len(found.of_kind(EVENT)) == 4
    assert (np.diff(found.others) >= 0).all()
    assert 1 <= len(found.others) <= 20
    assert (found.undisturbed, found.rests_on_itself_alone) == (0.0, True)


def test_the_same_seed_draws_the_same_others(log, client):
    one, same, other = (explain("p", Purchases(WEIGHTS), log, client, SETTINGS, seed=seed).others for seed in (0, 0, 1))
    assert one.tolist() == same.tolist() != other.tolist()


def test_a_block_that_reads_other_clients_is_found_out(log, client):
    found = explain("crowded", Crowded(WEIGHTS), log, client, SETTINGS)
    assert found.undisturbed > 0.01
    assert not found.rests_on_itself_alone
    unchecked = OcclusionSettings(events=4, days=3, others=20, check=False)
    assert explain("crowded", Crowded(WEIGHTS), log, client, unchecked).undisturbed is None


def test_nobody_to_hold_a_move_against(log, client):
    class Same(Purchases):
        def vectors(self, history, clients):
            ids, vectors = super().vectors(history, clients)
            return ids, np.ones_like(vectors)

    with pytest.raises(UserError, match="no other client with another vector"):
        explain("same", Same(WEIGHTS), log, client, SETTINGS)


@pytest.mark.parametrize(("name", "value"), [("events", -1), ("days", -1), ("others", 0)])
def test_settings_that_make_no_sense(name, value):
    with pytest.raises(UserError, match=rf"left_out\.{name}={value}: must be"):
        OcclusionSettings(**{**vars(SETTINGS), name: value})
