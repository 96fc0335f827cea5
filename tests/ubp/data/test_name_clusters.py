"""Clusters of names: the nearest centre by the plain distance, planted groups found, never more than names."""

import numpy as np
import pytest

from ubp.data import name_clusters
from ubp.data.name_clusters import NameClusters, nearest, one_hot


def random_codes(names, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (names, 16)).astype(np.uint8)


def test_one_hot():
    codes = random_codes(5)
    vectors = one_hot(codes).toarray().reshape(5, 16, 256)
    assert np.array_equal(vectors.argmax(axis=2), codes)
    assert (vectors.sum(axis=2) == 1).all()


@pytest.mark.parametrize("at_a_time", [7, 65_536])
def test_the_nearest_centre_is_that_of_plain_distances(at_a_time, monkeypatch):
    monkeypatch.setattr(name_clusters, "_NAMES", at_a_time)
    codes, rng = random_codes(80), np.random.default_rng(1)
    vectors = one_hot(codes).toarray().astype(np.float64)
    for centres in (rng.normal(0, 0.05, (5, 4096)).astype(np.float32), NameClusters.fit(codes, 7, seed=0).centres):
        distances = ((vectors[:, None, :] - centres[None]) ** 2).sum(axis=2)
        assert nearest(centres, codes).tolist() == distances.argmin(axis=1).tolist()
        assert len(set(nearest(centres, codes))) > 1
    assert NameClusters(centres).of(codes).tolist() == nearest(centres, codes).tolist()


def test_of_equally_near_centres_it_is_the_first():
    twice = np.repeat(np.random.default_rng(1).normal(0, 0.05, (2, 4096)).astype(np.float32), 2, axis=0)
    assert set(nearest(twice, random_codes(80))) == {0, 2}


def test_planted_groups_are_found():
    rng = np.random.default_rng(0)
    kinds = random_codes(4, seed=1)
    of_kind = np.repeat(np.arange(4), 50)
    codes = kinds[of_kind].copy()
    codes[np.arange(200), rng.integers(0, 16, 200)] = rng.integers(0, 256, 200)  # one code of each is another
    found = NameClusters.fit(codes, 4, seed=0).of(codes)
    assert len({(kind, cluster) for kind, cluster in zip(of_kind, found, strict=True)}) == 4
    assert len(set(found)) == 4


@pytest.mark.parametrize("count", [3, 10])
def test_at_most_as_many_as_distinct_names(count):
    codes = np.repeat(random_codes(3), 5, axis=0)
    clusters = NameClusters.fit(codes, count, seed=0)
    assert len(clusters.centres) == 3
    assert sorted(np.bincount(clusters.of(codes))) == [5, 5, 5]


def test_the_same_seed_and_names_give_the_same_whatever_their_order():
    codes = random_codes(60)
    one, other = NameClusters.fit(codes, 5, seed=3), NameClusters.fit(codes[::-1], 5, seed=3)
    assert np.array_equal(one.centres, other.centres)


def test_no_names():
    assert NameClusters.fit(random_codes(4), 2, seed=0).of(np.zeros((0, 16), np.uint8)).tolist() == []
