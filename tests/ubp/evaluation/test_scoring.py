"""What is scored: a block or an entry, by name or path, over the right clients; runs side by side; tasks left out."""

import logging
import threading
import time
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch

from ubp.blocks.embeddings import EmbeddingTable
from ubp.blocks.entry import write_entry
from ubp.data.targets import TASKS
from ubp.evaluation import scoring
from ubp.evaluation.judge import judge
from ubp.evaluation.probes import Probe
from ubp.evaluation.profiles import load_profiles
from ubp.evaluation.scoring import score, scorer, task_data
from ubp.evaluation.tasks import GroundTruth
from ubp.io.errors import UserError

CPU = torch.device("cpu")
TINY = Probe("tiny", 4, 4, epochs=1)
OF = {task.name: task for task in TASKS}


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
    truth = GroundTruth.load(local.paths)
    churn = task_data(OF["churn"], profiles, truth, CPU)
    rows = zip(profiles.client_ids, profiles.vectors.tolist(), strict=True)
    assert churn.profiles.tolist() == [vector for client, vector in rows if client in active]
    for name in OF.keys() - {"churn"}:
        data = task_data(OF[name], profiles, truth, CPU)
        assert len(data.profiles) == len(data.train) == len(data.validation) == len(local.clients)
        assert (data.train != data.validation).any()


@pytest.mark.full
def test_churn_is_trained_apart_only_where_it_is_another_question(local, folder, monkeypatch):
    trained = []
    monkeypatch.setattr(scoring, "judge", lambda data, *rest: trained.append(data.task.name) or judge(data, *rest))
    profiles, probe = load_profiles("block", folder, local), replace(TINY, seeds=(0, 1))
    score(profiles, probe, local.paths, CPU)
    assert trained == [task.name for task in TASKS for _ in probe.seeds]
    trained.clear()
    np.save(local.paths.active_clients, local.clients)
    scores = score(profiles, probe, local.paths, CPU)
    assert trained == [task.name for task in TASKS for _ in probe.seeds if task.name != "conversion"]
    alone = judge(task_data(OF["conversion"], profiles, GroundTruth.load(local.paths), CPU), probe, 1, lambda: None)
    assert scores.details["conversion"][1]["score"] == alone[0].score


# --- side by side --------------------------------------------------------------------------------------


@pytest.fixture
def cores(monkeypatch):
    """Sets how many cores there are."""
    return lambda number: monkeypatch.setattr(scoring.machine, "threads", lambda: number)


@pytest.mark.full
def test_scores_are_the_same_bits_whatever_the_number_of_cores(local, folder, cores):
    profiles = load_profiles("block", folder, local)
    probe = replace(TINY, width=64, hidden=128, epochs=2, seeds=(0, 1, 2), side_by_side=True)
    threads, found = torch.get_num_threads(), []
    for number in (1, 2, 5):
        cores(number)
        found.append(score(profiles, probe, local.paths, CPU))
        assert torch.get_num_threads() == threads
    assert found[0] == found[1] == found[2]
    torch.set_num_threads(1)
    try:
        assert score(profiles, replace(probe, side_by_side=False), local.paths, CPU) == found[0]
    finally:
        torch.set_num_threads(threads)


def test_all_cores_are_filled_by_one_seed_and_by_the_next_thing(local, folder, cores, monkeypatch):
    """Each run waits until as many others run beside it: with fewer the barrier breaks."""
    cores(3)
    together = threading.Barrier(3)
    threads = set()

    def run(data, *_):
        threads.add((threading.get_ident(), torch.get_num_threads()))
        together.wait(10)
        return judge(data, *_)

    monkeypatch.setattr(scoring, "judge", run)
    profiles = load_profiles("block", folder, local)
    with scorer(replace(TINY, side_by_side=True), local.paths, CPU) as scoring_them:
        assert scoring_them.has_room(0)
        first = scoring_them.begin(profiles)
        assert scoring_them.has_room(1)
        second = scoring_them.begin(replace(profiles, name="again"))
        assert not scoring_them.has_room(2)
        (scores, seconds), (again, _) = first(), second()
    assert scores.tasks == again.tasks
    assert seconds > 0
    assert {number for _, number in threads} == {1}
    assert len(threads) == 3
    assert threading.get_ident() not in {thread for thread, _ in threads}


def test_many_cores_let_more_things_be_begun_where_the_memory_has_room(local, folder, cores, monkeypatch):
    cores(16)
    free = [10**12]
    monkeypatch.setattr(scoring.machine, "free_memory", lambda: free[0])
    profiles = load_profiles("block", folder, local)
    with scorer(replace(TINY, side_by_side=True), local.paths, CPU) as many:
        many.begin(profiles)()
        assert [many.has_room(begun) for begun in range(5)] == [True, True, True, True, False]
        free[0] = 3 * profiles.vectors.nbytes
        assert [many.has_room(begun) for begun in range(2)] == [True, False]


def test_the_judge_takes_one_thing_and_one_run_after_the_other(local, folder, monkeypatch):
    seen = set()
    monkeypatch.setattr(
        scoring, "judge", lambda *given: seen.add((threading.get_ident(), torch.get_num_threads())) or judge(*given)
    )
    with scorer(TINY, local.paths, CPU) as one_by_one:
        assert not one_by_one.has_room(1)
        one_by_one.begin(load_profiles("block", folder, local))
        assert seen == {(threading.get_ident(), torch.get_num_threads())}


