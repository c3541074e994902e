"""What files are read, and what each file that is not read is told."""

from __future__ import annotations

import argparse
import json
import os
import pickle
import random
import zipfile
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from zoo.checkpoints import read_metadata, read_state_dict, save_state_dict
from zoo.errors import ZooError

WEIGHTS = {"fc.weight": torch.arange(12.0).view(3, 4), "fc.bias": torch.tensor([1.0, 2.0, 3.0])}


def same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor] = WEIGHTS) -> bool:
    return found.keys() == expected.keys() and all(
        torch.equal(found[name], expected[name]) for name in expected
    )


@pytest.mark.parametrize("mmap", [False, True])
@pytest.mark.parametrize("kind", ["safetensors", "zip", "legacy"])
def test_reads_every_format(tmp_path: Path, kind: str, mmap: bool) -> None:
    path = tmp_path / "weights.any"  # the content decides, not the ending
    if kind == "safetensors":
        save_file(WEIGHTS, path)
    else:
        torch.save(WEIGHTS, path, _use_new_zipfile_serialization=kind == "zip")
    assert same(read_state_dict(path, mmap=mmap))


def test_read_tensors_do_not_follow_the_file(tmp_path: Path) -> None:
    for name, save in (("a.safetensors", save_file), ("a.pth", torch.save)):
        path = tmp_path / name
        save(WEIGHTS, path)
        found = read_state_dict(path)
        with path.open("r+b") as file:
            file.write(bytes(path.stat().st_size))
        assert same(found), name


@pytest.mark.parametrize(
    "container, place",
    [
        ({"model": WEIGHTS}, None),
        ({"state_dict": WEIGHTS, "epoch": 3, "metric": torch.tensor(0.5)}, None),
        ({"model": {"state_dict": WEIGHTS}}, None),
        ({"model": {"config": {"depth": 3}}, "net": WEIGHTS}, None),
        ({"student": {"x": torch.ones(1)}, "teacher": WEIGHTS}, None),
        ({"odd_name": WEIGHTS, "epoch": 1}, None),
        ({"model": {"x": torch.ones(1)}, "model_ema": WEIGHTS}, "ema"),
        ({"state_dict": {"x": torch.ones(1)}, "ema": {"module": WEIGHTS}}, "ema"),
        (
            {"state_dict": {"x": torch.ones(1)}, "current_model_state": WEIGHTS},
            "current_model_state",
        ),
        ({"a": {"b": WEIGHTS}}, "a.b"),
        ({"decoder.x": torch.ones(1)} | {f"encoder.{n}": t for n, t in WEIGHTS.items()}, "encoder"),
    ],
)
def test_finds_the_weights(tmp_path: Path, container: dict, place: str | None) -> None:
    torch.save(container, tmp_path / "a.pth")
    assert same(read_state_dict(tmp_path / "a.pth", key=place))


def test_lightning_checkpoint_with_average(tmp_path: Path) -> None:
    ours = {f"model.{n}": t for n, t in WEIGHTS.items()}
    average = {f"ema.module.{n}": t + 1 for n, t in WEIGHTS.items()}
    torch.save({"state_dict": ours | average, "epoch": 1}, tmp_path / "last.ckpt")
    assert same(read_state_dict(tmp_path / "last.ckpt"), ours)
    averaged = {n: t + 1 for n, t in WEIGHTS.items()}
    assert same(read_state_dict(tmp_path / "last.ckpt", key="ema"), averaged)


def test_what_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    torch.save({"one": WEIGHTS, "two": WEIGHTS}, path)
    with pytest.raises(ZooError, match="'one', 'two': say which with key="):
        read_state_dict(path)
    with pytest.raises(ZooError, match="no weights under 'three': it has 'one', 'two'"):
        read_state_dict(path, key="three")
    torch.save({"epoch": 3, "optimizer": {"lr": 1.0}}, path)
    with pytest.raises(ZooError, match="holds no weights: its entries are 'epoch', 'optimizer'"):
        read_state_dict(path)
    torch.save({"model": WEIGHTS}, path)
    with pytest.raises(ZooError, match="no averaged weights: it has 'model'"):
        read_state_dict(path, key="ema")
    torch.save(torch.ones(3), path)
    with pytest.raises(ZooError, match="holds Tensor, not a state dict"):
        read_state_dict(path)


def test_non_tensors_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    torch.save({**WEIGHTS, "version": 3}, tmp_path / "a.pth")
    assert same(read_state_dict(tmp_path / "a.pth"))
    assert "left out: version" in caplog.text


