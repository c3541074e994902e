from __future__ import annotations

import pytest
import torch

from zoo.errors import ZooError
from zoo.ops import cross_merge, cross_merge_reference, cross_scan, cross_scan_reference

ORDERS = ("cross2d", "atrous")
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
SHAPES = [(2, 3, 5, 7), (1, 16, 8, 8), (2, 33, 17, 70), (1, 1, 1, 1), (0, 4, 3, 3), (3, 20, 1, 9),
          (1, 40, 130, 3)]  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("order", ORDERS)
def test_equals_reference(cpu_variant, order, dtype):
    torch.manual_seed(0)
    for shape in SHAPES:
        x = torch.randn(shape).to(dtype)
        ys = cross_scan_reference(x, order)
        layouts = (
            x,
            x.to(memory_format=torch.channels_last),
            x.transpose(2, 3).contiguous().transpose(2, 3),
            torch.cat([x, x], dim=1)[:, shape[1] :],
        )
        for layout in layouts:
            assert torch.equal(cross_scan(layout, order), ys), (shape, layout.stride())
        merged = cross_merge_reference(ys, *shape[2:], order)
        for layout in (ys, ys.transpose(2, 3).contiguous().transpose(2, 3), ys.flip(0).flip(0)):
            assert torch.equal(cross_merge(layout, *shape[2:], order), merged), shape


def test_directions():
    """Every position of a 2 x 3 map, by hand."""
    x = torch.arange(6.0).view(1, 1, 2, 3)
    assert cross_scan(x).tolist() == [[[[0, 1, 2, 3, 4, 5]], [[0, 3, 1, 4, 2, 5]]]]
    assert cross_scan(x, "atrous").tolist() == [[[[0, 2]], [[3, 5]], [[1, 0]], [[4, 0]]]]


@pytest.mark.parametrize("shape", [(2, 3, 6, 4), (1, 5, 7, 9)])
def test_merge_undoes_scan(shape):
    x = torch.randn(shape)
    assert torch.equal(cross_merge(cross_scan(x), *shape[2:]), 2 * x)
    assert torch.equal(cross_merge(cross_scan(x, "atrous"), *shape[2:], "atrous"), x)


@pytest.mark.parametrize("order", ORDERS)
def test_gradients(order):
    x = torch.randn(2, 3, 5, 4, dtype=torch.float64, requires_grad=True)
    ys = cross_scan(x, order).detach().requires_grad_()
    assert torch.autograd.gradcheck(lambda t: cross_scan(t, order), x, fast_mode=True)
    assert torch.autograd.gradcheck(lambda t: cross_merge(t, 5, 4, order), ys, fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda t: cross_scan(t, order) ** 2, x, fast_mode=True)


@pytest.mark.parametrize("atrous", [False, True])
def test_opcheck(atrous):
    x = torch.randn(2, 3, 5, 4, requires_grad=True)
    ys = torch.ops.zoo.cross_scan(x, atrous).detach().requires_grad_()
    torch.library.opcheck(torch.ops.zoo.cross_scan.default, (x, atrous))
    torch.library.opcheck(torch.ops.zoo.cross_merge.default, (ys, 5, 4, atrous))


def test_compile_with_changing_sizes():
    def there_and_back(x):
        return cross_merge(cross_scan(x), x.shape[2], x.shape[3])

    compiled = torch.compile(there_and_back, fullgraph=True, dynamic=True)
    for height in (5, 6):
        x = torch.randn(2, 3, height, 4)
        torch.testing.assert_close(compiled(x), 2 * x)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: cross_scan(torch.randn(2, 3, 4)), "got [2, 3, 4]"),
        (lambda: cross_scan(torch.randn(2, 3, 0, 4)), "none of the last three 0"),
        (lambda: cross_scan(torch.randn(2, 3, 4, 4), "snake"), "got 'snake'"),
        (lambda: cross_scan(torch.zeros(2, 3, 4, 4, dtype=torch.int32)), "must be float32"),
        (lambda: cross_merge(torch.randn(2, 4, 3, 16), 4, 4), "must be [batch, 2, channels, 16]"),
        (lambda: cross_merge(torch.randn(2, 2, 3, 15), 4, 4), "got [2, 2, 3, 15]"),
    ],
)
def test_errors(call, words):
    with pytest.raises(ZooError) as error:
        call()
    assert words in str(error.value)
