"""Score a block or an entry on the six tasks.

    python scripts/evaluate.py embeddings=basics                              by the judge: minutes on two cores
    python scripts/evaluate.py embeddings=stat_features probe=light           by the light probe: seconds
    python scripts/evaluate.py embeddings=[stat_features,basics] probe=light   several in one table
    python scripts/evaluate.py embeddings=/some/where/my_entry

Prints a table and writes ``scores.json`` (``scores_light.json``) beside the entry's files, for a block
``NAME.scores.json`` beside its parquet. The judge gives the organisers' score.
"""

from omegaconf import DictConfig

from ubp.cli.command import command
from ubp.cli.config import Common, one_or_several, parse
from ubp.cli.output import closing_line, show
from ubp.evaluation.evaluate import evaluate
from ubp.evaluation.probes import Probe, probe_title
from ubp.evaluation.profiles import load_profiles
from ubp.evaluation.scores import Scores, scores_file
from ubp.evaluation.tables import scores_table


@command("scripts", "evaluate")
def main(config: DictConfig) -> list[Scores]:
    common, probe = Common.of(config), parse(Probe, config, at="probe")
    asked = one_or_several(config, "embeddings", "a block or an entry, or a path of one")
    data = common.data(submit=False)
    loaded = [load_profiles(name, common.paths.embeddings(common.submit), data) for name in asked]
    rows = [evaluate(profiles, probe, data, config.device, common.overwrite) for profiles in loaded]
    show(scores_table(rows, probe_title(probe)))
    for profiles in loaded:
        closing_line(f"{profiles.name} scored", scores_file(profiles.path, probe.name), *profiles.vectors.shape)
    return rows


if __name__ == "__main__":
    main()
