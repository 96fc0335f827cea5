"""How well held-out sequences come back from their vectors: shares of right tokens, and examples in words."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from rich.table import Table
from torch import Tensor

from gru_autoencoder.model import GruAutoencoder
from gru_autoencoder.tokens import TokenLabel, TokenSource
from ubp.cli.output import show
from ubp.data.schema import Token
from ubp.io.errors import require_positive
from ubp.training.encode import device_batches
from ubp.training.fit import Trained
from ubp.training.model import LENGTHS, Batch, Rows


@dataclass
class ReportSettings:
    """How many held-out sequences are written without teacher forcing, and how many of them are shown."""

    written: int
    shown: int

    def __post_init__(self) -> None:
        """Refuse numbers that make no sense.

        Raises:
            UserError: nothing to write.
        """
        require_positive(self, "report", "written")


def teacher_forced(trained: Trained[GruAutoencoder], source: TokenSource) -> dict[str, float]:
    """The share of held-out tokens that come back, the decoder seeing the true ones before them."""
    hits: dict[str, list[Tensor]] = {feature.name: [] for feature in trained.model.features}
    for batch in trained.held_out_batches(source):
        for name, right in trained.model.teacher_forced_hits(batch).items():
            hits[name].append(right.float().cpu())
    return {name: float(torch.cat(rights).mean()) for name, rights in hits.items()}


def written_back(trained: Trained[GruAutoencoder], source: TokenSource, rows: Rows) -> tuple[Batch, dict[str, Tensor]]:
    """True sequences and what the decoder writes from their states alone: int64 [rows, time] a feature."""
    whole = device_batches(trained.model, source, [rows], trained.runtime)
    ((true, written),) = [(batch, trained.model.write(batch, int(batch[LENGTHS].max()) + 1)) for _, batch in whole]
    return {name: ids.cpu() for name, ids in true.items()}, {name: ids.cpu() for name, ids in written.items()}


def free_running(batch: Batch, written: Mapping[str, Tensor]) -> dict[str, float]:
    """The share of true tokens that come back where there is one, the decoder reading its own words."""
    steps = next(iter(written.values())).shape[1]
    real = torch.arange(steps) <= batch[LENGTHS][:, None]  # the events and the end token
    shares = {}
    for name, ids in written.items():
        true = batch[name][:, 1:]
        shares[name] = float((ids == true)[real & (true != Token.NONE)].float().mean())
    return shares


def report(
    trained: Trained[GruAutoencoder], source: TokenSource, labels: Mapping[str, TokenLabel], settings: ReportSettings
) -> dict[str, dict[str, float]]:
    """Print how well held-out sequences come back, some of them in words; return the accuracies."""
    rows = trained.parts.held_out
    forced = teacher_forced(trained, source)
    batch, written = written_back(trained, source, np.random.default_rng(0).permutation(rows)[: settings.written])
    free = free_running(batch, written)
    table = Table("feature", "teacher-forced", "free-running", title=f"accuracy on {len(rows):,} held-out clients")
    for name in forced:
        table.add_row(name, f"{forced[name]:.3f}", f"{free[name]:.3f}")
    show(table)
    show(_examples(batch, written, labels, settings.shown))
    return {"teacher_forced": forced, "free_running": free}


_WORDS = 6  # tokens of a sequence that are shown, and features of a token


def _examples(batch: Batch, written: Mapping[str, Tensor], labels: Mapping[str, TokenLabel], shown: int) -> Table:
    table = Table("", "first events", "last events", title="held-out sequences, true and written back")
    for row in range(min(shown, len(batch[LENGTHS]))):
        length = int(batch[LENGTHS][row])
        true = {name: batch[name][row, 1 : length + 1] for name in written}
        back = {name: ids[row, :length] for name, ids in written.items()}
        for what, tokens in (("true", true), ("written", back)):
            words = _words(tokens, labels)
            table.add_row(what, "\n".join(words[: _WORDS // 2]), "\n".join(words[-_WORDS // 2 :]))
        table.add_section()
    return table


def _words(tokens: Mapping[str, Tensor], labels: Mapping[str, TokenLabel]) -> list[str]:
    """Each token in words, its first features."""
    names = list(tokens)[:_WORDS]
    columns = [[labels[name].of(int(token)) for token in tokens[name]] for name in names]
    return [", ".join(words) for words in zip(*columns, strict=True)]
