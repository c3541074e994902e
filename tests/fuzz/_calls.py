"""Right calls of the registered ops, for the domain ``ops``."""

from __future__ import annotations

from random import Random

import torch
from torch import Tensor

from tests.fuzz._call import Call
from zoo.ops import _library
from zoo.ops._registered import CELL_SIZES
from zoo.ops.ssd import _span
from zoo.ops.tree_attention import pack_ancestors

DTYPES = (torch.float32, torch.float32, torch.bfloat16, torch.float16, torch.float64)
SENTINEL = 77  # what stands around a tensor that is overwritten


def laid_out(random: Random, t: Tensor, keep_last: bool = False) -> Tensor:
    """In another layout; with ``keep_last`` the last dimension stays contiguous."""
    kind = random.choice(
        ("plain", "plain", "transposed", "padded", "spread", "shifted", "expanded")
    )
    if kind == "transposed" and t.dim() >= 2:
        last = t.dim() - 1 if keep_last else t.dim()
        order = random.sample(range(last), last) + list(range(last, t.dim()))
        inverse = [order.index(i) for i in range(t.dim())]
        return t.permute(order).contiguous().permute(inverse)
    if kind == "padded" and t.dim():
        return torch.nn.functional.pad(t, (0, random.randint(1, 5)))[..., : t.shape[-1]]
    if kind == "spread" and t.dim() and not keep_last:
        return t.repeat_interleave(2, dim=-1)[..., ::2]
    if kind == "shifted" and t.dim():
        return torch.cat([t[..., :1], t], dim=-1)[..., 1:]
    if kind == "expanded" and t.dim() >= 2 and t.shape[0]:
        return t[:1].expand(t.shape)
    return t


def overwritten(random: Random, t: Tensor, keep_last: bool = False) -> Tensor:
    """As a part of a larger tensor of which nothing else may change."""
    pads = [random.randint(0, 2) for _ in range(2 * t.dim())]
    whole = torch.nn.functional.pad(t, pads, value=SENTINEL)
    for dim in range(t.dim()):
        before = pads[2 * (t.dim() - 1 - dim)]
        whole = whole.narrow(dim, before, t.shape[dim])
    if random.random() < 0.3 and not keep_last:
        whole = whole.transpose(-1, -2).clone().transpose(-1, -2)
    return whole


