"""Multi-head exponential moving averages: Mega's damped ones, and Megalodon's complex ones."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from zoo.devices import without_autocast
from zoo.errors import ZooError
from zoo.layers.cache import TensorState
from zoo.layers.precision import at_least_fp32
from zoo.ops import diagonal_scan, fft_conv, vandermonde_kernel


def truncated_(tensor: Tensor, std: float) -> None:
    """A normal distribution without what lies beyond two deviations."""
    nn.init.trunc_normal_(tensor, std=std, a=-2 * std, b=2 * std)


class MultiHeadEMA(nn.Module):
    r"""N moving averages of each feature (Mega, arXiv 2209.10655, section 3.2).

    .. math::
        h_t = q\, h_{t-1} + p\, \beta\, x_t, \quad
        y_t = \mathrm{Re} \sum_n \frac{\gamma_n}{\sqrt N}\, h_{t,n} + \omega x_t, \quad
        p = \sigma(\delta), \; q = 1 - p\, \sigma(\alpha)

    With ``complex`` the states turn as well (Megalodon, arXiv 2404.08801, section 3.1), as its code
    has it: there is no beta, gamma is complex, and

    .. math::
        p = \sigma(\alpha), \quad
        q_n = (1 - p\, \sigma(\delta))\, e^{2 \pi i n\, \sigma(\theta) / N}

    Args:
        d_model: H.
        d_state: N.
        bidirectional: other averages of what is to come are added, and there is no state.
        complex: see above.
        skip: whether there is omega.
        truncation: longest kernel; None: as long as the input. A state takes no account of it.

    Raises:
        ZooError: if a truncated layer is asked for a state.
    """

    def __init__(
        self,
        d_model: int,
        d_state: int = 16,
        bidirectional: bool = False,
        complex: bool = False,
        skip: bool = True,
        truncation: int | None = None,
    ) -> None:
        super().__init__()
        self.d_model, self.bidirectional, self.truncation = d_model, bidirectional, truncation
        rows = d_model * (2 if bidirectional else 1)
        self.delta = nn.Parameter(torch.empty(rows, d_state))
        self.alpha = nn.Parameter(torch.empty(rows, d_state))
        self.beta = None if complex else nn.Parameter(torch.empty(rows, d_state))
        self.theta = nn.Parameter(torch.empty(rows)) if complex else None
        self.gamma = nn.Parameter(torch.empty(rows, d_state, *([2] if complex else [])))
        self.omega = nn.Parameter(torch.empty(d_model)) if skip else None
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the weights; the signs of beta alternate, the turns of the features spread
        logarithmically."""
        for parameter in (self.delta, self.alpha):
            truncated_(parameter, 0.2)
        truncated_(self.gamma, 1.0)
        if self.omega is not None:
            truncated_(self.omega, 1.0)
        if self.beta is not None:
            truncated_(self.beta, 0.02)
            order = torch.arange(self.beta.shape[1], device=self.beta.device)
            self.beta.add_((-1.0) ** order)
        if self.theta is not None:
            self.gamma[..., 1] = 0
            rank = torch.arange(1, self.d_model + 1, device=self.theta.device)
            shares = torch.exp(-math.log(self.d_model) / self.d_model * rank)
            self.theta.copy_(shares.logit(1e-4).repeat(len(self.theta) // self.d_model))

    def coefficients(self) -> tuple[Tensor, Tensor, Tensor]:
        """q, p beta and gamma N^-1/2, ``[H, N]``, or ``[2 H, N]`` in both directions."""
        delta, alpha = (at_least_fp32(t).sigmoid() for t in (self.delta, self.alpha))
        q, N = 1 - delta * alpha, delta.shape[1]
        gamma = at_least_fp32(self.gamma) * N**-0.5
        if self.beta is not None:
            return q, delta * at_least_fp32(self.beta), gamma
        assert self.theta is not None
        heads = torch.arange(1, N + 1, device=q.device, dtype=q.dtype)
        turn = 2 * math.pi / N * heads * at_least_fp32(self.theta).sigmoid()[:, None]
        return torch.polar(q, turn), alpha, torch.view_as_complex(gamma.contiguous())

    def kernels(self, length: int) -> Tensor:
        """``[H, K]``, or ``[2 H, K]`` in both directions, without the skip weight."""
        q, into, out = self.coefficients()
        if self.truncation is not None:
            length = min(length, self.truncation)
        v, log = out * into / 2, q.log()  # of a pair's two
        if not v.is_complex():
            v, log = (torch.complex(t, torch.zeros_like(t)) for t in (v, log))
        return vandermonde_kernel(v, log, length)

    def impulse(self, length: int) -> Tensor:
        """What a one at step 0 is answered by, ``[H, length]``.

        Raises:
            ZooError: if the layer looks ahead.
        """
        self._check_causal("an impulse response from step 0 on")
        kernel = self.kernels(length)
        kernel = torch.nn.functional.pad(kernel, (0, length - kernel.shape[1]))
        if self.omega is None:
            return kernel
        return torch.cat([kernel[:, :1] + at_least_fp32(self.omega)[:, None], kernel[:, 1:]], 1)

    def forward(self, x: Tensor, state: TensorState | None = None) -> Tensor:
        """``[B, L, H]`` to the same; ``state`` goes on and is replaced."""
        with without_autocast(x):
            u = at_least_fp32(x)
            if state is None:
                y = self._convolved(u.transpose(1, 2)).transpose(1, 2)
            else:
                q, into, out = self.coefficients()
                b = (u[..., None] * into).flatten(2).to(q.dtype)  # [B, L, H N]
                h, last = diagonal_scan(
                    q.flatten(), b, initial_state=state.parts[0], return_last_state=True
                )
                state.parts = (last,)
                y = (h.unflatten(-1, q.shape) * out).sum(-1)
                if y.is_complex():
                    y = y.real
            if self.omega is not None:
                y = y + at_least_fp32(self.omega) * u
            return y.to(x.dtype)

    def _convolved(self, u: Tensor) -> Tensor:
        kernel = self.kernels(u.shape[-1])
        if not self.bidirectional:
            return fft_conv(u, kernel)
        before, after = kernel.split(self.d_model)
        # both directions see the step itself
        now = torch.cat([before[:, :1] + after[:, :1], before[:, 1:]], dim=1)
        return fft_conv(u, now, k_future=after[:, 1:]) if kernel.shape[1] > 1 else fft_conv(u, now)

    def allocate_state(self, batch_size: int) -> TensorState:
        """Zeros ``[B, H N]``."""
        self._check_causal("a state")
        if self.truncation is not None:
            raise ZooError(
                f"MultiHeadEMA: a kernel of {self.truncation} steps has no state of constant size: "
                "build it with truncation=None"
            )
        q = self.coefficients()[0].detach()
        return TensorState(q.new_zeros(batch_size, q.numel()))

    def _check_causal(self, what: str) -> None:
        if self.bidirectional:
            raise ZooError(
                f"MultiHeadEMA looks ahead and has no such thing as {what}: build it with "
                "bidirectional=False"
            )
