"""Jobs side by side: order, limits, logs, the first failure. What signals do: tests/test_get_all_embeddings.py."""

import dataclasses
import os
import sys
import time
from pathlib import Path

import pytest

from ubp.cli.jobs import Job, JobFailed, Limits, Processes, longest_first, run_jobs
from ubp.io.errors import NoUsableEvents

ONE_LINE = "import sys, time; time.sleep({sleep}); print({name!r}); sys.exit({code})"


def job(name: str, sleep: float = 0, code: int = 0, **settings) -> Job:
    words = [sys.executable, "-S", "-c", ONE_LINE.format(name=name, sleep=sleep, code=code)]
    return Job(name, words, f"python {name}", **{"seconds": 1} | settings)


def run(jobs: list[Job], at_once: int, folder: Path | None, gpu_at_once: int = 9) -> list[str]:
    """What happened: ``+name`` where a job began, ``-name`` where it was done."""
    happened = []
    run_jobs(
        jobs,
        Limits(at_once, gpu_at_once),
        Processes(dict(os.environ), folder, grace=10),
        started=lambda job: happened.append(f"+{job.name}"),
        done=lambda job, _: happened.append(f"-{job.name}"),
        left_out=lambda job, reason: happened.append(f"{job.name} is left out: {reason}"),
    )
    return happened


def most_at_once(happened: list[str]) -> int:
    now, most = 0, 0
    for event in happened:
        now += 1 if event.startswith("+") else -1
        most = max(most, now)
    return most


def test_the_longest_first_with_what_waits_for_it_counted():
    jobs = [job("a", seconds=3), job("text", seconds=1), job("b", seconds=5), job("reads", seconds=6, after=("text",))]
    assert [each.name for each in longest_first(jobs)] == ["text", "reads", "b", "a"]


def test_one_after_the_other_in_the_given_order(tmp_path):
    assert run([job("b"), job("a")], 1, tmp_path) == ["+b", "-b", "+a", "-a"]


def test_no_more_at_once_than_asked_for(tmp_path):
    happened = run([job(name, sleep=0.2) for name in "abcde"], 2, tmp_path)
    assert sorted(happened) == sorted(f"{sign}{name}" for sign in "+-" for name in "abcde")
    assert most_at_once(happened) == 2


def test_a_job_begins_after_what_it_waits_for(tmp_path):
    happened = run([job("reads", after=("text",)), job("text", sleep=0.2), job("other")], 3, tmp_path)
    assert happened.index("-text") < happened.index("+reads")
    assert happened[:2] == ["+text", "+other"]


def test_one_job_at_a_time_has_the_gpu(tmp_path):
    jobs = [job("g1", sleep=0.2, gpu=True), job("g2", sleep=0.2, gpu=True), job("c1", sleep=0.2), job("c2")]
    happened = run(jobs, 3, tmp_path, gpu_at_once=1)
    assert happened.index("-g1") < happened.index("+g2")
    assert most_at_once(happened) == 3


def test_jobs_that_wait_for_nothing_there_is(tmp_path):
    with pytest.raises(ValueError, match="a, b"):
        run([job("a", after=("b",)), job("b", after=("a",))], 2, tmp_path)


def test_each_says_it_in_a_log_of_its_own(tmp_path):
    run([job("a"), job("b")], 2, tmp_path)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a.log": "a\n", "b.log": "b\n"}


def test_the_first_failure_ends_the_others_and_begins_none(tmp_path):
    began = time.monotonic()
    with pytest.raises(JobFailed) as failed:
        run([job("slow", sleep=60), job("bad", code=7), job("never")], 2, tmp_path)
    assert time.monotonic() - began < 30
    assert (failed.value.job.name, failed.value.code, failed.value.lines()) == ("bad", 7, ["bad"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.log", "slow.log"]
    assert "KeyboardInterrupt" in (tmp_path / "slow.log").read_text()


def test_a_job_without_events_is_left_out_with_those_that_wait_for_it_and_the_others_go_on(tmp_path):
    text = job("error: no searches", code=NoUsableEvents.exit_code)
    text = dataclasses.replace(text, name="text")
    jobs = [text, job("later", after=("reads",)), job("reads", after=("text",)), job("other")]
    happened = run(jobs, 1, tmp_path)
    assert happened == [
        *("+text", "text is left out: no searches", "reads is left out: text is", "later is left out: reads is"),
        *("+other", "-other"),
    ]


def test_a_job_without_events_says_why_on_the_terminal_where_there_is_no_log():
    assert run([job("a", code=NoUsableEvents.exit_code)], 1, None) == ["+a", "a is left out: see above"]


def test_a_job_that_does_not_heed_is_killed_when_the_time_is_up(tmp_path):
    deaf = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); time.sleep(60)"
    jobs = [Job("deaf", [sys.executable, "-S", "-c", deaf], "deaf", 1), job("bad", sleep=0.5, code=7)]
    began = time.monotonic()
    with pytest.raises(JobFailed):
        run_jobs(
            jobs, Limits(2, 2), Processes(dict(os.environ), tmp_path, 0.5), lambda _: None, *[lambda _, __: None] * 2
        )
    assert time.monotonic() - began < 30


def test_the_code_of_a_job_that_a_signal_ended(tmp_path):
    killed = Job("k", [sys.executable, "-S", "-c", "import os; os.kill(os.getpid(), 9)"], "k", 1)
    with pytest.raises(JobFailed) as failed:
        run([killed], 1, tmp_path)
    assert failed.value.code == 128 + 9


def test_without_logs_it_says_it_here(capfd):
    assert run([job("a")], 1, None) == ["+a", "-a"]
    assert capfd.readouterr().out == "a\n"
