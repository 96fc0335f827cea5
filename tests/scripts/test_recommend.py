"""What is advised for logs of several sizes: the merge, what it needs, and commands that are understood."""

import shlex
from datetime import datetime, timedelta
from functools import cache
from math import inf

import numpy as np
import polars as pl
import pytest

from scripts import recommend
from scripts.recommend import Measured, Need, Rule, When, advise, commands, hours, steps_of
from tests import tiny
from ubp.blocks import registry
from ubp.blocks.registry import with_what_they_read
from ubp.cli.config import Common, composed, config_names, presets
from ubp.data.log_figures import LogFigures
from ubp.data.paths import CONFIGS, REPOSITORY
from ubp.data.schema import EVENT_TYPES, EventType
from ubp.io.errors import UserError

START = datetime(2022, 6, 1)
PURCHASES = {EventType.PRODUCT_BUY: 3}
ALL = dict(zip(EVENT_TYPES, (2, 4, 1, 12, 1), strict=True))


def log_of(clients, a_client, days=200.0):
    """Figures of a log in which all clients are alike."""
    counts = {kind: a_client.get(kind, 0) for kind in EVENT_TYPES}
    columns = {kind: np.full(clients, count, np.uint32) for kind, count in counts.items()}
    table = pl.DataFrame({"client_id": np.arange(clients), **columns})
    totals = {kind: clients * count for kind, count in counts.items()}
    return LogFigures(START, START + timedelta(days=days), totals, table, True, 100, 10, clients)


def common_of(**settings):
    return Common.of(composed(CONFIGS / "scripts", "recommend", [f"{key}={value}" for key, value in settings.items()]))


# --- the table ---------------------------------------------------------------------------------------


def test_the_table_names_only_what_is_there():
    """A block without a cost is one that is not measured."""
    measured = Measured.load()
    after = {recommend.MERGE, recommend.JUDGE, recommend.QUICK}
    assert after < set(measured.costs) <= after | {entry.name for entry in registry.entries()}
    assert {preset for each in measured.costs.values() for preset in each} <= {*presets(), recommend.ANY}
    assert {rule.merge for rule in measured.rules} <= set(config_names(CONFIGS / "merge"))
    assert {rule.preset for rule in measured.rules} <= set(measured.presets) <= set(presets())
    assert measured.rules[-1].when == When()  # some merge suits any log
    for each in measured.costs.values():
        for cost in each.values():
            assert cost.source in ("size", "demo")
            assert cost.of(log_of(10, ALL), tuple(EVENT_TYPES)).hours >= 0


def test_a_cost_grows_with_what_is_read_and_no_further():
    cost = recommend.Cost(start=36, million=3.6e6, thousand=3600, newest=5, gb=1, gb_million=1e6, gb_clients=1e6)
    need = cost.of(log_of(2, ALL), (EventType.PAGE_VISIT, EventType.ADD_TO_CART))  # 16 a client, of which 5 are read
    assert need.hours == pytest.approx(0.01 + 10 * 1e-3 + 2 * 1e-3)
    assert need.gb == pytest.approx(1 + 10 + 2)


@pytest.mark.parametrize(
    ("when", "reason"),
    [
        (When(clients=101), "fewer than 101 clients"),
        (When(days=60), "fewer than 60 days before the two windows"),
        (When(has=(EventType.SEARCH_QUERY,)), "no events of search_query"),
        (When(lacks=(EventType.PRODUCT_BUY,)), "the log has events of product_buy"),
        (When(clients=100, days=53, has=(EventType.PRODUCT_BUY,), lacks=(EventType.PAGE_VISIT,)), None),
    ],
)
def test_a_rule_says_why_a_log_does_not_suit(when, reason):
    assert when.refusal(log_of(100, PURCHASES, days=80)) == reason


# --- the advice --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("log", "most", "merge", "preset"),
    [
        (log_of(20, ALL), 24, "numeric", "full"),
        (log_of(2_500, ALL, days=60), 24, "numeric", "full"),
        (log_of(2_500, ALL), 24, "combined", "demo"),
        (log_of(1_000, ALL), 24, "fourth_place", "demo"),
        (log_of(2_500, PURCHASES), 24, "sequences", "demo"),
        (log_of(50_000, ALL), 24, "past_windows", "full"),
        (log_of(1_000_000, ALL), 24, "past_windows", "full"),
        (log_of(1_000_000, ALL), 1, "numeric", "full"),
        (log_of(1_000_000, ALL), inf, "best_solution", "full"),
    ],
)
def test_the_first_merge_that_suits_and_can_be_had_in_time(log, most, merge, preset):
    advice = advise(log, {}, Measured.load(), most)
    assert (advice.rule.merge, advice.rule.preset) == (merge, preset)
    names = [step.name for step in advice.steps]
    blocks = [str(name) for name in composed(CONFIGS / "merge", merge).blocks]
    assert set(blocks) <= set(names)
    assert names[-2:] == [merge, "evaluation"]
    assert advice.hours == pytest.approx(sum(step.need.hours for step in advice.steps if step.need))
    place = Measured.load().rules.index(advice.rule)
    assert len(advice.passed_over) == place


