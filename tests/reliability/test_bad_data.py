"""The data's door: raw tables, client lists and targets that are wrong, through the commands that read them."""

import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from scripts import make_targets
from tests import tiny
from tests.conftest import synthetic
from tests.reliability.mutations import KINDS, Must, Mutation, Table, drawn, of_tables
from tests.reliability.trial import Ended, Trials, all_end_well
from ubp.blocks import registry
from ubp.blocks.embeddings import EmbeddingTable
from ubp.cli.config import composed
from ubp.data import schema
from ubp.data.history import ChallengeData
from ubp.data.paths import CONFIGS, DataPaths
from ubp.data.schema import EVENT_TYPES
from ubp.io.errors import UserError

QUICK: Final = 3  # mutations of each kind
LONG: Final = 70
DOOR: Final = "opened"  # no command: the history is opened and read
BLOCKS: Final = (
    *("stat_features", "als_64_buy_add_categories", "als_64_visits_relevant", "numeric_features", "lightfm"),
    *("next_sku_128_4_4", "gru_ae_event_cat_price_sku_url", "numeric_features_wide"),
)
EXACT: Final = ("stat_features", "numeric_features")  # whose vectors change by the order of sums alone


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """The tiny log with relevant clients and targets, times as text."""
    root = tmp_path_factory.mktemp("base") / "data"
    synthetic().write(root)
    make_targets.main(composed(CONFIGS / "scripts", "make_targets", [f"data_path={root}"]))
    return root


@pytest.fixture(scope="module")
def tables(base) -> Mapping[str, Table]:
    found: dict[str, Table] = {}
    for name in (*(event_type.file_name for event_type in EVENT_TYPES), schema.PRODUCT_PROPERTIES):
        found[name] = Table(f"raw/{name}", pl.read_parquet(base / "raw" / name), found)
    return found


@pytest.fixture
def trials(base, tmp_path, monkeypatch, capfd) -> Trials:
    return Trials(base, tmp_path, monkeypatch, capfd)


# --- what is right ----------------------------------------------------------------------------------------------------


def as_arrow_reads(root: Path) -> dict[str, pa.Table] | None:
    """The tables as another library than the project's reads them; None where it can't."""
    try:
        return {
            event_type: pq.read_table(root / "raw" / event_type.file_name).select(schema.event_columns(event_type))
            for event_type in EVENT_TYPES
        }
    except (pa.ArrowException, OSError, KeyError):
        return None


def rows_of(table: pl.DataFrame) -> Counter[tuple]:
    """How often each row occurs, times as times."""
    times = table[schema.TIMESTAMP]
    parsed = times.str.to_datetime(schema.TIMESTAMP_FORMAT) if times.dtype == pl.String else times
    return Counter(table.with_columns(parsed.cast(pl.Datetime("us"))).rows())


def opened_right(root: Path, undisturbed: Path) -> None:
    """The history as it is opened holds the rows that another library reads; all of them, where that can't."""
    history = ChallengeData(DataPaths(root), True)
    read = as_arrow_reads(root) or as_arrow_reads(undisturbed) or {}
    clients = set[int]()
    for event_type in EVENT_TYPES:
        theirs = rows_of(pl.DataFrame(pl.from_arrow(read[event_type])))
        assert rows_of(history.as_filed(event_type).select(schema.event_columns(event_type)).collect()) == theirs
        assert history.rows(event_type) == theirs.total()
        clients |= {row[0] for row in theirs}
    assert history.seen().tolist() == sorted(clients)


def vectors_of(root: Path, block: str) -> EmbeddingTable:
    return EmbeddingTable.read(DataPaths(root).block(block, submit=True))


