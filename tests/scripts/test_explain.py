"""The command on the tiny history: with and without windows to learn from, by own ids, on other days; its refusals."""

import numpy as np
import polars as pl
import pytest

from scripts import explain
from scripts.split import split
from tests.ubp.blocks.toy import make_purchases
from ubp.blocks.occlusion import ClientEvents
from ubp.cli.config import composed
from ubp.data.history import ChallengeData
from ubp.data.paths import CONFIGS
from ubp.data.split import SplitDates
from ubp.data.targets import TargetRules
from ubp.io.errors import UserError

WEIGHTS = (1.0, 0.0001, 0.001)


@pytest.fixture
def run(history, capsys):
    """Runs the command in this process; gives the explanation and the lines on stdout."""

    def call(*words):
        capsys.readouterr()
        given = [f"data_path={history.root}", "left_out.events=5", "left_out.others=10", *map(str, words)]
        found = explain.main(composed(CONFIGS / "scripts", "explain", given))
        return found, capsys.readouterr().out.splitlines()

    return call


@pytest.fixture
def paths(history):
    """The block of purchases, fitted on all events, and nothing that readers learn from."""
    history.input.mkdir()
    np.save(history.relevant_clients, ChallengeData(history, submit=True).seen())
    make_purchases(history, WEIGHTS)
    return history


@pytest.fixture
def local(history):
    """The same fitted on the events before the target windows, which are there."""
    data = ChallengeData(history, submit=True)
    split(data, SplitDates.of(data), TargetRules(), overwrite=False)
    make_purchases(history, WEIGHTS, submit=False)
    return history


@pytest.fixture
def client(history) -> int:
    buys = pl.read_parquet(history.raw / "product_buy.parquet")
    return int(buys.filter(pl.col("timestamp") < "2023-01-10")["client_id"].mode().sort()[0])


def test_without_windows_it_says_so_and_shows_moves_alone(run, paths, client, caplog):
    caplog.set_level("INFO")
    found, lines = run("name=purchases", f"client={client}", f"out={paths.root}/moves.parquet")
    assert found.readers == []
    assert any("no predictions: " in line for line in caplog.messages)
    assert found.client == client
    assert pl.read_parquet(paths.root / "moves.parquet").equals(found.moves)
    assert any(line.startswith("client ") and "the profile without…" in line for line in lines)
    assert lines[-1].startswith(f"purchases explained for client {client} · ")
    assert "an undisturbed copy of the client: 0.0e+00 of the profile's length off" in lines


@pytest.mark.usefixtures("paths")
def test_a_days_events_are_those_before_it(run, client):
    whole, _ = run("name=purchases", f"client={client}")
    earlier, lines = run("name=purchases", f"client={client}", "as_of=2023-01-10")
    assert len(earlier.events.table) < len(whole.events.table)
    assert earlier.events.table["timestamp"].max() < earlier.as_of
    assert any("as of 2023-01-10: the profile without" in line for line in lines)


def test_own_ids(run, paths, client):
    table = pl.DataFrame({"id": [client], "original": [f"DE{client}"]})
    table.write_parquet(paths.raw / "ids_client.parquet")
    found, lines = run("name=purchases", f"client=DE{client}")
    assert found.client == client
    assert lines[-1].startswith(f"purchases explained for client DE{client} · ")


def test_predictions_where_the_log_is_split(run, local, client, caplog):
    caplog.set_level("INFO")
    found, lines = run("name=purchases", f"client={client}", "readers.categories=1")
    assert found.as_of == ChallengeData(local, submit=False).as_of
    wanted = ClientEvents.of(ChallengeData(local, submit=False), client)
    assert found.events.table.equals(wanted.table)
    (reader,) = found.readers
    assert reader.name.startswith("category ")
    assert any(line.startswith(f"{reader.name}: read by a logistic regression, AUROC ") for line in lines)
    assert "churn is not read: 10 clients at least must have it, and 10 not" in caplog.messages  # so few churn
    none, _ = run("name=purchases", f"client={client}", "readers.clients=0")
    assert none.readers == []
    assert none.moves.equals(found.moves.select(none.moves.columns))


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["client=3"], "name: say which fitted block or merge: name=NAME; there are: purchases"),
        (["name=purchases"], "client: say whose profile: client=ID"),
        (["name=other", "client=3"], "name=other: neither a fitted block nor a fitted merge; there are: purchases"),
        (["name=purchases", "client=x"], "client=x: not an integer"),
        (["name=purchases", "client=-3"], "client=-3: no event before 2023-02-09"),
        (["name=purchases", "client=1", "rows=0"], "rows=0: must be at least 1"),
        (["name=purchases", "client=1", "left_out.days=-1"], "left_out.days=-1: must be at least 0"),
        (["name=purchases", "client=1", "readers.strength=0"], "readers.strength=0.0: must be above 0"),
    ],
)
@pytest.mark.usefixtures("paths")
def test_refusals(run, words, line):
    with pytest.raises(UserError) as caught:
        run(*words)
    (message,) = caught.value.messages
    assert message.startswith(line)
