"""The one journey of real processes in the fast tests: as a user runs the commands, on a tiny history.

`tests/test_commands.py` runs every command so, among the full tests: networks and the judge too.
"""

import re
from pathlib import Path

import numpy as np
import pytest

from tests.test_commands import Done, run
from ubp.blocks import registry
from ubp.blocks.embeddings import EmbeddingTable
from ubp.blocks.entry import read_entry

BLOCK = "stat_features"
LINE = re.compile(r".+ · [\d.]+ s · [\d,]+ MB · (?P<path>/.+)")
MERGE = ["scripts/merge.py", "--config-name=basics", "missing=skip"]


def good(done: Done) -> str:
    """The path in the closing line of a command that succeeded."""
    assert done.code == 0, done.err
    assert "Traceback" not in done.err
    found = LINE.fullmatch(done.last)
    assert found, done.out
    return found["path"]


@pytest.fixture(scope="module")
def paths(make_history, tmp_path_factory):
    return make_history().write(tmp_path_factory.mktemp("journey") / "data")


def test_from_a_log_to_an_entry_and_to_tomorrow(paths):
    root = paths.root
    assert good(run(root, ["scripts/split.py"])).endswith("raw/input")
    words = [*registry.block(BLOCK).line.split(), "submit=False"]
    assert good(run(root, words)) == str(paths.block(BLOCK, submit=False))
    good(run(root, [*MERGE, "submit=False"]))

    ids, profiles = read_entry(paths.embeddings(submit=False) / "basics")
    later = EmbeddingTable.read(Path(good(run(root, ["scripts/encode.py", "name=basics", "as_of=2023-02-09"]))))
    assert later.columns == profiles.shape[1]
    assert np.isin(ids, later.client_ids).all()
