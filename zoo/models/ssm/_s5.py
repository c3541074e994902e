"""S5's layer: a state space model of many inputs and outputs, run by a scan (arXiv 2208.04933).

Modules and parameters have the names of its authors' code (lindermanlab/S5 and its descendants,
flax), so that their arrays load through :func:`rename_flax`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.devices import without_autocast
from zoo.errors import ZooError
from zoo.layers.hippo import nplr
from zoo.layers.precision import at_least_fp32
from zoo.layers.s4 import dropout_of
from zoo.ops import diagonal_scan

ACTIVATIONS = ("gelu", "half_glu1", "half_glu2", "full_glu")
C_INITS = ("trunc_standard_normal", "lecun_normal", "complex_normal")
DISCRETISATIONS = ("zoh", "bilinear")
#: Standard deviation of a standard normal that is cut at two.
_CUT = 0.87962566103423978


class Basis(NamedTuple):
    """A state matrix of N numbers in P modes, A = V diag(Lambda) V^-1; complex128.

    Attributes:
        Lambda: eigenvalues ``[P]``.
        V: eigenvectors ``[N, P]``.
        Vinv: what takes a state to its modes ``[P, N]``.
    """

    Lambda: Tensor
    V: Tensor
    Vinv: Tensor


def legs_basis(N: int) -> Basis:
    """The normal part of HiPPO-LegS, one of each conjugate pair (S5, section 4.2)."""
    form = nplr("legs", N)
    V = torch.as_tensor(form.V)
    return Basis(torch.as_tensor(form.w), V, V.conj().T)


class System(NamedTuple):
    """A discrete system whose complex numbers are pairs.

    Attributes:
        Lambda: ``[P]``.
        B: of real inputs, ``[2P, H]``.
        C: of the state and, if it scans in both directions, of the other, ``[H, 2P or 4P]``.
        D: ``[H]``.
    """

    Lambda: Tensor
    B: Tensor
    C: Tensor
    D: Tensor

    def into(self, u: Tensor) -> Tensor:
        """Inputs ``[..., H]`` to what enters the state ``[..., P]``."""
        return torch.view_as_complex(F.linear(u, self.B).unflatten(-1, (-1, 2)))

    def out(self, x: Tensor, u: Tensor) -> Tensor:
        """States ``[..., P or 2P]`` and inputs to outputs ``[..., H]``."""
        return F.linear(torch.view_as_real(x).flatten(-2), self.C) + self.D * u


class S5SSM(nn.Module):
    r"""The state space model of a layer.

    .. math::
        x_t = \bar\Lambda (1 - reset_t) x_{t-1} + \bar B u_t, \quad y_t = s\,Re(C x_t) + D u_t

    s is 2 where the modes are one of each conjugate pair, else 1. Complex parameters are stored as
    pairs of real numbers.

    Args:
        H: features.
        basis: of one block of the state.
        blocks: J, blocks that start equal; the state has J P modes.
        C_init: "lecun_normal" and "trunc_standard_normal" (both drawn for real states, then put
            into the basis; the first is smaller by the root of H, as flax counts H as the fan-in,
            too), or "complex_normal".
        discretization: "zoh" or "bilinear".
        dt_min, dt_max: initial steps are log-uniform between them, one for each mode.
        conj_sym: the modes are one of each conjugate pair.
        clip_eigs: real parts are at most -1e-4.
        force_neg: real parts are minus their magnitude.
        bidirectional: a second scan runs backwards, with outputs of its own.
        B_init: "lecun_normal", or "legs", the input of HiPPO for all features.

    Raises:
        ZooError: if a name is unknown.
    """

    C: Tensor
    C1: Tensor
    C2: Tensor

    def __init__(
        self,
        H: int,
        basis: Basis,
        blocks: int = 1,
        C_init: str = "lecun_normal",
        discretization: str = "zoh",
        dt_min: float = 1e-3,
        dt_max: float = 0.1,
        conj_sym: bool = True,
        clip_eigs: bool = False,
        force_neg: bool = False,
        bidirectional: bool = False,
        B_init: str = "lecun_normal",
    ) -> None:
        super().__init__()
        for name, value, known in (
            ("C_init", C_init, C_INITS),
            ("discretization", discretization, DISCRETISATIONS),
            ("B_init", B_init, ("lecun_normal", "legs")),
        ):
            if value not in known:
                raise ZooError(f"{name} is one of {', '.join(known)}, not '{value}'")
        self.discretization, self.bidirectional = discretization, bidirectional
        self.conj_sym, self.clip_eigs, self.force_neg = conj_sym, clip_eigs, force_neg
        N, P = basis.V.shape
        self.P = blocks * P
        Lambda = basis.Lambda.repeat(blocks)
        self.Lambda_re = nn.Parameter(_real(Lambda.real))
        self.Lambda_im = nn.Parameter(_real(Lambda.imag))
        B = _lecun(blocks * N, H, fan_in=blocks * N)
        if B_init == "legs":
            B = (2 * torch.arange(N) + 1).sqrt().repeat(blocks)[:, None].expand(-1, H)
        B = basis.Vinv @ B.unflatten(0, (blocks, N)).to(basis.V.dtype)  # [J, P, H]
        self.B = nn.Parameter(_pairs(B.flatten(0, 1)))
        if C_init == "complex_normal":
            width = self.P * (2 if bidirectional else 1)
            self.C = nn.Parameter(torch.randn(H, width, 2) * math.sqrt(0.5))
        else:
            fan_in = blocks * N * (H if C_init == "lecun_normal" else 1)
            for name in ("C1", "C2") if bidirectional else ("C",):
                C = torch.view_as_complex(_lecun(H, blocks * N, 2, fan_in=fan_in))
                C = C.unflatten(1, (blocks, N)).to(basis.V.dtype) @ basis.V  # [H, J, P]
                self.register_parameter(name, nn.Parameter(_pairs(C.flatten(1))))
        self.D = nn.Parameter(torch.randn(H))
        low, high = math.log(dt_min), math.log(dt_max)
        self.log_step = nn.Parameter(torch.rand(self.P, 1) * (high - low) + low)

    def discrete(self, rate: float = 1.0) -> tuple[Tensor, Tensor]:
        """Lambda-bar ``[P]`` and B-bar ``[P, H]`` of steps ``rate`` times as long."""
        real = at_least_fp32(self.Lambda_re)
        real = real.clamp(max=-1e-4) if self.clip_eigs else real
        real = -real.abs() if self.force_neg else real
        Lambda = torch.complex(real, at_least_fp32(self.Lambda_im))
        B = torch.view_as_complex(at_least_fp32(self.B).contiguous())
        step = at_least_fp32(self.log_step)[:, 0].exp() * rate
        x = step * Lambda
        if self.discretization == "bilinear":
            half = 1 / (1 - x / 2)
            return half * (1 + x / 2), (half * step)[:, None] * B
        # exp(x) - 1, exact where x is small
        return x.exp(), (2 * (x / 2).exp() * (x / 2).sinh() / Lambda)[:, None] * B

    def forward(
        self,
        u: Tensor,
        state: Tensor | None = None,
        reset: Tensor | None = None,
        rate: float = 1.0,
    ) -> tuple[Tensor, Tensor]:
        """A whole sequence, or the next part of one.

        Args:
            u: ``[B, L, H]``.
            state: before the first step, ``[B, P]``; zero if absent.
            reset: bool ``[B, L]``: no state passes into these steps.
            rate: sampling is so many times slower than in training.

        Returns:
            y ``[B, L, H]`` and the state after the last step ``[B, P]``.

        Raises:
            ZooError: if a state or resets are given to a model that looks ahead.
        """
        if self.bidirectional and not (state is None and reset is None):
            raise ZooError("a scan in both directions has no state and no resets: it sees the end")
        with without_autocast(u):
            inputs = at_least_fp32(u)
            system = self.system(rate)
            Bu = system.into(inputs)
            x, last = diagonal_scan(
                system.Lambda, Bu, initial_state=state, reset=reset, return_last_state=True
            )
            if self.bidirectional:
                x = torch.cat([x, diagonal_scan(system.Lambda, Bu, reverse=True)], -1)
            y = system.out(x, inputs)
        return y.to(u.dtype), last

    def step(self, u: Tensor, state: Tensor, system: System) -> tuple[Tensor, Tensor]:
        """One step ``[B, H]`` of :meth:`forward`, by what :meth:`system` gave: y and the state."""
        with torch.autocast(u.device.type, enabled=False):
            inputs = at_least_fp32(u)
            state = system.Lambda * state + system.into(inputs)
            return system.out(state, inputs).to(u.dtype), state

    def system(self, rate: float = 1.0) -> System:
        """The discrete system of the parameters as they are now."""
        Lambda, B = self.discrete(rate)
        C = self.C if hasattr(self, "C") else torch.cat([self.C1, self.C2], 1)
        out = at_least_fp32(C) * B.real.new_tensor([1.0, -1.0])  # Re(C x) of pairs
        return System(
            Lambda,
            torch.view_as_real(B).transpose(1, 2).flatten(0, 1),
            (2 if self.conj_sym else 1) * out.flatten(1),
            at_least_fp32(self.D),
        )


class S5Layer(nn.Module):
    """Norm, state space model, gate, residual: ``[B, L, H]`` to the same.

    Args:
        seq: the model.
        d_model: H.
        activation: "gelu", "half_glu1" (x gelu'd, times a gate of it), "half_glu2" (x times a gate
            of gelu(x)) or "full_glu" (a layer of gelu(x), times a gate of it).
        norm: "layer", "batch" or None.
        prenorm: before the model, else after the sum.
        gtrxl_norm: the same norm once more behind the model.
        dropout: of whole features, inside the gate.

    Raises:
        ZooError: if a name is unknown.
    """

    def __init__(
        self,
        seq: S5SSM,
        d_model: int,
        activation: str = "gelu",
        norm: str | None = "layer",
        prenorm: bool = False,
        gtrxl_norm: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if activation not in ACTIVATIONS or norm not in ("layer", "batch", None):
            raise ZooError(
                f"activation is one of {', '.join(ACTIVATIONS)} and norm is layer, batch or null, "
                f"got {activation} and {norm}"
            )
        self.activation = activation
        self.prenorm, self.postnorm = norm is not None and prenorm, norm is not None and not prenorm
        self.gtrxl_norm = gtrxl_norm
        self.seq = seq
        if activation == "full_glu":
            self.out1 = nn.Linear(d_model, d_model)
        if activation != "gelu":
            self.out2 = nn.Linear(d_model, d_model)
        if norm == "batch":
            self.norm: nn.Module = nn.BatchNorm1d(d_model)
        elif norm == "layer" or gtrxl_norm:
            self.norm = nn.LayerNorm(d_model, eps=1e-6)
        self.drop = dropout_of(dropout, True)

    def forward(
        self,
        x: Tensor,
        lengths: Tensor | None = None,
        state: Tensor | None = None,
        reset: Tensor | None = None,
        rate: float = 1.0,
    ) -> tuple[Tensor, Tensor]:
        """``[B, L, H]`` to the same, and the last state.

        Args:
            x: steps.
            lengths: of the sequences ``[B]``; what follows is padding, which no state hears.
            state, reset, rate: see :meth:`S5SSM.forward`.
        """
        y = self._norm(x) if self.prenorm else x
        if lengths is not None:
            inside = torch.arange(x.shape[1], device=x.device) < lengths[:, None]
            y = y * inside[..., None]
        y, state = self.seq(y, state, reset, rate)
        return self._add(x, y), state

    def step(self, x: Tensor, state: Tensor, system: System) -> tuple[Tensor, Tensor]:
        """One step ``[B, H]`` of :meth:`forward`, by what ``seq.system`` gave."""
        y, state = self.seq.step(self._norm(x) if self.prenorm else x, state, system)
        return self._add(x, y), state

    def _add(self, x: Tensor, y: Tensor) -> Tensor:
        """Output of the layer from its input and that of its model."""
        y = self._norm(y) if self.gtrxl_norm else y
        y = x + self._gate(y)
        return self._norm(y) if self.postnorm else y

    def _norm(self, x: Tensor) -> Tensor:
        if isinstance(self.norm, nn.BatchNorm1d):
            return self.norm(x.flatten(0, -2)).view_as(x)
        return self.norm(x)

    def _gate(self, x: Tensor) -> Tensor:
        bent = self.drop(F.gelu(x, approximate="tanh"))
        if self.activation == "gelu":
            return bent
        if self.activation == "full_glu":
            x = self.out1(bent)
        elif self.activation == "half_glu1":
            x = bent
        return self.drop(x * self.out2(bent).sigmoid())


def rename_flax(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Arrays of flax modules under PyTorch's names: ``layers_0/out1/kernel`` is
    ``layers.0.out1.weight``, transposed; names may begin with their collection."""
    renamed = {}
    names = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
    for key, value in state.items():
        path = key.replace("/", ".").split(".")
        path = path[1:] if path[0] in ("params", "batch_stats") else path
        value = value.T if path[-1] == "kernel" else value
        path[-1] = names.get(path[-1], path[-1])
        renamed[re.sub(r"\blayers_(\d+)", r"layers.\1", ".".join(path))] = value.contiguous()
        if path[-1] == "running_mean":  # PyTorch counts batches
            counted = ".".join([*path[:-1], "num_batches_tracked"])
            renamed[re.sub(r"\blayers_(\d+)", r"layers.\1", counted)] = torch.tensor(0)
    return renamed


def _lecun(*shape: int, fan_in: int) -> Tensor:
    """Normal of variance 1 / fan_in, cut at two standard deviations."""
    std = 1 / math.sqrt(fan_in) / _CUT
    return nn.init.trunc_normal_(torch.empty(*shape), std=std, a=-2 * std, b=2 * std)


def _real(x: Tensor) -> Tensor:
    return x.to(torch.get_default_dtype(), copy=True)


def _pairs(x: Tensor) -> Tensor:
    return _real(torch.view_as_real(x.resolve_conj()))
