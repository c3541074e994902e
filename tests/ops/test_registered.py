"""The registered ops: what they refuse, what autograd learns from them, what a fork leaves."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from zoo.ops import (
    _library,
    causal_conv1d,
    cross_merge,
    cross_scan,
    diagonal_scan,
    selective_scan,
    ssd,
)

ops = torch.ops.zoo
i64, i32 = torch.int64, torch.int32


def given(op: str) -> dict[str, object]:
    """Right arguments, by their names in the schema, with all optional ones."""
    r = torch.randn
    conv = dict(x=r(2, 4, 9), weight=r(4, 3), bias=r(4), seq_idx=None, initial_states=r(2, 4, 2),
                silu=True)  # fmt: skip
    scan = dict(
        u=r(2, 4, 40), delta=r(2, 4, 40), A=-r(4, 3).abs(), B=r(2, 2, 3, 40), C=r(2, 2, 3, 40),
        D=r(4), z=r(2, 4, 40), delta_bias=r(4), initial_state=r(2, 4, 3),
        reset=torch.zeros(2, 40, dtype=torch.bool), delta_softplus=True, reverse=False,
        negative=True, chunk=32,
    )  # fmt: skip
    mamba2 = dict(
        x=r(2, 9, 4, 5), dt=r(2, 9, 4).abs(), A=-r(4).abs(), B=r(2, 9, 2, 3), C=r(2, 9, 2, 3),
        D=r(4, 5), z=r(2, 9, 4, 5), initial_state=r(2, 4, 5, 3),
        seq_idx=torch.zeros(2, 9, dtype=i32), reverse=False, span=256, chunk_size=4,
    )  # fmt: skip
    delta = dict(q=r(2, 40, 3, 5), k=r(2, 40, 3, 5), v=r(2, 40, 3, 4), beta=r(2, 40, 3),
                 decay=r(2, 40, 3), initial_state=r(2, 3, 5, 4), span=32)  # fmt: skip
    lstm = dict(R=r(4, 3, 5, 5), initial_states=r(2, 2, 3, 5), cell=1)
    diagonal = dict(a=r(2, 9, 6), initial_state=r(2, 6), reset=torch.zeros(2, 9, dtype=torch.bool),
                    is_complex=True, reverse=False)  # fmt: skip
    return {
        "delta_rule": delta,
        "delta_rule_backward": dict(
            dout=r(2, 40, 3, 4), dlast_state=r(2, 3, 5, 4), borders=r(2, 2, 3, 20), **delta
        ),
        "recurrent_cell": dict(
            Wx=r(2, 9, 4, 3, 5), R=lstm["R"], b=r(4, 3, 5), initial_states=lstm["initial_states"],
            cell=1, keep_gates=True,
        ),
        "recurrent_cell_backward": dict(
            dstates=r(2, 2, 9, 3, 5), states=r(2, 2, 9, 3, 5), gates=r(2, 9, 4, 3, 5), **lstm
        ),
        "diagonal_scan": dict(a=diagonal["a"], b=r(2, 9, 6)) | diagonal,
        "diagonal_scan_backward": dict(dx=r(2, 9, 6), x=r(2, 9, 6), **diagonal),
        "causal_conv1d": conv,
        "causal_conv1d_backward": dict(dout=r(2, 4, 9), **conv),
        "causal_conv1d_update": dict(
            x=r(2, 4, 1), conv_state=r(2, 4, 5), weight=r(4, 3), bias=r(4),
            cache_seqlens=torch.zeros(2, dtype=i32), silu=True,
        ),
        "selective_scan": scan,
        "selective_scan_backward": dict(
            dout=r(2, 4, 40), dlast_state=r(2, 4, 3), borders=r(2, 2, 4, 3), **scan
        ),
        "selective_state_update": dict(
            state=r(2, 4, 3), x=r(2, 4), dt=r(2, 4).abs(), A=-r(4, 3).abs(), B=r(2, 2, 3),
            C=r(2, 2, 3), D=r(4), z=r(2, 4), dt_bias=r(4).abs(), dt_softplus=True,
            negative=True,
        ),
        "ssd": mamba2,
        "ssd_backward": dict(
            dout=r(2, 9, 4, 5), dlast_state=r(2, 4, 5, 3), borders=r(2, 1, 4, 15), **mamba2
        ),
        "cross_scan": dict(x=r(2, 3, 4, 5), atrous=False),
        "cross_merge": dict(ys=r(2, 2, 3, 20), height=4, width=5, atrous=False),
        "tree_attention": dict(
            q=r(2, 4, 3, 8), k=r(5, 2, 4, 8), v=r(5, 2, 4, 8), kv_len=torch.tensor([4, 7]),
            anc_bits=torch.tensor([[[1], [3], [7]]] * 2), tree_start=torch.tensor([4, 7]),
            block_table=torch.tensor([[4, 1, 0], [2, 0, 3]]), scale=0.3, window=0,
        ),
        "commit_path": dict(
            cache=r(2, 3, 9, 4), kv_len=torch.tensor([2, 4]), path=torch.tensor([[0, 2], [1, 3]]),
            count=torch.tensor([2, 1]), tree_start=torch.tensor([2, 4]),
        ),
        "cauchy_kernel": dict(v=r(2, 3, 4, 2), z=r(5, 2), w=r(3, 4, 2)),
        "cauchy_kernel_backward": dict(
            dout=r(2, 3, 5, 2), v=r(2, 3, 4, 2), z=r(5, 2), w=r(3, 4, 2)
        ),
        "vandermonde_kernel": dict(v=r(2, 3, 4, 2), x=r(3, 4, 2), length=5),
        "vandermonde_transpose": dict(u=r(2, 3, 5), x=r(3, 4, 2), moments=2),
    }[op]  # fmt: skip


NAMES = [s.split("(")[0] for s in _library.schemas() if "Tensor" in s]
TENSORS = [(op, name) for op in NAMES for name, a in given(op).items() if isinstance(a, Tensor)]
CHANGED = {"causal_conv1d_update": "conv_state", "selective_state_update": "state",
           "commit_path": "cache"}  # fmt: skip
#: Whose first dimension no other argument settles.
FREE_FIRST = {
    ("cauchy_kernel", "v"), ("cauchy_kernel", "z"), ("vandermonde_kernel", "v"),
    ("vandermonde_transpose", "u"),
}  # fmt: skip
#: Whose last dimension no other argument settles.
FREE = {
    ("causal_conv1d", "x"), ("causal_conv1d_update", "x"), ("causal_conv1d_update", "conv_state"),
    ("causal_conv1d_update", "weight"), ("tree_attention", "anc_bits"),
    ("tree_attention", "block_table"), ("commit_path", "cache"), ("commit_path", "path"),
    ("vandermonde_transpose", "u"),
}  # fmt: skip


def call(op: str, arguments: dict[str, object]):
    return getattr(ops, op)(*arguments.values())


def refuses(op: str, arguments: dict[str, object], words: str = "") -> None:
    """The kernel, the reference and the fake kernel."""
    answers = [
        lambda: call(op, arguments),
        lambda: _library.references[op](*arguments.values()),
    ]
    for answer in answers:
        with pytest.raises((RuntimeError, ValueError)) as error:
            answer()
        message = str(error.value)
        assert "\n" not in message and message.startswith(op.removesuffix("_backward")), message
        assert words in message


@pytest.mark.parametrize("op", NAMES)
def test_what_is_right_is_taken(op):
    call(op, given(op))
    _library.references[op](*given(op).values())


@pytest.fixture
def unwritten_is_nan():
    """Memory that nobody has written yet holds no numbers."""
    before = torch.utils.deterministic.fill_uninitialized_memory
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = before


@pytest.mark.parametrize("op", NAMES)
def test_all_of_the_results_is_written(op, unwritten_is_nan):
    for answer in (getattr(ops, op), _library.references[op]):
        for result in tree_leaves(answer(*given(op).values())):
            assert result is None or result.isfinite().all()


@pytest.mark.parametrize("op, name", TENSORS)
def test_wrong_tensors_are_refused(op, name):
    """A dimension too many or too few, another dtype or size, another device, sparse."""
    right = given(op)
    t = right[name]
    wrong = [t[None], t[..., 0], t.to_sparse()]
    if not op.startswith("cross"):  # which has no other tensor
        wrong += [t.to("meta")]
    if name != "cache":  # slots of any dtype are moved
        wrong += [t.to(torch.complex64)]
    if not (op.startswith("cross") or name == "cache"):
        wrong += [t.double() if t.is_floating_point() else t.float()]
        wrong += [] if (op, name) in FREE_FIRST else [torch.cat([t, t[:1]])]
    if (op, name) not in FREE and not op.startswith("cross"):
        wrong += [torch.cat([t, t[..., :1]], dim=-1)]
    for i, other in enumerate(wrong):
        with pytest.raises((RuntimeError, ValueError)):
            print(f"{op}: accepted change {i} of {name}", call(op, right | {name: other}))
        if other.device.type != "meta":
            with pytest.raises((RuntimeError, ValueError)):
                _library.references[op](*(right | {name: other}).values())


@pytest.mark.parametrize("op, name", TENSORS)
def test_memory_that_has_been_taken_away_is_not_read(op, name):
    right = given(op)
    t = right[name].clone()
    t.untyped_storage().resize_(0)
    refuses(op, right | {name: t}, "no memory")


@pytest.mark.parametrize("op, name, number", [
    ("selective_scan", "chunk", n) for n in (-32, 1, 33, 2**40, 2**62, -(2**63))
] + [
    ("selective_scan_backward", "chunk", n) for n in (0, -32, 64, 2**62)
] + [
    ("ssd", "span", n) for n in (-1, 1, 64, 2**62)
] + [
    ("ssd_backward", "span", n) for n in (0, -256, 64)
] + [
    ("delta_rule", "span", n) for n in (-32, 1, 64, 2**62)
] + [
    ("delta_rule_backward", "span", n) for n in (0, 64)
] + [
    (op, "cell", n) for op in ("recurrent_cell", "recurrent_cell_backward") for n in (-1, 4, 2**40)
] + [
    ("ssd", "chunk_size", n) for n in (0, -1)
] + [
    ("cross_merge", name, n) for name in ("height", "width") for n in (0, -4, 2**31, 2**62)
] + [
    ("vandermonde_kernel", "length", n) for n in (-1, 2**31, 2**62, -(2**63))
] + [
    ("vandermonde_transpose", "moments", n) for n in (0, 3, -1, 2**62)
])  # fmt: skip
def test_wrong_numbers_are_refused(op, name, number):
    refuses(op, given(op) | {name: number})


def test_sizes_whose_product_wraps_around_are_refused():
    ys = torch.randn(1, 2, 1, 1)
    with pytest.raises(RuntimeError, match="2\\^31"):
        ops.cross_merge(ys, 2**33, 2**31, False)
    refuses("cross_merge", dict(ys=ys, height=-1, width=-1, atrous=False))


@pytest.mark.parametrize("op, name", [
    ("causal_conv1d", "x"), ("causal_conv1d_backward", "x"), ("causal_conv1d_update", "x"),
    ("selective_scan", "u"), ("selective_state_update", "state"), ("ssd", "x"), ("cross_scan", "x"),
    ("delta_rule", "k"), ("recurrent_cell", "Wx"),
    ("diagonal_scan", "b"),
])  # fmt: skip
def test_empty_dimensions_are_refused(op, name):
    right = given(op)
    for dim in range(1, right[name].dim()):
        refuses(op, right | {name: right[name].narrow(dim, 0, 0)})


def test_a_step_without_states_is_refused():
    """It used to answer with memory that nobody had written."""
    right = given("selective_state_update")
    none = {n: right[n][..., :0] for n in ("state", "A", "B", "C")}
    refuses("selective_state_update", right | none)


@pytest.mark.parametrize("op", CHANGED)
def test_what_is_overwritten_has_memory_of_its_own(op):
    right = given(op)
    name = CHANGED[op]
    t = right[name]
    refuses(op, right | {name: t[:1].expand(t.shape)}, "share memory")
    overlapping = t.as_strided(t.shape, [1, *t.stride()[1:]])
    refuses(op, right | {name: overlapping}, "share memory")
    for other, value in right.items():
        if isinstance(value, Tensor) and other != name and value.dtype == t.dtype:
            inside = t.reshape(-1)[: value.numel()]
            if inside.numel() == value.numel():
                alias = t.as_strided(value.shape, value.contiguous().stride())
                refuses(op, right | {other: alias}, "shares memory")


@pytest.mark.parametrize("op", CHANGED)
def test_autograd_learns_what_is_overwritten(op):
    right = given(op)
    state = right[CHANGED[op]]
    factor = torch.randn_like(state).requires_grad_()
    product = factor * state
    call(op, right)
    assert state._version == 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.sum().backward()
    view = torch.zeros(2, *state.shape)
    call(op, right | {CHANGED[op]: view[0]})
    assert view._version == 1


@pytest.mark.parametrize("op", CHANGED)
def test_a_gradient_is_not_lost_by_overwriting(op):
    right = given(op)
    leaf = right[CHANGED[op]].clone().requires_grad_()
    for state in (leaf, leaf * 1):
        with pytest.raises(RuntimeError):
            call(op, right | {CHANGED[op]: state})
        with torch.no_grad():
            call(op, right | {CHANGED[op]: state})


@pytest.mark.parametrize("columns", [False, True])
def test_outputs_can_be_changed_in_place(columns):
    """As PyTorch's own: the gradient is right, or autograd says why there is none."""

    def signal() -> Tensor:
        t = torch.randn(2, 6, 4) if columns else torch.randn(2, 4, 6)
        return (t.mT if columns else t).requires_grad_()

    weight = torch.randn(4, 3)
    A, B, projection = -torch.rand(4, 2), torch.randn(2, 2, 6), torch.randn(2, 1, 1, 3)
    functions = [
        lambda x: causal_conv1d(x, weight, activation="silu"),
        lambda x: selective_scan(x, x.sigmoid(), A, B, B),
        lambda x: cross_scan(x[..., None]),
        lambda x: cross_merge(x[:, None].expand(-1, 2, -1, -1), 2, 3),
        lambda x: ssd(x[:, None], torch.ones(2, 1, 4), A[:, 0], projection, projection),
    ]
    for function in functions:
        x = signal()
        out = function(x)
        assert not out._is_view()
        expected = torch.autograd.grad((out * 3).square().sum(), x)[0]
        out = function(x)
        out.mul_(3)
        torch.testing.assert_close(torch.autograd.grad(out.square().sum(), x)[0], expected)
        out = function(x)
        squares = out.square()
        out.add_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            squares.sum().backward()
    out = diagonal_scan(A[:, 0], signal().mT)  # whose own states its gradient reads
    out.mul_(3)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


