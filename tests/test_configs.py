"""Every config composes, under each preset, and holds what its command reads; the registry agrees with them."""

import dataclasses
import functools
from pathlib import Path

import hydra.utils
import pytest
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from ubp.blocks import registry
from ubp.blocks.fitted import imported
from ubp.blocks.merge import MERGE_KEYS, MergeSettings
from ubp.cli.config import Common, composed, config_of, explain, parse, presets, resolved
from ubp.data.paths import CONFIGS, REPOSITORY
from ubp.data.targets import TargetRules
from ubp.evaluation.probes import Probe


def stands_on_base(path: Path) -> bool:
    return "base" in OmegaConf.load(path).get("defaults", [])


# A folder of commands' configs is one with a config that stands on base.yaml; the others hold parts.
FOLDERS = sorted({path.parent for path in CONFIGS.rglob("*.yaml") if stands_on_base(path)})
NAMED = sorted(path for folder in FOLDERS for path in folder.glob("*.yaml"))
MERGES = [path for path in NAMED if path.parent.name == "merge"]
MODELS = [path for path in NAMED if path.parent.name not in ("scripts", "merge", "text")]
OVERLAYS = sorted(CONFIGS.glob("**/preset/**/*.yaml"))


@functools.cache
def config_at(path: Path, *overrides: str) -> DictConfig:
    return composed(path.parent, path.stem, overrides)


def name_of(path: Path) -> str:
    return str(path.relative_to(CONFIGS).with_suffix(""))


