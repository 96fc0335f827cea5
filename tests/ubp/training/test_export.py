"""Encoders for ONNX: windows without shapes that depend on values, against the models' own; what is refused."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.ubp.blocks.toy import Purchases
from ubp.data.schema import EVENT_TYPES, FIRST_TOKEN
from ubp.io.errors import UserError
from ubp.sequences.vocabulary import Vocabulary
from ubp.training import export
from ubp.training.export import (
    Exportable,
    NextEventEncoder,
    encoder_of,
    event_table,
    gathered,
    vocabulary_table,
    window_places,
)
from ubp.training.model import LENGTHS
from ubp.training.next_event import NextEventModel
from ubp.training.nn import CausalTransformer
from ubp.training.windows import AGE, FIRST, LAST, SUM, Pooling

WINDOW = 4


class Numbers(NextEventModel):
    """Reads one number an event."""

    def __init__(self, pooling):
        super().__init__(8, WINDOW, pooling)
        self.transformer = CausalTransformer(8, 2, 2, WINDOW, 0.0, 0.0)
        self.table = torch.nn.Embedding(10, 8)

    def read(self, batch, time):
        return self.table(batch["number"][:, :time])

    def loss(self, batch):
        raise NotImplementedError


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return Numbers(Pooling(LAST, 20, None)).eval()


POOLINGS = {"last": Pooling(LAST, 20, None), "sum": Pooling(SUM, 20, None), "half-life": Pooling(SUM, 20, 3.0)}


@pytest.mark.parametrize("pooling", POOLINGS.values(), ids=POOLINGS)
@settings(max_examples=30, deadline=None)
@given(lengths=st.lists(st.integers(1, 3 * WINDOW + 1), min_size=1, max_size=4), padding=st.integers(0, 3))
def test_vectors_are_those_of_the_model_whatever_the_lengths_and_the_padding(model, pooling, lengths, padding):
    model.pooling = pooling
    rows, time = len(lengths), max(lengths) + padding
    rng = torch.Generator().manual_seed(time)
    batch = {
        "number": torch.randint(0, 10, (rows, time), generator=rng),
        AGE: torch.rand(rows, time, generator=rng) * 9,
        LENGTHS: torch.tensor(lengths),
    }
    with torch.inference_mode():
        wanted = model.encode({**batch, FIRST: torch.zeros(rows, dtype=torch.int64)})
        found = NextEventEncoder(model, ["number", AGE, LENGTHS])([batch["number"], batch[AGE], batch[LENGTHS]])
    np.testing.assert_allclose(found.numpy(), wanted.numpy(), rtol=1e-4, atol=1e-5)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=5), st.integers(1, 9), st.integers(0, 4))
def test_windows_are_cut_from_the_end_and_hold_each_event_once(lengths, window, padding):
    places, ends = window_places(torch.tensor(lengths), max(lengths) + padding, window)
    for length, row, row_ends in zip(lengths, places.tolist(), ends.tolist(), strict=True):
        held = [[place for place in part if place < end] for part, end in zip(row, row_ends, strict=True)]
        events = list(range(length))
        wanted = []
        while events:
            wanted.append(events[-window:])
            events = events[: len(events) - len(wanted[-1])]
        assert held[: len(wanted)] == wanted
        assert not any(held[len(wanted) :])


def test_what_stands_at_a_place_is_gathered():
    values = torch.arange(6.0).reshape(1, 6, 1)
    places, _ = window_places(torch.tensor([6]), 6, 4)
    assert gathered(values, places)[:, :, 0].tolist() == [[2, 3, 4, 5], [0, 1, 2, 3]]


def test_tables_say_which_value_has_which_token():
    table = vocabulary_table(Vocabulary(np.array([70, 9]), np.array([5, 3])))
    assert table.rows() == [(70, FIRST_TOKEN), (9, FIRST_TOKEN + 1)]
    assert dict(event_table().iter_rows()) == {str(kind): FIRST_TOKEN + kind.code for kind in EVENT_TYPES}


def test_blocks_that_cannot_be_exported_say_why():
    block = Purchases(np.ones(3, np.float32))
    with pytest.raises(UserError, match="name=a: cannot be exported: its vectors are worked out from tables"):
        encoder_of("a", block)

    class Odd(Purchases):
        not_exported = "it is odd"

    with pytest.raises(UserError, match="name=a: cannot be exported: it is odd"):
        encoder_of("a", Odd(np.ones(3, np.float32)))
    assert not isinstance(block, Exportable)


def test_a_missing_library_is_one_line(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(UserError, match=r"onnxruntime is missing: pip install -e \.\[export\]"):
        export.module_named("onnxruntime")
