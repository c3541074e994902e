"""Checkpoints that are broken, lie about their sizes, or would run code.

They are read, or refused in one line that names the file. Nothing runs, no other file is opened,
and no more memory is taken than the file can hold.
"""

from __future__ import annotations

import argparse
import builtins
import io
import json
import os
import pickle
import resource
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import h5py
import numpy as np
import torch
from safetensors.torch import save_file

from tests.fuzz._garble import EDGES, garbled, garbled_text
from zoo.checkpoints import read_state_dict
from zoo.errors import ZooError

ROOM = 6 * 2**30
RAN = "ran.txt"


class Code:
    """Runs something when it is unpickled."""

    def __init__(self, random: Random) -> None:
        self.call = random.choice(
            (
                (os.system, (f"touch {RAN}",)),
                (builtins.exec, (f"open({RAN!r}, 'w')",)),
                (builtins.eval, (f"open({RAN!r}, 'w')",)),
                (builtins.getattr, ("", "join")),
                (builtins.__import__, ("this",)),
                (torch.hub.load, ("x", "y")),
            )
        )

    def __reduce__(self) -> tuple:
        return self.call


class Storage:
    """A storage of so many numbers; see :mod:`tests.checkpoints.test_odd_files`."""

    def __init__(self, elements: int) -> None:
        self.elements = elements


class Claim:
    """A tensor that says of itself whatever it likes."""

    def __init__(self, random: Random, elements: int) -> None:
        def number(right: int) -> int:
            return random.choice((right, right, right, *EDGES[:12], -1))

        size, stride = (number(4), number(1)), (number(1), number(1))
        storage = Storage(number(elements))
        self.arguments = (storage, number(0), size, stride, False, OrderedDict())

    def __reduce__(self) -> tuple:
        return torch._utils._rebuild_tensor_v2, self.arguments


def case(random: Random) -> None:
    """One checkpoint."""
    name = random.choice(list(KINDS))
    path = KINDS[name](random)
    _limit_memory()
    mmap, key = random.random() < 0.5, random.choice((None, None, "ema", "model", "a.b"))
    told = f"{name}, mmap={mmap}, key={key}, {path}"
    try:
        tensors = read_state_dict(path, mmap=mmap, key=key)
    except ZooError as error:
        message = str(error)
        assert "\n" not in message.strip(), f"{told}: a refusal of several lines: {message}"
        assert len(message) < 3000, f"{told}: a refusal of {len(message)} characters"
    except MemoryError as error:
        raise AssertionError(f"{told}: memory was taken before the file was looked at") from error
    else:
        for tensor_name, tensor in tensors.items():
            assert isinstance(tensor_name, str), f"{told}: a name {tensor_name!r}"
            if tensor.device.type == "cpu":
                tensor.clone()
    assert not Path(RAN).exists(), f"{told}: code of the file has run"


@cache
def _limit_memory() -> None:
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + ROOM, -1))


def _weights(random: Random) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    kinds = (torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.bool)
    return {f"layer.{i}.weight": torch.ones(i + 1, 3).to(random.choice(kinds)) for i in range(3)}


def _content(random: Random) -> Any:
    """Weights as training scripts store them, or not."""
    weights: Any = _weights(random)
    circle: dict[str, Any] = {"w": torch.ones(2)}
    circle["model"] = circle
    contents = (
        weights,
        {"state_dict": weights, "epoch": 3, "args": argparse.Namespace(lr=0.1)},
        {"model": {"module": weights}, "model_ema": weights},
        {"a": {"b": weights}, "c": weights},
        {1: torch.ones(2), "1": torch.ones(2)},
        {"w": torch.eye(3).to_sparse()},
        {"w": torch.ones(2, device="meta")},
        {"w": torch.ones(1).expand(2**20)},
        {"w": torch.nn.Parameter(torch.ones(2)), "n": None, "l": [1, [2, ["x" * 50]]]},
        circle,
        [weights],
        torch.ones(3),
        {"model": {}},
        {},
        "text",
        {"w": np.ones(3), "x": np.float32(1)},
    )
    return random.choice(contents)


