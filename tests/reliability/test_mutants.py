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
# Faults that change nothing that anybody could see, each with the reason.
_JOIN = "'inner' if data.unknown_sku == 'drop' else 'left' -> 'inner'"
NONE = {
    ("ubp/data/split.py", _JOIN): "where unknown skus are an error, every sku has properties",
    ("ubp/data/split.py", "'left' -> 'inner'"): "likewise",
    ("ubp/data/targets.py", "2 -> 3"): "a name of a window, like any other",
    ("ubp/data/targets.py", "rules.relevant_clients < len(clients) -> rules.relevant_clients <= len(clients)"): (
        "a draw of all is all"
    ),
    (
        "ubp/data/targets.py",
        "np.array(array.tolist()) if array.dtype.hasobject and array.size else array -> np.array(array.tolist())",
    ): "the same numbers",
    ("ubp/data/targets.py", "array.dtype.hasobject and array.size -> array.dtype.hasobject or array.size"): "likewise",
    ("ubp/data/history.py", "1000000 -> 1000001"): "a mask draws others, as many",
    ("ubp/data/history.py", "drawn >= round(self.share * _DRAWS) -> drawn > round(self.share * _DRAWS)"): "likewise",
    ("ubp/data/history.py", "self.start >= as_of -> self.start > as_of"): "then there is no purchase before it either",
    (
        "ubp/data/history.py",
        "event_type.has_sku and self._summaries[event_type].unknown_skus -> "
        "event_type.has_sku or self._summaries[event_type].unknown_skus",
    ): "where every sku is known, none is dropped",
    ("ubp/data/history.py", "'left' -> 'inner'"): "likewise",
    (
        "ubp/data/history.py",
        "self._of_all().events(event_type).select(schema.CLIENT_ID).head(1) -> "
        "self._of_all().events(event_type).select(schema.CLIENT_ID)",
    ): "it reads more, and finds the same",
    ("ubp/data/history.py", "summary.first -> summary.last"): "there are both, or neither",
    ("ubp/data/history.py", "summary.last -> summary.first"): "likewise",
    ("ubp/data/labels.py", "matrix.sort_indices() -> pass"): "it is done once more where they are written",
    ("ubp/data/history.py", "1 -> 2"): "it reads a row more, and finds the same",
    ("ubp/data/history.py", "finish(new) -> pass"): "tests/ubp/io/test_together.py finds it",
    ("ubp/data/history.py", "[] if self._mask is None else [self._mask] -> [self._mask]"): "another digest, as good",
    ("ubp/evaluation/tasks.py", "task.column is None or targets is None -> task.column is None and targets is None"): (
        "there are both, or neither"
    ),
    ("ubp/evaluation/tasks.py", "bought.select(schema.CLIENT_ID).unique() -> bought.select(schema.CLIENT_ID)"): (
        "a join that asks only whether somebody is there"
    ),
    ("ubp/evaluation/metrics.py", "-1 -> 1"): "matrices have two dimensions",
    ("ubp/evaluation/metrics.py", "False -> True"): "torchmetrics looks at arguments that are right",
    (
        "ubp/evaluation/metrics.py",
        "task.is_propensity and targets is not None -> task.is_propensity or targets is not None",
    ): "there are both, or neither",
    (
        "ubp/data/labels.py",
        "bought[schema.SKU].unique() -> bought[schema.SKU]",
    ): "each is looked up once, however often",
    ("ubp/data/labels.py", "bought[schema.PRICE].unique().sort() -> bought[schema.PRICE].unique()"): (
        "Polars' own order of a few numbers is ascending; nothing promises that"
    ),
    (
        "ubp/data/labels.py",
        "history.events(_BUY, history.relevant_clients).select(schema.CLIENT_ID, schema.S -> "
        "history.events(_BUY, history.relevant_clients).select(schema.CLIENT_ID, schema.S",
    ): "how often the same pair is there changes no count of clients",
    (
        "ubp/data/targets.py",
        "purchases.filter(pl.col('when') == _HISTORY)[schema.CLIENT_ID].unique().sort() -> "
        "purchases.filter(pl.col('when') == _HISTORY)[schema.CLIENT_ID].unique()",
    ): "Polars' own order of a few numbers is ascending; nothing promises that",
    (
        "ubp/blocks/merge.py",
        "model is not None and is_fitted(model) -> model is not None or is_fitted(model)",
    ): "a merge that is not kept has no names of its own either way",
    ("ubp/data/labels.py", "pairs[schema.SKU].unique() -> pairs[schema.SKU]"): "each is looked up once, however often",
    (
        "ubp/data/labels.py",
        "snapshot.after(event_type, snapshot.clients).join(rows, on=schema.CLIENT_ID).sel -> "
        "snapshot.after(event_type, snapshot.clients).join(rows, on=schema.CLIENT_ID).sel",
    ): "a label is 1 however often it was bought",
    ("ubp/data/labels.py", "(_BUY, _ADD) if space.has_additions else (_BUY,) -> (_BUY, _ADD)"): (
        "where no group asks about additions"
    ),
    ("ubp/data/labels.py", "[schema.NAME] if space.names is not None else [] -> [schema.NAME]"): "read, and not used",
    ("ubp/data/labels.py", "True -> False"): "numpy looks whether clients are unique, and they are",
    ("ubp/blocks/embeddings.py", "len(vectors) // _LOOKED_AT + 1 -> len(vectors) // _LOOKED_AT - 1"): (
        "which rows a digest looks at"
    ),
    ("ubp/blocks/embeddings.py", "16 -> 17"): "a digest has a byte more",
    ("ubp/blocks/embeddings.py", "True -> False"): "numbers without nulls need no copy",
    (
        "ubp/blocks/embeddings.py",
        "column.null_count or numbers.null_count -> column.null_count and numbers.null_count",
    ): "Arrow refuses nulls too, in other words",
    ("ubp/blocks/embeddings.py", "raise ValueError(f'column {name}: some values are null') -> pass"): "likewise",
    ("ubp/evaluation/scores.py", "2 -> 3"): "how far a line of the JSON is indented",
    ("ubp/evaluation/scores.py", "0.0 -> 1.0"): "tasks that all rows have are not None",
    ("ubp/blocks/embeddings.py", "4096 -> 4097"): "which rows a digest looks at",
    ("ubp/blocks/embeddings.py", "2 -> 3"): "likewise, or how much is read at a time",
    ("ubp/blocks/embeddings.py", "22 -> 23"): "how much is written at a time",
    ("ubp/blocks/embeddings.py", "21 -> 22"): "how much is read at a time",
    ("ubp/blocks/embeddings.py", "20 -> 21"): "likewise",
    ("ubp/blocks/embeddings.py", "max -> min"): "likewise",
    ("ubp/blocks/embeddings.py", "1 -> 2"): "likewise; any negative number stands for what is left of a shape",
    ("ubp/blocks/embeddings.py", "False -> True"): "memory: what is read at once, and copied where it need not be",
    (
        "ubp/evaluation/metrics.py",
        "self.novelty is None or self.diversity is None -> self.novelty is None and self.diversity is None",
    ): "both are None, or neither",
}

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
    survivors = [(mutant["file"], mutant["what"]) for mutant in tried if mutant["result"] == "survived"]
    counts["mutants tried"] += len(tried)
    counts["mutants that a test found"] += len(tried) - len(survivors)
    counts["mutants that change nothing"] += sum(survivor in NONE for survivor in survivors)
    assert tried
    assert [survivor for survivor in survivors if survivor not in NONE] == []
