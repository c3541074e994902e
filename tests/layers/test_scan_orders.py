import pytest
import torch

from zoo.layers.scan_orders import DOWN, LEFT, RIGHT, START, UP, snake

SIZES = [(1, 1), (1, 5), (5, 1), (2, 2), (3, 4), (4, 3), (5, 5), (6, 4)]


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_inverse_brings_every_cell_back(height, width):
    order = snake(height, width)
    cells = torch.arange(height * width)
    for index, inverse in zip(order.index, order.inverse, strict=True):
        assert torch.equal(cells[index].sort().values, cells)
        assert torch.equal(cells[index][inverse], cells)


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_moves_lead_from_each_cell_to_the_next(height, width):
    order = snake(height, width)
    step = {RIGHT: (0, 1), LEFT: (0, -1), UP: (-1, 0), DOWN: (1, 0)}
    for index, moves in zip(order.index.tolist(), order.moves.tolist(), strict=True):
        assert moves[0] == START
        for here, there, move in zip(index, index[1:], moves[1:], strict=False):
            row, column = here // width + step[move][0], here % width + step[move][1]
            assert there == row * width + column


def test_order_of_a_small_grid():
    order = snake(2, 3)
    assert order.index.tolist() == [
        [0, 1, 2, 5, 4, 3],
        [3, 4, 5, 2, 1, 0],
        [0, 3, 4, 1, 2, 5],
        [5, 2, 1, 4, 3, 0],
    ]
