"""Attention of the nodes of a draft tree to a cached prefix and to their own ancestors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from zoo.errors import ZooError
from zoo.ops._checks import Arguments
from zoo.ops._library import register

_MOST_DIM = 256


def pack_ancestors(ancestors: Tensor) -> Tensor:
    """Rows of booleans as bits.

    Args:
        ancestors: bool ``[..., M]``; True at j: the row's node is node j or descends from it.

    Returns:
        int64 ``[..., ceil(M / 64)]``; bit ``j % 64`` of word ``j // 64`` stands for node j.
    """
    words = -(-ancestors.shape[-1] // 64)
    bits = torch.nn.functional.pad(ancestors, (0, words * 64 - ancestors.shape[-1]))
    bits = bits.reshape(*ancestors.shape[:-1], words, 64).long()
    shifts = torch.arange(64, device=ancestors.device)
    return (bits << shifts).sum(-1)


def unpack_ancestors(anc_bits: Tensor, size: int) -> Tensor:
    """The inverse of :func:`pack_ancestors`: bool ``[..., size]``."""
    shifts = torch.arange(64, device=anc_bits.device)
    return ((anc_bits[..., None] >> shifts) & 1).bool().flatten(-2)[..., :size]


def tree_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    kv_len: Tensor,
    anc_bits: Tensor,
    *,
    tree_start: Tensor | None = None,
    block_table: Tensor | None = None,
    scale: float | None = None,
    window: int = 0,
) -> Tensor:
    """Attention where a query sees the cached prefix of its sequence and its ancestors in a tree.

    Query i of sequence b sees the key in slot s if and only if ``s < kv_len[b]``, or
    ``s = tree_start[b] + j`` with bit j of ``anc_bits[b, i]`` set. Every query is its own ancestor.
    The N queries may be the last of M >= N tree nodes, so that a tree can grow level by level. A
    chain is ordinary causal attention. No mask over the prefix is ever made.

    Args:
        q: ``[B, Hq, N, D]``, float32, bfloat16 or float16 (float64 for checking), D at most 256.
        k, v: ``[B, Hkv, S, D]``, any strides; Hq is a multiple of Hkv, and query head h reads head
            ``h // (Hq / Hkv)``. With ``block_table``: pages ``[P, Hkv, page_size, D]``.
        kv_len: int64 ``[B]``, slots of the prefix.
        anc_bits: int64 ``[B, N, W]``, see :func:`pack_ancestors`; M <= 64 W.
        tree_start: int64 ``[B]``, slot of the tree's first node, ``kv_len`` by default. A node
            inside of the prefix is seen once.
        block_table: int64 ``[B, pages]``: slot s of sequence b is slot ``s % page_size`` of page
            ``block_table[b, s // page_size]``.
        scale: factor of the scores, ``D ** -0.5`` by default.
        window: if positive, a query sees only the last ``window`` positions, its own included. Node
            positions are ``kv_len`` + depth, those of the prefix are their slots.

    Returns:
        ``[B, Hq, N, D]`` in q's dtype; scores and softmax are computed in float32 at least. Where a
        gradient is asked for, it is that of the reference, which makes the mask.

    Raises:
        ZooError: shapes, dtypes or devices that do not fit together; on a CPU also ``kv_len``, a
            node that somebody sees or ``block_table`` outside of the cache. On CUDA, where to look
            would mean to wait, such a slot is left out and such a page is the last one; a library
            built with ``ZOO_DEBUG_KERNELS=1`` looks there too.

    A slot that no query sees is not read.

    The rule is that of Medusa (arXiv 2401.10774, section 2.1.2) and SpecInfer (arXiv 2305.09781).
    """
    _check(q, k, v, kv_len, anc_bits, tree_start, block_table)
    if scale is None:
        scale = q.shape[-1] ** -0.5
    if tree_start is None:
        tree_start = kv_len
    if torch.is_grad_enabled() and any(t.requires_grad for t in (q, k, v)):
        return tree_attention_reference(
            q, k, v, kv_len, anc_bits, tree_start, block_table, scale, window
        )
    q, k, v = (t if t.stride(-1) == 1 else t.contiguous() for t in (q, k, v))
    lengths = (t.contiguous() for t in (kv_len, anc_bits, tree_start))
    table = None if block_table is None else block_table.contiguous()
    try:
        return torch.ops.zoo.tree_attention(q, k, v, *lengths, table, scale, window)
    except RuntimeError as error:
        _raise_users_error(error)
        raise


def tree_attention_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    kv_len: Tensor,
    anc_bits: Tensor,
    tree_start: Tensor,
    block_table: Tensor | None,
    scale: float,
    window: int,
) -> Tensor:
    """:func:`tree_attention` with a dense mask; differentiable in q, k and v."""
    _check(q, k, v, kv_len, anc_bits, tree_start, block_table)
    _check_values(k, kv_len, anc_bits, tree_start, block_table)
    if block_table is not None:
        block_table = block_table.clamp(0, k.shape[0] - 1)  # what nobody sees may be anything
        k, v = (pages[block_table].transpose(1, 2).flatten(2, 3) for pages in (k, v))
    allowed = tree_mask(kv_len, anc_bits, tree_start, k.shape[2], window)  # [B, N, S]
    groups = q.shape[1] // k.shape[1]
    accumulate = torch.promote_types(q.dtype, torch.float32)
    k, v = (t.to(accumulate).repeat_interleave(groups, dim=1) for t in (k, v))
    scores = q.to(accumulate) @ k.transpose(-1, -2) * scale  # [B, Hq, N, S]
    # where, not addition: a slot nobody wrote may hold anything
    weights = scores.masked_fill(~allowed[:, None], float("-inf")).softmax(-1)
    visible = allowed.any(1)[:, None, :, None]  # [B, 1, S, 1]
    return (weights @ v.masked_fill(~visible, 0.0)).to(q.dtype)


def tree_mask(
    kv_len: Tensor, anc_bits: Tensor, tree_start: Tensor, slots: int, window: int | Tensor = 0
) -> Tensor:
    """Which slots each node sees, bool ``[B, N, slots]``; see :func:`tree_attention`.

    ``window`` may be a tensor ``[B, N, 1]``, one for each node, all positive.
    """
    ancestors = unpack_ancestors(anc_bits, anc_bits.shape[-1] * 64)  # [B, N, M]
    slot = torch.arange(slots, device=kv_len.device)
    prefix = slot < kv_len[:, None]  # [B, S]
    node = slot - tree_start[:, None]  # [B, S]
    inside = (node >= 0) & (node < ancestors.shape[-1])
    index = node.clamp(0, ancestors.shape[-1] - 1)[:, None].expand(-1, ancestors.shape[1], -1)
    own = ancestors.gather(2, index) & inside[:, None]  # [B, N, S]
    if not isinstance(window, Tensor) and window <= 0:
        return own | prefix[:, None]
    depth = ancestors.sum(-1) - 1  # [B, N]; of the nodes asked for, which are the last of M
    prefix_near = kv_len[:, None, None] + depth[..., None] - slot < window
    # j steps up, the ancestor is j positions away: nearer than the window if fewer lie between
    between = _nodes_between(ancestors, own, index)
    return (prefix[:, None] & prefix_near) | (own & (between < window))


def _nodes_between(ancestors: Tensor, own: Tensor, index: Tensor) -> Tensor:
    """Distance in positions from each query to each of its ancestors ``[B, N, S]``.

    Ancestors come in order, so the number of ancestors from j on, less one, is the distance.
    """
    after = ancestors.flip(-1).cumsum(-1).flip(-1) - 1  # [B, N, M]
    return torch.where(own, after.gather(2, index), 0)


def commit_path(
    k: Tensor, v: Tensor, kv_len: Tensor, path: Tensor, n: Tensor, tree_start: Tensor | None = None
) -> None:
    """Move the keys and values of an accepted path to the end of the prefix, in place.

    Slot ``tree_start[b] + path[b, j]`` goes to slot ``kv_len[b] + j`` for ``j < n[b]``. What lies
    behind is left as it is; the caller adds ``n`` to its lengths.

    Args:
        k, v: ``[B, H, S, D]``, any strides.
        kv_len, n: int64 ``[B]``.
        path: int64 ``[B, P]``, strictly increasing in the first ``n[b]`` places.
        tree_start: int64 ``[B]``, ``kv_len`` by default.

    Raises:
        ZooError: shapes, dtypes or devices that do not fit together; on a CPU also paths that do
            not ascend, and slots outside of the cache. On CUDA such slots are left out; see
            :func:`tree_attention`.
    """
    if k.dim() != 4 or v.dim() != 4 or k.shape[:3] != v.shape[:3]:
        raise ZooError(
            f"commit_path: k is {list(k.shape)} and v {list(v.shape)}, expected [B, H, S, D] "
            "with the same B, H and S"
        )
    start = kv_len if tree_start is None else tree_start
    _check_commit(k, kv_len, path, n, start)
    arguments = [t.contiguous() for t in (kv_len, path, n, start)]
    for cache in (k, v):
        if cache.stride(-1) != 1:
            commit_path_reference(cache, *arguments)
            continue
        try:
            torch.ops.zoo.commit_path(cache, *arguments)
        except RuntimeError as error:
            _raise_users_error(error)
            raise


def _raise_users_error(error: RuntimeError) -> None:
    """What the kernel has found in the index tensors is for the user to put right."""
    if str(error).startswith(("tree_attention: ", "commit_path: ")):
        raise ZooError(str(error)) from None


def commit_path_reference(
    cache: Tensor, kv_len: Tensor, path: Tensor, n: Tensor, tree_start: Tensor
) -> None:
    """:func:`commit_path` of keys or values, by a gather and a scatter."""
    _check_commit(cache, kv_len, path, n, tree_start)
    _check_commit_values(cache, kv_len, path, n, tree_start)
    step = torch.arange(path.shape[1], device=path.device)
    rows, places = (step < n[:, None]).nonzero(as_tuple=True)
    source = tree_start[rows] + path[rows, places]
    cache[rows, :, kv_len[rows] + places] = cache[rows, :, source]


def _check(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    kv_len: Tensor,
    anc_bits: Tensor,
    tree_start: Tensor | None,
    block_table: Tensor | None,
) -> None:
    given = Arguments("tree_attention", "q", q)
    given.is_float("q", q)
    given.has_dims("q", q, "B Hq N D")
    given.has_dims("k", k, "B Hkv S D" if block_table is None else "P Hkv page_size D")
    given.has_dims("anc_bits", anc_bits, "B N W")
    batch, heads, nodes, dim = q.shape
    pool, kv_heads, slots, _ = k.shape
    given.that(
        kv_heads > 0 and heads % kv_heads == 0,
        f"{heads} query heads are not a multiple of {kv_heads} key heads",
    )
    given.that(dim <= _MOST_DIM, f"head dimension {dim} is above {_MOST_DIM}")
    given.that(anc_bits.shape[2] > 0, "anc_bits has no words, but a query is its own ancestor")
    for name, t in (("k", k), ("v", v)):
        given.fits(name, t, (batch if block_table is None else pool, kv_heads, slots, dim), q.dtype)
    given.fits("kv_len", kv_len, (batch,), torch.int64)
    given.fits("anc_bits", anc_bits, (batch, nodes, None), torch.int64)
    given.fits("tree_start", tree_start, (batch,), torch.int64)
    given.fits("block_table", block_table, (batch, None), torch.int64)
    given.that(
        block_table is None or (pool > 0 and slots > 0),
        f"k is {list(k.shape)}, but needs pages, and slots in them",
    )


def _check_commit(
    cache: Tensor, kv_len: Tensor, path: Tensor, n: Tensor, tree_start: Tensor
) -> Arguments:
    given = Arguments("commit_path", "the cache", cache)
    given.has_dims("the cache", cache, "B H S D")
    batch = cache.shape[0]
    given.fits("kv_len", kv_len, (batch,), torch.int64)
    given.fits("path", path, (batch, None), torch.int64)
    given.fits("n", n, (batch,), torch.int64)
    given.fits("tree_start", tree_start, (batch,), torch.int64)
    return given


def _check_values(
    k: Tensor, kv_len: Tensor, anc_bits: Tensor, tree_start: Tensor, block_table: Tensor | None
) -> None:
    """What the kernels for the CPU check (csrc/tree_attention/values.h), in a graph as well."""
    slots = k.shape[2] if block_table is None else k.shape[2] * block_table.shape[1]
    _assert(((kv_len >= 0) & (kv_len <= slots)).all(), "kv_len is outside of the cache")
    nodes = anc_bits.shape[2] * 64
    seen = unpack_ancestors(anc_bits, nodes).any(1)  # [B, M]
    slot = tree_start[:, None] + torch.arange(nodes, device=k.device)
    inside = (slot >= 0) & (slot < slots)
    _assert((inside | ~seen).all(), "tree_start puts a node outside of the cache")
    if block_table is None:
        return
    used = torch.arange(slots, device=k.device) < kv_len[:, None]  # [B, S]
    used = used.scatter_reduce(1, slot.where(inside, 0), seen & inside, "amax") if slots else used
    used = used.unflatten(1, (-1, k.shape[2])).any(2)  # [B, pages]
    right = (block_table >= 0) & (block_table < k.shape[0])
    _assert((right | ~used).all(), "block_table names a page that does not exist")


def _check_commit_values(
    cache: Tensor, kv_len: Tensor, path: Tensor, n: Tensor, tree_start: Tensor
) -> None:
    slots, places = cache.shape[2], torch.arange(path.shape[1], device=path.device)
    counts = places < n[:, None]  # [B, P]
    source = tree_start[:, None] + path
    known = (path >= 0) & (path < slots) & (source >= 0) & (source < slots)
    ascends = torch.ones_like(known)
    ascends[:, 1:] = path[:, 1:] > path[:, :-1]
    room = (kv_len >= 0) & (kv_len <= slots - n)
    right = (n >= 0) & (n <= path.shape[1]) & (room | (n == 0))
    _assert(right.all(), "n or kv_len is outside of the path or the cache", "commit_path")
    _assert((known | ~counts).all(), "a slot of path is outside of the cache", "commit_path")
    _assert((ascends | ~counts).all(), "path must ascend", "commit_path")


def _assert(holds: Tensor, otherwise: str, op: str = "tree_attention") -> None:
    """On CUDA the indexing checks for itself, and to look would mean to wait."""
    if holds.device.type == "cpu":
        torch._assert_async(holds, f"{op}: {otherwise}")


def _check_registered(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    kv_len: Tensor,
    anc_bits: Tensor,
    tree_start: Tensor,
    block_table: Tensor | None,
    scale: float,
    window: int,
) -> None:
    _check(q, k, v, kv_len, anc_bits, tree_start, block_table)
    given = Arguments("tree_attention", "q", q)
    for name, t in (("q", q), ("k", k), ("v", v)):
        given.last_contiguous(name, t)
    indices = {"kv_len": kv_len, "anc_bits": anc_bits, "tree_start": tree_start,
               "block_table": block_table}  # fmt: skip
    for name, index in indices.items():
        given.that(index is None or index.is_contiguous(), f"{name} must be contiguous")


def _check_registered_commit(cache: Tensor, *indices: Tensor) -> None:
    given = _check_commit(cache, *indices)
    given.last_contiguous("the cache", cache)
    for name, index in zip(("kv_len", "path", "n", "tree_start"), indices, strict=True):
        given.that(index.is_contiguous(), f"{name} must be contiguous")
    given.will_change("the cache", cache, *indices)


def _fake_commit(*arguments: Any) -> None:
    return None


register(
    "tree_attention",
    check=_check_registered,
    reference=tree_attention_reference,
    fake=lambda q, *others: q.new_empty(q.shape),
)
register(
    "commit_path",
    check=_check_registered_commit,
    reference=commit_path_reference,
    fake=_fake_commit,
)
