from __future__ import annotations

import itertools

import pytest
import torch

from tests.ops.problems import error
from zoo.errors import ZooError
from zoo.ops import diagonal_scan, diagonal_scan_reference

SHAPES = [(2, 5, 1), (1, 1, 3), (3, 70, 37), (2, 130, 64), (0, 4, 5)]  # batch, length, channels
DTYPES = {torch.float32: 1e-5, torch.float64: 1e-12, torch.complex64: 1e-5, torch.complex128: 1e-12}
FORMS = ["constant", "by step", "all"]


def factors(form: str, batch: int, length: int, channels: int, dtype) -> torch.Tensor:
    shape = {"constant": (channels,), "by step": (length, channels)}.get(
        form, (batch, length, channels)
    )
    size = 0.5 + 0.5 * torch.rand(shape, dtype=torch.float64)
    if dtype.is_complex:
        return torch.polar(size, 3 * torch.randn(shape, dtype=torch.float64)).to(dtype)
    return (size * torch.sign(torch.randn(shape))).to(dtype)


def run(function, tensors, wide, **options):
    leaves = [None if t is None else t.to(wide).requires_grad_() for t in tensors]
    states, last = function(leaves[0], leaves[1], initial_state=leaves[2], return_last_state=True,
                            **options)  # fmt: skip
    assert states.dtype == last.dtype == wide
    weights = torch.linspace(1, 2, states.numel(), device=states.device).view_as(states)
    loss = (states * weights).abs().square().sum() + 3 * last.abs().square().sum()
    grads = torch.autograd.grad(loss, [t for t in leaves if t is not None])
    return [torch.view_as_real(t.resolve_conj()) if t.is_complex() else t
            for t in (states, last, *grads)]  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_equals_reference(cpu_variant, dtype, form):
    torch.manual_seed(0)
    wide = torch.promote_types(dtype, torch.float64)
    for shape, extra, reverse in itertools.product(SHAPES, (False, True), (False, True)):
        batch, length, channels = shape
        tensors = [factors(form, *shape, dtype), torch.randn(shape, dtype=dtype),
                   torch.randn(batch, channels, dtype=dtype) if extra else None]  # fmt: skip
        options = {"reset": torch.rand(batch, length) < 0.1 if extra else None, "reverse": reverse}
        ours = run(diagonal_scan, tensors, dtype, **options)
        expected = run(diagonal_scan_reference, tensors, wide, **options)
        for a, e in zip(ours, expected, strict=True):
            assert error(a, e) < DTYPES[dtype]


def test_the_first_steps_as_the_contract_says():
    a, b = torch.tensor([0.5]), torch.tensor([1.0, 2, 4])[None, :, None]
    reset = torch.tensor([[False, False, True]])
    x = diagonal_scan(a, b, initial_state=torch.tensor([[8.0]]), reset=reset)
    assert x.flatten().tolist() == [5, 4.5, 4]
    x = diagonal_scan(a, b, initial_state=torch.tensor([[8.0]]), reverse=True)
    assert x.flatten().tolist() == [4, 6, 8]


def test_strides_of_any_kind(cpu_variant):
    torch.manual_seed(0)
    b = torch.randn(4, 3, 20, dtype=torch.complex64)
    for view in (
        b.mT,
        b.transpose(0, 1),
        b[..., ::2],
        b.conj(),
        b[:1].expand(2, -1, -1),
        b.flip(1),
    ):
        a = factors("all", *view.shape, torch.complex64)
        expected = diagonal_scan_reference(a, view)
        torch.testing.assert_close(diagonal_scan(a, view), expected)
        torch.testing.assert_close(diagonal_scan(view, a), diagonal_scan_reference(view, a),
                                   rtol=1e-4, atol=1e-4)  # fmt: skip


def test_mixtures_promote():
    b = torch.randn(2, 5, 3)
    a = factors("constant", 2, 5, 3, torch.complex64)
    assert diagonal_scan(a, b).dtype == torch.complex64
    assert diagonal_scan(a.real, b.bfloat16()).dtype == torch.float32
    assert diagonal_scan(a, b.double()).dtype == torch.complex128
    torch.testing.assert_close(diagonal_scan(a, b), diagonal_scan_reference(a, b))


