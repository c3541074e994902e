"""The Mamba-2 mixer: heads that share a decay, scanned by matrix products."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.errors import ZooError
from zoo.layers.cache import RecurrentState
from zoo.layers.norms import RMSNormGated
from zoo.layers.plain import like
from zoo.layers.precision import at_least_fp32
from zoo.layers.short_conv import make_short_conv, short_conv
from zoo.layers.ssm_init import dt_bias, say_range
from zoo.ops import selective_state_update, ssd
from zoo.ops.selective_scan import is_negative

ANY_STEP = (0.0, float("inf"))


class Mamba2(nn.Module):
    r"""Mamba-2 mixer (arXiv 2405.21060, section 7), with the parameters of the authors' code.

    .. math::
        z, xBC, \Delta = W_{in}\,input, \quad x, B, C = \mathrm{silu}(\mathrm{conv}(xBC)), \quad
        y = \mathrm{SSD}(x, \Delta, B, C), \quad
        out = W_{out}\,\mathrm{norm}(y \cdot \mathrm{silu}(z))

    Args:
        d_model: width of the tokens.
        d_state: N, state size of each channel.
        d_conv: width of the causal depthwise convolution.
        conv_init: its weights are uniform in ±conv_init; None: PyTorch's own start.
        expand: d_inner = expand * d_model.
        headdim: P, channels of a head.
        d_ssm: channels that are scanned, by default all d_inner. The others are a gated MLP beside
            the scan, and come first in ``out_proj``.
        ngroups: groups of heads that share B and C; the norm is taken in each group too.
        A_init_range: A starts as minus a number uniform in this range.
        D_has_hdim: the skip weight is of a channel, not of a head.
        rmsnorm: normalise before ``out_proj``; else the gate alone.
        norm_before_gate: see :class:`zoo.layers.norms.RMSNormGated`.
        dt_min, dt_max, dt_init_floor: initial step sizes, see :mod:`zoo.layers.ssm_init`.
        dt_limit: step sizes are clamped to it; the authors' code does so in the scan alone, here it
            holds for single steps as well.
        bias, conv_bias: whether the projections and the convolution have one.
        chunk_size: of the scan; a matter of speed.
        eig_range: of the factors of the state: "01", or "pm1" for (-1, 1), which can track states
            (arXiv 2411.12537). The state dict says so where it is the second.

    Raises:
        ZooError: if the sizes do not divide.
    """

    eig_range: str = "01"

    def __init__(
        self,
        d_model: int,
        d_state: int = 128,
        d_conv: int = 4,
        conv_init: float | None = None,
        expand: int = 2,
        headdim: int = 64,
        d_ssm: int | None = None,
        ngroups: int = 1,
        A_init_range: tuple[float, float] = (1, 16),
        D_has_hdim: bool = False,
        rmsnorm: bool = True,
        norm_before_gate: bool = False,
        dt_min: float = 1e-3,
        dt_max: float = 0.1,
        dt_init_floor: float = 1e-4,
        dt_limit: tuple[float, float] = ANY_STEP,
        bias: bool = False,
        conv_bias: bool = True,
        chunk_size: int = 256,
        eig_range: str = "01",
    ) -> None:
        super().__init__()
        say_range(self, is_negative("Mamba-2", eig_range))
        d_inner = expand * d_model
        self.d_ssm = d_inner if d_ssm is None else d_ssm
        self.d_mlp = d_inner - self.d_ssm
        self.d_state, self.headdim, self.ngroups = d_state, headdim, ngroups
        self.D_has_hdim, self.chunk_size = D_has_hdim, chunk_size
        self.dt_limit = (float(dt_limit[0]), float(dt_limit[1]))
        self.nheads = self.d_ssm // headdim
        if self.d_mlp < 0 or self.d_ssm % headdim or self.nheads % ngroups:
            raise ZooError(
                f"Mamba-2: {self.d_ssm} of {d_inner} channels scanned in heads of {headdim} and "
                f"{ngroups} groups: expected whole heads, and as many in each group"
            )
        self.d_xbc, self.d_conv = self.d_ssm + 2 * ngroups * d_state, d_conv

        self.in_proj = nn.Linear(
            d_model, 2 * self.d_mlp + self.d_ssm + self.d_xbc + self.nheads, bias=bias
        )
        self.conv1d = make_short_conv(self.d_xbc, d_conv, conv_bias)
        if conv_init is not None:
            nn.init.uniform_(self.conv1d.weight, -conv_init, conv_init)
        self.dt_bias = nn.Parameter(
            dt_bias(self.nheads, dt_min=dt_min, dt_max=dt_max, dt_init_floor=dt_init_floor)
        )
        self.A_log = nn.Parameter(torch.empty(self.nheads).uniform_(*A_init_range).log())
        self.D = nn.Parameter(torch.ones(self.d_ssm if D_has_hdim else self.nheads))
        self.norm = None
        if rmsnorm:
            self.norm = RMSNormGated(
                self.d_ssm, group_size=self.d_ssm // ngroups, norm_before_gate=norm_before_gate
            )
        self.out_proj = nn.Linear(d_inner, d_model, bias=bias)

    def forward(
        self, x: Tensor, state: RecurrentState | None = None, seq_idx: Tensor | None = None
    ) -> Tensor:
        """[B, L, d_model] to [B, L, d_model].

        Args:
            x: tokens.
            state: of :meth:`allocate_state`: x goes on where it stands, and its tensors are
                replaced by those after x. A single token without gradients takes one step of
                constant cost; anything else goes through the scan.
            seq_idx: int32 [B, L], the sequence that a token belongs to where several are packed:
                neither convolution nor state passes from one to the next. Not together with
                ``state``.
        """
        if state is not None and seq_idx is not None:
            raise ZooError("a Mamba-2 state goes on with one sequence: seq_idx cannot be given too")
        sizes = [self.d_mlp, self.d_mlp, self.d_ssm, self.d_xbc, self.nheads]
        z0, x0, z, xBC, dt = self.in_proj(x).split(sizes, dim=-1)
        xBC = short_conv(xBC, self.conv1d, seq_idx=seq_idx, state=state)
        if state is not None and x.shape[1] == 1 and not torch.is_grad_enabled():
            y = self._step(xBC, dt, z, state)
        else:
            y = self._scan(xBC, dt, z, state, seq_idx)
        if self.norm is not None:
            y = self.norm(y, z)
        if self.d_mlp:
            y = torch.cat([F.silu(z0) * x0, y], dim=-1)
        return self.out_proj(y)

    def allocate_state(self, batch_size: int) -> RecurrentState:
        """The state before the first token."""
        weight = like(self.conv1d)
        size = (batch_size, self.nheads, self.headdim, self.d_state)
        return RecurrentState(
            weight.new_zeros(batch_size, self.d_xbc, self.d_conv),
            at_least_fp32(weight).new_zeros(size),
        )

    def rate(self) -> Tensor:
        """A [H], negative, float32 at least."""
        return -at_least_fp32(self.A_log).exp()

    def _heads(self, xBC: Tensor, z: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """x [..., H, P], B and C [..., G, N]; z [..., H, P] if the scan is to apply it."""
        width = self.ngroups * self.d_state
        x, B, C = xBC.split([self.d_ssm, width, width], dim=-1)
        B, C = (t.unflatten(-1, (self.ngroups, -1)) for t in (B, C))
        gate = z.unflatten(-1, (self.nheads, -1)) if self.norm is None else None
        return x.unflatten(-1, (self.nheads, -1)), B, C, gate

    def _scan(
        self, xBC: Tensor, dt: Tensor, z: Tensor, state: RecurrentState | None,
        seq_idx: Tensor | None,
    ) -> Tensor:  # fmt: skip
        x, B, C, gate = self._heads(xBC, z)
        A = self.rate()
        y, last = ssd(
            x, dt, A, B, C, self.chunk_size, self._skip(), gate, self.dt_bias,
            initial_states=None if state is None else state.ssm, seq_idx=seq_idx,
            dt_softplus=True, dt_limit=self.dt_limit, return_final_states=True,
            eig_range=self.eig_range,
        )  # fmt: skip
        if state is not None:
            state.ssm = last
        return y.flatten(2)

    def _step(self, xBC: Tensor, dt: Tensor, z: Tensor, state: RecurrentState) -> Tensor:
        """One token; ``state.ssm`` is overwritten in place."""
        x, B, C, gate = self._heads(xBC[:, 0], z[:, 0])
        H, P, N = self.nheads, self.headdim, self.d_state
        A = self.rate()[:, None, None].expand(H, P, N)
        dt, bias, softplus = dt[:, 0], self.dt_bias, True
        if self.dt_limit != ANY_STEP:  # the op does not clamp
            dt = F.softplus(at_least_fp32(dt) + bias).clamp(*self.dt_limit)
            bias, softplus = None, False
        y = selective_state_update(
            state.ssm, x, dt[..., None].expand(-1, H, P), A, B, C,
            self._skip().view(H, -1).expand(H, P), gate,
            None if bias is None else bias[:, None].expand(H, P), softplus,
            eig_range=self.eig_range,
        )  # fmt: skip
        return y.flatten(1)[:, None]

    def _skip(self) -> Tensor:
        return self.D.unflatten(0, (self.nheads, -1)) if self.D_has_hdim else self.D
