"""A merge: blocks side by side in one float32 matrix, fitted on the clients of an entry and kept.

With the fitted blocks it gives the profiles of any clients on any day.
"""

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt

from ubp.blocks.condition import ConditionSettings, FittedCondition
from ubp.blocks.embeddings import lies_at, read_lineage
from ubp.blocks.entry import entry_files
from ubp.blocks.fitted import Clients, FittedBlock, State, Vectors, content_digest, is_fitted, lineage_of, load, settled
from ubp.blocks.steps import BlockSettings, FittedSteps, columns_of
from ubp.blocks.transformers import Arrays, Matrix
from ubp.blocks.widths import cut_line
from ubp.data import schema
from ubp.data.history import ChallengeData
from ubp.io.errors import UserError, name_some
from ubp.io.files import digest_of, fingerprint, read_whole

logger = logging.getLogger(__name__)

ERROR, SKIP = "error", "skip"  # what a merge does where a block is not there


@dataclass  # not frozen: OmegaConf cannot fill the mappings of a frozen one
class MergeSettings:
    """A merge.

    Attributes:
        blocks: by name, in the order of their columns.
        imputer: of blocks that name none.
        condition: what is done with the whole at last; None: nothing.
    """

    blocks: dict[str, BlockSettings] = field(default_factory=dict)
    imputer: dict[str, Any] | None = None
    condition: ConditionSettings | None = None


MERGE_KEYS: Final = [key.name for key in fields(MergeSettings)]


def missing_blocks(settings: MergeSettings, folder: Path) -> dict[str, Path]:
    """Those of a merge's blocks that are not there: by name, where they should lie.

    Args:
        settings: the merge.
        folder: of the embeddings' parquets.
    """
    return _missing(_paths(settings, folder))


def find_blocks(settings: MergeSettings, folder: Path) -> dict[str, Path]:
    """Where each block lies.

    Args:
        settings: the merge.
        folder: of the embeddings' parquets.

    Raises:
        UserError: the merge has no blocks, or a line for each one that does not exist, with those that do.
    """
    if not settings.blocks:
        raise UserError("blocks: a merge needs at least one")
    there = sorted(path.stem for path in folder.glob("*.parquet") if not path.name.startswith("."))
    paths = _paths(settings, folder)
    missing = [
        f"{paths[name]}: no such block ({name}); there are: {name_some(there, 50) or 'none'}; make it, or leave it out "
        f"with ~blocks.{name}, or all that are missing with missing={SKIP}"
        for name in _missing(paths)
    ]
    if missing:
        raise UserError(missing)
    return paths


def without_missing(
    settings: MergeSettings, folder: Path, lacking: Callable[[], Mapping[str, str]], skip: bool
) -> tuple[MergeSettings, dict[str, str]]:
    """A merge without those of its blocks that are not there and may be missing.

    Args:
        settings: the merge.
        folder: of the embeddings' parquets.
        lacking: gives, by the name of a block that the log has no events for, a line that says so; it reads the log,
            and is asked only where a block is not there.
        skip: any block may be missing, not only these.

    Returns:
        The merge of the other blocks, and by the name of each that is left out a line with the reason.

    Raises:
        UserError: none is left.
    """
    missing, left_out = missing_blocks(settings, folder), dict[str, str]()
    reasons = lacking() if missing else {}
    for name, path in missing.items():
        if name in reasons and not settings.blocks[name].path:
            left_out[name] = reasons[name]
        elif skip:
            left_out[name] = f"{name} is left out: {path} is not there"
    if left_out and len(left_out) == len(settings.blocks):
        nothing = f"blocks: none of the merge's {len(left_out)} blocks is in {folder}; make one of them at least"
        raise UserError([*left_out.values(), nothing])
    blocks = {name: block for name, block in settings.blocks.items() if name not in left_out}
    return replace(settings, blocks=blocks), left_out


def _paths(settings: MergeSettings, folder: Path) -> dict[str, Path]:
    return {name: Path(block.path) if block.path else _by_name(name, folder) for name, block in settings.blocks.items()}


def _missing(paths: Mapping[str, Path]) -> dict[str, Path]:
    return {name: path for name, path in paths.items() if not lies_at(path)}


def _by_name(name: str, folder: Path) -> Path:
    """The block of that name: a folder of ``.npy`` files beside the parquets, or else a parquet."""
    return folder / name if (folder / name / schema.ENTRY_EMBEDDINGS).is_file() else folder / f"{name}.parquet"


