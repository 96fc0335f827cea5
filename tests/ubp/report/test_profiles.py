"""Profiles read in parts, against all of them at once."""

import numpy as np
import pytest

from ubp.blocks.embeddings import EmbeddingTable
from ubp.blocks.entry import write_entry
from ubp.io.errors import UserError
from ubp.report import profiles
from ubp.report.profiles import ProfileFile, Scale, cosines, nearest, neighbourhood_map, plane


@pytest.fixture
def vectors():
    found = np.random.default_rng(0).normal(size=(41, 6)).astype(np.float16).astype(np.float32)
    found[7] = found[12]  # as near as can be
    return found


@pytest.fixture(params=["block", "merge"])
def kept(request, vectors, tmp_path, monkeypatch):
    """The vectors on disk, read ten rows at a time."""
    monkeypatch.setattr(profiles, "_ROWS", 10)
    ids = np.random.default_rng(1).permutation(900)[: len(vectors)].astype(np.int64)
    path = tmp_path / ("some" if request.param == "merge" else "some.parquet")
    if request.param == "merge":
        write_entry(path, ids, vectors)
    else:
        EmbeddingTable(ids, vectors, {}).write(path)
    return ProfileFile.open(path)


def test_parts_are_the_whole(kept, vectors):
    starts, parts = zip(*kept.parts(), strict=True)
    assert starts == (0, 10, 20, 30, 40)
    np.testing.assert_array_equal(np.concatenate(parts), vectors)
    assert (kept.name, kept.columns, len(kept.client_ids)) == ("some", 6, 41)


def test_some_rows(kept, vectors):
    places = np.array([0, 9, 10, 11, 33, 40])
    np.testing.assert_array_equal(kept.rows(places), vectors[places])
    assert kept.rows(places[:0]).shape == (0, 6)


@pytest.mark.parametrize("count", [1, 5, 60])
def test_the_nearest_are_those_of_all_pairs(kept, vectors, count):
    scale = Scale.of(vectors[::2], by_column=not kept.is_merge)
    places = np.array([3, 7, 12, 40])
    rows, near = nearest(kept, scale, places, count)
    scaled = ((vectors - vectors[::2].mean(0)) / scale.deviation).astype(np.float64)
    lengths = np.linalg.norm(scaled, axis=1)
    every = scaled @ scaled.T / lengths[:, None] / lengths
    for place, found, cosine in zip(places, rows, near, strict=True):
        others = [row for row in range(len(vectors)) if row != place]
        wanted = sorted(others, key=lambda row: -every[place, row])[:count]
        assert place not in found
        np.testing.assert_allclose(cosine, every[place, wanted], atol=1e-5)
        np.testing.assert_allclose(every[place, found], cosine, atol=1e-5)
    assert (rows[1, 0], rows[2, 0]) == (12, 7)


def test_a_block_is_scaled_by_column_and_a_merge_is_not():
    sample = np.array([[1, 1000, 5], [3, 3000, 5]], np.float32)
    np.testing.assert_array_equal(Scale.of(sample, by_column=True).apply(sample), [[-1, -1, 0], [1, 1, 0]])
    np.testing.assert_array_equal(Scale.of(sample, by_column=False).apply(sample), [[-1, -1000, 0], [1, 1000, 0]])


def test_a_vector_of_zeros_is_near_to_none():
    zeros, ones = np.zeros((1, 3), np.float32), np.ones((2, 3), np.float32)
    np.testing.assert_allclose(cosines(np.concatenate([zeros, ones]), ones), [[0, 0], [1, 1], [1, 1]], rtol=1e-6)


def test_the_plane_holds_the_two_directions_with_most_variance():
    rng = np.random.default_rng(2)
    directions = np.linalg.qr(rng.normal(size=(5, 5)))[0]
    scores = rng.normal(size=(400, 5)) * [9, 4, 0.1, 0.1, 0.1]
    points, shares = plane((scores @ directions).astype(np.float32), seed=0)
    for place in range(2):
        assert abs(np.corrcoef(points[:, place], scores[:, place])[0, 1]) > 0.999
    variance = scores.var(0)
    assert shares == pytest.approx((variance[0] / variance.sum(), variance[1] / variance.sum()), abs=0.02)


@pytest.mark.parametrize("vectors", [np.ones((4, 3)), np.arange(4.0).reshape(4, 1), np.ones((1, 3))])
def test_a_plane_of_fewer_directions_has_zeros(vectors):
    points, shares = plane(vectors.astype(np.float32), seed=0)
    assert points.shape == (len(vectors), 2)
    assert np.isfinite(points).all()
    assert (points[:, 1] == 0).all()
    assert shares[1] == 0


def test_a_map_of_neighbourhoods_keeps_groups_apart():
    rng = np.random.default_rng(3)
    vectors = (rng.normal(size=(40, 5)) + 50 * (np.arange(40) % 2)[:, None]).astype(np.float32)
    points = neighbourhood_map(vectors, seed=0)
    near = np.linalg.norm(points[:, None] - points[None], axis=2) + np.diag(np.full(40, np.inf))
    assert (near.argmin(1) % 2 == np.arange(40) % 2).all()


def test_what_is_no_profile_is_one_line(tmp_path):
    (tmp_path / "bad.parquet").write_text("no parquet")
    with pytest.raises(UserError, match="not a usable block or entry"):
        ProfileFile.open(tmp_path / "bad.parquet")
