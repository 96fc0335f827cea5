"""How profiles are scored: the judge and smaller probes."""

from dataclasses import dataclass
from math import ceil
from typing import Final

from ubp.io.errors import require, require_positive

FEW_STEPS: Final = 36  # below which smaller models do not rank as the judge does: docs/judge.md, "The quick judge"


@dataclass(frozen=True)
class Probe:
    """How profiles are scored; the defaults are the judge's.

    Attributes:
        name: as it stands in tables and scores.
        width: width of the residual stream.
        hidden: hidden units of each block.
        epochs: the best of them counts.
        batch_size: rows per step, for training and for scoring.
        learning_rate: of AdamW.
        seeds: one run each; their mean counts.
        like_width: the width whose training a smaller model imitates: weights whose inputs are as many as the width
            learn at ``learning_rate`` times ``like_width / width``, so that a step changes what they put out by as
            much as there (Yang et al. 2022, arXiv 2203.03466, table 3 for Adam); None: all at ``learning_rate``.
        side_by_side: on a CPU, one run a core instead of all cores on one run: faster for small models, and the
            same scores whatever the number of cores.

    Raises:
        UserError: a number makes no sense.
    """

    name: str = "judge"
    width: int = 2048
    hidden: int = 4096
    epochs: int = 3
    batch_size: int = 128
    learning_rate: float = 0.001
    seeds: tuple[int, ...] = (1278,)
    like_width: int | None = None
    side_by_side: bool = False

    def __post_init__(self) -> None:
        require_positive(self, "probe", "width", "hidden", "epochs", "batch_size")
        require_positive(self, "probe", *([] if self.like_width is None else ["like_width"]))
        seeds = list(self.seeds)
        require(
            len(seeds) > 0 and len(set(seeds)) == len(seeds), "probe.seeds", seeds, "one seed or several, each once"
        )

    @property
    def rate_of_the_width(self) -> float:
        """The learning rate of weights whose inputs are as many as the width."""
        return self.learning_rate * (self.like_width or self.width) / self.width

    def doubt(self, clients: int) -> str | None:
        """A line that says why its scores are to be doubted, where they are.

        Args:
            clients: that are scored.
        """
        steps = self.epochs * ceil(clients / self.batch_size)
        if self.like_width is None or self.width >= self.like_width or steps >= FEW_STEPS:
            return None
        return (
            f"{clients:,} clients give the {self.name} probe {steps} steps; with fewer than {FEW_STEPS} it ranks "
            "otherwise than the judge, above all the new skus: score by probe=judge, which takes seconds a task there"
        )


def probe_title(probe: Probe) -> str:
    """What stands above a table: which probe it shows."""
    several = f", mean of {len(probe.seeds)} seeds ± the sum's spread" if len(probe.seeds) > 1 else ""
    if probe.name == "judge":
        return f"by the judge: the organisers' model{several}, higher is better"
    return f"by the {probe.name} probe: the judge's procedure at a width of {probe.width}{several}, higher is better"
