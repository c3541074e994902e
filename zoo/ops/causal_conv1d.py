"""The short depthwise causal convolution before Mamba's scan, and its step for decoding."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.errors import ZooError
from zoo.ops import _registered
from zoo.ops._checks import FLOATS
from zoo.ops._library import recording, register
from zoo.ops._registered import MAX_WIDTH


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    seq_idx: Tensor | None = None,
    initial_states: Tensor | None = None,
    return_final_states: bool = False,
    activation: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    r"""Depthwise causal convolution (the contract of Dao-AILab/causal-conv1d).

    .. math:: out_t = \mathrm{act}\Bigl(b + \sum_{k=0}^{W-1} w_k \, x_{t-(W-1)+k}\Bigr)

    Args:
        x: [B, D, L], any strides; both channel by channel and position by position (channel-last)
            are fast.
        weight: [D, W] with W from 1 to 64; 2, 3 and 4 have kernels of their own.
        bias: [D].
        seq_idx: int32 [B, L], the sequence that each position belongs to where several are packed:
            a tap on another sequence counts as zero. Negative marks padding, whose output is zero.
        initial_states: [B, D, W - 1], the inputs before the first; zero if absent. Not together
            with ``seq_idx``.
        return_final_states: also return the last W - 1 inputs, the next call's ``initial_states``.
        activation: None, or "silu" ("swish" is the same).

    x is float32, bfloat16 or float16 (float64 for checking); weight, bias and the states are
    brought to what the kernel wants. Sums are float32.

    Returns:
        [B, D, L] in the dtype of x, laid out channel-last if x is; with ``return_final_states``
        also [B, D, W - 1]. Differentiable once, through the final states too.

    Raises:
        ZooError: if shapes, dtypes or devices do not fit, or L is 0.
    """
    _check(x, weight, bias, initial_states)
    silu = _is_silu("causal_conv1d", activation)
    if seq_idx is not None:
        _check_seq_idx(x, seq_idx, initial_states)
    compute = torch.promote_types(x.dtype, torch.float32)
    if x.stride(1) != 1 and x.stride(2) != 1:
        x = x.clone(memory_format=torch.contiguous_format)
    if initial_states is not None:
        initial_states = initial_states.to(x.dtype)
    out = torch.ops.zoo.causal_conv1d(
        x,
        weight.to(compute).contiguous(),
        None if bias is None else bias.to(compute).contiguous(),
        None if seq_idx is None else seq_idx.contiguous(),
        initial_states,
        silu,
    )
    if not return_final_states:
        return out
    return out, _final_states(x, weight.shape[1], initial_states)


def causal_conv1d_reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    seq_idx: Tensor | None = None,
    initial_states: Tensor | None = None,
    return_final_states: bool = False,
    activation: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """:func:`causal_conv1d` in plain PyTorch, to be read and to be compared with."""
    _check(x, weight, bias, initial_states)
    silu = _is_silu("causal_conv1d", activation)
    if seq_idx is not None:
        _check_seq_idx(x, seq_idx, initial_states)
    width, compute = weight.shape[1], torch.promote_types(x.dtype, torch.float32)
    before = x.new_zeros(*x.shape[:2], width - 1) if initial_states is None else initial_states
    padded = torch.cat([before.to(x.dtype), x], dim=2).to(compute)
    taps = padded.unfold(2, width, 1)  # [B, D, L, W]
    if seq_idx is not None:
        owners = F.pad(seq_idx, (width - 1, 0), value=-1).unfold(1, width, 1)  # [B, L, W]
        taps = taps * ((owners == seq_idx[..., None]) & (seq_idx >= 0)[..., None])[:, None]
    out = torch.einsum("bdlw,dw->bdl", taps, weight.to(compute))
    if bias is not None:
        out = out + bias.to(compute)[:, None]
    if silu:
        out = F.silu(out)
    if seq_idx is not None:
        out = out * (seq_idx >= 0)[:, None]
    out = out.to(x.dtype)
    return (out, _final_states(x, width, initial_states)) if return_final_states else out


def causal_conv1d_update(
    x: Tensor,
    conv_state: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    cache_seqlens: Tensor | None = None,
) -> Tensor:
    """The next one or few positions of :func:`causal_conv1d`; ``conv_state`` is overwritten.

    Args:
        x: new inputs, [B, D] or [B, D, L].
        conv_state: [B, D, S] with S at least W - 1: the inputs before them, the newest last. They
            move up to make room for x.
        weight: [D, W] with W from 1 to 64.
        bias: [D].
        activation: None, or "silu" ("swish" is the same).
        cache_seqlens: int32 [B]. If given, ``conv_state`` is a circular buffer instead: the inputs
            of position t stand in column t mod S, and x begins at position ``cache_seqlens``. Where
            the buffer is younger than W - 1 positions it must hold zeros.

    Returns:
        [B, D] or [B, D, L], as x. Where gradients are recorded, the PyTorch reference answers,
        which is differentiable.

    Raises:
        ZooError: if shapes, dtypes or devices do not fit.
    """
    _check_update(x, conv_state, weight, bias, cache_seqlens)
    silu = _is_silu("causal_conv1d_update", activation)
    tensors = (x, conv_state, weight, bias)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        return causal_conv1d_update_reference(
            x, conv_state, weight, bias, activation, cache_seqlens
        )
    compute = torch.promote_types(x.dtype, torch.float32)
    out = torch.ops.zoo.causal_conv1d_update(
        x if x.dim() == 3 else x[..., None],
        conv_state,
        weight.to(compute).contiguous(),
        None if bias is None else bias.to(compute).contiguous(),
        None if cache_seqlens is None else cache_seqlens.contiguous(),
        silu,
    )
    return out if x.dim() == 3 else out[..., 0]


def causal_conv1d_update_reference(
    x: Tensor,
    conv_state: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    cache_seqlens: Tensor | None = None,
) -> Tensor:
    """:func:`causal_conv1d_update` in plain PyTorch, to be read and to be compared with."""
    _check_update(x, conv_state, weight, bias, cache_seqlens)
    new = x if x.dim() == 3 else x[..., None]  # [B, D, L]
    size, width, length = conv_state.shape[2], weight.shape[1], new.shape[2]
    if cache_seqlens is None:
        before = conv_state[:, :, size - (width - 1) :].clone()
        conv_state.copy_(torch.cat([conv_state, new], dim=2)[:, :, length:])
    else:
        positions = torch.arange(1 - width, length, device=x.device) + cache_seqlens[:, None]
        columns = positions.remainder(max(size, 1))[:, None].expand(-1, x.shape[1], -1)
        before, columns = columns.split([width - 1, length], dim=2)  # [B, D, W - 1], [B, D, L]
        before = conv_state.gather(2, before)
        # of positions that share a column the last one stays
        kept = min(length, size)
        conv_state.scatter_(2, columns[:, :, length - kept :], new[:, :, length - kept :])
    out = causal_conv1d_reference(new, weight, bias, initial_states=before, activation=activation)
    assert isinstance(out, Tensor)
    return out if x.dim() == 3 else out[..., 0]


def _final_states(x: Tensor, width: int, initial_states: Tensor | None) -> Tensor:
    length = x.shape[2]
    if length >= width - 1:
        return x[:, :, length - (width - 1) :].clone()
    before = x.new_zeros(*x.shape[:2], width - 1) if initial_states is None else initial_states
    return torch.cat([before.to(x.dtype), x], dim=2)[:, :, length:]


def _is_silu(op: str, activation: str | None) -> bool:
    if activation not in (None, "silu", "swish"):
        raise ZooError(f"{op}: activation must be None, 'silu' or 'swish', got {activation!r}")
    return activation is not None


def _check(x: Tensor, weight: Tensor, bias: Tensor | None, initial_states: Tensor | None) -> None:
    def wrong(message: str) -> ZooError:
        return ZooError(f"causal_conv1d: {message}")

    if x.dim() != 3 or 0 in x.shape[1:]:
        raise wrong(f"x must be [batch, dim, length], neither of the last 0, got {list(x.shape)}")
    _check_weights(wrong, x, weight, bias)
    states = [x.shape[0], x.shape[1], weight.shape[1] - 1]
    if initial_states is not None and list(initial_states.shape) != states:
        raise wrong(f"initial_states must be {states}, got {list(initial_states.shape)}")
    if initial_states is not None and initial_states.device != x.device:
        raise wrong(f"initial_states is on {initial_states.device} and x on {x.device}")


def _check_weights(wrong: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    dim = x.shape[1]
    if weight.dim() != 2 or weight.shape[0] != dim or not 1 <= weight.shape[1] <= MAX_WIDTH:
        raise wrong(
            f"weight must be [{dim}, width] with a width of 1 to {MAX_WIDTH} to fit x, got "
            f"{list(weight.shape)}"
        )
    if bias is not None and bias.shape != (dim,):
        raise wrong(f"bias must be [{dim}] to fit x, got {list(bias.shape)}")
    for name, t in (("x", x), ("weight", weight), ("bias", bias)):
        if t is None:
            continue
        if t.dtype not in FLOATS:
            raise wrong(f"{name} must be float32, bfloat16, float16 or float64, got {t.dtype}")
        if t.device != x.device:
            raise wrong(f"{name} is on {t.device} and x on {x.device}; move them to one device")


def _check_seq_idx(x: Tensor, seq_idx: Tensor, initial_states: Tensor | None) -> None:
    expected = [x.shape[0], x.shape[2]]
    if list(seq_idx.shape) != expected or seq_idx.dtype != torch.int32:
        raise ZooError(
            f"causal_conv1d: seq_idx must be int32 {expected}, got {seq_idx.dtype} "
            f"{list(seq_idx.shape)}"
        )
    if seq_idx.device != x.device:
        raise ZooError(f"causal_conv1d: seq_idx is on {seq_idx.device} and x on {x.device}")
    if initial_states is not None:
        raise ZooError(
            "causal_conv1d: seq_idx and initial_states exclude each other, because it is not said "
            "which sequence the states belong to; give one of them"
        )


def _check_update(
    x: Tensor,
    conv_state: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    cache_seqlens: Tensor | None,
) -> None:
    def wrong(message: str) -> ZooError:
        return ZooError(f"causal_conv1d_update: {message}")

    if x.dim() not in (2, 3) or 0 in x.shape[1:]:
        raise wrong(f"x must be [batch, dim] or [batch, dim, length], got {list(x.shape)}")
    _check_weights(wrong, x, weight, bias)
    expected = [*x.shape[:2], f">= {weight.shape[1] - 1}"]
    if (
        conv_state.dim() != 3
        or conv_state.shape[:2] != x.shape[:2]
        or conv_state.shape[2] < weight.shape[1] - 1
    ):
        raise wrong(f"conv_state must be {expected}, got {list(conv_state.shape)}")
    if conv_state.dtype != x.dtype or conv_state.device != x.device:
        raise wrong(
            f"conv_state is {conv_state.dtype} on {conv_state.device} and x {x.dtype} on "
            f"{x.device}; both must agree"
        )
    if cache_seqlens is None:
        return
    if cache_seqlens.shape != x.shape[:1] or cache_seqlens.dtype != torch.int32:
        raise wrong(
            f"cache_seqlens must be int32 [{x.shape[0]}], got {cache_seqlens.dtype} "
            f"{list(cache_seqlens.shape)}"
        )
    if cache_seqlens.device != x.device:
        raise wrong(f"cache_seqlens is on {cache_seqlens.device} and x on {x.device}")


def _activation(silu: bool) -> str | None:
    return "silu" if silu else None


def _reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    seq_idx: Tensor | None,
    initial_states: Tensor | None,
    silu: bool,
) -> Tensor:
    out = causal_conv1d_reference(
        x, weight, bias, seq_idx, initial_states, activation=_activation(silu)
    )
    assert isinstance(out, Tensor)
    return _like(x).copy_(out)


def _reference_backward(
    dout: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    seq_idx: Tensor | None,
    initial_states: Tensor | None,
    silu: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    given = [x, weight, bias, initial_states]
    with torch.enable_grad():
        leaves: list[Any] = [None if t is None else t.detach().requires_grad_() for t in given]
        out = causal_conv1d_reference(
            leaves[0], leaves[1], leaves[2], seq_idx, leaves[3], activation=_activation(silu)
        )
        wanted = [t for t in leaves if t is not None]
        found = iter(torch.autograd.grad(out, wanted, dout))
    dx, dweight, dbias, dinitial = (None if t is None else next(found) for t in leaves)
    grads = _gradients(dout, x, weight, bias, seq_idx, initial_states, silu)
    for grad, computed in zip(grads, (dx, dweight, dbias, dinitial), strict=True):
        if computed is not None:
            grad.copy_(computed)
    return grads


def _reference_update(
    x: Tensor,
    conv_state: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    cache_seqlens: Tensor | None,
    silu: bool,
) -> Tensor:
    return causal_conv1d_update_reference(
        x, conv_state, weight, bias, _activation(silu), cache_seqlens
    )


def _like(x: Tensor) -> Tensor:
    """Uninitialised memory laid out as x, of which one of the last two dimensions has stride 1."""
    B, D, L = x.shape
    if x.stride(2) != 1:
        return x.new_empty_strided((B, D, L), (D * L, 1, D))
    return x.new_empty(B, D, L)


def _gradients(
    dout: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    seq_idx: Tensor | None,
    initial_states: Tensor | None,
    silu: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Memory for all gradients; without elements for what is absent."""
    dbias = weight.new_empty(0) if bias is None else torch.empty_like(bias)
    dinitial = x.new_empty(0) if initial_states is None else x.new_empty(initial_states.shape)
    return _like(x), weight.new_empty(weight.shape), dbias, dinitial


register(
    "causal_conv1d",
    check=_registered.causal_conv1d,
    reference=_reference,
    fake=lambda x, *others: _like(x),
)
register(
    "causal_conv1d_backward",
    check=_registered.causal_conv1d_backward,
    reference=recording(_reference_backward),
    fake=_gradients,
)
register(
    "causal_conv1d_update",
    check=_registered.causal_conv1d_update,
    reference=_reference_update,
    fake=lambda x, *others: x.new_empty(x.shape),
)


def _keep(ctx: Any, inputs: tuple, output: Tensor) -> None:
    *tensors, ctx.silu = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, dout: Tensor) -> tuple:
    x, weight, bias, seq_idx, initial_states = ctx.saved_tensors
    if dout.stride(2 if x.stride(2) == 1 else 1) != 1:
        dout = _like(x).copy_(dout)
    dx, dweight, dbias, dinitial = torch.ops.zoo.causal_conv1d_backward(
        dout, x, weight, bias, seq_idx, initial_states, ctx.silu
    )
    return (
        dx,
        dweight,
        None if bias is None else dbias,
        None,
        None if initial_states is None else dinitial,
        None,
    )


torch.library.register_autograd("zoo::causal_conv1d", _backward, setup_context=_keep)
