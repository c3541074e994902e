"""Token-level draft selection by optimal transport with membership cost (SpecTr, arXiv 2310.15141).

Given k independent draws from q, give one token distributed as p that is among them as often as
possible. The paper writes p for the draft and q for the target; here, as in most code, it is the
other way round.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

#: The upper end of the bracket is a valid factor; it is too large by k / 2^30 at most.
BISECTIONS = 30


class KSeqRule(NamedTuple):
    """How k-SEQ treats the candidates at one position.

    Attributes:
        rho: the division factor, between 1 and k.
        accept: ``[..., V]``, probability that a candidate with this token is kept when it is tried.
        acceptance: probability that one of the k candidates is kept.
        residual: ``[..., V]``, the distribution of the token if none is.
    """

    rho: Tensor
    accept: Tensor
    acceptance: Tensor
    residual: Tensor


def k_seq(q: Tensor, p: Tensor, k: int | Tensor, rho: float | None = None) -> KSeqRule:
    """The k-SEQ rule (algorithm 2 of the paper) for draft q, target p and k candidates.

    With ``beta(rho) = sum_x min(q(x), p(x) / rho)`` the factor solves
    ``1 - (1 - beta)^k = rho * beta``: then what k tries keep of a token never exceeds p. k = 1 is
    speculative sampling.

    Args:
        q, p: ``[..., V]``, float64 for an exact rule.
        k: number of candidates, one for all or ``[...]``; without any the residual is p.
        rho: use this factor instead; one below the solution is not valid and is there for tests.
    """

    def beta(factor: Tensor) -> Tensor:
        return torch.minimum(q, p / factor[..., None]).sum(-1)

    low = torch.ones(q.shape[:-1], dtype=q.dtype, device=q.device)
    k = torch.as_tensor(k, dtype=q.dtype, device=q.device).expand_as(low)
    if rho is not None:
        high = torch.full_like(low, rho)
    else:
        high = k.clamp_min(1.0)

        def excess(factor: Tensor) -> Tensor:
            b = beta(factor)
            return 1 - (1 - b) ** k - factor * b

        # at the lower end already: one candidate, or q = p
        high = torch.where(excess(low) <= 0, low, high)
        for _ in range(BISECTIONS if (high > 1).any() else 0):
            middle = (low + high) / 2
            above = excess(middle) > 0
            low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    kept = torch.minimum(q, p / high[..., None])
    b = kept.sum(-1)
    acceptance = 1 - (1 - b) ** k
    share = torch.where(b > 0, acceptance / b.clamp_min(torch.finfo(q.dtype).tiny), 0.0)
    residual = (p - kept * share[..., None]).clamp_min(0.0)
    total = residual.sum(-1, keepdim=True)
    residual = torch.where(total > 0, residual / total.clamp_min(torch.finfo(q.dtype).tiny), p)
    accept = torch.where(q > 0, kept / q.clamp_min(torch.finfo(q.dtype).tiny), 0.0)
    return KSeqRule(high, accept, acceptance, residual)


def recursive_rejection_acceptance(q: Tensor, p: Tensor, k: int) -> Tensor:
    """Probability that trying k independent candidates in turn keeps one (SpecInfer)."""
    left, rejected = p, torch.ones(q.shape[:-1], dtype=q.dtype, device=q.device)
    for _ in range(k):
        rejected = rejected * (1 - torch.minimum(q, left).sum(-1))
        residual = (left - q).clamp_min(0.0)
        total = residual.sum(-1, keepdim=True)
        left = torch.where(total > 0, residual / total.clamp_min(1e-300), left)
    return 1 - rejected


def optimal_acceptance(q: Tensor, p: Tensor, k: int) -> float:
    """The most that any rule can accept, from all 2^V sets (a minimum cut); for small V.

    ``1 - max_S [p(S) - (1 - (1 - q(S))^k)]``.
    """
    size = q.shape[-1]
    if size > 16:
        raise ValueError(f"the optimum needs 2^V sets, and V is {size}: expected at most 16")
    sets = torch.arange(2**size, device=q.device)[:, None] >> torch.arange(size, device=q.device)
    chosen = (sets & 1).to(q.dtype)  # [2^V, V]
    excess = chosen @ p - (1 - (1 - chosen @ q) ** k)
    return 1 - float(excess.max())
