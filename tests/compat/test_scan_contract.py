"""The argument combinations of mamba_ssm's own tests of Mamba-1, on the CPU."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.grids import BOTH, ITYPES, TOLERANCE, assert_same_gradients, every, leaf, some
from zoo.compat import kernels
from zoo.compat.causal_conv1d_interface import (
    causal_conv1d_ref,
)
from zoo.compat.selective_scan_interface import (
    bimamba_inner_fn,
    mamba_inner_fn,
    mamba_inner_fn_no_out_proj,
    mamba_inner_ref,
    selective_scan_fn,
    selective_scan_ref,
)


def scan_inputs(
    variable_B: bool,
    variable_C: bool,
    groups: int,
    length: int,
    itype: torch.dtype = torch.float32,
    wtype: torch.dtype = torch.float32,
) -> dict[str, Tensor]:
    batch, dim, state = 2, 4, 8
    columns = length * (2 if wtype.is_complex else 1)
    shape = (batch, state, columns) if groups == 1 else (batch, groups, state, columns)

    def projection(variable: bool) -> Tensor:
        return torch.randn(shape, dtype=itype) if variable else torch.randn(dim, state, dtype=wtype)

    return {
        "u": torch.randn(batch, dim, length, dtype=itype),
        "delta": 0.5 * torch.rand(batch, dim, length, dtype=itype),
        "A": -0.5 * torch.rand(dim, state, dtype=wtype),
        "B": projection(variable_B),
        "C": projection(variable_C),
        "D": torch.randn(dim),
        "z": torch.randn(batch, dim, length, dtype=itype),
        "delta_bias": 0.5 * torch.rand(dim),
    }


@pytest.mark.parametrize(
    "variable_B, variable_C, groups, has_D, has_z, has_bias, softplus, last, length, itype, wtype",
    some(
        70, BOTH, BOTH, (1, 2), BOTH, BOTH, BOTH, BOTH, BOTH, (1, 17, 130), ITYPES,
        (torch.float32, torch.complex64),
    )
    + [(True, True, g, True, True, True, True, True, n, torch.float32, torch.float32)
       for g, n in ((1, 1134), (2, 2048))],
)  # fmt: skip
def test_selective_scan(
    variable_B: bool,
    variable_C: bool,
    groups: int,
    has_D: bool,
    has_z: bool,
    has_bias: bool,
    softplus: bool,
    last: bool,
    length: int,
    itype: torch.dtype,
    wtype: torch.dtype,
) -> None:
    given: dict[str, Tensor | None] = {
        **scan_inputs(variable_B, variable_C, groups, length, itype, wtype)
    }
    given |= {
        n: None for n, has in [("D", has_D), ("z", has_z), ("delta_bias", has_bias)] if not has
    }
    ours, reference = ({n: leaf(t) for n, t in given.items()} for _ in range(2))
    found = selective_scan_fn(**ours, delta_softplus=softplus, return_last_state=last)
    expected = selective_scan_ref(**reference, delta_softplus=softplus, return_last_state=last)
    rtol, atol = TOLERANCE[itype]
    if last:
        (found, state), (expected, expected_state) = found, expected
        torch.testing.assert_close(state, expected_state, rtol=rtol, atol=atol)
    assert found.dtype == itype
    torch.testing.assert_close(found, expected, rtol=rtol, atol=atol)
    cotangent = torch.randn_like(found)
    found.backward(cotangent)
    expected.backward(cotangent)
    assert_same_gradients(list(ours.values()), list(reference.values()), itype)


@pytest.mark.parametrize("has_z, recompute, softplus", every(BOTH, BOTH, BOTH))
def test_compiled_scan_modules(has_z: bool, recompute: bool, softplus: bool) -> None:
    """Forward and backward of the three modules, against autograd through the reference."""
    given = scan_inputs(True, True, 2, 19)
    z = given.pop("z") if has_z else None
    given.pop("z", None)
    leaves = {n: leaf(t) for n, t in {**given, "z": z}.items()}
    expected, state = selective_scan_ref(**leaves, delta_softplus=softplus, return_last_state=True)
    dout = torch.randn_like(expected)
    expected.backward(dout)
    bias = given.pop("delta_bias")
    first = tuple(given.values())  # u, delta, A, B, C, D

    out, x, *rest = kernels.selective_scan_cuda.fwd(*first, z, bias, softplus)
    torch.testing.assert_close(rest[0] if has_z else out, expected)
    torch.testing.assert_close(x[:, :, -1, 1::2], state)
    dz = None if z is None else torch.empty_like(z)
    gradients = kernels.selective_scan_cuda.bwd(
        *first, z, bias, dout, x, out, dz, softplus, recompute
    )
    names = ["u", "delta", "A", "B", "C", "D", "delta_bias", *(["z"] if has_z else [])]
    for name, gradient in zip(names, gradients, strict=False):
        torch.testing.assert_close(gradient, leaves[name].grad, rtol=1e-4, atol=1e-4)
    if has_z:
        assert gradients[7] is dz
    assert len(gradients) == len(names) + (has_z and recompute)
    if has_z:
        if recompute:
            torch.testing.assert_close(gradients[-1], expected)
        return
    for module in (kernels.selective_scan_cuda_core, kernels.selective_scan_cuda_oflex):
        out, x = module.fwd(*first, bias, softplus, 1)
        torch.testing.assert_close(out, expected)
        for name, gradient in zip(
            names, module.bwd(*first, bias, dout, x, softplus, 1), strict=True
        ):
            torch.testing.assert_close(gradient, leaves[name].grad, rtol=1e-4, atol=1e-4)


def test_scan_with_float_output() -> None:
    given = scan_inputs(True, True, 2, 19, torch.bfloat16)
    first = [given[name] for name in ("u", "delta", "A", "B", "C", "D", "delta_bias")]
    out, _ = kernels.selective_scan_cuda_oflex.fwd(*first, True, 1, True)
    rounded, x = kernels.selective_scan_cuda_oflex.fwd(*first, True, 1, False)
    assert (out.dtype, rounded.dtype) == (torch.float32, torch.bfloat16)
    torch.testing.assert_close(out.bfloat16(), rounded, rtol=1e-2, atol=1e-2)
    gradients = kernels.selective_scan_cuda_oflex.bwd(*first, torch.randn_like(out), x, True, 1)
    assert [g.dtype for g in gradients] == [t.dtype for t in first]


INNER = 12, 3, 5  # D, R, N


def inner_inputs(
    variable_B: bool, variable_C: bool, wtype: torch.dtype = torch.float32
) -> dict[str, Tensor | None]:
    dim, rank, state = INNER
    columns = state * (2 if wtype.is_complex else 1)
    return {
        "xz": torch.randn(2, 2 * dim, 13),
        "conv1d_weight": torch.randn(dim, 1, 3),
        "conv1d_bias": torch.randn(dim),
        "x_proj_weight": torch.randn(rank + (variable_B + variable_C) * columns, dim) / dim**0.5,
        "delta_proj_weight": torch.randn(dim, rank),
        "out_proj_weight": torch.randn(6, dim),
        "out_proj_bias": torch.randn(6),
        "A": -0.5 * torch.rand(dim, state, dtype=wtype),
        "B": None if variable_B else torch.randn(dim, state, dtype=wtype),
        "C": None if variable_C else torch.randn(dim, state, dtype=wtype),
        "D": torch.randn(dim),
        "delta_bias": 0.5 * torch.rand(dim),
    }


def inner_by_references(**given: Tensor) -> Tensor:
    """Mamba's block written out, on the references of convolution and scan."""
    _, rank, state = INNER
    A, B, C = (given[name] for name in "ABC")
    x, z = given["xz"].chunk(2, 1)
    weight = given["conv1d_weight"][:, 0]
    x = causal_conv1d_ref(x, weight, given["conv1d_bias"], activation="silu")
    projected = F.linear(x.mT, given["x_proj_weight"])
    delta = projected[..., :rank] @ given["delta_proj_weight"].mT
    columns = state * (2 if A.is_complex() else 1)
    if B is None:
        B = projected[..., rank : rank + columns]
    if C is None:
        C = projected[..., -columns:]
    shape = (-1, 2) if A.is_complex() else (-1, 1)  # [B, L, (N 2)] -> [B, N, (L 2)]
    B, C = (
        t.unflatten(-1, shape).transpose(1, 2).flatten(2) if t.dim() == 3 else t for t in (B, C)
    )
    y = selective_scan_ref(x, delta.mT, A, B, C, given["D"], z, given["delta_bias"], True)
    return F.linear(y.mT, given["out_proj_weight"], given["out_proj_bias"])


