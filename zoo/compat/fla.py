"""flash-linear-attention: the delta rule, gated or not, and linear attention with a decay a head.

Arguments and names are those of fla 0.5. Decays of single channels (``gk``, ``gv``, the functions
of ``fla.ops.kda`` and ``fla.ops.gla``) are another function than our ops are.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.errors import ZooError
from zoo.ops import delta_rule, linear_attention

__all__ = [
    "chunk_delta_rule",
    "chunk_gated_delta_rule",
    "chunk_gdn",
    "chunk_linear_attn",
    "chunk_simple_gla",
    "fused_chunk_linear_attn",
    "fused_chunk_simple_gla",
    "fused_recurrent_delta_rule",
    "fused_recurrent_gated_delta_rule",
    "fused_recurrent_gdn",
    "fused_recurrent_linear_attn",
    "fused_recurrent_simple_gla",
]

#: Arguments that say how a result is reached, and not which; they are taken and change nothing.
_SPEED = ("chunk_indices", "chunk_size", "cu_seqlens_cpu")
#: Tensors of one batch element's sequences, the state before, a flag -> output, the state after.
Op = Callable[..., tuple[Tensor, Tensor]]


def chunk_gated_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor | None,
    beta: Tensor | None,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    use_beta_sigmoid_in_kernel: bool = False,
    allow_neg_eigval: bool = False,
    state_v_first: bool = False,
    cu_seqlens: Tensor | None = None,
    use_gate_in_kernel: bool = False,
    A_log: Tensor | None = None,
    dt_bias: Tensor | None = None,
    **settings: Any,
) -> tuple[Tensor, Tensor | None]:
    """:func:`zoo.ops.delta_rule` with the logarithm of its decay.

    Args:
        q, k: [B, T, H, K].
        v: [B, T, HV, V]; HV is a multiple of H, and each head of q and k serves HV/H in a row.
        g: [B, T, HV], the logarithm of the decay; None: no decay.
        beta: [B, T, HV]; None: 1.
        scale: of the output, K^-0.5 by default.
        initial_state: [N, HV, K, V], where N is B, or the number of packed sequences.
        output_final_state: whether to return the state after the last step.
        use_qk_l2norm_in_kernel: q and k are divided by their norms here.
        use_beta_sigmoid_in_kernel: beta is given before its sigmoid; with ``allow_neg_eigval``
            twice the sigmoid is meant.
        state_v_first: states are [N, HV, V, K].
        cu_seqlens: [N + 1], where the sequences begin and end that are packed into a batch of 1.
        use_gate_in_kernel: g is given before ``-exp(A_log) softplus(g + dt_bias)``; both [HV].
        **settings: ``chunk_size`` and others that change nothing.

    Returns:
        [B, T, HV, V] in the dtype of v, and the final state in float32 or None.

    Raises:
        ZooError: for what our op does not do, and if shapes do not fit.
    """
    _refuse("chunk_gated_delta_rule", settings)
    if beta is None:
        beta = torch.ones_like(v[..., 0])
    elif use_beta_sigmoid_in_kernel:
        beta = _precise(beta).sigmoid() * (2 if allow_neg_eigval else 1)
    if use_gate_in_kernel:
        if g is None or A_log is None:
            raise ZooError("use_gate_in_kernel=True needs g and A_log")
        bias = 0 if dt_bias is None else _precise(dt_bias)
        g = -_precise(A_log).exp() * F.softplus(_precise(g) + bias)
    if use_qk_l2norm_in_kernel:
        q, k = _normalise(q), _normalise(k)
    q, k = _share(q, k, v)
    decay = None if g is None else _precise(g).exp()

    def run(start: int, end: int, state: Tensor | None) -> tuple[Tensor, Tensor]:
        parts: Any = [None if t is None else t[:, start:end] for t in (q, k, v, beta, decay)]
        return delta_rule(*parts, scale, state, return_final_state=True)  # type: ignore

    if state_v_first and initial_state is not None:
        initial_state = initial_state.transpose(-1, -2)
    out, state = _each(run, q, v, initial_state, cu_seqlens)
    if not output_final_state:
        return out, None
    return out, state.transpose(-1, -2) if state_v_first else state


def fused_recurrent_gated_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor | None = None,
    gk: Tensor | None = None,
    gv: Tensor | None = None,
    beta: Tensor | None = None,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    use_gate_in_kernel: bool = False,
    A_log: Tensor | None = None,
    dt_bias: Tensor | None = None,
    use_beta_sigmoid_in_kernel: bool = False,
    allow_neg_eigval: bool = False,
    state_v_first: bool = False,
    cu_seqlens: Tensor | None = None,
    **settings: Any,
) -> tuple[Tensor, Tensor | None]:
    """:func:`chunk_gated_delta_rule` in another order of arguments; it has gradients here."""
    if gk is not None or gv is not None:
        raise ZooError("the decay of our delta rule is one number a head and step: g, not gk or gv")
    return chunk_gated_delta_rule(
        q, k, v, g, beta, scale, initial_state, output_final_state, use_qk_l2norm_in_kernel,
        use_beta_sigmoid_in_kernel, allow_neg_eigval, state_v_first, cu_seqlens,
        use_gate_in_kernel, A_log, dt_bias, **settings,
    )  # fmt: skip


chunk_gdn, fused_recurrent_gdn = chunk_gated_delta_rule, fused_recurrent_gated_delta_rule


def chunk_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor | None = None,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    cu_seqlens: Tensor | None = None,
    **settings: Any,
) -> tuple[Tensor, Tensor | None]:
    """:func:`chunk_gated_delta_rule` without decay."""
    return chunk_gated_delta_rule(
        q, k, v, None, beta, scale, initial_state, output_final_state, use_qk_l2norm_in_kernel,
        cu_seqlens=cu_seqlens, **settings,
    )  # fmt: skip


fused_recurrent_delta_rule = chunk_delta_rule


def chunk_simple_gla(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor | None = None,
    g_gamma: Tensor | None = None,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    state_v_first: bool = False,
    cu_seqlens: Tensor | None = None,
    **settings: Any,
) -> tuple[Tensor, Tensor | None]:
    """:func:`zoo.ops.linear_attention` with the logarithm of its decay.

    Args:
        q, k: [B, T, H, K].
        v: [B, T, H, V].
        g: [B, T, H], the logarithm of the decay.
        g_gamma: [H], the same at all steps, instead of g.
        scale, initial_state, output_final_state, state_v_first, cu_seqlens, **settings: as of
            :func:`chunk_gated_delta_rule`.

    Returns:
        [B, T, H, V] in the dtype of v, and the final state in float32 or None.

    Raises:
        ZooError: for what our op does not do, and if shapes do not fit.
    """
    _refuse("chunk_simple_gla", settings)
    if g is not None and g_gamma is not None:
        raise ZooError("both g and g_gamma are given; take one")
    g = g if g_gamma is None else _precise(g_gamma).expand(q.shape[:3])
    decay = None if g is None else _precise(g).exp()
    factor = k.shape[-1] ** -0.5 if scale is None else scale

    def run(start: int, end: int, state: Tensor | None) -> tuple[Tensor, Tensor]:
        parts: Any = [None if t is None else t[:, start:end] for t in (q, k, v, decay)]
        return linear_attention(  # type: ignore
            *parts, scale=factor, initial_state=state, return_final_state=True
        )

    if state_v_first and initial_state is not None:
        initial_state = initial_state.transpose(-1, -2)
    out, state = _each(run, q, v, initial_state, cu_seqlens)
    if not output_final_state:
        return out, None
    return out, state.transpose(-1, -2) if state_v_first else state


fused_chunk_simple_gla = fused_recurrent_simple_gla = chunk_simple_gla


def chunk_linear_attn(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float | None = None,
    initial_state: Tensor | tuple[Tensor, Tensor] | None = None,
    output_final_state: bool = False,
    normalize: bool = True,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor | tuple[Tensor, Tensor] | None]:
    """:func:`zoo.ops.linear_attention` without decay.

    Args:
        normalize: divide by the sum of the keys so far; states are then pairs of [N, H, K, V] and
            of that sum, [N, 1, H, K].
        q, k, v, scale, initial_state, output_final_state, cu_seqlens: as of
            :func:`chunk_simple_gla`.
    """
    if not normalize:
        if isinstance(initial_state, tuple):
            raise ZooError("a state that is a pair belongs to normalize=True")
        return chunk_simple_gla(
            q, k, v, None, None, scale, initial_state, output_final_state, cu_seqlens=cu_seqlens
        )
    packed = initial_state if isinstance(initial_state, Tensor) else None
    if isinstance(initial_state, tuple):
        packed = torch.cat([initial_state[0], initial_state[1].transpose(1, 2).mT], dim=-1)
    elif packed is not None:
        packed = F.pad(packed, (0, 1))
    queries = q * (k.shape[-1] ** -0.5 if scale is None else scale)

    def run(start: int, end: int, state: Tensor | None) -> tuple[Tensor, Tensor]:
        parts: Any = (t[:, start:end] for t in (queries, k, v))
        return linear_attention(  # type: ignore
            *parts, normalize=True, eps=1e-10, initial_state=state, return_final_state=True
        )

    out, state = _each(run, q, v, packed, cu_seqlens, columns=v.shape[-1] + 1)
    if not output_final_state:
        return out, None
    return out, (state[..., :-1], state[..., -1:].mT.transpose(1, 2))


fused_chunk_linear_attn = chunk_linear_attn


def fused_recurrent_linear_attn(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float | None = None,
    initial_state: Tensor | tuple[Tensor, Tensor] | None = None,
    output_final_state: bool = False,
    reverse: bool = False,
    normalize: bool = False,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor | tuple[Tensor, Tensor] | None]:
    """:func:`chunk_linear_attn`, which is not normalised unless this is asked for."""
    if reverse:
        raise ZooError("reverse=True is not provided; flip q, k and v along the steps")
    return chunk_linear_attn(
        q, k, v, scale, initial_state, output_final_state, normalize, cu_seqlens
    )


def _refuse(function: str, settings: dict[str, Any]) -> None:
    meant = [name for name, value in settings.items() if name not in _SPEED and value]
    if meant:
        raise ZooError(f"{function} of zoo.compat does not take {', '.join(meant)}")


def _precise(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _normalise(x: Tensor) -> Tensor:
    x = _precise(x)
    return x * (x.square().sum(dim=-1, keepdim=True) + 1e-6).rsqrt()


def _share(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Queries and keys for every head of the values."""
    heads, wanted = k.shape[-2], v.shape[-2]
    if heads == wanted:
        return q, k
    if heads == 0 or wanted % heads:
        raise ZooError(f"the {wanted} heads of v are not a multiple of the {heads} of k")
    return q.repeat_interleave(wanted // heads, 2), k.repeat_interleave(wanted // heads, 2)


def _each(
    run: Op,
    q: Tensor,
    v: Tensor,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    columns: int | None = None,
) -> tuple[Tensor, Tensor]:
    """A call for all, or one for each of the sequences that are packed into a batch of one."""
    batch, length = v.shape[:2]
    if cu_seqlens is None:
        return run(0, length, initial_state)
    borders = cu_seqlens.tolist()
    fit = len(borders) > 1 and (borders[0], borders[-1]) == (0, length)
    if batch != 1 or not fit or borders != sorted(borders):
        raise ZooError(
            f"cu_seqlens are the borders of sequences packed into a batch of 1, from 0 to the "
            f"{length} steps of v; the batch is {batch}, cu_seqlens {borders}"
        )
    number = len(borders) - 1
    if initial_state is None:
        shape = (number, v.shape[2], q.shape[3], columns or v.shape[3])
        initial_state = _precise(v).new_zeros(shape)
    elif initial_state.shape[0] != number:
        raise ZooError(f"{initial_state.shape[0]} initial states for {number} packed sequences")
    outputs, states = [v[:, :0]], list(initial_state.split(1))
    for n, (start, end) in enumerate(pairwise(borders)):
        if start < end:
            out, states[n] = run(start, end, states[n])
            outputs.append(out)
    return torch.cat(outputs, dim=1), torch.cat(states)
