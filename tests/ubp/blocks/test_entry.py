"""The entry: float16 that never overflows, and a validator that lists every violation."""

import re

import numpy as np
import pytest

from ubp.blocks import entry as entry_module
from ubp.blocks.entry import as_held, entry_files, read_entry, read_manifest, violations, write_entry
from ubp.io.errors import UserError

RELEVANT = np.array([40, 10, 30, 20])
IDS = np.array([10, 20, 30, 40])
PROFILES = np.linspace(-1, 1, 12, dtype=np.float16).reshape(4, 3)


def save(folder, ids, profiles):
    folder.mkdir(exist_ok=True)
    np.save(folder / "client_ids.npy", ids)
    np.save(folder / "embeddings.npy", profiles)
    return folder


def with_value(value):
    profiles = PROFILES.copy()
    profiles[1, :2] = value
    return profiles


GOOD = {
    "all clients": (IDS, PROFILES, False),
    "in any order": (IDS[::-1], PROFILES, False),
    "2,048 columns": (IDS, np.ones((4, 2048), np.float16), False),
    "fewer clients, local": (IDS[:2], PROFILES[:2], True),
}


@pytest.mark.parametrize(("ids", "profiles", "local"), GOOD.values(), ids=GOOD.keys())
def test_a_valid_entry(tmp_path, ids, profiles, local):
    assert violations(save(tmp_path / "a", ids, profiles), RELEVANT, local) == []


BROKEN = {
    "int32 ids": (IDS.astype(np.int32), PROFILES, False, ["client_ids.npy: dtype int32; must be int64"]),
    "float ids": (IDS * 1.0, PROFILES, False, ["dtype float64; must be int64"]),
    "ids of two dimensions": (IDS[:, None], PROFILES, False, ["2 dimensions; must be one"]),
    "repeated clients": (
        np.array([10, 20, 20, 10, 30, 40]), np.ones((6, 3), np.float16), False,
        [r"2 clients occur more than once \(the first: 10\)"],
    ),
    "a client too many": (
        np.array([10, 20, 30, 40, 55]), np.ones((5, 3), np.float16), False,
        [r"1 clients are not relevant ones \(the first: 55\)"],
    ),
    "a client too few": (IDS[:3], PROFILES[:3], False, [r"1 relevant clients are absent \(the first: 40\)"]),
    "local, of unknown_clients": (np.array([1]), PROFILES[:1], True, ["1 clients are not relevant ones"]),
    "local, empty": (IDS[:0], PROFILES[:0], True, ["no clients"]),
    "float32": (IDS, PROFILES.astype(np.float32), False, ["embeddings.npy: dtype float32; must be float16"]),
    "integers": (IDS, np.ones((4, 3), np.int64), False, ["dtype int64; must be float16"]),
    "one dimension": (IDS, PROFILES[:, 0], False, ["1 dimensions; must be two"]),
    "three dimensions": (IDS, PROFILES[:, :, None], False, ["3 dimensions; must be two"]),
    "no columns": (IDS, PROFILES[:, :0], False, ["no columns"]),
    "2,049 columns": (IDS, np.ones((4, 2049), np.float16), False, ["2,049 columns; at most 2,048"]),
    "a row too few": (IDS, PROFILES[:3], False, ["3 rows for 4 client ids; must be one per client"]),
    "NaN": (IDS, with_value(np.nan), False, ["2 values are NaN"]),
    "infinity": (IDS, with_value(-np.inf), False, ["2 values are infinite"]),
    "many at once": (
        np.array([10, 10, 99], np.int32), with_value(np.nan).astype(np.float32), False,
        ["dtype int32", "1 clients occur more than once", "1 clients are not relevant", "3 relevant clients are absent",
         "dtype float32", "4 rows for 3 client ids", "2 values are NaN"],
    ),
}  # fmt: skip


@pytest.mark.parametrize(("ids", "profiles", "local", "lines"), BROKEN.values(), ids=BROKEN.keys())
def test_every_violation_is_listed(tmp_path, ids, profiles, local, lines):
    found = violations(save(tmp_path / "a", ids, profiles), RELEVANT, local)
    assert len(found) == len(lines)
    for message, line in zip(found, lines, strict=True):
        assert re.search(line, message)
        assert message.startswith(f"{tmp_path}/a/")


