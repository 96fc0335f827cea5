"""How many commands run at once, what each is given. What the script does: tests/test_get_all_embeddings.py."""

import os

import pytest

from scripts import all_embeddings
from scripts.all_embeddings import (
    Memory,
    Settings,
    default_jobs,
    job,
    jobs_of,
    passed_on,
    remarked,
    shared_cores,
    without_left_out,
)
from ubp.blocks.registry import entries
from ubp.cli.config import Common, composed
from ubp.cli.jobs import longest_first
from ubp.data.paths import CONFIGS
from ubp.data.schema import EventType
from ubp.io.errors import UserError

MEMORY = {"full": Memory(command=3.2, log=1.0), "demo": Memory(command=1.0, log=1.0)}


@pytest.mark.parametrize(
    ("cores", "gigabytes", "gpu_jobs", "preset", "jobs"),
    [
        (2, 24, 14, "demo", 2),
        (2, 24, 14, "full", 2),
        (2, 1.9, 14, "demo", 1),
        (2, 0.5, 14, "demo", 1),
        (8, 12, 14, "full", 3),
        (8, 12, 14, "demo", 8),
        (64, 500, 14, "full", 20),
        (64, 500, 1, "full", 8),  # one on the GPU, and the seven that use none
        (2, 24, 1, "full", 2),
    ],
)
def test_as_many_as_commands_cores_and_memory_allow(history, monkeypatch, cores, gigabytes, gpu_jobs, preset, jobs):
    monkeypatch.setattr(all_embeddings, "cores", lambda: cores)
    monkeypatch.setattr(all_embeddings, "free_memory", lambda: int(gigabytes * 1e9))
    assert default_jobs(MEMORY[preset], gpu_jobs, entries(), history) == jobs


def test_a_large_log_takes_memory(history, monkeypatch):
    monkeypatch.setattr(all_embeddings, "cores", lambda: 8)
    monkeypatch.setattr(all_embeddings, "free_memory", lambda: int(12e9))
    with (history.raw / "page_visit.parquet").open("r+b") as file:
        file.truncate(2_000_000_000)  # takes no disk: the rest is a hole
    assert default_jobs(MEMORY["full"], 14, entries(), history) == 2


def test_each_has_its_share_of_the_cores_and_no_more_threads_than_were_asked_for(monkeypatch):
    monkeypatch.delenv("POLARS_MAX_THREADS", raising=False)
    monkeypatch.setattr(all_embeddings, "cores", lambda: 8)
    monkeypatch.setattr(all_embeddings, "threads", lambda: 8)
    for jobs, share in ((1, "8"), (3, "2"), (20, "1")):
        given = shared_cores(jobs)
        assert (given["OMP_NUM_THREADS"], given["POLARS_MAX_THREADS"]) == (share, share)
        assert (
            given.items() >= {key: value for key, value in os.environ.items() if not key.endswith("_THREADS")}.items()
        )
    monkeypatch.setattr(all_embeddings, "threads", lambda: 1)
    assert shared_cores(2)["OMP_NUM_THREADS"] == "1"
    monkeypatch.setattr(all_embeddings, "threads", lambda: 8)
    monkeypatch.setenv("POLARS_MAX_THREADS", "2")
    assert (shared_cores(2)["OMP_NUM_THREADS"], shared_cores(2)["POLARS_MAX_THREADS"]) == ("4", "2")
    assert shared_cores(8)["POLARS_MAX_THREADS"] == "1"


def test_its_own_settings_are_not_passed_on():
    words = [
        "jobs=2",
        "submit=False",
        "memory.command=2",
        "+gpu_jobs=2",
        "grace=1",
        "only=[dcn]",
        "preset=demo",
        "as_of=2022-10-01 12:00",
    ]
    assert passed_on(words) == ["submit=False", "preset=demo", "as_of=2022-10-01 12:00"]


def test_what_others_read_begins_before_them_and_the_short_ones_last():
    names = [job.name for job in longest_first(job(each, "python", []) for each in entries())]
    assert set(names[:3]) == {"numeric_features_wide", "sequential_encoder", "dcn"}  # what takes longest, and is read
    assert names.index("numeric_features_wide") < names.index("dcn")
    assert names.index("sequential_encoder") < names.index("twhin")
    assert names.index("convert_to_text") < names.index("smollm2_all_interactions")
    assert names[-1] in ("stat_features", "als_64_visits_relevant")


@pytest.mark.parametrize(
    "remark",
    ["COLLAPSED: effective rank 1.0 in 8 columns", "BELOW POPULARITY: category mrr@10 0.607 against 0.611"],
)
def test_a_block_with_a_remark_is_named_on_the_terminal(remark, tmp_path):
    log = tmp_path / "block.log"
    last = f"block ({remark}) · 40 clients × 8 columns · 3.0 s · 100 MB · /x"
    log.write_text(f"12:00:00 block: {remark}\n{last}\n")
    assert remarked(log) == [last]
    log.write_text(f"12:00:00 block: {remark}\nblock · 40 clients × 8 columns · 3.0 s · 100 MB · /x\n")
    assert remarked(log) == []
    cut = "12:00:00 n_components: 64 asked, 12 clients to fit on: 12 columns"
    log.write_text(f"{cut}\n{last}\n")
    assert remarked(log) == [cut, last]
    log.write_text("")
    assert remarked(log) == []


def test_a_single_commands_own_overrides_come_last_and_go_to_no_other(monkeypatch):
    monkeypatch.setattr("sys.argv", ["all_embeddings.py", "preset=demo", "trainer.max_epochs=5", "overrides={...}"])
    settings = Settings(None, 1, 20, None, {"dcn": ["trainer.max_epochs=3"]})
    for found in jobs_of(entries(), settings):
        own = ["trainer.max_epochs=3"] if found.name == "dcn" else []
        assert found.words[-2 - len(own) :] == ["preset=demo", "trainer.max_epochs=5", *own]


def test_overrides_of_a_block_that_there_is_not():
    with pytest.raises(UserError, match=r"overrides=dnc: must be some of .*dcn"):
        Settings(None, 1, 20, None, {"dnc": ["trainer.max_epochs=3"]})


def test_an_entry_as_a_job():
    found = job(next(entry for entry in entries() if entry.name == "als_64_visits_relevant"), "/a/python", ["seed=1"])
    assert found.title == "python ALS/als_embeddings.py --config-name=als_visits_relevant seed=1"
    assert found.words[0] == "/a/python"
    assert found.words[1].endswith("/ALS/als_embeddings.py")
    assert list(found.words[2:]) == ["--config-name=als_visits_relevant", "seed=1"]
    assert found.gpu


def test_what_the_log_has_no_events_for_is_left_out_with_one_line_each(make_history, tmp_path, capsys):
    paths = make_history(empty=[EventType.SEARCH_QUERY]).write(tmp_path)
    config = composed(CONFIGS / "scripts", "all_embeddings", [f"data_path={paths.root}"])
    todo = without_left_out(entries(), Common.of(config))
    assert {entry.name for entry in entries()} - {entry.name for entry in todo} == {
        "preprocessing_search",
        "search_llm",
    }
    assert capsys.readouterr().out.splitlines() == [
        f"{name} is left out: {paths.raw} has no events of search_query"
        for name in ("preprocessing_search", "search_llm")
    ]
