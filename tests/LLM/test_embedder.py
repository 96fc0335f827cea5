"""A language model as a function from texts to vectors; the small one whose weights are installed."""

import numpy as np
import pytest

from LLM.embedder import open_embedder
from ubp.data.text_codes import TextCodes, TextSettings
from ubp.io.errors import UserError


@pytest.fixture(scope="module")
def embed():
    return open_embedder("minilm")


def cosine(one, other) -> float:
    return float(one @ other / np.linalg.norm(one) / np.linalg.norm(other))


def test_what_means_the_like_is_close(embed):
    sofa, couch, soup, again = embed(["sofa", "couch", "tomato soup", "sofa"])
    assert cosine(sofa, couch) > 2 * cosine(sofa, soup)
    np.testing.assert_allclose(sofa, again, atol=1e-5)


def test_a_vector_depends_neither_on_the_order_nor_on_the_others(embed):
    texts = ["a garden hose", "wool socks of a very long name " * 30, "pan", ""]
    whole = embed(texts)
    assert whole.shape == (4, 384)
    assert np.isfinite(whole).all()
    np.testing.assert_allclose(embed(texts[::-1])[::-1], whole, atol=1e-5)
    np.testing.assert_allclose(embed(texts[2:3])[0], whole[2], atol=1e-5)
    assert embed([]).shape == (0, 384)


def test_codes_by_it(embed):
    kinds = ["sofa", "couch", "settee", "soup", "broth", "stew", "bicycle", "bike", "cycle"]
    texts = [f"{maker} {kind}" for maker in ("red", "blue", "small", "large", "old") for kind in kinds]
    codes = TextCodes.fit(texts, TextSettings(reader="minilm", texts_a_code=4), 0, embed)
    sofa, couch, soup = codes.of(["red sofa", "red couch", "red soup"])
    assert (sofa == couch).sum() > (sofa == soup).sum()


def test_a_model_that_is_not_there():
    with pytest.raises(UserError, match="no such folder"):
        open_embedder("/no/such/folder")
