"""Random arguments of ops, and their results against a reference in float64 on the CPU."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from zoo.ops._registered import CELL_SIZES
from zoo.ops.recurrent_cell import CELLS

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3, torch.float64: 1e-12}
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "rows": lambda t: t,
    "columns": lambda t: t.mT.contiguous().mT,
    "unaligned": lambda t: torch.cat([t[..., :1], t], dim=-1)[..., 1:],
    "every second": lambda t: t.repeat_interleave(2, dim=-1)[..., ::2],
}


def error(a: Tensor, b: Tensor) -> float:
    """Norm of the deviation relative to that of what was expected."""
    a, b = a.detach().double().cpu(), b.detach().double().cpu()
    return ((a - b).norm() / b.norm().clamp_min(1e-6)).item()


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def exact(*shape: int) -> Tensor:
    """Random numbers that every dtype here can hold."""
    return torch.randn(shape).bfloat16().double()


class Problem:
    """Named tensors in float64 on the CPU, and copies of them elsewhere, with gradients."""

    def __init__(self, **tensors: Tensor | None):
        self.tensors = {name: t for name, t in tensors.items() if t is not None}
        self._expected: dict[tuple, tuple] = {}

    def leaves(self, device: str, dtypes: dict[str, torch.dtype], layout: str) -> dict[str, Tensor]:
        def leaf(name: str, t: Tensor) -> Tensor:
            if not t.is_floating_point():
                return t.to(device)
            t = t.to(device, dtypes.get(name, torch.float64))
            t = LAYOUTS[layout](t) if name in dtypes and t.dim() > 2 else t
            return t.requires_grad_()

        return {name: leaf(name, t) for name, t in self.tensors.items()}

    def expected(self, reference: Callable, options: dict) -> tuple[tuple, dict[str, Tensor]]:
        """Outputs and gradients of the reference; computed once."""
        key = reference, *sorted(options.items())
        if key not in self._expected:
            self._expected[key] = outputs_and_gradients(
                reference, self.leaves("cpu", {}, "rows"), options
            )
        return self._expected[key]


def outputs_and_gradients(
    function: Callable, leaves: dict[str, Tensor], options: dict
) -> tuple[tuple, dict[str, Tensor]]:
    out = function(**leaves, **options)
    out = out if isinstance(out, tuple) else (out,)
    torch.manual_seed(1)
    douts = [exact(*o.shape).to(o.device, o.dtype) for o in out]
    wanted = {n: t for n, t in leaves.items() if t.requires_grad}
    found = torch.autograd.grad(out, list(wanted.values()), douts, materialize_grads=True)
    return tuple(o.detach() for o in out), dict(zip(wanted, found, strict=True))


def compare(
    ours: Callable,
    reference: Callable,
    problem: Problem,
    sequences: str,
    dtype: torch.dtype,
    layout: str = "rows",
    device: str = "cpu",
    **options,
) -> dict[str, float]:
    """Outputs and gradients of both functions; the errors that are too large, by name."""
    dtypes = {n: dtype if n in sequences.split() else state_dtype(dtype) for n in problem.tensors}
    expected, expected_gradients = problem.expected(reference, options)
    found, gradients = outputs_and_gradients(ours, problem.leaves(device, dtypes, layout), options)
    errors = {
        f"output {i}": error(a, b) for i, (a, b) in enumerate(zip(found, expected, strict=True))
    }
    errors |= {f"gradient of {n}": error(gradients[n], g) for n, g in expected_gradients.items()}
    return {name: e for name, e in errors.items() if not e < TOLERANCE[dtype]}


def scan_problem(
    batch: int,
    dim: int,
    length: int,
    state: int,
    groups: int = 1,
    constant: str = "",
    absent: str = "",
    softplus: bool = True,
) -> Problem:
    """Arguments of selective_scan. ``constant``: which of B and C are; ``absent``: what is not."""

    def projection(name: str) -> Tensor:
        return exact(dim, state) if name in constant else exact(batch, groups, state, length)

    delta = exact(batch, dim, length)
    optional = {
        "D": exact(dim),
        "z": exact(batch, dim, length),
        "delta_bias": exact(dim).abs() / 4,
        "initial_state": exact(batch, dim, state),
        "reset": torch.rand(batch, length) < 0.02,
    }
    return Problem(
        u=exact(batch, dim, length),
        delta=delta if softplus else delta.abs() / 2,
        A=-exact(dim, state).abs() - 0.125,
        B=projection("B"),
        C=projection("C"),
        **{name: t for name, t in optional.items() if name not in absent.split()},
    )


def scan_sequences(constant: str = "") -> str:
    """Names of the arguments of selective_scan that may be of low precision."""
    return " ".join(["u delta z", *(name for name in "BC" if name not in constant)])


NOTHING_OPTIONAL = "D z delta_bias initial_state reset"


def ssd_problem(
    batch: int,
    length: int,
    heads: int,
    channels: int,
    groups: int,
    state: int,
    absent: str = "",
    skip_by_head: bool = False,
) -> Problem:
    """Arguments of ssd."""
    optional = {
        "D": exact(heads) if skip_by_head else exact(heads, channels),
        "z": exact(batch, length, heads, channels),
        "dt_bias": exact(heads).abs() / 4,
        "initial_states": exact(batch, heads, channels, state),
        "seq_idx": (torch.rand(batch, length) < 0.03).cumsum(1),
    }
    return Problem(
        x=exact(batch, length, heads, channels),
        dt=exact(batch, length, heads) / 2,
        A=-exact(heads).abs() - 0.125,
        B=exact(batch, length, groups, state),
        C=exact(batch, length, groups, state),
        **{name: t for name, t in optional.items() if name not in absent.split()},
    )


SSD_SIGNALS = "x B C z"


def delta_problem(
    batch: int, length: int, heads: int, state: int, channels: int, absent: str = ""
) -> Problem:
    """Arguments of delta_rule, with short keys; without beta, of linear_attention."""
    optional = {
        "beta": exact(batch, length, heads).sigmoid().mul(2).bfloat16().double(),
        "decay": exact(batch, length, heads).tanh().bfloat16().double(),
        "initial_state": exact(batch, heads, state, channels),
    }
    k = exact(batch, length, heads, state)
    return Problem(
        q=exact(batch, length, heads, state),
        k=(k / k.norm(dim=-1, keepdim=True).clamp_min(1)).bfloat16().double(),
        v=exact(batch, length, heads, channels),
        **{name: t for name, t in optional.items() if name not in absent.split()},
    )


DELTA_SIGNALS = "q k v"


def cell_problem(cell: str, batch: int, length: int, heads: int, channels: int) -> Problem:
    """Arguments of recurrent_cell; one sequence starts with nothing at all."""
    inputs, recurrent, biases, _, states = CELL_SIZES[CELLS.index(cell)]
    start = exact(states, batch, 1, heads, channels)
    if cell == "slstm":
        start[2] = start[2].abs() + 1
        start[:, :1] = 0
    return Problem(
        Wx=exact(batch, length, inputs, heads, channels),
        R=exact(recurrent, heads, channels, channels) / 4,
        b=exact(biases, heads, channels),
        states=start,
    )