@pytest.mark.parametrize(
    "variable_B, variable_C, wtype",
    every(BOTH, BOTH, (torch.float32, torch.complex64)),
)
def test_mamba_inner(variable_B: bool, variable_C: bool, wtype: torch.dtype) -> None:
    given = inner_inputs(variable_B, variable_C, wtype)
    ours, reference = ({n: leaf(t) for n, t in given.items()} for _ in range(2))
    found, expected = mamba_inner_fn(**ours), inner_by_references(**reference)
    torch.testing.assert_close(mamba_inner_ref(**ours), found)
    torch.testing.assert_close(found, expected, rtol=6e-4, atol=2e-3)
    cotangent = torch.randn_like(found)
    found.backward(cotangent)
    expected.backward(cotangent)
    assert_same_gradients(list(ours.values()), list(reference.values()), torch.float32)


def test_mamba_inner_variants() -> None:
    given = inner_inputs(True, True)
    weight, bias = given.pop("out_proj_weight"), given.pop("out_proj_bias")
    forward = mamba_inner_fn_no_out_proj(**given)
    whole = {**given, "out_proj_weight": weight, "out_proj_bias": bias}
    torch.testing.assert_close(F.linear(forward.mT, weight, bias), mamba_inner_fn(**whole))
    # Of Vision Mamba, version 1: one convolution, scanned from both ends.
    A_b = -torch.rand_like(given["A"])
    both = bimamba_inner_fn(**whole, A_b=A_b)
    _, rank, state = INNER
    x, z = given["xz"].chunk(2, 1)
    x = causal_conv1d_ref(x, given["conv1d_weight"][:, 0], given["conv1d_bias"], activation="silu")
    delta, B, C = F.linear(x.mT, given["x_proj_weight"]).split([rank, state, state], -1)
    delta = (delta @ given["delta_proj_weight"].mT).mT
    sequences = [x, delta, B.mT, C.mT, z]
    y = 0
    for A, turned in ((given["A"], False), (A_b, True)):
        u, dt, B, C, gate = (t.flip(-1) if turned else t for t in sequences)
        out = selective_scan_ref(u, dt, A, B, C, given["D"], gate, given["delta_bias"], True)
        y = y + (out.flip(-1) if turned else out)
    torch.testing.assert_close(both, F.linear(y.mT, weight, bias), rtol=1e-4, atol=1e-4)