def test_parts_equal_one_pass_and_packed_equal_separate():
    a, b = factors("constant", 2, 20, 6, torch.complex64), torch.randn(2, 20, 6)
    whole, end = diagonal_scan(a, b, return_last_state=True)
    first, state = diagonal_scan(a, b[:, :7], return_last_state=True)
    second, last = diagonal_scan(a, b[:, 7:], initial_state=state, return_last_state=True)
    torch.testing.assert_close(torch.cat([first, second], 1), whole)
    torch.testing.assert_close(last, end)
    reset = torch.zeros(2, 20, dtype=torch.bool)
    reset[:, 7] = True
    packed = diagonal_scan(a, b, reset=reset)
    torch.testing.assert_close(packed[:, 7:], diagonal_scan(a, b[:, 7:]))


def test_a_reset_stops_what_is_not_finite():
    a, b = torch.ones(1), torch.ones(1, 3, 1)
    b[:, 0] = float("nan")
    reset = torch.tensor([[False, True, False]])
    assert diagonal_scan(a, b, reset=reset)[0, 1:, 0].tolist() == [1, 2]


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("reverse", [False, True])
def test_gradcheck(dtype, form, reverse):
    torch.manual_seed(0)
    a = factors(form, 2, 4, 3, dtype).requires_grad_()
    b, initial = (torch.randn(s, dtype=dtype).requires_grad_() for s in ((2, 4, 3), (2, 3)))
    reset = torch.rand(2, 4) < 0.3
    assert torch.autograd.gradcheck(
        lambda a, b, i: diagonal_scan(a, b, initial_state=i, reset=reset, reverse=reverse,
                                      return_last_state=True),
        (a, b, initial), fast_mode=True
    )  # fmt: skip


def test_opcheck():
    for rows, steps in ((1, 1), (2, 1), (2, 5)):
        a = torch.rand(rows, steps, 6, requires_grad=True)
        b = torch.randn(2, 5, 6, requires_grad=True)
        initial, reset = torch.randn(2, 6, requires_grad=True), torch.rand(2, 5) < 0.3
        for arguments in ((a, b, initial, reset, True, False), (a, b, None, None, False, True)):
            torch.library.opcheck(torch.ops.zoo.diagonal_scan, arguments)
            detached = [t.detach() if isinstance(t, torch.Tensor) else t for t in arguments]
            x = torch.ops.zoo.diagonal_scan(*detached)
            torch.library.opcheck(
                torch.ops.zoo.diagonal_scan_backward, (x, x, detached[0], *detached[2:])
            )


def test_compiles_as_one_graph():
    a, b = factors("all", 2, 9, 4, torch.complex64), torch.randn(2, 9, 4)
    compiled = torch.compile(diagonal_scan, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(a, b), diagonal_scan(a, b))


def test_autocast_leaves_it_alone():
    a, b = torch.rand(4), torch.randn(2, 9, 4)
    with torch.autocast("cpu", torch.bfloat16):
        x = diagonal_scan(a, b.bfloat16())
    assert x.dtype == torch.float32
    torch.testing.assert_close(x, diagonal_scan_reference(a, b.bfloat16()))


@pytest.mark.parametrize("change, words", [
    (dict(b=torch.randn(5, 3)), "b must be"), (dict(b=torch.randn(2, 0, 3)), "b must be"),
    (dict(a=torch.randn(4)), "a must be"), (dict(a=torch.randn(2, 3)), "a must be"),
    (dict(initial_state=torch.randn(3)), "initial_state must be"),
    (dict(reset=torch.zeros(2, 4, dtype=torch.bool)), "reset must be"),
    (dict(reset=torch.zeros(2, 5)), "must be bool"), (dict(a=torch.ones(3).long()), "int64"),
    (dict(a=torch.randn(3, device="meta")), "one device"),
])  # fmt: skip
def test_wrong_arguments_are_refused(change, words):
    right = dict(a=torch.randn(3), b=torch.randn(2, 5, 3))
    with pytest.raises(ZooError, match=words) as caught:
        diagonal_scan(**(right | change))
    assert "\n" not in str(caught.value)


def test_no_second_derivative():
    b = torch.randn(2, 5, 3, requires_grad=True)
    (grad,) = torch.autograd.grad(diagonal_scan(b, b).sum(), b, create_graph=True)
    with pytest.raises(ZooError, match="diagonal_scan_reference"):
        grad.sum().backward()
