"""What is scored: a block or an entry, by name or path, over the right clients; what is written and shown."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from ubp.blocks.embeddings import EmbeddingTable
from ubp.blocks.entry import write_entry
from ubp.data.history import ChallengeData
from ubp.data.split import SplitDates, write_split
from ubp.data.targets import TASKS, TargetRules, make_targets
from ubp.evaluation import evaluate as evaluating
from ubp.evaluation import scoring
from ubp.evaluation.evaluate import evaluate
from ubp.evaluation.judge import judge
from ubp.evaluation.probes import Probe
from ubp.evaluation.profiles import load_profiles
from ubp.evaluation.scores import Scores, scores_file
from ubp.evaluation.scoring import score, task_data
from ubp.io.errors import UserError

OF = {task.name: task for task in TASKS}


@pytest.fixture
def local(history) -> ChallengeData:
    data = ChallengeData(history, True)
    write_split(data, SplitDates.of(data))
    make_targets(data, SplitDates.of(data), TargetRules(), overwrite=False)
    return ChallengeData(history, False)


@pytest.fixture
def folder(local, tmp_path):
    """A block without the first client, an entry of the last ten, and what is half written."""
    ids = local.clients[:0:-1].copy()
    vectors = np.stack([ids, ids * 2], axis=1).astype(np.float32)
    EmbeddingTable(ids, vectors, {}).write(tmp_path / "block.parquet")
    write_entry(tmp_path / "entry", local.clients[-10:], np.ones((10, 3), np.float32))
    (tmp_path / ".1.half.parquet").write_text("half")
    return tmp_path


def test_a_block_is_scored_over_the_clients_with_history(local, folder):
    profiles = load_profiles("block", folder, local)
    assert profiles.name == "block"
    assert profiles.client_ids.tolist() == local.clients.tolist()
    wanted = np.stack([local.clients, local.clients * 2], axis=1).astype(np.float32)
    wanted[0] = 0  # without the block
    assert (profiles.vectors == wanted).all()


def test_an_entry_is_scored_as_it_is(local, folder):
    profiles = load_profiles("entry", folder, local)
    assert profiles.client_ids.tolist() == local.clients[-10:].tolist()
    assert (profiles.vectors.dtype, profiles.vectors.shape) == (np.float32, (10, 3))


@pytest.mark.parametrize("name", ["block.parquet", "entry"])
def test_a_path_does_as_well_as_a_name(local, folder, tmp_path_factory, name):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    assert load_profiles(str(folder / name), elsewhere, local).path == folder / name


def test_what_does_not_exist_names_what_does(local, folder):
    with pytest.raises(UserError) as caught:
        load_profiles("blok", folder, local)
    (message,) = caught.value.messages
    assert message.startswith(f"embeddings=blok: neither a block or entry of {folder} nor a path of one")
    assert message.endswith("there are: block, entry")


def test_an_entry_that_breaks_the_rules_is_not_scored(local, folder):
    np.save(folder / "entry" / "embeddings.npy", np.full((9, 3), np.nan, np.float32))
    with pytest.raises(UserError) as caught:
        load_profiles("entry", folder, local)
    assert len(caught.value.messages) == 3


def test_churn_is_of_active_clients_the_other_tasks_are_of_all(local, folder):
    profiles = load_profiles("block", folder, local)
    active = np.load(local.paths.active_clients)
    assert 0 < len(active) < len(local.clients)
    churn = task_data(OF["churn"], profiles, local.paths, "cpu")
    rows = zip(profiles.client_ids, profiles.vectors.tolist(), strict=True)
    assert churn.profiles.tolist() == [vector for client, vector in rows if client in active]
    for name in OF.keys() - {"churn"}:
        data = task_data(OF[name], profiles, local.paths, "cpu")
        assert len(data.profiles) == len(data.train) == len(data.validation) == len(local.clients)
        assert (data.train != data.validation).any()


def test_no_active_clients_among_those_scored(local, folder):
    np.save(local.paths.active_clients, np.array([123_456]))
    profiles = load_profiles("block", folder, local)
    with pytest.raises(UserError, match="none of the clients"):
        task_data(OF["churn"], profiles, local.paths, "cpu")


def test_a_task_without_targets(local, folder):
    for name in ("propensity_sku", "popularity_propensity_sku"):
        np.save(local.paths.target / f"{name}.npy", np.array([]))
    profiles = load_profiles("block", folder, local)
    with pytest.raises(UserError, match=r"propensity_sku\.npy: no targets"):
        task_data(OF["propensity_sku"], profiles, local.paths, "cpu")


def test_scores_are_taken_only_if_made_from_the_same(local, folder, monkeypatch):
    times = []
    scores = Scores("block", 3, "tiny", {task.name: 0.5 for task in TASKS}, 3.0, 0.1, {"churn": []})
    monkeypatch.setattr(evaluating, "score_anew", lambda *_: times.append(1) or scores)
    profiles, probe = load_profiles("block", folder, local), Probe("tiny", 4, 4, epochs=1)
    for _ in range(2):
        assert evaluate(profiles, probe, local, "cpu", overwrite=False) == scores
    assert len(times) == 1
    evaluate(profiles, probe, local, "cpu", overwrite=True)
    evaluate(profiles, replace(probe, epochs=2), local, "cpu", overwrite=False)
    evaluate(replace(profiles, vectors=profiles.vectors + 1), probe, local, "cpu", overwrite=False)
    assert len(times) == 4


def test_scores_are_written_and_read(tmp_path):
    tasks = {task.name: 0.5 for task in TASKS}
    scores = Scores("a", 3, "light", tasks, 3.0, 0.1, {"churn": []})
    file = scores_file(tmp_path / "a.parquet", "light")
    assert file == tmp_path / "a.scores_light.json"
    scores.write(file)
    assert Scores.load(file) == scores
    written = json.loads(file.read_text())
    assert {task.name: written[task.name] for task in TASKS} == tasks
    assert written["sum"] == 3.0


def test_the_judges_scores_are_named_as_the_organisers(tmp_path):
    assert scores_file(tmp_path / "entry", "judge") == tmp_path / "entry" / "scores.json"


def test_churn_is_trained_apart_only_where_it_is_another_question(local, folder, monkeypatch):
    trained = []
    monkeypatch.setattr(scoring, "judge", lambda data, *rest: trained.append(data.task.name) or judge(data, *rest))
    profiles, probe = load_profiles("block", folder, local), Probe("tiny", 4, 4, epochs=1, seeds=(0, 1))
    score(profiles, probe, local.paths, torch.device("cpu"))
    assert trained == [task.name for task in TASKS for _ in probe.seeds]
    trained.clear()
    np.save(local.paths.active_clients, local.clients)
    scores = score(profiles, probe, local.paths, torch.device("cpu"))
    assert trained == [task.name for task in TASKS for _ in probe.seeds if task.name != "conversion"]
    alone = judge(task_data(OF["conversion"], profiles, local.paths, torch.device("cpu")), probe, 1, lambda: None)
    assert scores.details["conversion"][1]["score"] == alone[0].score
