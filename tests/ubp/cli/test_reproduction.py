"""From a lineage to the commands that make the same again."""

import json

import numpy as np
import pytest
from omegaconf import OmegaConf

from ubp.blocks.embeddings import EmbeddingTable
from ubp.blocks.entry import write_entry
from ubp.blocks.merge import content_of
from ubp.cli.circumstances import circumstances, code, machine, versions
from ubp.cli.reproduction import Aside, Making, changed_settings, doubts, makings_of, require_sources, threads_then
from ubp.data.history import ChallengeData
from ubp.data.paths import DataPaths
from ubp.io.errors import UserError
from ubp.io.machine import processor

IDS = np.arange(3)
VECTORS = np.ones((3, 2), np.float32)
RECIPES = {"stat_features": "stat_features.recipe:StatFeaturesRecipe", "dcn": "dcn.recipe:DcnRecipe"}


@pytest.fixture
def lineage_of(history):
    """Lineages as a command would leave them."""
    history.input.mkdir()
    np.save(history.relevant_clients, IDS)
    data = ChallengeData(history, submit=True)

    def make(name, recipe="", read=(), **more):
        noted = {"name": name, "config": {}, "seed": 0, "fingerprint": data.fingerprint, "as_of": str(data.as_of)}
        return noted | circumstances(data, recipe) | ({"read": {each["name"]: each for each in read}} if read else {}) | more  # noqa: E501  # fmt: skip

    return make


@pytest.fixture
def block(lineage_of, history):
    """Writes a block's parquet."""

    def write(name, recipe="stat_features.recipe:StatFeaturesRecipe", **more):
        lineage = lineage_of(name, recipe, **more)
        EmbeddingTable(IDS, VECTORS, lineage).write(history.block(name, submit=True))
        return lineage

    return write


def merge_of(lineage_of, history, *blocks, name="merged", **more):
    noted = {block["name"]: {"content": "?", "lineage": block} for block in blocks}
    config = {"blocks": {block["name"]: {"path": None} for block in blocks}, "imputer": None, "condition": None}
    lineage = lineage_of(name, blocks=noted, config=config, **more)
    write_entry(history.embeddings(True) / name, IDS, VECTORS, lineage)
    return history.embeddings(True) / name


# --- what has to be made ------------------------------------------------------------------------------


def test_what_is_read_is_made_first_and_each_once(block, lineage_of, history):
    wide = lineage_of("wide", "numeric_features.wide:NumericFeaturesWideRecipe")
    dcn = lineage_of("dcn", RECIPES["dcn"], read=[wide])
    stacker = lineage_of("stacker", "stacker.recipe:StackerRecipe", read=[dcn])
    makings, faults = makings_of(merge_of(lineage_of, history, stacker, wide, dcn))
    assert [(making.name, making.kind, making.after) for making in makings] == [
        ("wide", "block", ()),
        ("dcn", "block", ("wide",)),
        ("stacker", "block", ("dcn",)),
        ("merged", "merge", ("stacker", "wide", "dcn")),
    ]
    assert faults == []
    block("alone")
    assert [making.name for making in makings_of(history.block("alone", submit=True))[0]] == ["alone"]


def test_an_entrys_changed_file_is_named(lineage_of, history):
    entry = merge_of(lineage_of, history, lineage_of("stat_features", RECIPES["stat_features"]))
    np.save(entry / "embeddings.npy", np.zeros((3, 2), np.float16))
    assert makings_of(entry)[1] == [f"{entry / 'embeddings.npy'}: changed since it was written"]


@pytest.mark.parametrize(
    ("manifest", "said"),
    [
        (None, "manifest.json: file missing"),
        ("{", "not a readable manifest"),
        ('{"format": 2}', "format 2, not 1"),
        ('{"format": 1}', "not a readable manifest"),
        ("[]", "not a readable manifest"),
    ],
)
def test_an_entry_without_a_manifest_that_can_be_read_is_one_line(lineage_of, history, manifest, said):
    entry = merge_of(lineage_of, history, lineage_of("stat_features", RECIPES["stat_features"]))
    (entry / "manifest.json").unlink()
    if manifest is not None:
        (entry / "manifest.json").write_text(manifest)
    with pytest.raises(UserError, match=said) as caught:
        makings_of(entry)
    assert len(caught.value.messages) == 1