def test_mamba_inner_norms_and_biases() -> None:
    """Falcon-Mamba norms B, C and delta before the scan."""
    dim, rank, state = INNER
    given = inner_inputs(True, True)
    extra = {"B_proj_bias": torch.randn(state), "C_proj_bias": torch.randn(state)}
    norms = {"b_rms_weight": torch.rand(state), "c_rms_weight": torch.rand(state)}
    norms["dt_rms_weight"] = torch.rand(dim)
    found = mamba_inner_fn(**given, **extra, **norms)
    x, z = given["xz"].chunk(2, 1)
    x = causal_conv1d_ref(x, given["conv1d_weight"][:, 0], given["conv1d_bias"], activation="silu")
    delta, B, C = F.linear(x.mT, given["x_proj_weight"]).split([rank, state, state], -1)

    def rms(t: Tensor, weight: Tensor) -> Tensor:
        return t / (t.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight

    delta = rms(delta @ given["delta_proj_weight"].mT, norms["dt_rms_weight"])
    B = rms(B + extra["B_proj_bias"], norms["b_rms_weight"])
    C = rms(C + extra["C_proj_bias"], norms["c_rms_weight"])
    y = selective_scan_ref(
        x, delta.mT, given["A"], B.mT, C.mT, given["D"], z, given["delta_bias"], True
    )
    expected = F.linear(y.mT, given["out_proj_weight"], given["out_proj_bias"])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
