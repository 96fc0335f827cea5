"""The lists of the tasks as they are read: what is open, what is no list of numbers. Their making: test_tasks.py."""

import numpy as np
import pytest

from ubp.data.paths import DataPaths
from ubp.data.targets import OPEN_COLUMNS, TASKS, load_targets, open_targets, target_files
from ubp.io.errors import UserError

SKU = next(task for task in TASKS if task.name == "propensity_sku")


@pytest.fixture
def write(tmp_path):
    """Writes the two lists of a task; returns the paths."""
    paths = DataPaths(tmp_path)

    def lists(task, values, popularity):
        paths.target.mkdir(parents=True, exist_ok=True)
        for file, array in zip(target_files(paths, task), (values, popularity), strict=True):
            np.save(file, array)
        return paths

    return lists


def test_the_open_tasks():
    assert [task.name for task in TASKS if task.is_open] == ["churn", "propensity_category", "propensity_sku"]
    assert OPEN_COLUMNS == ("category", "sku")


def test_of_the_open_tasks_the_values_ascend_and_each_is_there_once(write):
    for task in TASKS:
        if task.is_propensity:
            paths = write(task, np.array([7, 3, 7, 5]), np.array([90.0, 80.0, 70.0, 60.0]))
    assert {column: found.tolist() for column, found in open_targets(paths).items()} == {
        "category": [3, 5, 7],
        "sku": [3, 5, 7],
    }
    target_files(paths, SKU)[0].unlink()
    assert list(open_targets(paths)) == ["category"]


@pytest.mark.parametrize(
    "values",
    [
        np.array([4, 2], np.uint8),
        np.array([4.0, 2.0], np.float32),
        np.array([4, 2], object),
    ],
    ids=lambda values: str(values.dtype),
)
def test_numbers_of_any_type_that_are_whole(write, values):
    found = load_targets(write(SKU, values, np.array([2, 1])), SKU)
    assert (found.values.dtype, found.popularity.dtype) == (np.int64, np.float64)
    assert (found.values.tolist(), found.popularity.tolist()) == ([4, 2], [2.0, 1.0])


@pytest.mark.parametrize("dtype", [np.int64, np.float64, object])
def test_an_empty_list_is_one(write, dtype):
    nothing = np.array([], dtype)
    assert load_targets(write(SKU, nothing, nothing), SKU).values.tolist() == []


@pytest.mark.parametrize(
    ("values", "popularity", "reason"),
    [
        ([1.5, 2.0], [1.0, 1.0], "not all of its 2 values are int64"),
        (np.array([2**63, 1], np.uint64), [1.0, 1.0], "not all of its 2 values are int64"),
        (np.array([2**70, 1], object), [1.0, 1.0], "object, no numbers"),
        (["1", "2"], [1.0, 1.0], "<U1, no numbers"),
        ([True, False], [1.0, 1.0], "bool, no numbers"),
        ([3 + 1j, 1], [1.0, 1.0], "complex128, no numbers"),
        (np.array([None, 1], object), [1.0, 1.0], "no numbers"),
        ([1e300, 1.0], [1.0, 1.0], "not all of its 2 values are int64"),
        ([np.nan, 1.0], [1.0, 1.0], "some of its values are not finite"),
        ([1, 2], [np.inf, 1.0], "some of its values are not finite"),
    ],
)
def test_what_is_no_list_of_numbers_is_refused(write, values, popularity, reason):
    paths = write(SKU, np.asarray(values), np.asarray(popularity))
    with pytest.raises(UserError, match=reason):
        load_targets(paths, SKU)


def test_a_list_in_the_place_of_a_number_is_refused(write):
    values = np.empty(2, object)
    values[:] = [[1, 2], 3]
    with pytest.raises(UserError, match=r"propensity_sku\.npy: not a readable \.npy file"):
        load_targets(write(SKU, values, np.ones(2)), SKU)


def test_a_file_that_is_missing_or_cannot_be_read_is_one_line(write):
    paths = write(SKU, np.arange(2), np.ones(2))
    for file in target_files(paths, SKU):
        whole = file.read_bytes()
        file.write_bytes(b"")
        with pytest.raises(UserError, match=rf"{file.name}: not a readable \.npy file.*make_targets") as caught:
            load_targets(paths, SKU)
        assert len(caught.value.messages) == 1
        file.unlink()
        with pytest.raises(UserError, match=rf"{file.name}: file missing.*make_targets"):
            load_targets(paths, SKU)
        file.write_bytes(whole)


@pytest.mark.parametrize(("values", "popularity"), [([1, 2], [1.0]), ([[1, 2]], [[1.0, 2.0]])])
def test_two_lists_that_do_not_fit(write, values, popularity):
    with pytest.raises(UserError, match=r"targets but .* popularities.*both must be one list of the same length"):
        load_targets(write(SKU, np.array(values), np.array(popularity)), SKU)
