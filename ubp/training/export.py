"""Encoders as ONNX: the part of a trained model that turns events into a vector, for services without this library.

A fitted block that can be exported is an `Exportable`: it gives its encoder as a torch module of plain tensors, and
says of each input what it is made from. `export` writes the graph by torch's exporter, the vocabularies as parquet, and
a JSON that says all of it, once onnxruntime gives the vectors that torch does.
"""

import importlib
import json
import logging
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import polars as pl
import torch
from torch import Tensor, nn

from ubp.data.history import ChallengeData
from ubp.data.schema import EVENT_TYPES, FIRST_TOKEN, EventType, Token
from ubp.io.errors import UserError
from ubp.io.files import atomic_write
from ubp.sequences.vocabulary import Vocabulary
from ubp.training.model import LENGTHS, Batch, SequenceModel, Source
from ubp.training.next_event import NextEventModel
from ubp.training.windows import AGE, LAST

OPSET: Final = 20
ROWS, TIME = "rows", "time"  # axes of any length
OUTPUT: Final = "vectors"
VALUE, TOKEN = "value", "token"  # columns of a vocabulary's table

NO_NETWORK: Final = "its vectors are worked out from tables by this library's code: there is no network to export"


@dataclass(frozen=True)
class Input:
    """One input of an encoder.

    Attributes:
        name: of the input.
        dtype: ``int64`` or ``float32``.
        shape: numbers, and `ROWS` and `TIME` for axes of any length.
        meaning: what stands there, and how it is made from events.
        vocabulary: name of the table that turns values into tokens; None where there is none.
    """

    name: str
    dtype: str
    shape: tuple[str | int, ...]
    meaning: str
    vocabulary: str | None = None


@dataclass(frozen=True)
class Encoder:
    """A trained encoder, ready to be exported.

    Attributes:
        module: on the CPU; its ``forward`` takes a list of the inputs and gives float32 [rows, width].
        inputs: in the order of the list.
        width: of a vector.
        events: sentences that say which events make a sequence, and in which order.
        tables: vocabularies and other tables by name.
        source: the sequences of some clients in a history, to compare with.
        from_batch: the inputs out of a batch of the source.
    """

    module: nn.Module
    inputs: tuple[Input, ...]
    width: int
    events: tuple[str, ...]
    tables: Mapping[str, pl.DataFrame]
    source: Callable[[ChallengeData, npt.NDArray[np.int64]], Source]
    from_batch: Callable[[Batch], list[Tensor]]


class Exportable(ABC):
    """A fitted block whose encoder can be exported; others say why in ``not_exported``, a line, or say nothing."""

    @abstractmethod
    def encoder(self) -> Encoder:
        """The encoder.

        Raises:
            UserError: this one cannot be exported, and why.
        """


def encoder_of(name: str, block: object) -> Encoder:
    """The encoder of a fitted block.

    Raises:
        UserError: it cannot be exported, and why.
    """
    if not isinstance(block, Exportable):
        raise UserError(f"name={name}: cannot be exported: {getattr(block, 'not_exported', NO_NETWORK)}")
    return block.encoder()


def model_of(block: object) -> SequenceModel:
    """The model of a fitted block that can be exported."""
    model = block.model  # type: ignore[attr-defined]  # all of them have one
    if not isinstance(model, SequenceModel):
        raise TypeError(f"{type(block).__name__} has no sequence model")
    return model


# --- what the inputs are ------------------------------------------------------------------------------


LENGTHS_INPUT: Final = Input(LENGTHS, "int64", (ROWS,), "tokens of each sequence, at least 1; what stands behind does not count")  # noqa: E501  # fmt: skip
AGE_INPUT: Final = Input(AGE, "float32", (ROWS, TIME), "days from the event to as_of, with their fraction")


def token_input(name: str, meaning: str, vocabulary: str | None = None) -> Input:
    """An input of tokens."""
    return Input(name, "int64", (ROWS, TIME), meaning, vocabulary)


