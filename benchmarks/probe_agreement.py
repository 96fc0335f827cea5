"""Do the light probe and the judge rank blocks alike? Some three minutes per block on two cores.

    make demo
    python benchmarks/probe_agreement.py
    python benchmarks/probe_agreement.py embeddings=[stat_features,basics]

Scores blocks and merges of the demo by both probes (what was scored before is not scored again) and prints both
rankings and their Spearman correlation.
"""

from omegaconf import DictConfig
from rich.table import Table
from scipy.stats import spearmanr

from ubp.cli.command import command
from ubp.cli.config import Common, composed, parse
from ubp.cli.output import closing_line, show
from ubp.data.paths import CONFIGS
from ubp.evaluation.evaluate import evaluate
from ubp.evaluation.probes import Probe
from ubp.evaluation.profiles import load_profiles


def probe(name: str) -> Probe:
    """A probe of configs/scripts/probe."""
    return parse(Probe, composed(CONFIGS / "scripts", "evaluate", [f"probe={name}"]), at="probe")


@command("scripts", "probe_agreement")
def main(config: DictConfig) -> None:
    common = Common.of(config)
    data, folder = common.data(), common.paths.embeddings(common.submit)
    judge, light = probe("judge"), probe("light")
    rows: list[tuple[str, float, float]] = []
    for name in config.embeddings:
        profiles = load_profiles(name, folder, data)
        by_judge, by_light = (evaluate(profiles, by, data, "auto", common.overwrite).total for by in (judge, light))
        rows.append((name, by_judge, by_light))
    rows.sort(key=lambda row: -row[1])
    table = Table("block or entry", "judge", "light")
    for name, by_judge, by_light in rows:
        table.add_row(name, f"{by_judge:.4f}", f"{by_light:.4f}")
    show(table)
    correlation = spearmanr([row[1] for row in rows], [row[2] for row in rows]).statistic
    closing_line(f"Spearman correlation of the two rankings {correlation:.2f} over {len(rows)}", folder)


if __name__ == "__main__":
    main()
