"""What commands read of what others made, or strangers: blocks, entries, fitted blocks, targets, notes, caches.

Each command is run again on a data path where one such file is not what it was. It refuses, or its result is the one
that it has without that; a cache or a note that cannot be used is made anew.
"""

import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.conftest import synthetic
from tests.reliability.bad_settings import commands
from tests.reliability.mutations import HIGH, LOW, Must, Mutation, drawn, flipped, npy, truncated
from tests.reliability.trial import FOLDER, REMOVED, Content, Ended, Trials, all_end_well
from ubp.blocks.embeddings import LINEAGE, EmbeddingTable
from ubp.evaluation.scores import Scores

LONG: Final = 28  # mutations of each command
QUICK: Final = 1

_LINES: Final = commands()
_AGAIN: Final = "overwrite=True"


@dataclass(frozen=True)
class Reader:
    """A command, and the files that it reads of what others made.

    Attributes:
        words: of the command line.
        reads: patterns below the data path.
        makes: what it writes, below the data path; empty for nothing.
    """

    words: Sequence[str]
    reads: tuple[str, ...]
    makes: str = ""


_BLOCKS: Final = "embeddings_local/[as]*.parquet"
_STORE: Final = ("cache/sequences/*/*", "cache/sequences/.done/*.json")
READERS: Final = {
    "merge": Reader(
        [*_LINES["merge"], _AGAIN], (_BLOCKS, _BLOCKS, "embeddings_local/.done/basics.json"), "embeddings_local/basics"
    ),
    "evaluate": Reader(
        [*_LINES["evaluate"], _AGAIN],
        ("embeddings_local/basics/*.npy", "raw/target/*", "raw/input/*.npy", "embeddings_local/basics/scores*"),
        "embeddings_local/basics/scores_quick.json",
    ),
    "evaluate a block": Reader(
        ["scripts/evaluate.py", "embeddings=[stat_features]", *_LINES["evaluate"][2:]],
        ("embeddings_local/stat_features.parquet", "raw/target/*.npy", "cache/checked/*"),
        "embeddings_local/stat_features.scores_quick.json",
    ),
    "validate": Reader(["scripts/validate.py"], ("embeddings_local/basics/*.npy", "raw/input/*.npy")),
    "encode a merge": Reader(
        ["scripts/encode.py", "name=basics", "submit=False"],
        ("models/basics/local/*", "models/[as]*/local/*", "cache/checked/*"),
        "encoded/basics/*.parquet",
    ),
    "encode a block": Reader(
        ["scripts/encode.py", "name=stat_features", "submit=False"],
        ("models/stat_features/local/*",),
        "encoded/stat_features/*.parquet",
    ),
    "encode a network": Reader(
        ["scripts/encode.py", "name=next_sku_128_4_4", "submit=False"],
        ("models/next_sku_128_4_4/local/*",),
        "encoded/next_sku_128_4_4/*.parquet",
    ),
    "encode some": Reader(
        ["scripts/encode.py", "name=stat_features", "submit=False", "clients=CLIENTS"],
        ("some.npy", "some.parquet"),
        "encoded/stat_features/*.parquet",
    ),
    "stat_features": Reader(
        [*_LINES["stat_features"], _AGAIN],
        (
            "embeddings_local/.done/stat_features.parquet.json",
            "models/stat_features/local/*",
            "embeddings_local/stat_features.parquet",
        ),
        "embeddings_local/stat_features.parquet",
    ),
    "next_sku": Reader([*_LINES["next_sku_128_4_4"], _AGAIN], _STORE, "embeddings_local/next_sku_128_4_4.parquet"),
    "numeric_features_wide": Reader(
        [*_LINES["numeric_features_wide"], _AGAIN],
        (
            "raw/target/propensity_*.npy",
            "cache/relevant_events/*/*",
            "cache/relevant_events/*/*/*",
            "cache/relevant_events/.done/*.json",
        ),
        "embeddings_local/numeric_features_wide.parquet",
    ),
    "split": Reader(
        ["scripts/split.py"],
        ("raw/input/.done/*.json", "raw/target/*.parquet", "raw/input/*.parquet"),
        "raw/target/*.parquet",
    ),
}


# --- mutations --------------------------------------------------------------------------------------------------------


