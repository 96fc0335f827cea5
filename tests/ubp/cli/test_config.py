"""Settings: unknown keys and wrong types are refused with a line that names the known ones."""

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import OmegaConf

from ubp.blocks.merge import MergeSettings
from ubp.cli.config import Common, composed, explain, hydra_errors, one_or_several, parse
from ubp.data.paths import CONFIGS
from ubp.io.errors import UserError


@dataclass(frozen=True)
class Sizes:
    factors: int
    alpha: float = 1.0
    name: str | None = None


COMMON = {
    "data_path": "./data", "submit": True, "overwrite": False, "seed": 0, "cuda_visible_devices": 0, "engine": "local",
    "unknown_sku": "error", "as_of": None,
}  # fmt: skip


def refusal(settings, values) -> str:
    with pytest.raises(UserError) as caught:
        parse(settings, OmegaConf.create(values))
    (message,) = caught.value.messages
    assert "\n" not in message
    return message


def test_values_become_the_fields_types():
    assert parse(Sizes, OmegaConf.create({"factors": "8", "alpha": 2})) == Sizes(8, 2.0, None)


def test_interpolations_are_filled_in():
    config = OmegaConf.create({"seed": 5, "part": {"factors": "${seed}"}})
    assert parse(Sizes, config.part).factors == 5


def test_an_unknown_key_names_the_known_ones():
    message = refusal(Sizes, {"factors": 3, "alfa": 1})
    assert message == "alfa: unknown setting (did you mean alpha?); known: factors, alpha, name"


def test_an_unknown_key_far_from_any_other():
    assert refusal(Sizes, {"factors": 3, "zzz": 1}) == "zzz: unknown setting; known: factors, alpha, name"


def test_an_unknown_key_of_a_nested_part_names_the_known_ones():
    message = refusal(MergeSettings, {"blocks": {"a": {"scalr": None}}})
    assert message.startswith("blocks.a.scalr")
    assert "path, drop_zeros, processor, scaler, imputer, columns" in message


@pytest.mark.parametrize("value", ["many", None, 1.5, [1]])
def test_a_wrong_type_names_the_key(value):
    assert refusal(Sizes, {"factors": value}).startswith("factors: ")


def test_a_missing_value_names_the_key():
    assert "factors" in refusal(Sizes, {"alpha": 1})


def test_only_some_keys_are_looked_at():
    assert parse(Sizes, OmegaConf.create({"factors": 3, "other": 1}), ["factors"]) == Sizes(3)


def test_common_settings():
    common = Common.of(OmegaConf.create(COMMON | {"name": "more is fine"}))
    assert common.cuda_visible_devices == "0"
    assert common.paths.raw == Path("data/raw")
    assert common.paths.block("a", submit=False) == Path("data/embeddings_local/a.parquet")
    assert common.paths.block("a", submit=True) == Path("data/embeddings_submit/a.parquet")


@pytest.mark.parametrize(
    ("devices", "wanted"), [(None, None), (1, "1"), ("", ""), ("GPU-8f2a", "GPU-8f2a"), ([0, 1], "0,1"), ([], "")]
)
def test_gpus_by_number_by_name_several_none_or_unsaid(devices, wanted):
    assert Common.of(OmegaConf.create(COMMON | {"cuda_visible_devices": devices})).cuda_visible_devices == wanted


@pytest.mark.parametrize("key", ["submit", "overwrite", "seed"])
def test_common_settings_of_a_wrong_type(key):
    with pytest.raises(UserError, match=f"^{key}: "):
        Common.of(OmegaConf.create(COMMON | {key: "maybe"}))


def test_as_of_reaches_the_data(history):
    config = COMMON | {"data_path": str(history.root)}
    common = Common.of(OmegaConf.create(config | {"as_of": "2023-01-05"}))
    assert common.data().as_of == datetime(2023, 1, 5)
    with pytest.raises(UserError, match="as_of=next week: not a day or time; write it as as_of=2022-10-01"):
        Common.of(OmegaConf.create(config | {"as_of": "next week"})).data()


def test_an_unknown_config_names_the_known_ones():
    line = explain(Exception(), CONFIGS / "ALS", "als_visit_relevant")
    assert line == (
        "--config-name=als_visit_relevant: no such config (did you mean als_visits_relevant?); known: "
        "als_buy_add_categories, als_visits_relevant"
    )


@pytest.mark.parametrize(("asked", "hint"), [("quik", " (did you mean quick?)"), ("light", "")])
def test_an_unknown_choice_names_the_known_ones(asked, hint):
    with pytest.raises(HydraException) as refused:
        composed(CONFIGS / "scripts", "evaluate", [f"probe={asked}"])
    line = explain(refused.value, CONFIGS / "scripts", "evaluate")
    assert line == f"probe={asked}: no such probe{hint}; known: half, judge, none, quick"


@pytest.fixture
def others_hydra():
    """Hydra as somebody else in this process has set it up."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONFIGS / "ALS"), version_base="1.3"):
        yield GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()


@pytest.mark.parametrize("overrides", [["seed=3"], ["sede=3"]])
def test_composing_leaves_hydra_as_it_was(others_hydra, overrides):
    before = HydraConfig.instance().cfg
    try:
        assert composed(CONFIGS / "scripts", "split", overrides).seed == 3
    except HydraException:
        assert overrides == ["sede=3"]
    assert GlobalHydra.instance().hydra is others_hydra
    assert HydraConfig.instance().cfg is before
    assert compose("als_visits_relevant").name == "als_64_visits_relevant"


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("blocks={dcn: {}}", "blocks.dcn: unknown setting; known: stacker (++blocks={...} adds one)"),
        (
            "blocks={stacker: {model.direction: [4]}}",
            "blocks.stacker.model.direction: unknown setting (did you mean model.directions?); known: "
            "model.directions, model.least (++blocks={...} adds one)",
        ),
    ],
)
def test_what_a_mapping_has_not_is_named_and_not_the_mapping(override, line):
    with pytest.raises(HydraException) as refused:
        composed(CONFIGS / "scripts", "replay", ["ensemble=combined", override])
    assert explain(refused.value, CONFIGS / "scripts", "replay") == line
    composed(CONFIGS / "scripts", "replay", ["ensemble=combined", f"++{override}"])


def test_composing_leaves_hydra_unused_where_nobody_uses_it():
    GlobalHydra.instance().clear()
    composed(CONFIGS / "scripts", "split")
    assert not GlobalHydra.instance().is_initialized()


def test_one_name_or_several():
    def asked(value):
        return one_or_several(OmegaConf.create({"embeddings": value}), "embeddings", "a block")

    assert asked("a") == ["a"]
    assert asked(["a", 1]) == ["a", "1"]
    for nothing in ("???", None, "", []):
        with pytest.raises(UserError, match=r"^embeddings: name a block: embeddings=NAME_OR_PATH$"):
            asked(nothing)


def test_what_is_nested_too_deeply_is_one_line():
    deep = "[" * 2000 + "]" * 2000
    with pytest.raises(HydraException, match="nested too deeply"), hydra_errors():
        OmegaConf.create(deep)


def test_a_recursion_of_our_own_is_not_taken_for_a_fault_of_the_config():
    def endless():
        endless()

    with pytest.raises(RecursionError), hydra_errors():
        endless()