@pytest.mark.parametrize("missing", ["history", "versions", "machine", "code"])
def test_a_lineage_of_before_is_one_line(block, lineage_of, history, missing):
    older = {key: value for key, value in block("stat_features").items() if key != missing}
    EmbeddingTable(IDS, VECTORS, older).write(history.block("stat_features", submit=True))
    with pytest.raises(UserError, match=f"stat_features: its lineage has no {missing}: an earlier version"):
        makings_of(history.block("stat_features", submit=True))
    entry = merge_of(lineage_of, history, older)
    with pytest.raises(UserError, match=f"no {missing}"):
        makings_of(entry)


def test_what_nobody_knows_how_to_make(history, tmp_path):
    with pytest.raises(UserError, match="neither an entry nor a parquet"):
        makings_of(tmp_path / "nothing")
    EmbeddingTable(IDS, VECTORS, {}).write(history.block("theirs", submit=True))
    with pytest.raises(UserError, match="names no recipe"):
        makings_of(history.block("theirs", submit=True))


def test_two_fits_of_one_name_are_refused(lineage_of, history):
    wide = lineage_of("wide", "numeric_features.wide:NumericFeaturesWideRecipe")
    dcn = lineage_of("dcn", RECIPES["dcn"], read=[wide | {"seed": 1}])
    with pytest.raises(UserError, match="wide: two different fits"):
        makings_of(merge_of(lineage_of, history, wide, dcn))


# --- sources and doubts -------------------------------------------------------------------------------


def made(lineage, kind="block"):
    return Making(lineage["name"], kind, lineage)


def test_another_history_is_refused_and_so_are_other_targets(lineage_of, history):
    target = [made(lineage_of("dcn", RECIPES["dcn"], targets={"category": None, "sku": None}))]
    require_sources(target, history)
    other = [made(lineage_of("dcn", RECIPES["dcn"], targets={"category": "1234", "sku": None}))]
    with pytest.raises(UserError, match="not the list of category targets that dcn was made from"):
        require_sources(other, history)
    np.save(history.relevant_clients, IDS + 1)
    with pytest.raises(UserError, match="not the history that dcn was made from"):
        require_sources(target, history)


def test_a_block_without_lineage_must_be_what_it_was(lineage_of, history):
    theirs = history.embeddings(True) / "theirs"
    write_entry(theirs, IDS, VECTORS)
    config = {"blocks": {"theirs": {"path": None}}}
    noted = {"theirs": {"content": content_of(theirs), "lineage": {}}}
    making = made(lineage_of("merged", blocks=noted, config=config), "merge")
    require_sources([making], history)
    assert doubts([making], machine(), versions()) == [
        "merged: block theirs has no lineage: it is taken as it lies there"
    ]
    write_entry(theirs, IDS, VECTORS * 2)
    with pytest.raises(UserError, match="theirs: not what merged was made from"):
        require_sources([making], history)


def test_nothing_is_doubted_where_all_is_the_same(lineage_of):
    assert doubts([made(lineage_of("a", RECIPES["dcn"]))], machine(), versions()) == []


@pytest.mark.parametrize(
    ("key", "changed", "said"),
    [
        ("versions", versions() | {"numpy": "1"}, f"made with other versions: numpy 1 (here {versions()['numpy']})"),
        ("versions", versions() | {"pandas": "1"}, "made with other versions: pandas 1 (here none)"),
        ("code", "0", "made by another state of the project's code"),
        ("machine", machine() | {"gpu": True}, "made where there was a GPU, whose sums have no fixed order"),
        ("machine", machine() | {"processor": "Z80"}, f"made on another processor (Z80, here {processor()})"),
    ],
)
def test_doubts_are_a_line_each_with_all_they_are_about(lineage_of, key, changed, said):
    makings = [made(lineage_of(name, RECIPES["dcn"]) | {key: changed}) for name in ("a", "b")]
    assert doubts(makings, machine(), versions()) == [f"a, b: {said}"]


