"""The benchmark of sizes: what it measures, notes, compares and writes."""

import dataclasses

import numpy as np
import pytest

from benchmarks import scale
from benchmarks.measuring import as_markdown, run_apart, write_report
from benchmarks.scale import Measurement, Notes, ScaleSettings, Stage
from ubp.cli.config import Common, composed, parse
from ubp.data.history import ChallengeData
from ubp.data.paths import CONFIGS, REPOSITORY, DataPaths
from ubp.io.errors import UserError


@pytest.fixture
def settings() -> ScaleSettings:
    return parse(ScaleSettings, composed(CONFIGS / "scripts", "scale"), list(ScaleSettings.__annotations__))


def notes(root, **figures: tuple[float, float, float, int]) -> Notes:
    made = Notes(root)
    for name, figure in figures.items():
        made.note(name.replace("_floor", ":floor"), Measurement(*figure))
    return made


def test_every_stage_is_a_command_or_a_step_and_has_its_floor(settings):
    listed = scale.stages(0.1, settings)
    assert len({stage.name for stage in listed}) == len(listed)
    for stage in listed:
        assert stage.words or stage.name in scale.STEPS
        assert stage.floor is None or stage.floor in scale.FLOORS
    goals = {name for goal in settings.goals for name in goal["stages"]}
    assert goals <= {stage.name for stage in listed}
    assert {"pandas_sequences"} == {stage.name for stage in listed} & {"pandas_sequences"}
    assert not {"pandas_sequences", "dcn"} & {stage.name for stage in scale.stages(1.0, settings)}
    assert "dcn" in {stage.name for stage in scale.stages(0.01, settings)}


@pytest.mark.full
def test_a_run_is_measured_noted_and_not_repeated(settings, tmp_path):
    wanted = dataclasses.replace(settings, only=["make_synthetic_data", "validation_text"])
    scale.measure(1e-4, wanted, tmp_path)
    found = Notes(tmp_path).figures
    assert set(found) == {"make_synthetic_data", "validation_text", "validation_text:floor"}
    for figures in found.values():
        assert 0.1 < figures.seconds < 120
        assert figures.cpu > 0.1
        assert 30 < figures.megabytes < 2000
        assert figures.rows == 168 + 524 + 170 + 15_071 + 957
    measured = (tmp_path / scale.MEASURED).stat().st_mtime_ns
    scale.measure(1e-4, wanted, tmp_path)
    assert (tmp_path / scale.MEASURED).stat().st_mtime_ns == measured


