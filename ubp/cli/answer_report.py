"""How well a trained model answers for rows that were held out: of the newest window, unless the log is short."""

import torch
from rich.table import Table
from torch import Tensor

from ubp.cli.output import show
from ubp.training.answers import Answering, mean_auroc
from ubp.training.fit import Trained
from ubp.training.model import Model, Source
from ubp.training.snapshot_source import BASKETS, DAYS, LABELS


def report(trained: Trained[Model], model: Answering, source: Source) -> dict[str, dict[str, float]]:
    """Print the mean AUROC over each group's labels on the held-out rows; return it.

    Args:
        trained: how the training went.
        model: the one that was trained.
        source: whose rows were held out.

    Returns:
        ``auroc``: by group of labels and yes-or-no question; labels that all or none of the rows have are left out,
        and groups without any other.
    """
    answers: dict[str, list[Tensor]] = {}
    wanted: dict[str, list[Tensor]] = {}
    for batch in trained.held_out_batches(source):
        labels = model.by_group(batch[LABELS])
        for name, found in model.answers(batch).items():
            answers.setdefault(name, []).append(found.cpu())
            wanted.setdefault(name, []).append((labels[name] if name in labels else batch[name][:, None]).cpu())
    scores = {}
    for name, parts in answers.items():
        if name not in (BASKETS, DAYS) and (score := mean_auroc(torch.cat(parts), torch.cat(wanted[name]))) is not None:
            scores[name] = score
    held_out, kind = trained.parts.held_out, trained.parts.kind
    table = Table("asked", "labels", "AUROC", title=f"{len(held_out):,} held-out {kind}")
    for name, score in scores.items():
        table.add_row(name, f"{model.groups.get(name, 1):,}", f"{score:.4f}")
    show(table)
    return {"auroc": scores}
