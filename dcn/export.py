"""The deep and cross network for ONNX: other blocks' vectors in, its profile out."""

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt
import polars as pl
from torch import Tensor, nn

from dcn.model import Dcn, Input
from ubp.blocks.fitted import FittedBlock
from ubp.data.history import ChallengeData
from ubp.io.errors import UserError
from ubp.training.export import ROWS, Encoder
from ubp.training.export import Input as ExportedInput
from ubp.training.model import Source


class DcnEncoder(nn.Module):
    """See `ubp.training.export.Encoder.module`: each block's vectors, float32 [rows, columns]."""

    def __init__(self, model: Dcn) -> None:
        super().__init__()
        self.model, self.names = model, tuple(model.inputs)

    def forward(self, inputs: list[Tensor]) -> Tensor:
        """See `ubp.training.export.Encoder.module`."""
        return self.model.encode(dict(zip(self.names, inputs, strict=True)))


def exported(
    model: Dcn,
    blocks: Mapping[str, FittedBlock],
    source: Callable[[ChallengeData, npt.NDArray[np.int64]], Source],
) -> Encoder:
    """The network as an encoder.

    Args:
        model: the trained networks.
        blocks: whose vectors they read, by name.
        source: of the blocks' vectors.

    Raises:
        UserError: numbers enter by their quantiles.
    """
    entering = {name: module for name, module in model.inputs.items() if isinstance(module, Input)}
    if any(module.embedding is not None for module in entering.values()):
        raise UserError("dcn: cannot be exported: numbers enter by quantiles, which torch's exporter does not look up")
    inputs = tuple(
        ExportedInput(
            name,
            "float32",
            (ROWS, len(module.mean)),
            f"the vector of the block {name}, as scripts/encode.py writes it",
            name if blocks[name].descriptions() else None,
        )
        for name, module in entering.items()
    )
    described = {name: block.descriptions() for name, block in blocks.items()}
    tables = {
        name: pl.DataFrame({"column": list(columns), "description": list(columns.values())})
        for name, columns in described.items()
        if columns
    }
    events = ("no events: the vectors of other blocks, as of the same day",)
    names = [each.name for each in inputs]
    return Encoder(
        DcnEncoder(model), inputs, model.width, events, tables, source, lambda batch: [batch[name] for name in names]
    )
