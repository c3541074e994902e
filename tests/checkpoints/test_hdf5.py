import h5py
import numpy as np
import pytest

from zoo.checkpoints import read_state_dict
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
