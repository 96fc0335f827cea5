"""Blocks side by side: each value beside its own client, whatever the order; refusals name the remedy."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.decomposition import PCA
from sklearn.impute import SimpleImputer
from sklearn.preprocessing import QuantileTransformer, StandardScaler

from ubp.blocks.condition import ConditionSettings
from ubp.blocks.embeddings import EmbeddingTable
from ubp.blocks.entry import write_entry
from ubp.blocks.merge import (
    MERGE_KEYS,
    MergeSettings,
    check_histories,
    content_of,
    find_blocks,
    fit_merge,
    missing_blocks,
    put_together,
    without_missing,
)
from ubp.blocks.steps import BlockSettings, align
from ubp.blocks.widths import CUT
from ubp.cli.config import composed, parse
from ubp.data.paths import CONFIGS
from ubp.io.errors import UserError

MEAN = {"_target_": "sklearn.impute.SimpleImputer", "strategy": "mean"}
MINUS_ONE = {"_target_": "sklearn.impute.SimpleImputer", "strategy": "constant", "fill_value": -1.0}
STANDARD = {"_target_": "sklearn.preprocessing.StandardScaler"}
CLIENTS = np.array([5, 1, 9, 3, 7, 2])


def write(path, ids, vectors, **lineage):
    EmbeddingTable(np.asarray(ids, np.int64), np.asarray(vectors, np.float32), lineage).write(path)
    return path


def draw(ids, columns, seed=0):
    return np.random.default_rng(seed).normal(2, 3, (len(ids), columns)).astype(np.float32)


def merged(folder, blocks, clients=CLIENTS, imputer=None):
    chosen = MergeSettings(blocks, imputer)
    return fit_merge(chosen, find_blocks(chosen, folder), clients)[1]


ids_lists = st.lists(st.integers(-3, 30), unique=True)


@settings(max_examples=150, deadline=None)
@given(ids_lists, ids_lists)
def test_align_is_that_of_a_dict(block_ids, clients):
    table = EmbeddingTable(np.array(block_ids, np.int64), np.zeros((len(block_ids), 1), np.float32), {})
    rows, places = align(table, np.array(clients, np.int64))
    row_of = {client: row for row, client in enumerate(block_ids)}
    wanted = [(row_of[client], place) for place, client in enumerate(clients) if client in row_of]
    assert list(zip(rows.tolist(), places.tolist(), strict=True)) == wanted


@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_every_value_lands_beside_its_own_client(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("blocks")
    clients = data.draw(st.lists(st.integers(0, 20), unique=True, min_size=1))
    wanted = [[] for _ in clients]
    blocks = {}
    for name in ("a", "b"):
        # shuffled, with some clients missing and unknown_clients among them
        kept = data.draw(st.lists(st.sampled_from(clients), unique=True, min_size=1))
        unknown_clients = data.draw(st.lists(st.integers(50, 60), unique=True))
        ids = data.draw(st.permutations(kept + unknown_clients))
        vectors = np.array([[client, client * 100 + ord(name)] for client in ids], np.float32)
        write(folder / f"{name}.parquet", ids, vectors)
        vector_of = dict(zip(ids, vectors.tolist(), strict=True))
        for row, client in zip(wanted, clients, strict=True):
            row.extend(vector_of.get(client, [-1, -1]))
        blocks[name] = BlockSettings()
    found = merged(folder, blocks, np.array(clients), MINUS_ONE)
    assert found.dtype == np.float32
    assert found.tolist() == wanted


def test_a_block_of_all_clients_needs_no_imputer(tmp_path):
    vectors, folder = draw(CLIENTS, 3), tmp_path / "log [a]"  # whose name is no pattern
    folder.mkdir()
    write(folder / "a.parquet", CLIENTS[::-1], vectors[::-1])
    assert (merged(folder, {"a": BlockSettings()}) == vectors).all()


def test_missing_rows_without_an_imputer(tmp_path):
    write(tmp_path / "a.parquet", CLIENTS[:4], draw(CLIENTS[:4], 3))
    with pytest.raises(UserError, match="block a: 2 clients are without it and there is no imputer; name one"):
        merged(tmp_path, {"a": BlockSettings()})


@pytest.mark.parametrize(("imputer", "fills"), [(MEAN, "mean"), (MINUS_ONE, -1)])
@pytest.mark.parametrize("own", [True, False], ids=["the block's own", "the merge's"])
def test_imputers_fill_the_missing_rows_only(tmp_path, imputer, fills, own):
    vectors = draw(CLIENTS[:4], 3)
    write(tmp_path / "a.parquet", CLIENTS[:4], vectors)
    other = {"_target_": "sklearn.impute.SimpleImputer", "strategy": "constant", "fill_value": 99.0}
    block = BlockSettings(imputer=imputer) if own else BlockSettings()
    found = merged(tmp_path, {"a": block}, imputer=other if own else imputer)
    assert (found[:4] == vectors).all()
    wanted = np.broadcast_to(vectors.mean(axis=0) if fills == "mean" else fills, (2, 3))
    assert found[4:] == pytest.approx(wanted, rel=1e-5)


def test_drop_zeros_counts_zero_vectors_as_missing(tmp_path):
    vectors = draw(CLIENTS, 2)
    vectors[[0, 3]] = 0
    vectors[1, 0] = 0  # a single zero is a value
    write(tmp_path / "a.parquet", CLIENTS, vectors)
    kept = [1, 2, 4, 5]
    found = merged(tmp_path, {"a": BlockSettings(drop_zeros=True, scaler=STANDARD)}, imputer=MINUS_ONE)
    assert (found[[0, 3]] == -1).all()
    assert found[kept] == pytest.approx(StandardScaler().fit_transform(vectors[kept]), abs=1e-5)
    assert (merged(tmp_path, {"a": BlockSettings(drop_zeros=False)}) == vectors).all()


def test_a_scaler_is_of_each_column_or_of_all_values_at_once(tmp_path):
    vectors = draw(CLIENTS, 3) * [1, 10, 100]
    write(tmp_path / "a.parquet", CLIENTS, vectors)
    vectors = vectors.astype(np.float32)
    columns = merged(tmp_path, {"a": BlockSettings(scaler=STANDARD)})
    assert columns == pytest.approx((vectors - vectors.mean(0)) / vectors.std(0), abs=1e-4)
    whole = merged(tmp_path, {"a": BlockSettings(scaler=STANDARD | {"global": True})})
    assert whole == pytest.approx((vectors - vectors.mean()) / vectors.std(), abs=1e-4)
    assert merged(tmp_path, {"a": BlockSettings(scaler=STANDARD | {"global": False})}) == pytest.approx(columns)


def test_a_scaler_is_fitted_on_the_clients_of_the_entry(tmp_path):
    ids = [*CLIENTS, 100, 101]
    vectors = draw(ids, 2)
    vectors[-2:] = 1e6
    write(tmp_path / "a.parquet", ids, vectors)
    found = merged(tmp_path, {"a": BlockSettings(scaler=STANDARD)})
    assert found == pytest.approx(StandardScaler().fit_transform(vectors[:-2]), abs=1e-4)


def test_processor_then_scaler_as_plain_sklearn(tmp_path):
    ids = np.arange(40)
    vectors = draw(ids, 12)
    write(tmp_path / "a.parquet", ids, vectors)
    pca = {"_target_": "sklearn.decomposition.PCA", "n_components": 4, "random_state": 0}
    quantile = {"_target_": "sklearn.preprocessing.QuantileTransformer", "n_quantiles": 20, "random_state": 0}
    found = merged(tmp_path, {"a": BlockSettings(processor=pca, scaler=quantile)}, ids)
    reduced = PCA(4, random_state=0).fit_transform(vectors)
    wanted = QuantileTransformer(n_quantiles=20, random_state=0).fit_transform(reduced)
    assert found.shape == (40, 4)
    assert found == pytest.approx(wanted.astype(np.float32), abs=1e-5)


def test_a_processor_that_decides_its_own_width(tmp_path):
    ids = np.arange(40)
    vectors = draw(ids, 6)
    vectors[:, 3:] *= 1e-4
    write(tmp_path / "a.parquet", ids, vectors)
    most = {"_target_": "sklearn.decomposition.PCA", "n_components": 0.9}
    with pytest.raises(UserError, match="block a: it comes to 3 columns, not 6: say so with columns="):
        merged(tmp_path, {"a": BlockSettings(processor=most)}, ids)
    assert merged(tmp_path, {"a": BlockSettings(processor=most, columns=3)}, ids).shape == (40, 3)


def test_more_than_2048_columns(tmp_path):
    write(tmp_path / "a.parquet", [1], np.ones((1, 2000)))
    write(tmp_path / "b.parquet", [1], np.ones((1, 49)))
    with pytest.raises(UserError, match=r"2,049 columns \(a 2,000, b 49\); at most 2,048.*~blocks.NAME.*PCA"):
        merged(tmp_path, {"a": BlockSettings(), "b": BlockSettings()}, np.array([1]))
    write(tmp_path / "b.parquet", [1], np.ones((1, 48)))
    assert merged(tmp_path, {"a": BlockSettings(), "b": BlockSettings()}, np.array([1])).shape == (1, 2048)


def test_missing_blocks_are_each_named_with_those_that_exist(tmp_path):
    for name in ("there_b", "there_a"):
        write(tmp_path / f"{name}.parquet", [1], [[1.0]])
    (tmp_path / ".123.half.parquet").write_text("half")
    wanted = {"x": BlockSettings(), "there_a": BlockSettings(), "y": BlockSettings(path=str(tmp_path / "own"))}
    with pytest.raises(UserError) as caught:
        find_blocks(MergeSettings(wanted), tmp_path)
    first, second = caught.value.messages
    assert f"{tmp_path}/x.parquet: no such block (x); there are: there_a, there_b; make it" in first
    assert "~blocks.x" in first
    assert f"{tmp_path}/own: no such block (y)" in second


# What `without_missing` has from the registry.
LACKING = {"x": "x is left out: raw has no events of page_visit", "own": "own is left out: raw has no events"}


def without(folder, *names, skip=False, own=None):
    blocks = {name: BlockSettings() for name in names} | ({"own": BlockSettings(path=str(own))} if own else {})
    found, left_out = without_missing(MergeSettings(blocks, MEAN), folder, lambda: LACKING, skip)
    assert found.imputer == MEAN
    return list(found.blocks), left_out


def test_what_the_log_lacks_is_left_out_in_either_mode_and_all_else_with_skip(tmp_path):
    write(tmp_path / "there.parquet", [1], [[1.0]])
    assert without(tmp_path, "there") == (["there"], {})
    assert without(tmp_path, "there", "x") == (["there"], {"x": LACKING["x"]})
    assert without(tmp_path, "there", "x", "y") == (["there", "y"], {"x": LACKING["x"]})
    found, left_out = without(tmp_path, "there", "x", "y", skip=True)
    assert found == ["there"]
    assert left_out == {"x": LACKING["x"], "y": f"y is left out: {tmp_path}/y.parquet is not there"}


def test_the_log_is_not_read_where_every_block_is_there(tmp_path):
    write(tmp_path / "there.parquet", [1], [[1.0]])
    settings = MergeSettings({"there": BlockSettings()}, MEAN)
    _, left_out = without_missing(settings, tmp_path, lambda: pytest.fail("it is"), skip=False)
    assert left_out == {}


def test_a_block_that_is_there_is_kept_whatever_the_log_lacks(tmp_path):
    write(tmp_path / "x.parquet", [1], [[1.0]])
    assert without(tmp_path, "x", skip=True) == (["x"], {})


def test_a_path_of_ones_own_is_nothing_that_the_log_can_lack(tmp_path):
    write(tmp_path / "there.parquet", [1], [[1.0]])
    assert without(tmp_path, "there", own=tmp_path / "elsewhere") == (["there", "own"], {})
    assert without(tmp_path, "there", own=tmp_path / "elsewhere", skip=True)[0] == ["there"]


@pytest.mark.parametrize("skip", [False, True])
def test_a_merge_whose_blocks_are_all_left_out_is_an_error(tmp_path, skip):
    with pytest.raises(UserError) as caught:
        without(tmp_path, *(["x", "y"] if skip else ["x"]), skip=skip)
    *reasons, last = caught.value.messages
    assert reasons[0] == LACKING["x"]
    assert last.startswith(f"blocks: none of the merge's {len(reasons)} blocks is in {tmp_path}; make one")


def test_a_merge_of_nothing(tmp_path):
    with pytest.raises(UserError, match="needs at least one"):
        find_blocks(MergeSettings(), tmp_path)


def test_blocks_of_other_histories_are_each_named(tmp_path, caplog):
    paths = {
        "same": write(tmp_path / "same.parquet", [1], [[1.0]], fingerprint="now"),
        "old": write(tmp_path / "old.parquet", [1], [[1.0]], fingerprint="then"),
        "older": write(tmp_path / "older.parquet", [1], [[1.0]], fingerprint="long ago"),
        "unknown": write(tmp_path / "unknown.parquet", [1], [[1.0]]),
    }
    with pytest.raises(UserError) as caught:
        check_histories(paths, "now", tmp_path / "raw")
    first, second = caught.value.messages
    assert f"{paths['old']}: made from another history than {tmp_path / 'raw'}" in first
    assert "make older again" in second
    assert f"{paths['unknown']}: no lineage" in caplog.text
    check_histories({"same": paths["same"]}, "now", tmp_path / "raw")
    (tmp_path / "somebody_elses").mkdir()
    check_histories({"elses": tmp_path / "somebody_elses"}, "now", tmp_path / "raw")
    assert f"{tmp_path / 'somebody_elses'}: no lineage" in caplog.text


def test_a_folder_from_outside_is_a_block(tmp_path):
    outside = tmp_path / "theirs"
    outside.mkdir()
    vectors = draw(CLIENTS, 3).astype(np.float16)
    np.save(outside / "client_ids.npy", CLIENTS[::-1])
    np.save(outside / "embeddings.npy", vectors[::-1])
    own = draw(CLIENTS, 2)
    write(tmp_path / "own.parquet", CLIENTS, own)
    found = merged(tmp_path, {"own": BlockSettings(), "theirs": BlockSettings(path=str(outside))})
    assert (found == np.hstack([own, vectors])).all()


def test_a_block_of_none_of_the_clients(tmp_path):
    write(tmp_path / "a.parquet", [100, 101], np.ones((2, 3)))
    with pytest.raises(UserError, match="block a: it has none of the clients"):
        merged(tmp_path, {"a": BlockSettings()}, imputer=MEAN)


def test_values_that_a_scaler_makes_infinite(tmp_path):
    write(tmp_path / "a.parquet", CLIENTS, np.full((6, 2), 0.0))
    logarithm = {"_target_": "hydra.utils.get_method", "path": "numpy.log"}
    log = {"_target_": "sklearn.preprocessing.FunctionTransformer", "func": logarithm}
    with np.errstate(divide="ignore"), pytest.raises(UserError, match="block a: values that are not finite after"):
        merged(tmp_path, {"a": BlockSettings(scaler=log)})


@pytest.mark.parametrize(
    ("scaler", "says"),
    [
        ({"_target_": "sklearn.preprocessing.NoSuchScaler"}, "NoSuchScaler"),
        (STANDARD | {"no_such_setting": 1}, "no_such_setting"),
    ],
)
def test_a_transformer_that_does_not_exist_is_one_line(tmp_path, scaler, says):
    write(tmp_path / "a.parquet", CLIENTS, draw(CLIENTS, 2))
    with pytest.raises(UserError, match=says) as caught:
        merged(tmp_path, {"a": BlockSettings(scaler=scaler)})
    (message,) = caught.value.messages
    assert "\n" not in message


def test_a_transformer_that_does_not_fit_is_one_line(tmp_path):
    write(tmp_path / "a.parquet", CLIENTS, draw(CLIENTS, 20))
    pca = {"_target_": "sklearn.decomposition.PCA", "n_components": 0.9, "svd_solver": "arpack"}
    with pytest.raises(UserError, match=r"block a: n_components=0\.9 must be between") as caught:
        merged(tmp_path, {"a": BlockSettings(processor=pca)})
    assert len(caught.value.messages) == 1


def test_a_folder_beside_the_parquets_is_found_by_its_name(tmp_path):
    write_entry(tmp_path / "theirs", np.arange(3), np.ones((3, 2), np.float32))
    assert find_blocks(MergeSettings({"theirs": BlockSettings()}), tmp_path) == {"theirs": tmp_path / "theirs"}


# --- the five ensembles ------------------------------------------------------------------------------

UNIT, QUANTILES, PCA_64, PCA_128 = "unit_length", "quantiles", 64, 128
# Each block's processor and scaler, in the order of the columns, as docs/models.md has them.
SMALLEST = {
    "als_64_buy_add_categories": (None, UNIT),
    "als_64_visits_relevant": (None, UNIT),
    "next_sku_128_4_4": (None, UNIT),
    "next_url_192_6_4": (None, UNIT),
    "stat_features": (None, QUANTILES),
    "gru_ae_day_event": (None, UNIT),
    "gru_ae_sku_text": (PCA_64, UNIT),
    "smollm2_all_interactions": (PCA_128, UNIT),
    "search_llm": (PCA_64, UNIT),
}
LARGER = SMALLEST | {"gru_ae_event_cat_price_sku_url": (PCA_64, UNIT)}
WITH_WEEK = LARGER | {"gru_ae_week_event_cat_price_sku_url": (PCA_64, UNIT)}
ENSEMBLES = {
    "score_4_7406": (SMALLEST, "constant"),
    "score_4_7418": (SMALLEST, "mean"),
    "score_4_7484": (LARGER, "mean"),
    "score_4_7499": (WITH_WEEK, "mean"),
    "best_solution": (WITH_WEEK | {"lightfm": (None, UNIT)}, "mean"),
}
SCALERS = {
    "sklearn.preprocessing.Normalizer": UNIT,
    "sklearn.preprocessing.QuantileTransformer": QUANTILES,
}


def ensemble(name):
    return parse(MergeSettings, composed(CONFIGS / "merge", name, ["data_path=x"]), MERGE_KEYS)


@pytest.mark.parametrize("name", ENSEMBLES)
def test_ensembles_are_the_published_ones(name):
    blocks, strategy = ENSEMBLES[name]
    profile = ensemble(name)
    found = {
        block: (settings.processor and settings.processor["n_components"], SCALERS[settings.scaler["_target_"]])
        for block, settings in profile.blocks.items()
    }
    assert list(found.items()) == list(blocks.items())
    assert all(settings.drop_zeros and settings.imputer is None for settings in profile.blocks.values())
    assert profile.imputer["strategy"] == strategy
    assert profile.imputer.get("fill_value", 0) == 0
    quantiles = profile.blocks["stat_features"].scaler
    assert quantiles["output_distribution"] == "uniform"


def by_plain_sklearn(ids, vectors, clients, processor, scaler, fill):
    """One block of an ensemble, client by client where it can be."""
    row_of = {client: row for row, client in enumerate(ids) if vectors[row].any()}
    kept = vectors[[row_of[client] for client in clients if client in row_of]].astype(np.float64)
    if processor:
        kept = PCA(processor, svd_solver="full").fit_transform(kept)
    if scaler == UNIT:
        kept = np.array([vector / np.linalg.norm(vector) for vector in kept])
    else:
        kept = QuantileTransformer(random_state=0).fit_transform(kept)
    values = iter(kept)
    missing = kept.mean(axis=0) if fill == "mean" else np.zeros(kept.shape[1])
    return np.array([next(values) if client in row_of else missing for client in clients])


@pytest.mark.parametrize(
    "name",
    [pytest.param("score_4_7406", marks=pytest.mark.full), pytest.param("best_solution", marks=pytest.mark.long)],
)
def test_an_ensemble_is_that_of_plain_sklearn(tmp_path, name):
    blocks, fill = ENSEMBLES[name]
    rng = np.random.default_rng(1)
    clients = rng.permutation(1200)
    wanted = []
    for number, (block, (processor, scaler)) in enumerate(blocks.items()):
        # Some clients lack the block, some have zeros, unknown clients are in it; search_llm has 64 columns.
        ids = rng.permutation(1500)[:1300]
        columns = 64 if block == "search_llm" else (processor or 5) + number
        # Directions of clearly different lengths: PCA's are then the same whoever computes them.
        vectors = (rng.normal(size=(1300, columns)) * np.linspace(6, 1, columns) ** 2 + 1).astype(np.float32)
        vectors[:40] = 0
        write(tmp_path / f"{block}.parquet", ids, vectors)
        wanted.append(by_plain_sklearn(ids.tolist(), vectors, clients.tolist(), processor, scaler, fill))
    _, found = fit_merge(ensemble(name), find_blocks(ensemble(name), tmp_path), clients)
    assert found.dtype == np.float32
    assert found == pytest.approx(np.hstack(wanted), abs=2e-3)
    assert np.abs(found - np.hstack(wanted)).mean() < 1e-5


def pca_of(columns):
    return BlockSettings(
        drop_zeros=True,
        processor={"_target_": "sklearn.decomposition.PCA", "n_components": columns, "svd_solver": "covariance_eigh"},
    )


@pytest.mark.parametrize("kind", ["parquet", "folder"])
@pytest.mark.parametrize(
    ("clients", "columns", "line"),
    [
        (200, 32, "block a: n_components: 64 asked, 32 columns: 32 columns"),
        (20, 32, "block a: n_components: 64 asked, 15 clients with it: 15 columns"),
        (200, 64, None),
    ],
)
def test_a_pca_wider_than_the_data_allow_is_cut_with_a_line(tmp_path, caplog, kind, clients, columns, line):
    """Clients with a vector of zeros, and those that are not asked for, count for nothing."""
    ids = np.arange(clients + 7)
    vectors = draw(ids, columns)
    vectors[:5] = 0
    if kind == "folder":
        write_entry(tmp_path / "a", ids, vectors)
    else:
        write(tmp_path / "a.parquet", ids, vectors)
    found = merged(tmp_path, {"a": pca_of(64)}, ids[:clients], MEAN)
    width = min(64, columns, clients - 5)
    assert found.shape == (clients, width)
    kept = read_back(tmp_path, kind)[5:clients]
    wanted = PCA(width, svd_solver="full").fit_transform(kept)
    assert found[5:] @ found[5:].T == pytest.approx(wanted @ wanted.T, rel=1e-3, abs=0.5)
    assert [message for message in caplog.messages if CUT in message] == ([line] if line else [])


def read_back(folder, kind):
    return EmbeddingTable.read(folder / ("a" if kind == "folder" else "a.parquet")).vectors


def test_a_pca_to_the_blocks_own_width_is_a_rotation(tmp_path):
    ids = np.arange(300)
    vectors = draw(ids, 8)
    write(tmp_path / "a.parquet", ids, vectors)
    same = {"_target_": "sklearn.decomposition.PCA", "n_components": 8, "svd_solver": "covariance_eigh"}
    found = merged(tmp_path, {"a": BlockSettings(processor=same)}, ids)
    centred = vectors - vectors.mean(axis=0)
    assert found @ found.T == pytest.approx(centred @ centred.T, abs=0.02)


def test_pca_gives_the_same_bits_again(tmp_path):
    ids = np.arange(500)
    write(tmp_path / "a.parquet", ids, draw(ids, 100))
    pca = ensemble("best_solution").blocks["gru_ae_sku_text"].processor
    first, again = (merged(tmp_path, {"a": BlockSettings(processor=pca)}, ids) for _ in range(2))
    assert first.tobytes() == again.tobytes()


@pytest.mark.parametrize("imputer", [MEAN, MEAN | {"strategy": "median"}, MINUS_ONE])
def test_imputing_is_that_of_sklearn_on_the_whole_block(tmp_path, imputer):
    clients = np.arange(50)
    vectors = draw(clients, 4)
    write(tmp_path / "a.parquet", clients[10:], vectors[10:])
    whole = vectors.copy()
    whole[:10] = np.nan
    wanted = SimpleImputer(**{key: value for key, value in imputer.items() if key != "_target_"}).fit_transform(whole)
    assert merged(tmp_path, {"a": BlockSettings()}, clients, imputer) == pytest.approx(wanted, abs=1e-5)


def test_the_file_is_left_as_it_is(tmp_path):
    path = write(tmp_path / "a.parquet", CLIENTS, draw(CLIENTS, 3))
    before = path.read_bytes()
    in_place = {"_target_": "sklearn.preprocessing.Normalizer", "copy": False}
    merged(tmp_path, {"a": BlockSettings(scaler=in_place)})
    assert path.read_bytes() == before


def test_a_merge_is_conditioned_at_last(tmp_path):
    for name in ("a", "b"):
        write(tmp_path / f"{name}.parquet", CLIENTS, draw(CLIENTS, 3, seed=ord(name)))
    chosen = MergeSettings({"a": BlockSettings(), "b": BlockSettings(weight=2.0)}, None, ConditionSettings())
    fitted, found = fit_merge(chosen, find_blocks(chosen, tmp_path), CLIENTS)
    assert found.shape == (6, 7) == (6, fitted.columns)
    assert np.linalg.norm(found[:, 3:6]) == pytest.approx(2 * np.linalg.norm(found[:, :3]), rel=1e-5)
    assert len(np.unique(found[:, -1])) == 1


def test_a_rotation_of_few_clients_is_narrower(tmp_path):
    write(tmp_path / "a.parquet", CLIENTS, draw(CLIENTS, 9))
    chosen = MergeSettings({"a": BlockSettings()}, None, ConditionSettings(rotate=20))
    fitted, found = fit_merge(chosen, find_blocks(chosen, tmp_path), CLIENTS)
    assert found.shape == (6, 7) == (6, fitted.columns)
    assert (np.ptp(found, axis=0) == 0).sum() == 1


def test_the_constant_counts_as_a_column(tmp_path):
    write(tmp_path / "a.parquet", CLIENTS, draw(CLIENTS, 2048))
    chosen = MergeSettings({"a": BlockSettings()}, None, ConditionSettings())
    with pytest.raises(UserError, match=r"2,049 columns \(a 2,048, the constant 1\)"):
        fit_merge(chosen, find_blocks(chosen, tmp_path), CLIENTS)


def test_conditioned_forms_of_the_published_ensembles():
    plain, default, own = (
        parse(MergeSettings, composed(CONFIGS / "merge", name, ["data_path=x", *words]), MERGE_KEYS)
        for name, *words in (["best_solution"], ["best_solution", "condition=default"], ["best_solution_conditioned"])
    )
    assert plain.condition is None
    assert default == own
    assert own.condition == ConditionSettings()


# --- put together from parts ---------------------------------------------------------------------------

CONDITIONS = {
    "none": None,
    "default": ConditionSettings(),
    "offset": ConditionSettings(constant=2.0, offset=0.4),
    "rotated": ConditionSettings(rotate=3),
    "lengths kept": ConditionSettings(block_scale="none"),
}


@pytest.mark.parametrize("names", ["abc", "ac", "b"])
@pytest.mark.parametrize("condition", CONDITIONS)
def test_parts_put_together_are_the_merge_of_these_blocks_alone(tmp_path, condition, names):
    blocks = {
        "a": BlockSettings(scaler=STANDARD),
        "b": BlockSettings(processor={"_target_": "sklearn.decomposition.PCA", "n_components": 2}, weight=2.0),
        "c": BlockSettings(weight=0.5),
    }
    for seed, (name, columns) in enumerate({"a": 2, "b": 4, "c": 3}.items()):
        write(tmp_path / f"{name}.parquet", CLIENTS[seed:], draw(CLIENTS[seed:], columns, seed))
    raw = MergeSettings(blocks, MEAN)
    fitted, matrix = fit_merge(raw, find_blocks(raw, tmp_path), CLIENTS)
    ends = np.cumsum([block.columns for block in fitted.blocks])
    parts = dict(zip("abc", np.split(matrix, ends[:-1], axis=1), strict=True))
    before = matrix.copy()
    conditioned = MergeSettings(blocks, MEAN, CONDITIONS[condition])
    found = put_together(conditioned, {name: parts[name] for name in names})
    part = MergeSettings({name: blocks[name] for name in names}, MEAN, CONDITIONS[condition])
    _, wanted = fit_merge(part, find_blocks(part, tmp_path), CLIENTS)
    assert found.shape == wanted.shape
    assert found == pytest.approx(wanted, abs=1e-4)
    assert matrix.tobytes() == before.tobytes()


def test_parts_that_have_no_room_together():
    parts = {"a": np.ones((2, 1500), np.float32), "b": np.ones((2, 549), np.float32)}
    with pytest.raises(UserError, match="2,049 columns"):
        put_together(MergeSettings({"a": BlockSettings(), "b": BlockSettings()}), parts)


def test_which_blocks_are_missing(tmp_path):
    write(tmp_path / "a.parquet", CLIENTS, draw(CLIENTS, 2))
    write_entry(tmp_path / "b", CLIENTS, draw(CLIENTS, 2))
    blocks = {
        "a": BlockSettings(),
        "b": BlockSettings(),
        "c": BlockSettings(),
        "d": BlockSettings(path="/else/d.parquet"),
    }
    missing = missing_blocks(MergeSettings(blocks), tmp_path)
    assert {name: str(path) for name, path in missing.items()} == {
        "c": str(tmp_path / "c.parquet"),
        "d": "/else/d.parquet",
    }


def test_contents_are_told_apart_whatever_their_names(tmp_path):
    first, second = (write(tmp_path / f"{name}.parquet", CLIENTS, draw(CLIENTS, 2)) for name in "ab")
    assert content_of(first) == content_of(second)
    write(second, CLIENTS, draw(CLIENTS, 2, seed=1))
    assert content_of(first) != content_of(second)
    write_entry(tmp_path / "c", CLIENTS, draw(CLIENTS, 2))
    before = content_of(tmp_path / "c")
    write_entry(tmp_path / "c", CLIENTS[::-1], draw(CLIENTS, 2))
    assert content_of(tmp_path / "c") != before
