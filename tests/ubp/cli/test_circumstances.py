"""What a lineage says of how something was made, beside its settings."""

import re
from datetime import datetime

import numpy as np

from ubp.cli import circumstances
from ubp.cli.circumstances import code, essential, machine, read_from, versions
from ubp.data.history import ChallengeData
from ubp.data.paths import REPOSITORY


def test_the_history_that_was_asked_for_and_the_recipe(history):
    noted = circumstances.circumstances(ChallengeData(history, submit=True), "ALS.recipe:AlsRecipe")
    assert noted["history"] == {"submit": True, "as_of": None, "unknown_sku": "error"}
    assert noted["recipe"] == "ALS.recipe:AlsRecipe"
    day = ChallengeData(history, True, "drop", datetime(2023, 1, 5))
    noted = circumstances.circumstances(day)
    assert noted["history"] == {"submit": True, "as_of": "2023-01-05 00:00:00", "unknown_sku": "drop"}
    assert "recipe" not in noted


def test_threads_are_those_of_the_environment(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.delenv("POLARS_MAX_THREADS", raising=False)
    here = machine()
    assert here["OMP_NUM_THREADS"] == "3"
    assert here["POLARS_MAX_THREADS"] is None
    assert here["cores"] >= 1
    assert here["processor"]


def test_another_package_or_a_changed_file_is_other_code(tmp_path, monkeypatch):
    assert code("ALS") != code("dcn") != code()
    for file in ("ubp/__init__.py", "ubp/io/a.py", "ubp/report/page.py", "model/recipe.py", "other/recipe.py"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text("1\n")
    monkeypatch.setattr(circumstances.ubp, "__file__", str(tmp_path / "ubp" / "__init__.py"))
    before = code("model")
    for file, changes in (("ubp/report/page.py", False), ("other/recipe.py", False), ("ubp/io/a.py", True), ("model/recipe.py", True)):  # noqa: E501  # fmt: skip
        (tmp_path / file).write_text("2\n")
        assert (code("model") != before) == changes, file
        before = code("model")


def test_versions_are_those_of_direct_dependencies():
    text = (REPOSITORY / "pyproject.toml").read_text()
    pinned = re.findall(r'^    "([\w-]+)==', text.partition("dependencies = [")[2].partition("]\n")[0], re.MULTILINE)
    found = versions()
    assert found.keys() - {"python"} <= {name.replace("_", "-") for name in pinned}  # installed ones may be older
    assert {"python", "numpy", "polars", "torch", "scikit-learn"} <= found.keys()
    assert found["numpy"] == np.__version__


def test_what_was_read_is_noted_without_what_follows_from_the_rest():
    lineage = {"name": "a", "seed": 1, "report": {"loss": 1.0}, "columns": {"x": "a column"}}
    assert essential(lineage) == {"name": "a", "seed": 1}
    assert read_from({"a": lineage}) == {"read": {"a": {"name": "a", "seed": 1}}}
    assert read_from({}) == {}
