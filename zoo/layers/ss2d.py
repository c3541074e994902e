"""SS2D: selective scans over a map along several ways (VMamba, EfficientVMamba and others)."""

from __future__ import annotations

import math
from functools import reduce
from operator import add

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.errors import ZooError
from zoo.layers.precision import at_least_fp32
from zoo.layers.ssm_init import dt_bias, dt_weight, s4d_real_log
from zoo.ops import cross_merge, cross_scan, selective_scan
from zoo.ops.ssd import ssd

#: Way of scanning -> (sequences, reverse flag of every pass over them). Direction k of the
#: parameters is sequence k % S in pass k // S.
SCANS: dict[str, tuple[int, tuple[bool, ...]]] = {
    "cross2d": (2, (False, True)),  # rows, columns, and both backward
    "unidi": (1, (False,) * 4),  # four times the rows
    "bidi": (1, (False, False, True, True)),  # twice the rows, twice backward
    "cascade2d": (1, (False, True)),  # each row both ways, then each column both ways
    "atrous": (4, (False,)),  # four interleaved quarters of the map, one way each
}
GATES = ("act", "linear", None)
OUT_NORMS = ("ln", "none", "softmax", "sigmoid", "dwconv3", "cnorm")


class SS2D(nn.Module):
    r"""Two-dimensional selective scan (VMamba, arXiv 2401.10166, section 4.2).

    .. math::
        x, z = W_{in}\,input, \quad x = \mathrm{act}(\mathrm{dwconv}(x)), \quad
        y = \sum_k \mathrm{merge}_k(\mathrm{S6}_k(\mathrm{scan}_k(x))), \quad
        out = W_{out}(\mathrm{norm}(y) \cdot \mathrm{act}(z))

    Maps are channel-last, [B, H, W, C]; parameters have the names and shapes of the authors' code,
    whose channel-first form computes the same.

    Args:
        d_model: C.
        d_state: N, state size of each channel.
        ssm_ratio: d_inner = int(ssm_ratio * d_model).
        dt_rank: rank R of the step-size projection; "auto" is ceil(d_model / 16).
        act_layer: activation after the convolution and of the gate.
        d_conv: side of the depthwise convolution; less than 2 for none.
        conv_bias: whether it has a bias.
        dropout: on the output.
        bias: of the input and output projection.
        scan: a key of :data:`SCANS`. "cascade2d" follows the authors' code in adding the backward
            outputs without turning them round. "atrous" is EfficientVMamba's ES2D.
        gate: "act" for act(z), "linear" for z, None for no gate.
        out_norm: "ln"; or "none", "softmax" (over all positions), "sigmoid", "dwconv3", or "cnorm"
            (a LayerNorm and a depthwise 3x3 convolution).
        out_act: GELU after the output norm.
        force_fp32: scan in float32 inputs also under autocast; the scan's own arithmetic always is.
        init: "v0" (Mamba's), "v1" (random) or "v2" (A = -1) initial values of A, D and the step
            size.
    """

    def __init__(
        self,
        d_model: int = 96,
        d_state: int = 16,
        ssm_ratio: float = 2.0,
        dt_rank: int | str = "auto",
        act_layer: type[nn.Module] = nn.SiLU,
        d_conv: int = 3,
        conv_bias: bool = True,
        dropout: float = 0.0,
        bias: bool = False,
        *,
        scan: str = "cross2d",
        gate: str | None = "act",
        out_norm: str = "ln",
        out_act: bool = False,
        force_fp32: bool = False,
        init: str = "v0",
    ) -> None:
        super().__init__()
        _one_of("scan", scan, tuple(SCANS))
        _one_of("gate", gate, GATES)
        self.scan = scan
        self.gate = gate
        self.force_fp32 = force_fp32
        self.d_state = d_state
        self.d_inner = int(ssm_ratio * d_model)
        self.dt_rank = math.ceil(d_model / 16) if dt_rank == "auto" else int(dt_rank)

        self.in_proj = nn.Linear(d_model, self.d_inner * (2 if gate else 1), bias=bias)
        self.act = act_layer()
        self.conv2d = (
            depthwise_conv(self.d_inner, d_conv, conv_bias) if d_conv > 1 else nn.Identity()
        )
        self._init_scan(init)
        self.out_norm = make_out_norm(out_norm, self.d_inner)
        self.out_act = nn.GELU() if out_act else nn.Identity()
        self.out_proj = nn.Linear(self.d_inner, d_model, bias=bias)
        self.dropout = nn.Dropout(dropout)

    def _init_scan(self, init: str) -> None:
        _one_of("init", init, ("v0", "v1", "v2"))
        K, d, N, R = 4, self.d_inner, self.d_state, self.dt_rank
        bound = d**-0.5  # as nn.Linear
        self.x_proj_weight = nn.Parameter(torch.empty(K, R + 2 * N, d).uniform_(-bound, bound))
        self.Ds = nn.Parameter(torch.ones(K * d))
        if init == "v0":
            A_logs, weight, bias = (
                s4d_real_log(K * d, N),
                dt_weight(K, d, R, dt_rank=R),
                dt_bias(K, d),
            )
        elif init == "v1":
            A_logs = torch.randn(K * d, N)
            weight, bias = 0.1 * torch.randn(K, d, R), 0.1 * torch.randn(K, d)
        else:
            A_logs = torch.zeros(K * d, N)
            weight, bias = 0.1 * torch.rand(K, d, R), 0.1 * torch.rand(K, d)
        self.A_logs = nn.Parameter(A_logs)
        self.dt_projs_weight = nn.Parameter(weight)
        self.dt_projs_bias = nn.Parameter(bias)

    def forward(self, x: Tensor) -> Tensor:
        """[B, H, W, C] to [B, H, W, C]."""
        x = self.in_proj(x)  # [B, H, W, d or 2d]
        if self.gate is not None:
            x, z = x.chunk(2, dim=-1)
        x = self.act(self.conv2d(x.permute(0, 3, 1, 2)))  # [B, d, H, W]
        # the dtype of the norm, whatever the scan computes in
        y = self.scan_map(x).permute(0, 2, 3, 1).to(self.x_proj_weight.dtype)  # [B, H, W, d]
        y = self.out_act(self.out_norm(y).to(x.dtype))
        if self.gate is not None:
            y = y * (self.act(z) if self.gate == "act" else z)
        return self.dropout(self.out_proj(y))

    def scan_map(self, x: Tensor) -> Tensor:
        """Scan along every way and put the outputs together: [B, d, H, W] to [B, d, H, W]."""
        if self.scan == "cascade2d":
            return self._cascade(x)
        H, W = x.shape[2:]
        if self.scan in ("cross2d", "atrous"):
            y = reduce(add, self._passes(cross_scan(x, self.scan)))  # [B, S, d, L]
            return cross_merge(y, H, W, self.scan)
        y = reduce(add, self._passes(x.flatten(2).unsqueeze(1)))  # [B, 1, d, L]
        return y.squeeze(1).unflatten(-1, (H, W))

    def _passes(self, xs: Tensor, first: int = 0) -> list[Tensor]:
        """Scan the sequences [B, S, d, L] once a pass, with the parameters from direction ``first``
        on.

        A backward pass reads the same memory from its end, so that nothing is flipped or copied;
        the projections of all passes are one product, so that the sequences are read once for them.
        """
        S, reverses = SCANS[self.scan]
        P, d, R, N = len(reverses), self.d_inner, self.dt_rank, self.d_state
        directions = slice(first, first + P * S)
        x_weight = self.x_proj_weight[directions].unflatten(0, (P, S)).transpose(0, 1)
        dt_weights = self.dt_projs_weight[directions].unflatten(0, (P, S))
        As = -at_least_fp32(self.A_logs).exp().view(-1, d, N)[directions].reshape(P, S * d, N)
        Ds = at_least_fp32(self.Ds).view(-1, d)[directions].reshape(P, S * d)
        biases = at_least_fp32(self.dt_projs_bias)[directions].reshape(P, S * d)

        proj = torch.matmul(x_weight.flatten(1, 2), xs)  # [B, S, P (R + 2N), L]
        proj = proj.unflatten(2, (P, R + 2 * N))
        u = xs.flatten(1, 2)
        ys = []
        for p, reverse in enumerate(reverses):
            dts, Bs, Cs = proj[:, :, p].split([R, N, N], dim=2)  # [B, S, R or N, L]
            dts = torch.matmul(dt_weights[p], dts).flatten(1, 2)  # [B, S d, L]
            if self.force_fp32:
                u, dts, Bs, Cs = (at_least_fp32(t) for t in (u, dts, Bs, Cs))
            y: Tensor = selective_scan(  # type: ignore[assignment]
                u, dts, As[p], Bs, Cs, Ds[p],
                delta_bias=biases[p], delta_softplus=True, reverse=reverse,
            )  # fmt: skip
            ys.append(y.unflatten(1, (S, d)))
        return ys

    def _cascade(self, x: Tensor) -> Tensor:
        """Every row both ways, then every column both ways; before each a LayerNorm, no weights."""
        d = x.shape[1]
        for first in (0, 2):
            x = F.layer_norm(x.permute(0, 2, 3, 1), (d,))  # [B, H, W, d]
            lines = x.permute(0, 1, 3, 2) if first == 0 else x.permute(0, 2, 3, 1)
            sequences = lines.reshape(-1, 1, d, lines.shape[-1])  # a row or a column each
            forward, backward = self._passes(sequences, first)
            y = (forward + backward.flip(-1)).reshape(lines.shape)
            x = y.permute(0, 2, 1, 3) if first == 0 else y.permute(0, 2, 3, 1)  # [B, d, H, W]
        return x


