"""Ids of any type: integers stay, all others are numbered in order, and each finds its way back."""

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import few
from ubp.data import own_ids
from ubp.data.own_ids import ID, ORIGINAL, extended, numbered, together, with_ids
from ubp.io.errors import UserError

LIMITS = [-(2**63), 0, 2**63 - 1]


def frames_of(*columns) -> list[pl.LazyFrame]:
    return [pl.LazyFrame({"x": column}) for column in columns]


@pytest.mark.parametrize("write", [int, str])
def test_integers_stay_as_they_are_to_both_ends(write):
    table = numbered(frames_of([*map(write, LIMITS), None], [write(0)]))
    assert table.schema == {ID: pl.Int64, ORIGINAL: pl.Int64}
    assert table[ID].to_list() == table[ORIGINAL].to_list() == LIMITS


@pytest.mark.parametrize("other", ["007", "-0", str(2**63), "1.0", " 1", "a", "1e3", "+1"])
def test_one_id_that_is_no_integer_numbers_them_all(other):
    table = numbered(frames_of([5, 17], [other]))
    wanted = sorted(["5", "17", other], key=str.encode)
    assert table.rows() == list(enumerate(wanted, 1))
    assert table.schema == {ID: pl.Int64, ORIGINAL: pl.String}


def test_no_ids():
    assert numbered([]).is_empty()
    assert numbered(frames_of(pl.Series([None], dtype=pl.String))).is_empty()


@settings(max_examples=few(50), deadline=None)
@given(st.lists(st.one_of(st.none(), st.text(max_size=3), st.integers(-9, 9).map(str)), max_size=40))
def test_every_id_finds_its_way_back_whatever_the_order(texts):
    table = numbered(frames_of(pl.Series(texts, dtype=pl.String)))
    assert table.equals(numbered(frames_of(pl.Series(texts[::-1], dtype=pl.String))))
    found = with_ids(pl.LazyFrame({"x": pl.Series(texts, dtype=pl.String)}), "x", table).collect()["x"]
    back = dict(table.rows())
    assert [None if each is None else str(back[each]) for each in found.to_list()] == texts
    assert found.dtype == pl.Int64


@settings(max_examples=few(50), deadline=None)
@given(st.lists(st.lists(st.one_of(st.none(), st.integers(-5, 5))), min_size=1, max_size=8), st.booleans())
def test_values_are_those_of_all_frames_put_together_in_parts(columns, text):
    frames = [pl.LazyFrame({"x": pl.Series(column, dtype=pl.Int64)}) for column in columns]
    if text:
        frames[-1] = frames[-1].cast(pl.String)
    wanted = {value for column in columns for value in column} - {None}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(own_ids, "_AT_ONCE", 4)
        found = own_ids.distinct(frames)
    assert sorted(found.to_list()) == sorted(map(str, wanted) if text else wanted)
    assert found.dtype == (pl.String if text else pl.Int64)


def test_frames_of_both_types_below_one_another():
    frames = [pl.LazyFrame({"x": [1], "y": [1.5]}), pl.LazyFrame({"x": ["a"], "y": [2.5]})]
    assert together(frames, ("x",)).collect().rows() == [("1", 1.5), ("a", 2.5)]
    assert together(frames[:1], ("x",)).collect_schema()["x"] == pl.Int64


ids = st.lists(st.none() | st.text(max_size=2) | st.integers(-9, 9).map(str), min_size=1, max_size=20)


@settings(max_examples=few(50), deadline=None)
@given(ids, st.lists(ids, max_size=3))
def test_ids_keep_their_numbers_however_often_others_follow(first, further):
    table = numbered(frames_of(["x", *first]))
    known = dict(table.rows())
    for texts in further:
        table = extended(table, frames_of(texts), "client")
        assert {number: text for number, text in table.rows() if number in known} == known
        new = sorted({text for text in texts if text is not None} - set(known.values()), key=str.encode)
        known |= dict(enumerate(new, max(known) + 1))
        assert dict(table.rows()) == known
        assert table[ID].is_sorted()


@pytest.mark.parametrize("write", [int, str])
def test_integers_are_added_as_they_are(write):
    table = extended(numbered(frames_of([5, 1])), frames_of([write(3), write(5)], [None]), "client")
    assert table.rows() == [(1, 1), (3, 3), (5, 5)]
    with pytest.raises(UserError, match="client: 'a' is no integer, as the ids of this log were so far"):
        extended(table, frames_of(["8", "a"]), "client")


def test_a_table_without_ids_is_begun():
    assert extended(numbered([]), frames_of(["b", "a"]), "url").rows() == [(1, "a"), (2, "b")]
    assert extended(numbered(frames_of(["a"])), [], "url").rows() == [(1, "a")]
