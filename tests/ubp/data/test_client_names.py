"""Clients by the log's own ids, or by the integers that the library gave them."""

import numpy as np
import polars as pl
import pytest

from ubp.data.client_names import ClientNames
from ubp.data.paths import DataPaths
from ubp.io.errors import UserError


@pytest.fixture
def paths(tmp_path) -> DataPaths:
    (tmp_path / "raw").mkdir()
    return DataPaths(tmp_path)


def give_ids(paths, originals):
    table = pl.DataFrame({"id": range(1, len(originals) + 1), "original": originals})
    table.write_parquet(paths.raw / "ids_client.parquet")


def test_own_ids_go_both_ways(paths):
    give_ids(paths, ["2", "DE1", "DE2"])
    names = ClientNames.of(paths)
    assert [names.client(name) for name in ("DE1", "DE2")] == [2, 3]
    assert names.client("2") == 1  # an own id comes before the library's integer
    assert names.client("3") == 3
    assert names.names(np.array([3, 1, 9, 3])).to_list() == ["DE2", "2", None, "DE2"]


def test_integers_that_stayed(paths):
    pl.DataFrame({"id": [7, 9], "original": [7, 9]}).write_parquet(paths.raw / "ids_client.parquet")
    names = ClientNames.of(paths)
    assert names.client("9") == 9
    assert names.names(np.array([9, 7])).to_list() == [9, 7]


def test_a_log_without_own_ids(paths):
    names = ClientNames.of(paths)
    assert names.table is None
    assert names.client("-5") == -5
    assert names.names(np.array([4, 2])).to_list() == [4, 2]


@pytest.mark.parametrize("name", ["DE3", "1.5", "", str(2**63)])
def test_a_client_that_is_none(paths, name):
    with pytest.raises(UserError) as caught:
        ClientNames.of(paths).client(name)
    assert caught.value.messages == [f"client={name}: not an integer"]
    give_ids(paths, ["DE1"])
    with pytest.raises(UserError, match=r"not an integer, nor an own id of ids_client\.parquet"):
        ClientNames.of(paths).client(name)


def test_a_file_that_is_no_table(paths):
    (paths.raw / "ids_client.parquet").write_text("x")
    with pytest.raises(UserError, match=r"ids_client\.parquet: not a table of ids"):
        ClientNames.of(paths)
