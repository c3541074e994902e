from __future__ import annotations

import pytest
import torch

from zoo.decoding.tree import Tree, ancestor_matrix, batch_parents
from zoo.errors import ZooError
from zoo.ops.tree_attention import (
    commit_path,
    pack_ancestors,
    tree_attention,
    tree_attention_reference,
    unpack_ancestors,
)

DTYPES = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 4e-3}


def random_tree(size: int, generator: torch.Generator) -> Tree:
    return Tree([-1, *(int(torch.randint(n, (), generator=generator)) for n in range(1, size))])


def case(
    batch=2, heads=4, kv_heads=2, nodes=9, dim=16, prefix=(21, 5), dtype=torch.float32, seed=0
):
    generator = torch.Generator().manual_seed(seed)
    trees = [random_tree(nodes, generator) for _ in range(batch)]
    kv_len = torch.tensor(prefix[:batch])
    slots = int(kv_len.max()) + nodes + 3
    q = torch.randn(batch, heads, nodes, dim, generator=generator).to(dtype)
    k, v = (torch.randn(batch, kv_heads, slots, dim, generator=generator).to(dtype) for _ in "kv")
    return trees, q, k, v, kv_len, pack_ancestors(ancestor_matrix(batch_parents(trees)))


def one_by_one(trees, q, k, v, kv_len, start, scale=None, window=0):
    """Every query on its own, over the keys of its path in order."""
    out = torch.empty_like(q, dtype=torch.float64)
    groups = q.shape[1] // k.shape[1]
    for b, tree in enumerate(trees):
        for node in range(q.shape[2]):
            slots = [*range(int(kv_len[b])), *(int(start[b]) + n for n in tree.path(node))]
            slots = slots[-window:] if window else slots
            for h in range(q.shape[1]):
                keys, values = (t[b, h // groups, slots].double() for t in (k, v))
                scores = keys @ q[b, h, node].double() * (scale or q.shape[-1] ** -0.5)
                out[b, h, node] = scores.softmax(0) @ values
    return out


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "shape",
    [
        dict(),
        dict(nodes=1),
        dict(nodes=64, batch=1, prefix=(100,)),
        dict(nodes=70, batch=1, prefix=(3,)),
        dict(nodes=130, batch=1, prefix=(17,)),
        dict(prefix=(0, 1)),
        dict(dim=40, heads=3, kv_heads=1),
        dict(dim=128, heads=2, kv_heads=2, prefix=(257, 64)),
        dict(dim=256, heads=2, kv_heads=1),
        dict(dim=7),
    ],
    ids=str,
)
def test_every_query_sees_its_path(shape, dtype) -> None:
    trees, q, k, v, kv_len, bits = case(**shape, dtype=dtype)
    out = tree_attention(q, k, v, kv_len, bits)
    assert out.dtype == dtype and out.shape == q.shape
    expected = one_by_one(trees, q, k, v, kv_len, kv_len)
    torch.testing.assert_close(out.double(), expected, atol=DTYPES[dtype], rtol=DTYPES[dtype])


@pytest.mark.parametrize("window", [1, 2, 4, 15, 100])
def test_windows_count_positions_not_slots(window: int) -> None:
    trees, q, k, v, kv_len, bits = case()
    out = tree_attention(q, k, v, kv_len, bits, window=window)
    expected = one_by_one(trees, q, k, v, kv_len, kv_len, window=window)
    torch.testing.assert_close(out.double(), expected, atol=1e-5, rtol=1e-5)


def test_a_tree_may_start_behind_a_gap_and_scale_is_free() -> None:
    trees, q, k, v, kv_len, bits = case()
    start = torch.full_like(kv_len, 23)
    out = tree_attention(q, k, v, kv_len, bits, tree_start=start, scale=0.3)
    expected = one_by_one(trees, q, k, v, kv_len, start, scale=0.3)
    torch.testing.assert_close(out.double(), expected, atol=1e-5, rtol=1e-5)


def test_the_last_nodes_of_a_tree_can_be_asked_alone() -> None:
    _, q, k, v, kv_len, bits = case()
    whole = tree_attention(q, k, v, kv_len, bits)
    part = tree_attention(q[:, :, 6:], k, v, kv_len, bits[:, 6:])
    torch.testing.assert_close(part, whole[:, :, 6:])


def test_a_chain_is_causal_attention() -> None:
    _, q, k, v, _, _ = case(batch=1, nodes=24, heads=2)
    k, v = k[:, :, :24], v[:, :, :24]
    bits = pack_ancestors(ancestor_matrix(batch_parents([Tree.chain(23)])))
    out = tree_attention(q, k, v, torch.tensor([0]), bits)
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)


