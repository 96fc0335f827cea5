"""A space that was turned is turned back; one that has nothing to do with the old one is said to have not."""

import numpy as np
import pytest
from scipy.stats import ortho_group

from ubp.io.errors import UserError
from ubp.nightly.rotation import Rotation

RNG = np.random.default_rng(3)


def old_profiles(clients=400, columns=6) -> np.ndarray:
    return (RNG.normal(size=(clients, columns)) * np.arange(1, columns + 1) + 5).astype(np.float32)


def test_a_planted_rotation_is_found():
    old, turn = old_profiles(), ortho_group.rvs(6, random_state=1)
    new = ((old - 2) @ turn).astype(np.float32)
    rotation = Rotation.fit(new[:200], old[:200])
    assert rotation.clients == 200
    assert rotation.residual < 1e-5
    np.testing.assert_allclose(rotation.apply(new), old, atol=1e-4)


def test_distances_stay_what_they_are():
    old, new = old_profiles(), old_profiles()
    turned = Rotation.fit(new, old).apply(new)

    def distances(vectors):
        return np.linalg.norm(vectors[:50, None] - vectors[None, :50], axis=2)

    np.testing.assert_allclose(distances(turned), distances(new), rtol=1e-4, atol=1e-3)


def test_noise_is_in_the_residual():
    old = old_profiles(2_000)
    turn = ortho_group.rvs(6, random_state=2)
    spread = np.linalg.norm(old - old.mean(axis=0)) / np.sqrt(old.size)
    new = (old @ turn + RNG.normal(size=old.shape) * 0.1 * spread).astype(np.float32)
    assert Rotation.fit(new, old).residual == pytest.approx(0.1, abs=0.01)


def test_spaces_that_have_nothing_in_common():
    one, other = (RNG.normal(size=(5_000, 6)).astype(np.float32) for _ in range(2))
    assert Rotation.fit(one, other).residual == pytest.approx(np.sqrt(2), abs=0.06)


def test_fewer_columns_than_before_and_more():
    old = old_profiles()
    flat = old.copy()
    flat[:, 4:] = old[:, 4:].mean(axis=0)
    turn = ortho_group.rvs(4, random_state=1)
    new = (flat[:, :4] @ turn).astype(np.float32)
    rotation = Rotation.fit(new, flat)
    assert rotation.turn.shape == (4, 6)
    np.testing.assert_allclose(rotation.apply(new), flat, atol=1e-3)
    with pytest.raises(UserError, match="the new profiles have 6 columns, the old ones 4: they do not fit"):
        Rotation.fit(old, new)


def test_it_is_kept(tmp_path):
    old = old_profiles()
    rotation = Rotation.fit(old[:, ::-1].copy(), old)
    rotation.write(tmp_path / "a" / "r.npz")
    again = Rotation.read(tmp_path / "a" / "r.npz")
    assert (again.residual, again.clients) == (rotation.residual, 400)
    assert again.apply(old).tobytes() == rotation.apply(old).tobytes()
    with pytest.raises(UserError, match=r"b.npz: not readable"):
        Rotation.read(tmp_path / "b.npz")
