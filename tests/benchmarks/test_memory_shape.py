"""No stage before the GPU materialises what it should stream: guarded at a thousandth of the challenge.

Memory itself says little at this size. What is looked at is what would fill it at full size: how many rows each
query hands over, in which engine it runs, and whether its plan holds a step that keeps all rows it is given.
"""

import re
from dataclasses import dataclass, field

import polars as pl
import pytest

from scripts.make_synthetic_data import Shop, SyntheticShop, write
from stat_features.recipe import StatFeaturesRecipe
from ubp.cli.config import composed, parse
from ubp.data.history import ChallengeData
from ubp.data.paths import CONFIGS, DataPaths
from ubp.data.schema import TRAIN_TARGET, EventType
from ubp.data.split import SplitDates, write_split
from ubp.data.targets import TASKS, TargetRules, make_targets
from ubp.evaluation.tasks import labels, load_targets, load_window
from ubp.sequences import build as building
from ubp.sequences.build import build_or_open

CLIENTS, RELEVANT, VISITS = 18_700, 1_000, 150_713
# Steps of a streaming plan that keep every row they get; a scan of a frame in memory is no such step.
_KEEPS = re.compile(r"in-memory-(?!source|sink)|multiplexer|sort")


@dataclass
class Spy:
    """Queries that were run: rows they handed over, engines, steps of their plans that keep all rows."""

    rows: list[int] = field(default_factory=list)
    engines: list[str] = field(default_factory=list)
    keeping: list[str] = field(default_factory=list)

    def look(self, query: pl.LazyFrame, engine: str) -> None:
        plan = query.show_graph(engine="streaming", plan_stage="physical", raw_output=True, show=False) or ""
        steps = {label.split("\\n")[0] for label in re.findall(r'label="([^"]*)"', plan)}
        self.keeping += [step for step in steps if _KEEPS.match(step)]
        self.engines.append(engine)


@pytest.fixture
def spy(monkeypatch) -> Spy:
    seen = Spy()
    collect, collect_all, sink = pl.LazyFrame.collect, pl.collect_all, pl.LazyFrame.sink_parquet

    def watched(self, *args, engine="auto", **named):
        seen.look(self, engine)
        frame = collect(self, *args, engine=engine, **named)
        seen.rows.append(frame.height)
        return frame

    def all_watched(queries, *args, engine="auto", **named):
        for query in queries:
            seen.look(query, engine)
        frames = collect_all(queries, *args, engine=engine, **named)
        seen.rows += [frame.height for frame in frames]
        return frames

    def sunk(self, *args, **named):
        seen.look(self, "streaming")  # a sink always streams
        return sink(self, *args, **named)

    def whole(*_, **__):
        raise AssertionError("a file is read whole")

    monkeypatch.setattr(pl.LazyFrame, "collect", watched)
    monkeypatch.setattr(pl, "collect_all", all_watched)
    monkeypatch.setattr(pl.LazyFrame, "sink_parquet", sunk)
    monkeypatch.setattr(pl, "read_parquet", whole)
    return seen


@pytest.fixture(scope="module")
def paths(tmp_path_factory) -> DataPaths:
    """A thousandth of the challenge, split, with its targets."""
    paths = DataPaths(tmp_path_factory.mktemp("thousandth") / "data")
    paths.raw.mkdir(parents=True)
    shop = parse(Shop, composed(CONFIGS / "scripts", "make_synthetic_data"), at="shop").scaled(0.001)
    write(SyntheticShop(shop, 0, 10_000), paths, "text")
    data = ChallengeData(paths, submit=True)
    write_split(data, SplitDates.of(data))
    make_targets(data, SplitDates.of(data), TargetRules(), overwrite=False)
    return paths


def test_the_spy_sees_what_keeps_all_rows(spy):
    frame = pl.LazyFrame({"a": [3, 1, 2], "b": [1, 1, 2]})
    frame.sort("a").collect()
    shared = frame.filter(pl.col("a") > 1)
    shared.join(shared.group_by("b").len(), on="b").collect(engine="streaming")
    assert {"sort", "multiplexer"} <= set(spy.keeping)
    assert spy.engines == ["auto", "streaming"]
    assert spy.rows == [3, 2]
    with pytest.raises(AssertionError, match="read whole"):
        pl.read_parquet("x")


def test_validation_hands_over_counts(spy, paths, tmp_path):
    linked = DataPaths(tmp_path / "data")
    linked.root.mkdir()
    linked.raw.symlink_to(paths.raw)  # without the cache, so that all is checked
    assert ChallengeData(linked, submit=True).rows(EventType.PAGE_VISIT) == VISITS
    assert max(spy.rows) == 1
    assert set(spy.engines) == {"streaming"}
    assert not spy.keeping


def test_the_split_streams(spy, paths):
    data = ChallengeData(paths, submit=True)
    written = write_split(data, SplitDates.of(data))
    assert max(written.values()) > VISITS // 2
    assert max(spy.rows) == 1
    assert not spy.keeping


def test_statistics_hold_clients_and_values_not_events(spy, paths):
    data = ChallengeData(paths, submit=False)
    block = StatFeaturesRecipe().fit(data, 0, paths.cache).block
    clients = block.encode(data, data.relevant_clients).client_ids
    assert RELEVANT // 2 < len(clients) <= RELEVANT
    urls = 12_700
    assert max(spy.rows) <= urls  # popularities are counted over everybody
    assert set(spy.engines) == {"streaming"}
    assert spy.keeping == ["multiplexer"]  # of pairs of clients and skus, already counted


def test_the_store_holds_a_part_at_a_time(spy, paths, monkeypatch):
    monkeypatch.setattr(building, "_ROWS_PER_PART", 10_000)
    monkeypatch.setattr(building, "_SAMPLE", 5_000)
    store = build_or_open(ChallengeData(paths, submit=False))
    assert len(store.time) > VISITS // 2
    assert max(spy.rows) < 25_000  # a part, or the table of skus, urls or queries
    assert not spy.keeping


def test_labels_hold_the_purchases_of_a_window(spy, paths):
    bought = load_window(paths, TRAIN_TARGET)
    clients = ChallengeData(paths, submit=False).relevant_clients
    for task in TASKS:
        targets = load_targets(paths, task) if task.is_propensity else None
        assert len(labels(task, clients, bought, targets)) == RELEVANT
    assert max(spy.rows) <= max(RELEVANT, bought.height)
    assert not spy.keeping
