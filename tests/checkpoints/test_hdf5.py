import os

import h5py
import numpy as np
import pytest

from zoo.checkpoints import read_state_dict
from zoo.checkpoints.hdf5 import member, open_hdf5, read_array
from zoo.errors import ZooError


def test_arrays_come_in_keras_order(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        group = file.create_group("model_weights")
        group.attrs["layer_names"] = np.array([b"second", b"first"])
        for name in ("first", "second"):
            layer = group.create_group(name)
            layer.attrs["weight_names"] = np.array([b"z:0", b"a:0"])
            layer["z:0"], layer["a:0"] = np.ones(2, np.float32), np.zeros(3)
    state = read_state_dict(tmp_path / "a.h5")
    assert list(state) == ["second/z:0", "second/a:0", "first/z:0", "first/a:0"]
    assert state["first/z:0"].tolist() == [1, 1]


def test_other_files_give_all_arrays(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["a/b"], file["text"] = np.ones(2), "words"
    assert list(read_state_dict(tmp_path / "a.h5")) == ["a/b"]


def test_damaged_and_empty_files(tmp_path):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["text"] = "words"
    with pytest.raises(ZooError, match="holds no weights"):
        read_state_dict(path)
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(ZooError, match="damaged or incomplete HDF5"):
        read_state_dict(path)


def test_nothing_leaves_the_file(tmp_path):
    """External storage, virtual arrays and external links would hand over other files."""
    (tmp_path / "secret").write_text("a line of another file")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = np.arange(4.0)
    with h5py.File(tmp_path / "storage.h5", "w") as file:
        stored = [(os.path.abspath(tmp_path / "secret"), 0, 22)]
        file.create_dataset("leak", (22,), np.uint8, external=stored)
    with h5py.File(tmp_path / "virtual.h5", "w") as file:
        layout = h5py.VirtualLayout((4,), np.float64)
        layout[:] = h5py.VirtualSource(tmp_path / "other.h5", "x", (4,))
        file.create_virtual_dataset("leak", layout)
    for name in ("storage.h5", "virtual.h5"):
        with pytest.raises(ZooError, match="/leak is stored in other files, which are not read"):
            read_state_dict(tmp_path / name)
    with h5py.File(tmp_path / "link.h5", "w") as file:
        file["a"] = h5py.ExternalLink(tmp_path / "other.h5", "x")
        file["b"] = h5py.SoftLink("/a")
        file["c"] = h5py.SoftLink("/c")
        file["own"] = np.arange(3)
        file["d"] = h5py.SoftLink("/own")
        group = file.create_group("model_weights")
        group.attrs["layer_names"] = np.array([b"l"])
        layer = group.create_group("l")
        layer.attrs["weight_names"] = np.array([b"w"])
        layer["w"] = h5py.ExternalLink(tmp_path / "other.h5", "x")
    with pytest.raises(ZooError, match="w points to another file, which is not read"):
        read_state_dict(tmp_path / "link.h5")
    with open_hdf5(tmp_path / "link.h5") as file:
        for name in "abc":
            with pytest.raises(ZooError, match="points to another file"):
                member(file, name)
        assert read_array(member(file, "d")).tolist() == [0, 1, 2]
        with pytest.raises(ZooError, match="holds no own/x"):
            member(file, "own/x")


def test_sizes_are_compared_with_what_is_stored(tmp_path):
    with h5py.File(tmp_path / "fill.h5", "w") as file:
        file.create_dataset("h", (2**33,), np.float32, chunks=(1024,), fillvalue=1.0)
    with h5py.File(tmp_path / "chunk.h5", "w") as file:
        file.create_dataset("h", (4,), np.float32, chunks=(2**29,), maxshape=(None,))
    with h5py.File(tmp_path / "late.h5", "w") as file:
        file.create_dataset("h", (2**30,), np.float64)
    for name, size in (("fill", "32,768"), ("chunk", "2,048"), ("late", "8,192")):
        with pytest.raises(ZooError, match=f"/h would take {size} MiB, but only 0 bytes"):
            read_state_dict(tmp_path / f"{name}.h5")
    with h5py.File(tmp_path / "zeros.h5", "w") as file:  # as well as gzip can
        file.create_dataset(
            "h", data=np.zeros(2**22, np.float32), compression="gzip", compression_opts=9
        )
    assert read_state_dict(tmp_path / "zeros.h5")["h"].shape == (2**22,)


def test_plugins_are_not_called(tmp_path):
    with h5py.File(tmp_path / "it.h5", "w") as file:
        settings = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        settings.set_chunk((16,))
        settings.set_filter(32015, h5py.h5z.FLAG_OPTIONAL, (3,))
        space = h5py.h5s.create_simple((16,))
        h5py.h5d.create(file.id, b"x", h5py.h5t.NATIVE_FLOAT, space, settings)
    with pytest.raises(ZooError, match="/x is packed by 32015, a plugin of HDF5"):
        read_state_dict(tmp_path / "it.h5")


def test_numbers_of_any_byte_order(tmp_path):
    with h5py.File(tmp_path / "it.h5", "w") as file:
        file["big"], file["little"] = np.arange(3, dtype=">f4"), np.arange(3, dtype="<i2")
    read = read_state_dict(tmp_path / "it.h5")
    assert read["big"].tolist() == [0, 1, 2] and read["little"].tolist() == [0, 1, 2]


def test_attributes_that_lie(tmp_path):
    for name, layers in (("gone", np.array([b"none"])), ("number", 7), ("array", np.array([b"x"]))):
        with h5py.File(tmp_path / f"{name}.h5", "w") as file:
            file["x"] = np.ones(3)
            file.attrs["layer_names"] = layers
        with pytest.raises(ZooError, match=r"holds no none|damaged or incomplete HDF5 file"):
            read_state_dict(tmp_path / f"{name}.h5")
