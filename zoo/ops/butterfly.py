"""Fourier transforms as products with small matrices (butterfly, or Monarch, factors)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from zoo.errors import ZooError
from zoo.ops._checks import check_one_device


def butterfly_fft(
    x: Tensor, sizes: Sequence[int], matrices: Sequence[Tensor | None] | None = None
) -> Tensor:
    r"""Discrete Fourier transform of length N = N_1 N_2 ... N_p by p products with small matrices.

    Cooley and Tukey's factorisation, as in FlashButterfly (arXiv 2302.06646): the sequence as a
    matrix [N_1, N / N_1], transforms of length N_1 of its columns, twiddle factors
    :math:`e^{-2 \pi i a b / N}`, and the same for the rows. Twice the smallest number of products,
    but all of them are matrix products of sizes that a matrix unit likes.

    Args:
        x: [..., N], real or complex; real ones are taken as complex.
        sizes: N_1, ..., N_p.
        matrices: what is multiplied with instead of the Fourier matrices (learned factors): one
            complex [..., N_i, N_i] for each size, whose leading dimensions broadcast with those of
            x; None for the Fourier matrix.

    Returns:
        [..., N] complex, in natural order.

    Raises:
        ZooError: if the sizes do not multiply to N, or a matrix has another shape or device.
    """
    sizes, matrices = _check(x, sizes, matrices)
    dtype = torch.promote_types(x.dtype, torch.complex64)
    return _forward(x.to(dtype), sizes, matrices)


def butterfly_fft_reference(x: Tensor) -> Tensor:
    """:func:`butterfly_fft` without other matrices, by its definition in one matrix [N, N]."""
    dtype = torch.promote_types(x.dtype, torch.complex64)
    return x.to(dtype) @ _fourier(x.shape[-1], dtype, x.device)


def butterfly_conv(u: Tensor, k: Tensor, sizes: Sequence[int]) -> Tensor:
    """Causal convolution of u [..., H, L] with k [H, K] by :func:`butterfly_fft`'s factors.

    The three passes that FlashButterfly makes for sequences beyond a fast memory: the outer factor
    cuts the sequence into N_1 blocks, each block is convolved for itself (again so, down to the
    last factor), and the outer factor's inverse joins them. As forward and inverse meet in the
    same order, nothing is ever permuted.

    Args:
        u: float32 or float64.
        k: of the same dtype.
        sizes: N_1, ..., N_p; their product must be at least L + K - 1.

    Returns:
        [..., H, L] in the dtype of u.

    Raises:
        ZooError: if shapes, dtypes or devices do not fit.
    """
    sizes = _sizes("butterfly_conv", sizes)
    if u.dim() < 2 or k.dim() != 2 or k.shape[0] != u.shape[-2]:
        raise ZooError(
            "butterfly_conv: u must be [..., channels, length] and k [channels, taps], got "
            f"{list(u.shape)} and {list(k.shape)}"
        )
    if u.dtype not in (torch.float32, torch.float64) or k.dtype != u.dtype:
        raise ZooError(
            f"butterfly_conv: u and k must both be float32 or float64, got {u.dtype} and {k.dtype}"
        )
    check_one_device("butterfly_conv", u=u, k=k)
    length, n = u.shape[-1], math.prod(sizes)
    if n < length + k.shape[-1] - 1:
        raise ZooError(
            f"butterfly_conv: the sizes {list(sizes)} multiply to {n}, expected at least "
            f"{length + k.shape[-1] - 1} = length + taps - 1"
        )
    dtype = torch.promote_types(u.dtype, torch.complex64)
    x, taps = (torch.nn.functional.pad(t, (0, n - t.shape[-1])).to(dtype) for t in (u, k))
    return _convolve(x, taps, sizes).real[..., :length] / n


def butterfly_sizes(n: int, largest: int = 16) -> tuple[int, ...]:
    """Factors of a power of two: as many of ``largest`` as there are, and the rest at the end."""
    for name, value in (("n", n), ("largest", largest)):
        if not isinstance(value, int) or value < 2 or value & (value - 1):
            raise ZooError(f"butterfly_sizes: {name} must be a power of two from 2 on, got {value}")
    sizes = []
    while n > largest:
        sizes.append(largest)
        n //= largest
    return (*sizes, n)


def _fourier(n: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return _roots(torch.arange(n, device=device), torch.arange(n, device=device), n, dtype)


def _roots(a: Tensor, b: Tensor, n: int, dtype: torch.dtype) -> Tensor:
    """exp(-2 pi i a b / n), whose angle is reduced in integers."""
    angle = (a[:, None] * b % n).double() * (-2 * math.pi / n)
    return torch.polar(torch.ones_like(angle), angle).to(dtype)


def _twiddles(rows: int, columns: int, x: Tensor) -> Tensor:
    a, b = (torch.arange(size, device=x.device) for size in (rows, columns))
    return _roots(a, b, rows * columns, x.dtype)


def _factor(matrices: Sequence[Tensor | None], i: int, size: int, x: Tensor) -> Tensor:
    given = matrices[i]
    return _fourier(size, x.dtype, x.device) if given is None else given.to(x.dtype)


def _forward(x: Tensor, sizes: Sequence[int], matrices: Sequence[Tensor | None]) -> Tensor:
    first = _factor(matrices, 0, sizes[0], x)
    if len(sizes) == 1:
        return (first @ x[..., None])[..., 0]
    columns = x.shape[-1] // sizes[0]
    x = first @ x.unflatten(-1, (sizes[0], columns))  # [..., N_1, N / N_1]
    x = x * _twiddles(sizes[0], columns, x)
    # The matrices' leading dimensions stand before N_1.
    inner = [None if m is None else m.unsqueeze(-3) for m in matrices[1:]]
    x = _forward(x, sizes[1:], inner)
    return x.transpose(-1, -2).flatten(-2)


def _convolve(u: Tensor, k: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """N times the circular convolution along the last dimension."""
    fourier = _fourier(sizes[0], u.dtype, u.device)
    if len(sizes) == 1:
        # Symmetric matrices, so that rows are transformed by products from the right.
        return ((u @ fourier) * (k @ fourier)) @ fourier.conj()
    columns = u.shape[-1] // sizes[0]
    twiddles = _twiddles(sizes[0], columns, u)
    u, k = (fourier @ t.unflatten(-1, (sizes[0], columns)) * twiddles for t in (u, k))
    y = _convolve(u, k, sizes[1:])
    return (fourier.conj() @ (y * twiddles.conj())).flatten(-2)


def _sizes(op: str, sizes: Sequence[int]) -> tuple[int, ...]:
    sizes = tuple(sizes)
    if not sizes or not all(isinstance(size, int) and size >= 1 for size in sizes):
        raise ZooError(f"{op}: sizes must be whole numbers from 1 on, got {list(sizes)}")
    return sizes


def _check(
    x: Tensor, sizes: Sequence[int], matrices: Sequence[Tensor | None] | None
) -> tuple[tuple[int, ...], list[Tensor | None]]:
    op = "butterfly_fft"
    sizes = _sizes(op, sizes)
    if x.dim() == 0 or math.prod(sizes) != x.shape[-1]:
        raise ZooError(
            f"{op}: sizes must multiply to the length, got {list(sizes)} for {list(x.shape)}"
        )
    given: list[Tensor | None] = [None] * len(sizes) if matrices is None else list(matrices)
    if len(given) != len(sizes):
        raise ZooError(f"{op}: expected a matrix for each of {len(sizes)} sizes, got {len(given)}")
    for size, matrix in zip(sizes, given, strict=True):
        if matrix is None:
            continue
        check_one_device(op, x=x, matrix=matrix)
        rows = matrix.shape[:-2]
        if matrix.shape[-2:] != (size, size) or not _broadcasts(rows, x.shape[:-1]):
            raise ZooError(
                f"{op}: the matrix for size {size} must be [..., {size}, {size}], whose leading "
                f"dimensions broadcast with those of x, {list(x.shape[:-1])}, got "
                f"{list(matrix.shape)}"
            )
    return sizes, given


def _broadcasts(a: Sequence[int], b: Sequence[int]) -> bool:
    pairs = zip(reversed(a), reversed(b), strict=False)
    return all(m == n or 1 in (m, n) for m, n in pairs)
