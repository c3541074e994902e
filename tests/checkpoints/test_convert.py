"""``python -m zoo.convert``: any checkpoint to safetensors that say what they are, and back."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch

import zoo
from zoo.checkpoints import read_metadata, read_state_dict
from zoo.convert import load_converted, main

SMALL = dict(depth=2, embed_dim=32, img_size=32, num_classes=5)
ARGS = ["--args", *(f"{name}={value}" for name, value in SMALL.items())]


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    torch.manual_seed(1)
    weights = zoo.create_model("vim_tiny", **SMALL).state_dict()
    torch.save({"model": {f"module.{n}": t for n, t in weights.items()}}, tmp_path / "a.pth")
    return tmp_path / "a.pth"


def test_there_and_back(foreign: Path, capsys: pytest.CaptureFixture) -> None:
    out = foreign.parent / "new" / "vim.safetensors"
    assert main([str(foreign), str(out), "--model", "vim_tiny", *ARGS]) == 0
    model = zoo.create_model("vim_tiny", **SMALL)
    assert f"{out}: {len(model.state_dict())} tensors, 0." in capsys.readouterr().out
    assert json.loads(read_metadata(out)["zoo"]) == {
        "model": "vim_tiny",
        "arguments": SMALL,
        "source": str(foreign),
        "sha256": {"a.pth": hashlib.sha256(foreign.read_bytes()).hexdigest()},
    }
    zoo.load_pretrained(model, foreign)
    loaded = load_converted(out)
    assert type(loaded) is type(model)
    assert all(
        torch.equal(a, b) for a, b in zip(loaded.parameters(), model.parameters(), strict=True)
    )
    other = zoo.create_model("vim_tiny", pretrained=str(out), **SMALL)
    assert torch.equal(other.head.weight, model.head.weight)


def test_half(foreign: Path, caplog: pytest.LogCaptureFixture) -> None:
    big = {
        "a": torch.tensor([1.0, 1e6]),
        "b": torch.tensor([0.1, float("inf")]),
        "c": torch.ones(1),
    }
    torch.save(big | {"n": torch.tensor(3)}, foreign)
    out = foreign.with_suffix(".safetensors")
    assert main([str(foreign), str(out), "--half"]) == 0
    dtypes = {name: tensor.dtype for name, tensor in read_state_dict(out).items()}
    half = torch.float16
    assert dtypes == {"a": torch.float32, "b": half, "c": half, "n": torch.int64}
    assert "a stays torch.float32: it has values beyond float16" in caplog.text


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["missing.pth", "o.safetensors"], "there is no file or folder missing.pth"),
        (["{file}", "o.pth"], "'o.pth' must end in .safetensors"),
        (["{file}", "o.safetensors", *ARGS], "--args are those of a model"),
        (["{file}", "o.safetensors", "--model", "vim_tiny", "--args", "x"], "expected name=value"),
        (
            ["{file}", "o.safetensors", "--model", "vim_tiny", "--args", "num_classes=abc"],
            "--model or --args: ",
        ),
        (
            ["{file}", "o.safetensors", "--model", "vim_tiny", "--args", "num_classes=[1"],
            "--args num_classes=[1: the value cannot be read as YAML",
        ),
        (["{file}", "o.safetensors", "--model", "vim_huge"], "there is no model 'vim_huge'"),
        (["{file}", "o.safetensors", "--model", "vim_tiny"], "Choose the variant"),
        (
            ["{file}", "o.safetensors", "--model", "vim_tiny", *ARGS[:-1], "num_classes=7"],
            "has a classifier of another size than vim_tiny",
        ),
    ],
)
def test_errors_are_one_line(
    foreign: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(foreign.parent)
    assert main([argument.format(file=foreign) for argument in arguments]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: ") and printed.count("\n") == 1
    assert message in printed
    assert not (foreign.parent / "o.safetensors").exists()


def test_file_that_does_not_say(foreign: Path) -> None:
    out = foreign.with_suffix(".safetensors")
    assert main([str(foreign), str(out)]) == 0
    with pytest.raises(zoo.errors.ZooError, match="does not say which model it is of"):
        load_converted(out)
