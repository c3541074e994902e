"""The two kinds of mixers of mmMamba's decoder: grouped attention, and Mamba-2 seeded from it."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.errors import ZooError
from zoo.layers.cache import KeyValues, RecurrentState
from zoo.layers.causal_attention import attend, next_positions, rotary
from zoo.layers.plain import like
from zoo.layers.precision import at_least_fp32
from zoo.layers.short_conv import make_short_conv, short_conv
from zoo.layers.ssm_init import dt_bias
from zoo.ops import selective_state_update, ssd

CHUNK_SIZE, CONV_WIDTH, NORM_EPS = 128, 2, 1e-5


class GroupedAttention(nn.Module):
    """Causal attention whose heads share keys and values in groups (InternLM2's layer).

    ``wqkv`` holds for each group its queries' heads, then its key, then its value.

    Args:
        hidden_size: width of the tokens.
        num_heads, num_kv_heads: heads of the queries, and groups.
        head_dim: P, by default hidden_size / num_heads.
        rope_theta: base of the rotary positions.
        qkv_bias: whether queries, keys and values have a bias.
    """

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int | None = None,
        rope_theta: float = 10000.0,
        qkv_bias: bool = False,
    ) -> None:
        super().__init__()
        if num_heads % num_kv_heads:
            raise ZooError(
                f"{num_heads} heads cannot be divided among {num_kv_heads} groups: expected a "
                "multiple"
            )
        self.num_heads, self.num_kv_heads, self.rope_theta = num_heads, num_kv_heads, rope_theta
        self.head_dim = P = head_dim or hidden_size // num_heads
        self.wqkv = nn.Linear(hidden_size, (num_heads + 2 * num_kv_heads) * P, bias=qkv_bias)
        self.wo = nn.Linear(num_heads * P, hidden_size, bias=False)

    def forward(
        self, x: Tensor, state: KeyValues | None = None, seq_idx: Tensor | None = None
    ) -> Tensor:
        """[B, L, hidden_size] to the same; ``state`` and ``seq_idx`` as in
        :class:`zoo.layers.causal_attention.SelfAttention`."""
        rows = self.wqkv(x).unflatten(-1, (self.num_kv_heads, -1, self.head_dim))
        q, k, v = rows[..., :-2, :].flatten(2, 3), rows[..., -2, :], rows[..., -1, :]
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))  # [B, heads, L, P]
        where = next_positions(state, x.shape[1], x.device)
        q, k = (rotary(t, where, self.head_dim, self.rope_theta) for t in (q, k))
        y = attend(q, k, v, state, seq_idx)
        return self.wo(y.transpose(1, 2).flatten(2))

    def allocate_state(self, batch_size: int) -> KeyValues:
        """The state before the first token."""
        return KeyValues.empty(batch_size, self.num_kv_heads, self.head_dim, like(self.wqkv))

    def projections(self) -> dict[str, Tensor]:
        """Weights, and biases if there are any, of ``q_proj``, ``k_proj`` and ``v_proj``."""
        parts = {}
        for kind in ("weight", "bias"):
            packed = getattr(self.wqkv, kind)
            if packed is not None:
                rows = packed.unflatten(0, (self.num_kv_heads, -1, self.head_dim))
                parts[f"q_proj.{kind}"] = rows[:, :-2].flatten(0, 2)
                parts[f"k_proj.{kind}"] = rows[:, -2].flatten(0, 1)
                parts[f"v_proj.{kind}"] = rows[:, -1].flatten(0, 1)
        return parts


class Mamba2Attention(nn.Module):
    r"""Mamba-2 mixer in the place of attention (mmMamba, arXiv 2502.13145, section 3.2).

    .. math::
        S_t = e^{\Delta_t A} S_{t-1} + \Delta_t v_t k_t^\top, \qquad
        y_t = \mathrm{norm}(S_t q_t) \cdot \mathrm{silu}(W_g u_t), \qquad out_t = W_o y_t

    where a short convolution and SiLU have passed over v, k and q, and :math:`\Delta = \mathrm{
    softplus}(W_\gamma u + b)`. There are no rotary positions and the scores are not scaled. The
    paper's equation has no :math:`\Delta` before v; the code that made the weights has.

    Args:
        hidden_size, num_heads, num_kv_heads, head_dim, qkv_bias: as of :class:`GroupedAttention`.
        use_conv: the convolution; without it SiLU alone.
        use_gnorm: norm and gate.
        use_A: learned decay rates, else -1.
        use_D: a skip of v.
        use_qknorm: normalise q and k of each head.
        mimic_init: start as a scan whose step sizes do not depend on the input, and whose
            convolution passes everything on; else from PyTorch's and Mamba-2's own values.
    """

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int | None = None,
        qkv_bias: bool = False,
        use_conv: bool = True,
        use_gnorm: bool = True,
        use_A: bool = True,
        use_D: bool = False,
        use_qknorm: bool = False,
        mimic_init: bool = True,
    ) -> None:
        super().__init__()
        self.num_heads, self.num_kv_heads = num_heads, num_kv_heads
        self.head_dim = P = head_dim or hidden_size // num_heads
        width = num_heads * P
        self.widths = [num_kv_heads * P, num_kv_heads * P, width]  # of v, k, q
        self.q_proj = nn.Linear(hidden_size, width, bias=qkv_bias)
        self.k_proj = nn.Linear(hidden_size, num_kv_heads * P, bias=qkv_bias)
        self.v_proj = nn.Linear(hidden_size, num_kv_heads * P, bias=qkv_bias)
        self.in_proj = nn.Linear(hidden_size, num_heads, bias=False)
        self.dt_bias = nn.Parameter(dt_bias(num_heads, dt_init_floor=1e-3))
        self.o_proj = nn.Linear(width, hidden_size, bias=False)
        self.conv1d = make_short_conv(sum(self.widths), CONV_WIDTH) if use_conv else None
        self.g_norm = self.g_proj = None
        if use_gnorm:
            self.g_norm = nn.RMSNorm(P, eps=NORM_EPS)
            self.g_proj = nn.Linear(hidden_size, width, bias=False)
            nn.init.xavier_uniform_(self.g_proj.weight, gain=2**-2.5)
        self.A_log_bias = nn.Parameter(torch.ones(num_heads)) if use_A else None
        self.D = nn.Parameter(torch.ones(num_heads)) if use_D else None
        self.q_norm = nn.LayerNorm(P) if use_qknorm else None
        self.k_norm = nn.LayerNorm(P) if use_qknorm else None
        self._initialise(mimic_init)

    @torch.no_grad()
    def _initialise(self, mimic: bool) -> None:
        if mimic:
            nn.init.zeros_(self.in_proj.weight)
            if self.conv1d is not None:
                nn.init.zeros_(self.conv1d.weight)
                self.conv1d.weight[:, 0, -1] = 1
                nn.init.zeros_(self.conv1d.bias)  # type: ignore[arg-type]
            return
        nn.init.zeros_(self.dt_bias)
        if self.A_log_bias is not None:
            self.A_log_bias.copy_(torch.empty_like(self.A_log_bias).uniform_(1, 16).log())

    @torch.no_grad()
    def seed(self, attention: GroupedAttention, inherit_qkv: bool = True) -> None:
        """Take over the projections of a trained attention layer.

        Args:
            attention: of the same sizes.
            inherit_qkv: queries, keys and values too, else only the output projection.
        """
        self.o_proj.weight.copy_(attention.wo.weight)
        if inherit_qkv:
            for name, value in attention.projections().items():
                self.get_parameter(name).copy_(value)

    def forward(
        self, x: Tensor, state: RecurrentState | None = None, seq_idx: Tensor | None = None
    ) -> Tensor:
        """[B, L, hidden_size] to the same; ``state`` and ``seq_idx`` as in
        :class:`zoo.layers.mamba2.Mamba2`."""
        return self.o_proj(self.heads(x, state, seq_idx))

    def heads(
        self, x: Tensor, state: RecurrentState | None = None, seq_idx: Tensor | None = None
    ) -> Tensor:
        """What enters the output projection, [B, L, H * P]: the side of the distillation loss."""
        if state is not None and seq_idx is not None:
            raise ZooError("a Mamba-2 state goes on with one sequence: seq_idx cannot be given too")
        vkq = torch.cat([self.v_proj(x), self.k_proj(x), self.q_proj(x)], dim=-1)
        if self.conv1d is None:
            vkq = F.silu(vkq)
        else:
            vkq = short_conv(vkq, self.conv1d, seq_idx=seq_idx, state=state)
        v, k, q = (t.unflatten(-1, (-1, self.head_dim)) for t in vkq.split(self.widths, dim=-1))
        repeats = self.num_heads // self.num_kv_heads
        v, k = (t.repeat_interleave(repeats, dim=2) for t in (v, k))  # [B, L, H, P]
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        dt = self.in_proj(x)
        if state is not None and x.shape[1] == 1 and not torch.is_grad_enabled():
            y = self._step(v, dt, k, q, state)
        else:
            y, last = ssd(
                v, dt, self._rates(), k, q, CHUNK_SIZE, self.D, dt_bias=self.dt_bias,
                initial_states=None if state is None else state.ssm, seq_idx=seq_idx,
                dt_softplus=True, return_final_states=True,
            )  # fmt: skip
            if state is not None:
                state.ssm = last
        if self.g_norm is not None and self.g_proj is not None:
            y = self.g_norm(y) * F.silu(self.g_proj(x)).unflatten(-1, (-1, self.head_dim))
        return y.flatten(2)

    def _rates(self) -> Tensor:
        if self.A_log_bias is None:
            return -torch.ones_like(self.dt_bias)
        return -at_least_fp32(self.A_log_bias).exp()

    def _step(self, v: Tensor, dt: Tensor, k: Tensor, q: Tensor, state: RecurrentState) -> Tensor:
        """One token; ``state.ssm`` is overwritten in place."""
        H, P = self.num_heads, self.head_dim

        def spread(x: Tensor | None) -> Tensor | None:
            return None if x is None else x[..., None].expand(*x.shape, P)

        y = selective_state_update(
            state.ssm, v[:, 0], spread(dt[:, 0]), self._rates()[:, None, None].expand(H, P, P),
            k[:, 0], q[:, 0], spread(self.D), None, spread(self.dt_bias), dt_softplus=True,
        )  # fmt: skip
        return y[:, None]

    def allocate_state(self, batch_size: int) -> RecurrentState:
        """The state before the first token."""
        weight, H, P = like(self.q_proj), self.num_heads, self.head_dim
        return RecurrentState(
            weight.new_zeros(batch_size, sum(self.widths), CONV_WIDTH),
            at_least_fp32(weight).new_zeros(batch_size, H, P, P),
        )

    def remap_state_dict(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Published names to those of training, which are ours."""
        return unfuse(state_dict, self.widths)


def unfuse(state_dict: Mapping[str, Tensor], widths: list[int]) -> dict[str, Tensor]:
    """Cut every ``wvkqgdt`` of a state dict into its projections.

    Args:
        state_dict: of a layer or a model.
        widths: of v, k and q.
    """
    result = {}
    for name, tensor in state_dict.items():
        place = re.fullmatch(r"(.*?)wvkqgdt\.weight", name)
        if place is None:
            result[name.replace("g_norm_swish_gate.", "g_norm.")] = tensor
            continue
        sizes = [*widths, widths[2], tensor.shape[0] - sum(widths) - widths[2]]
        parts = zip(("v", "k", "q", "g", "in"), tensor.split(sizes), strict=True)
        result |= {f"{place[1]}{part}_proj.weight": rows for part, rows in parts}
    return result
