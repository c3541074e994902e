"""What the bindings (csrc/<op>/binding.cpp) check, for the answers of an op that no kernel gives.

They see the arguments of the registered op, which the public function has brought to what the
kernels want.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from zoo.ops._checks import Arguments

#: Taps that a filter of causal_conv1d may have at most.
MAX_WIDTH = 64
_LONGEST_CHUNK = 4096  # kScanLongestChunk


def _state_dtype(t: Tensor) -> torch.dtype:
    return torch.promote_types(t.dtype, torch.float32)


def _convolution(op: str, x: Tensor, weight: Tensor, bias: Tensor | None) -> Arguments:
    given = Arguments(op, "x", x)
    given.is_float("x", x)
    given.has_dims("x", x, "batch dim length")
    given.not_empty("x", x, 1, 2)
    dim = x.shape[1]
    given.plain("weight", weight, (dim, None), _state_dtype(x))
    width = weight.shape[1]
    given.that(1 <= width <= MAX_WIDTH, f"the filter must have 1 to {MAX_WIDTH} taps, got {width}")
    given.plain("bias", bias, (dim,), _state_dtype(x))
    return given


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    seq_idx: Tensor | None,
    initial_states: Tensor | None,
    silu: bool,
) -> Arguments:
    """Of ``zoo::causal_conv1d``."""
    given = _convolution("causal_conv1d", x, weight, bias)
    batch, dim, length = x.shape
    given.that(1 in x.stride()[1:], "x must have stride 1 along dim or along length")
    given.plain("seq_idx", seq_idx, (batch, length), torch.int32)
    given.fits("initial_states", initial_states, (batch, dim, weight.shape[1] - 1), x.dtype)
    given.that(
        seq_idx is None or initial_states is None, "seq_idx and initial_states exclude each other"
    )
    return given


def causal_conv1d_backward(dout: Tensor, x: Tensor, *others: Any) -> None:
    """Of ``zoo::causal_conv1d_backward``."""
    given = causal_conv1d(x, *others)
    given.fits("dout", dout, x.shape, x.dtype)
    along = 2 if x.stride(2) == 1 else 1
    given.that(dout.stride(along) == 1, "dout must have stride 1 where x has it")


def causal_conv1d_update(
    x: Tensor,
    conv_state: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    cache_seqlens: Tensor | None,
    silu: bool,
) -> None:
    """Of ``zoo::causal_conv1d_update``."""
    given = _convolution("causal_conv1d_update", x, weight, bias)
    given.fits("conv_state", conv_state, (*x.shape[:2], None), x.dtype)
    before, size = weight.shape[1] - 1, conv_state.shape[2]
    given.that(size >= before, f"conv_state must hold {before} inputs at least, it holds {size}")
    given.plain("cache_seqlens", cache_seqlens, x.shape[:1], torch.int32)
    given.will_change("conv_state", conv_state, x, weight, bias, cache_seqlens)


def _scan(op: str, tensors: Sequence[Any], chunk: int) -> Arguments:
    u, delta, A, B, C, D, z, delta_bias, initial_state, reset = tensors
    given = Arguments(op, "u", u)
    given.is_float("u", u)
    given.has_dims("u", u, "batch dim length")
    given.has_dims("A", A, "dim state")
    given.not_empty("u", u, 1, 2)
    given.not_empty("A", A, 1)
    batch, dim, length = u.shape
    state, dtype = A.shape[1], _state_dtype(u)
    for name, t in (("delta", delta), ("z", z)):
        given.fits(name, t, (batch, dim, length), u.dtype)
    given.plain("A", A, (dim, state), dtype)
    groups = []
    for name, t in (("B", B), ("C", C)):
        if t.dim() == 2:
            given.plain(name, t, (dim, state), dtype)
            continue
        given.fits(name, t, (batch, None, state, length), u.dtype)
        groups.append(t.shape[1])
        given.that(
            t.shape[1] > 0 and dim % t.shape[1] == 0,
            f"the {t.shape[1]} groups of {name} do not divide the {dim} channels",
        )
    given.that(len(groups) < 2 or groups[0] == groups[1], "B and C must have the same groups")
    given.plain("D", D, (dim,), dtype)
    given.plain("delta_bias", delta_bias, (dim,), dtype)
    given.plain("initial_state", initial_state, (batch, dim, state), dtype)
    given.plain("reset", reset, (batch, length), torch.bool)
    if u.device.type == "cuda":
        fits, expected = chunk in (0, 64), "64"  # kScanChunk
    else:
        fits = 0 <= chunk <= _LONGEST_CHUNK and chunk % 32 == 0
        expected = f"a multiple of 32 up to {_LONGEST_CHUNK}"
    given.that(fits, f"chunk is {chunk}, expected {expected}")
    return given


def selective_scan(*given: Any) -> None:
    """Of ``zoo::selective_scan``."""
    _scan("selective_scan", given[:10], given[13])


def selective_scan_backward(
    dout: Tensor | None, dlast_state: Tensor | None, borders: Tensor, *given: Any
) -> None:
    """Of ``zoo::selective_scan_backward``."""
    chunk = given[13]
    checks = _scan("selective_scan_backward", given[:10], chunk)
    checks.that(chunk > 0, "the forward pass has left no borders")
    u, A = given[0], given[2]
    (batch, dim, length), state = u.shape, A.shape[1]
    checks.fits("dout", dout, u.shape, u.dtype)
    checks.plain("dlast_state", dlast_state, (batch, dim, state), A.dtype)
    checks.plain("borders", borders, (batch, -(-length // chunk), dim, state), A.dtype)


def selective_state_update(
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    dt_softplus: bool,
    negative: bool,
) -> None:
    """Of ``zoo::selective_state_update``, apart from the shapes."""
    given = Arguments("selective_state_update", "x", x)
    given.is_float("x", x)
    given.is_float("state", state)
    given.fits("state", state, state.shape, state.dtype)
    given.that(
        state.dtype == x.dtype or torch.float32 in (state.dtype, x.dtype),
        f"state is {state.dtype} and x {x.dtype}; they must be the same, or one of them float32",
    )
    signals = {"dt": dt, "B": B, "C": C, "z": z}
    parameters = {"A": A, "D": D, "dt_bias": dt_bias}
    for tensors, dtype in ((signals, x.dtype), (parameters, _state_dtype(x))):
        for name, t in tensors.items():
            given.fits(name, t, () if t is None else t.shape, dtype)
    given.will_change("state", state, x, *signals.values(), *parameters.values())


def _ssd(op: str, expected_span: int, tensors: Sequence[Any], settings: Sequence[int]) -> Arguments:
    x, dt, A, B, C, D, z, initial_state, seq_idx = tensors
    span, chunk_size = settings
    given = Arguments(op, "x", x)
    given.is_float("x", x)
    given.has_dims("x", x, "batch length heads channels")
    given.not_empty("x", x, 1, 2, 3)
    given.has_dims("B", B, "batch length groups state")
    given.not_empty("B", B, 2, 3)
    batch, length, heads, head_dim = x.shape
    groups, state = B.shape[2:]
    given.that(heads % groups == 0, f"the {groups} groups of B do not divide the {heads} heads")
    signals = {"x": (x, heads, head_dim), "B": (B, groups, state), "C": (C, groups, state),
               "z": (z, heads, head_dim)}  # fmt: skip
    for name, (t, rows, size) in signals.items():
        given.fits(name, t, (batch, length, rows, size), x.dtype)
        if t is not None:
            given.last_contiguous(name, t)
    dtype = _state_dtype(x)
    given.plain("dt", dt, (batch, length, heads), dtype)
    given.plain("A", A, (heads,), dtype)
    given.fits("D", D, (heads, head_dim), dtype)
    given.that(
        D is None or head_dim == 1 or D.stride(1) in (0, 1),
        "D must have stride 0 or 1 along channels",
    )
    given.plain("initial_state", initial_state, (batch, heads, head_dim, state), dtype)
    given.plain("seq_idx", seq_idx, (batch, length), torch.int32)
    given.that(span in (0, expected_span), f"span is {span}, expected {expected_span}")
    given.that(chunk_size > 0, f"chunk_size is {chunk_size}, expected at least 1")
    return given


def ssd(expected_span: int, *given: Any) -> None:
    """Of ``zoo::ssd``."""
    _ssd("ssd", expected_span, given[:9], given[10:])


def ssd_backward(
    expected_span: int,
    dout: Tensor | None,
    dlast_state: Tensor | None,
    borders: Tensor,
    *given: Any,
) -> None:
    """Of ``zoo::ssd_backward``."""
    checks = _ssd("ssd_backward", expected_span, given[:9], given[10:])
    span = given[10]
    checks.that(span > 0, "the forward pass has left no borders")
    x, dt, state = given[0], given[1], given[3].shape[3]
    batch, length, heads, head_dim = x.shape
    checks.fits("dout", dout, x.shape, x.dtype)
    if dout is not None:
        checks.last_contiguous("dout", dout)
    checks.plain("dlast_state", dlast_state, (batch, heads, head_dim, state), dt.dtype)
    spans = -(-length // span)
    checks.plain("borders", borders, (batch, spans, heads, head_dim * state), dt.dtype)


def _pairs(op: str, name: str, main: Tensor, dims: str) -> Arguments:
    given = Arguments(op, name, main)
    given.is_single_or_double(name, main)
    given.has_dims(name, main, dims)
    given.plain(name, main, (*[None] * (main.dim() - 1), 2), main.dtype)
    return given


def _cauchy(op: str, v: Tensor, z: Tensor, w: Tensor) -> Arguments:
    given = _pairs(op, "v", v, "rows features poles 2")
    given.not_empty("v", v, 1, 2)
    given.plain("z", z, (None, 2), v.dtype)
    given.plain("w", w, (*v.shape[1:3], 2), v.dtype)
    return given


def cauchy_kernel(v: Tensor, z: Tensor, w: Tensor) -> None:
    """Of ``zoo::cauchy_kernel``."""
    _cauchy("cauchy_kernel", v, z, w)


def cauchy_kernel_backward(dout: Tensor, v: Tensor, z: Tensor, w: Tensor) -> None:
    """Of ``zoo::cauchy_kernel_backward``."""
    given = _cauchy("cauchy_kernel_backward", v, z, w)
    given.plain("dout", dout, (*v.shape[:2], z.shape[0], 2), v.dtype)


def vandermonde_kernel(v: Tensor, x: Tensor, length: int) -> None:
    """Of ``zoo::vandermonde_kernel``."""
    given = _pairs("vandermonde_kernel", "x", x, "features modes 2")
    given.not_empty("x", x, 0, 1)
    given.that(0 <= length < 2**31, f"length is {length}, expected at least 0 and below 2^31")
    given.plain("v", v, (None, *x.shape), x.dtype)


def vandermonde_transpose(u: Tensor, x: Tensor, moments: int) -> None:
    """Of ``zoo::vandermonde_transpose``."""
    given = _pairs("vandermonde_transpose", "x", x, "features modes 2")
    given.not_empty("x", x, 0, 1)
    given.that(moments in (1, 2), f"moments is {moments}, expected 1 or 2")
    given.plain("u", u, (None, x.shape[0], None), x.dtype)


_DELTA_SPAN = 32  # kDeltaSpan


def _accumulator(op: str, name: str, main: Tensor) -> Arguments:
    """For kernels that know float32 and float64 alone, of contiguous tensors."""
    given = Arguments(op, name, main)
    given.is_single_or_double(name, main)
    given.plain(name, main, main.shape, main.dtype)
    return given


def _delta(op: str, tensors: Sequence[Any], span: int) -> Arguments:
    q, k, v, beta, decay, initial_state = tensors
    given = _accumulator(op, "k", k)
    given.has_dims("k", k, "batch length heads state")
    given.not_empty("k", k, 1, 2, 3)
    batch, length, heads, state = k.shape
    given.plain("q", q, k.shape, k.dtype)
    given.plain("v", v, (batch, length, heads, None), k.dtype)
    given.not_empty("v", v, 3)
    for name, t in (("beta", beta), ("decay", decay)):
        given.plain(name, t, (batch, length, heads), k.dtype)
    given.plain("initial_state", initial_state, (batch, heads, state, v.shape[3]), k.dtype)
    given.that(span in (0, _DELTA_SPAN), f"span is {span}, expected {_DELTA_SPAN}")
    return given


def delta_rule(*given: Any) -> None:
    """Of ``zoo::delta_rule``."""
    _delta("delta_rule", given[:6], given[6])


def delta_rule_backward(
    dout: Tensor | None, dlast_state: Tensor | None, borders: Tensor, *given: Any
) -> None:
    """Of ``zoo::delta_rule_backward``."""
    span = given[6]
    checks = _delta("delta_rule_backward", given[:6], span)
    checks.that(span > 0, "the forward pass has left no borders")
    k, v = given[1], given[2]
    batch, length, heads, state = k.shape
    checks.plain("dout", dout, v.shape, k.dtype)
    checks.plain("dlast_state", dlast_state, (batch, heads, state, v.shape[3]), k.dtype)
    spans = -(-length // span)
    checks.plain("borders", borders, (batch, spans, heads, state * v.shape[3]), k.dtype)


#: Of each cell of recurrent_cell: gates of Wx, of R, of b and of what is kept, and states.
CELL_SIZES = ((1, 1, 1, 1, 1), (4, 4, 4, 4, 2), (3, 3, 4, 4, 1), (4, 4, 4, 4, 4))


def _cell_sizes(given: Arguments, cell: int) -> tuple[int, int, int, int, int]:
    given.that(0 <= cell < len(CELL_SIZES), f"cell is {cell}, expected 0 to {len(CELL_SIZES) - 1}")
    return CELL_SIZES[cell]


def recurrent_cell(
    Wx: Tensor, R: Tensor, b: Tensor, initial_states: Tensor, cell: int, keep_gates: bool
) -> None:
    """Of ``zoo::recurrent_cell``."""
    given = _accumulator("recurrent_cell", "Wx", Wx)
    given.has_dims("Wx", Wx, "batch length gates heads channels")
    inputs, recurrent, biases, _, states = _cell_sizes(given, cell)
    given.not_empty("Wx", Wx, 1, 3, 4)
    batch, length, _, heads, channels = Wx.shape
    given.plain("Wx", Wx, (batch, length, inputs, heads, channels), Wx.dtype)
    given.plain("R", R, (recurrent, heads, channels, channels), Wx.dtype)
    given.plain("b", b, (biases, heads, channels), Wx.dtype)
    given.plain("initial_states", initial_states, (states, batch, heads, channels), Wx.dtype)


def recurrent_cell_backward(
    dstates: Tensor, states: Tensor, gates: Tensor, R: Tensor, initial_states: Tensor, cell: int
) -> None:
    """Of ``zoo::recurrent_cell_backward``."""
    given = _accumulator("recurrent_cell_backward", "states", states)
    given.has_dims("states", states, "states batch length heads channels")
    _, recurrent, _, kept, count = _cell_sizes(given, cell)
    given.not_empty("states", states, 2, 3, 4)
    _, batch, length, heads, channels = states.shape
    for name, t in (("states", states), ("dstates", dstates)):
        given.plain(name, t, (count, batch, length, heads, channels), states.dtype)
    given.plain("gates", gates, (batch, length, kept, heads, channels), states.dtype)
    given.plain("R", R, (recurrent, heads, channels, channels), states.dtype)
    given.plain("initial_states", initial_states, (count, batch, heads, channels), states.dtype)


def _diagonal_scan(op: str, name: str, b: Tensor, tensors: Sequence[Any], pairs: bool) -> Arguments:
    a, initial_state, reset = tensors
    given = Arguments(op, name, b)
    given.is_single_or_double(name, b)
    given.has_dims(name, b, "batch length width")
    given.not_empty(name, b, 1, 2)
    batch, length, width = b.shape
    given.that(
        not pairs or width % 2 == 0,
        f"{name} is {list(b.shape)}, whose last dimension must hold pairs of real and imaginary "
        "parts",
    )
    given.fits("a", a, (None, None, width), b.dtype)
    given.that(
        a.shape[0] in (1, batch) and a.shape[1] in (1, length),
        f"a is {list(a.shape)}, expected batch 1 or {batch} and length 1 or {length}",
    )
    for label, t in (("a", a), (name, b)):
        given.last_contiguous(label, t)
    given.plain("initial_state", initial_state, (batch, width), b.dtype)
    given.plain("reset", reset, (batch, length), torch.bool)
    return given


def diagonal_scan(
    a: Tensor,
    b: Tensor,
    initial_state: Tensor | None,
    reset: Tensor | None,
    is_complex: bool,
    reverse: bool,
) -> None:
    """Of ``zoo::diagonal_scan``."""
    _diagonal_scan("diagonal_scan", "b", b, (a, initial_state, reset), is_complex)


def diagonal_scan_backward(
    dx: Tensor,
    x: Tensor,
    a: Tensor,
    initial_state: Tensor | None,
    reset: Tensor | None,
    is_complex: bool,
    reverse: bool,
) -> None:
    """Of ``zoo::diagonal_scan_backward``."""
    given = _diagonal_scan("diagonal_scan_backward", "x", x, (a, initial_state, reset), is_complex)
    given.fits("dx", dx, x.shape, x.dtype)
    given.last_contiguous("dx", dx)
