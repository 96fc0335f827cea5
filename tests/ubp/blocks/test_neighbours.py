"""The nearest clients against a plain sort of all cosines; the index against the exact search, and from C's view."""

import json

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ubp.blocks import neighbours
from ubp.blocks.neighbours import IndexSettings, Neighbours, Space, index_note, nearest_by_index, write_index
from ubp.data.client_names import ClientNames
from ubp.io.errors import UserError

BUILD = IndexSettings(dtype="f32", connectivity=16, expansion_add=64, expansion_search=64, threads=1)


def plainly(ids, vectors, asked, k):
    """Each asked client's k nearest as (client, cosine), by sorting all of them."""
    found = {}
    length = {
        client: float(np.linalg.norm(vector.astype(np.float64))) for client, vector in zip(ids, vectors, strict=True)
    }
    row = {client: vector.astype(np.float64) for client, vector in zip(ids, vectors, strict=True)}
    for client in asked:
        others = [other for other in ids if other != client and length[other] > 0]
        cosine = {other: row[client] @ row[other] / length[client] / length[other] for other in others}
        found[client] = sorted(cosine.items(), key=lambda item: (-item[1], item[0]))[:k]
    return found


def some_vectors(clients=200, columns=12, seed=0):
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(clients, columns)).astype(np.float32) * rng.lognormal(size=(clients, 1)).astype(
        np.float32
    )
    return rng.permutation(10 * clients)[:clients].astype(np.int64), vectors


def check(found: Neighbours, ids, vectors, k):
    wanted = plainly(ids.tolist(), vectors, found.clients.tolist(), k)
    for client, near, cosines in zip(found.clients.tolist(), found.neighbours, found.cosines, strict=True):
        assert near.tolist() == [other for other, _ in wanted[client]]
        np.testing.assert_allclose(cosines, [cosine for _, cosine in wanted[client]], atol=1e-6)
    assert (np.diff(found.cosines, axis=1) <= 0).all()


@pytest.mark.parametrize(("asked", "among"), [(512, 16_384), (7, 31), (1, 1)])
def test_the_nearest_are_those_of_a_plain_sort_whatever_the_parts(monkeypatch, asked, among):
    monkeypatch.setattr(neighbours, "_ASKED", asked)
    monkeypatch.setattr(neighbours, "_AMONG", among)
    ids, vectors = some_vectors()
    space = Space.of(ids, vectors)
    assert space.client_ids.tolist() == sorted(ids.tolist())
    found = space.nearest(space.rows_of(ids[:40]), 10)
    assert found.clients.tolist() == ids[:40].tolist()
    check(found, ids, vectors, 10)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(-2, 2), st.integers(-2, 2)), min_size=2, max_size=12),
    st.integers(1, 15),
)
def test_ties_go_to_the_smaller_id_and_zeros_to_nobody(rows, k):
    """Few whole numbers: many vectors are equal, and many are zero."""
    vectors = np.array(rows, np.float32) * 4  # powers of two: cosines of equal directions are equal to the last bit
    ids = np.arange(len(rows))[::-1].astype(np.int64)
    space = Space.of(ids, vectors)
    pointing = space.rows_of(ids)
    some = {client for client, row in zip(ids.tolist(), rows, strict=True) if any(row)}
    assert set(space.client_ids[pointing].tolist()) == some
    if len(some) < 2:
        return
    found = space.nearest(pointing, k)
    assert found.neighbours.shape == (len(some), min(k, len(some) - 1))
    for client, near, cosines in zip(found.clients, found.neighbours.tolist(), found.cosines.tolist(), strict=True):
        assert client not in near
        assert set(near) <= some
        pairs = list(zip(cosines, near, strict=True))
        assert pairs == sorted(pairs, key=lambda pair: (-pair[0], pair[1]))
        wanted = [cosine for _, cosine in plainly(ids.tolist(), vectors, [client], k)[client]]
        np.testing.assert_allclose(cosines, wanted, atol=1e-6)


def test_keys_stand_in_the_order_of_cosines_then_rows():
    values = np.array([[0.5, -0.25, 0.5, 0.0, -np.inf, 1.0, -0.25]], np.float32)
    order = np.argsort(-neighbours._keys(values, 3)[0].astype(object))
    assert order.tolist() == [5, 0, 2, 3, 1, 6, 4]


def test_a_cosine_depends_neither_on_who_else_is_asked_for_nor_on_the_parts(monkeypatch):
    ids, vectors = some_vectors(clients=300, columns=33)
    space = Space.of(ids, vectors)
    together = space.nearest(space.rows_of(ids), 5)
    monkeypatch.setattr(neighbours, "_AMONG", 64)
    for row in (0, 17, 299):
        alone = space.nearest(space.rows_of(ids[row : row + 1]), 5)
        assert alone.neighbours.tobytes() == together.neighbours[row : row + 1].tobytes()
        assert alone.cosines.tobytes() == together.cosines[row : row + 1].tobytes()


def test_clients_that_are_not_there():
    ids, vectors = some_vectors(clients=20)
    space = Space.of(ids, vectors)
    assert space.rows_of(np.array([-1, 10**6])).tolist() == []
    assert space.client_ids[space.rows_of(np.array([-1, ids[3], 10**6]))].tolist() == [ids[3]]
    assert Space.of(ids[:0], vectors[:0]).rows_of(ids).tolist() == []


