"""A tiny history with relevant clients, and a tiny random Llama with a tokeniser of its own, all offline."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from LLM.texts import WORDS
from ubp.data.paths import DataPaths

WINDOW = 96
UNKNOWN, PADDING = "<unk>", "<pad>"


def _tokeniser(**special: str) -> PreTrainedTokenizerFast:
    fields = ("category", "price", "sku", "url", "query", "name")
    words = [UNKNOWN, *special.values(), *map(str, range(10)), *WORDS.values(), *fields]
    tokeniser = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, unk_token=UNKNOWN))
    tokeniser.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Digits(individual_digits=True)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokeniser, unk_token=UNKNOWN, model_max_length=WINDOW, **special)


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory) -> Path:
    """A causal model without a padding token, as SmolLM2 and Llama are: its folder."""
    folder = tmp_path_factory.mktemp("models") / "llama"
    tokeniser = _tokeniser()
    assert tokeniser.pad_token is None
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokeniser),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=WINDOW,
        bos_token_id=None,
        eos_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokeniser.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory) -> Path:
    """A model that reads both ways: its folder."""
    folder = tmp_path_factory.mktemp("models") / "bert"
    tokeniser = _tokeniser(pad_token=PADDING)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokeniser),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=WINDOW,
        pad_token_id=tokeniser.pad_token_id,
    )
    BertModel(config).save_pretrained(folder)
    tokeniser.save_pretrained(folder)
    return folder


@pytest.fixture
def paths(make_history, tmp_path) -> DataPaths:
    """The tiny history as ``submit=True`` reads it; two thirds of its clients are relevant, and one unknown."""
    history = make_history()
    paths = history.write(tmp_path / "data")
    clients = np.unique(np.concatenate([table["client_id"].to_numpy() for table in history.events.values()]))
    paths.input.mkdir()
    np.save(paths.relevant_clients, np.append(clients[np.arange(len(clients)) % 3 > 0], 999_999))
    return paths
