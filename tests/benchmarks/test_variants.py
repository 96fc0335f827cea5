"""Variants of a block: overrides reach the recipe, rows are not made again, preparations are shared."""

from dataclasses import replace

import numpy as np
import pytest

from benchmarks import variants
from benchmarks.variants import Row, mean_cell, preparation, rows_of, summary, trained
from tests.ubp.blocks.toy import Purchases
from ubp.cli.config import composed, config_of
from ubp.cli.recipe import Fit
from ubp.data.history import ChallengeData
from ubp.data.paths import CONFIGS
from ubp.data.targets import TASKS
from ubp.evaluation.probes import Probe
from ubp.evaluation.scores import Scores

PROBE = Probe("quick")
VARIANTS = (
    '+variants.narrow=["model.network.width=7","snapshots.count=3"]',
    '+variants.far=["snapshots.horizon=3"]',
)
LEFT = ("validated", "refitted")  # what a training leaves to be taken up again


class Recorder:
    """In the place of the block's recipe: writes down what it is given, and leaves what a training leaves."""

    def __init__(self) -> None:
        self.configs, self.fits, self.left = [], [], []

    def of(self, config):
        self.configs.append(config)
        return self

    def fit(self, _history, seed, folder):
        found = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
        self.fits.append((seed, folder, found))
        self.left.append([path.name for path in folder.rglob("*") if path.name in LEFT])
        for name in ("windows", *LEFT):
            (folder / "snapshots" / name).mkdir(parents=True, exist_ok=True)
            (folder / "snapshots" / name / "file").write_text("content")
        return Fit(Purchases(np.array([1.0 + seed, 0.1, 2.0], np.float32)))


@pytest.fixture
def data(history) -> ChallengeData:
    history.relevant_clients.parent.mkdir()
    np.save(history.relevant_clients, ChallengeData(history, submit=True).seen())
    return ChallengeData(history, submit=True)


@pytest.fixture
def recipe(monkeypatch) -> Recorder:
    recorder = Recorder()
    monkeypatch.setattr(variants, "imported", lambda _: recorder)
    return recorder


@pytest.fixture(autouse=True)
def scored(monkeypatch) -> dict[str, np.ndarray]:
    """What is scored, by its name; the price cannot be."""
    found = {}

    def score(profiles, probe, *_):
        found[profiles.name] = profiles.vectors
        tasks = {task.name: 0.5 for task in TASKS[:-1]} | {TASKS[-1].name: None}
        return Scores(profiles.name, profiles.vectors.shape[1], probe.name, tasks, 2.5, 0.0, {})

    monkeypatch.setattr(variants, "score_anew", score)
    return found


def config(*words):
    return composed(CONFIGS / "scripts", "variants", [*VARIANTS, *words])


def test_a_variants_overrides_reach_the_recipe_beside_the_preset(data, recipe):
    rows = list(rows_of(config(), data, PROBE, set()))
    assert [row.variant for row in rows] == ["default", "narrow", "far"]
    default, narrow, far = recipe.configs
    assert (narrow.model.network.width, narrow.snapshots.count) == (7, 3)
    assert far.snapshots.horizon == 3
    plain = config_of(variants.registered("dcn"), ["preset=demo"])
    assert default == plain
    for changed, keys in ((narrow, {"model", "snapshots"}), (far, {"snapshots"})):
        assert {key for key in plain if changed[key] != plain[key]} == keys


def test_each_variant_is_trained_with_each_seed_and_scored_conditioned(data, recipe, scored):
    rows = list(rows_of(config("seeds=[1,2]", "only=[narrow,default]"), data, PROBE, set()))
    assert [(row.seed, row.variant) for row in rows] == [(s, v) for s in (1, 2) for v in ("narrow", "default")]
    assert [seed for seed, _, _ in recipe.fits] == [1, 1, 2, 2]
    assert list(scored) == ["narrow 1", "default 1", "narrow 2", "default 2"]
    vectors = scored["narrow 1"]
    assert vectors[:, :3].mean(axis=0) == pytest.approx([0, 0, 0], abs=0.05)
    assert vectors[:, 3] == pytest.approx(1.5 * 32)  # the constant
    assert {(row.columns, row.churn, row.propensity_price, row.total) for row in rows} == {(3, 0.5, None, 2.5)}


