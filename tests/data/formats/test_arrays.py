import struct
import zipfile

import numpy as np
import pytest
from scipy.io import savemat

from zoo.data.formats.arrays import read_mat, read_npy, read_npz
from zoo.errors import ZooError


def test_arrays_are_read(tmp_path):
    a, b = np.random.default_rng(0).normal(size=(3, 4)), np.arange(5, dtype=">i2")
    np.save(tmp_path / "a.npy", a)
    assert np.array_equal(read_npy(tmp_path / "a.npy", "it"), a)
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "ab.npz", a=a, b=b)
        found = read_npz(tmp_path / "ab.npz", ("b", "a"), "it")
        assert np.array_equal(found[0], b) and np.array_equal(found[1], a)
    np.save(tmp_path / "zeros.npy", np.zeros(0))
    assert read_npy(tmp_path / "zeros.npy", "it").shape == (0,)
    np.savez_compressed(tmp_path / "much.npz", a=np.zeros(2**22))  # as well as DEFLATE can
    assert read_npz(tmp_path / "much.npz", ("a",), "it")[0].shape == (2**22,)


def header(shape, dtype="<f8"):
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (header("(4,)") + bytes(32), None),
        (header("(5,)") + bytes(32), "cannot be read|would take"),
        (
            header("(1099511627776,)") + bytes(32),
            "an array of 1099511627776 would take 8,388,608.0 MiB",
        ),
        (header("(4294967296, 4294967296)") + bytes(32), "would take"),
        (header("(-4,)") + bytes(32), "cannot be read|would take"),
        (header("(4,)", "|O") + bytes(32), "an array of object, expected numbers"),
        (header("(4,)", "<U8") + bytes(128), "expected numbers"),
        (b"\x93NUMPY\x09\x00" + bytes(32), "cannot be read"),
        (b"text", "cannot be read"),
        (b"", "cannot be read"),
    ],
)
def test_headers_are_compared_with_the_file(tmp_path, content, said):
    (tmp_path / "a.npy").write_bytes(content)
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as file:
        file.writestr("a.npy", content)
    if said is None:
        assert len(read_npy(tmp_path / "a.npy", "it")) == 4
        assert len(read_npz(tmp_path / "a.npz", ("a",), "it")[0]) == 4
        return
    with pytest.raises(ZooError, match=said):
        read_npy(tmp_path / "a.npy", "it")
    with pytest.raises(ZooError, match=said):
        read_npz(tmp_path / "a.npz", ("a",), "it")


def test_broken_archives_are_said(tmp_path):
    np.savez(tmp_path / "a.npz", a=np.zeros(3))
    with pytest.raises(ZooError, match="holds no b, expected it"):
        read_npz(tmp_path / "a.npz", ("b",), "it")
    (tmp_path / "b.npz").write_bytes((tmp_path / "a.npz").read_bytes()[:100])
    for name in ("b.npz", "none.npz"):
        with pytest.raises(ZooError, match="expected it"):
            read_npz(tmp_path / name, ("a",), "it")
    with zipfile.ZipFile(tmp_path / "c.npz", "w") as file:
        file.writestr("a.npy", header("(4,)") + bytes(32))
    content = (tmp_path / "c.npz").read_bytes()
    at = content.rindex(b"PK\x01\x02") + 24
    (tmp_path / "c.npz").write_bytes(content[:at] + struct.pack("<I", 2**31) + content[at + 4 :])
    with pytest.raises(ZooError, match="a would take 2,048 MiB"):
        read_npz(tmp_path / "c.npz", ("a",), "it")


def test_variables_of_matlab_files(tmp_path):
    path = tmp_path / "it.mat"
    savemat(path, {"a": np.arange(3.0), "s": {"x": 1, "y": [1, 2]}}, do_compression=True)
    assert read_mat(path, "a", "it").tolist() == [[0, 1, 2]]
    assert read_mat(path, "s", "it", simplify=True)["x"] == 1
    with pytest.raises(ZooError, match="holds no b, expected it"):
        read_mat(path, "b", "it")
    savemat(path, {"a": np.arange(3.0)})
    content = bytearray(path.read_bytes())
    content[160:164] = struct.pack("<i", 2**30)  # rows of the matrix
    path.write_bytes(content)
    with pytest.raises(ZooError, match=r"a would take 24,576 MiB|cannot be read"):
        read_mat(path, "a", "it")
    for cut in (b"", b"text", bytes(content[:140])):
        path.write_bytes(cut)
        with pytest.raises(ZooError, match=r"it.mat.*expected it"):
            read_mat(path, "a", "it")
