"""What a process of `benchmarks/gpu.py` does: measure a block, then hold what it makes against the CPU's.

Each function imports what it needs: the process of a factorisation is not that of a neural model.
"""

import json
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt
import polars as pl
from scipy.sparse import csr_matrix

from ubp.cli.config import Common, composed, parse
from ubp.cli.output import peak_megabytes
from ubp.data.paths import CONFIGS
from ubp.io.errors import UserError, require, require_positive
from ubp.io.files import atomic_write

if TYPE_CHECKING:
    import torch

Vectors = npt.NDArray[np.floating[Any]]
SINGLE, LOW = PRECISIONS = "32-true", "bf16-mixed"  # Lightning's words

REFERENCE = ":reference"  # behind a factorisation's name: the step that makes what it is compared with


@dataclass
class Matrix:
    """The product of matrices that gives the device's rate."""

    size: int
    cpu_size: int
    products: int
    rounds: int


@dataclass
class Agreement:
    """How the device and the CPU are compared, and how far they may lie apart; see the config."""

    clients: int
    batch_size: int
    epochs: int
    texts: int
    loss: dict[str, float]
    profiles: dict[str, float]
    scores: float

    def __post_init__(self) -> None:
        """Refuse numbers that make no sense.

        Raises:
            UserError: nothing to compare, or the two bands are not about the same precisions.
        """
        require_positive(self, "agreement", "clients", "batch_size", "epochs", "texts")
        for name in ("loss", "profiles"):
            bands = getattr(self, name)
            require(set(bands) == set(PRECISIONS), f"agreement.{name}", [*bands], f"of {' and '.join(PRECISIONS)}")


@dataclass
class GpuSettings:
    """See configs/scripts/gpu.yaml."""

    scale: float
    sizes: str
    device: str
    report: str
    write: bool | None
    minutes: float
    block_seconds: float
    blocks: list[str]
    share: float
    least_steps: int
    warm_steps: int
    texts: int
    language_model: str
    matrix: Matrix
    agreement: Agreement
    here: str | None

    def __post_init__(self) -> None:
        """Refuse what makes no sense.

        Raises:
            UserError: a number out of its range, or a block that is none.
        """
        require_positive(self, "", "least_steps", "texts")
        require(self.warm_steps >= 2, "warm_steps", self.warm_steps, "at least 2")
        require(0 < self.share <= 1, "share", self.share, "more than 0 and at most 1")
        require(self.device in ("auto", "cuda", "cpu"), "device", self.device, "auto, cuda or cpu")
        for name in self.blocks:
            there = name.count("/") == 1 and (CONFIGS / f"{name}.yaml").is_file()
            require(there, "blocks", name, "folder/config, as next_sku/next_sku")


@dataclass
class Check:
    """One comparison of the device with the CPU: how far they lie apart, and how far they may."""

    name: str
    apart: float
    allowed: float

    @property
    def holds(self) -> bool:
        return self.apart <= self.allowed  # False too where it is no number


@dataclass
class Figures:
    """What was measured of a block; None for what it has not.

    Attributes:
        speed: events per second; for ALS pairs times iterations, for the language model tokens.
        epoch: seconds of an epoch, for ALS of the whole factorisation, for the language model of all its texts.
        waiting: share of the time in which the device waited for data.
        operations: a second.
        device_megabytes: the most memory on the GPU (10^6 bytes).
        host_megabytes: the most memory of the process.
        checks: the comparisons.
        fault: why the rest is missing.
    """

    speed: float | None = None
    epoch: float | None = None
    waiting: float | None = None
    operations: float | None = None
    device_megabytes: float | None = None
    host_megabytes: float | None = None
    checks: list[Check] = field(default_factory=list)
    fault: str | None = None

    @classmethod
    def load(cls, file: Path) -> "Figures":
        """What a block's process has written so far; nothing where it did not come so far."""
        if not file.exists():
            return cls()
        noted = json.loads(file.read_text())
        return cls(**{**noted, "checks": [Check(**check) for check in noted["checks"]]})

    @property
    def agrees(self) -> bool:
        return self.fault is None and all(check.holds for check in self.checks)


@dataclass(frozen=True)
class Task:
    """What a process of this benchmark works with.

    Attributes:
        name: of the block.
        common: the config's common part, its data path that of the log.
        settings: of the benchmark.
        folder: for what it writes.
        cuda: whether it is about a GPU.
    """

    name: str
    common: Common
    settings: GpuSettings
    folder: Path
    cuda: bool


