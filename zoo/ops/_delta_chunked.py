"""The delta rule and linear attention in PyTorch, chunk by chunk: the answer without kernels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def delta_chunked(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor | None,
    decay: Tensor | None,
    initial_state: Tensor | None,
    chunk_size: int = 64,
) -> tuple[Tensor, Tensor]:
    r""":func:`zoo.ops.delta_rule` of queries that are scaled; without beta, linear attention.

    Inside a chunk, with :math:`\Gamma_{tj}` the product of the decays after step j up to t and
    :math:`\gamma_t` the one from the border to t, what the steps write solves a unit triangular
    system (the WY form of a product of Householder-like matrices, arXiv 2406.06484, section 3.2):

    .. math::
        u_t + \beta_t \sum_{j<t} \Gamma_{tj}\,(k_t \cdot k_j)\,u_j
            = \beta_t\,(v_t - \gamma_t S^\top k_t)

    Args:
        q, k: [B, L, H, N].
        v: [B, L, H, P].
        beta, decay: [B, L, H] or None.
        initial_state: [B, H, N, P] or None.
        chunk_size: Q.

    Returns:
        outputs [B, L, H, P] and the last state [B, H, N, P].
    """
    length = k.shape[1]
    Q = min(chunk_size, length)
    pad = -length % Q

    def chunked(t: Tensor, value: float = 0.0) -> Tensor:
        """[B, L, H, ...] -> [B, H, c, Q, ...]."""
        t = t.transpose(1, 2)
        return F.pad(t, (0, 0) * (t.dim() - 3) + (0, pad), value=value).unflatten(2, (-1, Q))

    q, k, v = chunked(q), chunked(k), chunked(v)
    after = torch.ones(Q, Q, dtype=torch.bool, device=k.device).tril(-1)  # [t, j]: t after j
    seen = after.logical_not().T.tril()  # and t itself
    between, into = seen.to(k.dtype), torch.ones_like(k[..., 0])
    if decay is not None:
        a = chunked(decay, 1.0)
        between = torch.where(after, a[..., None], 1.0).cumprod(-2) * seen  # no logarithm: a < 0
        into = a.cumprod(-1)
    out_of = between[..., -1, :]  # [(B, H, c), Q]

    written, erased = v, None
    if beta is not None:
        beta = chunked(beta)
        system = beta[..., None] * between * (k @ k.mT)
        right = torch.cat([beta[..., None] * v, (beta * into)[..., None] * k], dim=-1)
        solved = torch.linalg.solve_triangular(
            system.tril(-1), right, upper=False, unitriangular=True
        )
        written, erased = solved.split([v.shape[-1], k.shape[-1]], dim=-1)
    scores = (q @ k.mT) * between
    q = q * into[..., None]
    kept = (k * out_of[..., None]).mT  # [B, H, c, N, Q]
    state = k.new_zeros(k.shape[0], k.shape[1], k.shape[-1], v.shape[-1])
    state = state if initial_state is None else initial_state
    outputs = []
    for c in range(k.shape[2]):
        u = written[:, :, c]
        u = u if erased is None else u - erased[:, :, c] @ state
        outputs.append(q[:, :, c] @ state + scores[:, :, c] @ u)
        state = into[:, :, c, -1, None, None] * state + kept[:, :, c] @ u
    return torch.cat(outputs, dim=2)[:, :, :length].transpose(1, 2), state
