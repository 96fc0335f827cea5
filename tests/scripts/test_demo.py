"""The demo: which stages it has."""

import shutil

import pytest
from omegaconf import OmegaConf

from scripts import demo
from scripts.demo import log_stages, of_one_block_each, of_what_was_made, only, plan, stages
from ubp.cli.config import composed
from ubp.data.paths import CONFIGS
from ubp.data.schema import EventType

pytestmark = pytest.mark.full

BLOCKS_OF = {"visits": {"next_url_192_6_4": {}}, "both": {"stat_features": {}, "next_url_192_6_4": {}}}


def test_the_demo_has_all_blocks_and_a_smaller_one_names_its_own(history):
    shutil.copytree(history.raw, history.input)
    merges = OmegaConf.load(CONFIGS / "scripts" / "demo.yaml").merges
    assert only(plan(merges, [], history)) == []
    assert only(plan(["combined"], [], history)) == ["only=[stacker,dcn,sequential_encoder]"]


def test_what_is_asked_of_one_blocks_command_arrives_there_as_it_was():
    asked = {"dcn": ["trainer.max_epochs=3", "labels.groups=[price,skus]"], "lightfm": ["seed=1"]}
    (word,) = of_one_block_each(OmegaConf.create(asked))
    config = composed(CONFIGS / "scripts", "all_embeddings", [word])
    assert OmegaConf.to_container(config.overrides) == asked
    assert of_one_block_each(None) == []


def test_every_stage_has_the_demos_preset(history):
    shutil.copytree(history.raw, history.input)
    planned = plan(["basics", "best_solution"], ["best_solution"], history)
    assert planned.left_out == []
    assert len(planned.blocks) == 12
    words = [*log_stages(overwrite=True), *stages(planned, history.root, [1278], overwrite=True)]
    assert all("preset=demo" in stage for stage in words)
    assert [stage[1].removeprefix("scripts/") for stage in words] == [
        *(
            "make_demo_data.py",
            "split.py",
            "merge.py",
            "merge.py",
            "validate.py",
            "validate.py",
        ),
        *("evaluate.py", "evaluate.py"),
    ]
    assert "embeddings=best_solution" in words[-1]
    assert "probe.seeds=[1278]" in words[-2]
    assert "probe=quick" in words[-2]
    assert f"embeddings=[{','.join([*planned.blocks, *planned.merges])}]" in words[-2]


def split_without(make_history, folder, *kinds):
    """A log without events of these kinds, and its history; all clients are relevant, as far as anyone knows."""
    paths = make_history(empty=kinds).write(folder)
    shutil.copytree(paths.raw, paths.input)
    return paths


def test_merges_are_made_without_the_blocks_that_the_log_has_no_events_for(make_history, tmp_path):
    paths = split_without(make_history, tmp_path, EventType.PAGE_VISIT, EventType.SEARCH_QUERY)
    planned = plan(["basics", "score_4_7406"], ["score_4_7406"], paths)
    assert (planned.merges, planned.judged) == (["basics", "score_4_7406"], ["score_4_7406"])
    assert "stat_features" in planned.blocks
    assert not {"als_64_visits_relevant", "next_url_192_6_4", "search_llm"} & set(planned.blocks)
    assert planned.left_out[0] == f"als_64_visits_relevant is left out: {paths.input} has no events of page_visit"
    assert len(planned.left_out) == 3
    merge, *_, evaluate, _ = stages(planned, tmp_path, [0], overwrite=False)
    assert {"--config-name=basics", "missing=skip"} <= set(merge)
    assert f"embeddings=[{','.join([*planned.blocks, *planned.merges])}]" in evaluate


def test_a_merge_of_nothing_that_can_be_made_is_left_out(make_history, tmp_path, monkeypatch):
    paths = split_without(make_history, tmp_path, EventType.PAGE_VISIT)
    monkeypatch.setattr(demo, "composed", lambda _, name: OmegaConf.create({"blocks": BLOCKS_OF[name]}))
    planned = plan(["visits", "both"], ["visits"], paths)
    assert (planned.blocks, planned.merges, planned.judged) == (["stat_features"], ["both"], [])
    assert planned.left_out[-1] == "merge visits is left out: all of its blocks are"
    assert of_what_was_made(planned, tmp_path).blocks == []
    (tmp_path / "stat_features.parquet").touch()
    assert of_what_was_made(planned, tmp_path) == planned