def right(root: Path, block: str, undisturbed: EmbeddingTable | None, ids: Mapping[int, int]) -> None:
    """A block is one of the relevant clients with events; where nothing but the form changed, it is as it was."""
    found = vectors_of(root, block)  # finite, each client once
    history = ChallengeData(DataPaths(root), True)
    assert np.isin(found.client_ids, history.clients).all()
    if undisturbed is None:
        return
    known = [ids.get(client, client) for client in found.client_ids.tolist()]
    assert known == undisturbed.client_ids.tolist()
    if block in EXACT:
        np.testing.assert_allclose(found.vectors, undisturbed.vectors, rtol=1e-4, atol=1e-4)


# --- trials -----------------------------------------------------------------------------------------------------------


def command_of(block: str) -> list[str]:
    entry = registry.block(block)
    return [*entry.line.split(), *tiny.overrides(entry)]


def opened(root: Path) -> Ended:
    """What a command does first: the history is opened and read."""
    try:
        history = ChallengeData(DataPaths(root), True)
    except UserError as error:
        return Ended(1, error.messages, "")
    for event_type in EVENT_TYPES:
        history.with_properties(event_type).collect() if event_type.has_sku else history.events(event_type).collect()
    return Ended(0, [], "")


def look_at(ended: Ended, mutation: Mutation) -> None:
    """Refused where it must be, by lines that name the file; not where it must not."""
    if mutation.must in (Must.SAME, Must.RIGHT) and ended.refused:
        raise AssertionError(f"refused: {ended.lines}")
    if not ended.refused:
        assert mutation.must != Must.REFUSED, "not refused"
        return
    named = [Path(file).name for file in mutation.files]
    assert any(name in line for line in ended.lines for name in named), f"does not name the file: {ended.lines}"
    assert mutation.must == Must.EITHER or any(mutation.named in line for line in ended.lines), ended.lines
    assert all(len(line) < 700 for line in ended.lines), ended.lines


@pytest.fixture(scope="module")
def undisturbed(base, tmp_path_factory) -> Callable[[str, Trials], EmbeddingTable]:
    """A block of the log as it is, made once."""
    root, made = tmp_path_factory.mktemp("undisturbed") / "data", dict[str, EmbeddingTable]()
    shutil.copytree(base, root)

    def of(block: str, trials: Trials) -> EmbeddingTable:
        if block not in made:
            assert not trials.run(root, command_of(block)).refused
            made[block] = vectors_of(root, block)
        return made[block]

    return of


def of_data(
    seeds: range,
    doors: tuple[str, ...],
    tables: Mapping[str, Table],
    trials: Trials,
    undisturbed: Callable[[str, Trials], EmbeddingTable],
    counts: Counter[str],
) -> Iterator[tuple[str, Callable[[], None]]]:
    """Trials of mutated tables, each by one of the doors: a block's command, or `DOOR`."""
    for seed, (rng, mutation) in zip(seeds, of_tables(tables, seeds), strict=True):
        door = drawn(rng, doors)

        def trial(mutation: Mutation = mutation, door: str = door) -> None:
            same = undisturbed(door, trials) if mutation.must == Must.SAME and door != DOOR else None
            with trials.copy(mutation.files) as root:
                ended = opened(root) if door == DOOR else trials.run(root, command_of(door))
                look_at(ended, mutation)
                if not ended.refused:
                    opened_right(root, trials.base)
                if not ended.refused and door != DOOR:
                    right(root, door, same, mutation.ids)
            counts[f"bad inputs: data: {mutation.kind}: {'refused' if ended.refused else 'right results'}"] += 1

        yield f"{seed} {mutation} ({door})", trial


def test_tables(tables, trials, undisturbed, counts):
    all_end_well(dict(of_data(range(QUICK * len(KINDS)), (DOOR,), tables, trials, undisturbed, counts)))


@pytest.mark.long
def test_many_tables(tables, trials, undisturbed, counts):
    doors = (DOOR,) * 3 * len(BLOCKS) + BLOCKS
    all_end_well(dict(of_data(range(100, 100 + LONG * len(KINDS)), doors, tables, trials, undisturbed, counts)))