@pytest.mark.parametrize("op", NAMES)
def test_results_are_no_views(op):
    for answer in (getattr(ops, op), _library.references[op]):
        results = answer(*given(op).values())
        results = () if results is None else results if isinstance(results, tuple) else (results,)
        assert not any(r._is_view() for r in results)


FORKED = """
import os, signal, sys
import torch
torch.set_num_threads(2)
import zoo.ops as ops

torch.manual_seed(0)
r = torch.randn
x, w = r(2, 8, 64), r(8, 4)
u, A, B = r(2, 8, 64), -r(8, 4).abs(), r(2, 4, 64)
X, dt, A2, B2 = r(2, 64, 4, 8), r(2, 64, 4).abs(), -r(4).abs(), r(2, 64, 1, 8)
state = r(8, 64, 32)
step = [r(8, 64), r(8, 64).abs(), -r(64, 32).abs(), r(8, 32), r(8, 32)]
q, k, lengths = r(2, 4, 2, 8), r(2, 2, 32, 8), torch.tensor([8, 9])
bits = torch.tensor([[[1], [3]]] * 2)
R = r(1, 4, 8, 8)

def run():
    found = []
    for t in (x, u, X):
        t.requires_grad_()
        t.grad = None
    found.append(ops.causal_conv1d(x, w, activation="silu"))
    found.append(ops.causal_conv1d(x.mT.contiguous().mT, w))
    found.append(ops.selective_scan(u, u.sigmoid(), A, B, B))
    found.append(ops.ssd(X, dt, A2, B2, B2))
    found.append(ops.cross_scan(x.view(2, 8, 8, 8)))
    found.append(ops.diagonal_scan(A[:, 0].exp(), x.mT))
    sum(f.sum() for f in found).backward()
    found += [t.grad.clone() for t in (x, u, X)]
    found.append(ops.selective_state_update(state.clone(), *step))
    found.append(ops.causal_conv1d_update(x.detach()[..., 0], r(2, 8, 3) * 0, w))
    found.append(ops.tree_attention(q, k, k, lengths, bits))
    found.append(ops.delta_rule(X, X, X, dt.sigmoid()))
    found.append(ops.recurrent_cell(X[:, :, None], R, R[..., 0], cell="elman")[0])
    return [f.detach() for f in found]

expected = run()
assert len(os.listdir("/proc/self/task")) > 1, "nothing has run on other threads"
child = os.fork()
if child == 0:
    signal.alarm(60)
    found = run()
    os._exit(0 if all(map(torch.allclose, found, expected)) else 1)
code = os.waitpid(child, 0)[1]
sys.exit(0 if code == 0 else 1)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")
@pytest.mark.skipif("cpu" in _library.unavailable, reason="zoo's own library is not built")
def test_a_child_of_threads_does_not_hang():
    """Made by fork after the kernels have run on several threads, it runs them on its own."""
    result = subprocess.run([sys.executable, "-c", FORKED], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
