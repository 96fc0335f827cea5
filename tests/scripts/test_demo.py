"""The demo: which stages it has, what a stage's end means to it."""

import os
import signal
import subprocess
import sys
import time

import pytest

from scripts.demo import log_stages, plan, run_stage, stages
from ubp.data.schema import EventType
from ubp.io.errors import UserError

pytestmark = pytest.mark.full

# Takes longer to end than subprocess.run would wait for it.
SLOW_TO_END = """
import pathlib, sys, time
folder = pathlib.Path(sys.argv[1])
try:
    (folder / "began").touch()
    time.sleep(60)
except KeyboardInterrupt:
    time.sleep(1)
    (folder / "ended").touch()
    sys.exit(130)
"""


def test_a_stage_that_fails_is_named(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("import sys; sys.exit(3)")
    with pytest.raises(UserError, match=r"script\.py a=1: failed with exit code 3, see above; fix it"):
        run_stage(["python", str(script), "a=1"], str(tmp_path))


def test_a_stage_has_the_time_to_end_itself_at_ctrl_c(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SLOW_TO_END)
    call = f"from scripts.demo import run_stage; run_stage(['python', {str(script)!r}, {str(tmp_path)!r}], 'x')"
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # where tests run in the background it is ignored
    demo = subprocess.Popen([sys.executable, "-c", call], process_group=0, stderr=subprocess.DEVNULL)
    signal.signal(signal.SIGINT, before)
    end = time.monotonic() + 30
    while not (tmp_path / "began").exists():
        assert time.monotonic() < end
        time.sleep(0.05)
    os.killpg(demo.pid, signal.SIGINT)  # as a terminal does
    demo.wait(30)
    assert (tmp_path / "ended").exists()


def test_every_stage_has_the_demos_preset(history):
    planned = plan(["basics", "best_solution"], ["best_solution"], history)
    assert planned.left_out == []
    assert len(planned.blocks) == 12
    words = [*log_stages(overwrite=True), *stages(planned, history.root, [1278], overwrite=True)]
    assert all("preset=demo" in stage for stage in words)
    assert [stage[1].removeprefix("scripts/") for stage in words] == [
        *(
            "make_demo_data.py",
            "split.py",
            "get_all_embeddings.sh",
            "merge.py",
            "merge.py",
            "validate.py",
            "validate.py",
        ),
        *("evaluate.py", "evaluate.py"),
    ]
    assert "embeddings=best_solution" in words[-1]
    assert "probe.seeds=[1278]" in words[-2]
    assert "probe=quick" in words[-2]
    assert f"embeddings=[{','.join([*planned.blocks, *planned.merges])}]" in words[-2]


def test_a_merge_of_what_the_log_has_no_events_for_is_left_out(make_history, tmp_path):
    paths = make_history(empty=[EventType.PAGE_VISIT, EventType.SEARCH_QUERY]).write(tmp_path)
    planned = plan(["basics", "score_4_7406"], ["score_4_7406"], paths)
    assert (planned.merges, planned.judged) == ([], [])
    assert "stat_features" in planned.blocks
    assert not {"als_64_visits_relevant", "next_url_192_6_4", "search_llm"} & set(planned.blocks)
    assert planned.left_out[0] == f"als_64_visits_relevant is left out: {paths.raw} has no events of page_visit"
    assert planned.left_out[-2] == "merge basics is left out: als_64_visits_relevant"
    assert len(planned.left_out) == 5
    (evaluate,) = [stage for stage in stages(planned, tmp_path, [0], overwrite=False) if "scripts/evaluate.py" in stage]
    assert f"embeddings=[{','.join(planned.blocks)}]" in evaluate
