"""The Mamba mixer: gated selective SSM over a sequence, in one direction or in both."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.errors import ZooError
from zoo.layers.cache import RecurrentState
from zoo.layers.plain import is_plain, like, linear_of_half, split_bias
from zoo.layers.precision import at_least_fp32
from zoo.layers.short_conv import make_short_conv, short_conv
from zoo.layers.ssm_init import dt_bias, dt_weight, s4d_real_log, say_range
from zoo.ops import causal_conv1d, selective_scan, selective_state_update
from zoo.ops.selective_scan import is_negative


class Mamba(nn.Module):
    r"""Mamba-1 mixer (arXiv 2312.00752, section 3.4; two directions: Vim, arXiv 2401.09417, 3.3).

    .. math::
        x, z = W_{in}\,input, \quad x = \mathrm{silu}(\mathrm{conv}(x)), \quad
        y = \mathrm{S6}(x) \cdot \mathrm{silu}(z), \quad out = W_{out}\,y

    Parameters have the names and shapes of the authors' code.

    Args:
        d_model: width of the tokens.
        d_state: N, state size of each channel.
        d_conv: width of the causal depthwise convolution.
        expand: d_inner = int(expand * d_model).
        dt_rank: rank of the step-size projection; "auto" is ceil(d_model / 16).
        dt_min, dt_max, dt_init, dt_scale, dt_init_floor: initial step sizes,
            see :mod:`zoo.layers.ssm_init`.
        conv_bias, bias: whether the convolution, and the input and output projection have one.
        bimamba_type: "none" for one direction. "v1": a backward scan too, over the same convolved
            sequence with the same parameters but for A. "v2": a backward branch with a convolution,
            projections, A and D of its own; the backward convolution looks ahead.
        if_divide_out: v2 halves the sum of both directions.
        init_layer_scale: initial value of a learned factor on every output channel; None for none.
        eig_range: of the factors of the state: "01", or "pm1" for (-1, 1), which can track states
            (arXiv 2411.12537). The state dict says so where it is the second.
    """

    eig_range: str = "01"
    conv1d: nn.Conv1d
    x_proj: nn.Linear
    dt_proj: nn.Linear
    D: nn.Parameter
    conv1d_b: nn.Conv1d
    x_proj_b: nn.Linear
    dt_proj_b: nn.Linear
    D_b: nn.Parameter

    def __init__(
        self,
        d_model: int,
        d_state: int = 16,
        d_conv: int = 4,
        expand: float = 2,
        dt_rank: int | str = "auto",
        dt_min: float = 1e-3,
        dt_max: float = 0.1,
        dt_init: str = "random",
        dt_scale: float = 1.0,
        dt_init_floor: float = 1e-4,
        conv_bias: bool = True,
        bias: bool = False,
        bimamba_type: str = "none",
        if_divide_out: bool = False,
        init_layer_scale: float | None = None,
        eig_range: str = "01",
    ) -> None:
        super().__init__()
        say_range(self, is_negative("Mamba", eig_range))
        if bimamba_type not in ("none", "v1", "v2"):
            raise ZooError(f"bimamba_type is none, v1 or v2, not {bimamba_type}")
        self.bimamba_type = bimamba_type
        self.if_divide_out = if_divide_out
        self.d_state, self.d_conv = d_state, d_conv
        self.dt_rank = R = math.ceil(d_model / 16) if dt_rank == "auto" else int(dt_rank)
        d = int(expand * d_model)

        self.in_proj = nn.Linear(d_model, 2 * d, bias=bias)
        branches = ("", "_b") if bimamba_type == "v2" else ("",)
        for suffix in branches:
            self.add_module(f"conv1d{suffix}", make_short_conv(d, d_conv, conv_bias))
            self.add_module(f"x_proj{suffix}", nn.Linear(d, R + 2 * d_state, bias=False))
            self.add_module(f"dt_proj{suffix}", nn.Linear(R, d))
            self.register_parameter(f"D{suffix}", nn.Parameter(torch.ones(d)))
        self.A_log = nn.Parameter(s4d_real_log(d, d_state))
        if bimamba_type != "none":
            self.A_b_log = nn.Parameter(s4d_real_log(d, d_state))
        self.out_proj = nn.Linear(d, d_model, bias=bias)
        self.gamma = None
        if init_layer_scale is not None:
            self.gamma = nn.Parameter(init_layer_scale * torch.ones(d_model))

        # As the authors do, the backward branch's step sizes start like those of any linear layer.
        with torch.no_grad():
            weight = dt_weight(d, R, dt_rank=R, dt_init=dt_init, dt_scale=dt_scale)
            self.dt_proj.weight.copy_(weight)
            bias_values = dt_bias(d, dt_min=dt_min, dt_max=dt_max, dt_init_floor=dt_init_floor)
            self.dt_proj.bias.copy_(bias_values)

    def forward(
        self, x: Tensor, state: RecurrentState | None = None, seq_idx: Tensor | None = None
    ) -> Tensor:
        """[B, L, d_model] to [B, L, d_model].

        Args:
            x: tokens.
            state: of :meth:`allocate_state`, for one direction only: x goes on where it stands, and
                its tensors are replaced by those after x. A single token without gradients takes
                one step of constant cost; anything else goes through the scan.
            seq_idx: int32 [B, L], the sequence that a token belongs to where several are packed:
                neither convolution nor state passes from one to the next. Negative marks padding.
                Not together with ``state``.

        Raises:
            ZooError: if the state cannot be used.
        """
        if state is not None and (self.bimamba_type != "none" or seq_idx is not None):
            raise ZooError(
                "a Mamba state goes on with one sequence in one direction: expected "
                f"bimamba_type='none', here '{self.bimamba_type}', and no seq_idx"
            )
        x, z = self.in_proj(x).chunk(2, dim=-1)  # [B, L, d]
        u = short_conv(x, self.conv1d, seq_idx=seq_idx, state=state)
        dt, bias, B, C = self._project(u, self.x_proj, self.dt_proj)
        if state is not None and x.shape[1] == 1 and not torch.is_grad_enabled():
            y = self._step(u, dt, bias, B, C, z, state)
        else:
            y, last = self._scan(
                u, dt, self.A_log, B, C, self.D, z, bias, seq_idx,
                initial_state=None if state is None else state.ssm,
            )  # fmt: skip
            if state is not None:
                state.ssm = last
        if self.bimamba_type == "v1":
            backward = (u, dt, self.A_b_log, B, C, self.D, z, bias, seq_idx)
            y = y + self._scan(*backward, reverse=True)[0]
        elif self.bimamba_type == "v2":
            u = self._conv_ahead(x, seq_idx)
            dt, bias, B, C = self._project(u, self.x_proj_b, self.dt_proj_b)
            backward = (u, dt, self.A_b_log, B, C, self.D_b, z, bias, seq_idx)
            y = y + self._scan(*backward, reverse=True)[0]

        halve = self.bimamba_type == "v2" and self.if_divide_out
        out = linear_of_half(self.out_proj, y) if halve else self.out_proj(y)
        return out if self.gamma is None else out * self.gamma

    def allocate_state(self, batch_size: int) -> RecurrentState:
        """The state before the first token."""
        weight, d = like(self.conv1d), self.A_log.shape[0]
        return RecurrentState(
            weight.new_zeros(batch_size, d, self.d_conv),
            at_least_fp32(weight).new_zeros(batch_size, d, self.d_state),
        )

    # Everything stays [B, L, channels], the layout of the matrix products; the ops take the
    # transposed view as it is.

    def _conv_ahead(self, x: Tensor, seq_idx: Tensor | None) -> Tensor:
        """Convolution of the backward branch: over a token and those after it."""
        if seq_idx is not None or not is_plain(self.conv1d_b):
            flipped = None if seq_idx is None else seq_idx.flip(1)
            return short_conv(x.flip(1), self.conv1d_b, seq_idx=flipped).flip(1)
        # the same without turning x round twice
        weight = self.conv1d_b.weight.squeeze(1).flip(1)
        reach = weight.shape[1] - 1
        rows = F.pad(x, (0, 0, 0, reach)).transpose(1, 2)
        y: Tensor = causal_conv1d(  # type: ignore[assignment]
            rows, weight, self.conv1d_b.bias, activation="silu"
        )
        return y.transpose(1, 2)[:, reach:]

    def _project(
        self, u: Tensor, x_proj: nn.Linear, dt_proj: nn.Linear
    ) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
        """Step sizes [B, L, d] and a bias that is left to the scan, B and C [B, L, N]."""
        dt, B, C = x_proj(u).split([self.dt_rank, self.d_state, self.d_state], dim=-1)
        return *split_bias(dt_proj, dt), B, C

    def _step(
        self, u: Tensor, dt: Tensor, bias: Tensor | None, B: Tensor, C: Tensor, z: Tensor,
        state: RecurrentState,
    ) -> Tensor:  # fmt: skip
        """One token; ``state.ssm`` is overwritten in place."""
        u, dt, B, C, z = (t[:, 0] for t in (u, dt, B, C, z))
        A = -at_least_fp32(self.A_log).exp()
        y = selective_state_update(
            state.ssm, u, dt, A, B, C, self.D, z, bias, True, eig_range=self.eig_range
        )
        return y[:, None]

    def _scan(
        self, u: Tensor, dt: Tensor, A_log: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor,
        bias: Tensor | None, seq_idx: Tensor | None, initial_state: Tensor | None = None,
        reverse: bool = False,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Output [B, L, d], and the state after the last step."""
        u, dt, B, C, z = (t.transpose(1, 2) for t in (u, dt, B, C, z))
        bias = None if bias is None else at_least_fp32(bias)
        y, last = selective_scan(
            u, dt, -at_least_fp32(A_log).exp(), B, C, at_least_fp32(D), z,
            delta_bias=bias, delta_softplus=True, return_last_state=True,
            initial_state=initial_state, reset=_borders(seq_idx, reverse), reverse=reverse,
            eig_range=self.eig_range,
        )  # fmt: skip
        return y.transpose(1, 2), last


def _borders(seq_idx: Tensor | None, reverse: bool) -> Tensor | None:
    """Bool [B, L]: steps that begin a packed sequence, in the direction of the scan."""
    if seq_idx is None:
        return None
    return F.pad(seq_idx[:, 1:] != seq_idx[:, :-1], (0, 1) if reverse else (1, 0))
