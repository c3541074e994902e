"""The registered ops themselves (``torch.ops.zoo.*``), as a compiled graph calls them.

A call is made right, in any shape, dtype and layout, and then, mostly, something about it is made
wrong. The kernel must agree with the PyTorch reference, which answers or refuses the same call: in
its results, in what it overwrites, in refusing; and leave alone what is not its own. A refusal is
one line, and changes nothing. Compilers must be told of an answer of the same form.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from random import Random

import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

from tests.fuzz import _calls, _faults
from tests.fuzz._call import Call
from tests.ops.conftest import VARIANTS
from zoo.ops import _library

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 5e-3, torch.float64: 1e-9}
REFUSALS = (RuntimeError, ValueError)


def case(random: Random) -> None:
    """One call."""
    os.environ["ZOO_CPU_CAPABILITY"] = random.choice(VARIANTS)
    torch.manual_seed(random.getrandbits(32))
    call = _calls.make(random)
    for _ in range(random.choice((0, 0, 1, 1, 1, 2))):
        _faults.inject(random, call)
    compare(call)
    if random.random() < 0.3:
        compare_form(call)


def compare(call: Call) -> None:
    """The kernel against the reference, on copies of the arguments."""
    expected = attempt(_library.references[call.op], call.copy())
    ours = call.copy()
    found = attempt(getattr(torch.ops.zoo, call.op), ours)
    told = f"{call}\n  reference: {found_text(expected)}\n  kernel: {found_text(found)}"
    ours.check_surroundings(told)
    if isinstance(found, Exception):
        message = str(found)
        assert "\n" not in message.strip(), f"a refusal of several lines: {told}"
        assert ours.equals(call), f"refused, but changed its arguments: {told}"
    if isinstance(expected, Exception) or isinstance(found, Exception):
        both = isinstance(expected, Exception) and isinstance(found, Exception)
        assert both, f"only one refuses: {told}"
        return
    (results, arguments), (right, right_arguments) = found, expected
    names = call.results(len(results))
    for name, a, b in zip(names, results, right, strict=True):
        if name:
            check_equal(name, a, b, told)
    for place in call.changed:
        check_equal(f"argument {place}", arguments[place], right_arguments[place], told)


def attempt(function: Callable, call: Call) -> tuple[list[Tensor], list] | Exception:
    """Results and arguments after the call, or what it raised."""
    arguments = call.arguments
    before = [arguments[i]._version for i in call.changed if isinstance(arguments[i], Tensor)]
    try:
        results = function(*arguments)
    except REFUSALS as error:
        return error
    after = [arguments[i]._version for i in call.changed]
    assert all(a > b for a, b in zip(after, before, strict=True)), f"autograd is not told: {call}"
    if results is None:
        results = ()
    results = [results] if isinstance(results, Tensor) else list(results)
    assert not any(r._is_view() for r in results), f"the result is a view: {call}"
    return results, arguments


def found_text(found: object) -> str:
    return repr(found)[:300] if isinstance(found, Exception) else "answers"


def check_equal(name: str, found: Tensor, expected: Tensor, told: str) -> None:
    """Numbers alike, not numbers in the same places."""
    assert found.dtype == expected.dtype and found.shape == expected.shape, (
        f"form of {name}: {told}"
    )
    if found.device.type == "meta":
        return
    a, b = found.detach().double(), expected.detach().double()
    assert torch.equal(a.isfinite(), b.isfinite()), f"not finite elsewhere, {name}: {told}"
    a, b = (t.nan_to_num(0.0, 0.0, 0.0) for t in (a, b))
    error = (a - b).norm() / b.norm().clamp_min(1e-3) if a.numel() else 0.0
    assert error < TOLERANCE.get(found.dtype, 1e-9), f"{name} is off by {float(error):.1e}: {told}"


def compare_form(call: Call) -> None:
    """What compilers are told about the results against the results."""
    if not call.is_plain():
        return
    real = attempt(getattr(torch.ops.zoo, call.op), call.copy())
    with FakeTensorMode() as mode:
        made: dict[int, Tensor] = {}

        def fake(t: object) -> object:
            if not isinstance(t, Tensor):
                return t
            return made.setdefault(id(t), mode.from_tensor(t))

        told = f"compilers are told otherwise: {call}, {found_text(real)}"
        try:
            forms = getattr(torch.ops.zoo, call.op)(*map(fake, call.arguments))
        except REFUSALS as error:
            assert isinstance(real, Exception), f"{told}, {error!r}"
            return
    if isinstance(real, Exception):
        assert call.hidden, told
        return
    forms = () if forms is None else (forms,) if isinstance(forms, Tensor) else forms
    for a, b in zip(real[0], forms, strict=True):
        first, second = ((t.dtype, t.shape, t.stride(), str(t.device)) for t in (a, b))
        assert first == second or (a.numel() < 2 and first[:2] == second[:2]), (
            f"{told}: {first}, {second}"
        )
