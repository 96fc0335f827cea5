"""The block's parquet: written whole, read back as it was, refused where it breaks a rule."""

import json

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ubp.blocks import embeddings
from ubp.blocks.embeddings import EmbeddingTable, find_vectors, lies_at, names_in, read_lineage
from ubp.io.errors import UserError

IDS = np.array([7, 3, 9])
VECTORS = np.arange(6, dtype=np.float32).reshape(3, 2)


def test_what_is_written_is_read(tmp_path):
    path = tmp_path / "embeddings" / "a.parquet"
    lineage = {"name": "a", "config": {"x": [1, None, 2.5]}, "seed": 3, "versions": {"numpy": "2"}}
    EmbeddingTable(IDS, VECTORS, lineage).write(path)
    found = EmbeddingTable.read(path)
    assert (found.client_ids == IDS).all()
    assert (found.vectors == VECTORS).all()
    assert found.vectors.dtype == np.float32
    assert found.lineage == lineage == read_lineage(path)
    assert (len(found), found.columns) == (3, 2)
    assert pl.read_parquet_schema(path) == {"client_id": pl.Int64, "embedding": pl.Array(pl.Float32, 2)}
    assert [file.name for file in path.parent.iterdir()] == ["a.parquet"]


def test_neither_writing_nor_reading_holds_the_vectors_twice(tmp_path, monkeypatch):
    monkeypatch.setattr(embeddings, "_GROUP", 2**18)
    monkeypatch.setattr(embeddings, "_BATCH", 2**17)
    vectors = np.random.default_rng(0).normal(size=(20_000, 256)).astype(np.float32)  # 20 MB
    usual, watched = pa.default_memory_pool(), pa.proxy_memory_pool(pa.default_memory_pool())
    pa.set_memory_pool(watched)
    try:
        EmbeddingTable(np.arange(20_000), vectors, {}).write(tmp_path / "a.parquet")
        found = EmbeddingTable.read(tmp_path / "a.parquet")
    finally:
        pa.set_memory_pool(usual)
    assert watched.max_memory() < vectors.nbytes / 3
    assert watched.bytes_allocated() == 0
    assert found.vectors.tobytes() == vectors.tobytes()
    assert found.vectors.flags.c_contiguous


def test_pyarrow_pandas_and_duckdb_open_a_block(tmp_path):
    path = tmp_path / "a.parquet"
    EmbeddingTable(IDS, VECTORS, {"name": "a"}).write(path)
    table = pq.read_table(path)
    kind = table.schema.field("embedding").type
    assert table.column_names == ["client_id", "embedding"]
    assert table.schema.field("client_id").type == pa.int64()
    assert (kind.list_size, kind.value_type) == (2, pa.float32())
    assert json.loads(table.schema.metadata[b"lineage"]) == {"name": "a"}
    frame = pd.read_parquet(path)
    vectors = np.stack(frame["embedding"])
    assert frame["client_id"].tolist() == IDS.tolist()
    assert (vectors == VECTORS).all()
    assert vectors.dtype == np.float32
    rows = duckdb.sql(f"select client_id, embedding from '{path}' order by client_id").fetchall()  # noqa: S608
    assert [(client, list(vector)) for client, vector in rows] == [(3, [2, 3]), (7, [0, 1]), (9, [4, 5])]


def test_a_block_that_polars_wrote_is_read(tmp_path):
    path = tmp_path / "a.parquet"
    block(IDS, VECTORS, width=2).write_parquet(path, metadata={"lineage": json.dumps({"name": "a"})})
    found = EmbeddingTable.read(path)
    assert (found.client_ids == IDS).all()
    assert (found.vectors == VECTORS).all()
    assert found.lineage == read_lineage(path) == {"name": "a"}


def test_a_block_of_several_row_groups(tmp_path, monkeypatch):
    monkeypatch.setattr(embeddings, "_GROUP", 4)  # two rows of two columns
    monkeypatch.setattr(embeddings, "_BATCH", 2)
    EmbeddingTable(IDS, VECTORS, {}).write(tmp_path / "a.parquet")
    assert pq.read_metadata(tmp_path / "a.parquet").num_row_groups == 2
    found = EmbeddingTable.read(tmp_path / "a.parquet")
    assert (found.client_ids == IDS).all()
    assert (found.vectors == VECTORS).all()


def test_vectors_in_any_order_of_memory(tmp_path):
    EmbeddingTable(IDS, np.asfortranarray(VECTORS), {}).write(tmp_path / "a.parquet")
    assert (EmbeddingTable.read(tmp_path / "a.parquet").vectors == VECTORS).all()


