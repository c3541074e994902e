"""Weights into models: all or nothing, and what is said about it."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from zoo.checkpoints import head_names, load_pretrained, read_state_dict, save_state_dict
from zoo.errors import ZooError


class Net(nn.Module):
    """A body with a norm, and a classifier."""

    head_names = ("head",)

    def __init__(self, num_classes: int = 3, width: int = 4) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(2, width), nn.BatchNorm1d(width))
        self.head = nn.Linear(width, num_classes) if num_classes else nn.Identity()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    torch.manual_seed(1)
    path = tmp_path / "net.pth"
    torch.save(Net().state_dict(), path)
    return path


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[n], right[n]) for n in left)


def refused(model: nn.Module, source: Path, message: str, **kwargs: object) -> str:
    """The error; asserts that the model is as it was."""
    before = snapshot(model)
    with pytest.raises(ZooError, match=message) as caught:
        load_pretrained(model, source, **kwargs)  # type: ignore[arg-type]
    assert same(model.state_dict(), before)
    return str(caught.value)


def test_all_of_it(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "zoo")
    model = Net()
    parameters = list(model.parameters())
    report = load_pretrained(model, file)
    assert same(model.state_dict(), read_state_dict(file))
    assert list(model.parameters()) == parameters, "the optimizer's parameters must stay the same"
    assert report.loaded == tuple(model.state_dict())
    assert not (report.head or report.missing or report.unexpected or report.converted)
    assert f"Net: 9 tensors from {file}" in caplog.text


@pytest.mark.parametrize(
    "prefix", ["module.", "model.", "_orig_mod.", "backbone.", "module.model.", "model._orig_mod."]
)
def test_prefixes_of_wrappers(file: Path, prefix: str) -> None:
    weights = read_state_dict(file)
    torch.save({"state_dict": {f"{prefix}{n}": t for n, t in weights.items()}}, file)
    model = Net()
    report = load_pretrained(model, file)
    assert same(model.state_dict(), weights)
    assert (report.prefix, report.place) == (prefix, "state_dict")


def test_prefix_that_belongs_to_the_model_stays(tmp_path: Path) -> None:
    model, other = (nn.ModuleDict({"backbone": Net(), "model": nn.Linear(2, 2)}) for _ in "ab")
    torch.save(other.state_dict(), tmp_path / "a.pth")
    assert load_pretrained(model, tmp_path / "a.pth").prefix == ""
    assert same(model.state_dict(), other.state_dict())


def test_averaged_weights(file: Path) -> None:
    weights = read_state_dict(file)
    averaged = {name: tensor + 1 for name, tensor in weights.items()}
    torch.save({"model": weights, "model_ema": averaged}, file)
    model = Net()
    load_pretrained(model, file)
    assert same(model.state_dict(), weights)
    load_pretrained(model, file, key="ema")
    assert same(model.state_dict(), averaged)


class Renamed(Net):
    """Reads files of authors who called the body ``trunk`` and stored one matrix as two."""

    def remap_state_dict(self, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        out = {name.replace("trunk.", "body."): tensor for name, tensor in state_dict.items()}
        if "head.weight_a" in out:
            halves = out.pop("head.weight_a"), out.pop("head.weight_b")
            out["head.weight"] = torch.cat(halves, 1)
        return out


@pytest.mark.parametrize("prefix", ["", "module."])
def test_foreign_names(file: Path, prefix: str) -> None:
    weights = read_state_dict(file)
    foreign = {name.replace("body.", "trunk."): tensor for name, tensor in weights.items()}
    foreign["head.weight_a"], foreign["head.weight_b"] = foreign.pop("head.weight").split(2, 1)
    torch.save({prefix + name: tensor.clone() for name, tensor in foreign.items()}, file)
    model = Renamed()
    report = load_pretrained(model, file)
    assert same(model.state_dict(), weights)
    assert report.aside == ("head.weight_a", "head.weight_b")
    torch.save(weights, file)
    assert load_pretrained(model, file).aside == ()
    assert same(model.state_dict(), weights)


def test_remap_that_fails_is_a_wrong_file(file: Path) -> None:
    class Picky(Net):
        def remap_state_dict(self, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
            return {"x": state_dict["stem.weight"]}

    refused(
        Picky(), file, r"is not for Picky: its names cannot be mapped \(KeyError: 'stem\.weight'"
    )


class Fresh(Net):
    """Reads files without a norm, cuts its bias to size, and does not need one of their tensors."""

    def remap_state_dict(self, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        norm = {n: t for n, t in self.state_dict().items() if n.startswith("body.1.")}
        bias = state_dict["body.0.bias"][:4].clone()
        given = {n: t for n, t in state_dict.items() if n != "mask"}
        return {**norm, **given, "body.0.bias": bias}


def test_what_a_name_map_does_is_said(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "zoo")
    weights = {n: t for n, t in read_state_dict(file).items() if not n.startswith("body.1.")}
    torch.save({**weights, "mask": torch.ones(3), "body.0.bias": torch.arange(6.0)}, file)
    report = load_pretrained(Fresh(), file)
    assert set(report.loaded) == set(weights)
    assert len(report.kept) == 5 and all(name.startswith("body.1.") for name in report.kept)
    assert report.aside == ("mask",)
    assert report.resized == {"body.0.bias": ("[6]", "[4]")}
    assert "fitted to another size: body.0.bias [6] / [4]; own values kept: body.1" in caplog.text
    assert "merged or left out by the model's name map: mask" in caplog.text


# what does not fit


def test_both_shapes_are_said(file: Path) -> None:
    message = refused(Net(width=5), file, "does not fit Net: ")
    assert "body.0.weight [4, 2] / [5, 2]" in message
    assert "head.weight [3, 4] / [3, 5]" in message
    assert message.endswith(
        "Build the model with the checkpoint's sizes; only a classifier may differ"
    )


def test_missing_and_unknown_are_named(file: Path) -> None:
    weights = read_state_dict(file)
    del weights["body.1.bias"]
    torch.save({**weights, "neck.scale": torch.ones(1)}, file)
    message = refused(
        Net(), file, "missing in the checkpoint: body.1.bias. unknown to the model: neck"
    )
    assert "8 of its 9 tensors" in message
    assert "strict=False" in message


def test_another_model(tmp_path: Path) -> None:
    torch.save({"conv.weight": torch.ones(2)}, tmp_path / "a.pth")
    refused(Net(), tmp_path / "a.pth", "0 of its 9 tensors.*It is of another model")
    refused(Net(), tmp_path / "a.pth", "0 of its 9 tensors", strict=False)


def test_other_kinds_of_numbers(file: Path) -> None:
    weights = read_state_dict(file)
    torch.save({**weights, "body.0.bias": torch.ones(4, dtype=torch.int32)}, file)
    refused(Net(), file, r"body\.0\.bias \[4\] int32 / \[4\] float32")


def test_partial_load_is_asked_for_and_said(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    weights = read_state_dict(file)
    del weights["body.1.bias"]
    weights |= {"neck": torch.ones(1), "body.0.bias": torch.ones(7)}
    torch.save(weights, file)
    model = Net()
    report = load_pretrained(model, file, strict=False)
    assert report.missing == ("body.1.bias",)
    assert report.unexpected == ("neck",)
    assert report.mismatched == {"body.0.bias": ("[7]", "[4]")}
    assert len(report.loaded) == 7
    assert torch.equal(model.body[0].weight, weights["body.0.weight"])
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "not in the checkpoint: body.1.bias; not in the model: neck" in caplog.text
    assert "other shapes (checkpoint / model): body.0.bias [7] / [4]" in caplog.text


# the classifier


@pytest.mark.parametrize("num_classes", [1, 10])
def test_classifier_for_other_classes_is_left_out(
    file: Path, num_classes: int, caplog: pytest.LogCaptureFixture
) -> None:
    model = Net(num_classes)
    own = model.head.weight.clone()
    report = load_pretrained(model, file)
    assert report.head == ("head.weight", "head.bias")
    assert torch.equal(model.head.weight, own)
    assert torch.equal(model.body[0].weight, read_state_dict(file)["body.0.weight"])
    assert "classifier not loaded, it keeps its own values: head.weight, head.bias" in caplog.text


def test_model_without_classifier(file: Path) -> None:
    report = load_pretrained(Net(0), file)
    assert report.unexpected == ("head.weight", "head.bias")
    assert len(report.loaded) == 7


def test_checkpoint_without_classifier(file: Path) -> None:
    torch.save(Net(0).state_dict(), file)
    refused(Net(), file, r"missing in the checkpoint: head\.weight, head\.bias.*num_classes=0")


def test_only_what_is_the_classifier_may_differ(file: Path) -> None:
    class Anonymous(Net):
        head_names = ()

    refused(Anonymous(10), file, r"head\.weight \[3, 4\] / \[10, 4\]")


def test_timm_models_name_their_classifier(tmp_path: Path) -> None:
    import timm

    small = dict(embed_dim=16, depth=1, num_heads=2, img_size=32)
    model = timm.create_model("vit_tiny_patch16_224", num_classes=5, **small)
    assert head_names(model) == ("head",)
    torch.save(
        timm.create_model("vit_tiny_patch16_224", num_classes=7, **small).state_dict(),
        path := tmp_path / "a",
    )
    assert load_pretrained(model, path).head == ("head.weight", "head.bias")
    model.pretrained_cfg = None
    assert head_names(model) == ("head",), "get_classifier() says it as well"


# kinds of tensors and models


def test_dtype_is_the_models_and_is_said(file: Path) -> None:
    weights = {
        n: t.half() if t.is_floating_point() else t for n, t in read_state_dict(file).items()
    }
    torch.save(weights, file)
    model = Net()
    report = load_pretrained(model, file)
    assert report.converted == {"float16 -> float32": 8}
    assert "8 x float16 -> float32" in str(report)
    assert model.head.weight.dtype == torch.float32
    assert torch.equal(model.head.weight, weights["head.weight"].float())


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embedding.weight


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_tied_weights(tmp_path: Path, device: str) -> None:
    other, path = Tied(), tmp_path / "a.safetensors"
    for names in (["embedding.weight"], ["head.weight"], ["embedding.weight", "head.weight"]):
        save_state_dict({n: other.state_dict()[n] for n in names}, path)
        with torch.device(device):
            model = Tied()
        assert load_pretrained(model, path).missing == ()
        assert torch.equal(model.head.weight, other.head.weight)
        assert model.head.weight is model.embedding.weight
    save_file({"embedding.weight": torch.ones(5, 3), "head.weight": torch.zeros(5, 3)}, path)
    refused(Tied(), path, "different values for 'embedding.weight' and 'head.weight'")


def test_meta_model(file: Path) -> None:
    with torch.device("meta"):
        model = Net()
    model.head.weight.requires_grad_(False)
    load_pretrained(model, file)
    assert same(model.state_dict(), read_state_dict(file))
    assert [p.requires_grad for p in model.parameters()] == [True] * 4 + [False, True]
    with file.open("r+b") as stored:
        stored.write(bytes(file.stat().st_size))
    assert torch.isfinite(model.head.weight).all()


def test_meta_model_with_a_new_classifier(file: Path) -> None:
    with torch.device("meta"):
        model = Net(10)
    load_pretrained(model, file)
    assert model.head.weight.shape == (10, 4)
    assert 0 < model.head.weight.std() < 1


def test_meta_model_that_cannot_be_filled(file: Path) -> None:
    with torch.device("meta"):
        model = Net()
        model.register_buffer("table", torch.ones(3), persistent=False)
    with pytest.raises(ZooError, match=r"buffers that no checkpoint holds \(table\)"):
        load_pretrained(model, file)
    del model.table
    weights = read_state_dict(file)
    del weights["body.1.weight"]
    torch.save(weights, file)
    with pytest.raises(
        ZooError, match=r"body\.1\.weight would have no values: the model is on the"
    ):
        load_pretrained(model, file, strict=False)
    assert all(p.is_meta for p in model.parameters())


def test_sharded_into_a_meta_model(tmp_path: Path) -> None:
    weights = Net().state_dict()
    halves = list(weights)[:4], list(weights)[4:]
    for number, names in enumerate(halves):
        torch.save({n: weights[n] for n in names}, tmp_path / f"{number}.bin")
    index = {n: f"{number}.bin" for number, names in enumerate(halves) for n in names}
    text = str({"weight_map": index}).replace("'", '"')
    (tmp_path / "pytorch_model.bin.index.json").write_text(text)
    with torch.device("meta"):
        model = Net()
    load_pretrained(model, tmp_path)
    assert same(model.state_dict(), weights)
