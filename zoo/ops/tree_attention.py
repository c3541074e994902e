"""Attention of the nodes of a draft tree to a cached prefix and to their own ancestors."""

from __future__ import annotations

import torch
from torch import Tensor

from zoo.ops._library import register_reference


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
        tree_start: int64 ``[B]``, slot of the tree's first node, ``kv_len`` by default.
        block_table: int64 ``[B, pages]``: slot s of sequence b is slot ``s % page_size`` of page
            ``block_table[b, s // page_size]``.
        scale: factor of the scores, ``D ** -0.5`` by default.
        window: if positive, a query sees only the last ``window`` positions, its own included. Node
            positions are ``kv_len`` + depth, those of the prefix are their slots.

    Returns:
        ``[B, Hq, N, D]`` in q's dtype; scores and softmax are computed in float32 at least. Where a
        gradient is asked for, it is that of the reference, which makes the mask.

    Raises:
        ValueError: shapes that do not fit together.

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
    return torch.ops.zoo.tree_attention(q, k, v, *lengths, table, scale, window)


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
    if block_table is not None:
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
    """
    if path.dim() != 2 or path.shape[0] != k.shape[0] or n.shape != kv_len.shape:
        raise ValueError(
            f"commit_path: path is {list(path.shape)}, n {list(n.shape)}, expected "
            f"[{k.shape[0]}, P] and [{k.shape[0]}]"
        )
    start = kv_len if tree_start is None else tree_start
    arguments = [t.contiguous() for t in (kv_len, path, n, start)]
    for cache in (k, v):
        if cache.stride(-1) == 1:
            torch.ops.zoo.commit_path(cache, *arguments)
        else:
            commit_path_reference(cache, *arguments)


def commit_path_reference(
    cache: Tensor, kv_len: Tensor, path: Tensor, n: Tensor, tree_start: Tensor
) -> None:
    """:func:`commit_path` of keys or values, by a gather and a scatter."""
    step = torch.arange(path.shape[1], device=path.device)
    rows, places = (step < n[:, None]).nonzero(as_tuple=True)
    source = tree_start[rows] + path[rows, places]
    cache[rows, :, kv_len[rows] + places] = cache[rows, :, source]


register_reference("tree_attention", tree_attention_reference)
register_reference("commit_path", commit_path_reference)


@torch.library.register_fake("zoo::tree_attention")
def _fake_tree_attention(q: Tensor, *arguments: object) -> Tensor:
    return q.new_empty(q.shape)


@torch.library.register_fake("zoo::commit_path")
def _fake_commit_path(cache: Tensor, *arguments: object) -> None:
    return None


def _check(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    kv_len: Tensor,
    anc_bits: Tensor,
    tree_start: Tensor | None,
    block_table: Tensor | None,
) -> None:
    if q.dim() != 4 or k.dim() != 4 or k.shape != v.shape:
        raise ValueError(
            f"tree_attention: q is {list(q.shape)}, k {list(k.shape)}, v {list(v.shape)}; expected "
            "[B, Hq, N, D] and twice [B, Hkv, S, D]"
        )
    batch, heads, nodes, dim = q.shape
    if k.shape[3] != dim or heads % k.shape[1] or (block_table is None and k.shape[0] != batch):
        raise ValueError(
            f"tree_attention: q {list(q.shape)} does not fit k {list(k.shape)}: batch and head "
            "dimension must agree, and the query heads must be a multiple of the key heads"
        )
    if dim > 256:
        raise ValueError(f"tree_attention: head dimension {dim} is above 256")
    if anc_bits.dim() != 3 or anc_bits.shape[:2] != (batch, nodes):
        raise ValueError(
            f"tree_attention: anc_bits is {list(anc_bits.shape)}, expected [{batch}, {nodes}, W]"
        )
    lengths = [("kv_len", kv_len)]
    if tree_start is not None:
        lengths.append(("tree_start", tree_start))
    for name, length in lengths:
        if length.shape != (batch,):
            raise ValueError(f"tree_attention: {name} is {list(length.shape)}, expected [{batch}]")
    if block_table is not None and (block_table.dim() != 2 or block_table.shape[0] != batch):
        raise ValueError(
            f"tree_attention: block_table is {list(block_table.shape)}, expected [{batch}, pages]"
        )