def test_fewer_clients_are_a_violation_of_a_submission_alone(tmp_path):
    folder = save(tmp_path / "a", IDS[:3], PROFILES[:3])
    assert violations(folder, RELEVANT, local=True) == []
    assert len(violations(folder, RELEVANT, local=False)) == 1


def test_missing_and_unreadable_files(tmp_path):
    folder = tmp_path / "a"
    assert len(violations(folder, RELEVANT, False)) == 2
    save(folder, IDS, PROFILES)
    (folder / "client_ids.npy").write_text("10 20 30 40")
    (folder / "embeddings.npy").unlink()
    first, second = violations(folder, RELEVANT, False)
    assert "client_ids.npy: not a readable .npy file" in first
    assert "embeddings.npy: file missing" in second
    np.save(folder / "client_ids.npy", np.array(["10", None], dtype=object), allow_pickle=True)
    assert "not a readable .npy file" in violations(folder, RELEVANT, False)[0]


def test_what_is_written_is_valid_and_read(tmp_path, monkeypatch):
    monkeypatch.setattr(entry_module, "_ROWS", 3)  # more than one stretch, the last one shorter
    folder = tmp_path / "a"
    profiles = np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32)
    write_entry(folder, IDS, profiles)
    assert violations(folder, RELEVANT, False) == []
    ids, halves = read_entry(folder)
    assert (ids == IDS).all()
    assert (halves == profiles.astype(np.float16)).all()
    assert sorted(file.name for file in folder.iterdir()) == [file.name for file in entry_files(folder)]


def test_the_manifest_says_where_an_entry_comes_from_and_which_files_changed(tmp_path):
    folder, lineage = tmp_path / "a", {"name": "a", "seed": 3, "blocks": {"b": {"content": "x"}}}
    write_entry(folder, IDS, PROFILES.astype(np.float32), lineage)
    assert read_manifest(folder) == (lineage, [])
    np.save(folder / "client_ids.npy", IDS[::-1])
    assert read_manifest(folder) == (lineage, ["client_ids.npy"])
    assert violations(folder, RELEVANT, False) == []
    (folder / "embeddings.npy").unlink()
    with pytest.raises(UserError, match=r"embeddings\.npy: file missing"):
        read_manifest(folder)


def test_values_beyond_float16_are_held_and_counted(tmp_path, caplog):
    profiles = np.ones((4, 3), np.float32)
    profiles[0, 0], profiles[1, 0], profiles[2, 2] = 1e9, -70_000, 65_519.99
    write_entry(tmp_path / "a", IDS, profiles)
    _, halves = read_entry(tmp_path / "a")
    assert halves[:3].tolist() == [[65_504, 1, 1], [-65_504, 1, 1], [1, 1, 65_504]]
    assert "3 values in 2 columns are beyond float16" in caplog.text
    assert "65,504" in caplog.text


def test_no_warning_where_all_fits(tmp_path, caplog):
    write_entry(tmp_path / "a", IDS, np.full((4, 1), 65_504, np.float32))
    assert caplog.text == ""


def test_an_old_entry_stays_where_the_new_one_fails(tmp_path):
    write_entry(tmp_path / "a", IDS, PROFILES.astype(np.float32))
    before = [file.read_bytes() for file in entry_files(tmp_path / "a")]
    with pytest.raises(TypeError, match="absolute"):
        write_entry(tmp_path / "a", IDS, np.array([["x"]]))
    assert [file.read_bytes() for file in entry_files(tmp_path / "a")] == before
    assert [file.name for file in tmp_path.iterdir()] == ["a"]


def test_reading_says_what_is_missing(tmp_path):
    with pytest.raises(UserError) as caught:
        read_entry(tmp_path)
    assert len(caught.value.messages) == 2


def test_profiles_as_an_entry_holds_them(tmp_path):
    profiles = np.array([[1 / 3, 65_519.0, 1e6], [-1e30, 1e-8, 0.1]], np.float32)
    before = profiles.copy()
    found = as_held(profiles)
    write_entry(tmp_path / "a", IDS[:2], profiles)
    _, held = read_entry(tmp_path / "a")
    assert found.dtype == np.float32
    assert found.tolist() == held.astype(np.float32).tolist()
    assert profiles.tolist() == before.tolist()
