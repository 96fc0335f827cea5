"""Fitted transformers: kept without pickle, restored to the same bits."""

import json

import numpy as np
import pytest
import safetensors.numpy
from sklearn.decomposition import PCA

from ubp.blocks.transformers import FittedTransformer, RootMeanSquare
from ubp.io.errors import UserError

PREPROCESSING = "sklearn.preprocessing"
KEPT = {
    "unit length": {"_target_": f"{PREPROCESSING}.Normalizer"},
    "quantiles": {"_target_": f"{PREPROCESSING}.QuantileTransformer", "n_quantiles": 20, "random_state": 0},
    "normal quantiles": {
        "_target_": f"{PREPROCESSING}.QuantileTransformer",
        "n_quantiles": 20,
        "output_distribution": "normal",
        "random_state": 0,
    },
    "standard": {"_target_": f"{PREPROCESSING}.StandardScaler"},
    "standard of all values": {"_target_": f"{PREPROCESSING}.StandardScaler", "global": True},
    "not of all values": {"_target_": f"{PREPROCESSING}.StandardScaler", "global": False},
    "min and max": {"_target_": f"{PREPROCESSING}.MinMaxScaler"},
    "robust": {"_target_": f"{PREPROCESSING}.RobustScaler"},
    "an estimator within": {"_target_": f"{PREPROCESSING}.PowerTransformer"},
    "lists of arrays": {"_target_": f"{PREPROCESSING}.KBinsDiscretizer", "n_bins": 3, "encode": "ordinal"},
    "root mean square": {"_target_": "ubp.blocks.transformers.RootMeanSquare"},
    "PCA by the covariance": {
        "_target_": "sklearn.decomposition.PCA", "n_components": 4, "svd_solver": "covariance_eigh", "random_state": 0,
    },
    "PCA by all": {"_target_": "sklearn.decomposition.PCA", "n_components": 4, "svd_solver": "full", "whiten": True},
    "PCA in place": {"_target_": "sklearn.decomposition.PCA", "n_components": 4, "copy": False},
    "truncated": {"_target_": "sklearn.decomposition.TruncatedSVD", "n_components": 3, "random_state": 0},
    "mean": {"_target_": "sklearn.impute.SimpleImputer", "strategy": "mean"},
    "zero": {"_target_": "sklearn.impute.SimpleImputer", "strategy": "constant", "fill_value": 0.0},
    "a pipeline": {
        "_target_": "sklearn.pipeline.Pipeline",
        "steps": [
            ["scale", {"_target_": f"{PREPROCESSING}.StandardScaler"}],
            ["reduce", {"_target_": "sklearn.decomposition.PCA", "n_components": 2}],
        ],
    },
}  # fmt: skip


def draw(rows, seed=0):
    values = np.random.default_rng(seed).normal(2, 3, (rows, 6)) * np.arange(1, 7)
    return values.astype(np.float32)


def kept_and_restored(fitted, folder):
    """Through the files, as a fitted merge goes."""
    arrays = {}
    text = json.dumps(fitted.state("a", arrays))
    # Zero-dimensional arrays become lists of one, as in `ubp.blocks.fitted.save`.
    safetensors.numpy.save_file({key: np.ascontiguousarray(value) for key, value in arrays.items()}, folder / "a")
    return FittedTransformer.from_state(json.loads(text), safetensors.numpy.load_file(folder / "a"))


@pytest.mark.parametrize("settings", KEPT.values(), ids=KEPT.keys())
def test_a_restored_transformer_gives_the_same_bits(settings, tmp_path):
    fitted = FittedTransformer.fit(settings, draw(200))
    restored = kept_and_restored(fitted, tmp_path)
    for values in (draw(200), draw(77, seed=1), draw(1, seed=2)):
        wanted, found = fitted.apply(values.copy()), restored.apply(values.copy())
        assert found.dtype == np.float32
        assert found.tobytes() == wanted.tobytes()


def test_imputers_fill_after_they_were_restored(tmp_path):
    missing = np.full((2, 6), np.nan, np.float32)
    for name, wanted in (("mean", draw(200).mean(axis=0)), ("zero", np.zeros(6))):
        restored = kept_and_restored(FittedTransformer.fit(KEPT[name], draw(200)), tmp_path)
        assert restored.apply(missing) == pytest.approx(np.stack([wanted, wanted]), rel=1e-5)


def test_numbers_keep_their_kinds_and_arrays_their_order(tmp_path):
    fitted = FittedTransformer.fit(KEPT["PCA by the covariance"], draw(200))
    restored = kept_and_restored(fitted, tmp_path)
    assert type(restored.transformer.noise_variance_) is np.float32
    assert fitted.transformer.components_.flags.f_contiguous
    assert restored.transformer.components_.flags.f_contiguous
    for name, value in vars(fitted.transformer).items():
        assert type(getattr(restored.transformer, name)) is type(value), name


def test_a_transformer_that_works_in_place_is_fitted_on_a_copy():
    values = draw(50)
    fitted = FittedTransformer.fit(KEPT["PCA in place"], values)
    assert (values == draw(50)).all()
    assert np.abs(fitted.apply(values)) == pytest.approx(np.abs(PCA(4).fit_transform(draw(50))), abs=1e-3)


class Odd:
    """Its attribute is a set."""

    def fit(self, values):
        self.seen_ = set(values[0].tolist())
        return self

    def transform(self, values):
        return values


def test_an_attribute_that_cannot_be_kept_is_named():
    fitted = FittedTransformer.fit({"_target_": f"{__name__}.Odd"}, draw(3))
    with pytest.raises(UserError, match=r"^Odd\.seen_: a set can be kept neither as an array nor as JSON$"):
        fitted.state("a", {})


def test_a_transformer_of_nothing_but_its_own_values_is_refused():
    with pytest.raises(UserError, match=r"sklearn.manifold.TSNE: has no transform\(\)"):
        FittedTransformer.fit({"_target_": "sklearn.manifold.TSNE"}, draw(3))


def test_no_class_from_elsewhere_is_made_of_what_was_kept():
    state = {
        "settings": KEPT["unit length"],
        "attributes": {"x": {"estimator": ["subprocess", "Popen"], "fields": {}}},
    }
    with pytest.raises(UserError, match=r"subprocess\.Popen: no estimator of scikit-learn"):
        FittedTransformer.from_state(state, {})


def test_vectors_keep_their_relative_lengths_at_a_root_mean_square_of_one():
    vectors = np.random.default_rng(0).normal(3, 2, (50, 4)).astype(np.float32) * np.arange(1, 51)[:, None]
    scaled = RootMeanSquare().fit_transform(vectors)
    assert (scaled**2).sum(axis=1).mean() == pytest.approx(1)
    lengths = np.linalg.norm(vectors, axis=1), np.linalg.norm(scaled, axis=1)
    np.testing.assert_allclose(lengths[1] / lengths[0], lengths[1][0] / lengths[0][0], rtol=1e-5)
    fitted = RootMeanSquare().fit(vectors)
    np.testing.assert_allclose(fitted.transform(vectors[:3]), scaled[:3])
    assert not RootMeanSquare().fit_transform(np.zeros((3, 2), np.float32)).any()