def named(paths: list[Path]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("path", paths, ids=name_of)


def leaves(values: object, parent: str = "") -> dict[str, object]:
    """The values of nested mappings by their dotted paths."""
    if not isinstance(values, dict):
        return {parent: values}
    found = {}
    for key, value in values.items():
        found |= leaves(value, f"{parent}.{key}" if parent else str(key))
    return found


def test_there_are_configs():
    assert {"split", "evaluate", "stat_features", "als_buy_add_categories", "search"} <= {path.stem for path in NAMED}


# With preset=demo each config that has an overlay, and the first of each folder: of the others it changes nothing.
OVERLAID = {path for path in NAMED if path.stem in {overlay.parent.name for overlay in OVERLAYS}}
SHARING = {path for path in NAMED if (path.parent / "preset" / "shared").is_dir()}
FIRST = {NAMED[[path.parent for path in NAMED].index(folder)] for folder in FOLDERS}


@pytest.mark.parametrize(
    ("path", "preset"),
    [
        *(pytest.param(path, "full", id=f"{name_of(path)}-full") for path in NAMED),
        *(
            pytest.param(path, "demo", id=f"{name_of(path)}-demo", marks=pytest.mark.full)
            for path in sorted(OVERLAID | SHARING | FIRST)
        ),
    ],
)
def test_every_config_composes(path, preset):
    config = config_at(path, f"preset={preset}")
    assert resolved(config)
    assert Common.of(config).unknown_sku == "error"
    if "targets" in config:
        assert parse(TargetRules, config, at="targets").per_task == 100


# --- presets ------------------------------------------------------------------------------------------


def test_the_presets():
    assert presets() == ["demo", "full"]


@named([NAMED[[path.parent for path in NAMED].index(folder)] for folder in FOLDERS])
def test_full_is_what_a_config_says_by_itself(path):
    assert resolved(config_at(path, "preset=full")) == resolved(config_at(path))
    assert not {"preset", "demo"} & config_at(path).keys()


def test_nothing_is_added_by_full():
    assert list(CONFIGS.glob("**/preset/**/full.yaml")) == []


@named([NAMED[[path.parent for path in NAMED].index(folder)] for folder in FOLDERS])
def test_a_mistyped_preset_is_one_line_that_names_the_known_ones(path):
    with pytest.raises(HydraException) as refused:
        composed(path.parent, path.stem, ["preset=deom"])
    line = explain(refused.value, path.parent, path.stem)
    assert line == "preset=deom: no such preset (did you mean demo?); known: demo, full"


@named(OVERLAYS)
def test_an_overlay_lies_where_its_config_finds_it_and_holds_what_changes(path):
    """``FOLDER/preset/CONFIG/PRESET.yaml``, or ``shared`` for several of the folder's configs."""
    folder, group, preset = path.parents[2], path.parent.name, path.stem
    assert path.parents[1].name == "preset"
    users = [config for config in sorted(folder.glob("*.yaml")) if group in (config.stem, "shared")]
    assert users
    values = leaves(OmegaConf.to_container(OmegaConf.load(path)))
    used, changed = set(), set()
    for user in users:
        full, overlaid = (
            leaves(OmegaConf.to_container(config_at(user, f"preset={name}"))) for name in ("full", preset)
        )
        used |= {key for key, value in values.items() if overlaid.get(key) == value}
        changed |= {key for key, value in values.items() if full.get(key) != value}
    assert used == changed == set(values) != set()


def test_the_data_path_is_the_environments(monkeypatch):
    config = config_at(CONFIGS / "scripts" / "split.yaml", "submit=True")
    monkeypatch.setenv("CHALLENGE_DATA_PATH", "/some/where")
    assert resolved(config)["data_path"] == "/some/where"
    monkeypatch.delenv("CHALLENGE_DATA_PATH")
    assert resolved(config)["data_path"] == "./data"


# --- the registry -------------------------------------------------------------------------------------


def of_registry(entries: tuple[registry.Entry, ...]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("entry", entries, ids=[entry.name for entry in entries])


@of_registry(registry.blocks())
def test_a_blocks_config_has_its_name(entry):
    assert config_of(entry).name == entry.name
    assert config_of(entry, ["preset=demo"]).name == entry.name


@of_registry(registry.entries())
def test_an_entrys_command_and_config_are_there(entry):
    assert (REPOSITORY / entry.command).is_file()
    assert CONFIGS / f"{entry.config}.yaml" in NAMED


@of_registry(registry.blocks())
def test_a_blocks_recipe_is_there(entry):
    assert hasattr(imported(entry.recipe), "fit")


def test_every_config_of_a_model_is_in_the_registry_and_every_block_in_a_merge():
    assert {CONFIGS / f"{entry.config}.yaml" for entry in registry.blocks()} == set(MODELS)
    merged = {name for path in MERGES for name in config_at(path).blocks}
    assert merged == {entry.name for entry in registry.blocks()}


def test_benchmarks_know_the_registrys_blocks():
    columns = {entry.name: entry.columns for entry in registry.blocks()}
    assert config_at(CONFIGS / "scripts" / "scale.yaml").random_blocks.items() <= columns.items()
    configs = {entry.config for entry in registry.blocks()}
    assert set(config_at(CONFIGS / "scripts" / "gpu.yaml").blocks) <= configs
    assert set(config_at(CONFIGS / "scripts" / "sequence_models.yaml").models) <= configs


@of_registry(registry.entries())
def test_the_readme_has_the_entry(entry):
    text = (REPOSITORY / "README.md").read_text()
    assert entry.line in text
    assert entry.name in text


# --- what commands read -------------------------------------------------------------------------------


@named(MODELS)
def test_every_embedding_has_a_name_and_follows_submit(path):
    config = config_at(path)
    assert isinstance(config.name, str)
    assert config.submit is True
    assert config_at(path, "submit=False").submit is False


def test_no_two_embeddings_have_one_name():
    names = [config_at(path).name for path in MODELS]
    assert len(set(names)) == len(names)


@named(MERGES)
def test_every_transformer_of_a_merge_can_be_made(path):
    profile = parse(MergeSettings, config_at(path), MERGE_KEYS)
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
    assert [config_at(path).name for path in MERGES] == [path.stem for path in MERGES]


def test_the_judges_probe_is_the_challenges():
    evaluate = CONFIGS / "scripts" / "evaluate.yaml"
    judge = parse(Probe, config_at(evaluate).probe)
    assert dataclasses.replace(judge, seeds=tuple(judge.seeds)) == Probe()
    quick = parse(Probe, config_at(evaluate, "probe=quick").probe)
    smaller = {"width": 2048 // 4, "hidden": 4096 // 4, "like_width": 2048}
    wanted = dataclasses.replace(Probe(), name="quick", **smaller, side_by_side=True)
    assert dataclasses.replace(quick, seeds=wanted.seeds) == wanted
    assert list(quick.seeds) == [1278, 1]


def test_the_demo_scores_by_one_seed_of_the_quick_probe():
    assert list(config_at(CONFIGS / "scripts" / "demo.yaml").quick_seeds) == [1278]


@pytest.mark.full
def test_a_config_needs_no_more_than_its_command_line():
    asked = {
        "evaluate": {"embeddings"}, "linear_reading": {"embeddings"}, "judge_steps": {"embeddings"},
        "validate": {"entry"}, "reproduce": {"entry"}, "encode": {"name"}, "ablate": {"ensemble"},
        "replay": {"ensemble"}, "cut": {"out"},
        "neighbours": {"name"}, "explain": {"name", "client"}, "export": {"name"}, "nightly": {"day", "name"},
    }  # fmt: skip
    missing = {path.stem: OmegaConf.missing_keys(config_at(path)) for path in NAMED}
    needed = {stem: keys for stem, keys in missing.items() if keys}
    assert "evaluate" in needed
    assert needed == {stem: asked.get(stem) for stem in needed}