@pytest.mark.full
def test_a_tasks_data_is_made_once_and_let_go(local, folder, cores, monkeypatch):
    cores(2)
    made = []
    monkeypatch.setattr(scoring, "task_data", lambda task, *rest: made.append(task.name) or task_data(task, *rest))
    probe = replace(TINY, seeds=(0, 1, 2), side_by_side=True)
    score(load_profiles("block", folder, local), probe, local.paths, CPU)
    assert sorted(made) == sorted(OF)
    shared = scoring._Shared(lambda: task_data(OF["churn"], load_profiles("block", folder, local), truth, CPU), 2)
    truth = GroundTruth.load(local.paths)
    for _ in range(2):
        with shared.taken() as data:
            assert shared._data is data
    assert shared._data is None


def test_an_interruption_does_not_wait_for_the_runs_ends(local, folder, cores):
    cores(2)
    probe = replace(TINY, epochs=1_000_000, side_by_side=True)
    threads, began = torch.get_num_threads(), time.monotonic()
    profiles = load_profiles("block", folder, local)

    def interrupted() -> None:
        with scorer(probe, local.paths, CPU) as endless:
            endless.begin(profiles)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert time.monotonic() - began < 20
    assert torch.get_num_threads() == threads


# --- tasks that cannot be scored ------------------------------------------------------------------------


def without_targets(local, *names: str) -> None:
    for name in names:
        for file in (name, f"popularity_{name}"):
            np.save(local.paths.target / f"{file}.npy", np.array([]))


def test_a_task_without_targets_is_left_out_and_the_others_are_scored(local, folder, caplog):
    profiles = load_profiles("block", folder, local)
    whole = score(profiles, TINY, local.paths, CPU)
    assert whole.n_tasks == 6
    without_targets(local, "propensity_new_sku")
    with caplog.at_level(logging.WARNING):
        scores = score(profiles, TINY, local.paths, CPU)
    assert scores.tasks == whole.tasks | {"propensity_new_sku": None}
    assert scores.n_tasks == 5
    assert scores.total == pytest.approx(whole.total - whole.tasks["propensity_new_sku"], abs=1e-9)
    file = local.paths.target / "propensity_new_sku.npy"
    assert caplog.messages.count(f"propensity_new_sku is not scored: {file} has no targets") == 1


@pytest.mark.full
def test_churn_is_left_out_where_no_client_is_active(local, folder, caplog):
    profiles = load_profiles("block", folder, local)
    for active in (np.array([123_456]), np.array([], np.int64)):
        np.save(local.paths.active_clients, active)
        caplog.clear()
        scores = score(profiles, TINY, local.paths, CPU)
        assert [task for task, value in scores.tasks.items() if value is None] == ["churn"]
        assert any(
            line.startswith(f"churn is not scored: none of the {len(local.clients)} clients")
            for line in caplog.messages
        )


def test_nothing_to_score_is_an_error(local, folder):
    without_targets(local, *(name for name in OF if OF[name].is_propensity))
    profiles = load_profiles("block", folder, local)
    assert score(profiles, TINY, local.paths, CPU).n_tasks == 2
    nobody = replace(profiles, client_ids=profiles.client_ids[:0], vectors=profiles.vectors[:0])
    with pytest.raises(UserError) as caught:
        score(nobody, TINY, local.paths, CPU)
    assert len(caught.value.messages) == 6


@pytest.mark.parametrize("window", ["train", "validation"])
@pytest.mark.parametrize("others", [False, True], ids=["no rows", "others' rows"])
def test_a_window_without_a_purchase_is_one_line(local, folder, window, others):
    file = local.paths.target / f"{window}_target.parquet"
    rows = pl.read_parquet(file)
    (rows.with_columns(client_id=pl.lit(987_654)) if others else rows.clear()).write_parquet(file)
    with pytest.raises(UserError) as caught:
        score(load_profiles("block", folder, local), TINY, local.paths, CPU)
    (message,) = caught.value.messages
    assert message.startswith(f"{file}: no purchase by any of the {len(local.clients)} clients that are scored")


def test_one_purchase_a_window_crashes_nothing(local, folder, caplog):
    for window in ("train", "validation"):
        file = local.paths.target / f"{window}_target.parquet"
        rows = pl.read_parquet(file)
        rows.head(1).with_columns(client_id=pl.lit(local.clients[-1])).write_parquet(file)
    np.save(local.paths.active_clients, local.clients[:3])
    scores = score(load_profiles("block", folder, local), TINY, local.paths, CPU)
    assert scores.n_tasks == 6
    assert scores.tasks["churn"] == 0
    assert "churn: none of 3 clients bought in the validation window; it counts as an AUROC of 0" in caplog.messages


def test_targets_without_a_buyer_are_counted_once_an_evaluation(local, folder, cores, caplog):
    file = local.paths.target / "validation_target.parquet"
    rows = pl.read_parquet(file)
    target = np.load(local.paths.target / "propensity_category.npy")
    assert len(target) == 8
    rows.filter(~pl.col("category").is_in(target[:3].tolist())).write_parquet(file)
    profiles = load_profiles("block", folder, local)
    cores(2)
    with scorer(replace(TINY, side_by_side=True), local.paths, CPU) as twice:
        for ended in [twice.begin(profiles), twice.begin(replace(profiles, name="again"))]:
            ended()
    line = "propensity_category: 3 of 8 targets have no buyer in the validation window; each counts as an AUROC of 0"
    assert caplog.messages.count(line) == 1
    assert not any("conversion" in message for message in caplog.messages)
