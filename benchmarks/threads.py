"""One thread against several, quiet and beside a busy neighbour: where `trainer.threads` changes from one to all.

    python benchmarks/threads.py
    python benchmarks/threads.py threads=2 "layers=[[recurrent,32,128]]"

Forward and back through a recurrent layer (`gru_autoencoder.gru.StackedGru`, 32 time steps) and through a
transformer's feed-forward layers, the median of several; each number of threads in turn, so that both meet the
same machine.
"""

import statistics
import time

import torch
from omegaconf import DictConfig
from rich.table import Table
from torch import Tensor, nn

from benchmarks.measuring import busy
from gru_autoencoder.gru import StackedGru
from ubp.cli.command import command
from ubp.cli.config import Common
from ubp.cli.output import closing_line, show
from ubp.training.kernels import limited_threads

_TIME = 32
_LIMIT = 600.0  # seconds that a busy process lives at the most


class Recurrent(nn.Module):
    """A recurrent layer as the autoencoders have it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer = StackedGru(width, width, 1, 0.0)

    def forward(self, x: Tensor) -> Tensor:
        """Outputs [rows, time, width]."""
        return self.layer(x.transpose(0, 1))[-1].transpose(0, 1)  # type: ignore[no-any-return]


def feed_forward(width: int) -> nn.Module:
    """The two layers of a transformer's block that hold most of its weights."""
    return nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))


def product(kind: str, rows: int, width: int) -> int:
    """Multiply-adds of one product: see `ubp.training.model.SequenceModel.product`."""
    return rows * 3 * width**2 if kind == "recurrent" else rows * _TIME * 4 * width**2


def seconds(module: nn.Module, x: Tensor, threads: int) -> float:
    """Of one way forward and back."""
    with limited_threads(threads):
        started = time.perf_counter()
        module(x).sum().backward()
        return time.perf_counter() - started


@command("scripts", "threads")
def main(config: DictConfig) -> None:
    several = config.threads or torch.get_num_threads()
    columns = [f"{count} thread{'s' * (count > 1)}{where}" for where in ("", ", busy") for count in (1, several)]
    table = Table("layer", "rows", "width", "million multiply-adds", *columns, title="milliseconds, forward and back")
    for kind, rows, width in config.layers:
        module = Recurrent(width) if kind == "recurrent" else feed_forward(width)
        x = torch.randn(rows, _TIME, width)
        figures = []
        for neighbours in (0, config.neighbours):
            with busy(neighbours, _LIMIT):
                runs = [[seconds(module, x, threads) for threads in (1, several)] for _ in range(config.repeats + 1)]
            figures += [1000 * statistics.median(run[place] for run in runs[1:]) for place in (0, 1)]
        size = f"{product(kind, rows, width) / 1e6:.1f}"
        table.add_row(kind, str(rows), str(width), size, *(f"{figure:.1f}" for figure in figures))
    show(table)
    closing_line("threads measured", Common.of(config).paths.root)


if __name__ == "__main__":
    main()
