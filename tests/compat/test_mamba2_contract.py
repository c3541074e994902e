"""Steps, Mamba-2's scan and block, and the norms, as mamba_ssm defines them."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.grids import BOTH, ITYPES, TOLERANCE, every, some
from zoo.compat.causal_conv1d_interface import (
    causal_conv1d_ref,
)
from zoo.compat.layer_norm import (
    RMSNorm,
    layer_norm_fn,
    layer_norm_linear_fn,
    layer_norm_ref,
    rms_norm_fn,
    rms_norm_ref,
)
from zoo.compat.layernorm_gated import LayerNorm, layernorm_fn, rmsnorm_fn, swiglu
from zoo.compat.layernorm_gated import RMSNorm as RMSNormGated
from zoo.compat.selective_state_update import selective_state_update, selective_state_update_ref
from zoo.compat.ssd_combined import mamba_chunk_scan_combined, mamba_split_conv1d_scan_combined
from zoo.errors import ZooError
from zoo.ops.ssd import ssd_reference


@pytest.mark.parametrize(
    "heads, dim, n, groups, tied, has_z, softplus, pooled, itype, projections",
    some(50, (0, 4), (4, 68), (5, 16, 32, 64), (1, 2, 4), BOTH, BOTH, BOTH, BOTH, ITYPES,
         (None, torch.float32)),
)  # fmt: skip
def test_selective_state_update(
    heads: int, dim: int, n: int, groups: int, tied: bool, has_z: bool, softplus: bool,
    pooled: bool, itype: torch.dtype, projections: torch.dtype | None,
) -> None:  # fmt: skip
    """``tied``: what the channels of a head share is expanded; ``projections``: of B and C."""
    batch = 3
    inner = (heads, dim) if heads else (dim,)
    rows = 9 if pooled else batch
    state = torch.randn(rows, *inner, n, dtype=itype)
    x, dt, z = (torch.randn(batch, *inner, dtype=itype) for _ in range(3))
    A, D, bias = -torch.rand(*inner, n), torch.randn(inner), torch.rand(inner) - 4
    if tied and heads:
        A = A[:, :1, :1].expand(-1, dim, n)
        D, bias = (t[:, :1].expand(-1, dim) for t in (D, bias))
        dt = dt[:, :, :1].expand(-1, -1, dim)
    B, C = torch.randn(2, batch, groups, n, dtype=projections or itype)
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


@pytest.mark.parametrize("rms", BOTH)
def test_norms_of_parallel_blocks(rms: bool) -> None:
    x, x1, stream = torch.randn(3, 2, 5, 8)
    weight, bias, weight1, bias1 = torch.rand(4, 8)

    def norm(t: Tensor, w: Tensor, b: Tensor) -> Tensor:
        if not rms:
            return F.layer_norm(t, (8,), w, b, 1e-5)
        return F.rms_norm(t, (8,), w, 1e-5) + b

    function, reference = (rms_norm_fn, rms_norm_ref) if rms else (layer_norm_fn, layer_norm_ref)
    args = (weight, bias, stream, x1, weight1, bias1, 1e-5)
    total = x + x1 + stream
    expected = norm(total, weight, bias), norm(total, weight1, bias1), total
    for found in (function(x, *args, prenorm=True), reference(x, *args, prenorm=True)):
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b)
    y, y1, mask, mask1 = function(x, *args, dropout_p=0.5, return_dropout_mask=True)
    assert 0.2 < mask.float().mean() < 0.8 and not torch.equal(mask, mask1)
    again = reference(x, *args, dropout_p=0.5, dropout_mask=mask, dropout_mask1=mask1)
    dropped = 2 * (x * mask + x1 * mask1) + stream
    torch.testing.assert_close((y, y1), again)
    torch.testing.assert_close(y1, norm(dropped, weight1, bias1))
    assert not torch.equal(reference(x, *args, dropout_p=0.5)[0], y), "it draws its own masks"
    scale = torch.rand(2, 5)
    torch.testing.assert_close(
        function(x, weight, bias, stream, rowscale=scale, eps=1e-5),
        norm(x * scale[..., None] + stream, weight, bias),
    )
    with pytest.raises(ZooError, match="rowscale and x1 exclude each other"):
        function(x, weight, bias, x1=x1, rowscale=scale)
    half = reference(x.half(), weight, None, prenorm=True)[1]
    whole = reference(x.half(), weight, None, prenorm=True, upcast=True)[1]
    assert (half.dtype, whole.dtype) == (torch.float16, torch.float32)


@pytest.mark.parametrize("prenorm, rms", every(BOTH, BOTH))
def test_norm_and_projection(prenorm: bool, rms: bool) -> None:
    x, stream = torch.randn(2, 3, 8)
    weight, bias, projection, offset = (
        torch.rand(8),
        torch.rand(8),
        torch.randn(6, 8),
        torch.rand(6),
    )
    found = layer_norm_linear_fn(
        x, weight, bias, projection, offset, stream, prenorm=prenorm, is_rms_norm=rms
    )
    normed = layer_norm_fn(x, weight, bias, stream, is_rms_norm=rms)
    expected = F.linear(normed, projection, offset)
    torch.testing.assert_close(found, (expected, x + stream) if prenorm else expected)


def test_swiglu() -> None:
    x, y = torch.randn(2, 3, 8, dtype=torch.bfloat16)
    found = swiglu(torch.cat([x, y], dim=-1))
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, F.silu(x) * y, rtol=0.02, atol=0.02)


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
