"""The fitted block: saved, loaded, and asked for other clients and other days."""

import json
import shutil
from dataclasses import replace
from datetime import datetime, timedelta

import numpy as np
import polars as pl
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from LLM.backends import TransformersBackend
from LLM.recipe import FittedLanguageModel, LanguageModelRecipe
from LLM.texts import save_texts
from tests.LLM.commands import embed, embedding_config, make_text
from ubp.blocks.embeddings import EmbeddingTable
from ubp.blocks.fitted import load, save
from ubp.data.history import ChallengeData
from ubp.data.schema import EventType
from ubp.io.errors import UserError

EARLIER = datetime(2023, 1, 9)


@pytest.fixture
def history(paths) -> ChallengeData:
    make_text(paths, "search")
    return ChallengeData(paths, submit=True)


def fitted(history, model, *overrides) -> FittedLanguageModel:
    recipe = LanguageModelRecipe.of(embedding_config(history.paths, model, "n_components=4", *overrides))
    return recipe.fit(history, 0, history.paths.cache / "fit").block


def loaded(block, folder):
    save(block, folder, {})
    return load(folder)


def same(one: EmbeddingTable, other: EmbeddingTable) -> bool:
    return one.client_ids.tolist() == other.client_ids.tolist() and one.vectors.tobytes() == other.vectors.tobytes()


def vectors_of(table: EmbeddingTable, clients) -> np.ndarray:
    return table.vectors[np.searchsorted(table.client_ids, clients)]


@pytest.fixture
def forbid_reading(monkeypatch):
    """From now on the model must not be run."""

    def refuse(*_):
        raise AssertionError("the model was run")

    return lambda: monkeypatch.setattr(TransformersBackend, "encode", refuse)


@pytest.mark.full
def test_a_real_model_encodes_after_loading_what_the_command_wrote(paths):
    make_text(paths, "all_interactions", "preset=demo")
    words = ["data_files=all_interactions_64.parquet", "save_dir_name=minilm_all", "n_components=8", "max_tokens=16"]
    embed(paths, "minilm", *words)
    written = EmbeddingTable.read(paths.block("minilm_all", submit=True))
    history = ChallengeData(paths, submit=True)
    block = load(paths.model("minilm_all", submit=True))
    assert len(written) == len(history.clients)
    assert same(block.encode(history, history.relevant_clients), written)
    assert same(block.encode(history, written.client_ids[::-1]), written)
    assert len(np.unique(written.vectors, axis=0)) > len(written) / 2


def test_what_the_fit_has_read_is_not_read_again(history, tiny_llama, forbid_reading):
    block = fitted(history, tiny_llama)
    at_first = block.encode(history, history.relevant_clients)
    again = loaded(block, history.paths.cache / "block").encode(history, history.relevant_clients)
    assert same(at_first, again)
    forbid_reading()
    assert same(block.encode(history, history.relevant_clients), at_first)
    with pytest.raises(ValueError, match="read-only"):
        block.encode(history, history.relevant_clients).vectors[0] = 0.0
    with pytest.raises(AssertionError, match="was run"):
        block.encode(history, history.relevant_clients[1:])
    with pytest.raises(AssertionError, match="was run"):
        block.encode(history, history.relevant_clients, as_of=EARLIER)


@pytest.mark.parametrize("overrides", [["pooling=last"], pytest.param(["n_components=null"], marks=pytest.mark.full)])
def test_what_is_saved_is_what_was_fitted(history, tiny_llama, overrides):
    block = fitted(history, tiny_llama, *overrides)
    back = loaded(block, history.paths.cache / "block")
    assert (back.settings, back.text, back.weights, back.width) == (block.settings, block.text, tiny_llama, 32)
    assert same(back.encode(history), replace(block, encoded=None).encode(history))
    assert back.columns == (4 if block.pca else 32)


