"""The steps of Mamba-2's scan that mamba_ssm has as functions of their own."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.grids import BOTH, every, leaf
from zoo.compat import ssd_chunks as chunks
from zoo.compat import ssd_combined as combined
from zoo.compat.ssd_combined import mamba_split_conv1d_scan_combined, mamba_split_conv1d_scan_ref
from zoo.errors import ZooError
from zoo.ops.ssd import ssd_reference


def scan_inputs(length: int = 21, groups: int = 2, dtype: torch.dtype = torch.float32) -> dict:
    given = {
        "x": torch.randn(2, length, 4, 6),
        "dt": torch.randn(2, length, 4) - 1,
        "A": -torch.rand(4),
        "B": torch.randn(2, length, groups, 5),
        "C": torch.randn(2, length, groups, 5),
    }
    return {k: t if k == "A" else t.to(dtype) for k, t in given.items()}


@pytest.mark.parametrize("length, has_D, has_z, has_bias", every((16, 21), BOTH, BOTH, BOTH))
def test_scan_from_its_parts(length: int, has_D: bool, has_z: bool, has_bias: bool) -> None:
    given = scan_inputs(length)
    more = {
        "D": torch.randn(4, 6) if has_D else None,
        "z": torch.randn(2, length, 4, 6) if has_z else None,
        "dt_bias": torch.rand(4) if has_bias else None,
    }
    ours, reference = ({k: leaf(t) for k, t in (given | more).items()} for _ in range(2))
    found = combined.mamba_chunk_scan(**ours, chunk_size=8, dt_softplus=True)
    expected = ssd_reference(**reference, dt_softplus=True)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    cotangent = torch.randn_like(found)
    found.backward(cotangent)
    expected.backward(cotangent)
    for name, tensor in ours.items():
        if tensor is not None:
            torch.testing.assert_close(tensor.grad, reference[name].grad, rtol=1e-3, atol=1e-3)
    assert combined.ssd_chunk_scan_combined_ref is combined.mamba_chunk_scan


@pytest.mark.parametrize("limit", [(0.0, float("inf")), (0.2, 0.5)])
@pytest.mark.parametrize("wide", BOTH)
def test_scan_through_mamba1(wide: bool, limit: tuple[float, float]) -> None:
    given = scan_inputs()
    more = dict(D=torch.randn(4), z=torch.randn(2, 21, 4, 6), dt_bias=torch.rand(4))
    expected = ssd_reference(**given, **more, dt_softplus=True, dt_limit=limit)
    if wide:  # everything by channel
        given["dt"] = given["dt"][..., None].expand(-1, -1, -1, 6)
        given["A"] = given["A"][:, None, None].expand(-1, 6, 5).flatten(0, 1)
        more |= {k: more[k][:, None].expand(-1, 6) for k in ("D", "dt_bias")}
    found = combined.ssd_selective_scan(**given, **more, dt_softplus=True, dt_limit=limit)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("norm, before_gate, project", every(BOTH, BOTH, BOTH))
def test_block_by_reference(norm: bool, before_gate: bool, project: bool) -> None:
    heads, width, n = 4, 6, 5
    dim = heads * width
    settings = dict(
        conv1d_weight=torch.randn(dim + 2 * n, 4), conv1d_bias=torch.randn(dim + 2 * n),
        dt_bias=torch.rand(heads), A=-torch.rand(heads), D=torch.randn(heads), chunk_size=8,
        headdim=width, rmsnorm_weight=torch.rand(dim) if norm else None,
        outproj_weight=torch.randn(7, dim) if project else None, norm_before_gate=before_gate,
    )  # fmt: skip
    zxbcdt = torch.randn(2, 11, 2 * dim + 2 * n + heads)
    torch.testing.assert_close(
        mamba_split_conv1d_scan_ref(zxbcdt, **settings),
        mamba_split_conv1d_scan_combined(zxbcdt, **settings),
        rtol=1e-4, atol=1e-4,
    )  # fmt: skip
    settings.pop("headdim")
    with pytest.raises(ZooError, match="D has one dimension, so headdim is needed"):
        mamba_split_conv1d_scan_ref(zxbcdt, **settings)


def test_convolution_and_scan() -> None:
    heads, width, n = 4, 6, 5
    xBC, dt = torch.randn(2, 11, heads * width + 2 * n), torch.rand(2, 11, heads)
    weight, A = torch.randn(xBC.shape[-1], 4), -torch.rand(heads)
    z, D = torch.randn(2, 11, heads * width), torch.randn(heads)
    by_z = combined.mamba_conv1d_scan_ref(xBC, weight, None, dt, A, 8, D, z)
    plain = combined.mamba_conv1d_scan_ref(xBC, weight, None, dt, A, 8, D, headdim=width)
    torch.testing.assert_close(by_z, plain * F.silu(z), rtol=1e-4, atol=1e-4)
    by_D = combined.mamba_conv1d_scan_ref(xBC, weight, None, dt, A, 8, D[:, None].expand(-1, width))
    torch.testing.assert_close(by_D, plain)
    with pytest.raises(ZooError, match="neither z nor D has heads, so headdim is needed"):
        combined.mamba_conv1d_scan_ref(xBC, weight, None, dt, A, 8, D)


def states(given: dict[str, Tensor], seq_idx: Tensor | None = None) -> tuple[Tensor, ...]:
    """Sums, step sizes, states before each chunk of 8, and the last state."""
    total, dt = chunks._chunk_cumsum_fwd(given["dt"], given["A"], 8, dt_softplus=True)
    own = chunks._chunk_state_fwd(given["B"], given["x"], dt, total, seq_idx)
    before, last = chunks._state_passing_fwd(
        own.flatten(-2), total[..., -1], seq_idx=seq_idx, chunk_size=8
    )
    return total, dt, before.view_as(own), last.view_as(own[:, 0])


def test_states_of_chunks() -> None:
    given = scan_inputs()
    total, dt, before, last = states(given)
    for chunk in range(1, 3):
        part = {k: t if k == "A" else t[:, : 8 * chunk] for k, t in given.items()}
        _, expected = ssd_reference(**part, dt_softplus=True, return_final_states=True)
        torch.testing.assert_close(before[:, chunk], expected, rtol=1e-4, atol=1e-4)
    _, expected = ssd_reference(**given, dt_softplus=True, return_final_states=True)
    torch.testing.assert_close(last, expected, rtol=1e-4, atol=1e-4)
    own = chunks.chunk_state(given["B"], given["x"], dt, total)
    torch.testing.assert_close(own, chunks.chunk_state_ref(given["B"], given["x"], dt, total))
    flat = own.flatten(-2)
    first = torch.randn_like(flat[:, 0])
    pairs = zip(
        chunks.state_passing(flat, total[..., -1], first),
        chunks.state_passing_ref(flat, total[..., -1], first),
        strict=True,
    )
    for found, reference in pairs:
        torch.testing.assert_close(found, reference, rtol=1e-4, atol=1e-4)
    place = torch.empty_like(own)
    half = chunks._chunk_state_fwd(
        given["B"].half(), given["x"].half(), dt, total, states=place, states_in_fp32=False
    )
    assert half is place
    torch.testing.assert_close(place, own, rtol=0.02, atol=0.02)
    with pytest.raises(ZooError, match="21 steps do not fit into 2 chunks of 8"):
        chunks.chunk_state(given["B"], given["x"], dt[:, :, :2], total[:, :, :2])
    with pytest.raises(ZooError, match="seq_idx needs chunk_size"):
        chunks._state_passing_fwd(flat, total[..., -1], seq_idx=torch.zeros(2, 21).int())


def test_states_of_packed_sequences() -> None:
    given = {k: t if k == "A" else t[:1] for k, t in scan_inputs(40).items()}
    bounds = torch.tensor([0, 3, 4, 17, 24, 24, 40])
    seq_idx = torch.repeat_interleave(torch.arange(6), bounds.diff())[None].int()
    total, dt, before, _ = states(given, seq_idx)
    found = chunks.chunk_state_varlen(
        given["B"][0], given["x"][0], dt[0], total[0], bounds, before[0]
    )
    for state, (start, end) in zip(found, itertools.pairwise(bounds.tolist()), strict=True):
        if start == end:
            assert not state.any()
            continue
        part = {k: t if k == "A" else t[:, start:end] for k, t in given.items()}
        _, expected = ssd_reference(**part, dt_softplus=True, return_final_states=True)
        torch.testing.assert_close(state, expected[0], rtol=1e-4, atol=1e-4)


def test_listing_of_the_paper() -> None:
    given = scan_inputs(24, groups=4)
    x, dt, A, B, C = given.values()
    dt = F.softplus(dt)
    first = torch.randn(2, 4, 6, 5)
    found, last = chunks.ssd_minimal_discrete(x * dt[..., None], A * dt, B, C, 8, first[:, None])
    expected, state = ssd_reference(x, dt, A, B, C, initial_states=first, return_final_states=True)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(last, state, rtol=1e-4, atol=1e-4)
    with pytest.raises(ZooError, match="block_len 7 does not divide 24 steps"):
        chunks.ssd_minimal_discrete(x, A * dt, B, C, 7)