def plain(name: str) -> str:
    """A step's name as a file's."""
    return name.replace("/", "_").replace(":", "_")


# How far things lie apart ------------------------------------------------------------------------------------


def curves_apart(own: Mapping[tuple[str, int], float], wanted: Mapping[tuple[str, int], float]) -> float:
    """The largest distance of two runs' losses, as a share of the wanted one.

    Args:
        own: loss by (name, step).
        wanted: the same of the run that counts as right.

    Returns:
        Infinity where the runs were not measured at the same steps, or a loss is no number.
    """
    if not wanted or own.keys() != wanted.keys():
        return float("inf")
    shares = [abs(own[point] - loss) / max(abs(loss), 1e-12) for point, loss in wanted.items()]
    return max(shares) if np.isfinite(shares).all() else float("inf")


def vectors_apart(own: Vectors, wanted: Vectors) -> float:
    """The distance of two sets of vectors as a share of the spread of the wanted ones about their mean.

    Cosines would not do: vectors that share a large part are alike whatever else they hold.

    Args:
        own: [clients, width].
        wanted: the same of those that count as right.

    Returns:
        Infinity where one is no number, or where the wanted vectors are all alike.
    """
    a, b = own.astype(np.float64), wanted.astype(np.float64)
    spread = float(((b - b.mean(axis=0)) ** 2).sum())
    apart = float(((a - b) ** 2).sum())
    return float(np.sqrt(apart / spread)) if np.isfinite(apart) and spread > 0 else float("inf")


def scores_apart(own: Vectors, wanted: Vectors) -> float:
    """The mean distance of two factorisations' predicted scores of the same pairs, as a share of their spread.

    Factors themselves cannot be compared: not even after the best rotation and scaling, for two seeds end in
    different local optima, whose scores are nearly the same all the same (docs/performance.md).

    Args:
        own: [pairs].
        wanted: the same of the factorisation that counts as right.

    Returns:
        Infinity where one is no number, or where the wanted scores are all alike.
    """
    apart, spread = float(np.abs(own - wanted).mean()), float(np.std(wanted))
    return apart / spread if np.isfinite(apart) and spread > 0 else float("inf")


# The device --------------------------------------------------------------------------------------------------


def about_device(task: Task) -> dict[str, Any]:
    """Name, versions and the rate of a large product of matrices.

    Raises:
        UserError: CUDA was asked for and is not there.
    """
    import torch

    wanted, matrix = task.settings.device, task.settings.matrix
    there = torch.cuda.is_available()
    if wanted == "cuda" and not there:
        raise UserError(f"device=cuda: torch {torch.__version__} finds no CUDA device; {_why_no_cuda(torch)}")
    cuda = there and wanted != "cpu"
    device = torch.device("cuda" if cuda else "cpu")
    size, dtype = (matrix.size, torch.bfloat16) if cuda else (matrix.cpu_size, torch.float32)
    return {
        "device": device.type,
        "name": torch.cuda.get_device_name() if cuda else f"CPU with {torch.get_num_threads()} threads",
        "cores": os.cpu_count(),
        "driver": driver_version() if cuda else None,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if cuda else None,  # type: ignore[no-untyped-call]
        "torch": torch.__version__,
        "dtype": str(dtype).removeprefix("torch."),
        "size": size,
        "rate": matrix_rate(device, dtype, size, matrix.products, matrix.rounds),
    }


def matrix_rate(device: "torch.device", dtype: "torch.dtype", size: int, products: int, rounds: int) -> float:
    """Operations a second of a large product of square matrices: the best of some rounds.

    Args:
        device: where.
        dtype: of the matrices.
        size: of them.
        products: a round; nobody waits for the device between them.
        rounds: besides one that warms up.
    """
    import torch

    from benchmarks.steps import synchronise

    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    seconds = []
    for _ in range(rounds + 1):
        synchronise(device)
        started = time.perf_counter()
        for _ in range(products):
            torch.mm(a, b, out=out)
        synchronise(device)
        seconds.append(time.perf_counter() - started)
    return 2 * size**3 * products / min(seconds[1:])