class SSD2D(SS2D):
    """SS2D with Mamba-2's scan: R heads, each with one scalar decay and no low-rank step size.

    Arguments as for :class:`SS2D`; ``init`` is "v1" or "v2", d_inner must be a multiple of dt_rank
    (which is the number of heads), and ``scan`` is not "cascade2d" or "atrous".
    """

    def _init_scan(self, init: str) -> None:
        _one_of("init", init, ("v1", "v2"))
        _one_of("scan", self.scan, ("cross2d", "unidi", "bidi"))
        K, d, N, R = 4, self.d_inner, self.d_state, self.dt_rank
        if d % R:
            raise ZooError(
                f"SSD2D: d_inner {d} is not a multiple of dt_rank {R}, the number of heads"
            )
        bound = d**-0.5  # as nn.Linear
        self.x_proj_weight = nn.Parameter(torch.empty(K, R + 2 * N, d).uniform_(-bound, bound))
        self.Ds = nn.Parameter(torch.ones(K, R, d // R))
        random = init == "v1"
        self.A_logs = nn.Parameter(torch.randn(K, R) if random else torch.zeros(K, R))
        self.dt_projs_bias = nn.Parameter(0.1 * (torch.randn(K, R) if random else torch.rand(K, R)))

    def _passes(self, xs: Tensor, first: int = 0) -> list[Tensor]:
        S, reverses = SCANS[self.scan]
        P, R, N = len(reverses), self.dt_rank, self.d_state
        As = -at_least_fp32(self.A_logs).exp().view(P, S * R)
        Ds = self.Ds.view(P, S * R, -1)
        biases = self.dt_projs_bias.view(P, S * R)
        x_weight = self.x_proj_weight.unflatten(0, (P, S)).transpose(0, 1)
        proj = torch.matmul(x_weight.flatten(1, 2), xs)  # [B, S, P (R + 2N), L]
        proj = proj.permute(0, 3, 1, 2).unflatten(3, (P, R + 2 * N))
        heads = xs.permute(0, 3, 1, 2).flatten(2).unflatten(2, (S * R, -1))  # [B, L, S R, d / R]
        ys = []
        for p, reverse in enumerate(reverses):
            dts, Bs, Cs = proj[:, :, :, p].split([R, N, N], dim=3)  # [B, L, S, R or N]
            y: Tensor = ssd(  # type: ignore[assignment]
                heads, dts.flatten(2), As[p], Bs, Cs, 64, Ds[p],
                dt_bias=biases[p], dt_softplus=True, reverse=reverse,
            )  # fmt: skip
            ys.append(y.flatten(2).unflatten(2, (S, -1)).permute(0, 2, 3, 1))  # [B, S, d, L]
        return ys


class Permute(nn.Module):
    """``x.permute(dims)`` as a module."""

    def __init__(self, *dims: int) -> None:
        super().__init__()
        self.dims = dims

    def forward(self, x: Tensor) -> Tensor:
        """Permuted view of x."""
        return x.permute(self.dims)

    def extra_repr(self) -> str:
        """The order of the dimensions."""
        return str(self.dims)


class SpatialSoftmax(nn.Module):
    """Softmax over all positions of each channel of a map [B, H, W, C]."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, H, W, C] to [B, H, W, C]."""
        return x.flatten(1, 2).softmax(dim=1).view(x.shape)


def depthwise_conv(channels: int, kernel_size: int, bias: bool) -> nn.Conv2d:
    """Depthwise convolution that keeps odd-sided windows centred."""
    padding = (kernel_size - 1) // 2
    return nn.Conv2d(channels, channels, kernel_size, padding=padding, groups=channels, bias=bias)


def make_out_norm(kind: str, channels: int) -> nn.Module:
    """The output norm of SS2D on maps [B, H, W, C]; ``kind`` is one of :data:`OUT_NORMS`."""
    _one_of("out_norm", kind, OUT_NORMS)
    # Positions in the Sequentials are part of the names in the official weights.
    to_first, to_last = Permute(0, 3, 1, 2), Permute(0, 2, 3, 1)
    if kind == "dwconv3":
        return nn.Sequential(to_first, depthwise_conv(channels, 3, bias=False), to_last)
    if kind == "cnorm":
        conv = depthwise_conv(channels, 3, bias=False)
        return nn.Sequential(nn.LayerNorm(channels), to_first, conv, to_last)
    simple = {"none": nn.Identity, "softmax": SpatialSoftmax, "sigmoid": nn.Sigmoid}
    return simple[kind]() if kind in simple else nn.LayerNorm(channels)


def _one_of(name: str, value: object, choices: tuple) -> None:
    if value not in choices:
        raise ZooError(f"{name} is one of {', '.join(map(str, choices))}, not {value}")
