"""The library in a notebook: the README's lines, and nothing changed behind the user's back."""

import re
from datetime import datetime

import numpy as np
import pytest
import torch
from hydra.core.global_hydra import GlobalHydra

import ubp
from scripts import split
from tests.conftest import CATEGORIES, synthetic
from ubp.blocks.fitted import lineage_of
from ubp.data.paths import REPOSITORY
from ubp.data.split import SplitDates
from ubp.data.targets import TargetRules
from ubp.io.errors import UserError


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    paths = synthetic().write(tmp_path_factory.mktemp("api") / "data")
    data = ubp.open_history(paths.root)
    split.split(data, SplitDates.of(data), TargetRules(), overwrite=False)
    return paths


def readme_lines() -> str:
    """The README's Python, of the tiny history: another folder, two of its clients, a day of it, a smaller probe."""
    (code,) = re.findall(r"```python\n(.*?)```", (REPOSITORY / "README.md").read_text(), flags=re.DOTALL)
    assert len(code.strip().splitlines()) <= 12
    return code.replace("datetime(2017, 12, 20)", "datetime(2023, 2, 5)")


def test_the_readmes_lines_run(paths, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").symlink_to(paths.root)
    names: dict[str, object] = {}
    exec(compile(readme_lines(), "the README", "exec"), names)  # noqa: S102
    out = capsys.readouterr().out
    assert "'churn': " in out
    assert out.count("\n") == 1
    assert len(names["later"]) <= 2
    assert names["profiles"].columns == 43 + CATEGORIES + 1  # as many factors as categories at most, and the constant
    assert np.isfinite(names["profiles"].vectors).all()


@pytest.mark.full
def test_global_state_stays_as_it_was(paths):
    history = ubp.open_history(paths.root, submit=False)
    torch.use_deterministic_algorithms(False)
    torch.set_float32_matmul_precision("medium")
    threads = torch.get_num_threads()
    try:
        words = ("preset=demo", "logger=none", "trainer.max_epochs=1", "sequences.newest=8", "model.hidden=16")
        block = ubp.fit("gru_ae_day_event", history, *words, "report.written=4")
        ubp.score(block.encode(history), history, probe="quick")
        assert torch.get_float32_matmul_precision() == "medium"
        assert not torch.are_deterministic_algorithms_enabled()
        assert torch.get_num_threads() == threads
        assert not GlobalHydra.instance().is_initialized()
    finally:
        torch.set_float32_matmul_precision("highest")


def test_a_merge_is_kept_and_encodes_clients_it_was_not_fitted_on(paths, tmp_path):
    history = ubp.open_history(paths.root, submit=False)
    blocks = {"stat_features": ubp.fit("stat_features", history)}
    some = history.clients[::2]
    merge = ubp.merge("basics", blocks, history, tmp_path, clients=some)
    table = merge.encode(ubp.open_history(paths.root), as_of=datetime(2023, 2, 5))
    assert len(table) > len(some)
    assert set(lineage_of(tmp_path / "basics" / "fit")["left_out"]) == {
        "als_64_buy_add_categories",
        "als_64_visits_relevant",
    }
    again = ubp.load(tmp_path / "basics" / "fit").encode(ubp.open_history(paths.root), as_of=datetime(2023, 2, 5))
    assert again.vectors.tobytes() == table.vectors.tobytes()


def test_faults_are_one_line(paths, tmp_path):
    history = ubp.open_history(paths.root, submit=False)
    with pytest.raises(UserError, match="als_32: no such block; known: stat_features, "):
        ubp.fit("als_32", history)
    with pytest.raises(UserError, match="x: no block of basics; it has stat_features, "):
        ubp.merge("basics", {"x": ubp.fit("stat_features", history)}, history, tmp_path)
    with pytest.raises(UserError, match="blocks: a merge needs at least one"):
        ubp.merge("basics", {}, history, tmp_path)
    with pytest.raises(UserError, match="light: no such probe; known: half, judge, quick"):
        ubp.score(ubp.fit("stat_features", history).encode(history), history, probe="light")
    with pytest.raises(AttributeError, match="no attribute 'fitt'; it has fit, load"):
        _ = ubp.fitt
