"""What the stacker command does: ask blocks about the window that comes, keep the main directions of their answers."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Final, Self

import numpy as np
import numpy.typing as npt

from stacker.directions import Matrix, deviations, main_directions
from ubp.blocks.fitted import Clients, FittedBlock, State, Vectors, packed, portions, unpacked
from ubp.blocks.registry import block as registered
from ubp.cli.inputs import fitted_inputs
from ubp.cli.recipe import Fit, Recipe
from ubp.data.history import ChallengeData
from ubp.data.labels import GROUPS
from ubp.io.errors import LEAVE_OUT, NoUsableEvents, UserError, name_some, require
from ubp.training.answers import QUESTIONS, AnsweringBlock

logger = logging.getLogger(__name__)

_CLIENTS: Final = 100_000  # asked about at a time; and, drawn by the seed, those that the directions are taken from
_MEAN, _COEFFICIENTS = "stacker.mean", "stacker.coefficients"  # of its own arrays, in a state


@dataclass  # not frozen: OmegaConf cannot fill the mappings of a frozen one
class StackerSettings:
    """The config's part `model`.

    Attributes:
        questions: the weight of a column for the answer to each, of `ubp.training.answers.QUESTIONS`.
        groups: of labels, of `ubp.data.labels.GROUPS`, whose answers the directions are taken from.
        directions: at most; each weighs 1.
        least: share of the answers' variance that a direction must have: at the length of the others, one that says
            next to nothing would be noise.
    """

    questions: dict[str, float]
    groups: list[str]
    directions: int
    least: float

    def __post_init__(self) -> None:
        """Refuse what makes no sense.

        Raises:
            UserError: an unknown question or group, no columns at all, a number out of its range.
        """
        for name, known in (("questions", QUESTIONS), ("groups", tuple(GROUPS))):
            unknown = sorted(set(getattr(self, name)) - set(known))
            require(not unknown, f"model.{name}", name_some(unknown), f"some of {', '.join(known)}")
        for name, weight in self.questions.items():
            require(weight > 0, f"model.questions.{name}", weight, "above 0")
        require(self.directions >= 0, "model.directions", self.directions, "at least 0")
        require(0 <= self.least < 1, "model.least", self.least, "at least 0 and below 1")
        some = bool(self.questions) or (bool(self.groups) and self.directions > 0)
        require(some, "model.questions", "{}", "one question at least where there are no directions")


@dataclass(frozen=True)
class FittedStacker(FittedBlock):
    """A linear map of blocks' answers, and these blocks, which are kept with it.

    Attributes:
        blocks: by name.
        weights: of each block's answers in their mean.
        asked: questions and groups of labels, in the order of the map's columns.
        mean: float32 [answers], subtracted first.
        coefficients: float32 [answers, columns].
        names: of the columns.
    """

    not_exported: ClassVar[str] = (
        "it is a linear map of the answers of dcn and sequential_encoder, and the latter cannot be exported"
    )

    blocks: dict[str, AnsweringBlock]
    weights: dict[str, float]
    asked: tuple[str, ...]
    mean: npt.NDArray[np.float32]
    coefficients: npt.NDArray[np.float32]
    names: tuple[str, ...]

    def vectors(self, history: ChallengeData, clients: Clients) -> tuple[Clients, Vectors]:
        """See `ubp.blocks.fitted.FittedBlock.vectors`: the clients that all blocks answer about."""
        known: list[Clients] = [np.empty(0, np.int64)]
        parts: list[Vectors] = [np.empty((0, len(self.names)), np.float32)]
        for part in portions(len(clients), _CLIENTS):
            ids, answers = mean_answers(self.blocks, self.weights, self.asked, history, clients[part])
            columns: Vectors = np.matmul(answers - self.mean, self.coefficients)
            known.append(ids)
            parts.append(columns)
        return np.concatenate(known), np.concatenate(parts)

    def descriptions(self) -> dict[str, str]:
        """See `ubp.blocks.fitted.FittedBlock.descriptions`."""
        question = "the answer about the window that comes, in standard deviations"
        direction = "a main direction of the answers about what is bought in the window that comes"
        return {name: question if name in QUESTIONS else direction for name in self.names}

    def state(self) -> State:
        """See `ubp.blocks.fitted.FittedBlock.state`."""
        inner = packed(self.blocks)
        own = {"weights": self.weights, "asked": list(self.asked), "names": list(self.names)}
        arrays = {_MEAN: self.mean, _COEFFICIENTS: self.coefficients}
        return State(inner.settings | own, inner.arrays | arrays, inner.tables)

    @classmethod
    def from_state(cls, state: State) -> Self:
        """See `ubp.blocks.fitted.FittedBlock.from_state`."""
        own = state.settings
        blocks = answering(unpacked(state))
        mean, coefficients = state.arrays[_MEAN], state.arrays[_COEFFICIENTS]
        return cls(blocks, own["weights"], tuple(own["asked"]), mean, coefficients, tuple(own["names"]))


@dataclass(frozen=True)
class StackerRecipe(Recipe):
    """Answers in, a linear map of them out.

    Attributes:
        inputs: fitted blocks by name, and what each one's answers weigh in the mean.
        model: the columns.
    """

    inputs: dict[str, float]
    model: StackerSettings

    def fit(self, history: ChallengeData, seed: int, folder: Path) -> Fit:  # noqa: ARG002 (it takes seconds)
        """See `ubp.cli.recipe.Recipe.fit`."""
        require(bool(self.inputs), "inputs", "{}", "one block at least")
        for name, weight in self.inputs.items():
            registered(name)
            require(weight > 0, f"inputs.{name}", weight, "above 0")
        blocks, weights = answering(fitted_inputs(history, self.inputs)), dict(self.inputs)
        asked = self._asked(blocks)
        some = history.seen(history.relevant_clients)
        if len(some) > _CLIENTS:
            some = np.sort(np.random.default_rng(seed).choice(some, _CLIENTS, replace=False))
        _, answers = mean_answers(blocks, weights, asked, history, some)
        if len(answers) == 0:
            raise NoUsableEvents(f"{history.folder}: no client that the inputs answer about; {LEAVE_OUT}")
        mean = answers.mean(axis=0, dtype=np.float64)
        names, coefficients = self._map(asked, np.atleast_2d(np.cov(answers.astype(np.float64), rowvar=False, ddof=0)))
        if not names:
            raise NoUsableEvents(f"{history.folder}: the inputs answer the same about every client; {LEAVE_OUT}")
        logger.info("%d columns of %d answers", len(names), len(mean))
        parts = (mean.astype(np.float32), coefficients.astype(np.float32), names)
        return Fit(FittedStacker(blocks, weights, asked, *parts), {})

    def _asked(self, blocks: Mapping[str, AnsweringBlock]) -> tuple[str, ...]:
        """The questions and groups that every block answers; those that some do not are said."""
        wanted = (*self.model.questions, *self.model.groups)
        known = [set(block.asked) for block in blocks.values()]
        found = tuple(name for name in wanted if all(name in own for own in known))
        if missing := [name for name in wanted if name not in found]:
            logger.info("not answered by every input: %s", name_some(missing))
        return found

    def _map(self, asked: tuple[str, ...], covariance: Matrix) -> tuple[tuple[str, ...], Matrix]:
        """The columns' names and coefficients of the answers, questions first: float64 [answers, columns]."""
        sizes = deviations(covariance)
        scale = np.divide(1.0, sizes, out=np.zeros(len(sizes)), where=sizes > 0)
        questions = [name for name in asked if name in self.model.questions]
        names, parts = list[str](), [np.empty((len(sizes), 0))]
        for place, name in enumerate(questions):
            if sizes[place] > 0:
                names.append(name)
                parts.append(self.model.questions[name] * scale[place] * np.eye(len(sizes))[:, place : place + 1])
        correlations = covariance * np.outer(scale, scale)
        directions = main_directions(correlations, len(questions), self.model.directions, self.model.least)
        names += [f"direction_{number:02d}" for number in range(directions.shape[1])]
        return tuple(names), np.concatenate([*parts, directions * scale[:, None]], axis=1)