def content_of(block: Path) -> str:
    """Tells one content of a block, a parquet or a folder of ``.npy`` files, from another."""
    if not block.is_dir():
        return fingerprint(block)
    return read_whole(block, lambda: digest_of(*map(fingerprint, entry_files(block))))


def check_histories(paths: Mapping[str, Path], of_history: str, history: Path) -> None:
    """Refuse blocks that were not made from the history as it is now.

    Args:
        paths: of the blocks, by name.
        of_history: the history's fingerprint.
        history: its folder, for the error.

    Raises:
        UserError: a line for each such block.
    """
    faults = []
    for name, path in paths.items():
        made_from = None if path.is_dir() else read_lineage(path).get("fingerprint")
        if made_from is None:
            logger.warning("%s: no lineage, so nobody knows which history it was made from", path)
        elif made_from != of_history:
            faults.append(
                f"{path}: made from another history than {history} as it is now; make {name} again, so that all "
                f"blocks see the same events, or leave it out with ~blocks.{name}"
            )
    if faults:
        raise UserError(faults)


# --- the fitted blocks that a merge stands on ---------------------------------------------------------


@dataclass(frozen=True)
class Source:
    """The fitted block that made a block of a merge, or why there is none.

    Attributes:
        name: under which it is kept.
        digest: of its content; None where there is no such fitted block.
        refusal: a line that says why other days cannot be encoded, and what to do; None where they can.
    """

    name: str
    digest: str | None = None
    refusal: str | None = None


def find_sources(paths: Mapping[str, Path], folder: Path) -> dict[str, Source]:
    """The fitted block of each block.

    Args:
        paths: of the blocks, by name.
        folder: of the fitted merge; the fitted blocks lie beside it, ``../../NAME/`` and the folder's own name.

    Raises:
        UserError: a block's lineage, or a fitted block, cannot be read.
    """
    return {name: _source(name, path, folder) for name, path in paths.items()}


def _source(name: str, path: Path, folder: Path) -> Source:
    if path.is_dir():
        return Source(
            name,
            refusal=f"block {name}: {path} is a folder of .npy files, without a fitted block; make the block with a "
            f"command, or leave it out with ~blocks.{name}",
        )
    lineage = read_lineage(path)
    known_as = str(lineage.get("name", name))
    model = _model(folder, known_as)
    if not is_fitted(model):
        return Source(known_as, refusal=_no_fit(name, model))
    if settled(lineage_of(model)) != settled(lineage):
        return Source(
            known_as,
            refusal=f"block {name}: {path} was not made by the fitted block {model}; make {known_as} again, "
            "then the merge",
        )
    return Source(known_as, content_digest(model))


def _no_fit(name: str, model: Path) -> str:
    return f"block {name}: no fitted block {model}; make the block again, then the merge"


def _model(folder: Path, name: str) -> Path:
    """The fitted block of a name that belongs to the fitted merge in a folder."""
    return folder.parent.parent / name / folder.name


# --- the fitted merge ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class MergedBlock:
    """A block in a fitted merge.

    Attributes:
        name: in the merge.
        columns: that it fills.
        source: the fitted block that gives its vectors.
        steps: that it passes; None where they could not be kept: then ``refusal`` says why.
        refusal: why the merge cannot encode because of this block; None where it can.
    """

    name: str
    columns: int
    source: Source
    steps: FittedSteps | None
    refusal: str | None

    def state(self, arrays: Arrays) -> dict[str, Any]:
        """As JSON; arrays are added to those given."""
        return {
            "name": self.name,
            "columns": self.columns,
            "source": {"name": self.source.name, "digest": self.source.digest},
            "steps": self.steps and self.steps.state(self.name, arrays),
            "refusal": self.refusal,
        }

    @classmethod
    def from_state(cls, state: dict[str, Any], arrays: Arrays) -> Self:
        """The block that gave this state."""
        source, steps = Source(**state["source"]), state["steps"]
        kept = steps and FittedSteps.from_state(steps, arrays)
        return cls(state["name"], state["columns"], source, kept, state["refusal"])


