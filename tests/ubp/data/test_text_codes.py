"""Texts as 16 codes: close ones have many in common, far ones few; the same texts give the same codes."""

import itertools

import numpy as np
import pytest

from ubp.data.schema import CODES
from ubp.data.text_codes import TextCodes, TextSettings, codes_text
from ubp.io.errors import UserError

KINDS = ("tomato soup", "garden hose", "steel pan", "wool socks", "wall clock", "desk lamp")
SIZES = ("small", "large", "red", "blue", "of 2", "of 6", "new", "sale")
MAKERS = ("Adler", "Birke", "Cedar", "Dorn", "Eiche")
TEXTS = [" ".join(words) for words in itertools.product(MAKERS, KINDS, SIZES)]


def fitted(texts=TEXTS, seed=0, **settings) -> TextCodes:
    return TextCodes.fit(texts, TextSettings(**settings), seed)


def no_model(name):
    pytest.fail(f"{name} was asked for")


def meaning(texts):
    """Stands for a language model: texts of one kind are close, whatever else they say."""
    found = np.zeros((len(texts), 30), np.float32)
    for place, text in enumerate(texts):
        kind = next((number for number, kind in enumerate(KINDS) if kind in text), len(KINDS))
        found[place, kind] = 1
        found[place, -5:] = [sum(map(ord, text)) * step % 7 / 70 for step in (1, 2, 3, 4, 5)]
    return found


def shared(codes: TextCodes, one: str, other: str) -> int:
    first, second = codes.of([one, other])
    return int((first == second).sum())


def mean_shared(codes: TextCodes, one: str, other: str) -> float:
    """Over all pairs of kinds that the two texts are filled with."""
    pairs = itertools.permutations(KINDS, 2)
    return float(np.mean([shared(codes, one.format(*pair), other.format(*pair)) for pair in pairs]))


def test_close_texts_share_more_codes_than_far_ones():
    codes = fitted()
    far = mean_shared(codes, "Adler {0} red", "Birke {1} of 2")
    assert mean_shared(codes, "Adler {0} red", "Birke {0} of 2") > 2 * far
    assert mean_shared(codes, "Adler {0} red", "Adler {0} blue") > 3 * far
    assert mean_shared(codes, "Adler {0} red", "Adlr {0}s red") > 4 * far


def test_case_does_not_matter():
    assert shared(fitted(), "Adler garden hose red", "ADLER GARDEN HOSE RED") == CODES


def test_the_same_texts_give_the_same_codes_in_any_order_and_number():
    one, other = fitted(), fitted([*TEXTS[::-1], *TEXTS[:7]])
    assert np.array_equal(one.of(TEXTS), other.of(TEXTS))
    assert np.array_equal(one.of(TEXTS)[5:6], one.of(TEXTS[5:6]))
    assert not np.array_equal(one.of(TEXTS), fitted(seed=1).of(TEXTS))


def test_different_texts_can_be_told_apart():
    assert len(np.unique(fitted().of(TEXTS), axis=0)) > 0.9 * len(TEXTS)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 10])
def test_few_texts(count):
    texts = TEXTS[:: len(TEXTS) // 10][:count]
    codes = fitted([*texts, "", "  "]).of([*texts, "", "something else"])
    assert codes.shape == (count + 2, CODES)
    assert codes.dtype == np.uint8
    assert len(np.unique(codes[:count], axis=0)) == count


def test_an_empty_text_has_codes_of_its_own():
    codes = fitted().of(["", *TEXTS])
    assert not (codes[0] == codes[1:]).all(axis=1).any()


def test_a_sample_is_enough_and_seeded():
    small = fitted(sample=60)
    assert np.array_equal(small.of(TEXTS), fitted(sample=60).of(TEXTS))
    assert len(np.unique(small.of(TEXTS), axis=0)) > 100


@pytest.mark.parametrize("count", [0, 1, 240])
def test_a_quantiser_that_was_kept_gives_the_same_codes(count, tmp_path):
    codes = fitted(TEXTS[:count])
    np.savez(tmp_path / "kept.npz", **codes.arrays())
    with np.load(tmp_path / "kept.npz", allow_pickle=False) as arrays:
        again = TextCodes.from_arrays(arrays, no_model)
    asked = [*TEXTS, "", "something else", "Adler"]
    assert np.array_equal(codes.of(asked), again.of(asked))


def test_progress_is_told():
    done = []
    fitted().of(TEXTS, done.append)
    assert sum(done) == len(TEXTS)


def test_codes_are_written_as_published():
    codes = np.array([[11, 2, 201, *[0] * 13]], np.uint8)
    assert codes_text(codes).to_list() == ["[ 11   2 201" + "   0" * 13 + "]"]


@pytest.mark.parametrize("name", ["sample", "features", "texts_a_code"])
def test_settings_that_make_no_sense(name):
    with pytest.raises(UserError, match=f"text.{name}=0"):
        TextSettings(**{name: 0})


def test_by_a_language_model_what_means_the_like_is_close(tmp_path):
    settings = TextSettings(reader="some/model")
    codes = TextCodes.fit(TEXTS, settings, 0, meaning)
    far = mean_shared(codes, "Adler {0} red", "Adler {1} red")
    assert mean_shared(codes, "Adler {0} red", "Eiche {0} of 6") > far + 1
    np.savez(tmp_path / "state.npz", allow_pickle=False, **codes.arrays())
    asked = []
    with np.load(tmp_path / "state.npz", allow_pickle=False) as arrays:
        again = TextCodes.from_arrays(arrays, lambda name: asked.append(name) or meaning)
    assert asked == ["some/model"]
    new = [*TEXTS, "a text that was not there", ""]
    assert np.array_equal(again.of(new), codes.of(new))


@pytest.mark.parametrize("count", [0, 1, 3])
def test_few_texts_by_a_language_model(count):
    codes = TextCodes.fit(TEXTS[:count], TextSettings(reader="some/model"), 0, meaning).of([*TEXTS[:count], ""])
    assert codes.shape == (count + 1, CODES)