@pytest.mark.usefixtures("recipe")
def test_what_is_in_the_table_is_not_scored_again(data, scored):
    rows = list(rows_of(config(), data, PROBE, set()))
    scored.clear()
    done = {row.key for row in rows if row.variant != "far"}
    assert [row.variant for row in rows_of(config(), data, PROBE, done)] == ["far"]
    assert list(scored) == ["far 1"]
    assert list(rows_of(config(), data, PROBE, {row.key for row in rows})) == []
    assert [row.seed for row in rows_of(config("seeds=[1,2]"), data, PROBE, {row.key for row in rows})] == [2, 2, 2]


@pytest.mark.full
def test_another_probe_or_constant_needs_no_training(data, recipe, scored):
    first = list(rows_of(config(), data, PROBE, set()))
    recipe.fits.clear()
    second = list(rows_of(config("constant=3"), data, Probe("judge"), set()))
    assert recipe.fits == []
    assert [replace(row, probe="quick") for row in second] == first
    assert scored["default 1"][:, 3] == pytest.approx(3 * 32)


@pytest.mark.full
def test_what_a_killed_training_left_is_not_taken_up_by_another_variant(data, recipe):
    next(rows_of(config("only=[default]"), data, PROBE, set()))
    ((_, folder, _),) = recipe.fits
    (folder / "snapshots" / "validated").mkdir()
    next(rows_of(config("only=[narrow]"), data, PROBE, set()))
    assert recipe.fits[-1][1] == folder
    assert recipe.left == [[], []]


@pytest.mark.full
def test_variants_of_the_same_windows_share_what_was_prepared_and_no_checkpoints(data, recipe):
    list(rows_of(config("seeds=[1,2]"), data, PROBE, set()))
    folders = {folder for _, folder, _ in recipe.fits}
    assert len(folders) == 2  # "far" asks for other windows
    assert all(folder.is_relative_to(data.paths.cache) for folder in folders)
    first, *later = [found for _, folder, found in recipe.fits if folder == recipe.fits[0][1]]
    assert first == []
    assert later == [["snapshots"]] * 3
    for folder in folders:
        assert sorted(path.name for path in folder.rglob("*")) == ["file", "snapshots", "windows"]


def test_a_training_leaves_its_block(data, recipe, tmp_path):
    block = trained(recipe, data, 3, tmp_path)
    assert block.weights[0] == 4


@pytest.mark.full
def test_what_is_prepared_is_told_apart_by_window_and_mask():
    def of(*words):
        return preparation(config_of(variants.registered("dcn"), words))

    assert of() == of("model.network.width=7") == of("model.losses.mask=0.1")
    contrastive = "model.losses.weights.contrastive=1"
    asked = [of(), of("snapshots.horizon=3"), of(contrastive), of(contrastive, "model.losses.mask=0.1")]
    assert len(set(asked)) == 4


@pytest.mark.full
def test_a_block_without_past_windows_shares_nothing_between_settings():
    def of(*words):
        return preparation(config_of(variants.registered("twhin"), words))

    assert of() == of()
    assert of() != of("edges.types=[product_buy]")


def test_the_summary_has_means_and_the_spread():
    row = Row("demo", "quick", "dcn", "narrow", 1, 64, 30, 0.8, 0.8, 0.7, 0.7, 0.7, None, 3.7)
    other = Row("demo", "quick", "dcn", "narrow", 2, 64, 50, 0.6, 0.8, 0.7, 0.7, 0.7, None, 3.5)
    table = summary([row, other])
    cells = [next(iter(column.cells)) for column in table.columns]
    assert cells[2:7] == ["narrow", "2", "64", "40", "0.7000"]
    assert cells[-2:] == ["–", "3.6000 ±0.1414"]
    assert mean_cell([None, 1.0]) == "1.0000"


@pytest.mark.full
@pytest.mark.parametrize("block", ["dcn", "sequential_encoder", "twhin"])
def test_the_variants_of_a_block_name_settings_that_it_has(block):
    chosen = composed(CONFIGS / "scripts", f"variants_{block}")
    plain = config_of(variants.registered(block), ["preset=demo"])
    for name, overrides in chosen.variants.items():
        assert (config_of(variants.registered(block), ["preset=demo", *overrides]) == plain) == (name == "default")
