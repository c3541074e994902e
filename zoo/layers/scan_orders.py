"""Orders in which a sequence model visits the cells of a grid, with their exact inverses.

Row-major and column-major order and their reverses need no index at all
(:func:`zoo.ops.cross_scan`, ``selective_scan(reverse=True)``), and neither has the atrous order
(``cross_scan(order="atrous")``). What stands here is for orders that are no plain view of the grid.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from zoo.layers.kept_tokens import gaps_before, take

#: What :attr:`ScanOrder.moves` counts: how a step of the scan reaches its cell.
START, RIGHT, LEFT, UP, DOWN = range(5)


class ScanOrder(NamedTuple):
    """K ways through a grid of L = H·W cells that are numbered row by row.

    Attributes:
        index: [K, L] the cell that step t visits, so that ``x[:, index[k]]`` is sequence k.
        inverse: [K, L] the step that visits a cell, so that ``y[:, inverse[k]]`` is a map again.
        moves: [K, L] START, RIGHT, LEFT, UP or DOWN: the move that led into the cell of step t.
        gaps: None, or, of an order through some of the cells, how many were left out before step t.

    Where samples keep different cells (:func:`only_kept`), the shapes are [K, B, n].
    """

    index: Tensor  # type: ignore[assignment]  # no one needs tuple.index
    inverse: Tensor
    moves: Tensor
    gaps: Tensor | None = None


def scan_order(index: Tensor, width: int) -> ScanOrder:
    """Inverse and moves of the orders ``index`` [K, L] on a grid that is ``width`` cells wide."""
    inverse = _inverse(index)
    rows, columns = (index // width).diff(dim=-1), (index % width).diff(dim=-1)
    moves = torch.where(columns > 0, RIGHT, LEFT)
    moves = torch.where(rows > 0, DOWN, torch.where(rows < 0, UP, moves))
    start = torch.full_like(index[:, :1], START)
    return ScanOrder(index, inverse, torch.cat([start, moves], dim=-1))


def only_kept(order: ScanOrder, places: Tensor, gaps: bool = True) -> ScanOrder:
    """The same ways through the cells at ``places`` alone.

    Args:
        order: ways through the whole grid.
        places: [B, n] the cells that each sample keeps, ascending.
        gaps: count what was left out; False: as if the cells on a way followed each other.

    Returns:
        An order whose cells are numbers in ``places``, 0 to n - 1. A move is still the one that the
        way through the whole grid makes into the cell.
    """
    steps = order.inverse[:, places]  # [K, B, n]
    index = steps.argsort(dim=-1)
    steps = steps.gather(-1, index)
    moves = order.moves[:, None].expand(-1, len(places), -1).gather(-1, steps)
    return ScanOrder(index, _inverse(index), moves, gaps_before(steps) if gaps else None)


def _inverse(index: Tensor) -> Tensor:
    steps = torch.arange(index.shape[-1], device=index.device).expand_as(index)
    return torch.empty_like(index).scatter_(-1, index, steps)


class _Permute(torch.autograd.Function):
    # index_select's own gradient adds up into zeros, which costs three times what this does.
    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(inverse)
        return _reorder(x, index)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (inverse,) = ctx.saved_tensors
        return _reorder(grad, inverse), None, None


def _reorder(x: Tensor, index: Tensor) -> Tensor:
    return x.index_select(1, index) if index.dim() == 1 else take(x, index)


def permute(x: Tensor, index: Tensor, inverse: Tensor) -> Tensor:
    """Tokens [B, L, C] in another order, ``x[:, index]``, where ``inverse`` brings them back.

    Both are [L], or [B, L] where each sample has its own.
    """
    return _Permute.apply(x, index, inverse)


def snake(height: int, width: int, device: torch.device | str | None = None) -> ScanOrder:
    """The four continuous orders of PlainMamba (section 3.2): every step goes to a neighbour.

    0: by rows from the top left, alternately rightward and leftward; 1: the same path backward;
    2: by columns from the top left, alternately downward and upward; 3: that path backward.
    """
    cells = torch.arange(height * width, device=device).view(height, width)
    odd_row = (torch.arange(height, device=device) % 2 == 1)[:, None]
    odd_column = (torch.arange(width, device=device) % 2 == 1)[:, None]
    by_rows = torch.where(odd_row, cells.flip(1), cells).flatten()
    columns = cells.T
    by_columns = torch.where(odd_column, columns.flip(1), columns).flatten()
    index = torch.stack([by_rows, by_rows.flip(0), by_columns, by_columns.flip(0)])
    return scan_order(index, width)