def test_as_many_threads_as_then(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.setenv("POLARS_MAX_THREADS", "7")
    then = {"processor": "x", "cores": 4, "OMP_NUM_THREADS": "2", "POLARS_MAX_THREADS": None, "gpu": False}
    same = threads_then(then, then)
    assert same["OMP_NUM_THREADS"] == "2"
    assert "POLARS_MAX_THREADS" not in same
    assert same["CUDA_VISIBLE_DEVICES"] == ""
    assert threads_then(then, then | {"cores": 8})["POLARS_MAX_THREADS"] == "4"
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert "CUDA_VISIBLE_DEVICES" not in threads_then(then | {"gpu": True}, then)


# --- what is run --------------------------------------------------------------------------------------


@pytest.fixture
def aside(history, tmp_path):
    return Aside(DataPaths(tmp_path / "aside"), history)


def test_raw_files_are_linked_and_nobodys_data_path_is_taken(aside, history):
    aside.prepare()
    aside.prepare()
    assert (aside.paths.raw / "product_buy.parquet").read_bytes() == (history.raw / "product_buy.parquet").read_bytes()
    with pytest.raises(UserError, match="has a raw/ of its own"):
        Aside(history, history).prepare()
    aside.paths.raw.unlink()
    aside.paths.raw.symlink_to(history.root)
    with pytest.raises(UserError, match="has a raw/ of its own"):
        aside.prepare()


def config_of(job):
    folder, name = (word.partition("=")[2] for word in job.words[2:4])
    return OmegaConf.to_container(OmegaConf.load(f"{folder}/{name}.yaml"))


def test_the_settings_are_the_lineages(aside, lineage_of, tmp_path):
    config = {"als": {"factors": 5, "iterations": 1}, "interactions": {"column": "url"}}
    lineage = lineage_of("mine", "ALS.recipe:AlsRecipe", config=config, seed=9)
    (job,) = aside.jobs([made(lineage)], tmp_path, machine(), overwrite=False)
    assert job.title.startswith("python ALS/als_embeddings.py --config-path=")
    written = config_of(job)
    assert {key: written[key] for key in ("als", "interactions", "seed", "name")} == config | {
        "seed": 9,
        "name": "mine",
    }
    assert written["data_path"] == str(aside.paths.root)
    assert (written["submit"], written["as_of"], written["unknown_sku"]) == (True, None, "error")


def test_the_order_of_blocks_is_kept_and_foreign_ones_are_found(aside, lineage_of, history, tmp_path):
    ours, renamed = lineage_of("b", RECIPES["dcn"]), lineage_of("a", RECIPES["stat_features"])
    noted = {"b": {"content": "", "lineage": ours}, "z": {"content": "", "lineage": renamed}, "c": {"content": "", "lineage": {}}}  # noqa: E501  # fmt: skip
    config = {"blocks": {"b": {"path": None}, "z": {"path": "/old/a.parquet"}, "c": {"path": None}}, "imputer": None}
    making = made(lineage_of("merged", blocks=noted, config=config), "merge")
    (job,) = aside.jobs([making], tmp_path, machine(), overwrite=True)
    blocks = config_of(job)["blocks"]
    assert list(blocks) == ["b", "z", "c"]
    assert blocks["b"]["path"] is None
    assert blocks["z"]["path"] == str(aside.paths.block("a", submit=True))
    assert blocks["c"]["path"] == str(history.embeddings(True) / "c.parquet")
    assert job.words[-1] == "overwrite=True"


def test_texts_are_made_before_what_reads_them(aside, lineage_of, tmp_path):
    config = {"data_files": "search.parquet", "text": {"newest": 3}, "max_tokens": 8}
    texts, block = aside.jobs([made(lineage_of("search_llm", "LLM.recipe:LanguageModelRecipe", config=config))], tmp_path, machine(), False)  # noqa: E501  # fmt: skip
    assert "LLM/preprocessing_search.py" in texts.title
    assert block.after == (texts.name,)
    written = config_of(texts)
    assert (written["name"], written["text"]) == ("search", {"newest": 3})
    assert "text" not in config_of(block)
    assert config_of(block)["max_tokens"] == 8


def test_a_recipe_that_is_no_longer_there(aside, lineage_of, tmp_path):
    with pytest.raises(UserError, match=r"no command of configs/blocks\.yaml has the recipe gone:Gone"):
        aside.jobs([made(lineage_of("a", "gone:Gone"))], tmp_path, machine(), overwrite=False)


def test_settings_that_came_since_are_named(lineage_of, history):
    then = lineage_of("a", RECIPES["dcn"], config={"model": {"width": 3, "gone": 1}, "list": [1, 2]})
    now = lineage_of("a", RECIPES["dcn"], config={"model": {"width": 3, "new": {}}, "list": [1, 3]})
    path = history.block("a", submit=True)
    EmbeddingTable(IDS, VECTORS, now).write(path)
    assert changed_settings(made(then), path) == ["list", "model.gone", "model.new"]
    EmbeddingTable(IDS, VECTORS, json.loads(json.dumps(then))).write(path)
    assert changed_settings(made(then), path) == []


def test_the_code_of_a_lineage_is_that_of_its_package(lineage_of):
    assert lineage_of("a", RECIPES["dcn"])["code"] == code("dcn")
    assert lineage_of("merged")["code"] == code()
