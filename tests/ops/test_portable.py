"""The ops in PyTorch's own terms give what the kernels give."""

import pytest
import torch

from zoo.ops.portable import decompositions

ZOO = torch.ops.zoo


def randn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def scan(B, C, *, reset=None, state=None, reverse=False, negative=False):
    skip, gate, bias = randn(6), randn(2, 6, 9), randn(6)
    given = (randn(2, 6, 9), randn(2, 6, 9), -randn(6, 4).exp(), B, C, skip, gate, bias, state)
    return (*given, reset, True, reverse, negative, 0)


RESET = torch.rand(2, 9, generator=torch.Generator().manual_seed(0)) < 0.3
WIDE, CONSTANT = randn(2, 3, 4, 9), randn(6, 4)

CASES = {
    "scan in groups": ("selective_scan", scan(WIDE, -WIDE)),
    "scan, constants": ("selective_scan", scan(CONSTANT, CONSTANT, reverse=True)),
    "scan, packed": ("selective_scan", scan(WIDE, CONSTANT, reset=RESET, state=randn(2, 6, 4))),
    "scan, packed, reversed": ("selective_scan", scan(WIDE, WIDE, reset=RESET, reverse=True)),
    "scan, negative": ("selective_scan", scan(WIDE, WIDE, negative=True)),
    "convolution": ("causal_conv1d", (randn(2, 6, 9), randn(6, 4), randn(6), None, None, True)),
    "convolution, goes on": (
        "causal_conv1d",
        (randn(2, 6, 9), randn(6, 3), None, None, randn(2, 6, 2), False),
    ),
    "convolution, packed": (
        "causal_conv1d",
        (randn(2, 6, 9), randn(6, 3), None, RESET.cumsum(1).int(), None, True),
    ),
    "rows and columns": ("cross_scan", (randn(2, 3, 4, 5), False)),
    "quarters": ("cross_scan", (randn(2, 3, 5, 3), True)),
    "rows and columns, back": ("cross_merge", (randn(2, 2, 3, 20), 4, 5, False)),
    "quarters, back": ("cross_merge", (randn(2, 4, 3, 6), 5, 3, True)),
    "diagonal": ("diagonal_scan", (randn(1, 9, 6), randn(2, 9, 6), None, None, False, True)),
    "diagonal, complex, packed": (
        "diagonal_scan",
        (randn(1, 1, 6), randn(2, 9, 6), randn(2, 6), RESET, True, False),
    ),
    "ssd": (
        "ssd",
        (
            *(randn(2, 9, 4, 3), randn(2, 9, 4).exp(), -randn(4).exp(), randn(2, 9, 2, 5)),
            *(randn(2, 9, 2, 5), randn(4, 3), randn(2, 9, 4, 3), None, None, False, 0, 4),
        ),
    ),
    "delta rule": (
        "delta_rule",
        (
            *(randn(2, 9, 2, 4), randn(2, 9, 2, 4) / 2, randn(2, 9, 2, 3)),
            *(randn(2, 9, 2).sigmoid(), None, None, 0),
        ),
    ),
    **{
        f"cell {number}": (
            "recurrent_cell",
            (
                *(randn(2, 9, inputs, 2, 3), randn(gates, 2, 3, 3), randn(biases, 2, 3)),
                *(randn(states, 2, 2, 3), number, False),
            ),
        )
        for number, (inputs, gates, biases, states) in enumerate(
            [(1, 1, 1, 1), (4, 4, 4, 2), (3, 3, 4, 1), (4, 4, 4, 4)]
        )
    },
}


def test_there_is_a_case_for_each():
    tried = {getattr(ZOO, op).default for op, _ in CASES.values()}
    assert tried == {op for op in decompositions() if op.namespace == "zoo"}


@pytest.mark.parametrize("name", CASES)
def test_it_is_the_op(name):
    op, arguments = CASES[name]
    kernel = getattr(ZOO, op).default
    expected, found = kernel(*arguments), decompositions()[kernel](*arguments)
    for a, b in zip(_outputs(found), _outputs(expected), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_sorting_by_topk():
    x = torch.tensor([[2.0, 1.0, 2.0, 1.0]])
    form = decompositions()[torch.ops.aten.sort.stable]
    values, _ = form(x, stable=True, descending=True)
    assert values.tolist() == [[2.0, 2.0, 1.0, 1.0]]


def _outputs(result):
    """Without what is kept for gradients alone."""
    results = result if isinstance(result, tuple) else (result,)
    return [t for t in results if t.numel()]