def block_like(
    ids: Any, vectors: Any, lineage: Any = b"{}", names: Sequence[str] = ("client_id", "embedding")
) -> bytes:
    """A parquet such as somebody may have written with Arrow."""
    file = io.BytesIO()
    table = pa.table(dict(zip(names, (ids, vectors), strict=True)))
    pq.write_table(table.replace_schema_metadata({LINEAGE.encode(): lineage}), file)
    return file.getvalue()


def wrong_block(rng: np.random.Generator, content: bytes) -> tuple[str, str, Content, Must]:
    """Kind, words, and a parquet that is hardly a block."""
    table = pq.read_table(io.BytesIO(content))
    lineage = table.schema.metadata[LINEAGE.encode()]
    ids = table["client_id"].to_numpy()
    matrix = np.stack(table["embedding"].to_numpy(zero_copy_only=False)).astype(np.float32)

    def vectors(of: np.ndarray, kind: pa.DataType | None = None) -> pa.Array:
        flat = pa.array(of.reshape(-1))
        return pa.FixedSizeListArray.from_arrays(flat, of.shape[1]) if kind is None else pa.array(list(of), kind)

    def with_value(value: float) -> np.ndarray:
        changed = matrix.copy()
        changed[rng.random(matrix.shape) < drawn(rng, (0.001, 0.2, 1.0))] = value
        changed[0, 0] = value
        return changed

    usual, refused, either = vectors(matrix), Must.REFUSED, Must.EITHER
    value = drawn(rng, (np.nan, np.inf, -np.inf))
    large = drawn(rng, (3e38, -3e38, 1e-45, 65_504.0, 1e20))
    nulls = pa.array([None if rng.random() < 0.3 else number for number in matrix.reshape(-1).tolist()], pa.float32())
    options: dict[tuple[str, str], tuple[Content, Must]] = {
        ("NaN and infinities", f"vectors with {value}"): (
            block_like(ids, vectors(with_value(value)), lineage),
            refused,
        ),
        ("NaN and infinities", f"vectors with {large}"): (block_like(ids, vectors(with_value(large)), lineage), either),
        ("types", "vectors as float64"): (block_like(ids, vectors(matrix.astype(np.float64)), lineage), refused),
        ("types", "vectors as float16"): (block_like(ids, vectors(matrix.astype(np.float16)), lineage), refused),
        ("types", "vectors as int64"): (block_like(ids, vectors(matrix.astype(np.int64)), lineage), refused),
        ("types", "vectors as lists"): (block_like(ids, vectors(matrix, pa.list_(pa.float32())), lineage), refused),
        ("types", "vectors as text"): (block_like(ids, pa.array(["[0.5]"] * len(ids)), lineage), refused),
        ("types", "numbers for vectors"): (block_like(ids, pa.array(matrix[:, 0]), lineage), refused),
        ("types", "ids as int32"): (block_like(ids.astype(np.int32), usual, lineage), refused),
        ("types", "ids as uint64"): (block_like(ids.astype(np.uint64), usual, lineage), refused),
        ("types", "ids as floats"): (block_like(ids.astype(np.float64), usual, lineage), refused),
        ("types", "ids as text"): (block_like(pa.array(ids.astype(str).tolist()), usual, lineage), refused),
        ("nulls", "in ids"): (block_like(pa.array([None, *ids[1:].tolist()], pa.int64()), usual, lineage), refused),
        ("nulls", "in vectors"): (
            block_like(ids, pa.FixedSizeListArray.from_arrays(nulls, matrix.shape[1]), lineage),
            refused,
        ),
        ("nulls", "for vectors"): (
            block_like(ids, pa.array([None, *matrix[1:].tolist()], pa.list_(pa.float32(), matrix.shape[1])), lineage),
            refused,
        ),
        ("duplicate rows", "a client twice"): (
            block_like(np.append(ids, ids[3]), vectors(np.vstack([matrix, matrix[3]])), lineage),
            refused,
        ),
        ("duplicate rows", "all twice"): (
            block_like(np.append(ids, ids), vectors(np.vstack([matrix, matrix])), lineage),
            refused,
        ),
        ("negative and huge ids", "strangers alone"): (block_like(LOW + np.arange(len(ids)), usual, lineage), either),
        ("negative and huge ids", "a stranger more"): (
            block_like(np.append(ids, LOW), vectors(np.vstack([matrix, matrix[3]])), lineage),
            Must.SAME,
        ),
        ("missing, extra and renamed columns", "vectors called vectors"): (
            block_like(ids, usual, lineage, ("client_id", "vectors")),
            refused,
        ),
        ("missing, extra and renamed columns", "ids called id"): (
            block_like(ids, usual, lineage, ("id", "embedding")),
            refused,
        ),
        ("empty and wrong files", "no rows"): (block_like(ids[:0], vectors(matrix[:0]), lineage), either),
        ("empty and wrong files", "no lineage"): (block_like(ids, usual), Must.SAME),
        ("lineage", "no JSON"): (block_like(ids, usual, b"{"), refused),
        ("lineage", "a list"): (block_like(ids, usual, b"[1]"), either),
        ("lineage", "null"): (block_like(ids, usual, b"null"), either),
        ("lineage", "text"): (block_like(ids, usual, b'"x"'), either),
        ("lineage", "no UTF-8"): (block_like(ids, usual, b"\xff\xfe"), either),
        ("lineage", "numbers for names"): (
            block_like(ids, usual, b'{"name": 3, "fingerprint": 4, "report": 5}'),
            either,
        ),
        ("lineage", "another history"): (
            block_like(ids, usual, lineage.replace(b'"fingerprint": "', b'"fingerprint": "0')),
            either,
        ),
        ("lineage", "a path for a name"): (
            block_like(ids, usual, lineage.replace(b'"name": "', b'"name": "../../')),
            either,
        ),
    }
    kind, what = drawn(rng, list(options))
    return kind, what, *options[kind, what]