def vocabulary_table(vocabulary: Vocabulary) -> pl.DataFrame:
    """A vocabulary's ``value`` and ``token``, int64."""
    values = vocabulary.values.astype(np.int64)
    return pl.DataFrame({VALUE: values, TOKEN: np.arange(FIRST_TOKEN, FIRST_TOKEN + len(values), dtype=np.int64)})


def event_table(event_types: Sequence[EventType] = EVENT_TYPES) -> pl.DataFrame:
    """The token of each event type, as `vocabulary_table` has them."""
    tokens_of = {str(kind): FIRST_TOKEN + kind.code for kind in sorted(event_types, key=lambda kind: kind.code)}
    return pl.DataFrame({VALUE: list(tokens_of), TOKEN: list(tokens_of.values())}, schema_overrides={TOKEN: pl.Int64})


# --- windows ------------------------------------------------------------------------------------------


def window_places(lengths: Tensor, time: int, window: int) -> tuple[Tensor, Tensor]:
    """The windows of `ubp.training.windows.read_in_windows`, newest first, without a shape that depends on values.

    Args:
        lengths: int64 [rows].
        time: tokens of the longest sequence.
        window: tokens that are read at a time.

    Returns:
        int64 [rows, windows, window], the places of each window's tokens, and int64 [rows, windows], where each window
        ends: 0 or less for one that a short sequence does not have.
    """
    count = (time + window - 1) // window
    end = lengths[:, None] - torch.arange(count, device=lengths.device) * window
    begin = (end - window).clamp(min=0)
    return begin[:, :, None] + torch.arange(window, device=lengths.device), end


def gathered(values: Tensor, places: Tensor) -> Tensor:
    """What stands at the places: [rows, time, width] and [rows, windows, window] to [rows × windows, window, width]."""
    rows, count, window = places.shape
    at = places.clamp(max=values.shape[1] - 1).flatten(1)
    width = values.shape[2]
    return values.gather(1, at[:, :, None].expand(-1, -1, width)).reshape(rows * count, window, width)


class NextEventEncoder(nn.Module):
    """A `NextEventModel` from its columns to the vectors.

    Args:
        model: the trained model.
        names: of its inputs, in their order; the last is the lengths.
    """

    def __init__(self, model: NextEventModel, names: Sequence[str]) -> None:
        super().__init__()
        self.model, self.names = model, tuple(names)

    def forward(self, inputs: list[Tensor]) -> Tensor:
        """See `Encoder.module`."""
        batch = dict(zip(self.names, inputs, strict=True))
        time, lengths = inputs[0].shape[1], batch[LENGTHS]
        places, end = window_places(lengths, time, self.model.positions)
        parts = gathered(self.model.read(batch, time), places)
        outputs = self.model.transformer(parts, torch.zeros_like(parts[:, 0, 0], dtype=torch.int64))
        weights = self._weights(batch, places, end)
        outputs = outputs.reshape(*places.shape, outputs.shape[-1])
        vectors: Tensor = (outputs * weights[..., None]).sum(dim=(1, 2))
        return vectors

    def _weights(self, batch: Batch, places: Tensor, end: Tensor) -> Tensor:
        """Of each place in the vector: `ubp.training.windows.Pooling`, float [rows, windows, window]."""
        pooling = self.model.pooling
        if pooling.profile == LAST:
            return (places == batch[LENGTHS][:, None, None] - 1).float() * (end > 0).float()[:, :, None]
        real = (places < end[:, :, None]).float()
        if pooling.half_life is None:
            return real / pooling.newest
        ages = gathered(batch[AGE][:, :, None], places).reshape(places.shape)
        return real * torch.exp2(-ages / pooling.half_life) / pooling.half_life