@dataclass(frozen=True)
class FittedMerge(FittedBlock):
    """A merge that has been fitted: its blocks' steps, and which fitted blocks they stand on.

    Attributes:
        blocks: in the order of their columns.
        condition: the last stage; None for none.
        folder: its own; the fitted blocks lie beside it. None for a merge that is not kept.
    """

    blocks: tuple[MergedBlock, ...]
    condition: FittedCondition | None
    folder: Path | None

    @property
    def columns(self) -> int:
        """Of a profile."""
        return sum(self._widths) if self.condition is None else self.condition.columns

    @property
    def _widths(self) -> list[int]:
        return [block.columns for block in self.blocks]

    @property
    def column_names(self) -> list[str]:
        """What each column comes from: the block, and its own name for the column where it has one, else its place.

        Columns that a last rotation has mixed have no block.
        """
        if self.condition is not None and self.condition.rotation is not None:
            return [f"rotated: {place}" for place in range(self.columns)]
        names = list[str]()
        for block in self.blocks:
            model = None if self.folder is None else _model(self.folder, block.source.name)
            there = model is not None and is_fitted(model)
            own = list(lineage_of(model).get("columns", ())) if model and there else []
            known = own if len(own) == block.columns else range(block.columns)
            names += [f"{block.name}: {name}" for name in known]
        return names + ["constant"] * (self.columns - len(names))

    @property
    def refusals(self) -> list[str]:
        """A line for each block because of which the merge cannot encode; none where it can."""
        return [block.refusal for block in self.blocks if block.refusal]

    def vectors(self, history: ChallengeData, clients: Clients) -> tuple[Clients, Vectors]:
        """Profiles of the clients with an event of any type: those of the entry before its float16.

        The same clients give the same bits as in the entry. Other clients beside them may change the last bits that
        a PCA gives: a product of matrices is rounded by its shape.

        Raises:
            UserError: a line for each block that cannot be encoded: no fitted block, or fitted anew since the merge.
        """
        self._require_sources()
        known = history.seen(clients)
        whole, matrix = _room(len(known), sum(self._widths), self.columns)
        for block, part in zip(self.blocks, _parts(matrix, self._widths), strict=True):
            began = time.perf_counter()
            with_block = load(self._model(block)).encode(history, known)
            try:
                block.steps.fill(part, with_block, known)  # type: ignore[union-attr]
            except (ValueError, TypeError, AttributeError) as error:
                # The last: an attribute that another version of scikit-learn expects.
                raise UserError(f"block {block.name}: {str(error).splitlines()[0]}; merge again") from error
            logger.info("%s: %d columns · %.1f s", block.name, block.columns, time.perf_counter() - began)
        self._require_sources()  # those that were read, one after the other, were still these
        return known, _conditioned(self.condition, matrix, whole)

    def _model(self, block: MergedBlock) -> Path:
        if self.folder is None:
            raise UserError("the merge was not kept, so it has no fitted blocks beside it; merge with a folder")
        return _model(self.folder, block.source.name)

    def _require_sources(self) -> None:
        faults = []
        for block in self.blocks:
            if block.refusal:
                faults.append(block.refusal)
            elif not is_fitted(self._model(block)):
                faults.append(_no_fit(block.name, self._model(block)))
            elif content_digest(self._model(block)) != block.source.digest:
                faults.append(f"block {block.name}: fitted anew since the merge; merge again")
        if faults:
            raise UserError(faults)

    def state(self) -> State:
        """See `ubp.blocks.fitted.FittedBlock.state`."""
        arrays: Arrays = {}
        condition = self.condition and self.condition.state("condition", arrays)
        return State({"blocks": [block.state(arrays) for block in self.blocks], "condition": condition}, arrays)

    @classmethod
    def from_state(cls, state: State) -> Self:
        """See `ubp.blocks.fitted.FittedBlock.from_state`."""
        blocks, condition = state.settings["blocks"], state.settings.get("condition")  # older merges have none
        return cls(
            tuple(MergedBlock.from_state(block, state.arrays) for block in blocks),
            condition and FittedCondition.from_state(condition, state.arrays),
            state.folder,
        )


def fit_merge(
    settings: MergeSettings, paths: Mapping[str, Path], clients: npt.NDArray[np.int64], folder: Path | None = None
) -> tuple[FittedMerge, Matrix]:
    """Fit a merge: fill one matrix block by block, and condition it.

    Args:
        settings: the merge.
        paths: of its blocks, as `find_blocks` gives them.
        clients: int64 [clients], each once: the rows.
        folder: where the fitted merge will be kept; None for one that is not, and so cannot encode.

    Returns:
        The fitted merge, and the clients' profiles, float32 [clients, columns], finite.

    Raises:
        UserError: more than 2,048 columns, a block that cannot be read, a transformer that does not fit.
    """
    widths = {name: _width(name, settings.blocks[name], path, clients) for name, path in paths.items()}
    columns = _require_room(widths, settings.condition)
    sources = {name: Source(name) for name in paths} if folder is None else find_sources(paths, folder)
    whole, matrix = _room(len(clients), sum(widths.values()), columns)
    blocks = []
    for (name, path), part in zip(paths.items(), _parts(matrix, list(widths.values())), strict=True):
        began = time.perf_counter()
        try:
            steps = FittedSteps.fit(settings.blocks[name], settings.imputer, path, clients, part)
        except (ValueError, TypeError) as error:  # what scikit-learn says of numbers that do not fit
            raise UserError(f"block {name}: {str(error).splitlines()[0]}") from error
        blocks.append(_merged_block(name, widths[name], sources[name], steps))
        logger.info("%s: %d columns · %.1f s", name, widths[name], time.perf_counter() - began)
    condition = _fit_condition(settings, matrix, widths)
    return FittedMerge(tuple(blocks), condition, folder), _conditioned(condition, matrix, whole)