def _why_no_cuda(torch: Any) -> str:  # noqa: ANN401 (the module)
    if torch.version.cuda is None:
        return "it was built without CUDA: install torch's CUDA build"
    return "look at nvidia-smi, the driver's version and CUDA_VISIBLE_DEVICES"


def driver_version() -> str:
    """NVIDIA's driver, as the kernel or nvidia-smi names it."""
    kernel = Path("/proc/driver/nvidia/version")
    if kernel.is_file() and (found := driver_in(kernel.read_text())):
        return found
    if (program := shutil.which("nvidia-smi")) is None:
        return "unknown"
    asked = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        words = subprocess.run(asked, capture_output=True, text=True, check=False, timeout=20).stdout.split()  # noqa: S603
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return words[0] if words else "unknown"


def driver_in(text: str) -> str | None:
    """The driver's version in the kernel's line on it: the first word like 580.65.06."""
    return next((word for word in text.split() if word[0].isdigit() and "." in word), None)


class UsedMemory:
    """The most memory in use on the GPU, beyond what was in use at first, whoever holds it: for other libraries' use.

    Looks at it now and then, in a thread; without CUDA it knows nothing.
    """

    _PAUSE = 0.02  # seconds

    def __init__(self, cuda: bool) -> None:
        self._cuda, self._end = cuda, threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._first, self._most = 0, 0

    def _used(self) -> int:
        import torch

        free, all_of_it = torch.cuda.mem_get_info()
        return int(all_of_it - free)

    def _look(self) -> None:
        while not self._end.wait(self._PAUSE):
            self._most = max(self._most, self._used())

    def __enter__(self) -> Self:
        if self._cuda:
            self._first = self._most = self._used()
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._cuda:
            self._most = max(self._most, self._used())
            self._end.set()
            self._thread.join()

    @property
    def megabytes(self) -> float | None:
        return (self._most - self._first) / 1e6 if self._cuda else None


# Blocks ------------------------------------------------------------------------------------------------------


def measured(task: Task) -> Iterator[Figures]:
    """A block's figures, again each time that there are more of them."""
    yield from _MEASURED.get(task.name.partition("/")[0], sequence_model)(task)


def sequence_model(task: Task) -> Iterator[Figures]:
    """A neural model of sequences: a share of an epoch, then short trainings on the device and on the CPU."""
    import torch

    from benchmarks.steps import load, pace

    device, s = torch.device("cuda" if task.cuda else "cpu"), task.settings
    first = load(task.name, task.common.data(), prepared_in(task), [f"preset={s.sizes}"])
    found = pace(first.model, first.source, first.trainer, device, s.share, s.least_steps, s.warm_steps)
    speed = found.events / found.seconds
    figures = Figures(
        speed=speed,
        epoch=found.epoch_events / speed,
        waiting=found.waiting,
        operations=found.operations * speed,
        device_megabytes=torch.cuda.max_memory_allocated() / 1e6 if task.cuda else None,
        host_megabytes=peak_megabytes(),
    )
    yield figures
    del first
    for check in training_checks(task):
        figures.checks.append(check)
        yield figures


def training_checks(task: Task) -> Iterator[Check]:
    """Losses and vectors of short trainings on the device, each beside the CPU's in float32."""
    from benchmarks.steps import load, trained
    from ubp.training.encode import encode
    from ubp.training.model import SomeRows

    bands, s, data = task.settings.agreement, task.settings, task.common.data()
    first = load(task.name, data, prepared_in(task), [f"preset={s.sizes}"], dropout=False)
    whole = first.source, first.encoded
    train_source, encode_source = (SomeRows(source, _drawn(len(source.lengths), bands.clients)) for source in whole)
    # As one micro-batch on both: each draws what it needs for itself.
    few = {"max_epochs": bands.epochs, "patience": bands.epochs, "batch_size": bands.batch_size}
    few |= {"micro_batch": 2 * bands.batch_size}
    short = replace(first.trainer, **few)  # type: ignore[arg-type]
    folder = task.folder / plain(task.name)
    right, wanted = trained(first.model, train_source, short, folder / "cpu", "cpu", SINGLE)
    right_vectors = encode(right.model, encode_source, right.runtime)
    for precision, allowed in bands.loss.items():
        accelerator = "gpu" if task.cuda else "cpu"
        own, curve = trained(first.model, train_source, short, folder / precision, accelerator, precision)
        yield Check(f"loss {precision}", curves_apart(curve.points, wanted.points), allowed)
        # The same weights: what the two trainings made different is not to count twice.
        vectors = encode(right.model, encode_source, own.runtime)
        yield Check(f"profiles {precision}", vectors_apart(vectors, right_vectors), bands.profiles[precision])
    shutil.rmtree(folder)
    shutil.rmtree(prepared_in(task), ignore_errors=True)


