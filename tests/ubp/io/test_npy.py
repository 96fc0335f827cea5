"""Broken ``.npy`` files: each is a `ValueError`, before anything is made of what their header says."""

import io

import numpy as np
import pytest

from ubp.io.npy import read_npy

ARRAY = np.arange(12, dtype=np.int64).reshape(3, 4)


def written(tmp_path, content):
    (tmp_path / "a.npy").write_bytes(content)
    return tmp_path / "a.npy"


def bytes_of(array):
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("array", [ARRAY, ARRAY[:0], ARRAY.T, np.array(3), np.zeros(2, [("id", np.int8)])])
def test_an_array_is_read(tmp_path, array, mapped):
    found = read_npy(written(tmp_path, bytes_of(array)), mapped)
    assert found.dtype == array.dtype
    assert found.tolist() == array.tolist()


@pytest.mark.parametrize("mapped", [False, True])
def test_every_cut_is_refused(tmp_path, mapped):
    whole = bytes_of(ARRAY)
    for length in range(0, len(whole), 7):
        with pytest.raises(ValueError, match=r"."):
            read_npy(written(tmp_path, whole[:length]), mapped)


@pytest.mark.parametrize("place", range(128))
def test_a_bit_of_the_header_gives_an_array_or_a_value_error(tmp_path, place):
    for bit in range(8):
        content = bytearray(bytes_of(ARRAY))
        content[place] ^= 1 << bit
        try:
            read_npy(written(tmp_path, bytes(content)))
        except ValueError:
            continue


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ("(9_000_000_000_000, 4)", "holds 96 bytes of numbers, and says that it has 288,000,000,000,000"),
        ("(-3, -4)", "holds 96 bytes"),
        ("(((((", "makes no sense"),
    ],
)
def test_what_a_header_says_is_not_believed(tmp_path, header, said):
    text = f"{{'descr': '<i8', 'fortran_order': False, 'shape': {header}, }}".ljust(117) + "\n"
    content = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode() + ARRAY.tobytes()
    with pytest.raises(ValueError, match=said):
        read_npy(written(tmp_path, content))


def test_objects_and_archives_are_refused(tmp_path):
    with pytest.raises(ValueError, match="Python objects"):
        read_npy(written(tmp_path, bytes_of(np.array([1, None], object))))
    np.savez(tmp_path / "a.npz", ARRAY)
    with pytest.raises(ValueError, match="an archive of arrays"):
        read_npy(tmp_path / "a.npz")
