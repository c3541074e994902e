"""Without a compiled library everything works, training too: the references answer."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch

from tests.tiny import ROOT
from zoo.errors import ZooError
from zoo.ops import _library

SCRIPT = """
import json, sys
import torch
import zoo.ops
from zoo.ops import _library, causal_conv1d, cross_scan, diagonal_scan, selective_scan, ssd

torch.manual_seed(0)
def leaf(*shape): return torch.randn(shape, dtype=torch.double).requires_grad_()
x, delta, A, B = leaf(1, 6, 20), leaf(1, 6, 20), leaf(6, 4), leaf(1, 4, 20)
weight, picture = leaf(6, 4), leaf(1, 6, 4, 4)
heads, dt, a = leaf(1, 20, 2, 8), leaf(1, 20, 2), leaf(2)
b, c = leaf(1, 20, 1, 4), leaf(1, 20, 1, 4)
scanned = selective_scan(x, delta, -A.exp(), B, B, delta_softplus=True)
made = {
    "selective_scan": (scanned, (x, delta, A, B)),
    "causal_conv1d": (causal_conv1d(x, weight), (x, weight)),
    "cross_scan": (cross_scan(picture), (picture,)),
    "diagonal_scan": (diagonal_scan(delta.mT.exp() * -0.1, x.mT, reset=x[:, 0] > 1), (delta, x)),
    "ssd": (ssd(heads, dt.exp(), -a.exp(), b, c, chunk_size=16), (heads, dt, a, b, c)),
}
numbers = {}
for name, (out, leaves) in made.items():
    out = out[0] if isinstance(out, tuple) else out
    grads = torch.autograd.grad((out * torch.arange(out.numel()).view_as(out)).sum(), leaves)
    numbers[name] = [float(t.double().square().sum()) for t in (out, *grads)]
print(json.dumps([_library.unavailable, numbers]))
"""


def run(folder) -> tuple[dict, dict]:
    environment = os.environ | {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCRIPT],
        cwd=folder, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return tuple(json.loads(done.stdout.splitlines()[-1]))


def test_references_answer_and_differentiate(tmp_path):
    shutil.copytree(
        ROOT / "zoo", tmp_path / "zoo", ignore=shutil.ignore_patterns("*.so", "__pycache__")
    )
    missing, numbers = run(tmp_path)
    assert missing["cpu"] == "not built"
    built, expected = run(ROOT)
    if "cpu" in built:
        pytest.skip("there are no compiled kernels to compare with")
    for name, values in expected.items():
        torch.testing.assert_close(numbers[name], values, rtol=1e-6, atol=1e-9)


def test_a_library_of_another_version_is_refused(monkeypatch):
    if "cpu" in _library.unavailable:
        pytest.skip("there are no compiled kernels")
    _library._check_version()
    known = _library.schemas()
    for other in ("made_up(Tensor x) -> Tensor", "cross_scan(Tensor x, int atrous) -> Tensor"):
        monkeypatch.setattr(_library, "schemas", lambda other=other: [*known, other])
        with pytest.raises(ZooError, match=r"of another version.*build them again"):
            _library._check_version()
