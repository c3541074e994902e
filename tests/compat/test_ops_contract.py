"""The argument combinations of mamba_ssm's and causal_conv1d's own tests, on the CPU."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.compat import kernels
from zoo.compat.causal_conv1d_interface import (
    causal_conv1d_fn,
    causal_conv1d_ref,
    causal_conv1d_update,
    causal_conv1d_update_ref,
    causal_conv1d_varlen_states,
)
from zoo.compat.layer_norm import RMSNorm, layer_norm_fn, rms_norm_fn
from zoo.compat.layernorm_gated import LayerNorm, layernorm_fn, rmsnorm_fn
from zoo.compat.layernorm_gated import RMSNorm as RMSNormGated
from zoo.compat.selective_scan_interface import (
    bimamba_inner_fn,
    mamba_inner_fn,
    mamba_inner_fn_no_out_proj,
    mamba_inner_ref,
    selective_scan_fn,
    selective_scan_ref,
)
from zoo.compat.selective_state_update import selective_state_update, selective_state_update_ref
from zoo.compat.ssd_combined import mamba_chunk_scan_combined, mamba_split_conv1d_scan_combined
from zoo.errors import ZooError
from zoo.ops.ssd import ssd_reference

BOTH = (False, True)
ITYPES = (torch.float32, torch.float16, torch.bfloat16)
TOLERANCE = {
    torch.float32: (6e-4, 2e-3),
    torch.float16: (3e-3, 5e-3),
    torch.bfloat16: (3e-2, 5e-2),
}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def every(*axes: Sequence) -> list[tuple]:
    return list(itertools.product(*axes))


def some(count: int, *axes: Sequence) -> list[tuple]:
    """Some combinations, the same ones every time."""
    return random.Random(0).sample(every(*axes), count)


def leaf(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.detach().clone().requires_grad_()


def assert_same_gradients(
    left: Sequence[Tensor | None], right: Sequence[Tensor | None], dtype: torch.dtype
) -> None:
    rtol, atol = TOLERANCE[dtype]
    for number, (a, b) in enumerate(zip(left, right, strict=True)):
        assert (a is None) == (b is None)
        if a is not None and b is not None:
            assert a.grad is not None and b.grad is not None, number
            scale = max(1.0, float(b.grad.abs().max()))
            torch.testing.assert_close(
                a.grad, b.grad, rtol=5 * rtol, atol=10 * atol * scale, check_dtype=True
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
    ),
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


@pytest.mark.parametrize(
    "variable_B, variable_C, wtype",
    every(BOTH, BOTH, (torch.float32, torch.complex64)),
)
def test_mamba_inner(variable_B: bool, variable_C: bool, wtype: torch.dtype) -> None:
    given = inner_inputs(variable_B, variable_C, wtype)
    ours, reference = ({n: leaf(t) for n, t in given.items()} for _ in range(2))
    found, expected = mamba_inner_fn(**ours), mamba_inner_ref(**reference)
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


# causal_conv1d


@pytest.mark.parametrize(
    "length, width, has_bias, silu, itype, channel_last, initial, final",
    some(70, (1, 2, 8, 129, 151), (2, 3, 4), BOTH, BOTH, ITYPES, BOTH, BOTH, BOTH),
)
def test_causal_conv1d(
    length: int,
    width: int,
    has_bias: bool,
    silu: bool,
    itype: torch.dtype,
    channel_last: bool,
    initial: bool,
    final: bool,
) -> None:
    batch, dim = 2, 40
    x = torch.randn(batch, 64 + dim + 8, length, dtype=itype)[:, 64 : 64 + dim]
    if channel_last:
        x = x.mT.contiguous().mT
    given = [
        x,
        torch.randn(dim, width),
        torch.randn(dim) if has_bias else None,
        torch.randn(batch, width - 1, dim, dtype=itype).mT if initial else None,
    ]
    ours, reference = ([leaf(t) for t in given] for _ in range(2))
    settings = dict(return_final_states=final, activation="silu" if silu else None)
    found = causal_conv1d_fn(*ours[:3], initial_states=ours[3], **settings)
    expected = causal_conv1d_ref(*reference, **settings)
    rtol, atol = TOLERANCE[itype]
    if final:
        (found, states), (expected, expected_states) = found, expected
        torch.testing.assert_close(states, expected_states, rtol=rtol, atol=atol)
        found = found + torch.sigmoid(states).sum(-1, keepdim=True)
        expected = expected + torch.sigmoid(expected_states).sum(-1, keepdim=True)
    torch.testing.assert_close(found, expected, rtol=rtol, atol=atol)
    cotangent = torch.randn_like(found)
    found.backward(cotangent)
    expected.backward(cotangent)
    assert_same_gradients(ours, reference, itype)


def test_final_states_are_written_where_asked() -> None:
    x, weight = torch.randn(2, 8, 5), torch.randn(8, 4)
    place = torch.zeros(2, 3, 8).mT
    for function in (causal_conv1d_fn, causal_conv1d_ref):
        place.zero_()
        _, states = function(x, weight, return_final_states=True, final_states_out=place)
        assert states.data_ptr() == place.data_ptr()
        torch.testing.assert_close(place, x[..., -3:])


def test_packed_sequences() -> None:
    x, weight, bias = torch.randn(1, 8, 20), torch.randn(8, 4), torch.randn(8)
    parts = [x[..., :7], x[..., 7:9], x[..., 9:]]
    seq_idx = torch.cat([torch.full((1, p.shape[-1]), n) for n, p in enumerate(parts)], 1).int()
    found = causal_conv1d_fn(x, weight, bias, seq_idx=seq_idx, activation="silu")
    expected = torch.cat([causal_conv1d_ref(p, weight, bias, activation="silu") for p in parts], -1)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    "width, length, circular, has_bias, silu, itype",
    some(40, (2, 3, 4), (0, 1, 4, 5), BOTH, BOTH, BOTH, ITYPES),
)
def test_causal_conv1d_update(
    width: int, length: int, circular: bool, has_bias: bool, silu: bool, itype: torch.dtype
) -> None:
    """Length 0 stands for x without a length."""
    batch, dim = 6, 24
    x = torch.randn(batch, max(length, 1), dim, dtype=itype).mT
    x = x if length else x[..., 0]
    state_len = width - 1 + random.Random(width).randrange(10)
    state = torch.randn(batch, state_len, dim, dtype=itype).mT
    expected_state = state.clone()
    weight, bias = torch.randn(dim, width), torch.randn(dim) if has_bias else None
    seqlens = torch.randint(0, 1024, (batch,), dtype=torch.int32) if circular else None
    rest = weight, bias, "silu" if silu else None, seqlens
    found = causal_conv1d_update(x, state, *rest)
    expected = causal_conv1d_update_ref(x, expected_state, *rest)
    rtol, atol = TOLERANCE[itype]
    torch.testing.assert_close(found, expected, rtol=rtol, atol=atol)
    assert torch.equal(state, expected_state)


@pytest.mark.parametrize("padded, circular, length", every(BOTH, BOTH, (1, 4)))
def test_update_of_a_pool_of_states(padded: bool, circular: bool, length: int) -> None:
    batch, dim, width = 6, 24, 4
    x, weight = torch.randn(batch, dim, length), torch.randn(dim, width)
    pool = torch.randn(10 * batch, dim, 7)
    before = pool.clone()
    indices = torch.randperm(len(pool))[:batch].int()
    if padded:
        indices[1::2] = -1
    used = indices >= 0
    seqlens = torch.randint(0, 99, (batch,), dtype=torch.int32) if circular else None
    found = causal_conv1d_update(x, pool, weight, None, "silu", seqlens, indices)
    states = before[indices[used].long()]
    expected = causal_conv1d_update_ref(
        x[used], states, weight, None, "silu", seqlens[used] if circular else None
    )
    torch.testing.assert_close(found[used], expected)
    assert not found[~used].any()
    before[indices[used].long()] = states
    assert torch.equal(pool, before)
    with pytest.raises(ZooError, match=r"conv_state_indices has shape \(3,\), expected \(6,\)"):
        causal_conv1d_update(x, pool, weight, conv_state_indices=indices[:3])


def test_states_of_packed_sequences() -> None:
    lengths = torch.tensor([5, 1, 3, 30, 7])
    x = torch.randn(int(lengths.sum()), 16)
    bounds = F.pad(lengths.cumsum(0), (1, 0))
    found = causal_conv1d_varlen_states(x, bounds, 4)
    for row, part in zip(found, x.split(lengths.tolist()), strict=True):
        torch.testing.assert_close(row, F.pad(part.mT, (4, 0))[:, -4:])


@pytest.mark.parametrize("final, silu, preallocated", every(BOTH, BOTH, BOTH))
def test_compiled_convolution(final: bool, silu: bool, preallocated: bool) -> None:
    given = [torch.randn(2, 8, 9), torch.randn(8, 4), torch.randn(8), torch.randn(2, 8, 3)]
    leaves = [leaf(t) for t in given]
    activation = "silu" if silu else None
    expected, states = causal_conv1d_ref(*leaves, return_final_states=True, activation=activation)
    dout, dstates = torch.randn_like(expected), torch.randn_like(states)
    torch.autograd.backward([expected, states], [dout, dstates * final])
    place = torch.zeros_like(states) if final else None
    module = kernels.causal_conv1d_cuda
    x, weight, bias, first = given
    out = module.causal_conv1d_fwd(x, weight, bias, None, first, place, silu)
    torch.testing.assert_close(out, expected)
    if place is not None:
        torch.testing.assert_close(place, states)
    dx = torch.empty_like(x) if preallocated else None
    found = module.causal_conv1d_bwd(
        x, weight, bias, dout, None, first, dstates if final else None, dx, True, silu
    )
    for gradient, tensor in zip(found, leaves, strict=True):
        torch.testing.assert_close(gradient, tensor.grad, rtol=1e-4, atol=1e-4)
    assert dx is None or found[0] is dx
    state, expected_state = torch.randn(2, 8, 4).repeat(2, 1, 1, 1)
    step = module.causal_conv1d_update(x[..., 0], state, weight, bias, silu, None, None)
    expected = causal_conv1d_update_ref(x[..., 0], expected_state, weight, bias, activation)
    torch.testing.assert_close(step, expected)
    assert torch.equal(state, expected_state)


# steps and Mamba-2


@pytest.mark.parametrize(
    "heads, groups, has_z, softplus, pooled, itype",
    some(30, (0, 4), (1, 2), BOTH, BOTH, BOTH, ITYPES),
)
def test_selective_state_update(
    heads: int, groups: int, has_z: bool, softplus: bool, pooled: bool, itype: torch.dtype
) -> None:
    batch, dim, n = 3, 6, 5
    inner = (heads, dim) if heads else (dim,)
    rows = 9 if pooled else batch
    state = torch.randn(rows, *inner, n, dtype=itype)
    x, dt, z = (torch.randn(batch, *inner, dtype=itype) for _ in range(3))
    A, D, bias = -torch.rand(*inner, n), torch.randn(inner), torch.rand(inner) - 4
    B, C = torch.randn(2, batch, groups, n, dtype=itype)
    rest = D, z if has_z else None, bias, softplus
    indices = torch.tensor([7, -1, 2]) if pooled else None
    before = state.clone()
    found = selective_state_update(state, x, dt, A, B, C, *rest, state_batch_indices=indices)
    used = torch.tensor([0, 2]) if pooled else torch.arange(3)
    place = torch.tensor([7, 2]) if pooled else torch.arange(3)
    states = before[place]
    gate = z[used] if has_z else None
    expected = selective_state_update_ref(
        states, x[used], dt[used], A, B[used], C[used], D, gate, bias, softplus
    )
    before[place] = states
    rtol, atol = TOLERANCE[itype]
    torch.testing.assert_close(found[used], expected, rtol=rtol, atol=atol)
    torch.testing.assert_close(state, before, rtol=rtol, atol=atol)
    assert not pooled or not found[1].any()


def ssd_inputs(length: int = 21) -> dict[str, Tensor]:
    return {
        "x": torch.randn(1, length, 4, 6),
        "dt": torch.rand(1, length, 4) - 2,
        "A": -torch.rand(4),
        "B": torch.randn(1, length, 2, 5),
        "C": torch.randn(1, length, 2, 5),
    }


def test_chunk_scan() -> None:
    given = ssd_inputs()
    more = dict(D=torch.randn(4), z=torch.randn(1, 21, 4, 6), dt_bias=torch.rand(4))
    more |= dict(initial_states=torch.randn(1, 4, 6, 5), dt_softplus=True, dt_limit=(0.1, 0.5))
    found, state = mamba_chunk_scan_combined(
        **given, chunk_size=8, **more, return_final_states=True
    )
    expected, expected_state = ssd_reference(**given, **more, return_final_states=True)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(state, expected_state, rtol=1e-4, atol=1e-4)
    with pytest.raises(ZooError, match=r"state_dtype is float32 here, not torch\.float16"):
        mamba_chunk_scan_combined(**given, chunk_size=8, state_dtype=torch.float16)


def test_chunk_scan_of_packed_sequences() -> None:
    given = ssd_inputs()
    bounds = torch.tensor([0, 6, 7, 21])
    seq_idx = torch.repeat_interleave(torch.arange(3), bounds.diff())[None].int()
    packed = dict(seq_idx=seq_idx, cu_seqlens=bounds, return_varlen_states=True)
    found, states = mamba_chunk_scan_combined(**given, chunk_size=4, dt_softplus=True, **packed)
    for n, (start, end) in enumerate(itertools.pairwise(bounds.tolist())):
        part = {k: t if k == "A" else t[:, start:end] for k, t in given.items()}
        expected, state = ssd_reference(**part, dt_softplus=True, return_final_states=True)
        torch.testing.assert_close(found[:, start:end], expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(states[n : n + 1], state, rtol=1e-4, atol=1e-4)
    with pytest.raises(ZooError, match="needs cu_seqlens and a batch of 1, not of 1"):
        mamba_chunk_scan_combined(**given, chunk_size=4, return_varlen_states=True)


@pytest.mark.parametrize(
    "d_mlp, norm, before_gate, project, per_head",
    [(0, True, False, True, True), (3, True, True, True, False), (3, False, True, False, True)],
)
def test_mamba2_inner(
    d_mlp: int, norm: bool, before_gate: bool, project: bool, per_head: bool
) -> None:
    batch, length, heads, p, groups, n = 2, 11, 4, 6, 2, 5
    dim = heads * p
    d_conv = dim + 2 * groups * n
    zxbcdt = torch.randn(batch, length, 2 * d_mlp + dim + d_conv + heads, requires_grad=True)
    weight, bias = torch.randn(d_conv, 4), torch.randn(d_conv)
    dt_bias, A = torch.rand(heads), -torch.rand(heads)
    D = torch.randn(heads) if per_head else torch.randn(heads, p)
    scale = torch.rand(dim) if norm else None
    out_weight = torch.randn(7, d_mlp + dim) if project else None
    found, states = mamba_split_conv1d_scan_combined(
        zxbcdt, weight, bias, dt_bias, A, D, 4, return_final_states=True, rmsnorm_weight=scale,
        rmsnorm_eps=1e-5, outproj_weight=out_weight, headdim=p if per_head else None,
        ngroups=groups, norm_before_gate=before_gate,
    )  # fmt: skip
    mlp, z, xBC, dt = zxbcdt.split([2 * d_mlp, dim, d_conv, heads], -1)
    xBC = causal_conv1d_ref(xBC.mT, weight, bias, activation="silu").mT
    x, B, C = xBC.split([dim, groups * n, groups * n], -1)
    x, gate = (t.unflatten(-1, (heads, p)) for t in (x, z))
    B, C = (t.unflatten(-1, (groups, n)) for t in (B, C))
    y, expected_states = ssd_reference(
        x, dt, A, B, C, D=D, dt_bias=dt_bias, dt_softplus=True, return_final_states=True,
        z=None if norm else gate,
    )  # fmt: skip
    y = y.flatten(2)
    if norm:
        y = y if before_gate else y * F.silu(z)
        y = (
            F.rms_norm(y.unflatten(-1, (groups, -1)), (dim // groups,), eps=1e-5).flatten(-2)
            * scale
        )
        y = y * F.silu(z) if before_gate else y
    if d_mlp:
        y = torch.cat([F.silu(mlp[..., :d_mlp]) * mlp[..., d_mlp:], y], -1)
    expected = y if out_weight is None else F.linear(y, out_weight)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(states, expected_states, rtol=1e-4, atol=1e-4)
    (gradient,) = torch.autograd.grad(found.sum(), zxbcdt, retain_graph=True)
    (expected_gradient,) = torch.autograd.grad(expected.sum(), zxbcdt)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-3, atol=1e-3)
    with pytest.raises(ZooError, match=r"zxbcdt has \d+ channels, which do not fit"):
        mamba_split_conv1d_scan_combined(
            zxbcdt[..., 1:], weight, bias, dt_bias, A, D, 4, headdim=p, ngroups=groups
        )


# norms


@pytest.mark.parametrize("dtype, rms", every(ITYPES, BOTH))
def test_norm_of_the_residual_stream(dtype: torch.dtype, rms: bool) -> None:
    x, weight, bias = torch.randn(3, 8, dtype=dtype), torch.rand(8), torch.randn(8)
    stream = torch.randn(3, 8)
    total = x.float() + stream
    if rms:
        expected = total / (total.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight
        found, new = rms_norm_fn(x, weight, None, stream, eps=1e-5, prenorm=True)
    else:
        expected = F.layer_norm(total, (8,), weight, bias, 1e-5)
        found, new = layer_norm_fn(x, weight, bias, stream, eps=1e-5, prenorm=True)
    assert (found.dtype, new.dtype) == (dtype, torch.float32)
    torch.testing.assert_close(new, total)
    torch.testing.assert_close(found, expected.to(dtype))


def test_norm_module() -> None:
    x = torch.randn(3, 8, dtype=torch.bfloat16)
    norm = RMSNorm(8)
    assert list(norm.state_dict()) == ["weight"]
    found, stream = norm(x, prenorm=True, residual_in_fp32=True)
    assert (found.dtype, stream.dtype) == (torch.bfloat16, torch.float32)
    assert norm(x, prenorm=True)[1].dtype == torch.bfloat16
    torch.testing.assert_close(norm(x), F.rms_norm(x.float(), (8,), eps=1e-5).bfloat16())
    dropping = RMSNorm(8, dropout_p=0.5)
    assert not torch.equal(dropping(x), norm(x))
    assert torch.equal(dropping.eval()(x), norm(x))
    with pytest.raises(ZooError, match="has no x1, weight1"):
        layer_norm_fn(x, norm.weight, None, x1=x)


@pytest.mark.parametrize("before_gate, groups", every(BOTH, (1, 4)))
def test_gated_norms(before_gate: bool, groups: int) -> None:
    x, z = torch.randn(2, 3, 8)
    size = 8 // groups
    for module, function in ((LayerNorm, layernorm_fn), (RMSNormGated, rmsnorm_fn)):
        norm = module(8, group_size=size, norm_before_gate=before_gate)
        torch.nn.init.uniform_(norm.weight)
        value = (x if before_gate else x * F.silu(z)).unflatten(-1, (groups, size))
        if module is LayerNorm:
            value = value - value.mean(-1, keepdim=True)
        value = value / (value.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        value = value.flatten(-2) * norm.weight
        torch.testing.assert_close(norm(x, z), value * F.silu(z) if before_gate else value)
        torch.testing.assert_close(
            function(x, norm.weight, norm.bias, eps=1e-5, group_size=size),
            module(8, group_size=size).requires_grad_(False)(x) * norm.weight,
        )
    with pytest.raises(ZooError, match="group_size=3 does not divide the 8 channels"):
        rmsnorm_fn(x, norm.weight, None, group_size=3)
