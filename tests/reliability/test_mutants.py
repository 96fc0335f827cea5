"""No small fault in the rooms that decide what is right goes unnoticed by their own tests."""

import ast
import importlib
import json
import os
import subprocess
import sys
import time
from collections import Counter

import pytest

from tests.reliability.mutants import Mutated, changes, outcome
from ubp.data.paths import REPOSITORY

DATA, EVALUATION, BLOCKS = "tests/ubp/data", "tests/ubp/evaluation", "tests/ubp/blocks"
# The fast tests of each room; its faults are tried on these alone.
ROOMS = {
    "ubp/data/split.py": [f"{DATA}/test_split.py"],
    "ubp/data/snapshots.py": [f"{DATA}/test_snapshots.py"],
    "ubp/data/labels.py": [f"{DATA}/test_labels.py"],
    "ubp/data/targets.py": [f"{DATA}/test_targets.py", f"{EVALUATION}/test_tasks.py"],
    "ubp/data/history.py": [f"{DATA}/test_history.py", f"{DATA}/test_relevant_events.py", f"{DATA}/test_shards.py"],
    "ubp/evaluation/tasks.py": [f"{EVALUATION}/test_tasks.py"],
    "ubp/evaluation/metrics.py": [f"{EVALUATION}/test_metrics.py"],
    "ubp/evaluation/scores.py": [f"{EVALUATION}/test_scores.py"],
    "ubp/blocks/embeddings.py": [f"{BLOCKS}/test_embeddings.py"],
    "ubp/blocks/merge.py": [f"{BLOCKS}/test_merge.py", f"{BLOCKS}/test_fitted_merge.py"],
    "ubp/blocks/condition.py": [f"{BLOCKS}/test_condition.py"],
}
# Faults that change nothing that anybody could see, each with the reason: by the file, and what is changed; where that
# alone does not say which fault it is, also by the line that it is in.
Fault = str | tuple[str, str]
_SORTED = "Polars' own order of a few numbers is ascending; nothing promises that"
_BOTH = "there are both, or neither"
_READ = "how much is read at a time"
_OPENED = "with pq.ParquetFile(path, pre_buffer=False, buffer_size=_BUFFER, page_checksum_verification=True) as file:"
_AS_THEY_ARE = "return cls(client_ids.astype(np.int64, copy=False), vectors.astype(np.float32, copy=False), {})"
NONE: dict[str, dict[Fault, str]] = {
    "ubp/data/split.py": {
        "'inner' if data.unknown_sku == 'drop' else 'left' -> 'inner'": (
            "where unknown skus are an error, every sku has properties"
        ),
        ("'left' -> 'inner'", 'how: Literal["inner", "left"] = "inner" if data.unknown_sku == "drop" else "left"'): (
            "likewise"
        ),
    },
    "ubp/data/targets.py": {
        "2 -> 3": "a name of a window, like any other",
        "rules.relevant_clients < len(clients) -> rules.relevant_clients <= len(clients)": "a draw of all is all",
        "np.array(array.tolist()) if array.dtype.hasobject and array.size else array -> np.array(array.tolist())": (
            "the same numbers"
        ),
        "array.dtype.hasobject and array.size -> array.dtype.hasobject or array.size": "likewise",
        "purchases.filter(pl.col('when') == _HISTORY)[schema.CLIENT_ID].unique().sort() -> "
        "purchases.filter(pl.col('when') == _HISTORY)[schema.CLIENT_ID].unique()": _SORTED,
    },
    "ubp/data/history.py": {
        "1000000 -> 1000001": "a mask draws others, as many",
        "drawn >= round(self.share * _DRAWS) -> drawn > round(self.share * _DRAWS)": "likewise",
        (
            "self.start >= as_of -> self.start > as_of",
            "if as_of is not None and (self.start >= as_of or not self.has(EventType.PRODUCT_BUY)):",
        ): "then there is no purchase before it either",
        "event_type.has_sku and self._summaries[event_type].unknown_skus -> "
        "event_type.has_sku or self._summaries[event_type].unknown_skus": ("where every sku is known, none is dropped"),
        "'left' -> 'inner'": "likewise",
        "self._of_all().events(event_type).select(schema.CLIENT_ID).head(1) -> "
        "self._of_all().events(event_type).select(schema.CLIENT_ID)": "it reads more, and finds the same",
        (
            "1 -> 2",
            "return len(collect(self._of_all().events(event_type).select(schema.CLIENT_ID).head(1))) > 0",
        ): "likewise",
        (
            "summary.first -> summary.last",
            "if summary.first is None or (self._as_of is not None and summary.first >= self._as_of):",
        ): _BOTH,
        (
            "summary.first -> summary.last",
            "return _midnight(min(summary.first for summary in self._summaries.values() if summary.first))",
        ): _BOTH,
        (
            "summary.last -> summary.first",
            "last = max(summary.last for summary in self._summaries.values() if summary.last)",
        ): _BOTH,
        "finish(new) -> pass": "tests/ubp/io/test_together.py finds it",
        "[] if self._mask is None else [self._mask] -> [self._mask]": "another digest, as good",
    },
    "ubp/data/labels.py": {
        "matrix.sort_indices() -> pass": "it is done once more where they are written",
        "bought[schema.SKU].unique() -> bought[schema.SKU]": "each is looked up once, however often",
        "pairs[schema.SKU].unique() -> pairs[schema.SKU]": "likewise",
        "bought[schema.PRICE].unique().sort() -> bought[schema.PRICE].unique()": _SORTED,
        "history.events(_BUY, history.relevant_clients).select(schema.CLIENT_ID, schema.S -> "
        "history.events(_BUY, history.relevant_clients).select(schema.CLIENT_ID, schema.S": (
            "how often the same pair is there changes no count of clients"
        ),
        "snapshot.after(event_type, snapshot.clients).join(rows, on=schema.CLIENT_ID).sel -> "
        "snapshot.after(event_type, snapshot.clients).join(rows, on=schema.CLIENT_ID).sel": (
            "a label is 1 however often it was bought"
        ),
        "(_BUY, _ADD) if space.has_additions else (_BUY,) -> (_BUY, _ADD)": "where no group asks about additions",
        "[schema.NAME] if space.names is not None else [] -> [schema.NAME]": "read, and not used",
        (
            "True -> False",
            "churn = np.where(np.isin(clients, snapshot.active, assume_unique=True), 1 - bought, np.float32(np.nan))",
        ): "numpy looks whether clients are unique, and they are",
    },
    "ubp/evaluation/tasks.py": {
        "task.column is None or targets is None -> task.column is None and targets is None": _BOTH,
        "bought.select(schema.CLIENT_ID).unique() -> bought.select(schema.CLIENT_ID)": (
            "a join that asks only whether somebody is there"
        ),
    },
    "ubp/evaluation/metrics.py": {
        ("-1 -> 1", "shares = shares / shares.sum(dim=-1, keepdim=True)"): "matrices have two dimensions",
        ("-1 -> 1", "return -(shares * torch.log2(shares + _EPSILON)).sum(dim=-1)"): "likewise",
        (
            "-1 -> 1",
            "values, columns = torch.topk(torch.sigmoid(logits), min(_TOP, len(popularity)), dim=-1)",
        ): "likewise",
        ("-1 -> 1", "return (values * popularity[columns]).sum(dim=-1)"): "likewise",
        (
            "False -> True",
            "self._auroc = MultilabelAUROC(len(targets.values), validate_args=False).to(device)",
        ): "torchmetrics looks at arguments that are right",
        ("False -> True", "self._auroc = BinaryAUROC(validate_args=False).to(device)"): "likewise",
        "task.is_propensity and targets is not None -> task.is_propensity or targets is not None": _BOTH,
        "self.novelty is None or self.diversity is None -> self.novelty is None and self.diversity is None": _BOTH,
    },
    "ubp/evaluation/scores.py": {
        "2 -> 3": "how far a line of the JSON is indented",
        "0.0 -> 1.0": "tasks that all rows have are not None",
    },
    "ubp/blocks/embeddings.py": {
        "len(vectors) // _LOOKED_AT + 1 -> len(vectors) // _LOOKED_AT - 1": "which rows a digest looks at",
        ("1 -> 2", "some = vectors[:: len(vectors) // _LOOKED_AT + 1]"): "likewise",
        "4096 -> 4097": "likewise",
        "16 -> 17": "a digest has a byte more",
        (
            "True -> False",
            "found: npt.NDArray[Any] = numbers.to_numpy(zero_copy_only=True)",
        ): "numbers without nulls need no copy",
        "column.null_count or numbers.null_count -> column.null_count and numbers.null_count": (
            "Arrow refuses nulls too, in other words"
        ),
        "raise ValueError(f'column {name}: some values are null') -> pass": "likewise",
        "22 -> 23": "how much is written at a time",
        ("2 -> 3", "_GROUP = 2**22  # floats in a row group: writing holds as many a second time"): "likewise",
        ("1 -> 2", "return max(_GROUP // columns, 1)"): "likewise",
        ("max -> min", "return max(_GROUP // columns, 1)"): "likewise",
        "21 -> 22": _READ,
        (
            "2 -> 3",
            "_BATCH = 2**21  # floats decoded at a time, which takes four times their memory: repetition levels, "
            "growing buffers",
        ): _READ,
        ("1 -> 2", "for batch in file.iter_batches(max(_BATCH // columns, 1)):"): _READ,
        ("max -> min", "for batch in file.iter_batches(max(_BATCH // columns, 1)):"): _READ,
        "20 -> 21": _READ,
        ("2 -> 3", "_BUFFER = 2**20  # bytes read at a time"): _READ,
        ("False -> True", _OPENED): "memory: the whole file is read at once",
        ("False -> True", _AS_THEY_ARE): "memory: what need not be is copied",
        (
            "1 -> 2",
            "vectors[rows] = _without_nulls(batch, schema.EMBEDDING).reshape(-1, columns)",
        ): "any negative number stands for what is left of a shape",
        ("1 -> 2", "flat = pa.array(np.ascontiguousarray(vectors).reshape(-1))"): "likewise",
    },
    "ubp/blocks/merge.py": {
        "of_profile < of_blocks -> of_profile <= of_blocks": "a matrix more than is needed, and the same numbers",
        (
            "0 -> 1",
            "return np.empty((0, of_profile), np.float32), np.empty((clients, of_blocks), np.float32)",
        ): "only a rotation makes fewer columns, and then that matrix is not used",
        "whole if condition.rotation is None else None -> None": "a copy, and the same numbers",
    },
    "ubp/blocks/condition.py": {
        "32.0 -> 33.0": "a length like any other; tests take it by its name",
        "9.0 -> 10.0": "a ratio like any other; likewise",
        "4096 -> 4097": "how many rows are summed up, or looked at, at a time",
        (
            "1.0 -> 2.0",
            "chosen = [1.0] * len(widths) if weights is None else list(weights)",
        ): "a weight is beside the others",
        "of_block <= _ROUNDING * of_mean -> of_block < _ROUNDING * of_mean": "what has no spread is 0 already",
        "((sums + value) / np.sqrt(squares + value ** 2)).mean() <= RATIO -> "
        "((sums + value) / np.sqrt(squares + value ** 2)).mean() < RATIO": "no mean is the ratio to the last bit",
        ("2 -> 3", "return float(round(constant, 2))"): "they are a hundredth apart, and rounded for their last bits",
        (
            "1 -> 2",
            "return np.asarray(sum(squares, np.zeros(matrix.shape[1])) / max(len(matrix), 1))",
        ): "of one client every square is 0",
    },
}