class Settings(dict):
    """Stands in for yacs' CfgNode: a dictionary with attributes of its own."""


def test_settings_beside_the_weights_do_no_harm(tmp_path: Path) -> None:
    config = Settings(lr=1.0, nested=Settings(a=[1, 2]))
    config.__dict__["frozen"] = True
    Settings.__module__, Settings.__qualname__, Settings.__name__ = "yacs.config", *["CfgNode"] * 2
    content = {
        "model": WEIGHTS,
        "args": argparse.Namespace(lr=0.1, folder=Path("runs")),
        "best": np.float64(81.5),
        "history": np.arange(3.0),
        "by_class": defaultdict(list, a=[1]),
    }
    torch.save(content, tmp_path / "a.pth")
    assert same(read_state_dict(tmp_path / "a.pth"))
    # The class is of a package that is not installed where the file is read.
    data = pickle_of({"model": {"x": 1}, "config": config})
    assert b"yacs.config" in data
    replace_pickle(tmp_path / "a.pth", data)
    with pytest.raises(ZooError, match="holds no weights: its entries are 'model', 'config'"):
        read_state_dict(tmp_path / "a.pth")


def pickle_of(content: object) -> bytes:
    import sys
    import types

    package, module = types.ModuleType("yacs"), types.ModuleType("yacs.config")
    module.CfgNode = Settings  # type: ignore[attr-defined]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "yacs", package)
        patch.setitem(sys.modules, "yacs.config", module)
        return pickle.dumps(content, protocol=2)


def replace_pickle(path: Path, data: bytes) -> None:
    with zipfile.ZipFile(path) as archive:
        entries = {n: archive.read(n) for n in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, data if name.endswith("data.pkl") else content)


class Harmful:
    def __reduce__(self) -> tuple:
        return os.system, ("touch harm",)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("kind", ["zip", "legacy", "pickle", "pickle4"])
