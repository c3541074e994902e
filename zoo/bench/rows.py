"""Measuring cases."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from zoo.bench.bounds import Bounds
from zoo.bench.case import Case
from zoo.bench.measure import caller, median_seconds, peak_bytes
from zoo.errors import ZooError

#: Beyond this, a result is wrong.
LARGEST_ERROR = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 1e-2}


@dataclass(frozen=True)
class Setting:
    """Where and how thoroughly to measure.

    Attributes:
        device: "cpu" or "cuda".
        threads: of a CPU.
        seconds: to spend on each of the things that are timed.
    """

    device: str
    threads: int
    seconds: float


@dataclass
class Row:
    """A measured case. Times in seconds, memory in bytes; a ratio above 1: the peer is slower.

    ``error`` is that of the forward pass against float64.
    """

    op: str
    case: str
    sizes: dict[str, Any]
    dtype: str
    direction: str
    seconds: float
    bound_seconds: float
    bound_by: str
    input_bytes: int
    peak_bytes: int | None
    error: float
    peers: dict[str, float] = field(default_factory=dict)
    ratios: dict[str, float] = field(default_factory=dict)
    fraction_of_bound: float = 0.0

    def __post_init__(self) -> None:
        self.fraction_of_bound = self.bound_seconds / self.seconds
        self.ratios = {name: peer / self.seconds for name, peer in self.peers.items()}


@dataclass
class Growth:
    """Time against length; ``exponent`` is 1 where it is linear."""

    op: str
    case: str
    direction: str
    lengths: list[int]
    seconds: list[float]
    exponent: float


def measure_row(case: Case, setting: Setting, bounds: Bounds) -> Row:
    """Time the op and its peers on the same arguments."""
    torch.manual_seed(0)
    dtype = case.dtype_on(setting.device)
    inputs = case.inputs(torch.empty(0, dtype=dtype, device=setting.device))
    calls = {"": (caller(case, case.run, inputs), setting.threads)}
    for name, peer in case.peers.items() if case.compare else ():
        if setting.device not in peer.devices or (case.backward and not peer.backward):
            continue
        try:
            function = peer.load()
        except ImportError:
            continue  # is not installed
        calls[name] = (caller(case, function, inputs), peer.threads or setting.threads)
    with torch.no_grad():
        error = case.error(inputs)
    if not error <= LARGEST_ERROR[dtype]:
        raise ZooError(
            f"zoo bench: {case.op} ({case.label()}, {dtype}) deviates by {error:.1e} from float64, "
            f"at most {LARGEST_ERROR[dtype]:.0e} is right: the kernels of this build are broken"
        )
    seconds = median_seconds(calls, setting.seconds)
    bound, bound_by = bounds.seconds(case.work(dtype.itemsize))
    return Row(
        op=case.op,
        case=case.label(),
        sizes=case.sizes(),
        dtype=str(dtype).removeprefix("torch."),
        direction=_direction(case),
        seconds=seconds.pop(""),
        bound_seconds=bound,
        bound_by=bound_by,
        input_bytes=sum(t.nbytes for t in inputs.values() if isinstance(t, torch.Tensor)),
        peak_bytes=peak_bytes(calls[""][0], setting.device),
        error=error,
        peers=seconds,
    )


def measure_growth(case: Case, lengths: Sequence[int], setting: Setting) -> Growth:
    """Time the op at each length."""
    times = []
    for length in lengths:
        longer = replace(case, **{"length": length})
        dtype = longer.dtype_on(setting.device)
        inputs = longer.inputs(torch.empty(0, dtype=dtype, device=setting.device))
        call = caller(longer, longer.run, inputs)
        times.append(median_seconds({"": (call, setting.threads)}, setting.seconds)[""])
    label = replace(case, **{"length": 0}).label().replace(" 0 ", " L ")
    return Growth(case.op, label, _direction(case), list(lengths), times, _exponent(lengths, times))


def _direction(case: Case) -> str:
    return "forward + backward" if case.backward else "forward"


def _exponent(lengths: Sequence[int], seconds: Sequence[float]) -> float:
    """Least-squares slope in the logarithms over the longer half, where a call costs nothing."""
    half = len(lengths) // 2
    x, y = [math.log(n) for n in lengths[half:]], [math.log(s) for s in seconds[half:]]
    x_mean, y_mean = sum(x) / len(x), sum(y) / len(y)
    across = sum((a - x_mean) * (b - y_mean) for a, b in zip(x, y, strict=True))
    return across / sum((a - x_mean) ** 2 for a in x)