def test_a_block_without_clients(tmp_path):
    EmbeddingTable(IDS[:0], VECTORS[:0], {}).write(tmp_path / "a.parquet")
    assert EmbeddingTable.read(tmp_path / "a.parquet").vectors.shape == (0, 2)


NO_TABLES = {
    "int32 ids": (IDS.astype(np.int32), VECTORS, "ids must be int64"),
    "float64 vectors": (IDS, VECTORS.astype(np.float64), "vectors float32"),
    "one row too few": (IDS, VECTORS[:2], "do not fit"),
    "one dimension": (IDS, VECTORS[:, 0], "do not fit"),
    "a client twice": (np.array([7, 7, 9]), VECTORS, "1 rows repeat a client"),
    "nan": (IDS, np.where(VECTORS == 2, np.nan, VECTORS), "1 clients have values that are not finite"),
    "infinity": (IDS, np.where(VECTORS > 3, np.inf, VECTORS), "1 clients have values that are not finite"),
}


@pytest.mark.parametrize(("ids", "vectors", "says"), NO_TABLES.values(), ids=NO_TABLES.keys())
def test_what_no_block_may_be(ids, vectors, says):
    with pytest.raises(ValueError, match=says):
        EmbeddingTable(ids, vectors, {})


def block(ids, vectors, inner=pl.Float32, width=1):
    return pl.DataFrame(
        {"client_id": ids, "embedding": vectors},
        schema={"client_id": pl.Int64, "embedding": pl.Array(inner, width)},
    )


NO_FILES = {
    "no parquet": "text",
    "other columns": pl.DataFrame({"client_id": [1], "vector": [[1.0]]}),
    "lists": pl.DataFrame({"client_id": [1], "embedding": [[1.0]]}),
    "float64": block([1], [[1.0]], pl.Float64),
    "null vector": block([1], [None]),
    "null id": block([None, 1], [[1.0], [2.0]]),
    "int32 ids": block([1], [[1.0]]).cast({"client_id": pl.Int32}),
    "null in a vector": block([1], [[1.0, None]], width=2),
    "a client twice": block([1, 1], [[1.0], [2.0]]),
}


@pytest.mark.parametrize("content", NO_FILES.values(), ids=NO_FILES.keys())
def test_a_file_that_is_no_block_is_one_line(tmp_path, content):
    path = tmp_path / "a.parquet"
    path.write_text(content) if isinstance(content, str) else content.write_parquet(path)
    with pytest.raises(UserError) as caught:
        EmbeddingTable.read(path)
    (message,) = caught.value.messages
    assert message.startswith(f"{path}: not a usable embedding: ")
    assert message.endswith("make it again")
    assert "\n" not in message


def test_a_missing_file_is_one_line(tmp_path):
    with pytest.raises(UserError, match="not a usable embedding"):
        EmbeddingTable.read(tmp_path / "a.parquet")


@pytest.mark.parametrize(("ids", "floats"), [(np.int32, np.float16), (np.int64, np.float64)])
def test_a_folder_of_npy_files_from_outside(tmp_path, ids, floats):
    np.save(tmp_path / "client_ids.npy", IDS.astype(ids))
    np.save(tmp_path / "embeddings.npy", VECTORS.astype(floats))
    found = EmbeddingTable.read(tmp_path)
    assert (found.client_ids.dtype, found.vectors.dtype) == (np.int64, np.float32)
    assert (found.client_ids == IDS).all()
    assert (found.vectors == VECTORS).all()
    assert found.lineage == {}


@pytest.mark.parametrize(
    ("ids", "vectors"),
    [(IDS * 1.0, VECTORS), (IDS, VECTORS.astype(np.int64)), (IDS, VECTORS[:2]), (None, VECTORS)],
    ids=["float ids", "integers as vectors", "one row too few", "no ids"],
)
def test_a_folder_that_is_no_block(tmp_path, ids, vectors):
    if ids is not None:
        np.save(tmp_path / "client_ids.npy", ids)
    np.save(tmp_path / "embeddings.npy", vectors)
    with pytest.raises(UserError, match="not a usable embedding"):
        EmbeddingTable.read(tmp_path)


def test_lineage_is_empty_where_there_is_none(tmp_path):
    pl.DataFrame({"a": [1]}).write_parquet(tmp_path / "a.parquet")
    assert read_lineage(tmp_path / "a.parquet") == {}