@pytest.mark.full
def test_unknown_clients_are_encoded_and_batch_mates_do_not_matter(history, tiny_llama):
    """A third of the clients is not relevant: neither the texts' file nor the PCA knows them."""
    block = fitted(history, tiny_llama)
    relevant = block.encode(history, history.relevant_clients)
    everyone = block.encode(history)
    others = np.setdiff1d(everyone.client_ids, history.relevant_clients)
    searched = pl.read_parquet(history.file(EventType.SEARCH_QUERY))["client_id"].unique().sort()
    assert everyone.client_ids.tolist() == searched.to_list()
    assert len(others) > 5
    np.testing.assert_allclose(vectors_of(everyone, relevant.client_ids), relevant.vectors, rtol=1e-3, atol=1e-4)
    alone = block.encode(history, others[:1])
    assert alone.client_ids.tolist() == others[:1].tolist()
    np.testing.assert_allclose(alone.vectors, vectors_of(everyone, others[:1]), rtol=1e-3, atol=1e-4)


def naive(block, history, client: int, folder) -> np.ndarray:
    """One client: its text by itself through the model, then the PCA."""
    save_texts(history, block.text, np.array([client]), folder / "one.parquet", {})
    (text,) = pl.read_parquet(folder / "one.parquet")["text"]
    ids = AutoTokenizer.from_pretrained(block.weights)(text, return_tensors="pt")["input_ids"][:, -96:]
    with torch.inference_mode():
        hidden = AutoModel.from_pretrained(block.weights).eval()(input_ids=ids).last_hidden_state
    return (hidden[0].mean(dim=0).double().numpy() - block.pca.mean) @ block.pca.components.T


@pytest.mark.full
def test_another_day_has_its_own_texts_and_nothing_later_is_read(history, tiny_llama, tmp_path, make_history):
    block = fitted(history, tiny_llama)
    then = block.encode(history, as_of=EARLIER)
    known = history.before(EARLIER)
    client = int(then.client_ids[3])
    np.testing.assert_allclose(
        vectors_of(then, [client])[0], naive(block, known, client, tmp_path), rtol=1e-3, atol=1e-4
    )
    now = block.encode(history)
    assert len(then) <= len(now)
    common = np.intersect1d(then.client_ids, now.client_ids)
    assert (vectors_of(then, common) != vectors_of(now, common)).any(axis=1).all()  # every event is older
    # The same from a log that ends there.
    cut = make_history()
    cut.events = {kind: table.filter(pl.col("timestamp") < EARLIER) for kind, table in cut.events.items()}
    short = cut.write(tmp_path / "cut")
    short.input.mkdir()
    shutil.copy(history.paths.relevant_clients, short.relevant_clients)
    assert same(block.encode(ChallengeData(short, submit=True, as_of=EARLIER)), then)


@pytest.mark.full
def test_a_day_after_the_last_event(history, tiny_llama):
    """Ages count on: the texts of tomorrow differ from today's although nothing happened."""
    block = fitted(history, tiny_llama)
    tomorrow = block.encode(history, as_of=history.as_of + timedelta(days=1))
    today = block.encode(history)
    assert tomorrow.client_ids.tolist() == today.client_ids.tolist()
    assert (tomorrow.vectors != today.vectors).any(axis=1).all()


def test_clients_without_a_text_have_no_row_and_no_folder_is_left(history, tiny_llama, forbid_reading):
    block = fitted(history, tiny_llama)
    left = sorted(history.paths.cache.iterdir())
    silent = np.setdiff1d(history.seen(), block.encode(history).client_ids)
    assert len(silent)
    forbid_reading()
    table = block.encode(history, np.append(silent, 999_999))
    assert table.vectors.shape == (0, 4)
    with pytest.raises(AssertionError, match="was run"):
        block.encode(history)
    assert sorted(history.paths.cache.iterdir()) == left


def test_other_weights_or_none_are_one_line(history, tiny_llama, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(tiny_llama, model)
    folder = tmp_path / "block"
    save(fitted(history, model), folder, {})
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.5}))
    with pytest.raises(UserError) as raised:
        load(folder)
    (line,) = raised.value.messages
    assert line.startswith(f"{folder}: fitted with other weights than those of model={model} in {model}; ")
    shutil.rmtree(model)
    with pytest.raises(UserError, match=rf"{folder}: the language model of this block is missing: .*no such folder"):
        load(folder)
