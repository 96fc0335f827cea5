"""Seconds an epoch, events a second and peak memory of training each sequence model.

    python benchmarks/sequence_models.py                 at full size
    python benchmarks/sequence_models.py sizes=demo      at the demo's

An estimate: each model runs in a process of its own, on the GPU where there is one, a step (forward, backward,
Adam) on the longest sequences to warm up, then a few on batches spread over the lengths; the epoch is their mean
time the batches. What Lightning adds to a step is not in it. ``gathered/s`` is how many events a second one process
puts into batches: what a GPU can be fed with by each of ``trainer.workers``. The floating point operations are those
of matrix products and attention (causal attention counted as if it were not) in the first step, by its events times
the epoch's; counted on a CPU alone.
"""

import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from numpy.random import default_rng
from omegaconf import DictConfig, open_dict
from rich.table import Table
from torch._ops import OpOverloadPacket
from torch.optim import Optimizer
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from gru_autoencoder.recipe import AutoencoderRecipe
from next_sku.recipe import NextSkuRecipe
from next_url.recipe import NextUrlRecipe
from ubp.config import Common, composed, parse
from ubp.errors import UserError
from ubp.paths import CONFIGS
from ubp.run import closing_line, command, peak_megabytes, say, show
from ubp.sequences import length_buckets
from ubp.training import (
    LENGTHS,
    Batch,
    Prepared,
    Recipe,
    Rows,
    SequenceModel,
    Source,
    TrainerSettings,
    losses_in_pieces,
)

_aten = torch.ops.aten


def _counted_as(operation: OpOverloadPacket[Any, Any]) -> Callable[..., int]:
    """The number of operations of a like one, by the same arguments."""

    def count(*arguments: Any, out_shape: object, **options: Any) -> int:  # noqa: ANN401, ARG001 (torch's to choose)
        return int(flop_registry[operation](*arguments, **options))

    return count


# What torch's counter does not know.
UNCOUNTED = {
    _aten.addmm_: _counted_as(_aten.addmm),
    _aten._scaled_dot_product_flash_attention_for_cpu: _counted_as(_aten._scaled_dot_product_flash_attention),
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: _counted_as(
        _aten._scaled_dot_product_flash_attention_backward
    ),
}

RECIPES: Mapping[str, Callable[[DictConfig], Recipe[Any]]] = {
    "gru_autoencoder": AutoencoderRecipe.of,
    "next_sku": NextSkuRecipe.of,
    "next_url": NextUrlRecipe.of,
}


def load(config: DictConfig) -> tuple[Prepared[Any], TrainerSettings]:
    """The model that ``config.model`` names with its sequences, and how it is trained."""
    folder, name = str(config.model).split("/")
    own = composed(CONFIGS / folder, name, [f"preset={config.sizes}"])
    with open_dict(own):
        own.logger = {}
    return RECIPES[folder](own).prepare(Common.of(config).data(), seed=0), parse(TrainerSettings, own, at="trainer")


def measure(config: DictConfig) -> dict[str, float]:
    """Seconds, events and operations of an epoch, and the process's or the GPU's peak memory in MB."""
    prepared, trainer = load(config)
    model, source = prepared.model, prepared.taught
    cuda = torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    model.to(device).train()
    optimizers = model.optimizers(trainer.learning_rate)
    batches = length_buckets(source.lengths, trainer.batch_size, shuffle=False)  # the longest sequences first
    events, gathering = gather(source, batches)
    seconds, lengths, counter = [], [], FlopCounterMode(display=False, custom_mapping=UNCOUNTED)
    for number, rows in enumerate([batches[0], *spread(batches, config.steps)]):
        started = time.perf_counter()
        batch = {name: values.to(device) for name, values in source.batch(rows, default_rng(number)).items()}
        with nullcontext() if number else counter:  # the first one warms up
            take_step(model, optimizers, batch, trainer.piece)
        if cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
        lengths.append(float(batch[LENGTHS].sum()))
    return {
        "epoch": statistics.fmean(seconds[1:]) * len(batches),
        "gathering": gathering,
        "events": events,
        "memory": torch.cuda.max_memory_allocated() / 1e6 if cuda else peak_megabytes(),
        "operations": math.nan if cuda else counter.get_total_flops() / lengths[0] * events,
    }


def spread(batches: Sequence[Rows], count: int) -> list[Rows]:
    """So many of the batches, at even distances."""
    return [batches[(2 * number + 1) * len(batches) // (2 * count)] for number in range(count)]


def gather(source: Source, batches: Sequence[Rows]) -> tuple[float, float]:
    """Events of an epoch and the seconds that one process takes to gather them, from up to 200 of its batches."""
    chosen = spread(batches, min(len(batches), 200))
    started = time.perf_counter()
    events = sum(float(source.batch(rows, default_rng(number))[LENGTHS].sum()) for number, rows in enumerate(chosen))
    seconds = time.perf_counter() - started
    return events * len(batches) / len(chosen), seconds * len(batches) / len(chosen)


def take_step(model: SequenceModel, optimizers: list[Optimizer], batch: Batch, piece: int | None) -> None:
    """Forward, backward, Adam; in bfloat16 on a GPU."""
    for optimizer in optimizers:
        optimizer.zero_grad()
    with torch.autocast("cuda", torch.bfloat16, enabled=torch.cuda.is_available()):
        for loss, _ in losses_in_pieces(model, batch, piece):
            loss.backward()  # type: ignore[no-untyped-call]
    for optimizer in optimizers:
        optimizer.step()


def measure_apart(name: str, config: DictConfig) -> dict[str, float]:
    """The same in a process of its own.

    Raises:
        UserError: it failed.
    """
    words = [f"model={name}", f"steps={config.steps}", f"sizes={config.sizes}", f"data_path={config.data_path}"]
    line = [sys.executable, str(Path(__file__).resolve()), *words]
    done = subprocess.run(line, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        raise UserError(f"{name}: {(done.stderr.strip().splitlines() or ['failed'])[-1]}")
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


@command("scripts", "sequence_models")
def main(config: DictConfig) -> None:
    if config.model:
        say(json.dumps(measure(config)))
        return
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    headings = ("model", "s an epoch", "events/s", "peak MB", "gathered/s", "events an epoch", "TFLOP an epoch")
    table = Table(*headings, title=f"training, {config.sizes} size, {where}")
    for name in config.models:
        figures = measure_apart(name, config)
        speed, fed = (figures["events"] / figures[step] for step in ("epoch", "gathering"))
        whole = f"{figures['events']:,.0f}", f"{figures['operations'] / 1e12:,.1f}"
        costs = f"{figures['epoch']:.1f}", f"{speed:,.0f}", f"{figures['memory']:,.0f}", f"{fed:,.0f}"
        table.add_row(name.split("/")[1], *costs, *whole)
    show(table)
    closing_line("sequence models measured", Common.of(config).paths.root)


if __name__ == "__main__":
    main()
