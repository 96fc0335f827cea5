"""What each command shares: which GPUs its body sees."""

import os
import sys

import pytest

from ubp.cli.command import command


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
    # Set, then maybe deleted: both are undone after the test, whatever the command did.
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", environment or "")
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    if environment is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr(sys, "argv", ["a_command.py", f"data_path={tmp_path}", *words])
    command("scripts", "split")(lambda config: found.append(os.environ.get("CUDA_VISIBLE_DEVICES")))()  # noqa: ARG005
    assert found == [seen]
