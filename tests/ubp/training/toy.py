"""Toy models and a source for tests of the training core; run as a script it is one rank of a ddp run."""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ubp.training.encode import encode
from ubp.training.fit import fit
from ubp.training.model import SequenceModel
from ubp.training.settings import TrainerSettings


@dataclass
class Numbers:
    """Sequences of floats; a row's are drawn from its number."""

    rows: int = 60

    @property
    def lengths(self):
        return np.arange(self.rows) % 7 + 1

    def batch(self, rows, generator=None):  # noqa: ARG002
        values = np.zeros((len(rows), 7), np.float32)
        for place, row in enumerate(rows):
            values[place, : self.lengths[row]] = np.random.default_rng(int(row)).normal(size=self.lengths[row])
        return {"values": torch.from_numpy(values), "rows": torch.from_numpy(np.asarray(rows))}


class Copier(SequenceModel):
    """Learns to copy its input through a bottleneck, with dropout so that randomness matters."""

    def __init__(self, fail_at: int | None = None, dropout: float = 0.3) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.width = 4
        self.down, self.up, self.dropout = nn.Linear(7, 4), nn.Linear(4, 7), nn.Dropout(dropout)
        self.steps, self.fail_at = 0, fail_at

    def loss(self, batch):
        if self.training:
            self.steps += 1
            if self.steps == self.fail_at:
                raise KeyboardInterrupt
        return ((self.up(self.dropout(torch.tanh(self.down(batch["values"])))) - batch["values"]) ** 2).mean()

    def encode(self, batch):
        # The row's number rides along, so that a test sees which rows were encoded and where they landed.
        return torch.cat([batch["rows"][:, None].float(), self.down(batch["values"])[:, 1:]], dim=1)


class Recaller(Copier):
    """Has a table of rows whose gradients are sparse, and is judged by a score that is better when larger."""

    monitor = ("closeness", "max")

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(60, 7, sparse=True)

    def loss(self, batch):
        return ((self.table(batch["rows"]) + self.up(self.down(batch["values"])) - batch["values"]) ** 2).mean()

    def validation_scores(self, batch):
        return {"closeness": -self.loss(batch)}

    def optimizers(self, learning_rate):
        if not self.table.sparse:
            return super().optimizers(learning_rate)
        dense = [weight for name, weight in self.named_parameters() if not name.startswith("table")]
        return [torch.optim.Adam(dense, learning_rate), torch.optim.SparseAdam(self.table.parameters(), learning_rate)]


class OnNccl(Recaller):
    """Refuses a sparse gradient as NCCL does, which no machine without GPUs has."""

    def __init__(self) -> None:
        super().__init__()
        for weight in self.parameters():
            weight.register_post_accumulate_grad_hook(self._refuse_sparse)

    def _refuse_sparse(self, weight):
        if weight.grad.is_sparse:
            raise RuntimeError("Tensors must be CUDA and dense")


def settings(**changes):
    return TrainerSettings(**({"max_epochs": 4, "patience": 4, "batch_size": 8, "accelerator": "cpu"} | changes))


if __name__ == "__main__":
    folder, model = Path(sys.argv[1]), {"copier": Copier, "nccl": OnNccl}[sys.argv[2]]()
    source = Numbers(53)
    trained = fit(model, source, settings(devices=2, strategy="ddp", max_epochs=2), folder, seed=1)
    if trained.trainer.is_global_zero:
        np.save(folder / "vectors.npy", encode(trained.model, source, trained.runtime))
