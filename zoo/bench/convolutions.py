"""Causal convolutions: cases and peers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.bench.case import Case, Inputs, Peer, Work, randn
from zoo.ops import (
    causal_conv1d,
    causal_conv1d_reference,
    causal_conv1d_update,
    causal_conv1d_update_reference,
)


def _reference() -> Callable[[Inputs], Any]:
    return lambda inputs: causal_conv1d_reference(**inputs, activation="silu")


def _torch_conv() -> Callable[[Inputs], Any]:
    def run(inputs: Inputs) -> Tensor:
        """What a model without the op does: pad on both sides, cut, activate."""
        x, weight, bias = inputs["x"], inputs["weight"], inputs["bias"]
        weight, bias = weight.to(x.dtype), bias.to(x.dtype)
        width = weight.shape[1]
        out = F.conv1d(x, weight[:, None], bias, padding=width - 1, groups=weight.shape[0])
        return F.silu(out[..., : x.shape[2]])

    return run


def _dao() -> Callable[[Inputs], Any]:
    from causal_conv1d import causal_conv1d_fn

    return lambda inputs: causal_conv1d_fn(**inputs, activation="silu")


@dataclass(frozen=True, kw_only=True)
class CausalConv1d(Case):
    """causal_conv1d with bias and SiLU, channel by channel or position by position in memory."""

    batch: int = 1
    dim: int = 1536
    length: int = 2048
    width: int = 4
    channel_last: bool = False

    op: ClassVar[str] = "causal_conv1d"
    peers: ClassVar[dict[str, Peer]] = {
        "F.conv1d + SiLU": Peer(_torch_conv),
        "PyTorch reference": Peer(_reference),
        "causal_conv1d": Peer(_dao, devices=("cuda",)),
    }

    def inputs(self, like: Tensor) -> Inputs:
        """Weights are float32."""
        one = torch.ones((), device=like.device)
        if self.channel_last:
            x = randn(like, self.batch, self.length, self.dim).transpose(1, 2)
        else:
            x = randn(like, self.batch, self.dim, self.length)
        return {"x": x, "weight": randn(one, self.dim, self.width), "bias": randn(one, self.dim)}

    def run(self, inputs: Inputs) -> Tensor:
        """The op."""
        return causal_conv1d(**inputs, activation="silu")

    def work(self, itemsize: int) -> Work:
        """Going back, x and the output's gradient are read and x's gradient is written."""
        elements = self.batch * self.dim * self.length
        return Work(
            bytes=itemsize * elements * (5 if self.backward else 2),
            exponentials=elements * (2 if self.backward else 1),
            multiply_adds=elements * self.width * (4 if self.backward else 1),
        )


def _update_reference() -> Callable[[Inputs], Any]:
    return lambda inputs: causal_conv1d_update_reference(**inputs, activation="silu")


def _dao_update() -> Callable[[Inputs], Any]:
    from causal_conv1d import causal_conv1d_update

    return lambda inputs: causal_conv1d_update(**inputs, activation="silu")


@dataclass(frozen=True, kw_only=True)
class CausalConv1dUpdate(Case):
    """One decoding step."""

    batch: int = 1
    dim: int = 1536
    width: int = 4

    op: ClassVar[str] = "causal_conv1d_update"
    peers: ClassVar[dict[str, Peer]] = {
        "PyTorch reference": Peer(_update_reference),
        "causal_conv1d": Peer(_dao_update, devices=("cuda",)),
    }

    def inputs(self, like: Tensor) -> Inputs:
        """A state as wide as the kernel, as Mamba's cache has it."""
        one = torch.ones((), device=like.device)
        return {
            "x": randn(like, self.batch, self.dim),
            "conv_state": randn(like, self.batch, self.dim, self.width),
            "weight": randn(one, self.dim, self.width),
            "bias": randn(one, self.dim),
        }

    def run(self, inputs: Inputs) -> Tensor:
        """The op."""
        return causal_conv1d_update(**inputs, activation="silu")

    def work(self, itemsize: int) -> Work:
        """The state is read and written, the weights read."""
        elements = self.batch * self.dim
        return Work(
            bytes=itemsize * elements * (2 * self.width + 2) + 4 * self.dim * (self.width + 1),
            exponentials=elements,
            multiply_adds=elements * self.width,
        )
