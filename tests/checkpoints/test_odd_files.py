"""Files that lie, turn in circles or lead elsewhere: one line, and no memory taken."""

import io
import json
import os
import pickle
import struct
import subprocess
import sys
import textwrap
import warnings
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from zoo.checkpoints import read_metadata, read_state_dict, save_state_dict
from zoo.checkpoints.formats import read_file
from zoo.convert import load_converted
from zoo.errors import ZooError


class Storage:
    """Becomes a persistent id: a storage of so many numbers."""

    def __init__(self, key="0", elements=4):
        self.key, self.elements = key, elements


class Tensor:
    """Becomes a call of torch's, with any sizes."""

    def __init__(self, storage, size=(4,), stride=(1,), offset=0):
        self.arguments = (storage, offset, size, stride, False, OrderedDict())

    def __reduce__(self):
        return torch._utils._rebuild_tensor_v2, self.arguments


def pickled(content, protocol=2, legacy=False):
    buffer = io.BytesIO()

    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            if isinstance(value, Storage):
                end = (None,) if legacy else ()
                return ("storage", torch.FloatStorage, value.key, "cpu", value.elements, *end)
            return None

    Pickler(buffer, protocol).dump(content)
    return buffer.getvalue()


def archive(path, content, records=None, compression=zipfile.ZIP_STORED):
    """A PyTorch file with this pickle; ``records`` are its storages."""
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr("a/data.pkl", pickled(content))
        file.writestr("a/byteorder", sys.byteorder)
        for key, values in (records or {"0": bytes(16)}).items():
            file.writestr(f"a/data/{key}", values)
        file.writestr("a/version", "3\n")
    return path


def legacy(path, content, keys=("0",), elements=(4,)):
    """What PyTorch wrote before 1.6."""
    torch.save({}, path, _use_new_zipfile_serialization=False)
    whole = path.read_bytes()
    start = io.BytesIO(whole)
    for _ in range(3):
        pickle.load(start)
    storages = b"".join(struct.pack("<q", n) + bytes(16) for n in elements)
    path.write_bytes(
        whole[: start.tell()] + pickled(content, legacy=True) + pickle.dumps([*keys], 2) + storages
    )
    return path


def test_what_is_written_here_is_readable(tmp_path):
    """The lies below differ in one thing each."""
    honest = {"w": Tensor(Storage())}
    for path in (archive(tmp_path / "a.pt", honest), legacy(tmp_path / "b.pt", honest)):
        assert read_state_dict(path)["w"].tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("size", "stride", "offset", "elements"),
    [
        ((2**33,), (1,), 0, 4),
        ((2,), (2**33,), 0, 4),
        ((4,), (1,), 2**33, 4),
        ((4,), (-1,), 3, 4),
        ((4,), (1,), -1, 4),
        ((2**62,), (1,), 0, 4),
        ((2**33,), (1,), 0, 2**33),
        ((2**33,), (0,), 0, 4),  # a view that repeats one number; a copy takes 32 GiB
    ],
)
@pytest.mark.parametrize("mmap", [False, True])
@pytest.mark.parametrize("write", [archive, legacy])
def test_shapes_that_lie(tmp_path, write, size, stride, offset, elements, mmap):
    content = {"w": Tensor(Storage(elements=elements), size, stride, offset)}
    with pytest.raises(ZooError, match=r"it\.pt"):
        read_file(write(tmp_path / "it.pt", content), mmap=mmap)


def test_many_storages_that_are_each_as_large_as_the_file(tmp_path):
    content = {str(i): Tensor(Storage(str(i), 2000)) for i in range(50)}
    with pytest.raises(ZooError, match="claims 100,000 numbers in"):
        read_file(legacy(tmp_path / "it.pt", content))


def test_numbers_are_found_behind_the_memo(tmp_path):
    count = 2**33
    content = {"first": count, "w": Tensor(Storage(elements=count))}
    with pytest.raises(ZooError, match="claims 8,589,934,592 numbers"):
        read_file(legacy(tmp_path / "it.pt", content))


def test_memory_is_not_taken_first(tmp_path):
    """In a process that may not have it."""
    legacy(tmp_path / "old.pt", {"w": Tensor(Storage(elements=2**34), (2**34,))})
    archive(
        tmp_path / "bomb.pt", {"w": Tensor(Storage())}, {"0": bytes(2**20)}, zipfile.ZIP_DEFLATED
    )
    code = f"""
        import resource
        from pathlib import Path
        from zoo.checkpoints.formats import read_file
        from zoo.errors import ZooError
        resource.setrlimit(resource.RLIMIT_AS, ({8 * 2**30},) * 2)
        for name in ("old.pt", "bomb.pt"):
            try:
                read_file(Path(name))
            except ZooError as error:
                print(str(error).splitlines()[0])
    """
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], cwd=tmp_path, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert "old.pt claims" in run.stdout and "bomb.pt" in run.stdout