def excused(file: str, what: str, text: str) -> bool:
    """Whether a fault is one of those that change nothing.

    Args:
        file: that it is in.
        what: is changed.
        text: the line that it is in, without the space around it.
    """
    return not {what, (what, text)}.isdisjoint(NONE.get(file, {}))


SOURCE = '''
"""A docstring with 1 < 2."""
import logging
logger = logging.getLogger(__name__)

def largest(values: "list[int]", least: int = 0) -> int:
    if not values:
        raise ValueError("no values of 3")
    logger.info("looks at %d", 5)
    found = least
    for value in values:
        if value > found and value != 7:
            found = value
    return max(found, least) + 1
'''


def test_the_faults_of_a_module():
    """Neither text, types, defaults' types nor log lines; each fault once."""
    found = [what for _, what, _ in changes(ast.parse(SOURCE))]
    assert found == [
        "0 -> 1",
        "not values -> values",
        "raise ValueError('no values of 3') -> pass",
        "value > found and value != 7 -> value > found or value != 7",
        "value > found -> value >= found",
        "value != 7 -> value == 7",
        "7 -> 8",
        "max(found, least) + 1 -> max(found, least) - 1",
        "max -> min",
        "1 -> 2",
    ]


@pytest.mark.parametrize(("number", "values", "given"), [(0, [0], 2), (3, [7], 8), (8, [1, 2], 1), (9, [1], 3)])
def test_a_module_is_imported_with_its_fault(number, values, given, tmp_path, monkeypatch):
    file = tmp_path / "faulty.py"
    file.write_text(SOURCE)
    monkeypatch.setattr(sys, "meta_path", [Mutated("faulty", file, number), *sys.meta_path])
    monkeypatch.delitem(sys.modules, "faulty", raising=False)
    assert importlib.import_module("faulty").largest(values) == given
    assert file.read_text() == SOURCE
    monkeypatch.delitem(sys.modules, "faulty")


