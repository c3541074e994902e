"""Maps as the sequences that two-dimensional selective scans read, and back."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.errors import ZooError
from zoo.ops._checks import Arguments
from zoo.ops._library import register

ORDERS = ("cross2d", "atrous")


def cross_scan(x: Tensor, order: str = "cross2d") -> Tensor:
    """A map as sequences [B, K, C, L].

    ``"cross2d"`` (VMamba, arXiv 2401.10166, section 4.2): K = 2, L = H W; sequence 0 is row after
    row, sequence 1 column after column. VMamba's directions 2 and 3 are these two read from the
    end, which ``selective_scan(..., reverse=True)`` does in place.

    ``"atrous"`` (EfficientVMamba, arXiv 2403.09977, section 3.2): K = 4, L = ceil(H/2) ceil(W/2);
    the map, padded with zeros to even sides, falls into four interleaved quarters. Sequences 0 and
    2 hold the even rows and the even and odd columns, row after row; sequences 1 and 3 the odd rows
    and the even and odd columns, column after column.

    Args:
        x: [B, C, H, W] in float32, bfloat16, float16 or float64, of any strides (channel-last is as
            fast).
        order: "cross2d" or "atrous".

    Returns:
        [B, K, C, L], contiguous, in the dtype of x; differentiable.

    Raises:
        ZooError: if x is not a map in one of these dtypes, is empty in C, H or W, or the order
            is unknown.
    """
    atrous = _is_atrous("cross_scan", order)
    _check_scan(x, atrous)
    return torch.ops.zoo.cross_scan(x, atrous)


def cross_merge(ys: Tensor, height: int, width: int, order: str = "cross2d") -> Tensor:
    """Sequences as a map: the adjoint of :func:`cross_scan`.

    ``"cross2d"`` adds both sequences up where they meet; ``"atrous"`` puts each value back to the
    one place it came from and cuts the padding off.

    Args:
        ys: [B, K, C, L] with K and L as :func:`cross_scan` makes them, in one of its dtypes, of any
            strides.
        height, width: of the map.
        order: "cross2d" or "atrous".

    Returns:
        [B, C, H, W], contiguous, in the dtype of ys; differentiable.

    Raises:
        ZooError: if ys does not have the shape that the map's size and the order ask for.
    """
    atrous = _is_atrous("cross_merge", order)
    _check_merge(ys, height, width, atrous)
    return torch.ops.zoo.cross_merge(ys, height, width, atrous)


def cross_scan_reference(x: Tensor, order: str = "cross2d") -> Tensor:
    """:func:`cross_scan` in plain PyTorch, to be read and to be compared with."""
    if not _is_atrous("cross_scan", order):
        return torch.stack([x.flatten(2), x.transpose(2, 3).flatten(2)], dim=1)
    x = F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2))
    quarters = [
        x[:, :, 0::2, 0::2],
        x[:, :, 1::2, 0::2].transpose(2, 3),
        x[:, :, 0::2, 1::2],
        x[:, :, 1::2, 1::2].transpose(2, 3),
    ]
    return torch.stack([quarter.flatten(2) for quarter in quarters], dim=1)


def cross_merge_reference(ys: Tensor, height: int, width: int, order: str = "cross2d") -> Tensor:
    """:func:`cross_merge` in plain PyTorch, to be read and to be compared with."""
    if not _is_atrous("cross_merge", order):
        rows = ys[:, 0].unflatten(2, (height, width))
        columns = ys[:, 1].unflatten(2, (width, height))
        return rows + columns.transpose(2, 3)
    h, w = (height + 1) // 2, (width + 1) // 2
    by_row, by_column = ys[:, 0::2].unflatten(3, (h, w)), ys[:, 1::2].unflatten(3, (w, h))
    even, odd = by_row, by_column.transpose(3, 4)  # [B, 2 (column parity), C, h, w]
    rows = torch.stack([even, odd], dim=4)  # [B, 2, C, h, 2, w]
    grid = torch.stack([rows[:, 0], rows[:, 1]], dim=-1)  # [B, C, h, 2, w, 2]
    return grid.flatten(4, 5).flatten(2, 3)[:, :, :height, :width].contiguous()


def _is_atrous(op: str, order: str) -> bool:
    if order not in ORDERS:
        raise ZooError(f"{op}: order must be one of {', '.join(ORDERS)}, got '{order}'")
    return order == "atrous"


def _sequences(height: int, width: int, atrous: bool) -> tuple[int, int]:
    """K and L."""
    return (4, ((height + 1) // 2) * ((width + 1) // 2)) if atrous else (2, height * width)


def _check_scan(x: Tensor, atrous: bool) -> None:
    if x.dim() != 4 or 0 in x.shape[1:]:
        raise ZooError(
            "cross_scan: x must be [batch, channels, height, width], none of the last three 0, "
            f"got {list(x.shape)}"
        )
    Arguments("cross_scan", "x", x).is_float("x", x)


def _check_merge(ys: Tensor, height: int, width: int, atrous: bool) -> None:
    if height < 1 or width < 1:
        raise ZooError(f"cross_merge: the map must not be empty, got {height} x {width}")
    ways, length = _sequences(height, width, atrous)
    if ys.dim() != 4 or ys.shape[1] != ways or ys.shape[3] != length or 0 in ys.shape[1:]:
        raise ZooError(
            f"cross_merge: for a map of {height} x {width} and order '{_order(atrous)}', ys must "
            f"be [batch, {ways}, channels, {length}], got {list(ys.shape)}"
        )
    Arguments("cross_merge", "ys", ys).is_float("ys", ys)


def _order(atrous: bool) -> str:
    return "atrous" if atrous else "cross2d"


def _fake_scan(x: Tensor, atrous: bool) -> Tensor:
    B, C, H, W = x.shape
    ways, length = _sequences(H, W, atrous)
    return x.new_empty(B, ways, C, length)


register(
    "cross_scan",
    check=_check_scan,
    reference=lambda x, atrous: cross_scan_reference(x, _order(atrous)),
    fake=_fake_scan,
)
register(
    "cross_merge",
    check=_check_merge,
    reference=lambda ys, H, W, atrous: cross_merge_reference(ys, H, W, _order(atrous)),
    fake=lambda ys, H, W, atrous: ys.new_empty(ys.shape[0], ys.shape[2], H, W),
)


def _keep_scan(ctx: Any, inputs: tuple, output: Tensor) -> None:
    x, ctx.atrous = inputs
    ctx.size = x.shape[2:]


def _keep_merge(ctx: Any, inputs: tuple, output: Tensor) -> None:
    ctx.atrous = inputs[3]


# Each is the other's adjoint.
torch.library.register_autograd(
    "zoo::cross_scan",
    lambda ctx, grad: (torch.ops.zoo.cross_merge(grad, *ctx.size, ctx.atrous), None),
    setup_context=_keep_scan,
)
torch.library.register_autograd(
    "zoo::cross_merge",
    lambda ctx, grad: (torch.ops.zoo.cross_scan(grad, ctx.atrous), None, None, None),
    setup_context=_keep_merge,
)
