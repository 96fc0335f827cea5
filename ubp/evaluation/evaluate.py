"""Score profiles once: what was scored before, by the same probe on the same labels, is read from its file."""

import hashlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ubp.data.history import ChallengeData
from ubp.data.paths import DataPaths
from ubp.evaluation.probes import Probe
from ubp.evaluation.profiles import Profiles
from ubp.evaluation.scores import Scores, scores_file
from ubp.io.errors import UserError
from ubp.io.files import digest_of, fingerprint
from ubp.io.stage import AlreadyDone, Stage

if TYPE_CHECKING:  # seconds of imports, for what is not scored yet
    import torch

logger = logging.getLogger(__name__)


def evaluate(profiles: Profiles, probe: Probe, data: ChallengeData, device: str, overwrite: bool) -> Scores:
    """Score it, unless that was done before.

    Args:
        profiles: what is scored.
        probe: by what.
        data: whose labels.
        device: as torch names it, or ``auto``.
        overwrite: score it again although that was done before.

    Raises:
        UserError: see `choose_device` and `ubp.evaluation.scoring.score`.
    """
    made_from, file = what_counts(profiles, probe, data.paths), scores_file(profiles.path, probe.name)
    stage = Stage(f"{profiles.name} scored by the {probe.name} probe", (file,), lambda: made_from)
    try:
        with stage.once(overwrite):
            scores = score_anew(profiles, probe, data.paths, device)
            scores.write(file)
            return scores
    except AlreadyDone as done:
        logger.info("%s", done)
        return Scores.load(file)


def what_counts(profiles: Profiles, probe: Probe, paths: DataPaths) -> dict[str, str]:
    """Tells one evaluation from another: vectors, clients, labels, probe."""
    targets = [fingerprint(file) for file in sorted(paths.target.glob("*")) if not file.name.startswith(".")]
    ids, vectors = (hashlib.blake2b(array.data).hexdigest() for array in (profiles.client_ids, profiles.vectors))
    return {"clients": ids, "vectors": vectors, "probe": digest_of(probe), "labels": digest_of(*targets)}


def score_anew(profiles: Profiles, probe: Probe, paths: DataPaths, device: str) -> Scores:
    """Score it on the device that ``device=`` names; the same bits each time on a CPU."""
    from ubp.evaluation.scoring import score

    chosen = choose_device(device)
    with deterministic(chosen.type == "cpu"):
        return score(profiles, probe, paths, chosen)


@contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Let torch take algorithms that give the same bits each time, or not mind; put back afterwards."""
    import torch

    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(wanted, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


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
