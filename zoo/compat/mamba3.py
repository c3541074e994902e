"""Mamba-3 of mamba_ssm 2.3 in its SISO form: the scan, one step of it, and the layer.

The recurrence is a trapezoid's: the state takes in this token and, once more, the one before it.
Both sums are one scan of Mamba-2 whose inputs count for this step and the next, less what a token
must not see of its own next step. Keys and queries turn by angles that add up (rotary, in pairs).
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.compat.layernorm_gated import RMSNorm
from zoo.compat.mixers import Device, cast, on_device
from zoo.errors import ZooError
from zoo.layers.plain import like
from zoo.layers.ssm_init import dt_bias
from zoo.ops import ssd

__all__ = ["Mamba3", "mamba3_siso_combined", "mamba3_siso_step"]

#: Angles [B, H, S], state of the scan [B, H, P, N], last key [B, H, N], last value [B, H, P].
States = tuple[Tensor, Tensor, Tensor, Tensor]


def mamba3_siso_combined(
    Q: Tensor,
    K: Tensor,
    V: Tensor,
    ADT: Tensor,
    DT: Tensor,
    Trap: Tensor,
    Q_bias: Tensor,
    K_bias: Tensor,
    Angles: Tensor,
    D: Tensor | None = None,
    Z: Tensor | None = None,
    Input_States: States | None = None,
    chunk_size: int = 64,
    return_final_states: bool = False,
    cu_seqlens: Tensor | None = None,
) -> Tensor | tuple[Tensor, ...]:
    r"""The scan of Mamba-3.

    .. math::
        h_t = \alpha_t h_{t-1} + \beta_t v_{t-1} k_{t-1}^\top + \gamma_t v_t k_t^\top, \qquad
        y_t = h_t q_t + D v_t

    with :math:`\alpha = e^{A\Delta}, \beta = (1 - \lambda) \Delta \alpha, \gamma = \lambda \Delta`.

    Args:
        Q, K: [B, L, G, N]; a group serves H / G heads.
        V: [B, L, H, P].
        ADT: A Δ, at most 0 [B, H, L].
        DT: Δ [B, H, L].
        Trap: λ is its sigmoid [B, H, L].
        Q_bias, K_bias: [H, N].
        Angles: π tanh of it, times Δ, is what a pair of channels turns by [B, L, H, S], S ≤ N / 2.
        D: [H].
        Z: gate [B, L, H, P].
        Input_States: after the tokens before these, for each sequence.
        chunk_size: taken and not needed.
        return_final_states: also return the states after the last token.
        cu_seqlens: [n + 1] where each of n packed sequences starts; then B = 1.

    Returns:
        [B, L, H, P]; if asked, angles, scan, key and value follow.
    """
    if cu_seqlens is None:
        out, states = _scan(Q, K, V, ADT, DT, Trap, Q_bias, K_bias, Angles, D, Z, Input_States)
        return (out, *states) if return_final_states else out
    if len(V) != 1:
        raise ZooError(f"mamba3: cu_seqlens describes a batch of 1, not of {len(V)}")
    outs, ends = [], []
    for row, (start, end) in enumerate(pairwise(cu_seqlens.tolist())):
        part = slice(start, end)
        before: Any = None
        if Input_States is not None:
            before = tuple(state[row : row + 1] for state in Input_States)
        out, states = _scan(
            Q[:, part], K[:, part], V[:, part], ADT[..., part], DT[..., part], Trap[..., part],
            Q_bias, K_bias, Angles[:, part], D, None if Z is None else Z[:, part], before,
        )  # fmt: skip
        outs.append(out)
        ends.append(states)
    out = torch.cat(outs, dim=1)
    if not return_final_states:
        return out
    return (out, *(torch.cat(states) for states in zip(*ends, strict=True)))


def mamba3_siso_step(
    Q: Tensor,
    K: Tensor,
    V: Tensor,
    ADT: Tensor,
    DT: Tensor,
    Trap: Tensor,
    Q_bias: Tensor,
    K_bias: Tensor,
    Angles: Tensor,
    D: Tensor | None = None,
    Z: Tensor | None = None,
    Input_States: States | None = None,
) -> tuple[Tensor, States]:
    """One token of :func:`mamba3_siso_combined`; the arguments lack L, and so does the output."""
    out, states = _scan(
        Q[:, None], K[:, None], V[:, None], ADT[..., None], DT[..., None], Trap[..., None],
        Q_bias, K_bias, Angles[:, None], D, None if Z is None else Z[:, None], Input_States,
    )  # fmt: skip
    return out[:, 0], states


def _scan(
    Q: Tensor,
    K: Tensor,
    V: Tensor,
    ADT: Tensor,
    DT: Tensor,
    Trap: Tensor,
    Q_bias: Tensor,
    K_bias: Tensor,
    Angles: Tensor,
    D: Tensor | None,
    Z: Tensor | None,
    before: States | None,
) -> tuple[Tensor, States]:
    heads = V.shape[2]
    v, dt, rate = V.float(), DT.float().mT, -ADT.float().mT  # [B, L, H, P], [B, L, H] twice
    trap = torch.sigmoid(Trap.float()).mT
    q, k = (
        t.float().repeat_interleave(heads // t.shape[2], dim=2) + bias.float()
        for t, bias in ((Q, Q_bias), (K, K_bias))
    )
    turned = (math.pi * torch.tanh(Angles.float()) * dt[..., None]).cumsum(1)  # [B, L, H, S]
    turned = turned if before is None else turned + before[0].float()[:, None]
    turned = torch.remainder(turned, 2 * math.pi)
    # What a token counts for in the next step; the last one's is left to what comes after it.
    later = F.pad((dt * (1 - trap))[:, 1:], (0, 0, 0, 1))
    own_later = (q * k).sum(-1) * later
    q, k = _turn(q, turned), _turn(k, turned)
    first = None
    if before is not None:
        _, first, key, value = (state.float() for state in before)
        gain = (dt * (1 - trap))[:, 0, :, None, None]
        first = first + gain * value[..., :, None] * key[..., None, :]
    # The scan multiplies its inputs by its step size, here the rate of decay.
    step = rate.clamp(min=1e-12)
    x = v * ((dt * trap + later) / step)[..., None]
    ones = rate.new_full((heads,), -1.0)
    y, last = ssd(x, step, ones, k, q, initial_states=first, return_final_states=True)
    y = y - own_later[..., None] * v
    y = y if D is None else y + D.float()[:, None] * v
    y = y if Z is None else y * F.silu(Z.float())
    return y.to(V.dtype), (turned[:, -1], last, k[:, -1].to(K.dtype), V[:, -1])


def _turn(x: Tensor, angles: Tensor) -> Tensor:
    """Turn the first pairs of neighbouring channels ``[..., N]`` by angles ``[..., S]``."""
    moving, rest = x[..., : 2 * angles.shape[-1]], x[..., 2 * angles.shape[-1] :]
    a, b = moving[..., ::2], moving[..., 1::2]
    cos, sin = angles.cos(), angles.sin()
    pairs = torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1)
    return torch.cat([pairs.flatten(-2), rest], dim=-1)


class Mamba3(nn.Module):
    """``mamba_ssm.Mamba3`` with one input and one output per head (SISO).

    Args:
        d_model: width of the tokens.
        d_state: N.
        expand: d_inner = expand * d_model.
        headdim: P.
        ngroups: groups of heads that share B and C.
        rope_fraction: share of the channels of B and C that turn, 0.5 or 1.
        dt_min, dt_max, dt_init_floor: initial step sizes.
        A_floor: the decay's rate is at least this.
        is_outproj_norm: a gated norm of each head before the output projection.
        is_mimo, mimo_rank: several inputs and outputs per head are not provided.
        chunk_size, dropout, n_layer, kwargs: taken, without effect.
        layer_idx: key of the layer's state in ``inference_params``.
        device, dtype: of the parameters; step sizes, biases and D stay float32.
    """

    def __init__(
        self,
        d_model: int,
        d_state: int = 128,
        expand: int = 2,
        headdim: int = 64,
        ngroups: int = 1,
        rope_fraction: float = 0.5,
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        dt_init_floor: float = 1e-4,
        A_floor: float = 1e-4,
        is_outproj_norm: bool = False,
        is_mimo: bool = False,
        mimo_rank: int = 4,
        chunk_size: int = 64,
        dropout: float = 0.0,
        layer_idx: int | None = None,
        n_layer: int | None = None,
        device: Device = None,
        dtype: torch.dtype | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        if is_mimo:
            raise ZooError(
                "Mamba3 of zoo.compat has one input and output per head; is_mimo is False"
            )
        self.d_model, self.d_state, self.expand, self.headdim = d_model, d_state, expand, headdim
        self.d_inner, self.num_bc_heads, self.layer_idx = int(expand * d_model), ngroups, layer_idx
        self.nheads, rest = divmod(self.d_inner, headdim)
        if rest or self.nheads % ngroups or rope_fraction not in (0.5, 1.0):
            raise ZooError(
                f"Mamba3: {self.d_inner} channels in heads of {headdim}, {ngroups} groups, "
                f"rope_fraction {rope_fraction}: expected whole heads, as many in each group, and "
                "0.5 or 1.0"
            )
        self.A_floor, self.is_outproj_norm = A_floor, is_outproj_norm
        self.num_rope_angles = int(d_state * rope_fraction) // 2
        width = ngroups * d_state
        # z, x, B, C, step size, rate, trapezoid, angles
        self.sizes = [self.d_inner] * 2 + [width] * 2 + [self.nheads] * 3 + [self.num_rope_angles]
        with on_device(device):
            self.in_proj = nn.Linear(d_model, sum(self.sizes), bias=False)
            steps = dt_bias(self.nheads, dt_min=dt_min, dt_max=dt_max, dt_init_floor=dt_init_floor)
            self.dt_bias = nn.Parameter(steps)
            self.B_bias = nn.Parameter(torch.ones(self.nheads, 1, d_state))
            self.C_bias = nn.Parameter(torch.ones(self.nheads, 1, d_state))
            self.B_norm, self.C_norm = RMSNorm(d_state), RMSNorm(d_state)
            self.D = nn.Parameter(torch.ones(self.nheads))
            if is_outproj_norm:
                self.norm = RMSNorm(self.d_inner, group_size=headdim)
            self.out_proj = nn.Linear(self.d_inner, d_model, bias=False)
        cast(self, dtype, keep=("dt_bias", "B_bias", "C_bias", "D"))
        for parameter in (self.dt_bias, self.D):
            parameter._no_weight_decay = True  # type: ignore[attr-defined]

    def forward(
        self,
        u: Tensor,
        seq_idx: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        inference_params: Any = None,
    ) -> Tensor:
        """``[B, L, d_model]`` to the same.

        Args:
            u: tokens.
            seq_idx: taken and not used, as in mamba_ssm; packed sequences need ``cu_seqlens``.
            cu_seqlens: see :func:`mamba3_siso_combined`.
            inference_params: as for :class:`zoo.compat.mixers.Mamba`.
        """
        if inference_params is None:
            return self._run(u, None, cu_seqlens)[0]
        rows = len(u) if cu_seqlens is None else len(cu_seqlens) - 1
        states = self._get_states_from_cache(inference_params, rows)
        if inference_params.seqlen_offset > 0:
            return self.step(u[:, 0], *states)[0][:, None]
        out, new = self._run(u, None, cu_seqlens)
        self._keep(states, new)
        return out

    def step(
        self,
        u: Tensor,
        angle_state: Tensor,
        ssm_state: Tensor,
        k_state: Tensor,
        v_state: Tensor,
        **kwargs: Any,
    ) -> tuple[Tensor, ...]:
        """One token ``[B, d_model]``; the states are changed in place and returned too."""
        states = angle_state, ssm_state, k_state, v_state
        out, new = self._run(u[:, None], (angle_state, ssm_state, k_state[:, 0], v_state), None)
        self._keep(states, new)
        return (out[:, 0], *states)

    def allocate_inference_cache(
        self,
        batch_size: int,
        max_seqlen: int,
        device: Device = None,
        dtype: torch.dtype | None = None,
        inplace_state: Any = None,
        **kwargs: Any,
    ) -> States:
        """Angles, scan, key ``[B, 1, H, N]`` and value before the first token."""
        weight = like(self.in_proj)
        heads = (batch_size, self.nheads)
        place: dict[str, Any] = {"device": device or weight.device, "dtype": torch.float32}
        angles = torch.zeros(*heads, self.num_rope_angles, **place)
        scan = torch.zeros(*heads, self.headdim, self.d_state, **place)
        place["dtype"] = dtype or weight.dtype
        key = torch.zeros(batch_size, 1, self.nheads, self.d_state, **place)
        return angles, scan, key, torch.zeros(*heads, self.headdim, **place)

    def _run(
        self, u: Tensor, before: States | None, cu_seqlens: Tensor | None
    ) -> tuple[Tensor, States]:
        z, x, B, C, dt, rate, trap, angles = self.in_proj(u).split(self.sizes, dim=-1)
        z, x = (t.unflatten(-1, (self.nheads, -1)) for t in (z, x))  # [B, L, H, P]
        B, C = (t.unflatten(-1, (self.num_bc_heads, -1)) for t in (B, C))  # [B, L, G, N]
        A = -F.softplus(rate.float()).clamp(min=self.A_floor)
        dt = F.softplus(dt + self.dt_bias)  # [B, L, H]
        angles = angles[..., None, :].expand(-1, -1, self.nheads, -1)
        gate = None if self.is_outproj_norm else z
        y, *states = mamba3_siso_combined(
            self.C_norm(C), self.B_norm(B), x, (A * dt).mT, dt.mT, trap.mT,
            self.C_bias[:, 0], self.B_bias[:, 0], angles, self.D, gate, before,
            return_final_states=True, cu_seqlens=cu_seqlens,
        )  # fmt: skip
        y = y.flatten(2)
        if self.is_outproj_norm:
            y = self.norm(y, z.flatten(2))
        return self.out_proj(y.to(x.dtype)), tuple(states)  # type: ignore[return-value]

    @staticmethod
    @torch.no_grad()
    def _keep(states: States, new: States) -> None:
        for place, value in zip(states, new, strict=True):
            place.copy_(value.view_as(place))

    def _get_states_from_cache(
        self, inference_params: Any, batch_size: int, initialize_states: bool = False
    ) -> States:
        if self.layer_idx is None:
            raise ZooError("Mamba3: generation needs layer_idx in the constructor")
        kept = inference_params.key_value_memory_dict
        if self.layer_idx not in kept:
            kept[self.layer_idx] = self.allocate_inference_cache(batch_size, 0)
        elif initialize_states:
            for state in kept[self.layer_idx]:
                state.zero_()
        return kept[self.layer_idx]
