"""Time and memory of a call."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch.utils.benchmark import Measurement, Timer

from zoo.bench.case import Case, Inputs

_ROUNDS = 3


def caller(case: Case, function: Callable[[Inputs], object], inputs: Inputs) -> Callable[[], None]:
    """A call of ``function``, with the backward pass where the case has one.

    The gradient that comes from above is made beforehand. All floating-point arguments get theirs.
    """
    if not case.backward:

        def forward() -> None:
            with torch.no_grad():
                function(inputs)

        return forward

    leaves = {
        name: value.detach().requires_grad_()
        for name, value in inputs.items()
        if isinstance(value, torch.Tensor)
    }
    arguments = {**inputs, **leaves}
    dout = torch.randn_like(case.run(arguments))

    def forward_and_backward() -> None:
        torch.autograd.grad(function(arguments), list(leaves.values()), dout)

    return forward_and_backward


def median_seconds(
    calls: Mapping[str, tuple[Callable[[], None], int]], seconds: float
) -> dict[str, float]:
    """Median time of each of several calls, each given with its number of threads.

    They take turns, so that a disturbance falls on all of them; a call that alone takes longer than
    ``seconds`` has one turn.
    """
    found: dict[str, list[Measurement]] = {name: [] for name in calls}
    for turn in range(_ROUNDS):
        for name, (call, threads) in calls.items():
            if turn > 0 and found[name][0].median > seconds / _ROUNDS:
                continue
            timer = Timer("call()", globals={"call": call}, num_threads=threads)
            found[name].append(timer.blocked_autorange(min_run_time=seconds / _ROUNDS))
    medians = {}
    for name, measurements in found.items():
        (merged,) = Measurement.merge(measurements)
        medians[name] = merged.median
    return medians


def peak_bytes(call: Callable[[], None], device: str) -> int | None:
    """Memory that a call takes at most beyond what is there before it, its results included.

    On a CPU this is the growth of the process, in pages; None where the system does not tell.
    """
    call()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    try:
        ctypes.CDLL(None).malloc_trim(0)  # memory that is kept for later would hide the growth
        Path("/proc/self/clear_refs").write_text("5")  # the peak is now what is in use now
        before = _process_memory("VmRSS")
        call()
        return max(0, _process_memory("VmHWM") - before)
    except (OSError, AttributeError):
        return None


def _process_memory(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    raise OSError(f"no {name} in /proc/self/status")