def prepared_in(task: Task) -> Path:
    """The folder for what a block prepares before it is trained."""
    return task.folder / f"{plain(task.name)}_prepared"


def _drawn(rows: int, count: int) -> npt.NDArray[np.int64]:
    """So many of the rows, ascending; all where there are no more."""
    return np.sort(np.random.default_rng(0).permutation(rows)[:count].astype(np.int64))


def als(task: Task) -> Iterator[Figures]:
    """A factorisation by implicit, on the GPU where that is asked for.

    Raises:
        UserError: implicit cannot use the GPU.
    """
    from ALS.implicit_gpu import gpu_fault
    from ALS.model import factorise

    matrix, settings = _factorisation(task, task.name)
    # As the command begins, before anything of CUDA is loaded here; and it sets up what is set up once.
    factorise(matrix, replace(settings, iterations=1), task.common.seed)
    if task.cuda and (fault := gpu_fault()):
        raise UserError(f"implicit uses no GPU: {fault}")
    with UsedMemory(task.cuda) as memory, kept_models() as models:
        started = time.perf_counter()
        factorise(matrix, settings, task.common.seed)
        seconds = time.perf_counter() - started
    speed = matrix.nnz * settings.iterations / seconds
    figures = Figures(speed=speed, epoch=seconds, device_megabytes=memory.megabytes, host_megabytes=peak_megabytes())
    yield figures
    with np.load(reference_file(task.folder, task.name + REFERENCE)) as reference:
        wanted, other = reference["wanted"], reference["other"]
    # How near two factorisations of this log can be is what two seeds on the CPU make.
    allowed = task.settings.agreement.scores * scores_apart(other, wanted)
    own = predicted_scores(models, matrix)
    figures.checks.append(Check("profiles: predicted scores", scores_apart(own, wanted), allowed))
    yield figures


def als_reference(task: Task) -> None:
    """The scores by two seeds, in a process that sees no GPU: left for `als`."""
    from ALS.model import factorise

    matrix, settings = _factorisation(task, task.name.removesuffix(REFERENCE))
    scores = []
    for more in (0, 1):
        with kept_models() as models:
            factorise(matrix, settings, task.common.seed + more)
        scores.append(predicted_scores(models, matrix))
    with atomic_write(reference_file(task.folder, task.name)) as aside, aside.open("wb") as file:
        np.savez(file, wanted=scores[0], other=scores[1])


def _factorisation(task: Task, name: str) -> tuple[Any, Any]:
    """A factorisation's matrix and its settings."""
    from ALS.model import AlsSettings
    from ALS.recipe import Interactions, weighted_interactions

    config = composed(CONFIGS / "ALS", name.partition("/")[2], [f"preset={task.settings.sizes}"])
    interactions = weighted_interactions(task.common.data(), parse(Interactions, config, at="interactions"))
    return interactions.matrix, parse(AlsSettings, config, at="als")


@contextmanager
def kept_models() -> Iterator[list[Any]]:
    """The models of implicit that are made meanwhile."""
    import implicit.als

    models: list[Any] = []
    make = implicit.als.AlternatingLeastSquares

    def kept(*arguments: Any, **options: Any) -> Any:  # noqa: ANN401 (implicit's to choose)
        models.append(make(*arguments, **options))
        return models[-1]

    implicit.als.AlternatingLeastSquares = kept
    try:
        yield models
    finally:
        implicit.als.AlternatingLeastSquares = make


def predicted_scores(models: Sequence[Any], matrix: csr_matrix) -> Vectors:
    """The predicted scores of pairs that occur, drawn at random: float64 [pairs].

    Raises:
        UserError: there was none, or more than one.
    """
    if len(models) != 1:
        raise UserError(f"the factorisation made {len(models)} models of implicit.als; this benchmark compares one")
    pairs = matrix.tocoo()
    drawn = np.random.default_rng(0).integers(0, pairs.nnz, _SCORED)
    clients, items = (_on_host(factors) for factors in (models[0].user_factors, models[0].item_factors))
    scores: Vectors = (clients[pairs.row[drawn]] * items[pairs.col[drawn]]).sum(axis=1, dtype=np.float64)
    return scores


