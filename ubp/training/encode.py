"""Sequences in, vectors out, by a trained model."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from ubp.sequences.batches import length_buckets
from ubp.training.fit import Trained
from ubp.training.kernels import limited_threads
from ubp.training.model import Batch, Model, Rows, Source


def device_batches(trained: Trained[Model], source: Source, batches: Sequence[Rows]) -> Iterator[tuple[Rows, Batch]]:
    """Rows and their batch on the model's device, the model ready to be asked: no gradients, no dropout."""
    device = trained.trainer.strategy.root_device
    model = trained.model.to(device).eval()
    precision = trained.trainer.precision_plugin
    with limited_threads(trained.settings.threads), torch.inference_mode(), precision.forward_context():
        for rows in batches:
            yield rows, to_device(model.on_host(source.batch(rows)), device)
    model.cpu()


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch on a device; a GPU copies while it computes what it was given before."""
    if device.type != "cuda":
        return {name: values.to(device) for name, values in batch.items()}
    return {name: values.pin_memory().to(device, non_blocking=True) for name, values in batch.items()}


def held_out_batches(trained: Trained[Model], source: Source) -> Iterator[Batch]:
    """The sequences kept apart, in the order of their rows, as `device_batches` gives them."""
    rows = trained.parts.held_out
    for _, batch in device_batches(trained, source, np.array_split(rows, -(-len(rows) // trained.settings.batch_size))):
        yield batch


def encode(trained: Trained[Model], source: Source, folder: Path) -> npt.NDArray[np.float32]:
    """The vectors of all sequences, by the best weights.

    Sequences are batched by length, so that padding is small; a vector depends on its own sequence alone.
    With several devices each rank encodes a part of the sequences, each sequence once.

    Args:
        trained: what `fit` gave.
        source: the sequences.
        folder: where ranks leave their parts.

    Returns:
        float32 [rows, width] in the order of the rows; on ranks other than the first an empty one.
    """
    trainer, model = trained.trainer, trained.model
    rank, world = trainer.global_rank, trainer.world_size
    batches = length_buckets(source.lengths, trained.settings.batch_size, shuffle=False, rank=rank, world=world)
    vectors = np.empty((len(source.lengths), model.width), np.float32)
    for rows, batch in device_batches(trained, source, batches):
        vectors[rows] = model.encode(batch).float().cpu().numpy()
    if world == 1:
        return vectors
    mine = np.sort(np.concatenate(batches)) if batches else np.empty(0, np.int64)
    np.savez(folder / f"part-{rank}.npz", rows=mine, vectors=vectors[mine])
    trainer.strategy.barrier("encoded")
    if rank > 0:
        return np.empty((0, model.width), np.float32)
    for number in range(world):
        part_file = folder / f"part-{number}.npz"
        with np.load(part_file) as part:
            vectors[part["rows"]] = part["vectors"]
        part_file.unlink()
    return vectors
