"""What profiles rest on, as the page shows it, beside what `explain` says."""

import numpy as np
import polars as pl
import pytest

import ubp
from tests.conftest import synthetic
from ubp.data import schema
from ubp.evaluation.explanation import OcclusionSettings, explain
from ubp.report.rests import rests_of


@pytest.fixture(scope="module")
def history(tmp_path_factory):
    log = synthetic()
    paths = log.write(tmp_path_factory.mktemp("rests"))
    paths.relevant_clients.parent.mkdir()
    clients = pl.concat(table[schema.CLIENT_ID] for table in log.events.values()).unique().sort().to_numpy()
    np.save(paths.relevant_clients, clients)
    return ubp.open_history(paths.root)


def test_it_is_what_explain_says(history):
    fitted = ubp.fit("stat_features", history)
    client = int(history.clients[10])
    found = rests_of("stat_features", fitted, history, [client, -7], seed=3)
    assert list(found) == [client]  # nobody has the other id
    wanted = explain("stat_features", fitted, history, client, OcclusionSettings(0, 90, 200, False), seed=3)
    types = wanted.of_kind("event type").select("name", "events", "move").rows()
    assert found[client].types == sorted(types, key=lambda row: -row[2])
    assert len(types) >= 3
    days = wanted.of_kind("day")
    assert [str(day) for day, _, _ in found[client].days] == sorted(days["name"])
    assert sum(events for _, events, _ in found[client].days) == len(wanted.events.table)
    assert [move for _, _, move in found[client].days] == days.sort("name")["move"].to_list()