def test_too_long_for_all_is_the_last_that_suits():
    advice = advise(log_of(1_000_000, ALL), {}, Measured.load(), 1e-9)
    assert advice.rule.merge == "numeric"
    assert any("hours, where you have 1e-09" in line for line in advice.passed_over)


def test_the_judge_is_named_where_it_takes_no_hours():
    small, large = (advise(log_of(clients, ALL), {}, Measured.load(), inf) for clients in (1_000, 1_000_000))
    assert "probe" not in small.steps[-1].line
    assert small.steps[-1].why == "six tasks, by the judge"
    assert large.steps[-1].line.endswith(" probe=quick")
    assert "the judge itself takes 10 h" in large.steps[-1].why


def test_what_a_block_reads_is_made_before_it_and_once():
    names = [entry.name for entry in with_what_they_read(["twhin", "dcn"])]
    assert sorted(names) == ["dcn", "numeric_features_wide", "sequential_encoder", "twhin"]
    assert names.index("sequential_encoder") < names.index("twhin")
    assert names.index("numeric_features_wide") < names.index("dcn")


def test_blocks_that_cannot_be_made_are_left_out_with_their_line():
    rule = Rule("basics", "demo", When(), "")
    left_out = {"als_64_visits_relevant": "no visits"}
    steps = steps_of(rule, log_of(10, PURCHASES), left_out, Measured.load())
    assert [step.name for step in steps[:-2]] == ["stat_features", "als_64_buy_add_categories"]
    everything = {entry.name: f"{entry.name} is left out" for entry in registry.entries()}
    with pytest.raises(UserError, match="no merge's blocks"):
        advise(log_of(10, PURCHASES), everything, Measured.load(), 1)


# --- the commands ------------------------------------------------------------------------------------


@cache
def understood(line):
    """A command line's config, as its script would compose it; raises for what it does not know."""
    program, script, *words = shlex.split(line)
    assert program == "python"
    assert (REPOSITORY / script).is_file()
    entry = next((each for each in registry.entries() if each.command == script), None)
    names = [word.partition("=")[2] for word in words if word.startswith("--config-name=")]
    overrides = [word for word in words if not word.startswith("--")]
    if entry is not None:
        folder, name = entry.folder, entry.config_name
    elif script == "scripts/merge.py":
        folder, name = "merge", ""
    else:
        folder, name = "scripts", script.removeprefix("scripts/").removesuffix(".py")
    return composed(CONFIGS / folder, *(names or [name]), overrides)


@pytest.mark.full
@pytest.mark.parametrize("rule", Measured.load().rules, ids=lambda rule: f"{rule.merge}-{rule.preset}")
def test_every_command_is_understood_and_reads_the_same_log(rule):
    steps = steps_of(rule, log_of(10, ALL), {}, Measured.load())
    advice = recommend.Advice(rule, steps, [], [])
    common = common_of(data_path="'/some where/log'", unknown_sku="drop")
    lines = commands(advice, common, "./data")
    assert len(lines) == len(steps) + 1
    for line in lines:
        config = understood(line)
        assert config.data_path == "/some where/log"
        assert config.unknown_sku == "drop"
    assert [understood(line).submit for line in lines[1:]] == [False] * len(steps)
    assert all("data_path" not in line for line in commands(advice, common, common.data_path))


@pytest.mark.parametrize("name", ["tiny", "purchases_only"])
def test_the_command_looks_at_a_log_and_says_what_it_advises(name, tmp_path, capsys):
    paths = tiny.log(name).write(tmp_path / "log")
    advice = recommend.main(composed(CONFIGS / "scripts", "recommend", [f"data_path={paths.root}"]))
    assert advice.rule.merge == "numeric"
    out = capsys.readouterr().out
    assert "advised: numeric, preset=full" in out
    assert f"python scripts/merge.py --config-name=numeric submit=False data_path={paths.root}" in out
    assert "fewer than 500 clients" in out
    assert ("search_query" in out.partition("advised")[0]) == (name == "tiny")
    assert len(out.splitlines()) <= 50  # a screen


def test_no_hours_are_refused(tmp_path):
    with pytest.raises(UserError, match="hours"):
        recommend.main(composed(CONFIGS / "scripts", "recommend", [f"data_path={tmp_path}", "hours=0"]))


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "1 s"), (80, "80 s"), (100, "2 min"), (7100, "118 min"), (9e5, "250 h")]
)
def test_times_are_said_in_their_unit(seconds, text):
    assert hours(Need(seconds / 3600, 0)) == text
    assert hours(None) == "not measured"
