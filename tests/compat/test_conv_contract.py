"""The argument combinations of causal_conv1d's own tests, on the CPU."""

from __future__ import annotations

import random

import pytest
import torch
import torch.nn.functional as F

from tests.grids import BOTH, ITYPES, TOLERANCE, assert_same_gradients, every, leaf, some
from zoo.compat import kernels
from zoo.compat.causal_conv1d_interface import (
    causal_conv1d_fn,
    causal_conv1d_ref,
    causal_conv1d_update,
    causal_conv1d_update_ref,
    causal_conv1d_varlen_states,
    causal_conv1d_varlen_states_ref,
)
from zoo.errors import ZooError


@pytest.mark.parametrize(
    "dim, length, width, has_bias, silu, itype, channel_last, initial, final",
    some(70, (40,), (1, 2, 8, 129, 151), (2, 3, 4), BOTH, BOTH, ITYPES, BOTH, BOTH, BOTH)
    + some(3, (4096 + 32,), (129,), (2, 3, 4), BOTH, BOTH, ITYPES, BOTH, BOTH, BOTH),
)
def test_causal_conv1d(
    dim: int,
    length: int,
    width: int,
    has_bias: bool,
    silu: bool,
    itype: torch.dtype,
    channel_last: bool,
    initial: bool,
    final: bool,
) -> None:
    batch = 2
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
    expected = causal_conv1d_ref(*reference[:3], initial_states=reference[3], **settings)
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


@pytest.mark.parametrize(
    "lengths, padding, width, has_bias, silu, itype",
    some(40, ((1,), (7, 2, 11), (1, 1, 300)), (0, 1, 6), (2, 3, 4), BOTH, BOTH, ITYPES),
)
def test_packed_sequences(
    lengths: tuple[int, ...], padding: int, width: int, has_bias: bool, silu: bool,
    itype: torch.dtype,
) -> None:  # fmt: skip
    """One row that holds several sequences and, at its end, nothing; each as if it were alone."""
    dim, total = 40, sum(lengths)
    x = torch.randn(1, total + padding, 64 + dim, dtype=itype)[..., 64:].mT  # channel last
    weight, bias = torch.randn(dim, width), torch.randn(dim) if has_bias else None
    ours, reference = ([leaf(t) for t in (x, weight, bias)] for _ in range(2))
    activation = "silu" if silu else None
    ids = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    seq_idx = F.pad(ids, (0, padding), value=-1)[None].int()
    found = causal_conv1d_fn(*ours, seq_idx=seq_idx, activation=activation)
    expected = torch.cat(
        [
            causal_conv1d_ref(part, *reference[1:], activation=activation)
            for part in reference[0][..., :total].split(lengths, -1)
        ],
        -1,
    )
    rtol, atol = TOLERANCE[itype]
    torch.testing.assert_close(found[..., :total], expected, rtol=rtol, atol=atol)
    cotangent = torch.randn_like(found)
    found.backward(cotangent)
    expected.backward(cotangent[..., :total])
    assert_same_gradients(ours, reference, itype)


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
    assert torch.equal(causal_conv1d_varlen_states_ref(x, bounds, 4), found)


@pytest.mark.parametrize("silu, width, length", every(BOTH, (2, 4), (1, 9)))
def test_first_packed_sequence_goes_on(silu: bool, width: int, length: int) -> None:
    """Initial states are of the sequence that the first position belongs to."""
    x, weight, bias = torch.randn(2, 8, length), torch.randn(8, width), torch.randn(8)
    first = torch.randn(2, 8, width - 1)
    border = min(2, length)
    seq_idx = (torch.arange(length) >= border).int().expand(2, -1) + 5
    activation = "silu" if silu else None
    ours, reference = ([leaf(t) for t in (x, weight, bias, first)] for _ in range(2))
    given, *rest = reference
    expected = causal_conv1d_ref(
        given[..., :border], *rest[:2], initial_states=rest[2], activation=activation
    )
    if border < length:
        alone = causal_conv1d_ref(given[..., border:], *rest[:2], activation=activation)
        expected = torch.cat([expected, alone], dim=-1)
    for function in (causal_conv1d_ref, causal_conv1d_fn):
        found = function(*ours[:3], seq_idx, ours[3], activation=activation)
        torch.testing.assert_close(found, expected)
    cotangent = torch.randn_like(expected)
    found.backward(cotangent)
    expected.backward(cotangent)
    assert_same_gradients(ours, reference, torch.float32)


