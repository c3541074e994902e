"""Every case of every file of fingerprints, and the mechanism itself."""

import zlib
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from tests.fingerprints import insert, load, tensors
from tests.formula import Refusal, uniform

TESTS = Path(__file__).resolve().parent.parent
FILES = sorted(TESTS.glob("*/**/*.yaml"))
CASES = [(file, name) for file in FILES for name in load(file)]


@pytest.mark.parametrize(
    ("file", "name"), CASES, ids=[f"{f.parent.name}-{f.stem}-{name}" for f, name in CASES]
)
def test_fingerprint(file, name):
    assert load(file)[name].differences() == []


class Toy(nn.Module):
    """A model with a fault that the name says."""

    def __init__(self, fault=""):
        super().__init__()
        self.fault = fault
        self.linear = nn.Linear(3, 4)
        self.idle = nn.Linear(2, 2) if fault == "idle" else None
        self.register_buffer("noise", torch.randn(4) if fault == "random" else torch.zeros(4))

    def forward(self, x):
        y = self.linear(x) + self.noise
        if self.fault == "constant":
            y = y * 0 + 2 + 0 * x.sum()
        if self.fault == "float32":
            y = y.float().double()
        y = y.sigmoid() / (0 if self.fault == "infinite" else 1)
        return {"y": y.detach() if self.fault == "detached" else y, "none": None}


def toy(tmp_path, fault="", **entry):
    case = {"model": "tests.models.test_fingerprints:Toy", "args": {"fault": fault}}
    content = {"agreement": "none", "cases": {"toy": {**case, "inputs": {"x": {"shape": [2, 3]}}}}}
    content["cases"]["toy"].update(entry)
    file = tmp_path / "toy.yaml"
    file.write_text(yaml.safe_dump(content))
    return load(file)["toy"]


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("idle", "no influence on the outputs: idle.weight, idle.bias"),
        ("random", "depend on the random generator"),
        ("constant", "output.y is constant"),
        ("infinite", "output.y is not finite"),
        ("float32", "computes in torch.float32"),
        ("detached", "no output has a gradient"),
    ],
)
def test_a_case_that_would_not_notice_a_fault_is_refused(tmp_path, fault, message):
    with pytest.raises(Refusal, match=message):
        toy(tmp_path, fault).written()


def test_reasons_are_needed_and_accepted(tmp_path):
    assert toy(tmp_path, "idle", unused={"idle.*": "it is idle"}).written()
    assert toy(tmp_path, "detached", no_gradient="it is detached").written()
    assert toy(tmp_path, "random", values={"noise": [0.5, 0.1]}).written()
    with pytest.raises(Refusal, match=r"nothing called linear.\* is unused"):
        toy(tmp_path, unused={"linear.*": "it is not"}).written()
    with pytest.raises(Refusal, match="no parameter or buffer is called lineal"):
        toy(tmp_path, values={"lineal.*": [0, 1]}).written()
    with pytest.raises(Refusal, match="no such key: input"):
        toy(tmp_path, input={})


def test_numbers_are_kept_and_compared(tmp_path):
    case = toy(tmp_path)
    assert "no numbers yet" in case.differences()[0]
    text = insert(case.file.read_text(), "toy", case.written())
    case.file.write_text(insert(text, "toy", case.written()))
    case = load(case.file)["toy"]
    assert list(case.numbers) == [
        "output.y (2, 4)",
        "gradient of input.x",
        "gradient of parameters",
    ]
    assert case.differences() == []
    case.args = {"fault": "float32"}  # rounding to float32 is noticed
    assert len(case.differences()) == 3


def test_values_by_formula():
    values = uniform("weight", (1000, 3))
    assert values.dtype == torch.float64 and values.min() >= -1 and values.max() < 1
    assert abs(values.mean()) < 0.03 and abs(values.var() - 1 / 3) < 0.02
    assert values.unique().numel() == 3000
    assert not torch.equal(values, uniform("bias", (1000, 3)))
    assert [float(v) for v in values[1]] == [splitmix("weight", place) for place in (3, 4, 5)]


def splitmix(name, place):
    """The hash in Python's own integers."""
    x = ((zlib.crc32(name.encode()) << 32) + place) * 0x9E3779B97F4A7C15 % 2**64
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
    return ((x ^ (x >> 31)) >> 11) / 2**52 - 1


def test_tensors_of_a_nest():
    nest = {"a": (torch.ones(1), None), "b": [torch.ones(2)], "c": 3}
    assert [path for path, _ in tensors("output", nest)] == ["output.a.0", "output.b.0", "output.c"]
    with pytest.raises(Refusal, match=r"output.a is a Linear"):
        list(tensors("output", {"a": nn.Linear(1, 1)}))


def test_inputs_by_description(tmp_path):
    inputs = {
        "tokens": {"shape": [50], "below": 5, "low": 2},
        "mask": {"shape": [2000], "chance": 0.25},
        "lengths": {"value": [3, 2]},
        "nest": [{"a": {"shape": [2]}}, {"a": {"shape": [2], "low": 3, "high": 4}}],
        "mode": "greedy",
    }
    made = toy(tmp_path, inputs=inputs).arguments()
    assert set(made["tokens"].tolist()) == {2, 3, 4} and made["mode"] == "greedy"
    assert made["mask"].dtype == torch.bool and abs(made["mask"].float().mean() - 0.25) < 0.05
    assert made["lengths"].tolist() == [3, 2]
    first, second = (part["a"] for part in made["nest"])
    assert first.min() >= -1 and second.min() >= 3 and second.max() < 4
