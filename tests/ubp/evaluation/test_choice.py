"""Settings are taken where they beat what is there by more than luck, and together only where that is better still."""

from math import sqrt

import numpy as np
import pytest

from ubp.data.targets import TASKS
from ubp.evaluation.ablation import Row
from ubp.evaluation.choice import AS_IS, ChoiceRules, Trial, choose, standard_error, winners
from ubp.io.errors import UserError

RULES = ChoiceRules(errors=2.0, least=0.0)


def trial(settings, *totals):
    tasks = dict.fromkeys((task.name for task in TASKS), None)
    rows = [
        Row("log", "merge", "a+b", 3, "quick", seed, **(tasks | {"churn": total}), total=total, made_from=str(settings))
        for seed, total in enumerate(totals)
    ]
    return Trial(tuple(settings), tuple(rows))


def test_a_change_says_what_is_another_and_what_it_moved():
    change = trial(["a=1", "b=2"], 1.1, 2.4).change(trial(AS_IS, 1.0, 2.0))
    assert (change.kind, change.block, change.blocks, change.columns, change.seeds) == ("set", "a=1 b=2", 2, 3, 2)
    assert (change.total, change.change, change.churn) == pytest.approx((1.75, 0.25, 0.25))
    assert change.spread == pytest.approx(np.std([0.1, 0.4], ddof=1))
    assert change.conversion is None


def test_the_error_is_that_of_the_mean_change_pooled_over_the_trials():
    as_is = trial(AS_IS, 1.0, 2.0, 4.0)
    trials = [trial(["a=1"], 1.1, 2.3, 4.2), trial(["b=1"], 1.0, 2.0, 4.3)]
    variances = [np.var([0.1, 0.3, 0.2], ddof=1), np.var([0.0, 0.0, 0.3], ddof=1)]
    assert standard_error(trials, as_is) == pytest.approx(sqrt(np.mean(variances) / 3))
    assert standard_error([], as_is) == 0.0
    with pytest.raises(ValueError, match="two seeds"):
        standard_error(trials, trial(AS_IS, 1.0))


def test_of_each_setting_the_best_value_wins_where_it_beats_what_is_there_by_enough():
    as_is = trial(AS_IS, 1.0, 1.0)
    trials = [trial(["a=1"], 1.2, 1.2), trial(["a=2"], 1.3, 1.3), trial(["b=1"], 1.01, 0.99), trial(["c=1"], 0.5, 0.5)]
    assert [found.settings for found in winners(trials, as_is, least=0.25)] == [("a=2",)]


def test_a_lucky_seed_is_no_gain():
    as_is = trial(AS_IS, 1.0, 1.0, 1.0)
    lucky = [trial(["a=1"], 1.3, 1.0, 1.0), trial(["b=1"], 0.8, 1.2, 1.0)]
    assert lucky[0].total > as_is.total
    scores = dict(zip([AS_IS, ("a=1",), ("b=1",)], [as_is, *lucky], strict=True))
    assert choose(list(scores)[1:], scores.__getitem__, RULES).taken is as_is
    assert choose(list(scores)[1:], scores.__getitem__, ChoiceRules(0.0, 0.0)).taken is lucky[0]


class Scores:
    """Made-up sums: what each setting adds, and what some of them lose together."""

    def __init__(self, worth, together=0.0):
        self.worth, self.together, self.asked = worth, together, []

    def __call__(self, settings):
        self.asked.append(settings)
        total = 4.0 + sum(self.worth[setting] for setting in settings) + self.together * (len(settings) > 1)
        return trial(settings, total, total + 0.01, total - 0.01)


def test_winners_are_tried_together_and_taken_so_where_that_is_best():
    score = Scores({"a=1": 0.1, "a=2": 0.2, "b=1": 0.05, "c=1": -0.1})
    tried = [("a=1",), ("a=2",), ("b=1",), ("c=1",)]
    choice = choose(tried, score, RULES)
    assert score.asked == [AS_IS, *tried, ("a=2", "b=1")]
    assert [found.settings for found in (choice.as_is, *choice.trials)] == score.asked
    assert choice.taken.settings == ("a=2", "b=1")
    assert choice.error == pytest.approx(standard_error(choice.trials[:-1], choice.as_is))


def test_what_spoils_one_another_is_not_taken_together():
    choice = choose([("a=1",), ("b=1",)], Scores({"a=1": 0.1, "b=1": 0.05}, together=-0.2), RULES)
    assert choice.taken.settings == ("a=1",)


@pytest.mark.parametrize("worth", [{}, {"a=1": -0.1}, {"a=1": 0.0}])
def test_where_nothing_wins_it_stays_as_it_is(worth):
    choice = choose([(setting,) for setting in worth], Scores(worth), RULES)
    assert choice.taken is choice.as_is
    assert choice.taken.settings == AS_IS


@pytest.mark.parametrize(("least", "taken"), [(0.06, ("a=1",)), (0.2, AS_IS)])
def test_what_the_seeds_agree_on_must_be_more_than_another_window_moves(least, taken):
    choice = choose([("a=1",), ("b=1",)], Scores({"a=1": 0.1, "b=1": 0.05}), ChoiceRules(errors=2.0, least=least))
    assert choice.taken.settings == taken


def test_rules_below_zero_are_refused():
    with pytest.raises(UserError, match="errors=-1"):
        ChoiceRules(errors=-1, least=0)
    with pytest.raises(UserError, match="least=-1"):
        ChoiceRules(errors=0, least=-1)
