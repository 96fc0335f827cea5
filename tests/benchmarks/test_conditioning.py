"""The benchmark of the conditioning: variants are named by what they do, and a run goes on where it stopped."""

import numpy as np
import pytest

from benchmarks import conditioning
from benchmarks.conditioning import rows_of, variants
from ubp.blocks.condition import ConditionSettings
from ubp.blocks.merge import MergeSettings
from ubp.blocks.steps import BlockSettings
from ubp.data.history import ChallengeData
from ubp.evaluation.probes import Probe
from ubp.evaluation.scores import Scores


def test_variants_are_named_by_what_they_do():
    found = variants([0, 1.5], [0, 0.4], [None, 300])
    assert list(found)[:5] == ["raw", "c=0", "c=1.5", "c=0 offset=0.4", "c=1.5 offset=0.4"]
    assert list(found)[5:] == [f"{name} rotate=300" for name in list(found)[1:5]]
    assert found["raw"] is None
    assert found["c=1.5 offset=0.4 rotate=300"] == ConditionSettings(constant=1.5, offset=0.4, rotate=300)


def test_what_is_in_the_table_is_not_scored_again(make_history, tmp_path, monkeypatch):
    paths = make_history().write(tmp_path)
    paths.relevant_clients.parent.mkdir()
    np.save(paths.relevant_clients, np.arange(10_000))
    data = ChallengeData(paths, submit=True)
    matrix = np.random.default_rng(0).normal(3, 1, (len(data.clients), 4)).astype(np.float32)
    settings = MergeSettings({"a": BlockSettings(), "b": BlockSettings()})
    scored = {}

    def score(profiles, probe, *_):
        scored[profiles.name] = profiles.vectors
        return Scores(profiles.name, profiles.vectors.shape[1], probe.name, {}, 4.0, 0.0, {})

    monkeypatch.setattr(conditioning, "merged", lambda *_: (matrix, settings, [3, 1]))
    monkeypatch.setattr(conditioning, "score_anew", score)
    config = conditioning.composed(
        conditioning.CONFIGS / "scripts", "conditioning", ["constants=[2]", f"data_path={paths.root}"]
    )
    probe = Probe(name="quick")
    rows = list(rows_of("basics", config, data, probe, set()))
    assert [row.variant for row in rows] == ["raw", "c=2"]
    assert [row.columns for row in rows] == [4, 5]
    assert scored["basics c=2"].mean(axis=0) == pytest.approx([0, 0, 0, 0, 64], abs=0.01)
    assert list(rows_of("basics", config, data, probe, {row.key for row in rows})) == []
