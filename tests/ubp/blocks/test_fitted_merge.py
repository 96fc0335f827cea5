"""A merge is fitted: from its own files and those of its blocks it encodes any clients on any day."""

import json
import shutil
from dataclasses import replace
from datetime import datetime

import numpy as np
import polars as pl
import pytest

from stat_features.recipe import StatFeaturesRecipe
from tests.ubp.blocks.toy import make_purchases
from ubp.blocks import merge
from ubp.blocks.condition import ConditionSettings
from ubp.blocks.embeddings import EmbeddingTable
from ubp.blocks.entry import write_entry
from ubp.blocks.fitted import is_fitted, lineage_of, load, save
from ubp.blocks.merge import MergeSettings, find_blocks, fit_merge
from ubp.blocks.steps import BlockSettings
from ubp.data.history import ChallengeData
from ubp.data.schema import EVENT_TYPES, EventType
from ubp.io.errors import UserError

QUANTILES = {"_target_": "sklearn.preprocessing.QuantileTransformer", "n_quantiles": 20, "random_state": 0}
PCA = {"_target_": "sklearn.decomposition.PCA", "n_components": 8, "svd_solver": "covariance_eigh"}
STANDARD = {"_target_": "sklearn.preprocessing.StandardScaler", "global": True}
MEAN = {"_target_": "sklearn.impute.SimpleImputer", "strategy": "mean"}
NOBODY = 999_999


@pytest.fixture
def paths(history):
    """The tiny history; every second client is relevant, and both blocks are made."""
    ids = ChallengeData(history, submit=True).seen()
    history.input.mkdir()
    np.save(history.relevant_clients, ids[::2])
    data = ChallengeData(history, submit=True)
    fitted = StatFeaturesRecipe().fit(data, 0, history.cache).block
    lineage = {"name": "stat_features", "fingerprint": data.fingerprint, "as_of": data.as_of.isoformat(sep=" ")}
    save(fitted, history.model("stat_features", submit=True), lineage)
    table = fitted.encode(data, data.relevant_clients)
    EmbeddingTable(table.client_ids, table.vectors, lineage).write(history.block("stat_features", submit=True))
    make_purchases(history)
    return history


def merged(paths, condition=None, imputer=MEAN, **blocks):
    """A merge as scripts/merge.py keeps it: loaded again, with its profiles and its clients."""
    usual = {
        "stat_features": BlockSettings(processor=PCA, scaler=QUANTILES),
        "purchases": BlockSettings(scaler=STANDARD, drop_zeros=True),
    }
    settings = MergeSettings(blocks or usual, imputer, condition)
    data = ChallengeData(paths, submit=True)
    folder = paths.model("tiny", submit=True)
    found = find_blocks(settings, paths.embeddings(submit=True))
    fitted, profiles = fit_merge(settings, found, data.clients, folder)
    save(fitted, folder, {"name": "tiny"})
    return load(folder), profiles, data


def lines_of(fitted, data):
    with pytest.raises(UserError) as caught:
        fitted.encode(data)
    return caught.value.messages


def test_a_column_is_called_by_its_block_and_its_own_name_there(paths):
    model = paths.model("stat_features", submit=True)
    own = {f"column {number}": "" for number in range(43)}
    save(load(model), model, lineage_of(model) | {"columns": own})
    blocks = {"stat_features": BlockSettings(), "purchases": BlockSettings()}
    whole = [f"stat_features: {name}" for name in own] + [f"purchases: {place}" for place in range(3)]
    fitted, _, _ = merged(paths, **blocks)
    assert fitted.column_names == whole
    constant, _, _ = merged(paths, ConditionSettings(constant=1.0), **blocks)
    assert constant.column_names == [*whole, "constant"]
    rotated, _, _ = merged(paths, ConditionSettings(rotate=2, constant=1.0), **blocks)
    assert rotated.column_names == ["rotated: 0", "rotated: 1", "rotated: 2"]
    shutil.rmtree(model)
    assert fitted.column_names[:2] == ["stat_features: 0", "stat_features: 1"]
    assert replace(fitted, folder=None).column_names[-1] == "purchases: 2"


def test_the_clients_of_the_entry_get_its_profiles(paths):
    fitted, profiles, data = merged(paths)
    found = fitted.encode(data, data.relevant_clients)
    assert found.client_ids.tolist() == data.clients.tolist()
    assert found.vectors.shape == (len(data.clients), 8 + 3)
    assert found.vectors.tobytes() == profiles.tobytes()
    assert fitted.refusals == []


def test_clients_that_were_not_merged_get_rows_those_without_events_none(paths):
    fitted, profiles, data = merged(paths)
    everybody = data.seen()
    found = fitted.encode(data, np.append(everybody, NOBODY))
    assert found.client_ids.tolist() == everybody.tolist()
    assert len(everybody) > len(data.clients)
    rows = np.isin(everybody, data.clients)
    np.testing.assert_allclose(found.vectors[rows], profiles, atol=1e-4)  # PCA rounds by the number of rows


def test_a_pca_that_was_cut_encodes_in_its_width(paths, caplog):
    wide = {"purchases": BlockSettings(processor=PCA | {"n_components": 64})}
    fitted, profiles, data = merged(paths, **wide)
    assert "block purchases: n_components: 64 asked, 3 columns: 3 columns" in caplog.text
    assert fitted.columns == profiles.shape[1] == 3
    assert fitted.encode(data, data.relevant_clients).vectors.tobytes() == profiles.tobytes()
    assert fitted.encode(data, data.clients[:1]).columns == 3


