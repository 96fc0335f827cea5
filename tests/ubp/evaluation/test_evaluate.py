"""Evaluating: what was scored before is not scored again; torch is left as it was."""

import contextlib
import dataclasses

import numpy as np
import pytest
import torch

from ubp.data.history import ChallengeData
from ubp.data.targets import TASKS
from ubp.evaluation import evaluate as evaluation
from ubp.evaluation.probes import Probe
from ubp.evaluation.profiles import Profiles
from ubp.evaluation.scores import Scores
from ubp.io.errors import UserError

PROBE = Probe("quick", 16, 32, epochs=1, seeds=(0,))


class FakeScorer:
    """Every task scores 0.5; each thing takes as many seconds as its name has letters. At most two at once."""

    def __init__(self, probe: Probe, calls: list[str]) -> None:
        self.probe, self.calls = probe, calls

    def has_room(self, begun: int) -> bool:
        return begun < 2

    def begin(self, profiles: Profiles):
        self.calls.append(f"begin {profiles.name}")
        return lambda: self.finish(profiles.name)

    def finish(self, name: str) -> tuple[Scores, float]:
        self.calls.append(f"finish {name}")
        if name == "broken":
            raise RuntimeError("out of memory")
        scores = Scores(name, 2, self.probe.name, {task.name: 0.5 for task in TASKS}, 3.0, 0.0, {})
        return scores, float(len(name))


@pytest.fixture
def scored(history, monkeypatch):
    """Profiles, their data, and a list that grows whenever something is really scored."""
    data = ChallengeData(history, True)
    history.target.mkdir()
    (history.target / "train_target.parquet").write_text("windows")
    calls = []
    monkeypatch.setattr(evaluation, "_scorer", lambda probe, *_: contextlib.nullcontext(FakeScorer(probe, calls)))
    profiles = Profiles("a", history.root / "a.parquet", np.arange(3), np.ones((3, 2), np.float32))
    return profiles, data, calls


def evaluate(profiles, data, probe=PROBE, overwrite=False) -> Scores:
    return evaluation.evaluate(profiles, probe, data, "cpu", overwrite)


def test_the_same_is_scored_once(scored):
    profiles, data, calls = scored
    assert evaluate(profiles, data) == evaluate(profiles, data)
    assert calls == ["begin a", "finish a"]
    evaluate(profiles, data, overwrite=True)
    assert calls == ["begin a", "finish a"] * 2


def test_scores_of_few_steps_are_said_to_be_doubtful(scored, caplog):
    profiles, data, _ = scored
    evaluate(profiles, data)
    assert "ranks otherwise" not in caplog.text
    evaluate(profiles, data, dataclasses.replace(PROBE, like_width=2048))
    assert caplog.text.count("3 clients give the quick probe 1 steps; with fewer than 36 it ranks otherwise") == 1


@pytest.mark.parametrize("change", ["vectors", "clients", "labels", "probe"])
def test_anything_else_is_scored_again(scored, change):
    profiles, data, calls = scored
    evaluate(profiles, data)
    probe = PROBE
    if change == "vectors":
        profiles.vectors[0, 0] = 2
    elif change == "clients":
        profiles = dataclasses.replace(profiles, client_ids=np.array([0, 2, 1]))
    elif change == "labels":
        (data.paths.target / "train_target.parquet").write_text("other windows")
    else:
        probe = dataclasses.replace(PROBE, epochs=2)
    evaluate(profiles, data, probe)
    assert calls == ["begin a", "finish a"] * 2


def in_memory(folder, *names: str) -> list[Profiles]:
    return [Profiles(name, folder / f"{name}.parquet", np.arange(3), np.ones((3, 2), np.float32)) for name in names]


def test_the_next_thing_is_begun_before_the_first_one_ends(scored):
    _, data, calls = scored
    things = in_memory(data.paths.root, "three", "a", "of")
    found = evaluation.evaluate_all(things, PROBE, data, "cpu", overwrite=False)
    assert [one.scores.name for one in found] == ["three", "a", "of"]  # as asked, though begun by path
    assert [(one.seconds, one.clients) for one in found] == [(5.0, 3), (1.0, 3), (2.0, 3)]
    assert calls == ["begin a", "begin of", "finish a", "begin three", "finish of", "finish three"]


