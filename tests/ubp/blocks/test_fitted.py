"""Several fitted blocks as one state, for a block that keeps others within its own folder."""

import json
from contextlib import suppress

import numpy as np
import polars as pl
import pytest

from tests.ubp.blocks.toy import Purchases
from ubp.blocks.fitted import FittedBlock, State, content_digest, load, packed, save, unpacked
from ubp.io.errors import UserError


class Tabled(FittedBlock):
    """Has settings, an array and a table, whose names another block's have too."""

    def __init__(self, number: int):
        self.number = number

    def state(self):
        table = pl.DataFrame({"value": [self.number, 2]})
        return State({"number": self.number}, {"weights": np.full(3, self.number)}, {"weights": table})

    @classmethod
    def from_state(cls, state):
        assert set(state.arrays) == set(state.tables) == {"weights"}  # no other's
        assert state.tables["weights"]["value"].to_list() == [state.settings["number"], 2]
        assert state.arrays["weights"].tolist() == [state.settings["number"]] * 3
        return cls(state.settings["number"])

    def vectors(self, history, clients):
        raise NotImplementedError


class Keeper(Tabled):
    """Keeps others beside an array and a table of its own."""

    def __init__(self, blocks):
        self.blocks = blocks

    def state(self):
        inner = packed(self.blocks)
        own = {"weights": np.arange(5)}
        return State(inner.settings | {"own": 7}, inner.arrays | own, inner.tables)

    @classmethod
    def from_state(cls, state):
        assert state.settings["own"] == 7
        assert state.arrays["weights"].tolist() == list(range(5))
        return cls(unpacked(state))


def test_blocks_that_were_packed_are_unpacked_in_their_order():
    blocks = {"b": Tabled(5), "a": Purchases(np.array([1, 2, 4], np.float32)), "a.b": Tabled(6)}
    found = unpacked(packed(blocks))
    assert list(found) == ["b", "a", "a.b"]
    assert (found["b"].number, found["a.b"].number) == (5, 6)
    assert found["a"].weights.tolist() == [1, 2, 4]


def test_a_block_that_keeps_others_is_saved_and_loaded_with_them(tmp_path):
    keeper = Keeper({"x": Tabled(3), "inner": Keeper({"y": Tabled(4)})})
    save(keeper, tmp_path / "block", {"name": "keeper"})
    again = load(tmp_path / "block")
    assert again.blocks["x"].number == 3
    assert again.blocks["inner"].blocks["y"].number == 4


def test_a_class_that_is_gone_is_named():
    state = packed({"x": Tabled(3)})
    state.settings["blocks"][0]["class"] = "tests.ubp.blocks.test_fitted:Gone"
    with pytest.raises(UserError, match=r"block x: .*Gone.*; fit it again"):
        unpacked(state)


def test_a_block_kept_with_other_settings_is_one_line(tmp_path):
    save(Tabled(1), tmp_path / "kept", {})
    note = json.loads((tmp_path / "kept" / "block.json").read_text())
    note["class"], note["settings"] = "tests.ubp.blocks.test_fitted:Renamed", {}
    del note["digest"]  # as a version wrote it that had none
    (tmp_path / "kept" / "block.json").write_text(json.dumps(note))
    with pytest.raises(UserError, match=r"kept: not a usable fitted block .*'number'.*fit the block again"):
        load(tmp_path / "kept")


class Renamed(Tabled):
    """Reads a setting that an earlier version did not keep."""

    @classmethod
    def from_state(cls, state):
        return cls(state.settings["number"])


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.parquet", "block.json"])
def test_whatever_bit_is_turned_over_it_is_not_loaded(tmp_path, name):
    save(Tabled(7), tmp_path / "kept", {"name": "x"})
    file = tmp_path / "kept" / name
    whole = file.read_bytes()
    for place in range(0, len(whole), 29):
        changed = bytearray(whole)
        changed[place] ^= 4
        file.write_bytes(changed)
        with suppress(UserError):
            assert load(tmp_path / "kept").number == 7  # of what nobody asks for: the name of the digest


@pytest.mark.parametrize("read", [load, content_digest])
def test_a_file_that_was_cut_off_or_lost_is_named(tmp_path, read):
    save(Tabled(7), tmp_path / "kept", {"name": "x"})
    file = tmp_path / "kept" / "weights.safetensors"
    for content in (file.read_bytes()[:-1], None):
        file.unlink()
        if content:
            file.write_bytes(content)
        with pytest.raises(UserError, match=r"weights\.safetensors: not what was written there.*; fit the block again"):
            read(tmp_path / "kept")