def next_event_encoder(
    model: NextEventModel,
    inputs: tuple[Input, ...],
    event_types: str,
    newest: int,
    tables: Mapping[str, pl.DataFrame],
    source: Callable[[ChallengeData, npt.NDArray[np.int64]], Source],
) -> Encoder:
    """The encoder of a model that predicts the next event.

    Args:
        model: the trained model.
        inputs: its columns.
        event_types: which events it reads, in words.
        newest: of them, at the most.
        tables: see `Encoder`, as for ``source``.
        source: of sequences.
    """
    if model.pooling.half_life is not None:
        inputs = (*inputs, AGE_INPUT)
    inputs = (*inputs, LENGTHS_INPUT)
    names = [each.name for each in inputs]
    dtypes = [getattr(torch, each.dtype) for each in inputs]
    events = (
        f"a client's events of these types before as_of: {event_types}",
        "by time; of one second by the token of the event's type, then by what it is about",
        f"the newest {newest} of them",
    )

    def from_batch(batch: Batch) -> list[Tensor]:
        return [batch[name].to(dtype) for name, dtype in zip(names, dtypes, strict=True)]

    return Encoder(NextEventEncoder(model, names), inputs, model.width, events, tables, source, from_batch)


# --- writing ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measured:
    """How far onnxruntime's vectors are from torch's.

    Attributes:
        clients: that were compared.
        largest: difference of a number.
        scale: root mean square of torch's numbers.
    """

    clients: int
    largest: float
    scale: float

    @property
    def relative(self) -> float:
        """The largest difference as a share of the scale."""
        return self.largest / max(self.scale, 1e-30)