def answering(blocks: Mapping[str, FittedBlock]) -> dict[str, AnsweringBlock]:
    """The blocks, if all of them answer.

    Raises:
        UserError: one does not.
    """
    silent = [name for name, block in blocks.items() if not isinstance(block, AnsweringBlock)]
    if silent:
        raise UserError(
            f"inputs: {name_some(silent)} give no answers about the window that comes; take blocks that learned on "
            "past windows, such as dcn"
        )
    return {name: block for name, block in blocks.items() if isinstance(block, AnsweringBlock)}


def mean_answers(
    blocks: Mapping[str, AnsweringBlock],
    weights: Mapping[str, float],
    asked: tuple[str, ...],
    history: ChallengeData,
    clients: Clients,
) -> tuple[Clients, Vectors]:
    """What several blocks answer in the mean.

    Args:
        blocks: by name.
        weights: of each.
        asked: questions and groups of labels.
        history: as of the day.
        clients: int64 [n], ascending.

    Returns:
        int64 [m], those that all blocks answer about, and float32 [m, answers], in the order of what is asked.

    Raises:
        UserError: the blocks answer about different numbers of labels.
    """
    found = {name: block.answers(history, clients, asked) for name, block in blocks.items()}
    widths = {name: answers.shape[1] for name, (_, answers) in found.items()}
    if len(set(widths.values())) > 1:
        counts = ", ".join(f"{name} {width}" for name, width in widths.items())
        raise UserError(f"inputs: different numbers of answers: {counts}; fit them with the same labels")
    known = clients
    for ids, _ in found.values():
        known = np.intersect1d(known, ids, assume_unique=True)
    total = np.zeros((len(known), next(iter(widths.values()))), np.float32)
    for name, (ids, answers) in found.items():
        total += np.float32(weights[name] / sum(weights.values())) * answers[np.searchsorted(ids, known)]
    return known, total
