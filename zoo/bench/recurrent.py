"""Recurrent cells, the delta rule and linear attention: cases and peers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.bench.case import Case, Inputs, Peer, Work, randn
from zoo.ops import delta_rule, linear_attention, recurrent_cell, recurrent_cell_reference
from zoo.ops._delta_chunked import delta_chunked


def _steps() -> Callable[[Inputs], Any]:
    return lambda inputs: recurrent_cell_reference(**inputs)[0]


def _torch_lstm() -> Callable[[Inputs], Any]:
    def run(inputs: Inputs) -> Tensor:
        """One head as torch.nn.LSTM, which cannot leave out the matrix of its inputs."""
        Wx, R, b = inputs["Wx"], inputs["R"], inputs["b"]
        if R.shape[1] != 1:
            raise ImportError("torch.nn.LSTM has one head")
        size = R.shape[-1]
        network = nn.LSTM(4 * size, size, batch_first=True).to(Wx)
        weights = [torch.eye(4 * size).to(Wx), R.flatten(0, 2), b.flatten(), b.flatten() * 0]
        parameters = dict(zip((n for n, _ in network.named_parameters()), weights, strict=True))
        found = torch.func.functional_call(network, parameters, (Wx.flatten(2),))[0]
        return found

    return run


@dataclass(frozen=True, kw_only=True)
class RecurrentCell(Case):
    """recurrent_cell as FlashRNN's paper measures it."""

    batch: int = 16
    length: int = 512
    heads: int = 4
    head_dim: int = 64
    cell: str = "lstm"

    op: ClassVar[str] = "recurrent_cell"
    peers: ClassVar[dict[str, Peer]] = {"PyTorch, step by step": Peer(_steps)}

    def inputs(self, like: Tensor) -> Inputs:
        """Gates of size 1, matrices that keep the size of their input."""
        gates, biases = {"elman": (1, 1), "gru": (3, 4)}.get(self.cell, (4, 4))
        D = self.head_dim
        return {
            "Wx": randn(like, self.batch, self.length, gates, self.heads, D),
            "R": randn(like, gates, self.heads, D, D) / D**0.5,
            "b": randn(like, biases, self.heads, D),
            "cell": self.cell,
        }

    def run(self, inputs: Inputs) -> Tensor:
        """The op."""
        return recurrent_cell(**inputs)[0]

    def work(self, itemsize: int) -> Work:
        """A product with R a step; going back one for the state before and one for R."""
        gates, states = {"elman": (1, 1), "lstm": (4, 2), "gru": (3, 1)}.get(self.cell, (4, 4))
        numbers = self.batch * self.length * self.heads * self.head_dim
        return Work(
            bytes=itemsize * numbers * (gates + states) * (3 if self.backward else 1),
            exponentials=numbers * (gates + 1) * (2 if self.backward else 1),
            matmul_flops=2 * numbers * gates * self.head_dim * (3 if self.backward else 1),
        )


@dataclass(frozen=True, kw_only=True)
class OneHead(RecurrentCell):
    """One head, against PyTorch's own kernels."""

    heads: int = 1
    head_dim: int = 256
    peers: ClassVar[dict[str, Peer]] = {"torch.nn.LSTM": Peer(_torch_lstm)}


def _chunks() -> Callable[[Inputs], Any]:
    def run(inputs: Inputs) -> Tensor:
        """Chunks of 64 steps and a triangular system in each, in PyTorch's matrix products."""
        compute = torch.promote_types(inputs["q"].dtype, torch.float32)
        q, k, v = (inputs[name].to(compute) for name in "qkv")
        beta = inputs.get("beta")
        q = q if beta is None else q * k.shape[-1] ** -0.5
        return delta_chunked(q, k, v, beta, inputs.get("decay"), None)[0]

    return run


def _fla() -> Callable[[Inputs], Any]:
    from fla.ops.delta_rule import chunk_delta_rule

    return lambda inputs: chunk_delta_rule(**inputs)[0]


@dataclass(frozen=True, kw_only=True)
class DeltaRule(Case):
    """delta_rule as DeltaNet calls it: keys of length 1."""

    batch: int = 1
    length: int = 2048
    heads: int = 8
    head_dim: int = 64

    op: ClassVar[str] = "delta_rule"
    peers: ClassVar[dict[str, Peer]] = {
        "PyTorch, in chunks": Peer(_chunks),
        "flash-linear-attention": Peer(_fla, devices=("cuda",)),
    }

    def inputs(self, like: Tensor) -> Inputs:
        """Keys and queries of length 1, beta around 1/2."""
        shape = (self.batch, self.length, self.heads, self.head_dim)
        return {
            "q": F.normalize(randn(like, *shape), dim=-1),
            "k": F.normalize(randn(like, *shape), dim=-1),
            "v": randn(like, *shape),
            "beta": randn(like, *shape[:3]).sigmoid(),
        }

    def run(self, inputs: Inputs) -> Tensor:
        """The op."""
        return delta_rule(**inputs)  # type: ignore[return-value]

    def work(self, itemsize: int) -> Work:
        """Three passes over the state a step: to find, to write, to answer; six going back."""
        rows = self.batch * self.length * self.heads
        products = rows * self.head_dim**2 * (9 if self.backward else 3)
        numbers = rows * (4 * self.head_dim + 1)
        return Work(
            bytes=itemsize * numbers * (3 if self.backward else 1), multiply_adds=float(products)
        )


@dataclass(frozen=True, kw_only=True)
class LinearAttention(DeltaRule):
    """linear_attention with features of the width of a head."""

    op: ClassVar[str] = "linear_attention"
    peers: ClassVar[dict[str, Peer]] = {"PyTorch, in chunks": Peer(_chunks)}

    def inputs(self, like: Tensor) -> Inputs:
        """The same without beta."""
        return {name: t for name, t in super().inputs(like).items() if name != "beta"}

    def run(self, inputs: Inputs) -> Tensor:
        """The op."""
        return linear_attention(**inputs)  # type: ignore[return-value]

    def work(self, itemsize: int) -> Work:
        """Two passes over the state a step; four going back."""
        rows = self.batch * self.length * self.heads
        products = rows * self.head_dim**2 * (6 if self.backward else 2)
        numbers = rows * 4 * self.head_dim
        return Work(
            bytes=itemsize * numbers * (3 if self.backward else 1), multiply_adds=float(products)
        )
