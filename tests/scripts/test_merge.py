"""The merge's command where blocks are missing: what is left out, what is an error, what the lineage says."""

import shutil

import numpy as np
import polars as pl
import pytest

from scripts import encode, merge
from stat_features.recipe import StatFeaturesRecipe
from ubp.blocks.embeddings import EmbeddingTable
from ubp.blocks.entry import read_entry
from ubp.blocks.fitted import lineage_of, save
from ubp.cli.config import composed
from ubp.data.history import ChallengeData
from ubp.data.paths import CONFIGS
from ubp.data.schema import EventType
from ubp.io.errors import UserError
from ubp.io.stage import AlreadyDone

VISITS, CATEGORIES = "als_64_visits_relevant", "als_64_buy_add_categories"


@pytest.fixture
def paths(make_history, tmp_path):
    """A log without visits, and its statistics; both ALS are missing, for one of them the log has the events."""
    paths = make_history(empty=[EventType.PAGE_VISIT]).write(tmp_path / "data")
    shutil.copytree(paths.raw, paths.input)
    buyers = pl.read_parquet(paths.raw / EventType.PRODUCT_BUY.file_name)["client_id"]
    np.save(paths.relevant_clients, buyers.unique().sort().to_numpy())
    data = ChallengeData(paths, submit=False)
    fitted = StatFeaturesRecipe().fit(data, 0, paths.cache).block
    keep(paths, "stat_features", fitted, data)
    return paths


def keep(paths, name, fitted, data):
    lineage = {"name": name, "fingerprint": data.fingerprint, "as_of": data.as_of.isoformat(sep=" ")}
    save(fitted, paths.model(name, submit=False), lineage)
    table = fitted.encode(data, data.relevant_clients)
    EmbeddingTable(table.client_ids, table.vectors, lineage).write(paths.block(name, submit=False))


def run(paths, *words):
    merge.main(composed(CONFIGS / "merge", "basics", [f"data_path={paths.root}", "submit=False", *words]))


def test_what_the_log_lacks_is_left_out_with_a_line_and_all_else_is_an_error(paths, caplog):
    with pytest.raises(UserError) as caught:
        run(paths)
    (line,) = caught.value.messages
    assert f"{CATEGORIES}.parquet: no such block" in line
    assert "missing=skip" in line
    assert caplog.messages == [f"{VISITS} is left out: {paths.input} has no events of page_visit"]
    assert not (paths.embeddings(submit=False) / "basics").exists()


@pytest.mark.full
def test_the_merge_of_the_others_is_kept_says_what_it_lacks_and_encodes(paths, capsys):
    run(paths, f"~blocks.{CATEGORIES}")
    assert capsys.readouterr().out.startswith(f"basics (without {VISITS}) · ")
    _, profiles = read_entry(paths.embeddings(submit=False) / "basics")
    assert profiles.shape[1] == 43 + 1  # and the constant
    lineage = lineage_of(paths.model("basics", submit=False))
    assert lineage["columns"] == {"stat_features": 43}
    assert list(lineage["left_out"]) == [VISITS]
    assert list(lineage["config"]["blocks"]) == ["stat_features"]
    encode.main(composed(CONFIGS / "scripts", "encode", [f"data_path={paths.root}", "name=basics", "as_of=2023-02-05"]))
    assert EmbeddingTable.read(paths.encoded("basics") / "2023-02-05.parquet").columns == 43 + 1  # and the constant


@pytest.mark.full
def test_skip_leaves_out_whatever_is_missing_until_it_is_there(paths):
    run(paths, "missing=skip")
    assert list(lineage_of(paths.model("basics", submit=False))["left_out"]) == [CATEGORIES, VISITS]
    with pytest.raises(AlreadyDone, match=rf"basics \(without {CATEGORIES}, {VISITS}\) · done before"):
        run(paths, "missing=skip")
    data = ChallengeData(paths, submit=False)
    keep(paths, CATEGORIES, StatFeaturesRecipe().fit(data, 0, paths.cache).block, data)
    run(paths, "missing=skip")
    assert list(lineage_of(paths.model("basics", submit=False))["left_out"]) == [VISITS]
    with pytest.raises(AlreadyDone):  # the same is made whatever may be missing
        run(paths, "missing=error")


@pytest.mark.parametrize("fault", ["another history", "broken"])
def test_a_block_that_is_there_but_no_good_is_an_error_even_with_skip(paths, fault):
    """Even where the log lacks its events."""
    file = paths.block(VISITS, submit=False)
    if fault == "broken":
        file.write_text("no parquet")
    else:
        EmbeddingTable(np.array([1]), np.ones((1, 2), np.float32), {"fingerprint": "then"}).write(file)
    with pytest.raises(UserError, match=r"made from another history|not a readable parquet"):
        run(paths, "missing=skip")


def test_none_of_its_blocks(paths):
    paths.block("stat_features", submit=False).unlink()
    with pytest.raises(UserError, match="blocks: none of the merge's 3 blocks is in "):
        run(paths, "missing=skip")


def test_a_word_that_means_nothing(paths):
    with pytest.raises(UserError, match="missing=leave: must be error or skip"):
        run(paths, "missing=leave")
