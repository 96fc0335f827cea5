"""Score a block or an entry on the six tasks.

    python scripts/evaluate.py embeddings=basics                              by the judge: minutes on two cores
    python scripts/evaluate.py embeddings=stat_features probe=light           by the light probe: seconds
    python scripts/evaluate.py embeddings=[stat_features,basics] probe=light   several in one table
    python scripts/evaluate.py embeddings=/some/where/my_entry

Prints a table and writes ``scores.json`` (``scores_light.json``) beside the entry's files, for a block
``NAME.scores.json`` beside its parquet. The judge gives the organisers' score.
"""

import hashlib
import logging
from typing import TYPE_CHECKING

from omegaconf import DictConfig, ListConfig, OmegaConf

from ubp.cli.command import command
from ubp.cli.config import Common, parse
from ubp.cli.output import closing_line, show
from ubp.data.history import ChallengeData
from ubp.data.paths import DataPaths
from ubp.evaluation.probes import Probe, probe_title
from ubp.evaluation.profiles import Profiles, load_profiles
from ubp.evaluation.scores import Scores, scores_file
from ubp.evaluation.tables import scores_table
from ubp.io.errors import UserError
from ubp.io.files import digest_of, fingerprint

if TYPE_CHECKING:  # seconds of imports, for what is not scored yet
    import torch

logger = logging.getLogger(__name__)


def choose_device(name: str) -> "torch.device":
    """The device that ``device=`` names.

    Raises:
        UserError: torch does not know it or does not have it.
    """
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.zeros(1, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device={name}: {str(error).splitlines()[0]}; try device=cpu") from error


def asked_embeddings(config: DictConfig) -> list[str]:
    """The names or paths in ``embeddings=``.

    Raises:
        UserError: there are none.
    """
    asked = None if OmegaConf.is_missing(config, "embeddings") else config.embeddings
    if not asked:
        raise UserError("embeddings: name a block or an entry, or a path of one: embeddings=NAME_OR_PATH")
    return list(map(str, asked)) if isinstance(asked, ListConfig) else [str(asked)]


def what_counts(profiles: Profiles, probe: Probe, paths: DataPaths) -> str:
    """Tells one evaluation from another: vectors, clients, labels, probe."""
    targets = [fingerprint(file) for file in sorted(paths.target.glob("*")) if not file.name.startswith(".")]
    ids, vectors = (hashlib.blake2b(array.data).hexdigest() for array in (profiles.client_ids, profiles.vectors))
    return digest_of(ids, vectors, probe, *targets)


def score_anew(profiles: Profiles, probe: Probe, paths: DataPaths, device: str) -> Scores:
    """Score it on the device that ``device=`` names; the same bits each time on a CPU."""
    import torch

    from ubp.evaluation.scoring import score

    chosen = choose_device(device)
    torch.use_deterministic_algorithms(chosen.type == "cpu", warn_only=True)
    return score(profiles, probe, paths, chosen)


@command("scripts", "evaluate")
def main(config: DictConfig) -> None:
    common, probe = Common.of(config), parse(Probe, config, at="probe")
    asked = asked_embeddings(config)
    data = common.data(submit=False)
    loaded = [load_profiles(name, common.paths.embeddings(common.submit), data) for name in asked]
    rows = [evaluate(profiles, probe, data, config.device, common.overwrite) for profiles in loaded]
    show(scores_table(rows, probe_title(probe)))
    for profiles in loaded:
        closing_line(f"{profiles.name} scored", scores_file(profiles.path, probe.name), *profiles.vectors.shape)


def evaluate(profiles: Profiles, probe: Probe, data: ChallengeData, device: str, overwrite: bool) -> Scores:
    """Score it, unless that was done before.

    Raises:
        UserError: see `choose_device` and `ubp.evaluation.scoring.score`.
    """
    made_from, file = what_counts(profiles, probe, data.paths), scores_file(profiles.path, probe.name)
    before = None if overwrite else Scores.read(file, made_from)
    if before is not None:
        logger.info("%s: scored before (overwrite=True scores it again)", profiles.name)
        return before
    scores = score_anew(profiles, probe, data.paths, device)
    scores.write(file, made_from)
    return scores


if __name__ == "__main__":
    main()
