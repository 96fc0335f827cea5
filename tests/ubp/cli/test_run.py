"""What a command says of the vectors that it saves."""

import logging
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from ubp.blocks.embeddings import EmbeddingTable, read_lineage
from ubp.blocks.fitted import FittedBlock, State, lineage_of, load
from ubp.blocks.registry import block
from ubp.cli.config import composed, config_of
from ubp.cli.recipe import make_block
from ubp.cli.run import embedding_run
from ubp.data.paths import CONFIGS, DataPaths
from ubp.io.errors import NoUsableEvents, UserError
from ubp.io.stage import AlreadyDone


@pytest.fixture
def config(history):
    history.input.mkdir()
    np.save(history.relevant_clients, np.arange(40))
    return composed(CONFIGS / "ALS", "als_buy_add_categories", [f"data_path={history.root}", "submit=True"])


class Fixed(FittedBlock):
    """Gives each client, by its id, a row of its vectors."""

    def __init__(self, rows):
        self.rows = rows.astype(np.float32)

    def vectors(self, history, clients):  # noqa: ARG002
        return clients, self.rows[clients]

    def state(self):
        return State({"rows": len(self.rows)}, {"rows": self.rows})

    @classmethod
    def from_state(cls, state):
        return cls(state.arrays["rows"])


def saved(config, vectors, report=None):
    with embedding_run(config) as run:
        run.save(Fixed(vectors), report or {})
    return run.path


def test_the_fitted_block_is_kept_with_the_lineage(config):
    vectors = np.random.default_rng(0).normal(size=(40, 8))
    path = saved(config, vectors, {"loss": 0.5})
    folder = DataPaths(Path(config.data_path)).model("als_64_buy_add_categories", submit=True)
    np.testing.assert_array_equal(load(folder).rows, vectors.astype(np.float32))
    lineage = lineage_of(folder)
    cost = lineage["report"].pop("cost")
    assert lineage["report"] == {"loss": 0.5}
    assert cost["seconds"] > 0
    assert cost["megabytes"] > 10
    assert {key: read_lineage(path)[key] for key in ("name", "config", "seed", "fingerprint", "as_of")} == {
        key: lineage[key] for key in ("name", "config", "seed", "fingerprint", "as_of")
    }


def test_a_block_of_no_relevant_client_is_one_line_and_nothing_is_kept(config):
    class Nobody(Fixed):
        def vectors(self, history, clients):  # noqa: ARG002
            return clients[:0], self.rows[:0]

    with pytest.raises(NoUsableEvents) as raised, embedding_run(config) as run:
        run.save(Nobody(np.ones((40, 8))), {})
    (line,) = raised.value.messages
    assert f"{run.data.folder}: als_64_buy_add_categories: no relevant client has a vector: " in line
    assert " events of product_buy or add_to_cart before " in line
    assert not run.path.exists()
    assert not run.model.exists()


def test_a_block_without_its_fitted_one_is_made_again(config):
    saved(config, np.random.default_rng(0).normal(size=(40, 8)))
    with pytest.raises(AlreadyDone), embedding_run(config):
        pass
    shutil.rmtree(DataPaths(Path(config.data_path)).model("als_64_buy_add_categories", submit=True))
    saved(config, np.random.default_rng(1).normal(size=(40, 8)))


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


BELOW = "BELOW POPULARITY: category mrr@10 0.607 against 0.611"


def test_a_reports_warnings_stand_in_the_closing_line(config, capsys, caplog):
    vectors = np.random.default_rng(0).normal(size=(40, 8))
    path = saved(config, vectors, {"warnings": [BELOW]})
    assert capsys.readouterr().out.startswith(f"als_64_buy_add_categories ({BELOW}) · 40 clients × 8 columns")
    [warning] = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warning == f"als_64_buy_add_categories: {BELOW}"
    assert read_lineage(path)["report"]["warnings"] == [BELOW]
    with (
        pytest.raises(AlreadyDone, match=rf"^als_64_buy_add_categories \({BELOW}\) · done before"),
        embedding_run(config),
    ):
        pass


def test_a_collapsed_block_with_a_warning_says_both(config, capsys):
    saved(config, np.ones((40, 8)), {"warnings": [BELOW]})
    assert f"(COLLAPSED: the same vector for all clients; {BELOW}) · 40 clients" in capsys.readouterr().out


def test_an_input_fitted_anew_in_the_meantime_is_one_line_and_nothing_is_kept(config):
    vectors = np.random.default_rng(0).normal(size=(40, 8))
    saved(config, vectors)
    overrides = [f"data_path={config.data_path}", "submit=True", "+inputs={als_64_buy_add_categories:{}}"]
    reader = composed(CONFIGS / "ALS", "als_visits_relevant", overrides)

    def run_beside():
        with embedding_run(reader) as run:
            config.overwrite, config.seed = True, config.seed + 1
            saved(config, vectors)
            run.save(Fixed(vectors), {})

    with pytest.raises(UserError) as raised:
        run_beside()
    (line,) = raised.value.messages
    assert line.startswith("inputs: als_64_buy_add_categories fitted anew since als_64_visits_relevant began")
    paths = DataPaths(Path(config.data_path))
    assert not paths.block("als_64_visits_relevant", submit=True).exists()
    assert not paths.model("als_64_visits_relevant", submit=True).exists()


def listed(paths, **values):
    """Write what the open tasks ask for, as ``scripts/make_targets.py overwrite=True`` would."""
    paths.target.mkdir(exist_ok=True)
    for column, numbers in values.items():
        np.save(paths.target / f"propensity_{column}.npy", np.array(numbers))


@pytest.mark.parametrize(
    ("name", "is_made_again"),
    [pytest.param("numeric_features_wide", True, marks=pytest.mark.full), ("numeric_features", False)],
)
def test_other_lists_of_the_open_tasks_make_again_what_reads_them_alone(name, is_made_again, config):
    paths, entry = DataPaths(Path(config.data_path)), block(name)
    np.save(paths.relevant_clients, pl.read_parquet(paths.raw / "product_buy.parquet")["client_id"].unique().to_numpy())
    words = ["features.components=2"] if is_made_again else ["features.clusters=2", "features.price_groups=2"]

    def is_made() -> bool:
        try:
            make_block(config_of(entry, [f"data_path={paths.root}", "name=of_my_own", *words]), entry.recipe)
        except AlreadyDone:
            return False
        return True

    listed(paths, category=[1, 2], sku=[3])
    assert is_made()
    listed(paths, category=[2, 1])  # the same values
    assert not is_made()
    listed(paths, category=[1, 3])
    assert is_made() is is_made_again
    assert not is_made()
    (paths.target / "propensity_sku.npy").unlink()
    assert is_made() is is_made_again


def test_lists_made_anew_in_the_meantime_are_one_line_and_nothing_is_kept(config):
    paths = DataPaths(Path(config.data_path))
    listed(paths, category=[1, 2], sku=[3])

    def run_beside():
        with embedding_run(config, reads_targets=True) as run:
            listed(paths, sku=[4])
            run.save(Fixed(np.random.default_rng(0).normal(size=(40, 8))), {})

    with pytest.raises(UserError, match=r"^targets: sku made anew since als_64_buy_add_categories began"):
        run_beside()
    assert not paths.block("als_64_buy_add_categories", submit=True).exists()
