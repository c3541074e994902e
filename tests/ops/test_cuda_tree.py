"""The CUDA kernels of tree attention, as test_cuda.py tests the others."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.ops.test_cuda import DEVICE, kernels, pytestmark  # noqa: F401
from tests.ops.test_tree_attention import DTYPES, case, one_by_one
from zoo.ops.tree_attention import (
    commit_path,
    tree_attention,
    tree_attention_reference,
    unpack_ancestors,
)

op, commit = torch.ops.zoo.tree_attention, torch.ops.zoo.commit_path


def there(*tensors: Tensor) -> list[Tensor]:
    return [t.to(DEVICE) for t in tensors]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [
    dict(), dict(nodes=70, batch=1, prefix=(3,)), dict(dim=40, heads=3, kv_heads=1, prefix=(0, 1)),
    dict(dim=256, nodes=3, heads=2, kv_heads=1), dict(dim=7),
], ids=str)  # fmt: skip
def test_every_query_sees_its_path(shape, dtype) -> None:
    trees, *tensors = case(**shape, dtype=dtype)
    for window in (0, 4):
        out = tree_attention(*there(*tensors), window=window)
        expected = one_by_one(trees, *tensors[:4], tensors[3], window=window)
        torch.testing.assert_close(
            out.double().cpu(), expected, atol=DTYPES[dtype], rtol=DTYPES[dtype]
        )


def test_what_no_query_sees_is_not_read() -> None:
    _, q, k, v, kv_len, bits = case()
    q, bits = q[:, :, 7:], bits[:, 7:]
    expected = tree_attention_reference(q, k, v, kv_len, bits, kv_len, None, 0.25, 0)
    seen = unpack_ancestors(bits, 64).any(1)
    for row, length in enumerate(kv_len.tolist()):
        unseen = length + (~seen[row, :9]).nonzero()[:, 0]
        k[row, :, unseen] = v[row, :, unseen] = float("nan")
        k[row, :, length + 9 :] = v[row, :, length + 9 :] = float("nan")
    out = tree_attention(*there(q, k, v, kv_len, bits))
    torch.testing.assert_close(out.cpu(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("window", [0, 1, 3, 10])
@pytest.mark.parametrize("start", [0, 3, 18])
def test_a_tree_inside_of_the_prefix_is_seen_once(start: int, window: int) -> None:
    _, q, k, v, kv_len, bits = case(batch=1, prefix=(21,))
    starts = torch.tensor([start])
    out = op(*there(q, k, v, kv_len, bits, starts), None, 0.25, window)
    reference = tree_attention_reference(q, k, v, kv_len, bits, starts, None, 0.25, window)
    torch.testing.assert_close(out.cpu(), reference, atol=1e-5, rtol=1e-5)


FAR = [-(2**63), -(2**31), -7, 33, 64, 2**31, 2**62, 2**63 - 1]


@pytest.mark.parametrize("number", FAR)
@pytest.mark.parametrize("which", ["kv_len", "tree_start", "block_table"])
def test_indices_outside_of_the_cache_are_kept_inside(which: str, number: int) -> None:
    """Around the cache is NaN, which nothing may bring into the result."""
    _, q, k, v, kv_len, bits = case(batch=1, prefix=(21,))
    start, table = kv_len.clone(), None
    if which == "block_table":
        k, v = (t[:, :, :32].unflatten(2, (4, 8))[0].transpose(0, 1) for t in (k, v))
        table = torch.tensor([[0, 1, number, 3]], device=DEVICE)
    caches = [torch.nn.functional.pad(t, (0, 0, 9, 9, 1, 1, 2, 2), value=float("nan"))
              for t in (k, v)]  # fmt: skip
    k, v = (t.to(DEVICE)[2:-2, 1:-1, 9:-9] for t in caches)
    if which == "kv_len":
        kv_len = torch.tensor([number])
    if which == "tree_start":
        start = torch.tensor([number])
    out = op(q.to(DEVICE), k, v, *there(kv_len, bits, start), table, 0.25, 0)
    assert out.isfinite().all()


@pytest.mark.parametrize("number", FAR)
@pytest.mark.parametrize("which", ["kv_len", "tree_start", "n", "path"])
def test_a_commit_stays_inside_of_the_cache(which: str, number: int) -> None:
    whole = torch.arange(4 * 4 * 50 * 3.0).view(4, 4, 50, 3).to(DEVICE)
    before = whole.clone()
    cache = whole[1:-1, 1:-1, 9:-9]  # 32 slots
    numbers = {
        "kv_len": torch.tensor([4, 5]), "path": torch.tensor([[0, 2, 5], [1, 2, 3]]),
        "n": torch.tensor([3, 2]), "tree_start": torch.tensor([4, 6]),
    }  # fmt: skip
    numbers[which].view(-1)[1] = number
    commit(cache, *there(*numbers.values()))
    inside = torch.zeros_like(whole, dtype=torch.bool)
    inside[1:-1, 1:-1, 9:-9] = True
    assert torch.equal(whole[~inside], before[~inside])
    assert set(cache.flatten().tolist()) <= set(before[inside].tolist())


@pytest.mark.parametrize("dtype", [torch.int8, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("start", [0, 2, 5, 9])
def test_a_path_may_move_down_or_up(start: int, dtype: torch.dtype) -> None:
    cache = torch.arange(16)[None, None, :, None].repeat(1, 2, 1, 3).to(dtype)
    kv_len, starts = torch.tensor([5]), torch.tensor([start])
    path, count = torch.tensor([[0, 1, 2, 4, 6]]), torch.tensor([5])
    expected = cache.clone()
    expected[:, :, 5:10] = cache[:, :, start + path[0]]
    k, v = there(cache, cache)
    commit_path(k, v.clone(), *there(kv_len, path, count, starts))
    assert torch.equal(k.cpu(), expected)