def wrong_array(rng: np.random.Generator, content: bytes) -> tuple[str, str, Content, Must]:
    """Kind, words, and a .npy file that is hardly the one that it was."""
    array = np.load(io.BytesIO(content))
    first = array.reshape(-1)[:1]
    last = array[-1:] if array.ndim else array
    options: dict[tuple[str, str], Content] = {
        ("types", "as float64"): npy(array.astype(np.float64)),
        ("types", "as float32"): npy(array.astype(np.float32)),
        ("types", "as int32"): npy(array.astype(np.int32)),
        ("types", "as uint64"): npy(array.astype(np.uint64)),
        ("types", "as text"): npy(array.astype(str)),
        ("types", "as bool"): npy(array.astype(bool)),
        ("types", "as complex numbers"): npy(array.astype(np.complex128)),
        ("types", "as days"): npy(array.astype(np.int64).astype("datetime64[D]")),
        ("types", "as records"): npy(np.zeros(len(array), [("id", np.int64)])),
        ("types", "as big-endian numbers"): npy(array.astype(array.dtype.newbyteorder(">"))),
        ("types", "as objects"): npy(array.astype(object), allow_pickle=True),
        ("types", "as objects, some text"): npy(
            np.array(["x", *array.reshape(-1)[1:].tolist()], object), allow_pickle=True
        ),
        ("types", "as objects, some None"): npy(
            np.array([None, *array.reshape(-1)[1:].tolist()], object), allow_pickle=True
        ),
        ("wrong shapes", "one dimension more"): npy(array[:, None]),
        ("wrong shapes", "no dimension"): npy(first.reshape(())),
        ("wrong shapes", "one row less"): npy(array[:-1]),
        ("wrong shapes", "one row more"): npy(np.concatenate([array, last])),
        ("wrong shapes", "in the order of columns"): npy(np.asfortranarray(array)),
        ("wrong shapes", "turned"): npy(array.T.copy() if array.ndim > 1 else array[::-1].copy()),
        ("duplicate rows", "the first twice"): npy(np.concatenate([array[:1], array])),
        ("empty and wrong files", "no rows"): npy(array[:0]),
        ("empty and wrong files", "no columns"): npy(array.reshape(len(array), -1)[:, :0]),
        ("empty and wrong files", "no bytes"): b"",
        ("empty and wrong files", "a folder"): FOLDER,
        ("empty and wrong files", "nothing"): REMOVED,
        ("empty and wrong files", "text"): b"1\n2\n3\n",
        ("empty and wrong files", "an archive"): _archive(array),
        ("NaN and infinities", "all NaN"): npy(
            np.full(array.shape, np.nan, array.dtype if array.dtype.kind == "f" else np.float64)
        ),
        ("NaN and infinities", "an infinity"): npy(_with(array, np.inf)),
        ("NaN and infinities", "a NaN"): npy(_with(array, np.nan)),
        ("negative and huge ids", "the lowest"): npy(_with(array, LOW)),
        ("negative and huge ids", "the highest"): npy(_with(array, HIGH)),
        ("negative and huge ids", "-1"): npy(_with(array, -1)),
    }
    kind, what = drawn(rng, list(options))
    return kind, what, options[kind, what], Must.EITHER


