"""What a command says of the vectors that it saves."""

import logging

import numpy as np
import pytest

from ubp.blocks.embeddings import EmbeddingTable, read_lineage
from ubp.cli.config import composed
from ubp.cli.run import embedding_run
from ubp.data.paths import CONFIGS
from ubp.io.stage import AlreadyDone


@pytest.fixture
def config(history):
    history.input.mkdir()
    np.save(history.relevant_clients, np.arange(40))
    return composed(CONFIGS / "ALS", "als_buy_add_categories", [f"data_path={history.root}", "submit=True"])


def saved(config, vectors, report=None):
    with embedding_run(config) as run:
        run.save(np.arange(len(vectors)), vectors.astype(np.float32), report)
    return run.path


def test_a_sound_block(config, capsys, caplog):
    caplog.set_level(logging.INFO)
    vectors = np.random.default_rng(0).normal(size=(40, 8))
    path = saved(config, vectors, {"loss": 0.5})
    report = read_lineage(path)["report"]
    assert report["loss"] == 0.5
    assert report["health"]["rows"] == 40
    assert report["health"]["collapsed"] == []
    assert report["health"]["effective_rank"] > 6
    assert capsys.readouterr().out.startswith("als_64_buy_add_categories · 40 clients × 8 columns · ")
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_collapsed_block_is_reported(config, capsys, caplog):
    vectors = 1e-12 * np.outer(np.arange(1, 41), np.ones(8))
    path = saved(config, vectors)
    complaints = ["effective rank 1.0 in 8 columns", "median norm 6e-11"]
    assert read_lineage(path)["report"]["health"]["collapsed"] == complaints
    closing = capsys.readouterr().out
    assert closing.startswith(
        f"als_64_buy_add_categories (COLLAPSED: {', '.join(complaints)}) · 40 clients × 8 columns"
    )
    assert closing.rstrip().endswith(str(path))
    [warning] = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warning.startswith("als_64_buy_add_categories has collapsed: effective rank 1.0 in 8 columns, median norm")
    np.testing.assert_array_equal(EmbeddingTable.read(path).vectors, vectors.astype(np.float32))  # kept all the same


def test_done_before_does_not_hide_it(config):
    saved(config, np.ones((40, 8)))
    with (
        pytest.raises(AlreadyDone, match=r"categories \(COLLAPSED: the same vector for all clients\) · done before"),
        embedding_run(config),
    ):
        pass
