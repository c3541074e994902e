"""Long convolution by fast Fourier transforms."""

from __future__ import annotations

import torch
from torch import Tensor

from zoo.devices import without_autocast
from zoo.errors import ZooError
from zoo.ops._checks import FLOATS, check_one_device


def fft_conv(
    u: Tensor,
    k: Tensor,
    D: Tensor | None = None,
    *,
    k_future: Tensor | None = None,
    gate_before: Tensor | None = None,
    gate_after: Tensor | None = None,
    previous: Tensor | None = None,
    circular: bool = False,
) -> Tensor:
    r"""Depthwise convolution with kernels as long as the sequence (FlashConv, arXiv 2212.14052).

    With :math:`v = gate\_before \cdot u`, for each channel on its own:

    .. math::
        y_t = gate\_after_t \cdot \Big( \sum_{s \ge 0} k_s v_{t-s}
              + \sum_{s \ge 0} k^{future}_s v_{t+1+s} + D v_t \Big)

    Args:
        u: input [..., H, L].
        k: kernels [H, K], or [C, H, K] for C outputs of each channel. Taps that the sequence does
            not reach are ignored, so that K may be smaller or larger than L.
        D: skip weight, [H] or [C, H] as k.
        k_future: kernels for what is to come, in the shape of k but for K: the convolution sees
            both sides then.
        gate_before: factor of the input [..., H, L].
        gate_after: factor of the output, in the output's shape.
        previous: inputs before the first one [..., H, P], as they are after ``gate_before``; a
            long sequence in parts gives the same as in one piece, if each part gets as many as the
            kernel has taps, less one.
        circular: indices of u are taken modulo L (neither ``previous`` nor ``k_future``, K <= L).

    All tensors are float32, bfloat16 or float16 in any mixture, or all float64; transforms and
    sums are float32 (float64), also under autocast.

    Returns:
        [..., H, L], or [..., C, H, L] if k is [C, H, K], in the dtype of u.

    Raises:
        ZooError: if shapes, dtypes or devices do not fit.
    """
    _check(u, k, D, k_future, gate_before, gate_after, previous, circular)
    with without_autocast(u):
        dtype, compute = u.dtype, torch.promote_types(u.dtype, torch.float32)
        length = u.shape[-1]
        v = u.to(compute)
        if gate_before is not None:
            v = v * gate_before.to(compute)
        before = 0 if previous is None else previous.shape[-1]
        x = v if previous is None else torch.cat([previous.to(compute), v], dim=-1)
        total = before + length
        k = k.to(compute)[..., :total]
        if k_future is not None:
            k_future = k_future.to(compute)[..., : length - 1]
        future = 0 if k_future is None else k_future.shape[-1]
        size = length if circular else fast_length(total + max(k.shape[-1] - 1, 0) + future)
        spectrum = torch.fft.rfft(k, n=size)
        if k_future is not None and future:
            # Tap s of the future is tap -1-s, which is size-1-s for a transform of this size.
            spectrum = spectrum + torch.fft.rfft(_at_end(k_future, size), n=size)
        if k.dim() == 3:
            x, v = x.unsqueeze(-3), v.unsqueeze(-3)
        if x.numel() == 0:  # an empty batch, which MKL refuses
            y = v * k[..., :1]
        else:
            y = torch.fft.irfft(torch.fft.rfft(x, n=size) * spectrum, n=size)[..., before:total]
        if D is not None:
            y = y + D.to(compute)[..., None] * v
        if gate_after is not None:
            y = y * gate_after.to(compute)
        return y.to(dtype)


