"""Selective scans: cases and peers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.bench.case import Case, Inputs, Peer, Work, randn
from zoo.ops import (
    selective_scan,
    selective_scan_reference,
    selective_state_update,
    selective_state_update_reference,
)


def _reference() -> Callable[[Inputs], Any]:
    return lambda inputs: selective_scan_reference(**inputs, delta_softplus=True)


def _materialised() -> Callable[[Inputs], Any]:
    """The reference of mamba_ssm cannot be imported without its kernels: the same computation.

    Decays and inputs of all steps first, ``[B, D, L, N]`` each; then a loop that reads them. Its
    backward pass makes a gradient of that size for each step.
    """

    def run(inputs: Inputs) -> Tensor:
        u, z, D = (inputs[name].float() for name in ("u", "z", "D"))
        B, C = (_of_channels(inputs[name].float(), u.shape[1]) for name in ("B", "C"))
        delta = F.softplus(inputs["delta"].float() + inputs["delta_bias"][:, None])
        decay = torch.einsum("bdl,dn->bdln", delta, inputs["A"]).exp()
        inflow = torch.einsum("bdl,bdnl->bdln", delta * u, B.expand(-1, u.shape[1], -1, -1))
        state, outputs = torch.zeros_like(decay[:, :, 0]), []
        for t in range(u.shape[2]):
            state = decay[:, :, t] * state + inflow[:, :, t]
            outputs.append((state[:, :, None] @ C[..., t, None]).flatten(1))
        y = torch.stack(outputs, dim=2) + u * D[:, None]
        return (y * F.silu(z)).to(inputs["u"].dtype)

    return run


def _pscan() -> Callable[[Inputs], Any]:
    from mambapy.pscan import pscan

    def run(inputs: Inputs) -> Tensor:
        """mambapy's Mamba.selective_scan with softplus, bias, gate and groups, in [B, L, D]."""
        u, delta, z = (inputs[n].transpose(1, 2) for n in ("u", "delta", "z"))
        B, C = (_grouped(inputs[n]).permute(0, 3, 1, 2) for n in ("B", "C"))  # [B, L, groups, N]
        delta = F.softplus(delta + inputs["delta_bias"])
        decay = torch.exp(delta[..., None] * inputs["A"])  # [B, L, D, N]
        of_groups = (delta * u).unflatten(2, (B.shape[2], -1))
        states = pscan(decay, (of_groups[..., None] * B[..., None, :]).flatten(2, 3))
        of_groups = states.unflatten(2, (B.shape[2], -1)) @ C[..., None].to(states.dtype)
        y = of_groups.flatten(2) + inputs["D"] * u
        return (y.to(u.dtype) * F.silu(z)).transpose(1, 2)

    return run


def _grouped(projection: Tensor) -> Tensor:
    """``[B, N, L]`` as ``[B, 1, N, L]``."""
    return projection if projection.dim() == 4 else projection[:, None]