def test_strides_and_unwritten_slots_do_not_matter() -> None:
    _, q, k, v, kv_len, bits = case()
    expected = tree_attention(q, k, v, kv_len, bits)
    odd = [t.transpose(1, 2).contiguous().transpose(1, 2) for t in (q, k, v)]
    torch.testing.assert_close(tree_attention(*odd, kv_len, bits), expected)
    wide = [torch.cat([t, t], -1)[..., : t.shape[-1]] for t in (q, k, v)]
    torch.testing.assert_close(tree_attention(*wide, kv_len, bits), expected)
    k, v = k.clone(), v.clone()
    for row, length in enumerate(kv_len.tolist()):
        k[row, :, length + 9 :] = float("nan")
        v[row, :, length + 9 :] = float("nan")
    # the second sequence's own gap is not touched by the first one's longer prefix
    torch.testing.assert_close(tree_attention(q, k, v, kv_len, bits), expected)


def test_pages() -> None:
    _, q, k, v, kv_len, bits = case()
    size, pages = 8, -(-k.shape[2] // 8)
    k, v = (torch.nn.functional.pad(t, (0, 0, 0, pages * size - t.shape[2])) for t in (k, v))
    expected = tree_attention(q, k, v, kv_len, bits)
    order = torch.randperm(2 * pages, generator=torch.Generator().manual_seed(0))
    table = order.view(2, pages)
    paged = []
    for t in (k, v):
        split = t.unflatten(2, (pages, size)).transpose(1, 2).flatten(0, 1)
        pool = torch.empty_like(split)
        pool[order] = split
        paged.append(pool)
    out = tree_attention(q, *paged, kv_len, bits, block_table=table)
    torch.testing.assert_close(out, expected)


def test_gradients() -> None:
    _, q, k, v, kv_len, bits = case(nodes=4, dim=3, prefix=(3, 1), dtype=torch.float64)
    inputs = [t.requires_grad_() for t in (q, k, v)]
    assert torch.autograd.gradcheck(
        lambda *t: tree_attention(*t, kv_len, bits), inputs, fast_mode=True
    )


def test_bits_round_trip() -> None:
    bits = torch.rand(3, 5, 130, generator=torch.Generator().manual_seed(0)) < 0.5
    packed = pack_ancestors(bits)
    assert packed.shape == (3, 5, 3) and packed.dtype == torch.int64
    assert torch.equal(unpack_ancestors(packed, 130), bits)


def test_commit_keeps_the_path() -> None:
    _, _, k, v, kv_len, _ = case()
    path, count = torch.tensor([[0, 2, 5, 8], [0, 7, 0, 0]]), torch.tensor([4, 2])
    kept_k, kept_v = k.clone(), v.clone()
    commit_path(kept_k, kept_v, kv_len, path, count)
    for cache, kept in ((k, kept_k), (v, kept_v)):
        for row, n in enumerate(count.tolist()):
            length = int(kv_len[row])
            slots = (length + path[row, :n]).tolist()
            assert torch.equal(kept[row, :, length : length + n], cache[row, :, slots])
            assert torch.equal(kept[row, :, :length], cache[row, :, :length])
    start = torch.tensor([23, 23])
    commit_path(kept_k, kept_v, kv_len, path, count, start)
    assert torch.equal(kept_k[1, :, 5:7], k[1, :, [23, 30]])


def test_the_op_keeps_pytorchs_contract() -> None:
    _, q, k, v, kv_len, bits = case(nodes=4)
    arguments = (q, k, v, kv_len, bits, kv_len, None, 0.25, 0)
    torch.library.opcheck(torch.ops.zoo.tree_attention.default, arguments)
    path, count = torch.tensor([[0, 2], [0, 3]]), torch.tensor([2, 1])
    commit = (k.clone(), kv_len, path, count, kv_len)
    torch.library.opcheck(torch.ops.zoo.commit_path.default, commit)


def test_it_compiles_as_one_graph() -> None:
    _, q, k, v, kv_len, bits = case()
    compiled = torch.compile(tree_attention, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(
        compiled(q, k, v, kv_len, bits), tree_attention(q, k, v, kv_len, bits)
    )


@pytest.mark.parametrize("capability", ["default", "avx2", "avx512"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_cpu_variant_agrees(capability: str, dtype, monkeypatch) -> None:
    monkeypatch.setenv("ZOO_CPU_CAPABILITY", capability)
    for shape in (dict(nodes=70, dim=40), dict(nodes=1, dim=128), dict(nodes=150, dim=7)):
        for window in (0, 5):
            _, q, k, v, kv_len, bits = case(**shape, prefix=(200, 131), dtype=dtype)
            try:
                out = tree_attention(q, k, v, kv_len, bits, window=window)
            except RuntimeError as error:
                if "ZOO_CPU_CAPABILITY" not in str(error):
                    raise
                pytest.skip(f"this processor has no {capability}")
            # which agrees with one_by_one above
            exact = (tensor.double() for tensor in (q, k, v))
            scale = q.shape[-1] ** -0.5
            expected = tree_attention_reference(*exact, kv_len, bits, kv_len, None, scale, window)
            torch.testing.assert_close(
                out.double(), expected, atol=DTYPES[dtype], rtol=DTYPES[dtype]
            )


OUTSIDE = [
    dict(kv_len=torch.tensor([64, 5])),
    dict(kv_len=torch.tensor([-1, 5])),
    dict(kv_len=torch.tensor([2**62, 5])),
    dict(tree_start=torch.tensor([-1, 5])),
    dict(tree_start=torch.tensor([21, 25])),
    dict(tree_start=torch.tensor([2**63 - 1, -(2**63)])),
    dict(anc_bits=torch.full((2, 9, 1), -(2**63))),
    dict(anc_bits=torch.full((2, 9, 3), 1)),
]


@pytest.mark.parametrize("change", OUTSIDE, ids=lambda change: next(iter(change)))
def test_slots_outside_of_the_cache_are_refused(change) -> None:
    """By the kernel, by the reference, and by the reference inside of a graph."""
    _, q, k, v, kv_len, bits = case()  # 33 slots
    if change.get("anc_bits", bits).shape[2] == 3:
        change = change | dict(tree_start=torch.tensor([-64, -64]))
    arguments = dict(q=q, k=k, v=v, kv_len=kv_len, anc_bits=bits) | change
    with pytest.raises(ZooError, match=r"tree_attention: (kv_len|tree_start) of sequence"):
        tree_attention(**arguments)
    arguments["q"] = q.clone().requires_grad_()
    compiled = torch.compile(tree_attention, fullgraph=True, backend="aot_eager")
    for function in (tree_attention, compiled):
        with pytest.raises(RuntimeError, match=r"tree_attention: (kv_len|tree_start)"):
            function(**arguments)


@pytest.mark.parametrize("page, used", [(4, True), (-1, True), (10**9, True), (10**9, False)])
def test_pages_that_do_not_exist_are_refused_where_they_are_used(page: int, used: bool) -> None:
    _, q, k, v, kv_len, bits = case(batch=1, prefix=(21,))
    k, v = (t[:, :, :32].unflatten(2, (4, 8))[0].transpose(0, 1).contiguous() for t in (k, v))
    table = torch.tensor([[0, 1, 2, 3, page]])
    if used:
        table[0, 1] = page
    arguments = (q, k, v, kv_len, bits)
    reference = (*arguments, kv_len, table, 0.25, 0)
    if not used:
        out = tree_attention(*arguments, block_table=table)
        torch.testing.assert_close(out, tree_attention_reference(*reference))
        return
    with pytest.raises(ZooError, match="block_table of sequence 0"):
        tree_attention(*arguments, block_table=table)
    with pytest.raises(RuntimeError, match="block_table"):
        tree_attention_reference(*reference)


@pytest.mark.parametrize("window", [0, 1, 3, 10])
@pytest.mark.parametrize("start", [0, 3, 18])
def test_a_tree_inside_of_the_prefix_is_seen_once(start: int, window: int) -> None:
    _, q, k, v, kv_len, bits = case(batch=1, prefix=(21,))
    starts = torch.tensor([start])
    out = tree_attention(q, k, v, kv_len, bits, tree_start=starts, window=window)
    reference = tree_attention_reference(q, k, v, kv_len, bits, starts, None, 0.25, window)
    torch.testing.assert_close(out, reference, atol=1e-5, rtol=1e-5)


def test_nodes_that_no_query_sees_are_not_read() -> None:
    """Of nine nodes the last two are asked; what is between may never have been written."""
    _, q, k, v, kv_len, bits = case(dtype=torch.float32, dim=32)
    seen = unpack_ancestors(bits[:, 7:], 64).any(1)  # [B, 64]
    assert not seen[:, :9].all()
    expected = tree_attention(q[:, :, 7:], k, v, kv_len, bits[:, 7:])
    k, v = k.clone(), v.clone()
    for row, length in enumerate(kv_len.tolist()):
        unseen = length + (~seen[row, :9]).nonzero()[:, 0]
        k[row, :, unseen] = v[row, :, unseen] = float("nan")
    assert torch.equal(tree_attention(q[:, :, 7:], k, v, kv_len, bits[:, 7:]), expected)


@pytest.mark.parametrize("change", [
    dict(n=torch.tensor([5, 2])), dict(n=torch.tensor([-1, 2])), dict(n=torch.tensor([2**40, 0])),
    dict(kv_len=torch.tensor([31, 5])), dict(kv_len=torch.tensor([-1, 5])),
    dict(path=torch.tensor([[0, 2, 5, 12], [0, 7, 0, 0]])),
    dict(path=torch.tensor([[0, 2, 5, 2**62], [0, 7, 0, 0]])),
    dict(path=torch.tensor([[-1, 2, 5, 8], [0, 7, 0, 0]])),
    dict(path=torch.tensor([[0, 5, 2, 8], [0, 7, 0, 0]])),
    dict(tree_start=torch.tensor([-1, 5])), dict(tree_start=torch.tensor([2**63 - 1, 5])),
], ids=str)  # fmt: skip
def test_paths_outside_of_the_cache_are_refused(change) -> None:
    _, _, k, v, kv_len, _ = case()  # 33 slots
    path, count = torch.tensor([[0, 2, 5, 8], [0, 7, 0, 0]]), torch.tensor([4, 2])
    arguments = dict(kv_len=kv_len, path=path, n=count) | change
    kept_k, kept_v = k.clone(), v.clone()
    with pytest.raises(ZooError, match="commit_path"):
        commit_path(kept_k, kept_v, **arguments)
    wide = torch.cat([k, k], -1)[..., ::2]  # goes to the reference
    with pytest.raises(RuntimeError, match="commit_path"):
        commit_path(wide, wide.clone(), **arguments)
    assert torch.equal(kept_k, k) and torch.equal(kept_v, v)


def test_keys_and_values_may_differ_in_width_alone() -> None:
    _, _, k, v, kv_len, _ = case()
    path, count = torch.tensor([[0, 2], [0, 3]]), torch.tensor([2, 2])
    commit_path(k.clone(), v[..., :4].clone(), kv_len, path, count)
    for values in (v[:, :1], v[:, :, :4], v[:1]):
        with pytest.raises(ZooError, match="same B, H and S"):
            commit_path(k.clone(), values.clone(), kv_len, path, count)


@pytest.mark.parametrize("start", [0, 2, 5, 9])
def test_a_path_may_move_up(start: int) -> None:
    """A tree that begins inside of the prefix."""
    cache = torch.arange(16.0)[None, None, :, None].repeat(1, 2, 1, 3)
    kv_len, starts = torch.tensor([5]), torch.tensor([start])
    path, count = torch.tensor([[0, 1, 2, 4, 6]]), torch.tensor([5])
    expected = cache.clone()
    expected[:, :, 5:10] = cache[:, :, start + path[0]]
    commit_path(cache, cache.clone(), kv_len, path, count, starts)
    assert torch.equal(cache, expected)


def test_wrong_shapes_are_refused() -> None:
    _, q, k, v, kv_len, bits = case()
    for change in (
        dict(q=q[..., :5]),
        dict(k=k[:, :1]),
        dict(kv_len=kv_len[:1]),
        dict(anc_bits=bits[:, :3]),
        dict(q=q[:, :3]),
    ):
        arguments = dict(q=q, k=k, v=v, kv_len=kv_len, anc_bits=bits) | change
        with pytest.raises(ValueError, match="tree_attention"):
            tree_attention(**arguments)


def test_the_reference_is_what_it_says() -> None:
    trees, q, k, v, kv_len, bits = case(seed=3)
    out = tree_attention_reference(q, k, v, kv_len, bits, kv_len, None, 0.25, 0)
    expected = one_by_one(trees, q, k, v, kv_len, kv_len)
    torch.testing.assert_close(out.double(), expected, atol=1e-5, rtol=1e-5)
