"""Objects drawn on a picture: boxes, names, outlines."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks

from zoo.plots.panels import COLOURS

#: Narrower pictures are enlarged, so that names can be read.
_WIDTH = 320


def draw_objects(
    picture: np.ndarray,
    boxes: Tensor,
    labels: Tensor,
    texts: Sequence[str],
    masks: Tensor | None = None,
) -> np.ndarray:
    """Draw each object in the colour of its label.

    Args:
        picture: uint8 [H, W, 3].
        boxes: left, top, right, bottom in pixels [N, 4].
        labels: [N] from 0.
        texts: at each box.
        masks: bool [N, H, W].

    Returns:
        uint8 [H', W', 3], H' and W' a multiple of H and W.
    """
    image = torch.from_numpy(picture).movedim(-1, 0)
    colours = [tuple(int(c) for c in COLOURS[int(label) % len(COLOURS)]) for label in labels]
    if masks is not None and len(masks):
        image = draw_segmentation_masks(image, masks.cpu(), alpha=0.45, colors=colours)
    factor = max(1, -(-_WIDTH // image.shape[-1]))
    image = image.repeat_interleave(factor, 1).repeat_interleave(factor, 2)
    if len(boxes):
        image = draw_bounding_boxes(
            image,
            boxes.cpu() * factor,
            labels=list(texts),
            colors=colours,
            width=max(2, image.shape[-1] // 200),
        )
    return image.movedim(0, -1).numpy()
