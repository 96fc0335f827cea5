"""How profiles are scored: the judge and smaller probes."""

from dataclasses import dataclass


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
        side_by_side: on a CPU, one run a core instead of all cores on one run: faster for small models.
    """

    name: str = "judge"
    width: int = 2048
    hidden: int = 4096
    epochs: int = 3
    batch_size: int = 128
    learning_rate: float = 0.001
    seeds: tuple[int, ...] = (1278,)
    side_by_side: bool = False


def probe_title(probe: Probe) -> str:
    """What stands above a table: which probe it shows."""
    if probe.name == "judge":
        return "by the judge: the organisers' model, higher is better"
    return (
        f"by the {probe.name} probe: {probe.width} hidden units, {probe.epochs} epochs, mean of {len(probe.seeds)} "
        "seeds ± the sum's spread; not the judge's figures"
    )
