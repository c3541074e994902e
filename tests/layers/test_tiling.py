import pytest
import torch

from zoo.errors import ZooError
from zoo.layers.tiling import pad_tiles, tiled


@pytest.mark.parametrize("size", [(8, 8), (40, 24), (17, 33), (16, 50)])
@pytest.mark.parametrize("overlap", [0, 4, 15])
def test_blending_keeps_what_all_tiles_agree_on(size, overlap):
    image = torch.rand(2, 3, *size)
    seen = torch.zeros(size)

    def network(tile, top, left):
        rows, columns = tile.shape[-2:]
        seen[top : top + rows, left : left + columns] += 1
        assert torch.equal(tile, image[..., top : top + rows, left : left + columns])
        return tile * 2

    torch.testing.assert_close(tiled(network, image, 16, overlap), image * 2)
    assert seen.min() >= 1


def test_neighbours_fade_into_each_other():
    image = torch.zeros(1, 1, 4, 12)
    result = tiled(lambda tile, top, left: tile + (left > 0), image, 8, 4)[0, 0, 0]
    assert torch.equal(result[:4], torch.zeros(4)) and torch.equal(result[8:], torch.ones(4))
    assert (result[4:8].diff() > 0).all() and result[4] > 0 and result[7] < 1


def test_padding_mirrors():
    image = torch.arange(6.0).view(1, 1, 1, 6)
    assert pad_tiles(image, 4)[0, 0, 0].tolist() == [0, 1, 2, 3, 4, 5, 5, 5]
    image = torch.arange(6.0).repeat(6, 1)[None, None]
    assert pad_tiles(image, 4)[0, 0, 0].tolist() == [0, 1, 2, 3, 4, 5, 4, 3]


def test_wrong_overlap_is_said():
    with pytest.raises(ZooError, match="overlap of 8 pixels"):
        tiled(lambda tile, top, left: tile, torch.zeros(1, 1, 8, 8), 8, 8)
