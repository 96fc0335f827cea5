"""Every config composes, under each preset, and holds what its command reads."""

import dataclasses
import functools
from pathlib import Path

import hydra.utils
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from ALS.model import AlsSettings
from ALS.recipe import Interactions
from scripts.all_embeddings import COMMANDS
from ubp.blocks.merge import MergeSettings
from ubp.cli.config import Common, parse, resolved
from ubp.data.paths import CONFIGS
from ubp.data.targets import TargetRules
from ubp.evaluation.probes import Probe


def stands_on_base(path: Path) -> bool:
    return "base" in OmegaConf.load(path).get("defaults", [])


# A folder of commands' configs is one with a config that stands on base.yaml; the others hold parts.
FOLDERS = sorted({path.parent for path in CONFIGS.glob("*/*.yaml") if stands_on_base(path)})
NAMED = sorted(path for folder in FOLDERS for path in folder.glob("*.yaml"))
MERGES = [path for path in NAMED if path.parent.name == "merge"]
MODELS = [path for path in NAMED if path.parent.name not in ("scripts", "merge")]


@functools.cache
def composed(path: Path, *overrides: str) -> DictConfig:
    with initialize_config_dir(str(path.parent), version_base=None):
        return compose(path.stem, list(overrides))


def named(paths: list[Path]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("path", paths, ids=[f"{path.parent.name}/{path.stem}" for path in paths])


def test_there_are_configs():
    assert {"split", "evaluate", "stat_features", "als_buy_add_categories"} <= {path.stem for path in NAMED}


@pytest.mark.parametrize("preset", ["full", "demo"])
@named(NAMED)
def test_every_config_composes(path, preset):
    config = composed(path, f"preset={preset}", "data_path=/some/where")
    assert resolved(config)
    common = Common.of(config)
    assert common.data_path == "/some/where"
    assert common.unknown_sku == "error"
    if "targets" in config:
        assert parse(TargetRules, config, at="targets").per_task == 100


def test_the_data_path_is_the_environments(monkeypatch):
    config = composed(CONFIGS / "scripts" / "split.yaml", "submit=True")
    monkeypatch.setenv("CHALLENGE_DATA_PATH", "/some/where")
    assert resolved(config)["data_path"] == "/some/where"
    monkeypatch.delenv("CHALLENGE_DATA_PATH")
    assert resolved(config)["data_path"] == "./data"


@named(MODELS)
def test_every_embedding_has_a_name_and_follows_submit(path):
    config = composed(path)
    assert isinstance(config.name, str)
    assert config.submit is True
    assert composed(path, "submit=False").submit is False


def test_no_two_embeddings_have_one_name():
    names = [composed(path).name for path in MODELS]
    assert len(set(names)) == len(names)


@named([path for path in MODELS if path.parent.name == "ALS"])
def test_als_configs_fill_their_settings(path):
    config = composed(path)
    assert parse(Interactions, config, at="interactions").weights
    assert parse(AlsSettings, config, at="als").factors == 64


@named(MERGES)
def test_every_transformer_of_a_merge_can_be_made(path):
    profile = parse(MergeSettings, composed(path), ["blocks", "imputer"])
    assert profile.blocks
    transformers = [
        transformer
        for block in profile.blocks.values()
        for transformer in (block.processor, block.scaler, block.imputer)
    ]
    for transformer in [*transformers, profile.imputer]:
        if transformer is not None:
            made = hydra.utils.instantiate({key: value for key, value in transformer.items() if key != "global"})
            assert hasattr(made, "fit_transform")


def test_merges_are_named_as_their_files():
    assert [composed(path).name for path in MERGES] == [path.stem for path in MERGES]


def test_the_judges_probe_is_the_challenges():
    evaluate = CONFIGS / "scripts" / "evaluate.yaml"
    judge = parse(Probe, composed(evaluate).probe)
    assert dataclasses.replace(judge, seeds=tuple(judge.seeds)) == Probe()
    light = parse(Probe, composed(evaluate, "probe=light").probe)
    assert light.name == "light"
    assert light.width < 1000
    assert len(light.seeds) > 1
    assert (light.batch_size, light.learning_rate) == (128, 0.001)


def test_every_command_of_an_embedding_is_in_the_script_that_makes_all_and_in_a_merge():
    merged = {name for path in MERGES for name in composed(path).blocks}
    lines = " ".join(command.line for command in COMMANDS)
    for path in MODELS:
        assert path.parent.name in lines
        assert composed(path).name in merged


def test_a_config_needs_no_more_than_its_command_line():
    missing = {path.stem: OmegaConf.missing_keys(composed(path)) for path in NAMED}
    asked = {"encode": {"name"}, "evaluate": {"embeddings"}, "linear_reading": {"embeddings"}, "validate": {"entry"}}
    assert {stem: keys for stem, keys in missing.items() if keys} == asked
