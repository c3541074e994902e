"""The CUDA kernels where only a GPU is enough: sizes of networks, graphs, a second device."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import zoo.ops
from tests.ops.problems import (
    SSD_SIGNALS,
    error,
    exact,
    scan_problem,
    scan_sequences,
    ssd_problem,
)
from tests.ops.test_cuda import (  # noqa: F401
    CONV_SEQUENCES,
    EMULATED,
    compare,
    conv_problem,
    kernels,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        bool(EMULATED) or not torch.cuda.is_available(), reason="no CUDA device, or its emulation"
    ),
]

LARGE = {
    "Mamba 130M": dict(batch=4, dim=1536, length=2048, state=16),
    "VMamba": dict(batch=16, dim=384, length=3136, state=1, groups=4),
    "VMamba, last stage": dict(batch=64, dim=3072, length=49, state=1, groups=4),
    "long": dict(batch=1, dim=8, length=100_000, state=16),
    "many states": dict(batch=1, dim=64, length=1000, state=256),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", LARGE)
def test_large_selective_scan(case, dtype):
    """Against the CPU kernel in float64."""
    torch.manual_seed(0)
    assert not compare(
        zoo.ops.selective_scan,
        zoo.ops.selective_scan,
        scan_problem(**LARGE[case]),
        scan_sequences(""),
        dtype,
        delta_softplus=True,
        return_last_state=True,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_large_ssd(dtype):
    """At the shape of Mamba-2 130M, against the CPU kernel in float64."""
    torch.manual_seed(0)
    assert not compare(
        zoo.ops.ssd,
        zoo.ops.ssd,
        ssd_problem(2, 2048, 24, 64, 1, 128),
        SSD_SIGNALS,
        dtype,
        dt_softplus=True,
        return_final_states=True,
    )


@pytest.mark.parametrize("layout", ["rows", "columns"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_large_causal_conv1d(dtype, layout):
    torch.manual_seed(0)
    assert not compare(
        zoo.ops.causal_conv1d,
        zoo.ops.causal_conv1d,
        conv_problem(8, 1536, 2048, 4),
        CONV_SEQUENCES,
        dtype,
        layout,
        activation="silu",
    )


def test_graph_capture_and_side_stream():
    """All ops forward and backward in one CUDA graph, replayed with new numbers."""
    torch.manual_seed(0)
    scan = scan_problem(2, 64, 500, 4, groups=2)
    x = exact(2, 64, 500).float().cuda()
    weight = exact(64, 4).float().cuda()
    leaves = scan.leaves("cuda", dict.fromkeys(scan.tensors, torch.float32), "rows")
    wanted = [t for t in leaves.values() if t.requires_grad]

    def step() -> list[Tensor]:
        u = zoo.ops.causal_conv1d(x, weight, activation="silu")
        picture = zoo.ops.cross_merge(zoo.ops.cross_scan(u.view(2, 64, 20, 25)), 20, 25)
        out = zoo.ops.selective_scan(**{**leaves, "u": leaves["u"] + picture.flatten(2)})
        return [out, *torch.autograd.grad(out.sum(), wanted)]

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    x.copy_(torch.randn_like(x))
    graph.replay()
    torch.cuda.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(captured, step(), strict=True))


def test_second_device():
    if torch.cuda.device_count() < 2:
        pytest.skip("one CUDA device")
    x = exact(1, 4, 9).float()
    weight = exact(4, 3).float()
    out = zoo.ops.causal_conv1d(x.to("cuda:1"), weight.to("cuda:1"))
    assert error(out, zoo.ops.causal_conv1d_reference(x, weight)) < 1e-5