@pytest.mark.parametrize("lineage", [b"[1]", b"null", b'"x"', b"{", b"\xff", b"[" * 100_000])
def test_a_lineage_that_is_none_is_one_line(tmp_path, lineage):
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(4, np.float32)), 2)
    table = pa.table({"client_id": np.arange(2), "embedding": vectors}).replace_schema_metadata({"lineage": lineage})
    pq.write_table(table, tmp_path / "block.parquet")
    for read in (EmbeddingTable.read, read_lineage):
        with pytest.raises(UserError, match=r"block\.parquet: not a .*; make it again") as error:
            read(tmp_path / "block.parquet")
        assert "\n" not in str(error.value)


def test_whatever_bit_is_turned_over_no_other_vectors_are_read(tmp_path):
    EmbeddingTable(IDS, VECTORS, {"name": "a"}).write(tmp_path / "a.parquet")
    whole = (tmp_path / "a.parquet").read_bytes()
    refused = 0
    for place in range(len(whole)):
        (tmp_path / "a.parquet").write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        try:
            found = EmbeddingTable.read(tmp_path / "a.parquet")
        except UserError:
            refused += 1
        else:
            assert found.client_ids.tolist() == IDS.tolist()
            assert found.vectors.tolist() == VECTORS.tolist()
    assert refused > VECTORS.nbytes + IDS.nbytes


def test_a_value_that_no_digest_looks_at_is_under_a_checksum(tmp_path):
    path, rows = tmp_path / "a.parquet", 3 * embeddings._LOOKED_AT
    EmbeddingTable(np.arange(rows), np.full((rows, 1), 7.0, np.float32), {}).write(path)
    assert EmbeddingTable.read(path).columns == 1
    whole = path.read_bytes()
    place = whole.rindex(np.float32(7.0).tobytes() * 9) + 8  # of a row among the last ones that is no fourth one
    path.write_bytes(whole[:place] + np.float32(8.0).tobytes() + whole[place + 4 :])
    with pytest.raises(UserError, match="not a usable embedding"):
        EmbeddingTable.read(path)


def test_whole_pages_of_another_block_are_not_taken_for_this_one(tmp_path):
    path = tmp_path / "a.parquet"
    EmbeddingTable(IDS, VECTORS, {}).write(path)
    noted = pq.read_schema(path).metadata
    EmbeddingTable(IDS, VECTORS + np.float32([[0], [0], [1]]), {}).write(path)
    pq.write_table(pq.read_table(path).replace_schema_metadata(noted), path)
    with pytest.raises(UserError, match="not those that were written"):
        EmbeddingTable.read(path)


def test_fewer_rows_than_the_file_says_are_refused(tmp_path, monkeypatch):
    EmbeddingTable(IDS, VECTORS, {}).write(tmp_path / "a.parquet")
    monkeypatch.setattr(pq.ParquetFile, "iter_batches", lambda self, _: iter(self.read().slice(0, 2).to_batches()))
    with pytest.raises(UserError, match="2 rows, where it says that it has 3"):
        EmbeddingTable.read(tmp_path / "a.parquet")


def test_the_form_of_the_parquet(tmp_path):
    EmbeddingTable(IDS, VECTORS, {}).write(tmp_path / "a.parquet")
    assert not any(field.nullable for field in pq.read_schema(tmp_path / "a.parquet"))
    group = pq.read_metadata(tmp_path / "a.parquet").row_group(0)
    for number in range(2):
        assert not {"PLAIN_DICTIONARY", "RLE_DICTIONARY"} & set(group.column(number).encodings)


def test_vectors_without_numbers_are_refused():
    with pytest.raises(ValueError, match=r"^no columns$"):
        EmbeddingTable(IDS, np.empty((3, 0), np.float32), {})


def test_where_blocks_and_entries_lie(tmp_path):
    for name in ("a.parquet", ".a.parquet.aside.parquet"):
        (tmp_path / name).touch()
    for folder in ("an_entry", "no_entry"):
        (tmp_path / folder).mkdir()
    (tmp_path / "an_entry" / "embeddings.npy").touch()
    assert names_in(tmp_path) == ["an_entry", "a"]
    assert [lies_at(tmp_path / name) for name in ("a.parquet", "an_entry", "no_entry")] == [True, True, False]
    assert find_vectors("a", [tmp_path / "no_entry", tmp_path]) == tmp_path / "a.parquet"
    assert find_vectors("an_entry", [tmp_path]) == tmp_path / "an_entry"
    assert find_vectors("no_entry", [tmp_path]) is None
