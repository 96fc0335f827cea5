"""How well a trained network answers for rows that were held out: of the newest window, unless the log is short."""

from typing import Final

import numpy as np
import torch
from rich.table import Table
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc

from dcn.model import Dcn
from ubp.cli.output import show
from ubp.training.fit import Trained
from ubp.training.snapshot_source import BASKETS, DAYS, LABELS, SnapshotSource

_LEAST: Final = 1  # rows with and without a label that an AUROC needs


def report(trained: Trained[Dcn], source: SnapshotSource) -> dict[str, dict[str, float]]:
    """Print the mean AUROC over each group's labels on the held-out rows; return it.

    Returns:
        ``auroc``: by group of labels and yes-or-no question; labels that all or none of the rows have are left out,
        and groups without any other.
    """
    answers: dict[str, list[Tensor]] = {}
    wanted: dict[str, list[Tensor]] = {}
    for batch in trained.held_out_batches(source):
        labels = trained.model.by_group(batch[LABELS])
        for name, found in trained.model.answers(batch).items():
            answers.setdefault(name, []).append(found.cpu())
            wanted.setdefault(name, []).append((labels[name] if name in labels else batch[name][:, None]).cpu())
    scores = {}
    for name, parts in answers.items():
        if name not in (BASKETS, DAYS) and (score := mean_auroc(torch.cat(parts), torch.cat(wanted[name]))) is not None:
            scores[name] = score
    held_out, kind = trained.parts.held_out, trained.parts.kind
    table = Table("asked", "labels", "AUROC", title=f"{len(held_out):,} held-out {kind}")
    for name, score in scores.items():
        table.add_row(name, f"{trained.model.groups.get(name, 1):,}", f"{score:.4f}")
    show(table)
    return {"auroc": scores}


def mean_auroc(answers: Tensor, wanted: Tensor) -> float | None:
    """Over the labels that some rows have and some have not; None where there is no such label.

    Args:
        answers: float [rows, labels].
        wanted: 0, 1, or NaN for a row without an answer: [rows, labels].
    """
    found = []
    for answer, label in zip(answers.T, wanted.T.float(), strict=True):
        real = ~label.isnan()
        positive = int(label[real].sum())
        if min(positive, int(real.sum()) - positive) >= _LEAST:
            found.append(float(binary_auroc(answer[real], label[real].int())))
    return float(np.mean(found)) if found else None
