"""The block's parquet: written whole, read back as it was, refused where it breaks a rule."""

import numpy as np
import polars as pl
import pytest

from ubp.blocks.embeddings import EmbeddingTable, read_lineage
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


def test_vectors_are_a_view_of_what_was_read(tmp_path):
    EmbeddingTable(IDS, VECTORS, {}).write(tmp_path / "a.parquet")
    vectors = EmbeddingTable.read(tmp_path / "a.parquet").vectors
    assert not vectors.flags.owndata
    assert vectors.flags.c_contiguous


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