def test_code_is_refused_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "a.pth"
    content = {"model": WEIGHTS, "extra": Harmful()}
    if kind.startswith("pickle"):
        path.write_bytes(pickle.dumps({"extra": Harmful()}, protocol=4 if kind[6:] else 2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind == "zip")
    with pytest.raises(ZooError, match=r"would run code.*names posix\.system.*safetensors"):
        read_state_dict(path)
    assert not (tmp_path / "harm").exists()


@pytest.mark.filterwarnings("ignore")
def test_pickled_module_is_refused(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "a.pth")
    with pytest.raises(ZooError, match=r"it names .*torch\.nn\.modules\.linear\.Linear"):
        read_state_dict(tmp_path / "a.pth")


@pytest.mark.filterwarnings("ignore")
def test_torchscript_is_refused(tmp_path: Path) -> None:
    torch.jit.script(nn.Linear(2, 2)).save(tmp_path / "a.pt")
    with pytest.raises(ZooError, match="is a TorchScript program"):
        read_state_dict(tmp_path / "a.pt")


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n", "Git LFS pointer"),
        (b"\n<!DOCTYPE html><html><body>404</body></html>", "is a web page"),
        (b"hello, this is no checkpoint" * 9, "is not a checkpoint"),
        (b'{"a": 1}', "is JSON, not weights"),
        (b"GGUF\x03\0\0\0", "is a GGUF file"),
        (b"\x1f\x8b\x08\0", "is a gzip archive: unpack it first"),
        (b"\x80\x02}q\x00.", "not written by torch.save"),
        (b"\x80\x02}q\x00X", "is damaged"),
        (b"\x10\0\0\0\0\0\0\0{              }", "safetensors file without tensors"),
    ],
)
def test_what_is_no_checkpoint(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "a.pth"
    path.write_bytes(content)
    with pytest.raises(ZooError, match=message) as caught:
        read_state_dict(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_other_archives(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.ones(2))
    with pytest.raises(ZooError, match="is a NumPy archive"):
        read_state_dict(tmp_path / "a.npz")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("readme.txt", "hi")
    with pytest.raises(ZooError, match="is a zip file"):
        read_state_dict(tmp_path / "a.zip")


@pytest.mark.parametrize("kind", ["safetensors", "zip", "legacy"])
def test_cut_anywhere_is_one_clear_error(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a"
    if kind == "safetensors":
        save_file(WEIGHTS, path)
    else:
        torch.save(WEIGHTS, path, _use_new_zipfile_serialization=kind == "zip")
    data = path.read_bytes()
    for length in [1, 7, 8, 9, 40, *range(60, len(data), max(1, len(data) // 25)), len(data) - 1]:
        path.write_bytes(data[:length])
        with pytest.raises(ZooError, match=r"damaged|not a checkpoint|not a file"):
            read_state_dict(path)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["safetensors", "zip", "legacy"])
def test_any_damage_is_one_clear_error_or_none(tmp_path: Path, kind: str) -> None:
    path, chance = tmp_path / "a", random.Random(0)
    if kind == "safetensors":
        save_file(WEIGHTS, path)
    else:
        torch.save(WEIGHTS, path, _use_new_zipfile_serialization=kind == "zip")
    data = path.read_bytes()
    refused = 0
    for _ in range(300):
        changed = bytearray(data)
        for _ in range(chance.choice([1, 2, 5])):
            changed[chance.randrange(len(data))] = chance.randrange(256)
        path.write_bytes(changed)
        try:
            read_state_dict(path, mmap=chance.random() < 0.5)
        except ZooError as error:
            refused += "\n" not in str(error)
    assert refused > 150


def test_changed_bytes_are_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    torch.save({"x": torch.arange(10_000.0)}, path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(ZooError, match=r"damaged.*Bad CRC-32"):
        read_state_dict(path)


def test_archive_without_checksums_is_read(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(WEIGHTS, tmp_path / "a.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    assert same(read_state_dict(tmp_path / "a.pth"))


def shard(folder: Path, kind: str) -> Path:
    save = save_file if kind == "model.safetensors" else torch.save
    for number, name in enumerate(WEIGHTS):
        save({name: WEIGHTS[name]}, folder / f"part-{number}.bin")
    weight_map = {name: f"part-{number}.bin" for number, name in enumerate(WEIGHTS)}
    index = folder / f"{kind}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return index


@pytest.mark.parametrize("kind", ["model.safetensors", "pytorch_model.bin"])
def test_sharded(tmp_path: Path, kind: str) -> None:
    index = shard(tmp_path, kind)
    assert same(read_state_dict(index))
    assert same(read_state_dict(tmp_path, mmap=True))
    with pytest.raises(ZooError, match="is sharded"):
        read_state_dict(index, key="model")


def test_sharded_and_broken(tmp_path: Path) -> None:
    index = shard(tmp_path, "model.safetensors")
    save_file({**WEIGHTS}, tmp_path / "part-0.bin")
    with pytest.raises(ZooError, match=r"do not belong together: 1 tensors .*'fc\.bias'"):
        read_state_dict(index)
    (tmp_path / "part-1.bin").unlink()
    with pytest.raises(ZooError, match=r"points to part-1\.bin, which is missing"):
        read_state_dict(index)
    for text, message in [
        ("{", "is not an index"),
        ('{"weight_map": 3}', "is not an index"),
        ('{"weight_map": {}}', "lists no tensors"),
        ('{"weight_map": {"a": "../secret"}}', "outside of its own folder"),
        ('{"weight_map": {"a": "/etc/passwd"}}', "outside of its own folder"),
    ]:
        index.write_text(text)
        with pytest.raises(ZooError, match=message):
            read_state_dict(index)


def test_save_keeps_ties_views_and_metadata(tmp_path: Path) -> None:
    shared = torch.arange(6.0).view(2, 3)
    tensors = {"embedding": shared, "head": shared, "row": shared[0], "turned": shared.t()}
    save_state_dict(tensors, tmp_path / "new" / "a.safetensors", {"note": "hi"})
    assert same(read_state_dict(tmp_path / "new"), tensors)
    assert read_metadata(tmp_path / "new" / "a.safetensors")["note"] == "hi"
    stored = (tmp_path / "new" / "a.safetensors").stat().st_size
    save_state_dict({**tensors, "head": shared.clone()}, tmp_path / "b.safetensors")
    assert stored < (tmp_path / "b.safetensors").stat().st_size + 20
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["a.safetensors"]


def test_save_into_a_file_that_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_state_dict(WEIGHTS, path)
    mapped = read_state_dict(path, mmap=True)
    save_state_dict({name: tensor * 2 for name, tensor in mapped.items()}, path)
    assert same(mapped)
    assert same(read_state_dict(path), {name: tensor * 2 for name, tensor in WEIGHTS.items()})
    with pytest.raises(ZooError, match="cannot be written"):
        save_state_dict(WEIGHTS, path / "below_a_file")