def _archive(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.savez(file, array)
    return file.getvalue()


def _with(array: np.ndarray, value: float) -> np.ndarray:
    """An array whose first number is another, as far as its type has it."""
    if array.dtype.kind == "f" or not np.isfinite(value):
        changed = array.astype(array.dtype if array.dtype.kind == "f" else np.float64)
        changed.reshape(-1)[:1] = np.float64(value)
    else:
        changed = array.copy()
        limits = np.iinfo(array.dtype)
        changed.reshape(-1)[:1] = min(max(int(value), limits.min), limits.max)
    return changed


def wrong_json(rng: np.random.Generator, content: bytes) -> tuple[str, str, Content, Must]:
    """Kind, words, and a note that says something else, or nothing."""
    values = json.loads(content)
    flat = [key for key in values if isinstance(values, dict)]
    key = drawn(rng, flat) if flat else ""
    without = {name: value for name, value in values.items() if name != key} if flat else {}
    other = drawn(rng, (None, 0, -1, "x", [], {}, [1], {"x": 1}, 1e308, True))
    options: dict[tuple[str, str], Content] = {
        ("types", f"{key} is {other!r}"): json.dumps({**without, key: other}).encode(),
        ("types", f"all is {other!r}"): json.dumps(other).encode(),
        ("missing, extra and renamed columns", f"without {key}"): json.dumps(without).encode(),
        ("missing, extra and renamed columns", "one more"): json.dumps({**values, "#": 1} if flat else [1]).encode(),
        ("NaN and infinities", f"{key} is NaN"): json.dumps({**without, key: float("nan")}).encode(),
        ("empty and wrong files", "no bytes"): b"",
        ("empty and wrong files", "no UTF-8"): b"\xff\xfe\x00",
        ("empty and wrong files", "a folder"): FOLDER,
        ("empty and wrong files", "nothing"): REMOVED,
        ("empty and wrong files", "deep"): b"[" * 100_000,
    }
    kind, what = drawn(rng, list(options))
    return kind, what, options[kind, what], Must.EITHER


def wrong_bytes(rng: np.random.Generator, content: bytes) -> tuple[str, str, Content, Must]:
    """Kind, words, and some of a file's bytes."""
    if rng.random() < 0.5:
        return "truncated files", *truncated(rng, content), Must.EITHER
    return "flipped bits", *flipped(rng, content), Must.EITHER


def wrong(rng: np.random.Generator, file: Path, name: str) -> Mutation:
    """Something wrong with a file of any of these kinds."""
    content = file.read_bytes()
    makers: list[Callable[..., tuple[str, str, Content, Must]]] = [wrong_bytes]
    if name.startswith("embeddings") and file.suffix == ".parquet":
        makers = [wrong_bytes, wrong_block, wrong_block]
    elif file.suffix == ".npy":
        makers = [wrong_bytes, wrong_array, wrong_array]
    elif file.suffix == ".json":
        makers = [wrong_bytes, wrong_json, wrong_json]
    kind, what, changed, must = drawn(rng, makers)(rng, content)
    return Mutation(kind, f"{name}: {what}", {name: changed}, must)


# --- trials -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bases() -> dict[str, Path]:
    return {}


def with_blocks(root: Path, names: Sequence[str], trials: Trials) -> None:
    synthetic().write(root)
    for name in names:
        assert not trials.run(root, _LINES[name]).refused, name


QUICK_BASE: Final = ("split", "stat_features", "als_64_buy_add_categories", "als_64_visits_relevant", "merge")
NETWORKS: Final = ("next_sku_128_4_4", "numeric_features_wide")


@pytest.fixture
def make_trials(bases, tmp_path_factory, tmp_path, monkeypatch, capfd) -> Callable[[bool], Trials]:
    """Trials on a data path with blocks, an entry and scores; with networks and their caches too."""

    def make(all_of_it: bool) -> Trials:
        key = str(all_of_it)
        if key not in bases:
            root = tmp_path_factory.mktemp("made") / "data"
            trials = Trials(root, tmp_path, monkeypatch, capfd)
            with_blocks(root, [*QUICK_BASE, *(NETWORKS if all_of_it else ())], trials)
            assert not trials.run(root, _LINES["evaluate"]).refused
            clients = np.load(root / "raw/input/relevant_clients.npy")[::3]
            np.save(root / "some.npy", clients)
            pl.DataFrame({"client_id": clients}).write_parquet(root / "some.parquet")
            bases[key] = root
        return Trials(bases[key], tmp_path, monkeypatch, capfd)

    return make


def result(root: Path, reader: Reader) -> Any:
    """What a command made, in a form that can be compared."""
    if not reader.makes:
        return None
    (found, *_) = sorted(root.glob(reader.makes))
    if found.suffix == ".json":
        return Scores.load(found).tasks
    if reader.makes.startswith("raw"):
        return [pl.read_parquet(file).rows() for file in sorted(root.glob(reader.makes))]
    table = EmbeddingTable.read(found)
    return table.client_ids, table.vectors


def same(left: Any, right: Any) -> bool:
    if isinstance(left, tuple):
        return all(np.array_equal(one, other) for one, other in zip(left, right, strict=True))
    return bool(left == right)


def words_for(reader: Reader, root: Path, name: str) -> list[str]:
    words = [word.replace("CLIENTS", str(root / name)) for word in reader.words]
    return [*words, f"entry={root}/embeddings_local/basics"] if words == ["scripts/validate.py"] else words


def look_at(ended: Ended, mutation: Mutation, name: str) -> None:
    assert mutation.must != Must.SAME or not ended.refused, ended.lines
    own = name in ended.out  # what it makes itself it makes again, whatever lies there
    assert mutation.must != Must.REFUSED or ended.refused or own, "not refused"
    if ended.refused:
        parts = Path(name).parts
        named = {parts[-1], parts[-1].removesuffix(".parquet"), "/".join(parts[:-1]), *parts[1:2]}
        # Another list of clients makes another file a wrong one.
        is_named = any(part in line for part in named for line in ended.lines) or name.endswith("clients.npy")
        assert is_named, f"does not name {name}: {ended.lines}"
        assert all(len(line) < 700 for line in ended.lines), ended.lines


# Whoever changes values of these changes what is asked for, or what is there to be read.
_INPUTS: Final = ("raw/target", "raw/input", "embeddings_local/basics/", "some.", "embeddings_local")


def of_made(what: str, seeds: range, trials: Trials, counts) -> Iterator[tuple[str, Callable[[], None]]]:
    reader, undisturbed = READERS[what], list[Any]()
    files = sorted(
        {
            file
            for pattern in reader.reads
            for file in trials.base.glob(pattern)
            if file.is_file() and file.stat().st_size
        }
    )
    assert files, reader.reads

    def expected() -> Any:
        if not undisturbed:
            with trials.copy({}) as root:
                ended = trials.run(root, words_for(reader, root, "some.npy"))
                assert not ended.refused, ended.lines
                undisturbed.append(result(root, reader))
        return undisturbed[0]

    for seed in seeds:
        rng = np.random.default_rng([seed, len(what)])
        file = drawn(rng, files)
        name = str(file.relative_to(trials.base))
        mutation = wrong(rng, file, name)

        def trial(mutation: Mutation = mutation, name: str = name) -> None:
            wanted = expected()
            with trials.copy(mutation.files) as root:
                ended = trials.run(root, words_for(reader, root, name))
                look_at(ended, mutation, name)
                if not ended.refused:
                    found = result(root, reader)
                    is_block = name.endswith(".parquet") and mutation.kind == "flipped bits"  # it has checksums
                    is_input = name.startswith(_INPUTS) and mutation.must != Must.SAME and not is_block
                    assert is_input or same(found, wanted), "another result"
            counts[f"bad inputs: made files: {mutation.kind}: {'refused' if ended.refused else 'right results'}"] += 1

        yield f"{seed} {what}: {mutation}", trial


QUICK_READERS: Final = ("merge", "evaluate a block", "validate", "encode a merge", "encode some")


def test_made_files(make_trials, counts):
    trials = make_trials(False)
    all_end_well({what: trial for name in QUICK_READERS for what, trial in of_made(name, range(QUICK), trials, counts)})


@pytest.mark.long
@pytest.mark.parametrize("what", READERS)
def test_many_made_files(what, make_trials, counts):
    all_end_well(dict(of_made(what, range(LONG), make_trials(True), counts)))