def fft_conv_reference(
    u: Tensor,
    k: Tensor,
    D: Tensor | None = None,
    *,
    k_future: Tensor | None = None,
    gate_before: Tensor | None = None,
    gate_after: Tensor | None = None,
    previous: Tensor | None = None,
    circular: bool = False,
) -> Tensor:
    """:func:`fft_conv` as a product with the matrix of all pairs of steps, to be read."""
    _check(u, k, D, k_future, gate_before, gate_after, previous, circular)
    with without_autocast(u):
        compute = torch.promote_types(u.dtype, torch.float32)
        length = u.shape[-1]
        v = u.to(compute)
        if gate_before is not None:
            v = v * gate_before.to(compute)
        x = v if previous is None else torch.cat([previous.to(compute), v], dim=-1)
        steps = torch.arange(x.shape[-1], device=u.device)
        lag = steps[-length:, None] - steps  # [L, P + L]: output step less input step
        if circular:
            lag = lag % length
        matrix = _taps(k.to(compute), lag)
        if k_future is not None:
            matrix = matrix + _taps(k_future.to(compute), -1 - lag)
        if k.dim() == 3:
            x, v = x.unsqueeze(-3), v.unsqueeze(-3)
        y = torch.einsum("...ts,...s->...t", matrix, x)
        if D is not None:
            y = y + D.to(compute)[..., None] * v
        if gate_after is not None:
            y = y * gate_after.to(compute)
        return y.to(u.dtype)


def fast_length(least: int) -> int:
    """The smallest even number from ``least`` on without prime factors above 5."""
    best = 2
    while best < least:
        best *= 2
    threes = 1
    while 2 * threes < best:
        fives = threes
        while 2 * fives < best:
            n = 2 * fives
            while n < least:
                n *= 2
            best = min(best, n)
            fives *= 5
        threes *= 3
    return best


def _at_end(k: Tensor, size: int) -> Tensor:
    """Taps -1, -2, ... of a kernel of ``size`` taps."""
    return torch.nn.functional.pad(k.flip(-1), (size - k.shape[-1], 0))


def _taps(k: Tensor, lag: Tensor) -> Tensor:
    """k at these lags, 0 where there is none."""
    there = (lag >= 0) & (lag < k.shape[-1])
    if k.shape[-1] == 0:
        return k.new_zeros(*k.shape[:-1], *lag.shape)
    return k[..., lag.clamp(0, k.shape[-1] - 1)] * there


def _check(
    u: Tensor,
    k: Tensor,
    D: Tensor | None,
    k_future: Tensor | None,
    gate_before: Tensor | None,
    gate_after: Tensor | None,
    previous: Tensor | None,
    circular: bool,
) -> None:
    def wrong(message: str) -> ZooError:
        return ZooError(f"fft_conv: {message}")

    if u.dim() < 2:
        raise wrong(f"u must be [..., channels, length], got {list(u.shape)}")
    channels, length = u.shape[-2:]
    if length == 0 or channels == 0:
        raise wrong(f"channels and length must be at least 1, got u {list(u.shape)}")
    if k.dim() not in (2, 3) or k.shape[-2] != channels or 0 in k.shape:
        raise wrong(
            f"k must be [channels, taps] or [outputs, channels, taps] with channels = {channels} "
            f"as in u, got {list(k.shape)}"
        )
    if circular and (previous is not None or k_future is not None):
        raise wrong("a circular convolution takes neither previous nor k_future")
    if circular and k.shape[-1] > length:
        raise wrong(
            f"a circular convolution needs at least as many steps as taps, got {length} steps and "
            f"{k.shape[-1]} taps"
        )

    def expect(name: str, t: Tensor | None, shape: tuple) -> None:
        if t is not None and t.shape != shape:
            raise wrong(f"{name} must be {list(shape)} to fit u and k, got {list(t.shape)}")

    out = (*u.shape[:-2], *k.shape[:-1], length)
    expect("D", D, tuple(k.shape[:-1]))
    expect("gate_before", gate_before, tuple(u.shape))
    expect("gate_after", gate_after, out)
    if k_future is not None:
        expect("k_future", k_future, (*k.shape[:-1], k_future.shape[-1] if k_future.dim() else 0))
    if previous is not None:
        steps = previous.shape[-1] if previous.dim() else 0
        expect("previous", previous, (*u.shape[:-1], steps))
    tensors = {"u": u, "k": k, "D": D, "k_future": k_future, "gate_before": gate_before,
               "gate_after": gate_after, "previous": previous}  # fmt: skip
    for name, t in tensors.items():
        if t is None:
            continue
        if t.dtype not in FLOATS or (t.dtype == torch.float64) != (u.dtype == torch.float64):
            raise wrong(
                f"{name} is {t.dtype} and u is {u.dtype}; all must be of float32, bfloat16 and "
                "float16, or all of float64"
            )
    check_one_device("fft_conv", **tensors)
