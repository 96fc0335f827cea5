"""Seconds an epoch, events a second and peak memory of training each sequence model.

    python benchmarks/sequence_models.py                 at full size
    python benchmarks/sequence_models.py sizes=demo      at the demo's

An estimate: each model runs in a process of its own, on the GPU where there is one, a few steps (forward,
backward, Adam) on batches spread over the lengths; the epoch is the median time a client times the clients.
What Lightning adds to a step is not in it. The floating point operations are those of the matrix products and
convolutions of one step as torch counts them, times the epoch's events over the step's: what the epoch takes of
a faster machine is no less than that over its rate. ``gathered/s`` is how many events a second one process puts
into batches: what a GPU can be fed with by each of ``trainer.workers``.
"""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, open_dict
from rich.table import Table
from torch.optim import Optimizer
from torch.utils.flop_counter import FlopCounterMode

from gru_autoencoder.recipe import AutoencoderRecipe
from next_sku.next_sku_embeddings import NextSkuRecipe
from next_url.next_url_embeddings import NextUrlRecipe
from ubp.config import Common, composed, parse
from ubp.errors import UserError
from ubp.paths import CONFIGS
from ubp.run import closing_line, command, peak_megabytes, say, show
from ubp.sequences import length_buckets
from ubp.training import LENGTHS, Batch, Prepared, Recipe, SequenceModel, TrainerSettings, losses_in_pieces

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
    batches = length_buckets(source.lengths, trainer.batch_size, seed=0)
    seconds, gathering, events, counter = [], [], [], FlopCounterMode(display=False)
    for number in range(config.steps + 1):
        rows = batches[number * len(batches) // (config.steps + 1)]
        started = time.perf_counter()
        gathered = source.batch(rows, np.random.default_rng(number))
        gathering.append((time.perf_counter() - started) / len(rows))
        batch = {name: values.to(device) for name, values in gathered.items()}
        with nullcontext() if number else counter:  # the first one warms up
            take_step(model, optimizers, batch, trainer.piece)
        if cuda:
            torch.cuda.synchronize()
        seconds.append((time.perf_counter() - started) / len(rows))
        events.append(float(batch[LENGTHS].float().mean()))
    clients = len(source.lengths)
    an_epoch = statistics.fmean(events) * clients
    return {
        "epoch": statistics.median(seconds[1:]) * clients,
        "gathering": statistics.median(gathering[1:]) * clients,
        "events": an_epoch,
        "memory": torch.cuda.max_memory_allocated() / 1e6 if cuda else peak_megabytes(),
        "operations": counter.get_total_flops() / (events[0] * len(batches[0])) * an_epoch,
    }


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
        whole = f"{figures['events']:,.0f}", f"{figures['operations'] / 1e12:.1f}"
        costs = f"{figures['epoch']:.1f}", f"{speed:,.0f}", f"{figures['memory']:,.0f}", f"{fed:,.0f}"
        table.add_row(name.split("/")[1], *costs, *whole)
    show(table)
    closing_line("sequence models measured", Common.of(config).paths.root)


if __name__ == "__main__":
    main()
