"""The command: a table of one client, a parquet of many, an index; its refusals."""

import re
import shutil

import numpy as np
import polars as pl
import pytest

from scripts import neighbours
from tests.ubp.blocks.toy import make_purchases
from ubp.blocks.embeddings import EmbeddingTable
from ubp.blocks.entry import write_entry
from ubp.cli.config import composed
from ubp.data.history import ChallengeData
from ubp.data.paths import CONFIGS
from ubp.io.errors import UserError


@pytest.fixture
def paths(history):
    """A block of purchases, and an entry of five columns, of all clients; the latter has one vector of zeros."""
    ids = ChallengeData(history, submit=True).seen()
    history.input.mkdir()
    np.save(history.relevant_clients, ids)
    make_purchases(history)
    vectors = np.random.default_rng(1).normal(size=(len(ids), 5)).astype(np.float32)
    vectors[3] = 0
    write_entry(history.embeddings(submit=True) / "merged", ids, vectors)
    return history


@pytest.fixture
def run(paths, capsys):
    """Runs the command in this process; gives its lines."""

    def call(*words):
        capsys.readouterr()
        neighbours.main(composed(CONFIGS / "scripts", "neighbours", [f"data_path={paths.root}", *map(str, words)]))
        return capsys.readouterr().out.splitlines()

    return call


def entry(paths):
    ids = np.load(paths.embeddings(True) / "merged" / "client_ids.npy")
    return ids, np.load(paths.embeddings(True) / "merged" / "embeddings.npy").astype(np.float64)


def nearest(paths, client, k):
    ids, vectors = entry(paths)
    units = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
    cosines = units @ units[ids == client][0]
    order = [place for place in np.argsort(-cosines) if ids[place] != client and vectors[place].any()]
    return [(int(ids[place]), cosines[place]) for place in order[:k]]


def test_a_table_of_one_client(run, paths):
    client = entry(paths)[0][7]
    lines = run("name=merged", f"client={client}", "k=4")
    found = [re.findall(r"-?\d+\.?\d*", line) for line in lines if re.match(r"│ +\d", line)]
    assert [int(row[1]) for row in found] == [other for other, _ in nearest(paths, client, 4)]
    assert [float(row[2]) for row in found] == [
        pytest.approx(cosine, abs=1e-4) for _, cosine in nearest(paths, client, 4)
    ]
    assert lines[0].strip() == f"nearest to client {client} by merged"
    assert lines[-2].startswith("two clients drawn at random: cosine ")
    assert lines[-1].endswith(str(paths.embeddings(True) / "merged"))
    assert lines[:-1] == run("name=merged", f"client={client}", "k=4")[:-1]


def test_a_parquet_of_many(run, paths):
    ids, _ = entry(paths)
    np.save(paths.root / "some.npy", np.array([ids[7], ids[3], ids[9], 700_001]))
    lines = run("name=merged", f"clients={paths.root}/some.npy", "k=3", f"out={paths.root}/o.parquet")
    remark = "1 of 4 clients are not in it: no row; 1 have a vector of zeros: no row"
    assert lines[-1].startswith(f"3 neighbours of each of 2 clients by merged ({remark}) · ")
    table = pl.read_parquet(paths.root / "o.parquet")
    assert table.columns == ["client_id", "rank", "neighbour", "cosine"]
    for client in (ids[7], ids[9]):
        own = table.filter(pl.col("client_id") == client)
        assert own["rank"].to_list() == [1, 2, 3]
        assert own["neighbour"].to_list() == [other for other, _ in nearest(paths, client, 3)]
    again = run("name=merged", f"clients={paths.root}/some.npy", "k=3", f"out={paths.root}/o.parquet")
    assert "done before" in again[-1]


def test_all_clients_of_a_block_and_its_path(run, paths):
    run("name=purchases", "clients=all")
    table = pl.read_parquet(paths.neighbours("purchases"))
    block = EmbeddingTable.read(paths.block("purchases", True))
    assert table["client_id"].unique().sort().to_list() == block.client_ids.tolist()
    assert len(table) == 10 * len(block)
    shutil.copy(paths.block("purchases", True), paths.root / "elsewhere.parquet")
    run(f"name={paths.root}/elsewhere.parquet", "clients=all")
    assert pl.read_parquet(paths.neighbours("elsewhere")).equals(table)


def test_own_ids_are_taken_and_shown(run, paths):
    ids, _ = entry(paths)
    table = pl.DataFrame({"id": ids, "original": [f"DE{client}" for client in ids.tolist()]})
    table.write_parquet(paths.raw / "ids_client.parquet")
    by_own, by_id = (run("name=merged", f"client={name}", "k=2") for name in (f"DE{ids[7]}", ids[7]))
    assert by_own[2:-1] == by_id[2:-1]
    assert all(f"DE{other}" in "".join(by_own) for other, _ in nearest(paths, ids[7], 2))
    run("name=merged", "clients=all", "k=1")
    written = pl.read_parquet(paths.neighbours("merged"))
    assert written["neighbour_original"].to_list() == [f"DE{client}" for client in written["neighbour"].to_list()]


def test_an_index_and_a_search_through_it(run, paths):
    pytest.importorskip("usearch.index", reason="usearch is not installed: pip install -e .[index]")
    file = paths.root / "merged.usearch"
    ids, _ = entry(paths)
    lines = run("name=merged", f"index={file}")
    assert re.fullmatch(rf"index of merged · {len(ids) - 1} clients × 5 columns · .* · {file}", lines[-1])
    assert file.with_name("merged.usearch.json").exists()
    run("name=merged", "clients=all", "k=5", f"out={paths.root}/exact.parquet")
    lines = run("name=merged", f"index={file}", "search=index", "clients=all", "k=5", f"out={paths.root}/i.parquet")
    assert "done before" in lines[0]
    exact, through = (pl.read_parquet(paths.root / name) for name in ("exact.parquet", "i.parquet"))
    assert (exact["neighbour"] == through["neighbour"]).mean() > 0.95


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["client=3"], "name: say which merge or block: name=NAME, or the path of one"),
        (["name=merged"], "client: say whose neighbours: client=ID, clients=FILE, clients=all; or index=FILE"),
        (
            ["name=other", "client=3"],
            "name=other: neither a merge or block nor a path of one; there are: merged, purchases",
        ),
        (["name=merged", "client=x"], "client=x: not an integer"),
        (["name=merged", "client=-4"], "client=-4: not among the 60 clients of "),
        (["name=merged", "client=1", "clients=all"], "client=1 clients=all: name one client, or a file of several"),
        (["name=merged", "client=1", "k=0"], "k=0: must be at least 1"),
        (["name=merged", "client=1", "search=index"], "search=index: name the index's file: index=FILE"),
        (["name=merged", "client=1", "as_of=2023-01-01"], "as_of=2023-01-01: encode that day with scripts/encode.py"),
        (["name=merged", "client=1", "submit=False"], "name=merged: neither a merge or block"),
    ],
)
def test_refusals(run, words, line):
    with pytest.raises(UserError) as caught:
        run(*words)
    (message,) = caught.value.messages
    assert message.startswith(line)


def test_a_client_whose_vector_is_zeros(run, paths):
    ids, _ = entry(paths)
    with pytest.raises(UserError, match="no neighbours; 1 have a vector of zeros"):
        run("name=merged", f"client={ids[3]}")