def put_together(settings: MergeSettings, parts: Mapping[str, Matrix]) -> Matrix:
    """The merge of blocks that have passed their steps: side by side, and conditioned by themselves.

    Args:
        settings: a merge of these blocks, and others perhaps.
        parts: by the block's name, in the order of their columns: float32 [clients, columns of the block]. They are
            left as they are.

    Returns:
        float32 [clients, columns]: what `fit_merge` gives for a merge of these blocks alone.

    Raises:
        UserError: more than 2,048 columns, or nothing that tells clients apart.
    """
    widths = {name: part.shape[1] for name, part in parts.items()}
    columns = _require_room(widths, settings.condition)
    whole, matrix = _room(len(next(iter(parts.values()))), sum(widths.values()), columns)
    for place, part in zip(_parts(matrix, list(widths.values())), parts.values(), strict=True):
        place[:] = part
    return _conditioned(_fit_condition(settings, matrix, widths), matrix, whole)


def _fit_condition(settings: MergeSettings, matrix: Matrix, widths: Mapping[str, int]) -> FittedCondition | None:
    if settings.condition is None:
        return None
    weights = [settings.blocks[name].weight for name in widths]
    return FittedCondition.fit(settings.condition, matrix, list(widths.values()), weights)


def _room(clients: int, of_blocks: int, of_profile: int) -> tuple[Matrix, Matrix]:
    """A matrix for the profiles, and its columns of the blocks: one and the same memory where they fit into it."""
    if of_profile < of_blocks:
        return np.empty((0, of_profile), np.float32), np.empty((clients, of_blocks), np.float32)
    whole = np.empty((clients, of_profile), np.float32)
    return whole, whole[:, :of_blocks]


def _conditioned(condition: FittedCondition | None, matrix: Matrix, whole: Matrix) -> Matrix:
    if condition is None:
        return matrix
    # A PCA makes a matrix of its own, and of few clients a narrower one than was asked for.
    return condition.apply(matrix, whole if condition.rotation is None else None)


def _width(name: str, block: BlockSettings, path: Path, clients: Clients) -> int:
    """Columns that a block will have, with a line where the data allow fewer than its processor is asked for."""
    columns = block.width(path, clients)
    if block.columns is None and block.components is not None and columns < block.components:
        limit = "columns" if columns == columns_of(path) else "clients with it"
        setting = f"block {name}: n_components"
        logger.warning(cut_line(setting, block.components, f"{columns} {limit}", f"{columns} columns"))
    return columns


def _merged_block(name: str, columns: int, source: Source, steps: FittedSteps) -> MergedBlock:
    try:
        steps.state(name, {})
    except UserError as error:
        refusal = f"block {name}: {error}; choose another transformer and merge again"
        return MergedBlock(name, columns, source, None, refusal)
    return MergedBlock(name, columns, source, steps, source.refusal)


def _require_room(widths: Mapping[str, int], condition: ConditionSettings | None) -> int:
    """The profile's columns; refused where an entry has no room for them."""
    of_blocks = sum(widths.values())
    total = of_blocks if condition is None else condition.columns(of_blocks)
    if total > schema.MAX_COLUMNS:
        sizes = [f"{name} {width:,}" for name, width in widths.items()]
        sizes += ["the constant 1"] if total > of_blocks else []
        raise UserError(
            f"blocks: {total:,} columns ({', '.join(sizes)}); at most {schema.MAX_COLUMNS:,}: leave a block out with "
            "~blocks.NAME or give one a processor such as PCA"
        )
    return total


def _parts(matrix: Matrix, widths: list[int]) -> Iterator[Matrix]:
    """The columns of each block, views of the matrix."""
    start = 0
    for width in widths:
        yield matrix[:, start : start + width]
        start += width