@pytest.mark.parametrize("final, silu, preallocated", every(BOTH, BOTH, BOTH))
def test_compiled_convolution(final: bool, silu: bool, preallocated: bool) -> None:
    given = [torch.randn(2, 8, 9), torch.randn(8, 4), torch.randn(8), torch.randn(2, 8, 3)]
    leaves = [leaf(t) for t in given]
    activation = "silu" if silu else None
    expected, states = causal_conv1d_ref(
        *leaves[:3], None, leaves[3], return_final_states=True, activation=activation
    )
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
    # From version 1.5.1 on, all results are written where they are wanted.
    written = torch.full_like(x, torch.nan)
    place = torch.zeros_like(states) if final else None
    assert module.causal_conv1d_fwd(x, weight, bias, None, first, written, place, silu) is None
    torch.testing.assert_close(written, expected)
    if place is not None:
        torch.testing.assert_close(place, states)
    dx, dfirst = torch.full_like(x, torch.nan), torch.full_like(first, torch.nan)
    dweight, dbias = torch.ones_like(weight), torch.ones_like(bias)  # these are added to
    places = dx, dweight, dbias, dfirst if preallocated else None
    cotangents = dout, None, first, dstates if final else None
    assert module.causal_conv1d_bwd(x, weight, bias, *cotangents, *places, silu) is None
    for gradient, tensor, before in zip(places, leaves, (0, 1, 1, 0), strict=True):
        if gradient is not None:
            torch.testing.assert_close(gradient, tensor.grad + before, rtol=1e-4, atol=1e-4)
    state, expected_state = torch.randn(2, 8, 4).repeat(2, 1, 1, 1)
    step = module.causal_conv1d_update(x[..., 0], state, weight, bias, silu, None, None)
    expected = causal_conv1d_update_ref(x[..., 0], expected_state, weight, bias, activation)
    torch.testing.assert_close(step, expected)
    assert torch.equal(state, expected_state)
    written = torch.full_like(x[..., :2], torch.nan)
    given = x[..., :2], state, weight, bias
    assert module.causal_conv1d_update(*given, written, silu, None, None) is None
    expected = causal_conv1d_update_ref(x[..., :2], expected_state, weight, bias, activation)
    torch.testing.assert_close(written, expected)
    assert torch.equal(state, expected_state)


def test_compiled_convolution_of_old_versions() -> None:
    """Before 1.4 there were no states, before 1.2 no sequences."""
    x, weight, bias, dout = torch.randn(2, 8, 9), torch.randn(8, 4), torch.randn(8), None
    seq_idx = (torch.arange(9) > 4).int().expand(2, -1)
    module = kernels.causal_conv1d_cuda
    for packed in ((), (seq_idx,)):
        leaves = [leaf(t) for t in (x, weight, bias)]
        expected = causal_conv1d_ref(*leaves, *packed, activation="silu")
        dout = torch.randn_like(expected)
        expected.backward(dout)
        out = module.causal_conv1d_fwd(x, weight, bias, *packed, True)
        torch.testing.assert_close(out, expected)
        found = module.causal_conv1d_bwd(x, weight, bias, dout, *packed, None, True)
        assert len(found) == 3
        for gradient, tensor in zip(found, leaves, strict=True):
            torch.testing.assert_close(gradient, tensor.grad, rtol=1e-4, atol=1e-4)
    state = torch.randn(2, 8, 4)
    again = state.clone()
    step = module.causal_conv1d_update(x[..., 0], state, weight, bias, True)
    torch.testing.assert_close(
        step, causal_conv1d_update_ref(x[..., 0], again, weight, bias, "silu")
    )
    for name, expected in [
        ("fwd", "4, 5, 7 or 8"),
        ("bwd", "6, 7, 10 or 12"),
        ("update", "5 to 8"),
    ]:
        with pytest.raises(ZooError, match=f"{name}: expected {expected} arguments, got 2"):
            getattr(module, f"causal_conv1d_{name}")(x, weight)
