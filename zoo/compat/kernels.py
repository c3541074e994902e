"""The compiled modules below mamba_ssm and causal_conv1d, as the papers' own code calls them.

``selective_scan_cuda`` (mamba_ssm), ``selective_scan_cuda_core`` and ``selective_scan_cuda_oflex``
(VMamba) and ``causal_conv1d_cuda`` differ in their argument lists only. They run on any device.
Their intermediate tensor ``x`` holds the last state alone, in the place where it is looked for,
``x[:, :, -1, 1::2]``; the backward functions compute the scan again.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.compat.causal_conv1d_interface import causal_conv1d_fn, causal_conv1d_update
from zoo.errors import ZooError
from zoo.ops import selective_scan


def _gradients(
    function: Callable[..., Tensor], inputs: dict[str, Tensor | None], dout: Tensor
) -> dict[str, Tensor | None]:
    """Gradients of ``function(**inputs)`` for all inputs that are there."""
    with torch.enable_grad():
        leaves = {
            name: None if tensor is None else tensor.detach().requires_grad_()
            for name, tensor in inputs.items()
        }
        out = function(**leaves)
        given = {name: leaf for name, leaf in leaves.items() if leaf is not None}
        found = torch.autograd.grad(out, list(given.values()), dout.to(out.dtype))
    return dict.fromkeys(inputs) | dict(zip(given, found, strict=True))


def _scan_forward(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        result: Any = selective_scan(
            u, delta, A, B, C, D, None, delta_bias, delta_softplus, return_last_state=True
        )
    out, last = result
    x = last.new_zeros(*last.shape[:2], 1, 2 * last.shape[2])  # [B, D, chunks, 2N]
    x[:, :, 0, 1::2] = last
    return out, x


def _scan_backward(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    dout: Tensor,
    delta_softplus: bool,
) -> tuple[list[Tensor | None], Tensor | None]:
    inputs = dict(u=u, delta=delta, A=A, B=B, C=C, D=D, z=z, delta_bias=delta_bias)

    def scan(**leaves: Tensor | None) -> Any:
        return selective_scan(**leaves, delta_softplus=delta_softplus)  # type: ignore[arg-type]

    found = _gradients(scan, inputs, dout)
    dz = found.pop("z")
    return list(found.values()), dz


def _mamba_fwd(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
) -> list[Tensor]:
    """[out before the gate, x], and the gated output if there is z."""
    out, x = _scan_forward(u, delta, A, B, C, D, delta_bias, delta_softplus)
    return [out, x] if z is None else [out, x, _gate(out, z)]


def _gate(out: Tensor, z: Tensor) -> Tensor:
    return (out.float() * F.silu(z.float())).to(out.dtype)


def _mamba_bwd(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    dout: Tensor,
    x: Tensor | None,
    out: Tensor | None,
    dz: Tensor | None,
    delta_softplus: bool,
    recompute_out_z: bool,
) -> list[Tensor | None]:
    """Gradients of u, delta, A, B, C, D, delta_bias; with z its own, and the output if asked."""
    gradients, own_dz = _scan_backward(u, delta, A, B, C, D, z, delta_bias, dout, delta_softplus)
    if z is None or own_dz is None:
        return gradients
    gradients.append(own_dz if dz is None else dz.copy_(own_dz))
    if recompute_out_z:
        if out is None:
            out, _ = _scan_forward(u, delta, A, B, C, D, delta_bias, delta_softplus)
        gradients.append(_gate(out, z))
    return gradients


def _core_fwd(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    nrows: int = 1,
) -> list[Tensor]:
    """[out, x]; ``nrows`` concerns CUDA blocks only."""
    return list(_scan_forward(u, delta, A, B, C, D, delta_bias, delta_softplus))


def _core_bwd(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    dout: Tensor,
    x: Tensor | None,
    delta_softplus: bool,
    nrows: int = 1,
) -> list[Tensor | None]:
    """Gradients of u, delta, A, B, C, D, delta_bias."""
    return _scan_backward(u, delta, A, B, C, D, None, delta_bias, dout, delta_softplus)[0]


def _oflex_fwd(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    nrows: int = 1,
    out_float: bool = True,
) -> list[Tensor]:
    """[out, x]; the output is float32 even for half-precision inputs if ``out_float``."""
    if out_float:
        u, delta, B, C = u.float(), delta.float(), B.float(), C.float()
    return _core_fwd(u, delta, A, B, C, D, delta_bias, delta_softplus)


def _convolved(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    seq_idx: Tensor | None,
    initial_states: Tensor | None,
    final_states_out: Tensor | None,
    silu_activation: bool,
) -> Tensor:
    with torch.no_grad():
        wanted = final_states_out is not None
        result: Any = causal_conv1d_fn(
            x, weight, bias, seq_idx, initial_states, wanted, final_states_out,
            _activation(silu_activation),
        )  # fmt: skip
    return result[0] if wanted else result


def _conv_gradients(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    dout: Tensor,
    seq_idx: Tensor | None,
    initial_states: Tensor | None,
    dfinal_states: Tensor | None,
    dx: Tensor | None,
    return_dinitial_states: bool,
    silu_activation: bool,
) -> tuple[Tensor | None, ...]:
    """Gradients of x (also written to ``dx``), weight, bias and the initial states."""

    def convolve(**leaves: Tensor | None) -> Any:
        out = causal_conv1d_fn(
            **leaves,  # type: ignore[arg-type]
            seq_idx=seq_idx,
            return_final_states=dfinal_states is not None,
            activation=_activation(silu_activation),
        )
        if dfinal_states is None:
            return out
        # One output whose gradient is that of both.
        return torch.cat([out[0], out[1]], dim=-1)

    inputs = dict(x=x, weight=weight, bias=bias, initial_states=initial_states)
    if dfinal_states is not None:
        dout = torch.cat([dout, dfinal_states], dim=-1)
    found = _gradients(convolve, inputs, dout)
    if dx is not None and found["x"] is not None:
        found["x"] = dx.copy_(found["x"])
    if not return_dinitial_states:
        found["initial_states"] = None
    return tuple(found.values())


def _step(
    x: Tensor,
    conv_state: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    silu_activation: bool,
    cache_seqlens: Tensor | None = None,
    conv_state_indices: Tensor | None = None,
) -> Tensor:
    with torch.no_grad():
        return causal_conv1d_update(
            x, conv_state, weight, bias, _activation(silu_activation), cache_seqlens,
            conv_state_indices,
        )  # fmt: skip


def _conv_fwd(*args: Any) -> Tensor | None:
    """The forward pass, by the arguments of each version.

    From 1.5.1 on (x, weight, bias, seq_idx, initial_states, out, final_states_out, silu): ``out``
    is written and nothing returned. Before, ``out`` was no argument but the result; before 1.4
    there were no states, before 1.2 no ``seq_idx``.
    """
    if len(args) == 8:
        args[5].copy_(_convolved(*args[:5], *args[6:]))
        return None
    if len(args) not in (4, 5, 7):
        raise _wrong("causal_conv1d_fwd", "4, 5, 7 or 8", args)
    given: Any = (*args[:-1], *[None] * (7 - len(args)), args[-1])
    return _convolved(*given)


def _conv_bwd(*args: Any) -> tuple[Tensor | None, ...] | None:
    """The backward pass, by the arguments of each version.

    From 1.5.1 on (x, weight, bias, dout, seq_idx, initial_states, dfinal_states, dx, dweight,
    dbias, dinitial_states, silu): the gradients are written where there is a place, those of weight
    and bias added. Before (..., dfinal_states, dx, return_dinitial_states, silu) they were the
    result; before 1.4 there were no states, before 1.2 no ``seq_idx``.
    """
    if len(args) == 12:
        dx, dweight, dbias, dinitial, silu = args[7:]
        given: Any = (*args[:7], None, dinitial is not None, silu)
        found = _conv_gradients(*given)
        for place, gradient, added in zip(
            (dx, dweight, dbias, dinitial), found, (False, True, True, False), strict=True
        ):
            if place is not None and gradient is not None:
                place.add_(gradient) if added else place.copy_(gradient)
        return None
    if len(args) == 10:
        return _conv_gradients(*args)
    if len(args) not in (6, 7):
        raise _wrong("causal_conv1d_bwd", "6, 7, 10 or 12", args)
    *first, dx, silu = args
    seq_idx = first[4] if len(first) == 5 else None
    old: Any = (*first[:4], seq_idx, None, None, dx, False, silu)
    return _conv_gradients(*old)[:3]


def _conv_update(*args: Any) -> Tensor | None:
    """One step, by the arguments of each version.

    From 1.5.1 on (x, conv_state, weight, bias, out, silu, cache_seqlens, conv_state_indices):
    ``out`` is written and nothing returned. Before, ``out`` was no argument but the result, and the
    last ones came one by one.
    """
    if len(args) == 8:
        args[4].copy_(_step(*args[:4], *args[5:]))
        return None
    if len(args) not in (5, 6, 7):
        raise _wrong("causal_conv1d_update", "5 to 8", args)
    return _step(*args)


def _wrong(name: str, expected: str, args: tuple[Any, ...]) -> ZooError:
    return ZooError(f"causal_conv1d_cuda.{name}: expected {expected} arguments, got {len(args)}")


def _activation(silu: bool) -> str | None:
    return "silu" if silu else None


selective_scan_cuda = SimpleNamespace(fwd=_mamba_fwd, bwd=_mamba_bwd)
selective_scan_cuda_core = SimpleNamespace(fwd=_core_fwd, bwd=_core_bwd)
selective_scan_cuda_oflex = SimpleNamespace(fwd=_oflex_fwd, bwd=_core_bwd)
causal_conv1d_cuda = SimpleNamespace(
    causal_conv1d_fwd=_conv_fwd,
    causal_conv1d_bwd=_conv_bwd,
    causal_conv1d_update=_conv_update,
)
#: ``causal_conv1d.cpp_functions``
causal_conv1d_functions = SimpleNamespace(
    causal_conv1d_fwd_function=_convolved,
    causal_conv1d_bwd_function=_conv_gradients,
    causal_conv1d_update_function=_step,
)
