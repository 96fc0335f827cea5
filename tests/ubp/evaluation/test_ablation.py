"""Blocks left out and added: what is scored is the merge of those blocks alone, and nothing is scored twice."""

import itertools
import statistics
from dataclasses import replace

import numpy as np
import pytest

from ubp.blocks.condition import ConditionSettings
from ubp.blocks.embeddings import EmbeddingTable
from ubp.blocks.entry import as_held
from ubp.blocks.merge import MergeSettings, find_blocks, fit_merge
from ubp.blocks.steps import BlockSettings
from ubp.data.history import ChallengeData
from ubp.data.targets import TASKS
from ubp.evaluation import ablation as module
from ubp.evaluation.ablation import Ablation, Ensemble, Row, alone, greedy, left_out
from ubp.evaluation.probes import Probe
from ubp.evaluation.scores import Scores
from ubp.io.rows import read_rows

WIDTHS = {"a": 1, "b": 2, "c": 4}  # so a subset's columns say which blocks are in it
BLOCKS = {"a": BlockSettings(weight=2.0), "b": BlockSettings(), "c": BlockSettings(weight=0.5)}
# What a subset of the blocks is worth; "b" spoils the others, "c" is best alone, "a" and "c" are best together.
WORTH = {"a": 3.0, "b": 2.0, "c": 3.1, "ab": 2.9, "ac": 3.6, "bc": 3.05, "abc": 3.5}
TASK_NAMES = [task.name for task in TASKS]


def blocks_of(columns: int) -> str:
    return "".join(name for name, width in WIDTHS.items() if (columns - 1) & width)


def by_hand(blocks: str, seed: int) -> dict[str, float]:
    """The made-up scores of a subset: churn has its worth, a seed moves it by less the more blocks there are."""
    return dict.fromkeys(TASK_NAMES[1:-1], 0.5) | {"churn": WORTH[blocks] + seed / 100 / len(blocks)}


@pytest.fixture
def data(history) -> ChallengeData:
    data = ChallengeData(history, submit=True)
    history.relevant_clients.parent.mkdir()
    np.save(history.relevant_clients, data.seen())
    history.target.mkdir()
    (history.target / "train_target.parquet").write_text("windows")
    return ChallengeData(history, submit=True)


@pytest.fixture
def ensemble(data) -> Ensemble:
    folder = data.paths.embeddings(submit=False)
    for seed, (name, columns) in enumerate(WIDTHS.items()):
        write(folder / f"{name}.parquet", data.clients, columns, seed)
    settings = MergeSettings(dict(BLOCKS), None, ConditionSettings(constant=2.0, offset=0.4))
    return Ensemble("three", settings, find_blocks(settings, folder), data.clients)


def write(file, clients, columns, seed):
    vectors = np.random.default_rng(seed).normal(3, 1 + seed, (len(clients), columns)).astype(np.float32)
    EmbeddingTable(clients, vectors, {}).write(file)


@pytest.fixture(autouse=True)
def scored(monkeypatch) -> list[tuple[str, tuple[int, ...]]]:
    """The subsets that are really scored, and by which seeds; the price cannot be."""
    calls = []

    def score_each(things, probe, *_):
        for thing in things:
            blocks = blocks_of(thing.vectors.shape[1])
            calls.append((blocks, probe.seeds))
            details = {}
            for task in TASK_NAMES[:-1]:
                details[task] = [{"seed": seed, "score": by_hand(blocks, seed)[task]} for seed in probe.seeds]
            yield Scores(thing.name, thing.vectors.shape[1], probe.name, {}, WORTH[blocks], 0.0, details)

    monkeypatch.setattr(module, "score_each", score_each)
    return calls


@pytest.fixture
def ablation(ensemble, data, tmp_path) -> Ablation:
    return opened(ensemble, data, tmp_path, seeds=(0, 6, 12))


def opened(ensemble, data, folder, seeds=(0,)) -> Ablation:
    """As a fresh process would."""
    return Ablation(replace(ensemble), Probe("quick", seeds=seeds), data, "cpu", folder / "scores.csv")


@pytest.mark.parametrize("names", ["abc", "ab", "bc", "a", "c"])
@pytest.mark.parametrize("condition", [None, ConditionSettings(), ConditionSettings(rotate=2)])
def test_a_subset_is_the_merge_of_its_blocks_alone(ensemble, names, condition):
    ensemble.settings.condition = condition
    part = MergeSettings({name: BLOCKS[name] for name in names}, None, condition)
    _, wanted = fit_merge(part, {name: ensemble.paths[name] for name in names}, ensemble.clients)
    found = ensemble.profiles(tuple(names))
    assert found.vectors == pytest.approx(as_held(wanted), abs=1e-3)
    assert found.client_ids.tolist() == ensemble.clients.tolist()