def _of_channels(projection: Tensor, dim: int) -> Tensor:
    """``[B, 1, N, L]``, or ``[B, dim, N, L]`` with groups."""
    of_groups = _grouped(projection)
    groups = of_groups.shape[1]
    return of_groups if groups == 1 else of_groups.repeat_interleave(dim // groups, dim=1)


def _mamba_ssm() -> Callable[[Inputs], Any]:
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    return lambda inputs: selective_scan_fn(**inputs, delta_softplus=True)


@dataclass(frozen=True, kw_only=True)
class SelectiveScan(Case):
    """selective_scan as Mamba calls it: gate, skip, bias and softplus."""

    batch: int = 1
    dim: int = 1536
    length: int = 2048
    state: int = 16
    groups: int = 1
    reverse: bool = False

    op: ClassVar[str] = "selective_scan"
    peers: ClassVar[dict[str, Peer]] = {
        "PyTorch reference": Peer(_reference),
        "mamba_ssm reference": Peer(_materialised, backward=False),
        "mambapy pscan": Peer(_pscan),
        "mamba_ssm": Peer(_mamba_ssm, devices=("cuda",)),
    }

    def inputs(self, like: Tensor) -> Inputs:
        """A decays at rates 1..N, steps are around 0.05: Mamba's initialisation."""
        B, D, L, N = self.batch, self.dim, self.length, self.state
        one = torch.ones((), device=like.device)
        projection = (B, N, L) if self.groups == 1 else (B, self.groups, N, L)
        return {
            "u": randn(like, B, D, L),
            "delta": randn(like, B, D, L),
            "A": -torch.arange(1.0, N + 1, device=like.device).repeat(D, 1),
            "B": randn(like, *projection),
            "C": randn(like, *projection),
            "D": randn(one, D),
            "z": randn(like, B, D, L),
            "delta_bias": randn(one, D) - 3,
        }

    def run(self, inputs: Inputs) -> Tensor:
        """The op."""
        return selective_scan(**inputs, delta_softplus=True, reverse=self.reverse)

    def work(self, itemsize: int) -> Work:
        """In the backward pass the states are computed again, and their gradients beside them."""
        B, D, L, N = self.batch, self.dim, self.length, self.state
        sequences, projections = B * D * L, 2 * B * self.groups * N * L
        # u, delta, z and the output; going back also their gradients, and u, delta, z once more
        moved = (10 * sequences + 3 * projections) if self.backward else 4 * sequences + projections
        # softplus and SiLU take three; a_t, the state, the output: 4 multiply-adds; 10 going back
        return Work(
            bytes=itemsize * moved,
            exponentials=(2 if self.backward else 1) * sequences * (N + 3),
            multiply_adds=(14 if self.backward else 4) * sequences * N,
        )


def _scan(inputs: Inputs) -> Any:
    return selective_scan(**inputs, delta_softplus=True)


def _one_thread() -> Callable[[Inputs], Any]:
    return _scan


@dataclass(frozen=True, kw_only=True)
class LongScan(SelectiveScan):
    """Few channels, many steps: the length must be split to fill the machine."""

    dim: int = 64
    length: int = 65536

    peers: ClassVar[dict[str, Peer]] = {"1 thread": Peer(_one_thread, ("cpu",), threads=1)}


def _update_reference() -> Callable[[Inputs], Any]:
    return lambda inputs: selective_state_update_reference(**inputs, dt_softplus=True)


def _mamba_ssm_update() -> Callable[[Inputs], Any]:
    from mamba_ssm.ops.triton.selective_state_update import selective_state_update

    return lambda inputs: selective_state_update(**inputs, dt_softplus=True)


@dataclass(frozen=True, kw_only=True)
class SelectiveStateUpdate(Case):
    """One decoding step."""

    batch: int = 1
    dim: int = 1536
    state: int = 16

    op: ClassVar[str] = "selective_state_update"
    peers: ClassVar[dict[str, Peer]] = {
        "PyTorch reference": Peer(_update_reference),
        "mamba_ssm": Peer(_mamba_ssm_update, devices=("cuda",)),
    }

    def inputs(self, like: Tensor) -> Inputs:
        """As :meth:`SelectiveScan.inputs`, without the length."""
        B, D, N = self.batch, self.dim, self.state
        one = torch.ones((), device=like.device)
        return {
            "state": randn(one, B, D, N),
            "x": randn(like, B, D),
            "dt": randn(like, B, D),
            "A": -torch.arange(1.0, N + 1, device=like.device).repeat(D, 1),
            "B": randn(like, B, N),
            "C": randn(like, B, N),
            "D": randn(one, D),
            "z": randn(like, B, D),
            "dt_bias": randn(one, D) - 3,
        }

    def run(self, inputs: Inputs) -> Tensor:
        """The op."""
        return selective_state_update(**inputs, dt_softplus=True)

    def work(self, itemsize: int) -> Work:
        """The state is read and written, A read."""
        B, D, N = self.batch, self.dim, self.state
        return Work(
            bytes=4 * (2 * B + 1) * D * N + itemsize * 4 * B * D,
            exponentials=B * D * (N + 3),
            multiply_adds=4 * B * D * N,
        )
