"""The autoencoder's encoder for ONNX gives the model's vectors, whatever the windows and the padding."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gru_autoencoder.export import AutoencoderEncoder, from_batch
from gru_autoencoder.model import GruAutoencoder, Reading
from ubp.training.model import LENGTHS
from ubp.training.nn import Feature
from ubp.training.windows import LAST, SUM

FEATURES = [Feature("a", 9, 4), Feature("b", 7, 3)]


@pytest.fixture(scope="module")
def models():
    torch.manual_seed(1)
    made = {profile: GruAutoencoder(FEATURES, "concat", 6, 2, 0.0, reading=Reading(4, 20, profile)) for profile in (LAST, SUM)}  # noqa: E501  # fmt: skip
    return {profile: model.eval() for profile, model in made.items()}


@pytest.mark.parametrize("profile", [LAST, SUM])
@settings(max_examples=40, deadline=None)
@given(lengths=st.lists(st.integers(1, 14), min_size=1, max_size=4), padding=st.integers(0, 3))
def test_vectors_are_those_of_the_model(models, profile, lengths, padding):
    model, rows, time = models[profile], len(lengths), max(lengths) + 2 + padding
    rng = torch.Generator().manual_seed(time)
    batch = {feature.name: torch.randint(0, feature.ids, (rows, time), generator=rng) for feature in FEATURES}
    batch[LENGTHS] = torch.tensor(lengths)
    with torch.inference_mode():
        found = AutoencoderEncoder(model)(from_batch(model, batch))
        wanted = model.encode(batch)
    np.testing.assert_allclose(found.numpy(), wanted.numpy(), rtol=1e-4, atol=1e-6)