def test_left_out_the_most_missed_first(ablation, scored):
    found = left_out(ablation)
    assert [change.block for change in found] == ["c", "a", "b"]
    assert {blocks for blocks, _ in scored} == {"abc", "bc", "ac", "ab"}
    for change in found:
        rest = "".join(name for name in "abc" if name != change.block)
        by_seed = [by_hand(rest, seed)["churn"] - by_hand("abc", seed)["churn"] for seed in (0, 6, 12)]
        assert change.change == pytest.approx(statistics.mean(by_seed))
        assert change.spread == pytest.approx(statistics.stdev(by_seed))
        assert change.churn == pytest.approx(change.change)
        assert (change.conversion, change.propensity_price) == (0.0, None)
        assert change.total == pytest.approx(statistics.mean(sum(by_hand(rest, seed).values()) for seed in (0, 6, 12)))
        assert (change.kind, change.blocks, change.seeds) == ("without", 2, 3)
        assert change.columns == 1 + sum(WIDTHS[name] for name in rest)


def test_alone_the_best_first_with_and_without_a_base(ablation, scored):
    assert [change.block for change in alone(ablation)] == ["c", "a", "b"]
    found = alone(ablation, ("a",))
    assert [change.block for change in found] == ["c", "", "b"]  # "a" by itself, which was scored before
    assert [change.total for change in found] == sorted((change.total for change in found), reverse=True)
    assert [blocks for blocks, _ in scored] == ["abc", "a", "b", "c", "ab", "ac"]


def test_the_greedy_order_is_that_of_all_choices(ablation, scored):
    wanted, chosen = [], ""
    while len(chosen) < 3:
        chosen = max(("".join(sorted(chosen + name)) for name in "abc" if name not in chosen), key=WORTH.get)
        wanted.append(chosen)
    assert wanted == ["c", "ac", "abc"]
    found = greedy(ablation)
    assert [change.block for change in found] == ["c", "a", "b"]
    assert [change.blocks for change in found] == [1, 2, 3]
    assert found[-1].change == found[-1].spread == 0
    assert sorted(blocks for blocks, _ in scored) == sorted(["abc", "a", "b", "c", "ac", "bc"])
    assert [change.block for change in greedy(ablation, ("b",), steps=1)] == ["c"]
    assert [blocks for blocks, _ in scored[6:]] == ["ab"]  # bc was there


def test_of_one_seed_there_is_no_spread(ensemble, data, tmp_path):
    assert [change.spread for change in left_out(opened(ensemble, data, tmp_path))] == [None] * 3


def test_what_is_in_the_table_is_not_scored_again(ablation, ensemble, data, scored, tmp_path):
    first = left_out(ablation)
    before = (tmp_path / "scores.csv").read_bytes()
    scored.clear()
    again = opened(ensemble, data, tmp_path, seeds=(0, 6, 12))
    assert left_out(again) == first
    assert scored == []
    assert (tmp_path / "scores.csv").read_bytes() == before
    assert "parts" not in vars(again.ensemble)  # nor are blocks read


def test_more_seeds_cost_only_themselves(ensemble, data, scored, tmp_path):
    left_out(opened(ensemble, data, tmp_path, seeds=(6,)))
    scored.clear()
    found = left_out(opened(ensemble, data, tmp_path, seeds=(0, 6, 12)))
    assert {seeds for _, seeds in scored} == {(0, 12)}
    scored.clear()
    assert found == left_out(opened(ensemble, data, tmp_path, seeds=(0, 6, 12)))
    assert scored == []


def test_a_run_that_was_killed_goes_on_where_it_stopped(ensemble, data, scored, tmp_path, monkeypatch):
    real = module.score_each
    monkeypatch.setattr(module, "score_each", lambda things, *rest: real(itertools.chain(things, killed()), *rest))
    with pytest.raises(KeyboardInterrupt):
        opened(ensemble, data, tmp_path).measure([("a",), ("b",)])
    monkeypatch.setattr(module, "score_each", real)
    assert [row.blocks for row in read_rows(tmp_path / "scores.csv", Row)] == ["a", "b"]
    scored.clear()
    left_out(opened(ensemble, data, tmp_path))
    alone(opened(ensemble, data, tmp_path))
    assert [blocks for blocks, _ in scored] == ["abc", "bc", "ac", "ab", "c"]


def killed():
    raise KeyboardInterrupt
    yield


@pytest.mark.parametrize("what", ["block", "weight", "condition", "probe", "labels"])
def test_rows_of_something_else_do_not_count(ensemble, data, scored, tmp_path, what):
    left_out(opened(ensemble, data, tmp_path))
    scored.clear()
    settings, probe, wanted = ensemble.settings, Probe("quick", seeds=(0,)), {"abc", "bc", "ac", "ab"}
    if what == "block":
        write(ensemble.paths["c"], data.clients, WIDTHS["c"], seed=9)
        wanted = {"abc", "bc", "ac"}
    elif what == "weight":
        settings = replace(settings, blocks=settings.blocks | {"b": BlockSettings(weight=3.0)})
        wanted = {"abc", "bc", "ab"}
    elif what == "condition":
        settings = replace(settings, condition=ConditionSettings(constant=3.0))
    elif what == "probe":
        probe = replace(probe, epochs=1)
    else:
        (data.paths.target / "train_target.parquet").write_text("other windows")
    left_out(Ablation(replace(ensemble, settings=settings), probe, data, "cpu", tmp_path / "scores.csv"))
    assert {blocks for blocks, _ in scored} == wanted
