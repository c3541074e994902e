"""Linear time-invariant state space models, step by step and in chunks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from zoo.layers.cache import ConstantState
from zoo.ops import vandermonde_transpose

#: Steps that a chunk's state is advanced by at once where A-bar is a matrix.
SPAN = 64


def with_conjugates(x: Tensor) -> Tensor:
    """One of each conjugate pair to both, ``[..., N]`` to ``[..., 2N]``."""
    return torch.cat([x, x.conj()], dim=-1)


def matrix_power(A: Tensor, exponent: int) -> Tensor:
    """A to a power by squaring, ``[..., N, N]``."""
    result = torch.eye(A.shape[-1], dtype=A.dtype, device=A.device).expand_as(A)
    while exponent:
        if exponent % 2:
            result = A @ result
        exponent //= 2
        if exponent:
            A = A @ A
    return result


class Recurrence(ABC):
    """x' = A x + B u, y = Re(C x'), for H features of C channels each.

    Attributes:
        C: ``[C, H, N]``.
    """

    C: Tensor

    @property
    @abstractmethod
    def state_size(self) -> int:
        """Complex numbers of a feature's state."""

    @abstractmethod
    def advance_one(self, state: Tensor, u: Tensor | None) -> Tensor:
        """The next state ``[B, H, N]`` for an input ``[B, H]``; None for no input."""

    @abstractmethod
    def advance(self, state: Tensor, u: Tensor) -> Tensor:
        """The state ``[B, H, N]`` after a chunk ``[B, H, L]``."""

    def step(self, state: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """One step: outputs ``[B, C, H]`` for inputs ``[B, H]``, and the next state."""
        state = self.advance_one(state, u)
        if self.C.shape[0] == 1:
            return (self.C * state).sum(-1).real[:, None], state
        return torch.einsum("chn,bhn->bch", self.C, state).real, state

    def natural(self, state: Tensor) -> Tensor:
        """A state in the basis of the kernel that the recurrence is of."""
        return state

    def initial_state(self, batch_size: int) -> Tensor:
        """Zeros ``[B, H, N]``."""
        return self.C.new_zeros(batch_size, self.C.shape[1], self.state_size)


class DiagonalRecurrence(Recurrence):
    """A-bar is diagonal.

    Args:
        log_A: log of A, ``[H, N]``.
        A, B: ``[H, N]``.
        C: ``[C, H, N]``.
        basis: what turns a state into that of the kernel, ``[H, N', N]``; None: it is that.
    """

    def __init__(
        self, log_A: Tensor, A: Tensor, B: Tensor, C: Tensor, basis: Tensor | None = None
    ) -> None:
        self.log_A, self.A, self.B, self.C, self.basis = log_A, A, B, C, basis

    def natural(self, state: Tensor) -> Tensor:
        """In the kernel's basis."""
        return state if self.basis is None else torch.einsum("hmn,bhn->bhm", self.basis, state)

    @property
    def state_size(self) -> int:
        """N."""
        return self.A.shape[-1]

    def advance_one(self, state: Tensor, u: Tensor | None) -> Tensor:
        """One step in O(N)."""
        state = self.A * state
        return state if u is None else state + self.B * u[..., None]

    def advance(self, state: Tensor, u: Tensor) -> Tensor:
        """By the powers of A."""
        seen = vandermonde_transpose(u.flip(-1), self.log_A)
        return torch.exp(self.log_A * u.shape[-1]) * state + self.B * seen


class DenseRecurrence(Recurrence):
    """A-bar is a matrix: A ``[H, N, N]``, B ``[H, N]``, C ``[C, H, N]``."""

    def __init__(self, A: Tensor, B: Tensor, C: Tensor) -> None:
        self.A, self.B, self.C = A, B, C

    @property
    def state_size(self) -> int:
        """N."""
        return self.A.shape[-1]

    def advance_one(self, state: Tensor, u: Tensor | None) -> Tensor:
        """One step in O(N^2)."""
        state = torch.einsum("hmn,bhn->bhm", self.A, state)
        return state if u is None else state + self.B * u[..., None]

    def advance(self, state: Tensor, u: Tensor) -> Tensor:
        """By matrices of the last few powers, a span at a time."""
        powers = krylov(self.A, self.B, min(SPAN, u.shape[-1])).flip(-1)  # the oldest first
        parts = u.split(SPAN, -1)
        steps = {n: matrix_power(self.A, n) for n in {part.shape[-1] for part in parts}}
        for part in parts:
            n = part.shape[-1]
            seen = torch.einsum("hnl,bhl->bhn", powers[..., -n:], part.to(powers.dtype))
            state = torch.einsum("hmn,bhn->bhm", steps[n], state) + seen
        return state


class LowRankRecurrence(Recurrence):
    r"""A-bar of a diagonal plus low-rank matrix by the bilinear rule, in O(N) (S4, appendix C.2).

    .. math::
        x' = D\,(I - P R)\,((E - P P^*)\,x + 2 B u), \quad
        D = (2/\Delta - \Lambda)^{-1}, \quad E = 2/\Delta + \Lambda

    Over one of each conjugate pair; a state over both is advanced too.

    Args:
        D, E, B: ``[H, N]``.
        P, R: ``[R, H, N]``.
        C: ``[C, H, N]``.
    """

    def __init__(self, D: Tensor, E: Tensor, P: Tensor, R: Tensor, B: Tensor, C: Tensor) -> None:
        self.D, self.E, self.P, self.R, self.B, self.C = D, E, P, R, B, C

    @classmethod
    def bilinear(cls, dt: Tensor, A: Tensor, P: Tensor, B: Tensor, C: Tensor) -> LowRankRecurrence:
        """Of the continuous model with matrix diag(A) - P P*."""
        D = (2 / dt - A).reciprocal()
        identity = torch.eye(P.shape[0], dtype=dt.dtype, device=dt.device)
        inner = identity + 2 * torch.einsum("rhn,hn,shn->hrs", P.conj(), D, P).real
        rows = (P.conj() * D).transpose(0, 1)  # [H, R, N]
        R = torch.linalg.solve(inner.to(rows.dtype), rows).transpose(0, 1)
        return cls(D, 2 / dt + A, P, R, B, C)

    def with_output(self, C: Tensor) -> LowRankRecurrence:
        """With another C."""
        return LowRankRecurrence(self.D, self.E, self.P, self.R, self.B, C)

    @property
    def state_size(self) -> int:
        """N, half the order."""
        return self.D.shape[-1]

    def input(self) -> Tensor:
        """B-bar ``[H, N]``."""
        zero = torch.zeros_like(self.B)[None]
        return self.advance_one(zero, zero.real.new_ones(zero.shape[:2]))[0]

    def advance_one(self, state: Tensor, u: Tensor | None) -> Tensor:
        """One step in O(R N)."""
        whole = state.shape[-1] == 2 * self.state_size
        D, E, P, R, B = self.D, self.E, self.P, self.R, self.B
        if whole:
            D, E, P, R, B = (with_conjugates(x) for x in (D, E, P, R, B))

        def low_rank(rows: Tensor, x: Tensor) -> Tensor:
            inner = torch.einsum("rhn,bhn->rbh", rows, x)
            inner = inner if whole else 2 * inner.real.to(inner.dtype)  # the conjugates' share
            return torch.einsum("rbh,rhn->bhn", inner, P)

        new = E * state - low_rank(P.conj(), state)
        if u is not None:
            new = new + 2 * B * u[..., None]
        return D * (new - low_rank(R, new))

    def advance(self, state: Tensor, u: Tensor) -> Tensor:
        """Through the matrix."""
        identity = torch.eye(2 * self.state_size, dtype=self.D.dtype, device=self.D.device)
        whole = self.advance_one(identity[:, None].expand(-1, self.D.shape[0], -1), None)
        dense = DenseRecurrence(whole.permute(1, 2, 0), with_conjugates(self.input()), self.C)
        return dense.advance(with_conjugates(state), u)[..., : self.state_size]


def krylov(A: Tensor, B: Tensor, length: int) -> Tensor:
    """(B, A B, A^2 B, ...), ``[..., N, length]``, by squaring (LSSL, section 3.2)."""
    powers = B.unsqueeze(-1)
    while powers.shape[-1] < length:
        powers = torch.cat([powers, A @ powers[..., : length - powers.shape[-1]]], dim=-1)
        A = A @ A if powers.shape[-1] < length else A
    return powers


class SSMState(ConstantState):
    """The state of one layer, and the recurrence that advances it.

    The recurrence is that of the weights at the time when the state was made, so that a step
    computes nothing that does not change.

    Attributes:
        ssm: ``[B, H, N]``, complex.
        recurrence: shared by clones.
    """

    def __init__(self, ssm: Tensor, recurrence: Recurrence) -> None:
        self.ssm, self.recurrence = ssm, recurrence

    def tensors(self) -> list[Tensor]:
        """The state."""
        return [self.ssm]

    def clone(self) -> SSMState:
        """A copy that shares no memory but the recurrence."""
        return SSMState(self.ssm.clone(), self.recurrence)

    def select(self, rows: Sequence[int]) -> SSMState:
        """A copy of these sequences."""
        index = torch.tensor(list(rows), dtype=torch.long, device=self.ssm.device)
        return SSMState(self.ssm[index], self.recurrence)

    @classmethod
    def stack(cls, states: Sequence[SSMState]) -> SSMState:
        """One batch after the other."""
        return cls(torch.cat([state.ssm for state in states]), states[0].recurrence)