_SCORED = 50_000  # pairs


def _on_host(factors: Any) -> Vectors:  # noqa: ANN401 (an array, or implicit's matrix on a GPU)
    return np.asarray(factors.to_numpy() if hasattr(factors, "to_numpy") else factors)


def reference_file(folder: Path, name: str) -> Path:
    """Where the CPU's scores lie."""
    return folder / f"{plain(name)}.npz"


def language_model(task: Task) -> Iterator[Figures]:
    """A small language model reads some of the clients' texts; its vectors of a few beside the CPU's."""
    import torch

    from benchmarks.steps import operations_counter
    from LLM.backends import TransformersBackend
    from LLM.models import find_model, load_model, load_tokeniser, window
    from LLM.settings import LanguageModelSettings
    from LLM.tokens import Tokens, open_or_tokenise

    @dataclass(frozen=True)
    class TimedTokens(Tokens):
        """Tokens that note how long their batches take to gather."""

        seconds: list[float] = field(default_factory=list)

        def batch(self, texts: npt.NDArray[np.int64]) -> Any:  # noqa: ANN401
            started = time.perf_counter()
            batch = super().batch(texts)
            self.seconds.append(time.perf_counter() - started)
            return batch

    s, device = task.settings, torch.device("cuda" if task.cuda else "cpu")
    words = [f"preset={s.sizes}", f"model={s.language_model}"]
    config = composed(CONFIGS / "LLM", task.name.partition("/")[2], words)
    settings = LanguageModelSettings.of(config)
    folder = task.folder / plain(task.name)
    shutil.rmtree(folder, ignore_errors=True)
    weights = find_model(settings.model, settings.models)
    tokeniser = load_tokeniser(weights)
    at_most = min(settings.max_tokens, window(weights, tokeniser))
    texts = some_texts(task, folder / "texts.parquet")
    tokens = TimedTokens(**vars(open_or_tokenise(texts, folder / "tokens", tokeniser, at_most)))

    def backend(dtype: torch.dtype, where: torch.device) -> TransformersBackend:
        return TransformersBackend(load_model(weights, dtype), where, settings.pooling, settings.token_budget)

    order = np.argsort(-tokens.lengths, kind="stable")
    reader = backend(torch.bfloat16 if task.cuda else torch.float32, device)
    first = order[: max(1, settings.token_budget // int(tokens.lengths[order[0]]))]  # one batch, the longest texts
    with operations_counter() as counter:
        reader.encode(tokens, first, _nothing)
    tokens.seconds.clear()
    started = time.perf_counter()
    reader.encode(tokens, order, _nothing)
    seconds = time.perf_counter() - started
    speed = float(tokens.lengths.sum()) / seconds
    figures = Figures(
        speed=speed,
        epoch=seconds,
        # Each batch's vectors are fetched before the next one is gathered: the device stands still meanwhile.
        waiting=sum(tokens.seconds) / seconds,
        operations=counter.get_total_flops() / float(tokens.lengths[first].sum()) * speed,
        device_megabytes=torch.cuda.max_memory_allocated() / 1e6 if task.cuda else None,
        host_megabytes=peak_megabytes(),
    )
    yield figures
    few = order[_drawn(len(order), s.agreement.texts)]
    wanted = backend(torch.float32, torch.device("cpu")).encode(tokens, few, _nothing)
    for precision, allowed in s.agreement.profiles.items():
        own = backend(torch.bfloat16 if precision == LOW else torch.float32, device).encode(tokens, few, _nothing)
        figures.checks.append(Check(f"profiles {precision}", vectors_apart(own, wanted), allowed))
        yield figures
    shutil.rmtree(folder)


def _nothing(_: int) -> None:
    """Nothing is shown of how far the reading is."""


def some_texts(task: Task, file: Path) -> Path:
    """The first so many of the clients' texts, in a file of their own."""
    (whole,) = sorted(task.common.paths.texts(submit=False).glob("all_interactions_*.parquet"))
    file.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(file) as aside:
        pl.scan_parquet(whole).head(task.settings.texts).sink_parquet(aside)
    return file


_MEASURED: Mapping[str, Callable[[Task], Iterator[Figures]]] = {"ALS": als, "LLM": language_model}
