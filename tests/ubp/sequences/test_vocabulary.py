"""Values and tokens against a slow reference."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.ubp.sequences.logs import SKUS, reference
from ubp.data import schema
from ubp.data.schema import EventType, Token
from ubp.sequences import selection as selecting
from ubp.sequences.selection import select
from ubp.sequences.vocabulary import Vocabulary


class TestVocabulary:
    @given(st.lists(st.integers(-3, 12)), st.none() | st.integers(0, 5), st.integers(1, 3))
    def test_is_the_reference(self, values, top, min_count):
        counts = Counter(values)
        often = sorted((value for value in counts if counts[value] >= min_count), key=lambda v: (-counts[v], v))[:top]
        distinct, occurrences = np.unique(np.array(values, dtype=np.int64), return_counts=True)
        vocabulary = Vocabulary.of_counts(distinct, occurrences, top, min_count)
        assert vocabulary.values.tolist() == often
        assert vocabulary.counts.tolist() == [counts[value] for value in often]
        tokens = vocabulary.encode(values)
        expected = [schema.FIRST_TOKEN + often.index(value) if value in often else Token.OTHER for value in values]
        assert tokens.tolist() == expected
        real = tokens[tokens >= schema.FIRST_TOKEN]
        assert vocabulary.decode(real).tolist() == [value for value in values if value in often]

    @pytest.mark.parametrize(("column", "place"), [(schema.CATEGORY, 0), (schema.PRICE, 1), (schema.SKU, None)])
    def test_of_item_columns(self, store, history, column, place):
        flat = [event for of_client in reference(history).values() for event in of_client]
        values = [
            (event[3] if place is None else SKUS[event[3]][place]) if event[0].has_sku else None for event in flat
        ]
        counts = Counter(value for value in values if value is not None)
        vocabulary = select(store).vocabulary(column, top=2)
        assert vocabulary.values.tolist() == sorted(counts, key=lambda value: (-counts[value], value))[:2]
        known = dict(zip(vocabulary.values.tolist(), [schema.FIRST_TOKEN, schema.FIRST_TOKEN + 1], strict=True))
        tokens = select(store).tokens(column, vocabulary)
        assert tokens.dtype == np.uint16
        assert tokens.tolist() == [Token.NONE if value is None else known.get(value, Token.OTHER) for value in values]

    def test_of_a_selection_in_blocks(self, store, monkeypatch):
        visits = select(store).of_types([EventType.PAGE_VISIT]).at_least(1)
        whole = visits.vocabulary(schema.URL, min_count=2)
        tokens = visits.tokens(schema.URL, whole)
        monkeypatch.setattr(selecting, "_BLOCK", 7)
        assert visits.vocabulary(schema.URL, min_count=2).values.tolist() == whole.values.tolist()
        assert visits.tokens(schema.URL, whole).tolist() == tokens.tolist()
        assert select(store).vocabulary(schema.URL, min_count=2).counts.tolist() == whole.counts.tolist()
        assert (tokens == Token.OTHER).any()
        assert Token.NONE not in tokens

    def test_no_value_shares_a_special_id(self, store):
        assert sorted(Token) == list(range(schema.FIRST_TOKEN))
        # The values 0 … 4 are urls here: each must get an id of its own.
        vocabulary = select(store).vocabulary(schema.URL)
        assert set(range(len(Token))) <= set(vocabulary.values.tolist())
        assert vocabulary.encode(np.arange(len(Token))).min() >= schema.FIRST_TOKEN
        assert vocabulary.encode(store.urls).max() == vocabulary.size - 1

    def test_wide_ids_when_needed(self):
        many = np.arange(70_000)
        assert Vocabulary.of_counts(many, np.ones_like(many)).encode([69_999]).tolist() == [70_004]
        assert Vocabulary.of_counts(many, np.ones_like(many), top=2**16 - len(Token)).dtype is np.uint16

    def test_special_tokens_have_no_value(self):
        vocabulary = Vocabulary.of_counts(np.array([4]), np.array([1]))
        for token in (*Token, vocabulary.size):
            with pytest.raises(ValueError, match="stand for a value"):
                vocabulary.decode([token])

    def test_other_columns_have_none(self, store):
        with pytest.raises(ValueError, match="known: sku, category, price, url"):
            select(store).vocabulary(schema.NAME)
