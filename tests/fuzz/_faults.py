"""Ways in which a call can be wrong, for the domain ``ops``. Some leave it right all the same."""

from __future__ import annotations

from random import Random

import torch
from torch import Tensor

from tests.fuzz._call import Call
from tests.fuzz._calls import laid_out

EDGES = (
    -(2**63),
    -(2**31),
    -1000,
    -2,
    -1,
    0,
    1,
    2,
    7,
    1000,
    2**31 - 1,
    2**31,
    2**40,
    2**62,
    2**63 - 1,
)
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int32, torch.int64,
          torch.bool, torch.uint8, torch.complex64)  # fmt: skip


def inject(random: Random, call: Call) -> None:
    """Change one argument."""
    places = [i for i, a in enumerate(call.arguments) if a is not None]
    place = random.choice(places)
    value = call.arguments[place]
    if isinstance(value, bool):
        return
    if isinstance(value, int):
        value = random.choice(EDGES)
        if call.op == "vandermonde_kernel" and value == 2**31 - 1:
            return  # a length that can be had, if there is the memory
        call.arguments[place] = value
        call.wrong.append(f"number {place}")
        return
    if not isinstance(value, Tensor):
        call.arguments[place] = random.choice((float("nan"), -1.0, 0.0))
        call.wrong.append(f"number {place}")
        return
    if not call.is_plain():
        return  # what can be done with a tensor without memory is not much
    change = random.choice(_CHANGES)
    changed = change(random, call, value)
    if changed is None:
        return
    call.arguments[place] = changed
    call.renew_borders(place)
    call.wrong.append(f"{change.__name__[1:]} of argument {place}")


def _shape(random: Random, call: Call, t: Tensor) -> Tensor | None:
    how = random.choice(("cut", "grow", "empty", "one", "drop", "add", "swap", "split"))
    if t.dim() == 0:
        return t[None]
    dim = random.randrange(t.dim())
    if how == "cut" and t.shape[dim]:
        return t.narrow(dim, 0, t.shape[dim] - 1)
    if how == "grow":
        return torch.cat([t, t.narrow(dim, 0, min(1, t.shape[dim]))], dim)
    if how == "empty":
        return t.narrow(dim, 0, 0)
    if how == "one" and t.shape[dim]:
        return t.narrow(dim, 0, 1)
    if how == "drop" and t.shape[dim]:
        return t.select(dim, 0)
    if how == "add":
        return t.unsqueeze(dim)
    if how == "swap":
        return t.transpose(dim, random.randrange(t.dim()))
    return t.unflatten(dim, (t.shape[dim], 1)) if t.shape[dim] else None


def _dtype(random: Random, call: Call, t: Tensor) -> Tensor:
    return t.to(random.choice(DTYPES))


def _device(random: Random, call: Call, t: Tensor) -> Tensor:
    return t.to("meta")


def _layout(random: Random, call: Call, t: Tensor) -> Tensor:
    return laid_out(random, t)


def _stride(random: Random, call: Call, t: Tensor) -> Tensor | None:
    """Elements that stand for several."""
    if t.dim() == 0 or not t.numel():
        return None
    dim = random.randrange(t.dim())
    if random.random() < 0.5:
        return t.narrow(dim, 0, 1).expand(t.shape)
    strides = [random.choice((0, 1, s)) for s in t.stride()]
    return t.as_strided(t.shape, strides)


def _absence(random: Random, call: Call, t: Tensor) -> None:
    place = next(i for i, a in enumerate(call.arguments) if a is t)
    schema = getattr(torch.ops.zoo, call.op).default._schema
    if not isinstance(schema.arguments[place].type, torch.OptionalType):
        return  # PyTorch itself refuses that
    call.arguments[place] = None
    call.renew_borders(place)
    call.wrong.append(f"no argument {place}")


def _values(random: Random, call: Call, t: Tensor) -> Tensor | None:
    """Numbers of an index tensor."""
    if t.is_floating_point() or t.is_complex() or not t.numel():
        return None
    t = t.clone()
    if t.dtype == torch.bool:  # a bool that is neither 0 nor 1
        return t.to(torch.uint8).mul_(random.choice((2, 255))).view(torch.bool)
    limits = torch.iinfo(t.dtype)
    edge = min(max(random.choice(EDGES), limits.min), limits.max)
    flat = t.view(-1)
    place = random.randrange(t.numel())
    flat[place] = (
        edge if random.random() < 0.6 else int(flat[place]) + random.choice((-1, 1, 2, 60))
    )
    call.hidden = True
    return t


def _alias(random: Random, call: Call, t: Tensor) -> Tensor | None:
    """A part of what the call overwrites."""
    if not call.changed:
        return None
    whole = call.arguments[call.changed[0]]
    usable = isinstance(whole, Tensor) and whole.layout == torch.strided and whole is not t
    if not usable or whole.dtype != t.dtype or whole.device != t.device or not t.numel():
        return None
    room = whole.untyped_storage().nbytes() // whole.element_size()
    if room < t.numel():
        return None
    call.hidden = True
    strides = torch.empty(t.shape, device="meta").stride()
    return whole.as_strided(t.shape, strides, random.randint(0, room - t.numel()))


def _storage(random: Random, call: Call, t: Tensor) -> Tensor | None:
    """Memory that has been taken away, as sharding does."""
    if t.layout != torch.strided or t.device.type != "cpu":
        return None
    call.hidden = True
    t = t.clone()
    t.untyped_storage().resize_(0 if random.random() < 0.5 else t.untyped_storage().nbytes() // 2)
    return t


def _sign(random: Random, call: Call, t: Tensor) -> Tensor | None:
    """Negated only when it is read: PyTorch hands a copy to the kernel, in a layout of its own."""
    if call.wrong or any(call.arguments[place] is t for place in call.changed):
        return (
            None  # not where it is overwritten: an assertion in PyTorch's MathBitsFallback.h fails
        )
    return torch._neg_view(t) if t.is_floating_point() and t.layout == torch.strided else None


def _grad(random: Random, call: Call, t: Tensor) -> Tensor | None:
    if not t.is_floating_point() or t.is_neg():
        return None
    leaf = t.detach().requires_grad_()
    return leaf if random.random() < 0.5 else leaf * 1


def _sparsity(random: Random, call: Call, t: Tensor) -> Tensor | None:
    return t.to_sparse() if t.device.type == "cpu" and t.layout == torch.strided else None


_CHANGES = (
    _shape, _shape, _shape, _dtype, _device, _layout, _stride, _values, _values, _values, _alias,
    _absence, _storage, _sign, _sparsity, _grad,
)  # fmt: skip