def test_archives_that_unpack_to_more_than_can_be(tmp_path):
    path = archive(tmp_path / "it.pt", {"w": Tensor(Storage())})
    content = bytearray(path.read_bytes())
    for mark, place in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):  # sizes before compression
        start = -1
        while (start := content.find(mark, start + 1)) >= 0:
            if b"data/0" in content[start : start + 80]:
                content[start + place : start + place + 4] = struct.pack("<I", 2**31)
    path.write_bytes(content)
    with pytest.raises(ZooError, match=r"data/0 would take 2,048 MiB, but only 16 bytes"):
        read_file(path)


def test_archives_with_two_entries_of_one_name(tmp_path):
    path = archive(tmp_path / "it.pt", {"w": Tensor(Storage())})
    with warnings.catch_warnings(), zipfile.ZipFile(path, "a") as file:
        warnings.simplefilter("ignore")
        file.writestr("a/data.pkl", pickled({"w": 1}))
    with pytest.raises(ZooError, match="two entries of one name"):
        read_file(path)


def test_numbers_of_the_other_byte_order(tmp_path):
    path = tmp_path / "big.pt"
    values = np.arange(4, dtype=">f4").tobytes()
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a/data.pkl", pickled({"w": Tensor(Storage())}))
        file.writestr("a/byteorder", "big")
        file.writestr("a/data/0", values)
        file.writestr("a/version", "3\n")
    for mmap in (False, True):
        assert read_file(path, mmap=mmap)["w"].tolist() == [0, 1, 2, 3]


def test_dictionaries_that_hold_themselves(tmp_path):
    circle: dict = {"w": torch.ones(2)}
    circle["model"] = circle
    torch.save(circle, tmp_path / "a.pt")
    assert list(read_state_dict(tmp_path / "a.pt")) == ["w"]
    empty: dict = {}
    empty["model"] = {"net": empty}
    torch.save(empty, tmp_path / "b.pt")
    with pytest.raises(ZooError, match="holds no weights"):
        read_state_dict(tmp_path / "b.pt")
    laughs: list = ["ha"]
    for _ in range(60):
        laughs = [laughs, laughs]
    torch.save({"joke": laughs, "w": torch.ones(2)}, tmp_path / "c.pt")
    assert list(read_state_dict(tmp_path / "c.pt")) == ["w"]


def test_tensors_that_are_none_of_ours(tmp_path):
    torch.save({"w": torch.eye(3).to_sparse()}, tmp_path / "a.pt")
    with pytest.raises(ZooError, match="w is a sparse_coo tensor, expected a plain one"):
        read_state_dict(tmp_path / "a.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantised = torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)
        torch.save({"w": quantised}, tmp_path / "b.pt")
        with pytest.raises(ZooError, match=r"w is a quantised tensor|would run code|damaged"):
            read_state_dict(tmp_path / "b.pt")
    torch.save({1: torch.ones(2), "1": torch.zeros(2)}, tmp_path / "c.pt")
    with pytest.raises(ZooError, match="two tensors that are both called 1"):
        read_state_dict(tmp_path / "c.pt")
    torch.save({1: torch.ones(2), ("a", 2): torch.zeros(2)}, tmp_path / "d.pt")
    assert list(read_state_dict(tmp_path / "d.pt")) == ["1", "('a', 2)"]
    with pytest.raises(ZooError, match="holds no averaged weights"):
        read_state_dict(tmp_path / "d.pt", key="ema")


def test_object_arrays_and_settings_are_inert(tmp_path):
    import argparse

    objects = np.array([print, argparse.Namespace(a=1)], dtype=object)
    settings = argparse.Namespace(lr=0.1, nested=argparse.Namespace(x=[1]))
    torch.save({"args": settings, "model": {"w": torch.ones(2)}}, tmp_path / "a.pt")
    assert read_state_dict(tmp_path / "a.pt")["w"].tolist() == [1, 1]
    torch.save({"objects": objects, "model": {"w": torch.ones(2)}}, tmp_path / "b.pt")
    with pytest.raises(ZooError, match=r"would run code when it is loaded: it names .*print"):
        read_state_dict(tmp_path / "b.pt")


def safetensors(path, header, size=16):
    text = json.dumps(header) if isinstance(header, dict) else header
    path.write_bytes(struct.pack("<Q", len(text)) + text.encode() + bytes(size))
    return path


GOOD = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}