def test_usual_cosines_are_those_of_pairs_of_different_clients():
    vectors = np.eye(3, dtype=np.float32)
    space = Space.of(np.arange(3), np.concatenate([vectors[:2], -vectors[:1]]))
    usual = space.usual_cosines(3000, seed=1)
    assert sorted(set(usual.tolist())) == [-1.0, 0.0]  # never 1: nobody is drawn beside itself
    assert (usual == -1).mean() == pytest.approx(1 / 3, abs=0.03)
    assert usual.tobytes() == space.usual_cosines(3000, seed=1).tobytes()
    assert len(Space.of(np.arange(1), vectors[:1]).usual_cosines(5, seed=0)) == 0


def test_the_table_has_a_row_for_each_neighbour_and_own_ids_where_there_are_some():
    found = Neighbours(np.array([4, 2]), np.array([[2, 7], [4, 7]]), np.array([[0.9, 0.5], [0.9, 0.1]], np.float32))
    table = found.table(ClientNames(None))
    assert table.columns == ["client_id", "rank", "neighbour", "cosine"]
    assert table.rows()[:3] == [(4, 1, 2, pytest.approx(0.9)), (4, 2, 7, 0.5), (2, 1, 4, pytest.approx(0.9))]
    names = ClientNames(pl.DataFrame({"id": [2, 4, 7], "original": ["b", "d", "g"]}))
    named = found.table(names)
    assert named["original"].to_list() == ["d", "d", "b", "b"]
    assert named["neighbour_original"].to_list() == ["b", "g", "d", "g"]


# --- the index ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def usearch():
    return pytest.importorskip("usearch.index", reason="usearch is not installed: pip install -e .[index]")


def clustered(clients=3000, columns=24):
    """Clients of 40 kinds, as profiles are: neighbours are near."""
    rng = np.random.default_rng(3)
    centres = rng.normal(size=(40, columns))
    vectors = centres[rng.integers(40, size=clients)] + 0.3 * rng.normal(size=(clients, columns))
    vectors[5] = 0
    return Space.of(np.arange(clients, dtype=np.int64) * 3 + 2**40, vectors.astype(np.float32))


@pytest.mark.parametrize(("dtype", "recall"), [("f32", 0.97), ("f16", 0.97), ("i8", 0.8)])
@pytest.mark.usefixtures("usearch")
def test_the_index_finds_nearly_all_of_the_ten_nearest(tmp_path, dtype, recall):
    space, build = clustered(), IndexSettings(**{**vars(BUILD), "dtype": dtype})
    write_index(space, build, tmp_path / "a.usearch", {"name": "x"})
    rows = space.pointing[::5]
    exact, found = space.nearest(rows, 10), nearest_by_index(space, rows, 10, tmp_path / "a.usearch", build)
    hits = [len(set(a) & set(b)) for a, b in zip(exact.neighbours.tolist(), found.neighbours.tolist(), strict=True)]
    assert np.mean(hits) / 10 >= recall
    assert found.neighbours.shape == exact.neighbours.shape
    same = exact.neighbours == found.neighbours
    assert found.cosines[same].tobytes() == exact.cosines[same].tobytes()  # compared once more, whatever the dtype


@pytest.mark.usefixtures("usearch")
def test_with_one_thread_the_same_vectors_give_the_same_file(tmp_path):
    for name in ("a", "b"):
        write_index(clustered(1000), BUILD, tmp_path / name, {})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_another_program_reads_the_index_by_its_file_alone(tmp_path, usearch):
    """What the library itself makes of the file, knowing nothing of ours."""
    space, file = clustered(500), tmp_path / "a.usearch"
    write_index(space, BUILD, file, {"name": "x"})
    index = usearch.Index.restore(str(file))
    assert (len(index), index.ndim) == (499, 24)
    assert 2**40 + 15 not in index  # a vector of zeros
    row = 77
    near = index.search(space.vectors[row], 1)
    assert near.keys.tolist() == [int(space.client_ids[row])]
    note = json.loads(index_note(file).read_text())
    assert (note["columns"], note["clients"], note["metric"]) == (24, 499, "cos")
    assert note["made_from"] == {"name": "x"}


@pytest.mark.usefixtures("usearch")
def test_an_index_of_few_clients_gives_all_of_them(tmp_path):
    ids, vectors = some_vectors(clients=6)
    space = Space.of(ids, vectors)
    write_index(space, BUILD, tmp_path / "a", {})
    check(nearest_by_index(space, space.pointing, 10, tmp_path / "a", BUILD), ids, vectors, 10)


@pytest.mark.usefixtures("usearch")
def test_negative_ids_are_refused_by_the_index_alone(tmp_path):
    space = Space.of(np.array([-3, 4]), np.eye(2, dtype=np.float32))
    assert space.nearest(space.pointing, 1).neighbours.tolist() == [[4], [-3]]
    with pytest.raises(UserError, match="client -3: an index's keys cannot be negative"):
        write_index(space, BUILD, tmp_path / "a", {})
    assert not (tmp_path / "a").exists()


def test_without_usearch_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "usearch.index", None)
    with pytest.raises(UserError, match=r"usearch is missing: pip install -e \.\[index\]"):
        neighbours.usearch()


@pytest.mark.parametrize(("name", "value"), [("dtype", "f64"), ("connectivity", 0), ("threads", 0)])
def test_settings_that_make_no_sense(name, value):
    with pytest.raises(UserError, match=rf"index\.{name}={value}: must be"):
        IndexSettings(**{**vars(BUILD), name: value})
