"""Image sizes that a network can take."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import pad

from zoo.errors import ZooError


def check_multiple(image: Tensor, stride: int) -> None:
    """Raise :class:`ZooError` unless H and W of [..., H, W] are multiples of ``stride``."""
    height, width = image.shape[-2:]
    if height % stride or width % stride:
        raise ZooError(
            f"an image of {height}x{width} pixels: expected multiples of {stride}, pad it first "
            "(zoo.layers.sizes.pad_to_multiple)"
        )


def pad_to_multiple(image: Tensor, stride: int) -> Tensor:
    """[..., H, W] -> the next multiples of ``stride``, edges repeated right and below."""
    height, width = image.shape[-2:]
    return pad(image, (0, -width % stride, 0, -height % stride), mode="replicate")