def test_what_came_of_a_run():
    assert outcome(lambda: 0, 20) == "survived"
    assert outcome(lambda: 1, 20) == "killed"
    assert outcome(lambda: 1 // 0, 20) == "killed"
    assert outcome(lambda: time.sleep(60) or 0, 0.1) == "timeout"


@pytest.mark.parametrize("file", NONE)
def test_an_excuse_is_of_one_line(file):
    """What was looked at, and nothing else that reads alike; and none outlives its line."""
    text = (REPOSITORY / file).read_text()
    found = [(what, line, text.splitlines()[line - 1].strip()) for line, what, _ in changes(ast.parse(text))]
    for fault in NONE[file]:
        lines = {line for what, line, source in found if fault in (what, (what, source))}
        assert len(lines) == 1, (fault, lines)


@pytest.mark.long
@pytest.mark.parametrize("file", ROOMS)
def test_every_fault_is_found(file: str, counts: Counter[str], tmp_path):
    """All of them, or so many of each room as ``MUTANTS`` says."""
    words = [sys.executable, str(REPOSITORY / "tests/reliability/mutants.py"), file, *ROOMS[file]]
    words += [os.environ["MUTANTS"]] if "MUTANTS" in os.environ else []
    threads = {"OMP_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1", "HYPOTHESIS_STORAGE_DIRECTORY": str(tmp_path)}
    done = subprocess.run(words, cwd=REPOSITORY, env=os.environ | threads, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    tried = [json.loads(line) for line in done.stdout.splitlines()]
    survivors = [(mutant["what"], mutant["text"]) for mutant in tried if mutant["result"] == "survived"]
    counts["mutants tried"] += len(tried)
    counts["mutants that a test found"] += len(tried) - len(survivors)
    counts["mutants that change nothing"] += sum(excused(file, *survivor) for survivor in survivors)
    assert tried
    assert [survivor for survivor in survivors if not excused(file, *survivor)] == []
