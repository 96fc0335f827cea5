"""Score profiles once: what was scored before, by the same probe on the same labels, is read from its file."""

import hashlib
import logging
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from ubp.blocks.condition import Figures, figures_of, report
from ubp.data.history import ChallengeData
from ubp.data.paths import DataPaths
from ubp.evaluation.probes import Probe
from ubp.evaluation.profiles import Profiles, profiles_at
from ubp.evaluation.scores import Scores, scores_file
from ubp.io.errors import UserError
from ubp.io.files import digest_of, fingerprint
from ubp.io.stage import AlreadyDone, Stage

if TYPE_CHECKING:  # seconds of imports, for what is not scored yet
    import torch

    from ubp.evaluation.scoring import Scorer

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Evaluated:
    """What came of evaluating one thing.

    Attributes:
        scores: its scores.
        clients: over how many clients.
        file: where they lie.
        figures: of the vectors.
        seconds: from its first run's beginning to its last one's end; 0 for what was scored before.
    """

    scores: Scores
    clients: int
    file: Path
    figures: Figures
    seconds: float


def evaluate(profiles: Profiles, probe: Probe, data: ChallengeData, device: str, overwrite: bool) -> Scores:
    """Score one thing, unless that was done before: see `evaluate_all`."""
    (evaluated,) = evaluate_all([profiles], probe, data, device, overwrite)
    return evaluated.scores


def evaluate_all(
    things: Sequence[Path | Profiles], probe: Probe, data: ChallengeData, device: str, overwrite: bool
) -> list[Evaluated]:
    """Score some things, each unless that was done before; a probe whose runs go side by side keeps all cores busy.

    Things are read when their turn comes, and let go when they are scored. What a short training can read in them is
    logged (`ubp.blocks.condition.report`).

    Args:
        things: blocks or entries, by their paths or in memory.
        probe: by what.
        data: whose labels.
        device: as torch names it, or ``auto``.
        overwrite: score them again although that was done before.

    Returns:
        In the order of the things.

    Raises:
        UserError: see `choose_device`, `ubp.evaluation.profiles.profiles_at` and `ubp.evaluation.scoring`.
    """
    places = [_place(thing) for thing in things]
    found: dict[Path, Evaluated] = {}
    begun: deque[tuple[Path, _Evaluation]] = deque()

    def finish_first() -> None:
        place, evaluation = begun.popleft()
        found[place] = _finished(evaluation)

    with ExitStack() as stack:
        # Made for the first thing that is not done: it takes seconds of imports.
        scorer = cache(lambda: stack.enter_context(_scorer(probe, data.paths, device)))
        # In one order in all processes: none waits for the lock of another that waits for its own.
        for place, thing in sorted(dict(zip(places, things, strict=True)).items()):
            while begun and not scorer().has_room(len(begun)):
                finish_first()
            evaluation = stack.enter_context(closing(_evaluation(thing, probe, data, scorer, overwrite)))
            if (done := next(evaluation)) is None:
                begun.append((place, evaluation))
            else:
                found[place] = done
        while begun:
            finish_first()
    report({evaluated.scores.name: evaluated.figures for evaluated in found.values()})
    if doubt := probe.doubt(max((evaluated.clients for evaluated in found.values()), default=0)):
        logger.warning("%s", doubt)
    return [found[place] for place in places]


_Evaluation = Generator[Evaluated | None, None, None]


def _evaluation(
    thing: Path | Profiles, probe: Probe, data: ChallengeData, scorer: Callable[[], "Scorer"], overwrite: bool
) -> _Evaluation:
    """Evaluate one thing under its lock: None once it is begun, then what came of it; that alone if done before."""
    profiles = profiles_at(thing, data) if isinstance(thing, Path) else thing
    made_from, file = what_counts(profiles, probe, data.paths), scores_file(profiles.path, probe.name)
    stage = Stage(f"{profiles.name} scored by the {probe.name} probe", (file,), lambda: made_from)
    clients, figures = len(profiles.client_ids), figures_of(profiles.vectors)
    try:
        with stage.once(overwrite):
            scored = scorer().begin(profiles)
            yield None
            scores, seconds = scored()
            scores.write(file)
    except AlreadyDone as done:
        logger.info("%s", done)
        scores, seconds = Scores.load(file), 0.0
    yield Evaluated(scores, clients, file, figures, seconds)


def _finished(evaluation: _Evaluation) -> Evaluated:
    evaluated = next(evaluation)
    if evaluated is None:
        raise RuntimeError("an evaluation was begun twice")
    return evaluated


def _place(thing: Path | Profiles) -> Path:
    return (thing if isinstance(thing, Path) else thing.path).resolve()


def what_counts(profiles: Profiles, probe: Probe, paths: DataPaths) -> dict[str, str]:
    """Tells one evaluation from another: vectors, clients, labels, probe."""
    ids, vectors = (hashlib.blake2b(array.data).hexdigest() for array in (profiles.client_ids, profiles.vectors))
    return {"clients": ids, "vectors": vectors, "probe": digest_of(probe), "labels": labels_digest(paths)}


def labels_digest(paths: DataPaths) -> str:
    """Tells the labels of one split from those of another."""
    return digest_of(*(fingerprint(file) for file in sorted(paths.target.glob("[!.]*")) if file.is_file()))


def score_anew(profiles: Profiles, probe: Probe, paths: DataPaths, device: str) -> Scores:
    """Score it on the device that ``device=`` names; the same bits each time on a CPU."""
    (scores,) = score_each([profiles], probe, paths, device)
    return scores


def score_each(things: Iterable[Profiles], probe: Probe, paths: DataPaths, device: str) -> Iterator[Scores]:
    """Score things in their order, as `score_anew` each; a probe whose runs go side by side keeps all cores busy.

    Args:
        things: asked for when there is room for the next, and let go when they are scored.
        probe: by what.
        paths: of targets and windows.
        device: as torch names it, or ``auto``.
    """
    begun: deque[Callable[[], tuple[Scores, float]]] = deque()
    with _scorer(probe, paths, device) as scorer:
        for thing in things:
            begun.append(scorer.begin(thing))
            while begun and not scorer.has_room(len(begun)):
                yield begun.popleft()()[0]
        while begun:
            yield begun.popleft()()[0]


@contextmanager
def _scorer(probe: Probe, paths: DataPaths, device: str) -> Iterator["Scorer"]:
    from ubp.evaluation.scoring import scorer

    chosen = choose_device(device)
    with deterministic(chosen.type == "cpu"), scorer(probe, paths, chosen) as made:
        yield made


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
