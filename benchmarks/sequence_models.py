"""Seconds per epoch, events per second and peak memory of training each sequence model.

    python benchmarks/sequence_models.py                 at full size
    python benchmarks/sequence_models.py sizes=demo      at the demo's

An estimate: each model runs in a process of its own, on the GPU where there is one, a step (forward, backward,
Adam) on the longest sequences to warm up, then a few on batches spread over the lengths; the epoch is their mean
time the batches. What Lightning adds to a step is not in it. ``gathered/s`` is how many events per second one process
puts into batches: what a GPU can be fed with by each of ``trainer.workers``. The floating point operations are those
of matrix products, recurrent layers and attention (causal attention counted as if it were not) in the first step, by
its events times the epoch's.
"""

import json
import statistics
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import torch
from numpy.random import default_rng
from omegaconf import DictConfig
from rich.table import Table

from benchmarks.steps import gather, load, operations_counter, spread, synchronise, take_step
from ubp.cli.command import command
from ubp.cli.config import Common
from ubp.cli.output import closing_line, peak_megabytes, say, show
from ubp.io.errors import UserError
from ubp.sequences.batches import length_buckets
from ubp.training.encode import to_device
from ubp.training.model import events_of, in_micro_batches


def measure(config: DictConfig) -> dict[str, float]:
    """Seconds, events and operations of an epoch, and the process's or the GPU's peak memory in MB."""
    data = Common.of(config).data()
    folder = data.paths.cache / "benchmarks" / str(config.model).replace("/", "_")
    first = load(config.model, data, folder, [f"preset={config.sizes}"])
    model, source, trainer = first.model, first.source, first.trainer
    cuda = torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    model.to(device).train()
    optimizers = model.optimizers(trainer.learning_rate)
    batches = length_buckets(source.lengths, trainer.batch_size, shuffle=False)  # the longest sequences first
    events, gathering = gather(source, batches)
    seconds, lengths, counter = [], [], operations_counter()
    for number, rows in enumerate([batches[0], *spread(batches, config.steps)]):
        started = time.perf_counter()
        batch = source.batch(rows, default_rng(number))
        cut = in_micro_batches(batch, trainer.micro_batch_on(device.type), model.on_host)
        micro_batches = [to_device(micro_batch, device) for micro_batch in cut]
        with nullcontext() if number else counter:  # the first one warms up
            take_step(model, optimizers, micro_batches, trainer)
        synchronise(device)
        seconds.append(time.perf_counter() - started)
        lengths.append(float(events_of(batch)))
    return {
        "epoch": statistics.fmean(seconds[1:]) * len(batches),
        "gathering": gathering,
        "events": events,
        "memory": torch.cuda.max_memory_allocated() / 1e6 if cuda else peak_megabytes(),
        "operations": counter.get_total_flops() / lengths[0] * events,
    }


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
    headings = ("model", "s per epoch", "events/s", "peak MB", "gathered/s", "events per epoch", "TFLOP per epoch")
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
