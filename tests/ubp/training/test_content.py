"""Hashed ids and contents: the same everywhere, spread evenly, and known for skus that were never seen."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from ubp.data import schema
from ubp.data.schema import CODE_BOOK, CODES, PRICE_BUCKETS
from ubp.training.content import HASHES, ContentEncoder, Contents, ContentSettings, hashed, item_vectors, mixed

ROWS = 500
SETTINGS = ContentSettings(width=8, rows=ROWS, id_width=4, token_width=3, id_dropout=0.5)


def splitmix64(number: int) -> int:
    """The published formula in Python's own integers."""
    mask = 2**64 - 1
    z = (number + 0x9E3779B97F4A7C15) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return z ^ (z >> 31)


def some_items(count: int, seed: int = 1) -> Contents:
    rng = np.random.default_rng(seed)
    names = rng.integers(0, CODE_BOOK, (count, CODES)).astype(np.uint8)
    prices = rng.integers(0, PRICE_BUCKETS, count)
    return Contents.of_items(np.arange(count), rng.integers(0, 9, count), prices, names, ROWS)


def test_the_mixer_is_splitmix64() -> None:
    numbers = np.array([0, 1, 2**63, 2**64 - 1, 12345678901234567890], np.uint64)
    assert mixed(numbers).tolist() == [splitmix64(int(number)) for number in numbers]
    assert splitmix64(0) == 0xE220A8397B1DCDAF  # the generator's first output from the state 0, as published


@pytest.mark.full
def test_hashes_are_the_same_in_another_process() -> None:
    code = (
        "import numpy as np; from ubp.training.content import hashed;"
        "print(hashed('url', np.array([-3, 0, 7, 2**40]), 500).tolist())"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == str(hashed(schema.URL, np.array([-3, 0, 7, 2**40]), ROWS).tolist())


@pytest.mark.parametrize("column", [schema.SKU, schema.CATEGORY, schema.URL])
@pytest.mark.parametrize("step", [1, 1000])
def test_hashes_are_near_uniform(column: str, step: int) -> None:
    rows = hashed(column, np.arange(50_000) * step, ROWS)
    for hashes in rows.T:
        counts = np.bincount(hashes, minlength=ROWS)
        # Chi-squared of as many classes has a mean of 499 and a deviation of 32.
        assert 499 - 5 * 32 < ((counts - 100) ** 2 / 100).sum() < 499 + 5 * 32


def test_ids_that_collide_under_one_hash_are_told_apart_by_the_pair() -> None:
    rows = hashed(schema.SKU, np.arange(400), ROWS)
    assert len(np.unique(rows[:, 0])) < 300  # so many collide
    assert len(np.unique(rows, axis=0)) == 400
    model = ContentEncoder(SETTINGS).eval()
    pairs = [(one, other) for one in range(400) for other in range(one) if rows[one, 0] == rows[other, 0]]
    one, other = pairs[0]
    ids = np.concatenate([rows[[one, other]], rows[[0, 0]]], axis=1)  # the same category
    same = Contents(ids, np.zeros(2, np.uint8), np.zeros((2, CODES), np.uint8))
    vectors = item_vectors(model, same)
    assert np.abs(vectors[0] - vectors[1]).max() > 1e-3


def test_the_same_number_is_another_thing_as_a_sku_a_category_and_a_url() -> None:
    ids = np.arange(1000)
    rows = [hashed(column, ids, 500_000) for column in (schema.SKU, schema.CATEGORY, schema.URL)]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert (rows[one] == rows[other]).mean() < 0.001


def test_a_vector_depends_on_each_property_and_on_no_other_item() -> None:
    model, items = ContentEncoder(SETTINGS), some_items(20)
    vectors = item_vectors(model, items)
    assert model.training  # as it was
    np.testing.assert_allclose(item_vectors(model, items.take(np.array([7]))), vectors[7:8], atol=1e-6)
    changes = {
        "ids": Contents((items.ids + 1) % ROWS, items.price, items.codes),
        "price": Contents(items.ids, (items.price + 1) % PRICE_BUCKETS, items.codes),
        "codes": Contents(items.ids, items.price, items.codes ^ 1),
    }
    for changed in changes.values():
        assert (np.abs(item_vectors(model, changed) - vectors).max(axis=1) > 1e-4).all()


def test_codes_are_labels_at_a_position() -> None:
    model = ContentEncoder(SETTINGS).eval()
    codes = torch.zeros(2, CODES, dtype=torch.uint8)
    codes[0, 0], codes[1, 1] = 5, 5  # the same code at another place
    one, other = model.queries({"codes": codes})
    assert (one - other).abs().max() > 1e-3


def test_ids_dropped_in_training_leave_the_rest_of_an_item() -> None:
    model = ContentEncoder(SETTINGS)
    contents = some_items(1).tensors()
    repeated = {name: values.expand(200, *values.shape[1:]) for name, values in contents.items()}
    drawn = model.train().items(repeated).detach()
    kinds = torch.unique(drawn.mul(1e4).round(), dim=0)
    assert len(kinds) == 2  # with its own id and without
    assert len(torch.unique(model.eval().items(repeated).detach().mul(1e4).round(), dim=0)) == 1


def test_urls_have_the_rows_of_their_hashes() -> None:
    urls = np.array([4, 9])
    found = Contents.of_urls(urls, ROWS)
    np.testing.assert_array_equal(found.ids[:, :HASHES], hashed(schema.URL, urls, ROWS))
    assert not found.ids[:, HASHES:].any()