def floats(*shape: int, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> Tensor:
    return (torch.randn(shape) * scale).to(dtype)


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def maybe(random: Random, t: Tensor, chance: float = 0.5) -> Tensor | None:
    return t if random.random() < chance else None


def size(random: Random, most: int) -> int:
    """Mostly small, sometimes at a border of the kernels' tiles."""
    borders = [n for n in (15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 257) if n <= most]
    if borders and random.random() < 0.3:
        return random.choice(borders)
    return random.randint(1, min(most, 9))


def make(random: Random) -> Call:
    """Any op, called as it should be."""
    return random.choice(MAKERS)(random)


def _convolution(random: Random) -> tuple[torch.dtype, Tensor, Tensor, Tensor | None]:
    dtype = random.choice(DTYPES)
    batch, dim, length = random.choice((0, 1, 1, 2)), size(random, 65), size(random, 257)
    width = random.choice((1, 2, 3, 4, 4, 5, 7, 64))
    x = floats(batch, dim, length, dtype=dtype)
    parameter = state_dtype(dtype)
    weight = floats(dim, width, dtype=parameter)
    return dtype, x, weight, maybe(random, floats(dim, dtype=parameter))


def causal_conv1d(random: Random) -> Call:
    dtype, x, weight, bias = _convolution(random)
    batch, dim, length = x.shape
    if random.random() < 0.5:
        x = x.mT.contiguous().mT if random.random() < 0.5 else laid_out(random, x, True)
    seq_idx, initial = None, None
    extra = random.choice(("", "seq_idx", "initial"))
    if extra == "seq_idx":
        seq_idx = torch.randint(-1, 3, (batch, length), dtype=torch.int32)
        seq_idx = seq_idx.sort(1).values if random.random() < 0.8 else seq_idx
    if extra == "initial":
        initial = laid_out(random, floats(batch, dim, weight.shape[1] - 1, dtype=dtype))
    arguments = [x, weight, bias, seq_idx, initial, random.random() < 0.5]
    if random.random() < 0.5:
        return Call("causal_conv1d", arguments)
    along = 2 if x.stride(2) == 1 else 1
    dout = floats(batch, dim, length, dtype=dtype)
    dout = dout if along == 2 else dout.mT.contiguous().mT
    return Call("causal_conv1d_backward", [dout, *arguments])


def causal_conv1d_update(random: Random) -> Call:
    dtype, x, weight, bias = _convolution(random)
    x = x[..., : random.choice((1, 1, 3, 9))]
    batch, dim = x.shape[:2]
    kept = weight.shape[1] - 1 + random.choice((0, 0, 1, 3))
    state = overwritten(random, floats(batch, dim, kept, dtype=dtype))
    seen = torch.randint(-9, 99, (batch,), dtype=torch.int32)
    arguments = [
        laid_out(random, x),
        state,
        weight,
        bias,
        maybe(random, seen),
        random.random() < 0.5,
    ]
    return Call("causal_conv1d_update", arguments, changed=(1,))


def selective_scan(random: Random) -> Call:
    dtype = random.choice(DTYPES)
    groups = random.choice((1, 1, 2, 3))
    batch, dim = random.choice((0, 1, 2)), groups * size(random, 33)
    length, state = size(random, 257), size(random, 17)
    parameter = state_dtype(dtype)

    def signal(*shape: int) -> Tensor:
        return laid_out(random, floats(*shape, dtype=dtype))

    def projection() -> Tensor:
        if random.random() < 0.2:
            return floats(dim, state, dtype=parameter)
        return signal(batch, groups, state, length)

    softplus = random.random() < 0.5
    delta = signal(batch, dim, length)
    delta = delta if softplus else delta.abs() / 4
    chunk = random.choice((0, 32, 64, 96, 128, 256))
    arguments = [
        signal(batch, dim, length), delta, -floats(dim, state, dtype=parameter).abs() - 0.1,
        projection(), projection(), maybe(random, floats(dim, dtype=parameter)),
        maybe(random, signal(batch, dim, length)),
        maybe(random, floats(dim, dtype=parameter).abs() / 4),
        maybe(random, floats(batch, dim, state, dtype=parameter)),
        maybe(random, torch.rand(batch, length) < 0.1), softplus, random.random() < 0.5,
        random.random() < 0.3, chunk,
    ]  # fmt: skip
    if random.random() < 0.5:
        return Call("selective_scan", arguments, unread=(2,))
    arguments[-1] = chunk = chunk or 64
    borders = torch.ops.zoo.selective_scan(*arguments)[2]
    dout = maybe(random, signal(batch, dim, length), 0.8)
    dstate = maybe(random, floats(batch, dim, state, dtype=parameter))
    return Call("selective_scan_backward", [dout, dstate, borders, *arguments])


def selective_state_update(random: Random) -> Call:
    dtype = random.choice(DTYPES)
    kept = dtype if random.random() < 0.5 or dtype == torch.float64 else torch.float32
    if dtype == torch.float32 and random.random() < 0.3:
        kept = random.choice((torch.bfloat16, torch.float16))
    groups = random.choice((1, 1, 2, 3))
    batch, n = random.choice((0, 1, 3)), size(random, 65)
    middle = [groups * size(random, 17)] + ([size(random, 33)] if random.random() < 0.5 else [])
    parameter = state_dtype(dtype)

    def signal() -> Tensor:
        return laid_out(random, floats(batch, *middle, dtype=dtype))

    def projection() -> Tensor:
        shape = (batch, n) if groups == 1 and random.random() < 0.5 else (batch, groups, n)
        return laid_out(random, floats(*shape, dtype=dtype))

    def per_channel(*last: int) -> Tensor:
        return laid_out(random, floats(*middle, *last, dtype=parameter))

    state = overwritten(random, floats(batch, *middle, n, dtype=kept))
    softplus = random.random() < 0.5
    dt = signal() if softplus else signal().abs() / 4
    arguments = [
        state, signal(), dt, -per_channel(n).abs(), projection(), projection(),
        maybe(random, per_channel()), maybe(random, signal()),
        maybe(random, per_channel().abs() / 4), softplus, random.random() < 0.3,
    ]  # fmt: skip
    return Call("selective_state_update", arguments, changed=(0,))


def ssd(random: Random) -> Call:
    dtype = random.choice(DTYPES)
    groups = random.choice((1, 1, 2, 3))
    batch, heads = random.choice((0, 1, 2)), groups * random.randint(1, 3)
    length, head_dim, state = size(random, 129), size(random, 33), size(random, 33)
    parameter = state_dtype(dtype)

    def signal(*shape: int) -> Tensor:
        return laid_out(random, floats(batch, length, *shape, dtype=dtype), keep_last=True)

    skip = floats(heads, head_dim, dtype=parameter)
    if random.random() < 0.5:
        skip = skip[:, :1].expand(heads, head_dim)
    ids = (torch.rand(batch, length) < 0.1).cumsum(1).int()
    span = random.choice((0, _span(skip)))
    arguments = [
        signal(heads, head_dim), floats(batch, length, heads, dtype=parameter).abs() / 4,
        -floats(heads, dtype=parameter).abs() - 0.1, signal(groups, state), signal(groups, state),
        maybe(random, skip), maybe(random, signal(heads, head_dim)),
        maybe(random, floats(batch, heads, head_dim, state, dtype=parameter)),
        maybe(random, ids), random.random() < 0.5, span, random.choice((1, 5, 64, 256)),
    ]  # fmt: skip
    if random.random() < 0.5:
        return Call("ssd", arguments, unread=(2,))
    arguments[-2] = _span(skip)
    borders = torch.ops.zoo.ssd(*arguments)[2]
    dout = maybe(random, signal(heads, head_dim), 0.8)
    dstate = maybe(random, floats(batch, heads, head_dim, state, dtype=parameter))
    return Call("ssd_backward", [dout, dstate, borders, *arguments])


def cross(random: Random) -> Call:
    dtype, atrous = random.choice(DTYPES), random.random() < 0.5
    batch, channels = random.choice((0, 1, 2)), size(random, 33)
    height, width = size(random, 33), size(random, 33)
    if random.random() < 0.5:
        x = laid_out(random, floats(batch, channels, height, width, dtype=dtype))
        return Call("cross_scan", [x, atrous])
    length = -(-height // 2) * -(-width // 2) if atrous else height * width
    ys = laid_out(random, floats(batch, 4 if atrous else 2, channels, length, dtype=dtype))
    return Call("cross_merge", [ys, height, width, atrous])


def _tree(random: Random, batch: int, nodes: int) -> Tensor:
    """Ancestors of random trees, bool [batch, nodes, nodes]."""
    seen = torch.eye(nodes, dtype=torch.bool).repeat(batch, 1, 1)
    for b in range(batch):
        for node in range(1, nodes):
            if random.random() < 0.9:
                seen[b, node] |= seen[b, random.randrange(node)]
    return seen


def tree_attention(random: Random) -> Call:
    dtype = random.choice(DTYPES)
    batch, kv_heads, per_head = random.choice((0, 1, 2)), random.randint(1, 3), random.randint(1, 3)
    nodes, dim = size(random, 129), size(random, 65)
    asked = random.randint(1, nodes)
    prefix = [random.choice((0, 1, 5, size(random, 129))) for _ in range(batch)]
    start = [p + random.choice((0, 0, 3)) if random.random() < 0.9 else p // 2 for p in prefix]
    slots = max([s + nodes for s in start] + prefix, default=nodes) + random.choice((0, 2))
    seen = _tree(random, batch, nodes)[:, nodes - asked :]
    q = laid_out(random, floats(batch, kv_heads * per_head, asked, dim, dtype=dtype), True)
    k, v = (floats(batch, kv_heads, slots, dim, dtype=dtype) for _ in "kv")
    for b in range(batch):  # what nobody sees may hold anything
        unread = torch.ones(slots, dtype=torch.bool)
        unread[: prefix[b]] = False
        unread[start[b] : start[b] + nodes] &= ~seen[b].any(0)
        k[b, :, unread] = v[b, :, unread] = float("nan")
    table = None
    if batch and random.random() < 0.4:
        page = random.choice((1, 4, 16))
        k, v = (torch.nn.functional.pad(t, (0, 0, 0, -slots % page)) for t in (k, v))
        pages = k.shape[2] // page
        order = torch.randperm(batch * pages)
        pools = [torch.empty_like(t.unflatten(2, (pages, page)).transpose(1, 2).flatten(0, 1))
                 for t in (k, v)]  # fmt: skip
        for pool, t in zip(pools, (k, v), strict=True):
            pool[order] = t.unflatten(2, (pages, page)).transpose(1, 2).flatten(0, 1)
        k, v = pools
        table = order.view(batch, pages)
    else:
        k, v = (laid_out(random, t, True) if batch < 2 else t for t in (k, v))
    arguments = [
        q, k, v, torch.tensor(prefix, dtype=torch.int64), pack_ancestors(seen),
        torch.tensor(start, dtype=torch.int64), table, random.choice((0.0, 0.3, 1.0)),
        random.choice((0, 0, -1, 1, 4, 100)),
    ]  # fmt: skip
    return Call("tree_attention", arguments)


def commit_path(random: Random) -> Call:
    dtype = random.choice((*DTYPES, torch.int8, torch.int64))
    batch, heads, dim = random.choice((0, 1, 3)), random.randint(0, 3), random.randint(0, 9)
    slots, places = random.randint(8, 40), random.randint(0, 6)
    cache = torch.randint(-99, 99, (batch, heads, slots, dim)).to(dtype)
    lengths = [random.randint(0, slots - places) for _ in range(batch)]
    starts = [random.choice((n, random.randint(0, slots - places))) for n in lengths]
    path = [sorted(random.sample(range(max(slots - s, places)), places)) for s in starts]
    counts = []
    for b, start in enumerate(starts):
        inside = sum(start + p < slots for p in path[b])
        counts.append(random.randint(0, inside))
    numbers = [torch.tensor(t, dtype=torch.int64) for t in (lengths, counts, starts)]
    arguments = [
        overwritten(random, cache, True), numbers[0],
        torch.tensor(path, dtype=torch.int64).view(batch, places), numbers[1], numbers[2],
    ]  # fmt: skip
    return Call("commit_path", arguments, changed=(0,))


def delta_rule(random: Random) -> Call:
    dtype = random.choice((torch.float32, torch.float64))
    batch, length, heads = random.choice((0, 1, 2)), size(random, 129), random.randint(1, 3)
    state, channels = size(random, 65), size(random, 129)

    def row() -> Tensor | None:
        return maybe(random, floats(batch, length, heads, dtype=dtype).tanh(), 0.7)

    k = floats(batch, length, heads, state, dtype=dtype)
    span = random.choice((0, 32))
    arguments = [
        floats(batch, length, heads, state, dtype=dtype),
        k / k.norm(dim=-1, keepdim=True).clamp_min(1),
        floats(batch, length, heads, channels, dtype=dtype), row(), row(),
        maybe(random, floats(batch, heads, state, channels, dtype=dtype)), span,
    ]  # fmt: skip
    if random.random() < 0.5:
        return Call("delta_rule", arguments, unread=(2,))
    arguments[-1] = 32
    borders = torch.ops.zoo.delta_rule(*arguments)[2]
    dout = maybe(random, floats(batch, length, heads, channels, dtype=dtype), 0.8)
    dstate = maybe(random, floats(batch, heads, state, channels, dtype=dtype))
    return Call("delta_rule_backward", [dout, dstate, borders, *arguments])


def recurrent_cell(random: Random) -> Call:
    dtype, cell = random.choice((torch.float32, torch.float64)), random.randrange(4)
    inputs, recurrent, biases, _, states = CELL_SIZES[cell]
    batch, length = random.choice((0, 1, 2, 27)), size(random, 33)
    heads, channels = random.randint(1, 3), size(random, 65)
    R = floats(recurrent, heads, channels, channels, dtype=dtype, scale=0.2)
    start = floats(states, batch, heads, channels, dtype=dtype)
    if cell == 3:
        start[2] = start[2].abs() + 1.5  # at 1 the gradient has a corner
    arguments = [
        floats(batch, length, inputs, heads, channels, dtype=dtype), R,
        floats(biases, heads, channels, dtype=dtype), start, cell, random.random() < 0.5,
    ]  # fmt: skip
    if random.random() < 0.5:
        return Call("recurrent_cell", arguments)
    arguments[-1] = True
    found, gates = torch.ops.zoo.recurrent_cell(*arguments)
    return Call("recurrent_cell_backward", [torch.randn_like(found), found, gates, R, start, cell])


def diagonal_scan(random: Random) -> Call:
    dtype = random.choice((torch.float32, torch.float64))
    batch, length, is_complex = random.choice((0, 1, 2)), size(random, 129), random.random() < 0.5
    numbers = size(random, 33) * (2 if is_complex else 1)

    def row() -> Tensor:
        return floats(batch, length, numbers, dtype=dtype)

    reset = maybe(random, torch.rand(batch, length) < 0.1)
    state = maybe(random, floats(batch, numbers, dtype=dtype))
    a, others = 0.7 * row().tanh(), [state, reset, is_complex, random.random() < 0.5]
    if random.random() < 0.5:
        return Call("diagonal_scan", [a, row(), *others])
    x = torch.ops.zoo.diagonal_scan(a, row(), *others)
    return Call("diagonal_scan_backward", [row(), x, a, *others])


def ssm_kernel(random: Random) -> Call:
    dtype = random.choice((torch.float32, torch.float64))
    rows, features, modes = random.randint(1, 3), size(random, 17), size(random, 33)
    length = size(random, 257)
    v = floats(rows, features, modes, 2, dtype=dtype)
    stable = floats(features, modes, 2, dtype=dtype)
    stable[..., 0] = -0.1 - stable[..., 0].abs()
    kind = random.randrange(4)
    if kind < 2:
        z = floats(length, 2, dtype=dtype)
        z[:, 0] = 0  # on the axis that the poles are left of
        if kind == 0:
            return Call("cauchy_kernel", [v, z, stable])
        dout = floats(rows, features, length, 2, dtype=dtype)
        return Call("cauchy_kernel_backward", [dout, v, z, stable])
    if kind == 2:
        return Call("vandermonde_kernel", [v, stable, length])
    u = floats(rows, features, length, dtype=dtype)
    return Call("vandermonde_transpose", [u, stable, random.randint(1, 2)])


MAKERS = (
    causal_conv1d,
    causal_conv1d_update,
    selective_scan,
    selective_state_update,
    ssd,
    cross,
    tree_attention,
    commit_path,
    delta_rule,
    recurrent_cell,
    diagonal_scan,
    ssm_kernel,
)
assert {s.split("(")[0] for s in _library.schemas()} == {
    "cpu_capability", "causal_conv1d", "causal_conv1d_backward", "causal_conv1d_update",
    "selective_scan", "selective_scan_backward", "selective_state_update", "ssd", "ssd_backward",
    "cross_scan", "cross_merge", "tree_attention", "commit_path", "delta_rule",
    "delta_rule_backward", "recurrent_cell", "recurrent_cell_backward", "diagonal_scan",
    "diagonal_scan_backward", "cauchy_kernel", "cauchy_kernel_backward", "vandermonde_kernel",
    "vandermonde_transpose",
}, "an op without a maker"  # fmt: skip
