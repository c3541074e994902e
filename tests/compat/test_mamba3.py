"""Mamba-3 by mamba_ssm's names, against its recurrence."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.grids import BOTH, every, leaf
from zoo.compat.mamba3 import Mamba3, mamba3_siso_combined, mamba3_siso_step
from zoo.errors import ZooError

HEADS, GROUPS, N, P = 4, 2, 8, 6


def scan_inputs(batch: int, length: int, angles: int = 3) -> dict[str, Tensor]:
    dt = torch.rand(batch, HEADS, length) * 0.5
    return {
        "Q": torch.randn(batch, length, GROUPS, N),
        "K": torch.randn(batch, length, GROUPS, N),
        "V": torch.randn(batch, length, HEADS, P),
        "ADT": -(dt * torch.rand(batch, HEADS, length) * 4),
        "DT": dt,
        "Trap": torch.randn(batch, HEADS, length),
        "Q_bias": torch.randn(HEADS, N),
        "K_bias": torch.randn(HEADS, N),
        "Angles": torch.randn(batch, length, HEADS, angles),
    }


def first_states(batch: int, angles: int = 3) -> tuple[Tensor, ...]:
    shapes = (HEADS, angles), (HEADS, P, N), (HEADS, N), (HEADS, P)
    return tuple(torch.randn(batch, *shape) for shape in shapes)


def recurrence(
    Q: Tensor, K: Tensor, V: Tensor, ADT: Tensor, DT: Tensor, Trap: Tensor, Q_bias: Tensor,
    K_bias: Tensor, Angles: Tensor, D: Tensor | None = None, Z: Tensor | None = None,
    states: tuple[Tensor, ...] | None = None,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Token by token, with the rotation as a product of complex numbers."""
    batch, length = V.shape[:2]
    angle, h, key, value = states or [torch.zeros_like(t) for t in first_states(batch)]
    turned = angle.shape[-1] * 2

    def turn(x: Tensor) -> Tensor:
        pairs = torch.view_as_complex(x[..., :turned].unflatten(-1, (-1, 2)).contiguous())
        moved = torch.view_as_real(pairs * torch.polar(torch.ones_like(angle), angle))
        return torch.cat([moved.flatten(-2), x[..., turned:]], -1)

    ys = []
    for t in range(length):
        dt, trap = DT[..., t], torch.sigmoid(Trap[..., t])
        angle = angle + math.pi * torch.tanh(Angles[:, t]) * dt[..., None]
        q, k = (
            turn(x[:, t].repeat_interleave(HEADS // GROUPS, 1) + b)
            for x, b in ((Q, Q_bias), (K, K_bias))
        )
        v, decay = V[:, t], ADT[..., t].exp()[..., None, None]
        old, new = ((1 - trap) * dt)[..., None, None], (trap * dt)[..., None, None]
        h = decay * (h + old * value[..., None] * key[..., None, :])
        h = h + new * v[..., None] * k[..., None, :]
        y = (h * q[..., None, :]).sum(-1)
        y = y if D is None else y + D[:, None] * v
        ys.append(y if Z is None else y * F.silu(Z[:, t]))
        key, value = k, v
    return torch.stack(ys, 1), angle, h, key, value


def same(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    for place, (a, b) in enumerate(zip(found, expected, strict=True)):
        if place == 1:  # angles, full turns apart
            a, b = torch.polar(torch.ones_like(a), a), torch.polar(torch.ones_like(b), b)
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("has_D, has_Z, goes_on, length", every(BOTH, BOTH, BOTH, (1, 13)))
def test_scan(has_D: bool, has_Z: bool, goes_on: bool, length: int) -> None:
    given = scan_inputs(2, length)
    given |= {"D": torch.randn(HEADS) if has_D else None}
    given |= {"Z": torch.randn(2, length, HEADS, P) if has_Z else None}
    ours, reference = ({n: leaf(t) for n, t in given.items()} for _ in range(2))
    states = [tuple(map(leaf, first)) for first in [first_states(2)] * 2] if goes_on else [None] * 2
    found = mamba3_siso_combined(**ours, Input_States=states[0], return_final_states=True)
    expected = recurrence(**reference, states=states[1])
    same(found, expected)
    weights = [torch.randn_like(t) for t in found]
    torch.autograd.backward(found, weights)
    torch.autograd.backward(expected, weights)
    pairs = list(zip(ours.values(), reference.values(), strict=True))
    pairs += list(zip(*states, strict=True)) if goes_on else []
    for a, b in pairs:
        if a is not None:
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-3)


def test_parts_of_a_sequence_go_on() -> None:
    given, states = scan_inputs(2, 9), first_states(2)
    whole = mamba3_siso_combined(**given, Input_States=states, return_final_states=True)
    outs = []
    per_token = {"Q", "K", "V", "Angles"}
    for t in range(9):
        step = {
            n: x if "bias" in n else (x[:, t] if n in per_token else x[..., t])
            for n, x in given.items()
        }
        out, states = mamba3_siso_step(**step, Input_States=states)
        outs.append(out)
    same((torch.stack(outs, 1), *states), whole)


def test_packed_sequences() -> None:
    given, states = scan_inputs(1, 12), first_states(3)
    bounds = torch.tensor([0, 5, 6, 12], dtype=torch.int32)
    found = mamba3_siso_combined(
        **given, Input_States=states, cu_seqlens=bounds, return_final_states=True
    )
    parts = []
    for row, (start, end) in enumerate(((0, 5), (5, 6), (6, 12))):
        part = {
            n: x
            if "bias" in n
            else (x[:, start:end] if n in ("Q", "K", "V", "Angles") else x[..., start:end])
            for n, x in given.items()
        }
        parts.append(recurrence(**part, states=tuple(s[row : row + 1] for s in states)))
    outs, *ends = zip(*parts, strict=True)
    same(found, (torch.cat(outs, 1), *map(torch.cat, ends)))
    assert torch.equal(
        mamba3_siso_combined(**given, Input_States=states, cu_seqlens=bounds), found[0]
    )
    with pytest.raises(ZooError, match="cu_seqlens describes a batch of 1, not of 2"):
        mamba3_siso_combined(**scan_inputs(2, 12), cu_seqlens=bounds)


def test_no_decay_is_no_trouble() -> None:
    given = scan_inputs(2, 9)
    given["ADT"] = torch.zeros_like(given["ADT"])
    found = mamba3_siso_combined(**given, return_final_states=True)
    same(found, recurrence(**given))


@pytest.mark.parametrize("fraction, norm, groups", every((0.5, 1.0), BOTH, (1, 2)))
def test_layer_decodes_as_it_reads(fraction: float, norm: bool, groups: int) -> None:
    layer = Mamba3(
        16, d_state=8, headdim=8, ngroups=groups, rope_fraction=fraction, is_outproj_norm=norm,
        layer_idx=0,
    )  # fmt: skip
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    x = torch.randn(2, 7, 16)
    whole = layer(x)
    states = layer.allocate_inference_cache(2, 7)
    for t in range(7):
        out, *_ = layer.step(x[:, t], *states)
        torch.testing.assert_close(out, whole[:, t], rtol=1e-4, atol=1e-4)
    whole.sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in layer.parameters())
    bounds = torch.tensor([0, 3, 7])
    packed = layer(x[:1], cu_seqlens=bounds)
    parts = [layer(x[:1, :3]), layer(x[:1, 3:])]
    torch.testing.assert_close(packed, torch.cat(parts, 1), rtol=1e-4, atol=1e-4)


def test_parameters() -> None:
    layer = Mamba3(16, d_state=8, headdim=8, is_outproj_norm=True, dtype=torch.bfloat16)
    kinds = {n: p.dtype for n, p in layer.named_parameters()}
    assert {n for n, d in kinds.items() if d == torch.float32} == {
        "dt_bias", "B_bias", "C_bias", "D",
    }  # fmt: skip
    assert set(kinds) - {n for n, d in kinds.items() if d == torch.float32} == {
        "in_proj.weight", "B_norm.weight", "C_norm.weight", "norm.weight", "out_proj.weight",
    }  # fmt: skip
    assert layer(torch.randn(1, 3, 16, dtype=torch.bfloat16)).dtype == torch.bfloat16
    with pytest.raises(ZooError, match="one input and output per head; is_mimo is False"):
        Mamba3(16, headdim=8, is_mimo=True)
    with pytest.raises(ZooError, match=r"32 channels in heads of 5, 1 groups, rope_fraction 0\.5"):
        Mamba3(16, headdim=5)
