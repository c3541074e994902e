"""Sequence models on some of a sequence's tokens: moving rows, and a scan that minds the gaps."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.layers.precision import at_least_fp32
from zoo.ops import selective_scan


def take(x: Tensor, places: Tensor) -> Tensor:
    """Tokens [B, L, C] at ``places`` [B, n] of their own sequence: [B, n, C]."""
    rows = x.reshape(-1, x.shape[2]).index_select(0, _rows(places, x.shape[1]))
    return rows.view(*places.shape, -1)


def put(full: Tensor, x: Tensor, places: Tensor) -> Tensor:
    """Tokens [B, L, C] where those at ``places`` [B, n] are replaced by x [B, n, C]."""
    rows = _rows(places, full.shape[1])
    return full.flatten(0, 1).index_copy(0, rows, x.flatten(0, 1)).view_as(full)


def spread(x: Tensor, places: Tensor, length: int) -> Tensor:
    """The inverse of :func:`take`: [B, n, C] to [B, length, C], zero where no token is."""
    return put(x.new_zeros(x.shape[0], length, x.shape[2]), x, places)


def _rows(places: Tensor, length: int) -> Tensor:
    # Whole rows of [B L, C] move much faster than elements with an index each, as gather has them.
    starts = torch.arange(0, places.shape[0] * length, length, device=places.device)
    return (places + starts[:, None]).flatten()


def gaps_before(steps: Tensor) -> Tensor:
    """How many steps were left out before each of ascending ``steps`` [..., n]; 0 at the first."""
    return F.pad(steps.diff(dim=-1) - 1, (1, 0))


def step_sizes(delta: Tensor, delta_bias: Tensor | None) -> Tensor:
    """softplus(delta + delta_bias) for [B, D, L] and [D] or None, at least float32.

    It is a scan that forgets at once, y_t = step_t: on a CPU several times as fast as PyTorch's
    softplus, which takes longer than a scan with 16 states.
    """
    delta = at_least_fp32(delta)
    bias = None if delta_bias is None else at_least_fp32(delta_bias)
    ones = delta.new_ones(delta.shape[1], 1)
    forget = torch.full_like(ones, -1e20)  # far from where its gradient, 0, is infinity times 0
    steps: Tensor = selective_scan(  # type: ignore[assignment]
        ones.expand_as(delta), delta, forget, ones, ones, delta_bias=bias, delta_softplus=True
    )
    return steps


def gap_scan(
    u: Tensor,
    step: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    rest: Tensor,
    gaps: Tensor,
    reverse: bool = False,
) -> Tensor:
    r"""Selective scan over the tokens that are left of a longer sequence.

    A token that is gone puts nothing in, but its step passes, that of a token which is zero. With g
    tokens missing before step t,

    .. math::
        h_t = e^{(\Delta_t + g_t \Delta_0) A} h_{t-1} + \Delta_t B_t u_t, \qquad
        y_t = C_t^\top h_t + D u_t

    which is what the scan over the whole sequence gives at these steps. It is one
    :func:`zoo.ops.selective_scan` with the steps :math:`\Delta' = \Delta + g \Delta_0` and the
    input :math:`u \Delta / \Delta'`.

    Args:
        u: input [batch, dim, n].
        step: its steps, of :func:`step_sizes` [batch, dim, n].
        A: [dim, N].
        B, C: [batch, N, n].
        D: [dim].
        rest: the step of a token that is zero, softplus(delta_bias) [dim].
        gaps: missing tokens before each step, in the direction of the scan [batch, n].
        reverse: see :func:`zoo.ops.selective_scan`.

    Returns:
        [batch, dim, n] in the dtype of u.
    """
    # Nothing may divide by zero where a step underflows.
    gaps = gaps[:, None].to(step.dtype).clamp(min=1e-30)
    total = torch.addcmul(step, gaps, rest[:, None])
    # The ratio of the two spans orders of magnitude: the step's precision, not that of u.
    x, B, C = u.to(step.dtype), B.to(step.dtype), C.to(step.dtype)
    y: Tensor = selective_scan(  # type: ignore[assignment]
        x * step / total, total, A, B, C, reverse=reverse
    )
    return y.addcmul_(D[:, None], x).to(u.dtype)