def test_many_days_are_held_against_one(settings, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(scale, "encode_days", lambda _, days: asked.append(days))
    common = Common.of(composed(CONFIGS / "scripts", "scale", [f"data_path={tmp_path}"]))
    for step in ("numeric_features_one_day", "numeric_features_days", "numeric_features_days:floor"):
        scale.take_step(common, settings, step)
    assert asked == [1, 20, 1]


def test_days_are_a_week_apart_and_the_last_one_is_the_end(history, monkeypatch):
    history.input.mkdir()
    np.save(history.relevant_clients, np.array([5, 3]))
    seen = []

    class Block:
        def vectors(self, known, clients):
            seen.append((known.as_of, clients.tolist()))

    monkeypatch.setattr(scale, "load", lambda folder: Block() if folder.parent.name == "numeric_features" else None)
    scale.encode_days(history, 3)
    assert [(seen[0][0] - day).days for day, _ in seen] == [0, 7, 14]
    assert seen[0] == (ChallengeData(history, submit=True).as_of, [3, 5])


def test_a_stage_that_is_not_there_is_skipped_and_said(settings, tmp_path, monkeypatch, caplog):
    absent = Stage("absent", ("nowhere/absent.py",))
    monkeypatch.setattr(scale, "stages", lambda *_: [absent])
    scale.measure(1.0, settings, tmp_path)
    assert "absent.py is not there" in caplog.text
    rows = scale.measured_rows(1.0, settings, {1.0: Notes(tmp_path)})
    assert rows[0][:2] == ["absent", "not there"]


def test_a_process_that_fails_is_an_error_with_its_last_line(tmp_path):
    with pytest.raises(UserError, match=r"split\.py: .*exit code 1 .*folder missing.*see .*split\.log"):
        run_apart(REPOSITORY / "scripts" / "split.py", [], tmp_path / "nothing", tmp_path / "split.log")


def test_validation_is_measured_where_it_is_one_and_done_before_where_it_is_not(settings, tmp_path, monkeypatch):
    steps: list[str] = []
    monkeypatch.setattr(scale, "run_here", lambda step, _: steps.append(step))
    paths = DataPaths(tmp_path)
    wanted = {"make_synthetic_data": [], "validation_text": [], "validation_datetime": [], "split": ["validation_text"]}
    wanted |= {"stat_features": ["validation_datetime"], "merge": ["validation_datetime", "random_blocks"]}
    numeric = ("numeric_features", "numeric_features_one_day", "numeric_features_days", "numeric_features_wide")
    wanted |= {name: ["validation_text"] for name in numeric}
    for stage in scale.stages(1.0, settings):
        (paths.cache / "checked").mkdir(parents=True, exist_ok=True)
        paths.relevant_events("kept").mkdir(parents=True, exist_ok=True)
        scale.prepare(stage, paths)
        assert paths.relevant_events("kept").exists() == (steps == [])
        assert (paths.cache / "checked").exists() != stage.name.startswith("validation")
        assert steps == wanted.get(stage.name, ["validation_datetime"]), stage.name
        steps.clear()


def test_ratios_and_growth(settings, tmp_path):
    by_scale = {
        0.1: notes(tmp_path / "a", split=(3.0, 4.0, 100.0, 1000)),
        1.0: notes(tmp_path / "b", split=(20.0, 60.0, 300.0, 10_000), split_floor=(5.0, 10.0, 90.0, 10_000)),
    }
    row = next(row for row in scale.measured_rows(1.0, settings, by_scale) if row[0] == "split")
    # Fifteen times the CPU at ten times the size.
    assert row == ["split", "20.0", "60.0", "300", "10,000", "500", "5.0", "4.0", "6.0", "1.50"]
    assert len(row) == len(scale.HEADINGS)


def test_goals_are_kept_or_missed_or_not_measured(settings, tmp_path):
    made = notes(
        tmp_path,
        split=(181.0, 1.0, 9999.0, 1),
        stat_features=(99.0, 1.0, 3900.0, 1),
        stat_features_floor=(10.0, 1.0, 1.0, 1),
        als_64_buy_add_categories=(400.0, 1.0, 1.0, 1),
    )
    kept = {row[0]: row for row in scale.goal_rows(settings, made)}
    assert kept["split"][1:] == ["180 s", "181.0 s", "NO"]
    assert kept["stat_features"][1:] == ["10 × floor, 4 GB", "9.9 × floor, 3.9 GB", "yes"]
    assert kept["als_64_buy_add_categories + als_64_visits_relevant"][2] == "not measured"


def test_pandas_stands_beside_what_is_ours(tmp_path):
    made = notes(tmp_path, stat_features=(2.0, 1.0, 100.0, 1), pandas_stat_features=(9.0, 1.0, 350.0, 1))
    assert scale.pandas_rows({0.1: made}) == [["0.1", "stat_features", "2.0", "9.0", "4.5", "100", "350", "3.5"]]


def test_the_report_keeps_what_is_around_its_marks(tmp_path):
    report, (begin, end) = tmp_path / "report.md", scale.MARKS
    report.write_text(f"before\n\n{begin}\nold\n{end}\n\nafter\n")
    for _ in range(2):
        write_report(report, [as_markdown("scale 1", ("a", "b"), [["x", "1"]])], scale.MARKS)
    text = report.read_text()
    assert text.startswith("before\n\n<!--")
    assert text.endswith("-->\n\nafter\n")
    assert text.count("| x | 1 |") == 1
    assert "old" not in text
    report.write_text("no marks")
    with pytest.raises(UserError, match="no place for the tables"):
        write_report(report, [], scale.MARKS)


def test_the_plot_is_drawn(tmp_path):
    pytest.importorskip("matplotlib", reason="pip install -r benchmarks/requirements.txt")
    by_scale = {size: notes(tmp_path / f"{size}", split=(size, size * 10, 1.0, 1)) for size in (0.1, 1.0)}
    scale.draw(tmp_path / "plot.png", by_scale, ["split", "merge"])
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
