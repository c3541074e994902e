import pytest
import torch
from torch.nn.functional import avg_pool2d, conv2d, interpolate

from zoo.errors import ZooError
from zoo.layers.sizes import at_any_size, check_multiple, pad_to_multiple


def test_padding_repeats_edges():
    image = torch.arange(15.0).view(1, 1, 3, 5)
    padded = pad_to_multiple(image, 4)
    assert padded.shape == (1, 1, 4, 8)
    assert torch.equal(padded[..., :3, :5], image)
    assert torch.equal(padded[..., 3, :5], image[..., 2, :]) and padded[0, 0, 0, 7] == 4
    assert pad_to_multiple(image, 4, least=9).shape == (1, 1, 12, 12)
    check_multiple(padded, 4)
    with pytest.raises(ZooError, match="3x5 pixels: expected multiples of 4"):
        check_multiple(image, 4)


def network(image):
    """Maps at three sizes, of a small reach, which insists on multiples of 4."""
    check_multiple(image, 4)
    return {
        "half": avg_pool2d(image, 2),
        "double": (interpolate(image, scale_factor=2), None),
        "blurred": conv2d(image, torch.ones(3, 3, 5, 5) / 75, padding=2),
    }


@pytest.mark.parametrize("size", [(64, 64), (61, 70), (30, 131), (7, 5), (131, 24)])
def test_tiles_say_what_the_whole_says(size):
    image = torch.randn(2, 3, *size)
    whole = at_any_size(network, image, 4)
    tiled = at_any_size(network, image, 4, tile=50, overlap=18)
    rows, columns = size
    assert whole["half"].shape[-2:] == (-(-rows // 2), -(-columns // 2))
    assert whole["double"][0].shape[-2:] == (2 * rows, 2 * columns)
    assert whole["double"][1] is None and tiled["double"][1] is None
    torch.testing.assert_close(tiled["half"], whole["half"])
    torch.testing.assert_close(tiled["double"][0], whole["double"][0])
    # at a tile's own border the picture goes on, for the tile it does not
    assert tiled["blurred"].shape == whole["blurred"].shape == image.shape
    assert (tiled["blurred"] - whole["blurred"]).abs().mean() < 0.01


def test_no_tile_is_greater_than_allowed():
    seen = []

    def look(part):
        seen.append(part.shape[-2:])
        return part

    image = torch.rand(1, 1, 100, 23)
    torch.testing.assert_close(at_any_size(look, image, 8, tile=45, overlap=10), image)
    assert len(seen) == 4 and set(seen) == {(40, 24)}