def test_a_missing_block_is_imputed_with_what_was_saved(paths):
    fitted, _, data = merged(paths)
    buyers = pl.read_parquet(data.file(EventType.PRODUCT_BUY))["client_id"]
    without = np.setdiff1d(data.seen(), buyers.to_numpy())
    assert len(without) > 0
    means = fitted.blocks[1].steps.imputer.transformer.statistics_
    alone = fitted.encode(data, without)  # nobody here has the block
    assert (alone.vectors[:, 8:] == means.astype(np.float32)).all()
    assert alone.client_ids.tolist() == without.tolist()


def test_another_day_gives_other_profiles_and_reads_no_later_event(paths):
    fitted, profiles, data = merged(paths)
    day = datetime(2023, 1, 20)
    earlier = fitted.encode(data, data.clients, day)
    assert not np.array_equal(earlier.vectors, profiles[: len(earlier)])
    for event_type in EVENT_TYPES:
        file = data.file(event_type)
        table = pl.read_parquet(file)
        table.filter(pl.col("timestamp") < "2023-01-20").write_parquet(file)
    cut = ChallengeData(paths, submit=True)
    assert fitted.encode(cut, data.clients, day).vectors.tobytes() == earlier.vectors.tobytes()


def test_a_block_that_was_fitted_anew_or_is_gone_is_named(paths):
    fitted, _, data = merged(paths)
    make_purchases(paths)  # the same bits again: no other block
    fitted.encode(data)
    make_purchases(paths, weights=(1, 1, 1))
    (paths.model("stat_features", submit=True) / "block.json").unlink()
    gone, anew = lines_of(fitted, data)
    assert gone.startswith(f"block stat_features: no fitted block {paths.model('stat_features', submit=True)}; make ")
    assert anew == "block purchases: fitted anew since the merge; merge again"


def test_a_block_that_is_fitted_anew_while_the_others_are_read_is_named(paths, monkeypatch):
    fitted, _, data = merged(paths)

    def load_and_fit_anew(folder):
        make_purchases(paths, weights=(1, 1, 1))
        return load(folder)

    monkeypatch.setattr(merge, "load", load_and_fit_anew)
    assert lines_of(fitted, data) == ["block purchases: fitted anew since the merge; merge again"]


def test_blocks_without_a_fit_are_named_at_the_merge_and_refused_at_encoding(paths, tmp_path):
    data = ChallengeData(paths, submit=True)
    write_entry(tmp_path / "theirs", data.clients, np.ones((len(data.clients), 2), np.float32))
    other = make_purchases(paths, weights=(3, 3, 3), name="other")
    other_parquet = EmbeddingTable.read(paths.block("other", submit=True))
    make_purchases(paths, weights=(4, 4, 4), name="other")
    other_parquet.write(paths.block("other", submit=True))  # of the fit before
    assert other.weights.tolist() == [3, 3, 3]
    fitted, profiles, _ = merged(
        paths,
        purchases=BlockSettings(),
        theirs=BlockSettings(path=str(tmp_path / "theirs")),
        other=BlockSettings(),
    )
    assert profiles.shape == (len(data.clients), 8)
    theirs, stale = fitted.refusals
    assert theirs.startswith(f"block theirs: {tmp_path / 'theirs'} is a folder of .npy files, without a fitted block; ")
    assert "was not made by the fitted block" in stale
    assert "make other again" in stale
    assert lines_of(fitted, data) == [theirs, stale]


def test_a_transformer_that_cannot_be_kept_is_refused_at_encoding(paths):
    odd = {"_target_": "tests.ubp.blocks.test_transformers.Odd"}
    fitted, profiles, data = merged(paths, purchases=BlockSettings(scaler=odd))
    assert profiles.shape[1] == 3
    (line,) = lines_of(fitted, data)
    assert line.startswith("block purchases: Odd.seen_: a set can be kept neither as an array nor as JSON; choose ")


def test_a_missing_block_without_an_imputer(paths):
    data = ChallengeData(paths, submit=True)
    buyers = pl.read_parquet(data.file(EventType.PRODUCT_BUY))["client_id"].to_numpy()
    np.save(paths.relevant_clients, np.intersect1d(data.relevant_clients, buyers))
    make_purchases(paths)
    fitted, _, data = merged(paths, imputer=None, purchases=BlockSettings())
    (line,) = lines_of(fitted, data)
    assert line.startswith("block purchases: ")
    assert "clients are without it and there is no imputer; name one; merge again" in line


def test_one_block_twice_by_its_path(paths):
    twice = BlockSettings(path=str(paths.block("purchases", submit=True)), scaler=STANDARD)
    fitted, profiles, data = merged(paths, purchases=BlockSettings(), scaled=twice)
    assert fitted.encode(data, data.clients).vectors.tobytes() == profiles.tobytes()


def test_a_merge_that_is_not_kept_says_so(paths):
    settings = MergeSettings({"purchases": BlockSettings()}, MEAN)
    data = ChallengeData(paths, submit=True)
    fitted, _ = fit_merge(settings, find_blocks(settings, paths.embeddings(submit=True)), data.clients)
    assert lines_of(fitted, data) == [
        "the merge was not kept, so it has no fitted blocks beside it; merge with a folder"
    ]


def test_what_is_kept_is_json_and_arrays(paths):
    merged(paths)
    folder = paths.model("tiny", submit=True)
    assert is_fitted(folder)
    assert sorted(file.name for file in folder.iterdir()) == ["block.json", "weights.safetensors"]
    assert json.loads((folder / "block.json").read_text())["class"] == "ubp.blocks.merge:FittedMerge"
