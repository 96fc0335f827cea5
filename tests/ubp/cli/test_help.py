"""``--help``: within a screen what a command makes, its settings, examples; Hydra's own options still work."""

import importlib
import sys

import pytest

from ubp.cli.help import SCREEN, help_of, notes_of
from ubp.data.paths import CONFIGS, REPOSITORY

FILES = sorted(
    path for path in REPOSITORY.glob("*/*.py") if path.parent.name != "tests" and "\n@command(" in path.read_text()
)
COMMANDS = [f"{path.parent.name}.{path.stem}" for path in FILES]
PROGRAMS = ("python ", "sh ", "make ", "pip ")


def printed(module: str, words: list[str], monkeypatch, capsys) -> str:
    """What a command prints in this process; it must end well."""
    command = importlib.import_module(module).main
    monkeypatch.setattr(sys, "argv", [f"{module.replace('.', '/')}.py", *words])
    try:
        assert command() is None
    except SystemExit as ended:
        assert not ended.code  # noqa: PT017 (Hydra ends --info so, the command does not)
    out, err = capsys.readouterr()
    assert "error" not in err
    return out


def test_there_are_commands():
    assert {"scripts.merge", "ALS.als_embeddings", "stat_features.stat_features", "benchmarks.gpu"} <= set(COMMANDS)


@pytest.mark.full
@pytest.mark.parametrize("module", COMMANDS)
def test_help_is_a_screen_of_what_it_makes_its_settings_and_two_examples(module, monkeypatch, capsys):
    lines = printed(module, ["--help"], monkeypatch, capsys).splitlines()
    docstring = importlib.import_module(module).__doc__
    assert lines[0] == docstring.splitlines()[0]
    assert len(lines) <= SCREEN
    assert max(map(len, lines)) <= 120
    assert sum(line.strip().startswith(PROGRAMS) for line in lines) >= 2, "two examples"
    assert any(line.startswith(("Settings of ", "The configs:")) for line in lines)
    settings = [line.split("=")[0].strip() for line in lines[lines.index("Every command has:") :] if "=" in line]
    assert {"preset", "submit", "overwrite", "as_of"} <= set(settings)


def test_settings_have_their_value_and_meaning(monkeypatch, capsys):
    out = printed("ALS.als_embeddings", ["-h"], monkeypatch, capsys)
    assert "  als.confidence=3.0                    mean confidence of a pair" in out
    assert "  interactions.weights.product_buy=3.0" in out
    out = printed("ALS.als_embeddings", ["-h", "-cn", "als_visits_relevant", "als.factors=7"], monkeypatch, capsys)
    assert "Settings of als_visits_relevant:" in out
    assert "als.factors=7" in out


def test_values_are_those_of_the_preset_and_choices_are_named(monkeypatch, capsys):
    out = printed("next_url.next_url_embeddings", ["-h", "preset=demo"], monkeypatch, capsys)
    assert "trainer.max_epochs=6" in out
    assert "  logger=csv                            csv | mlflow | none | tensorboard | wandb" in out
    assert "  preset=demo" in out


def test_help_of_a_command_with_several_configs_names_them(monkeypatch, capsys):
    out = printed("scripts.merge", ["--help"], monkeypatch, capsys)
    assert "  --config-name=basics                  The three blocks that need no training" in out
    assert "Settings of basics:" in printed("scripts.merge", ["--help", "--config-name=basics"], monkeypatch, capsys)


def test_long_settings_are_put_on_one_line_each(tmp_path):
    inner = "".join(f"  part{number}:\n    one: 1  # a\n    two: 2  # b\n" for number in range(25))
    (tmp_path / "large.yaml").write_text(f"defaults:\n  - base\n  - _self_\n  - preset: full\n\nmany:\n{inner}")
    text = help_of("Makes much.\n\n    python large.py", tmp_path, "large")
    assert "  many.part24={one: 1, two: 2}" in text.splitlines()
    assert len(text.splitlines()) <= SCREEN


@pytest.mark.parametrize("words", [["--cfg", "job"], ["--info", "defaults"], ["--cfg=job", "preset=demo"]])
def test_hydras_own_options_still_work(words, monkeypatch, capsys):
    out = printed("LightFM.lightfm_train", words, monkeypatch, capsys)
    assert ("steps: 100000\n" in out) == ("preset=demo" in words)
    assert "lightfm" in out


def test_comments_are_found_beside_and_above_their_keys():
    text = """# what the file is about
defaults:
  - base
a: 1   # one
b:     # two
  # above c
  c: "#3"
  d: [1, 2]  # four
  e: {f: 5}
"""
    assert notes_of(text) == {"a": "one", "b": "two", "b.c": "above c", "b.d": "four"}
    assert notes_of(text, "part")["part.b.c"] == "above c"


def test_every_setting_of_all_commands_but_seed_and_path_has_a_meaning():
    notes = notes_of((CONFIGS / "base.yaml").read_text())
    assert {"submit", "overwrite", "cuda_visible_devices", "unknown_sku", "as_of"} <= notes.keys()
