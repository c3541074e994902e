"""Mamba-2's scan: cases and peers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.bench.case import Case, Inputs, Peer, Work, randn
from zoo.ops import ssd
from zoo.ops._ssd_chunked import ssd_chunked


def _chunked() -> Callable[[Inputs], Any]:
    def run(inputs: Inputs) -> Tensor:
        """Chunks of 256 steps, Mamba-2's own setting, in PyTorch's matrix products."""
        compute = torch.promote_types(inputs["x"].dtype, torch.float32)
        dt = F.softplus(inputs["dt"].to(compute) + inputs["dt_bias"])
        x, A, B, C, D = (inputs[name] for name in ("x", "A", "B", "C", "D"))
        return ssd_chunked(x, dt, A, B, C, D[:, None], None, None, None, False, 256)[0]

    return run


def _mamba_ssm() -> Callable[[Inputs], Any]:
    from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined

    return lambda inputs: mamba_chunk_scan_combined(**inputs, chunk_size=256, dt_softplus=True)


@dataclass(frozen=True, kw_only=True)
class Ssd(Case):
    """ssd as Mamba-2 calls it: skip, bias and softplus; its gate is behind a norm."""

    batch: int = 1
    length: int = 2048
    heads: int = 24
    head_dim: int = 64
    groups: int = 1
    state: int = 128

    op: ClassVar[str] = "ssd"
    peers: ClassVar[dict[str, Peer]] = {
        "PyTorch, in chunks": Peer(_chunked),
        "mamba_ssm": Peer(_mamba_ssm, devices=("cuda",)),
    }

    def inputs(self, like: Tensor) -> Inputs:
        """A decays at rates 1 to 16, steps are around 0.05: Mamba-2's initialisation."""
        B, L, H = self.batch, self.length, self.heads
        one = torch.ones((), device=like.device)
        return {
            "x": randn(like, B, L, H, self.head_dim),
            "dt": randn(like, B, L, H),
            "A": -1 - 15 * torch.rand(H, device=like.device),
            "B": randn(like, B, L, self.groups, self.state),
            "C": randn(like, B, L, self.groups, self.state),
            "D": randn(one, H),
            "dt_bias": randn(one, H) - 3,
        }

    def run(self, inputs: Inputs) -> Tensor:
        """The op."""
        return ssd(**inputs, dt_softplus=True)

    def work(self, itemsize: int) -> Work:
        """A step reads its state and adds to it, whatever the chunks: 2 N P multiply-adds a head.

        Going back, the states are computed again, then the gradients of x, B, C and of the states
        are four products of that size.
        """
        steps = self.batch * self.length
        channels, projections = self.heads * self.head_dim, 2 * self.groups * self.state
        products = steps * channels * self.state
        return Work(
            bytes=itemsize
            * steps
            * ((5 * channels + 3 * projections) if self.backward else (2 * channels + projections)),
            exponentials=steps * self.heads * 2,
            matmul_flops=2 * products * (7 if self.backward else 2),
        )