def _maybe_garbled(random: Random, path: Path) -> Path:
    if random.random() < 0.6:
        path.write_bytes(garbled(random, path.read_bytes()))
    return path


def _torch_file(random: Random) -> Path:
    path = Path(f"it{random.choice(('.pt', '.pth', '.ckpt', '.bin', '.safetensors'))}")
    torch.save(_content(random), path, _use_new_zipfile_serialization=random.random() < 0.6)
    return _maybe_garbled(random, path)


def _code(random: Random) -> Path:
    path = Path("it.pt")
    content = {"w": torch.ones(2), "more": random.choice(([Code(random)], Code(random)))}
    if random.random() < 0.3:
        path.write_bytes(pickle.dumps(content, random.choice((0, 2, 4))))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=random.random() < 0.5)
    return path


def _claims(random: Random) -> Path:
    buffer = io.BytesIO()
    legacy = random.random() < 0.5

    class Pickler(pickle.Pickler):
        def persistent_id(self, value: Any) -> Any:
            if isinstance(value, Storage):
                end = (None,) if legacy else ()
                return ("storage", torch.FloatStorage, "0", "cpu", value.elements, *end)
            return None

    Pickler(buffer, 2).dump({"w": Claim(random, 4)})
    path = Path("it.pt")
    if legacy:
        torch.save({}, path, _use_new_zipfile_serialization=False)
        whole = path.read_bytes()
        start = io.BytesIO(whole)
        for _ in range(3):
            pickle.load(start)
        end = pickle.dumps(["0"], 2) + struct.pack("<q", 4) + bytes(16)
        path.write_bytes(whole[: start.tell()] + buffer.getvalue() + end)
        return path
    packing = random.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
    with zipfile.ZipFile(path, "w", packing) as file:
        file.writestr("a/data.pkl", buffer.getvalue())
        file.writestr("a/byteorder", random.choice(("little", "big", "x")))
        file.writestr("a/data/0", bytes(random.choice((16, 0, 15, 2**20))))
        file.writestr("a/version", random.choice(("3\n", "99\n", "x")))
    return _maybe_garbled(random, path) if random.random() < 0.3 else path


def _safetensors(random: Random) -> Path:
    path = Path("it.safetensors")
    save_file(_weights(random), path, {"zoo": "{}", "shared": '{"twin": "layer.0.weight"}'})
    content = path.read_bytes()
    if random.random() < 0.5:
        size = struct.unpack("<Q", content[:8])[0]
        header = garbled_text(random, content[8 : 8 + size])
        path.write_bytes(struct.pack("<Q", len(header)) + header + content[8 + size :])
        return path
    return _maybe_garbled(random, path)


def _sharded(random: Random) -> Path:
    Path("m").mkdir()
    weights = _weights(random)
    places = {}
    for i, (name, tensor) in enumerate(weights.items()):
        file = f"part-{i}.safetensors"
        save_file({name: tensor}, Path("m") / file)
        places[name] = file
    index = Path("m/model.safetensors.index.json")
    index.write_bytes(garbled_text(random, json.dumps({"weight_map": places}).encode()))
    if random.random() < 0.5:
        _maybe_garbled(random, Path("m/part-1.safetensors"))
    return random.choice((Path("m"), index))


def _hdf5(random: Random) -> Path:
    path = Path("it.h5")
    with h5py.File(path, "w") as file:
        file["plain"] = np.arange(6.0)
        file.create_dataset("packed", data=np.arange(99), compression="gzip", chunks=(10,))
        file.create_dataset("empty", (random.choice((4, 10**10)),), "f4", chunks=(4,))
        if random.random() < 0.3:
            file["link"] = h5py.ExternalLink("other.h5", "x")
            file.attrs["layer_names"] = np.array([b"link"])
        if random.random() < 0.2:
            file.create_dataset("out", (4,), "u1", external=[("other.bin", 0, 4)])
    return _maybe_garbled(random, path)


#: Name -> how such a checkpoint is written.
KINDS: dict[str, Callable[[Random], Path]] = {
    "PyTorch": _torch_file,
    "code": _code,
    "claims": _claims,
    "safetensors": _safetensors,
    "sharded": _sharded,
    "HDF5": _hdf5,
}

torch.set_num_threads(1)
