import math

import pytest
import torch

from ubp.training import ranking
from ubp.training.ranking import (
    MODEL,
    POPULAR,
    REPEATED,
    below_popularity,
    compared,
    popularity_ranks,
    ranking_scores,
    ranks_of,
    repetition_ranks,
    score_table,
)


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch):
    monkeypatch.setattr(ranking, "_POSITIONS", 4)
    monkeypatch.setattr(ranking, "_CLASSES", 5)
    monkeypatch.setattr(ranking, "_PAIRS", 100)


@pytest.mark.parametrize("with_bias", [True, False])
def test_ranks_against_sorting_all_logits(with_bias):
    torch.manual_seed(0)
    hidden, weight, wanted = torch.randn(11, 3), torch.randn(17, 3), torch.randint(0, 17, (11,))
    bias = torch.randn(17) if with_bias else None
    logits = hidden @ weight.t() + (bias if with_bias else 0)
    found = ranks_of(hidden, weight, wanted, bias)
    for row, rank in enumerate(found.tolist()):
        assert logits[row].argsort(descending=True)[rank - 1] == wanted[row]


def test_equal_logits_look_bad():
    ranks = ranks_of(torch.zeros(6, 3), torch.randn(17, 3), torch.arange(6))
    assert ranks.tolist() == [17] * 6


def test_ranks_are_exact_under_autocast():
    torch.manual_seed(0)
    hidden, weight, wanted = torch.randn(11, 64), torch.randn(17, 64), torch.randint(0, 17, (11,))
    exact = ranks_of(hidden, weight, wanted)
    with torch.autocast("cpu", torch.bfloat16):
        assert ranks_of(hidden, weight, wanted).tolist() == exact.tolist()


def test_no_positions():
    none = torch.empty(0, dtype=torch.int64)
    assert len(ranks_of(torch.empty(0, 3), torch.randn(7, 3), none)) == 0
    assert all(score == 0 for score in ranking_scores(none).values())


def test_scores_against_a_loop():
    ranks = [1, 2, 3, 10, 11, 400]
    found = ranking_scores(torch.tensor(ranks), at=10)
    kept = [rank for rank in ranks if rank <= 10]
    assert float(found["hit_rate"]) == pytest.approx(len(kept) / 6)
    assert float(found["mrr"]) == pytest.approx(sum(1 / rank for rank in kept) / 6)
    assert float(found["ndcg"]) == pytest.approx(sum(1 / math.log2(1 + rank) for rank in kept) / 6)


def test_popular_classes_come_first():
    ranks = popularity_ranks(torch.tensor([5, 0, 9, 5]), torch.tensor([0, 1, 2, 3, 2]))
    assert ranks.tolist() == [2, 4, 1, 3, 1]


def test_repetition_against_a_loop():
    """A list of the distinct values, the latest first, kept by hand."""
    torch.manual_seed(0)
    tokens = torch.randint(0, 6, (9, 14))
    found = repetition_ranks(tokens)
    assert found.shape == (9, 13)
    for row, values in enumerate(tokens.tolist()):
        latest = []
        for place, value in enumerate(values[:-1]):
            latest = [value, *(other for other in latest if other != value)]
            follows = values[place + 1]
            wanted = latest.index(follows) + 1 if follows in latest else 15
            assert found[row, place] == wanted


def test_the_table_shows_what_there_is():
    scores = compared({MODEL: torch.tensor([1, 12]), REPEATED: torch.tensor([2, 1])})
    assert list(scores) == ["hit_rate@10", "mrr@10", "ndcg@10"]
    assert scores["hit_rate@10"] == {MODEL: 0.5, REPEATED: 1.0}
    assert list(compared({MODEL: torch.tensor([1, 2])}, at=1)) == ["hit_rate@1"]
    table = score_table("title", scores)
    cells = {column.header: list(column.cells) for column in table.columns}
    assert cells[MODEL][0] == "0.500"
    assert cells[POPULAR] == ["", "", ""]


@pytest.mark.parametrize(
    ("model", "popular", "words"),
    [
        (0.6069, 0.6111, "mrr@10 0.607 against 0.611"),
        (0.6111, 0.6069, None),
        (0.61101, 0.61149, None),  # the same by what the table shows
        (0.0, 0.0, None),
    ],
)
def test_below_popularity_is_said_in_the_tables_decimals(model, popular, words):
    scores = {"mrr@10": {MODEL: model, POPULAR: popular}, "ndcg@10": {MODEL: 0.0, POPULAR: 1.0}}
    assert below_popularity(scores, "mrr@10") == words


def test_below_popularity_by_a_score_that_is_not_there():
    with pytest.raises(KeyError, match="ndcg@1"):
        below_popularity({"mrr@10": {MODEL: 0.0, POPULAR: 1.0}}, "ndcg@1")
