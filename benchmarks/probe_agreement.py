"""Do the quick probe and the judge rank blocks alike? Some four minutes per block on two cores.

    make demo
    python benchmarks/probe_agreement.py
    python benchmarks/probe_agreement.py embeddings=[stat_features,basics] seeds=[1278]

Scores blocks and merges of the demo by both probes (what was scored before is not scored again) and prints both
rankings, their Kendall's tau, and how many of the pairs that the judge sets further apart than ``apart`` the quick
probe orders alike. Only tasks that all of them have count.
"""

from collections.abc import Sequence
from itertools import combinations

from omegaconf import DictConfig
from rich.table import Table
from scipy.stats import kendalltau

from ubp.cli.command import command
from ubp.cli.config import Common, composed, parse
from ubp.cli.output import closing_line, show
from ubp.data.paths import CONFIGS
from ubp.evaluation.evaluate import evaluate_all
from ubp.evaluation.probes import Probe
from ubp.evaluation.profiles import find_profiles
from ubp.evaluation.scores import Scores, shared_totals


def probe(name: str, *overrides: str) -> Probe:
    """A probe of configs/scripts/probe, as scripts/evaluate.py would see it."""
    return parse(Probe, composed(CONFIGS / "scripts", "evaluate", [f"probe={name}", *overrides]), at="probe")


def ordered_alike(judged: Sequence[float], probed: Sequence[float], apart: float) -> tuple[int, int]:
    """Of the pairs that the judge sets further apart: how many the probe orders alike, and how many there are.

    Args:
        judged: the judge's sums.
        probed: the probe's, of the same things.
        apart: two sums of the judge's that differ by no more are not told apart.
    """
    pairs = [
        (judged[one] - judged[other], probed[one] - probed[other])
        for one, other in combinations(range(len(judged)), 2)
        if abs(judged[one] - judged[other]) > apart
    ]
    return sum(by_judge * by_probe > 0 for by_judge, by_probe in pairs), len(pairs)


@command("scripts", "probe_agreement")
def main(config: DictConfig) -> None:
    common = Common.of(config)
    data, folder = common.data(), common.paths.embeddings(common.submit)
    found = [find_profiles(name, folder) for name in config.embeddings]
    scores: list[list[Scores]] = []
    for by in (probe("judge"), probe("quick", f"probe.seeds=[{','.join(map(str, config.seeds))}]")):
        done = evaluate_all(found, by, data, "auto", common.overwrite)
        scores.append([evaluated.scores for evaluated in done])
    totals = shared_totals([*scores[0], *scores[1]])
    judged, probed = totals[: len(found)], totals[len(found) :]
    table = Table("block or entry", "columns", "judge", "quick")
    for number in sorted(range(len(found)), key=lambda number: -judged[number]):
        row = scores[0][number]
        table.add_row(row.name, f"{row.columns:,}", f"{judged[number]:.4f}", f"{probed[number]:.4f}")
    show(table)
    alike, pairs = ordered_alike(judged, probed, config.apart)
    tau = kendalltau(judged, probed).statistic
    what = f"Kendall's tau {tau:.2f} over {len(found)}, {alike} of {pairs} pairs over {config.apart} apart alike"
    closing_line(what, folder)


if __name__ == "__main__":
    main()
