"""Score a block or an entry on the six tasks.

    python scripts/evaluate.py embeddings=basics                              by the judge: minutes on two cores
    python scripts/evaluate.py embeddings=stat_features probe=quick           by the quick probe: seconds
    python scripts/evaluate.py embeddings=[stat_features,basics] probe=quick   several in one table
    python scripts/evaluate.py embeddings=basics probe.seeds=[1278,1,2]        the mean of three seeds, its spread
    python scripts/evaluate.py embeddings=/some/where/my_entry
    python scripts/evaluate.py embeddings=basics references=False              without the two reference rows

Prints a table and writes ``scores.json`` (``scores_quick.json``) beside the entry's files, for a block
``NAME.scores.json`` beside its parquet. The judge gives the organisers' score. A task without targets is left out:
the table shows – and over how many tasks the sum goes. Below it stand two reference rows, made from the history in
seconds: what is below one of them is marked.
"""

from omegaconf import DictConfig

from ubp.cli.command import command
from ubp.cli.config import Common, one_or_several, parse, value_at
from ubp.cli.output import closing_line, show
from ubp.evaluation.evaluate import evaluate_all
from ubp.evaluation.probes import Probe, probe_title
from ubp.evaluation.profiles import find_profiles
from ubp.evaluation.reference import ReferenceSettings, marks, reference_rows
from ubp.evaluation.scores import Scores
from ubp.evaluation.tables import scores_table


@command("scripts", "evaluate")
def main(config: DictConfig) -> list[Scores]:
    common, probe = Common.of(config), parse(Probe, config, at="probe")
    asked = one_or_several(config, "embeddings", "a block or an entry, or a path of one")
    found = [find_profiles(name, common.paths.embeddings(common.submit)) for name in asked]
    data = common.data(submit=False)
    references = reference_rows(data, ReferenceSettings()) if value_at(config, "references", bool) else []
    done = evaluate_all([*found, *references], probe, data, value_at(config, "device", str), common.overwrite)
    rows = [evaluated.scores for evaluated in done]
    show(scores_table(rows, probe_title(probe), marks(rows[: len(found)], rows[len(found) :])))
    for one in done[: len(found)]:
        closing_line(f"{one.scores.name} scored", one.file, one.clients, one.scores.columns, one.seconds)
    return rows


if __name__ == "__main__":
    main()