def module_named(name: str) -> Any:  # noqa: ANN401 (a module that may be absent)
    """One of the libraries that exporting needs.

    Raises:
        UserError: it is missing.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(f"{name} is missing: pip install -e .[export]") from error


def require_libraries() -> None:
    """Make sure that exporting can begin.

    Raises:
        UserError: one of onnx, onnxscript and onnxruntime is missing.
    """
    for name in ("onnx", "onnxscript", "onnxruntime"):
        module_named(name)


def write_onnx(encoder: Encoder, file: Path) -> None:
    """Write an encoder's graph with its weights; all axes called `ROWS` and `TIME` may have any length.

    Args:
        encoder: the encoder.
        file: the ``.onnx``.

    Raises:
        UserError: a library is missing.
    """
    require_libraries()
    shapes = [
        {place: axis for place, axis in enumerate(each.shape) if isinstance(axis, str)} for each in encoder.inputs
    ]
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            encoder.module.eval(),
            (_example(encoder.inputs),),
            dynamo=True,
            opset_version=OPSET,
            input_names=[each.name for each in encoder.inputs],
            output_names=[OUTPUT],
            dynamic_shapes=(shapes,),
            verbose=False,
        )
        if program is None:
            raise RuntimeError("torch's exporter gave no program")
        program.save(str(file), external_data=False)


def _example(inputs: Sequence[Input]) -> list[Tensor]:
    """Any inputs of the right shapes: three sequences of five tokens."""
    sizes = {ROWS: 3, TIME: 5}
    shapes = [[sizes[axis] if isinstance(axis, str) else axis for axis in each.shape] for each in inputs]
    return [torch.ones(shape, dtype=getattr(torch, each.dtype)) for shape, each in zip(shapes, inputs, strict=True)]


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch's exporter says of itself."""
    loggers = [logging.getLogger(name) for name in ("torch", "onnx_ir", "onnxscript")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


def run_onnx(file: Path, inputs: Mapping[str, npt.NDArray[Any]]) -> npt.NDArray[np.float32]:
    """What onnxruntime makes of inputs on a CPU, by one thread: float32 [rows, width].

    Raises:
        UserError: onnxruntime is missing.
    """
    runtime = module_named("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1
    session = runtime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    vectors: npt.NDArray[np.float32] = session.run([OUTPUT], dict(inputs))[0]
    return vectors


def difference(
    encoder: Encoder,
    encode: Callable[[Batch], Tensor],
    file: Path,
    history: ChallengeData,
    clients: npt.NDArray[np.int64],
) -> Measured:
    """How far onnxruntime's vectors of some clients are from those that the model itself gives.

    Args:
        encoder: that was written.
        encode: the model's own: a batch in, float [rows, width] out.
        file: the ``.onnx``.
        history: of the clients.
        clients: int64, ascending, with events that the block reads.
    """
    source = encoder.source(history, clients)
    batch = source.batch(np.arange(len(source.lengths)))
    with torch.inference_mode():
        wanted = encode(batch).float().numpy()
    names = [each.name for each in encoder.inputs]
    inputs = dict(zip(names, (tensor.numpy() for tensor in encoder.from_batch(batch)), strict=True))
    found = run_onnx(file, inputs)
    return Measured(len(wanted), float(np.abs(found - wanted).max()), float(np.sqrt((wanted**2).mean())))


@dataclass(frozen=True)
class Note:
    """What the JSON beside a graph says.

    Attributes:
        name: of the block.
        encoder: the encoder.
        tolerance: the largest difference from torch that was allowed, as a share of the root mean square.
        measured: the difference.
        made_from: the lineage of the fit, in short.
    """

    name: str
    encoder: Encoder
    tolerance: float
    measured: Measured
    made_from: dict[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Whatever JSON holds."""
        measured = {"clients": self.measured.clients, "largest": self.measured.largest, "rms": self.measured.scale}
        versions = {name: module_named(name).__version__ for name in ("torch", "onnx", "onnxruntime")}
        return {
            "name": self.name,
            "graph": f"{self.name}.onnx",
            "opset": OPSET,
            "inputs": [self._input(each) for each in self.encoder.inputs],
            "output": {"name": OUTPUT, "dtype": "float32", "shape": [ROWS, self.encoder.width]},
            "events": list(self.encoder.events),
            "special_tokens": {token.name.lower(): int(token) for token in Token},
            "tables": {name: f"{self.name}.{name}.parquet" for name in self.encoder.tables},
            "tolerance": self.tolerance,
            "measured": measured | {"largest_over_rms": self.measured.relative},
            "versions": versions,
            "made_from": self.made_from,
        }

    def _input(self, given: Input) -> dict[str, Any]:
        described = {**asdict(given), "shape": list(given.shape)}
        if given.vocabulary:
            return described | {"vocabulary": f"{self.name}.{given.vocabulary}.parquet"}
        del described["vocabulary"]
        return described


def export(
    name: str,
    encoder: Encoder,
    encode: Callable[[Batch], Tensor],
    folder: Path,
    compared: tuple[ChallengeData, npt.NDArray[np.int64]],
    tolerance: float,
    made_from: dict[str, Any],
) -> Measured:
    """Write ``NAME.onnx``, ``NAME.json`` and the tables into a folder, which appears whole or not at all.

    Args:
        name: of the block.
        encoder: of it.
        encode: the model's own, see `difference`.
        folder: replaced where it is there.
        compared: a history and some of its clients, whose vectors are compared.
        tolerance: the largest difference allowed, as a share of the vectors' root mean square.
        made_from: for the JSON.

    Raises:
        UserError: a library is missing, or onnxruntime's vectors differ by more.
    """
    with atomic_write(folder) as aside:
        aside.mkdir()
        graph = aside / f"{name}.onnx"
        write_onnx(encoder, graph)
        measured = difference(encoder, encode, graph, *compared)
        if not measured.relative <= tolerance:
            raise UserError(
                f"name={name}: onnxruntime's vectors are up to {measured.relative:.1e} of their size from torch's, "
                f"more than tolerance={tolerance}; nothing is written"
            )
        for table, rows in encoder.tables.items():
            rows.write_parquet(aside / f"{name}.{table}.parquet")
        note = Note(name, encoder, tolerance, measured, made_from)
        (aside / f"{name}.json").write_text(json.dumps(note.as_json(), indent=2, ensure_ascii=False) + "\n")
    return measured