@pytest.mark.parametrize(
    "shared",
    [
        "not json",
        "[1]",
        '{"b": "zzz"}',
        '{"b": [1]}',
        '{"a": "a"}',
        "1",
        "[" * 100_000,
        '{"b": null}',
    ],
)
def test_shared_names_that_are_none(tmp_path, shared):
    path = safetensors(tmp_path / "it.safetensors", {"__metadata__": {"shared": shared}, "a": GOOD})
    with pytest.raises(ZooError, match=r"the header's field 'shared' is .*, expected JSON"):
        read_file(path)


@pytest.mark.parametrize(
    "header",
    [
        {"a": {**GOOD, "shape": [2**40]}},
        {"a": {**GOOD, "data_offsets": [0, 2**40]}},
        {"a": {**GOOD, "data_offsets": [16, 0]}},
        {"a": {**GOOD, "shape": [-4]}},
        {"a": {**GOOD, "dtype": "F7"}},
        {"a": GOOD, "b": GOOD},
        {"__metadata__": {"n": 1}, "a": GOOD},
        {"__metadata__": [1], "a": GOOD},
        {"__metadata__": "x", "a": GOOD},
        {"a": 3},
        "{" + "[" * 10_000,
        '{"a": ' + json.dumps(GOOD) + ', "a": ' + json.dumps({**GOOD, "shape": [8]}) + "}",
    ],
)
def test_headers_that_lie(tmp_path, header):
    with pytest.raises(ZooError, match="damaged or incomplete safetensors file"):
        read_file(safetensors(tmp_path / "it.safetensors", header))


def test_notes_of_a_converted_file_that_are_none(tmp_path):
    path = tmp_path / "it.safetensors"
    for note in ("x", "[]", "{}", '{"model": 3}', '{"model": "vmamba_tiny", "arguments": 3}'):
        save_state_dict({"a": torch.ones(1)}, path, {"zoo": note})
        with pytest.raises(ZooError, match="does not say which model it is of"):
            load_converted(path)
    save_state_dict(
        {"a": torch.ones(1)}, path, {"zoo": '{"model": "vmamba_tiny", "arguments": {"no": 1}}'}
    )
    with pytest.raises(ZooError, match="the model's arguments"):
        load_converted(path)
    with pytest.raises(ZooError, match="is missing, expected a safetensors file"):
        read_metadata(tmp_path / "none.safetensors")


@pytest.mark.parametrize(
    ("index", "said"),
    [
        ({"weight_map": {"a": "/etc/passwd"}}, "outside of its own folder"),
        ({"weight_map": {"a": "../x.safetensors"}}, "outside of its own folder"),
        ({"weight_map": {"a": "b/../../x"}}, "outside of its own folder"),
        ({"weight_map": {"a": "gone.safetensors"}}, "missing beside it"),
        (
            {"weight_map": {"a": "one.safetensors", "b": "one.safetensors"}},
            "do not belong together",
        ),
        ({"weight_map": {"a": "it.index.json"}}, "is JSON, not weights"),
        ({"weight_map": {"a": "folder"}}, "missing beside it"),
        ({"weight_map": {}}, "lists no tensors"),
        ({"weight_map": ["a"]}, "not an index"),
        ("[" * 100_000, "not an index"),
        ("\udcff", "not an index"),
    ],
)
def test_indices_that_lead_nowhere(tmp_path, index, said):
    (tmp_path / "folder").mkdir()
    save_file({"a": torch.ones(2)}, tmp_path / "one.safetensors")
    text = index if isinstance(index, str) else json.dumps(index)
    (tmp_path / "it.index.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ZooError, match=said):
        read_state_dict(tmp_path / "it.index.json")


def test_places_that_are_no_files(tmp_path):
    os.mkfifo(tmp_path / "pipe.pt")  # reading it would wait for ever
    with pytest.raises(ZooError, match=r"pipe\.pt is no file"):
        read_state_dict(tmp_path / "pipe.pt")
    with pytest.raises(ZooError, match="null is no file"):
        read_state_dict("/dev/null")
    (tmp_path / "a.pt").symlink_to(tmp_path / "b.pt")
    (tmp_path / "b.pt").symlink_to(tmp_path / "a.pt")
    for name in ("a.pt", "x" * 5000, "nul\0.pt"):
        with pytest.raises(ZooError, match=r"there is no file or folder|name too long"):
            read_state_dict(tmp_path / name)


def test_a_shard_may_be_a_link(tmp_path):
    """As in the Hugging Face cache."""
    blob = tmp_path / "blobs" / "0123"
    blob.parent.mkdir()
    save_file({"a": torch.ones(2)}, blob)
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    (snapshot / "one.safetensors").symlink_to(blob)
    (snapshot / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": "one.safetensors"}})
    )
    assert read_state_dict(snapshot)["a"].tolist() == [1, 1]
