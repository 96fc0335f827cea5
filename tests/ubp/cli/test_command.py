"""What each command shares: its body as a function, which GPUs it sees, what it leaves as it was."""

import os
import sys

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from scripts import merge
from ubp.cli.command import command
from ubp.cli.config import composed
from ubp.data.paths import CONFIGS
from ubp.io.errors import UserError


@pytest.mark.parametrize(
    ("environment", "words", "seen"),
    [
        ("4,5", [], "4,5"),  # a scheduler's choice
        (None, [], None),
        ("4,5", ["cuda_visible_devices=1"], "1"),
        (None, ["cuda_visible_devices=[0,1]"], "0,1"),
        ("4,5", ["cuda_visible_devices="], ""),
        ("4,5", ["cuda_visible_devices=''"], ""),
        ("4,5", ["cuda_visible_devices=null"], "4,5"),
    ],
)
def test_gpus_are_the_environments_unless_the_command_line_names_some(environment, words, seen, tmp_path, monkeypatch):
    found = []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", environment or "")
    if environment is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    before = dict(os.environ)
    monkeypatch.setattr(sys, "argv", ["a_command.py", f"data_path={tmp_path}", *words])
    command("scripts", "split")(lambda config: found.append(os.environ.get("CUDA_VISIBLE_DEVICES")))()  # noqa: ARG005
    assert found == [seen]
    assert dict(os.environ) == before


@command("scripts", "split")
def seed_of(config) -> int:
    """Stands for a command that makes something."""
    if config.seed == 7:
        raise UserError(f"seed={config.seed}: must be another")
    return config.seed


def test_called_with_a_config_it_is_the_function():
    assert seed_of(composed(CONFIGS / "scripts", "split", ["seed=5"])) == 5
    with pytest.raises(UserError, match="seed=7"):
        seed_of(composed(CONFIGS / "scripts", "split", ["seed=7"]))
    assert seed_of.__doc__ == "Stands for a command that makes something."
    assert seed_of.__wrapped__ is not seed_of


def test_called_without_it_takes_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["a_command.py", f"data_path={tmp_path}", "seed=7"])
    with pytest.raises(SystemExit) as ended:
        seed_of()
    assert ended.value.code == 1
    assert capsys.readouterr().err == "error: seed=7: must be another\n"


@pytest.mark.parametrize("words", [["seed=5"], ["sede=5"], ["--help"]])
def test_hydra_is_left_as_it_was(words, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["a_command.py", f"data_path={tmp_path}", *words])
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONFIGS / "ALS"), version_base="1.3"):
        before = GlobalHydra.instance().hydra
        try:
            assert seed_of() is None
        except SystemExit:
            assert "sede: unknown setting" in capsys.readouterr().err
        assert GlobalHydra.instance().hydra is before
        assert compose("als_visits_relevant").name == "als_64_visits_relevant"
    GlobalHydra.instance().clear()


@pytest.mark.parametrize("words", [["submit=False"], [], ["submit=False", "-cn"]])
def test_merge_without_a_config_says_which_there_are(words, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["scripts/merge.py", *words])
    with pytest.raises(SystemExit) as ended:
        merge.main()
    assert ended.value.code == 1
    assert capsys.readouterr().err == (
        "error: which one? python scripts/merge.py --config-name=NAME, with one of these as NAME: basics, "
        "best_solution, best_solution_conditioned, combined, fourth_place, numeric, past_windows, score_4_7406, "
        "score_4_7418, score_4_7484, score_4_7499, sequences\n"
    )


@pytest.mark.parametrize("name", [["--config-name=basic"], ["--config-name", "basic"], ["-cn", "basic"]])
def test_merge_with_a_config_that_is_not_there(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["scripts/merge.py", *name])
    with pytest.raises(SystemExit):
        merge.main()
    assert "--config-name=basic: no such config (did you mean basics?); known: basics, " in capsys.readouterr().err
