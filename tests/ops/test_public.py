"""The public functions: what all of them refuse in the same way."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from zoo import ops
from zoo.errors import ZooError
from zoo.ops.tree_attention import pack_ancestors

#: Of sizes alone; and what answers for the registered op, with its arguments.
OTHERS = {"butterfly_sizes", "tree_attention_reference"}
#: They read numbers of their arguments.
VALUES = {"tree_attention", "commit_path"}


def given(op: str) -> dict[str, object]:
    """Right arguments of a function, with all optional tensors that go together."""
    r = torch.randn
    i32, i64 = torch.int32, torch.int64

    def c(*shape: int) -> Tensor:
        return r(shape, dtype=torch.complex64)

    modes = torch.complex(-torch.rand(3, 4), r(3, 4))
    matrices = dict(q=r(2, 5, 3, 4), k=r(2, 5, 3, 4), v=r(2, 5, 3, 6), decay=r(2, 5, 3),
                    initial_state=r(2, 3, 4, 6))  # fmt: skip
    convolution = dict(x=r(2, 3, 8), weight=r(3, 4), bias=r(3))
    tree = dict(kv_len=torch.tensor([4, 5]), tree_start=torch.tensor([4, 5]))
    return {
        "butterfly_conv": dict(u=r(2, 3, 8), k=r(3, 8), sizes=(4, 4)),
        "butterfly_fft": dict(x=r(2, 16), sizes=(4, 4), matrices=[c(4, 4), c(2, 4, 4)]),
        "cauchy_kernel": dict(v=c(2, 3, 4), z=c(5), w=modes),
        "causal_conv1d": dict(**convolution, initial_states=r(2, 3, 3)),
        "causal_conv1d_update": dict(
            **convolution, conv_state=r(2, 3, 4), cache_seqlens=torch.zeros(2, dtype=i32)
        ),
        "commit_path": dict(
            k=r(2, 3, 9, 4), v=r(2, 3, 9, 4), path=torch.zeros(2, 1, dtype=i64),
            n=torch.ones(2, dtype=i64), **tree,
        ),
        "cross_scan": dict(x=r(2, 3, 4, 5)),
        "cross_merge": dict(ys=r(2, 2, 3, 20), height=4, width=5),
        "delta_rule": dict(**matrices, beta=r(2, 5, 3)),
        "diagonal_scan": dict(
            a=r(2, 5, 4), b=r(2, 5, 4), initial_state=r(2, 4),
            reset=torch.zeros(2, 5, dtype=torch.bool),
        ),
        "fft_conv": dict(
            u=r(2, 3, 8), k=r(3, 8), D=r(3), k_future=r(3, 8), gate_before=r(2, 3, 8),
            gate_after=r(2, 3, 8), previous=r(2, 3, 4),
        ),
        "linear_attention": matrices,
        "recurrent_cell": dict(
            Wx=r(2, 5, 4, 3, 6), R=r(4, 3, 6, 6), b=r(4, 3, 6), states=r(2, 2, 1, 3, 6)
        ),
        "selective_scan": dict(
            u=r(2, 4, 8), delta=r(2, 4, 8), A=-r(4, 3).abs(), B=r(2, 2, 3, 8), C=r(2, 2, 3, 8),
            D=r(4), z=r(2, 4, 8), delta_bias=r(4), initial_state=r(2, 4, 3),
            reset=torch.zeros(2, 8, dtype=torch.bool),
        ),
        "selective_state_update": dict(
            state=r(2, 4, 3), x=r(2, 4), dt=r(2, 4), A=-r(4, 3).abs(), B=r(2, 3), C=r(2, 3),
            D=r(4), z=r(2, 4), dt_bias=r(4),
        ),
        "ssd": dict(
            x=r(2, 8, 4, 5), dt=r(2, 8, 4), A=-r(4).abs(), B=r(2, 8, 2, 3), C=r(2, 8, 2, 3),
            D=r(4), z=r(2, 8, 4, 5), dt_bias=r(4), initial_states=r(2, 4, 5, 3),
            seq_idx=torch.zeros(2, 8, dtype=i32),
        ),
        "state_passing_conv": dict(
            u=r(2, 3, 8), log_A=modes, B=c(3, 4), C=c(3, 4), D=r(3), initial_state=c(2, 3, 4)
        ),
        "tree_attention": dict(
            q=r(2, 4, 2, 8), k=r(2, 2, 9, 8), v=r(2, 2, 9, 8),
            anc_bits=pack_ancestors(torch.ones(2, 2, 2, dtype=torch.bool).tril()), **tree,
        ),
        "vandermonde_kernel": dict(v=c(2, 3, 4), x=modes, length=5),
        "vandermonde_transpose": dict(u=r(2, 3, 5), x=modes),
    }[op]  # fmt: skip


@pytest.mark.parametrize("op", sorted(set(ops.__all__) - OTHERS))
def test_a_tensor_that_is_elsewhere_is_refused(op):
    torch.manual_seed(0)
    function = getattr(ops, op)
    right = given(op.removesuffix("_reference"))
    right = {n: right[n] for n in inspect.signature(function).parameters if n in right}
    function(**right)
    tensors = [name for name, value in right.items() if isinstance(value, (Tensor, list))]
    if len(tensors) == 1:
        return
    for name in tensors:
        value = right[name]
        moved = value.to("meta") if isinstance(value, Tensor) else [value[0].to("meta"), None]
        with pytest.raises(ZooError, match="meta") as caught:
            function(**{**right, name: moved})
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("op", sorted(set(ops.__all__) - OTHERS - VALUES))
def test_tensors_without_memory_have_the_shapes_of_results(op):
    torch.manual_seed(0)
    function = getattr(ops, op)
    right = given(op.removesuffix("_reference"))
    right = {n: right[n] for n in inspect.signature(function).parameters if n in right}
    moved = tree_map(lambda t: t.to("meta") if isinstance(t, Tensor) else t, right)
    real, shapes = tree_leaves(function(**right)), tree_leaves(function(**moved))
    assert [(t.shape, t.dtype) for t in real] == [(t.shape, t.dtype) for t in shapes]
    assert all(t.is_meta for t in shapes)