def test_what_was_done_before_is_skipped_thing_by_thing(scored):
    _, data, calls = scored
    evaluation.evaluate_all(in_memory(data.paths.root, "a", "of"), PROBE, data, "cpu", overwrite=False)
    calls.clear()
    things = in_memory(data.paths.root, "a", "b", "of")
    found = evaluation.evaluate_all(things, PROBE, data, "cpu", overwrite=False)
    assert [one.seconds for one in found] == [0.0, 1.0, 0.0]
    assert calls == ["begin b", "finish b"]


def test_torch_is_not_asked_for_where_all_is_done(scored, monkeypatch):
    _, data, _ = scored
    things = in_memory(data.paths.root, "a", "of")
    first = evaluation.evaluate_all(things, PROBE, data, "cpu", overwrite=False)
    monkeypatch.delattr(evaluation, "_scorer")
    again = evaluation.evaluate_all(things, PROBE, data, "cpu", overwrite=False)
    assert [one.scores for one in again] == [one.scores for one in first]


def test_a_thing_named_twice_is_scored_once(scored):
    _, data, calls = scored
    (thing,) = in_memory(data.paths.root, "a")
    found = evaluation.evaluate_all([thing, thing], PROBE, data, "cpu", overwrite=False)
    assert len(found) == 2
    assert calls == ["begin a", "finish a"]


def test_an_error_leaves_what_was_begun_undone_and_unlocked(scored):
    _, data, calls = scored
    things = in_memory(data.paths.root, "a", "broken", "of")
    with pytest.raises(RuntimeError, match="out of memory"):
        evaluation.evaluate_all(things, PROBE, data, "cpu", overwrite=False)
    calls.clear()
    evaluation.evaluate_all([things[0], things[2]], PROBE, data, "cpu", overwrite=False)
    assert calls == ["begin of", "finish of"]


def test_things_are_read_one_after_the_other(scored, monkeypatch):
    _, data, calls = scored
    things = {thing.path: thing for thing in in_memory(data.paths.root, "a", "b", "c", "d")}
    monkeypatch.setattr(evaluation, "profiles_at", lambda path, _: calls.append(f"read {path.stem}") or things[path])
    evaluation.evaluate_all(list(things), PROBE, data, "cpu", overwrite=False)
    assert calls.index("read c") > calls.index("finish a")
    assert calls.index("read d") > calls.index("finish b")


def test_a_device_that_is_not_there_is_one_line():
    assert evaluation.choose_device("cpu").type == "cpu"
    assert evaluation.choose_device("auto").type in ("cpu", "cuda")
    for name in ("gpu", "meta:x"):
        with pytest.raises(UserError, match=f"device={name}: .*try device=cpu"):
            evaluation.choose_device(name)


@pytest.mark.parametrize("before", [(False, False), (True, True), (True, False)])
def test_torchs_choice_of_algorithms_is_left_as_it_was(before):
    enabled, warn_only = before
    torch.use_deterministic_algorithms(enabled, warn_only=warn_only)
    try:
        with evaluation.deterministic(not enabled):
            assert torch.are_deterministic_algorithms_enabled() is not enabled
        now = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
        assert now == before
    finally:
        torch.use_deterministic_algorithms(False)


def test_things_are_scored_in_their_order_and_asked_for_when_there_is_room(scored):
    profiles, data, calls = scored

    def things():
        for name in "abc":
            calls.append(f"ask {name}")
            yield dataclasses.replace(profiles, name=name)

    found = evaluation.score_each(things(), PROBE, data.paths, "cpu")
    assert next(found).name == "a"
    assert calls == ["ask a", "begin a", "ask b", "begin b", "finish a"]
    assert [scores.name for scores in found] == ["b", "c"]
    assert calls[5:] == ["ask c", "begin c", "finish b", "finish c"]


def test_a_folder_in_the_place_of_a_target_is_no_label(history):
    history.target.mkdir()
    (history.target / "train_target.parquet").write_text("windows")
    before = evaluation.labels_digest(history)
    (history.target / "propensity_sku.npy").mkdir()
    assert evaluation.labels_digest(history) == before
